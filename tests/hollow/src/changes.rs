//! Changes at a steady rate, and how long each takes: a node's ConfigMap gets a number, and the time counts from the API
//! server's answer (and from the question) until that number, or one after it, is committed at the node.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use proto::{Object, ResourceKey};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::latency::Latencies;

/// In a ConfigMap's data.
const NUMBER: &str = "number";
/// Requests under way. More only queue up in the API server.
const AT_ONCE: usize = 64;
const TICK: Duration = Duration::from_millis(2);

/// What is under way, and what has arrived.
#[derive(Default)]
pub struct Changes {
    /// There is something to look for.
    active: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By object, oldest first.
    under_way: HashMap<ResourceKey, VecDeque<Change>>,
    from_question: Latencies,
    from_answer: Latencies,
    asked: u64,
    failed: u64,
}

struct Change {
    number: u64,
    asked: Instant,
    answered: Option<Instant>,
    committed: Option<Instant>,
}

/// What became of the changes. Times in milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Requests that were sent, in how many seconds.
    pub asked: u64,
    pub seconds: f64,
    pub failed: u64,
    pub arrived: u64,
    /// From the API server's answer to the commit; 0 if that was first.
    pub p50: f64,
    pub p99: f64,
    pub longest: f64,
    /// From the request to the commit.
    pub whole_p50: f64,
    pub whole_p99: f64,
}

impl Changes {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while it holds this.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has committed this object.
    pub(crate) fn committed(&self, object: &Object) {
        if !self.active.load(Relaxed) || object.key.kind() != "ConfigMap" {
            return;
        }
        let now = Instant::now();
        let parsed: serde_json::Value = serde_json::from_slice(&object.bytes).unwrap_or_default();
        let number = parsed["data"][NUMBER].as_str().and_then(|number| number.parse::<u64>().ok());
        let Some(number) = number else { return };
        let mut state = self.lock();
        // Only the newest state travels: it stands for those before it, too.
        for change in state.under_way.get_mut(&object.key).into_iter().flatten() {
            if change.number <= number {
                change.committed.get_or_insert(now);
            }
        }
        state.settle(&object.key);
    }

    fn asked(&self, key: &ResourceKey, number: u64) {
        let change = Change { number, asked: Instant::now(), answered: None, committed: None };
        let mut state = self.lock();
        state.asked += 1;
        state.under_way.entry(key.clone()).or_default().push_back(change);
    }

    fn answered(&self, key: &ResourceKey, number: u64, taken: bool) {
        let now = Instant::now();
        let mut state = self.lock();
        let changes = state.under_way.entry(key.clone()).or_default();
        if taken {
            for change in changes.iter_mut().filter(|change| change.number == number) {
                change.answered = Some(now);
            }
        } else {
            changes.retain(|change| change.number != number);
            state.failed += 1;
        }
        state.settle(key);
    }

    /// Changes `configs` one after the other, `rate` a second, for so long; then waits for what is under way.
    pub async fn run(
        self: &Arc<Self>,
        client: &Client,
        configs: &[ResourceKey],
        rate: f64,
        length: Duration,
        patience: Duration,
    ) -> Result<Outcome> {
        self.active.store(true, Relaxed);
        let (slots, mut requests) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let begun = Instant::now();
        // Another one than any run before has left there: what changes nothing is not sent.
        let base = u64::try_from(jiff::Timestamp::now().as_millisecond())?;
        let mut number = 0;
        while begun.elapsed() < length {
            ticks.tick().await;
            let due = begun.elapsed().as_secs_f64() * rate;
            while (number as f64) < due && begun.elapsed() < length {
                let slot = Arc::clone(&slots).acquire_owned().await.context("slots are never closed")?;
                // Neighbours in time are far apart in the list, and none has two changes at a time.
                let config = &configs[usize::try_from(number * 7919 % configs.len() as u64)?];
                number += 1;
                let written = base + number;
                let (changes, client, config) = (Arc::clone(self), client.clone(), config.clone());
                requests.spawn(async move {
                    changes.asked(&config, written);
                    let taken = write(&client, &config, written).await;
                    if let Err(error) = &taken {
                        tracing::debug!(%error, "a change was not taken");
                    }
                    changes.answered(&config, written, taken.is_ok());
                    drop(slot);
                });
                while requests.try_join_next().is_some() {}
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        while requests.join_next().await.is_some() {}
        let end = Instant::now() + patience;
        while Instant::now() < end && !self.lock().under_way.is_empty() {
            ticks.tick().await;
        }
        Ok(self.outcome(seconds))
    }

    fn outcome(&self, seconds: f64) -> Outcome {
        let state = self.lock();
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        Outcome {
            asked: state.asked,
            seconds,
            failed: state.failed,
            arrived: state.from_answer.count(),
            p50: millis(state.from_answer.quantile(500)),
            p99: millis(state.from_answer.quantile(990)),
            longest: millis(state.from_answer.longest()),
            whole_p50: millis(state.from_question.quantile(500)),
            whole_p99: millis(state.from_question.quantile(990)),
        }
    }
}

impl State {
    /// Takes in what has been both answered and committed.
    fn settle(&mut self, key: &ResourceKey) {
        let Some(changes) = self.under_way.get_mut(key) else { return };
        while let Some(Change { asked, answered: Some(answered), committed: Some(committed), .. }) =
            changes.front()
        {
            self.from_question.add(*committed - *asked);
            self.from_answer.add(committed.saturating_duration_since(*answered));
            changes.pop_front();
        }
        if changes.is_empty() {
            self.under_way.remove(key);
        }
    }
}

async fn write(client: &Client, config: &ResourceKey, number: u64) -> Result<(), kube::Error> {
    let configs: Api<ConfigMap> = Api::namespaced(client.clone(), config.namespace());
    let patch = Patch::Merge(json!({ "data": { NUMBER: number.to_string() } }));
    configs.patch_metadata(config.name(), &PatchParams::default(), &patch).await.map(drop)
}
