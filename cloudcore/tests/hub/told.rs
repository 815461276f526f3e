//! What the API server has already is not written again, and what somebody else has made of it is written over.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use harness::{Bench, Cluster, ClusterOptions, wait};
use proto::message::ReportKind;
use serde_json::{Value, json};

use crate::{
    cloud::{Cloud, get, join, node_report, pod, prepare, ready, request, running},
    edge::{Edge, LONG, Stored},
};

const PODS: &str = "/api/v1/namespaces/default/pods";
const POD: &str = "Pod/default/web";
const NODE: &str = "Node//edge-1";

pub(crate) async fn told(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    prepare(&client).await?;
    let cloud = Cloud::start(cluster.kubeconfig()).await?;
    let identity = join(&client, cloud.address, "edge-1").await?;
    let mut edge = Edge::connect(cloud.address, &identity, Stored::default()).await?;
    let made = request(&client, "POST", PODS, Some(&pod("web", "edge-1"))).await?;
    let uid = &made["metadata"]["uid"];
    edge.until("the pod", |edge| edge.synced && edge.holds(POD)).await?;
    tell(&mut edge, uid).await?;
    let protected = |edge: &Edge| {
        let tolerations = edge.json(POD).unwrap_or_default()["spec"]["tolerations"].to_string();
        tolerations.len() > 2 && !tolerations.contains("tolerationSeconds")
    };
    edge.until("its protection", protected).await?;

    // Another cloudcore, another session: everything is said again, and nothing of it is new.
    let store = std::mem::take(&mut edge.store);
    drop(edge);
    cloud.stop().await?;
    let cloud = Cloud::start(cluster.kubeconfig()).await?;
    let mut edge = Edge::connect(cloud.address, &identity, store).await?;
    edge.until("sync", |edge| edge.synced).await?;
    let before = writes(&cluster, "pods").await?;
    ensure!(before > 0);
    tell(&mut edge, uid).await?;
    // The Node leads to this cloudcore now.
    wait_until_unwritten(&cluster, &mut edge, uid).await?;
    let nodes = writes(&cluster, "nodes").await?;
    // Longer than it takes to look whether all is as it was told.
    edge.idle_for_heartbeats(3).await?;
    let after = (writes(&cluster, "pods").await?, writes(&cluster, "nodes").await?);
    ensure!(after == (before, nodes), "written again: {before} and {nodes} became {after:?}");

    // Somebody else's word does not stand against the edge's.
    let path = format!("{PODS}/web/status");
    let other = json!({"status": {"podIP": "10.9.9.9", "podIPs": [{"ip": "10.9.9.9"}], "reason": "Other",
        "conditions": [{"type": "Ready", "status": "False"}]}});
    request(&client, "PATCH", &path, Some(&other)).await?;
    let other =
        json!({"status": {"capacity": {"cpu": "64"}, "conditions": [{"type": "Ready", "status": "False"}]}});
    request(&client, "PATCH", "/api/v1/nodes/edge-1/status", Some(&other)).await?;
    let healed = wait::until("both are as the edge has said", LONG, async || {
        let web = get(&client, &format!("{PODS}/web")).await?;
        let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z",
            "lastProbeTime": null});
        ensure!(web["status"]["podIP"] == "10.1.1.1", "{web}");
        ensure!(web["status"]["conditions"].as_array().is_some_and(|all| all.contains(&condition)), "{web}");
        let node = get(&client, "/api/v1/nodes/edge-1").await?;
        ensure!(node["status"]["capacity"]["cpu"] == "2", "{node}");
        ensure!(ready(&client, "edge-1").await? == "True", "{node}");
        Ok(())
    });
    tokio::select! {
        healed = healed => healed?,
        lost = edge.until("never", |_| false) => return lost.context("the session is to live on"),
    }

    // What others add stays, as the node problem detector's conditions do: it is written over once in vain, not at each look.
    for path in ["/api/v1/nodes/edge-1".to_owned(), format!("{PODS}/web")] {
        let mut conditions = get(&client, &path).await?["status"]["conditions"].take();
        conditions.as_array_mut().context("conditions")?.push(json!({"type": "Added", "status": "False"}));
        let added = json!({"status": {"conditions": conditions}});
        request(&client, "PATCH", &format!("{path}/status"), Some(&added)).await?;
    }
    let before = (writes(&cluster, "pods").await?, writes(&cluster, "nodes").await?);
    edge.idle_for_heartbeats(3).await?;
    let after = (writes(&cluster, "pods").await?, writes(&cluster, "nodes").await?);
    ensure!(after.0 <= before.0 + 1 && after.1 <= before.1 + 1, "{before:?} became {after:?}");
    for path in ["/api/v1/nodes/edge-1".to_owned(), format!("{PODS}/web")] {
        let object = get(&client, &path).await?;
        let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        ensure!(conditions.any(|condition| condition["type"] == "Added"), "{object}");
    }
    cloud.stop().await
}

async fn tell(edge: &mut Edge, uid: &Value) -> Result<()> {
    let node = edge.report(ReportKind::NodeStatus, NODE, &node_report("edge-1"));
    let pod = edge.report(ReportKind::PodStatus, POD, &running(uid));
    ensure!(edge.ack(node).await?.is_empty() && edge.ack(pod).await?.is_empty());
    Ok(())
}

/// Until the cache has what was written last, so that telling it again writes nothing.
async fn wait_until_unwritten(cluster: &Cluster, edge: &mut Edge, uid: &Value) -> Result<()> {
    let begun = Instant::now();
    loop {
        let before = writes(cluster, "nodes").await?;
        tell(edge, uid).await?;
        let after = writes(cluster, "nodes").await?;
        if after == before {
            return Ok(());
        }
        ensure!(begun.elapsed() < LONG, "the Node's status is written each time: {after}");
    }
}

/// How often somebody has written the status of one of these, by the API server's own count.
async fn writes(cluster: &Cluster, resource: &str) -> Result<u64> {
    let metrics = cluster.kubectl(&["get", "--raw=/metrics"]).await?;
    let counts = metrics.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("subresource=\"status\"")
            && line.contains(&format!("resource=\"{resource}\""))
            && ["verb=\"APPLY\"", "verb=\"PATCH\""].iter().any(|verb| line.contains(verb))
    });
    counts.map(|line| Ok(line.rsplit(' ').next().context("a metric without a value")?.parse::<u64>()?)).sum()
}
