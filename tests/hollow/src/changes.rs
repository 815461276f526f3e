//! Changes at a steady rate, and how long each takes: a node's ConfigMap gets a number, and the time counts from the API
//! server's answer (and from the question) until that number, or one after it, is committed at the node. Where [`crate::beside`] watches,
//! that time has two parts: until a bare watch has heard of the change, and from then on.

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
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{apart, flood::Flood, latency::Latencies, machine::Sleeper};

/// In a ConfigMap's data, see [`number_of`].
const NUMBER: &str = "number";
/// Requests under way. More only queue up in the API server.
const AT_ONCE: usize = 64;
/// For others to read what a thread has used.
const LINGER: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(2);

/// What is under way, and what has arrived.
#[derive(Default)]
pub struct Changes {
    /// There is something to look for.
    active: AtomicBool,
    state: Mutex<State>,
    pub(crate) flood: Flood,
}

#[derive(Default)]
struct State {
    /// By object, oldest first.
    under_way: HashMap<ResourceKey, VecDeque<Change>>,
    /// A bare watch tells of each change, too.
    watched: bool,
    times: Times,
}

/// How long changes took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    from_question: Latencies,
    from_answer: Latencies,
    to_event: Latencies,
    from_event: Latencies,
    /// How late a thread was woken that did nothing.
    woken: Latencies,
    asked: u64,
    failed: u64,
    seconds: f64,
}

struct Change {
    number: u64,
    asked: Instant,
    answered: Option<Instant>,
    /// By the bare watch.
    seen: Option<Instant>,
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
    /// From the API server's answer until a bare watch told of the change; 0 if that was first, or nobody watched.
    pub event_p50: f64,
    pub event_p99: f64,
    pub event_longest: f64,
    /// From what the bare watch told to the commit; 0 if that was first, or nobody watched.
    pub after_p50: f64,
    pub after_p99: f64,
    pub after_longest: f64,
    /// How late a thread of this machine was woken that did nothing meanwhile.
    pub woken_p99: f64,
    pub woken_longest: f64,
}

impl Changes {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while it holds this.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has committed this object.
    pub(crate) fn committed(&self, object: &Object) {
        if object.key.kind() != "ConfigMap" {
            return;
        }
        self.flood.committed(object);
        if !self.active.load(Relaxed) || !self.lock().under_way.contains_key(&object.key) {
            return;
        }
        let now = Instant::now();
        let Some(number) = number_of(&object.bytes) else { return };
        let mut state = self.lock();
        // Only the newest state travels: it stands for those before it, too.
        for change in state.under_way.get_mut(&object.key).into_iter().flatten() {
            if change.number <= number {
                change.committed.get_or_insert(now);
            }
        }
        state.settle(&object.key);
    }

    /// A bare watch begins, or ends.
    pub(crate) fn watched(&self, watched: bool) {
        self.lock().watched = watched;
    }

    /// The bare watch has told of it.
    pub(crate) fn seen(&self, key: &ResourceKey, number: u64) {
        let now = Instant::now();
        let mut state = self.lock();
        for change in state.under_way.get_mut(key).into_iter().flatten() {
            if change.number <= number {
                change.seen.get_or_insert(now);
            }
        }
        state.settle(key);
    }

    fn asked(&self, key: &ResourceKey, number: u64) {
        let change = Change { number, asked: Instant::now(), answered: None, seen: None, committed: None };
        let mut state = self.lock();
        state.times.asked += 1;
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
            state.times.failed += 1;
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
        let times = self.run_until(client, configs, rate, patience, sleep(length)).await?;
        Ok(times.outcome())
    }

    /// As [`Changes::run`], in a thread and over a connection of its own. The thread stays a while, for others to read what it used.
    pub async fn run_apart(
        self: &Arc<Self>,
        config: kube::Config,
        configs: &[ResourceKey],
        rate: f64,
        length: Duration,
        patience: Duration,
    ) -> Result<Outcome> {
        let (changes, configs) = (Arc::clone(self), configs.to_owned());
        let (done, outcome) = oneshot::channel();
        let thread = apart::spawn("changes", move || async move {
            let client = Client::try_from(config)?;
            let outcome = changes.run(&client, &configs, rate, length, patience).await?;
            // Whoever wanted it may have been stopped meanwhile.
            drop(done.send(outcome));
            // A thread's times are gone with it.
            sleep(LINGER).await;
            Ok(())
        })?;
        if let Ok(outcome) = outcome.await {
            return Ok(outcome);
        }
        thread.join().map_err(|_| anyhow::anyhow!("what makes changes has panicked"))??;
        anyhow::bail!("what makes changes has ended with nothing")
    }

    /// As [`Changes::run`], until something has happened.
    pub(crate) async fn run_until(
        self: &Arc<Self>,
        client: &Client,
        configs: &[ResourceKey],
        rate: f64,
        patience: Duration,
        until: impl Future<Output = ()>,
    ) -> Result<Times> {
        self.lock().times = Times::default();
        self.active.store(true, Relaxed);
        let sleeper = Sleeper::start()?;
        let (slots, mut requests) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let begun = Instant::now();
        let base = base()?;
        let mut number = 0;
        let mut until = std::pin::pin!(until);
        loop {
            if (number as f64) >= begun.elapsed().as_secs_f64() * rate {
                tokio::select! {
                    biased;
                    () = &mut until => break,
                    _ = ticks.tick() => continue,
                }
            }
            let slot = tokio::select! {
                biased;
                () = &mut until => break,
                slot = Arc::clone(&slots).acquire_owned() => slot.context("slots are never closed")?,
            };
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
        let seconds = begun.elapsed().as_secs_f64();
        let woken = sleeper.end()?;
        while requests.join_next().await.is_some() {}
        let end = Instant::now() + patience;
        while Instant::now() < end && !self.lock().under_way.is_empty() {
            ticks.tick().await;
        }
        let mut state = self.lock();
        state.under_way.clear();
        state.times.seconds = seconds;
        state.times.woken = woken;
        Ok(state.times.clone())
    }
}

impl Times {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.from_question.merge(&other.from_question);
        self.from_answer.merge(&other.from_answer);
        self.to_event.merge(&other.to_event);
        self.from_event.merge(&other.from_event);
        self.woken.merge(&other.woken);
        self.asked += other.asked;
        self.failed += other.failed;
        self.seconds += other.seconds;
    }

    pub(crate) fn outcome(&self) -> Outcome {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let at = |times: &Latencies, of_thousand| millis(times.quantile(of_thousand));
        Outcome {
            asked: self.asked,
            seconds: self.seconds,
            failed: self.failed,
            arrived: self.from_answer.count(),
            p50: at(&self.from_answer, 500),
            p99: at(&self.from_answer, 990),
            longest: millis(self.from_answer.longest()),
            whole_p50: at(&self.from_question, 500),
            whole_p99: at(&self.from_question, 990),
            event_p50: at(&self.to_event, 500),
            event_p99: at(&self.to_event, 990),
            event_longest: millis(self.to_event.longest()),
            after_p50: at(&self.from_event, 500),
            after_p99: at(&self.from_event, 990),
            after_longest: millis(self.from_event.longest()),
            woken_p99: at(&self.woken, 990),
            woken_longest: millis(self.woken.longest()),
        }
    }
}

impl State {
    /// Takes in what has been answered and committed, and seen where a watch tells.
    fn settle(&mut self, key: &ResourceKey) {
        let Some(changes) = self.under_way.get_mut(key) else { return };
        while let Some(change) = changes.front()
            && let (Some(answered), Some(committed)) = (change.answered, change.committed)
            && (change.seen.is_some() || !self.watched)
        {
            self.times.from_question.add(committed - change.asked);
            self.times.from_answer.add(committed.saturating_duration_since(answered));
            if let Some(seen) = change.seen {
                self.times.to_event.add(seen.saturating_duration_since(answered));
                self.times.from_event.add(committed.saturating_duration_since(seen));
            }
            changes.pop_front();
        }
        if changes.is_empty() {
            self.under_way.remove(key);
        }
    }
}

/// Another number than any run before has left there: what changes nothing is not sent.
pub(crate) fn base() -> Result<u64> {
    Ok(u64::try_from(jiff::Timestamp::now().as_millisecond())?)
}

pub(crate) async fn write(client: &Client, config: &ResourceKey, number: u64) -> Result<(), kube::Error> {
    let configs: Api<ConfigMap> = Api::namespaced(client.clone(), config.namespace());
    let patch = Patch::Merge(json!({ "data": { NUMBER: number.to_string() } }));
    configs.patch_metadata(config.name(), &PatchParams::default(), &patch).await.map(drop)
}

/// What [`write`] has left in a ConfigMap.
pub(crate) fn number_of(config: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Config {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        number: String,
    }
    serde_json::from_slice::<Config>(config).ok()?.data.number.parse().ok()
}
