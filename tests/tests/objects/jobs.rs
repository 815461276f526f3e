//! A Job ends once; a restart of edgecore does not run it again. A `DaemonSet` has a pod on each node. A pod past its
//! deadline has failed once nothing of it runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    process::{kill9, wait_gone},
    product::pod,
    setup::BUSYBOX,
    wait,
};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStateTerminated, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::json;

use crate::Node;

const SPACE: &str = "jobs";
const SOON: Duration = Duration::from_secs(90);
/// How long edgecore is watched after its restart: several of its rounds.
const ROUNDS: Duration = Duration::from_secs(4);

pub(crate) async fn run(one: &Node<'_>, two: &Node<'_>) -> Result<()> {
    let scene = one.scene;
    scene.namespace(SPACE).await?;
    scene.cluster.apply(include_str!("jobs.yaml")).await?;
    let jobs: Api<Job> = Api::namespaced(scene.cluster.client(), SPACE);
    wait::until("the Job complete", SOON, async || {
        let status = jobs.get("once").await?.status.unwrap_or_default();
        ensure!(status.succeeded == Some(1), "{status:?}");
        Ok(())
    })
    .await?;
    let ended = only_pod(one, "job-name=once").await?;
    let done = done(&ended)?;
    ensure!(done.message.as_deref() == Some("prepared"), "the init container's file: {:?}", done.message);

    let agents = scene.until_running(SPACE, "app=agent", 2).await?;
    let mut nodes: Vec<&str> =
        agents.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
    nodes.sort_unstable();
    ensure!(nodes == [one.edge.name(), two.edge.name()], "the DaemonSet's pods are on {nodes:?}");

    let pid = one.edge.pid()?;
    kill9(pid)?;
    wait_gone(pid, SOON)?;
    one.edge.come_back(pid).await?;
    wait::until("edgecore connected again", SOON, async || {
        ensure!(one.edge.metric("edgecore_connected").await? == 1);
        Ok(())
    })
    .await?;
    let uid = ended.uid().context("a pod has a uid")?;
    wait::holds("the Job's pod stays ended", ROUNDS, async || {
        let containers = one.site.containers().await?;
        let again = containers.iter().any(|one| one.pod_uid == uid && one.running && !one.sandbox);
        ensure!(!again, "a container of the ended pod runs");
        let now = only_pod(one, "job-name=once").await?;
        ensure!(now.uid() == ended.uid() && self::done(&now)? == done, "it ended another time");
        Ok(())
    })
    .await?;
    past_its_deadline(one).await
}

/// The first process of a container ignores SIGTERM unless it says otherwise, so that this one lives until it is killed.
async fn past_its_deadline(node: &Node<'_>) -> Result<()> {
    let spec = json!({
        "activeDeadlineSeconds": 2,
        "restartPolicy": "Never",
        "containers": [{ "name": "main", "image": BUSYBOX, "command": ["sleep", "600"] }],
    });
    let pods = node.scene.pods(SPACE);
    pods.create(&PostParams::default(), &pod("late", node.edge.name(), &spec)).await?;
    let failed = wait::until("the pod past its deadline failed", SOON, async || {
        let status = pods.get("late").await?.status.unwrap_or_default();
        ensure!(status.phase.as_deref() == Some("Failed"), "{:?}", status.phase);
        Ok(status)
    })
    .await?;
    ensure!(failed.reason.as_deref() == Some("DeadlineExceeded"), "{failed:?}");
    let states: Vec<_> = failed
        .container_statuses
        .into_iter()
        .flatten()
        .filter_map(|status| status.state?.terminated)
        .collect();
    ensure!(states.len() == 1 && states[0].exit_code == 137, "it failed while its container was {states:?}");
    Ok(())
}

async fn only_pod(node: &Node<'_>, labels: &str) -> Result<Pod> {
    let mut pods = node.scene.pods(SPACE).list(&ListParams::default().labels(labels)).await?.items;
    ensure!(pods.len() == 1, "{} pods {labels}", pods.len());
    pods.pop().context("it was counted")
}

/// How the only container of a pod that succeeded ended.
fn done(pod: &Pod) -> Result<ContainerStateTerminated> {
    let status = pod.status.as_ref().context("it has a status")?;
    ensure!(status.phase.as_deref() == Some("Succeeded"), "the Job's pod is {:?}", status.phase);
    let container = status.container_statuses.as_ref().and_then(|all| all.first());
    let container = container.context("its container has a status")?;
    ensure!(container.restart_count == 0, "restarted {} times", container.restart_count);
    let state = container.state.clone().and_then(|state| state.terminated);
    let state = state.context("its container has not terminated")?;
    ensure!(state.exit_code == 0, "{state:?}");
    Ok(state)
}
