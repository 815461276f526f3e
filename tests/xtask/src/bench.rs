//! `cargo xtask bench`: measures the programs as they ship, against a real control plane and real sites.
//!
//! What each figure means and how it is got is in `docs/benchmarks.md`. A [`Measure`] has a control plane and sites of
//! its own, so that any can be run by its name; its figures replace those of the same measure in the file
//! `target/bench/first-light.json`, and the rest of the file stays. A measure that fails leaves its old figures out of
//! the file, the others go on, and the command fails at the end.

#![allow(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]

mod adopt;
mod cuts;
mod delta;
mod deltas;
mod devices;
mod example;
mod fairness;
mod faults;
mod figure;
mod hollow;
mod idle;
mod line;
mod node;
mod outbox;
mod pods;
mod reading;
mod report;
mod restart;
mod rotation;
mod scale;
mod size;
mod stream;
mod trace;
mod workload;
mod world;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use harness::{Assets, setup};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use crate::say;
use figure::Figure;
use report::{Conditions, Report};

/// How long a machine that is busy is waited for before each measure.
const REST: Duration = Duration::from_mins(1);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; everything but what takes long (outbox, line, hollow, scale, deltas, fairness, rotation, devices), if nothing is named
    names: Vec<Measure>,
    /// How the figures are printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Measure nothing; print what was measured last
    #[arg(long, conflicts_with = "names")]
    last: bool,
    /// For outbox: how many reports of an outage
    #[arg(long, value_name = "REPORTS", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(5000..))]
    outbox_reports: u64,
    /// For line: how many faults of each kind, over each transport
    #[arg(long, value_name = "FAULTS", default_value_t = 50)]
    line_faults: usize,
    /// For hollow, deltas, fairness and rotation: how many nodes
    #[arg(long, value_name = "NODES", default_value_t = 1000)]
    hollow_nodes: usize,
    /// For fairness: objects with which a node comes back
    #[arg(long, value_name = "OBJECTS", default_value_t = 10_000)]
    returning: usize,
    /// For hollow, scale, deltas, fairness and rotation: what carries the links; either, one after the other, if nothing is said
    #[arg(long, value_enum, value_name = "TRANSPORT")]
    hollow_transport: Option<hollow::Transport>,
    #[command(flatten)]
    scale: scale::Scale,
    /// For devices: these parts alone, with commas between them; the figures of the others are gone then
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    devices_part: Vec<devices::Part>,
    /// Put the table into docs/benchmarks.md, too
    #[arg(long)]
    docs: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Debug)]
pub(crate) enum Measure {
    /// The programs' sizes
    Size,
    /// edgecore and cloudcore with nothing to do: memory, CPU, wake-ups, disk, line; memory per pod
    Idle,
    /// Syncs and bytes for one change, and for 64 at once
    Delta,
    /// What edgecore adds to a pod's start; pods a minute beside bare CRI calls
    Pods,
    /// edgecore started: until its node is Ready
    Restart,
    /// edgecore started with no cloud in reach: until it has adopted 100 pods, and the memory then
    Adopt,
    /// The line restored: until the node is Ready and a change has arrived
    Cuts,
    /// A stream of the link (logs and the like) beside raw TLS: throughput, memory, heartbeats meanwhile
    Stream,
    /// Durable reports a second, what each costs; those of an outage with kills, kept and delivered over either transport
    Outbox,
    /// Lines that fall silent, flap or are translated anew, programs that stop or are killed: until a change has arrived
    Line,
    /// Thousands of hollow nodes over either transport: cost at rest, reconnect storm, 1,000 changes a second
    Hollow,
    /// Ten thousand hollow nodes with five pods each over either transport: Ready for ten minutes, cost, reconnect storm
    Scale,
    /// Deltas a second: to hollow nodes for each core of cloudcore, and to one edge behind a far line
    Deltas,
    /// One node that comes back with 10,000 objects to be told of: what it does to the changes of the others
    Fairness,
    /// The CA rotated under thousands of hollow nodes: until all follow, the pace of renewals
    Rotation,
    /// Modbus lines and slaves, twins, the MQTT broker beside mosquitto, a node with a thousand devices
    Devices,
}

impl Measure {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Idle => "idle",
            Self::Delta => "delta",
            Self::Pods => "pods",
            Self::Restart => "restart",
            Self::Adopt => "adopt",
            Self::Cuts => "cuts",
            Self::Stream => "stream",
            Self::Outbox => "outbox",
            Self::Line => "line",
            Self::Hollow => "hollow",
            Self::Scale => "scale",
            Self::Deltas => "deltas",
            Self::Fairness => "fairness",
            Self::Rotation => "rotation",
            Self::Devices => "devices",
        }
    }

    async fn take(self, assets: &Assets, args: &Args) -> Result<Vec<Figure>> {
        match self {
            Self::Size => size::take(assets),
            Self::Idle => idle::take(assets).await,
            Self::Delta => delta::take(assets).await,
            Self::Pods => pods::take(assets).await,
            Self::Restart => restart::take(assets).await,
            Self::Adopt => adopt::take(assets).await,
            Self::Cuts => cuts::take(assets).await,
            Self::Stream => stream::take().await,
            Self::Outbox => outbox::take(assets, args.outbox_reports).await,
            Self::Line => faults::take(assets, args.line_faults).await,
            Self::Hollow => hollow::take(assets, args.hollow_nodes, args.hollow_transport).await,
            Self::Scale => scale::take(assets, &args.scale, args.hollow_transport).await,
            Self::Deltas => deltas::take(assets, args.hollow_nodes, args.hollow_transport).await,
            Self::Fairness => {
                fairness::take(assets, args.hollow_nodes, args.returning, args.hollow_transport).await
            }
            Self::Rotation => rotation::take(assets, args.hollow_nodes, args.hollow_transport).await,
            Self::Devices => devices::take(assets, &args.devices_part).await,
        }
    }
}

/// Measures until the end, or until a signal; what was measured by then is in the file.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Dropping a measure takes down what it has started.
    tokio::select! {
        measured = measure(args) => measured,
        _ = interrupt.recv() => bail!("interrupted; everything is taken down"),
        _ = terminate.recv() => bail!("terminated; everything is taken down"),
        _ = hangup.recv() => bail!("the terminal is gone; everything is taken down"),
    }
}

async fn measure(args: &Args) -> Result<()> {
    let mut report = Report::load()?;
    let mut failed = Vec::new();
    if !args.last {
        let mut measures = args.names.clone();
        if measures.is_empty() {
            measures = Measure::value_variants().to_vec();
            // Each takes longer than most of the others together.
            measures.retain(|measure| {
                !matches!(
                    measure,
                    Measure::Outbox
                        | Measure::Line
                        | Measure::Hollow
                        | Measure::Scale
                        | Measure::Deltas
                        | Measure::Fairness
                        | Measure::Rotation
                        | Measure::Devices
                )
            });
        }
        measures.sort_unstable();
        measures.dedup();
        let assets = setup::ensure_release().await.context("setup")?;
        report.describe_machine();
        for measure in measures {
            reading::rest(REST).await?;
            tell(&format!("{}: begun", measure.name()));
            let before = Conditions::note()?;
            let begun = Instant::now();
            match measure.take(&assets, args).await {
                Ok(figures) => report.put(measure, &before.to_now()?, figures),
                Err(error) => {
                    tell(&format!("{}: FAILED: {error:#}", measure.name()));
                    report.forget(measure);
                    failed.push(measure.name());
                }
            }
            tell(&format!("{}: {:.0} s", measure.name(), begun.elapsed().as_secs_f32()));
            report.save()?;
        }
    }
    match args.output {
        Output::Table => say(&report.table())?,
        Output::Json => say(&report.json()?)?,
    }
    if args.docs {
        report.write_docs()?;
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(())
}

/// Progress, apart from the figures on standard output.
fn tell(line: &str) {
    eprintln!("bench: {line}");
}
