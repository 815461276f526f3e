//! The nodes' certificates: signed here with the cluster's CA, or by cloudcore for a token. They are renewed as an edge's are.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use edgecore::edgehub::IdentityPaths;
use runtime::tls::{self, Authorities};

const VALIDITY: Duration = Duration::from_hours(24 * 30);

/// Where the nodes have their certificates from, and where they are kept.
pub struct Identities {
    directory: PathBuf,
    issuer: Issuer,
}

enum Issuer {
    Authorities(Box<Authorities>),
    /// cloudcore, for this token.
    Cloud(String),
}

impl Identities {
    /// The CA that issues signs all of them, at each start anew. A Node remembers its machine's key, so the directory is to be kept
    /// for as long as the Nodes are.
    pub fn signed(authorities: Authorities, directory: PathBuf) -> Self {
        Self { directory, issuer: Issuer::Authorities(Box::new(authorities)) }
    }

    /// Each node enrolls for itself.
    pub fn enrolled(token: String, directory: PathBuf) -> Self {
        Self { directory, issuer: Issuer::Cloud(token) }
    }

    pub(crate) fn token(&self) -> &str {
        match &self.issuer {
            Issuer::Authorities(_) => "",
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
        let Issuer::Authorities(authorities) = &self.issuer else { return Ok(()) };
        let trusted: String = authorities.trusted().iter().map(|ca| tls::pem("CERTIFICATE", ca)).collect();
        for node in nodes {
            let paths = self.paths(node);
            let csr = if paths.key.exists() {
                tls::node_csr_for(node, tls::read_key(&paths.key)?.secret_der())?
            } else {
                // Of its own: when nodes renew goes by their keys.
                let (key, csr) = tls::node_csr(node)?;
                write(&paths.key, tls::pem("PRIVATE KEY", &key).as_bytes())?;
                csr
            };
            let certificate = authorities.issuer().sign_node_csr(&csr, node, VALIDITY)?;
            write(&paths.ca, trusted.as_bytes())?;
            write(&paths.certificate, tls::pem("CERTIFICATE", &certificate).as_bytes())?;
        }
        Ok(())
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let open = fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| io::Write::write_all(&mut file, content))
        .with_context(|| format!("failed to write {}", path.display()))
}
