//! A node's name belongs to one machine at a time, and an operator can shut it out.

use anyhow::{Context, Result, ensure};
use harness::{Bench, ClusterOptions, wait};
use proto::message::{GoodbyeReason, ReportKind};
use serde_json::json;

use crate::{
    cloud::{Cloud, get, join, node_report, request, token, token_for},
    edge::{Edge, Identity, LONG, Stored, check_token, enroll, release},
};

const NODE: &str = "/api/v1/nodes/edge-1";

pub(crate) async fn holder(bench: &Bench) -> Result<()> {
    let cluster = bench.cluster(&ClusterOptions::default()).await?;
    let client = cluster.client();
    let cloud = Cloud::start(cluster.kubeconfig()).await?;
    let address = cloud.address;
    let any = token(&client).await?;
    let first = join(&client, address, "edge-1").await?;
    let mut edge = register(&cloud, &first).await?;

    // Whoever holds a token does not get a name that is taken, nor that of a node of the cluster.
    let error = enroll(address, &any, "edge-1").await.err().context("refused")?.to_string();
    ensure!(error.contains("403") && error.contains("keadm gettoken --node=edge-1"), "{error}");
    let (code, reason) = check_token(address, &any, "edge-1").await?;
    ensure!(code == 403 && reason.contains("has joined as edge-1 before"), "{code} {reason}");
    let control_plane = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "master"}});
    request(&client, "POST", "/api/v1/nodes", Some(&control_plane)).await?;
    let own = token_for(&client, Some("master")).await?;
    let error = enroll(address, &own, "master").await.err().context("refused")?.to_string();
    ensure!(error.contains("no edge node"), "{error}");
    let (code, reason) = check_token(address, &own, "edge-2").await?;
    ensure!(code == 403 && reason.contains("for node master"), "{code} {reason}");
    ensure!(check_token(address, &any, "edge-2").await?.0 == 200);

    // A token for the node does; the machine that was the node is out at once, and stays out.
    let own = token_for(&client, Some("edge-1")).await?;
    let (second, ()) = tokio::try_join!(enroll(address, &own, "edge-1"), out(&mut edge))?;
    let mut edge = register(&cloud, &second).await?;
    refused(&cloud, &first).await?;

    // An operator shuts it out, and lets it in again.
    let key = get(&client, NODE).await?["metadata"]["annotations"]["skerry.io/enrolled-key"].clone();
    let key = key.as_str().unwrap_or_default();
    let annotate = async |value: &str| {
        let annotation = format!("skerry.io/enrolled-key={value}");
        cluster.kubectl(&["annotate", "--overwrite", "node", "edge-1", &annotation]).await
    };
    tokio::try_join!(annotate("revoked"), out(&mut edge))?;
    refused(&cloud, &second).await?;
    // Also by a cloudcore that has not listed the nodes yet.
    cloud.stop().await?;
    let cloud = Cloud::start(cluster.kubeconfig()).await?;
    let address = cloud.address;
    refused(&cloud, &second).await?;
    annotate(key).await?;
    let edge = register(&cloud, &second).await?;

    // A machine that leaves makes room for the next; one that is not the node any more does not.
    ensure!(release(address, &first).await? == 200);
    ensure!(check_token(address, &any, "edge-1").await?.0 == 403);
    drop(edge);
    ensure!(release(address, &second).await? == 200);
    let third = enroll(address, &any, "edge-1").await?;
    drop(register(&cloud, &third).await?);

    // So does whoever deletes the Node.
    cluster.kubectl(&["delete", "node", "edge-1"]).await?;
    let fourth = enroll(address, &any, "edge-1").await?;
    drop(register(&cloud, &fourth).await?);
    refused(&cloud, &third).await?;
    cloud.stop().await
}

/// Waits until the session is ended for good reason.
async fn out(edge: &mut Edge) -> Result<()> {
    edge.until("goodbye", |edge| edge.goodbye == Some(GoodbyeReason::Forbidden)).await
}

/// Connects and registers: from here on the name is the machine's.
async fn register(cloud: &Cloud, identity: &Identity) -> Result<Edge> {
    wait::until("the node is registered", LONG, async || {
        let mut edge = Edge::connect(cloud.address, identity, Stored::default()).await?;
        let id = edge.report(ReportKind::NodeStatus, "Node//edge-1", &node_report("edge-1"));
        let refused = edge.ack(id).await?;
        ensure!(refused.is_empty(), "{refused}");
        edge.until("its Node", |edge| edge.synced && edge.holds("Node//edge-1")).await?;
        Ok(edge)
    })
    .await
}

async fn refused(cloud: &Cloud, identity: &Identity) -> Result<()> {
    let error = Edge::refusal(cloud.address, identity).await?;
    ensure!(error.contains("403"), "{error}");
    Ok(())
}
