//! The users of the broker in edgecore: the file that `modules.eventBus.mqttUsersFile` names, and those that it names.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crds::componentconfig::edgecore::Secret;
use runtime::config::ConfigError;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tracing::warn;
use uuid::Uuid;

use super::filter::Filter;

/// The user that edgecore itself is.
const OWN: &str = "edgecore";
/// No site has more.
const MOST: usize = 1000;
/// A wrong path must not fill the memory.
const LONGEST_PASSWORD: usize = 4096;

/// Who may log in.
#[derive(Debug, Clone)]
pub struct BrokerUsers {
    pub file: PathBuf,
    /// What edgecore's own clients log in with.
    pub own: (String, Secret),
}

/// Another one each time, which only this process knows.
pub fn own_login() -> (String, Secret) {
    (OWN.to_owned(), Secret(Uuid::new_v4().simple().to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUsers {
    /// Not left out, so that a file that was cut off is an error.
    users: Vec<RawUser>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawUser {
    name: String,
    password: Option<Secret>,
    password_file: Option<String>,
    #[serde(default)]
    subscribe: Vec<String>,
    #[serde(default)]
    publish: Vec<String>,
}

/// By their names.
pub(super) struct Users(HashMap<Box<str>, User>);

pub(super) struct User {
    password: Digest,
    subscribe: Vec<Filter>,
    publish: Vec<Filter>,
}

/// What is kept of a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest([u8; 32]);

/// What passwords are digested with. Nobody else knows it, so that how long it takes to compare two digests tells nothing of what
/// would be right.
pub(super) struct Key([u8; 16]);

/// The files that were read, as they were just before.
#[derive(Default)]
pub(super) struct Seen(Vec<(PathBuf, Option<Stamp>)>);

/// Another one after each change of a file.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Users {
    /// Reads the file and those that it names, and notes them.
    pub(super) fn load(path: &Path, key: &Key, seen: &mut Seen) -> Result<Self, ConfigError> {
        seen.note(path);
        let raw: RawUsers = runtime::config::load(path, |_: &RawUsers| Ok::<(), Vec<String>>(()))?;
        let mut faults = Vec::new();
        if raw.users.len() > MOST {
            faults.push(format!("users: {} are more than the {MOST} that are allowed", raw.users.len()));
        }
        let mut users: HashMap<Box<str>, User> = HashMap::new();
        for (at, user) in raw.users.iter().take(MOST).enumerate() {
            let field = format!("users[{at}]");
            let name = user.name.as_str();
            if name.is_empty() {
                faults.push(format!("{field}.name: is empty; it is what a client logs in with"));
            }
            if name == OWN {
                faults.push(format!("{field}.name: {name:?} is edgecore itself; take another one"));
            }
            let subscribe = filters(&user.subscribe, &format!("{field}.subscribe"), &mut faults);
            let publish = filters(&user.publish, &format!("{field}.publish"), &mut faults);
            match password(user, key, seen) {
                Ok(password) => {
                    let user = User { password, subscribe, publish };
                    if users.insert(name.into(), user).is_some() {
                        faults.push(format!("{field}.name: {name:?} is there twice; make them one user"));
                    }
                }
                Err(reason) => faults.push(format!("{field}.{reason}")),
            }
        }
        if faults.is_empty() {
            Ok(Self(users))
        } else {
            Err(ConfigError::Faults { path: path.to_owned(), faults })
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&User> {
        self.0.get(name)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

fn filters(texts: &[String], field: &str, faults: &mut Vec<String>) -> Vec<Filter> {
    let mut filters = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        match Filter::parse(text) {
            Ok(filter) => filters.push(filter),
            Err(reason) => faults.push(format!("{field}[{at}]: {text:?} {reason}")),
        }
    }
    filters
}

fn password(user: &RawUser, key: &Key, seen: &mut Seen) -> Result<Digest, String> {
    match (&user.password, &user.password_file) {
        (Some(password), None) if password.0.is_empty() => {
            Err("password: is empty; set one, or take the user out".to_owned())
        }
        (Some(password), None) => Ok(key.digest(password.0.as_bytes())),
        (None, Some(file)) => {
            seen.note(Path::new(file));
            let password =
                read_password(file).map_err(|reason| format!("passwordFile: {file:?} {reason}"))?;
            Ok(key.digest(&password))
        }
        (None, None) => Err("password: is missing; set it, or passwordFile".to_owned()),
        (Some(_), Some(_)) => Err("passwordFile: stands beside password; keep one of the two".to_owned()),
    }
}

fn read_password(file: &str) -> Result<Vec<u8>, String> {
    if !file.starts_with('/') {
        return Err("is not an absolute path".to_owned());
    }
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|file| file.take(LONGEST_PASSWORD as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() > LONGEST_PASSWORD {
        return Err(format!("has more than {LONGEST_PASSWORD} bytes; is it the right file?"));
    }
    // Editors end the last line.
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err("is empty; write the password into it".to_owned());
    }
    Ok(bytes)
}

impl User {
    pub(super) fn has(&self, password: Digest) -> bool {
        self.password == password
    }

    /// A shared subscription hears what its filter matches.
    pub(super) fn may_subscribe(&self, filter: &str) -> bool {
        let filter = mqtt5::strip_shared_subscription_prefix(filter);
        self.subscribe.iter().any(|allowed| allowed.covers(filter))
    }

    pub(super) fn may_publish(&self, topic: &str) -> bool {
        self.publish.iter().any(|allowed| allowed.covers(topic))
    }
}

impl Key {
    pub(super) fn random() -> Self {
        Self(Uuid::new_v4().into_bytes())
    }

    pub(super) fn digest(&self, password: &[u8]) -> Digest {
        Digest(Sha256::new().chain_update(self.0).chain_update(password).finalize().into())
    }
}

impl Seen {
    /// Whether something was read, and would be read again as it was.
    pub(super) fn is_current(&self) -> bool {
        let is_current = |(path, stamp): &(PathBuf, Option<Stamp>)| {
            fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata)) == *stamp
        };
        !self.0.is_empty() && self.0.iter().all(is_current)
    }

    fn note(&mut self, path: &Path) {
        let metadata = fs::metadata(path).ok();
        if let Some(metadata) = &metadata
            && (metadata.mode() & 0o066 != 0 || metadata.uid() != 0)
        {
            warn!(path = %path.display(), "others than root can read a file with passwords; chown root and chmod 600 keep them out");
        }
        self.0.push((path.to_owned(), metadata.as_ref().map(Stamp::of)));
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        // Unlike mtime, ctime cannot be set.
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Self { inode: metadata.ino(), size: metadata.size(), changed }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn load(directory: &TempDir, text: &str) -> Result<(Users, Key), String> {
        let path = directory.path().join("users.yaml");
        fs::write(&path, text).unwrap();
        let key = Key::random();
        let users = Users::load(&path, &key, &mut Seen::default());
        users.map(|users| (users, key)).map_err(|error| runtime::chain(&error).to_string())
    }

    #[test]
    fn a_user_has_a_password_and_filters() {
        let directory = TempDir::new().unwrap();
        let password = directory.path().join("password");
        fs::write(&password, "look out\n").unwrap();
        let text = format!(
            "users:\n\
             - name: dashboard\n  passwordFile: {}\n  subscribe: [\"$ke/events/device/#\"]\n  publish: []\n\
             - name: mapper\n  password: secret\n  publish: [\"$hw/events/device/+/+/twin/update\"]\n",
            password.display()
        );
        let Ok((users, key)) = load(&directory, &text) else { panic!("{text}") };
        assert_eq!(users.count(), 2);
        let dashboard = users.get("dashboard").unwrap();
        assert!(dashboard.has(key.digest(b"look out")) && !dashboard.has(key.digest(b"look out\n")));
        assert!(!dashboard.has(Key::random().digest(b"look out")));
        assert!(dashboard.may_subscribe("$ke/events/device/+/pump/data/update"));
        assert!(dashboard.may_subscribe("$share/all/$ke/events/device/#"));
        for filter in ["#", "$ke/#", "$share/all/#", "$share/all/$hw/#", "$share/$ke/events/device/#"] {
            assert!(!dashboard.may_subscribe(filter), "{filter}");
        }
        assert!(!dashboard.may_publish("$ke/events/device/a"));
        let mapper = users.get("mapper").unwrap();
        assert!(mapper.has(key.digest(b"secret")));
        assert!(mapper.may_publish("$hw/events/device/default/pump/twin/update"));
        assert!(!mapper.may_publish("$hw/events/device/default/pump/twin/get"));
        assert!(!mapper.may_subscribe("a") && users.get("nobody").is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let directory = TempDir::new().unwrap();
        let user = |lines: &str| format!("users:\n- name: a\n{lines}\n");
        let empty = directory.path().join("empty");
        fs::write(&empty, "\n").unwrap();
        let long = directory.path().join("long");
        fs::write(&long, "x".repeat(LONGEST_PASSWORD + 1)).unwrap();
        for (text, reason) in [
            (String::new(), "users"),
            ("users: [".to_owned(), "users.yaml"),
            ("- name: a".to_owned(), "users.yaml"),
            ("users:\n- password: x".to_owned(), "name"),
            (user("  pasword: x"), "did you mean \"password\"?"),
            (user("  subscribe: [a]"), "users[0].password: is missing; set it, or passwordFile"),
            (user("  password: ''"), "users[0].password: is empty"),
            (user("  password: x\n  passwordFile: /y"), "users[0].passwordFile: stands beside password"),
            (user("  passwordFile: y"), "users[0].passwordFile: \"y\" is not an absolute path"),
            (user("  passwordFile: /nowhere/y"), "users[0].passwordFile: \"/nowhere/y\" cannot be read"),
            (user(&format!("  passwordFile: {}", empty.display())), "is empty; write the password into it"),
            (user(&format!("  passwordFile: {}", long.display())), "has more than 4096 bytes"),
            (
                user("  password: x\n  subscribe: [a, 'b/#/c']"),
                "users[0].subscribe[1]: \"b/#/c\" is no topic filter",
            ),
            (user("  password: x\n  publish: ['a+']"), "users[0].publish[0]: \"a+\" is no topic filter"),
            (
                "users: [{name: a, password: x}, {name: a, password: y}]".to_owned(),
                "users[1].name: \"a\" is there twice",
            ),
            ("users: [{name: '', password: x}]".to_owned(), "users[0].name: is empty"),
            (
                "users: [{name: edgecore, password: x}]".to_owned(),
                "users[0].name: \"edgecore\" is edgecore itself",
            ),
        ] {
            let error = load(&directory, &text).err().unwrap_or_default();
            assert!(error.contains(reason) && error.contains("users.yaml"), "{text}: {error}");
        }
        let many: Vec<String> = (0..=MOST).map(|at| format!("- {{name: u{at}, password: x}}\n")).collect();
        let many = many.concat();
        let error = load(&directory, &format!("users:\n{many}")).err().unwrap_or_default();
        assert!(error.contains("1001 are more than the 1000"), "{error}");
    }

    #[test]
    fn all_faults_are_named_and_no_password_is() {
        let directory = TempDir::new().unwrap();
        let text = "users:\n- {name: a, password: hunter2, subscribe: ['#a'], publish: ['b#']}\n";
        let error = load(&directory, text).err().unwrap_or_default();
        assert!(error.contains("subscribe[0]") && error.contains("publish[0]"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        let users = BrokerUsers { file: PathBuf::from("/f"), own: own_login() };
        assert!(!format!("{users:?}").contains(&users.own.1.0));
        assert_ne!(own_login().1, own_login().1);
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("f");
        let mut seen = Seen::default();
        assert!(!seen.is_current(), "nothing was read");
        seen.note(&path);
        assert!(seen.is_current(), "it is not there, as before");
        fs::write(&path, "a").unwrap();
        assert!(!seen.is_current());
        seen = Seen::default();
        seen.note(&path);
        assert!(seen.is_current());
        fs::write(&path, "ab").unwrap();
        assert!(!seen.is_current());
    }
}
