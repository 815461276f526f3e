//! Who somebody says to be: tokens, signing requests, certificates, the files with them.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::OnceLock, time::Duration};

use runtime::{
    tls::{self, CertificateAuthority},
    token::{SigningKeys, Token},
};
use rustls_pki_types::CertificateDer;

const NODE: &str = "edge-1";
const HOUR: Duration = Duration::from_hours(1);
const NOW: u64 = 1_790_000_000;

fn ca() -> &'static CertificateAuthority {
    static CA: OnceLock<CertificateAuthority> = OnceLock::new();
    CA.get_or_init(|| CertificateAuthority::generate().unwrap())
}

fn keys() -> &'static SigningKeys {
    static KEYS: OnceLock<SigningKeys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let data = BTreeMap::from([("key-000000000001-00000000".to_owned(), vec![7; 32])]);
        SigningKeys::from_secret(&data).unwrap()
    })
}

pub(crate) fn tokens() -> Vec<Vec<u8>> {
    [None, Some(NODE)].map(|node| keys().sign_for(node, b"ca", HOUR, NOW).unwrap().into_bytes()).into()
}

pub(crate) fn token(bytes: &[u8]) {
    static SIGNED: OnceLock<SigningKeys> = OnceLock::new();
    let text = String::from_utf8_lossy(bytes);
    if let Ok(token) = Token::parse(&text) {
        assert!(text.contains(&token.bearer));
        // Nobody has signed anything with these.
        let foreign = SIGNED.get_or_init(|| SigningKeys::generate(NOW).unwrap());
        assert!(foreign.verify(&token.bearer, NOW).is_err());
        if let Ok(grant) = keys().verify(&token.bearer, NOW) {
            assert_eq!(grant.node, token.node);
            assert!(keys().verify(&token.bearer, token.expires).is_err(), "it does not expire");
        }
    }
    let secret = BTreeMap::from([("key-1".to_owned(), bytes.to_vec()), (text.into_owned(), bytes.to_vec())]);
    drop(SigningKeys::from_secret(&secret));
}

pub(crate) fn csrs() -> Vec<Vec<u8>> {
    [NODE, "edge-2"].map(|node| tls::node_csr(node).unwrap().1).into()
}

pub(crate) fn csr(bytes: &[u8]) {
    if let Ok(certificate) = ca().sign_node_csr(bytes, NODE, HOUR) {
        let certificate = CertificateDer::from(certificate);
        assert_eq!(tls::node_of(&certificate).as_deref(), Some(NODE));
        let (from, to) = tls::validity(&certificate).unwrap();
        assert!(to - from <= 3 * 3600);
    }
}

pub(crate) fn certificates() -> Vec<Vec<u8>> {
    let (_, csr) = tls::node_csr(NODE).unwrap();
    vec![ca().sign_node_csr(&csr, NODE, HOUR).unwrap(), ca().certificate().to_vec()]
}

pub(crate) fn certificate(bytes: &[u8]) {
    let certificate = CertificateDer::from(bytes);
    if let Some(node) = tls::node_of(&certificate) {
        assert!(!node.is_empty());
        tls::key_hash(&certificate).unwrap();
        tls::validity(&certificate).unwrap();
    }
    drop(CertificateAuthority::from_der(bytes.to_vec(), ca().key_der().to_vec()));
    drop(CertificateAuthority::from_der(ca().certificate().to_vec(), bytes.to_vec()));
}

pub(crate) fn identities() -> Vec<Vec<u8>> {
    let certificate = tls::pem("CERTIFICATE", &certificates()[0]).into_bytes();
    let key = tls::pem("PRIVATE KEY", ca().key_der()).into_bytes();
    vec![certificate.clone(), key.clone(), [certificate, key].concat()]
}

/// Any file in the place of a certificate and its key.
pub(crate) fn files(bytes: &[u8]) {
    let path = scratch("identity");
    fs::write(&path, bytes).unwrap();
    let chain = tls::read_certificates(&path).unwrap_or_default();
    for certificate in &chain {
        drop(tls::node_of(certificate));
    }
    if let Ok(key) = tls::read_key(&path) {
        let roots = [ca().certificate().clone()];
        drop(tls::client_config(&roots, chain, key, std::sync::Arc::default()));
    }
}

/// A file of this thread's own, in memory where there is such a place.
pub(crate) fn scratch(name: &str) -> PathBuf {
    thread_local! {
        static DIRECTORY: tempfile::TempDir = {
            let shm = std::path::Path::new("/dev/shm");
            if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap()
        };
    }
    DIRECTORY.with(|directory| directory.path().join(name))
}
