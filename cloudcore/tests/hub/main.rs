//! cloudcore beside a real control plane, with real sessions of edges whose store is a map.

mod edge;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use cloudcore::{app::App, config::Config, secrets};
use crds::componentconfig::cloudcore::CloudCoreConfig;
use harness::{Bench, Cluster, ClusterOptions, bench, wait};
use kube::Client;
use proto::{
    limits::MAX_FRAME,
    message::{Answer, GoodbyeReason, Question, ReportKind, TokenQuestion},
};
use runtime::{supervisor::Outcome, telemetry::LogLevel, tls, token::SigningKeys, token::Token};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use edge::{Edge, Identity, LONG, enroll, post_csr};

/// cloudcore inside this process.
struct Cloud {
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinSet<Outcome>,
}

impl Cloud {
    async fn start(cluster: &Cluster) -> Result<Self> {
        let mut raw = CloudCoreConfig::default();
        raw.common_config.monitor_server.bind_address = "127.0.0.1:0".to_owned();
        raw.kube_api_config.kube_config = cluster.kubeconfig().display().to_string();
        raw.modules.cloud_hub.websocket.port = 0;
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

    async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        let outcome = self.task.join_next().await.context("cloudcore ran")??;
        ensure!(outcome == Outcome::Stopped, "cloudcore ended: {outcome}");
        Ok(())
    }
}

async fn request(client: &Client, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
    let request =
        http::Request::builder().method(method).uri(path).header("content-type", kind).body(body)?;
    Ok(client.request(request).await?)
}

async fn get(client: &Client, path: &str) -> Result<Value> {
    request(client, "GET", path, None).await
}

async fn secret(client: &Client, name: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let path = format!("/api/v1/namespaces/{}/secrets/{name}", secrets::NAMESPACE);
    let secret = wait::until("cloudcore's secret", LONG, async || get(client, &path).await).await?;
    let data = secret["data"].as_object().context("a secret has data")?;
    data.iter()
        .map(|(key, value)| Ok((key.clone(), BASE64_STANDARD.decode(value.as_str().unwrap_or_default())?)))
        .collect()
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// What `keadm gettoken` prints.
async fn token(client: &Client) -> Result<Token> {
    let keys = SigningKeys::from_secret(&secret(client, "tokensecret").await?)?;
    let ca = secret(client, "casecret").await?;
    Ok(Token::parse(&keys.sign(&ca["cadata"], Duration::from_secs(600), now())?)?)
}

/// Enrolls once cloudcore has listed its secrets.
async fn join(client: &Client, address: SocketAddr, node: &str) -> Result<Identity> {
    let token = token(client).await?;
    wait::until("enrollment", LONG, async || enroll(address, &token, node).await).await
}

fn pod(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30, "containers": [{"name": "c", "image": "registry.invalid/x",
            "envFrom": [{"configMapRef": {"name": "settings"}}]}]}})
}

fn node_report(node: &str) -> Value {
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

fn running(uid: &Value) -> Value {
    json!({"uid": uid, "status": {"phase": "Running", "podIP": "10.1.1.1", "podIPs": [{"ip": "10.1.1.1"}], "startTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "containerStatuses": [{"name": "c", "image": "registry.invalid/x", "imageID": "x", "ready": true, "restartCount": 0, "started": true,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}})
}

async fn prepare(client: &Client) -> Result<()> {
    let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"k": "1"}});
    request(client, "POST", "/api/v1/namespaces/default/configmaps", Some(&settings)).await?;
    Ok(())
}

async fn ready(client: &Client, node: &str) -> Result<String> {
    let node = get(client, &format!("/api/v1/nodes/{node}")).await?;
    let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready").context("no Ready")?;
    Ok(ready["status"].as_str().unwrap_or_default().to_owned())
}

async fn whole_path(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    prepare(&client).await?;
    let cloud = Cloud::start(&cluster).await?;
    let identity = join(&client, cloud.address, "edge-1").await?;
    let mut edge = Edge::connect(cloud.address, &identity, BTreeMap::new()).await?;
    edge.until("first sync", |edge| edge.synced).await?;
    ensure!(edge.store.is_empty(), "nothing is this node's yet");

    // Registration, with labels that an operator may own from then on.
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());
    ensure!(ready(&client, "edge-1").await? == "True");
    cluster.kubectl(&["label", "nodes", "edge-1", "node-role.kubernetes.io/edge=true"]).await?;
    cluster
        .kubectl(&["label", "--overwrite", "nodes", "edge-1", "node-role.kubernetes.io/edge=", "site=b"])
        .await?;
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());
    let node = get(&client, "/api/v1/nodes/edge-1").await?;
    ensure!(
        node["metadata"]["labels"]["site"] == "b"
            && node["metadata"]["labels"]["node-role.kubernetes.io/edge"] == ""
    );
    ensure!(node["status"]["addresses"].as_array().is_some_and(|addresses| addresses.len() == 3), "{node}");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";
    let first = wait::until("a lease with its node", LONG, async || {
        let lease = get(&client, lease).await?;
        ensure!(lease["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"], "{lease}");
        Ok(lease["spec"]["renewTime"].clone())
    })
    .await?;
    wait::until("the next renewal", LONG, async || {
        let lease = get(&client, lease).await?;
        ensure!(lease["spec"]["renewTime"] != first);
        Ok(())
    })
    .await?;

    // A pod arrives with what it refers to, and its status lands.
    let made =
        request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("web", "edge-1"))).await?;
    let uid = made["metadata"]["uid"].clone();
    edge.until("the pod", |edge| {
        edge.holds("Pod/default/web")
            && edge.holds("ConfigMap/default/settings")
            && edge.holds("ConfigMap/default/kube-root-ca.crt")
            && edge.holds("Node//edge-1")
    })
    .await?;
    edge.until("protection", |edge| {
        let pod = edge.json("Pod/default/web").unwrap_or_default();
        let tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        !tolerations.is_empty()
            && tolerations.iter().all(|toleration| toleration.get("tolerationSeconds").is_none())
    })
    .await?;
    ensure!(edge.json("Pod/default/web").is_some_and(|pod| pod.get("status").is_none()));
    let before = edge.changes;
    let id = edge.report(ReportKind::PodStatus, "Pod/default/web", &running(&uid));
    ensure!(edge.ack(id).await?.is_empty());
    let web = get(&client, "/api/v1/namespaces/default/pods/web").await?;
    ensure!(web["status"]["phase"] == "Running" && web["status"]["podIP"] == "10.1.1.1", "{web}");
    let scheduled = web["status"]["conditions"].as_array().context("conditions")?;
    ensure!(scheduled.iter().any(|condition| condition["type"] == "Ready"));
    let event = json!({"metadata": {"name": "web.1"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web", "uid": uid},
        "reason": "Started", "message": "m", "type": "Normal", "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "edged"}});
    for _ in 0..2 {
        let id = edge.report(ReportKind::Event, "Event/default/web.1", &event);
        ensure!(edge.ack(id).await?.is_empty(), "the second time it counts as delivered");
    }
    let event = get(&client, "/api/v1/namespaces/default/events/web.1").await?;
    ensure!(event["source"]["host"] == "edge-1");

    // A token for the pod's own account.
    let id = edge.ask(Question::ServiceAccountToken(TokenQuestion {
        namespace: "default".to_owned(),
        service_account: "default".to_owned(),
        pod_name: "web".to_owned(),
        pod_uid: uid.as_str().unwrap_or_default().to_owned(),
        audiences: Vec::new(),
        expiration_seconds: 3600,
    }));
    edge.until("token", |edge| edge.answers.iter().any(|(of, _)| *of == id)).await?;
    let Some((_, Answer::ServiceAccountToken(status))) = edge.answers.first() else {
        anyhow::bail!("no token: {:?}", edge.answers)
    };
    let status: Value = serde_json::from_slice(status)?;
    ensure!(status["token"].as_str().is_some_and(|token| token.split('.').count() == 3));

    // A change while the line is down arrives as a difference.
    ensure!(
        edge.changes == before,
        "the edge's own reports came back to it: {} changes",
        edge.changes - before
    );
    let store = std::mem::take(&mut edge.store);
    drop(edge);
    let change = json!({"data": {"k": "2"}});
    request(&client, "PATCH", "/api/v1/namespaces/default/configmaps/settings", Some(&change)).await?;
    let mut edge = Edge::connect(cloud.address, &identity, store).await?;
    edge.until("the change", |edge| {
        edge.synced
            && edge.json("ConfigMap/default/settings").is_some_and(|settings| settings["data"]["k"] == "2")
    })
    .await?;
    ensure!(edge.changes == 1, "{} changes for one", edge.changes);

    // A restart of cloudcore finds the same store in sync, and deletes nothing.
    let store = std::mem::take(&mut edge.store);
    let held = store.len();
    drop(edge);
    cloud.stop().await?;
    let cloud = Cloud::start(&cluster).await?;
    let mut edge = Edge::connect(cloud.address, &identity, store).await?;
    edge.until("sync after a restart", |edge| edge.synced).await?;
    ensure!((edge.changes, edge.store.len()) == (0, held));

    // A pod is deleted: the edge is told, and says when it is done.
    let id = edge.report(ReportKind::PodTerminated, "Pod/default/web", &json!({"uid": uid}));
    ensure!(!edge.ack(id).await?.is_empty(), "nobody has deleted it");
    cluster.kubectl(&["delete", "pod", "web", "--wait=false"]).await?;
    edge.until("deletion", |edge| {
        edge.json("Pod/default/web").is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_string())
    })
    .await?;
    let id = edge.report(ReportKind::PodTerminated, "Pod/default/web", &json!({"uid": uid}));
    ensure!(edge.ack(id).await?.is_empty());
    edge.until("removal", |edge| !edge.holds("Pod/default/web") && !edge.holds("ConfigMap/default/settings"))
        .await?;
    let id = edge.report(ReportKind::PodStatus, "Pod/default/web", &running(&uid));
    ensure!(!edge.ack(id).await?.is_empty(), "a late status of a pod that is gone is refused for good");

    // A Node that somebody deletes comes back while it is connected.
    cluster.kubectl(&["delete", "node", "edge-1"]).await?;
    let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(edge.ack(id).await?.is_empty());
    cluster.kubectl(&["delete", "node", "edge-1"]).await?;
    let uid = node["metadata"]["uid"].clone();
    edge.until("the new Node", |edge| {
        edge.json("Node//edge-1").is_some_and(|node| node["metadata"]["uid"] != uid)
    })
    .await?;
    cloud.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_gets_its_pods_and_reports() -> Result<()> {
    bench::run_without_product(whole_path).await
}

async fn confinement(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    prepare(&client).await?;
    let cloud = Cloud::start(&cluster).await?;
    let good = token(&client).await?;
    let mine = join(&client, cloud.address, "edge-1").await?;

    // Tokens.
    let keys = SigningKeys::from_secret(&secret(&client, "tokensecret").await?)?;
    let ca = secret(&client, "casecret").await?;
    let (_, csr) = tls::node_csr("edge-2")?;
    let expired = Token::parse(&keys.sign(&ca["cadata"], Duration::from_secs(1), now() - 100)?)?;
    let (code, body, _) = post_csr(cloud.address, &expired, "edge-2", csr.clone()).await?;
    ensure!(code == 401 && String::from_utf8_lossy(&body).contains("expired"), "{code} {body:?}");
    let foreign = Token::parse(&SigningKeys::generate(now())?.sign(&ca["cadata"], LONG, now())?)?;
    let (code, body, _) = post_csr(cloud.address, &foreign, "edge-2", csr.clone()).await?;
    ensure!(code == 401 && String::from_utf8_lossy(&body).contains("not issued"), "{code} {body:?}");
    let elsewhere = Token { ca_hash: [7; 32], ..good.clone() };
    let error = post_csr(cloud.address, &elsewhere, "edge-2", csr.clone()).await.err().context("pin")?;
    ensure!(format!("{error:#}").contains("OtherCa"), "{error:#}");
    // Signing requests.
    for (node, csr) in [
        ("edge-3", csr.clone()),
        ("edge-2", b"garbage".to_vec()),
        ("../x", csr.clone()),
        ("edge-2", vec![0; 70_000]),
    ] {
        let (code, body, _) = post_csr(cloud.address, &good, node, csr).await?;
        ensure!(code == 400, "{node}: {code} {body:?}");
    }

    // A certificate of another node.
    let mut edge = Edge::connect_as(cloud.address, &mine, "edge-2", BTreeMap::new()).await?;
    let refused = edge.until("refusal", |edge| edge.goodbye == Some(GoodbyeReason::Forbidden)).await;
    refused?;
    // Garbage and oversized frames end the session, and cloudcore lives on.
    for frame in [vec![0xff; 100], vec![1, 2, 3], Vec::new(), vec![0; MAX_FRAME + 1]] {
        let mut edge = Edge::connect(cloud.address, &mine, BTreeMap::new()).await?;
        edge.until("first sync", |edge| edge.synced).await?;
        // A link that is already torn down is what is wanted.
        drop(edge.send_raw(frame.into()).await);
        let ended = edge.until("goodbye", |edge| edge.goodbye == Some(GoodbyeReason::Violation)).await;
        ensure!(ended.is_ok() || edge.goodbye.is_none(), "the link is cut, or closed with a reason");
    }

    // Another node's objects.
    let theirs =
        request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("theirs", "edge-2"))).await?;
    let uid = &theirs["metadata"]["uid"];
    let mut edge = Edge::connect(cloud.address, &mine, BTreeMap::new()).await?;
    edge.until("first sync", |edge| edge.synced).await?;
    let event = |kind: &str, namespace: &str, name: &str| json!({"involvedObject": {"kind": kind, "namespace": namespace, "name": name, "uid": uid}, "reason": "R", "type": "Normal"});
    for (kind, key, payload) in [
        (ReportKind::NodeStatus, "Node//edge-2", node_report("edge-2")),
        (ReportKind::NodeStatus, "Node//edge-1", node_report("edge-2")),
        (ReportKind::PodStatus, "Pod/default/theirs", running(uid)),
        (ReportKind::PodStatus, "Pod/default/theirs%2fstatus", running(uid)),
        (ReportKind::PodTerminated, "Pod/default/theirs", json!({"uid": uid})),
        (ReportKind::Event, "Event/default/e1", event("Pod", "default", "theirs")),
        (ReportKind::Event, "Event/default/e2", event("Node", "", "edge-2")),
        (ReportKind::Event, "Event/default/e3", event("Secret", "default", "x")),
    ] {
        let id = edge.report(kind, key, &payload);
        ensure!(!edge.ack(id).await?.is_empty(), "{kind:?} {key} was taken");
    }
    let id = edge.ask(Question::ServiceAccountToken(TokenQuestion {
        namespace: "default".to_owned(),
        service_account: "default".to_owned(),
        pod_name: "theirs".to_owned(),
        pod_uid: uid.as_str().unwrap_or_default().to_owned(),
        audiences: Vec::new(),
        expiration_seconds: 3600,
    }));
    edge.until("answer", |edge| edge.answers.iter().any(|(of, _)| *of == id)).await?;
    ensure!(matches!(edge.answers[0].1, Answer::Refused(_)));
    ensure!(edge.store.keys().all(|key| key.kind() == "Node"), "{:?}", edge.store.keys());
    let theirs = get(&client, "/api/v1/namespaces/default/pods/theirs").await?;
    ensure!(theirs["status"]["phase"] == "Pending");

    // A newer session takes over, and the older one's end does not take it away.
    let mut newer = Edge::connect(cloud.address, &mine, BTreeMap::new()).await?;
    newer.until("first sync", |edge| edge.synced).await?;
    edge.until("goodbye", |edge| edge.goodbye == Some(GoodbyeReason::Superseded)).await?;
    drop(edge);
    request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("mine", "edge-1"))).await?;
    newer.until("the pod", |edge| edge.holds("Pod/default/mine")).await?;
    cloud.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_sees_and_writes_nothing_but_its_own() -> Result<()> {
    bench::run_without_product(confinement).await
}
