//! What hollow nodes play in: a control plane, cloudcore, a site that all of them are at, and what is counted there.

use std::{
    cell::{Cell, RefCell, RefMut},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    Assets, Cluster, ClusterOptions, Run, Site, SiteOptions,
    process::{self, Daemon, kill9, output_async},
    product::Cloud,
    progress::during,
    setup, wait,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    super::{
        line::{self, Line},
        reading,
    },
    flat::Flat,
};

const SOON: Duration = Duration::from_mins(2);
/// Calls a second of the API server that are made at rest, but for renewals of Leases: the control plane's own.
const CALM: f64 = 25.0;
const WINDOW: Duration = Duration::from_secs(5);
/// Nodes that start in a second: about what this machine takes in, which has two cores for both ends of each handshake. Of more
/// some only wait, and are tried again.
const RAMP: usize = 200;
/// All nodes dial one address from one: see `hollow`'s own warning. A port is used again a second after its last connection ended, and
/// not a minute; the kernel looks at the even ones first, one by one, for 9 ms when none of them is free.
const PORTS: [&str; 2] = ["net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1"];

/// In the order in which it is to go.
pub(crate) struct Stage {
    pub(crate) cloud: Cloud,
    site: Site,
    cluster: Cluster,
    kubeconfig: PathBuf,
    program: PathBuf,
    transport: &'static str,
    nodes: usize,
    /// Started until now: each has a log of its own.
    fleets: Cell<u32>,
    run: Arc<Run>,
    _flat: Flat,
}

/// The load tool as it would ship.
pub(crate) async fn build() -> Result<PathBuf> {
    let build =
        setup::cargo(&["build", "--release", "-p", "hollow", "--message-format=json-render-diagnostics"]);
    let messages = output_async(build).await?;
    let path = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    path.context("cargo built no hollow")
}

impl Stage {
    pub(crate) async fn start(
        assets: &Assets,
        program: &Path,
        transport: &'static str,
        nodes: usize,
        renewal: Duration,
    ) -> Result<Self> {
        let run = Run::start()?;
        let built = Self::build(&run, assets, program, transport, nodes, renewal);
        let stage = during("starting control plane, cloudcore and a site", built).await;
        run.end(stage)
    }

    async fn build(
        run: &Arc<Run>,
        assets: &Assets,
        program: &Path,
        transport: &'static str,
        nodes: usize,
        renewal: Duration,
    ) -> Result<Self> {
        let flat = Flat::set()?;
        let site = Site::start(run, assets, &SiteOptions { images: false, ..SiteOptions::default() }).await?;
        site.output("sysctl", [&["-qw"], &PORTS[..]].concat()).await?;
        let options = ClusterOptions {
            // As it is by default elsewhere, where a Lease is renewed every 10 s.
            node_monitor_grace_period: 5 * renewal,
            node_monitor_period: Duration::from_secs(5),
            eviction_after: Duration::from_mins(5),
            reachable_from_sites: true,
            addresses: vec![IpAddr::from(site.host_address())],
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start(run, assets, &options).await?;
        let kubeconfig = cluster.kubeconfig_at(site.host_address(), "hollow", &["system:masters"])?;
        let cloud = Cloud::init(run, assets, &cluster, &[site.host_address()]).await?;
        line::count(&site, &cloud.endpoint(&site))?;
        let stage = Self {
            cloud,
            site,
            cluster,
            kubeconfig,
            program: program.to_owned(),
            transport,
            nodes,
            fleets: Cell::new(0),
            run: Arc::clone(run),
            _flat: flat,
        };
        stage.admit_all(renewal)?;
        stage.restart_cloud().await?;
        Ok(stage)
    }

    /// Raises cloudcore's limit of nodes, which is 1000 by default, and sets its heartbeat, for its next start.
    fn admit_all(&self, renewal: Duration) -> Result<()> {
        let path = self.cloud.dir().join("config/cloudcore.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let place = text.lines().find(|line| line.trim() == "cloudHub:");
        let place = place.with_context(|| format!("{} has no cloudHub", path.display()))?;
        let indent = place.len() - place.trim_start().len();
        let (every, lasts) = (renewal.as_secs(), 4 * renewal.as_secs());
        let limit = format!(
            "{place}\n{0:indent$}  nodeLimit: {1}\n{0:indent$}  nodeLease: {{renewIntervalSeconds: {every}, durationSeconds: {lasts}}}",
            "",
            2 * self.nodes
        );
        let kept: Vec<&str> = text.lines().filter(|line| !line.trim().starts_with("nodeLimit:")).collect();
        Ok(fs::write(&path, kept.join("\n").replacen(place, &limit, 1) + "\n")?)
    }

    /// Has the logs printed, and the directory left there, if `result` is a failure.
    pub(crate) fn end<T>(self, result: Result<T>) -> Result<T> {
        self.run.end(result)
    }

    /// Starts the nodes.
    pub(crate) fn fleet(&self, options: &[&str]) -> Result<Fleet> {
        let mut args = vec![
            format!("--server={}", self.cloud.endpoint(&self.site)),
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--dir={}", self.site.dir().join("hollow").display()),
            format!("--transport={}", self.transport),
            format!("--nodes={}", self.nodes),
            format!("--ramp={RAMP}"),
            "--duration=0".to_owned(),
            "--every=0.1".to_owned(),
            "--output=json".to_owned(),
        ];
        args.extend(options.iter().map(|&option| option.to_owned()));
        self.fleets.set(self.fleets.get() + 1);
        let log = format!("hollow-{}", self.fleets.get());
        let daemon = self.site.spawn(&self.program, args, &log)?;
        Ok(Fleet {
            log: daemon.log().to_owned(),
            pid: daemon.pid(),
            daemon: RefCell::new(daemon),
            told: RefCell::default(),
        })
    }

    /// Kills cloudcore and waits for its supervisor to start another; how long until that one is ready.
    pub(crate) async fn restart_cloud(&self) -> Result<Duration> {
        let old = self.cloud.pid()?;
        let begun = Instant::now();
        kill9(old)?;
        wait::until("another cloudcore ready", SOON, async || {
            ensure!(self.cloud.pid()? != old, "its supervisor has not started another");
            let answer = self.cloud.admin("/readyz").await?;
            ensure!(answer.status == 200, "/readyz answers {}", answer.status);
            anyhow::Ok(())
        })
        .await?;
        Ok(begun.elapsed())
    }

    /// Runs keadm as the cluster's administrator, and returns what it printed.
    pub(crate) async fn keadm(&self, args: &[&str]) -> Result<String> {
        let kubeconfig = format!("--kube-config={}", self.cluster.kubeconfig().display());
        self.cloud.keadm(args.iter().map(|&arg| arg.to_owned()).chain([kubeconfig])).await
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.cluster.client()
    }

    /// What the API server has answered until now.
    pub(crate) async fn calls(&self) -> Result<Calls> {
        let text = self.cluster.kubectl(&["get", "--raw=/metrics"]).await?;
        let mut calls = Calls { all: 0.0, leases: 0.0 };
        for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
            let count: f64 = line.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default();
            // What watches is answered once, whatever it sees; and this very request is nobody's load.
            if line.contains("verb=\"WATCH\"") || line.contains("/metrics") {
                continue;
            }
            calls.all += count;
            if line.contains("resource=\"leases\"") {
                calls.leases += count;
            }
        }
        Ok(calls)
    }

    /// Waits until little is asked of the API server but the renewal of Leases: that all nodes are Ready does not say that
    /// all has been written.
    pub(crate) async fn calm(&self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            let before = self.calls().await?;
            sleep(WINDOW).await;
            let called = self.calls().await?.since(&before);
            if (called.all - called.leases) / WINDOW.as_secs_f64() < CALM {
                return Ok(());
            }
            let others = called.all - called.leases;
            ensure!(begun.elapsed() < limit, "{others} API calls in {WINDOW:?} after {limit:?}");
        }
    }

    /// How often kube-controller-manager has given a node up until now.
    pub(crate) async fn given_up(&self) -> Result<f64> {
        let args =
            ["get", "events", "--all-namespaces", "--field-selector=reason=NodeNotReady", "--output=json"];
        let events: Value = serde_json::from_str(&self.cluster.kubectl(&args).await?)?;
        let events = events["items"].as_array().context("kubectl answers with no list of events")?;
        Ok(events.iter().map(|event| event["count"].as_f64().unwrap_or(1.0)).sum())
    }

    /// Pods that there are: the nodes' own, without those that were evicted.
    pub(crate) async fn pods(&self) -> Result<f64> {
        let path = "--raw=/api/v1/pods?limit=1";
        let page: Value = serde_json::from_str(&self.cluster.kubectl(&["get", path]).await?)?;
        let here = page["items"].as_array().context("kubectl answers with no list of pods")?.len();
        Ok(here as f64 + page["metadata"]["remainingItemCount"].as_f64().unwrap_or_default())
    }

    /// What the nodes' links have carried until now.
    pub(crate) fn line(&self) -> Result<Line> {
        Line::of(&self.site)
    }

    /// Of each of the processes that are there all the time, what it has used.
    pub(crate) fn usage(&self) -> Result<Spent> {
        let mut spent = self.usage_beside_cloud()?;
        spent.of.insert(0, ("cloudcore".to_owned(), reading::cpu(self.cloud.pid()?)?));
        Ok(spent)
    }

    /// A component of the control plane.
    pub(crate) fn control_plane(&self, program: &str) -> Result<u32> {
        reading::pid_below(self.cluster.dir(), program)
    }

    /// For as long as cloudcore is not the same.
    pub(crate) fn usage_beside_cloud(&self) -> Result<Spent> {
        let of = ["kube-apiserver", "etcd", "kube-controller-manager"]
            .iter()
            .map(|name| {
                Ok(((*name).to_owned(), reading::cpu(reading::pid_below(self.cluster.dir(), name)?)?))
            })
            .collect::<Result<_>>()?;
        Ok(Spent { of })
    }

    /// What was used since, also by the nodes since their start.
    pub(crate) fn spent(&self, before: &Spent, fleet: &Fleet) -> Result<Spent> {
        let mut spent = self.spent_alone(before)?;
        spent.of.push(("hollow since its start".to_owned(), reading::cpu(fleet.pid())?));
        Ok(spent)
    }

    pub(crate) fn spent_alone(&self, before: &Spent) -> Result<Spent> {
        let now = self.usage()?;
        let since = |(whose, time): &(String, Duration)| {
            let now = now.of.iter().find(|(name, _)| name == whose).map_or(Duration::ZERO, |(_, now)| *now);
            (whose.clone(), now.saturating_sub(*time))
        };
        Ok(Spent { of: before.of.iter().map(since).collect() })
    }
}

/// CPU time, and whose.
pub(crate) struct Spent {
    pub(crate) of: Vec<(String, Duration)>,
}

/// Requests that the API server has answered.
pub(crate) struct Calls {
    pub(crate) all: f64,
    pub(crate) leases: f64,
}

impl Calls {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self { all: self.all - before.all, leases: self.leases - before.leases }
    }
}

/// The nodes' process, which tells how they are ten times a second.
pub(crate) struct Fleet {
    daemon: RefCell<Daemon>,
    log: PathBuf,
    pid: u32,
    told: RefCell<Told>,
}

/// What the log has held until now, so that nothing of it is read twice.
#[derive(Default)]
struct Told {
    bytes: u64,
    lines: Vec<Value>,
}

impl Fleet {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// All that it has told until now.
    fn lines(&self) -> Result<RefMut<'_, Vec<Value>>> {
        let mut told = self.told.borrow_mut();
        let mut more = Vec::new();
        let read = File::open(&self.log).and_then(|mut log| {
            log.seek(SeekFrom::Start(told.bytes))?;
            log.read_to_end(&mut more)
        });
        read.with_context(|| format!("failed to read {}", self.log.display()))?;
        // The last line may be half written.
        let whole = more.iter().rposition(|&byte| byte == b'\n').map_or(&[][..], |end| &more[..=end]);
        told.bytes += whole.len() as u64;
        told.lines
            .extend(whole.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()));
        Ok(RefMut::map(told, |told| &mut told.lines))
    }

    /// The newest line.
    pub(crate) fn now(&self) -> Result<Value> {
        self.lines()?.last().cloned().context("the fleet has not said anything yet")
    }

    /// When it was so for the first time, in seconds after the fleet's start.
    pub(crate) fn first(&self, wanted: impl Fn(&Value) -> bool) -> Result<f64> {
        let lines = self.lines()?;
        let first = lines.iter().find(|line| wanted(line)).and_then(|line| line["seconds"].as_f64());
        first.context("the fleet has never been so")
    }

    /// As [`Fleet::first`], once it is so.
    pub(crate) async fn until(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<f64> {
        wait::until(what, limit, async || {
            if let Err(ended) = self.daemon.borrow_mut().check_alive() {
                return Ok(Err(ended));
            }
            let first = self.first(&wanted);
            first.map(Ok).with_context(|| format!("now {}", self.now().unwrap_or_default()))
        })
        .await?
    }

    /// Waits for a word on standard error.
    pub(crate) async fn until_told(&self, word: &str, limit: Duration) -> Result<()> {
        wait::until(&format!("the fleet saying {word}"), limit, async || {
            if let Err(ended) = self.daemon.borrow_mut().check_alive() {
                return Ok(Err(ended));
            }
            let text = fs::read_to_string(&self.log)?;
            ensure!(text.contains(&format!("hollow: {word}")), "it has not");
            anyhow::Ok(Ok(()))
        })
        .await?
    }

    /// Has all nodes say goodbye.
    pub(crate) fn end(&self) -> Result<()> {
        let status = self.daemon.borrow_mut().terminate(SOON)?;
        ensure!(status.success(), "the fleet ended with {status}: {}", process::tail(&self.log));
        Ok(())
    }
}
