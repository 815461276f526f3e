//! How long threads had a core, and how long they were ready to run and waited for one: on a machine that is busy to the last,
//! that is most of what a change takes, whoever it is that it waits for.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, Result};

/// Of some processes, each thread's time on a core and its time in the queue for one.
#[derive(Default)]
pub(super) struct Cores {
    /// By whose it is.
    of: Vec<(String, HashMap<u32, Times>)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    ran: Duration,
    waited: Duration,
}

/// What was used since, whose it is first.
pub(super) struct Passed(Vec<(String, Times)>);

impl Cores {
    /// Adds the threads of a process, those alone whose name `is` so.
    pub(super) fn add(&mut self, whose: &str, pid: u32, is: impl Fn(&str) -> bool) -> Result<()> {
        let mut threads = HashMap::new();
        let tasks = format!("/proc/{pid}/task");
        for entry in fs::read_dir(&tasks).with_context(|| format!("process {pid} ({whose}) is gone"))? {
            let thread = entry?.file_name().to_string_lossy().into_owned();
            // A thread may end between the listing and the reading.
            let (Ok(name), Ok(times)) = (
                fs::read_to_string(format!("{tasks}/{thread}/comm")),
                fs::read_to_string(format!("{tasks}/{thread}/schedstat")),
            ) else {
                continue;
            };
            if is(name.trim()) {
                let times =
                    times_of(&times).with_context(|| format!("{tasks}/{thread}/schedstat: {times:?}"))?;
                threads.insert(thread.parse()?, times);
            }
        }
        self.of.push((whose.to_owned(), threads));
        Ok(())
    }

    /// A thread that has ended since is left out; one that is new counts from its beginning.
    pub(super) fn since(&self, before: &Self) -> Passed {
        let known = |whose: &str, thread: &u32| {
            let threads = before.of.iter().find(|(name, _)| name == whose);
            threads.and_then(|(_, threads)| threads.get(thread)).copied().unwrap_or_default()
        };
        let all = self.of.iter().map(|(whose, threads)| {
            let mut sum = Times::default();
            for (thread, now) in threads {
                let before = known(whose, thread);
                sum.ran += now.ran.saturating_sub(before.ran);
                sum.waited += now.waited.saturating_sub(before.waited);
            }
            (whose.clone(), sum)
        });
        Passed(all.collect())
    }
}

impl Passed {
    /// Of the time for which each had something to do, the share for which it had to wait for a core.
    pub(super) fn waiting(&self) -> String {
        let shares = self.0.iter().map(|(whose, times)| {
            let waited = times.waited.as_secs_f64();
            let share = 100.0 * waited / (times.ran.as_secs_f64() + waited).max(f64::MIN_POSITIVE);
            format!("{whose} {share:.0} % ({waited:.1} s)")
        });
        let shares = shares.collect::<Vec<_>>().join(", ");
        format!("waited for a core, of the time with something to do: {shares}")
    }

    /// Time on a core.
    pub(super) fn ran(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.0.iter().map(|(whose, times)| (whose.as_str(), times.ran))
    }
}

/// Nanoseconds on a core, nanoseconds in the queue, and how often.
fn times_of(schedstat: &str) -> Option<Times> {
    let mut fields = schedstat.split_whitespace().map(|field| field.parse().ok().map(Duration::from_nanos));
    Some(Times { ran: fields.next()??, waited: fields.next()?? })
}

#[cfg(test)]
mod tests {
    use std::{
        hint,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        thread,
        time::Instant,
    };

    use super::*;

    #[test]
    fn threads_that_share_a_core_wait_for_it() {
        let begun = Instant::now();
        let busy_ones = || {
            let mut cores = Cores::default();
            cores.add("busy", std::process::id(), |name| name.starts_with("busy-")).unwrap();
            cores
        };
        let all = thread::available_parallelism().unwrap().get() + 1;
        let (before, done) = (busy_ones(), AtomicBool::new(false));
        thread::scope(|scope| {
            for number in 0..all {
                let busy = || {
                    while !done.load(Relaxed) {
                        hint::spin_loop();
                    }
                };
                thread::Builder::new().name(format!("busy-{number}")).spawn_scoped(scope, busy).unwrap();
            }
            let mut waited = false;
            while !waited && begun.elapsed() < Duration::from_mins(1) {
                let Passed(passed) = busy_ones().since(&before);
                let Times { ran, waited: queued } = passed[0].1;
                waited = ran > Duration::from_millis(20) && queued > Duration::from_millis(5);
            }
            done.store(true, Relaxed);
            assert!(waited, "{all} busy threads never waited for a core");
        });
    }

    #[test]
    fn the_kernel_counts_in_nanoseconds() {
        let nanos = Duration::from_nanos;
        assert_eq!(times_of("12 34 5"), Some(Times { ran: nanos(12), waited: nanos(34) }));
        assert_eq!(times_of("12"), None);
    }
}
