//! The kinds of objects that a node runs or refuses, and who gets to see them. One control plane, two nodes.

mod objects {
    pub(crate) mod burst;
    pub(crate) mod deletion;
    pub(crate) mod gates;
    pub(crate) mod jobs;
    pub(crate) mod needed;
    pub(crate) mod refused;
}

use std::pin::Pin;

use anyhow::{Context, Result};
use harness::{
    Bench, ClusterOptions, Site, bench,
    product::{Edge, Scene},
};

/// A node, with what its scenario needs.
pub(crate) struct Node<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) edge: &'a Edge,
    pub(crate) site: &'a Site,
}

#[tokio::test]
async fn an_edge_node_runs_what_a_node_runs() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, sites) = Scene::start(bench, &ClusterOptions::default(), 2).await?;
        let (first, second) = (&sites[0], &sites[1]);
        let edges =
            tokio::try_join!(scene.join(bench, first, "edge-1"), scene.join(bench, second, "edge-2"))?;
        let one = Node { scene: &scene, edge: &edges.0, site: first };
        let two = Node { scene: &scene, edge: &edges.1, site: second };
        tokio::try_join!(
            async {
                named("needed", objects::needed::run(&one, &two)).await?;
                named("jobs", objects::jobs::run(&one, &two)).await?;
                named("deletion", objects::deletion::run(&one)).await
            },
            async {
                named("gates", objects::gates::run(&two)).await?;
                named("refused", objects::refused::run(&two)).await?;
                named("burst", objects::burst::run(&two)).await
            },
        )?;
        Ok(())
    })
    .await
}

/// On the heap: each scenario is a large future.
fn named<'a>(
    name: &'static str,
    scenario: impl Future<Output = Result<()>> + 'a,
) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>> {
    Box::pin(async move { scenario.await.context(name) })
}
