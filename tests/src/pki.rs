//! The certificates of a throwaway cluster: one CA, a serving certificate, a client certificate a component.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A CA whose key lies in the cluster's directory, so that kube-controller-manager can sign with it too.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

/// Where a certificate and its key were written.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// Makes a CA and writes `ca.crt` and `ca.key` into `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test cluster CA");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        fs::write(dir.join("ca.key"), key.serialize_pem())?;
        let issuer = CertifiedIssuer::self_signed(params, key).context("failed to make the CA")?;
        fs::write(dir.join("ca.crt"), issuer.pem())?;
        Ok(Self { issuer, dir: dir.to_owned() })
    }

    pub fn identity(&self) -> Identity {
        Identity { cert: self.dir.join("ca.crt"), key: self.dir.join("ca.key") }
    }

    /// A client certificate for a user and its groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, &user.replace(':', "-"))
    }

    /// A serving certificate for DNS names and addresses.
    pub fn server(&self, name: &str, dns: &[&str], addresses: &[IpAddr]) -> Result<Identity> {
        let names: Vec<String> = dns.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, name)
    }

    fn issue(&self, mut params: CertificateParams, file: &str) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer).with_context(|| format!("failed to issue {file}"))?;
        self.write(file, &cert.pem(), &key)
    }

    fn write(&self, file: &str, cert: &str, key: &KeyPair) -> Result<Identity> {
        let identity = Identity {
            cert: self.dir.join(format!("{file}.crt")),
            key: self.dir.join(format!("{file}.key")),
        };
        fs::write(&identity.cert, cert)?;
        fs::write(&identity.key, key.serialize_pem())?;
        Ok(identity)
    }
}

/// A key pair that is no certificate: what service account tokens are signed with. `cert` is the public key.
pub fn signing_key(dir: &Path, file: &str) -> Result<Identity> {
    let key = KeyPair::generate()?;
    let identity = Identity { cert: dir.join(format!("{file}.pub")), key: dir.join(format!("{file}.key")) };
    fs::write(&identity.cert, key.public_key_pem())?;
    fs::write(&identity.key, key.serialize_pem())?;
    Ok(identity)
}
