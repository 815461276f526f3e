//! The order of one node's reports: those of one object one after the other, those of different objects side by side, up
//! to a bound. A report that has to be tried again holds up its own lane only.

use std::collections::{HashMap, HashSet, VecDeque};

/// Schedules work; holds at most the session's window ([`proto::limits::WINDOW_REPORTS`]) of reports.
#[derive(Debug)]
pub struct Lanes<T> {
    limit: usize,
    waiting: HashMap<String, VecDeque<T>>,
    /// Lanes with something waiting and nothing running, oldest first.
    ready: VecDeque<String>,
    running: HashSet<String>,
}

impl<T> Lanes<T> {
    /// At most `limit` pieces of work run at once.
    pub fn new(limit: usize) -> Self {
        Self { limit, waiting: HashMap::new(), ready: VecDeque::new(), running: HashSet::new() }
    }

    pub fn push(&mut self, lane: &str, work: T) {
        let lane = lane.to_owned();
        let queue = self.waiting.entry(lane.clone()).or_default();
        queue.push_back(work);
        if queue.len() == 1 && !self.running.contains(&lane) {
            self.ready.push_back(lane);
        }
    }

    /// The next piece of work with its lane; [`done`](Self::done) is to be called with the lane when it ended.
    pub fn start(&mut self) -> Option<(String, T)> {
        if self.running.len() >= self.limit {
            return None;
        }
        let lane = self.ready.pop_front()?;
        let queue = self.waiting.get_mut(&lane)?;
        let work = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&lane);
        }
        self.running.insert(lane.clone());
        Some((lane, work))
    }

    pub fn done(&mut self, lane: &str) {
        self.running.remove(lane);
        if self.waiting.contains_key(lane) {
            self.ready.push_back(lane.to_owned());
        } else if self.waiting.is_empty() && self.running.is_empty() {
            // A node has much to tell once, and then little for days.
            *self = Self::new(self.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(lanes: &mut Lanes<u64>) -> Vec<u64> {
        std::iter::from_fn(|| lanes.start()).map(|(_, id)| id).collect()
    }

    #[test]
    fn reports_of_one_object_keep_their_order() {
        let mut lanes = Lanes::new(3);
        for (id, key) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "c"), (6, "d")] {
            lanes.push(key, id);
        }
        assert_eq!(started(&mut lanes), [1, 3, 5]);
        lanes.done("b");
        assert_eq!(started(&mut lanes), [6], "a is still under way");
        lanes.done("a");
        assert_eq!(started(&mut lanes), [2]);
        lanes.push("b", 7);
        lanes.done("c");
        assert_eq!(started(&mut lanes), [7]);
        lanes.done("a");
        assert_eq!(started(&mut lanes), [4]);
        for key in ["a", "b", "d"] {
            lanes.done(key);
        }
        assert!(started(&mut lanes).is_empty());
        assert!(lanes.waiting.is_empty() && lanes.running.is_empty() && lanes.ready.is_empty());
    }
}
