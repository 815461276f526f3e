//! What goes down later: changes of objects of a class that has an interval.
//!
//! The first change that waits begins the interval of its class. At its end all that waits in it goes down at once, each object as it is
//! by then. What waits are keys, so however often an object changes it takes the same room, and a session that ends meanwhile loses
//! nothing: the next one finds what differs.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::ResourceKey;

/// How many classes there are. Which they are, the view knows.
pub const CLASSES: usize = 3;

/// A node that says more has mistaken the unit.
const LONGEST: Duration = Duration::from_hours(366 * 24);

#[derive(Debug)]
pub(super) struct Holds {
    /// As it was told last.
    now: Instant,
    classes: [Class; CLASSES],
    /// What has waited long enough. It may have to wait for the window, but for no interval again.
    due: BTreeSet<ResourceKey>,
}

#[derive(Debug, Default)]
struct Class {
    interval: Duration,
    /// When the first of these came.
    begun: Option<Instant>,
    waiting: BTreeSet<ResourceKey>,
}

impl Class {
    fn end(&self) -> Option<Instant> {
        // It fits: an interval is no longer than the longest.
        self.begun.map(|begun| begun + self.interval)
    }

    fn release(&mut self, into: &mut BTreeSet<ResourceKey>) {
        self.begun = None;
        into.append(&mut self.waiting);
    }
}

impl Holds {
    pub(super) fn new(now: Instant) -> Self {
        Self { now, classes: Default::default(), due: BTreeSet::new() }
    }

    /// From now on these count, for what waits already, too.
    pub(super) fn set(&mut self, intervals: [Duration; CLASSES]) {
        for (class, interval) in self.classes.iter_mut().zip(intervals) {
            class.interval = interval.min(LONGEST);
        }
        self.release();
    }

    pub(super) fn set_time(&mut self, now: Instant) {
        self.now = now;
        self.release();
    }

    fn release(&mut self) {
        for class in &mut self.classes {
            if class.end().is_some_and(|end| end <= self.now) {
                class.release(&mut self.due);
            }
        }
    }

    /// Nothing waits from now on.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.now);
    }

    /// Whether no object has to wait, nor does.
    pub(super) fn is_idle(&self) -> bool {
        self.classes.iter().all(|class| class.interval.is_zero() && class.waiting.is_empty())
    }

    /// Whether an object of this class has to wait.
    pub(super) fn is_held(&self, class: usize) -> bool {
        self.classes.get(class).is_some_and(|class| !class.interval.is_zero())
    }

    pub(super) fn hold(&mut self, class: usize, key: ResourceKey) {
        // Where it waits already it goes on to do so, from when it did.
        if !self.classes[class].waiting.contains(&key) {
            self.forget(&key);
            let class = &mut self.classes[class];
            class.begun.get_or_insert(self.now);
            class.waiting.insert(key);
        }
    }

    /// It goes down now, or needs not.
    pub(super) fn forget(&mut self, key: &ResourceKey) {
        for class in &mut self.classes {
            if class.waiting.remove(key) && class.waiting.is_empty() {
                class.begun = None;
            }
        }
    }

    /// All that waits is due; false if nothing did.
    pub(super) fn end_all(&mut self) -> bool {
        let before = self.due.len();
        for class in &mut self.classes {
            class.release(&mut self.due);
        }
        self.due.len() > before
    }

    pub(super) fn pop_due(&mut self) -> Option<ResourceKey> {
        self.due.pop_first()
    }

    /// By class, how many objects wait.
    pub(super) fn held(&self) -> [usize; CLASSES] {
        self.classes.each_ref().map(|class| class.waiting.len())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.classes.iter().filter_map(Class::end).min()
    }
}
