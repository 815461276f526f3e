//! `POST /edge.crt`: a certificate for a node, for who holds a join token.
//!
//! The signing keys are read from the cached Secret at each request, so a rotation counts at once.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use crds::componentconfig::is_dns_name;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use runtime::tls::{CertificateAuthority, CsrError};
use tracing::{info, warn};

use super::listener::text;
use crate::{edgecontroller::index::Index, secrets};

/// A signing request is about 400 bytes.
const MAX_CSR: usize = 64 << 10;

/// Signs nodes' requests.
pub struct Enrollment {
    ca: CertificateAuthority,
    index: Arc<Index>,
    validity: Duration,
}

type Refusal = (StatusCode, String);

impl Enrollment {
    pub fn new(ca: CertificateAuthority, index: Arc<Index>, validity: Duration) -> Self {
        Self { ca, index, validity }
    }

    pub fn ca(&self) -> &CertificateAuthority {
        &self.ca
    }

    pub async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        // The token first: a stranger's body is not even read.
        let node = match self.authenticate(&parts.headers) {
            Ok(node) => node,
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
        match self.ca.sign_node_csr(&csr, &node, self.validity) {
            Ok(certificate) => {
                info!(node, "node enrolled");
                text(StatusCode::OK, certificate)
            }
            Err(error) => {
                let code = match error {
                    CsrError::Malformed(_) | CsrError::Forbidden { .. } => StatusCode::BAD_REQUEST,
                    CsrError::Issue(_) | CsrError::Randomness => StatusCode::INTERNAL_SERVER_ERROR,
                };
                warn!(node, error = %runtime::chain(&error), "certificate signing request refused");
                text(code, format!("{}\n", runtime::chain(&error)))
            }
        }
    }

    /// The node for which a holder of a valid token asks.
    fn authenticate(&self, headers: &HeaderMap) -> Result<String, Refusal> {
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
        keys.verify(bearer.trim(), now).map_err(|error| unauthorized(&error.to_string()))?;
        let node = value("NodeName").unwrap_or_default();
        if !is_dns_name(node) {
            return Err((StatusCode::BAD_REQUEST, "header NodeName holds no valid node name".to_owned()));
        }
        Ok(node.to_owned())
    }
}
