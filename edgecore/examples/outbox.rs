//! The durable outbox of a store on a real disk. Prints JSON; `cargo xtask bench outbox` runs it, each figure in a process of its
//! own, with the store that edgecore has and no other way in.
//!
//! - `rate DIR WRITERS REPORTS`: so many reports by so many writers at once, each waiting until its own is durable.
//! - `keep STORE NODE FIRST COUNT WRITERS POD...`: events of pods (`NAMESPACE/NAME/UID`) for the store of an edge, while no
//!   edgecore has it. Each is numbered, and its number is printed once it is durable, so that whoever kills this knows what
//!   was promised.
//! - `pending STORE`: how the store is found, and what of it waits for the cloud.

#![allow(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use edgecore::metamanager::{Options, Store};
use jiff::Timestamp;
use proto::{ResourceKey, message::ReportKind};
use serde_json::{Value, json};
use tokio::task::JoinSet;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "outbox rate DIR WRITERS REPORTS, outbox keep STORE NODE FIRST COUNT WRITERS POD..., outbox pending STORE";
/// Pods of a busy site.
const PODS: u64 = 50;
/// Read at once.
const PAGE: usize = 1000;

#[derive(Clone)]
struct Pod {
    key: ResourceKey,
    uid: String,
}

impl Pod {
    fn parse(text: &str) -> Outcome<Self> {
        let [namespace, name, uid] = text.split('/').collect::<Vec<_>>()[..] else {
            return Err(format!("a pod is NAMESPACE/NAME/UID, not {text:?}").into());
        };
        Ok(Self { key: ResourceKey::new("Pod", namespace, name)?, uid: uid.to_owned() })
    }

    /// As edged makes them: what differs from one to the next is its number, its times and a few words.
    fn event(&self, node: &str, number: u64) -> Bytes {
        const HAPPENINGS: [(&str, &str, &str); 5] = [
            (
                "Normal",
                "Pulled",
                "Container image \"registry.example.com/shop/till:v1.4.2\" already present on machine",
            ),
            ("Normal", "Created", "Container created"),
            ("Normal", "Started", "Container started"),
            ("Warning", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503"),
            ("Warning", "BackOff", "Back-off restarting failed container"),
        ];
        let (kind, reason, message) = HAPPENINGS[usize::try_from(number % 5).unwrap_or_default()];
        let (namespace, name) = (self.key.namespace(), self.key.name());
        let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": format!("{name}.{number:x}"), "namespace": namespace },
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": self.uid,
                "fieldPath": "spec.containers{main}",
            },
            "type": kind, "reason": reason, "message": format!("{message} ({number})"),
            "count": 1, "firstTimestamp": time, "lastTimestamp": time,
            "source": { "component": "edged", "host": node },
            "reportingComponent": "edged", "reportingInstance": node,
        });
        event.to_string().into()
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let told = match &args[..] {
        ["rate", dir, writers, reports] => rate(Path::new(dir), writers.parse()?, reports.parse()?).await?,
        ["keep", store, node, first, count, writers, pods @ ..] => {
            let pods = pods.iter().map(|pod| Pod::parse(pod)).collect::<Outcome<Vec<_>>>()?;
            let first: u64 = first.parse()?;
            keep(Path::new(store), node, first..first + count.parse::<u64>()?, writers.parse()?, pods).await?
        }
        ["pending", store] => pending(Path::new(store))?,
        _ => return Err(USAGE.into()),
    };
    print(&told)
}

fn print(told: &Value) -> Outcome<()> {
    Ok(writeln!(io::stdout().lock(), "{told}")?)
}

/// Takes numbers from `next` up to `end`, and reports the event of each; what it took until each was durable.
async fn write(
    store: Store,
    node: Arc<str>,
    pods: Arc<[Pod]>,
    (next, end): (Arc<AtomicU64>, u64),
    tell: bool,
) -> Outcome<Vec<Duration>> {
    let mut took = Vec::new();
    loop {
        let number = next.fetch_add(1, Relaxed);
        if number >= end {
            return Ok(took);
        }
        let pod = &pods[usize::try_from(number)? % pods.len()];
        let event = pod.event(&node, number);
        let begun = Instant::now();
        store.report(ReportKind::Event, &pod.key, event).await?;
        took.push(begun.elapsed());
        if tell {
            // Whole lines: a kill leaves none that is half told.
            writeln!(io::stdout().lock(), "{number}")?;
        }
    }
}

async fn write_all(
    store: &Store,
    node: &str,
    pods: Vec<Pod>,
    numbers: std::ops::Range<u64>,
    writers: usize,
    tell: bool,
) -> Outcome<Vec<Duration>> {
    let (node, pods, next) = (Arc::from(node), Arc::from(pods), Arc::new(AtomicU64::new(numbers.start)));
    let mut tasks = JoinSet::new();
    for _ in 0..writers {
        let numbers = (Arc::clone(&next), numbers.end);
        tasks.spawn(write(store.clone(), Arc::clone(&node), Arc::clone(&pods), numbers, tell));
    }
    let mut took = Vec::new();
    while let Some(written) = tasks.join_next().await {
        took.extend(written??);
    }
    Ok(took)
}

async fn rate(dir: &Path, writers: usize, reports: u64) -> Outcome<Value> {
    let uid = "0b0c3f5e-6f0a-4a53-9d6b-3a1f6a1c2d3e";
    let pods = (0..PODS).map(|n| Pod::parse(&format!("shop/till-{n}/{uid}"))).collect::<Outcome<Vec<_>>>()?;
    let store = Store::open(dir, Options::default())?;
    let (syncs, own, disk, cpu) = (store.syncs(), store.bytes_written(), written()?, cpu()?);
    let begun = Instant::now();
    let mut took = write_all(&store, "edge-1", pods, 0..reports, writers, false).await?;
    let seconds = begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |share: usize| took[(took.len() * share).div_ceil(100).saturating_sub(1)].as_secs_f64() * 1000.0;
    let each = |count: u64| count as f64 / reports as f64;
    Ok(json!({
        "perSecond": reports as f64 / seconds,
        "medianMs": at(50),
        "p99Ms": at(99),
        "syncs": store.syncs() - syncs,
        "journalBytesEach": each(store.bytes_written() - own),
        "diskBytesEach": each(written()? - disk),
        "cpuMicrosEach": (crate::cpu()? - cpu) / reports as f64,
        "residentKib": status("VmRSS:")?,
        "peakKib": status("VmHWM:")?,
        "dropped": store.dropped_reports(),
    }))
}

async fn keep(
    dir: &Path,
    node: &str,
    numbers: std::ops::Range<u64>,
    writers: usize,
    pods: Vec<Pod>,
) -> Outcome<Value> {
    let store = Store::open(dir, Options::default())?;
    let healed = store.opened().healed.clone();
    write_all(&store, node, pods, numbers, writers, true).await?;
    let dropped = store.dropped_reports();
    store.close().await?;
    Ok(json!({ "dropped": dropped, "healed": healed }))
}

fn pending(dir: &Path) -> Outcome<Value> {
    let begun = Instant::now();
    let store = Store::open(dir, Options::default())?;
    let opened = begun.elapsed();
    let (mut after, mut bytes, mut kinds) = (0, 0, BTreeMap::new());
    loop {
        let page = store.pending_reports(after, PAGE)?;
        for report in &page {
            after = report.id;
            bytes += report.payload.len() + report.key.len();
            *kinds.entry(format!("{:?}", report.kind())).or_insert(0_u64) += 1;
        }
        if page.len() < PAGE {
            break;
        }
    }
    let told = json!({
        "openMs": opened.as_secs_f64() * 1000.0,
        "readMs": begun.elapsed().saturating_sub(opened).as_secs_f64() * 1000.0,
        "healed": store.opened().healed,
        "kinds": kinds,
        "bytes": bytes,
        "dropped": store.dropped_reports(),
        "residentKib": status("VmRSS:")?,
        "peakKib": status("VmHWM:")?,
    });
    drop(store);
    Ok(told)
}

/// Bytes that this process has caused to be written to a disk.
fn written() -> Outcome<u64> {
    number(&fs::read_to_string("/proc/self/io")?, "write_bytes:")
}

fn status(key: &str) -> Outcome<u64> {
    number(&fs::read_to_string("/proc/self/status")?, key)
}

/// User and system time in microseconds.
fn cpu() -> Outcome<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let rest = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    // A hundred a second on every Linux that runs Rust.
    Ok(ticks as f64 * 10_000.0)
}

fn number(text: &str, key: &str) -> Outcome<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.split_whitespace().next()).ok_or(format!("no {key}"))?;
    Ok(value.parse()?)
}
