//! Devices and the MQTT broker as fast as they go, and what they are compared with. `cargo xtask bench devices` runs it, each figure
//! in processes of their own, with what edgecore has and no other way in.
//!
//! - `node DIR BROKER MANIFESTS`: an edgecore as far as devices go, with no cloud and its MQTT broker at this address, until it is
//!   killed. The last is a file with a JSON list of DeviceModels and Devices.
//! - `bare SLAVES UNITS READS APART`: nothing but tokio-modbus, over one connection, in a loop until it is killed: of each of the
//!   units so many holding registers, one at a time, that are so far apart.
//! - `twins DIR CALLERS SECONDS`: so many callers at once that each set a property of a device of their own, wait until that is
//!   durable, and set it again.
//! - `fan-out BROKER SUBSCRIBERS BYTES SECONDS`: messages of QoS 1 of so many bytes from one client to all subscribers.
//! - `idle BROKER CLIENTS`: so many clients that are connected, until it is killed.

#![allow(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]

mod bare;
mod mqtt;
mod node;
mod twins;

use std::{
    io::{self, Write as _},
    path::Path,
};

use anyhow::{Result, bail};

const USAGE: &str = "devices node DIR BROKER MANIFESTS, devices bare SLAVES UNITS READS APART, \
                     devices twins DIR CALLERS SECONDS, devices fan-out BROKER SUBSCRIBERS BYTES SECONDS, \
                     devices idle BROKER CLIENTS";

/// With as many threads as edgecore has.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["node", dir, broker, manifests] => {
            node::run(Path::new(dir), broker.parse()?, Path::new(manifests)).await
        }
        ["bare", slaves, units, reads, apart] => {
            bare::run(slaves.parse()?, units.parse()?, reads.parse()?, apart.parse()?).await
        }
        ["twins", dir, callers, seconds] => {
            twins::run(Path::new(dir), callers.parse()?, seconds.parse()?).await
        }
        ["fan-out", broker, subscribers, bytes, seconds] => {
            mqtt::fan_out(broker.parse()?, subscribers.parse()?, bytes.parse()?, seconds.parse()?).await
        }
        ["idle", broker, clients] => mqtt::idle(broker.parse()?, clients.parse()?).await,
        _ => bail!(USAGE),
    }
}

/// A line for who has started it.
fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
