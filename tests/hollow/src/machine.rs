//! How long the machine lets a thread wait that has hardly anything to do: what no program can make up for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::latency::Latencies;

const NAP: Duration = Duration::from_millis(2);

/// A thread that sleeps, and sees how late it is woken.
pub(crate) struct Sleeper {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Latencies>,
}

impl Sleeper {
    pub(crate) fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let sleep = move || {
            let mut late = Latencies::default();
            while !is_over.load(Relaxed) {
                let begun = Instant::now();
                #[expect(clippy::disallowed_methods, reason = "this is what is measured")]
                thread::sleep(NAP);
                late.add(begun.elapsed().saturating_sub(NAP));
            }
            late
        };
        let thread = thread::Builder::new().name("sleeper".to_owned()).spawn(sleep)?;
        Ok(Self { stop, thread })
    }

    /// How late it was, each time.
    pub(crate) fn end(self) -> Result<Latencies> {
        self.stop.store(true, Relaxed);
        self.thread.join().ok().context("the sleeper has died")
    }
}
