//! What was timed, as people read it.

use anyhow::{Result, bail};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

#[derive(Default)]
pub(crate) struct Table {
    times: Mutex<BTreeMap<(String, &'static str), Vec<Duration>>>,
    failures: Mutex<Vec<String>>,
}

impl Table {
    pub(crate) fn put(&self, what: &str, transport: &'static str, took: Duration) {
        let mut all = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((what.to_owned(), transport)).or_default().push(took);
    }

    /// A failure ends none of what comes after it: a run is too dear to tell one only.
    pub(crate) fn hold(&self, result: Result<()>) {
        if let Err(error) = result {
            let failure = format!("{error:#}");
            eprintln!("FAILED: {failure}");
            self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
        }
    }

    /// An error if there was a failure.
    pub(crate) fn verdict(&self) -> Result<()> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if !failures.is_empty() {
            bail!("{} failures:\n{}", failures.len(), failures.join("\n"));
        }
        Ok(())
    }

    pub(crate) fn print(&self) {
        let all = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("{:<32} {:<10} {:>5} {:>9} {:>9}", "what", "transport", "times", "median", "longest");
        for ((what, transport), times) in all.iter() {
            let mut times = times.clone();
            times.sort_unstable();
            let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
            let seconds = |time: Duration| format!("{:.3} s", time.as_secs_f32());
            eprintln!(
                "{what:<32} {transport:<10} {:>5} {:>9} {:>9}",
                times.len(),
                seconds(median),
                seconds(longest)
            );
        }
    }
}
