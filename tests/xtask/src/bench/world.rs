//! What a measure plays in: a control plane, cloudcore, and as many sites as it wants.

use std::{fs, sync::Arc};

use anyhow::{Context, Result};
use harness::{
    Assets, Cluster, ClusterOptions, HeartbeatNodes, Run, Site, SiteOptions,
    product::{Cloud, Edge},
    progress::during,
};

/// In the order in which it is to go.
pub(crate) struct World {
    pub(crate) cloud: Cloud,
    pub(crate) sites: Vec<Site>,
    _neighbours: HeartbeatNodes,
    pub(crate) cluster: Cluster,
    assets: Assets,
    run: Arc<Run>,
}

impl World {
    pub(crate) async fn start(assets: &Assets, sites: usize) -> Result<Self> {
        let run = Run::start()?;
        let world =
            during("starting control plane, cloudcore and sites", Self::build(&run, assets, sites)).await;
        run.end(world)
    }

    async fn build(run: &Arc<Run>, assets: &Assets, count: usize) -> Result<Self> {
        let cluster = Cluster::start(run, assets, &ClusterOptions::default()).await?;
        let neighbours = HeartbeatNodes::start(&cluster.client(), 2).await?;
        let mut sites = Vec::new();
        for _ in 0..count {
            sites.push(Site::start(run, assets, &SiteOptions::default()).await?);
        }
        let addresses: Vec<_> = sites.iter().map(Site::host_address).collect();
        let cloud = Cloud::init(run, assets, &cluster, &addresses).await?;
        Ok(Self {
            cloud,
            sites,
            _neighbours: neighbours,
            cluster,
            assets: assets.clone(),
            run: Arc::clone(run),
        })
    }

    /// Joins a site with a copy of edgecore of its own: the pages of one program's file that two processes have mapped
    /// would count half in each one's PSS.
    pub(crate) async fn join(&self, site: usize, settings: &[&str]) -> Result<Edge> {
        self.join_several(site, &[&self.cloud], settings).await
    }

    /// A cloudcore beside the one that there is.
    pub(crate) async fn another_cloud(&self) -> Result<Cloud> {
        let addresses: Vec<_> = self.sites.iter().map(Site::host_address).collect();
        Cloud::init(&self.run, &self.assets, &self.cluster, &addresses).await
    }

    /// As [`World::join`], with several cloudcores.
    pub(crate) async fn join_several(
        &self,
        site: usize,
        clouds: &[&Cloud],
        settings: &[&str],
    ) -> Result<Edge> {
        let site = &self.sites[site];
        let bin = site.dir().join("bin");
        fs::create_dir_all(&bin)?;
        for program in ["edgecore", "keadm"] {
            fs::copy(self.assets.product()?.join(program), bin.join(program))
                .with_context(|| format!("failed to copy {program}"))?;
        }
        let assets = Assets { product: Some(bin), ..self.assets.clone() };
        let name = format!("edge-{}", site.name());
        during("keadm join", Edge::join_several(&assets, clouds, site, &name, settings)).await
    }

    /// Has the logs printed, and the directory left there, if `result` is a failure.
    pub(crate) fn end<T>(self, result: Result<T>) -> Result<T> {
        self.run.end(result)
    }
}
