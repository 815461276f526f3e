//! Times in a bounded room: a count for each of the steps that times fall into, each at most a sixteenth longer than the last.

use std::time::Duration;

/// Steps for each doubling.
const FINE: u64 = 16;
/// Up to 2^36 microseconds, most of a day.
const STEPS: usize = 36 * 16;

#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    counts: Vec<u64>,
    total: u64,
    longest: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; STEPS], total: 0, longest: Duration::ZERO }
    }
}

impl Latencies {
    pub(crate) fn add(&mut self, time: Duration) {
        self.counts[step(time)] += 1;
        self.total += 1;
        self.longest = self.longest.max(time);
    }

    /// Takes in what another one holds.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }

    pub(crate) fn count(&self) -> u64 {
        self.total
    }

    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }

    /// The end of the step which that many of a thousand times do not exceed.
    pub(crate) fn quantile(&self, of_thousand: u64) -> Duration {
        let wanted = (self.total * of_thousand).div_ceil(1000).max(1);
        let mut seen = 0;
        for (step, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return end(step).min(self.longest);
            }
        }
        self.longest
    }
}

/// Linear below 16 µs, then sixteenths of each power of two.
fn step(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let doublings = u64::from((micros / FINE).checked_ilog2().map_or(0, |log| log + 1));
    let within = micros >> doublings.saturating_sub(1);
    let step = if doublings == 0 { micros } else { doublings * FINE + (within - FINE) };
    usize::try_from(step).unwrap_or(usize::MAX).min(STEPS - 1)
}

/// The first time that is beyond the step.
fn end(step: usize) -> Duration {
    let (doublings, within) = (step as u64 / FINE, step as u64 % FINE);
    let micros = if doublings == 0 { within + 1 } else { (FINE + within + 1) << (doublings - 1) };
    Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_step_that_ends_after_it() {
        let mut last = 0;
        for micros in (0..5000).chain((5000..100_000_000).step_by(99_991)) {
            let time = Duration::from_micros(micros);
            let step = step(time);
            assert!(step >= last && end(step) > time, "{time:?}: step {step} ends at {:?}", end(step));
            assert!(end(step) <= time + time / 16 + Duration::from_micros(1), "{time:?}: {:?}", end(step));
            last = step;
        }
    }

    #[test]
    fn quantiles_are_those_of_the_times() {
        let mut latencies = Latencies::default();
        for millis in 1..=1000 {
            latencies.add(Duration::from_millis(millis));
        }
        let close = |of_thousand: u64, millis: f64| {
            let found = latencies.quantile(of_thousand).as_secs_f64() * 1e3;
            assert!(found >= millis && found <= millis * 1.07, "{of_thousand}: {found}");
        };
        close(500, 500.0);
        close(990, 990.0);
        assert_eq!((latencies.quantile(1000), latencies.count()), (Duration::from_secs(1), 1000));
        let mut twice = latencies.clone();
        twice.merge(&latencies);
        assert_eq!((twice.quantile(500), twice.count()), (latencies.quantile(500), 2000));
    }
}
