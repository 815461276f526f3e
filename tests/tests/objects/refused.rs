//! Pods that cannot run say why: in their status and in an event, as kubectl shows them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    product::{is_running, pod},
    setup::AGNHOST,
    wait,
};
use k8s_openapi::api::core::v1::{ContainerStateWaiting, Pod};
use kube::api::PostParams;
use serde_json::json;

use crate::Node;

const SPACE: &str = "refused";
const SOON: Duration = Duration::from_secs(90);

pub(crate) async fn run(node: &Node<'_>) -> Result<()> {
    let scene = node.scene;
    scene.namespace(SPACE).await?;
    let pods = scene.pods(SPACE);
    let name = node.edge.name();
    let share = json!({ "volumes": [{ "name": "share", "nfs": { "server": "nas", "path": "/" } }] });
    let nowhere = json!({ "containers": [{ "name": "main", "image": "localhost:1/nowhere:1" }] });
    for new in [
        pod("users", name, &json!({ "hostUsers": false })),
        pod("share", name, &share),
        pod("image", name, &nowhere),
    ] {
        pods.create(&PostParams::default(), &new).await?;
    }
    for (pod, field) in [("users", "spec.hostUsers"), ("share", "spec.volumes[0].nfs")] {
        explained(node, pod, &["Unsupported"], field).await?;
    }
    explained(node, "image", &["ErrImagePull", "ImagePullBackOff"], "localhost:1/nowhere:1").await?;

    // What is seen, not what was parsed.
    let table = scene.cluster.kubectl(&["--namespace", SPACE, "get", "pods"]).await?;
    let shown = |pod: &str| table.lines().find(|line| line.starts_with(pod)).unwrap_or_default().to_owned();
    ensure!(shown("users").contains("Unsupported"), "kubectl shows\n{table}");
    ensure!(shown("image").contains("ImagePull"), "kubectl shows\n{table}");
    let text = scene.cluster.kubectl(&["--namespace", SPACE, "describe", "pod", "share"]).await?;
    ensure!(text.contains("spec.volumes[0].nfs"), "kubectl describes\n{text}");

    // The image comes, and the pod runs without anybody touching it.
    node.site.ctr(&["images", "tag", AGNHOST, "localhost:1/nowhere:1"]).await?;
    let running = async || is_running(&pods.get("image").await?);
    wait::until("the pod running once its image is there", SOON, running).await?;
    Ok(())
}

/// The container waits with one of the reasons; the message, and an event, name the culprit.
async fn explained(node: &Node<'_>, pod: &str, reasons: &[&str], culprit: &str) -> Result<()> {
    wait::until(&format!("pod {pod} explaining itself"), SOON, async || {
        let waiting = waiting(&node.scene.pods(SPACE).get(pod).await?)?;
        let (reason, message) = (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default());
        ensure!(reasons.contains(&reason.as_str()), "it waits because of {reason:?}: {message}");
        ensure!(message.contains(culprit), "{message:?} does not name {culprit}");
        let events = node.scene.events(SPACE, pod).await?;
        let told = events.iter().any(|event| {
            event.type_.as_deref() == Some("Warning")
                && event.message.as_deref().is_some_and(|message| message.contains(culprit))
        });
        ensure!(told, "no event names {culprit}, of {} events", events.len());
        Ok(())
    })
    .await
}

fn waiting(pod: &Pod) -> Result<ContainerStateWaiting> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let state = statuses.and_then(|all| all.first()).and_then(|status| status.state.clone());
    state.and_then(|state| state.waiting).context("its container does not wait")
}
