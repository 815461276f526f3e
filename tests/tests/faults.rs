//! What breaks beside the line: the disk under the edge's store, the store's files, cloudcore, the API server. One
//! control plane; the two sites first have their own faults, then see those of the cloud.

mod faults {
    pub(crate) mod cloud;
    pub(crate) mod damage;
    pub(crate) mod disk;
}

use std::pin::Pin;

use anyhow::{Context, Result};
use harness::{Bench, ClusterOptions, bench, product::Scene};

#[tokio::test]
async fn a_site_lives_on_while_disks_and_clouds_fail() -> Result<()> {
    bench::run(async |bench: &Bench| {
        let (mut scene, sites) = Scene::start(bench, &ClusterOptions::default(), 2).await?;
        let Ok([mut first, mut second]) = <[_; 2]>::try_from(sites) else {
            unreachable!("two were asked for")
        };
        let ((disk, _disk), (damage, _damage)) = tokio::try_join!(
            named("disk", faults::disk::run(bench, &scene, &first)),
            named("damage", faults::damage::run(bench, &scene, &mut second)),
        )?;
        let nodes = [(&disk, &mut first), (&damage, &mut second)];
        named("cloud", faults::cloud::run(&mut scene, nodes)).await
    })
    .await
}

/// On the heap: each scenario is a large future.
fn named<'a, T>(
    name: &'static str,
    scenario: impl Future<Output = Result<T>> + 'a,
) -> Pin<Box<dyn Future<Output = Result<T>> + 'a>> {
    Box::pin(async move { scenario.await.context(name) })
}
