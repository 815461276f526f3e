//! A node that reports as fast as it can, and one that keeps to no window: others' reports are taken as before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::{
    Report,
    limits::WINDOW_REPORTS,
    message::{Body, GoodbyeReason, Ping, ReportKind, Reports},
};
use serde_json::json;
use tokio::time;

use super::peer::{Peer, Stage, TRANSPORTS};

/// How long the flood goes on.
const FLOOD: Duration = Duration::from_secs(10);
/// What a report of another node may take meanwhile, to be taken by the API server and acked.
const PATIENCE: Duration = Duration::from_secs(1);

fn status(node: &str, id: u64) -> Report {
    let payload = json!({"metadata": {"name": node}, "status": {"conditions": [
        {"type": "Ready", "status": "True", "reason": "Test", "message": id.to_string()}]}});
    Report {
        id,
        kind: ReportKind::NodeStatus.into(),
        key: format!("Node//{node}"),
        payload: payload.to_string().into(),
    }
}

pub(crate) async fn run(stage: &Stage<'_>) -> Result<()> {
    for transport in TRANSPORTS {
        let name = |what: &str| format!("{what}-{transport:?}").to_lowercase();
        let (flooding, quiet) = (name("flooding"), name("quiet"));
        let mut flooder = Peer::greeted(stage, transport, &flooding).await?;
        let mut other = Peer::greeted(stage, transport, &quiet).await?;
        let end = Instant::now() + FLOOD;
        let flood = async {
            let (mut sent, mut acked) = (0, 0);
            while Instant::now() < end {
                while sent - acked < WINDOW_REPORTS as u64 {
                    sent += 1;
                    flooder.say(Body::Reports(Reports { reports: vec![status(&flooding, sent)] }))?;
                    flooder.say(Body::Ping(Ping::default()))?;
                }
                acked += flooder.until(acks).await?;
            }
            anyhow::Ok(acked)
        };
        let measure = async {
            // As slow as a node that has little to say.
            let mut beat = time::interval(Duration::from_millis(50));
            let (mut worst, mut id) = (Duration::ZERO, 0);
            while Instant::now() < end {
                id += 1;
                let begun = Instant::now();
                other.say(Body::Reports(Reports { reports: vec![status(&quiet, id)] }))?;
                time::timeout(PATIENCE, other.until(acks))
                    .await
                    .with_context(|| format!("report {id} waits"))??;
                worst = worst.max(begun.elapsed());
                beat.tick().await;
            }
            anyhow::Ok((id, worst))
        };
        let (acked, (others, worst)) = tokio::try_join!(flood, measure)?;
        ensure!(
            acked > WINDOW_REPORTS as u64 && others > 20,
            "{acked} reports of the flood, {others} others"
        );
        eprintln!(
            "{transport:?}: {acked} reports of one node, beside {others} of another: {worst:?} at worst"
        );

        // Out of the window: it is told so, and gone.
        let all = (0..=WINDOW_REPORTS as u64).map(|id| status(&flooding, id)).collect();
        flooder.say(Body::Reports(Reports { reports: all }))?;
        let goodbye = flooder.goodbye().await?;
        ensure!(
            goodbye.reason() == GoodbyeReason::Violation && goodbye.detail.contains("reports under way"),
            "{goodbye:?}"
        );
    }
    Ok(())
}

/// How many were acked, all of them taken.
fn acks(body: Body) -> Option<u64> {
    match body {
        Body::ReportAcks(acks) => Some(acks.acks.len() as u64),
        _ => None,
    }
}
