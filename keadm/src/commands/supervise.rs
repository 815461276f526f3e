//! `keadm supervise`: the parent of a daemon where there is no systemd.

use std::{
    fs::{self, File},
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::Signal,
    unistd::{Pid, getpid, setsid},
};
use runtime::backoff::Backoff;
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::{Instant, interval, sleep, timeout},
};

use crate::{
    cli::Supervise,
    output,
    process::{ENVIRONMENT, RunFiles, STOP_GRACE, State, end},
};

/// The first pause is short: the pods run on, but nobody restarts what crashes.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A daemon that ran for so long starts the pauses over.
const STABLE: Duration = Duration::from_mins(1);
/// The log, and one older of the same size, are all that is kept.
const MAX_LOG: u64 = 16 << 20;
const LOG_CHECK: Duration = Duration::from_mins(1);

pub(crate) async fn run(args: Supervise) -> Result<()> {
    // Out of the session of whoever ran keadm, so that closing its terminal ends nothing. Refused only to the leader of
    // a process group, who has no terminal to lose.
    if let Err(error) = setsid() {
        say(&format!("stays in the session of its parent: {error}"));
    }
    let mut terminate = signal(SignalKind::terminate()).context("failed to hook SIGTERM")?;
    let files = RunFiles::new(&args.name, &args.run_dir);
    let Some(_lock) = files.lock_for_life().await? else {
        anyhow::bail!("{} is supervised already", args.name);
    };
    let argument = args.command.last().and_then(|last| last.to_str()).unwrap_or_default();
    if let Some(orphan) = files.orphan(argument) {
        say(&format!("{} (process {orphan}) has lost its supervisor; stopping it", args.name));
        end(orphan, STOP_GRACE).await?;
    }
    let mut state = State { pid: getpid().as_raw(), fingerprint: args.fingerprint, restarts: 0 };
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut log_check = interval(LOG_CHECK);
    loop {
        let started = Instant::now();
        let mut child = match spawn(&args.command) {
            Ok(child) => Some(child),
            Err(error) => {
                say(&runtime::chain(error.as_ref()).to_string());
                None
            }
        };
        let pid = child.as_ref().and_then(Child::id);
        let mut recorded = record(&files, &state, pid);
        if let Some(child) = &mut child {
            let ended = loop {
                tokio::select! {
                    // wait() keeps the status when another arm wins; the others only wake.
                    ended = child.wait() => break Some(ended.context("failed to wait for the daemon")?),
                    _ = terminate.recv() => break None,
                    _ = log_check.tick() => {
                        attempt(bound_log(&args.log_file, MAX_LOG));
                        recorded = recorded || record(&files, &state, pid);
                    }
                }
            };
            if let Some(status) = ended {
                say(&format!("{} ended ({})", args.name, describe(status)));
            } else {
                stop(child).await?;
                return files.remove();
            }
        }
        if started.elapsed() >= STABLE {
            backoff.reset();
        }
        state.restarts = state.restarts.saturating_add(1);
        attempt(files.write_state(&state));
        tokio::select! {
            () = sleep(backoff.next_delay()) => {}
            _ = terminate.recv() => return files.remove(),
        }
    }
}

/// Whether all of it was written.
fn record(files: &RunFiles, state: &State, pid: Option<u32>) -> bool {
    let pid = pid.map_or(Ok(()), |pid| files.write_pid(pid));
    attempt(pid.and_then(|()| files.write_state(state)))
}

/// Whether it worked; what did not is said. The daemon needs its supervisor on a full disk, too.
fn attempt(result: Result<()>) -> bool {
    result.map_err(|error| say(&runtime::chain(error.as_ref()).to_string())).is_ok()
}

fn spawn(command: &[std::path::PathBuf]) -> Result<Child> {
    let (program, arguments) = command.split_first().context("no command was given")?;
    // Its output goes to the log that is this process's own.
    Command::new(program)
        .args(arguments)
        .envs(ENVIRONMENT)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start {}", program.display()))
}

async fn stop(child: &mut Child) -> Result<()> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        crate::process::signal(Pid::from_raw(pid), Signal::SIGTERM)?;
    }
    if timeout(STOP_GRACE, child.wait()).await.is_err() {
        say("the daemon did not end in time; killing it");
        child.kill().await.context("failed to kill the daemon")?;
    }
    Ok(())
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The daemon appends to the open file, so it is copied and cut, not renamed. Lines written in between are lost.
fn bound_log(path: &Path, max: u64) -> Result<()> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    if metadata.len() <= max {
        return Ok(());
    }
    // It is cut even if there is no room for the copy: room is what the cut makes.
    let older = path.with_extension("log.1");
    let copied = fs::copy(path, &older);
    let cut = File::options().write(true).open(path).and_then(|log| log.set_len(0));
    cut.with_context(|| format!("failed to cut {}", path.display()))?;
    copied.map(drop).with_context(|| format!("failed to keep {} as {}", path.display(), older.display()))
}

fn say(text: &str) {
    output::note(format_args!("{} supervisor: {text}", jiff::Timestamp::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_cut_even_if_it_cannot_be_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (log, older) = (dir.path().join("edgecore.log"), dir.path().join("edgecore.log.1"));
        fs::write(&log, "four").unwrap();
        bound_log(&log, 4).unwrap();
        assert!(!older.exists());
        bound_log(&log, 3).unwrap();
        assert_eq!((fs::read(&log).unwrap().len(), fs::read(&older).unwrap().len()), (0, 4));
        fs::remove_file(&older).unwrap();
        fs::create_dir(&older).unwrap();
        fs::write(&log, "four").unwrap();
        let error = bound_log(&log, 3).unwrap_err().to_string();
        assert!(error.starts_with("failed to keep "), "{error}");
        assert_eq!(fs::read(&log).unwrap(), b"");
    }

    #[test]
    fn what_cannot_be_written_now_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let files = RunFiles::new("edgecore", &dir.path().join("run"));
        let state = State { pid: 1, fingerprint: "abc".to_owned(), restarts: 0 };
        assert!(!record(&files, &state, Some(7)));
        fs::create_dir(dir.path().join("run")).unwrap();
        assert!(record(&files, &state, Some(7)));
        assert_eq!(fs::read_to_string(files.pid()).unwrap(), "7\n");
    }
}
