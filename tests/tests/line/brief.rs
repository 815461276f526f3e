//! A line that is silent for less time than it takes to give it up, with the heartbeat that is the default: what was under way
//! is sent again ever more seldom. That is no reason to be late once the line is back; but over TCP, on a kernel that cannot be told so,
//! what the cloud has said is late by no more than the line was silent.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::{
    Silent, Site,
    product::{Fault, Scene},
};

use crate::{
    Node,
    line::{
        cuts::{BACK, lasts},
        table::Table,
    },
};

/// Two heartbeats are more than a minute. The change is made at the begin.
const SILENCES: [Duration; 2] = [Duration::from_secs(8), Duration::from_secs(22)];

pub(crate) async fn run(scene: &Scene, node: &Node<'_>, table: &Table) {
    for silence in SILENCES {
        let one = async {
            let begun = Fault::Silence(Silent::Both).begin(&node.wired, &scene.cloud, &scene.cluster)?;
            node.wired.change(&scene.cluster).await?;
            lasts(scene, silence).await?;
            let over = begun.end(&node.wired, &scene.cluster)?;
            let soon = node.transport == "quic" || Site::tcp_can_send_again_soon();
            let late = if soon { BACK } else { BACK + silence };
            let at = node.wired.until_changed(&scene.cloud, late).await?;
            let name = format!("silence of {} s, default beat", silence.as_secs());
            table.put(&name, node.transport, at.saturating_duration_since(over));
            node.until_ready(scene).await
        };
        let through: Result<()> = Box::pin(one).await;
        let what = || format!("silent for {silence:?}, {}: {}", node.name(), node.wired.wire.story());
        table.hold(through.with_context(what));
    }
}
