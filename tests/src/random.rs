//! What a seed decides.

use std::{
    env,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};

/// SplitMix64: enough to choose with, and the same on every machine.
pub struct Random(u64);

impl Random {
    /// From `SKERRY_SEED`, or the clock; printed, so that a failure can be had again.
    pub fn seeded(test: &str) -> Result<Self> {
        let seed = match env::var("SKERRY_SEED") {
            Ok(seed) => seed.parse().context("SKERRY_SEED is no number")?,
            Err(_) => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs(),
        };
        eprintln!("{test}: SKERRY_SEED={seed}");
        Ok(Self(seed))
    }

    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.number())
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// `bound` is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    pub fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }

    /// So many words of text that does not compress well.
    pub fn words(&mut self, count: u64) -> String {
        (0..count).fold(String::new(), |text, _| text + &format!("{:08x}", self.number() & 0xffff_ffff))
    }
}
