//! The program `cloudcore`: parse, start, exit code.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use cloudcore::{app::App, args::Args, config::Config};
use crds::componentconfig::cloudcore::CloudCoreConfig;
use runtime::{signals::Signals, supervisor::Outcome, telemetry, tls};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// glibc's keeps what thousands of handshakes at once have taken, in pieces between what lives on.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Turns of tasks between looks at sockets and timers: of the usual 61, each a millisecond where many have much to do, others hear nothing
/// for a good part of a second.
const LOOK_AT_SOCKETS: u32 = 8;

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cloudcore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.defaultconfig {
        let text =
            serde_saphyr::to_string(&CloudCoreConfig::default()).context("failed to write the defaults")?;
        #[expect(clippy::print_stdout, reason = "this is what was asked for")]
        {
            print!("{text}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    tls::install_provider();
    let raw = runtime::config::load(&args.config, CloudCoreConfig::validate)?;
    let config = Config::from(raw);
    let log_level = telemetry::init(&config.log_level, config.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(LOOK_AT_SOCKETS)
        .build()
        .context("failed to start the asynchronous runtime")?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = Signals::hook().context("failed to hook signals")?;
        let app = App::build(config, log_level, &stop).await?;
        info!(version = env!("CARGO_PKG_VERSION"), address = %app.address(), "cloudcore started");
        tokio::select! {
            // The second signal means: leave at once.
            outcome = app.run() => Ok(outcome),
            () = signals.run(stop) => Ok(Outcome::Stopped),
        }
    });
    runtime.shutdown_background();
    match outcome {
        Ok(Outcome::Stopped) => Ok(ExitCode::SUCCESS),
        Ok(outcome) => {
            error!(%outcome, "cloudcore ended");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error),
    }
}
