//! Servers that are not of the cluster: whom a client believes there, and as whom it comes.

use std::{path::PathBuf, sync::Arc};

use rustls::{ClientConfig, RootCertStore};

use super::{Clock, TlsError, provider, read_certificates, read_key};

/// Whom a client believes, and as whom it comes. The files are read for each configuration that is made, so that they may be replaced,
/// and that one which cannot be read keeps nothing from starting.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// The CAs of servers' certificates, PEM; without one, those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key, PEM, for servers that ask for them.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// At whose time certificates are verified.
    pub clock: Arc<Clock>,
}

impl Trust {
    /// To connect with.
    pub fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        let from = if let Some(path) = &self.ca_file {
            for ca in read_certificates(path)? {
                roots.add(ca)?;
            }
            path.display().to_string()
        } else {
            // There are systems with one that nobody can read, beside those that count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            "what the system trusts".to_owned()
        };
        if roots.is_empty() {
            return Err(TlsError::NoRoots(from));
        }
        let config = ClientConfig::builder_with_details(Arc::new(provider()), Arc::clone(&self.clock) as _)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(match &self.identity {
            Some((certificate, key)) => {
                config.with_client_auth_cert(read_certificates(certificate)?, read_key(key)?)?
            }
            None => config.with_no_client_auth(),
        })
    }
}
