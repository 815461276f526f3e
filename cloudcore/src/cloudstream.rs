//! The kubelet's API of the nodes that are connected here, for the API server: `kubectl logs`, `exec`, `attach`, `port-forward`
//! and `cp`. A port of its own, inside the cluster's network; each request goes on over a stream of the node's link, so that
//! nothing at a site listens, and no address of it need be reachable.
//!
//! The API server finds the port because cloudcore writes it into the status of each Node that is connected here
//! ([`Endpoint`]). Which node a request is for, the pod in its path says. Who asks is proven by a client certificate of the
//! cluster's own CA, and may ask what RBAC says of `nodes/proxy`, as with a kubelet.
//!
//! The [webhooks](crate::devicecontroller) of devices are at this port too, for which the API server shows no certificate. Who else
//! asks learns what a DeviceModel has to say of the device that is shown, and no more.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Client;
use runtime::{
    backoff::Backoff,
    passage::Passage,
    tls::{self, Authorities, Subject},
};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    cloudhub::registry::Registry,
    devicecontroller::{self, Admission},
    edgecontroller::index::Index,
    metrics::{Metrics, StreamLabels},
};
use access::Access;

mod access;
mod client_ca;
mod endpoint;
mod path;

pub use endpoint::{advertised, reaching};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// For the node to take a stream, and to answer on it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a list of objects that is converted at once, in bytes: ten times a page of 500 devices with 20 properties each.
const REVIEW: usize = 32 << 20;
/// Those under way at once: what is parsed takes several times as much.
const REVIEWS: usize = 2;
/// Of an object that is to be written, as it is and as it was, in bytes: etcd takes 1.5 MiB of one.
const ADMISSION: usize = 8 << 20;
/// Those under way at once: each asks the API server for one object.
const ADMISSIONS: usize = 8;
/// Of the API servers, whose requests are a connection each once they are upgraded.
const CONNECTIONS: usize = 4096;
/// Who the cluster's clients are is looked up anew, and the server's certificate made anew.
const REFRESH: Duration = Duration::from_hours(1);
/// Until it was looked up first.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// After the process has run out of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the API server finds the kubelet's API of this cloudcore's nodes; not set before it serves.
pub type Endpoint = Arc<OnceLock<SocketAddr>>;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// The port, bound and ready to serve.
pub struct CloudStream {
    pub listener: TcpListener,
    pub client: Client,
    pub index: Arc<Index>,
    pub registry: Arc<Registry>,
    pub metrics: Metrics,
    /// Addresses and DNS names of the server's certificate.
    pub names: Vec<String>,
    /// Of this cloudcore, as the API server reaches it.
    pub address: IpAddr,
    pub endpoint: Endpoint,
}

struct Server {
    access: Access,
    index: Arc<Index>,
    registry: Arc<Registry>,
    metrics: Metrics,
    client: Client,
    reviews: Semaphore,
    admissions: Semaphore,
}

/// What is answered in place of what was asked for.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl CloudStream {
    /// Serves until `stop` is cancelled.
    pub async fn run(
        self,
        authorities: impl Fn() -> Arc<Authorities> + Clone + Send + 'static,
        stop: CancellationToken,
    ) {
        let Self { listener, client, index, registry, metrics, mut names, address, endpoint } = self;
        names.push(address.to_string());
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut acceptor = loop {
            match acceptor(&client, &authorities(), &names).await {
                Ok(acceptor) => break acceptor,
                Err(reason) => warn!(reason, "kubectl logs and exec will not work before this is put right"),
            }
            tokio::select! {
                () = time::sleep(backoff.next_delay()) => {}
                () = stop.cancelled() => return,
            }
        };
        match listener.local_addr() {
            Ok(local) => {
                let at = SocketAddr::new(address, local.port());
                info!(%at, "serving the kubelet's API for connected nodes");
                endpoint.get_or_init(|| at);
            }
            Err(error) => warn!(%error, "the port of the kubelet's API is not known"),
        }
        let server = Arc::new(Server {
            access: Access::new(client.clone()),
            index,
            registry,
            metrics,
            client: client.clone(),
            reviews: Semaphore::new(REVIEWS),
            admissions: Semaphore::new(ADMISSIONS),
        });
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut serving = JoinSet::new();
        if let Some(at) = endpoint.get().copied() {
            serving.spawn(devicecontroller::serve_webhooks(client.clone(), at, authorities.clone()));
        }
        let mut refresh = time::interval(REFRESH);
        refresh.reset();
        loop {
            tokio::select! {
                // A connection stays in the backlog when another arm wins.
                accepted = listener.accept(), if room.available_permits() > 0 => match accepted {
                    Ok((tcp, peer)) => {
                        let (server, acceptor) = (Arc::clone(&server), acceptor.clone());
                        let place = Arc::clone(&room).try_acquire_owned();
                        connections.spawn(async move {
                            let _place = place;
                            if let Err(reason) = server.serve(tcp, acceptor).await {
                                debug!(%peer, reason, "connection ended");
                            }
                        });
                    }
                    Err(error) => {
                        warn!(error = %runtime::chain(&error), "failed to accept a connection");
                        time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        warn!(error = %runtime::chain(&error), "a connection's task panicked");
                    }
                }
                _ = refresh.tick() => match self::acceptor(&client, &authorities(), &names).await {
                    Ok(new) => acceptor = new,
                    Err(reason) => warn!(reason, "the clients of the kubelet's API stay those that were known"),
                },
                () = stop.cancelled() => return,
            }
        }
    }
}

async fn acceptor(
    client: &Client,
    authorities: &Authorities,
    names: &[String],
) -> Result<TlsAcceptor, String> {
    let clients = client_ca::read(client).await?;
    let (chain, key) = authorities.issue_server(names).map_err(|error| runtime::chain(&error).to_string())?;
    let mut config = tls::server_config(chain, key, &clients, Duration::ZERO)
        .map_err(|error| runtime::chain(&error).to_string())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Server {
    async fn serve(&self, tcp: TcpStream, acceptor: TlsAcceptor) -> Result<(), String> {
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream = match time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(format!("TLS handshake failed: {}", runtime::chain(&error))),
            Err(_) => return Err("TLS handshake timed out".to_owned()),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let user = certificate.and_then(tls::subject_of);
        let passage = Passage::default();
        let service = service_fn(|request: Request<Incoming>| {
            let (user, passage) = (&user, &passage);
            async move { Ok::<_, Infallible>(self.answer(request, user.as_ref(), passage).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        passage.carry().await;
        served.map_err(|error| runtime::chain(&error).to_string())
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        user: Option<&Subject>,
        passage: &Passage,
    ) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let kind = path::kind(&path);
        let answered = match user {
            _ if matches!(kind, path::CONVERT | path::VALIDATE) => self.review(request, kind).await,
            None => {
                let reason = "a client certificate of the cluster that names a user is needed";
                Err(Refusal(StatusCode::UNAUTHORIZED, reason.to_owned()))
            }
            Some(user) if kind == path::SESSIONS => self.sessions(user).await,
            Some(user) => {
                self.pass_on(request, user, passage).await.map(|answer| answer.map(BodyExt::boxed_unsync))
            }
        };
        let code = answered.as_ref().map_or_else(|Refusal(code, _)| *code, Response::status).as_u16();
        self.metrics.streams.get_or_create(&StreamLabels { kind, code }).inc();
        match answered {
            Ok(answer) => answer,
            Err(Refusal(code, reason)) => {
                let user = user.map(|user| &*user.name);
                info!(%method, path, user, code = code.as_u16(), reason, "request of the API server refused");
                let mut answer = Response::new(whole(reason + "\n"));
                *answer.status_mut() = code;
                answer
            }
        }
    }

    /// The links of the nodes that are connected here, with their bytes: `kubectl get --raw /api/v1/nodes/NODE/proxy/sessions`.
    async fn sessions(&self, user: &Subject) -> Result<Response<Body>, Refusal> {
        // It tells of each of them.
        self.access.check(user, "get", access::ALL_NODES).await?;
        Ok(json(&self.registry.page()))
    }

    /// A webhook of the API server.
    async fn review(&self, request: Request<Incoming>, kind: &str) -> Result<Response<Body>, Refusal> {
        if request.method() != Method::POST {
            return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "POST alone is served".to_owned()));
        }
        let bad = |reason: String| Refusal(StatusCode::BAD_REQUEST, reason);
        let is_admission = kind == path::VALIDATE;
        let (places, largest) =
            if is_admission { (&self.admissions, ADMISSION) } else { (&self.reviews, REVIEW) };
        let reviewed = async {
            let _place = places.acquire().await.map_err(|error| bad(error.to_string()))?;
            let body = Limited::new(request.into_body(), largest).collect();
            let body = body.await.map_err(|error| bad(error.to_string()))?.to_bytes();
            if is_admission {
                return Ok(Admission::parse(&body).map_err(bad)?.answer(&self.client).await);
            }
            let answer = spawn_blocking(move || devicecontroller::convert(&body));
            answer.await.map_err(|error| bad(error.to_string()))?.map_err(bad)
        };
        match time::timeout(ANSWER_TIMEOUT, reviewed).await {
            Ok(answer) => Ok(json(&answer?)),
            Err(_) => Err(Refusal(StatusCode::GATEWAY_TIMEOUT, "it takes too long".to_owned())),
        }
    }

    async fn pass_on(
        &self,
        request: Request<Incoming>,
        user: &Subject,
        passage: &Passage,
    ) -> Result<Response<Incoming>, Refusal> {
        let verb = match *request.method() {
            Method::GET => "get",
            Method::POST => "create",
            _ => {
                return Err(Refusal(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "GET and POST alone are served".to_owned(),
                ));
            }
        };
        let pod = path::pod(request.uri().path()).map_err(|reason| Refusal(StatusCode::NOT_FOUND, reason))?;
        let node = self.index.pod(&pod).map(|(pod, _)| pod.node).filter(|node| !node.is_empty());
        let node = node.ok_or_else(|| {
            let reason = format!("pod {}/{} is on no node that is known here", pod.namespace(), pod.name());
            Refusal(StatusCode::NOT_FOUND, reason)
        })?;
        // Before anything is said of the node.
        self.access.check(user, verb, &node).await?;
        let streams = self.registry.streams(&node).ok_or_else(|| {
            let reason = format!("node {node} is not connected to this cloudcore: its line is down, or it is about to be with another");
            // Of 503 the API server passes the reason on to nobody.
            Refusal(StatusCode::BAD_GATEWAY, reason)
        })?;
        let failed = |reason: String| Refusal(StatusCode::BAD_GATEWAY, format!("node {node}: {reason}"));
        let uri = request.uri().path_and_query().cloned().map_or_else(Uri::default, Uri::from);
        let passed = async {
            let stream = streams.open().await.map_err(|error| failed(error.to_string()))?;
            let answer = passage.lead(stream, uri, request).await;
            answer.map_err(|error| failed(runtime::chain(&error).to_string()))
        };
        match time::timeout(ANSWER_TIMEOUT, passed).await {
            Ok(Ok(mut answer)) => {
                // The node's connection has one request, that of the API server may have more.
                if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                    answer.headers_mut().remove(header::CONNECTION);
                }
                Ok(answer)
            }
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => Err(Refusal(
                StatusCode::GATEWAY_TIMEOUT,
                format!("node {node} did not answer within {ANSWER_TIMEOUT:?}"),
            )),
        }
    }
}

fn json(value: &Value) -> Response<Body> {
    let mut answer = Response::new(whole(value.to_string()));
    let json = header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}

fn whole(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}
