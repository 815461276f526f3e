//! cloudcore beside the cluster: its files, and its start.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use crds::componentconfig::cloudcore::CloudCoreConfig;
use runtime::tls::write_durably;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    commands::gettoken,
    init_system::Daemon,
    kubernetes::Cluster,
    preflight::{Check, Problem},
};

use super::manifests;

pub(crate) fn daemon(dir: &Path, program: PathBuf) -> Daemon {
    Daemon {
        name: "cloudcore",
        unit: Daemon::unit_name("cloudcore", dir, Path::new("/etc/kubeedge")),
        program,
        config: config_file(dir),
        run_dir: dir.to_owned(),
        log_file: dir.join("cloudcore.log"),
    }
}

/// KubeEdge's place in the usual directory is also the place in any other.
pub(crate) fn config_file(config_dir: &Path) -> PathBuf {
    config_dir.join("config/cloudcore.yaml")
}

pub(crate) fn kubeconfig_file(config_dir: &Path) -> PathBuf {
    config_dir.join("cloudcore.kubeconfig")
}

/// The address of this machine on the way to the API server; nothing is sent.
pub(super) fn own_address(cluster: &Cluster) -> Check<IpAddr> {
    let unknown = || {
        Problem::new(
            "the address at which edge nodes reach cloudcore is not known",
            "give it with --advertise-address=IP",
        )
    };
    let url = &cluster.config.cluster_url;
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().unwrap_or(443);
    // With an API server on the loopback, the way out.
    for target in [format!("{host}:{port}"), "192.0.2.1:9".to_owned()] {
        let address = UdpSocket::bind("0.0.0.0:0")
            .and_then(|socket| socket.connect(&target).and_then(|()| socket.local_addr()));
        if let Ok(address) = address
            && !address.ip().is_loopback()
        {
            return Ok(address.ip());
        }
    }
    Err(unknown())
}

/// What cloudcore listens on must be free, unless it is our own cloudcore, with the configuration `running`, that has it.
pub(super) fn ports_are_free(config: &CloudCoreConfig, running: Option<&CloudCoreConfig>) -> Vec<Problem> {
    let running = running.map(listeners).unwrap_or_default();
    let wanted = listeners(config).into_iter().filter(|wanted| !running.contains(wanted));
    wanted.filter_map(|(address, flag)| is_free(address, flag).err()).collect()
}

/// With the flag that moves it. A socket in the file system is no address that others could have.
fn listeners(config: &CloudCoreConfig) -> Vec<(SocketAddr, &'static str)> {
    let hub = &config.modules.cloud_hub.websocket;
    let stream = Some(&config.modules.cloud_stream).filter(|stream| stream.enable);
    let stream = stream.map(|stream| SocketAddr::new(stream.address, stream.stream_port));
    let admin = config.common_config.monitor_server.bind_address.parse().ok();
    std::iter::once((SocketAddr::new(hub.address, hub.port), "--cloudhub-port"))
        .chain(stream.map(|stream| (stream, "--set=modules.cloudStream.streamPort=PORT")))
        .chain(admin.map(|admin| (admin, "--admin-address")))
        .collect()
}

fn is_free(address: SocketAddr, flag: &str) -> Check<()> {
    let port = address.port();
    let Err(error) = TcpListener::bind(address) else { return Ok(()) };
    Err(Problem::new(
        format!("{address} cannot be listened on: {error}"),
        format!("stop what listens there (ss -ltnp 'sport = :{port}'), or choose another with {flag}"),
    ))
}

/// What an earlier init wrote, and an operator since.
pub(super) fn existing(config_dir: &Path) -> Check<Option<CloudCoreConfig>> {
    let path = config_file(config_dir);
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    runtime::config::load(&path, CloudCoreConfig::validate).map(Some).map_err(|error| {
        Problem::new(
            runtime::chain(&error).to_string(),
            format!("correct {}, or remove it to begin with the defaults", path.display()),
        )
    })
}

/// Waits for the token of the ServiceAccount, and writes a kubeconfig with it.
pub(super) async fn write_kubeconfig(cluster: &Cluster, config_dir: &Path) -> Result<bool> {
    let token = service_account_token(cluster).await?;
    let text = serde_json::to_string_pretty(&kubeconfig(cluster, &token))?;
    write_if_changed(&kubeconfig_file(config_dir), 0o600, text.as_bytes())
}

async fn service_account_token(cluster: &Cluster) -> Result<String> {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let secret = gettoken::secret(cluster, manifests::TOKEN_NAME).await?;
        let mut data = secret.as_ref().map(gettoken::data).transpose()?.unwrap_or_default();
        if let Some(token) = data.remove("token") {
            return String::from_utf8(token).context("the ServiceAccount's token is not text");
        }
        if Instant::now() > deadline {
            bail!(
                "nobody fills Secret {}/{}: is kube-controller-manager running?",
                gettoken::NAMESPACE,
                manifests::TOKEN_NAME
            );
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// JSON is YAML, so this is a kubeconfig.
fn kubeconfig(cluster: &Cluster, token: &str) -> Value {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let config = &cluster.config;
    let mut server = json!({ "server": config.cluster_url.to_string() });
    if let Some(certificates) = &config.root_cert {
        let pem: String = certificates.iter().map(|der| runtime::tls::pem("CERTIFICATE", der)).collect();
        server["certificate-authority-data"] = BASE64_STANDARD.encode(pem).into();
    }
    if config.accept_invalid_certs {
        server["insecure-skip-tls-verify"] = true.into();
    }
    if let Some(name) = &config.tls_server_name {
        server["tls-server-name"] = name.as_str().into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "kubernetes", "cluster": server }],
        "users": [{ "name": "cloudcore", "user": { "token": token } }],
        "contexts": [{ "name": "cloudcore", "context": { "cluster": "kubernetes", "user": "cloudcore" } }],
        "current-context": "cloudcore",
    })
}

/// Whether it was written.
pub(crate) fn write_if_changed(path: &Path, mode: u32, content: &[u8]) -> Result<bool> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    write_durably(path, mode, content)?;
    Ok(true)
}
