//! What must be so before this machine can be an edge node.

use std::path::Path;

use crds::componentconfig::edgecore::{CgroupDriver, EdgePaths};
use proto::cri::v1;
use runtime::token::{Token, TokenError};
use sha2::{Digest, Sha256};

use super::cri::{Cri, USUAL};
use crate::{
    fetch::{self, HubError},
    preflight::{Check, Problem},
    time,
};

/// Room for the store, its copy, and logs; images are the runtime's.
const LEAST_SPACE: u64 = 256 << 20;

pub(super) struct Runtime {
    pub(super) endpoint: String,
    pub(super) version: String,
    /// If it says.
    cgroup_driver: Option<v1::CgroupDriver>,
}

/// The runtime that was named, or the one that is there.
pub(super) async fn runtime(endpoint: Option<&str>) -> Check<Runtime> {
    let endpoint = match endpoint {
        Some(endpoint) if endpoint.starts_with('/') => format!("unix://{endpoint}"),
        Some(endpoint) => endpoint.to_owned(),
        None => USUAL
            .into_iter()
            .find(|usual| usual.strip_prefix("unix://").is_some_and(|path| Path::new(path).exists()))
            .ok_or_else(|| {
                Problem::new(
                    format!("no container runtime was found at {}", USUAL.join(", ")),
                    "install and start containerd or CRI-O, or name its socket with --remote-runtime-endpoint",
                )
            })?
            .to_owned(),
    };
    let Some(path) = endpoint.strip_prefix("unix://").map(Path::new) else {
        return Err(Problem::new(
            format!("{endpoint} is not the address of a socket"),
            "name it as --remote-runtime-endpoint=unix:///PATH",
        ));
    };
    if !path.exists() {
        return Err(Problem::new(
            format!("there is no socket {}", path.display()),
            "start the container runtime, or name its socket with --remote-runtime-endpoint",
        ));
    }
    let silent = |error: anyhow::Error| {
        Problem::new(
            format!(
                "the container runtime at {endpoint} does not answer: {}",
                runtime::chain(error.as_ref())
            ),
            "start it, and enable its CRI plugin (containerd: not in disabled_plugins of config.toml)",
        )
    };
    let mut cri = Cri::connect(&endpoint).await.map_err(silent)?;
    let version = cri.version().await.map_err(silent)?;
    let cgroup_driver = cri.cgroup_driver().await.map_err(silent)?;
    Ok(Runtime { endpoint, version, cgroup_driver })
}

/// What the user says against what the runtime says.
pub(super) fn cgroup_driver(asked: Option<CgroupDriver>, runtime: &Runtime) -> Check<()> {
    let (asked, said) = match (asked, runtime.cgroup_driver) {
        (Some(CgroupDriver::Cgroupfs), Some(v1::CgroupDriver::Systemd)) => ("cgroupfs", "systemd"),
        (Some(CgroupDriver::Systemd), Some(v1::CgroupDriver::Cgroupfs)) => ("systemd", "cgroupfs"),
        _ => return Ok(()),
    };
    Err(Problem::new(
        format!("the container runtime uses the cgroup driver {said}, not {asked}"),
        "leave --cgroupdriver out, or change the runtime's configuration",
    ))
}

pub(super) fn disk_space(root: &Path) -> Check<()> {
    let dir = if root == Path::new("/") { Path::new("/var/lib") } else { root };
    // The nearest directory that is there already.
    let Some(existing) = dir.ancestors().find(|dir| dir.exists()) else { return Ok(()) };
    let space = rustix::fs::statvfs(existing)
        .map_err(|error| Problem::new(format!("{}: {error}", existing.display()), "mount the disk"))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if space.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(Problem::new(
            format!("{} is read-only", existing.display()),
            "mount it for writing, or choose another --root-dir",
        ));
    }
    if free >= LEAST_SPACE {
        return Ok(());
    }
    Err(Problem::new(
        format!(
            "{} has {} MiB free, less than the {} MiB needed",
            existing.display(),
            free >> 20,
            LEAST_SPACE >> 20
        ),
        "free some space, or choose another --root-dir",
    ))
}

/// cloudcore at the address, and the token with it.
pub(super) async fn hub(server: &str, token: Option<&str>, node: &str, paths: &EdgePaths) -> Check<()> {
    let problem = |error: HubError| Problem::new(runtime::chain(&error).to_string(), error.fix());
    let ca_hash = match (joined_ca(paths)?, token) {
        // Enrolled: the token has done its work, and may have expired since.
        (Some(joined), token) => {
            let other = token.map(parse).transpose()?.is_some_and(|token| token.ca_hash != joined);
            if other {
                return Err(Problem::new(
                    "this machine has joined another cluster than the token's",
                    "run keadm reset first, or leave --token out",
                ));
            }
            joined
        }
        (None, Some(token)) => {
            let token = fresh(parse(token)?)?;
            fetch::hub(server, None, token.ca_hash).await.map_err(problem)?;
            return fetch::token(server, &token, node).await.map_err(problem);
        }
        (None, None) => {
            return Err(Problem::new(
                "no token was given",
                "get one with keadm gettoken, and give it with --token",
            ));
        }
    };
    fetch::hub(server, None, ca_hash).await.map_err(problem)
}

/// The hash of the CA of the cluster that this machine has joined.
fn joined_ca(paths: &EdgePaths) -> Check<Option<[u8; 32]>> {
    if !paths.ca_file.exists() || !paths.cert_file.exists() {
        return Ok(None);
    }
    let fix = "run keadm reset, then join anew";
    let unusable = || Problem::new(format!("{} holds no certificate", paths.ca_file.display()), fix);
    let certificates = runtime::tls::read_certificates(&paths.ca_file)
        .map_err(|error| Problem::new(runtime::chain(&error).to_string(), fix))?;
    let ca = certificates.first().ok_or_else(unusable)?;
    Ok(Some(Sha256::digest(ca).into()))
}

fn parse(token: &str) -> Check<Token> {
    Token::parse(token).map_err(|error| {
        let cause = match error {
            TokenError::Malformed => "the token is not one that keadm gettoken prints".to_owned(),
            other => other.to_string(),
        };
        Problem::new(cause, "copy the whole output of keadm gettoken")
    })
}

fn fresh(token: Token) -> Check<Token> {
    let now = time::now();
    if token.expires > now {
        return Ok(token);
    }
    let ago = now - token.expires;
    Err(Problem::new(
        format!("the token expired {ago} s ago by this machine's clock ({})", jiff::Timestamp::now()),
        "set the clock if it is wrong; else get a new token with keadm gettoken",
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtime::token::SigningKeys;

    use super::*;

    fn nowhere() -> EdgePaths {
        EdgePaths::under(Path::new("/nowhere"))
    }

    #[tokio::test]
    async fn a_malformed_and_an_expired_token_are_told_before_anything_is_asked() {
        let problem = hub("127.0.0.1:1", Some("a.b.c.d"), "n", &nowhere()).await.unwrap_err();
        assert_eq!(problem.cause, "the token is not one that keadm gettoken prints");
        let keys = SigningKeys::generate(1000).unwrap();
        let old = keys.sign(b"ca", Duration::from_mins(1), 1000).unwrap();
        let problem = hub("127.0.0.1:1", Some(&old), "n", &nowhere()).await.unwrap_err();
        assert!(problem.cause.starts_with("the token expired "), "{}", problem.cause);
        let problem = hub("127.0.0.1:1", None, "n", &nowhere()).await.unwrap_err();
        assert_eq!(problem.cause, "no token was given");
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_there_is_one_problem() {
        let problem = runtime(Some("/nowhere/containerd.sock")).await.map(|_| ()).unwrap_err();
        assert_eq!(problem.cause, "there is no socket /nowhere/containerd.sock");
        let problem = runtime(Some("tcp://127.0.0.1:1")).await.map(|_| ()).unwrap_err();
        assert!(problem.fix.contains("unix:///PATH"));
    }
}
