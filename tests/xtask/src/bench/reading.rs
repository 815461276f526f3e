//! What the kernel says of a process and of the machine.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use harness::progress::during;
use tokio::time::{sleep, timeout};

/// Clock ticks a second in /proc: the same on every Linux that runs Rust.
const TICKS: u64 = 100;

/// Of `smaps_rollup`, in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) pss: f64,
    pub(crate) private_dirty: f64,
    pub(crate) threads: f64,
    pub(crate) rss: f64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let rollup = read(&format!("/proc/{pid}/smaps_rollup"))?;
        let status = read(&format!("/proc/{pid}/status"))?;
        Ok(Self {
            pss: number(&rollup, "Pss:")? as f64,
            private_dirty: number(&rollup, "Private_Dirty:")? as f64,
            threads: number(&status, "Threads:")? as f64,
            rss: number(&status, "VmRSS:")? as f64,
        })
    }
}

/// The most that a process ever held, in KiB.
pub(crate) fn peak(pid: u32) -> Result<f64> {
    Ok(number(&read(&format!("/proc/{pid}/status"))?, "VmHWM:")? as f64)
}

/// What a process has used since its start.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    pid: u32,
    /// User and system time of all threads, those that ended included.
    cpu: Duration,
    /// Bytes that it caused to be written to a disk.
    written: u64,
    /// Of each thread that is there: how often it went to sleep by itself.
    switches: HashMap<u32, u64>,
}

/// What a process used between two readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    pub(crate) written: u64,
    /// Voluntary context switches: each is a wake-up. Those of threads that ended in between are not in it.
    pub(crate) wakeups: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut switches = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| gone(pid))? {
            let thread = entry?.file_name().to_string_lossy().into_owned();
            // A thread may end between the listing and the reading.
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")) else {
                continue;
            };
            switches.insert(thread.parse()?, number(&status, "voluntary_ctxt_switches:")?);
        }
        Ok(Self {
            pid,
            cpu: cpu(pid)?,
            written: number(&read(&format!("/proc/{pid}/io"))?, "write_bytes:")?,
            switches,
        })
    }

    /// What was used until now.
    pub(crate) fn to_now(&self) -> Result<Used> {
        let now = Self::of(self.pid)?;
        let wakeups = now.switches.iter().map(|(thread, switches)| {
            switches.saturating_sub(self.switches.get(thread).copied().unwrap_or_default())
        });
        Ok(Used {
            cpu: now.cpu.saturating_sub(self.cpu),
            written: now.written.saturating_sub(self.written),
            wakeups: wakeups.sum(),
        })
    }
}

/// User and system time of a process, exact to a hundredth of a second.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything; state is field 3, utime 14, stime 15.
    let rest = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// Time that all cores together were busy since the boot.
pub(crate) fn machine_busy() -> Result<Duration> {
    let stat = read("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal …
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&at| fields.get(at)).sum();
    Ok(Duration::from_millis(busy * 1000 / TICKS))
}

/// Waits until the machine has little to do, which it may never have: then it is measured as it is.
pub(crate) async fn rest(limit: Duration) -> Result<()> {
    const LOOK: Duration = Duration::from_secs(3);
    let calm = async {
        loop {
            let before = machine_busy()?;
            sleep(LOOK).await;
            // A tenth of one core.
            if machine_busy()?.saturating_sub(before) < LOOK / 10 {
                return anyhow::Ok(());
            }
        }
    };
    let waited = during("waiting for the machine to be at rest", timeout(limit, calm)).await;
    waited.unwrap_or_else(|_| {
        super::tell("the machine does not come to rest: times will be longer, rates lower");
        Ok(())
    })
}

/// The number after `key` on the line that starts with it.
pub(crate) fn number(text: &str, key: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.split_whitespace().next()).and_then(|value| value.parse().ok());
    value.with_context(|| format!("no number after {key:?}"))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read {path}"))
}

fn gone(pid: u32) -> String {
    format!("process {pid} is gone")
}

/// Of a component of the control plane: what it is told is in the cluster's directory.
pub(super) fn pid_below(dir: &Path, program: &str) -> Result<u32> {
    let dir = dir.display().to_string();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let name = line.split('\0').next().unwrap_or_default();
        if name.ends_with(&format!("/{program}")) && line.contains(&dir) {
            return Ok(pid);
        }
    }
    bail!("{program} does not run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_used_time() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.pss > 100.0 && memory.private_dirty <= memory.pss && memory.threads >= 1.0);
        let begun = std::time::Instant::now();
        let before = Usage::of(std::process::id()).unwrap();
        while before.to_now().unwrap().cpu < Duration::from_millis(50) {
            assert!(begun.elapsed() < Duration::from_mins(1), "no time was used");
        }
        assert!(machine_busy().unwrap() > Duration::ZERO);
    }
}
