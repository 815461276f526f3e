//! Small HTTP questions: to a daemon's admin socket, and over TLS to cloudcore.

use std::{io, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use runtime::{
    link::{
        Line,
        proxy::{Proxy, TunnelError},
    },
    tls::{PinError, pinned_client_config},
    token::Token,
};
use rustls::{CertificateError, ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

const DEADLINE: Duration = Duration::from_secs(10);
/// Of the devices of a node, each with its properties.
const MAX_ANSWER: usize = 16 << 20;

/// Asks a daemon's admin server, at `IP:PORT` or `unix:///PATH`.
pub(crate) async fn admin(address: &str, path: &str) -> Result<(StatusCode, Bytes)> {
    admin_with(address, Request::get(path), Bytes::new()).await
}

/// Orders something of a daemon's admin server.
pub(crate) async fn admin_put(address: &str, path: &str, order: &Value) -> Result<(StatusCode, Bytes)> {
    admin_with(address, Request::put(path), order.to_string().into()).await
}

async fn admin_with(
    address: &str,
    request: http::request::Builder,
    body: Bytes,
) -> Result<(StatusCode, Bytes)> {
    let ask = async {
        match address.strip_prefix("unix://") {
            Some(socket) => {
                let io = UnixStream::connect(Path::new(socket)).await?;
                exchange(io, "localhost", request, body).await
            }
            None => exchange(TcpStream::connect(address).await?, address, request, body).await,
        }
    };
    timeout(DEADLINE, ask)
        .await
        .context("no answer in time")?
        .with_context(|| format!("no answer at {address}"))
}

/// Why cloudcore was not found at an address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    #[error("the name {0} cannot be resolved")]
    Name(String),
    #[error("nothing listens at {0}")]
    Refused(String),
    #[error("{0} does not answer")]
    Silent(String),
    #[error("{0} cannot be reached")]
    Unreachable(String, #[source] io::Error),
    #[error(transparent)]
    Proxy(TunnelError),
    #[error("something other than cloudcore answers at {0}")]
    Other(String),
    #[error(
        "the CA at {0} does not match the pin in the token: it is the cloudcore of another cluster, or its CA was rotated since \
         the token was made"
    )]
    OtherCa(String),
    /// By cloudcore itself, which says why.
    #[error("cloudcore refuses the token: {reason}")]
    Token { reason: String },
    #[error("cloudcore at {at} cannot check the token now: {reason}")]
    Unable { at: String, reason: String },
    #[error("cloudcore's certificate is not for {0}")]
    OtherName(String),
    #[error("cloudcore's certificate is not valid at this machine's time, {0}")]
    Clock(String),
    #[error("cloudcore at {0} refuses a TLS connection")]
    Tls(String, #[source] io::Error),
}

impl HubError {
    /// What to do about it.
    pub(crate) fn fix(&self) -> String {
        match self {
            Self::Name(name) => {
                format!("check the spelling of {name} and this machine's DNS, or use the IP address")
            }
            Self::Refused(_) => {
                "check that keadm init has run, and that address and port are those that it printed"
                    .to_owned()
            }
            Self::Silent(_) | Self::Unreachable(..) => {
                "check the route to cloudcore, and that firewalls let its TCP port through".to_owned()
            }
            Self::Proxy(error) => error.advice().to_owned(),
            Self::Other(_) => "check address and port; keadm init printed them".to_owned(),
            Self::OtherCa(_) => {
                "get a new token from the right cluster with keadm gettoken, or correct the address"
                    .to_owned()
            }
            // The reason names what to do, where there is more than this.
            Self::Token { .. } => {
                "get a new token with keadm gettoken, from the cluster to join and for this node".to_owned()
            }
            Self::Unable { .. } => "try again; look into cloudcore's log if it stays so".to_owned(),
            Self::OtherName(host) => {
                format!("use an advertised address, or add it: keadm init --advertise-address=…,{host}")
            }
            Self::Clock(_) => "set this machine's clock".to_owned(),
            Self::Tls(..) => "look into cloudcore's log".to_owned(),
        }
    }
}

/// Asks cloudcore at `server` (`HOST:PORT`), through a proxy if there is one, whether it is well, and that its CA has this hash.
pub(crate) async fn hub(server: &str, proxy: Option<&Proxy>, ca_hash: [u8; 32]) -> Result<(), HubError> {
    let request = Request::get("/healthz");
    // On the heap: what waits for it is large itself.
    match Box::pin(ask(server, proxy, pinned(server, ca_hash)?, request)).await? {
        (StatusCode::OK, _) => Ok(()),
        _ => Err(HubError::Other(server.to_owned())),
    }
}

/// Asks cloudcore whether it would let `node` join with this token.
pub(crate) async fn token(
    server: &str,
    proxy: Option<&Proxy>,
    token: &Token,
    node: &str,
) -> Result<(), HubError> {
    let request = Request::get("/edge.crt")
        .header(header::AUTHORIZATION, format!("Bearer {}", token.bearer))
        .header("NodeName", node);
    let (status, body) = ask(server, proxy, pinned(server, token.ca_hash)?, request).await?;
    let reason = || String::from_utf8_lossy(&body).trim().to_owned();
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::SERVICE_UNAVAILABLE => Err(HubError::Unable { at: server.to_owned(), reason: reason() }),
        _ => Err(HubError::Token { reason: reason() }),
    }
}

/// Tells cloudcore that the machine with this certificate leaves, so that its name is free.
pub(crate) async fn release(
    server: &str,
    proxy: Option<&Proxy>,
    config: ClientConfig,
) -> Result<(), HubError> {
    let (status, body) = ask(server, proxy, config, Request::delete("/edge.crt")).await?;
    let reason = String::from_utf8_lossy(&body).trim().to_owned();
    match status {
        StatusCode::OK => Ok(()),
        _ => Err(HubError::Unable { at: server.to_owned(), reason }),
    }
}

fn pinned(server: &str, ca_hash: [u8; 32]) -> Result<ClientConfig, HubError> {
    let unusable = |error| HubError::Tls(server.to_owned(), io::Error::other(error));
    pinned_client_config(ca_hash).map(|(config, _)| config).map_err(unusable)
}

async fn ask(
    server: &str,
    proxy: Option<&Proxy>,
    config: ClientConfig,
    request: http::request::Builder,
) -> Result<(StatusCode, Bytes), HubError> {
    let line = match proxy {
        None => connect(server).await?,
        Some(proxy) => through(proxy, server).await.map_err(HubError::Proxy)?,
    };
    let host = host_of(server);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| HubError::Name(host.to_owned()))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, line);
    let tls = match timeout(DEADLINE, handshake).await {
        Err(_) => return Err(HubError::Other(server.to_owned())),
        Ok(Err(error)) => return Err(explain(server, error)),
        Ok(Ok(tls)) => tls,
    };
    match timeout(DEADLINE, exchange(tls, server, request, Bytes::new())).await {
        Ok(Ok(answer)) => Ok(answer),
        _ => Err(HubError::Other(server.to_owned())),
    }
}

async fn through(proxy: &Proxy, server: &str) -> Result<Line, TunnelError> {
    let connected = timeout(DEADLINE, TcpStream::connect(proxy.address())).await;
    let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    // Its answer has a deadline of its own.
    proxy.tunnel(connected.map_err(|error| proxy.unreachable(error))?, server).await
}

async fn connect(server: &str) -> Result<Line, HubError> {
    let at = || server.to_owned();
    match timeout(DEADLINE, TcpStream::connect(server)).await {
        Err(_) => Err(HubError::Silent(at())),
        Ok(Ok(tcp)) => Line::over(tcp).map_err(|error| HubError::Unreachable(at(), error)),
        Ok(Err(error)) => Err(match error.kind() {
            io::ErrorKind::ConnectionRefused => HubError::Refused(at()),
            io::ErrorKind::TimedOut => HubError::Silent(at()),
            // What the resolver says has no kind of its own.
            _ if error.raw_os_error().is_none() => HubError::Name(host_of(server).to_owned()),
            _ => HubError::Unreachable(at(), error),
        }),
    }
}

/// What a failed TLS handshake says about the other side.
fn explain(server: &str, error: io::Error) -> HubError {
    let at = server.to_owned();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(reason)) => match reason {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                HubError::OtherName(host_of(server).to_owned())
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                HubError::Clock(jiff::Timestamp::now().to_string())
            }
            _ => HubError::OtherCa(at),
        },
        Some(rustls::Error::Other(other)) => match other.0.downcast_ref() {
            Some(PinError::OtherCa) => HubError::OtherCa(at),
            Some(PinError::NotCloudcore) => HubError::Other(at),
            None => HubError::Tls(at, error),
        },
        Some(rustls::Error::AlertReceived(_)) => HubError::Tls(at, error),
        // No TLS at all, or the connection closed at the first byte of it.
        _ => HubError::Other(at),
    }
}

/// The host of `HOST:PORT`, an IPv6 address without its brackets.
pub(crate) fn host_of(server: &str) -> &str {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

async fn exchange<T>(
    io: T,
    host: &str,
    request: http::request::Builder,
    body: Bytes,
) -> Result<(StatusCode, Bytes)>
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let request = request
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .body(Full::new(body))
        .context("failed to build the request")?;
    let ask = async move {
        let response = sender.send_request(request).await?;
        read(response).await
    };
    let mut ask = std::pin::pin!(ask);
    tokio::select! {
        answer = &mut ask => answer,
        // The server may close before the answer has been read out of the buffer.
        ended = connection => {
            ended?;
            ask.await
        }
    }
}

async fn read(response: Response<Incoming>) -> Result<(StatusCode, Bytes)> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    ensure!(body.len() <= MAX_ANSWER, "the answer is too long");
    Ok((status, body))
}

#[cfg(test)]
mod tests;
