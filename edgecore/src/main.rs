//! The edgecore binary: parse, start, exit code.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// Runs the pods of an edge node, with or without the cloud in reach.
#[derive(Parser)]
#[command(
    name = "edgecore",
    version,
    after_help = "Examples:\n  edgecore --config /etc/kubeedge/config/edgecore.yaml\n  edgecore --defaultconfig"
)]
struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/kubeedge/config/edgecore.yaml")]
    config: PathBuf,
    /// Prints the configuration with every default, and exits.
    #[arg(long)]
    defaultconfig: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = if args.defaultconfig {
        edgecore::app::print_default_config()
    } else {
        edgecore::app::run(&args.config)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgecore: {error:#}");
            ExitCode::FAILURE
        }
    }
}
