//! The edge's outbox: durable reports a second with the real store on the real disk; and a long outage's reports, kept over kills,
//! delivered over kills, and counted in the API.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    Assets, LineCut,
    process::{Daemon, command, kill9, output_async},
    product::Edge,
    progress::during,
    setup, wait,
};
use k8s_openapi::api::core::v1::{Event, Node};
use kube::{Api, ResourceExt, api::ListParams};
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    example,
    figure::{Figure, Goal},
    line, reading, workload,
    world::World,
};

/// Writers at once, each of which waits until its report is durable.
const WRITERS: [usize; 4] = [1, 16, 64, 256];
const ROUNDS: usize = 5;
/// A round's, of many writers and of one.
const REPORTS: [u64; 2] = [20_000, 2_000];
/// At which of [`WRITERS`] the goal is to be met.
const GOAL_WRITERS: usize = 64;
const GOAL: f64 = 4000.0;

/// A kill of edgecore after each.
const OUTAGE_ROUNDS: u64 = 5;
/// Of an outage's rounds, those in which whoever reports is killed, too.
const KILLED: [u64; 2] = [1, 3];
const PODS: usize = 20;
const SOON: Duration = Duration::from_mins(2);
const LONG: Duration = Duration::from_mins(40);
const HEARTBEAT: &str = "modules.edgeHub.heartbeat=2";
const WITHOUT_QUIC: &str = "modules.edgeHub.quic.enable=false";
/// What the API server lists at once.
const PAGE: u32 = 5000;

/// What `edgecore/examples/outbox.rs` prints.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    per_second: f64,
    p99_ms: f64,
    syncs: f64,
    journal_bytes_each: f64,
    disk_bytes_each: f64,
    resident_kib: f64,
    dropped: u64,
}

pub(super) async fn take(assets: &Assets, reports: u64) -> Result<Vec<Figure>> {
    let program = example::build("outbox").await?;
    let mut figures = rates(&program, reports).await?;
    for (transport, settings) in [("quic", &[HEARTBEAT][..]), ("websocket", &[HEARTBEAT, WITHOUT_QUIC])] {
        let mut world = World::start(assets, 1).await?;
        let measured = outage(&mut world, &program, (transport, settings), reports).await;
        figures.extend(world.end(measured.with_context(|| format!("over {transport}")))?);
    }
    Ok(figures)
}

async fn rates(program: &Path, kept: u64) -> Result<Vec<Figure>> {
    let dir = setup::source_dir().join("target/bench/outbox");
    let rate = async |writers: usize, reports: u64| -> Result<Rate> {
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        let args = ["rate".to_owned(), dir.display().to_string(), writers.to_string(), reports.to_string()];
        let rate: Rate = serde_json::from_str(&output_async(command(program, args)).await?)?;
        ensure!(rate.dropped == 0, "{} reports were dropped", rate.dropped);
        Ok(rate)
    };
    let mut figures = Vec::new();
    for writers in WRITERS {
        let reports = REPORTS[usize::from(writers == 1)];
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(rate(writers, reports).await?);
        }
        let of = |read: fn(&Rate) -> f64| rounds.iter().map(read).collect::<Vec<_>>();
        let name = |what: &str| format!("{writers} at once: {what}");
        let durable = Figure::median(&name("durable reports"), "/s", of(|rate| rate.per_second));
        let durable = if writers == GOAL_WRITERS { durable.goal(Goal::AtLeast(GOAL)) } else { durable };
        figures.extend([
            durable,
            Figure::median(&name("until one is durable, p99"), "ms", of(|rate| rate.p99_ms)),
            Figure::median(
                &name("syncs a thousand reports"),
                "",
                rounds.iter().map(|rate| rate.syncs * 1000.0 / reports as f64).collect(),
            ),
            Figure::median(
                &name("journal and checkpoints a report"),
                "bytes",
                of(|rate| rate.journal_bytes_each),
            ),
            Figure::median(&name("written to disk a report"), "bytes", of(|rate| rate.disk_bytes_each)),
        ]);
    }
    let (few, many) = (rate(64, 1000).await?, rate(64, kept).await?);
    let each = (many.resident_kib - few.resident_kib) * 1024.0 / (kept - 1000) as f64;
    figures.push(
        Figure::whole(&format!("{kept} kept: memory a report"), "bytes", each)
            .note("resident memory of a process with a store, beside one that keeps 1000; what its allocator keeps is in it"),
    );
    fs::remove_dir_all(&dir)?;
    Ok(figures)
}

/// One site, away.
struct Outage<'a> {
    world: &'a mut World,
    program: &'a Path,
    edge: Edge,
    pods: Vec<String>,
    /// Numbers of events that were durable before anything was killed.
    promised: BTreeSet<u64>,
    /// And those that were begun.
    begun: u64,
    /// Of each edgecore that was started in the outage: until it answered, and its memory then.
    starts: Vec<(f64, f64)>,
}

async fn outage(
    world: &mut World,
    program: &Path,
    (transport, settings): (&str, &[&str]),
    reports: u64,
) -> Result<Vec<Figure>> {
    let edge = world.join(0, settings).await?;
    let mut pods = Vec::new();
    for number in 0..PODS {
        pods.push(workload::pause_pod(&format!("till-{number}"), edge.name(), &workload::plain())?);
    }
    workload::run_all(&world.cluster, pods).await?;
    let mut named = Vec::new();
    for number in 0..PODS {
        let name = format!("till-{number}");
        named.push(format!("default/{name}/{}", workload::uid(&world.cluster, &name).await?));
    }
    line::count(&world.sites[0], &world.cloud.endpoint(&world.sites[0]))?;
    edge.kill9()?;
    world.sites[0].cut(LineCut::Silent)?;
    let (promised, starts) = (BTreeSet::new(), Vec::new());
    let mut outage = Outage { world, program, edge, pods: named, promised, begun: 0, starts };
    for round in 0..OUTAGE_ROUNDS {
        // The last makes up for what was not durable when a reporter was killed.
        let missing = reports.saturating_sub(outage.promised.len() as u64);
        let count = if round == OUTAGE_ROUNDS - 1 { missing } else { reports / OUTAGE_ROUNDS };
        outage.keep(round, count).await.with_context(|| format!("round {round}"))?;
        outage.start().await?.kill9()?;
    }
    let edgecore = outage.start().await?;
    let delivered = outage.deliver(edgecore).await?;
    let told = outage.check().await?;
    let name = |what: &str| format!("{transport}: {what}");
    let (times, memory): (Vec<f64>, Vec<f64>) = outage.starts.iter().copied().unzip();
    let promised = outage.promised.len() as f64;
    let note = format!(
        "{} were durable, {} more were begun when their reporter was killed, of which {} were kept; edgecore was killed {} times in the outage \
         and once in the delivery, cloudcore twice",
        outage.promised.len(),
        outage.begun - outage.promised.len() as u64,
        told - outage.promised.len(),
        OUTAGE_ROUNDS,
    );
    Ok(vec![
        Figure::whole(&name("events of an outage, each in the API once"), "", promised)
            .goal(Goal::AtLeast(reports as f64))
            .note(&note),
        Figure::median(&name("edgecore started after a kill, until it answers"), "s", times).note(
            "with a fifth of the events kept, then two fifths, and so on; all of them are gone through",
        ),
        Figure::median(&name("its memory then, PSS"), "MiB", memory),
        Figure::whole(&name("delivery"), "s", delivered.seconds)
            .cpu("edgecore", delivered.edgecore)
            .cpu("kube-apiserver and etcd", delivered.api),
        Figure::whole(&name("delivered"), "/s", told as f64 / delivered.seconds),
        Figure::whole(&name("line restored to Ready, before all these"), "s", delivered.ready),
        Figure::whole(&name("edgecore's peak of memory while it delivers"), "MiB", delivered.peak),
        Figure::whole(&name("on the line, both ways, an event"), "bytes", delivered.bytes / told as f64),
    ])
}

struct Delivered {
    seconds: f64,
    ready: f64,
    peak: f64,
    bytes: f64,
    edgecore: Duration,
    api: Duration,
}

impl Outage<'_> {
    /// With no edgecore, by the store that it has.
    async fn keep(&mut self, round: u64, count: u64) -> Result<()> {
        let (first, store, node) =
            (self.begun, self.edge.store().display().to_string(), self.edge.name().to_owned());
        let mut args =
            vec!["keep".to_owned(), store, node, first.to_string(), count.to_string(), "64".to_owned()];
        args.extend(self.pods.iter().cloned());
        let site = &self.world.sites[0];
        let mut keep = site.spawn(self.program, args, &format!("keep-{round}"))?;
        let log = keep.log().to_owned();
        if KILLED.contains(&round) {
            // In the midst of it.
            wait::until("half of a round's reports durable", SOON, async || {
                let durable = numbers(&log)?.len() as u64;
                ensure!(durable > count / 2, "{durable}");
                Ok(())
            })
            .await?;
            keep.kill9()?;
        } else {
            wait::until("a round's reports durable", SOON, async || {
                ensure!(keep.exited()?.is_some(), "{} until now", numbers(&log)?.len());
                Ok(())
            })
            .await?;
        }
        self.promised.extend(numbers(&log)?);
        self.begun = first + count;
        Ok(())
    }

    async fn start(&mut self) -> Result<Daemon> {
        let begun = Instant::now();
        let edgecore = self.edge.start(&self.world.sites[0])?;
        self.edge.works_alone().await?;
        let took = begun.elapsed().as_secs_f64();
        self.starts.push((took, reading::Memory::of(edgecore.pid())?.pss / 1024.0));
        Ok(edgecore)
    }

    /// Both ends are killed meanwhile.
    async fn deliver(&mut self, mut edgecore: Daemon) -> Result<Delivered> {
        let pending = async || self.edge.metric("edgecore_outbox_reports").await;
        let all = pending().await?;
        let dir = self.world.cluster.dir();
        let pids = [reading::pid_below(dir, "kube-apiserver")?, reading::pid_below(dir, "etcd")?];
        let api = || pids.iter().map(|&pid| reading::cpu(pid)).sum::<Result<Duration>>();
        let (carried, spent) = (line::Line::of(&self.world.sites[0])?, api()?);
        let node = self.edge.name().to_owned();
        let nodes: Api<Node> = Api::all(self.world.cluster.client());
        wait::until("the node given up", SOON, async || {
            let node = nodes.get(&node).await?;
            ensure!(harness::product::ready(&node).is_err(), "it is Ready");
            Ok(())
        })
        .await?;
        let begun = Instant::now();
        self.world.sites[0].restore()?;
        wait::until("the node Ready", SOON, async || harness::product::ready(&nodes.get(&node).await?))
            .await?;
        let ready = begun.elapsed().as_secs_f64();
        let (mut edge_cpu, mut peak) = (Duration::ZERO, 0.0_f64);
        for (left, kills_edge) in [(3, false), (2, true), (1, false)] {
            let doing = format!("delivering: {left} quarters to go");
            let waiting = wait::until(&doing, LONG, async || {
                let pending = pending().await?;
                ensure!(pending < all * left / 4, "{pending} reports");
                Ok(())
            });
            during(&doing, waiting).await?;
            if kills_edge {
                edge_cpu += reading::cpu(edgecore.pid())?;
                peak = peak.max(reading::peak(edgecore.pid())? / 1024.0);
                edgecore.kill9()?;
                edgecore = self.edge.start(&self.world.sites[0])?;
            } else {
                kill9(self.world.cloud.pid()?)?;
            }
        }
        let waiting = wait::until("an empty outbox", LONG, async || {
            let pending = pending().await?;
            ensure!(pending == 0, "{pending} reports");
            Ok(())
        });
        during("delivering the rest", waiting).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let carried = line::Line::of(&self.world.sites[0])? - carried;
        Ok(Delivered {
            seconds,
            ready,
            peak: peak.max(reading::peak(edgecore.pid())? / 1024.0),
            bytes: (carried.up.bytes + carried.down.bytes) as f64,
            edgecore: edge_cpu + reading::cpu(edgecore.pid())?,
            api: api()?.saturating_sub(spent),
        })
    }

    /// What the API has of them: how many.
    async fn check(&self) -> Result<usize> {
        let events: Api<Event> = Api::default_namespaced(self.world.cluster.client());
        let mut told: HashMap<u64, Event> = HashMap::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = events.list(&page).await?;
            for event in list.items {
                let name = event.name_any();
                // edged's own are numbered by the clock.
                let number =
                    name.rsplit_once('.').and_then(|(_, number)| u64::from_str_radix(number, 16).ok());
                if let Some(number) = number.filter(|number| *number < self.begun) {
                    ensure!(event.count == Some(1), "{name} is counted {:?} times", event.count);
                    let message = event.message.clone().unwrap_or_default();
                    ensure!(message.ends_with(&format!("({number})")), "{name} says {message:?}");
                    ensure!(told.insert(number, event).is_none(), "number {number} was told twice");
                }
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
        let lost = self.promised.iter().filter(|number| !told.contains_key(number)).count();
        ensure!(lost == 0, "{lost} of {} events were lost", self.promised.len());
        Ok(told.len())
    }
}

/// The whole lines that are numbers.
fn numbers(log: &Path) -> Result<BTreeSet<u64>> {
    let text = fs::read_to_string(log).with_context(|| format!("failed to read {}", log.display()))?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    Ok(whole.lines().filter_map(|line| line.parse().ok()).collect())
}
