//! This node's key and certificate, and the cloud's CAs, as files.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

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

/// How connections are made: the same as long as the identity is, since it holds the TLS sessions that are gone on with. One
/// that another identity has begun is none of this one's.
#[derive(Default)]
pub(super) struct Dialing(Mutex<Option<Kept>>);

struct Kept {
    ca: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    tls: Arc<ClientConfig>,
}

impl Dialing {
    pub(super) fn by(&self, identity: Identity, clock: &Arc<Clock>) -> Result<Arc<ClientConfig>, TlsError> {
        let Identity { ca, chain, key } = identity;
        // Replaced as a whole.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.ca == ca && kept.chain == chain) {
            return Ok(Arc::clone(&kept.tls));
        }
        let tls = Arc::new(tls::client_config(&ca, chain.clone(), key, Arc::clone(clock))?);
        *kept = Some(Kept { ca, chain, tls: Arc::clone(&tls) });
        Ok(tls)
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

/// In the place of the CAs that were trusted before: after a power cut it is the one or the other.
pub(super) fn save_authorities(
    paths: &IdentityPaths,
    authorities: &[CertificateDer<'static>],
) -> Result<(), TlsError> {
    let pem: String = authorities.iter().map(|ca| tls::pem("CERTIFICATE", ca)).collect();
    tls::write_durably(&paths.ca, 0o644, pem.as_bytes())
}

/// Which of the CAs the certificate is from, if any. The first of those that are trusted is the one that issues.
pub(super) fn issuer(
    authorities: &[CertificateDer<'static>],
    certificate: &CertificateDer<'_>,
) -> Result<Option<usize>, TlsError> {
    for (number, ca) in authorities.iter().enumerate() {
        if tls::is_issued_by(certificate, ca)? {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// The certificate goes last: without it, what is there counts as no identity.
pub(super) fn save(paths: &IdentityPaths, ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<(), TlsError> {
    tls::write_durably(&paths.ca, 0o644, tls::pem("CERTIFICATE", ca).as_bytes())?;
    tls::write_durably(&paths.key, 0o600, tls::pem("PRIVATE KEY", key).as_bytes())?;
    tls::write_durably(&paths.certificate, 0o644, tls::pem("CERTIFICATE", certificate).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtime::tls::CertificateAuthority;

    use super::*;

    #[test]
    fn tls_sessions_are_those_of_one_identity() {
        let (ca, other) =
            (CertificateAuthority::generate().unwrap(), CertificateAuthority::generate().unwrap());
        let (key, csr) = tls::node_csr("n").unwrap();
        let signed = || CertificateDer::from(ca.sign_node_csr(&csr, "n", Duration::from_hours(1)).unwrap());
        let (first, second) = (signed(), signed());
        let (dialing, clock) = (Dialing::default(), Arc::default());
        let by = |authorities: &[&CertificateAuthority], certificate: &CertificateDer<'static>| {
            let ca = authorities.iter().map(|ca| ca.certificate().clone()).collect();
            let identity = Identity { ca, chain: vec![certificate.clone()], key: tls::pkcs8(key.clone()) };
            dialing.by(identity, &clock).unwrap()
        };
        let tls = by(&[&ca], &first);
        assert!(Arc::ptr_eq(&tls, &by(&[&ca], &first)));
        let renewed = by(&[&ca], &second);
        assert!(!Arc::ptr_eq(&tls, &renewed) && Arc::ptr_eq(&renewed, &by(&[&ca], &second)));
        assert!(!Arc::ptr_eq(&renewed, &by(&[&ca, &other], &second)));
    }
}
