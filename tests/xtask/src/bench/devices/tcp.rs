//! Modbus TCP over one connection that is never idle, beside the library that the driver is made of.

use std::time::Duration;

use anyhow::Result;
use harness::{process::Daemon, progress::during};
use serde_json::json;

use super::{
    manifest,
    stand::{Stand, free_address, rate},
};
use crate::bench::{
    figure::{Figure, Goal},
    reading,
};

/// Each is asked for all of its registers every 10 ms, which is far more often than there is time for.
const UNITS: u8 = 8;
const REGISTERS: u16 = 50;
/// Further than a request reads.
const APART: u16 = 200;
const CYCLE: u64 = 1;
const ROUNDS: usize = 3;
const WINDOW: Duration = Duration::from_secs(4);

pub(super) async fn take(stand: &Stand) -> Result<Vec<Figure>> {
    let registers: Vec<u16> = (0..REGISTERS).map(|number| number * APART).collect();
    let set: Vec<String> = (1..=UNITS)
        .flat_map(|unit| registers.iter().map(move |register| manifest::holding(unit, *register, 1)))
        .collect();
    let slaves = stand.slaves("slaves", &set).await?;
    let port = slaves.port()?;
    let mut manifests = vec![manifest::model(registers.len())];
    manifests.extend((1..=UNITS).map(|unit| {
        let connection = json!({"ip": "127.0.0.1", "port": port, "slaveID": unit});
        manifest::device(&format!("device-{unit}"), "edge-1", &connection, &registers, CYCLE)
    }));
    let bare: Vec<String> = ["bare".to_owned(), slaves.address().to_owned()]
        .into_iter()
        .chain([u16::from(UNITS), REGISTERS, APART].map(|number| number.to_string()))
        .collect();
    let (mut driven, mut alone, mut spent) = (Vec::new(), Vec::new(), [Duration::ZERO; 2]);
    for round in 1..=ROUNDS {
        let mut node = stand.node(&format!("node-{round}"), free_address()?, &manifests)?;
        let doing = format!("asking slaves as fast as edgecore does, round {round}");
        driven.push(during(&doing, rate(&slaves, &mut node, WINDOW)).await?);
        spent[0] += reading::cpu(node.pid())?;
        drop(node);
        let mut bare = Daemon::start(stand.run(), &format!("bare-{round}"), stand.example(&bare))?;
        let doing = format!("asking slaves as fast as tokio-modbus does, round {round}");
        alone.push(during(&doing, rate(&slaves, &mut bare, WINDOW)).await?);
        spent[1] += reading::cpu(bare.pid())?;
    }
    let ratios = driven.iter().zip(&alone).map(|(driven, alone)| driven / alone).collect();
    let note = format!(
        "one connection, {UNITS} devices of {REGISTERS} holding registers that no request reads together; seen by the slaves, \
         which share two cores with who asks; CPU seconds are those of whole processes"
    );
    Ok(vec![
        Figure::median("Modbus TCP, edgecore: requests", "/s", driven).cpu("edgecore", spent[0]).note(&note),
        Figure::median("Modbus TCP, bare tokio-modbus: requests", "/s", alone).cpu("tokio-modbus", spent[1]),
        Figure::median("Modbus TCP, edgecore beside bare tokio-modbus", "of it", ratios)
            .goal(Goal::AtLeast(0.8)),
    ])
}
