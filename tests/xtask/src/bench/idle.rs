//! Nothing to do: what edgecore and cloudcore cost then, with the default configuration.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use harness::{Assets, progress::during};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{
    figure::{Figure, Goal},
    line::{self, Line},
    node::StoreCounts,
    reading::{Memory, Usage, Used},
    workload,
    world::World,
};

const REST: Duration = Duration::from_secs(30);
const WINDOWS: u32 = 5;
/// Over QUIC a heartbeat comes every 44 s: all windows together have twenty or twenty-one.
const WINDOW: Duration = Duration::from_mins(3);
/// For cloudcore, and for memory alone.
const SHORT_WINDOW: Duration = Duration::from_secs(12);
const FEW: usize = 5;
const MANY: usize = 25;
const HOUR: f64 = 3600.0;

/// One process over one window.
pub(super) struct Window {
    pub(super) used: Used,
    /// At its end.
    memory: Memory,
    seconds: f64,
}

pub(super) async fn take(assets: &Assets) -> Result<Vec<Figure>> {
    let world = World::start(assets, 2).await?;
    let figures = figures(&world).await;
    world.end(figures)
}

async fn figures(world: &World) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let empty = world.join(0, &[]).await?;
    workload::settle(REST).await;
    let doing = "watching cloudcore with one idle edge for a minute";
    let cloud = during(doing, windows(&[world.cloud.pid()?], SHORT_WINDOW)).await?.remove(0);
    let with = "cloudcore, 1 idle edge";
    figures.extend([pss(&cloud, with), private_dirty(&cloud, with), cpu(&cloud, with, "cloudcore")]);

    let busy = world.join(1, &[]).await?;
    let pods = |numbers: std::ops::Range<usize>| {
        numbers
            .map(|number| workload::pause_pod(&format!("idle-{number}"), busy.name(), &json!({})))
            .collect::<Result<Vec<_>>>()
    };
    during("starting 5 pods", workload::run_all(&world.cluster, pods(0..FEW)?)).await?;
    workload::settle(REST).await;
    let site = &world.sites[1];
    line::count(site, &world.cloud.endpoint(site))?;
    let (line_before, store_before, begun) = (Line::of(site)?, StoreCounts::of(&busy).await?, Instant::now());
    let log_before = fs::metadata(busy.log())?.len();
    let doing = "watching two idle edges, with 0 and with 5 pods, for a quarter of an hour";
    let mut both = during(doing, windows(&[empty.pid()?, busy.pid()?], WINDOW)).await?;
    let (line_after, store_after, hours) =
        (Line::of(site)?, StoreCounts::of(&busy).await?, begun.elapsed().as_secs_f64() / HOUR);
    let said = log_since(&busy.log(), log_before)?;
    let (five, none) = (both.remove(1), both.remove(0));

    figures.extend(of_edge(&none, "edgecore, idle, 0 pods"));
    figures.extend(of_edge(&five, "edgecore, idle, 5 pods"));
    figures.extend(on_disk(&five, store_after.written - store_before.written, hours));
    figures.extend(on_the_line(&(line_after - line_before), hours, &said)?);

    during("starting 20 more pods", workload::run_all(&world.cluster, pods(FEW..MANY)?)).await?;
    workload::settle(REST).await;
    let doing = "watching the edge with 25 pods for a minute";
    let many = during(doing, windows(&[busy.pid()?], SHORT_WINDOW)).await?.remove(0);
    figures.extend(of_edge(&many, "edgecore, idle, 25 pods").into_iter().map(|figure| Figure {
        // The goals are for a node with few pods.
        goal: None,
        met: None,
        ..figure
    }));
    let grown = |read: fn(&Memory) -> f64| {
        let pairs = many.iter().zip(&five);
        pairs.map(|(many, five)| (read(&many.memory) - read(&five.memory)) / (MANY - FEW) as f64).collect()
    };
    figures.push(
        Figure::median("growth per pod, Private_Dirty", "KiB", grown(|memory| memory.private_dirty))
            .goal(Goal::AtMost(100.0))
            .note("from 5 to 25 pods of one process"),
    );
    figures.push(Figure::median("growth per pod, PSS", "KiB", grown(|memory| memory.pss)));
    Ok(figures)
}

/// For each process, its windows one after the other.
pub(super) async fn windows(pids: &[u32], length: Duration) -> Result<Vec<Vec<Window>>> {
    let mut all: Vec<Vec<Window>> = pids.iter().map(|_| Vec::new()).collect();
    let mut end = Instant::now();
    for _ in 0..WINDOWS {
        let begun = Instant::now();
        let before = pids.iter().map(|&pid| Usage::of(pid)).collect::<Result<Vec<_>>>()?;
        end += length;
        sleep_until(end).await;
        for ((windows, usage), &pid) in all.iter_mut().zip(&before).zip(pids) {
            let used = usage.to_now()?;
            windows.push(Window { used, memory: Memory::of(pid)?, seconds: begun.elapsed().as_secs_f64() });
        }
    }
    Ok(all)
}

fn of_edge(windows: &[Window], which: &str) -> Vec<Figure> {
    let wakeups = windows.iter().map(|window| window.used.wakeups as f64 / window.seconds).collect();
    let threads = windows.iter().map(|window| window.memory.threads).collect();
    vec![
        pss(windows, which).goal(Goal::AtMost(16.0)),
        private_dirty(windows, which).goal(Goal::AtMost(6.0)),
        cpu(windows, which, "edgecore").goal(Goal::AtMost(0.15)),
        Figure::median(&format!("{which}: wake-ups"), "/s", wakeups),
        Figure::median(&format!("{which}: threads"), "threads", threads),
    ]
}

pub(super) fn pss(windows: &[Window], which: &str) -> Figure {
    let samples = windows.iter().map(|window| window.memory.pss / 1024.0).collect();
    Figure::median(&format!("{which}: PSS"), "MiB", samples)
}

fn private_dirty(windows: &[Window], which: &str) -> Figure {
    let samples = windows.iter().map(|window| window.memory.private_dirty / 1024.0).collect();
    Figure::median(&format!("{which}: Private_Dirty"), "MiB", samples)
}

pub(super) fn cpu(windows: &[Window], which: &str, whose: &str) -> Figure {
    let percent = windows.iter().map(|window| 100.0 * window.used.cpu.as_secs_f64() / window.seconds);
    let spent = windows.iter().map(|window| window.used.cpu).sum();
    Figure::median(&format!("{which}: CPU"), "% of a core", percent.collect()).cpu(whose, spent)
}

/// `stored`: what the store counts itself.
fn on_disk(windows: &[Window], stored: u64, hours: f64) -> Vec<Figure> {
    let written: u64 = windows.iter().map(|window| window.used.written).sum();
    let spent = windows.iter().map(|window| window.used.cpu).sum();
    let an_hour = |bytes: u64| bytes as f64 / hours / f64::from(1 << 20);
    let window = format!("{written} bytes in {:.0} s", hours * HOUR);
    vec![
        Figure::whole("written to disk, idle, 5 pods", "MiB/h", an_hour(written))
            .goal(Goal::AtMost(1.0))
            .cpu("edgecore", spent)
            .note(&format!("write_bytes of edgecore: {window}; store, volumes and log together")),
        Figure::whole("of it by the store's own count", "MiB/h", an_hour(stored)),
    ]
}

/// Of an idle edge there is next to nothing; what there is says what it was not idle with.
fn log_since(log: &Path, begin: u64) -> Result<String> {
    let text = fs::read(log)?;
    let new = String::from_utf8_lossy(text.get(usize::try_from(begin)?..).unwrap_or_default()).into_owned();
    let first: Vec<String> = new.lines().take(3).map(|line| line.chars().take(160).collect()).collect();
    Ok(if first.is_empty() {
        "nothing".to_owned()
    } else {
        format!("{} lines: {}", new.lines().count(), first.join(" / "))
    })
}

/// What edgecore's link carries.
fn on_the_line(line: &Line, hours: f64, said: &str) -> Result<Vec<Figure>> {
    let Line { up, down, other } = line;
    // A live link is never quite silent for so long.
    ensure!(up.bytes > 0 && down.bytes > 0, "nothing of edgecore's link was counted");
    let an_hour = |bytes: u64| bytes as f64 / hours / 1000.0;
    let note = format!(
        "IP packets with their headers, {} up ({} bytes) and {} down ({} bytes) in {:.0} s; beside them {} packets ({} \
         bytes) that are not edgecore's link; edgecore's log meanwhile: {said}",
        up.packets,
        up.bytes,
        down.packets,
        down.bytes,
        hours * HOUR,
        other.packets,
        other.bytes
    );
    Ok(vec![
        Figure::whole("on the line, idle, 5 pods, both ways", "KB/h", an_hour(up.bytes + down.bytes))
            .goal(Goal::AtMost(12.0))
            .note(&note),
        Figure::whole("of it upwards", "KB/h", an_hour(up.bytes)),
        Figure::whole("of it downwards", "KB/h", an_hour(down.bytes)),
    ])
}
