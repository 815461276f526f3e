//! Daemons where there is no systemd: `keadm supervise` is the parent of the daemon, starts it again when it ends, and
//! stops it when it is told to.
//!
//! In the run directory, for a daemon NAME: `NAME.pid` has the daemon's process id; `NAME-supervisor.lock` is locked for as
//! long as the supervisor lives, so that a process id that was given to another process is never mistaken for it; and
//! `NAME-supervisor.json` says what it was started from.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// What a daemon gets to stop by itself: edgecore's own grace period, and a little.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(35);
/// The daemons' environment. glibc gives each thread a heap of its own, up to eight a core, and, once a large block was freed,
/// keeps what is free at the end of one: together a third of cloudcore's memory. Both daemons have few threads, and wait most of
/// the time.
pub(crate) const ENVIRONMENT: [(&str, &str); 2] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072")];
const POLL: Duration = Duration::from_millis(50);

/// What the supervisor says about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) pid: i32,
    pub(crate) fingerprint: String,
    /// How often the daemon ended by itself.
    pub(crate) restarts: u32,
}

/// The files of a supervised daemon.
#[derive(Debug, Clone)]
pub(crate) struct RunFiles {
    name: String,
    dir: PathBuf,
}

impl RunFiles {
    pub(crate) fn new(name: &str, dir: &Path) -> Self {
        Self { name: name.to_owned(), dir: dir.to_owned() }
    }

    pub(crate) fn pid(&self) -> PathBuf {
        self.dir.join(format!("{}.pid", self.name))
    }

    fn lock_file(&self) -> PathBuf {
        self.dir.join(format!("{}-supervisor.lock", self.name))
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join(format!("{}-supervisor.json", self.name))
    }

    /// Takes the supervisor's lock, to be held for life; `None` if another one has it.
    pub(crate) fn lock(&self) -> Result<Option<File>> {
        let path = self.lock_file();
        let context = || format!("failed to lock {}", path.display());
        fs::create_dir_all(&self.dir).with_context(context)?;
        let mut options = OpenOptions::new();
        let file = options.create(true).write(true).truncate(false).open(&path).with_context(context)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(context),
        }
    }

    /// As [`Self::lock`]. Whoever looks at the state holds the lock for a moment, so it is tried for a second.
    pub(crate) async fn lock_for_life(&self) -> Result<Option<File>> {
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let lock = self.lock()?;
            if lock.is_some() || Instant::now() > deadline {
                return Ok(lock);
            }
            sleep(POLL).await;
        }
    }

    pub(crate) fn write_state(&self, state: &State) -> Result<()> {
        write(&self.state_file(), &serde_json::to_vec(state)?)
    }

    pub(crate) fn write_pid(&self, pid: u32) -> Result<()> {
        write(&self.pid(), format!("{pid}\n").as_bytes())
    }

    /// The supervisor, if it lives.
    pub(crate) fn state(&self) -> Result<Option<State>> {
        if !self.lock_file().exists() || self.lock()?.is_some() {
            return Ok(None);
        }
        // Locked, but nothing written yet: it has just been started.
        let text = match fs::read(self.state_file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("failed to read {}", self.state_file().display()))?,
        };
        serde_json::from_slice(&text).map(Some).context("the supervisor's state is malformed")
    }

    /// Removes all but the lock, which whoever removes the directory removes.
    pub(crate) fn remove(&self) -> Result<()> {
        remove(&self.pid())?;
        remove(&self.state_file())
    }

    pub(crate) fn all(&self) -> [PathBuf; 3] {
        [self.pid(), self.state_file(), self.lock_file()]
    }

    /// A daemon that outlived its supervisor: the process in the pid file, if it is still that program with that
    /// argument.
    pub(crate) fn orphan(&self, argument: &str) -> Option<Pid> {
        let pid: i32 = fs::read_to_string(self.pid()).ok()?.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut arguments = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let program = arguments.next()?;
        let is_it =
            Path::new(&*program).file_name()?.to_str()? == self.name && arguments.any(|a| a == argument);
        is_it.then(|| Pid::from_raw(pid))
    }

    /// Stops supervisor and daemon; whether there was anything to stop.
    pub(crate) async fn stop(&self, argument: &str) -> Result<bool> {
        let mut stopped = false;
        if let Some(state) = self.state()? {
            let pid = Pid::from_raw(state.pid);
            signal(pid, Signal::SIGTERM)?;
            let deadline = Instant::now() + STOP_GRACE + Duration::from_secs(10);
            while self.state()?.is_some() {
                if Instant::now() > deadline {
                    signal(pid, Signal::SIGKILL)?;
                }
                sleep(POLL).await;
            }
            stopped = true;
        }
        if let Some(pid) = self.orphan(argument) {
            end(pid, STOP_GRACE).await?;
            stopped = true;
        }
        if self.dir.exists() {
            self.remove()?;
        }
        Ok(stopped)
    }
}

/// Asks a process that is not a child to end, and makes it end after `grace`.
pub(crate) async fn end(pid: Pid, grace: Duration) -> Result<()> {
    signal(pid, Signal::SIGTERM)?;
    let deadline = Instant::now() + grace;
    let last = deadline + Duration::from_secs(10);
    let mut killed = false;
    while is_alive(pid) {
        if Instant::now() > deadline && !killed {
            signal(pid, Signal::SIGKILL)?;
            killed = true;
        }
        ensure!(Instant::now() < last, "process {pid} does not end");
        sleep(POLL).await;
    }
    Ok(())
}

/// A zombie counts as ended: whoever reaps it, it holds nothing any more.
fn is_alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

pub(crate) fn signal(pid: Pid, signal: Signal) -> Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to signal process {pid}")),
    }
}

/// Starts the supervisor of `command` and waits until it has taken over.
pub(crate) async fn start(
    files: &RunFiles,
    log_file: &Path,
    fingerprint: &str,
    command: &[PathBuf],
) -> Result<()> {
    fs::create_dir_all(&files.dir).with_context(|| format!("failed to make {}", files.dir.display()))?;
    let log = open_log(log_file)?;
    let keadm = std::env::current_exe().context("keadm's own path is not known")?;
    let mut child = Command::new(keadm)
        .arg("supervise")
        .args(["--name", &files.name, "--fingerprint", fingerprint])
        .arg("--run-dir")
        .arg(&files.dir)
        .arg("--log-file")
        .arg(log_file)
        .arg("--")
        .args(command)
        .current_dir("/")
        .env_remove("KEADM_TOKEN")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("failed to use the log")?)
        .stderr(log)
        .spawn()
        .context("failed to start the supervisor")?;
    let last_words = || tail(log_file, 5).unwrap_or_else(|error| runtime::chain(error.as_ref()).to_string());
    let deadline = Instant::now() + Duration::from_secs(20);
    while files.state()?.is_none_or(|state| state.fingerprint != fingerprint) {
        if let Some(status) = child.try_wait().context("failed to wait for the supervisor")? {
            bail!("the supervisor ended at once ({status}): {}", last_words());
        }
        ensure!(Instant::now() < deadline, "the supervisor did not start: {}", last_words());
        sleep(POLL).await;
    }
    Ok(())
}

pub(crate) fn open_log(path: &Path) -> Result<File> {
    let context = || format!("failed to open the log {}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(context)?;
    }
    OpenOptions::new().create(true).append(true).open(path).with_context(context)
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path, lines: usize) -> Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let context = || format!("failed to read {}", path.display());
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok("(no log)".to_owned()),
        opened => opened.with_context(context)?,
    };
    let size = file.metadata().with_context(context)?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(64 << 10))).with_context(context)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(context)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

/// By rename, so that nobody reads half of it.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)
        .and_then(|()| fs::rename(&new, path))
        // On a full disk there is half of it.
        .inspect_err(|_| drop(fs::remove_file(&new)))
        .with_context(|| format!("failed to write {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_at_the_lock_is_waited_for_and_a_supervisor_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = RunFiles::new("edgecore", dir.path());
        let look = files.lock().unwrap().unwrap();
        let release = async {
            sleep(POLL * 2).await;
            drop(look);
        };
        let (lock, ()) = tokio::join!(files.lock_for_life(), release);
        let _supervisor = lock.unwrap().unwrap();
        assert!(files.lock_for_life().await.unwrap().is_none());
    }
}
