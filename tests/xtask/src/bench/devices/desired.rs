//! What somebody says with kubectl, until the device has it.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::{Cluster, simulator::ModbusSlaves};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::manifest;
use crate::bench::figure::{Figure, Goal};

const NAME: &str = "desired";
const PATCHES: u16 = 50;
/// Between two looks at the register.
const LOOK: Duration = Duration::from_millis(2);
const SOON: Duration = Duration::from_secs(30);
/// Milliseconds.
const CYCLE: u64 = 1000;

/// The slaves are at the node's site, and have one with register 0.
pub(super) async fn take(cluster: &Cluster, node: &str, slaves: &ModbusSlaves) -> Result<Vec<Figure>> {
    let connection = json!({"ip": "127.0.0.1", "port": slaves.port()?, "slaveID": 1});
    cluster.apply(&manifest::device(NAME, node, &connection, &[0], CYCLE).to_string()).await?;
    let (mut whole, mut after) = (Vec::new(), Vec::new());
    // The first is until the device is driven at all.
    patch(cluster, slaves, 1).await?;
    for number in 1..=PATCHES {
        let (took, after_kubectl) =
            patch(cluster, slaves, 1 + number).await.with_context(|| format!("patch {number}"))?;
        whole.push(took);
        after.push(after_kubectl);
    }
    cluster.kubectl(&["delete", "device", NAME]).await?;
    Ok(vec![
        Figure::p99("kubectl patch to written on the device", "ms", whole)
            .goal(Goal::AtMost(300.0))
            .note("from exec of kubectl, which takes part of it; register looked at every 2 ms; one device, one after the other"),
        Figure::p99("of it after kubectl has ended", "ms", after),
    ])
}

/// Milliseconds from the start of kubectl, and from its end, until the register has the value.
async fn patch(cluster: &Cluster, slaves: &ModbusSlaves, value: u16) -> Result<(f64, f64)> {
    let desired = json!({"value": value.to_string()});
    let patch = json!([{"op": "add", "path": "/spec/properties/0/desired", "value": desired}]).to_string();
    let begun = Instant::now();
    let told = async {
        cluster.kubectl(&["patch", "device", NAME, "--type=json", "-p", &patch]).await?;
        anyhow::Ok(Instant::now())
    };
    let written = async {
        while slaves.get(1, "holding", 0).await? != value {
            sleep(LOOK).await;
        }
        anyhow::Ok(Instant::now())
    };
    let both = timeout(SOON, async { tokio::try_join!(told, written) }).await;
    let (told, written) = both.with_context(|| format!("{value} is not there within {SOON:?}"))??;
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    Ok((ms(written - begun), ms(written.saturating_duration_since(told))))
}
