//! Pods are started, 12 at a time: by edgecore, and by bare CRI calls of the same number and as many clients.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use harness::{
    Assets, LineCut, Site,
    product::Edge,
    progress::during,
    setup::PAUSE,
    site::{Asking, BarePod},
    wait,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    adopt::{self, Log},
    figure::{Figure, Goal},
    reading,
    trace::{self, Start},
    workload::{self, Follower},
    world::World,
};

const CLIENTS: usize = 12;
/// Of each kind; bare and edgecore's take turns, so that both see the same machine.
const ROUNDS: usize = 5;
/// The numbers of those rounds of bare calls that ask for more begin here.
const ALIKE: usize = 100;
/// Those in which the CRI calls are traced.
const TRACED_ROUNDS: usize = 3;
const PODS: usize = 36;
const ALONE: usize = 20;
const REST: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_mins(1);

/// One round of edgecore's.
struct Round {
    per_minute: f64,
    /// Each pod's name, and the milliseconds from the creation's answer until Running in the API.
    pods: Vec<(String, f64)>,
    edgecore: Duration,
    cloudcore: Duration,
    runtime: Duration,
    machine: Duration,
}

/// One round of bare CRI calls.
struct BareRound {
    per_minute: f64,
    runtime: Duration,
    machine: Duration,
}

/// Where a round plays.
struct Place<'a> {
    world: &'a World,
    site: &'a Site,
    edge: &'a Edge,
}

pub(super) async fn take(assets: &Assets) -> Result<Vec<Figure>> {
    let mut world = World::start(assets, 2).await?;
    let figures = async {
        let mut figures = added(&world).await?;
        let edge = world.join(0, &[]).await?;
        figures.extend(rates(&world, &edge).await?);
        figures.extend(recovery(&mut world, &edge).await?);
        Ok(figures)
    };
    let figures = figures.await;
    world.end(figures)
}

async fn rates(world: &World, edge: &Edge) -> Result<Vec<Figure>> {
    let place = Place { world, site: &world.sites[0], edge };
    workload::settle(REST).await;
    let plain = workload::plain();
    // Programs and images are in memory then, as in every later round.
    during("a first round, not counted", place.round("warm", &plain)).await?;
    let (mut bare, mut alike, mut rounds) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=ROUNDS {
        let doing = format!("bare CRI calls, round {number}");
        bare.push(during(&doing, bare_round(place.site, number, Asking::Least)).await?);
        let doing = format!("bare CRI calls that ask for what a kubelet does, round {number}");
        alike.push(during(&doing, bare_round(place.site, ALIKE + number, Asking::AsKubelet)).await?);
        let name = format!("burst-{number}");
        let doing = format!("pods by edgecore, round {number}");
        rounds.push(during(&doing, place.round(&name, &plain)).await?);
    }
    let beside = |bare: &[BareRound]| {
        rounds.iter().zip(bare).map(|(round, bare)| round.per_minute / bare.per_minute).collect()
    };
    let sum = |read: fn(&Round) -> Duration| rounds.iter().map(read).sum::<Duration>();
    let sum_bare =
        |bare: &[BareRound], read: fn(&BareRound) -> Duration| bare.iter().map(read).sum::<Duration>();
    let rates = |bare: &[BareRound]| bare.iter().map(|round| round.per_minute).collect();
    Ok(vec![
        Figure::median("pods a minute", "/min", rounds.iter().map(|round| round.per_minute).collect())
            .cpu("edgecore", sum(|round| round.edgecore))
            .cpu("cloudcore", sum(|round| round.cloudcore))
            .cpu("containerd", sum(|round| round.runtime))
            .cpu("machine", sum(|round| round.machine))
            .note("from the first creation until the last is Running in the API; control plane on the same cores"),
        Figure::median("pods a minute, bare CRI calls", "/min", rates(&bare))
            .cpu("containerd", sum_bare(&bare, |round| round.runtime))
            .cpu("machine", sum_bare(&bare, |round| round.machine))
            .note("RunPodSandbox, CreateContainer, StartContainer"),
        Figure::median("pods a minute beside bare CRI calls", "of them", beside(&bare)).goal(Goal::AtLeast(0.9)),
        Figure::median("pods a minute, bare CRI calls as a kubelet's", "/min", rates(&alike))
            .cpu("containerd", sum_bare(&alike, |round| round.runtime))
            .cpu("machine", sum_bare(&alike, |round| round.machine))
            .note(
                "the same calls, which ask for the sandbox's seccomp profile and the containers' masked paths, as \
                 edgecore's do",
            ),
        Figure::median("pods a minute beside bare CRI calls as a kubelet's", "of them", beside(&alike)),
    ])
}

/// The same pods from the store, with the line cut and nothing of them left at the site, as after a power cut: what
/// edgecore reaches where the control plane stands idle for it as it does for the bare calls.
async fn recovery(world: &mut World, edge: &Edge) -> Result<Vec<Figure>> {
    let pods = (0..PODS)
        .map(|number| workload::pause_pod(&format!("kept-{number}"), edge.name(), &workload::plain()))
        .collect::<Result<Vec<_>>>()?;
    during("starting the pods to be kept", workload::run_all(&world.cluster, pods)).await?;
    edge.kill9()?;
    let site = &mut world.sites[0];
    site.cut(LineCut::Silent)?;
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    let (mut edgecore_cpu, mut runtime_cpu, mut machine_cpu) =
        (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for number in 1..=ROUNDS {
        clear(site).await?;
        let doing = format!("bare CRI calls beside recovery, round {number}");
        let bare = during(&doing, bare_round(site, ROUNDS + number, Asking::Least)).await?;
        let runtime = site.runtime_pid()?;
        let (runtime_before, before) = (reading::cpu(runtime)?, reading::machine_busy()?);
        let doing = format!("pods from the store, round {number}");
        let (time, mut edgecore) = during(&doing, adopt::start(edge, site, PODS)).await?;
        machine_cpu += reading::machine_busy()?.saturating_sub(before);
        runtime_cpu += reading::cpu(runtime)?.saturating_sub(runtime_before);
        edgecore_cpu += reading::cpu(edgecore.pid())?;
        edgecore.kill9()?;
        let rate = PODS as f64 * 60.0 / time.as_secs_f64();
        rates.push(rate);
        ratios.push(rate / bare.per_minute);
    }
    Ok(vec![
        Figure::median("pods a minute from the store, no cloud", "/min", rates)
            .cpu("edgecore", edgecore_cpu)
            .cpu("containerd", runtime_cpu)
            .cpu("machine", machine_cpu)
            .note("from exec of edgecore until the last pod's Running is stored; all pods at once"),
        Figure::median("pods a minute from the store beside bare CRI calls", "of them", ratios)
            .goal(Goal::AtLeast(0.9)),
    ])
}

/// Removes all that the site's runtime has.
async fn clear(site: &Site) -> Result<()> {
    let sandboxes = site.containers().await?.into_iter().filter(|container| container.sandbox);
    let pods: Vec<BarePod> =
        sandboxes.map(|sandbox| BarePod { sandbox: sandbox.id, container: String::new() }).collect();
    let remove = |pod| site.remove_bare_pod(pod);
    stream::iter(&pods).map(Ok).try_for_each_concurrent(CLIENTS, remove).await
}

async fn added(world: &World) -> Result<Vec<Figure>> {
    let edge = world.join(1, &[trace::LOG_LEVEL]).await?;
    let place = Place { world, site: &world.sites[1], edge: &edge };
    workload::settle(REST).await;
    let plain = workload::plain();
    during("a first round, not counted", place.round("first", &plain)).await?;
    let alone: Vec<f64> = during("pods one after the other", place.one_by_one(&plain))
        .await?
        .iter()
        .map(Start::added)
        .collect();
    let (mut added, mut outside, mut spent) = (Vec::new(), Vec::new(), Duration::ZERO);
    for number in 1..=TRACED_ROUNDS {
        let name = format!("traced-{number}");
        let doing = format!("pods with their CRI calls traced, round {number}");
        let (round, starts) = during(&doing, place.traced(&name, &plain)).await?;
        spent += round.edgecore;
        for (name, whole) in round.pods {
            added.push(starts[&name].added());
            outside.push(whole - starts[&name].inside);
        }
    }
    // As people write them, with a service account token, which the cloud is asked for.
    let (round, starts) = during("pods with a token", place.traced("token", &json!({}))).await?;
    let token = round.pods.iter().map(|(name, _)| starts[name].added()).collect();
    let note = "from the pod's worker being hired, right after the commit, until its Running is stored for the cloud, \
                less the time during which a CRI call of the pod was under way";
    Ok(vec![
        Figure::median("added to a pod, one at a time", "ms", alone).goal(Goal::AtMost(10.0)).note(note),
        Figure::median("added to a pod, 12 clients", "ms", added.clone())
            .goal(Goal::AtMost(10.0))
            .cpu("edgecore", spent),
        Figure::p99("added to a pod, 12 clients", "ms", added).goal(Goal::AtMost(50.0)),
        Figure::median("added to a pod with a token, 12 clients", "ms", token)
            .note("one round; the token is asked of the API server over the line"),
        Figure::median("created to Running in the API, less CRI, 12 clients", "ms", outside.clone())
            .note("an upper bound: with API server, cloudcore, the line both ways, commit and report"),
        Figure::p99("created to Running in the API, less CRI, 12 clients", "ms", outside),
    ])
}

impl Place<'_> {
    /// Clients that each create a pod, wait until it is Running, and create the next.
    async fn round(&self, prefix: &str, spec: &Value) -> Result<Round> {
        let cluster = &self.world.cluster;
        let follower = Follower::start(cluster).await?;
        let pids = [self.edge.pid()?, self.world.cloud.pid()?, self.site.runtime_pid()?];
        let cpu = |which: usize| reading::cpu(pids[which]);
        let before = (cpu(0)?, cpu(1)?, cpu(2)?, reading::machine_busy()?);
        let begun = Instant::now();
        let times: Vec<(String, Instant, Instant)> = stream::iter(0..PODS)
            .map(|number| {
                let follower = &follower;
                async move {
                    let name = format!("{prefix}-{number}");
                    workload::create(cluster, &workload::pause_pod(&name, self.edge.name(), spec)?).await?;
                    let created = Instant::now();
                    let running = follower.running(&name).await?;
                    anyhow::Ok((name, created, running))
                }
            })
            .buffer_unordered(CLIENTS)
            .try_collect()
            .await?;
        let last = times.iter().map(|(_, _, running)| *running).max().context("there were pods")?;
        let round = Round {
            per_minute: PODS as f64 * 60.0 / (last - begun).as_secs_f64(),
            edgecore: cpu(0)?.saturating_sub(before.0),
            cloudcore: cpu(1)?.saturating_sub(before.1),
            runtime: cpu(2)?.saturating_sub(before.2),
            machine: reading::machine_busy()?.saturating_sub(before.3),
            pods: times
                .into_iter()
                // The watch may tell of the pod as Running before the creation's answer was read.
                .map(|(name, created, running)| (name, running.saturating_duration_since(created)))
                .map(|(name, whole)| (name, whole.as_secs_f64() * 1000.0))
                .collect(),
        };
        workload::delete_all(cluster, self.site).await?;
        Ok(round)
    }

    async fn traced(&self, prefix: &str, spec: &Value) -> Result<(Round, HashMap<String, Start>)> {
        let mut log = Log::from_end(&self.edge.log())?;
        let round = self.round(prefix, spec).await?;
        let names: Vec<&str> = round.pods.iter().map(|(name, _)| name.as_str()).collect();
        let starts = logged(&mut log, &names).await?;
        Ok((round, starts))
    }

    async fn one_by_one(&self, spec: &Value) -> Result<Vec<Start>> {
        let mut starts = Vec::new();
        for number in 0..ALONE {
            let mut log = Log::from_end(&self.edge.log())?;
            let name = format!("alone-{number}");
            let pod = workload::pause_pod(&name, self.edge.name(), spec)?;
            workload::run_all(&self.world.cluster, vec![pod]).await?;
            starts.push(logged(&mut log, &[&name]).await?[&name]);
        }
        workload::delete_all(&self.world.cluster, self.site).await?;
        Ok(starts)
    }
}

/// The same pods by bare CRI calls.
async fn bare_round(site: &Site, round: usize, asking: Asking) -> Result<BareRound> {
    let runtime = site.runtime_pid()?;
    let (runtime_before, before) = (reading::cpu(runtime)?, reading::machine_busy()?);
    let begun = Instant::now();
    let pods: Vec<BarePod> = stream::iter(0..PODS)
        .map(|number| async move {
            site.run_bare_pod(&format!("bare-{round}-{number}"), PAUSE, &[], None, asking).await
        })
        .buffer_unordered(CLIENTS)
        .try_collect()
        .await?;
    let round = BareRound {
        per_minute: PODS as f64 * 60.0 / begun.elapsed().as_secs_f64(),
        runtime: reading::cpu(runtime)?.saturating_sub(runtime_before),
        machine: reading::machine_busy()?.saturating_sub(before),
    };
    let remove = |pod| site.remove_bare_pod(pod);
    stream::iter(&pods).map(Ok).try_for_each_concurrent(CLIENTS, remove).await?;
    Ok(round)
}

/// What the log says of these pods, once it does.
async fn logged(log: &mut Log, names: &[&str]) -> Result<HashMap<String, Start>> {
    wait::until("what edgecore logs of the pods", LIMIT, async || {
        let starts = trace::starts(log.lines()?)?;
        ensure!(names.iter().all(|name| starts.contains_key(*name)), "{} pods logged", starts.len());
        anyhow::Ok(starts)
    })
    .await
}
