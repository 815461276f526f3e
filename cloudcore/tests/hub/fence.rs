//! A node goes on to another replica while the one that it was with has a status of it that it cannot write: when it can again, the
//! newer one stays, and its session ends.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Bench, ClusterOptions, wait};
use kube::Client;
use proto::message::{GoodbyeReason, ReportKind};
use serde_json::{Value, json};

use crate::{
    cloud::{Cloud, get, join, node_report, pod, prepare, request, running},
    edge::{Edge, LONG, Stored},
    outage::{Line, through_a_line},
};

const POD: &str = "/api/v1/namespaces/default/pods/web";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";

fn at(address: &str, uid: &Value) -> Value {
    let mut report = running(uid);
    report["status"]["podIP"] = address.into();
    report["status"]["podIPs"] = json!([{ "ip": address }]);
    report
}

pub(crate) async fn fence(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    prepare(&client).await?;
    let (port, path) = through_a_line(&cluster).await?;
    let line = Line::up(port, cluster.port()).await?;
    let cut_off = Cloud::start(&path).await?;
    let other = Cloud::start(cluster.kubeconfig()).await?;
    let identity = join(&client, other.address, "edge-1").await?;
    let key = "Pod/default/web";

    let mut old = Edge::connect_beating(cut_off.address, &identity, Stored::default(), LONG).await?;
    let id = old.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
    ensure!(old.ack(id).await?.is_empty());
    let made =
        request(&client, "POST", "/api/v1/namespaces/default/pods", Some(&pod("web", "edge-1"))).await?;
    let uid = &made["metadata"]["uid"];
    old.until("the pod", |edge| edge.synced && edge.holds(key)).await?;
    // One after the other, while others write to it, too.
    for round in 0..5 {
        let id = old.report(ReportKind::PodStatus, key, &at("10.1.1.1", uid));
        let label = json!({"metadata": {"labels": {"round": round.to_string()}}});
        request(&client, "PATCH", POD, Some(&label)).await?;
        ensure!(old.ack(id).await?.is_empty());
    }
    // Whoever writes to the Lease, or deletes it, takes no session's claim away for good.
    let first = meanwhile(&mut old, claim_where(&client, |_| true)).await?;
    let touched = json!({"metadata": {"annotations": {"touched": "true"}}});
    let touched = request(&client, "PATCH", LEASE, Some(&touched)).await?["spec"]["renewTime"].clone();
    let same = claim_where(&client, |lease| lease["spec"]["renewTime"] != touched);
    ensure!(meanwhile(&mut old, same).await? == first, "another claim, and nobody else has claimed");
    // What is not ours stays, over one renewal and the next, until whoever put it there takes it away.
    let renewed = get(&client, LEASE).await?["spec"]["renewTime"].clone();
    let same = claim_where(&client, |lease| lease["spec"]["renewTime"] != renewed);
    ensure!(meanwhile(&mut old, same).await? == first);
    let lease = get(&client, LEASE).await?;
    ensure!(lease["metadata"]["annotations"]["touched"] == "true", "{lease}");
    let untouched = json!({"metadata": {"annotations": {"touched": null}}});
    let untouched = request(&client, "PATCH", LEASE, Some(&untouched)).await?["spec"]["renewTime"].clone();
    let same = claim_where(&client, |lease| lease["spec"]["renewTime"] != untouched);
    ensure!(meanwhile(&mut old, same).await? == first, "another claim, and nobody else has claimed");
    request(&client, "DELETE", LEASE, None).await?;
    ensure!(meanwhile(&mut old, claim_where(&client, |_| true)).await? != first);
    let id = old.report(ReportKind::PodStatus, key, &at("10.1.1.2", uid));
    ensure!(old.ack(id).await?.is_empty());

    // It has a status that it cannot write, and hears no more of its edge.
    drop(line);
    let late = old.report(ReportKind::PodStatus, key, &at("10.1.1.3", uid));
    let lost = old.report(ReportKind::NodeStatus, "Node//edge-1", &of_image("old"));
    old.idle(Duration::from_secs(2)).await?;
    ensure!(old.acks.iter().all(|ack| ack.id != late && ack.id != lost), "{:?}", old.acks);

    let mut new = Edge::connect(other.address, &identity, std::mem::take(&mut old.store)).await?;
    let id = new.report(ReportKind::PodStatus, key, &at("10.1.1.4", uid));
    ensure!(new.ack(id).await?.is_empty());
    let id = new.report(ReportKind::NodeStatus, "Node//edge-1", &of_image("new"));
    ensure!(new.ack(id).await?.is_empty());

    let _line = Line::up(port, cluster.port()).await?;
    // The newer session lives on, and longer than the older one tries.
    let (goodbye, ()) = tokio::try_join!(old.last_word(), new.idle(Duration::from_secs(15)))?;
    ensure!(goodbye == Some(GoodbyeReason::ShuttingDown), "{goodbye:?}");
    ensure!(old.acks.iter().all(|ack| ack.id != late && ack.id != lost), "{:?}", old.acks);
    let web = get(&client, POD).await?;
    ensure!(web["status"]["podIP"] == "10.1.1.4", "the older status is there: {web}");
    let node = get(&client, "/api/v1/nodes/edge-1").await?;
    ensure!(node["status"]["nodeInfo"]["osImage"] == "new", "the older status is there: {node}");
    let id = new.report(ReportKind::PodStatus, key, &at("10.1.1.5", uid));
    ensure!(new.ack(id).await?.is_empty());
    cut_off.stop().await?;
    other.stop().await
}

/// The claim in the Lease, once the Lease is as wanted.
async fn claim_where(client: &Client, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until("the claim", LONG, async || {
        let lease = get(client, LEASE).await?;
        let claim = lease["metadata"]["annotations"]["skerry.io/session"].clone();
        ensure!(claim.is_string() && wanted(&lease), "{lease}");
        Ok(claim)
    })
    .await
}

/// What comes of `work` while the edge goes on.
async fn meanwhile<T>(edge: &mut Edge, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        Err(error) = edge.until("what goes on beside it", |_| false) => Err(error),
    }
}

fn of_image(image: &str) -> Value {
    let mut report = node_report("edge-1");
    report["status"]["nodeInfo"]["osImage"] = image.into();
    report
}
