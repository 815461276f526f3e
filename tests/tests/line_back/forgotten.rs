//! What is on the way forgets where the edge is, and the cloud speaks first; and the edge's address changes, which its kernel tells it.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use crate::{BACK, Node, tell};

/// The edge says something by itself this often over QUIC, and not before does anybody know where it is.
const PING: Duration = Duration::from_secs(44);
/// Shorter than that, and longer than half of it.
const MEMORY: Duration = Duration::from_secs(30);
const CHANGES: usize = 3;
/// Longer than the translator remembers.
const IDLE: Duration = Duration::from_secs(33);

pub(crate) async fn run(node: &Node<'_>) -> Result<()> {
    let (scene, wire) = (node.scene, &node.wired.wire);
    node.until_over("quic").await?;
    let sessions = node.sessions().await?;
    // The kernel tells of it, so the cloud is told at once.
    for second in [true, false] {
        let begun = Instant::now();
        node.site.change_address(second)?;
        node.wired.change(&scene.cluster).await?;
        let at = node.wired.until_changed(&scene.cloud, BACK).await?;
        tell("address changed, the cloud speaks first", at.saturating_duration_since(begun));
    }
    // What is on the way tells nothing: the edge's next ping is what the cloud waits for. Once, because it is learnt from.
    wire.forget_after(MEMORY);
    for change in 0..CHANGES {
        idle(node).await?;
        let [_, before] = wire.counts();
        let took = node.changes(&scene.cloud, if change == 0 { PING + BACK } else { BACK }).await?;
        let [_, now] = wire.counts();
        let forgotten = now.untranslated > before.untranslated;
        ensure!(forgotten == (change == 0), "change {change}: forgotten on the way: {forgotten}");
        tell(&format!("idle for longer than it is remembered, change {change}"), took);
    }
    ensure!(node.sessions().await? == sessions, "there was another session");
    Ok(())
}

/// So much time passes in which the cloud has nothing to say.
async fn idle(node: &Node<'_>) -> Result<()> {
    harness::wait::holds("the link up", IDLE, async || {
        let link = node.wired.link().await?;
        ensure!(link.connected, "{link:?}");
        anyhow::Ok(())
    })
    .await
}
