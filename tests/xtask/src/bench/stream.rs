//! A stream of the link, as logs take it, beside raw TLS over TCP in the same process and run.

use anyhow::{Context, Result, ensure};
use harness::process::{command, output_async};
use serde::Deserialize;

use super::figure::{Figure, Goal};

const ROUNDS: usize = 5;
/// A round's.
const BYTES: &str = "1073741824";
const MIB: f64 = 1_048_576.0;

/// What `runtime/examples/stream.rs` prints.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    over: String,
    bytes_per_second: f64,
    /// The median and the worst.
    heartbeats_late_ms: Option<[f64; 2]>,
    kib_per_full_stream: Option<f64>,
}

pub(super) async fn take() -> Result<Vec<Figure>> {
    let example = ["--release", "--package", "runtime", "--example", "stream"];
    output_async(command(env!("CARGO"), [&["build"], &example[..]].concat())).await?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let run = [&["run", "--quiet"], &example[..], &["--", BYTES]].concat();
        let printed = output_async(command(env!("CARGO"), run)).await?;
        let measured: Vec<Measured> = serde_json::from_str(&printed).context("the example prints JSON")?;
        ensure!(measured.len() == 3, "{} measured", measured.len());
        rounds.push(measured);
    }
    let of = |over: &str| -> Vec<&Measured> {
        rounds.iter().flatten().filter(|measured| measured.over == over).collect()
    };
    let raw = of("tls");
    let mib = |all: &[&Measured]| all.iter().map(|one| one.bytes_per_second / MIB).collect();
    let mut figures = vec![Figure::median("raw TLS over TCP: 1 GiB", "MiB/s", mib(&raw))];
    for over in ["quic", "websocket"] {
        let all = of(over);
        let share = all.iter().zip(&raw).map(|(one, raw)| one.bytes_per_second / raw.bytes_per_second);
        let late = all.iter().filter_map(|one| one.heartbeats_late_ms).map(|[_, worst]| worst);
        let full = all.iter().filter_map(|one| one.kib_per_full_stream);
        figures.extend([
            Figure::median(&format!("{over}: a stream of 1 GiB"), "MiB/s", mib(&all)),
            Figure::median(&format!("{over}: of raw TLS in the same run"), "", share.collect())
                .goal(Goal::AtLeast(0.7)),
            Figure::median(&format!("{over}: the latest heartbeat meanwhile"), "ms", late.collect()),
            Figure::median(
                &format!("{over}: a stream that is full and unread, both ends"),
                "KiB",
                full.collect(),
            )
            .goal(Goal::AtMost(64.0)),
        ]);
    }
    Ok(figures)
}
