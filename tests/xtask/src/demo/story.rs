//! How the story is told: a line a checked thing, with the time it took.

use std::{
    future::Future,
    io::{IsTerminal, stdout},
    time::Duration,
};

use anyhow::{Context, Result};
use harness::progress::during;
use tokio::time::Instant;

use crate::say;

pub(crate) struct Story {
    colours: bool,
    begun: Instant,
    /// When the last line was told.
    last: Instant,
}

impl Story {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { colours: stdout().is_terminal(), begun: now, last: now }
    }

    /// Does something, shows `doing` while it lasts, and tells `line` once it has succeeded.
    pub(crate) async fn step<T>(
        &mut self,
        doing: &str,
        line: impl FnOnce(&T) -> String,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let value = during(doing, work).await.with_context(|| doing.to_owned())?;
        self.checked(&line(&value))?;
        Ok(value)
    }

    /// Tells a thing that was just checked.
    pub(crate) fn checked(&mut self, line: &str) -> Result<()> {
        let took = seconds(self.last.elapsed());
        self.last = Instant::now();
        let mark = if self.colours { "\x1b[32m✓\x1b[0m" } else { "✓" };
        say(&format!("{mark} {took:>6}  {line}"))
    }

    pub(crate) fn end(&self) -> Result<()> {
        say(&format!("all of it in {}", seconds(self.begun.elapsed())))
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f32())
}
