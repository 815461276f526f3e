//! Client certificates that have expired while their machine was away are taken for a while longer: nobody is to drive to a
//! site for a date. Whether their machine is still the node is asked elsewhere.

use std::{sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::validity;

/// Everything but the date is left to the verifier within.
#[derive(Debug)]
pub(super) struct Verifier {
    within: Arc<dyn ClientCertVerifier>,
    grace: Duration,
}

impl Verifier {
    pub(super) fn new(within: Arc<dyn ClientCertVerifier>, grace: Duration) -> Self {
        Self { within, grace }
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.within.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.within.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.within.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.within.verify_client_cert(end_entity, intermediates, now);
        let Err(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) = &verified
        else {
            return verified;
        };
        let ended = validity(end_entity).ok().and_then(|(_, ended)| u64::try_from(ended).ok());
        let Some(ended) = ended.map(Duration::from_secs) else { return verified };
        if now.as_secs() > ended.saturating_add(self.grace).as_secs() {
            return verified;
        }
        // As on its last day.
        self.within.verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(ended))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.within.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.within.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.within.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::{RootCertStore, server::WebPkiClientVerifier};

    use super::*;
    use crate::tls::{CertificateAuthority, install_provider, node_csr};

    #[test]
    fn a_certificate_gets_in_until_the_grace_is_over_and_no_other_does() {
        install_provider();
        let hour = Duration::from_hours(1);
        let (ca, other) =
            (CertificateAuthority::generate().unwrap(), CertificateAuthority::generate().unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let verifier = Verifier::new(verifier, 2 * hour);
        let (_, csr) = node_csr("n").unwrap();
        let signed_by =
            |ca: &CertificateAuthority| CertificateDer::from(ca.sign_node_csr(&csr, "n", hour).unwrap());
        let (own, foreign) = (signed_by(&ca), signed_by(&other));
        let ends = Duration::from_secs(validity(&own).unwrap().1.try_into().unwrap());
        let takes = |certificate: &CertificateDer<'_>, at: Duration| {
            verifier.verify_client_cert(certificate, &[], UnixTime::since_unix_epoch(at)).is_ok()
        };
        assert!(takes(&own, ends) && takes(&own, ends + hour) && takes(&own, ends + 2 * hour));
        assert!(!takes(&own, ends + 2 * hour + Duration::from_secs(1)));
        // Not before it begins, either.
        assert!(!takes(&own, ends.checked_sub(3 * hour).unwrap()));
        assert!(!takes(&foreign, ends) && !takes(&foreign, ends + hour));
    }
}
