//! Devices to try things out with, each a process of its own that speaks the real protocol.

mod modbus;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    version,
    about = "Devices that are not there",
    after_help = "Examples:
  simulator modbus --listen 127.0.0.1:1502 --set 1:holding:0=215,1
  simulator modbus --pty /tmp/bus --baud 9600 --set 1:input:0=215"
)]
struct Args {
    #[command(subcommand)]
    device: Device,
}

#[derive(Subcommand)]
enum Device {
    /// Modbus slaves, at TCP or at a pseudo-terminal that is a serial line.
    Modbus(modbus::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Args { device: Device::Modbus(args) } = Args::parse();
    match modbus::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulator: {error:#}");
            ExitCode::FAILURE
        }
    }
}
