//! Several cloudcores: when the one that a node is with dies for good, the node is with another within seconds, which finds
//! nothing to send, and the node stays Ready.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{
    Bench, Site,
    product::{Cloud, Edge, Scene, pod, ready},
    setup::BUSYBOX,
    wait,
};
use serde_json::json;

use crate::{SPACE, is_over};

const NODE: &str = "edge-several";
const SOON: Duration = Duration::from_mins(1);
const BACK: Duration = Duration::from_secs(10);

pub(crate) async fn run(bench: &Bench, scene: &Scene, site: &Site) -> Result<()> {
    let own = Cloud::init(&bench.run, &bench.assets, &scene.cluster, &[site.host_address()]).await?;
    // Which one it begins with is a matter of its name; the other scenarios need theirs.
    let beat = ["modules.edgeHub.heartbeat=2"];
    let edge = Edge::join_several(&bench.assets, &[&own, &scene.cloud], site, NODE, &beat).await?;
    wait::until("the link over QUIC", SOON, async || is_over(&edge, "quic").await).await?;
    ensure!(
        has_session(&own).await? && !has_session(&scene.cloud).await?,
        "the node begins with the other one"
    );
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
        }],
    });
    scene.run(SPACE, &pod("before", NODE, &spec)).await?;

    own.kill9()?;
    let begun = Instant::now();
    wait::until("a session with the other cloudcore", BACK, async || {
        ensure!(has_session(&scene.cloud).await?, "it has none");
        is_over(&edge, "quic").await
    })
    .await?;
    ready(&scene.node(NODE).await?)?;
    let page: serde_json::Value = serde_json::from_str(&scene.cloud.admin("/sessions").await?.body)?;
    let sent = page[NODE]["sentBytes"]["objects"].as_u64();
    ensure!(sent.is_some_and(|bytes| bytes < 300), "a pod takes more, and it has it: {page}");
    eprintln!("with the other cloudcore after {:?}", begun.elapsed());
    scene.run(SPACE, &pod("after", NODE, &spec)).await?;
    Ok(())
}

async fn has_session(cloud: &Cloud) -> Result<bool> {
    Ok(cloud.admin("/sessions").await?.body.contains(NODE))
}
