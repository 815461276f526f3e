//! The site's address changes, as from one network to another: the session over QUIC goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{
    Bench, Site,
    product::{Scene, pod},
    setup::BUSYBOX,
    wait,
};
use serde_json::json;

use crate::{SPACE, is_over};

const NODE: &str = "edge-moved";
const SOON: Duration = Duration::from_mins(1);

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<()> {
    let edge = scene.join(bench, site, NODE).await?;
    wait::until("the link over QUIC", SOON, async || is_over(&edge, "quic").await).await?;
    let sessions = edge.metric("edgecore_sessions").await?;
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
        }],
    });
    for round in 0..4 {
        let address = site.change_address(round % 2 == 0)?.to_string();
        scene.run(SPACE, &pod(&format!("at-address-{round}"), NODE, &spec)).await?;
        wait::until("the new address in the node's status", SOON, async || {
            let addresses =
                scene.node(NODE).await?.status.and_then(|status| status.addresses).unwrap_or_default();
            ensure!(addresses.iter().any(|one| one.address == address), "not {address}: {addresses:?}");
            Ok(())
        })
        .await?;
    }
    is_over(&edge, "quic").await?;
    let now = edge.metric("edgecore_sessions").await?;
    ensure!(now == sessions, "{} more sessions", now - sessions);
    Ok(())
}
