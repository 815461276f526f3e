//! The admin port of a daemon: `/livez`, `/readyz`, `/metrics`, `/loglevel`, and what the daemon adds.
//!
//! Listens on a TCP address (`127.0.0.1:9443`) or a unix socket (`unix:///run/edgecore.sock`, mode 0600). There is no
//! authentication: a TCP address should be a loopback address.

use std::{
    convert::Infallible, future::Future, io, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf,
    pin::Pin, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{chain, telemetry::LogLevel};

/// Connections served at once; scrapers and people need a few.
const MAX_CONNECTIONS: usize = 32;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of a log filter or an order.
const MAX_BODY: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address} for the admin port")]
pub struct AdminError {
    address: String,
    #[source]
    source: io::Error,
}

/// Says whether the daemon is ready, and if not, why.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A further page: status and body (JSON) for a path.
pub type Page = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Something that is asked for with PUT and a JSON body at a path; the error says why it is refused.
pub type Order =
    Arc<dyn Fn(serde_json::Value) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Bound, not yet serving.
pub struct Admin {
    listener: Listener,
    service: Arc<Service>,
}

struct Service {
    registry: Registry,
    log_level: LogLevel,
    ready: Readiness,
    pages: Vec<(&'static str, Page)>,
    orders: Vec<(&'static str, Order)>,
}

impl Admin {
    pub async fn bind(
        address: &str,
        registry: Registry,
        log_level: LogLevel,
        ready: Readiness,
        pages: Vec<(&'static str, Page)>,
    ) -> Result<Self, AdminError> {
        let failed = |source| AdminError { address: address.to_owned(), source };
        let listener = if let Some(path) = address.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            // A socket that a killed process left behind.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            let listener = UnixListener::bind(&path).map_err(failed)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
            Listener::Unix(listener, path)
        } else {
            Listener::Tcp(TcpListener::bind(address).await.map_err(failed)?)
        };
        let service = Service { registry, log_level, ready, pages, orders: Vec::new() };
        Ok(Self { listener, service: Arc::new(service) })
    }

    /// Before it serves.
    #[must_use]
    pub fn taking(mut self, path: &'static str, order: Order) -> Self {
        if let Some(service) = Arc::get_mut(&mut self.service) {
            service.orders.push((path, order));
        }
        self
    }

    /// The TCP address, if it is one: the port may have been chosen by the kernel.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }

    /// Serves until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut connections = JoinSet::new();
        loop {
            let full = connections.len() >= MAX_CONNECTIONS;
            tokio::select! {
                // accept() keeps the connection in the backlog when another arm wins.
                accepted = self.listener.accept(), if !full => match accepted {
                    Ok(io) => {
                        connections.spawn(serve(io, Arc::clone(&self.service)));
                    }
                    Err(error) => {
                        debug!(error = %chain(&error), "failed to accept an admin connection");
                        // Without file handles the next call fails at once.
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = stop.cancelled() => break,
            }
        }
        if let Listener::Unix(_, path) = &self.listener
            && let Err(error) = std::fs::remove_file(path)
        {
            info!(error = %chain(&error), path = %path.display(), "failed to remove the admin socket");
        }
        Ok(())
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Io>> {
        match self {
            Self::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

async fn serve(io: Box<dyn Io>, service: Arc<Service>) {
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(5))
        .serve_connection(TokioIo::new(io), answer)
        .await;
    if let Err(error) = served {
        debug!(error = %chain(&error), "admin connection ended");
    }
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/livez" | "/healthz") => text(StatusCode::OK, "ok\n"),
            (&Method::GET, "/readyz") => match (self.ready)() {
                Ok(()) => text(StatusCode::OK, "ok\n"),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            (&Method::GET, "/metrics") => metrics(&self.registry),
            (&Method::PUT, "/loglevel") => self.set_log_level(request).await,
            (&Method::PUT, path) => match self.orders.iter().find(|(known, _)| *known == path) {
                Some((_, order)) => obey(order, request).await,
                None => text(StatusCode::NOT_FOUND, "not found\n"),
            },
            (&Method::GET, path) => match self.pages.iter().find(|(known, _)| *known == path) {
                Some((_, page)) => content("application/json", format!("{}\n", page())),
                None => text(StatusCode::NOT_FOUND, "not found\n"),
            },
            _ => text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
        }
    }

    async fn set_log_level(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = match body(request).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        match self.log_level.set(String::from_utf8_lossy(&body).trim()) {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{}\n", chain(&error))),
        }
    }
}

async fn obey(order: &Order, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let body = match body(request).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let obeyed = match serde_json::from_slice(&body) {
        Ok(asked) => order(asked).await,
        Err(error) => Err(format!("the body is no JSON: {error}")),
    };
    match obeyed {
        Ok(()) => text(StatusCode::OK, "ok\n"),
        Err(reason) => text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
    }
}

async fn body(request: Request<Incoming>) -> Result<Bytes, Response<Full<Bytes>>> {
    match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(text(StatusCode::BAD_REQUEST, format!("{error}\n"))),
    }
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut out = String::new();
    match prometheus_client::encoding::text::encode(&mut out, registry) {
        // Prometheus 3 takes no answer without its type.
        Ok(()) => content("application/openmetrics-text; version=1.0.0; charset=utf-8", out),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = content("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

fn content(type_: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(type_));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_say_what_they_are() {
        let answer = metrics(&Registry::default());
        assert!(answer.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("application/openmetrics-text"));
    }
}
