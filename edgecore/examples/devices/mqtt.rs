//! Clients of a broker, of MQTT 3.1.1 no more than they need: the broker is to be the one that has to work.

use std::{
    future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::say;

const TOPIC: &str = "bench/fan-out";
/// Messages that the publisher may be ahead of the slowest subscriber: fewer than any broker drops.
const WINDOW: u64 = 100;
/// Of a client, for what has come.
const BUFFER: usize = 64 << 10;
/// Longer than a measure takes, so that nobody pings.
const KEEP_ALIVE: u16 = 600;
const SOON: Duration = Duration::from_secs(10);

const CONNECT: u8 = 0x10;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
/// In a PUBLISH's first byte.
const QOS_1: u8 = 0x02;

/// What has arrived.
struct Arrived {
    /// At each subscriber.
    counts: Vec<AtomicU64>,
    news: Notify,
}

impl Arrived {
    fn slowest(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).min().unwrap_or_default()
    }

    fn all(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

pub(crate) async fn idle(broker: SocketAddr, clients: usize) -> Result<()> {
    let mut connections = Vec::new();
    for number in 0..clients {
        connections.push(connect(broker, &format!("idle-{}-{number}", std::process::id())).await?);
    }
    say("connected")?;
    future::pending::<()>().await;
    drop(connections);
    Ok(())
}

pub(crate) async fn fan_out(
    broker: SocketAddr,
    subscribers: usize,
    bytes: usize,
    seconds: u64,
) -> Result<()> {
    let counts = (0..subscribers).map(|_| AtomicU64::new(0)).collect();
    let arrived = Arc::new(Arrived { counts, news: Notify::new() });
    let mut clients: JoinSet<Result<()>> = JoinSet::new();
    for number in 0..subscribers {
        let mut stream = connect(broker, &format!("subscriber-{number}")).await?;
        subscribe(&mut stream).await?;
        clients.spawn(hear(stream, Arc::clone(&arrived), number));
    }
    let (read, mut write) = connect(broker, "publisher").await?.into_split();
    clients.spawn(read_away(read));
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let sent = tokio::select! {
        sent = publish(&mut write, &arrived, bytes, end) => sent?,
        Some(ended) = clients.join_next() => bail!("a client has ended: {ended:?}"),
    };
    let per_second = arrived.all() as f64 / begun.elapsed().as_secs_f64();
    timeout(SOON, until(&arrived, sent)).await.context("messages were lost")?;
    say(&json!({"perSecond": per_second}).to_string())
}

async fn until(arrived: &Arrived, sent: u64) {
    while arrived.slowest() < sent {
        sleep(Duration::from_millis(5)).await;
    }
}

async fn connect(broker: SocketAddr, id: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(broker).await?;
    stream.set_nodelay(true)?;
    // Version 4 is 3.1.1; 2 is a clean session.
    let body = [&text("MQTT")?[..], &[4_u8, 2][..], &KEEP_ALIVE.to_be_bytes()[..], &text(id)?[..]].concat();
    stream.write_all(&packet(CONNECT, &body)).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == [0x20, 2, 0, 0], "the broker answers CONNECT with {answer:?}");
    Ok(stream)
}

async fn subscribe(stream: &mut TcpStream) -> Result<()> {
    // The packet's number; then QoS 1.
    let body = [&[0_u8, 1][..], &text(TOPIC)?[..], &[1_u8][..]].concat();
    stream.write_all(&packet(SUBSCRIBE, &body)).await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == [0x90, 3, 0, 1, 1], "the broker answers SUBSCRIBE with {answer:?}");
    Ok(())
}

/// Acknowledges and counts what comes.
async fn hear(mut stream: TcpStream, arrived: Arc<Arrived>, number: usize) -> Result<()> {
    let (mut buffer, mut filled) = (vec![0_u8; BUFFER], 0);
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        ensure!(read > 0, "the broker has ended a connection");
        filled += read;
        let (mut acks, mut at, mut count) = (Vec::<u8>::new(), 0, 0);
        while let Some((body, end)) = whole(&buffer[at..filled])? {
            let packet = &buffer[at..at + end];
            // Sent once, and no other kind is expected.
            ensure!(packet[0] == PUBLISH | QOS_1, "a packet that begins with {:#x}", packet[0]);
            let topic = usize::from(u16::from_be_bytes([packet[body], packet[body + 1]]));
            let id = body + 2 + topic;
            acks.extend([PUBACK, 2, packet[id], packet[id + 1]]);
            (at, count) = (at + end, count + 1);
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        if count > 0 {
            stream.write_all(&acks).await?;
            arrived.counts[number].fetch_add(count, Relaxed);
            arrived.news.notify_one();
        }
    }
}

/// As many as the slowest subscriber takes; how many it were.
async fn publish(write: &mut OwnedWriteHalf, arrived: &Arrived, bytes: usize, end: Instant) -> Result<u64> {
    let (topic, payload) = (text(TOPIC)?, vec![b'x'; bytes]);
    let mut sent = 0_u64;
    while Instant::now() < end {
        let free = WINDOW.saturating_sub(sent.saturating_sub(arrived.slowest()));
        if free == 0 {
            // Whatever came in between is kept for this.
            if timeout_at(end, arrived.news.notified()).await.is_err() {
                break;
            }
            continue;
        }
        let mut packets = Vec::<u8>::new();
        for _ in 0..free {
            sent += 1;
            let id = u16::try_from(sent % 65_535)? + 1;
            packets
                .extend(packet(PUBLISH | QOS_1, &[&topic[..], &id.to_be_bytes()[..], &payload[..]].concat()));
        }
        write.write_all(&packets).await?;
    }
    Ok(sent)
}

/// Its acknowledgements.
async fn read_away(mut read: OwnedReadHalf) -> Result<()> {
    let mut buffer = vec![0_u8; BUFFER];
    while read.read(&mut buffer).await? > 0 {}
    bail!("the broker has ended the publisher's connection")
}

/// Behind its length.
fn text(text: &str) -> Result<Vec<u8>> {
    Ok([&u16::try_from(text.len())?.to_be_bytes()[..], text.as_bytes()].concat())
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut packet, mut left) = (vec![first], body.len());
    loop {
        let seven = left.to_le_bytes()[0] & 0x7f;
        left >>= 7;
        if left == 0 {
            packet.push(seven);
            break;
        }
        packet.push(seven | 0x80);
    }
    packet.extend_from_slice(body);
    packet
}

/// Where the body of the first packet begins, and where it ends; `None` while that has not come as a whole.
fn whole(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let (mut length, mut at) = (0, 1);
    loop {
        let Some(&byte) = bytes.get(at) else { return Ok(None) };
        ensure!(at <= 4, "a packet's length has more than four bytes");
        length |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let end = at + length;
    Ok((bytes.len() >= end).then_some((at, end)))
}
