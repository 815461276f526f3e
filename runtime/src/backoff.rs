//! The one jittered exponential backoff of both daemons.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// Delays that double from `first` to `cap`, each drawn between half of it and the whole, so that many nodes that lost
/// the same line do not come back in step.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, attempts: 0 }
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.attempts.min(20));
        self.attempts = self.attempts.saturating_add(1);
        jitter(doubled.min(self.cap))
    }

    /// To be called after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Delays handed out since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

/// A random duration between half of `whole` and `whole`.
pub fn jitter(whole: Duration) -> Duration {
    let mut bytes = [0; 2];
    // Without randomness the delay is merely not jittered.
    let part = SystemRandom::new().fill(&mut bytes).map_or(u16::MAX, |()| u16::from_ne_bytes(bytes));
    whole / 2 + (whole / 2).mul_f64(f64::from(part) / f64::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for whole in [100, 200, 400, 800, 1000, 1000] {
            let delay = backoff.next_delay();
            let whole = Duration::from_millis(whole);
            assert!(delay >= whole / 2 && delay <= whole, "{delay:?} for {whole:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }
}
