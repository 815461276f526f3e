//! Child processes: daemons with a log file, and short commands whose failure carries what they printed.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

use crate::run::{Run, kill_marked};

/// How much of a log is printed when something failed.
const TAIL_BYTES: usize = 6 * 1024;

/// A program that runs until it is killed. It is killed (SIGKILL, by pid) when this is dropped, unless its run is kept.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    run: Arc<Run>,
}

impl Daemon {
    /// Starts `command` with both outputs in `<run>/logs/<name>.log`, in a process group of its own, so that a
    /// Ctrl-C at the terminal reaches the bench alone, which then takes everything down in order.
    pub fn start(run: &Arc<Run>, name: &str, command: Command) -> Result<Self> {
        let log = run.log_path(name);
        Self::start_logging_to(run, name, command, log)
    }

    /// As [`Daemon::start`], with the log where the caller wants it.
    pub fn start_logging_to(run: &Arc<Run>, name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("failed to open log {}", log.display()))?;
        run.mark(&mut command);
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("failed to start {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log, run: Arc::clone(run) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The exit status, once there is one.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("failed to ask after {}", self.name))
    }

    /// An error with the end of the log, if the daemon is no longer there.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, tail(&self.log)),
        }
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("failed to kill {}", self.name))?;
        self.child.wait().with_context(|| format!("failed to reap {}", self.name))?;
        Ok(())
    }

    /// SIGTERM, and waits up to `grace` for the end.
    ///
    /// # Errors
    /// When the process is still there after `grace`; it is killed then.
    pub fn terminate(&mut self, grace: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.exited()? {
            return Ok(status);
        }
        let pid = pid_of(self.pid()).context("a child has a pid")?;
        kill_process(pid, Signal::TERM).with_context(|| format!("failed to signal {}", self.name))?;
        if !wait_gone(self.pid(), grace)? {
            self.kill9()?;
            bail!("{} did not end within {grace:?} of SIGTERM:\n{}", self.name, tail(&self.log));
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.run.is_kept() {
            return;
        }
        if let Err(error) = self.kill9() {
            eprintln!("harness: {error:#}");
        }
    }
}

/// The end of a log file, or why it cannot be read.
pub fn tail(log: &Path) -> String {
    match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned(),
        Err(error) => format!("(no log {}: {error})", log.display()),
    }
}

/// A command from its parts.
pub fn command<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs a short command to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started or fails; the message has the command line and its error output.
pub fn output(mut command: Command) -> Result<String> {
    let line = describe(&command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("failed to run {line}"))?;
    finish(&line, &out)
}

/// As [`output`], for commands that may take long: other tasks go on meanwhile, and a dropped future kills it, with all that it has
/// started.
pub async fn output_async(mut command: Command) -> Result<String> {
    let line = describe(&command);
    let descendants = Descendants::marked(&mut command);
    let out = tokio::process::Command::from(command).stdin(Stdio::null()).kill_on_drop(true).output().await;
    descendants.keep();
    finish(&line, &out.with_context(|| format!("failed to run {line}"))?)
}

/// The processes of a command that has not ended: cargo, say, leaves its compilers to themselves when it is killed. A process group
/// would be killed at once, but a Ctrl-C at the terminal would no longer reach it.
struct Descendants {
    mark: Option<String>,
}

impl Descendants {
    fn marked(command: &mut Command) -> Self {
        static COMMANDS: AtomicU64 = AtomicU64::new(0);
        // A name of its own: what one such command starts may have another's mark, too.
        let number = COMMANDS.fetch_add(1, Ordering::Relaxed);
        let name = format!("SKERRY_COMMAND_{}_{number}", std::process::id());
        command.env(&name, "");
        Self { mark: Some(format!("{name}=")) }
    }

    /// The command has ended: what it has left to go on goes on.
    fn keep(mut self) {
        self.mark = None;
    }
}

impl Drop for Descendants {
    fn drop(&mut self) {
        let Some(mark) = &self.mark else { return };
        if let Err(error) = kill_marked(mark) {
            eprintln!("harness: {error:#}");
        }
    }
}

fn finish(line: &str, out: &std::process::Output) -> Result<String> {
    if !out.status.success() {
        let err = String::from_utf8_lossy(&out.stderr);
        let text = String::from_utf8_lossy(&out.stdout);
        bail!("{line}: {}\n{}{}", out.status, text, err.trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        line.push(' ');
        // A join token is a secret; logs and failures must not carry it.
        line.push_str(if arg.starts_with("--token=") { "--token=…" } else { &arg });
    }
    line
}

/// SIGKILL by pid. A process that is gone already is no error.
pub fn kill9(pid: u32) -> Result<()> {
    let Some(pid) = pid_of(pid) else { bail!("{pid} is not a pid") };
    match kill_process(pid, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to kill {pid:?}")),
    }
}

/// SIGTERM by pid. A process that is gone already is no error.
pub fn terminate(pid: u32) -> Result<()> {
    let Some(pid) = pid_of(pid) else { bail!("{pid} is not a pid") };
    match kill_process(pid, Signal::TERM) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to signal {pid:?}")),
    }
}

/// SIGSTOP by pid: it is there, and does nothing any more; [`resume`] undoes it.
pub fn suspend(pid: u32) -> Result<()> {
    signal(pid, Signal::STOP)
}

/// SIGCONT by pid.
pub fn resume(pid: u32) -> Result<()> {
    signal(pid, Signal::CONT)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let Some(pid) = pid_of(pid) else { bail!("{pid} is not a pid") };
    kill_process(pid, signal).with_context(|| format!("failed to signal {pid:?}"))
}

/// Waits until a process (a child or not) has ended; `false` if it has not within `limit`.
pub fn wait_gone(pid: u32, limit: Duration) -> Result<bool> {
    let Some(id) = pid_of(pid) else { return Ok(true) };
    let fd = match pidfd_open(id, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error).with_context(|| format!("failed to watch process {pid}")),
    };
    let limit = Timespec::try_from(limit).context("the limit fits a timespec")?;
    let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).context("failed to poll")?;
    Ok(ready > 0)
}

/// True while a process with this pid is there and not a zombie.
pub fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};

    use anyhow::ensure;

    use super::*;
    use crate::{setup, wait};

    const SOON: Duration = Duration::from_mins(2);

    /// A crate whose build script waits for the end of a FIFO.
    fn waiting(dir: &Path) -> Result<(Command, std::path::PathBuf)> {
        let fifo = dir.join("fifo");
        output(super::command("mkfifo", [&fifo]))?;
        fs::create_dir(dir.join("src"))?;
        fs::write(dir.join("src/lib.rs"), "")?;
        fs::write(
            dir.join("Cargo.toml"),
            "[package]\nname = \"waiting\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n",
        )?;
        fs::write(
            dir.join("build.rs"),
            format!("fn main() {{ drop(std::fs::read({:?})); }}\n", fifo.display().to_string()),
        )?;
        let mut build = setup::cargo(&["build", "--offline"]);
        build.current_dir(dir).arg("--target-dir").arg(dir.join("target"));
        Ok((build, fifo))
    }

    #[tokio::test]
    async fn a_build_that_is_given_up_ends_with_all_that_it_has_started() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (build, fifo) = waiting(dir.path())?;
        let mut building = Box::pin(output_async(build));
        // It cannot be opened before somebody reads from it.
        let open = async || {
            let mut options = File::options();
            anyhow::Ok(options.write(true).custom_flags(nix::libc::O_NONBLOCK).open(&fifo)?)
        };
        let mut other_end = tokio::select! {
            built = &mut building => bail!("it has not waited: {built:?}"),
            other_end = wait::until("the build script", SOON, open) => other_end?,
        };
        other_end.write_all(b"It reads.")?;
        drop(building);
        let error = other_end.write_all(b"Nobody does.").err().context("the build script is still there")?;
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        Ok(())
    }

    #[tokio::test]
    async fn what_a_command_leaves_when_it_has_ended_goes_on() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let fifo = dir.path().join("fifo");
        output(super::command("mkfifo", [&fifo]))?;
        let script = r#"cat "$0" >/dev/null 2>&1 & echo $!"#;
        let left = command("sh", ["-c".as_ref(), script.as_ref(), fifo.as_os_str()]);
        let pid = output_async(left).await?.trim().parse()?;
        let other_end = File::options().write(true).open(&fifo)?;
        ensure!(is_running(pid), "it was killed");
        drop(other_end);
        ensure!(wait_gone(pid, SOON)?, "it reads what nobody writes");
        Ok(())
    }
}
