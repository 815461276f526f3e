//! edgecore is started with no cloud in reach, where 100 pods run.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{Assets, LineCut, Site, process::Daemon, product::Edge, progress::during};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    figure::{Figure, Goal},
    reading::{self, Memory},
    workload,
    world::World,
};

const PODS: usize = 100;
const STARTS: usize = 5;
const LIMIT: Duration = Duration::from_mins(2);
const GRACE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);
const REST: Duration = Duration::from_secs(30);
const BETWEEN: Duration = Duration::from_secs(3);
/// What a pod's worker logs when it has stored its first report of a pod that runs.
const RUNNING: &str = "pod runs";

pub(super) async fn take(assets: &Assets) -> Result<Vec<Figure>> {
    let mut world = World::start(assets, 1).await?;
    let figures = figures(&mut world).await;
    world.end(figures)
}

async fn figures(world: &mut World) -> Result<Vec<Figure>> {
    let edge = world.join(0, &[]).await?;
    let pods = (0..PODS)
        .map(|number| workload::pause_pod(&format!("many-{number}"), edge.name(), &json!({})))
        .collect::<Result<Vec<_>>>()?;
    during("starting 100 pods", workload::run_all(&world.cluster, pods)).await?;
    let before = workload::at_site(&world.sites[0], PODS).await?;
    workload::settle(REST).await;
    let connected = memory(edge.pid()?).await?;

    edge.kill9()?;
    world.sites[0].cut(LineCut::Silent)?;
    let mut figures = Vec::new();
    let mut running = None;
    for (clean, name) in [
        (true, "start to 100 pods adopted, no cloud, after a clean stop"),
        (false, "start to 100 pods adopted, no cloud, after kill -9"),
    ] {
        let (mut times, mut spent) = (Vec::new(), Duration::ZERO);
        // The first finds what the start before has left, and does not count.
        for round in 0..=STARTS {
            if let Some(edgecore) = running.take() {
                end(edgecore, clean)?;
            }
            let (time, edgecore) = during("adopting 100 pods", start(&edge, &world.sites[0], PODS)).await?;
            if round > 0 {
                times.push(time.as_secs_f64() * 1000.0);
                spent += reading::cpu(edgecore.pid())?;
            }
            running = Some(edgecore);
            // Its reports are stored, and whatever it looked for once more has been found.
            sleep(BETWEEN).await;
        }
        figures.push(
            Figure::median(name, "ms", times).goal(Goal::AtMost(1000.0)).cpu("edgecore", spent).note(
                "from exec until the first report of the last pod is stored (CPU: until a moment later)",
            ),
        );
    }
    let after = workload::at_site(&world.sites[0], PODS).await?;
    ensure!(before == after, "an adoption has changed containers");
    workload::settle(REST).await;
    let alone = memory(running.context("the last one runs")?.pid()).await?;
    for (samples, which) in [(&connected, "connected"), (&alone, "no cloud since its start")] {
        let of = |read: fn(&Memory) -> f64| samples.iter().map(|memory| read(memory) / 1024.0).collect();
        figures.push(Figure::median(&format!("100 pods, {which}: PSS"), "MiB", of(|memory| memory.pss)));
        figures.push(Figure::median(
            &format!("100 pods, {which}: Private_Dirty"),
            "MiB",
            of(|memory| memory.private_dirty),
        ));
    }
    Ok(figures)
}

/// Starts edgecore and waits until it has reported each of its pods as running.
pub(super) async fn start(edge: &Edge, site: &Site, pods: usize) -> Result<(Duration, Daemon)> {
    let begun = Instant::now();
    let mut edgecore = edge.start(site)?;
    let mut log = Log::from_end(edgecore.log())?;
    loop {
        // Started a moment after the process was, but edgecore takes longer to its first line.
        let running = log.count(RUNNING)?;
        if running >= pods {
            return Ok((begun.elapsed(), edgecore));
        }
        if begun.elapsed() > LIMIT {
            bail!("{running} of {pods} pods run after {LIMIT:?}");
        }
        edgecore.check_alive()?;
        sleep(LOOK).await;
    }
}

fn end(mut edgecore: Daemon, clean: bool) -> Result<()> {
    if clean {
        let status = edgecore.terminate(GRACE)?;
        ensure!(status.success(), "edgecore ended with {status}");
        return Ok(());
    }
    edgecore.kill9()
}

async fn memory(pid: u32) -> Result<Vec<Memory>> {
    let mut samples = Vec::new();
    for _ in 0..5 {
        samples.push(Memory::of(pid)?);
        sleep(BETWEEN).await;
    }
    Ok(samples)
}

/// A log that is being written, read as it grows.
pub(crate) struct Log {
    file: File,
    text: String,
}

impl Log {
    /// Of what is written from now on.
    pub(crate) fn from_end(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, text: String::new() })
    }

    /// All lines until now.
    pub(crate) fn lines(&mut self) -> Result<impl Iterator<Item = &str>> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).context("failed to read a log")?;
        self.text.push_str(&String::from_utf8_lossy(&bytes));
        Ok(self.text.lines())
    }

    fn count(&mut self, what: &str) -> Result<usize> {
        Ok(self.lines()?.filter(|line| line.contains(what)).count())
    }
}
