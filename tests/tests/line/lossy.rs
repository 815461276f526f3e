//! A line that carries, but badly: a pod comes to run over it and goes, and a change arrives.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Terms,
    product::{Scene, pod, ready},
    setup::BUSYBOX,
    wait,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{Node, SOON, SPACE, line::table::Table};

struct Line {
    name: &'static str,
    terms: Terms,
    /// A session that began on it is not to end: with a heartbeat of two seconds, four of silence end it.
    lasts: bool,
}

/// A line over which nodes join.
pub(crate) fn far() -> Terms {
    let millis = Duration::from_millis;
    Terms { loss: 5, delay: millis(200), jitter: millis(50), ..Terms::default() }
}

fn lines() -> [Line; 5] {
    let (good, millis) = (Terms::default(), Duration::from_millis);
    let line = |name, terms, lasts| Line { name, terms, lasts };
    [
        line("loss of 5 %", Terms { loss: 5, ..good.clone() }, true),
        line("loss of 20 %", Terms { loss: 20, ..good.clone() }, false),
        line("400 ms and jitter", Terms { delay: millis(400), jitter: millis(200), ..good.clone() }, true),
        line("duplicates, reordering", Terms { duplicated: 10, reordered: 10, ..good.clone() }, true),
        line("64 kbit/s", Terms { rate: 64, ..good }, true),
    ]
}

pub(crate) async fn run(scene: &Scene, node: &Node<'_>, table: &Table) {
    let pods = scene.pods(SPACE);
    let mut gone = Vec::new();
    for (number, Line { name, terms, lasts }) in lines().into_iter().enumerate() {
        let one = async {
            let sessions = node.wired.link().await?.sessions;
            node.wired.wire.set(&terms);
            let begun = Instant::now();
            let spec = json!({
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "10000"],
                }],
            });
            let made =
                scene.run(SPACE, &pod(&format!("{}-{number}", node.transport), node.name(), &spec)).await?;
            table.put(&format!("{name}: pod running"), node.transport, begun.elapsed());
            node.wired.until_same(&scene.cloud, SOON).await?;
            let begun = Instant::now();
            node.wired.change(&scene.cluster).await?;
            let at = node.wired.until_changed(&scene.cloud, SOON).await?;
            table.put(&format!("{name}: change"), node.transport, at.saturating_duration_since(begun));
            pods.delete(&made.name_any(), &DeleteParams::default()).await?;
            gone.push(made.uid().context("a pod has a uid")?);
            if lasts {
                ready(&scene.node(node.name()).await?)?;
                node.has_kept(sessions).await?;
            }
            anyhow::Ok(())
        };
        let through = Box::pin(one).await;
        table.hold(through.with_context(|| format!("{name}, {}: {}", node.name(), node.wired.wire.story())));
    }
    node.wired.wire.heal();
    table.hold(all_gone(scene, node, &gone).await);
}

async fn all_gone(scene: &Scene, node: &Node<'_>, gone: &[String]) -> Result<()> {
    let pods = scene.pods(SPACE);
    wait::until("the pods gone again", SOON, async || {
        let left = pods.list(&ListParams::default()).await?.items;
        let left: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
        ensure!(!left.iter().any(|name| name.starts_with(node.transport)), "{left:?}");
        for uid in gone {
            node.site.has_nothing_of(uid).await?;
        }
        Ok(())
    })
    .await?;
    node.wired.until_same(&scene.cloud, SOON).await?;
    node.until_ready(scene).await
}
