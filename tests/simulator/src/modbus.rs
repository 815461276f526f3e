//! Modbus slaves that answer as real ones do, and misbehave as they are told.
//!
//! Requests are taken as the specifications say: Application Protocol V1.1b3 for the functions, Messaging on TCP/IP V1.0b and Modbus
//! over Serial Line V1.02 for the frames. What is told over the control socket is JSON, a line each, in [`control`].

mod control;
mod faults;
mod frames;
mod slaves;
mod speed;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result, bail};
use tokio::{net::TcpListener, task::JoinSet};

use self::{
    slaves::{Set, Slaves},
    speed::Speed,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Answer Modbus TCP here; port 0 for any. The address is printed.
    #[arg(long, value_name = "IP:PORT", required_unless_present = "pty")]
    listen: Option<SocketAddr>,
    /// Answer Modbus RTU at a pseudo-terminal, to which this symbolic link leads.
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    pty: Option<PathBuf>,
    #[command(flatten)]
    speed: Speed,
    /// Registers from an address on: UNIT:coil|discrete|input|holding:ADDRESS=VALUE[,VALUE…]
    #[arg(long, value_name = "REGISTERS")]
    set: Vec<Set>,
    /// Where the slaves can be told what to hold and how to misbehave.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let Args { listen, pty, speed, set, control } = args;
    let slaves = Arc::new(Slaves::default());
    for set in set {
        slaves.set(&set)?;
    }
    let mut tasks = JoinSet::new();
    if let Some(path) = control {
        tasks.spawn(control::serve(control::bind(&path)?, Arc::clone(&slaves)));
    }
    if let Some(address) = listen {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("failed to listen on {address}"))?;
        say(&format!("listening on {}", listener.local_addr()?));
        tasks.spawn(frames::serve_tcp(listener, slaves));
    } else if let Some(path) = pty {
        let line = frames::open_pty(&path)?;
        say(&format!("listening on {}", path.display()));
        tasks.spawn(frames::serve_rtu(line, speed, slaves));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    bail!("there is nothing to serve")
}

#[expect(clippy::print_stdout, reason = "who started it waits for this line")]
fn say(line: &str) {
    println!("{line}");
}
