//! The cluster's CA: it signs cloudcore's server certificate and the nodes' client certificates.

use std::{fmt, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::{
    asn1_rs::Tag,
    prelude::{FromDer, X509Certificate},
};

use super::{NODE_CN, NODES_ORGANIZATION, pkcs8, validity};

/// The CA's own name: what has another is no cloudcore's.
pub(super) const CA_NAME: &str = "Skerry";
const DAY: Duration = Duration::from_hours(24);
/// As KubeEdge's: rotating a CA is an operation of its own, never forced by a date.
const CA_VALIDITY: Duration = DAY.saturating_mul(36_500);
/// Issued anew at each start of cloudcore and kept in memory only. Valid from the CA's beginning: the newest time that an edge
/// without a clock remembers may lie before the last start of cloudcore.
const SERVER_VALIDITY: Duration = DAY.saturating_mul(365);
/// Certificates are valid from an hour ago, for nodes whose clock is a little behind.
const BACKDATE: Duration = Duration::from_hours(1);

/// Why a certificate signing request is refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    #[error("certificate signing request is malformed or its signature is wrong")]
    Malformed(#[source] rcgen::Error),
    #[error(
        "certificate signing request asks for {field} {asked:?}, only {allowed:?} is allowed for this node"
    )]
    Forbidden { field: &'static str, asked: String, allowed: String },
    #[error("failed to issue a certificate")]
    Issue(#[source] rcgen::Error),
    #[error("the key is not that of the CA's certificate")]
    OtherKey,
    #[error("the CA's name cannot be written as it is in its certificate")]
    Name,
    #[error("no randomness from the system")]
    Randomness,
}

pub struct CertificateAuthority {
    certificate: CertificateDer<'static>,
    key_der: Vec<u8>,
    begins: OffsetDateTime,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    pub fn generate() -> Result<Self, CsrError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CsrError::Issue)?;
        Self::self_signed(&ca_params(&key)?, &key)
    }

    /// The CA that is to take this one's place, and the same as a certificate that this one has signed: with it in the chain,
    /// who trusts this one alone takes what the other has issued.
    ///
    /// It begins when this one did: as with a server's certificate, the site may have been away since then.
    pub fn successor(&self) -> Result<(Self, CertificateDer<'static>), CsrError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CsrError::Issue)?;
        let mut params = ca_params(&key)?;
        params.not_before = self.begins;
        let successor = Self::self_signed(&params, &key)?;
        let cross = self.cross(&successor)?;
        Ok((successor, cross))
    }

    /// The other CA's certificate, signed by this one.
    pub fn cross(&self, other: &Self) -> Result<CertificateDer<'static>, CsrError> {
        let mut params = ca_params(other.issuer.key())?;
        params.distinguished_name = subject(&other.certificate)?;
        params.not_before = other.begins;
        // It signs end entities alone.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let cross = params.signed_by(other.issuer.key(), &self.issuer).map_err(CsrError::Issue)?;
        Ok(cross.der().clone())
    }

    fn self_signed(params: &CertificateParams, key: &KeyPair) -> Result<Self, CsrError> {
        let certificate = params.self_signed(key).map_err(CsrError::Issue)?.der().clone();
        Self::from_der(certificate.to_vec(), key.serialize_der())
    }

    /// The certificate's DER and the key's PKCS#8 DER.
    pub fn from_der(certificate: Vec<u8>, key: Vec<u8>) -> Result<Self, CsrError> {
        let certificate = CertificateDer::from(certificate);
        let pair = KeyPair::try_from(key.as_slice()).map_err(CsrError::Malformed)?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| CsrError::Malformed(rcgen::Error::CouldNotParseCertificate))?;
        if *parsed.public_key().subject_public_key.data != *pair.public_key_raw() {
            return Err(CsrError::OtherKey);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, pair).map_err(CsrError::Malformed)?;
        // What rcgen has read has a date.
        let begins = validity(&certificate).map_or(0, |(begins, _)| begins);
        let begins = OffsetDateTime::from_unix_timestamp(begins).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Ok(Self { certificate, key_der: key, begins, issuer })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// PKCS#8 DER, to be kept in a Secret.
    pub fn key_der(&self) -> &[u8] {
        &self.key_der
    }

    /// Signs a node's CSR. Whatever it asks for beyond the client certificate of this very node is refused, and only its
    /// public key is taken over.
    pub fn sign_node_csr(&self, csr_der: &[u8], node: &str, validity: Duration) -> Result<Vec<u8>, CsrError> {
        let csr = CertificateSigningRequestParams::from_der(&csr_der.into()).map_err(CsrError::Malformed)?;
        check(&csr.params, node)?;
        let mut params = params(&format!("{NODE_CN}{node}"), Some(NODES_ORGANIZATION), validity)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&csr.public_key, &self.issuer).map_err(CsrError::Issue)?;
        Ok(certificate.der().to_vec())
    }

    /// A server certificate for these DNS names and IP addresses, with its chain up to and including the CA: a client that
    /// only knows the CA's hash finds it there.
    pub fn issue_server(
        &self,
        names: &[String],
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CsrError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CsrError::Issue)?;
        let sans = CertificateParams::new(names.to_vec()).map_err(CsrError::Issue)?.subject_alt_names;
        let mut params = params("cloudcore", Some(CA_NAME), SERVER_VALIDITY)?;
        params.not_before = self.begins;
        params.subject_alt_names = sans;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(CsrError::Issue)?;
        Ok((vec![certificate.der().clone(), self.certificate.clone()], pkcs8(key.serialize_der())))
    }
}

/// A new key and the CSR for a node's client certificate: PKCS#8 DER and PKCS#10 DER.
pub fn node_csr(node: &str) -> Result<(Vec<u8>, Vec<u8>), CsrError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CsrError::Issue)?;
    let csr = node_csr_with_key(node, &key)?;
    Ok((key.serialize_der(), csr))
}

/// A CSR as [`node_csr`] makes it, for a key that is there: PKCS#8 DER.
pub fn node_csr_for(node: &str, key: &[u8]) -> Result<Vec<u8>, CsrError> {
    node_csr_with_key(node, &KeyPair::try_from(key).map_err(CsrError::Malformed)?)
}

fn node_csr_with_key(node: &str, key: &KeyPair) -> Result<Vec<u8>, CsrError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&format!("{NODE_CN}{node}"), Some(NODES_ORGANIZATION));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params.serialize_request(key).map_err(CsrError::Issue)?.der().to_vec())
}

fn check(asked: &CertificateParams, node: &str) -> Result<(), CsrError> {
    let forbidden = |field, asked: String, allowed: &str| {
        Err(CsrError::Forbidden { field, asked, allowed: allowed.to_owned() })
    };
    let allowed = name(&format!("{NODE_CN}{node}"), Some(NODES_ORGANIZATION));
    for part in [DnType::CommonName, DnType::OrganizationName] {
        let (wanted, got) = (text(&allowed, &part), text(&asked.distinguished_name, &part));
        if wanted != got {
            return forbidden("subject", got, &wanted);
        }
    }
    if !asked.subject_alt_names.is_empty() {
        return forbidden("subject alternative names", format!("{:?}", asked.subject_alt_names), "none");
    }
    if asked.extended_key_usages.iter().any(|usage| *usage != ExtendedKeyUsagePurpose::ClientAuth) {
        return forbidden("usages", format!("{:?}", asked.extended_key_usages), "client auth");
    }
    let ca_usage = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if asked.key_usages.iter().any(|usage| ca_usage.contains(usage)) || matches!(asked.is_ca, IsCa::Ca(_)) {
        return forbidden("usages", "certificate authority".to_owned(), "client auth");
    }
    Ok(())
}

fn text(name: &DistinguishedName, part: &DnType) -> String {
    use rcgen::DnValue;
    match name.get(part) {
        Some(DnValue::Utf8String(text)) => text.clone(),
        Some(DnValue::PrintableString(text)) => text.as_str().to_owned(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common);
    name
}

/// The CA's name, which is to be the same to the byte in what another CA signs.
fn subject(ca: &CertificateDer<'_>) -> Result<DistinguishedName, CsrError> {
    let (_, parsed) = X509Certificate::from_der(ca).map_err(|_| CsrError::Name)?;
    let mut name = DistinguishedName::new();
    for part in parsed.subject().iter_attributes() {
        let kind: Vec<u64> = part.attr_type().iter().ok_or(CsrError::Name)?.collect();
        let text = part.as_str().map_err(|_| CsrError::Name)?;
        let value = match part.attr_value().tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(CsrError::Issue)?),
            _ => return Err(CsrError::Name),
        };
        name.push(DnType::from_oid(&kind), value);
    }
    Ok(name)
}

/// No two CAs have the same name: of which one a certificate is says the certificate, and no key is tried in vain.
fn ca_params(key: &KeyPair) -> Result<CertificateParams, CsrError> {
    let mut params = params(CA_NAME, None, CA_VALIDITY)?;
    let unit = crate::token::hex(&Sha256::digest(key.public_key_raw())[..4]);
    params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
    // The next one is signed by this one while they overlap.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn serial() -> Result<SerialNumber, CsrError> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| CsrError::Randomness)?;
    // RFC 5280: positive, at most 20 bytes.
    serial[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&serial))
}

fn params(
    common: &str,
    organization: Option<&str>,
    validity: Duration,
) -> Result<CertificateParams, CsrError> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common, organization);
    params.serial_number = Some(serial()?);
    params.not_before = now - BACKDATE;
    params.not_after = now + validity;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{key_hash, node_of, validity};

    #[test]
    fn a_node_gets_its_own_certificate_and_no_other() {
        let ca = CertificateAuthority::generate().unwrap();
        let ca = CertificateAuthority::from_der(ca.certificate().to_vec(), ca.key_der().to_vec()).unwrap();
        let (_, csr) = node_csr("edge-1").unwrap();
        let certificate = CertificateDer::from(ca.sign_node_csr(&csr, "edge-1", DAY).unwrap());
        assert_eq!(node_of(&certificate).as_deref(), Some("edge-1"));
        let (from, to) = validity(&certificate).unwrap();
        assert_eq!(to - from, 86_400 + 3600);
        let renewed = CertificateDer::from(ca.sign_node_csr(&csr, "edge-1", DAY).unwrap());
        assert_eq!(key_hash(&certificate).unwrap(), key_hash(&renewed).unwrap());
        assert_ne!(key_hash(&certificate).unwrap(), key_hash(ca.certificate()).unwrap());
        let (chain, _) = ca.issue_server(&["cloud".to_owned()]).unwrap();
        assert_eq!(validity(&chain[0]).unwrap().0, validity(ca.certificate()).unwrap().0);
        let error = ca.sign_node_csr(&csr, "edge-2", DAY).unwrap_err();
        assert!(matches!(error, CsrError::Forbidden { field: "subject", .. }), "{error}");
        assert!(matches!(ca.sign_node_csr(b"garbage", "edge-1", DAY), Err(CsrError::Malformed(_))));
    }

    #[test]
    fn other_usages_and_names_are_refused() {
        let ca = CertificateAuthority::generate().unwrap();
        let key = KeyPair::generate().unwrap();
        let sign = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = CertificateParams::default();
            params.distinguished_name = name("system:node:n", Some(NODES_ORGANIZATION));
            change(&mut params);
            ca.sign_node_csr(params.serialize_request(&key).unwrap().der(), "n", DAY)
        };
        assert!(sign(&|_| {}).is_ok());
        let changes: [&dyn Fn(&mut CertificateParams); 4] = [
            &|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            &|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign],
            &|params| {
                params.subject_alt_names =
                    CertificateParams::new(vec!["cloud".to_owned()]).unwrap().subject_alt_names;
            },
            &|params| params.distinguished_name = name("system:node:n", Some("system:masters")),
        ];
        for change in changes {
            assert!(matches!(sign(change), Err(CsrError::Forbidden { .. })));
        }
    }
}
