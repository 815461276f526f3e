//! The frame of a test: a run, the assets, and what happens when it fails.

use std::sync::Arc;

use anyhow::Result;

use crate::{
    cluster::{Cluster, ClusterOptions},
    run::Run,
    setup::{self, Assets},
    site::{Site, SiteOptions},
};

/// What a test starts clusters and sites with.
pub struct Bench {
    pub run: Arc<Run>,
    pub assets: Assets,
}

impl Bench {
    pub async fn cluster(&self, options: &ClusterOptions) -> Result<Cluster> {
        Cluster::start(&self.run, &self.assets, options).await
    }

    pub async fn site(&self, options: &SiteOptions) -> Result<Site> {
        Site::start(&self.run, &self.assets, options).await
    }
}

/// Runs a test that needs the product's programs. When it fails, the end of every log is printed and the run's
/// directory stays; processes, mounts and interfaces go in any case.
pub async fn run(test: impl AsyncFnOnce(&Bench) -> Result<()>) -> Result<()> {
    framed(setup::ensure().await?, test).await
}

/// As [`run`], for tests of the bench itself.
pub async fn run_without_product(test: impl AsyncFnOnce(&Bench) -> Result<()>) -> Result<()> {
    framed(setup::ensure_bench().await?, test).await
}

async fn framed(assets: Assets, test: impl AsyncFnOnce(&Bench) -> Result<()>) -> Result<()> {
    let bench = Bench { run: Run::start()?, assets };
    let result = test(&bench).await;
    bench.run.end(result)
}
