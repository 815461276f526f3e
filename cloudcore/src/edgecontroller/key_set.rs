//! A set of keys that somebody has to look at: what waits is each key once, however often it changed.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use proto::ResourceKey;
use tokio::sync::Notify;

/// Keys that wait for someone, each once.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Mutex<BTreeSet<ResourceKey>>,
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
        let mut keys = self.lock();
        if !keys.contains(key) {
            if self.bound.is_some_and(|bound| keys.len() >= bound) {
                self.overflowed.store(true, Ordering::Relaxed);
            } else {
                keys.insert(key.clone());
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
        self.lock().pop_first()
    }

    /// A key was lost: whoever follows this set has to start over.
    pub fn has_overflowed(&self) -> bool {
        self.overflowed.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<ResourceKey>> {
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
}
