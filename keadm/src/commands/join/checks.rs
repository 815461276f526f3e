//! What must be so before this machine can be an edge node.

use std::path::Path;

use crds::componentconfig::edgecore::{CgroupDriver, EdgeHubWebSocket, EdgePaths};
use proto::cri::v1;
use runtime::{
    link::proxy::Proxy,
    tls::{node_of, read_certificates},
    token::{Token, TokenError},
};
use rustls::pki_types::CertificateDer;
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
    unmet: Vec<v1::RuntimeCondition>,
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
    let unmet = cri.unmet().await.map_err(silent)?;
    Ok(Runtime { endpoint, version, cgroup_driver, unmet })
}

/// A runtime that could not make a single pod.
pub(super) fn readiness(runtime: &Runtime) -> Check<()> {
    let Some(v1::RuntimeCondition { r#type, reason, message, .. }) = runtime.unmet.first() else {
        return Ok(());
    };
    let endpoint = &runtime.endpoint;
    Err(if r#type == "NetworkReady" {
        Problem::new(
            format!("the container runtime at {endpoint} has no network for pods: {reason}: {message}"),
            "put a CNI configuration into /etc/cni/net.d, and the plugins that it names into /opt/cni/bin",
        )
    } else {
        Problem::new(
            format!("the container runtime at {endpoint} is not ready: {reason}: {message}"),
            "look into its log, and restart it",
        )
    })
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

/// The proxy that the configuration names, if it does.
pub(super) fn proxy(config: &EdgeHubWebSocket) -> Check<Option<Proxy>> {
    Proxy::configured(&config.proxy.0, &config.proxy_ca_file).map_err(|error| {
        Problem::new(
            format!("the proxy's URL cannot be used: {error}"),
            "give it as in --proxy=http://USER:PASSWORD@192.0.2.1:3128",
        )
    })
}

/// The first of several cloudcores that is well; else what is wrong with the last.
pub(super) async fn any_hub<'a>(
    servers: &'a [String],
    proxy: Option<&Proxy>,
    token: Option<&str>,
    node: &str,
    joined: Option<&[[u8; 32]]>,
) -> Check<&'a str> {
    let mut problem = Problem::new("no cloudcore was named", "name one with --cloudcore-ipport");
    for server in servers {
        match hub(server, proxy, token, node, joined).await {
            Ok(()) => return Ok(server),
            Err(found) => problem = found,
        }
    }
    Err(problem)
}

/// cloudcore at the address, and the token with it.
///
/// `joined` is what [`joined_cas`] found.
async fn hub(
    server: &str,
    proxy: Option<&Proxy>,
    token: Option<&str>,
    node: &str,
    joined: Option<&[[u8; 32]]>,
) -> Check<()> {
    let problem = |error: HubError| Problem::new(runtime::chain(&error).to_string(), error.fix());
    let joined = match (joined, token) {
        // Enrolled: the token has done its work, and may have expired since.
        (Some(joined), token) => {
            let other = token.map(parse).transpose()?.is_some_and(|token| !joined.contains(&token.ca_hash));
            if other {
                return Err(Problem::new(
                    "this machine has joined another cluster than the token's, or its CA was rotated while the machine was away",
                    "leave --token out, or run keadm reset first",
                ));
            }
            joined
        }
        (None, Some(token)) => {
            let token = fresh(parse(token)?)?;
            fetch::hub(server, proxy, token.ca_hash).await.map_err(problem)?;
            return fetch::token(server, proxy, &token, node).await.map_err(problem);
        }
        (None, None) => {
            return Err(Problem::new(
                "no token was given",
                "get one with keadm gettoken, and give it with --token",
            ));
        }
    };
    let mut last = Ok(());
    for ca_hash in joined {
        last = fetch::hub(server, proxy, *ca_hash).await.map_err(problem);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// The hashes of the CAs by which this machine knows the cluster that it has joined: one, or two while it is rotated. As edgecore sees it, which enrols anew, and needs a
/// token, unless CA, certificate and key are there and the certificate is the node's.
pub(super) fn joined_cas(paths: &EdgePaths, node: &str) -> Check<Option<Vec<[u8; 32]>>> {
    let EdgePaths { ca_file, cert_file, key_file, .. } = paths;
    if ![ca_file, cert_file, key_file].iter().all(|path| path.exists()) {
        return Ok(None);
    }
    if certificates(cert_file)?.first().and_then(node_of).as_deref() != Some(node) {
        return Ok(None);
    }
    let cas = certificates(ca_file)?;
    if cas.is_empty() {
        let cause = format!("{} holds no certificate", ca_file.display());
        return Err(Problem::new(cause, "run keadm reset, then join anew"));
    }
    Ok(Some(cas.iter().map(|ca| Sha256::digest(ca).into()).collect()))
}

fn certificates(path: &Path) -> Check<Vec<CertificateDer<'static>>> {
    read_certificates(path)
        .map_err(|error| Problem::new(runtime::chain(&error).to_string(), "run keadm reset, then join anew"))
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
    use std::{fs, time::Duration};

    use crds::componentconfig::edgecore::Secret;
    use runtime::{
        tls::{CertificateAuthority, node_csr, pem},
        token::SigningKeys,
    };

    use super::*;

    #[test]
    fn a_machine_has_joined_if_nothing_of_its_identity_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let paths = EdgePaths::under(dir.path());
        assert_eq!(joined_cas(&paths, "pump-7").unwrap(), None);
        let ca = CertificateAuthority::generate().unwrap();
        let (key, csr) = node_csr("pump-7").unwrap();
        let certificate = ca.sign_node_csr(&csr, "pump-7", Duration::from_hours(1)).unwrap();
        let files = [
            (&paths.ca_file, pem("CERTIFICATE", ca.certificate())),
            (&paths.cert_file, pem("CERTIFICATE", &certificate)),
            (&paths.key_file, pem("PRIVATE KEY", &key)),
        ];
        let write = || {
            for (path, text) in &files {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        };
        write();
        let hash: [u8; 32] = Sha256::digest(ca.certificate()).into();
        assert_eq!(joined_cas(&paths, "pump-7").unwrap(), Some(vec![hash]));
        assert_eq!(joined_cas(&paths, "pump-8").unwrap(), None);
        for (path, _) in &files {
            fs::remove_file(path).unwrap();
            assert_eq!(joined_cas(&paths, "pump-7").unwrap(), None, "{}", path.display());
            write();
        }
        fs::write(&paths.ca_file, "").unwrap();
        assert!(joined_cas(&paths, "pump-7").unwrap_err().cause.ends_with("rootCA.crt holds no certificate"));
    }

    #[test]
    fn a_runtime_without_a_network_is_one_problem() {
        let condition = v1::RuntimeCondition {
            r#type: "NetworkReady".to_owned(),
            status: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message: "cni plugin not initialized".to_owned(),
        };
        let mut runtime = Runtime {
            endpoint: "unix:///run/c.sock".to_owned(),
            version: "containerd v2".to_owned(),
            cgroup_driver: None,
            unmet: vec![condition],
        };
        let problem = readiness(&runtime).unwrap_err();
        assert!(
            problem
                .cause
                .ends_with("has no network for pods: NetworkPluginNotReady: cni plugin not initialized")
        );
        assert!(problem.fix.contains("/etc/cni/net.d"));
        runtime.unmet.clear();
        readiness(&runtime).unwrap();
    }

    #[tokio::test]
    async fn a_malformed_and_an_expired_token_are_told_before_anything_is_asked() {
        let problem = hub("127.0.0.1:1", None, Some("a.b.c.d"), "n", None).await.unwrap_err();
        assert_eq!(problem.cause, "the token is not one that keadm gettoken prints");
        let keys = SigningKeys::generate(1000).unwrap();
        let old = keys.sign(b"ca", Duration::from_mins(1), 1000).unwrap();
        let problem = hub("127.0.0.1:1", None, Some(&old), "n", None).await.unwrap_err();
        assert!(problem.cause.starts_with("the token expired "), "{}", problem.cause);
        let websocket = EdgeHubWebSocket { proxy: Secret("proxy:3128".to_owned()), ..Default::default() };
        let problem = proxy(&websocket).map(drop).unwrap_err();
        assert!(
            problem.cause.starts_with("the proxy's URL cannot be used: it is no URL"),
            "{}",
            problem.cause
        );
        let problem = hub("127.0.0.1:1", None, None, "n", None).await.unwrap_err();
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
