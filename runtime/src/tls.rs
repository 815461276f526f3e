//! Identity on the link: the cluster's own CA, the certificates that it issues, and the TLS configurations of both ends.
//!
//! A node's client certificate is `CN=system:node:<name>, O=system:nodes`, as for a kubelet. TLS 1.2 and 1.3, ring only.

use std::{io, path::Path, sync::Arc, time::Duration};

use rustls::{
    CipherSuite, ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

pub mod authorities;
pub mod authority;
mod clock;
mod grace;
mod identity;
pub mod pin;
mod tickets;
mod trust;

pub use authorities::Authorities;
pub use authority::{CertificateAuthority, CsrError, node_csr, node_csr_for};
pub use clock::Clock;
pub use identity::ServerIdentity;
pub use pin::{PinError, pinned_client_config};
pub use trust::Trust;

/// Prefix of a node's common name.
pub const NODE_CN: &str = "system:node:";
/// Of a client; those of a server take eight of them.
const SESSIONS: usize = 32;
/// A node's organization.
pub const NODES_ORGANIZATION: &str = "system:nodes";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to read {path}")]
    Read {
        path: String,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("failed to write {path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("certificate or key is not usable")]
    Rustls(#[from] rustls::Error),
    #[error("CA certificate is not usable to verify clients")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("{0} holds no certificate")]
    NoRoots(String),
    #[error("certificate is no CA's")]
    NoAuthority,
    #[error("certificate is malformed")]
    Certificate(#[source] x509_parser::nom::Err<x509_parser::error::X509Error>),
}

/// Makes ring the process's cryptography. To be called first in each `main`; a second call does nothing.
pub fn install_provider() {
    // It fails only when a provider is installed already.
    drop(provider().install_default());
}

/// ring, with AES-128 and SHA-256 first (RFC 8446, 9.1: what everybody has): SHA-384, which comes with AES-256, is all that a
/// resumed handshake spends on its keys beside the exchange, and few CPUs have instructions for it.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// cloudcore's side: a client certificate is asked for and, if one comes, verified against the CA. Enrolment has none yet,
/// so what needs one checks for it; so does what does not take one that has expired, less than `grace` ago.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ca: &[CertificateDer<'static>],
    grace: Duration,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(ca)?)).allow_unauthenticated().build()?;
    let verifier = Arc::new(grace::Verifier::new(verifier, grace));
    Ok(ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?)
}

/// Has clients go on with earlier sessions, at any server with the same `secret`.
#[must_use]
pub fn resumable(mut config: ServerConfig, secret: &[u8]) -> ServerConfig {
    config.ticketer = Arc::new(tickets::Tickets::new(secret));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // As long as the certificates that it saves; a client dials once, mostly.
    config.send_tls13_tickets = 1;
    config
}

/// edgecore's side, once it has a certificate. Sessions are gone on with by whoever has this very configuration.
pub fn client_config(
    ca: &[CertificateDer<'static>],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clock: Arc<Clock>,
) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(provider());
    let config = ClientConfig::builder_with_details(provider, clock).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots(ca)?).with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

fn roots(ca: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in ca {
        roots.add(certificate.clone())?;
    }
    Ok(roots)
}

/// The node that a verified client certificate belongs to; `None` when it is not a node's.
pub fn node_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let mut organizations = subject.iter_organization().filter_map(|name| name.as_str().ok());
    if !organizations.any(|name| name == NODES_ORGANIZATION) {
        return None;
    }
    let mut names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
    let (name, None) = (names.next()?, names.next()) else { return None };
    name.strip_prefix(NODE_CN).filter(|node| !node.is_empty()).map(str::to_owned)
}

/// Who a client certificate is for, as the API server reads it: the common name is the user, organizations are its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub name: String,
    pub groups: Vec<String>,
}

/// `None` for one that names nobody.
pub fn subject_of(certificate: &CertificateDer<'_>) -> Option<Subject> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().find_map(|name| name.as_str().ok())?.to_owned();
    let groups = subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned);
    Some(Subject { name, groups: groups.collect() }).filter(|subject| !subject.name.is_empty())
}

/// The SHA-256 of the certificate's public key, in hexadecimal: the same in each certificate of one key.
pub fn key_hash(certificate: &CertificateDer<'_>) -> Result<String, TlsError> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(TlsError::Certificate)?;
    Ok(crate::token::hex(&Sha256::digest(certificate.public_key().raw)))
}

/// By what a CA is known in short: the first eight bytes of its certificate's SHA-256.
pub fn authority_id(ca: &CertificateDer<'_>) -> u64 {
    let hash = Sha256::digest(ca);
    u64::from_be_bytes(*hash.first_chunk().expect("a SHA-256 has 32 bytes"))
}

/// Whether the certificate says that it is from this CA. That it is, its signature says.
pub fn is_issued_by(certificate: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> Result<bool, TlsError> {
    let parse = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(TlsError::Certificate);
    let (certificate, ca) = (parse(certificate)?, parse(ca)?);
    let issuer = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(issuer) => issuer.key_identifier.as_ref(),
        _ => None,
    });
    let subject = ca.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(subject) => Some(subject),
        _ => None,
    });
    Ok(certificate.issuer() == ca.subject() && issuer == subject)
}

/// Whether this can be trusted as a CA.
pub fn check_authority(ca: &CertificateDer<'static>) -> Result<(), TlsError> {
    let (_, parsed) = X509Certificate::from_der(ca).map_err(TlsError::Certificate)?;
    if !parsed.is_ca() {
        return Err(TlsError::NoAuthority);
    }
    roots(std::slice::from_ref(ca)).map(drop)
}

/// Not before and not after, in seconds since 1970.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), TlsError> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(TlsError::Certificate)?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| TlsError::Read { path: path.display().to_string(), source })
}

pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|source| TlsError::Read { path: path.display().to_string(), source })
}

/// A PKCS#8 key from its DER.
pub fn pkcs8(der: Vec<u8>) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der))
}

/// Writes a file so that a power cut leaves the old one or the new one: write, sync, rename, sync the directory.
pub fn write_durably(path: &Path, mode: u32, content: &[u8]) -> Result<(), TlsError> {
    use std::{fs, io::Write, os::unix::fs::OpenOptionsExt};
    let write = || -> io::Result<()> {
        let parent = path.parent().ok_or_else(|| io::Error::other("path has no parent"))?;
        fs::create_dir_all(parent)?;
        let mut new = path.to_owned();
        new.add_extension("new");
        // What a power cut has left there may have another mode, which opening it would keep.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        fs::File::open(parent)?.sync_all()
    };
    write().map_err(|source| TlsError::Write { path: path.display().to_string(), source })
}

/// PEM text of one block.
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::prelude::BASE64_STANDARD.encode(der);
    let mut lines = vec![format!("-----BEGIN {label}-----")];
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        lines.push(line.to_owned());
        rest = tail;
    }
    lines.push(format!("-----END {label}-----\n"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_key_is_for_its_owner_whatever_was_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("server.key");
        for left in ["server.key.new", "server.new"] {
            fs::write(dir.path().join(left), "half of a certificate").unwrap();
        }
        write_durably(&key, 0o600, b"secret").unwrap();
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&key).unwrap(), b"secret");
    }
}
