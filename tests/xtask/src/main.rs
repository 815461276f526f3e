//! `cargo xtask`: what people and CI run. One subcommand a job; `test` and `demo` are the README's two.

mod bench;
mod checks;
mod demo;
mod fuzz;
mod image;

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Builds, tests and shows the project")]
struct Cli {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Install and build what the machine lacks: Debian packages, upstream's control plane, images, the product
    Setup,
    /// A real cluster, an edge site, a workload; then the line is cut and restored
    Demo {
        /// Leave everything up at the end, until `cargo xtask down`
        #[arg(long)]
        keep: bool,
    },
    /// Every test of the project
    Test {
        /// Handed on to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The decoders with bad input, guided by what it reaches (libFuzzer; needs a C++ compiler)
    Fuzz(fuzz::Args),
    /// What it costs and how fast it is: the programs as they ship, each figure beside its goal
    Bench(bench::Args),
    /// Take away what `--keep` or a killed run has left
    Down,
    /// The image of cloudcore that `keadm init` deploys, as an OCI archive of the release build
    Image,
    /// Format the sources (`--check`: only say whether they are)
    Fmt {
        #[arg(long)]
        check: bool,
    },
    /// clippy with warnings as errors; no second TLS provider
    Lint,
    /// The API documentation, with warnings as errors
    Doc,
    /// Licences, advisories and sources of all dependencies
    Deny,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().job).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(job: Job) -> Result<()> {
    match job {
        Job::Setup => checks::setup().await.map(drop),
        Job::Demo { keep } => demo::run(keep).await,
        Job::Test { args } => checks::test(&args).await,
        Job::Fuzz(args) => fuzz::run(args).await,
        Job::Bench(args) => bench::run(&args).await,
        Job::Down => {
            for dir in harness::run::down()? {
                say(&format!("taken down: {}", dir.display()))?;
            }
            Ok(())
        }
        Job::Image => image::run().await,
        Job::Fmt { check } => checks::fmt(check),
        Job::Lint => checks::lint(),
        Job::Doc => checks::doc(),
        Job::Deny => checks::deny().await,
    }
}

/// One line for the person who called.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}
