//! Small HTTP questions: to a daemon's admin socket, and over TLS to cloudcore.

use std::{io, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use runtime::tls::{PinError, pinned_client_config};
use rustls::{CertificateError, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

const DEADLINE: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 64 << 10;

/// Asks a daemon's admin server, at `IP:PORT` or `unix:///PATH`.
pub(crate) async fn admin(address: &str, path: &str) -> Result<(StatusCode, Bytes)> {
    let ask = async {
        match address.strip_prefix("unix://") {
            Some(socket) => get(UnixStream::connect(Path::new(socket)).await?, "localhost", path).await,
            None => get(TcpStream::connect(address).await?, address, path).await,
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
    #[error("something other than cloudcore answers at {0}")]
    Other(String),
    #[error(
        "the cloudcore at {0} belongs to another cluster than the token: its CA is not the one that the token names"
    )]
    OtherCa(String),
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
            Self::Other(_) => "check address and port; keadm init printed them".to_owned(),
            Self::OtherCa(_) => {
                "get a token with keadm gettoken from the cluster that this address belongs to".to_owned()
            }
            Self::OtherName(host) => {
                format!("use an advertised address, or add it: keadm init --advertise-address=…,{host}")
            }
            Self::Clock(_) => "set this machine's clock".to_owned(),
            Self::Tls(..) => "look into cloudcore's log".to_owned(),
        }
    }
}

/// Asks cloudcore at `server` (`HOST:PORT`), connecting to `connect_to` if that is another address, whether it is well, and
/// that its CA has this hash.
pub(crate) async fn hub(server: &str, connect_to: Option<&str>, ca_hash: [u8; 32]) -> Result<(), HubError> {
    let at = || server.to_owned();
    let tcp = connect(connect_to.unwrap_or(server)).await?;
    let host = host_of(server);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| HubError::Name(host.to_owned()))?;
    let (config, _) =
        pinned_client_config(ca_hash).map_err(|error| HubError::Tls(at(), io::Error::other(error)))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let tls = match timeout(DEADLINE, handshake).await {
        Err(_) => return Err(HubError::Other(at())),
        Ok(Err(error)) => return Err(explain(server, error)),
        Ok(Ok(tls)) => tls,
    };
    match timeout(DEADLINE, get(tls, server, "/healthz")).await {
        Ok(Ok((StatusCode::OK, _))) => Ok(()),
        _ => Err(HubError::Other(at())),
    }
}

async fn connect(server: &str) -> Result<TcpStream, HubError> {
    let at = || server.to_owned();
    match timeout(DEADLINE, TcpStream::connect(server)).await {
        Err(_) => Err(HubError::Silent(at())),
        Ok(Ok(tcp)) => Ok(tcp),
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
            CertificateError::Other(other) if other.0.is::<PinError>() => HubError::OtherCa(at),
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

async fn get<T>(io: T, host: &str, path: &str) -> Result<(StatusCode, Bytes)>
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
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
