//! Fifty pods at once, and gone at once.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{
    product::{is_running, pod},
    setup::BUSYBOX,
    wait,
};
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use crate::Node;

const SPACE: &str = "burst";
const COUNT: usize = 50;
const LIMIT: Duration = Duration::from_mins(4);

pub(crate) async fn run(node: &Node<'_>) -> Result<()> {
    node.scene.namespace(SPACE).await?;
    let pods = node.scene.pods(SPACE);
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": false,
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
        }],
    });
    let begun = Instant::now();
    for number in 0..COUNT {
        pods.create(&PostParams::default(), &pod(&format!("p{number}"), node.edge.name(), &spec)).await?;
    }
    wait::until("all of them running", LIMIT, async || {
        let all = pods.list(&ListParams::default()).await?.items;
        let running = all.iter().filter(|pod| is_running(pod).is_ok()).count();
        ensure!(running == COUNT, "{running} of {} run", all.len());
        Ok(())
    })
    .await?;
    eprintln!("{COUNT} pods run {:.1} s after the first was made", begun.elapsed().as_secs_f32());

    let begun = Instant::now();
    pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    wait::until("all of them gone", LIMIT, async || {
        let all = pods.list(&ListParams::default()).await?.items.len();
        ensure!(all == 0, "{all} are in the API");
        let left = node.site.containers().await?.into_iter().filter(|one| one.namespace == SPACE).count();
        ensure!(left == 0, "{left} containers are at the site");
        Ok(())
    })
    .await?;
    eprintln!("and are gone {:.1} s after they were deleted", begun.elapsed().as_secs_f32());
    Ok(())
}
