//! Devices: how fast buses are polled and how evenly, what is durable of twins, the MQTT broker beside mosquitto, and what a node with a
//! thousand devices costs.
//!
//! All but the last have no cloud: `edgecore/examples/devices` is an edgecore as far as devices go. The slaves are the simulator, a
//! process of its own; what is said of requests is what the slaves have seen.

mod desired;
mod jitter;
mod manifest;
mod mqtt;
mod node;
mod rtu;
mod scattered;
mod stand;
mod tcp;
mod twins;

use anyhow::{Context, Result};
use clap::ValueEnum;
use harness::Assets;

use super::{figure::Figure, tell};
use stand::{Programs, Stand};

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Part {
    /// Polls a second of serial lines
    Rtu,
    /// Requests for a thousand scattered registers
    Scattered,
    /// Requests a second of one connection, beside bare tokio-modbus
    Tcp,
    /// A thousand slaves at 1 Hz: how far their intervals are off
    Jitter,
    /// Durable updates of twins a second
    Twins,
    /// The broker beside mosquitto
    Mqtt,
    /// A node with a thousand devices, and kubectl until a device has it
    Node,
}

pub(super) async fn take(assets: &Assets, only: &[Part]) -> Result<Vec<Figure>> {
    let programs = Programs::build().await?;
    let mut figures = Vec::new();
    for part in Part::value_variants() {
        if only.is_empty() || only.contains(part) {
            tell(&format!("devices: {part:?}"));
            let taken = part.take(assets, &programs).await;
            figures.extend(taken.with_context(|| format!("{part:?}"))?);
        }
    }
    Ok(figures)
}

impl Part {
    async fn take(self, assets: &Assets, programs: &Programs) -> Result<Vec<Figure>> {
        let stand = Stand::start(programs)?;
        let figures = match self {
            Self::Rtu => rtu::take(&stand).await,
            Self::Scattered => scattered::take(&stand).await,
            Self::Tcp => tcp::take(&stand).await,
            Self::Jitter => jitter::take(&stand).await,
            Self::Twins => twins::take(&stand).await,
            Self::Mqtt => mqtt::take(&stand).await,
            Self::Node => node::take(assets, &stand).await,
        };
        stand.end(figures)
    }
}
