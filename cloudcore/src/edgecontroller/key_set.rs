//! A set of keys that somebody has to look at: what waits is each key once, however often it changed.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use proto::ResourceKey;
use tokio::sync::Notify;

/// Keys that wait for someone, each once.
#[derive(Debug, Default)]
pub struct KeySet {
    /// With the moment since which it waits.
    keys: Mutex<BTreeMap<ResourceKey, Instant>>,
    bound: Option<usize>,
    overflowed: AtomicBool,
    notify: Notify,
}

impl KeySet {
    pub fn bounded(bound: usize) -> Self {
        Self { bound: Some(bound), ..Self::default() }
    }

    /// Keys beyond the bound are not kept: [`has_overflowed`](Self::has_overflowed) says so for good.
    pub fn mark(&self, key: &ResourceKey) {
        self.mark_since(key, Instant::now());
    }

    /// As [`mark`](Self::mark), for what was heard of at `at`.
    pub fn mark_since(&self, key: &ResourceKey, at: Instant) {
        let mut keys = self.lock();
        if !keys.contains_key(key) {
            if self.bound.is_some_and(|bound| keys.len() >= bound) {
                self.overflowed.store(true, Ordering::Relaxed);
            } else {
                keys.insert(key.clone(), at);
            }
        }
        drop(keys);
        self.notify.notify_one();
    }

    /// Wakes whoever waits, without a key.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    /// Returns once something was marked since the last return. Safe to cancel; for one waiter.
    pub async fn marked(&self) {
        self.notify.notified().await;
    }

    pub fn pop(&self) -> Option<ResourceKey> {
        self.pop_with_since().map(|(key, _)| key)
    }

    /// A key, and since when it waits.
    pub fn pop_with_since(&self) -> Option<(ResourceKey, Instant)> {
        self.lock().pop_first()
    }

    /// A key was lost: whoever follows this set has to start over.
    pub fn has_overflowed(&self) -> bool {
        self.overflowed.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ResourceKey, Instant>> {
        // A set of keys is whole whatever panicked beside it.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_keys_is_bounded() {
        let set = KeySet::bounded(2);
        for name in ["0", "0", "1", "2", "3"] {
            set.mark(&ResourceKey::new("Pod", "a", name).unwrap());
        }
        assert!(set.has_overflowed());
        let held: Vec<_> = std::iter::from_fn(|| set.pop()).map(|key| key.to_string()).collect();
        assert_eq!(held, ["Pod/a/0", "Pod/a/1"]);
    }
    #[test]
    fn a_key_waits_since_it_was_marked_first() {
        let (set, key) = (KeySet::default(), ResourceKey::new("Pod", "a", "0").unwrap());
        let first = Instant::now();
        set.mark_since(&key, first);
        set.mark(&key);
        assert_eq!(set.pop_with_since(), Some((key, first)));
        assert_eq!(set.pop_with_since(), None);
    }
}
