//! Hollow nodes by the thousand on one cloudcore, over each transport: what they cost connected and idle, how long until all
//! are back after cloudcore was killed, and how fast changes arrive.
//!
//! The nodes live at a site, so that what is on their line can be counted. They share two cores with the whole control plane:
//! who spent how much of them stands beside each figure.

mod changes;
mod cores;
mod flat;
pub(crate) mod stage;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use harness::{Assets, progress::during};
use tokio::time::{Instant, sleep};

use super::{
    figure::{Figure, Goal},
    line::Line,
    reading::{Memory, peak},
    workload,
};
use stage::{Fleet, Spent, Stage};

const SETTLE: Duration = Duration::from_secs(15);
const REST: Duration = Duration::from_mins(1);
/// Between two renewals of a node's Lease, as by default.
pub(crate) const RENEWAL: Duration = Duration::from_secs(10);
/// How long all nodes may take, for each of them.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Transport {
    Websocket,
    Quic,
}

/// Their names.
pub(crate) fn transports(only: Option<Transport>) -> Vec<&'static str> {
    match only {
        None => vec!["websocket", "quic"],
        Some(Transport::Websocket) => vec!["websocket"],
        Some(Transport::Quic) => vec!["quic"],
    }
}

/// How long so many nodes may take.
pub(crate) fn limit(nodes: usize) -> Duration {
    Duration::from_mins(1) + PATIENCE * u32::try_from(nodes).unwrap_or(u32::MAX)
}

pub(super) async fn take(assets: &Assets, nodes: usize, only: Option<Transport>) -> Result<Vec<Figure>> {
    let program = during("building hollow as it would ship, which takes minutes", stage::build()).await?;
    let mut figures = Vec::new();
    for transport in transports(only) {
        let stage = Stage::start(assets, &program, transport, nodes, RENEWAL).await?;
        let turn = Turn { stage: &stage, transport, nodes, pods: 1, rest: REST, figures: Vec::new() };
        let measured = turn.take().await;
        figures.extend(stage.end(measured)?);
    }
    Ok(figures)
}

/// What the nodes' stores were told of since the fleet's start, by kind.
struct Deltas(BTreeMap<String, f64>);

impl Deltas {
    fn of(now: &serde_json::Value) -> Self {
        let kinds = now["kinds"].as_object().into_iter().flatten();
        Self(kinds.map(|(kind, count)| (kind.clone(), count.as_f64().unwrap_or_default())).collect())
    }

    /// How many, and of what kinds.
    fn since(&self, before: &Self) -> (f64, String) {
        let more = |(kind, count): (&String, &f64)| {
            let more = count - before.0.get(kind).copied().unwrap_or_default();
            (more > 0.0).then(|| (kind.clone(), more))
        };
        let more: Vec<(String, f64)> = self.0.iter().filter_map(more).collect();
        let kinds: Vec<String> = more.iter().map(|(kind, more)| format!("{more} {kind}")).collect();
        (more.iter().fold(0.0, |sum, (_, more)| sum + more), kinds.join(", "))
    }
}

/// All figures of one transport, on a control plane of its own.
pub(crate) struct Turn<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) transport: &'static str,
    pub(crate) nodes: usize,
    /// On each node.
    pub(crate) pods: usize,
    /// How long the nodes are watched with nothing to do.
    pub(crate) rest: Duration,
    pub(crate) figures: Vec<Figure>,
}

impl Turn<'_> {
    async fn take(mut self) -> Result<Vec<Figure>> {
        self.at_rest_and_killed().await?;
        self.changes().await?;
        Ok(self.figures)
    }

    /// The nodes come, stay, and come back.
    pub(crate) async fn at_rest_and_killed(&mut self) -> Result<()> {
        self.join().await?;
        let empty = self.without_nodes().await?;
        let fleet = self.stage.fleet(&[])?;
        self.live(&fleet, 0).await?;
        self.idle(&empty, &fleet).await?;
        self.storm(&fleet).await?;
        fleet.end()
    }

    fn name(&self, what: &str) -> String {
        let pods = if self.pods == 1 { String::new() } else { format!(" with {} pods", self.pods) };
        format!("{} nodes{pods}, {}: {what}", self.nodes, self.transport)
    }

    fn put(&mut self, figure: Figure, spent: &Spent) {
        self.figures.push(spent.of.iter().fold(figure, |figure, (whose, time)| figure.cpu(whose, *time)));
    }

    fn limit(&self) -> Duration {
        limit(self.nodes)
    }

    /// Waits until all nodes are Ready again, in so many sessions; the seconds of the fleet's clock.
    async fn live(&self, fleet: &Fleet, sessions: u64) -> Result<f64> {
        let all = self.nodes as u64;
        fleet
            .until("all nodes Ready", self.limit(), |now| {
                now["ready"] == all
                    && now["synced"] == all
                    && now["sessions"].as_u64() >= Some(sessions + all)
            })
            .await
    }

    /// New nodes, each with its pods.
    async fn join(&mut self) -> Result<()> {
        let (calls, before) = (self.stage.calls().await?, self.stage.usage()?);
        let fleet = self.stage.fleet(&[&format!("--pods={}", self.pods)])?;
        let seconds = during("new nodes join", self.live(&fleet, 0)).await?;
        let spent = self.stage.spent(&before, &fleet)?;
        let called = self.stage.calls().await?.since(&calls);
        let note = format!("{:.1} API calls a node, the leases' included", called.all / self.nodes as f64);
        let figure = Figure::whole(&self.name("start to all Ready, new to the cluster"), "s", seconds);
        self.put(figure.note(&note), &spent);
        let all = (self.nodes * self.pods) as u64;
        let running =
            fleet.until("all pods Running", limit(self.nodes * self.pods), |now| now["pods"] == all);
        during("pods start", running).await?;
        during("letting it come to rest", self.stage.calm(limit(self.nodes * self.pods))).await?;
        fleet.end()
    }

    /// A cloudcore with the same objects in its caches and no node connected.
    async fn without_nodes(&self) -> Result<Memory> {
        self.stage.restart_cloud().await?;
        workload::settle(SETTLE).await;
        Memory::of(self.stage.cloud.pid()?)
    }

    async fn idle(&mut self, empty: &Memory, fleet: &Fleet) -> Result<()> {
        during("letting it come to rest", self.stage.calm(limit(self.nodes * self.pods))).await?;
        let fleet_calls = self.stage.calls().await?;
        let (lost, ended) = (self.stage.given_up().await?, fleet.now()?);
        let before = self.stage.usage()?;
        let begun = Instant::now();
        during("watching all nodes at rest", sleep(self.rest)).await;
        let seconds = begun.elapsed().as_secs_f64();
        let spent = self.stage.spent_alone(&before)?;
        let called = self.stage.calls().await?.since(&fleet_calls);
        let full = Memory::of(self.stage.cloud.pid()?)?;
        let each = |full: f64, empty: f64| (full - empty) / self.nodes as f64;
        let note = format!("{:.1} MiB with none, {:.1} MiB with all", empty.pss / 1024.0, full.pss / 1024.0);
        let pss = Figure::whole(
            &self.name("cloudcore, PSS a connected idle node"),
            "KiB",
            each(full.pss, empty.pss),
        );
        let dirty = Figure::whole(
            &self.name("cloudcore, Private_Dirty a connected idle node"),
            "KiB",
            each(full.private_dirty, empty.private_dirty),
        );
        self.figures.push(pss.goal(Goal::AtMost(32.0)).note(&note));
        self.figures.push(dirty.goal(Goal::AtMost(32.0)));
        for (whose, time) in &spent.of {
            let percent = 100.0 * time.as_secs_f64() / seconds;
            let name = self.name(&format!("at rest: CPU of {whose}"));
            self.figures.push(Figure::whole(&name, "% of a core", percent));
        }
        let name = self.name("at rest: API calls");
        self.figures.push(Figure::whole(&name, "/s", called.all / seconds));
        let sessions = |now: &serde_json::Value| now["sessions"].as_f64().unwrap_or_default();
        let name = self.name("at rest: sessions that ended");
        let more = sessions(&fleet.now()?) - sessions(&ended);
        self.figures.push(Figure::whole(&name, "sessions", more).goal(Goal::AtMost(0.0)));
        let name = self.name("at rest: went NotReady");
        let lost = self.stage.given_up().await? - lost;
        self.figures.push(
            Figure::whole(&name, "times", lost)
                .goal(Goal::AtMost(0.0))
                .note(&format!("events NodeNotReady in {seconds:.0} s")),
        );
        Ok(())
    }

    /// cloudcore is killed, and comes back.
    async fn storm(&mut self, fleet: &Fleet) -> Result<()> {
        let steady = Memory::of(self.stage.cloud.pid()?)?;
        let (calls, line, before) =
            (self.stage.calls().await?, self.stage.line()?, self.stage.usage_beside_cloud()?);
        let begun = fleet.now()?;
        let start = begun["seconds"].as_f64().unwrap_or_default();
        let sessions = begun["sessions"].as_u64().unwrap_or_default();
        let deltas = Deltas::of(&begun);
        let lost = self.stage.given_up().await?;
        let restarted = self.stage.restart_cloud().await?;
        let last = during("all nodes come back", self.live(fleet, sessions)).await?;
        let mut spent = self.stage.spent(&before, fleet)?;
        spent.of.insert(0, ("cloudcore".to_owned(), super::reading::cpu(self.stage.cloud.pid()?)?));
        let high = peak(self.stage.cloud.pid()?)?;
        let called = self.stage.calls().await?.since(&calls);
        let line = self.stage.line()? - line;
        let nodes = self.nodes as f64;
        let back =
            |share: f64| fleet.first(|now| now["sessions"].as_f64() >= Some(sessions as f64 + share * nodes));
        let note = format!(
            "from the kill; cloudcore answers /readyz after {:.1} s; {:.1} API calls a node",
            restarted.as_secs_f64(),
            called.all / self.nodes as f64
        );
        for (percent, share) in [(50, 0.5), (90, 0.9), (99, 0.99), (100, 1.0)] {
            let name = self.name(&format!("cloudcore killed: until {percent} % have a session"));
            let figure = Figure::whole(&name, "s", back(share)? - start).note(&note);
            let figure = if percent == 99 { figure.goal(Goal::AtMost(30.0)) } else { figure };
            self.put(figure, &spent);
        }
        self.put(
            Figure::whole(&self.name("cloudcore killed: until all are Ready"), "s", last - start),
            &spent,
        );
        let name = self.name("cloudcore killed: its peak of memory beside what it held before");
        self.figures.push(
            Figure::whole(&name, "times", high / steady.rss).goal(Goal::AtMost(1.5)).note(&format!(
                "VmHWM {:.1} MiB, VmRSS was {:.1} MiB",
                high / 1024.0,
                steady.rss / 1024.0
            )),
        );
        self.resync(&begun, &fleet.now()?, &line);
        let (again, kinds) = Deltas::of(&fleet.now()?).since(&deltas);
        self.figures.push(
            Figure::whole(&self.name("cloudcore killed: objects sent again"), "objects", again)
                .goal(Goal::AtMost(0.0))
                .note(&kinds),
        );
        let name = self.name("cloudcore killed: went NotReady");
        let lost = self.stage.given_up().await? - lost;
        self.figures.push(Figure::whole(&name, "times", lost).goal(Goal::AtMost(0.0)));
        let name = self.name("pods evicted in all this");
        let gone = (self.nodes * self.pods) as f64 - self.stage.pods().await?;
        self.figures.push(Figure::whole(&name, "pods", gone).goal(Goal::AtMost(0.0)));
        Ok(())
    }

    /// What it takes to find that nothing has changed.
    fn resync(&mut self, before: &serde_json::Value, after: &serde_json::Value, line: &Line) {
        let nodes = self.nodes as f64;
        let frames = |end: &serde_json::Value, way: &str| {
            end["bytes"][self.transport][way].as_f64().unwrap_or_default() / nodes
        };
        let [up, down] = ["up", "down"].map(|way| frames(after, way) - frames(before, way));
        let name = self.name("cloudcore killed: frames a node until all are Ready");
        let note = format!("{up:.0} up, {down:.0} down, reports of node and pod included; before TLS");
        self.figures.push(Figure::whole(&name, "bytes", up + down).goal(Goal::AtMost(1000.0)).note(&note));
        let name = self.name("cloudcore killed: on the line a node until all are Ready");
        let note = format!(
            "IP packets with TLS handshakes and attempts that failed: {:.0} up, {:.0} down",
            line.up.bytes as f64 / nodes,
            line.down.bytes as f64 / nodes
        );
        let bytes = (line.up.bytes + line.down.bytes) as f64;
        self.figures.push(Figure::whole(&name, "bytes", bytes / nodes).note(&note));
    }
}
