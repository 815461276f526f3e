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
    process::{RunFiles, STOP_GRACE, State, end},
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
    let Some(_lock) = files.lock()? else {
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
        if let Some(pid) = child.as_ref().and_then(Child::id) {
            files.write_pid(pid)?;
        }
        files.write_state(&state)?;
        if let Some(child) = &mut child {
            let ended = loop {
                tokio::select! {
                    // wait() keeps the status when another arm wins; the others only wake.
                    ended = child.wait() => break Some(ended.context("failed to wait for the daemon")?),
                    _ = terminate.recv() => break None,
                    _ = log_check.tick() => bound_log(&args.log_file)?,
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
        files.write_state(&state)?;
        tokio::select! {
            () = sleep(backoff.next_delay()) => {}
            _ = terminate.recv() => return files.remove(),
        }
    }
}

fn spawn(command: &[std::path::PathBuf]) -> Result<Child> {
    let (program, arguments) = command.split_first().context("no command was given")?;
    // Its output goes to the log that is this process's own.
    Command::new(program)
        .args(arguments)
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
fn bound_log(path: &Path) -> Result<()> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    if metadata.len() > MAX_LOG {
        let context = || format!("failed to rotate {}", path.display());
        fs::copy(path, path.with_extension("log.1")).with_context(context)?;
        File::options().write(true).open(path).and_then(|log| log.set_len(0)).with_context(context)?;
    }
    Ok(())
}

fn say(text: &str) {
    output::note(format_args!("{} supervisor: {text}", jiff::Timestamp::now()));
}
