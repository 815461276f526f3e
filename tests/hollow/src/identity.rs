//! The nodes' certificates: signed here with the cluster's CA, or by cloudcore for a token.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use edgecore::edgehub::IdentityPaths;
use runtime::tls::{self, CertificateAuthority};

const VALIDITY: Duration = Duration::from_hours(24 * 30);

/// Where the nodes have their certificates from, and where they are kept.
pub struct Identities {
    directory: PathBuf,
    issuer: Issuer,
}

enum Issuer {
    Authority(Box<CertificateAuthority>),
    /// cloudcore, for this token.
    Cloud(String),
}

impl Identities {
    /// The CA signs all of them, for one key: a Node remembers its machine's key, so the directory is to be kept for as
    /// long as the Nodes are.
    pub fn signed(ca: CertificateAuthority, directory: PathBuf) -> Self {
        Self { directory, issuer: Issuer::Authority(Box::new(ca)) }
    }

    /// Each node enrolls for itself.
    pub fn enrolled(token: String, directory: PathBuf) -> Self {
        Self { directory, issuer: Issuer::Cloud(token) }
    }

    pub(crate) fn token(&self) -> &str {
        match &self.issuer {
            Issuer::Authority(_) => "",
            Issuer::Cloud(token) => token,
        }
    }

    pub(crate) fn paths(&self, node: &str) -> IdentityPaths {
        let path = |what: &str| self.directory.join(format!("{node}.{what}"));
        IdentityPaths { ca: path("ca"), certificate: path("crt"), key: path("key") }
    }

    /// Makes what is to be there before the nodes start. Not synced: what a power cut loses is made again.
    pub(crate) fn prepare(&self, nodes: &[String]) -> Result<()> {
        let directory = &self.directory;
        fs::create_dir_all(directory).with_context(|| format!("failed to make {}", directory.display()))?;
        let Issuer::Authority(ca) = &self.issuer else { return Ok(()) };
        let key = key(&directory.join("hollow.der"))?;
        let (ca_pem, key_pem) = (tls::pem("CERTIFICATE", ca.certificate()), tls::pem("PRIVATE KEY", &key));
        for node in nodes {
            let csr = tls::node_csr_for(node, &key)?;
            let certificate = ca.sign_node_csr(&csr, node, VALIDITY)?;
            let paths = self.paths(node);
            write(&paths.ca, ca_pem.as_bytes())?;
            write(&paths.key, key_pem.as_bytes())?;
            write(&paths.certificate, tls::pem("CERTIFICATE", &certificate).as_bytes())?;
        }
        Ok(())
    }
}

/// The key of all nodes.
fn key(path: &Path) -> Result<Vec<u8>> {
    match fs::read(path) {
        Ok(key) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (key, _) = tls::node_csr("hollow")?;
            write(path, &key)?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let open = fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| io::Write::write_all(&mut file, content))
        .with_context(|| format!("failed to write {}", path.display()))
}
