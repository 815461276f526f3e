//! Modbus RTU at a pseudo-terminal whose other end takes as long for each byte, and is as long silent, as a wire.

use std::time::Duration;

use anyhow::Result;
use harness::{process::command, progress::during};
use serde_json::json;

use super::{
    manifest,
    stand::{Stand, free_address, rate},
};
use crate::bench::figure::{Figure, Goal};

/// Bauds, and 95 % of the polls a second that are wanted at each: 21.8 and 150.
const LINES: [(u32, f64); 2] = [(9600, 20.71), (115_200, 142.5)];
/// edgecore reads a property every 10 ms at most, and a faster line has time for more.
const UNITS: [u8; 2] = [1, 2];
const REGISTERS: u16 = 10;
/// Less than the shortest that there is.
const CYCLE: u64 = 1;
/// 8N2, as long as 8E1.
const BITS: f64 = 11.0;
/// Unit, function, address, count, checksum.
const REQUEST: f64 = 8.0;
/// Unit, function, length, ten registers, checksum.
const ANSWER: f64 = 25.0;
const WINDOW: Duration = Duration::from_secs(10);

pub(super) async fn take(stand: &Stand) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (baud, goal) in LINES {
        let doing = format!("polling a line of {baud} baud");
        let polls = during(&doing, polls(stand, baud)).await?;
        let note = format!(
            "{REGISTERS} holding registers a poll, of {} slaves in turn, each property due every 10 ms. With {BITS} bits a \
             character (8N2), {REQUEST} and {ANSWER} bytes, and two silences (3.5 characters up to 19,200 baud, 1.75 ms \
             above), the wire allows {:.1}: {:.1} % of that",
            UNITS.len(),
            allowed(baud),
            100.0 * polls / allowed(baud),
        );
        figures.push(
            Figure::whole(&format!("Modbus RTU, {baud} baud: polls"), "/s", polls)
                .goal(Goal::AtLeast(goal))
                .note(&note),
        );
    }
    Ok(figures)
}

async fn polls(stand: &Stand, baud: u32) -> Result<f64> {
    let line = stand.path(&format!("line-{baud}.tty"));
    let args = ["modbus".to_owned(), format!("--pty={}", line.display()), format!("--baud={baud}")];
    let mut simulator = command(stand.simulator(), args);
    simulator.arg("--pace");
    let set = UNITS.map(|unit| manifest::holding(unit, 0, REGISTERS.into()));
    let slaves = stand.slaves_of(simulator, &format!("line-{baud}"), &set).await?;
    let registers: Vec<u16> = (0..REGISTERS).collect();
    let mut manifests = vec![manifest::model(registers.len())];
    manifests.extend(UNITS.map(|unit| {
        let connection =
            json!({"serialPort": slaves.address(), "baudRate": baud, "stopBits": 2, "slaveID": unit});
        manifest::device(&format!("device-{unit}"), "edge-1", &connection, &registers, CYCLE)
    }));
    let mut node = stand.node(&format!("node-{baud}"), free_address()?, &manifests)?;
    rate(&slaves, &mut node, WINDOW).await
}

/// Polls a second for which there is time on the wire.
fn allowed(baud: u32) -> f64 {
    let character = BITS / f64::from(baud);
    let silence = if baud > 19_200 { 0.001_75 } else { 3.5 * character };
    1.0 / ((REQUEST + ANSWER) * character + 2.0 * silence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_allows_so_much() {
        let rounded = LINES.map(|(baud, _)| (allowed(baud) * 10.0).round() / 10.0);
        assert_eq!(format!("{rounded:?}"), "[21.8, 150.4]");
    }
}
