//! Ten thousand connections that never get through their handshake, from one address: cloudcore holds so many and no more, gives each
//! up in time, and lets others in meanwhile. Over UDP, first packets that nobody follows up.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use harness::wait;
use runtime::link::quic;
use rustls::{ClientConnection, pki_types::ServerName};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream, UdpSocket},
    task::JoinSet,
    time,
};

use super::peer::{Stage, TRANSPORTS};
use crate::{SOON, fleet};

const CROWD: usize = 10_000;
/// At a time: what a listener's backlog holds.
const AT_ONCE: usize = 256;
/// Of loopback, and not the good nodes' own.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// First packets over UDP.
const DATAGRAMS: usize = 400;
/// nodeLimit, the guests beyond it, those that are about to leave, and what cloudcore has open for itself.
const MOST_FILES: usize = 1000 + 512 + 256 + 100;
/// For each connection it holds, and some more: a debug build.
const MEMORY: u64 = 96 << 20;

pub(crate) async fn run(stage: &Stage<'_>) -> Result<()> {
    let (files, memory) = (stage.files()?, stage.memory()?);
    let mut crowd = Crowd::gather(stage).await?;
    crowd.say_hello_over_udp(stage).await?;
    let (held, more) = (stage.files()?, stage.memory()?.saturating_sub(memory));
    eprintln!(
        "of {CROWD} half-open connections cloudcore holds {}, and {} KiB more",
        held - files,
        more >> 10
    );
    ensure!(held <= MOST_FILES, "{held} files are open");
    ensure!(more <= MEMORY, "{} KiB more", more >> 10);

    // While the crowd goes on to come, others are let in.
    let coming = async {
        while crowd.connections.len() >= CROWD {
            crowd.renew(stage).await?;
        }
        anyhow::Ok(())
    };
    let others = async {
        let mut fleets = Vec::new();
        for transport in TRANSPORTS {
            let begun = Instant::now();
            fleets.push(fleet(stage, "late", transport).await?);
            eprintln!("beside them a fleet over {transport:?} is there after {:?}", begun.elapsed());
        }
        anyhow::Ok(fleets)
    };
    let fleets = tokio::select! {
        fleets = others => fleets?,
        ended = coming => return ended.context("the crowd goes on to come"),
    };
    ensure!(stage.files()? <= MOST_FILES, "{} files are open", stage.files()?);

    // They keep their ends open; cloudcore does not.
    wait::until("the end of the half-open connections", SOON, async || {
        let now = stage.files()?;
        ensure!(now <= files + 2 * fleets.len() + 150, "{now} files are open, {files} before");
        Ok(())
    })
    .await?;
    let ended = async |outcome: &str| {
        stage.metric(&format!("cloudcore_handshakes_total{{outcome=\"{outcome}\"}}")).await
    };
    let (out, late) = (ended("crowded out").await?, ended("timed out").await?);
    ensure!(out > 0 && late > 0, "{out} were crowded out, {late} timed out");
    drop(crowd);
    for fleet in fleets {
        fleet.stop().await;
    }
    Ok(())
}

struct Crowd {
    /// The first flight of TLS, the same each time.
    hello: Vec<u8>,
    connections: Vec<TcpStream>,
}

impl Crowd {
    async fn gather(stage: &Stage<'_>) -> Result<Self> {
        let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        let mut tls = ClientConnection::new(Arc::new(stage.identity("nobody")?), name)?;
        let mut hello = Vec::new();
        tls.write_tls(&mut hello)?;
        let mut crowd = Self { hello, connections: Vec::new() };
        while crowd.connections.len() < CROWD {
            let come = crowd.come(stage).await?;
            crowd.connections.extend(come);
        }
        Ok(crowd)
    }

    /// Some more: every second one says the beginning of TLS, the others nothing.
    async fn come(&self, stage: &Stage<'_>) -> Result<Vec<TcpStream>> {
        let cloud = stage.address()?;
        let mut coming = JoinSet::new();
        for number in 0..AT_ONCE {
            let hello = if number % 2 == 0 { self.hello.clone() } else { Vec::new() };
            coming.spawn(async move {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::from((ADDRESS, 0)))?;
                let mut tcp = socket.connect(cloud).await?;
                tcp.write_all(&hello).await?;
                Ok::<_, std::io::Error>(tcp)
            });
        }
        let all = time::timeout(SOON, coming.join_all()).await.context("cloudcore's backlog stays full")?;
        // Who was reset at once has been turned away as well.
        Ok(all.into_iter().flatten().collect())
    }

    /// The oldest go, and as many come.
    async fn renew(&mut self, stage: &Stage<'_>) -> Result<()> {
        let come = self.come(stage).await?;
        self.connections.drain(..come.len().min(self.connections.len()));
        self.connections.extend(come);
        Ok(())
    }

    /// First packets of QUIC, each of a connection of its own, sent on by somebody who answers none.
    async fn say_hello_over_udp(&self, stage: &Stage<'_>) -> Result<()> {
        let (cloud, identity) = (stage.address()?, stage.identity("nobody")?);
        let socket = UdpSocket::bind((ADDRESS, 0)).await?;
        let between = socket.local_addr()?;
        let mut dialing = JoinSet::new();
        for _ in 0..DATAGRAMS {
            let identity = identity.clone();
            dialing.spawn(async move {
                let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
                drop(quic::connect(between, "nowhere", &name, &identity).await);
            });
        }
        let (mut datagram, mut sent) = ([0; 2048], 0);
        let forward = async {
            while sent < DATAGRAMS {
                let (length, from) = socket.recv_from(&mut datagram).await?;
                if from != cloud {
                    socket.send_to(&datagram[..length], cloud).await?;
                    sent += 1;
                }
            }
            anyhow::Ok(())
        };
        time::timeout(SOON, forward).await.context("too few first packets")?
    }
}
