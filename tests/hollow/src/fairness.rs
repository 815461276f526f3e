//! What the return of one node with much to be told does to the others: how long their changes take meanwhile, beside how
//! long they take when nobody returns.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use kube::Client;
use proto::ResourceKey;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    changes::{Changes, Outcome, Times, base},
    cluster,
    fleet::FleetConfig,
    guest::Guest,
};

/// Returns, each with as long a time without one.
const ROUNDS: usize = 6;
const REST: Duration = Duration::from_millis(500);
/// What a return takes at least, for the times beside it to be those of some changes.
const LEAST: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_mins(2);
/// For changes that are under way at the end of a return.
const PATIENCE: Duration = Duration::from_secs(3);

/// Times in milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Fairness {
    /// Objects that each return brought.
    pub objects: usize,
    pub returns: usize,
    /// From the dial until all was stored, the longest.
    pub longest: f64,
    /// Of the others' changes while it returned, and when nobody did.
    pub with: Outcome,
    pub without: Outcome,
}

/// Changes the others' `configs`, `rate` a second, while a node returns that has to be told of so many objects, and while none does.
pub async fn measure(
    config: &FleetConfig,
    changes: &Arc<Changes>,
    client: &Client,
    configs: &[ResourceKey],
    objects: usize,
    rate: f64,
) -> Result<Fairness> {
    let name = format!("{}-returning", config.prefix);
    let guest = Guest::start(config, &name, changes, Vec::new()).await?;
    guest.ready(LIMIT).await?;
    let own = cluster::burden(client, &config.prefix, &name, objects).await?;
    guest.synced(objects as u64, LIMIT).await?;
    let before = guest.objects()?;
    guest.stop().await;
    cluster::change_all(client, &own, base()?).await?;

    let (mut with, mut without, mut longest) = (Times::default(), Times::default(), Duration::ZERO);
    for _ in 0..ROUNDS {
        sleep(REST).await;
        let begun = Instant::now();
        let guest = Guest::start(config, &name, changes, before.clone()).await?;
        // What its store was filled with counts as well.
        let deltas = (before.len() + objects) as u64;
        let (mut synced, mut failed) = (begun, None);
        let until = async {
            match guest.synced(deltas, LIMIT).await {
                Ok(at) => synced = at,
                Err(error) => failed = Some(error),
            }
        };
        with.merge(&changes.run_until(client, configs, rate, PATIENCE, until).await?);
        if let Some(error) = failed {
            return Err(error);
        }
        let took = synced - begun;
        longest = longest.max(took);
        guest.stop().await;
        sleep(REST).await;
        let times = changes.run_until(client, configs, rate, PATIENCE, sleep(took.max(LEAST))).await?;
        without.merge(&times);
    }
    let longest = longest.as_secs_f64() * 1e3;
    Ok(Fairness { objects, returns: ROUNDS, longest, with: with.outcome(), without: without.outcome() })
}
