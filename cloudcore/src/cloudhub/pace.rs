//! How much of a core one session takes for what it catches up with: a leaky bucket of time, by the clock that it is given.
//!
//! A node that comes back after weeks has thousands of objects to be told of. Told as fast as it goes, they take a whole core for a second,
//! and what other nodes are told of waits for its turn again and again.

use std::time::Duration;

use tokio::time::Instant;

/// What it takes at once.
const FREE: Duration = Duration::from_millis(20);
/// It rests for so many times what it takes beyond that: a quarter of a core is its share in the long run.
const REST: u32 = 3;

/// What one turn counts for at most: what took longer was waiting for a core itself, and the line needs its answers.
const TURN: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Pace {
    /// Taken, and not yet paid for with rest.
    taken: Duration,
    at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { taken: Duration::ZERO, at: now }
    }

    /// It took from `began` to `now`: how long it has to rest before it goes on. `None`: not at all.
    pub(super) fn took(&mut self, began: Instant, now: Instant) -> Option<Duration> {
        let rested = began.saturating_duration_since(self.at) / REST;
        self.taken = self.taken.saturating_sub(rested) + now.saturating_duration_since(began).min(TURN);
        self.at = now;
        let rest = self.taken.saturating_sub(FREE) * REST;
        (!rest.is_zero()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long `turns` of a millisecond take.
    fn all(turns: u32) -> Duration {
        let start = Instant::now();
        let (mut pace, mut now) = (Pace::new(start), start);
        for _ in 0..turns {
            let began = now;
            now += Duration::from_millis(1);
            now += pace.took(began, now).unwrap_or_default();
        }
        now - start
    }

    #[test]
    fn little_goes_at_once_and_much_takes_a_quarter_of_a_core() {
        assert_eq!(all(20), Duration::from_millis(20));
        let long = all(1000).as_secs_f64();
        assert!((3.9..=4.1).contains(&long), "{long}");
    }

    #[test]
    fn who_has_rested_has_all_of_it_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        while pace.took(now, now + TURN).is_none() {
            now += TURN;
        }
        let later = now + FREE * REST * 2;
        assert_eq!(pace.took(later, later + TURN), None);
        assert_eq!(pace.took(later, later + TURN * 1000), None, "it waited itself");
    }
}
