//! A thousand registers that lie scattered: in how many requests they are read.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::progress::during;
use serde_json::json;
use tokio::time::sleep;

use super::{
    manifest,
    stand::{Asked, Stand, asked, free_address, until_asked},
};
use crate::bench::figure::{Figure, Goal};

/// Groups of every second register, with a hole behind each that is longer than a request.
const GROUPS: u16 = 4;
const IN_A_GROUP: u16 = 250;
const APART: u16 = 1000;
/// Registers of one request: Application Protocol V1.1b3, 6.3.
const MOST: u32 = 125;
/// Milliseconds.
const CYCLE: u64 = 1000;
/// Between the requests of two cycles, in microseconds.
const PAUSE: u64 = 300_000;
const WINDOW: Duration = Duration::from_secs(7);

pub(super) async fn take(stand: &Stand) -> Result<Vec<Figure>> {
    let set: Vec<String> =
        (0..GROUPS).map(|group| manifest::holding(1, group * APART, 2 * usize::from(IN_A_GROUP))).collect();
    let slaves = stand.slaves("scattered", &set).await?;
    let registers = registers();
    let connection = json!({"ip": "127.0.0.1", "port": slaves.port()?, "slaveID": 1});
    let device = manifest::device("device", "edge-1", &connection, &registers, CYCLE);
    let _node = stand.node("node", free_address()?, &[manifest::model(registers.len()), device])?;
    until_asked(&slaves, 1).await?;
    during("watching how scattered registers are read", sleep(WINDOW)).await;
    let cycles = cycles(asked(&slaves).await?);
    ensure!(cycles.len() > 4, "{} cycles in {WINDOW:?}", cycles.len());
    // The first may be one of its own kind, and the last one cut off.
    let whole = &cycles[1..cycles.len() - 1];
    for cycle in whole {
        let missing = registers.iter().filter(|register| !is_read(**register, cycle)).count();
        ensure!(missing == 0, "{missing} registers were not read in a cycle");
    }
    let counts = whole.iter().map(|cycle| cycle.len() as f64).collect();
    let note = format!(
        "every second register of {GROUPS} stretches of {}; over TCP edgecore reads across registers for which nobody has \
         asked, which the slave has here, so {} requests of up to {MOST} registers are the fewest",
        2 * IN_A_GROUP,
        fewest(&registers),
    );
    Ok(vec![
        Figure::median("1,000 scattered registers: requests a cycle", "requests", counts)
            .goal(Goal::AtMost(fewest(&registers) as f64))
            .note(&note),
    ])
}

fn registers() -> Vec<u16> {
    (0..GROUPS).flat_map(|group| (0..IN_A_GROUP).map(move |at| group * APART + 2 * at)).collect()
}

/// Each request begins at the first register that no other has read.
fn fewest(registers: &[u16]) -> usize {
    let (mut requests, mut end) = (0, 0);
    for register in registers.iter().map(|register| u32::from(*register)) {
        if register >= end {
            requests += 1;
            end = register + MOST;
        }
    }
    requests
}

fn cycles(asked: Vec<Asked>) -> Vec<Vec<Asked>> {
    let mut cycles: Vec<Vec<Asked>> = Vec::new();
    for request in asked {
        match cycles.last_mut() {
            Some(cycle) if cycle.last().is_some_and(|last| request.at - last.at < PAUSE) => {
                cycle.push(request);
            }
            _ => cycles.push(vec![request]),
        }
    }
    cycles
}

fn is_read(register: u16, cycle: &[Asked]) -> bool {
    cycle.iter().any(|asked| (asked.address..asked.address + asked.count).contains(&register))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_are_counted() {
        assert_eq!(fewest(&[0, 124, 125, 250, 1000]), 4);
        assert_eq!((registers().len(), fewest(&registers())), (1000, 16));
    }
}
