//! A stream of the link, as logs take it, beside raw TLS over TCP in the same process and run.

use anyhow::{Context, Result};
use harness::process::{command, output_async};
use serde::{Deserialize, de::DeserializeOwned};

use super::figure::{Figure, Goal};

const TRANSPORTS: [&str; 2] = ["quic", "websocket"];
const ROUNDS: usize = 5;
/// A round's.
const BYTES: &str = "1073741824";
const MIB: f64 = 1_048_576.0;

/// What `runtime/examples/stream.rs` prints.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    bytes_per_second: f64,
    #[serde(default)]
    heartbeat_late_ms: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Full {
    kib_per_stream: f64,
}

pub(super) async fn take() -> Result<Vec<Figure>> {
    let (mut raw, mut figures) = (Vec::new(), Vec::new());
    let mut over = TRANSPORTS.map(|_| (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        raw.push(measure::<Rate>(&["rate", "tls", BYTES]).await?);
        for (transport, (rates, full)) in TRANSPORTS.into_iter().zip(&mut over) {
            rates.push(measure::<Rate>(&["rate", transport, BYTES]).await?);
            full.push(measure::<Full>(&["full", transport]).await?.kib_per_stream);
        }
    }
    let mib = |rates: &[Rate]| rates.iter().map(|rate| rate.bytes_per_second / MIB).collect();
    figures.push(Figure::median("raw TLS over TCP: 1 GiB", "MiB/s", mib(&raw)));
    for (transport, (rates, full)) in TRANSPORTS.into_iter().zip(over) {
        let share = rates.iter().zip(&raw).map(|(rate, raw)| rate.bytes_per_second / raw.bytes_per_second);
        let late = rates.iter().map(|rate| rate.heartbeat_late_ms).collect();
        let name = |what: &str| format!("{transport}: {what}");
        figures.extend([
            Figure::median(&name("a stream of 1 GiB"), "MiB/s", mib(&rates)),
            Figure::median(&name("of raw TLS in the same run"), "", share.collect()).goal(Goal::AtLeast(0.7)),
            Figure::median(&name("the latest heartbeat meanwhile"), "ms", late),
            Figure::median(&name("a stream that is full and unread, both ends"), "KiB", full)
                .goal(Goal::AtMost(64.0)),
        ]);
    }
    Ok(figures)
}

/// Runs the example, which is built at the first time.
async fn measure<T: DeserializeOwned>(args: &[&str]) -> Result<T> {
    let run = ["run", "--quiet", "--release", "--package", "runtime", "--example", "stream", "--"];
    let printed = output_async(command(env!("CARGO"), [&run, args].concat())).await?;
    serde_json::from_str(&printed).with_context(|| format!("the example prints JSON, not {printed}"))
}
