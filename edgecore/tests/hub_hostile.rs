//! What a cloud that lost its mind may send: every session with it ends with a reason, nothing of it is stored, and
//! the next good session works.

mod hub {
    pub(crate) mod cloud;
}

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use edgecore::{
    edgehub::{EdgeHub, HubState},
    metamanager::{Options, Store},
};
use futures_util::{SinkExt as _, StreamExt as _};
use hub::cloud::{Cloud, LONG, Socket, edge, frame};
use proto::{
    Lane, Object, codec,
    limits::MAX_FRAME,
    message::{
        Action, Batch, Body, Change, Delete, Hello, Patch, Put, ReportAck, ReportAcks, Synced, Welcome,
    },
};
use runtime::link::websocket;
use tokio::{
    io::AsyncWriteExt as _,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

const KEY: &str = "ConfigMap/default/kept";

fn batch(seq: u64, key: &str, action: impl Into<Option<Action>>) -> Body {
    let changes = vec![Change { key: key.to_owned(), action: action.into() }];
    Body::Batch(Batch { seq, changes })
}

fn put(bytes: &'static [u8]) -> Action {
    Action::Put(Put { resource_version: 7, object: Bytes::from_static(bytes) })
}

/// Whatever else it says, the edge is to leave.
async fn is_left(what: &str, mut socket: Socket) -> Result<()> {
    let left = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(frame) = message {
                let body = codec::decode(frame.slice(1..))?;
                ensure!(!matches!(body, Body::Ack(_)), "{what} is acked");
            }
        }
        Ok(())
    };
    timeout(LONG, left).await.with_context(|| format!("the edge stays after {what}"))?
}

/// Frames for an edge that holds `held`, each the end of a session.
fn hostile(held: &Object) -> Result<Vec<(&'static str, Message)>> {
    let good = codec::encode(batch(1, KEY, put(b"{\"cut\":\"short\"}")))?;
    let patch = |base, length| {
        Action::Patch(Patch {
            resource_version: 8,
            base,
            hash: 1,
            length,
            patch: Bytes::from_static(b"no zstd frame"),
        })
    };
    let acks = vec![ReportAck { id: 1, refused: String::new() }];
    Ok(vec![
        ("an empty message", Message::Binary(Bytes::new())),
        ("a lane that is none", Message::Binary(Bytes::from_static(&[0x83, 0, 0]))),
        ("an empty frame", websocket::whole(Lane::Control, &[])),
        ("garbage", websocket::whole(Lane::Status, &[0, 255, 254, 3, 9, 9, 9])),
        ("an unknown encoding", websocket::whole(Lane::Objects, &[77, 1, 2, 3])),
        ("a truncated frame", websocket::whole(Lane::Objects, &good[..good.len() - 3])),
        ("a large frame where only small ones are", websocket::whole(Lane::Control, &[0; 70_000])),
        ("text", Message::text("{}")),
        ("a second welcome", frame(Body::Welcome(Welcome { protocol: 1, ..Welcome::default() }))?),
        ("a frame that edges send", frame(Body::Hello(Hello::default()))?),
        ("a batch out of order", frame(batch(2, KEY, put(b"{}")))?),
        ("a key that is none", frame(batch(1, "../../etc/passwd", put(b"{}")))?),
        ("a change with no action", frame(batch(1, KEY, None))?),
        ("a patch of what is not there", frame(batch(1, "Secret/default/none", patch(1, 10)))?),
        ("a patch of another version", frame(batch(1, KEY, patch(held.version.hash ^ 1, 10)))?),
        ("a patch that is none", frame(batch(1, KEY, patch(held.version.hash, 10)))?),
        ("a patch to four gigabytes", frame(batch(1, KEY, patch(held.version.hash, u32::MAX)))?),
        ("acks of nothing", frame(Body::ReportAcks(ReportAcks { acks }))?),
    ])
}

#[tokio::test]
async fn nothing_that_the_cloud_sends_breaks_the_edge() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (cloud, identity, address) = Cloud::start(dir.path()).await?;
    let store = Store::open(&dir.path().join("store"), Options::default())?;
    let config = edge(identity, address, dir.path());
    let (_asks, asked) = mpsc::channel(1);
    let (hub, state) = EdgeHub::new(config, store.clone(), asked)?;
    let stop = CancellationToken::new();
    let (ended, provoked) = tokio::join!(hub.run(stop.clone()), async {
        let provoked = Box::pin(provoke(&cloud, &store, state)).await;
        stop.cancel();
        provoked
    });
    ended?;
    provoked
}

async fn provoke(cloud: &Cloud, store: &Store, mut state: watch::Receiver<HubState>) -> Result<()> {
    // Something to lose, from a good session.
    let mut socket = cloud.welcome().await?;
    socket.send(frame(batch(1, KEY, put(b"{\"data\":{}}")))?).await?;
    socket.send(frame(Body::Synced(Synced {}))?).await?;
    timeout(LONG, state.wait_for(|state| state.synced)).await??;
    drop(socket);
    let held = store.get(&KEY.parse()?)?.context("the object is stored")?;
    let digest = store.digest();

    for (what, message) in hostile(&held)? {
        let mut socket = cloud.welcome().await?;
        // The edge may have left before all of it was sent.
        drop(socket.send(message).await);
        is_left(what, socket).await?;
        ensure!(store.digest() == digest, "{what} changed the store");
    }
    // Instead of a welcome.
    let (mut socket, _) = cloud.accept().await?;
    socket.send(frame(batch(1, KEY, put(b"{}")))?).await?;
    is_left("a batch before the welcome", socket).await?;

    // Longer than a frame may be, so it is refused before it has come.
    let mut socket = cloud.welcome().await?;
    let mut header = vec![0x82, 127];
    header.extend((MAX_FRAME as u64 + 2).to_be_bytes());
    socket.get_mut().write_all(&header).await?;
    socket.get_mut().flush().await?;
    is_left("an oversized frame", socket).await?;
    // Cut off in the middle of a frame.
    let mut socket = cloud.welcome().await?;
    socket.get_mut().write_all(&[0x82, 126, 1, 0, 42]).await?;
    socket.get_mut().flush().await?;
    socket.get_mut().shutdown().await?;
    is_left("half a frame", socket).await?;
    ensure!(store.digest() == digest, "the store changed");

    // And now a good one again.
    let mut socket = cloud.welcome().await?;
    socket.send(frame(batch(1, KEY, Action::Delete(Delete { resource_version: 7 })))?).await?;
    let acked = async {
        loop {
            let Some(message) = socket.next().await else { bail!("the edge left") };
            if let Message::Binary(frame) = message?
                && let Body::Ack(ack) = codec::decode(frame.slice(1..))?
            {
                return Ok(ack.seq);
            }
        }
    };
    ensure!(timeout(LONG, acked).await?? == 1);
    ensure!(store.digest().count == 0);
    Ok(())
}
