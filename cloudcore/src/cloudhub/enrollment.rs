//! `/edge.crt`: `POST` gets a certificate for a node, for who holds a join token; `GET` says whether it would, before there
//! is a key; `DELETE`, by who holds the certificate, gives the name back.
//!
//! The signing keys are read from the cached Secret at each request, so a rotation counts at once; for that of a CA see
//! [`Enrollment::reload`].

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use crds::componentconfig::is_dns_name;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use kube::Client;
use runtime::{
    tls::{self, Authorities, CsrError},
    token::Grant,
};
use rustls_pki_types::CertificateDer;
use tracing::{info, warn};

use super::{
    holder::{self, NotYours},
    listener::text,
};
use crate::{
    edgecontroller::{api::Failure, index::Index, upstream::Reporter},
    secrets::{self, SecretError},
};

/// A signing request is about 400 bytes.
const MAX_CSR: usize = 64 << 10;

/// Signs nodes' requests.
pub struct Enrollment {
    authorities: RwLock<Arc<Authorities>>,
    client: Client,
    index: Arc<Index>,
    validity: Duration,
}

type Refusal = (StatusCode, String);

impl Enrollment {
    pub fn new(authorities: Authorities, client: Client, index: Arc<Index>, validity: Duration) -> Self {
        Self { authorities: RwLock::new(Arc::new(authorities)), client, index, validity }
    }

    pub fn authorities(&self) -> Arc<Authorities> {
        // Replaced as a whole.
        Arc::clone(&self.authorities.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what the cached Secret says of the CAs; whether that is something else.
    ///
    /// # Errors
    /// It says nothing that can be used: what there was goes on.
    pub fn reload(&self) -> Result<bool, SecretError> {
        let new = secrets::authorities(&self.index)?;
        if new.to_secret() == self.authorities().to_secret() {
            return Ok(false);
        }
        *self.authorities.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(true)
    }

    /// `POST`.
    pub async fn enroll(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        // The token first: a stranger's body is not even read.
        let (node, grant) = match self.authenticate(&parts.headers) {
            Ok(asked) => asked,
            Err((code, reason)) => {
                info!(%code, reason, "enrollment refused");
                return text(code, reason + "\n");
            }
        };
        let csr = match Limited::new(body, MAX_CSR).collect().await {
            Ok(csr) => csr.to_bytes(),
            Err(error) => {
                return text(StatusCode::BAD_REQUEST, format!("failed to read the request: {error}\n"));
            }
        };
        match self.issue(&node, &grant, &csr).await {
            Ok(certificate) => {
                info!(node, "node enrolled");
                text(StatusCode::OK, certificate)
            }
            Err((code, reason)) => {
                warn!(node, %code, reason, "enrollment refused");
                text(code, reason + "\n")
            }
        }
    }

    async fn issue(&self, node: &str, grant: &Grant, csr: &[u8]) -> Result<Vec<u8>, Refusal> {
        let authorities = self.authorities();
        let signed = authorities.issuer().sign_node_csr(csr, node, self.validity);
        let certificate = signed.map_err(|error| {
            let code = match error {
                CsrError::Malformed(_) | CsrError::Forbidden { .. } => StatusCode::BAD_REQUEST,
                CsrError::Issue(_) | CsrError::Randomness | CsrError::OtherKey | CsrError::Name => {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            };
            (code, runtime::chain(&error).to_string())
        })?;
        let key_hash = tls::key_hash(&CertificateDer::from(certificate.as_slice()))
            .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, runtime::chain(&error).to_string()))?;
        settle(holder::claim(&self.client, node, &key_hash, grant).await)?;
        Ok(certificate)
    }

    /// A new certificate for the machine that a session was opened by, whose name and key are not in question.
    ///
    /// # Errors
    /// What the edge is told.
    pub fn renew(&self, machine: &Reporter, csr: &[u8]) -> Result<Vec<u8>, String> {
        let Reporter { node, key_hash } = machine;
        let signed = self.authorities().issuer().sign_node_csr(csr, node, self.validity);
        let certificate = signed.map_err(|error| runtime::chain(&error).to_string())?;
        let hash = tls::key_hash(&CertificateDer::from(certificate.as_slice()));
        match hash {
            Ok(hash) if *hash == **key_hash => {
                info!(node = &**node, "certificate renewed");
                Ok(certificate)
            }
            Ok(_) => Err("the request is for another key than that of the session".to_owned()),
            Err(error) => Err(runtime::chain(&error).to_string()),
        }
    }

    /// `GET`: the answer to a `POST` with these headers, but for the certificate.
    pub async fn check(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let checked = async {
            let (node, grant) = self.authenticate(headers)?;
            settle(holder::check_name(&self.client, &node, &grant).await)?;
            Ok::<_, Refusal>(format!("{node} may join\n"))
        };
        match checked.await {
            Ok(welcome) => text(StatusCode::OK, welcome),
            Err((code, reason)) => text(code, reason + "\n"),
        }
    }

    /// `DELETE`, by the machine whose key this is.
    pub async fn release(&self, node: &str, key_hash: &str) -> Response<Full<Bytes>> {
        match holder::release(&self.client, node, key_hash).await {
            Ok(was_held) => {
                info!(node, was_held, "node has left");
                text(StatusCode::OK, "released\n")
            }
            Err(failure) => {
                let (code, reason) = unavailable(&failure);
                text(code, reason + "\n")
            }
        }
    }

    /// The node for which a holder of a valid token asks.
    fn authenticate(&self, headers: &HeaderMap) -> Result<(String, Grant), Refusal> {
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let unauthorized = |reason: &str| (StatusCode::UNAUTHORIZED, reason.to_owned());
        let bearer = value(header::AUTHORIZATION.as_str())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| unauthorized("no token"))?;
        let keys = secrets::signing_keys(&self.index).ok_or_else(|| {
            let reason = "cloudcore has no token signing keys yet; try again, or look at its log";
            (StatusCode::SERVICE_UNAVAILABLE, reason.to_owned())
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let grant = keys.verify(bearer.trim(), now).map_err(|error| unauthorized(&error.to_string()))?;
        let node = value("NodeName").unwrap_or_default();
        if !is_dns_name(node) {
            return Err((StatusCode::BAD_REQUEST, "header NodeName holds no valid node name".to_owned()));
        }
        Ok((node.to_owned(), grant))
    }
}

fn settle(outcome: Result<Result<(), NotYours>, Failure>) -> Result<(), Refusal> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(not_yours)) => Err((StatusCode::FORBIDDEN, not_yours.to_string())),
        Err(failure) => Err(unavailable(&failure)),
    }
}

fn unavailable(failure: &Failure) -> Refusal {
    let reason = format!("cloudcore cannot ask the API server now; try again: {}", runtime::chain(failure));
    (StatusCode::SERVICE_UNAVAILABLE, reason)
}
