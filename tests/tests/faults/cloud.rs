//! cloudcore and the API server die and come back, together and apart. At the edges nothing is deleted or restarted, and
//! what is changed later arrives.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Site,
    process::{is_running, kill9, wait_gone},
    product::{Edge, Life, Scene, pod, ready},
    wait,
};
use kube::{ResourceExt, api::DeleteParams};
use serde_json::json;

const SPACE: &str = "cloud";
const SOON: Duration = Duration::from_secs(90);
/// How long the edges are watched while the cloud has nothing to tell them.
const EMPTY: Duration = Duration::from_secs(6);
/// Longer than any request of cloudcore's should hang.
const HANGS: Duration = Duration::from_secs(6);

struct Node<'a> {
    edge: &'a Edge,
    site: &'a Site,
    life: Life,
    objects: u64,
}

pub(crate) async fn run(scene: &mut Scene, nodes: [(&Edge, &mut Site); 2]) -> Result<()> {
    scene.namespace(SPACE).await?;
    let mut all = Vec::new();
    for (edge, site) in &nodes {
        let name = format!("steady-{}", edge.name());
        let pod = scene.run(SPACE, &pod(&name, edge.name(), &json!({}))).await?;
        let life = Life::of(site, &pod.uid().context("a pod has a uid")?).await?;
        all.push(Node { edge, site, life, objects: edge.metric("edgecore_desired_objects").await? });
    }

    cloudcore_killed(scene, &all).await.context("cloudcore killed")?;
    without_api_server(scene, &all).await.context("cloudcore started without the API server")?;
    watches_broken(scene, &all).await.context("the API server restarted")
}

async fn cloudcore_killed(scene: &Scene, nodes: &[Node<'_>]) -> Result<()> {
    let sessions = sessions(nodes).await?;
    kill_cloudcore(scene).await?;
    reconnected(scene, nodes, &sessions).await?;
    changes_arrive(scene, nodes, "after-kill").await
}

/// It has nothing in its caches, and nobody to ask.
async fn without_api_server(scene: &mut Scene, nodes: &[Node<'_>]) -> Result<()> {
    let sessions = sessions(nodes).await?;
    scene.cluster.kill9_apiserver()?;
    let pid = kill_cloudcore(scene).await?;
    wait::until("cloudcore not ready", SOON, async || {
        let answer = scene.cloud.admin("/readyz").await?;
        ensure!(answer.status != 200, "/readyz: {} {}", answer.status, answer.body);
        Ok(())
    })
    .await?;
    wait::holds("nothing happens at the edges", EMPTY, async || {
        ensure!(is_running(pid), "cloudcore has given up");
        untouched(nodes).await
    })
    .await?;
    scene.cluster.start_apiserver().await?;
    reconnected(scene, nodes, &sessions).await?;
    ensure!(scene.cloud.pid()? == pid, "cloudcore was restarted");
    changes_arrive(scene, nodes, "after-wait").await
}

/// cloudcore lives on while the API server first hangs, then dies.
async fn watches_broken(scene: &mut Scene, nodes: &[Node<'_>]) -> Result<()> {
    let pid = scene.cloud.pid()?;
    scene.cluster.suspend_apiserver()?;
    let hung = wait::holds("nothing happens at the edges", HANGS, async || untouched(nodes).await).await;
    scene.cluster.resume_apiserver()?;
    hung?;
    changes_arrive(scene, nodes, "after-hang").await?;
    scene.cluster.kill9_apiserver()?;
    wait::holds("nothing happens at the edges", EMPTY, async || untouched(nodes).await).await?;
    scene.cluster.start_apiserver().await?;
    changes_arrive(scene, nodes, "after-restart").await?;
    ensure!(scene.cloud.pid()? == pid, "cloudcore was restarted");
    Ok(())
}

async fn kill_cloudcore(scene: &Scene) -> Result<u32> {
    let old = scene.cloud.pid()?;
    kill9(old)?;
    wait_gone(old, SOON)?;
    wait::until("cloudcore started again by its supervisor", SOON, async || {
        let pid = scene.cloud.pid()?;
        ensure!(pid != old && is_running(pid), "cloudcore.pid names {pid}, which is gone");
        Ok(pid)
    })
    .await
}

async fn sessions(nodes: &[Node<'_>]) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for node in nodes {
        all.push(node.edge.metric("edgecore_sessions").await?);
    }
    Ok(all)
}

async fn reconnected(scene: &Scene, nodes: &[Node<'_>], before: &[u64]) -> Result<()> {
    wait::until("every edge with a new session", SOON, async || {
        for (node, before) in nodes.iter().zip(before) {
            ensure!(node.edge.metric("edgecore_sessions").await? > *before, "{} has none", node.edge.name());
            ensure!(node.edge.metric("edgecore_connected").await? == 1, "{} has lost it", node.edge.name());
            ready(&scene.node(node.edge.name()).await?)?;
        }
        Ok(())
    })
    .await?;
    untouched(nodes).await
}

/// The same containers, and the same wishes in the store.
async fn untouched(nodes: &[Node<'_>]) -> Result<()> {
    for node in nodes {
        node.life.check(node.site).await?;
        let objects = node.edge.metric("edgecore_desired_objects").await?;
        ensure!(
            objects == node.objects,
            "{} holds {objects} objects, not {}",
            node.edge.name(),
            node.objects
        );
    }
    Ok(())
}

/// A pod comes and goes at each edge.
async fn changes_arrive(scene: &Scene, nodes: &[Node<'_>], name: &str) -> Result<()> {
    for node in nodes {
        let name = format!("{name}-{}", node.edge.name());
        // Bound as it is made: the scheduler has its own pace after an API server has failed it.
        let bound = json!({ "nodeName": node.edge.name() });
        let made = scene.run(SPACE, &pod(&name, node.edge.name(), &bound)).await?;
        scene.pods(SPACE).delete(&name, &DeleteParams::default()).await?;
        let uid = made.uid().context("a pod has a uid")?;
        let gone = async || {
            ensure!(scene.pods(SPACE).get_opt(&name).await?.is_none(), "{name} is still in the API");
            node.site.has_nothing_of(&uid).await
        };
        wait::until("the pod gone again", SOON, gone).await?;
        // What only this pod referred to has gone with it.
        wait::until("the site as before", SOON, async || untouched(nodes).await).await?;
    }
    Ok(())
}
