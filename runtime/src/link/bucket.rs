//! How much a link may take of the line: a token bucket, by the clock that it is given.
//!
//! What has been let go counts in full, also where it is more than there was room for: the next then waits that much
//! longer. So a piece is never split, and the average is the rate.

use std::time::{Duration, Instant};

/// Bytes that TLS or QUIC, and TCP or UDP and IP, put around what is in one packet: estimated, and never far off.
const AROUND: u64 = 64;
/// Bytes of a link that fit into one packet.
const PACKET: u64 = 1200;
/// How long a quiet line's room is kept.
const BURST: Duration = Duration::from_millis(250);

/// What so many bytes of a link are on the line.
fn on_the_line(bytes: usize) -> u64 {
    let bytes = bytes as u64;
    bytes + AROUND * bytes.div_ceil(PACKET).max(1)
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Bytes a second; `None`: everything goes at once.
    rate: Option<u64>,
    /// Everything that was let go will have passed by then.
    free: Option<Instant>,
}

impl Bucket {
    /// Whether that is another rate than before. What is owed at the old one is forgotten where there is none any more, and
    /// else is paid at the new one.
    pub(super) fn set_rate(&mut self, rate: Option<u64>, now: Instant) -> bool {
        // Nobody divides by it, and a line of less is none.
        let rate = rate.map(|rate| rate.max(super::SLOWEST));
        if self.rate == rate {
            return false;
        }
        if let (Some(old), Some(new), Some(free)) = (self.rate, rate, self.free) {
            let owed = free.saturating_duration_since(now).as_nanos();
            let owed = owed * u128::from(old) / u128::from(new);
            self.free = Some(now + Duration::from_nanos(u64::try_from(owed).unwrap_or(u64::MAX / 2)));
        } else {
            self.free = None;
        }
        self.rate = rate;
        true
    }

    pub(super) fn is_open(&self) -> bool {
        self.rate.is_none()
    }

    /// When something that may wait can go; `None`: now.
    pub(super) fn wait(&self, now: Instant) -> Option<Instant> {
        self.rate?;
        self.free.filter(|free| *free > now)
    }

    /// So many bytes go now.
    pub(super) fn charge(&mut self, bytes: usize, now: Instant) {
        let Some(rate) = self.rate else { return };
        let floor = now.checked_sub(BURST).unwrap_or(now);
        let from = self.free.map_or(floor, |free| free.max(floor));
        // A frame is 4 MiB at most: it does not overflow.
        self.free = Some(from + Duration::from_nanos(on_the_line(bytes) * 1_000_000_000 / rate));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends pieces as soon as they may go; how long it takes.
    fn time_of(bucket: &mut Bucket, pieces: usize, piece: usize, begun: Instant) -> Duration {
        let mut now = begun;
        for _ in 0..pieces {
            now = bucket.wait(now).unwrap_or(now);
            bucket.charge(piece, now);
        }
        bucket.wait(now).unwrap_or(now) - begun
    }

    #[test]
    fn the_average_is_the_rate() {
        let now = Instant::now() + Duration::from_hours(1);
        let mut bucket = Bucket::default();
        assert_eq!(time_of(&mut bucket, 1000, 4096, now), Duration::ZERO);
        bucket.set_rate(Some(8000), now);
        // 25 pieces of 4 KiB are 108,800 bytes on the line.
        let took = time_of(&mut bucket, 25, 4096, now).as_secs_f64();
        assert!((13.0..13.7).contains(&took), "{took} s");
        // An hour of silence makes room for a burst, and no more.
        let later = now + Duration::from_hours(1);
        let took = time_of(&mut bucket, 25, 4096, later).as_secs_f64();
        assert!((13.0..13.7).contains(&took), "{took} s");
    }

    #[test]
    fn what_never_waits_is_counted() {
        let now = Instant::now() + Duration::from_hours(1);
        let mut bucket = Bucket::default();
        bucket.set_rate(Some(1000), now);
        for _ in 0..20 {
            bucket.charge(36, now);
        }
        let wait = bucket.wait(now).unwrap() - now;
        assert!((1.7..1.8).contains(&wait.as_secs_f64()), "{wait:?}");
    }

    #[test]
    fn another_rate_counts_at_once() {
        let now = Instant::now() + Duration::from_hours(1);
        let mut bucket = Bucket::default();
        assert!(bucket.set_rate(Some(1000), now) && !bucket.set_rate(Some(1000), now));
        bucket.charge(100_000, now);
        let wait = |bucket: &Bucket| bucket.wait(now).map_or(0.0, |until| (until - now).as_secs_f64());
        let slow = wait(&bucket);
        assert!(bucket.set_rate(Some(10_000), now));
        assert!((slow / wait(&bucket) - 10.0).abs() < 0.1, "{slow} s and {} s", wait(&bucket));
        assert!(bucket.set_rate(None, now));
        assert_eq!(bucket.wait(now), None);
        // What is below the least is taken for the least.
        bucket.set_rate(Some(0), now);
        bucket.charge(1, now);
    }
}
