//! Who gets in at the broker in edgecore, and what each may do there: mqtt5 asks at every login, subscription, message and last will.
//!
//! The files are looked at when somebody logs in, and read again if they have changed; until they can be read for the first time,
//! nobody but edgecore itself gets in. What a client subscribed to before a change stays until its connection ends.

use std::{
    collections::BTreeSet,
    future,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use mqtt5::{
    broker::{AuthProvider, AuthResult},
    packet::connect::ConnectPacket,
    protocol::v5::reason_codes::ReasonCode,
};
use tokio::{task, time};
use tracing::{error, info, warn};

use super::users::{BrokerUsers, Digest, Key, Seen, User, Users};

/// How long a client waits to hear that it does not get in.
const REFUSAL: Duration = Duration::from_secs(1);

pub(super) struct Gate(Arc<Inner>);

struct Inner {
    file: PathBuf,
    /// edgecore itself may do all.
    own: (String, Digest),
    key: Key,
    /// Held while the files are read.
    seen: Mutex<Seen>,
    /// `None`: they could not be read yet.
    users: RwLock<Option<Arc<Users>>>,
    /// What has been logged since they were read: what was refused, and to which user. No client fills the log, nor this.
    told: Mutex<BTreeSet<(&'static str, String)>>,
}

impl Gate {
    pub(super) async fn open(users: &BrokerUsers) -> Self {
        let key = Key::random();
        let (name, password) = &users.own;
        let own = (name.clone(), key.digest(password.0.as_bytes()));
        let gate = Self(Arc::new(Inner {
            file: users.file.clone(),
            own,
            key,
            seen: Mutex::default(),
            users: RwLock::default(),
            told: Mutex::default(),
        }));
        gate.look().await;
        gate
    }

    async fn look(&self) {
        let inner = Arc::clone(&self.0);
        // It fails only when the process ends.
        drop(task::spawn_blocking(move || inner.look()).await);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Reads the files, if they are not as they were.
    fn look(&self) {
        let mut seen = lock(&self.seen);
        if seen.is_current() {
            return;
        }
        *seen = Seen::default();
        match Users::load(&self.file, &self.key, &mut seen) {
            Ok(users) => {
                info!(file = %self.file.display(), users = users.count(), "read who may use the MQTT broker");
                *self.users.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(users));
                lock(&self.told).clear();
            }
            Err(failure) if self.users().is_none() => error!(
                error = %runtime::chain(&failure),
                "nobody can log in at the MQTT broker until the file of modules.eventBus.mqttUsersFile is put right"
            ),
            Err(failure) => warn!(
                error = %runtime::chain(&failure),
                "who may use the MQTT broker stays as it was until the file of modules.eventBus.mqttUsersFile is put right"
            ),
        }
    }

    fn users(&self) -> Option<Arc<Users>> {
        self.users.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of a name and a password; a name that nobody has takes as long.
    fn knows(&self, name: &str, password: &[u8]) -> bool {
        let password = self.key.digest(password);
        if name == self.own.0 {
            return password == self.own.1;
        }
        self.users().is_some_and(|users| users.get(name).is_some_and(|user| user.has(password)))
    }

    fn may(&self, name: Option<&str>, allows: impl FnOnce(&User) -> bool) -> bool {
        let Some(name) = name else { return false };
        name == self.own.0 || self.users().is_some_and(|users| users.get(name).is_some_and(allows))
    }

    fn admit(&self, connect: &ConnectPacket, from: SocketAddr) -> AuthResult {
        let client = &*connect.client_id;
        let Some(name) = connect.username.as_deref() else {
            if self.is_new("no login", "") {
                warn!(client, %from, "the MQTT broker refuses a client that does not log in");
            }
            return AuthResult::fail(ReasonCode::NotAuthorized);
        };
        if self.knows(name, connect.password.as_deref().unwrap_or_default()) {
            return AuthResult::success_with_user(name);
        }
        // What is no user's name may be a password that somebody has typed in the wrong place.
        let is_user = self.users().is_some_and(|users| users.get(name).is_some());
        let user = if is_user { name } else { "" };
        if self.is_new("login", user) {
            warn!(client, %from, user, "the MQTT broker refuses a client with a wrong user or password");
        }
        AuthResult::fail(ReasonCode::BadUsernameOrPassword)
    }

    /// Whether it has not been told yet.
    fn is_new(&self, refused: &'static str, user: &str) -> bool {
        lock(&self.told).insert((refused, user.to_owned()))
    }
}

impl AuthProvider for Gate {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        client_addr: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = mqtt5::Result<AuthResult>> + Send + 'a>> {
        Box::pin(async move {
            self.look().await;
            let answer = self.0.admit(connect, client_addr);
            if !answer.authenticated {
                // Who tries one password after the other is at it for years.
                time::sleep(REFUSAL).await;
            }
            Ok(answer)
        })
    }

    /// mqtt5 logs what is refused.
    fn authorize_publish<'a>(
        &'a self,
        _client_id: &str,
        user_id: Option<&'a str>,
        topic: &'a str,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(future::ready(self.0.may(user_id, |user| user.may_publish(topic))))
    }

    fn authorize_subscribe<'a>(
        &'a self,
        client_id: &str,
        user_id: Option<&'a str>,
        topic_filter: &'a str,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        let may = self.0.may(user_id, |user| user.may_subscribe(topic_filter));
        let user = user_id.unwrap_or_default();
        if !may && self.0.is_new("subscription", user) {
            warn!(
                client = client_id,
                user, topic_filter, "the MQTT broker refuses a subscription to what its user may not hear"
            );
        }
        Box::pin(future::ready(may))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::eventbus::own_login;

    #[tokio::test]
    async fn nobody_gets_in_before_the_file_was_right_and_nobody_is_lost_after() {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("users.yaml");
        let own = own_login();
        let gate = Gate::open(&BrokerUsers { file: file.clone(), own: own.clone() }).await;
        let knows = |name: &str, password: &str| gate.0.knows(name, password.as_bytes());
        assert!(!knows("a", "x") && !knows("", "") && !knows("edgecore", ""));
        assert!(knows(&own.0, &own.1.0), "edgecore itself");
        assert!(gate.0.may(Some(&*own.0), |_| false) && !gate.0.may(None, |_| true));

        fs::write(&file, "users: [{name: a, password: x}").unwrap();
        gate.look().await;
        assert!(!knows("a", "x"), "cut off");
        fs::write(&file, "users: [{name: a, password: x}]").unwrap();
        gate.look().await;
        assert!(knows("a", "x") && !knows("a", "y") && !knows("b", "x"));
        assert!(gate.0.may(Some("a"), |_| true) && !gate.0.may(Some("b"), |_| true));

        for broken in ["users: [{name: a}]", "", "users: [{name: a, password: x, subscribe: ['a#']}]"] {
            fs::write(&file, broken).unwrap();
            gate.look().await;
            assert!(knows("a", "x"), "{broken}");
        }
        fs::remove_file(&file).unwrap();
        gate.look().await;
        assert!(knows("a", "x"), "gone");
        fs::write(&file, "users: [{name: b, password: y}]").unwrap();
        gate.look().await;
        assert!(!knows("a", "x") && knows("b", "y"));
    }

    #[tokio::test]
    async fn what_is_refused_again_and_again_is_told_once() {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("users.yaml");
        fs::write(&file, "users: []").unwrap();
        let gate = Gate::open(&BrokerUsers { file: file.clone(), own: own_login() }).await;
        assert!(
            gate.0.is_new("login", "a") && gate.0.is_new("login", "b") && gate.0.is_new("subscription", "a")
        );
        assert!(!gate.0.is_new("login", "a"));
        fs::write(&file, "users: [{name: a, password: x}]").unwrap();
        gate.look().await;
        assert!(gate.0.is_new("login", "a"), "another file, other users");
    }
}
