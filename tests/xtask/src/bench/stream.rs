//! A stream of the link, as logs take it, beside raw TLS over TCP and the bare libraries of the transports in the same run.

use anyhow::{Context, Result};
use harness::process::{command, output_async};
use serde::{Deserialize, de::DeserializeOwned};

use super::figure::{Figure, Goal};

/// With the library that each is made of, and what the example calls that.
const TRANSPORTS: [(&str, &[(&str, &str)]); 2] = [
    ("quic", &[("quinn", "bare-quic"), ("quinn, packets of 1200 bytes", "bare-quic-1200")]),
    ("websocket", &[("tokio-tungstenite", "bare-websocket")]),
];
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

/// What was measured of one transport, a value a round.
#[derive(Default)]
struct Over {
    /// For each library.
    bare: Vec<Vec<Rate>>,
    rates: Vec<Rate>,
    full: Vec<f64>,
}

pub(super) async fn take() -> Result<Vec<Figure>> {
    let (mut raw, mut figures) = (Vec::new(), Vec::new());
    let mut over = TRANSPORTS.map(|_| Over::default());
    for _ in 0..ROUNDS {
        raw.push(rate("tls").await?);
        for ((transport, libraries), over) in TRANSPORTS.into_iter().zip(&mut over) {
            over.bare.resize_with(libraries.len(), Vec::new);
            for ((_, name), bare) in libraries.iter().zip(&mut over.bare) {
                bare.push(rate(name).await?);
            }
            over.rates.push(rate(transport).await?);
            over.full.push(measure::<Full>(&["full", transport]).await?.kib_per_stream);
        }
    }
    let mib = |rates: &[Rate]| rates.iter().map(|rate| rate.bytes_per_second / MIB).collect();
    let share = |rates: &[Rate], of: &[Rate]| {
        let pairs = rates.iter().zip(of);
        pairs.map(|(rate, of)| rate.bytes_per_second / of.bytes_per_second).collect()
    };
    figures.push(Figure::median("raw TLS over TCP: 1 GiB", "MiB/s", mib(&raw)));
    for ((transport, libraries), Over { bare, rates, full }) in TRANSPORTS.into_iter().zip(over) {
        let name = |what: &str| format!("{transport}: {what}");
        let late = rates.iter().map(|rate| rate.heartbeat_late_ms).collect();
        figures.extend([
            Figure::median(&name("a stream of 1 GiB"), "MiB/s", mib(&rates)),
            Figure::median(&name("of raw TLS in the same run"), "", share(&rates, &raw))
                .goal(Goal::AtLeast(0.7)),
        ]);
        for ((library, _), bare) in libraries.iter().zip(&bare) {
            figures.extend([
                Figure::median(&name(&format!("bare {library}: of raw TLS")), "", share(bare, &raw)),
                Figure::median(&name(&format!("of bare {library}")), "", share(&rates, bare)),
            ]);
        }
        figures.extend([
            Figure::median(&name("the latest heartbeat meanwhile"), "ms", late),
            Figure::median(&name("a stream that is full and unread, both ends"), "KiB", full)
                .goal(Goal::AtMost(64.0)),
        ]);
    }
    Ok(figures)
}

async fn rate(of: &str) -> Result<Rate> {
    measure(&["rate", of, BYTES]).await
}

/// Runs the example, which is built at the first time.
async fn measure<T: DeserializeOwned>(args: &[&str]) -> Result<T> {
    let run = ["run", "--quiet", "--release", "--package", "runtime", "--example", "stream", "--"];
    let printed = output_async(command(env!("CARGO"), [&run, args].concat())).await?;
    serde_json::from_str(&printed).with_context(|| format!("the example prints JSON, not {printed}"))
}
