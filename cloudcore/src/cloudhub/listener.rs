//! The one port. On TCP: TLS, then HTTP/1 for `/edge.crt`, `GET /healthz` and the upgrade `GET /link`. On UDP: QUIC, which
//! carries links only.
//!
//! A client certificate is optional in TLS, because who enrolls has none yet; `/link` asks for one. Until a connection has
//! become a session it is bounded in number and in time, so that strangers cannot use the port up.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use quinn::Endpoint;
use runtime::{
    link::{
        self, Watched,
        quic::{self, NoSuite},
        websocket,
    },
    tls::{self, Authorities},
};
use rustls::{ServerConfig, server::Acceptor};
use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{self, MissedTickBehavior},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    enrollment::Enrollment,
    guests::{Guest, Guests},
    holder, roll_call,
    session::{self, SessionContext},
};
use crate::{
    edgecontroller::upstream::Reporter,
    metrics::{EnrollmentLabels, HandshakeLabels},
    secrets,
};

/// For the client's first message, and for the rest of the handshake from its turn on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For its turn at a handshake over QUIC. Who is still there sends again and waits anew, and who has given up says so to nobody.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// From the handshake to the answer of an enrollment, or to the upgrade.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections beyond the sessions: those that are still shaking hands or enrolling.
const GUESTS: usize = 512;
/// How many more there are for a moment, while those that have been told to leave do so.
const LEAVING: usize = 256;
/// How long sessions may take to say goodbye when cloudcore stops.
const FAREWELL: Duration = Duration::from_secs(5);
/// The server's certificate is made anew, in memory, long before it expires.
const REISSUE: Duration = Duration::from_hours(7 * 24);
/// How long the end of a QUIC connection may take to reach the edge.
const LINGER: Duration = Duration::from_secs(1);
/// Between two strangers that are let in while cloudcore has not heard yet of all that there is in the cluster.
const EARLY: Duration = Duration::from_millis(50);
/// After the process has run out of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("failed to issue the server's certificate")]
    Issue(#[from] tls::CsrError),
    #[error("failed to set TLS up")]
    Tls(#[from] tls::TlsError),
    #[error("failed to set QUIC up")]
    Quic(#[from] NoSuite),
    #[error("failed to listen for QUIC")]
    Listen(#[source] io::Error),
}

/// The hub, bound and ready to serve.
pub struct CloudHub {
    listener: TcpListener,
    udp: Option<UdpSocket>,
    hub: Arc<Hub>,
}

struct Hub {
    context: Arc<SessionContext>,
    enrollment: Enrollment,
    guests: Arc<Guests>,
}

type Answer = Response<Full<Bytes>>;
type Refusal = (StatusCode, String);

impl CloudHub {
    /// Without a UDP socket there is no QUIC.
    pub fn new(
        listener: TcpListener,
        udp: Option<UdpSocket>,
        context: Arc<SessionContext>,
        authorities: Authorities,
    ) -> Self {
        let (client, index) = (context.client.clone(), Arc::clone(&context.index));
        let enrollment = Enrollment::new(authorities, client, index, context.hub.certificate_validity);
        let hub = Hub { context, enrollment, guests: Arc::default() };
        Self { listener, udp, hub: Arc::new(hub) }
    }

    /// The cluster's CAs, as they are whenever it is asked.
    pub fn authorities(&self) -> impl Fn() -> Arc<Authorities> + Clone + Send + 'static {
        let hub = Arc::clone(&self.hub);
        move || hub.enrollment.authorities()
    }

    /// Serves until `stop` is cancelled, then has every session say goodbye.
    pub async fn run(self, stop: CancellationToken) -> Result<(), HubError> {
        let Self { listener, udp, hub } = self;
        let (mut tls, config) = hub.configurations()?;
        let reset_key = hub.enrollment.authorities().reset_key();
        // Ends with this.
        let mut roll_call = JoinSet::new();
        if let Some(socket) = &udp {
            let (client, registry) = (hub.context.client.clone(), Arc::clone(&hub.context.registry));
            let socket = socket.try_clone().map_err(HubError::Listen)?;
            roll_call.spawn(roll_call::run(client, registry, Arc::clone(&hub.guests), socket));
        }
        let endpoint =
            udp.map(|udp| quic::listen(udp, config, &reset_key)).transpose().map_err(HubError::Listen)?;
        let mut early = time::interval(EARLY);
        early.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reissue = time::interval(REISSUE);
        reissue.reset();
        let limit = hub.context.hub.node_limit.saturating_add(GUESTS);
        let mut connections = JoinSet::new();
        let secret = hub.context.index.follow(secrets::authorities_key());
        loop {
            let full = connections.len() >= limit.saturating_add(LEAVING);
            if connections.len() > limit {
                hub.guests.make_room();
            }
            tokio::select! {
                // A connection stays in the backlog when another arm wins.
                accepted = listener.accept(), if !full => match accepted {
                    Ok((tcp, peer)) => {
                        let guest = hub.guests.enter(peer.ip());
                        let (hub, tls, stop) = (Arc::clone(&hub), Arc::clone(&tls), stop.child_token());
                        connections.spawn(hub.serve(tcp, peer, guest, tls, stop));
                    }
                    Err(error) => {
                        warn!(error = %runtime::chain(&error), "failed to accept a connection");
                        time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                // An attempt stays in the endpoint when another arm wins.
                Some(incoming) = incoming(endpoint.as_ref()), if !full => {
                    let guest = hub.guests.enter(incoming.remote_address().ip());
                    connections.spawn(Arc::clone(&hub).serve_quic(incoming, guest, stop.child_token()));
                }
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        warn!(error = %runtime::chain(&error), "a connection's task panicked");
                    }
                }
                _ = early.tick(), if !hub.guests.is_open() => {
                    if hub.context.index.is_complete() {
                        hub.guests.open();
                    } else {
                        hub.guests.admit_one();
                    }
                }
                _ = reissue.tick() => tls = hub.reconfigure(endpoint.as_ref())?,
                // Connections that there are go on.
                () = secret.marked() => {
                    while secret.pop().is_some() {}
                    match hub.enrollment.reload() {
                        Ok(false) => {}
                        Ok(true) => {
                            tls = hub.reconfigure(endpoint.as_ref())?;
                            hub.context.index.wake_sessions();
                            let phase = hub.enrollment.authorities().phase();
                            info!(?phase, "the CAs have changed");
                        }
                        Err(error) => {
                            error!(error = %runtime::chain(&error), "going on with the CAs that were read before");
                        }
                    }
                }
                () = stop.cancelled() => break,
            }
        }
        drop(listener);
        // Who comes now is not answered: it sends again, and the next cloudcore at this address may be there by then.
        if let Some(endpoint) = &endpoint {
            endpoint.set_server_config(None);
        }
        let all = async { while connections.join_next().await.is_some() {} };
        if time::timeout(FAREWELL, all).await.is_err() {
            warn!("sessions did not end in time");
        }
        if let Some(endpoint) = endpoint
            && time::timeout(LINGER, endpoint.wait_idle()).await.is_err()
        {
            debug!("the end of some QUIC connection was not confirmed");
        }
        Ok(())
    }
}

async fn incoming(endpoint: Option<&Endpoint>) -> Option<quinn::Incoming> {
    match endpoint {
        Some(endpoint) => endpoint.accept().await,
        None => None,
    }
}

impl Hub {
    /// For the connections to come.
    fn reconfigure(&self, endpoint: Option<&Endpoint>) -> Result<Arc<ServerConfig>, HubError> {
        let (tls, config) = self.configurations()?;
        if let Some(endpoint) = endpoint {
            endpoint.set_server_config(Some(config));
        }
        Ok(tls)
    }

    /// With a new certificate: for TCP and for QUIC.
    fn configurations(&self) -> Result<(Arc<ServerConfig>, quinn::ServerConfig), HubError> {
        let authorities = self.enrollment.authorities();
        let (chain, key) = authorities.issue_server(&self.context.hub.names)?;
        let grace = self.context.hub.certificate_grace;
        let config = tls::server_config(chain, key, &authorities.trusted(), grace)?;
        let mut config = tls::resumable(config, &authorities.ticket_secret());
        let quic = quic::server_config(config.clone())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok((Arc::new(config), quic))
    }

    async fn serve_quic(self: Arc<Self>, incoming: quinn::Incoming, place: Guest, stop: CancellationToken) {
        let peer = incoming.remote_address();
        // It would send its first flight again and again.
        if self.guests.is_crowded(peer.ip()) {
            self.note_handshake_as("busy");
            incoming.refuse();
            return;
        }
        // Whoever forges addresses is not to use the turns up.
        if !incoming.remote_address_validated() && !self.guests.has_free_turn() {
            if let Err(error) = incoming.retry() {
                debug!(%peer, error = %runtime::chain(&error), "connection refused");
            }
            return;
        }
        // On the heap, to go before the session begins.
        let guest = Box::pin(async {
            let connection = self.handshake_quic(incoming, &place, &stop).await?;
            match self.admit(quic::peer_certificate(&connection).as_ref()).await {
                Ok(node) => {
                    let link = quic::accept(connection).await;
                    link.map(|link| (node, link)).map_err(|error| runtime::chain(&error).to_string())
                }
                Err((code, reason)) => {
                    info!(reason, "link refused");
                    quic::refuse(&connection, code.as_u16(), &reason);
                    Err(reason)
                }
            }
        });
        let linked = tokio::select! {
            // Who still waits for a turn is not answered, either. Refused, it would take cloudcore for busy.
            biased;
            // Nothing has been promised to a guest yet.
            linked = time::timeout(HANDSHAKE_TIMEOUT + REQUEST_TIMEOUT, guest) => linked,
            () = place.told_to_leave() => return self.note_crowded_out(peer),
            () = stop.cancelled() => return,
        };
        match linked {
            Ok(Ok((node, link))) => {
                session::run(Arc::clone(&self.context), &self.enrollment, link, node, place, stop).await;
            }
            Ok(Err(reason)) => debug!(%peer, reason, "connection ended"),
            Err(_) => debug!(%peer, "connection timed out"),
        }
    }

    async fn handshake_quic(
        &self,
        incoming: quinn::Incoming,
        place: &Guest,
        stop: &CancellationToken,
    ) -> Result<quinn::Connection, String> {
        let turn = tokio::select! {
            turn = time::timeout(LONGEST_WAIT, place.turn()) => turn.ok(),
            () = stop.cancelled() => None,
        };
        let Some(turn) = turn else {
            incoming.ignore();
            return Err("there was no turn for it in time".to_owned());
        };
        let shaken = match incoming.accept() {
            Ok(connecting) => turn.spent_on(time::timeout(HANDSHAKE_TIMEOUT, connecting)).await,
            Err(error) => Ok(Err(error)),
        };
        self.note_handshake(&shaken);
        match shaken {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(format!("QUIC handshake failed: {}", runtime::chain(&error))),
            Err(_) => Err("QUIC handshake timed out".to_owned()),
        }
    }

    fn note_handshake<T, E>(&self, shaken: &Result<Result<T, E>, time::error::Elapsed>) {
        let outcome = match shaken {
            Ok(Ok(_)) => "ok",
            Ok(Err(_)) => "failed",
            Err(_) => "timed out",
        };
        self.note_handshake_as(outcome);
    }

    fn note_crowded_out(&self, peer: SocketAddr) {
        debug!(%peer, "there was no room for the connection any more");
        self.note_handshake_as("crowded out");
    }

    fn note_handshake_as(&self, outcome: &'static str) {
        self.context.metrics.handshakes.get_or_create(&HandshakeLabels { outcome }).inc();
    }

    async fn serve(
        self: Arc<Self>,
        tcp: TcpStream,
        peer: SocketAddr,
        place: Guest,
        config: Arc<ServerConfig>,
        stop: CancellationToken,
    ) {
        // On the heap, to go before the session begins.
        let guest = Box::pin(async {
            let stream = self.handshake(tcp, &place, config).await?;
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = certificate.map(|certificate| certificate.clone().into_owned());
            let progress = stream.get_ref().0.progress();
            let upgraded = self.http(stream, certificate).await?;
            Ok::<_, String>(upgraded.map(|(peer_node, io)| (peer_node, io, progress)))
        });
        let upgraded = tokio::select! {
            // Nothing has been promised to a guest yet.
            upgraded = time::timeout(HANDSHAKE_TIMEOUT + REQUEST_TIMEOUT, guest) => upgraded,
            () = place.told_to_leave() => return self.note_crowded_out(peer),
            () = stop.cancelled() => return,
        };
        match upgraded {
            Ok(Ok(Some((peer_node, io, progress)))) => {
                let link = websocket::server(io, peer, progress).await;
                session::run(Arc::clone(&self.context), &self.enrollment, link, peer_node, place, stop).await;
            }
            Ok(Ok(None)) => {}
            Ok(Err(reason)) => debug!(%peer, reason, "connection ended"),
            Err(_) => debug!(%peer, "connection timed out"),
        }
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        place: &Guest,
        config: Arc<ServerConfig>,
    ) -> Result<TlsStream<Watched<TcpStream>>, String> {
        link::prepare(&tcp).map_err(|error| error.to_string())?;
        let greeted = LazyConfigAcceptor::new(Acceptor::default(), Watched::new(tcp));
        let shaken = match time::timeout(HANDSHAKE_TIMEOUT, greeted).await {
            Ok(Ok(greeted)) => {
                let shaking = greeted.into_stream(config);
                place.turn().await.spent_on(time::timeout(HANDSHAKE_TIMEOUT, shaking)).await
            }
            Ok(Err(error)) => Ok(Err(error)),
            Err(elapsed) => Err(elapsed),
        };
        self.note_handshake(&shaken);
        match shaken {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("TLS handshake failed: {}", runtime::chain(&error))),
            Err(_) => Err("TLS handshake timed out".to_owned()),
        }
    }

    /// Answers one request; returns the node and its stream if that was an upgrade.
    async fn http(
        &self,
        stream: TlsStream<Watched<TcpStream>>,
        certificate: Option<CertificateDer<'static>>,
    ) -> Result<Option<(Reporter, TokioIo<hyper::upgrade::Upgraded>)>, String> {
        let upgrade: Mutex<Option<(Reporter, OnUpgrade)>> = Mutex::new(None);
        let service = service_fn(|request: Request<Incoming>| {
            let (certificate, upgrade) = (certificate.as_ref(), &upgrade);
            async move { Ok::<_, Infallible>(self.answer(request, certificate, upgrade).await) }
        });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(64)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await
            .map_err(|error| runtime::chain(&error).to_string())?;
        let upgrade = upgrade.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some((node, upgrade)) = upgrade else { return Ok(None) };
        let io = upgrade.await.map_err(|error| runtime::chain(&error).to_string())?;
        Ok(Some((node, TokioIo::new(io))))
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        certificate: Option<&CertificateDer<'static>>,
        upgrade: &Mutex<Option<(Reporter, OnUpgrade)>>,
    ) -> Answer {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => text(StatusCode::OK, "ok\n"),
            (&Method::POST, "/edge.crt") => {
                let answer = self.enrollment.enroll(request).await;
                let code = answer.status().as_u16();
                self.context.metrics.enrollments.get_or_create(&EnrollmentLabels { code }).inc();
                answer
            }
            (&Method::GET, "/edge.crt") => self.enrollment.check(request.headers()).await,
            (&Method::DELETE, "/edge.crt") => match identify(certificate) {
                Ok(Reporter { node, key_hash }) => self.enrollment.release(&node, &key_hash).await,
                Err((code, reason)) => text(code, reason),
            },
            (&Method::GET, websocket::PATH) => match self.admit_upgrade(certificate, request.headers()).await
            {
                Ok((node, key)) => {
                    let on_upgrade = hyper::upgrade::on(&mut request);
                    *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some((node, on_upgrade));
                    switching(&key)
                }
                Err((code, reason)) => {
                    info!(reason, "link refused");
                    text(code, reason)
                }
            },
            (_, "/healthz" | "/edge.crt" | websocket::PATH) => {
                text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")
            }
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// The node that may open a link, with the key of its WebSocket handshake.
    async fn admit_upgrade(
        &self,
        certificate: Option<&CertificateDer<'static>>,
        headers: &HeaderMap,
    ) -> Result<(Reporter, String), Refusal> {
        let node = self.admit(certificate).await?;
        let key = websocket_key(headers).ok_or_else(|| {
            (StatusCode::BAD_REQUEST, "not a WebSocket handshake of version 13\n".to_owned())
        })?;
        Ok((node, key))
    }

    /// The node that may open a link.
    async fn admit(&self, certificate: Option<&CertificateDer<'static>>) -> Result<Reporter, Refusal> {
        let peer = identify(certificate)?;
        let Reporter { node, key_hash } = &peer;
        self.check_holder(node, key_hash).await?;
        if certificate.is_some_and(has_expired) && !self.remembers(node, key_hash).await? {
            let reason = format!(
                "the certificate of {node} has expired, and no Node remembers its key; to join anew: keadm reset, then a token \
                 from `keadm gettoken --node={node}`\n"
            );
            return Err((StatusCode::FORBIDDEN, reason));
        }
        let registry = &self.context.registry;
        if registry.len() >= self.context.hub.node_limit && !registry.contains(node) {
            let reason = format!(
                "node limit of {} reached (modules.cloudHub.nodeLimit)\n",
                self.context.hub.node_limit
            );
            return Err((StatusCode::SERVICE_UNAVAILABLE, reason));
        }
        Ok(peer)
    }

    /// Whether the Node is there and has this very key.
    async fn remembers(&self, node: &str, key_hash: &str) -> Result<bool, Refusal> {
        match holder::is_held_by(&self.context.client, node, key_hash).await {
            Ok(held) => Ok(held),
            Err(failure) => {
                let reason =
                    format!("cloudcore cannot ask the API server now: {}\n", runtime::chain(&failure));
                Err((StatusCode::SERVICE_UNAVAILABLE, reason))
            }
        }
    }

    /// Where the cache would refuse, or has not been listed yet, the API server has the last word: the Node may have got a
    /// new key just now.
    async fn check_holder(&self, node: &str, key_hash: &str) -> Result<(), Refusal> {
        let SessionContext { client, index, .. } = &*self.context;
        let cached = holder::may_link(node, index.node(node).as_ref(), key_hash);
        if cached.is_ok() && index.is_complete() {
            return Ok(());
        }
        match (holder::check_link(client, node, key_hash).await, cached) {
            (Ok(Err(reason)), _) | (Err(_), Err(reason)) => {
                Err((StatusCode::FORBIDDEN, format!("{reason}\n")))
            }
            (Err(failure), Ok(())) => {
                let reason =
                    format!("cloudcore cannot ask the API server now: {}\n", runtime::chain(&failure));
                Err((StatusCode::SERVICE_UNAVAILABLE, reason))
            }
            (Ok(Ok(())), _) => Ok(()),
        }
    }
}

/// TLS has taken it all the same.
fn has_expired(certificate: &CertificateDer<'_>) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let ended = tls::validity(certificate).map_or(0, |(_, ended)| ended);
    u64::try_from(ended).map_or(true, |ended| now > ended)
}

/// The node that the client's certificate, which TLS has verified, is for.
fn identify(certificate: Option<&CertificateDer<'static>>) -> Result<Reporter, Refusal> {
    let Some(certificate) = certificate else {
        let reason = "no client certificate: enroll with `keadm join` first\n";
        return Err((StatusCode::UNAUTHORIZED, reason.to_owned()));
    };
    let node = tls::node_of(certificate).zip(tls::key_hash(certificate).ok());
    let Some((node, key_hash)) = node else {
        return Err((StatusCode::FORBIDDEN, "the client certificate is not a node's\n".to_owned()));
    };
    Ok(Reporter { node: node.into(), key_hash: key_hash.into() })
}

fn websocket_key(headers: &HeaderMap) -> Option<String> {
    let names = |header: header::HeaderName, word: &str| {
        let value = headers.get(header).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split(',').any(|token| token.trim().eq_ignore_ascii_case(word))
    };
    let upgrade = names(header::CONNECTION, "upgrade") && names(header::UPGRADE, "websocket");
    let version = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    (upgrade && version).then(|| key.to_owned())
}

fn switching(key: &str) -> Answer {
    let mut answer = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    // Base64 is always a valid header value.
    if let Ok(accept) = header::HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    answer
}

pub(super) fn text(code: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = code;
    // One request a connection. Not hyper's `keep_alive(false)`: that would say so in the answer to an upgrade as well.
    answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    answer
}
