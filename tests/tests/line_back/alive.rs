//! Lines that are bad and alive: no session is left for another one there, whatever is said by whichever end. And what the cloud said
//! before a silence is there soon after it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Silent, Site, Terms};
use tokio::time::Instant;

use crate::{BACK, Node, SOON, tell};

/// On each line. Each is acked, so that either end has something to say.
const CHANGES: usize = 8;
/// Of eight bytes: two minutes and less of the thin line, where hardly anything of it is compressed away.
const LARGE: u64 = 30_000;
const LARGE_TAKES: Duration = Duration::from_mins(3);
const SILENCE: Duration = Duration::from_secs(22);

pub(crate) async fn run(node: &Node<'_>, transport: &'static str) -> Result<()> {
    node.until_over(transport).await?;
    let millis = Duration::from_millis;
    let good = Terms::default();
    let lines = [
        ("loss of 20 %", Terms { loss: 20, delay: millis(25), ..good.clone() }),
        ("a round trip of 800 ms", Terms { delay: millis(400), jitter: millis(100), ..good.clone() }),
        ("64 kbit/s", Terms { rate: 64, delay: millis(25), ..good.clone() }),
    ];
    let sessions = node.sessions().await?;
    for (name, terms) in lines {
        node.wired.wire.set(&terms);
        let through: Result<()> = async {
            for _ in 0..CHANGES {
                node.changes(&node.scene.cloud, SOON).await?;
            }
            if terms.rate > 0 {
                let begun = Instant::now();
                node.wired.change_to(&node.scene.cluster, LARGE).await?;
                node.wired.until_changed(&node.scene.cloud, LARGE_TAKES).await?;
                tell(&format!("a large object over {name}, {transport}"), begun.elapsed());
            }
            let now = node.sessions().await?;
            ensure!(now == sessions, "{} more sessions", now - sessions);
            Ok(())
        }
        .await;
        through.context(name)?;
    }
    node.heal();
    node.changes(&node.scene.cloud, SOON).await?;
    after_silence(node, transport).await
}

async fn after_silence(node: &Node<'_>, transport: &str) -> Result<()> {
    node.quiet().await?;
    node.wired.wire.set(&Terms { silent: Silent::Both, ..Terms::default() });
    node.wired.change(&node.scene.cluster).await?;
    harness::wait::holds("cloudcore up", SILENCE, async || {
        let answer = node.scene.cloud.admin("/readyz").await?;
        ensure!(answer.status == 200, "{}", answer.body);
        anyhow::Ok(())
    })
    .await?;
    node.heal();
    let begun = Instant::now();
    let soon = transport == "quic" || Site::tcp_can_send_again_soon();
    let limit = if soon { BACK } else { BACK + SILENCE };
    let at = node.wired.until_changed(&node.scene.cloud, limit).await?;
    tell(&format!("silence of {SILENCE:?}, {transport}"), at.saturating_duration_since(begun));
    Ok(())
}
