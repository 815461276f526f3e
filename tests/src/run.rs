//! One run of the bench: a directory that holds all its state, and the knowledge to take everything away again.
//!
//! ```text
//! /var/tmp/skerry-run-XXXXXX/     (SKERRY_RUN names another parent; short, a unix socket's path ends at 107 bytes)
//!   lock        held (flock) by the process that owns the run; free = its owner is dead
//!   keep        present: `--keep`, left up on purpose; only `cargo xtask down` takes it away
//!   ended       present: everything is down, the directory stays for its logs (a failed run)
//!   failure     why the run failed
//!   state       one line a resource that lives outside the directory, written before it is made
//!   logs/       one file a daemon
//!   c0/ s0/ …   clusters and sites
//! ```
//!
//! Two marks find the processes of a run, whoever started them and however they daemonised: the variable
//! `SKERRY_RUN_DIR` in their environment, and a mount below the run's directory in their mount namespace (containers
//! have no such variable, but their root is an overlay in it). So no pid has to be remembered, and no pid that was
//! reused can be hit. [`Run::start`] first takes away what owners that were killed have left behind.

mod sweep;

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

pub use sweep::{kill_all, processes_below};
pub(crate) use sweep::{kill_marked, netns_of_wire, remove_network};

use crate::process::tail;

const RUN_DIR_VARIABLE: &str = "SKERRY_RUN_DIR";
const FAILURE: &str = "failure";
/// `<run>/sN/edge/edgecore.log`, but not the logs of pods.
const LOG_DEPTH: usize = 2;
const PREFIX: &str = "skerry-run-";
/// Locks that all runs of this machine share.
pub(crate) const LOCKS: &str = "/run/skerry";
/// `<run>/sNN/containerd.sock.ttrpc` must stay below 108 bytes, with room for what edgecore adds.
const LONGEST_DIR: usize = 50;
/// Bytes that a run may take of the disk.
const LEAST_FREE: u64 = 4 << 30;

pub struct Run {
    dir: PathBuf,
    state: Mutex<File>,
    kept: AtomicBool,
    failed: AtomicBool,
    next_name: AtomicU32,
    /// Held, never read: its flock says that the owner lives.
    _lock: File,
    /// A share of it is held by each run of the machine.
    alive: File,
}

impl Run {
    /// Makes a run directory, after clearing away the runs whose owner was killed.
    pub fn start() -> Result<Arc<Self>> {
        let base = base();
        // New runs and sweeps take turns: a directory whose lock is not yet taken looks abandoned.
        let _turn = machine_lock()?;
        for dir in run_dirs(&base)? {
            if !dir.join("keep").exists() && !dir.join("ended").exists() && abandoned(&dir)? {
                sweep::take_down(&dir).with_context(|| format!("failed to clear {}", dir.display()))?;
                fs::remove_dir_all(&dir)?;
            }
        }
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&base)
            .with_context(|| format!("failed to make a directory in {}", base.display()))?
            .keep();
        let free = free(&base)?;
        if free < LEAST_FREE {
            fs::remove_dir(&dir)?;
            bail!(
                "{} has {} MiB free, of which a run may take {}; make room, or set SKERRY_RUN to another disk",
                base.display(),
                free >> 20,
                LEAST_FREE >> 20
            );
        }
        if dir.as_os_str().as_bytes().len() > LONGEST_DIR {
            fs::remove_dir(&dir)?;
            bail!(
                "{} is too long for unix sockets below it; set SKERRY_RUN to a shorter path",
                dir.display()
            );
        }
        fs::create_dir(dir.join("logs"))?;
        let lock = File::create(dir.join("lock"))?;
        lock.lock()?;
        let alive = File::create(Path::new(LOCKS).join("alive.lock"))?;
        alive.lock_shared()?;
        let state = File::options().create(true).append(true).open(dir.join("state"))?;
        Ok(Arc::new(Self {
            dir,
            state: Mutex::new(state),
            kept: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            next_name: AtomicU32::new(0),
            _lock: lock,
            alive,
        }))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Leaves all of it up when the process ends, until `cargo xtask down`.
    pub fn keep(&self) -> Result<()> {
        fs::write(self.dir.join("keep"), "")?;
        self.kept.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// After a failure: writes down why, and has the logs printed and the directory left there at the end.
    pub fn end<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.failed.store(true, Ordering::Relaxed);
            let why = format!("{error:#}");
            // The logs that follow are long.
            eprintln!("harness: the run failed: {why}");
            fs::write(self.dir.join(FAILURE), why).context("failed to write down why the run failed")?;
        }
        result
    }

    /// A name for a cluster or site that is unique in this run: `c0`, `s1`, …
    pub(crate) fn unique_name(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.next_name.fetch_add(1, Ordering::Relaxed))
    }

    /// Marks a process, and all that it will start, as part of this run.
    pub fn mark(&self, command: &mut Command) {
        command.env(RUN_DIR_VARIABLE, &self.dir);
    }

    /// Writes down something that exists outside the directory. Called before it is made.
    pub(crate) fn record(&self, resource: &Resource) -> Result<()> {
        let mut line = serde_json::to_string(resource)?;
        line.push('\n');
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.write_all(line.as_bytes()).context("failed to write the run's state file")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let failed = self.failed.load(Ordering::Relaxed) || std::thread::panicking();
        if failed {
            print_logs(&self.dir);
        }
        if self.is_kept() {
            return;
        }
        let ended = sweep::take_down(&self.dir).and_then(|()| {
            if failed {
                fs::write(self.dir.join("ended"), "")?;
            } else {
                fs::remove_dir_all(&self.dir)?;
            }
            self.alive.unlock()?;
            forget_shared()
        });
        if let Err(error) = ended {
            eprintln!("harness: failed to take down {}: {error:#}", self.dir.display());
        }
    }
}

/// What a run makes outside its directory, apart from processes.
#[derive(serde::Serialize, serde::Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Resource {
    /// A site's ends of the line. The processes are found by their marks.
    Site { netns: String, host_interface: String },
}

/// Takes away every run of this machine whose owner is gone, kept and failed ones too.
///
/// # Errors
/// After all were tried: what could not be taken away.
pub fn down() -> Result<Vec<PathBuf>> {
    let _turn = machine_lock()?;
    let mut removed = Vec::new();
    let mut faults = Vec::new();
    for dir in run_dirs(&base())? {
        if !abandoned(&dir)? {
            eprintln!("harness: {} belongs to a run that is going on", dir.display());
            continue;
        }
        match sweep::take_down(&dir).and_then(|()| Ok(fs::remove_dir_all(&dir)?)) {
            Ok(()) => removed.push(dir),
            Err(error) => faults.push(format!("{}: {error:#}", dir.display())),
        }
    }
    forget_shared()?;
    if !faults.is_empty() {
        bail!("not taken down: {}", faults.join("; "));
    }
    Ok(removed)
}

/// Runs that have failed since a point in time, each with why.
pub fn failures(since: SystemTime) -> Result<Vec<(PathBuf, String)>> {
    let mut failures = Vec::new();
    for dir in run_dirs(&base())? {
        let path = dir.join(FAILURE);
        match fs::metadata(&path).and_then(|found| found.modified()) {
            Ok(at) if at >= since => failures.push((dir, fs::read_to_string(&path)?)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("failed to look at {}", path.display())),
        }
    }
    Ok(failures)
}

/// Takes away what runs share, if this was the last.
fn forget_shared() -> Result<()> {
    let alive = File::create(Path::new(LOCKS).join("alive.lock"))?;
    match alive.try_lock() {
        Ok(()) => sweep::remove_shared_cgroups(),
        Err(fs::TryLockError::WouldBlock) => Ok(()),
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

fn base() -> PathBuf {
    env::var_os("SKERRY_RUN").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// The bytes that are free on a path's disk.
fn free(path: &Path) -> Result<u64> {
    let disk = rustix::fs::statvfs(path)
        .with_context(|| format!("failed to ask for the disk of {}", path.display()))?;
    Ok(disk.f_bavail * disk.f_frsize)
}

fn run_dirs(base: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(base).with_context(|| format!("failed to make {}", base.display()))?;
    let mut dirs = Vec::new();
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}

fn abandoned(dir: &Path) -> Result<bool> {
    let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

fn machine_lock() -> Result<File> {
    fs::create_dir_all(LOCKS)?;
    let lock = File::create(Path::new(LOCKS).join("runs.lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// For a failed run: the end of each log, on stderr.
fn print_logs(dir: &Path) {
    eprintln!("\nharness: the run failed; its directory is kept: {}", dir.display());
    let mut logs = Vec::new();
    find_logs(dir, LOG_DEPTH, &mut logs);
    logs.sort();
    for log in logs {
        eprintln!("---- {} (end)\n{}", log.display(), tail(&log));
    }
}

/// Those of the bench's own daemons in `logs/`, and those that supervised daemons write in directories of their own.
fn find_logs(dir: &Path, depth: usize, logs: &mut Vec<PathBuf>) {
    // What cannot be looked into has no log to show.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth > 0 {
                find_logs(&path, depth - 1, logs);
            }
        } else if path.extension().is_some_and(|extension| extension == "log") {
            logs.push(path);
        }
    }
}
