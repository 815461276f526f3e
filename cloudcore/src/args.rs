//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Connects edge nodes to a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(name = "cloudcore", version)]
pub struct Args {
    /// The configuration file.
    #[arg(long, default_value = "/etc/kubeedge/config/cloudcore.yaml", value_name = "FILE")]
    pub config: PathBuf,
    /// Print the configuration with every default, and exit.
    #[arg(long)]
    pub defaultconfig: bool,
}
