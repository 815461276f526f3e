//! UDP is dropped in silence, and gets through again: the link moves to the WebSocket and back, and nobody notices but the
//! logs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, Site,
    product::{Life, Scene, pod, ready},
    setup::BUSYBOX,
    wait,
};
use kube::ResourceExt;
use serde_json::json;

use crate::{SPACE, is_over};

const NODE: &str = "edge-blocked";
const SOON: Duration = Duration::from_mins(1);
/// QUIC is tried again after a minute at most.
const AGAIN: Duration = Duration::from_secs(100);
/// How long the node is watched: several heartbeats.
const WATCHED: Duration = Duration::from_secs(8);

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<()> {
    let edge = scene.join(bench, site, NODE).await?;
    wait::until("the link over QUIC", SOON, async || is_over(&edge, "quic").await).await?;
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
        }],
    });
    let first = scene.run(SPACE, &pod("over-quic", NODE, &spec)).await?;
    let life = Life::of(site, &first.uid().context("a pod has a uid")?).await?;

    site.block_udp()?;
    wait::until("the link over the WebSocket", SOON, async || is_over(&edge, "websocket").await).await?;
    scene.run(SPACE, &pod("over-websocket", NODE, &spec)).await?;
    let sessions: serde_json::Value = serde_json::from_str(&scene.cloud.admin("/sessions").await?.body)?;
    let seen = &sessions[NODE];
    let status = seen["receivedBytes"]["status"].as_u64().unwrap_or_default();
    ensure!(seen["transport"] == "websocket" && status > 0, "cloudcore shows {seen}");
    wait::holds("the node Ready", WATCHED, async || ready(&scene.node(NODE).await?)).await?;

    site.unblock_udp()?;
    wait::until("the link over QUIC again", AGAIN, async || is_over(&edge, "quic").await).await?;
    scene.run(SPACE, &pod("over-quic-again", NODE, &spec)).await?;
    ready(&scene.node(NODE).await?)?;
    life.check(site).await
}
