use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::*;
use crate::link::streams::{self, Stream, Streams};

const MAX: usize = streams::MAX as usize;

/// More than any window.
const LARGE: usize = 3 << 20;

/// An end whose frames are received by a task, as a session does all the time.
struct Held {
    streams: Streams,
    frames: Frames,
    received: mpsc::UnboundedReceiver<Bytes>,
    _tasks: JoinSet<()>,
}

impl Held {
    fn of(end: End) -> Self {
        let End { frames, mut writer, mut receiver, streams, .. } = end;
        let (sender, received) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok(Some(frame)) = receiver.receive().await {
                if sender.send(frame).is_err() {
                    return;
                }
            }
        });
        tasks.spawn(async move { while writer.join_next().await.is_some() {} });
        Self { streams, frames, received, _tasks: tasks }
    }

    async fn accept(&self) -> Stream {
        time::timeout(LONG, self.streams.accept()).await.expect("no stream comes").unwrap()
    }
}

async fn held(transport: &str) -> (Held, Held) {
    let (edge, cloud) = both(transport).await;
    greeted(edge, cloud).await
}

async fn greeted(mut edge: End, cloud: End) -> (Held, Held) {
    // The other side's first frame is a greeting, too.
    cloud.send(Lane::Control, &Bytes::from_static(HELLO)).await;
    assert_eq!(edge.next().await.unwrap().as_deref(), Some(HELLO));
    (Held::of(edge), Held::of(cloud))
}

/// A stream with its first bytes, which the edge has read.
async fn pair(edge: &Held, cloud: &Held) -> (Stream, Stream) {
    let mut ours = cloud.streams.open().await.unwrap();
    ours.write_all(b"hello").await.unwrap();
    let mut theirs = edge.accept().await;
    let mut hello = [0; 5];
    theirs.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    (theirs, ours)
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..LARGE).map(|at| u8::try_from((at * 31 + at / 251 + seed) % 256).unwrap()).collect()
}

/// Fills a stream until nothing more is taken.
async fn fill(stream: &mut Stream) -> usize {
    let mut taken = 0;
    let quiet = Duration::from_millis(300);
    while let Ok(more) = time::timeout(quiet, stream.write(&[1; 4096])).await {
        taken += more.unwrap();
        assert!(taken < LARGE, "a stream that nobody reads takes no end");
    }
    taken
}

#[tokio::test]
async fn streams_carry_bytes_both_ways_each_to_its_end() {
    for transport in TRANSPORTS {
        let (edge, cloud) = held(transport).await;
        let mut tasks = JoinSet::new();
        for seed in 0..4 {
            let (theirs, ours) = pair(&edge, &cloud).await;
            let echo = async move {
                let (mut read, mut write) = tokio::io::split(theirs);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let ask = async move {
                let sent = pattern(seed);
                let (mut read, mut write) = tokio::io::split(ours);
                let mut back = Vec::new();
                let sending = async {
                    write.write_all(&sent).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let ((), read) = tokio::join!(sending, read.read_to_end(&mut back));
                read.unwrap();
                assert!(back == sent, "{seed}: {} of {} bytes came back, or others", back.len(), sent.len());
            };
            tasks.spawn(echo);
            tasks.spawn(ask);
        }
        while let Some(ended) = time::timeout(LONG, tasks.join_next()).await.expect(transport) {
            ended.unwrap();
        }
        assert!(edge.streams.is_empty() && cloud.streams.is_empty());
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_up_itself_alone() {
    for transport in TRANSPORTS {
        let (mut edge, cloud) = held(transport).await;
        let (mut unread, mut full) = pair(&edge, &cloud).await;
        let taken = fill(&mut full).await;
        // A lane is not held up, and another stream neither.
        let frame = Bytes::from(vec![3; 100_000]);
        cloud.frames.push(Lane::Objects, frame.clone());
        let received = time::timeout(LONG, edge.received.recv()).await.expect("the lane is held up");
        assert_eq!(received, Some(frame));
        pair(&edge, &cloud).await;
        // All of it is there once somebody reads.
        let mut read = vec![0; taken];
        time::timeout(LONG, unread.read_exact(&mut read)).await.expect("what was taken comes").unwrap();
        time::timeout(LONG, full.write_all(&[2; 10])).await.expect("there is room again").unwrap();
    }
}

/// Of what it is given little is kept; the allocator's and QUIC's own come on top, up to 64 KiB (`cargo xtask bench stream`).
#[tokio::test]
async fn a_stream_that_nobody_reads_takes_little_however_many_there_are() {
    for transport in TRANSPORTS {
        let (edge, cloud) = held(transport).await;
        let mut full = Vec::new();
        for _ in 0..8 {
            let (mut theirs, ours) = pair(&edge, &cloud).await;
            let taken = fill(&mut theirs).await;
            assert!(taken <= 36 << 10, "{transport}: {taken} bytes");
            full.push((theirs, ours));
        }
    }
}

/// With the window that it begins with it would carry 160 KB a second.
#[tokio::test]
async fn a_stream_that_is_read_fills_a_long_line() {
    const MIB: usize = 1 << 20;
    for transport in TRANSPORTS {
        let ends = Ends::new();
        let delay = Duration::from_millis(100);
        let (edge, mut cloud, _line) = Box::pin(ends.link_over(transport, Some(delay))).await;
        assert_eq!(cloud.next().await.unwrap().as_deref(), Some(HELLO));
        let (edge, cloud) = greeted(edge, cloud).await;
        let (mut theirs, mut ours) = pair(&edge, &cloud).await;
        let begun = time::Instant::now();
        let write = async { theirs.write_all(&vec![7; 8 * MIB]).await.unwrap() };
        let read = async {
            let mut all = vec![0; 8 * MIB];
            ours.read_exact(&mut all).await.unwrap();
        };
        time::timeout(LONG, async { tokio::join!(write, read) }).await.expect("the window does not grow");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "{transport}: {took:?}");
        // Once nobody reads it any more it holds what it has got, and no more than that.
        let taken = fill(&mut theirs).await;
        assert!((128 << 10..=MIB + (96 << 10)).contains(&taken), "{transport}: {taken} bytes");
        // Another one begins with little.
        let (mut theirs, _ours) = pair(&edge, &cloud).await;
        let taken = fill(&mut theirs).await;
        assert!(taken <= 36 << 10, "{transport}: {taken} bytes");
    }
}

#[tokio::test]
async fn whoever_holds_the_other_end_learns_that_one_has_gone() {
    for transport in TRANSPORTS {
        let (edge, cloud) = held(transport).await;
        // A writer, of a reader that went.
        let (theirs, mut ours) = pair(&edge, &cloud).await;
        drop(theirs);
        let failed = async { while ours.write_all(&[0; 1000]).await.is_ok() {} };
        time::timeout(LONG, failed).await.expect("a write to nobody succeeds for ever");
        // A reader, of a writer that went before its end.
        let (mut theirs, ours) = pair(&edge, &cloud).await;
        drop(ours);
        let read = time::timeout(LONG, theirs.read_to_end(&mut Vec::new())).await.expect("no end");
        assert!(read.is_err(), "{transport}: an end that was none");
        // What was written before the end arrives after it.
        let (mut theirs, mut ours) = pair(&edge, &cloud).await;
        let sent = fill(&mut ours).await;
        ours.shutdown().await.unwrap();
        drop(ours);
        let mut read = Vec::new();
        time::timeout(LONG, theirs.read_to_end(&mut read)).await.expect("no end").unwrap();
        assert_eq!(read.len(), sent, "{transport}");
    }
}

#[tokio::test]
async fn there_is_a_bound_and_what_ended_is_not_counted() {
    for transport in TRANSPORTS {
        let (edge, cloud) = held(transport).await;
        for _ in 0..2 * MAX {
            let (theirs, mut ours) = pair(&edge, &cloud).await;
            ours.shutdown().await.unwrap();
            drop(theirs);
        }
        let mut open = Vec::new();
        while let Ok(Ok(stream)) = time::timeout(Duration::from_millis(300), cloud.streams.open()).await {
            open.push(stream);
            assert!(open.len() <= MAX, "{transport}: no bound");
        }
        // QUIC gives places back by the eighth.
        assert!(open.len() > MAX - MAX / 8, "{transport}: {} places are lost", MAX - open.len());
        assert_eq!(cloud.streams.len(), open.len());
    }
}

#[tokio::test]
async fn no_stream_outlives_its_link() {
    for transport in TRANSPORTS {
        let (edge, cloud) = held(transport).await;
        let (mut theirs, mut ours) = pair(&edge, &cloud).await;
        let Held { streams, frames, .. } = cloud;
        drop(frames);
        streams.close();
        let ended = async {
            assert!(ours.read(&mut [0]).await.is_err(), "{transport}: here");
            assert!(theirs.read(&mut [0]).await.is_err(), "{transport}: there");
            assert!(edge.streams.accept().await.is_none() && streams.open().await.is_err());
        };
        time::timeout(LONG, ended).await.expect("a stream goes on without its link");
    }
}

#[tokio::test]
async fn stream_messages_that_nobody_may_send_are_errors() {
    let too_much = [&[3, 0, 0, 0, 1][..], &vec![0; 65 << 10]].concat();
    for (message, fine) in [
        (&[3, 0, 0, 0, 1, b'x'][..], true),
        (&[3, 0, 0], false),
        (&[6, 0, 0, 0, 1], false),
        (&[4, 0, 0, 0, 1], false),
        (&too_much, false),
        (&[4, 0, 0, 0, 1, 255, 255, 255, 255], false),
        // One that cloudcore has not opened.
        (&[3, 0, 0, 0, 2, b'x'], false),
        // What may be late for one that has ended.
        (&[4, 0, 0, 0, 9, 0, 0, 0, 1], true),
        (&[5, 0, 0, 0, 9], true),
    ] {
        let (ours, theirs) = duplex(1 << 20);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut cloud = End::of(websocket::server(ours, peer, Progress::new()).await);
        let _first = cloud.streams.open().await.unwrap();
        let mut edge = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        let frame = websocket::whole(Lane::Control, HELLO);
        for message in [Message::binary(message.to_vec()), frame] {
            edge.send(message).await.unwrap();
        }
        let received = cloud.next().await;
        assert_eq!(received.is_ok(), fine, "{:?}: {received:?}", &message[..message.len().min(9)]);
    }
}

#[tokio::test]
async fn a_stream_keeps_to_the_rate_and_no_heartbeat_waits_for_it() {
    for transport in TRANSPORTS {
        let (edge, mut cloud) = held(transport).await;
        let (mut theirs, mut ours) = pair(&edge, &cloud).await;
        edge.streams.share_rate(&edge.frames);
        edge.frames.set_rate(Some(100_000));
        let begun = time::Instant::now();
        let bytes = vec![7; 100_000];
        let send = async { theirs.write_all(&bytes).await.unwrap() };
        let beat = async {
            for _ in 0..5 {
                let sent = time::Instant::now();
                edge.frames.push(Lane::Control, Bytes::from_static(b"beat"));
                cloud.received.recv().await.unwrap();
                assert!(sent.elapsed() < Duration::from_millis(500), "{transport}: {:?}", sent.elapsed());
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut all = vec![0; bytes.len()];
        let (_, (), ()) = tokio::join!(ours.read_exact(&mut all), send, beat);
        let took = begun.elapsed().as_secs_f64();
        assert!((0.7..10.0).contains(&took), "{transport}: {took} s");
        // What is lifted holds nothing back.
        edge.frames.set_rate(None);
        time::timeout(LONG, theirs.write_all(&[7; 1000])).await.expect("the cap stays").unwrap();
    }
}
