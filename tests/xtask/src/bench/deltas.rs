//! How much a cloudcore delivers: to a thousand hollow nodes, for each second of a core that it uses, and to one real edge
//! behind a line with a round trip of 50 ms.
//!
//! The API server on this machine takes a thousand writes a second or two. So the hollow nodes all hold the same ConfigMaps: one
//! write is a delta for each node. The real edge's changes are written while cloudcore is stopped, or the line silent.

mod far;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Assets, progress::during};

use super::{
    figure::{Figure, Goal},
    hollow::{RENEWAL, Transport, limit, stage, stage::Stage, transports},
    reading,
};

/// ConfigMaps that all nodes hold.
const SHARED: usize = 32;
/// Seconds of each flood.
const FLOOD: u32 = 5;
const SOON: Duration = Duration::from_mins(1);

pub(super) async fn take(assets: &Assets, nodes: usize, only: Option<Transport>) -> Result<Vec<Figure>> {
    let program = during("building hollow as it would ship, which takes minutes", stage::build()).await?;
    let mut figures = Vec::new();
    for transport in transports(only) {
        let stage = Stage::start(assets, &program, transport, nodes, RENEWAL).await?;
        let measured = flood(&stage, transport, nodes).await;
        figures.extend(stage.end(measured)?);
    }
    figures.extend(far::take(assets, &transports(only)).await?);
    Ok(figures)
}

/// One flood.
struct Flood {
    objects: usize,
    deltas: f64,
    seconds: f64,
    p99: f64,
    cloud: Duration,
    hollow: Duration,
    api: Duration,
}

async fn flood(stage: &Stage, transport: &str, nodes: usize) -> Result<Vec<Figure>> {
    let fleet = stage.fleet(&["--pods=1", &format!("--shared={SHARED}"), &format!("--flood={FLOOD}")])?;
    let mut spent = Vec::new();
    let all = async {
        loop {
            let number = spent.len();
            fleet.until_told(&format!("flood {number} begins"), limit(nodes)).await?;
            let (before, hollow) = (stage.usage()?, reading::cpu(fleet.pid())?);
            fleet.until_told(&format!("flood {number} is over"), SOON).await?;
            let used = stage.spent_alone(&before)?;
            let of = |name: &str| used.of.iter().find(|(whose, _)| whose == name).map(|(_, time)| *time);
            spent.push((
                of("cloudcore").context("cloudcore was not measured")?,
                reading::cpu(fleet.pid())?.saturating_sub(hollow),
                of("kube-apiserver").unwrap_or_default() + of("etcd").unwrap_or_default(),
            ));
            if spent.len() == FLOODS {
                return anyhow::Ok(());
            }
        }
    };
    during("changing what all nodes hold", all).await?;
    fleet.end()?;
    let summary = fleet.now()?;
    let told = summary["floods"].as_array().context("the fleet told of no flood")?;
    ensure!(told.len() == spent.len(), "{} floods were told of: {summary}", told.len());
    let floods: Vec<Flood> = told
        .iter()
        .zip(spent)
        .map(|(told, (cloud, hollow, api))| {
            let number = |field: &str| told[field].as_f64().unwrap_or_default();
            let objects = usize::try_from(told["objects"].as_u64().unwrap_or_default()).unwrap_or_default();
            Flood {
                objects,
                deltas: number("deltas"),
                seconds: number("seconds"),
                p99: number("p99"),
                cloud,
                hollow,
                api,
            }
        })
        .collect();
    let mut figures = Vec::new();
    for (objects, what) in [(1, "one object changes"), (SHARED, "32 objects change")] {
        let floods: Vec<&Flood> = floods.iter().filter(|flood| flood.objects == objects).collect();
        ensure!(!floods.is_empty(), "no flood of {objects} objects: {summary}");
        let of = |read: fn(&Flood) -> f64| floods.iter().map(|flood| read(flood)).collect::<Vec<_>>();
        let sum = |read: fn(&Flood) -> Duration| floods.iter().map(|flood| read(flood)).sum();
        let name = |figure: &str| format!("{nodes} nodes, {transport}: {what}: {figure}");
        figures.push(
            Figure::median(
                &name("deltas a second of cloudcore's CPU"),
                "/s",
                of(|flood| flood.deltas / flood.cloud.as_secs_f64()),
            )
            .goal(Goal::AtLeast(20_000.0))
            .cpu("cloudcore", sum(|flood| flood.cloud))
            .cpu("hollow", sum(|flood| flood.hollow))
            .cpu("kube-apiserver and etcd", sum(|flood| flood.api))
            .note("committed in the hollow nodes' stores, which are in memory, and acked"),
        );
        figures.push(Figure::median(
            &name("deltas a second"),
            "/s",
            of(|flood| flood.deltas / flood.seconds),
        ));
        figures.push(Figure::median(
            &name("write until all nodes have it, p99"),
            "ms",
            of(|flood| flood.p99),
        ));
    }
    Ok(figures)
}

/// As many as hollow makes.
const FLOODS: usize = 6;
