//! The first contact: all that a joining node knows of the cloud is the SHA-256 of its CA's certificate. The server sends
//! that certificate in its chain; it counts as the root if its hash is right, and then everything is verified as usual.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::CA_NAME;

/// Why a server was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    #[error(
        "the server's CA does not match the pin in the token: it is the cloudcore of another cluster, or its CA was rotated \
         since the token was made; get a new one from the right cluster with `keadm gettoken`"
    )]
    OtherCa,
    #[error(
        "the server's certificate is no cloudcore's: something else answers there, or somebody is in between"
    )]
    NotCloudcore,
}

impl PinError {
    /// What the server's certificates say, none of which is the one that the token names.
    fn of(chain: &[CertificateDer<'_>]) -> Self {
        let is_ours = chain.iter().any(|certificate| {
            X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| {
                certificate.subject().iter_common_name().any(|name| name.as_str() == Ok(CA_NAME))
            })
        });
        if is_ours { Self::OtherCa } else { Self::NotCloudcore }
    }
}

/// A client configuration that trusts just the CA with this hash, and hands that CA's certificate out once it has been seen
/// and verified.
pub fn pinned_client_config(ca_hash: [u8; 32]) -> Result<(ClientConfig, PinnedCa), Error> {
    let provider = Arc::new(super::provider());
    let found = PinnedCa::default();
    let verifier = Verifier { ca_hash, provider: Arc::clone(&provider), found: found.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok((config, found))
}

/// The CA certificate, once a handshake has succeeded.
#[derive(Clone, Debug, Default)]
pub struct PinnedCa(Arc<Mutex<Option<CertificateDer<'static>>>>);

impl PinnedCa {
    pub fn get(&self) -> Option<CertificateDer<'static>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Debug)]
struct Verifier {
    ca_hash: [u8; 32],
    provider: Arc<CryptoProvider>,
    found: PinnedCa,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned =
            |certificate: &&CertificateDer<'_>| <[u8; 32]>::from(Sha256::digest(certificate)) == self.ca_hash;
        // Not as a fault of the certificate: such a one is shown in the notation of Rust.
        let other = || Error::Other(rustls::OtherError(Arc::new(PinError::of(intermediates))));
        let ca = intermediates.iter().find(pinned).ok_or_else(other)?.clone().into_owned();
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let verified =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|error| Error::General(error.to_string()))?
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        *self.found.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ca);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
