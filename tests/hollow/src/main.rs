//! The command line of the hollow nodes.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use hollow::{
    Fleet, FleetConfig, Identities, Snapshot, Transport,
    beside::Beside,
    cluster::{self, Workload},
    fairness,
};
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use output::{Output, Rated, Summary, Worked};
use runtime::tls;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
    time::{self, Instant, MissedTickBehavior},
};

mod output;

/// Thousands of edges on a machine together with cloudcore: a quarter of what they took went to glibc's when all came at once.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const EXAMPLES: &str = "\
Examples:
  A thousand idle nodes for ten minutes, with certificates signed by the cluster's CA:
    hollow --server 10.0.0.1:10000 --kubeconfig /etc/kubernetes/admin.conf --nodes 1000 --duration 600
  Over the WebSocket alone, a pod on each, and 500 changes a second once all are live:
    hollow --server 10.0.0.1:10000 --kubeconfig admin.conf --nodes 1000 --transport websocket \\
           --pods 1 --changes 500 --duration 60
  32 ConfigMaps that all nodes hold, changed as fast as all have them:
    hollow --server 10.0.0.1:10000 --kubeconfig admin.conf --nodes 1000 --pods 1 --shared 32 --flood 5 --duration 120
  With a join token instead of the CA:
    hollow --server 10.0.0.1:10000 --token \"$(keadm gettoken)\" --nodes 50
  What it leaves in the cluster is taken away with:
    kubectl delete namespace hollow; kubectl delete nodes -l skerry.io/hollow=hollow";

/// Hollow edge nodes by the thousand, to load a cloudcore with.
///
/// Each holds a session with edgecore's own code, over the real transports, and keeps in memory what edgecore keeps on a disk.
/// There is no container runtime: pods that are bound to a hollow node are said to run.
#[derive(Parser)]
#[command(name = "hollow", version, after_help = EXAMPLES, max_term_width = 110)]
struct Args {
    /// cloudcore's address
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// A cluster administrator's kubeconfig: for the CA that signs the nodes' certificates, and for --pods
    #[arg(long, value_name = "PATH", required_unless_present = "token")]
    kubeconfig: Option<PathBuf>,
    /// A join token, with which each node enrolls for itself
    #[arg(long, conflicts_with = "kubeconfig")]
    token: Option<String>,
    /// How many nodes
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// The nodes are PREFIX-0 and on, their pods are in the namespace PREFIX
    #[arg(long, default_value = "hollow")]
    prefix: String,
    /// What carries the links
    #[arg(long, value_enum, default_value_t = Transport::Auto)]
    transport: Transport,
    /// Seconds between the heartbeats of a node
    #[arg(long, value_name = "SECONDS", default_value_t = 70.0)]
    heartbeat: f64,
    /// Nodes to start in a second
    #[arg(long, value_name = "NODES", default_value_t = 200.0)]
    ramp: f64,
    /// When to end, after the start; 0: at SIGINT or SIGTERM alone
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    duration: f64,
    /// Pods to make for each node, once all nodes are Ready
    #[arg(long, default_value_t = 0)]
    pods: usize,
    /// Changes of the nodes' ConfigMaps to make in a second, from when their pods run; several rates one after the other
    #[arg(long, value_name = "RATE,...", value_delimiter = ',', requires = "pods", requires = "kubeconfig")]
    changes: Vec<f64>,
    /// How long to make changes, at most; for each rate, or of each its own
    #[arg(long, value_name = "SECONDS,...", value_delimiter = ',', default_value = "30")]
    changing: Vec<f64>,
    /// ConfigMaps that all nodes hold
    #[arg(long, value_name = "COUNT", default_value_t = 0, requires = "pods")]
    shared: usize,
    /// Seconds for which one of these is changed as fast as all nodes have it, and then all of them; three times
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.0,
        requires = "shared",
        conflicts_with = "changes"
    )]
    flood: f64,
    /// Objects with which one more node comes back, again and again, while --changes are made
    #[arg(long, value_name = "COUNT", default_value_t = 0, requires = "changes")]
    returning: usize,
    /// Where the nodes' keys are kept: a Node remembers its machine's key, so another run needs the same
    /// [default: $SKERRY_CACHE/hollow, or ~/.cache/skerry/hollow]
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// Seconds between lines of progress
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    every: f64,
    /// How progress and summary are printed
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// As in cloudcore: the nodes of a fleet are to wait for each other no longer than if each had a machine.
const LOOK_AT_SOCKETS: u32 = 8;

fn main() -> ExitCode {
    let args = Args::parse();
    tls::install_provider();
    let run = async {
        let _level = runtime::telemetry::init("error", runtime::telemetry::LogFormat::Text)?;
        run(&args).await
    };
    let built =
        tokio::runtime::Builder::new_multi_thread().enable_all().event_interval(LOOK_AT_SOCKETS).build();
    match built.map_err(anyhow::Error::from).and_then(|executor| executor.block_on(run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("hollow: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    check(args)?;
    let directory = match &args.dir {
        Some(dir) => dir.clone(),
        None => default_dir().context("neither SKERRY_CACHE nor HOME is set; name a directory with --dir")?,
    };
    let access = match &args.kubeconfig {
        Some(path) => Some(access(path).await?),
        None => None,
    };
    let client = access.clone().map(Client::try_from).transpose()?;
    let identities = match (&client, &args.token) {
        (Some(client), _) => Identities::signed(cluster::authorities(client).await?, directory),
        (None, Some(token)) => Identities::enrolled(token.clone(), directory),
        (None, None) => bail!("the nodes need certificates: give --kubeconfig or --token"),
    };
    let config = FleetConfig {
        server: args.server.clone(),
        nodes: args.nodes,
        prefix: args.prefix.clone(),
        transport: args.transport,
        heartbeat: seconds("heartbeat", args.heartbeat)?,
        ramp: args.ramp,
        identities,
    };
    warn_of_few_ports(args);
    let mut fleet = Fleet::start(&config)?;
    let (length, every) = (seconds("duration", args.duration)?, seconds("every", args.every)?);
    let end = (length > Duration::ZERO).then(|| Instant::now() + length);
    let (changes, moments) = (fleet.changes().clone(), Moments::default());
    // On the heap: it is a large future.
    let work = Box::pin(async {
        let (Some(access), Some(client)) = (access, client.filter(|_| args.pods > 0)) else {
            return Ok(Worked::default());
        };
        // Not before the nodes are there: pods of a node that is not are collected as garbage.
        moments.all_ready.notified().await;
        tell(&format!("hollow: making {} pods in namespace {}", args.nodes * args.pods, args.prefix));
        let workload = Workload { nodes: args.nodes, pods: args.pods, shared: args.shared };
        let configs = cluster::populate(&client, &args.prefix, workload).await?;
        if args.changes.is_empty() && args.flood <= 0.0 {
            return Ok(Worked::default());
        }
        moments.all_running.notified().await;
        let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        // What is under way at the end still gets its time.
        let left = left.saturating_sub(LATECOMERS);
        let mut worked = Worked::default();
        if args.flood > 0.0 {
            let length = seconds("flood", args.flood)?.min(left / FLOODS);
            let shared = cluster::shared(&args.prefix, args.shared)?;
            for number in 0..FLOODS {
                time::sleep(CALM).await;
                let shared = if number % 2 == 0 { &shared[..1] } else { &shared[..] };
                tell(&format!("hollow: flood {number} begins"));
                worked.floods.push(changes.flood(&client, shared, args.nodes, length).await?);
                // With the last word of each kind, what there is to tell is told: nothing is waited for after it.
                tell(&format!("hollow: flood {number} is over"));
            }
            return Ok(worked);
        }
        let beside = Beside::start(access.clone(), &args.prefix, &changes).await?;
        if args.returning > 0 {
            tell(&format!("hollow: one more node comes and goes, with {} objects", args.returning));
            let (objects, rate) = (args.returning, args.changes[0]);
            let measured = fairness::measure(&config, &changes, &client, &configs, objects, rate).await?;
            beside.stop()?;
            tell("hollow: it has come for the last time");
            worked.fairness = Some(measured);
        } else {
            for (&rate, &length) in args.changes.iter().zip(args.changing.iter().cycle()) {
                time::sleep(CALM).await;
                let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
                let length = seconds("changing", length)?.min(left.saturating_sub(LATECOMERS));
                tell(&format!(
                    "hollow: changing ConfigMaps, {rate} a second, for {:.0} s",
                    length.as_secs_f64()
                ));
                let made = changes.run_apart(access.clone(), &configs, rate, length, PATIENCE);
                let outcome = made.await?;
                tell(&format!("hollow: changed them, {rate} a second: {} times", outcome.asked));
                worked.changes.push(Rated { rate, outcome });
            }
            time::sleep(CALM).await;
            beside.stop()?;
            tell("hollow: all changes are made");
        }
        Ok(worked)
    });
    let mut summary = Summary { all_ready: None, worked: Worked::default(), last: Snapshot::default() };
    let ended = watch(args, &mut fleet, &mut summary, every, end, &moments, work).await;
    summary.last = fleet.snapshot();
    output::summary(args.output, &summary)?;
    fleet.stop().await;
    ended
}

/// All nodes dial one address from one. A connection that has ended keeps its local port for a minute, and where few are left the
/// kernel looks for a free one for milliseconds: it was this, and not cloudcore, that 19,000 nodes waited for.
fn warn_of_few_ports(args: &Args) {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let range = std::fs::read_to_string(RANGE).unwrap_or_default();
    let mut bounds = range.split_whitespace().map(str::parse::<usize>);
    let (Some(Ok(first)), Some(Ok(last))) = (bounds.next(), bounds.next()) else { return };
    let ports = (last + 1).saturating_sub(first);
    if args.transport != Transport::Quic && 2 * args.nodes > ports {
        tell(&format!(
            "hollow: {} nodes come back slowly with {ports} local ports: sysctl -w net.ipv4.ip_local_port_range='1024 65535' net.ipv4.tcp_tw_reuse=1",
            args.nodes
        ));
    }
}

/// For changes that are under way at the end.
const PATIENCE: Duration = Duration::from_millis(2800);
/// The same, with the time for their sum.
const LATECOMERS: Duration = Duration::from_secs(3);

/// Of one object and of all, in turns.
const FLOODS: u32 = 6;
/// Before changes or a flood, for others to read what the last ones cost.
const CALM: Duration = Duration::from_secs(2);

/// What the fleet is waited for.
#[derive(Default)]
struct Moments {
    all_ready: Notify,
    all_running: Notify,
}

/// Until the end, a signal, or a failure.
async fn watch(
    args: &Args,
    fleet: &mut Fleet,
    summary: &mut Summary,
    every: Duration,
    end: Option<Instant>,
    moments: &Moments,
    work: impl Future<Output = Result<Worked>>,
) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut ticks = time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let over = async {
        match end {
            Some(end) => time::sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    let (mut over, mut work) = (std::pin::pin!(over), std::pin::pin!(work));
    let mut working = true;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let now = fleet.snapshot();
                if summary.all_ready.is_none() && now.ready == now.nodes && now.synced == now.nodes {
                    summary.all_ready = Some(now.seconds);
                    moments.all_ready.notify_one();
                }
                if now.pods >= now.nodes * args.pods {
                    moments.all_running.notify_one();
                }
                output::progress(args.output, &now)?;
            }
            outcome = &mut work, if working => {
                working = false;
                summary.worked = outcome?;
            }
            error = fleet.failed() => return Err(error),
            () = &mut over => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
}

/// What clap cannot say of the flags.
fn check(args: &Args) -> Result<()> {
    let Args { changes, changing, returning, .. } = args;
    if let Some(rate) = changes.iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
        bail!("--changes {rate} is no rate: give a number above 0");
    }
    if changing.len() > 1 && changing.len() != changes.len() {
        bail!(
            "--changing has {} times for {} rates of --changes: give one for all, or one for each",
            changing.len(),
            changes.len()
        );
    }
    if *returning > 0 && changes.len() > 1 {
        bail!("--returning goes with one rate; --changes has {}", changes.len());
    }
    Ok(())
}

async fn access(path: &Path) -> Result<kube::Config> {
    let kubeconfig = Kubeconfig::read_from(path)
        .with_context(|| format!("failed to read the kubeconfig {}", path.display()))?;
    Ok(kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

fn default_dir() -> Option<PathBuf> {
    let cache = std::env::var_os("SKERRY_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/skerry")));
    Some(cache?.join("hollow"))
}

fn seconds(flag: &str, seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .with_context(|| format!("--{flag} {seconds} is no number of seconds"))
}

fn tell(line: &str) {
    // Nobody is left to be told.
    drop(writeln!(io::stderr().lock(), "{line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_their_times_go_together() {
        let checked = |flags: &[&str]| {
            let always = ["hollow", "--server=a:1", "--kubeconfig=k", "--pods=1"];
            let args = Args::try_parse_from(always.iter().chain(flags)).unwrap();
            check(&args).map(|()| args).map_err(|error| error.to_string())
        };
        let args = checked(&["--changes=100,250.5", "--changing=10,20"]).ok().unwrap();
        assert_eq!((args.changes, args.changing), (vec![100.0, 250.5], vec![10.0, 20.0]));
        assert!(checked(&["--changes=100,250", "--changing=10"]).is_ok());
        for (flags, told) in [
            (["--changes=0", "--changing=1"], "--changes 0 is no rate"),
            (["--changes=1,NaN", "--changing=1"], "--changes NaN is no rate"),
            (["--changes=1,2", "--changing=1,2,3"], "--changing has 3 times for 2 rates"),
            (["--changes=1,2", "--returning=5"], "--returning goes with one rate"),
        ] {
            let error = checked(&flags).err().unwrap();
            assert!(error.starts_with(told), "{error}");
        }
    }
}
