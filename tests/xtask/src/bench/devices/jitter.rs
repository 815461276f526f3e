//! A thousand slaves, each read once a second: how evenly.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, ensure};
use harness::progress::during;
use serde_json::json;
use tokio::time::sleep;

use super::{
    manifest,
    stand::{Stand, asked, free_address, until_asked},
};
use crate::bench::{
    figure::{Figure, Goal},
    reading,
};

/// A connection has 247 units at most.
const BUSES: usize = 5;
const UNITS: u8 = 200;
/// Milliseconds.
const CYCLE: u64 = 1000;
const SETTLE: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_mins(1);

pub(super) async fn take(stand: &Stand) -> Result<Vec<Figure>> {
    let set: Vec<String> = (1..=UNITS).map(|unit| manifest::holding(unit, 0, 1)).collect();
    let (mut buses, mut manifests) = (Vec::new(), vec![manifest::model(1)]);
    for bus in 0..BUSES {
        let slaves = stand.slaves(&format!("bus-{bus}"), &set).await?;
        let port = slaves.port()?;
        manifests.extend((1..=UNITS).map(|unit| {
            let connection = json!({"ip": "127.0.0.1", "port": port, "slaveID": unit});
            manifest::device(&format!("device-{bus}-{unit}"), "edge-1", &connection, &[0], CYCLE)
        }));
        buses.push(slaves);
    }
    let mut node = stand.node("node", free_address()?, &manifests)?;
    for slaves in &buses {
        until_asked(slaves, UNITS.into()).await?;
    }
    sleep(SETTLE).await;
    for slaves in &buses {
        asked(slaves).await?;
    }
    let before = reading::cpu(node.pid())?;
    during("watching a thousand slaves for a minute", sleep(WINDOW)).await;
    let spent = reading::cpu(node.pid())?.saturating_sub(before);
    node.check_alive()?;
    let mut off = Vec::new();
    for slaves in &buses {
        let mut last: HashMap<u8, u64> = HashMap::new();
        for request in asked(slaves).await? {
            if let Some(last) = last.insert(request.unit, request.at) {
                let interval = (request.at - last) as f64 / 1000.0;
                off.push((interval - CYCLE as f64).abs());
            }
        }
        ensure!(last.len() == usize::from(UNITS), "{} of {UNITS} slaves were asked", last.len());
    }
    off.sort_by(f64::total_cmp);
    let (count, largest) = (off.len(), off[off.len() - 1]);
    let note = format!(
        "what lies between two requests to one slave, as it sees them, less a second; {BUSES} connections with {UNITS} units \
         each; of {count} intervals the median is off by {:.3} ms, the worst by {largest:.1} ms",
        off[count / 2],
    );
    Ok(vec![
        Figure::whole(
            "1,000 Modbus TCP slaves at 1 Hz: intervals off by, p99",
            "ms",
            off[(count * 99).div_ceil(100) - 1],
        )
        .goal(Goal::AtMost(5.0))
        .cpu("edgecore", spent)
        .note(&note),
    ])
}
