//! edgecore's MQTT broker beside mosquitto, each a process of its own: messages to many, and clients that say nothing.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    process::{Daemon, command, output_async},
    progress::during,
    wait,
};
use serde::Deserialize;
use tokio::{net::TcpStream, time::sleep};

use super::stand::{Stand, free_address};
use crate::bench::{
    figure::{Figure, Goal},
    reading::{self, Memory},
};

const MOSQUITTO: &str = "/usr/sbin/mosquitto";
const SUBSCRIBERS: usize = 20;
const BYTES: usize = 200;
const SECONDS: usize = 4;
const ROUNDS: usize = 3;
/// What only the first clients cost is not counted.
const FIRST: usize = 10;
const IDLE: usize = 100;
const SETTLE: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(20);

/// What the example prints.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    per_second: f64,
}

struct Broker<'a> {
    stand: &'a Stand,
    name: &'static str,
    daemon: Daemon,
    address: SocketAddr,
}

pub(super) async fn take(stand: &Stand) -> Result<Vec<Figure>> {
    let brokers = [edgecore(stand)?, mosquitto(stand)?];
    let mut figures = Vec::new();
    for broker in &brokers {
        broker.until_there().await?;
        let each = during("connecting clients that are idle", broker.idle_client()).await?;
        let name = format!("{}: an idle MQTT client, PSS", broker.name);
        let note = format!("the broker with {IDLE} more clients than {FIRST}, by their number");
        figures.push(Figure::whole(&name, "KiB", each).note(&note));
    }
    let (mut rates, mut spent) = ([Vec::new(), Vec::new()], [Duration::ZERO; 2]);
    for round in 1..=ROUNDS {
        for (at, broker) in brokers.iter().enumerate() {
            let before = reading::cpu(broker.daemon.pid())?;
            let doing = format!("{}: fan-out, round {round}", broker.name);
            rates[at].push(during(&doing, broker.fan_out()).await?);
            spent[at] += reading::cpu(broker.daemon.pid())?.saturating_sub(before);
        }
    }
    let [ours, theirs] = rates;
    let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
    let note = format!(
        "QoS 1, {BYTES} bytes, one publisher, {SUBSCRIBERS} subscribers; at most 100 messages ahead of the slowest, none lost; \
         clients and broker share two cores; mosquitto has TCP_NODELAY and no bounds of messages in flight"
    );
    figures.extend([
        Figure::median("fan-out of edgecore's broker: delivered", "/s", ours)
            .cpu(brokers[0].name, spent[0])
            .note(&note),
        Figure::median("fan-out of mosquitto: delivered", "/s", theirs).cpu(brokers[1].name, spent[1]),
        Figure::median("fan-out of edgecore's broker beside mosquitto", "of it", ratios)
            .goal(Goal::AtLeast(1.0)),
    ]);
    Ok(figures)
}

/// In a process that has a store, and no devices.
fn edgecore(stand: &Stand) -> Result<Broker<'_>> {
    let address = free_address()?;
    Ok(Broker { stand, name: "edgecore's broker", daemon: stand.node("broker", address, &[])?, address })
}

fn mosquitto(stand: &Stand) -> Result<Broker<'_>> {
    let address = free_address()?;
    let config = format!(
        "user root\nlistener {} {}\nallow_anonymous true\nset_tcp_nodelay true\nmax_inflight_messages 0\n\
         max_queued_messages 0\n",
        address.port(),
        address.ip(),
    );
    let file = stand.path("mosquitto.conf");
    fs::write(&file, config)?;
    let daemon =
        Daemon::start(stand.run(), "mosquitto", command(MOSQUITTO, ["-c".as_ref(), file.as_os_str()]))?;
    Ok(Broker { stand, name: "mosquitto", daemon, address })
}

impl Broker<'_> {
    async fn until_there(&self) -> Result<()> {
        let what = format!("{} listening", self.name);
        wait::until(&what, SOON, async || TcpStream::connect(self.address).await.map(drop)).await
    }

    /// Memory, in KiB.
    async fn idle_client(&self) -> Result<f64> {
        let _first = self.clients(FIRST).await?;
        let before = self.pss().await?;
        let _more = self.clients(IDLE).await?;
        Ok((self.pss().await? - before) / IDLE as f64)
    }

    /// They stay until this is dropped.
    async fn clients(&self, count: usize) -> Result<Daemon> {
        let args = ["idle".to_owned(), self.address.to_string(), count.to_string()];
        let name = format!("clients-{}-{count}", self.address.port());
        let mut clients = Daemon::start(self.stand.run(), &name, self.stand.example(&args))?;
        wait::until("idle clients", SOON, async || {
            clients.check_alive()?;
            let log = fs::read_to_string(clients.log())?;
            ensure!(log.contains("connected"), "they have said {log:?}");
            anyhow::Ok(())
        })
        .await?;
        Ok(clients)
    }

    async fn pss(&self) -> Result<f64> {
        sleep(SETTLE).await;
        Ok(Memory::of(self.daemon.pid())?.pss)
    }

    async fn fan_out(&self) -> Result<f64> {
        let numbers = [SUBSCRIBERS, BYTES, SECONDS].map(|number| number.to_string());
        let args = [&["fan-out".to_owned(), self.address.to_string()][..], &numbers[..]].concat();
        let told = output_async(self.stand.example(&args)).await?;
        let Rate { per_second } =
            serde_json::from_str(&told).with_context(|| format!("the example prints JSON, not {told}"))?;
        Ok(per_second)
    }
}
