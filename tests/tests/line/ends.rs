//! The programs at the cloud's end stop, for longer than a heartbeat, or are killed: every node notices, and every node is
//! back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use harness::{
    product::{Fault, Scene},
    wait,
};
use tokio::time::Instant;

use crate::{
    Node,
    line::{
        cuts::{BACK, noticed},
        table::Table,
    },
};

/// Longer than any heartbeat, and than the Lease is renewed in.
const AWAY: Duration = Duration::from_secs(12);

pub(crate) async fn run(scene: &Scene, nodes: &[&Node<'_>], table: &Table) {
    table.hold(Box::pin(stopped(scene, nodes, table)).await.context("cloudcore stopped"));
    table.hold(Box::pin(killed(scene, nodes, table)).await.context("cloudcore killed"));
    table.hold(Box::pin(without_api_server(scene, nodes, table)).await.context("API server stopped"));
}

async fn stopped(scene: &Scene, nodes: &[&Node<'_>], table: &Table) -> Result<()> {
    let fault = Fault::CloudStopped;
    let begun = fault.begin(&nodes[0].wired, &scene.cloud, &scene.cluster)?;
    for node in nodes {
        noticed(node).await?;
        node.wired.change(&scene.cluster).await?;
    }
    let over = begun.end(&nodes[0].wired, &scene.cluster)?;
    back(scene, nodes, table, fault, over).await
}

async fn killed(scene: &Scene, nodes: &[&Node<'_>], table: &Table) -> Result<()> {
    let fault = Fault::CloudKilled;
    let begun = fault.begin(&nodes[0].wired, &scene.cloud, &scene.cluster)?;
    for node in nodes {
        node.wired.change(&scene.cluster).await?;
    }
    let over = begun.end(&nodes[0].wired, &scene.cluster)?;
    back(scene, nodes, table, fault, over).await
}

/// It hangs: connections stay. The links do, too.
async fn without_api_server(scene: &Scene, nodes: &[&Node<'_>], table: &Table) -> Result<()> {
    let mut sessions = Vec::new();
    for node in nodes {
        sessions.push(node.wired.link().await?.sessions);
    }
    let fault = Fault::ApiServerStopped;
    let begun = fault.begin(&nodes[0].wired, &scene.cloud, &scene.cluster)?;
    let held = wait::holds("every link up", AWAY, async || {
        for (node, sessions) in nodes.iter().zip(&sessions) {
            node.has_kept(*sessions).await?;
        }
        anyhow::Ok(())
    })
    .await;
    let over = begun.end(&nodes[0].wired, &scene.cluster)?;
    held?;
    for node in nodes {
        node.wired.change(&scene.cluster).await?;
    }
    back(scene, nodes, table, fault, over).await
}

/// Every node has what was changed, and is Ready.
async fn back(scene: &Scene, nodes: &[&Node<'_>], table: &Table, fault: Fault, over: Instant) -> Result<()> {
    let changed = nodes.iter().map(|node| node.wired.until_changed(&scene.cloud, BACK));
    let times = try_join_all(changed).await?;
    for (node, at) in nodes.iter().zip(times) {
        table.put(fault.name(), node.transport, at.saturating_duration_since(over));
        node.until_ready(scene).await?;
        let link = node.wired.link().await?;
        ensure!(link.connected, "{}: {link:?}", node.name());
    }
    Ok(())
}
