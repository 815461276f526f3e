//! The way out through an HTTP proxy (`CONNECT`, RFC 9110 section 9.3.6), for sites that have no other. It is spoken to in the clear
//! (`http://`) or within TLS of its own (`https://`); what goes through it is within our TLS in any case.

use std::{fmt, io, net::IpAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, pki_types::ServerName};
use tokio::{net::TcpStream, task::JoinSet, time};

use super::Line;
use crate::tls::{Clock, TlsError, Trust};

/// What a proxy may answer with, at most. What it says beyond status and headers is not read.
const MAX_ANSWER: usize = 16 << 10;
/// For TLS and its answer: it connects to cloudcore first.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where a proxy is, and what it is told of us.
#[derive(Clone)]
pub struct Proxy {
    /// `HOST:PORT`.
    address: String,
    /// If it is spoken to within TLS, whose certificate it has to show.
    name: Option<ServerName<'static>>,
    trust: Trust,
    /// Basic (RFC 7617).
    credentials: Option<HeaderValue>,
    patience: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("it is no URL, as in http://192.0.2.1:3128 or https://proxy.example:3129")]
    Url,
    #[error("its scheme is neither http nor https")]
    Scheme,
    #[error("it has a path; a proxy has none")]
    Path,
    #[error("its user or password is not percent-encoded UTF-8")]
    Credentials,
}

/// Why a proxy does not lead to cloudcore.
#[derive(Debug)]
pub struct TunnelError {
    /// Its URL, without user and password.
    proxy: String,
    failure: Failure,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("has not answered within {0:?}")]
    Silent(Duration),
    #[error("cannot be verified")]
    Roots(#[source] TlsError),
    #[error("has a certificate of a CA that is not trusted here")]
    NotTrusted(#[source] io::Error),
    #[error("has a certificate for another name")]
    OtherName(#[source] io::Error),
    #[error("has a certificate that is not valid at this machine's time")]
    Time(#[source] io::Error),
    #[error("does not answer with TLS")]
    NoTls(#[source] io::Error),
    #[error("refuses a TLS connection")]
    Tls(#[source] io::Error),
    #[error("does not answer as an HTTP proxy does")]
    Http(#[source] hyper::Error),
    #[error("answers {status} to CONNECT {target}")]
    Refused { status: StatusCode, target: String, with_credentials: bool },
    #[error("is asked for {0:?}, which no request can be made of")]
    Request(String, #[source] http::Error),
    #[error("sends what nobody asked for")]
    Talks,
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proxy {} {}", self.proxy, self.failure)
    }
}

impl std::error::Error for TunnelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.failure)
    }
}

/// As those who only connect tell it, with the way out.
impl From<TunnelError> for io::Error {
    fn from(error: TunnelError) -> Self {
        Self::other(format!("{}; {}", crate::chain(&error), error.advice()))
    }
}

impl TunnelError {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match &self.failure {
            Failure::Unreachable(_) => {
                "check its host and port in the URL, and that this machine is let through to it"
            }
            Failure::Silent(_) => {
                "check that it is a proxy as its URL says (https:// within TLS, http:// without), and that it gets through to cloudcore"
            }
            Failure::Roots(_) | Failure::NotTrusted(_) => {
                "name the file with its CA, PEM, in modules.edgeHub.websocket.proxyCaFile (keadm join --proxy-ca-file), or add the CA \
                 to those that the system trusts"
            }
            Failure::OtherName(_) => "use a name in its URL that its certificate is for",
            Failure::Time(_) => "set this machine's clock, or have the proxy's certificate renewed",
            Failure::NoTls(_) => "a proxy that does without TLS has a URL that begins with http://",
            Failure::Tls(_) => "look into the proxy's log",
            Failure::Http(_) | Failure::Talks => {
                "check that it is an HTTP proxy; where its port speaks TLS, the URL begins with https://"
            }
            Failure::Refused { status, with_credentials, .. } => match *status {
                // The second is what some answer to a wrong password.
                StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED if *with_credentials => {
                    "check user and password in its URL; they are for Basic authentication, percent-encoded"
                }
                StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                    "put user and password into its URL, as in http://USER:PASSWORD@HOST:PORT"
                }
                // Some do not tell what is wrong with them from what is wrong behind them.
                StatusCode::INTERNAL_SERVER_ERROR
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT => {
                    "check cloudcore's address, and that the proxy gets through to it"
                }
                _ => "have its administrator let CONNECT to cloudcore's host and port through",
            },
            Failure::Request(..) => "correct cloudcore's address",
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    /// `http://[USER:PASSWORD@]HOST[:PORT]`, or the same with `https`.
    fn from_str(url: &str) -> Result<Self, ProxyError> {
        let uri: Uri = url.parse().map_err(|_| ProxyError::Url)?;
        let (is_tls, port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            Some(_) => return Err(ProxyError::Scheme),
            None => return Err(ProxyError::Url),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(ProxyError::Path);
        }
        let authority = uri.authority().ok_or(ProxyError::Url)?;
        let credentials = match authority.as_str().rsplit_once('@') {
            None => None,
            Some((credentials, _)) => {
                let plain = percent_decode(credentials).ok_or(ProxyError::Credentials)?;
                let basic = format!("Basic {}", BASE64_STANDARD.encode(plain));
                let mut basic = HeaderValue::from_str(&basic).map_err(|_| ProxyError::Credentials)?;
                basic.set_sensitive(true);
                Some(basic)
            }
        };
        let host = authority.host();
        let name = is_tls.then(|| server_name(host).ok_or(ProxyError::Url)).transpose()?;
        let address = format!("{host}:{}", authority.port_u16().unwrap_or(port));
        Ok(Self { address, name, trust: Trust::default(), credentials, patience: PATIENCE })
    }
}

/// Of the host of a URL.
fn server_name(host: &str) -> Option<ServerName<'static>> {
    let bare = host.trim_matches(['[', ']']);
    match bare.parse::<IpAddr>() {
        Ok(ip) => Some(ServerName::IpAddress(ip.into())),
        Err(_) => ServerName::try_from(bare.to_owned()).ok(),
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

impl Proxy {
    /// The proxy of a configuration: its URL, and the file with the CAs of its certificate; either may be empty. The file is read for
    /// each connection, so that it may be replaced, and that one which cannot be read keeps nothing from starting.
    pub fn configured(url: &str, ca_file: &str) -> Result<Option<Self>, ProxyError> {
        if url.is_empty() {
            return Ok(None);
        }
        let mut proxy: Self = url.parse()?;
        proxy.trust.ca_file = Some(ca_file).filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Some(proxy))
    }

    /// Has its certificate verified at the time of this clock.
    #[must_use]
    pub fn at(mut self, clock: Arc<Clock>) -> Self {
        self.trust.clock = clock;
        self
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Without user and password.
    fn url(&self) -> String {
        let scheme = if self.name.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    fn error(&self, failure: Failure) -> TunnelError {
        TunnelError { proxy: self.url(), failure }
    }

    /// For whoever has not even come to its door.
    pub fn unreachable(&self, error: io::Error) -> TunnelError {
        self.error(Failure::Unreachable(error))
    }

    /// Has the proxy at the other end of `tcp` connect to `target` (`HOST:PORT`); the line is one to `target` then.
    pub async fn tunnel(&self, tcp: TcpStream, target: &str) -> Result<Line, TunnelError> {
        let line = Line::over(tcp).map_err(|error| self.unreachable(error))?;
        let attempt = async { self.ask(self.secure(line).await?, target).await };
        let answer = time::timeout(self.patience, attempt).await;
        answer.unwrap_or(Err(Failure::Silent(self.patience))).map_err(|failure| self.error(failure))
    }

    async fn secure(&self, line: Line) -> Result<Line, Failure> {
        let Some(name) = &self.name else { return Ok(line) };
        let tls = self.trust.client_config().map_err(Failure::Roots)?;
        line.secure(name.clone(), Arc::new(tls)).await.map_err(failed_tls)
    }

    async fn ask(&self, line: Line, target: &str) -> Result<Line, Failure> {
        let mut request = Request::connect(target).header(header::HOST, target);
        if let Some(credentials) = &self.credentials {
            request = request.header(header::PROXY_AUTHORIZATION, credentials);
        }
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|error| Failure::Request(target.to_owned(), error))?;
        let handshake = http1::Builder::new().max_buf_size(MAX_ANSWER).handshake(TokioIo::new(line));
        let (mut sender, connection) = handshake.await.map_err(Failure::Http)?;
        let mut exchange = JoinSet::new();
        exchange.spawn(connection.with_upgrades());
        let answer = sender.send_request(request).await.map_err(Failure::Http)?;
        let status = answer.status();
        if !status.is_success() {
            let with_credentials = self.credentials.is_some();
            return Err(Failure::Refused { status, target: target.to_owned(), with_credentials });
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(Failure::Http)?;
        let parts = upgraded.downcast::<TokioIo<Line>>().expect("it is the line of the handshake above");
        // Whoever is behind it has not been spoken to.
        if !parts.read_buf.is_empty() {
            return Err(Failure::Talks);
        }
        Ok(parts.io.into_inner())
    }
}

/// What a failed handshake says about the proxy.
fn failed_tls(error: io::Error) -> Failure {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(rustls::Error::InvalidCertificate(reason)) => match reason {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Failure::OtherName(error)
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Failure::Time(error),
            _ => Failure::NotTrusted(error),
        },
        Some(rustls::Error::InvalidMessage(_)) => Failure::NoTls(error),
        _ => Failure::Tls(error),
    }
}

#[cfg(test)]
mod tests;
