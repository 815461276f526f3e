//! A line that falls silent, in one direction or both, or comes and goes: what the cloud changed meanwhile is there soon
//! after it is back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Silent,
    product::{FLAP, Fault, Scene},
    wait,
};

use crate::{Node, SOON, line::table::Table};

const FAULTS: [Fault; 4] = [
    Fault::Silence(Silent::Both),
    Fault::Silence(Silent::Up),
    Fault::Silence(Silent::Down),
    Fault::Flapping(FLAP),
];
/// How long a line comes and goes.
const FLAPPING: Duration = Duration::from_secs(6);
/// The goal, over many cuts on a machine at rest, is half of it.
pub(crate) const BACK: Duration = Duration::from_secs(10);

pub(crate) async fn run(scene: &Scene, node: &Node<'_>, table: &Table) {
    for fault in FAULTS {
        let through = Box::pin(one(scene, node, fault, table)).await;
        let what = || format!("{}, {}: {}", fault.name(), node.name(), node.wired.wire.story());
        table.hold(through.with_context(what));
    }
}

pub(crate) async fn one(scene: &Scene, node: &Node<'_>, fault: Fault, table: &Table) -> Result<()> {
    let begun = fault.begin(&node.wired, &scene.cloud, &scene.cluster)?;
    match fault {
        Fault::Flapping(_) => lasts(scene, FLAPPING).await?,
        // It cannot be asked itself.
        Fault::EdgeStopped => forgotten(scene, node).await?,
        _ => noticed(node).await?,
    }
    let last_time = begun.last_time(&node.wired);
    node.wired.change(&scene.cluster).await?;
    if let Some(down) = last_time {
        lasts(scene, down).await?;
    }
    let over = begun.end(&node.wired, &scene.cluster)?;
    let at = node.wired.until_changed(&scene.cloud, BACK).await?;
    table.put(fault.name(), node.transport, at.saturating_duration_since(over));
    node.until_ready(scene).await
}

/// So much time passes, for all but the line.
pub(crate) async fn lasts(scene: &Scene, period: Duration) -> Result<()> {
    wait::holds("cloudcore up", period, async || {
        let answer = scene.cloud.admin("/readyz").await?;
        ensure!(answer.status == 200, "{}", answer.body);
        anyhow::Ok(())
    })
    .await
}

/// The cloud has given the node's session up.
async fn forgotten(scene: &Scene, node: &Node<'_>) -> Result<()> {
    wait::until("cloudcore giving the session up", SOON, async || {
        let sessions = scene.cloud.admin("/sessions").await?.body;
        ensure!(!sessions.contains(node.name()), "{sessions}");
        Ok(())
    })
    .await
}

/// The edge has given its session up.
pub(crate) async fn noticed(node: &Node<'_>) -> Result<()> {
    wait::until("the edge giving its line up", SOON, async || {
        let link = node.wired.link().await?;
        ensure!(!link.connected, "{link:?}");
        Ok(())
    })
    .await
}

/// One that is over as soon as it has begun.
pub(crate) async fn one_moment(scene: &Scene, node: &Node<'_>, fault: Fault, table: &Table) -> Result<()> {
    let begun = fault.begin(&node.wired, &scene.cloud, &scene.cluster)?;
    node.wired.change(&scene.cluster).await?;
    let over = begun.end(&node.wired, &scene.cluster)?;
    let at = node.wired.until_changed(&scene.cloud, BACK).await?;
    table.put(fault.name(), node.transport, at.saturating_duration_since(over));
    node.until_ready(scene).await
}
