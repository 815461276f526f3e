//! cloudcore inside the test's process, and what the tests ask of the API server.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use cloudcore::{app::App, config::Config, secrets};
use crds::componentconfig::cloudcore::CloudCoreConfig;
use harness::wait;
use kube::Client;
use runtime::{
    supervisor::Outcome,
    telemetry::LogLevel,
    token::{SigningKeys, Token},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::edge::{Identity, LONG, enroll};

/// cloudcore inside this process.
pub(crate) struct Cloud {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinSet<Outcome>,
}

impl Cloud {
    pub(crate) async fn start(kubeconfig: &Path) -> Result<Self> {
        Self::start_at(0, kubeconfig).await
    }

    /// On TCP and UDP.
    pub(crate) async fn start_at(port: u16, kubeconfig: &Path) -> Result<Self> {
        let mut raw = CloudCoreConfig::default();
        raw.common_config.monitor_server.bind_address = String::from("127.0.0.1:0");
        raw.kube_api_config.kube_config = kubeconfig.display().to_string();
        raw.modules.cloud_hub.websocket.port = port;
        raw.modules.cloud_stream.stream_port = 0;
        raw.modules.cloud_hub.websocket.address = [127, 0, 0, 1].into();
        raw.modules.cloud_hub.node_lease.renew_interval_seconds = 1;
        raw.modules.cloud_hub.node_lease.duration_seconds = 4;
        let stop = CancellationToken::new();
        let app = App::build(Config::from(raw), LogLevel::fixed(), &stop).await?;
        let address = app.address();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(app.run());
        Ok(Self { address, stop, task })
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        let outcome = self.task.join_next().await.context("cloudcore ran")??;
        ensure!(outcome == Outcome::Stopped, "cloudcore ended: {outcome}");
        Ok(())
    }
}

pub(crate) async fn request(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
    let request =
        http::Request::builder().method(method).uri(path).header("content-type", kind).body(body)?;
    Ok(client.request(request).await?)
}

pub(crate) async fn get(client: &Client, path: &str) -> Result<Value> {
    request(client, "GET", path, None).await
}

pub(crate) async fn secret(client: &Client, name: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let path = format!("/api/v1/namespaces/{}/secrets/{name}", secrets::NAMESPACE);
    let secret = wait::until("cloudcore's secret", LONG, async || get(client, &path).await).await?;
    let data = secret["data"].as_object().context("a secret has data")?;
    data.iter()
        .map(|(key, value)| Ok((key.clone(), BASE64_STANDARD.decode(value.as_str().unwrap_or_default())?)))
        .collect()
}

pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What `keadm gettoken` prints.
pub(crate) async fn token(client: &Client) -> Result<Token> {
    token_for(client, None).await
}

/// What `keadm gettoken --node` prints.
pub(crate) async fn token_for(client: &Client, node: Option<&str>) -> Result<Token> {
    let keys = SigningKeys::from_secret(&secret(client, "tokensecret").await?)?;
    let ca = secret(client, "casecret").await?;
    Ok(Token::parse(&keys.sign_for(node, &ca["cadata"], Duration::from_mins(10), now())?)?)
}

/// Enrolls once cloudcore has listed its secrets.
pub(crate) async fn join(client: &Client, address: SocketAddr, node: &str) -> Result<Identity> {
    let token = token(client).await?;
    wait::until("enrollment", LONG, async || enroll(address, &token, node).await).await
}

pub(crate) fn pod(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30, "containers": [{"name": "c", "image": "registry.invalid/x",
            "envFrom": [{"configMapRef": {"name": "settings"}}]}]}})
}

pub(crate) fn node_report(node: &str) -> Value {
    let condition =
        |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Test", "message": "m"});
    json!({"metadata": {"name": node, "labels": {"kubernetes.io/hostname": node, "kubernetes.io/os": "linux", "site": "a"}},
        "status": {"capacity": {"cpu": "2", "memory": "1Gi", "pods": "110"}, "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"},
            "addresses": [{"type": "InternalIP", "address": "192.0.2.7"}, {"type": "InternalIP", "address": "2001:db8::7"},
                {"type": "Hostname", "address": node}],
            "conditions": [condition("Ready", "True"), condition("MemoryPressure", "False")],
            "nodeInfo": {"kubeletVersion": "v1.37.2", "containerRuntimeVersion": "containerd://2", "architecture": "amd64",
                "bootID": "", "containerRuntime": "", "kernelVersion": "6", "kubeProxyVersion": "", "machineID": "",
                "operatingSystem": "linux", "osImage": "", "systemUUID": ""}}})
}

pub(crate) fn running(uid: &Value) -> Value {
    json!({"uid": uid, "status": {"phase": "Running", "podIP": "10.1.1.1", "podIPs": [{"ip": "10.1.1.1"}], "startTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "containerStatuses": [{"name": "c", "image": "registry.invalid/x", "imageID": "x", "ready": true, "restartCount": 0, "started": true,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}})
}

pub(crate) async fn prepare(client: &Client) -> Result<()> {
    let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"k": "1"}});
    request(client, "POST", "/api/v1/namespaces/default/configmaps", Some(&settings)).await?;
    Ok(())
}

pub(crate) async fn ready(client: &Client, node: &str) -> Result<String> {
    Ok(ready_condition(client, node).await?["status"].as_str().unwrap_or_default().to_owned())
}

pub(crate) async fn ready_condition(client: &Client, node: &str) -> Result<Value> {
    let node = get(client, &format!("/api/v1/nodes/{node}")).await?;
    let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
    conditions.iter().find(|condition| condition["type"] == "Ready").cloned().context("no Ready")
}
