//! The edge's end of the link: dials the cloud, keeps the session, commits what comes down and sends what is in the
//! outbox. Nothing at the edge waits for it but those who ask a question that only the cloud can answer.
//!
//! In: frames, the store's outbox, questions ([`Ask`]). Out: the store's desired objects, [`HubState`]. Nothing of it
//! survives a restart but the identity on disk and what is in the store.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crds::componentconfig::sync::SyncStrategy;
use proto::message::{Answer, GoodbyeReason, Question};
use runtime::{
    backoff::{Backoff, jitter},
    chain,
    link::{
        Link, LinkError,
        proxy::{Proxy, ProxyError},
        quic,
        streams::Stream,
    },
    tls::{Clock, TlsError},
};
use rustls::ClientConfig;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use identity::Dialing;
use keepalive::Keepalive;
use network::Network;
use places::Place;
use session::SessionError;
use settings::Settings;
use throttle::Throttle;
use transports::{Manner, Server, Transports};

mod dialer;
mod doubt;
mod enrollment;
mod identity;
mod keepalive;
mod looks;
mod network;
mod places;
mod renewal;
mod session;
mod settings;
mod store;
#[cfg(test)]
mod tests;
mod throttle;
mod traffic;
mod transports;
mod trust;

pub use identity::IdentityPaths;
pub use renewal::Renewal;
pub use settings::LinkUse;
pub use store::HubStore;
pub use traffic::Traffic;

/// Delays between attempts to reach the cloud: short, because a site waits for its line and a dead line carries nothing;
/// jittered, because a whole fleet may wait for the same cloudcore.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// After a session this long the line is taken for good, and the next attempt is made at once.
const STABLE: Duration = Duration::from_secs(5);

/// A cloudcore that is busy says so, and each attempt costs bytes. Of several, another one may not be.
const BUSY: Duration = Duration::from_secs(5);

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
    /// What carries the link: `quic` or `websocket`, empty when nothing does.
    pub transport: &'static str,
    /// Sessions since the start: what the cloud may have forgotten is reported anew when it grows.
    pub sessions: u64,
    /// Why there is no session, what was refused last, or why the node is not Ready.
    pub last_error: String,
}

/// Waits for a session with the cloud after `last`, and answers its number. In each, what the cloud may have missed
/// is reported again.
pub(crate) async fn next_session(hub: &mut watch::Receiver<HubState>, last: u64) -> u64 {
    if let Ok(state) = hub.wait_for(|state| state.sessions != last).await {
        return state.sessions;
    }
    // The link has ended, and with it soon the process.
    std::future::pending().await
}

pub struct HubConfig {
    pub node: String,
    /// cloudcore's `HOST:PORT` for TCP: enrolment, and the WebSocket. Of several cloudcores, with commas.
    pub server: String,
    /// The URL of the HTTP proxy that leads there; empty for none.
    pub proxy: String,
    /// The file with the CAs of its certificate; empty for those that the system trusts.
    pub proxy_ca_file: String,
    /// Whether the link may use the WebSocket.
    pub websocket: bool,
    /// cloudcore's `HOST:PORT` for UDP, if the link may use QUIC. Of several cloudcores, in the order of `server`.
    pub quic: Option<String>,
    /// The shortest and the longest time between attempts to get through with QUIC, while the WebSocket does.
    pub quic_probes: (Duration, Duration),
    pub heartbeat: Duration,
    /// For TLS and the upgrade.
    pub handshake_timeout: Duration,
    /// For one frame.
    pub write_deadline: Duration,
    /// How the link is used, as far as the cloud says nothing of it.
    pub sync: SyncStrategy,
    pub identity: IdentityPaths,
    /// Removed once the node has its certificate.
    pub token_file: PathBuf,
    /// The token of the configuration file, used when there is no token file.
    pub token: String,
}

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("modules.edgeHub.{key} {server:?} is not HOST:PORT")]
    Server { key: &'static str, server: String },
    #[error("modules.edgeHub.websocket.proxy is no proxy's URL")]
    Proxy(#[from] ProxyError),
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

pub struct EdgeHub<S> {
    config: HubConfig,
    places: Vec<Place>,
    /// The one that is tried next, or that the session is with.
    at: usize,
    manner: Manner,
    proxy: Option<Proxy>,
    dialing: Dialing,
    clock: Arc<Clock>,
    store: S,
    settings: Settings,
    throttle: Throttle,
    traffic: Arc<Traffic>,
    asks: mpsc::Receiver<Ask>,
    streams: Option<mpsc::Sender<Stream>>,
    state: watch::Sender<HubState>,
    /// Of the transport that confirms pings itself, and of the other one.
    keepalives: [Keepalive; 2],
    /// One of many hubs in a process leaves it to the others to know of the network.
    is_alone: bool,
}

impl<S: HubStore> EdgeHub<S> {
    pub fn new(
        config: HubConfig,
        store: S,
        asks: mpsc::Receiver<Ask>,
    ) -> Result<(Self, watch::Receiver<HubState>), HubError> {
        let clock = Arc::new(Clock::starting_at(session::latest_time(&store)));
        let proxy = Proxy::configured(&config.proxy, &config.proxy_ca_file)?;
        let proxy = proxy.map(|proxy| proxy.at(Arc::clone(&clock)));
        let udp: Vec<&str> = config.quic.iter().flat_map(|quic| quic.split(',')).collect();
        let places = config.server.split(',').enumerate().map(|(number, tcp)| {
            let transports = Transports::new(&config, (tcp, udp.get(number).copied()), proxy.clone())?;
            Ok(Place { server: Server::parse("websocket.server", tcp)?, transports })
        });
        let places = places.collect::<Result<Vec<_>, HubError>>()?;
        // Nodes begin with one each, so that none of several cloudcores has them all.
        let at = config.node.bytes().map(usize::from).sum::<usize>() % places.len();
        let (state, watching) = watch::channel(HubState::default());
        let traffic = Arc::default();
        let settings = Settings::load(&config.node, config.sync.clone(), &store);
        let throttle = session::throttle(&store);
        let keepalives = [quic::HEARTBEAT.min(config.heartbeat), config.heartbeat].map(Keepalive::new);
        let hub = Self {
            keepalives,
            is_alone: true,
            config,
            places,
            at,
            manner: Manner::Usual,
            proxy,
            dialing: Dialing::default(),
            clock,
            store,
            settings,
            throttle,
            traffic,
            asks,
            streams: None,
            state,
        };
        Ok((hub, watching))
    }

    /// Has connections over QUIC made by `dialer`, which many hubs may share.
    #[must_use]
    pub fn dialing_with(mut self, dialer: &quic::Dialer) -> Self {
        for place in &mut self.places {
            place.transports.dial_with(dialer.clone());
        }
        self.is_alone = false;
        self
    }

    /// Has the streams that the cloud opens served at the other end of the channel. Without one they are refused.
    #[must_use]
    pub fn serving(mut self, streams: mpsc::Sender<Stream>) -> Self {
        self.streams = Some(streams);
        self
    }

    /// What goes over the link, from now on.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// How the link is used now.
    pub fn link_use(&self) -> watch::Receiver<LinkUse> {
        self.settings.watch()
    }

    /// The time, which the cloud corrects.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// Keeps a session with the cloud until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), HubError> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let network = if self.is_alone { Network::watch() } else { Network::default() };
        loop {
            let error = tokio::select! {
                // Stopping drops the connection attempt; nothing of it was promised to anyone.
                () = stop.cancelled() => return Ok(()),
                connected = self.connect() => match connected {
                    Ok(link) => match self.hold(link, &network, &mut backoff, &stop).await {
                        None => return Ok(()),
                        Some(error) => error,
                    },
                    Err(error) => error,
                },
            };
            let reason = chain(&error).to_string();
            // Once a change: a site may be offline for months.
            if self.state.borrow().last_error == reason {
                debug!(reason, "still no session with the cloud");
            } else {
                warn!(
                    reason,
                    server = self.places[self.at].server.address,
                    "no session with the cloud; retrying"
                );
            }
            // Whatever it was, another one may do better.
            self.at = (self.at + 1) % self.places.len();
            self.state.send_modify(|state| {
                let sessions = state.sessions;
                *state = HubState { sessions, last_error: reason, ..HubState::default() };
            });
            let delay = match error {
                HubError::Goodbye { reason: GoodbyeReason::Superseded, .. } => SUPERSEDED,
                HubError::Link(error) => delay_after(&error, self.places.len(), &mut backoff),
                _ => backoff.next_delay(),
            };
            if !self.wait(delay, &stop).await {
                return Ok(());
            }
        }
    }

    async fn connect(&mut self) -> Result<Link, HubError> {
        let place = &mut self.places[self.at];
        let identity = match identity::load(&self.config.identity, &self.config.node)? {
            Some(identity) => identity,
            None => enrollment::enroll(&self.config, &place.server, self.proxy.as_ref()).await?,
        };
        let tls = self.dialing.by(identity, &self.clock)?;
        let manner = std::mem::replace(&mut self.manner, Manner::Usual);
        let dialing = places::dial(&mut self.places, self.at, &tls, manner);
        match time::timeout(self.config.handshake_timeout, dialing).await {
            Ok(Ok((at, link))) => {
                self.at = at;
                Ok(link)
            }
            Ok(Err((at, error))) => {
                self.at = at;
                Err(error.into())
            }
            Err(_) => Err(HubError::TimedOut(self.config.handshake_timeout)),
        }
    }

    /// Runs a session, and another one whenever there is a better link; `None` when it ended because we are to stop.
    async fn hold(
        &mut self,
        mut link: Link,
        network: &Network,
        backoff: &mut Backoff,
        stop: &CancellationToken,
    ) -> Option<HubError> {
        let (config, clock, dialing) = (&self.config, &self.clock, &self.dialing);
        // Whatever the identity is by then.
        let tls = || {
            let identity = identity::load(&config.identity, &config.node).ok()??;
            dialing.by(identity, clock).ok()
        };
        loop {
            let transport = link.transport;
            info!(peer = %link.peer, transport, "link is up");
            self.state.send_modify(|state| state.transport = transport);
            let (doubt, mut doubted) = watch::channel(false);
            let rival_is_up = Notify::new();
            let driver = session::Driver {
                config: &self.config,
                clock: &self.clock,
                store: &self.store,
                settings: &mut self.settings,
                throttle: &mut self.throttle,
                traffic: &self.traffic,
                asks: &mut self.asks,
                streams: self.streams.as_ref(),
                state: &self.state,
                doubt: &doubt,
                rival_is_up: &rival_is_up,
                network,
                keepalive: &mut self.keepalives[usize::from(!link.confirms)],
            };
            let streams = link.streams.clone();
            let begun = Instant::now();
            let moved = stop.child_token();
            let mut session = std::pin::pin!(driver.run(link, &moved));
            let (mut better, mut at) = (None, self.at);
            let ended = loop {
                let in_doubt = *doubted.borrow_and_update();
                let other = async {
                    if in_doubt {
                        return beside(&mut self.places, self.at, &tls).await;
                    }
                    if transport != "websocket" {
                        return std::future::pending().await;
                    }
                    // Streams would be cut by the move.
                    streams.idle().await;
                    (self.at, self.places[self.at].transports.quic_again(&tls).await)
                };
                tokio::select! {
                    ended = &mut session => break ended,
                    // An attempt that is dropped has promised nothing.
                    (with, link) = other, if better.is_none() => {
                        (at, better) = (with, Some(link));
                        if in_doubt {
                            rival_is_up.notify_one();
                        } else {
                            info!("QUIC gets through; the session moves there");
                            moved.cancel();
                        }
                    }
                    Ok(()) = doubted.changed() => {
                        // The old one carries, after all. A link on which nothing was said supersedes none.
                        if !*doubted.borrow() && !moved.is_cancelled() {
                            better = None;
                        }
                    }
                }
            };
            let in_doubt = *doubted.borrow();
            let connected = self.state.borrow().connected;
            if connected && begun.elapsed() >= STABLE {
                backoff.reset();
            }
            let told_to_go = matches!(ended, Err(HubError::Goodbye { .. }));
            match (ended, better) {
                (ended, Some(better)) if !stop.is_cancelled() && !told_to_go => {
                    if in_doubt {
                        let silent = ended.err().map_or_else(
                            || "nothing comes over it".to_owned(),
                            |error| chain(&error).to_string(),
                        );
                        warn!(
                            transport,
                            reason = silent,
                            server = self.places[at].server.address,
                            "the session moves to another link"
                        );
                        self.state.send_modify(|state| {
                            *state = HubState {
                                sessions: state.sessions,
                                last_error: silent,
                                ..HubState::default()
                            };
                        });
                    }
                    (self.at, link) = (at, better);
                }
                (Ok(()), _) => return None,
                (Err(error), _) => {
                    let refused = matches!(
                        &error,
                        HubError::Goodbye { .. }
                            | HubError::Session(SessionError::Link(
                                LinkError::Refused { .. } | LinkError::NodeNotTrusted { .. }
                            ))
                    );
                    if transport == "quic" && !connected && !refused {
                        self.places[self.at].transports.quic_failed();
                    }
                    let silent = matches!(&error, HubError::Session(SessionError::Dead(_)));
                    if silent || in_doubt {
                        self.manner = Manner::InDoubt;
                    }
                    return Some(error);
                }
            }
        }
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

/// A link beside a session in doubt, with whichever cloudcore.
async fn beside(
    places: &mut [Place],
    mut at: usize,
    tls: impl Fn() -> Option<Arc<ClientConfig>>,
) -> (usize, Link) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let delay = match tls() {
            None => backoff.next_delay(),
            Some(tls) => match places::dial(places, at, &tls, Manner::InDoubt).await {
                Ok(dialed) => return dialed,
                Err((failed, error)) => {
                    debug!(error = %chain(&error), "no link beside the session in doubt");
                    at = (failed + 1) % places.len();
                    delay_after(&error, places.len(), &mut backoff)
                }
            },
        };
        time::sleep(delay).await;
    }
}

/// Until so many cloudcores are dialed anew.
fn delay_after(error: &LinkError, places: usize, backoff: &mut Backoff) -> Duration {
    match error {
        LinkError::Busy { .. } => jitter(BUSY / u32::try_from(places).unwrap_or(u32::MAX)),
        _ => backoff.next_delay(),
    }
}

/// The asker may have gone; then nobody misses the answer.
fn refuse(ask: Ask, reason: &str) {
    drop(ask.answer.send(Err(reason.to_owned())));
}
