//! Data out: readings to whoever a Device names, in the order in which they were made, until they have been taken.
//!
//! What is taken at once never touches the disk. What waits is on it within [`SAVE`], in pieces that are removed once all of them has been
//! taken; so after a crash some readings may be sent twice, and those of the last seconds of an outage may be missing.

mod sink;
mod target;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use runtime::backoff::Backoff;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(super) use self::{
    sink::{Letter, Refused, Sink},
    target::Target,
};
use super::twin::UnixMs;
use crate::{access::Access, metamanager::Store};

/// Readings that wait for one target; the oldest ones go first.
const MOST: usize = 10_000;
/// Places that devices of one node push to.
const TARGETS: usize = 64;
/// How soon what waits is on the disk.
const SAVE: Duration = Duration::from_secs(10);
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// Under which the store keeps what waits: `push/TARGET/NUMBER`.
const PREFIX: &str = "push/";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) property: Box<str>,
    pub(super) value: Box<str>,
    pub(super) at: UnixMs,
}

/// What waits for one target.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Sample>,
    /// Of these, from the front on: pieces on the disk, by number, and how many of each are left.
    saved: VecDeque<(u64, usize)>,
    next: u64,
    /// Numbers of pieces of which nothing is left.
    done: Vec<u64>,
    dropped: u64,
}

/// A piece on the disk.
#[derive(Serialize, Deserialize)]
struct Piece {
    target: Target,
    samples: Vec<Sample>,
}

/// Where readings are left. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Push(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queues: Mutex<BTreeMap<Target, Queue>>,
    /// Something new waits.
    news: Notify,
}

impl Queue {
    fn put(&mut self, sample: Sample) {
        if self.waiting.len() >= MOST {
            self.pop();
            self.dropped += 1;
        }
        self.waiting.push_back(sample);
    }

    fn pop(&mut self) {
        self.waiting.pop_front();
        if let Some((number, left)) = self.saved.front_mut() {
            *left -= 1;
            if *left == 0 {
                self.done.push(*number);
                self.saved.pop_front();
            }
        }
    }

    /// What is on no disk yet, and the number of the piece that it becomes.
    fn unsaved(&self) -> Option<(u64, Vec<Sample>)> {
        let saved: usize = self.saved.iter().map(|(_, left)| left).sum();
        let samples: Vec<Sample> = self.waiting.iter().skip(saved).cloned().collect();
        (!samples.is_empty()).then_some((self.next, samples))
    }
}

impl Push {
    pub(super) fn put(&self, target: &Target, sample: Sample) {
        let mut queues = self.queues();
        if !queues.contains_key(target) && queues.len() >= TARGETS {
            warn!(%target, "readings are not pushed there: there are {TARGETS} other places already");
            return;
        }
        queues.entry(target.clone()).or_default().put(sample);
        drop(queues);
        self.0.news.notify_waiters();
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<Target, Queue>> {
        self.0.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn front(&self, target: &Target) -> Sample {
        loop {
            let news = self.0.news.notified();
            let front = self.queues().get(target).and_then(|queue| queue.waiting.front().cloned());
            if let Some(sample) = front {
                return sample;
            }
            news.await;
        }
    }

    fn pop(&self, target: &Target) {
        if let Some(queue) = self.queues().get_mut(target) {
            queue.pop();
        }
    }
}

/// Sends what waits, and keeps it.
pub(super) struct Pusher {
    push: Push,
    store: Store,
    access: Access,
}

impl Pusher {
    /// With what the store has from before.
    pub(super) fn new(store: Store, access: Access) -> Self {
        let push = Push::default();
        let kept = store.list_local(PREFIX).unwrap_or_else(|error| {
            warn!(error = %runtime::chain(&error), "what was to be pushed cannot be read");
            Vec::new()
        });
        for (key, value) in kept {
            let number = key.rsplit('/').next().and_then(|number| u64::from_str_radix(number, 16).ok());
            let piece = serde_json::from_slice::<Piece>(&value).ok();
            let (Some(number), Some(Piece { target, samples })) = (number, piece) else { continue };
            let mut queues = push.queues();
            let queue = queues.entry(target).or_default();
            queue.saved.push_back((number, samples.len()));
            queue.next = number + 1;
            queue.waiting.extend(samples);
        }
        Self { push, store, access }
    }

    pub(super) fn push(&self) -> Push {
        self.push.clone()
    }

    pub(super) async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut workers = JoinSet::new();
        let mut served = BTreeSet::new();
        let mut save = time::interval(SAVE);
        save.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            let news = self.push.0.news.notified();
            let targets: Vec<Target> = self.push.queues().keys().cloned().collect();
            for target in targets {
                if served.insert(target.clone()) {
                    workers.spawn(work(self.push.clone(), target, self.access.clone()));
                }
            }
            let idle =
                self.push.queues().values().all(|queue| queue.waiting.is_empty() && queue.done.is_empty());
            tokio::select! {
                () = news => {}
                _ = save.tick(), if !idle => self.save().await,
                () = stop.cancelled() => break,
            }
        }
        workers.shutdown().await;
        self.save().await;
        Ok(())
    }

    async fn save(&self) {
        let targets: Vec<Target> = self.push.queues().keys().cloned().collect();
        for target in targets {
            let (done, unsaved, dropped) = {
                let mut queues = self.push.queues();
                let Some(queue) = queues.get_mut(&target) else { continue };
                let unsaved = queue.unsaved();
                if let Some((number, samples)) = &unsaved {
                    queue.saved.push_back((*number, samples.len()));
                    queue.next = number + 1;
                }
                (std::mem::take(&mut queue.done), unsaved, std::mem::take(&mut queue.dropped))
            };
            if dropped > 0 {
                warn!(%target, dropped, "readings were dropped: nobody takes them, and {MOST} wait");
            }
            let key = |number: u64| format!("{PREFIX}{}/{number:016x}", target.id());
            if let Some((number, samples)) = unsaved {
                let piece =
                    serde_json::to_vec(&Piece { target: target.clone(), samples }).unwrap_or_default();
                if let Err(error) = self.store.put_local(&key(number), Bytes::from(piece)).await {
                    warn!(%target, error = %runtime::chain(&error), "what waits to be pushed is not on the disk");
                }
            }
            for number in done {
                if let Err(error) = self.store.delete_local(&key(number)).await {
                    warn!(%target, error = %runtime::chain(&error), "what was pushed is sent again after a restart");
                }
            }
        }
    }
}

/// Sends what waits for one target, for ever.
async fn work(push: Push, target: Target, access: Access) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut sink: Option<Sink> = None;
    let mut is_away = false;
    loop {
        let idle = async {
            match &mut sink {
                Some(sink) => sink.idle().await,
                None => future::pending().await,
            }
        };
        let sample = tokio::select! {
            sample = push.front(&target) => sample,
            () = idle => {
                sink = None;
                continue;
            }
        };
        let sent = async {
            let open = match sink.take() {
                Some(open) => open,
                None => Sink::open(&target, &access).await?,
            };
            let open = sink.insert(open);
            open.send(&target, &Letter::of(&target, &sample)).await
        };
        match sent.await {
            Ok(()) => {
                push.pop(&target);
                backoff.reset();
                if std::mem::take(&mut is_away) {
                    info!(%target, "readings are taken again");
                }
            }
            Err(Refused::ForGood(reason)) => {
                warn!(%target, property = %sample.property, reason, "a reading is refused");
                push.pop(&target);
            }
            Err(Refused::Now(reason)) => {
                sink = None;
                if !std::mem::replace(&mut is_away, true) {
                    warn!(%target, reason, "readings wait to be pushed");
                }
                time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: usize) -> Sample {
        Sample { property: "p".into(), value: value.to_string().into(), at: 0 }
    }

    #[test]
    fn a_piece_is_done_when_all_of_it_is_taken() {
        let mut queue = Queue::default();
        (0..3).for_each(|value| queue.put(sample(value)));
        let (number, samples) = queue.unsaved().unwrap();
        assert_eq!((number, samples.len()), (0, 3));
        queue.saved.push_back((number, samples.len()));
        queue.next = 1;
        queue.put(sample(3));
        assert_eq!(queue.unsaved().unwrap(), (1, vec![sample(3)]));
        queue.pop();
        queue.pop();
        assert!(queue.done.is_empty());
        queue.pop();
        assert_eq!(queue.done, [0]);
        assert_eq!(queue.unsaved().unwrap().1, [sample(3)]);
    }

    #[test]
    fn the_oldest_go_first() {
        let mut queue = Queue::default();
        (0..MOST + 5).for_each(|value| queue.put(sample(value)));
        assert_eq!((queue.waiting.len(), queue.dropped), (MOST, 5));
        assert_eq!(queue.waiting.front(), Some(&sample(5)));
    }
}
