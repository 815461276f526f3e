//! Objects that every node holds, each changed again as soon as all nodes have its last change: one write to the API server is a
//! delta for each node, so that what the link can do is not bounded by what the API server can.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    time::Duration,
};

use anyhow::{Context, Result};
use kube::Client;
use proto::{Object, ResourceKey};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    changes::{Changes, base, number_of, write},
    latency::Latencies,
};

/// For all nodes to have one change.
const PATIENCE: Duration = Duration::from_secs(30);

/// The objects that are changed now.
#[derive(Default)]
pub(crate) struct Flood {
    objects: RwLock<HashMap<ResourceKey, Arc<Shared>>>,
}

#[derive(Default)]
struct Shared {
    /// Of the last change.
    number: AtomicU64,
    /// The nodes that have it, and how many there are.
    arrived: AtomicUsize,
    nodes: usize,
    all: Notify,
}

/// What became of it. Times in milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Flooded {
    pub objects: usize,
    /// Changes that the API server has taken, in how many seconds, and what that came to at the nodes' stores.
    pub writes: u64,
    pub seconds: f64,
    pub deltas: u64,
    /// From a write's begin until all nodes have it.
    pub p50: f64,
    pub p99: f64,
}

impl Flooded {
    /// Deltas a second.
    pub fn rate(&self) -> f64 {
        self.deltas as f64 / self.seconds
    }
}

impl Flood {
    pub(crate) fn committed(&self, object: &Object) {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let Some(shared) = objects.get(&object.key) else { return };
        if number_of(&object.bytes) == Some(shared.number.load(Acquire))
            && shared.arrived.fetch_add(1, AcqRel) + 1 == shared.nodes
        {
            shared.all.notify_one();
        }
    }
}

impl Changes {
    /// Changes each of `objects`, which all of `nodes` hold, for so long.
    pub async fn flood(
        self: &Arc<Self>,
        client: &Client,
        objects: &[ResourceKey],
        nodes: usize,
        length: Duration,
    ) -> Result<Flooded> {
        let (begun, base) = (Instant::now(), base()?);
        let mut writers = JoinSet::new();
        for object in objects {
            let shared = Arc::new(Shared { nodes, ..Shared::default() });
            self.lock_objects().insert(object.clone(), Arc::clone(&shared));
            let (client, object) = (client.clone(), object.clone());
            writers.spawn(async move {
                let (mut writes, mut times) = (0, Latencies::default());
                while begun.elapsed() < length {
                    writes += 1;
                    shared.arrived.store(0, Release);
                    shared.number.store(base + writes, Release);
                    let asked = Instant::now();
                    write(&client, &object, base + writes).await?;
                    timeout(PATIENCE, shared.all.notified()).await.with_context(|| {
                        let arrived = shared.arrived.load(Acquire);
                        format!("{object} is at {arrived} of {nodes} nodes after {PATIENCE:?}")
                    })?;
                    times.add(asked.elapsed());
                }
                anyhow::Ok((writes, times))
            });
        }
        let (mut all, mut times) = (0, Latencies::default());
        while let Some(written) = writers.join_next().await {
            let (writes, more) = written.context("a task that wrote has died")??;
            all += writes;
            times.merge(&more);
        }
        self.lock_objects().clear();
        let millis = |of_thousand| times.quantile(of_thousand).as_secs_f64() * 1e3;
        Ok(Flooded {
            objects: objects.len(),
            writes: all,
            seconds: begun.elapsed().as_secs_f64(),
            deltas: all * nodes as u64,
            p50: millis(500),
            p99: millis(990),
        })
    }

    fn lock_objects(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<ResourceKey, Arc<Shared>>> {
        self.flood.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}
