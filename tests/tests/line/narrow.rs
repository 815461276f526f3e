//! A line that swallows long packets, and tells nobody: QUIC does not even begin there, whose first packets are long, and a
//! session that had begun before is one where small things come through and large ones do not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Terms,
    product::{Fault, Scene},
    wait,
};

use tokio::time::Instant;

use crate::{
    Node, SOON,
    line::{cuts, table::Table},
    named,
};

/// Of an IP packet. QUIC's first ones have 1228 at least.
const MTU: usize = 1200;
/// Of eight bytes: several packets.
const WORDS: u64 = 600;
/// Until it is found out that large packets do not come through.
const FOUND_OUT: Duration = Duration::from_secs(30);
/// The same, soon after a silence, which may count as a round trip.
const FOUND_OUT_LATER: Duration = Duration::from_mins(1);

pub(crate) fn terms() -> Terms {
    Terms { mtu: Some(MTU), ..Terms::default() }
}

/// The node has joined over the narrow line.
pub(crate) async fn run(scene: &Scene, node: &Node<'_>, table: &Table) {
    let all = [
        named("narrow from the start", from_the_start(scene, node)).await,
        named("narrow under a session", under_a_session(scene, node, table)).await,
        named("no UDP, and edgecore stopped", others(scene, node, table)).await,
    ];
    for through in all {
        table.hold(through.with_context(|| node.wired.wire.story()));
    }
}

async fn from_the_start(scene: &Scene, node: &Node<'_>) -> Result<()> {
    is_over(node, "websocket").await?;
    let sessions = node.wired.link().await?.sessions;
    large_change(scene, node, SOON).await?;
    node.has_kept(sessions).await
}

async fn under_a_session(scene: &Scene, node: &Node<'_>, table: &Table) -> Result<()> {
    node.wired.wire.heal();
    // Another process remembers nothing of the line.
    cuts::one_moment(scene, node, Fault::EdgeKilled, table).await?;
    is_over(node, "quic").await?;
    node.wired.wire.set(&terms());
    let took = large_change(scene, node, FOUND_OUT).await?;
    table.put("MTU 1200 under a session", node.transport, took);
    is_over(node, "websocket").await
}

/// Which have nothing to do with it, but with a node that may use either.
async fn others(scene: &Scene, node: &Node<'_>, table: &Table) -> Result<()> {
    node.wired.wire.heal();
    cuts::one_moment(scene, node, Fault::EdgeKilled, table).await?;
    is_over(node, "quic").await?;
    cuts::one_moment(scene, node, Fault::WithoutUdp, table).await?;
    is_over(node, "websocket").await?;
    node.wired.wire.heal();
    cuts::one(scene, node, Fault::EdgeStopped, table).await
}

/// A session over QUIC, where nothing else may be used, with the heartbeat that is the default: nobody says anything of himself.
pub(crate) async fn in_a_quiet_session(scene: &Scene, node: &Node<'_>, table: &Table) -> Result<()> {
    let through = async {
        is_over(node, "quic").await?;
        node.wired.wire.set(&terms());
        let begun = Instant::now();
        node.wired.change_to(&scene.cluster, WORDS).await?;
        wait::until("the session given up", FOUND_OUT_LATER, async || {
            let link = node.wired.link().await?;
            ensure!(!link.connected, "{link:?}");
            Ok(())
        })
        .await?;
        table.put("MTU 1200, default beat: given up", node.transport, begun.elapsed());
        node.wired.wire.heal();
        node.wired.until_changed(&scene.cloud, cuts::BACK).await?;
        node.until_ready(scene).await
    };
    let through: Result<()> = Box::pin(through).await;
    node.wired.wire.heal();
    through.with_context(|| format!("narrow, {}: {}", node.name(), node.wired.wire.story()))
}

async fn large_change(scene: &Scene, node: &Node<'_>, limit: Duration) -> Result<Duration> {
    let begun = Instant::now();
    node.wired.change_to(&scene.cluster, WORDS).await?;
    let at = node.wired.until_changed(&scene.cloud, limit).await?;
    Ok(at.saturating_duration_since(begun))
}

async fn is_over(node: &Node<'_>, transport: &str) -> Result<()> {
    wait::until(&format!("the link over {transport}"), SOON, async || {
        let link = node.wired.link().await?;
        ensure!(link.connected && link.synced && link.transport == transport, "{link:?}");
        Ok(())
    })
    .await
}
