//! A pod that is deleted gets its time to end, and stays in the API for as long as a finalizer holds it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{product::pod, setup::BUSYBOX, wait};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::Node;

const SPACE: &str = "deletion";
const SOON: Duration = Duration::from_secs(90);
/// Ends in its own time once it is asked to, with a code that tells it from one that was killed.
const SCRIPT: &str = "trap 'sleep 2; exit 7' TERM; touch /tmp/listens; while true; do sleep 0.1; done";
const EXIT: i32 = 7;

pub(crate) async fn run(node: &Node<'_>) -> Result<()> {
    let scene = node.scene;
    scene.namespace(SPACE).await?;
    let pods = scene.pods(SPACE);
    let spec = json!({
        "terminationGracePeriodSeconds": 60,
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/sh", "-c", SCRIPT],
            // Before that, the first process of a container does not hear a signal.
            "readinessProbe": { "exec": { "command": ["test", "-e", "/tmp/listens"] }, "periodSeconds": 1 },
        }],
    });
    let mut held = pod("held", node.edge.name(), &spec);
    held.finalizers_mut().push("skerry.test/hold".to_owned());
    let uid = scene.run(SPACE, &held).await?.uid().context("a pod has a uid")?;

    pods.delete("held", &DeleteParams::default()).await?;
    wait::until("the container ended in its own time", SOON, async || {
        let pod = pods.get("held").await?;
        let statuses = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
        let state = statuses.into_iter().next().and_then(|status| status.state).unwrap_or_default();
        let ended = state.terminated.context("its container has not terminated")?;
        ensure!(ended.exit_code == EXIT, "it ended with {}", ended.exit_code);
        Ok(())
    })
    .await?;
    let containers = node.site.containers().await?;
    ensure!(!containers.iter().any(|one| one.pod_uid == uid && one.running && !one.sandbox));

    let none = json!({ "metadata": { "finalizers": null } });
    pods.patch("held", &PatchParams::default(), &Patch::Merge(none)).await?;
    wait::until("the pod gone from the API and the site", SOON, async || {
        ensure!(pods.get_opt("held").await?.is_none(), "it is still in the API");
        node.site.has_nothing_of(&uid).await
    })
    .await
}
