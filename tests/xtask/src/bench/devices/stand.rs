//! What a part plays in: a run's directory, slaves, and a node with no cloud that drives them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    Run,
    process::{Daemon, command},
    setup,
    simulator::ModbusSlaves,
    wait,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::bench::example;

const SOON: Duration = Duration::from_secs(30);
/// From the first request until the rate is taken.
const SETTLE: Duration = Duration::from_secs(2);
/// As the supervisor starts edgecore.
const ALLOCATOR: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

#[derive(Clone)]
pub(super) struct Programs {
    simulator: PathBuf,
    /// `edgecore/examples/devices`.
    example: PathBuf,
}

impl Programs {
    pub(super) async fn build() -> Result<Self> {
        Ok(Self {
            simulator: setup::build_simulator_release().await?,
            example: example::build("devices").await?,
        })
    }
}

pub(super) struct Stand {
    programs: Programs,
    run: Arc<Run>,
}

impl Stand {
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        Ok(Self { programs: programs.clone(), run: Run::start()? })
    }

    /// Has the logs printed, and the directory left there, if `result` is a failure.
    pub(super) fn end<T>(self, result: Result<T>) -> Result<T> {
        self.run.end(result)
    }

    pub(super) fn run(&self) -> &Arc<Run> {
        &self.run
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.run.dir().join(name)
    }

    /// The example, which does this.
    pub(super) fn example(&self, args: &[String]) -> Command {
        command(&self.programs.example, args)
    }

    pub(super) fn simulator(&self) -> &Path {
        &self.programs.simulator
    }

    pub(super) async fn slaves(&self, name: &str, set: &[String]) -> Result<ModbusSlaves> {
        self.slaves_of(command(self.simulator(), ["modbus", "--listen=127.0.0.1:0"]), name, set).await
    }

    /// Those of a simulator with what it is to answer at.
    pub(super) async fn slaves_of(
        &self,
        simulator: Command,
        name: &str,
        set: &[String],
    ) -> Result<ModbusSlaves> {
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        ModbusSlaves::start(&self.run, simulator, name, &set).await
    }

    /// A node with these devices, and its broker at this address. It runs from a copy of its program: what two processes have mapped
    /// of one file would count half in each one's PSS.
    pub(super) fn node(&self, name: &str, broker: SocketAddr, manifests: &[Value]) -> Result<Daemon> {
        let (program, file) = (self.path(&format!("{name}.bin")), self.path(&format!("{name}.json")));
        fs::copy(&self.programs.example, &program)?;
        fs::write(&file, serde_json::to_string(manifests)?)?;
        let (dir, file) = (self.path(name).display().to_string(), file.display().to_string());
        let mut node = command(program, ["node".to_owned(), dir, broker.to_string(), file]);
        node.envs(ALLOCATOR);
        Daemon::start(&self.run, name, node)
    }
}

/// One that nobody has now.
pub(super) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

pub(super) async fn until_asked(slaves: &ModbusSlaves, at_least: u64) -> Result<()> {
    wait::until("the slaves being asked", SOON, async || {
        let requests = slaves.requests().await?;
        ensure!(requests >= at_least, "{requests} requests");
        anyhow::Ok(())
    })
    .await
}

/// Requests a second that the slaves see of `asking`, once it has begun.
pub(super) async fn rate(slaves: &ModbusSlaves, asking: &mut Daemon, window: Duration) -> Result<f64> {
    until_asked(slaves, slaves.requests().await? + 1).await?;
    sleep(SETTLE).await;
    let (before, begun) = (slaves.requests().await?, Instant::now());
    sleep(window).await;
    let requests = slaves.requests().await? - before;
    let rate = requests as f64 / begun.elapsed().as_secs_f64();
    asking.check_alive()?;
    Ok(rate)
}

/// One request.
#[derive(Deserialize)]
pub(super) struct Asked {
    /// Microseconds.
    pub(super) at: u64,
    pub(super) unit: u8,
    pub(super) address: u16,
    pub(super) count: u16,
}

/// What was asked since the last call.
pub(super) async fn asked(slaves: &ModbusSlaves) -> Result<Vec<Asked>> {
    let asked = slaves.asked().await?.into_iter();
    Ok(asked.map(serde_json::from_value).collect::<Result<_, _>>()?)
}
