//! `cargo xtask fuzz`: the targets of tests/fuzz under libFuzzer, guided by what they reach. Only the packages of the workspace
//! are compiled anew for it; what the runs find worth keeping stays in `target/fuzz`, from where the next run goes on.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    process::output_async,
    progress::during,
    setup::{self, cargo, source_dir},
};
use tokio::task::JoinSet;

use crate::say;

/// What one input may take.
const INPUT_SECONDS: u32 = 20;
/// What a target may take of memory: nothing here is larger than a few frames.
const MEMORY_MB: u32 = 1024;
/// No input of any target is longer.
const LONGEST: usize = 8192;
/// To make the input of a crash shorter.
const SHORTEN: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One target; all of them otherwise
    target: Option<String>,
    /// How long each runs
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Only this input, as when it made the target panic
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let program = build().await?;
    if let Some(input) = &args.input {
        let name = args.target.as_deref().context("--input is an input of a target")?;
        let status = fuzzer(&program, name)?.arg(input).status().context("failed to run the fuzzer")?;
        ensure!(status.success(), "{name} fails on {}: {status}", input.display());
        return say(&format!("fuzz: {name} takes {}", input.display()));
    }
    let mut waiting = match args.target {
        Some(name) => vec![name],
        None => names(&program)?,
    };
    waiting.reverse();
    let mut running = JoinSet::new();
    let mut failures = Vec::new();
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    loop {
        while running.len() < at_once
            && let Some(name) = waiting.pop()
        {
            let (program, seconds) = (program.clone(), args.seconds);
            running.spawn_blocking(move || explore(&program, &name, seconds));
        }
        let Some(ended) = running.join_next().await else { break };
        match ended? {
            Ok(line) => say(&line)?,
            Err(error) => {
                say(&format!("failed: {error:#}"))?;
                failures.push(error);
            }
        }
    }
    match failures.len() {
        0 => say("fuzz: nothing found"),
        count => bail!("{count} targets failed"),
    }
}

/// The program with all targets.
async fn build() -> Result<PathBuf> {
    setup::ensure_fuzzing().await?;
    let mut build = cargo(&[
        "build",
        "--message-format=json-render-diagnostics",
        "-p",
        "fuzz",
        "--bin",
        "fuzz",
        "--features=coverage",
    ]);
    build.env("RUSTC_WORKSPACE_WRAPPER", source_dir().join("tests/fuzz/instrumented-rustc"));
    let messages = during("building the fuzz targets", output_async(build)).await?;
    let built = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message.pointer("/target/name")? == "fuzz")
            .then(|| message.get("executable")?.as_str().map(PathBuf::from))?
    });
    built.context("cargo built no fuzz targets")
}

/// Of all targets.
fn names(program: &Path) -> Result<Vec<String>> {
    let listed = Command::new(program).env("SKERRY_FUZZ_TARGET", "list").output();
    let listed = listed.with_context(|| format!("failed to run {}", program.display()))?;
    let names: Vec<_> = String::from_utf8(listed.stdout)?.lines().map(str::to_owned).collect();
    ensure!(!names.is_empty(), "{} lists no target", program.display());
    Ok(names)
}

/// Where a target's finds are kept.
fn place(name: &str) -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| source_dir().join("target"), PathBuf::from);
    let place = target.join("fuzz").join(name);
    fs::create_dir_all(&place).with_context(|| format!("failed to make {}", place.display()))?;
    Ok(place)
}

fn fuzzer(program: &Path, name: &str) -> Result<Command> {
    let mut fuzzer = Command::new(program);
    fuzzer
        .env("SKERRY_FUZZ_TARGET", name)
        .env("SKERRY_FUZZ_SEEDS", place(name)?)
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MB}"))
        .arg(format!("-max_len={LONGEST}"));
    Ok(fuzzer)
}

/// Runs a target for a while, from what is kept of it on; the answer is a line about it.
fn explore(program: &Path, name: &str, seconds: u32) -> Result<String> {
    let place = place(name)?;
    let log = place.with_extension("log");
    let crashes = place.with_extension("crash");
    fs::create_dir_all(&crashes)?;
    let mut fuzzer = fuzzer(program, name)?;
    let kept = source_dir().join("tests/fuzz/corpus").join(name);
    fuzzer
        .args([format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()])
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .arg(&place);
    if kept.is_dir() {
        fuzzer.arg(kept);
    }
    let status = logged(&mut fuzzer, &log)?;
    let text = fs::read_to_string(&log).unwrap_or_default();
    let figure = |what: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(what));
        line.map(|rest| rest.trim_start_matches(':').trim().to_owned()).unwrap_or_default()
    };
    if status.success() {
        return Ok(format!(
            "{name}: {} inputs, {} of them reached something new, {} MB",
            figure("stat::number_of_executed_units"),
            figure("stat::new_units_added"),
            figure("stat::peak_rss_mb")
        ));
    }
    let input =
        text.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()));
    let Some(input) = input else { bail!("{name}: {status}; its log is {}", log.display()) };
    let input = shorten(program, name, Path::new(input))?;
    bail!(
        "{name}: {status}; its input is {input}\n  its log is {log}\n  again: cargo xtask fuzz {name} --input {input}\n  \
         once it is mended, the input belongs into tests/fuzz/corpus/{name}",
        input = input.display(),
        log = log.display()
    );
}

/// A shorter input that fails as well, if one is found soon.
fn shorten(program: &Path, name: &str, input: &Path) -> Result<PathBuf> {
    let short = input.with_extension("short");
    let mut fuzzer = fuzzer(program, name)?;
    fuzzer
        .args(["-minimize_crash=1".to_owned(), format!("-max_total_time={}", SHORTEN.as_secs())])
        .arg(format!("-exact_artifact_path={}", short.display()))
        .arg(input);
    logged(&mut fuzzer, &input.with_extension("log"))?;
    Ok(if short.is_file() { short } else { input.to_owned() })
}

fn logged(command: &mut Command, log: &Path) -> Result<ExitStatus> {
    let file = File::create(log).with_context(|| format!("failed to make {}", log.display()))?;
    let status = command.stdout(file.try_clone()?).stderr(file).status();
    status.with_context(|| format!("failed to run {}", command.get_program().display()))
}
