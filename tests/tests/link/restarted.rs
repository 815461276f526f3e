//! cloudcore is killed and comes back. With its socket nothing says so to an edge that has nothing to send, and whose next
//! heartbeat over QUIC may be 44 s away; that it is asked for one brings it back at once. How it and its pod are it tells anew, and
//! what of it has not changed is not written anew.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{
    Bench, Site,
    process::kill9,
    product::{Edge, Scene, pod},
    setup::BUSYBOX,
    wait,
};
use serde_json::json;

use crate::{SPACE, is_over};

const NODE: &str = "edge-restarted";
const SOON: Duration = Duration::from_mins(1);
/// Kubernetes calls a node unreachable 40 to 50 s after its last lease.
const BACK: Duration = Duration::from_secs(15);

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<()> {
    // With the heartbeat that is the default.
    let edge = Edge::join(&bench.assets, &scene.cloud, site, NODE, &[]).await?;
    wait::until("the link over QUIC", SOON, async || is_over(&edge, "quic").await).await?;
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
        }],
    });
    scene.run(SPACE, &pod("told", NODE, &spec)).await?;
    for _ in 0..2 {
        let sessions = edge.metric("edgecore_sessions").await?;
        let old = scene.cloud.pid()?;
        kill9(old)?;
        wait::until("another session over QUIC", BACK, async || {
            ensure!(scene.cloud.pid()? != old, "no other cloudcore");
            ensure!(edge.metric("edgecore_sessions").await? > sessions, "the old session goes on");
            is_over(&edge, "quic").await
        })
        .await?;
        wait::until("the statuses told again", SOON, async || {
            let metrics = scene.cloud.admin("/metrics").await?.body;
            let told = metrics.lines().filter(|line| line.starts_with("cloudcore_reports_total{"));
            let told: Vec<&str> = told.filter(|line| line.contains(" status\"")).collect();
            for kind in ["node status", "pod status"] {
                let same = format!("kind=\"{kind}\",outcome=\"Unchanged\"}}");
                ensure!(told.iter().any(|line| line.contains(&same)), "{told:?}");
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}
