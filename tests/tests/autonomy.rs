//! The promise: a site keeps working while its line is down, and catches up when it comes back. One control plane for
//! all scenarios, a site of its own for each.

mod autonomy {
    pub(crate) mod outage;
    pub(crate) mod power;
    pub(crate) mod thin;
}

use std::pin::Pin;

use anyhow::{Context, Result};
use harness::{Bench, ClusterOptions, bench, product::Scene};

#[tokio::test]
async fn a_site_lives_on_without_its_line() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (scene, sites) = Scene::start(bench, &ClusterOptions::default(), 3).await?;
        let Ok([mut first, mut second, third]) = <[_; 3]>::try_from(sites) else {
            unreachable!("three were asked for")
        };
        tokio::try_join!(
            named("outage", autonomy::outage::run(bench, &scene, &mut first)),
            named("power", autonomy::power::run(bench, &scene, &mut second)),
            named("thin", autonomy::thin::run(bench, &scene, &third)),
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
