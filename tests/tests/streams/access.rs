//! Who may ask: those whom RBAC lets, with a certificate of the cluster.

use anyhow::{Context, Result, bail, ensure};
use harness::product::{Edge, Scene};
use proto::Lane;
use serde_json::{Value, json};

use crate::SPACE;

pub(crate) async fn run(scene: &Scene, edge: &Edge) -> Result<()> {
    let node = scene.node(edge.name()).await?;
    let status = node.status.context("the node has a status")?;
    let port = status.daemon_endpoints.and_then(|all| all.kubelet_endpoint).context("no endpoint")?.port;
    let addresses = status.addresses.unwrap_or_default();
    ensure!(addresses.iter().all(|address| address.type_ != "Hostname"), "{addresses:?}");
    let cloud = &addresses.first().context("no address")?.address;
    let server = format!("--server=https://{cloud}:{port}");
    let ask = async |kubeconfig: &str, path: &str| {
        let kubeconfig = format!("--kubeconfig={kubeconfig}");
        let args = [&kubeconfig, &server, "--insecure-skip-tls-verify", "get", "--raw", path];
        scene.cluster.kubectl(&args).await
    };
    let config = |user: &str, groups: &[&str]| -> Result<String> {
        Ok(scene.cluster.kubeconfig_for(user, groups)?.display().to_string())
    };
    let path = format!("/containerLogs/{SPACE}/on-quic/talker?tailLines=1");
    let admin = config("an-admin", &["system:masters"])?;
    ensure!(ask(&admin, &path).await?.contains(' '), "an admin reads no log");
    let refused = async |kubeconfig: &str, path: &str, words: &str| -> Result<()> {
        match ask(kubeconfig, path).await {
            Ok(out) => bail!("{path} is answered: {out}"),
            Err(error) => ensure!(format!("{error:#}").contains(words), "{path}: {error:#}"),
        }
        Ok(())
    };
    refused(&config("mallory", &[])?, &path, "may not get nodes/proxy of node edge-quic").await?;
    // A kubelet of the cluster is no API server, and an edge node's certificate is of another CA.
    refused(&config("system:node:edge-quic", &["system:nodes"])?, &path, "may not").await?;
    refused(&admin, "/containerLogs/streams/no-such-pod/main", "(NotFound)").await?;
    refused(&admin, "/stats/summary", "(NotFound)").await?;
    refused(&config("mallory", &[])?, "/sessions", "may not get nodes/proxy of all nodes").await?;
    let sessions = ["get", "--raw", "/api/v1/nodes/edge-quic/proxy/sessions"];
    let sessions: Value = serde_json::from_str(&scene.cluster.kubectl(&sessions).await?)?;
    let link = &sessions["edge-quic"];
    ensure!(link["transport"] == "quic", "{sessions}");
    for lane in Lane::ALL {
        ensure!(link["sentBytes"][lane.name()].as_u64().is_some(), "{sessions}");
    }
    let nobody = scene.cluster.dir().join("nobody.kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1"}}],
        "users": [{"name": "u", "user": {"token": "of-nobody"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&nobody, config.to_string())?;
    refused(&nobody.display().to_string(), &path, "You must be logged in to the server").await
}
