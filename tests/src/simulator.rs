//! Devices that are not there: processes of the package `simulator`, and what they are told.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

use crate::{
    process::{Daemon, command},
    run::Run,
    wait,
};

const STARTED: Duration = Duration::from_secs(10);
const ANSWERED: Duration = Duration::from_secs(5);

/// Modbus slaves of one bus.
pub struct ModbusSlaves {
    daemon: Daemon,
    control: PathBuf,
    address: String,
}

impl ModbusSlaves {
    /// At a port of the loopback interface. `set` are registers, as the simulator's `--set` has them.
    pub async fn tcp(run: &Arc<Run>, program: &Path, name: &str, set: &[&str]) -> Result<Self> {
        Self::start(run, command(program, ["modbus", "--listen=127.0.0.1:0"]), name, set).await
    }

    /// At a pseudo-terminal, as a serial line of this speed.
    pub async fn serial(run: &Arc<Run>, program: &Path, name: &str, baud: u32, set: &[&str]) -> Result<Self> {
        let line = run.dir().join(format!("{name}.tty"));
        let args = ["modbus".to_owned(), format!("--pty={}", line.display()), format!("--baud={baud}")];
        Self::start(run, command(program, args), name, set).await
    }

    /// `simulator` is one with what it is to answer at.
    pub async fn start(run: &Arc<Run>, mut simulator: Command, name: &str, set: &[&str]) -> Result<Self> {
        let control = run.dir().join(format!("{name}.control"));
        simulator.arg("--control").arg(&control).args(set.iter().map(|set| format!("--set={set}")));
        let mut daemon = Daemon::start(run, name, simulator)?;
        let address = wait::until(&format!("{name} is there"), STARTED, async || {
            daemon.check_alive()?;
            let log = fs::read_to_string(daemon.log())?;
            let address = log.lines().filter_map(|line| line.strip_prefix("listening on ")).next_back();
            address.map(str::to_owned).context("it has not said where")
        })
        .await?;
        Ok(Self { daemon, control, address })
    }

    /// `IP:PORT`, or the path of the line.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn port(&self) -> Result<u16> {
        let (_, port) = self.address.rsplit_once(':').context("it is at no port")?;
        Ok(port.parse()?)
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Registers from an address on; `table` is coil, discrete, input or holding.
    pub async fn set(&self, unit: u8, table: &str, address: u16, values: &[u16]) -> Result<()> {
        let set = json!({"unit": unit, "table": table, "address": address, "values": values});
        self.tell(&json!({"set": set})).await.map(drop)
    }

    pub async fn get(&self, unit: u8, table: &str, address: u16) -> Result<u16> {
        let get = json!({"unit": unit, "table": table, "address": address, "count": 1});
        let answer = self.tell(&json!({"get": get})).await?;
        let value = answer["values"][0].as_u64().context("there is no such register")?;
        Ok(u16::try_from(value)?)
    }

    /// The next `requests` requests go wrong like this; see the simulator's `faults.rs`.
    pub async fn misbehave(&self, fault: Value, requests: u64) -> Result<()> {
        self.tell(&json!({"misbehave": {"fault": fault, "requests": requests}})).await.map(drop)
    }

    /// As [`misbehave`](Self::misbehave), of one unit.
    pub async fn misbehave_as(&self, unit: u8, fault: Value, requests: u64) -> Result<()> {
        self.tell(&json!({"misbehave": {"fault": fault, "requests": requests, "unit": unit}})).await.map(drop)
    }

    /// What was asked since the last call: unit, function, address, count.
    pub async fn asked(&self) -> Result<Vec<Value>> {
        let answer = self.tell(&json!({"asked": {}})).await?;
        Ok(answer["asked"].as_array().context("no list")?.clone())
    }

    /// How many requests there were since the start.
    pub async fn requests(&self) -> Result<u64> {
        self.tell(&json!({"requests": {}})).await?["requests"].as_u64().context("no count")
    }

    async fn tell(&self, what: &Value) -> Result<Value> {
        let conversation = async {
            let stream = UnixStream::connect(&self.control).await.context("failed to reach the simulator")?;
            let (read, mut write) = stream.into_split();
            write.write_all(format!("{what}\n").as_bytes()).await?;
            let answer = BufReader::new(read).lines().next_line().await?;
            let Some(answer) = answer else { bail!("the simulator said nothing") };
            let answer: Value = serde_json::from_str(&answer)?;
            ensure!(answer.get("error").is_none(), "{what}: {answer}");
            Ok(answer)
        };
        tokio::time::timeout(ANSWERED, conversation).await.context("the simulator does not answer")?
    }
}
