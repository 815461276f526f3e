//! Patches that were made already: an object that a thousand nodes hold is compared with its last version once.
//!
//! What a patch is made of is named by two hashes, those that the edge checks. Every cloudcore has one of these, for all of its
//! sessions.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::{
    Version,
    codec::{self, Differ, EncodeError},
};

/// Patches that are kept. Sessions are told of a change at the same time, so few of those before are asked for again.
const KEPT: usize = 256;
/// What all of them may take together. A longer one than a quarter of it is made again where it is needed again.
const KEPT_BYTES: usize = 256 << 10;

/// The newest patches.
#[derive(Debug, Default)]
pub struct Patches {
    made: Mutex<Made>,
    differ: Mutex<Differ>,
}

/// The hashes of the base and of what the patch makes of it.
type Step = (u64, u64);

#[derive(Debug, Default)]
struct Made {
    /// `None` where a patch would be no shorter than the object.
    patches: HashMap<Step, Option<Bytes>>,
    /// Oldest first.
    order: VecDeque<Step>,
    bytes: usize,
}

impl Patches {
    /// The patch that makes `target` of `base`, if it is shorter than `target`.
    pub(super) fn patch(&self, base: (u64, &Bytes), target: (Version, &Bytes)) -> Option<Bytes> {
        let step = (base.0, target.0.hash);
        if let Some(made) = self.lock().patches.get(&step) {
            return made.clone();
        }
        // Two sessions at once make the same. Nobody waits for who has the context.
        let patch = match self.differ.try_lock() {
            Ok(mut differ) => shorter(differ.make_patch(base.1, target.1), target.1),
            Err(_) => make(base.1, target.1),
        };
        self.lock().keep(step, patch.clone());
        patch
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        // Nothing below panics while it holds this.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Made {
    fn keep(&mut self, step: Step, patch: Option<Bytes>) {
        let length = patch.as_ref().map_or(0, Bytes::len);
        if length > KEPT_BYTES / 4 || self.patches.contains_key(&step) {
            return;
        }
        while (self.order.len() >= KEPT || self.bytes + length > KEPT_BYTES)
            && let Some(oldest) = self.order.pop_front()
        {
            let gone = self.patches.remove(&oldest).flatten();
            self.bytes -= gone.as_ref().map_or(0, Bytes::len);
        }
        self.bytes += length;
        self.order.push_back(step);
        self.patches.insert(step, patch);
    }
}

/// As [`Patches::patch`], with nothing kept.
pub(super) fn make(base: &[u8], target: &[u8]) -> Option<Bytes> {
    shorter(codec::make_patch(base, target), target)
}

fn shorter(patch: Result<Bytes, EncodeError>, target: &[u8]) -> Option<Bytes> {
    patch.ok().filter(|patch| patch.len() < target.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::content_hash;

    fn version(bytes: &[u8]) -> Version {
        Version { hash: content_hash(bytes), resource_version: 1 }
    }

    /// `number` is what differs, in `length` bytes that no compressor makes shorter.
    fn object(number: u64, length: usize) -> Bytes {
        let mut state = number.wrapping_mul(2) + 1;
        let bytes = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        });
        bytes.take(length).collect()
    }

    fn patch(patches: &Patches, base: &Bytes, target: &Bytes) -> Option<Bytes> {
        patches.patch((content_hash(base), base), (version(target), target))
    }

    #[test]
    fn a_patch_is_made_once_and_is_what_it_would_be_without() {
        let patches = Patches::default();
        let base = object(1, 4000);
        let target: Bytes = [&base[..2000], b"another middle", &base[2000..]].concat().into();
        let first = patch(&patches, &base, &target).unwrap();
        let again = patch(&patches, &base, &target).unwrap();
        assert_eq!(first.as_ptr(), again.as_ptr());
        assert_eq!(first, codec::make_patch(&base, &target).unwrap());
        let made = codec::apply_patch(&base, &first, target.len(), content_hash(&target)).unwrap();
        assert_eq!(made, target);
        let other = object(2, 40);
        assert_eq!(patch(&patches, &base, &other), None);
        assert_eq!(patch(&patches, &base, &other), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let patches = Patches::default();
        let held = |patches: &Patches| {
            let made = patches.lock();
            let sum: usize = made.patches.values().flatten().map(Bytes::len).sum();
            assert_eq!((made.bytes, made.order.len()), (sum, made.patches.len()));
            assert!(made.bytes <= KEPT_BYTES && made.order.len() <= KEPT);
            made.order.len()
        };
        let base: Bytes = object(0, 5000);
        for number in 1..=2 * KEPT as u64 {
            let target: Bytes = [&base[..], &object(number, 16)[..]].concat().into();
            assert!(patch(&patches, &base, &target).is_some());
            held(&patches);
        }
        assert_eq!(held(&patches), KEPT);
        for number in 1..20 {
            let target: Bytes = [&base[..], &object(number, KEPT_BYTES / 5)[..]].concat().into();
            assert!(patch(&patches, &base, &target).is_some());
        }
        assert!(held(&patches) < 6);
        let huge: Bytes = [&base[..], &object(1, KEPT_BYTES)[..]].concat().into();
        assert!(patch(&patches, &base, &huge).is_some());
        assert!((1..6).contains(&held(&patches)));
    }
}
