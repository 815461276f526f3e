//! The demo: one story, told step by step, each line a thing that was checked.

mod cloud;
mod device;
mod edge;
mod line;
mod story;
mod workload;

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use harness::{
    Assets, Cluster, ClusterOptions, HeartbeatNodes, Run, Site, SiteOptions, process::Daemon,
    progress::during, setup,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::say;
use story::Story;

/// The name of the edge node.
const NODE: &str = "edge-1";

/// Everything that is up, in the order in which it is to go.
struct Demo {
    /// The edgecore that the demo itself has started, in step 7.
    edgecore: Option<Daemon>,
    site: Site,
    _neighbours: HeartbeatNodes,
    cluster: Cluster,
    assets: Assets,
    run: Arc<Run>,
}

/// Tells the story until its end, a failure or a signal; takes everything down then, unless `keep`.
pub(crate) async fn run(keep: bool) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Dropping the story takes down what it has made.
    let told = tokio::select! {
        told = tell(keep) => told,
        _ = interrupt.recv() => bail!("interrupted; everything is taken down"),
        _ = terminate.recv() => bail!("terminated; everything is taken down"),
        _ = hangup.recv() => bail!("the terminal is gone; everything is taken down"),
    };
    told
}

async fn tell(keep: bool) -> Result<()> {
    let assets = setup::ensure().await.context("setup")?;
    let run = Run::start()?;
    let result = play(&run, assets, keep).await;
    run.end(result)
}

async fn play(run: &Arc<Run>, assets: Assets, keep: bool) -> Result<()> {
    let mut story = Story::new();
    let mut demo = scene(run, assets, &mut story).await?;
    let result = acts(&mut demo, &mut story).await;
    // A story that failed is kept up too: that is when one wants to look around.
    if keep {
        run.keep()?;
        // The neighbours' heart beats in this process.
        say(
            "the nodes cloud-1 and cloud-2 will turn NotReady now; while every node is, Kubernetes evicts nothing",
        )?;
        say(&format!("left up in {}; `cargo xtask down` takes it away", run.dir().display()))?;
        say(&format!("export KUBECONFIG={}", demo.cluster.kubeconfig().display()))?;
        say(&format!("alias kubectl={}", demo.assets.kubectl.display()))?;
    }
    result?;
    story.end()
}

/// Steps 2 to 9.
async fn acts(demo: &mut Demo, story: &mut Story) -> Result<()> {
    let cloud = cloud::init(demo, story).await?;
    let edge = edge::join(demo, &cloud, story).await?;
    let workload = workload::deploy(demo, story).await?;
    let mut boiler = device::apply(demo, story).await?;
    line::cut(demo, &workload, story).await?;
    edge.survive_kill(demo, &workload, story).await?;
    edge.survive_power_cut(demo, &workload, story).await?;
    boiler.is_set_again(demo, &edge, story).await?;
    workload.change(demo, story).await?;
    line::restore(demo, &workload, story).await?;
    boiler.is_known(demo, story).await
}

/// Step 1: a control plane with healthy nodes, and a site.
async fn scene(run: &Arc<Run>, assets: Assets, story: &mut Story) -> Result<Demo> {
    let options = ClusterOptions::default();
    let cluster = during("starting the control plane", Cluster::start(run, &assets, &options)).await?;
    let versions = cluster.versions().await?;
    let versions: Vec<String> =
        versions.into_iter().map(|(name, version)| format!("{name} {version}")).collect();
    story.checked(&format!("up: {}", versions.join(", ")))?;
    let neighbours = HeartbeatNodes::start(&cluster.client(), 2).await?;
    story
        .checked(&format!("healthy nodes beside the edge node to come: {}", neighbours.names().join(", ")))?;
    let site = during("starting the site", Site::start(run, &assets, &SiteOptions::default())).await?;
    let containerd = site.output("containerd", ["--version"]).await?;
    let version = containerd.split_whitespace().nth(2).unwrap_or("?");
    story.checked(&format!("a site at {}, with a containerd ({version}) of its own", site.address()))?;
    Ok(Demo { edgecore: None, site, _neighbours: neighbours, cluster, assets, run: Arc::clone(run) })
}
