//! The first contact: a join token becomes a client certificate. The key is made here and never leaves the node.

use std::{fs, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use runtime::{
    link::{Line, proxy::Proxy},
    tls::{self, CsrError, TlsError},
    token::{Token, TokenError},
};
use tokio::time;
use tracing::{info, warn};

use super::{
    HubConfig, dialer,
    identity::{self, Identity},
    transports::Server,
};

/// A certificate is about 600 bytes; an error is a line.
const MAX_ANSWER: usize = 16 << 10;
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum EnrollmentError {
    #[error(
        "this node has no certificate and no join token; run `keadm join` with a token from `keadm gettoken`"
    )]
    NoToken,
    #[error("failed to read the join token from {path}")]
    ReadToken {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("join token is not usable")]
    Token(#[from] TokenError),
    #[error("failed to connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("TLS with {address} failed")]
    Tls {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("failed to set up TLS")]
    TlsSetup(#[from] rustls::Error),
    #[error("{address} does not answer like cloudcore")]
    Http {
        address: String,
        #[source]
        source: hyper::Error,
    },
    #[error("request could not be built")]
    Request(#[from] http::Error),
    #[error("answer could not be read: {0}")]
    Answer(String),
    #[error("cloudcore refused the enrolment: HTTP {status}: {reason}")]
    Refused { status: u16, reason: String },
    #[error("failed to make a key and a certificate signing request")]
    Csr(#[from] CsrError),
    #[error("cloudcore issued a certificate for {holder:?} instead of this node")]
    WrongCertificate { holder: Option<String> },
    #[error("failed to keep this node's identity")]
    Save(#[from] TlsError),
    #[error("took longer than {0:?}")]
    TimedOut(Duration),
}

pub(super) async fn enroll(
    config: &HubConfig,
    server: &Server,
    proxy: Option<&Proxy>,
) -> Result<Identity, EnrollmentError> {
    let attempt = attempt(config, server, proxy);
    time::timeout(TIMEOUT, attempt).await.map_err(|_| EnrollmentError::TimedOut(TIMEOUT))?
}

async fn attempt(
    config: &HubConfig,
    server: &Server,
    proxy: Option<&Proxy>,
) -> Result<Identity, EnrollmentError> {
    let token = Token::parse(&token_text(config)?)?;
    let (key, csr) = tls::node_csr(&config.node)?;
    let (client, pinned) = tls::pinned_client_config(token.ca_hash)?;
    let connected = dialer::line(&server.address, proxy).await;
    let line =
        connected.map_err(|source| EnrollmentError::Connect { address: server.address.clone(), source })?;
    let certificate = request(config, server, line, client, &token.bearer, csr).await?;
    // The handshake cannot have succeeded without it.
    let ca = pinned
        .get()
        .ok_or_else(|| EnrollmentError::Answer("no CA certificate in the handshake".to_owned()))?;
    let certificate = rustls::pki_types::CertificateDer::from(certificate.to_vec());
    let holder = tls::node_of(&certificate);
    if holder.as_deref() != Some(config.node.as_str()) {
        return Err(EnrollmentError::WrongCertificate { holder });
    }
    identity::save(&config.identity, &ca, &certificate, &key)?;
    info!(node = config.node, "enrolled");
    match fs::remove_file(&config.token_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(path = %config.token_file.display(), %error, "failed to remove the join token; it still expires");
        }
        _ => {}
    }
    Ok(Identity { ca: vec![ca], chain: vec![certificate], key: tls::pkcs8(key) })
}

fn token_text(config: &HubConfig) -> Result<String, EnrollmentError> {
    match fs::read_to_string(&config.token_file) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(config.token.clone()).filter(|token| !token.is_empty()).ok_or(EnrollmentError::NoToken)
        }
        Err(source) => {
            let path = config.token_file.display().to_string();
            Err(EnrollmentError::ReadToken { path, source })
        }
    }
}

async fn request(
    config: &HubConfig,
    server: &Server,
    line: Line,
    client: rustls::ClientConfig,
    bearer: &str,
    csr: Vec<u8>,
) -> Result<Bytes, EnrollmentError> {
    let address = || server.address.clone();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(client))
        .connect(server.name.clone(), line)
        .await
        .map_err(|source| EnrollmentError::Tls { address: address(), source })?;
    let http_error = |source| EnrollmentError::Http { address: address(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http_error)?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri("/edge.crt")
        .header(header::HOST, &server.address)
        .header(header::AUTHORIZATION, format!("Bearer {bearer}"))
        .header("NodeName", &config.node)
        .body(Full::new(Bytes::from(csr)))?;
    let response = sender.send_request(request).await.map_err(http_error)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| EnrollmentError::Answer(error.to_string()))?
        .to_bytes();
    if status != StatusCode::OK {
        let reason = String::from_utf8_lossy(&body).trim().chars().take(300).collect();
        return Err(EnrollmentError::Refused { status: status.as_u16(), reason });
    }
    Ok(body)
}
