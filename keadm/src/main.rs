//! keadm sets the cloud side up, lets edge nodes join, and takes both away again.
//!
//! What a command does goes to standard error as it happens; what it is asked for (a token, a version, a plan) goes to
//! standard output. Nothing is downloaded and no shell is run.

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod commands;
mod fetch;
mod init_system;
mod kubernetes;
mod output;
mod preflight;
mod process;
mod settings;
mod time;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    runtime::tls::install_provider();
    // One thread: keadm waits most of the time, and as edgecore's parent it should be small.
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        built.map_err(anyhow::Error::from).and_then(|executor| executor.block_on(commands::run(cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
