//! What carries the link, at real sites: a line that swallows UDP for a while, a site that gets another address, one whose
//! certificate has expired, one behind a proxy, one with two
//! cloudcores of which one dies, and one whose cloudcore is killed and comes back.

mod link {
    pub(crate) mod blocked;
    pub(crate) mod expired;
    pub(crate) mod moved;
    pub(crate) mod proxied;
    pub(crate) mod restarted;
    pub(crate) mod several;
}

use std::pin::Pin;

use anyhow::{Context, Result, ensure};
use harness::{
    Bench, ClusterOptions, bench,
    product::{Edge, Scene},
};

#[tokio::test]
async fn the_link_finds_its_way() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, sites) = Scene::start(bench, &ClusterOptions::default(), 6).await?;
        let [first, second, third, fourth, fifth, sixth] = &sites[..] else {
            unreachable!("six were asked for")
        };
        scene.namespace(SPACE).await?;
        tokio::try_join!(
            named("blocked", link::blocked::run(bench, &scene, first)),
            named("moved", link::moved::run(bench, &scene, second)),
            named("expired", link::expired::run(bench, &scene, third)),
            named("proxied", link::proxied::run(bench, &scene, fourth)),
            named("several", link::several::run(bench, &scene, sixth)),
        )?;
        // Which the others would not take for granted.
        named("restarted", link::restarted::run(bench, &scene, fifth)).await
    })
    .await
}

pub(crate) const SPACE: &str = "link";

/// An error unless the link is up over `wanted`, and in sync.
pub(crate) async fn is_over(edge: &Edge, wanted: &str) -> Result<()> {
    let state: serde_json::Value = serde_json::from_str(&edge.admin("/nodez").await?.body)?;
    ensure!(state["transport"] == wanted && state["synced"] == true && state["nodeReady"] == true, "{state}");
    Ok(())
}

/// On the heap: each scenario is a large future.
fn named<'a>(
    name: &'static str,
    scenario: impl Future<Output = Result<()>> + 'a,
) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>> {
    Box::pin(async move { scenario.await.context(name) })
}
