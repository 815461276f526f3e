//! The line is cut until the cloud has given the node up, and restored.

use std::{collections::HashMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, future::try_join_all};
use harness::{
    Assets, Cluster, LineCut, Site,
    product::{Edge, ready},
    progress::during,
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    figure::{Figure, Goal},
    reading, workload,
    world::World,
};

/// Sites that are cut at the same time, each when its turn comes: the cloud takes a while to give a node up.
const SITES: usize = 5;
/// Of each site. Every second one is silent, the others unplugged.
const CUTS: usize = 10;
/// In seconds; the default, of 30, would only make the cloud give the node up later.
const HEARTBEAT: &str = "modules.edgeHub.heartbeat=2";
const LIMIT: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(10);
const REST: Duration = Duration::from_secs(10);

/// One cut, in milliseconds from the line's return.
struct Return {
    how: LineCut,
    ready: f64,
    applied: f64,
}

pub(super) async fn take(assets: &Assets) -> Result<Vec<Figure>> {
    let mut world = World::start(assets, SITES).await?;
    let figures = figures(&mut world).await;
    world.end(figures)
}

async fn figures(world: &mut World) -> Result<Vec<Figure>> {
    let mut edges = Vec::new();
    for site in 0..SITES {
        let edge = world.join(site, &[HEARTBEAT]).await?;
        let config = format!("config-{site}");
        workload::put_config(&world.cluster, &config, "before").await?;
        let mut spec = workload::plain();
        spec["volumes"] = json!([{ "name": "config", "configMap": { "name": config } }]);
        let pod = workload::pause_pod(&format!("reader-{site}"), edge.name(), &spec)?;
        workload::run_all(&world.cluster, vec![pod]).await?;
        edges.push(edge);
    }
    workload::settle(REST).await;
    let nodes = Nodes::follow(&world.cluster).await?;
    let pids = edges.iter().map(Edge::pid).collect::<Result<Vec<_>>>()?;
    let cloudcore = world.cloud.pid()?;
    let all = |pids: &[u32]| pids.iter().map(|&pid| reading::cpu(pid)).sum::<Result<Duration>>();
    let before = (all(&pids)?, reading::cpu(cloudcore)?);

    let cluster = &world.cluster;
    let sites = world.sites.iter_mut().zip(&edges).enumerate();
    let cuts = try_join_all(sites.map(|(number, (site, edge))| cuts(cluster, &nodes, number, site, edge)));
    let doing = format!("cutting and restoring the lines of {SITES} sites {CUTS} times each");
    let returns: Vec<Return> = during(&doing, cuts).await?.into_iter().flatten().collect();

    let spent = (all(&pids)?.saturating_sub(before.0), reading::cpu(cloudcore)?.saturating_sub(before.1));
    let of = |read: fn(&Return) -> f64| returns.iter().map(read).collect::<Vec<_>>();
    let kind = |how: LineCut, read: fn(&Return) -> f64| {
        returns.iter().filter(|back| back.how == how).map(read).collect::<Vec<_>>()
    };
    let (ready, applied) = (|back: &Return| back.ready, |back: &Return| back.applied);
    let note = "until Ready=True is in the API, from Unknown";
    let file = "until the ConfigMap's file at the site has what was written while the line was down";
    let cpu = |figure: Figure| figure.cpu("5 edgecores", spent.0).cpu("cloudcore", spent.1);
    Ok(vec![
        cpu(Figure::median("line restored to Ready", "s", of(ready)).note(note)),
        Figure::p99("line restored to Ready", "s", of(ready)).goal(Goal::AtMost(3.0)),
        Figure::median("line restored to first change applied", "s", of(applied)).note(file),
        Figure::p99("line restored to first change applied", "s", of(applied)).goal(Goal::AtMost(3.0)),
        Figure::median("to Ready, after packets were dropped in silence", "s", kind(LineCut::Silent, ready)),
        Figure::median("to Ready, after the cable was out", "s", kind(LineCut::Unplugged, ready)),
    ])
}

async fn cuts(
    cluster: &Cluster,
    nodes: &Nodes,
    number: usize,
    site: &mut Site,
    edge: &Edge,
) -> Result<Vec<Return>> {
    let uid = workload::uid(cluster, &format!("reader-{number}")).await?;
    let file = edge.root().join(format!("pods/{uid}/volumes/config/text"));
    ensure!(fs::read_to_string(&file)? == "before", "{} is not the ConfigMap's", file.display());
    let mut returns = Vec::new();
    for round in 0..CUTS {
        let how = if round % 2 == 0 { LineCut::Silent } else { LineCut::Unplugged };
        site.cut(how)?;
        nodes.wait(edge.name(), false).await?;
        let text = format!("written during cut {round}");
        workload::put_config(cluster, &format!("config-{number}"), &text).await?;
        // So that the line comes back at any moment of the edge's attempts, not at one that the cloud's timers choose.
        sleep(Duration::from_millis((number * 733 + round * 1709) as u64 % 4000)).await;
        let begun = Instant::now();
        site.restore()?;
        let (ready, applied) = tokio::try_join!(nodes.wait(edge.name(), true), content(&file, &text))?;
        let since = |at: Instant| at.saturating_duration_since(begun).as_secs_f64();
        returns.push(Return { how, ready: since(ready), applied: since(applied) });
    }
    Ok(returns)
}

/// When the file was seen to hold this text.
async fn content(file: &PathBuf, text: &str) -> Result<Instant> {
    let waiting = async {
        // While it is replaced there may be none.
        while fs::read_to_string(file).ok().as_deref() != Some(text) {
            sleep(LOOK).await;
        }
        Instant::now()
    };
    timeout(LIMIT, waiting).await.with_context(|| format!("{} has not {text:?}", file.display()))
}

/// Whether each node is Ready in the API, as told by a watch.
struct Nodes {
    states: watch::Receiver<HashMap<String, (bool, Instant)>>,
    _task: JoinSet<()>,
}

impl Nodes {
    async fn follow(cluster: &Cluster) -> Result<Self> {
        let api: Api<Node> = Api::all(cluster.client());
        let (sender, states) = watch::channel(HashMap::new());
        let mut task = JoinSet::new();
        let note = move |node: &Node| {
            let is_ready = ready(node).is_ok();
            sender.send_if_modified(|states: &mut HashMap<String, (bool, Instant)>| {
                let changed = states.get(&node.name_any()).is_none_or(|(before, _)| *before != is_ready);
                if changed {
                    states.insert(node.name_any(), (is_ready, Instant::now()));
                }
                changed
            });
        };
        let listed = api.list(&ListParams::default()).await?;
        listed.items.iter().for_each(&note);
        let mut version = listed.metadata.resource_version.unwrap_or_default();
        task.spawn(async move {
            // A watch ends after some minutes; when there can be no other, whoever waits is told by the closed channel.
            while let Ok(events) = api.watch(&WatchParams::default().timeout(290), &version).await {
                let mut events = events.boxed();
                while let Ok(Some(event)) = events.try_next().await {
                    if let WatchEvent::Added(node) | WatchEvent::Modified(node) = event {
                        note(&node);
                        version = node.resource_version().unwrap_or(version);
                    }
                }
            }
        });
        Ok(Self { states, _task: task })
    }

    /// When it became so.
    async fn wait(&self, name: &str, is_ready: bool) -> Result<Instant> {
        let mut states = self.states.clone();
        let waiting = states.wait_for(|states| states.get(name).is_some_and(|(now, _)| *now == is_ready));
        let state = timeout(LIMIT, waiting)
            .await
            .with_context(|| format!("{name} has not become Ready={is_ready} within {LIMIT:?}"))?
            .context("the watch of the nodes has ended")?;
        state.get(name).map(|(_, at)| *at).context("it was waited for")
    }
}
