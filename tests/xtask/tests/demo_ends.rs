//! A demo that is ended early, at whatever moment, leaves nothing behind, and the next one works. One that is kept can be
//! played with, stands in no other's way, and is taken down by `cargo xtask down`.

use std::{
    env,
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{ExitStatus, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{process::Command, time};

/// A demo takes less than a minute here.
const WHOLE: Duration = Duration::from_mins(5);
/// For taking down what is up.
const END: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_demo_that_is_ended_at_any_moment_leaves_nothing_and_the_next_one_works() -> Result<()> {
    let seed = match env::var("SKERRY_SEED") {
        Ok(seed) => seed.parse().context("SKERRY_SEED is no number")?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos().try_into()?,
    };
    eprintln!("demo_ends: SKERRY_SEED={seed}");
    // Short: unix sockets lie below it.
    let base = tempfile::Builder::new().prefix("d").tempdir_in("/var/tmp")?;
    let told = story(base.path(), seed).await;
    if told.is_err() {
        let kept = base.keep();
        eprintln!("demo_ends: what the demos said is in {}", kept.display());
    }
    told
}

async fn story(base: &Path, seed: u64) -> Result<()> {
    // Early is where the control plane starts, late is where the line is cut.
    let early = Duration::from_millis(seed % 8_000);
    let late = Duration::from_millis(8_000 + seed / 8_000 % 30_000);

    let mut interfaces = Vec::new();
    let interrupted = demo(base, "interrupted", Some((early, Signal::SIGINT)), &mut interfaces).await?;
    // Before it listens for signals it has made nothing, and ends as any program does.
    let by_signal = interrupted.signal() == Some(Signal::SIGINT as i32);
    ensure!(interrupted.code() == Some(1) || by_signal, "after Ctrl-C at {early:?}: {interrupted}");
    nothing_left(base, &interfaces)?;

    let killed = demo(base, "killed", Some((late, Signal::SIGKILL)), &mut interfaces).await?;
    ensure!(killed.signal() == Some(Signal::SIGKILL as i32), "after a kill at {late:?}: {killed}");

    // It clears away what the one before had no chance to.
    let kept = demo(base, "kept", None, &mut interfaces).await?;
    ensure!(kept.success(), "{kept}");
    interfaces.extend(made(base)?);
    let nodes = kubectl(&fs::read_to_string(base.join("kept.log"))?).await?;
    ensure!(nodes.lines().any(|line| line.starts_with("edge-1 ")), "kubectl shows\n{nodes}");

    let whole = demo(base, "whole", None, &mut interfaces).await?;
    ensure!(whole.success(), "{whole}");
    let said = fs::read_to_string(base.join("whole.log"))?;
    ensure!(said.contains("all of it in"), "{said}");

    let mut down = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let down = down.arg("down").env("SKERRY_RUN", base).output().await?;
    ensure!(down.status.success(), "{down:?}");
    nothing_left(base, &interfaces)
}

/// What `kubectl get nodes` says, called as a kept demo says at its end.
async fn kubectl(said: &str) -> Result<String> {
    let after = |what: &str| said.lines().find_map(|line| line.strip_prefix(what)).context("it is not said");
    let shown = Command::new(after("alias kubectl=")?)
        .env("KUBECONFIG", after("export KUBECONFIG=")?)
        .args(["get", "nodes"])
        .output()
        .await?;
    ensure!(shown.status.success(), "{shown:?}");
    Ok(String::from_utf8(shown.stdout)?)
}

/// Runs it, to its end or until it is ended. `interfaces` learns what it has made on the host.
async fn demo(
    base: &Path,
    name: &str,
    end: Option<(Duration, Signal)>,
    interfaces: &mut Vec<String>,
) -> Result<ExitStatus> {
    let log = File::create(base.join(format!("{name}.log")))?;
    let mut demo = Command::new(env!("CARGO_BIN_EXE_xtask"));
    demo.arg("demo").env("SKERRY_RUN", base).stdin(Stdio::null());
    if name == "kept" {
        demo.arg("--keep");
    }
    let mut demo = demo.stdout(log.try_clone()?).stderr(log).kill_on_drop(true).spawn()?;
    let pid = Pid::from_raw(demo.id().context("it is gone at once")?.try_into()?);
    let mut limit = WHOLE;
    if let Some((moment, signal)) = end {
        if let Ok(ended) = time::timeout(moment, demo.wait()).await {
            bail!("the demo ended before it was ended, at {moment:?}: {}", ended?);
        }
        interfaces.extend(made(base)?);
        kill(pid, signal)?;
        limit = END;
    }
    let ended = time::timeout(limit, demo.wait()).await;
    let ended = ended.with_context(|| format!("the demo was still there after {limit:?}"))?;
    Ok(ended?)
}

/// The host's ends of the lines, as the runs have written them down.
fn made(base: &Path) -> Result<Vec<String>> {
    let mut interfaces = Vec::new();
    for entry in fs::read_dir(base)? {
        let Ok(state) = fs::read_to_string(entry?.path().join("state")) else { continue };
        for line in state.lines() {
            let line: Value = serde_json::from_str(line)?;
            interfaces.extend(line["site"]["host_interface"].as_str().map(str::to_owned));
        }
    }
    Ok(interfaces)
}

fn nothing_left(base: &Path, interfaces: &[String]) -> Result<()> {
    for entry in fs::read_dir(base)? {
        let name = entry?.file_name();
        ensure!(name.to_string_lossy().ends_with(".log"), "{} is left", name.display());
    }
    for interface in interfaces {
        ensure!(!Path::new("/sys/class/net").join(interface).exists(), "interface {interface} is left");
    }
    let mark = base.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        for file in ["environ", "mountinfo", "cmdline"] {
            // A process that ends meanwhile has nothing to read.
            let text = fs::read(entry.path().join(file)).unwrap_or_default();
            let marked = text.windows(mark.len()).any(|window| window == mark);
            ensure!(
                !marked,
                "process {} is left: its {file} names {}",
                entry.file_name().display(),
                base.display()
            );
        }
    }
    Ok(())
}
