//! Clients that are not of the cluster: as whom a server comes, and whom it lets in.

use std::{path::PathBuf, sync::Arc};

use rustls::{ServerConfig, server::WebPkiClientVerifier};

use super::{Clock, TlsError, provider, read_certificates, read_key, roots};

/// As whom a server comes, and whom it lets in. The files are read for each configuration that is made, so that they may be replaced.
#[derive(Debug, Clone)]
pub struct ServerIdentity {
    /// PEM, with those between it and its CA.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
    /// The CAs of clients' certificates, PEM; without, nobody has to show one.
    pub client_ca_file: Option<PathBuf>,
    /// At whose time certificates are verified.
    pub clock: Arc<Clock>,
}

impl ServerIdentity {
    /// To be connected to with.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(provider());
        let config = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&self.clock) as _)
            .with_safe_default_protocol_versions()?;
        let config = match &self.client_ca_file {
            Some(path) => {
                let roots = roots(&read_certificates(path)?)?;
                if roots.is_empty() {
                    return Err(TlsError::NoRoots(path.display().to_string()));
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                config.with_client_cert_verifier(verifier.build()?)
            }
            None => config.with_no_client_auth(),
        };
        Ok(config.with_single_cert(read_certificates(&self.certificate)?, read_key(&self.key)?)?)
    }
}
