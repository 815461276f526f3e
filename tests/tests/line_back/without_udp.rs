//! UDP is dropped under a session over QUIC: the edge finds out when it has something to say.

use anyhow::{Result, ensure};
use harness::{Terms, product::ready, wait};
use tokio::time::Instant;

use crate::{BACK, Node, SOON, tell};

pub(crate) async fn run(node: &Node<'_>) -> Result<()> {
    node.until_over("quic").await?;
    let sessions = node.sessions().await?;
    node.wired.wire.set(&Terms { without_udp: true, ..Terms::default() });
    // The cloud speaks, and nobody hears it.
    node.wired.change(&node.scene.cluster).await?;
    node.speak().await?;
    let begun = Instant::now();
    let at = node.wired.until_changed(&node.scene.cloud, BACK).await?;
    tell("UDP blocked, from the edge's report on", at.saturating_duration_since(begun));
    node.until_over("websocket").await?;
    ensure!(node.sessions().await? == sessions + 1, "more than one session was needed");
    let name = node.wired.edge.name();
    wait::until("the node Ready", SOON, async || ready(&node.scene.node(name).await?)).await
}
