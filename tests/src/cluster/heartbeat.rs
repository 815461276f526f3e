//! Healthy nodes beside the one that a test cuts off.
//!
//! While every node of a cluster is unreachable, kube-controller-manager stops evicting altogether. A cluster whose
//! only node is the one under test would therefore pass every test of eviction. These nodes have no machine behind
//! them: they exist as a Node object, a Ready condition and a Lease that is renewed, which is all that the node
//! lifecycle controller looks at. Their taint keeps every pod away, so nothing ever has to run on them; they stand
//! for nothing else, and no test may take one for a kubelet.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

const TAINT: &str = "skerry.test/heartbeat-only";
/// Well inside the shortest grace period that a test would set.
const PERIOD: Duration = Duration::from_secs(2);

/// Nodes that beat until this is dropped.
pub struct HeartbeatNodes {
    names: Vec<String>,
    _beats: JoinSet<()>,
}

impl HeartbeatNodes {
    /// Registers `count` nodes, `cloud-1` and on, and keeps them Ready.
    pub async fn start(client: &Client, count: usize) -> Result<Self> {
        let names: Vec<String> = (1..=count).map(|number| format!("cloud-{number}")).collect();
        for name in &names {
            register(client, name).await.with_context(|| format!("failed to register {name}"))?;
        }
        let mut beats = JoinSet::new();
        beats.spawn(beat(client.clone(), names.clone()));
        Ok(Self { names, _beats: beats })
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }
}

async fn register(client: &Client, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" } },
        "spec": { "taints": [{ "key": TAINT, "effect": "NoSchedule" }] },
    }))?;
    nodes.create(&PostParams::default(), &node).await?;
    ready(&nodes, name).await?;
    renew(client, name).await
}

async fn ready(nodes: &Api<Node>, name: &str) -> Result<()> {
    let now = Time(Timestamp::now());
    let condition = json!({
        "type": "Ready", "status": "True", "reason": "Heartbeat", "message": "no machine behind this node",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    });
    let status = json!({ "status": { "conditions": [condition] } });
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    Ok(())
}

async fn renew(client: &Client, name: &str) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": name },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": MicroTime(Timestamp::now()) },
    });
    leases.patch(name, &PatchParams::apply("heartbeat").force(), &Patch::Apply(lease)).await?;
    Ok(())
}

/// Renews each Lease. A failed renewal is told and tried again at the next beat, as a kubelet would.
async fn beat(client: Client, names: Vec<String>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        for name in &names {
            if let Err(error) = renew(&client, name).await {
                eprintln!("harness: failed to renew the lease of {name}: {error:#}");
            }
        }
    }
}
