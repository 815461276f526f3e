//! Which devices have changed since somebody looked last. What it holds is bounded by the number of devices, for each who looks.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use proto::ResourceKey;
use tokio::sync::Notify;

#[derive(Clone, Default)]
pub(super) struct Changes(Arc<Mutex<Vec<Weak<Shared>>>>);

#[derive(Default)]
struct Shared {
    keys: Mutex<BTreeSet<ResourceKey>>,
    notify: Notify,
}

/// What has changed, for one who looks.
pub struct Follower(Arc<Shared>);

impl Changes {
    pub(super) fn touch(&self, key: &ResourceKey) {
        self.followers().retain(|follower| {
            let Some(follower) = follower.upgrade() else { return false };
            follower.keys().insert(key.clone());
            follower.notify.notify_one();
            true
        });
    }

    /// From now on.
    pub(super) fn follow(&self) -> Follower {
        let shared = Arc::<Shared>::default();
        self.followers().push(Arc::downgrade(&shared));
        Follower(shared)
    }

    fn followers(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn keys(&self) -> MutexGuard<'_, BTreeSet<ResourceKey>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// Waits for devices that have changed, come or gone since it returned last. Nothing is lost when it is dropped before.
    pub async fn changed(&self) -> BTreeSet<ResourceKey> {
        loop {
            let keys = std::mem::take(&mut *self.0.keys());
            if !keys.is_empty() {
                return keys;
            }
            self.0.notify.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_who_looks_is_told_once_of_each() {
        let changes = Changes::default();
        let [one, two] = ["Device/a/one", "Device/a/two"].map(|key| key.parse::<ResourceKey>().unwrap());
        changes.touch(&one);
        let (first, second) = (changes.follow(), changes.follow());
        changes.touch(&one);
        changes.touch(&one);
        assert_eq!(first.changed().await, [one.clone()].into());
        changes.touch(&two);
        assert_eq!(first.changed().await, [two.clone()].into());
        assert_eq!(second.changed().await, [one, two].into());
        drop(first);
        changes.touch(&"Device/a/three".parse().unwrap());
        assert_eq!(changes.followers().len(), 1);
    }
}
