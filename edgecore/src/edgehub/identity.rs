//! This node's key and certificate, and the cloud's CA, as files.

use std::{path::PathBuf, sync::Arc};

use runtime::tls::{self, Clock, TlsError};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tracing::warn;

#[derive(Debug, Clone)]
pub struct IdentityPaths {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub(super) struct Identity {
    pub(super) ca: Vec<CertificateDer<'static>>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Identity {
    pub(super) fn client_config(self, clock: &Arc<Clock>) -> Result<ClientConfig, TlsError> {
        tls::client_config(&self.ca, self.chain, self.key, Arc::clone(clock))
    }
}

/// The identity on disk, unless there is none yet or it is that of another node.
pub(super) fn load(paths: &IdentityPaths, node: &str) -> Result<Option<Identity>, TlsError> {
    if ![&paths.ca, &paths.certificate, &paths.key].iter().all(|path| path.exists()) {
        return Ok(None);
    }
    let chain = tls::read_certificates(&paths.certificate)?;
    let holder = chain.first().and_then(tls::node_of);
    if holder.as_deref() != Some(node) {
        warn!(node, ?holder, "the certificate on disk is not this node's; enrolling anew");
        return Ok(None);
    }
    let (ca, key) = (tls::read_certificates(&paths.ca)?, tls::read_key(&paths.key)?);
    Ok(Some(Identity { ca, chain, key }))
}

/// The certificate goes last: without it, what is there counts as no identity.
pub(super) fn save(paths: &IdentityPaths, ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<(), TlsError> {
    tls::write_durably(&paths.ca, 0o644, tls::pem("CERTIFICATE", ca).as_bytes())?;
    tls::write_durably(&paths.key, 0o600, tls::pem("PRIVATE KEY", key).as_bytes())?;
    tls::write_durably(&paths.certificate, 0o644, tls::pem("CERTIFICATE", certificate).as_bytes())
}
