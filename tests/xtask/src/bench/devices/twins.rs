//! Durable updates of twins on one node, with the store that edgecore has on this machine's disk.

use anyhow::Result;
use harness::{process::output_async, progress::during};
use serde::Deserialize;

use super::stand::Stand;
use crate::bench::figure::{Figure, Goal};

/// Each sets a property of a device of its own, and waits until that is durable.
const CALLERS: [usize; 2] = [64, 256];
/// At which of [`CALLERS`] the goals are to be met.
const GOAL_CALLERS: usize = 64;
const ROUNDS: usize = 3;
const SECONDS: u64 = 4;

/// What the example prints.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    per_second: f64,
    p99_ms: f64,
    syncs_each: f64,
    bytes_each: f64,
}

pub(super) async fn take(stand: &Stand) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for callers in CALLERS {
        let mut rounds = Vec::new();
        for round in 1..=ROUNDS {
            let dir = stand.path(&format!("twins-{callers}-{round}")).display().to_string();
            let args = ["twins".to_owned(), dir, callers.to_string(), SECONDS.to_string()];
            let doing = format!("setting properties, {callers} at once, round {round}");
            let told = during(&doing, output_async(stand.example(&args))).await?;
            rounds.push(serde_json::from_str::<Rate>(&told)?);
        }
        let of = |read: fn(&Rate) -> f64| rounds.iter().map(read).collect::<Vec<_>>();
        let name = |what: &str| format!("twins, {callers} at once: {what}");
        let rate = Figure::median(&name("durable updates"), "/s", of(|rate| rate.per_second)).note(
            "a property of a virtual device is set, by what MQTT and keadm ctl call, and is on the disk when that returns; after \
             it edgecore writes the value to the device, reads it back, and keeps twin and report once more, in the same group \
             commits",
        );
        let late = Figure::median(&name("until one is durable, p99"), "ms", of(|rate| rate.p99_ms));
        figures.extend(if callers == GOAL_CALLERS {
            [rate.goal(Goal::AtLeast(4000.0)), late.goal(Goal::AtMost(25.0))]
        } else {
            [rate, late]
        });
        figures.extend([
            Figure::median(&name("syncs an update"), "", of(|rate| rate.syncs_each)),
            Figure::median(&name("journal and checkpoints an update"), "bytes", of(|rate| rate.bytes_each)),
        ]);
    }
    Ok(figures)
}
