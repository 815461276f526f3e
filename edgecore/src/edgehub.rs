//! The edge's end of the link: dials the cloud, keeps the session, commits what comes down and sends what is in the
//! outbox. Nothing at the edge waits for it but those who ask a question that only the cloud can answer.
//!
//! In: frames, the store's outbox, questions ([`Ask`]). Out: the store's desired objects, [`HubState`]. Nothing of it
//! survives a restart but the identity on disk and what is in the store.

use std::{path::PathBuf, sync::Arc, time::Duration};

use proto::message::{Answer, GoodbyeReason, Question};
use runtime::{
    backoff::Backoff,
    chain,
    link::{Link, LinkError, websocket},
    tls::TlsError,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metamanager::Store;

mod dialer;
mod enrollment;
mod identity;
mod session;
#[cfg(test)]
mod tests;

pub use identity::IdentityPaths;

/// Delays between attempts to reach the cloud: short, because a site waits for its line and a dead line carries nothing;
/// jittered, because a whole fleet may wait for the same cloudcore.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// After a session this long the line is taken for good, and the next attempt is made at once.
const STABLE: Duration = Duration::from_secs(5);

/// Another process with this node's identity took the session over; at the pace of [`RETRY`] the two would take it from
/// each other for ever.
const SUPERSEDED: Duration = Duration::from_secs(30);

/// A question for the cloud, answered while the line is up. `Err` says why there is no answer: not connected, the
/// line went down, refused. Whoever asked asks again later.
pub struct Ask {
    pub question: Question,
    pub answer: oneshot::Sender<Result<Answer, String>>,
}

/// What the rest of the process may know of the link.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HubState {
    /// The cloud has let us in.
    pub connected: bool,
    /// The store holds all that the cloud wants here, as of this session.
    pub synced: bool,
    /// The API server has taken this node's status in this session, and it says that the node is Ready.
    pub node_ready: bool,
    /// Sessions since the start: what the cloud may have forgotten is reported anew when it grows.
    pub sessions: u64,
    /// Why there is no session, what was refused last, or why the node is not Ready.
    pub last_error: String,
}

pub struct HubConfig {
    pub node: String,
    /// cloudcore's `HOST:PORT`.
    pub server: String,
    pub heartbeat: Duration,
    /// For TLS and the upgrade.
    pub handshake_timeout: Duration,
    /// For one frame.
    pub write_deadline: Duration,
    pub identity: IdentityPaths,
    /// Removed once the node has its certificate.
    pub token_file: PathBuf,
    /// The token of the configuration file, used when there is no token file.
    pub token: String,
}

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("modules.edgeHub.websocket.server {server:?} is not HOST:PORT")]
    Server { server: String },
    #[error("failed to use this node's certificate")]
    Identity(#[from] TlsError),
    #[error("enrolment failed")]
    Enrollment(#[from] enrollment::EnrollmentError),
    #[error("failed to connect")]
    Link(#[from] LinkError),
    #[error("connecting took longer than {0:?}")]
    TimedOut(Duration),
    #[error("cloud said goodbye ({reason:?}): {detail}")]
    Goodbye { reason: GoodbyeReason, detail: String },
    #[error("session ended")]
    Session(#[from] session::SessionError),
}

pub struct EdgeHub {
    config: HubConfig,
    server_name: ServerName<'static>,
    store: Store,
    asks: mpsc::Receiver<Ask>,
    state: watch::Sender<HubState>,
}

impl EdgeHub {
    pub fn new(
        config: HubConfig,
        store: Store,
        asks: mpsc::Receiver<Ask>,
    ) -> Result<(Self, watch::Receiver<HubState>), HubError> {
        let host = config.server.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
        let server_name = host
            .and_then(|host| ServerName::try_from(host).ok())
            .ok_or_else(|| HubError::Server { server: config.server.clone() })?;
        let (state, watching) = watch::channel(HubState::default());
        Ok((Self { config, server_name, store, asks, state }, watching))
    }

    /// Keeps a session with the cloud until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), HubError> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let error = tokio::select! {
                // Stopping drops the connection attempt; nothing of it was promised to anyone.
                () = stop.cancelled() => return Ok(()),
                connected = connect(&self.config, &self.server_name) => match connected {
                    Ok(link) => match self.hold(link, &mut backoff, &stop).await {
                        None => return Ok(()),
                        Some(error) => error,
                    },
                    Err(error) => error,
                },
            };
            let reason = chain(&error).to_string();
            // Once a change: a site may be offline for months.
            if self.state.borrow().last_error == reason {
                tracing::debug!(reason, "still no session with the cloud");
            } else {
                warn!(reason, server = self.config.server, "no session with the cloud; retrying");
            }
            self.state.send_modify(|state| {
                let sessions = state.sessions;
                *state = HubState { sessions, last_error: reason, ..HubState::default() };
            });
            let delay = match error {
                HubError::Goodbye { reason: GoodbyeReason::Superseded, .. } => SUPERSEDED,
                _ => backoff.next_delay(),
            };
            if !self.wait(delay, &stop).await {
                return Ok(());
            }
        }
    }

    /// Runs one session; `None` when it ended because we are to stop.
    async fn hold(
        &mut self,
        link: Link,
        backoff: &mut Backoff,
        stop: &CancellationToken,
    ) -> Option<HubError> {
        info!(peer = %link.peer, transport = link.transport, "link is up");
        let driver = session::Driver {
            config: &self.config,
            store: &self.store,
            asks: &mut self.asks,
            state: &self.state,
        };
        let begun = Instant::now();
        let ended = driver.run(link, stop).await;
        if self.state.borrow().connected && begun.elapsed() >= STABLE {
            backoff.reset();
        }
        ended.err()
    }

    /// Waits, telling whoever asks that there is no line; false when we are to stop.
    async fn wait(&mut self, delay: Duration, stop: &CancellationToken) -> bool {
        let until = time::sleep(delay);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return true,
                () = stop.cancelled() => return false,
                Some(ask) = self.asks.recv() => refuse(ask, "not connected to the cloud"),
            }
        }
    }
}

/// The asker may have gone; then nobody misses the answer.
fn refuse(ask: Ask, reason: &str) {
    drop(ask.answer.send(Err(reason.to_owned())));
}

async fn connect(config: &HubConfig, server_name: &ServerName<'static>) -> Result<Link, HubError> {
    let identity = match identity::load(&config.identity, &config.node)? {
        Some(identity) => identity,
        None => enrollment::enroll(config, server_name).await?,
    };
    let tls: Arc<ClientConfig> = Arc::new(identity.client_config()?);
    let address = &config.server;
    let connecting = async {
        let connect_error = |source| LinkError::Connect { address: address.clone(), source };
        let tcp = dialer::dial(address).await.map_err(connect_error)?;
        websocket::over(tcp, address, server_name.clone(), tls).await
    };
    match time::timeout(config.handshake_timeout, connecting).await {
        Ok(link) => Ok(link?),
        Err(_) => Err(HubError::TimedOut(config.handshake_timeout)),
    }
}
