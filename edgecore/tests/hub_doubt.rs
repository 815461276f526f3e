//! UDP stops to get through under a session over QUIC, at a heartbeat of minutes: another link is found within seconds of the
//! edge's having something to say, and taken only if the old one is silent still.

mod hub {
    pub(crate) mod cloud;
}

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use edgecore::{
    edgehub::{Ask, EdgeHub, HubConfig, HubState},
    metamanager::{Options, Store},
};
use futures_util::StreamExt as _;
use hub::cloud::{Cloud, LONG, edge};
use proto::{
    Lane, codec,
    message::{Body, Question, Welcome},
};
use runtime::link::{Link, queue::queue, quic};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// Nothing here waits for it.
const BEAT: Duration = Duration::from_mins(5);
/// Seconds until it is in doubt, and what a handshake and a last question take.
const MOVED: Duration = Duration::from_secs(5);

#[tokio::test]
async fn another_link_is_taken_while_the_old_one_is_silent() -> Result<()> {
    with_quic(async |cloud, edge| {
        edge.carries.send_replace(false);
        edge.speak().await?;
        let begun = Instant::now();
        // It has said hello, so it is taken.
        let _socket = cloud.welcome().await?;
        ensure!(begun.elapsed() < MOVED, "it took {:?}", begun.elapsed());
        let state = edge.until(|state| state.connected && state.transport == "websocket").await?;
        ensure!(state.sessions == 2, "{state:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_old_link_that_speaks_meanwhile_is_kept() -> Result<()> {
    with_quic(async |cloud, edge| {
        edge.carries.send_replace(false);
        edge.speak().await?;
        let mut socket = timeout(LONG, Box::pin(cloud.upgrade())).await??;
        // It is up at the edge, too, or about to be.
        edge.carries.send_replace(true);
        let said = timeout(LONG, socket.next()).await.context("the other link is kept, and not used")?;
        ensure!(!matches!(said, Some(Ok(_))), "something was said: {said:?}");
        let state = edge.until(|_| true).await?;
        ensure!(state.connected && state.transport == "quic" && state.sessions == 1, "{state:?}");
        // What was said is there.
        timeout(LONG, edge.said.clone().wait_for(|said| *said)).await??;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_silence_of_which_nobody_has_anything_to_say_is_none() -> Result<()> {
    with_quic(async |cloud, edge| {
        edge.carries.send_replace(false);
        ensure!(timeout(MOVED, Box::pin(cloud.upgrade())).await.is_err(), "the edge looked for another link");
        edge.carries.send_replace(true);
        edge.speak().await?;
        timeout(LONG, edge.said.clone().wait_for(|said| *said)).await??;
        let state = edge.until(|_| true).await?;
        ensure!(state.connected && state.sessions == 1, "{state:?}");
        Ok(())
    })
    .await
}

/// An edge that has a session over QUIC.
struct EdgeEnd {
    asks: mpsc::Sender<Ask>,
    state: watch::Receiver<HubState>,
    /// Whether UDP gets through.
    carries: watch::Sender<bool>,
    /// The cloud has got a question.
    said: watch::Receiver<bool>,
}

impl EdgeEnd {
    async fn speak(&self) -> Result<()> {
        let (answer, _) = oneshot::channel();
        let question = Question::Certificate(vec![7].into());
        self.asks.send(Ask { question, answer }).await.ok().context("the hub has ended")
    }

    async fn until(&self, holds: impl Fn(&HubState) -> bool) -> Result<HubState> {
        let mut state = self.state.clone();
        Ok(timeout(LONG, state.wait_for(holds)).await.context("it does not come to that")??.clone())
    }
}

async fn with_quic(test: impl AsyncFnOnce(&Cloud, &EdgeEnd) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (cloud, identity, address) = Cloud::start(dir.path()).await?;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let behind = socket.local_addr()?;
    let endpoint = quic::listen(socket, quic::server_config((*cloud.tls).clone())?, b"secret")?;
    let front = UdpSocket::bind("127.0.0.1:0").await?;
    let config = HubConfig {
        heartbeat: BEAT,
        quic: Some(front.local_addr()?.to_string()),
        ..edge(identity, address, dir.path())
    };
    let store = Store::open(&dir.path().join("store"), Options::default())?;
    let (asks, asked) = mpsc::channel(1);
    let (hub, state) = EdgeHub::new(config, store, asked)?;
    let (carries, carried) = watch::channel(true);
    let (heard, said) = watch::channel(false);
    let (stop, edge) = (CancellationToken::new(), EdgeEnd { asks, state, carries, said });
    let testing = async {
        edge.until(|state| state.connected && state.transport == "quic").await?;
        Box::pin(test(&cloud, &edge)).await
    };
    tokio::select! {
        ended = hub.run(stop) => ended.context("the hub ended")?,
        ended = relay(&front, behind, carried) => ended.context("the relay ended")?,
        ended = serve(&endpoint, &heard) => ended.context("the cloud ended")?,
        tested = testing => return tested,
    }
    anyhow::bail!("something ended before the test")
}

/// Carries datagrams, or does not.
async fn relay(front: &UdpSocket, to: SocketAddr, carried: watch::Receiver<bool>) -> Result<()> {
    let rear = UdpSocket::bind("127.0.0.1:0").await?;
    rear.connect(to).await?;
    let (mut up, mut down) = ([0; 2048], [0; 2048]);
    let mut edge = None;
    loop {
        tokio::select! {
            received = front.recv_from(&mut up) => {
                let (length, from) = received?;
                edge = Some(from);
                if *carried.borrow() {
                    rear.send(&up[..length]).await?;
                }
            }
            received = rear.recv(&mut down) => {
                let length = received?;
                if let Some(edge) = edge && *carried.borrow() {
                    front.send_to(&down[..length], edge).await?;
                }
            }
        }
    }
}

/// Welcomes whoever comes, and notes that a question has come.
async fn serve(endpoint: &quinn::Endpoint, heard: &watch::Sender<bool>) -> Result<()> {
    let connection = endpoint.accept().await.context("the endpoint is closed")?.await?;
    let Link { sender, mut receiver, .. } = quic::accept(connection).await?;
    let (frames, queue) = queue();
    let serving = async {
        while let Ok(Some(frame)) = receiver.receive().await {
            match codec::decode(frame)? {
                Body::Hello(hello) => {
                    let welcome = Welcome { protocol: hello.protocol_max, ..Welcome::default() };
                    frames.push(Lane::Control, codec::encode(Body::Welcome(welcome))?);
                }
                Body::Request(_) => drop(heard.send_replace(true)),
                _ => {}
            }
        }
        // The edge went elsewhere, as it may.
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        ended = serving => ended,
        ended = sender.run(queue, LONG) => {
            drop(ended);
            std::future::pending().await
        }
    }
}
