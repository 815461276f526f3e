//! Steps 5 and 9: the line is cut; the line comes back.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use harness::{LineCut, product::ready, wait};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt, api::ListParams};

use super::{
    Demo, NODE,
    story::Story,
    workload::{LEAVER, Workload},
};

/// Grace period of the node monitor, then eviction, both short on this control plane.
const EVICTION: Duration = Duration::from_secs(90);
/// How long the others are watched after the first pod was evicted: twice the eviction time.
const BEYOND: Duration = Duration::from_secs(10);
const RECONNECT: Duration = Duration::from_secs(10);
const CHANGES: Duration = Duration::from_secs(90);

/// Step 5.
pub(crate) async fn cut(demo: &mut Demo, workload: &Workload, story: &mut Story) -> Result<()> {
    demo.site.cut(LineCut::Silent)?;
    story.checked("the line is cut: every packet is dropped")?;
    let nodes: Api<Node> = Api::all(demo.cluster.client());
    let is_unreachable = async || {
        let node = nodes.get(NODE).await?;
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let evicts = taints
            .iter()
            .any(|taint| taint.key == "node.kubernetes.io/unreachable" && taint.effect == "NoExecute");
        ensure!(evicts, "taints: {:?}", taints.iter().map(|taint| &taint.key).collect::<Vec<_>>());
        anyhow::Ok(())
    };
    let unreachable = wait::until("node unreachable", EVICTION, is_unreachable);
    story
        .step(
            "the cloud noticing",
            |()| format!("the cloud calls {NODE} unreachable (NoExecute)"),
            unreachable,
        )
        .await?;
    for node in nodes.list(&ListParams::default()).await? {
        ensure!(node.name_any() == NODE || ready(&node).is_ok(), "{} is not Ready", node.name_any());
    }

    let pods: Api<Pod> = Api::default_namespaced(demo.cluster.client());
    let evicted =
        wait::until("the opted-out pod evicted", EVICTION, async || match pods.get_opt(LEAVER).await? {
            None => Ok(()),
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => Ok(()),
            Some(_) => bail!("{LEAVER} is still bound"),
        });
    story
        .step("the eviction time passing", |()| format!("pod {LEAVER}, which opted out, is evicted"), evicted)
        .await?;
    let kept = wait::holds("the other pods stay", BEYOND, async || {
        is_unreachable().await?;
        workload.unchanged_in_cloud(demo).await
    });
    story
        .step(
            "watching the others beyond the eviction time",
            |()| "the others keep their UIDs and are not being deleted".to_owned(),
            kept,
        )
        .await?;
    workload.answers(demo).await?;
    story.checked("the site goes on answering")
}

/// Step 9.
pub(crate) async fn restore(demo: &mut Demo, workload: &Workload, story: &mut Story) -> Result<()> {
    let before = workload.steady_container(demo).await?;
    demo.site.restore()?;
    let nodes: Api<Node> = Api::all(demo.cluster.client());
    let back = wait::until("node Ready again", RECONNECT, async || ready(&nodes.get(NODE).await?));
    story.step("the node coming back", |()| format!("the line is back: {NODE} is Ready"), back).await?;
    let changed =
        wait::until("the changes at the site", CHANGES, async || workload.changed_at_site(demo).await);
    story
        .step(
            "the changes arriving",
            |()| "the new ConfigMap and the new image are at the site, answering".to_owned(),
            changed,
        )
        .await?;
    let after = workload.steady_container(demo).await?;
    ensure!(before == after, "an unchanged pod lost its container: {before} before, {after} after");
    story.checked("the unchanged pod has kept its container and its UID")?;
    let same = wait::until("status as at the site", CHANGES, async || workload.status_matches(demo).await);
    story
        .step("the status arriving", |()| "the API's status matches the site's containers".to_owned(), same)
        .await
}
