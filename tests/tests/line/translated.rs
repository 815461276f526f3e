//! What translates addresses on the way forgets what it has: over QUIC the session goes on, over TCP there is another one.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{
    product::{Fault, Scene},
    wait,
};
use tokio::time::Instant;

use crate::{
    Node, SOON,
    line::{cuts::BACK, table::Table},
};

/// Each time the link has another port.
const TIMES: usize = 3;
/// Longer than a confirmation is put off, shorter than a heartbeat.
const QUIET: Duration = Duration::from_millis(500);

pub(crate) async fn run(scene: &Scene, node: &Node<'_>, table: &Table) -> Result<()> {
    // Translated from now on; over TCP that is another connection to begin with.
    node.wired.wire.rebind();
    node.wired.change(&scene.cluster).await?;
    node.wired.until_changed(&scene.cloud, SOON).await?;
    for _ in 0..TIMES {
        // Or what the edge still had to say would come first.
        quiet(node).await?;
        let ([_, before], sessions) = (node.wired.wire.counts(), node.wired.link().await?.sessions);
        let begun = Fault::Rebinding.begin(&node.wired, &scene.cloud, &scene.cluster)?;
        // The cloud speaks first: to a port that is nobody's.
        node.wired.change(&scene.cluster).await?;
        let over = begun.end(&node.wired, &scene.cluster)?;
        let at = node.wired.until_changed(&scene.cloud, BACK).await?;
        table.put(Fault::Rebinding.name(), node.transport, at.saturating_duration_since(over));
        let [_, now] = node.wired.wire.counts();
        ensure!(now.untranslated > before.untranslated, "nothing came to the port from before");
        let link = node.wired.link().await?;
        if node.transport == "quic" {
            node.has_kept(sessions).await?;
        } else {
            ensure!(link.sessions > sessions, "TCP has another port, and goes on: {link:?}");
        }
    }
    node.until_ready(scene).await
}

/// Nothing is under way.
async fn quiet(node: &Node<'_>) -> Result<()> {
    let (mut before, mut since) = (node.wired.wire.counts(), Instant::now());
    wait::until("the line quiet", SOON, async || {
        let now = node.wired.wire.counts();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() > QUIET, "{now:?}");
        Ok(())
    })
    .await
}
