//! What somebody on the way has recorded of a handshake, and of all that followed, said again: it gets nowhere.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::wait;
use hollow::Transport;
use proto::message::{Body, Goodbye, GoodbyeReason, Request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time,
};

use super::peer::{Peer, Stage, TRANSPORTS, hello};
use crate::SOON;

const NODE: &str = "replayed";
/// cloudcore gives a handshake ten seconds.
const GIVEN_UP: Duration = Duration::from_secs(15);

/// What the edge has sent: datagrams, or pieces of a stream.
type Recording = Arc<Mutex<Vec<Vec<u8>>>>;

/// Somebody on the way.
struct Recorder {
    address: SocketAddr,
    recording: Recording,
    _tasks: JoinSet<Result<()>>,
}

impl Recorder {
    async fn of_tcp(cloud: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, recording) = (listener.local_addr()?, Recording::default());
        let (mut tasks, said) = (JoinSet::new(), Arc::clone(&recording));
        tasks.spawn(async move {
            let (edge, _) = listener.accept().await?;
            let ((mut from_edge, mut to_edge), (mut from_cloud, mut to_cloud)) =
                (edge.into_split(), TcpStream::connect(cloud).await?.into_split());
            let up = async {
                let mut piece = vec![0; 64 << 10];
                loop {
                    let length = from_edge.read(&mut piece).await?;
                    if length == 0 {
                        return anyhow::Ok(());
                    }
                    note(&said, &piece[..length]);
                    to_cloud.write_all(&piece[..length]).await?;
                }
            };
            let down = async { Ok(copy(&mut from_cloud, &mut to_edge).await.map(drop)?) };
            tokio::try_join!(up, down).map(drop)
        });
        Ok(Self { address, recording, _tasks: tasks })
    }

    async fn of_udp(cloud: SocketAddr) -> Result<Self> {
        let (near, far) = (
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?,
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?,
        );
        let (address, recording) = (near.local_addr()?, Recording::default());
        let (mut tasks, said) = (JoinSet::new(), Arc::clone(&recording));
        tasks.spawn(async move {
            let (mut up, mut down, mut edge) = ([0; 2048], [0; 2048], None);
            loop {
                tokio::select! {
                    came = near.recv_from(&mut up) => {
                        let (length, from) = came?;
                        edge = Some(from);
                        note(&said, &up[..length]);
                        far.send_to(&up[..length], cloud).await?;
                    }
                    came = far.recv_from(&mut down) => {
                        let (length, _) = came?;
                        if let Some(edge) = edge {
                            near.send_to(&down[..length], edge).await?;
                        }
                    }
                }
            }
        });
        Ok(Self { address, recording, _tasks: tasks })
    }

    fn recorded(&self) -> Vec<Vec<u8>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn note(recording: &Recording, bytes: &[u8]) {
    recording.lock().unwrap_or_else(PoisonError::into_inner).push(bytes.to_vec());
}

pub(crate) async fn run(stage: &Stage<'_>) -> Result<()> {
    for transport in TRANSPORTS {
        let cloud = stage.address()?;
        let recorder = match transport {
            Transport::Quic => Recorder::of_udp(cloud).await?,
            _ => Recorder::of_tcp(cloud).await?,
        };
        let node = format!("{NODE}-{transport:?}").to_lowercase();
        let mut peer = Peer::connect(transport, recorder.address, &stage.identity(&node)?).await?;
        peer.say(Body::Hello(hello(&node, Duration::from_mins(5))?))?;
        let answers = async |peer: &mut Peer, id| {
            peer.say(Body::Request(Request { id, question: None }))?;
            peer.until(|body| matches!(&body, Body::Response(response) if response.id == id).then_some(()))
                .await
        };
        answers(&mut peer, 1).await?;
        let recorded = recorder.recorded();
        ensure!(recorded.iter().map(Vec::len).sum::<usize>() > 500, "next to nothing was recorded");

        let shaken = stage.metric("cloudcore_handshakes_total{outcome=\"ok\"}").await?;
        let sessions = stage.sessions().await?;
        for _ in 0..3 {
            match transport {
                Transport::Quic => replay_datagrams(cloud, &recorded).await?,
                _ => replay_stream(cloud, &recorded).await?,
            }
        }
        // The session that was recorded goes on, and nobody else has one.
        answers(&mut peer, 2).await?;
        wait::holds("no session of the recording", Duration::from_secs(2), async || {
            let now = stage.metric("cloudcore_handshakes_total{outcome=\"ok\"}").await?;
            ensure!(now == shaken, "{} handshakes have succeeded", now - shaken);
            ensure!(stage.sessions().await? == sessions, "another session");
            anyhow::Ok(())
        })
        .await?;
        // Nor once it has ended.
        let reason = GoodbyeReason::ShuttingDown.into();
        peer.say(Body::Goodbye(Goodbye { reason, detail: String::new() }))?;
        wait::until("the end of the session", SOON, async || {
            ensure!(!stage.sessions().await?.contains(&node));
            anyhow::Ok(())
        })
        .await?;
        drop((peer, recorder));
        match transport {
            Transport::Quic => replay_datagrams(cloud, &recorded).await?,
            _ => replay_stream(cloud, &recorded).await?,
        }
        wait::holds("nobody in its place", Duration::from_secs(2), async || {
            ensure!(!stage.sessions().await?.contains(&node));
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}

/// All of it, from an address of its own.
async fn replay_datagrams(cloud: SocketAddr, recorded: &[Vec<u8>]) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    for datagram in recorded {
        socket.send_to(datagram, cloud).await?;
    }
    Ok(())
}

/// All of it; cloudcore ends the connection by itself.
async fn replay_stream(cloud: SocketAddr, recorded: &[Vec<u8>]) -> Result<()> {
    let mut tcp = TcpStream::connect(cloud).await?;
    for piece in recorded {
        // It may have hung up already.
        drop(tcp.write_all(piece).await);
    }
    let ended = async {
        let mut answer = vec![0; 64 << 10];
        while tcp.read(&mut answer).await.is_ok_and(|length| length > 0) {}
    };
    time::timeout(GIVEN_UP, ended).await.context("cloudcore keeps the connection")
}
