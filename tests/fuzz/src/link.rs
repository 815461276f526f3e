//! What the transports read before any of it is a frame.

use std::{net::Ipv4Addr, sync::OnceLock, time::Duration};

use bytes::Bytes;
use proto::{Lane, limits::MAX_FRAME};
use runtime::link::{
    Watched,
    framing::{Lengths, Pieces},
    proxy::Proxy,
    websocket,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    time,
};

use crate::input::Input;

/// Nothing here waits for anybody else.
const LONG: Duration = Duration::from_secs(10);

fn tokio() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
}

/// A client's frame of a WebSocket (RFC 6455), with a mask of zeros.
fn masked(head: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126);
    [&[head, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

pub(crate) fn websocket_seeds() -> Vec<Vec<u8>> {
    vec![
        masked(0x82, &[0x80, 0, 0x5a, 0]),
        [masked(0x82, &[2, 1, 2]), masked(0x82, &[0x80, 0, 0x5a, 0]), masked(0x82, &[0x82, 3])].concat(),
        [masked(0x02, &[0x80]), masked(0x80, &[0, 0x5a, 0]), masked(0x89, b"ping")].concat(),
        masked(0x88, &[3, 0xe8]),
        // Of the stream that there is: bytes, credit, an end; and of one that there is not.
        [masked(0x82, &[3, 0, 0, 0, 1, 7]), masked(0x82, &[4, 0, 0, 0, 1, 0, 0, 1, 0])].concat(),
        [masked(0x82, &[0x83, 0, 0, 0, 1, 7]), masked(0x82, &[5, 0, 0, 0, 1])].concat(),
        masked(0x82, &[3, 0, 0, 0, 2, 7]),
        [&[0x82, 0xff][..], &(MAX_FRAME as u64 + 2).to_be_bytes(), &[0; 4]].concat(),
    ]
}

/// Any bytes on a connection that has been upgraded.
pub(crate) fn websocket(bytes: &[u8]) {
    tokio().block_on(async {
        let (mut edge, cloud) = duplex(bytes.len().max(1) + 4096);
        let watched = Watched::new(cloud);
        let progress = watched.progress();
        let peer = (Ipv4Addr::LOCALHOST, 1).into();
        let mut link = websocket::server(watched, peer, progress).await;
        let mut stream = link.streams.open().await.unwrap();
        edge.write_all(bytes).await.unwrap();
        // What the library answers to a ping or a close goes nowhere.
        edge.shutdown().await.unwrap();
        let all = async {
            while let Ok(Some(frame)) = link.receiver.receive().await {
                assert!(frame.len() <= bytes.len());
            }
        };
        time::timeout(LONG, all).await.expect("it waits for more than there will ever be");
        drop(link);
        let mut read = Vec::new();
        // It may have had no end.
        drop(time::timeout(LONG, stream.read_to_end(&mut read)).await.expect("a stream outlives its link"));
        assert!(read.len() <= bytes.len());
    });
}

pub(crate) fn piece_seeds() -> Vec<Vec<u8>> {
    vec![vec![3, 0x80, 1, 2], vec![2, 2, 1, 3, 0x80, 9, 9, 2, 0x82, 7], vec![1, 0x81, 0, 1, 1]]
}

/// Any messages of a WebSocket.
pub(crate) fn pieces(bytes: &[u8]) {
    let (mut input, mut pieces) = (Input::new(bytes), Pieces::default());
    // What is expected: the parts of each lane, put together.
    let mut begun: [Vec<u8>; Lane::ALL.len()] = Default::default();
    while !input.is_empty() {
        // Some as large as they get.
        let piece = match input.byte() {
            255 => vec![input.byte(); 1 << 20],
            length => input.bytes(length.into()).to_vec(),
        };
        let Ok(taken) = pieces.take(Bytes::from(piece.clone())) else { return };
        let (head, content) = piece.split_first().expect("an empty one is an error");
        let lane = Lane::ALL[usize::from(head & 0x7f)];
        let whole = &mut begun[lane as usize];
        whole.extend_from_slice(content);
        assert!(whole.len() <= lane.max_frame());
        assert_eq!(taken.is_some(), head & 0x80 != 0);
        if let Some(frame) = taken {
            assert_eq!(frame, std::mem::take(whole));
        }
    }
}

pub(crate) fn length_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![0, 5, 0, 0, 0, 1, 7],
        vec![2, 1, 0, 1, 0, 3, 0, 3, 1, 2, 3, 4, 0, 0, 0, 0],
        vec![1, 9, 0, 0x20, 0, 0],
    ]
}

/// Any bytes on a stream of QUIC, however they are cut.
pub(crate) fn lengths(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let lane = Lane::ALL[usize::from(input.byte()) % Lane::ALL.len()];
    let (mut whole, mut cut) = (Lengths::default(), Lengths::default());
    let (mut at_once, mut bit_by_bit) = (Vec::new(), Vec::new());
    let mut refused = false;
    while !input.is_empty() && !refused {
        let chunk = input.string();
        whole.push(chunk);
        cut.push(chunk);
        loop {
            match cut.next_frame(lane) {
                Ok(Some(frame)) => bit_by_bit.push(frame),
                Ok(None) => break,
                Err(_) => {
                    refused = true;
                    break;
                }
            }
        }
    }
    while let Ok(Some(frame)) = whole.next_frame(lane) {
        assert!(frame.len() <= lane.max_frame());
        at_once.push(frame);
    }
    assert_eq!(at_once, bit_by_bit);
    assert_eq!(whole.is_empty(), cut.is_empty());
}

pub(crate) fn proxy_answers() -> Vec<Vec<u8>> {
    [
        "HTTP/1.1 200 Connection established\r\n\r\n",
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\ncontent-length: 2\r\n\r\nno",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "SSH-2.0-x\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// Any bytes from a proxy.
pub(crate) fn proxy_answer(bytes: &[u8]) {
    static PORT: OnceLock<(TcpListener, Proxy)> = OnceLock::new();
    tokio().block_on(async {
        let (listener, proxy) = PORT.get_or_init(|| {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let proxy = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
            (TcpListener::from_std(listener).unwrap(), proxy)
        });
        let answer = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(tcp.read_u8().await.unwrap());
            }
            // It may have hung up on the first bytes.
            drop(tcp.write_all(bytes).await);
            drop(tcp.shutdown().await);
            tcp
        };
        let ask = async {
            let tcp = TcpStream::connect(proxy.address()).await.unwrap();
            // Else the kernel remembers each connection for a minute, and has no port for the next.
            SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
            proxy.tunnel(tcp, "cloud:10000").await
        };
        let both = async { tokio::join!(ask, answer) };
        let (tunnel, _tcp) = time::timeout(LONG, both).await.expect("it waits for ever");
        if tunnel.is_ok() {
            assert!(bytes.trim_ascii_start().starts_with(b"HTTP/1."), "{bytes:?}");
        }
    });
}
