//! The checks, each a cargo command in the source tree.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail};
use harness::{
    Assets,
    process::output_async,
    progress::during,
    setup::{self, cache_dir, cargo, source_dir},
};
use tokio::time::Instant;

use crate::say;

/// The version that CI and people share; a newer one may know advisories in another format.
const CARGO_DENY: &str = "0.20.2";

pub(crate) async fn setup() -> Result<Assets> {
    let start = Instant::now();
    let assets = setup::ensure().await?;
    say(&format!("setup: all there ({:.1} s)", start.elapsed().as_secs_f32()))?;
    Ok(assets)
}

/// Every test. The product is built once, here; the tests use what was built.
pub(crate) async fn test(args: &[String]) -> Result<()> {
    let assets = setup().await?;
    let start = Instant::now();
    // All of them, whatever failed before: a run on a new machine is too dear to tell one failure only.
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    tests.args(args).env("SKERRY_BIN_DIR", assets.product()?);
    let since = SystemTime::now();
    let passed = passes(tests);
    // At the very end, below all logs, where whoever looks at the output looks first.
    for (dir, why) in harness::run::failures(since)? {
        say(&format!("failed: {why}\n  its logs: {}", dir.join("logs").display()))?;
    }
    passed?;
    say(&format!("test: all passed ({:.0} s)", start.elapsed().as_secs_f32()))
}

pub(crate) fn fmt(check: bool) -> Result<()> {
    let mut fmt = cargo(&["fmt", "--all"]);
    if check {
        fmt.arg("--check");
    }
    passes(fmt)
}

pub(crate) fn lint() -> Result<()> {
    passes(cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // With two TLS providers compiled in, the first connection of a process panics.
    let tree =
        cargo(&["tree", "--workspace", "--target", "all", "--edges", "normal,build,dev", "--prefix", "none"])
            .output()
            .context("failed to run cargo tree")?;
    if !tree.status.success() {
        bail!("cargo tree: {}", String::from_utf8_lossy(&tree.stderr));
    }
    if String::from_utf8_lossy(&tree.stdout).lines().any(|line| line.starts_with("aws-lc-rs ")) {
        bail!("aws-lc-rs is compiled in beside ring; `cargo tree -i aws-lc-rs` shows who brings it");
    }
    Ok(())
}

pub(crate) fn doc() -> Result<()> {
    let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-Dwarnings");
    passes(doc)
}

pub(crate) async fn deny() -> Result<()> {
    let program = cargo_deny().await?;
    let run = |args: &[&str]| {
        let mut deny = Command::new(&program);
        deny.args(args).current_dir(source_dir());
        deny
    };
    if let Err(error) = during("fetching the advisory database", output_async(run(&["fetch", "db"]))).await {
        // It lies on a host that an offline machine or a closed network does not reach. The rest can be checked.
        say(&format!("deny: ADVISORIES ARE NOT CHECKED, their database cannot be fetched:\n{error:#}"))?;
        return passes(run(&["check", "bans", "licenses", "sources"]));
    }
    passes(run(&["check"]))
}

/// cargo-deny from PATH or from the cache; installed into the cache when it is in neither.
async fn cargo_deny() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    if let Some(found) = env::split_paths(&path).map(|dir| dir.join("cargo-deny")).find(|file| file.is_file())
    {
        return Ok(found);
    }
    let root = cache_dir()?.join(format!("cargo-deny-{CARGO_DENY}"));
    let program = root.join("bin/cargo-deny");
    if !program.is_file() {
        let mut install = cargo(&["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--root"]);
        // Not among the product's artefacts, and not built with its profile.
        install.arg(&root).current_dir("/").env("CARGO_TARGET_DIR", root.join("build"));
        during("building cargo-deny, once: several minutes", output_async(install)).await?;
        std::fs::remove_dir_all(root.join("build")).context("failed to remove the build of cargo-deny")?;
    }
    Ok(program)
}

/// Runs a command with our own outputs.
fn passes(mut command: Command) -> Result<()> {
    let name =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let line = format!("{name} {}", args.join(" "));
    let status = command.status().with_context(|| format!("failed to run {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}
