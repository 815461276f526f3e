//! The time, where the machine's own clock may be wrong.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

/// The system's clock, but never before what has been seen: a machine without a battery boots in 1970.
#[derive(Debug, Default)]
pub struct Clock {
    /// In seconds since 1970.
    floor: AtomicU64,
}

impl Clock {
    pub fn starting_at(floor: u64) -> Self {
        Self { floor: AtomicU64::new(floor) }
    }

    /// It is at least this late.
    pub fn raise(&self, seconds: u64) {
        self.floor.fetch_max(seconds, Ordering::Relaxed);
    }

    /// In seconds since 1970.
    pub fn now(&self) -> u64 {
        self.since_1970().as_secs()
    }

    pub fn since_1970(&self) -> Duration {
        let system = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        system.max(Duration::from_secs(self.floor.load(Ordering::Relaxed)))
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now())))
    }
}
