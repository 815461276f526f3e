//! Both transports, held to the same.

use std::{
    net::Ipv4Addr,
    sync::{Arc, atomic::AtomicUsize},
};

use bytes::Bytes;
use delayed::Delayed;
use futures_util::SinkExt;
use proto::{
    Lane, codec,
    limits::MAX_FRAME,
    message::{Body, Ping},
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinSet,
    time,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::{
    queue::{Frames, queue},
    *,
};
use crate::{
    chain,
    tls::{self, CertificateAuthority},
};

mod delayed;
mod streams;

const TRANSPORTS: [&str; 2] = ["quic", "websocket"];
const LONG: Duration = Duration::from_secs(20);
const NODE: &str = "edge-1";
const HELLO: &[u8] = b"hello";
/// Of a datagram: UDP's and IPv4's.
const HEADERS: u64 = 8 + 20;
/// As many whole pieces of a WebSocket as fill it.
const PIECES: usize = 64 << 10;

struct Ends {
    server: rustls::ServerConfig,
    client: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
}

impl Ends {
    fn new() -> Self {
        tls::install_provider();
        let ca = CertificateAuthority::generate().unwrap();
        let (chain, key) = ca.issue_server(&["127.0.0.1".to_owned()]).unwrap();
        let server =
            tls::server_config(chain, key, std::slice::from_ref(ca.certificate()), Duration::ZERO).unwrap();
        let (key, csr) = tls::node_csr(NODE).unwrap();
        let chain = vec![CertificateDer::from(ca.sign_node_csr(&csr, NODE, LONG).unwrap())];
        let client =
            tls::client_config(&[ca.certificate().clone()], chain, tls::pkcs8(key), Arc::default()).unwrap();
        Self { server, client: Arc::new(client), name: ServerName::try_from("127.0.0.1").unwrap() }
    }

    fn quic_port(&self) -> quinn::Endpoint {
        self.quic_on(std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
    }

    fn quic_on(&self, socket: std::net::UdpSocket) -> quinn::Endpoint {
        quic::listen(socket, quic::server_config(self.server.clone()).unwrap(), b"secret").unwrap()
    }

    async fn over_quic(&self, port: &quinn::Endpoint) -> Result<Link, LinkError> {
        let peer = port.local_addr().unwrap();
        quic::connect(peer, &peer.to_string(), &self.name, &self.client).await
    }

    /// The edge's end, which has sent `HELLO`, and the cloud's.
    async fn link(&self, transport: &str) -> (End, End) {
        let (edge, cloud, _) = Box::pin(self.link_over(transport, None)).await;
        (edge, cloud)
    }

    /// As [`Self::link`], over a line that takes so long each way.
    async fn link_over(&self, transport: &str, delay: Option<Duration>) -> (End, End, Option<Delayed>) {
        let greet = |link: Link| {
            let end = End::of(link);
            end.frames.push(Lane::Control, Bytes::from_static(HELLO));
            end
        };
        if transport == "quic" {
            let port = self.quic_port();
            let cloud = async {
                let connection = port.accept().await.unwrap().await.unwrap();
                let certificate = quic::peer_certificate(&connection).unwrap();
                assert_eq!(tls::node_of(&certificate).as_deref(), Some(NODE));
                End::of(quic::accept(connection).await.unwrap())
            };
            let mut peer = port.local_addr().unwrap();
            let line = match delay {
                Some(delay) => Some(Delayed::udp(peer, delay).await),
                None => None,
            };
            peer = line.as_ref().map_or(peer, |line| line.address);
            let edge = async {
                let link = quic::connect(peer, &peer.to_string(), &self.name, &self.client).await;
                greet(link.unwrap())
            };
            let (edge, cloud) = tokio::join!(edge, cloud);
            return (edge, cloud, line);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut address = listener.local_addr().unwrap();
        let line = match delay {
            Some(delay) => Some(Delayed::tcp(address, delay).await),
            None => None,
        };
        address = line.as_ref().map_or(address, |line| line.address);
        let cloud = async {
            let (tcp, peer) = listener.accept().await.unwrap();
            prepare(&tcp).unwrap();
            let stream =
                TlsAcceptor::from(Arc::new(self.server.clone())).accept(Watched::new(tcp)).await.unwrap();
            let progress = stream.get_ref().0.progress();
            let upgraded = tokio_tungstenite::accept_async(stream).await.unwrap();
            End::of(websocket::server(upgraded.into_inner(), peer, progress).await)
        };
        let edge = async {
            let text = address.to_string();
            let link = websocket::connect(&text, self.name.clone(), Arc::clone(&self.client)).await;
            greet(link.unwrap())
        };
        let (edge, cloud) = tokio::join!(edge, cloud);
        (edge, cloud, line)
    }
}

/// One end of a link, as a session has it.
struct End {
    frames: Frames,
    writer: JoinSet<Result<(), LinkError>>,
    receiver: Box<dyn FrameReceiver>,
    progress: Progress,
    knocks: Knocks,
    transport: &'static str,
    streams: Streams,
}

impl End {
    fn of(link: Link) -> Self {
        let Link { sender, receiver, progress, knocks, transport, streams, .. } = link;
        let (frames, queue) = queue();
        let mut writer = JoinSet::new();
        writer.spawn(sender.run(queue, LONG));
        Self { frames, writer, receiver, progress, knocks, transport, streams }
    }

    async fn send(&self, lane: Lane, frame: &Bytes) {
        while !self.frames.has_room(lane) {
            self.frames.taken().await;
        }
        self.frames.push(lane, frame.clone());
    }

    async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        time::timeout(LONG, self.receiver.receive()).await.expect("nothing comes")
    }
}

async fn both(transport: &str) -> (End, End) {
    let (edge, mut cloud) = Box::pin(Ends::new().link(transport)).await;
    assert_eq!((edge.transport, cloud.transport), (transport, transport));
    assert_eq!(cloud.next().await.unwrap().as_deref(), Some(HELLO));
    (edge, cloud)
}

#[tokio::test]
async fn frames_keep_their_order_and_their_ends() {
    for transport in TRANSPORTS {
        let (mut edge, mut cloud) = both(transport).await;
        let frames: Vec<Bytes> = [0, 1, 3, 0, 70_000, MAX_FRAME, 2, PIECES]
            .iter()
            .enumerate()
            .map(|(number, length)| vec![u8::try_from(number).unwrap(); *length].into())
            .collect();
        // The other side's first frame is a greeting, too.
        cloud.send(Lane::Control, &frames[2]).await;
        assert_eq!(edge.next().await.unwrap().as_ref(), Some(&frames[2]));
        for _ in 0..2 {
            let send = async {
                for frame in &frames {
                    edge.send(Lane::Objects, frame).await;
                }
            };
            let receive = async {
                for frame in &frames {
                    let received = cloud.next().await.unwrap();
                    assert!(received.as_ref() == Some(frame), "{transport}: not the {} bytes", frame.len());
                }
            };
            tokio::join!(send, receive);
            std::mem::swap(&mut edge, &mut cloud);
        }
        // What was said before the end arrives, whatever its lane.
        for lane in Lane::ALL {
            edge.send(lane, &frames[4].slice(..60_000)).await;
        }
        let End { frames: queue, mut writer, .. } = edge;
        drop(queue);
        for _ in Lane::ALL {
            assert_eq!(cloud.next().await.unwrap().map(|frame| frame.len()), Some(60_000), "{transport}");
        }
        assert_eq!(cloud.next().await.unwrap(), None, "{transport}");
        drop(cloud);
        writer.join_next().await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_is_urgent_overtakes_what_is_large() {
    for transport in TRANSPORTS {
        let (edge, mut cloud) = both(transport).await;
        let large = Bytes::from(vec![7; MAX_FRAME]);
        edge.send(Lane::Objects, &large).await;
        edge.send(Lane::Objects, &large).await;
        // Nobody reads: what has been taken fills the line.
        wait_until(|| edge.frames.has_room(Lane::Objects)).await;
        for lane in [Lane::Status, Lane::Control] {
            edge.send(lane, &Bytes::from_static(b"soon")).await;
        }
        wait_until(|| edge.frames.is_empty(Lane::Control)).await;
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push(cloud.next().await.unwrap().unwrap().len());
        }
        assert_eq!(order, [4, 4, MAX_FRAME, MAX_FRAME], "{transport}");
    }
}

/// However much is on its way that the peer has not confirmed.
#[tokio::test]
async fn the_end_of_a_connection_arrives() {
    let (mut edge, cloud, _line) =
        Box::pin(Ends::new().link_over("quic", Some(Duration::from_millis(200)))).await;
    let begun = time::Instant::now();
    cloud.frames.push(Lane::Objects, Bytes::from(vec![7; MAX_FRAME]));
    // The first of it, and there may be no more before the cloud hears of that.
    wait_until(|| edge.progress.last() > begun).await;
    cloud.streams.close();
    assert_eq!(edge.next().await.unwrap(), None);
}

/// Before anything is answered: a session that gets no answer asks whether its line carries.
#[tokio::test]
async fn an_edge_knows_how_what_it_sent_fares() {
    for transport in TRANSPORTS {
        let (edge, mut cloud) = both(transport).await;
        let fares = || edge.progress.delivery().expect("either transport knows");
        let before = fares();
        edge.send(Lane::Objects, &Bytes::from(vec![7; MAX_FRAME])).await;
        // Nobody reads, and what has arrived is confirmed all the same.
        wait_until(|| fares().confirmed > before.confirmed).await;
        // The kernel at the other end confirms what it keeps, and has no more sent then.
        assert!(transport == "websocket" || fares().open, "all is confirmed, and nobody has read it");
        cloud.next().await.unwrap();
        // QUIC does not tell what is on its way.
        wait_until(|| transport == "quic" || !fares().open).await;
        assert_eq!(cloud.progress.delivery().is_some(), transport == "quic", "{transport}: the cloud");
    }
}

async fn wait_until(holds: impl Fn() -> bool) {
    let begun = time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "it does not come to that");
        time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_cap_holds_back_what_can_wait_and_nothing_else() {
    for transport in TRANSPORTS {
        let (edge, mut cloud) = both(transport).await;
        let (large, small) = (Bytes::from(vec![7; 60_000]), Bytes::from_static(b"soon"));
        edge.frames.set_rate(Some(40_000));
        let begun = time::Instant::now();
        edge.send(Lane::Objects, &large).await;
        assert_eq!(cloud.next().await.unwrap().as_ref(), Some(&large));
        // 63,840 bytes on the line, of which a quarter of a second's may go at once, and the last piece need not have passed.
        let took = begun.elapsed();
        assert!((1.2..4.0).contains(&took.as_secs_f64()), "{transport}: {took:?}");

        // It would take a minute.
        edge.frames.set_rate(Some(SLOWEST));
        for lane in [Lane::Objects, Lane::Status] {
            edge.send(lane, &large).await;
        }
        for _ in 0..10 {
            let begun = time::Instant::now();
            edge.send(Lane::Control, &small).await;
            assert_eq!(cloud.next().await.unwrap().as_ref(), Some(&small), "{transport}");
            assert!(begun.elapsed() < Duration::from_secs(2), "{transport}: an urgent frame waited");
        }
        edge.frames.set_rate(None);
        for _ in 0..2 {
            assert_eq!(cloud.next().await.unwrap().as_ref(), Some(&large), "{transport}");
        }
        let took = begun.elapsed();
        assert!(took < LONG, "{transport}: the cap was not lifted for what was on its way: {took:?}");
    }
}

/// Whoever waits for a frame may turn to something else at any time.
#[tokio::test]
async fn a_frame_that_comes_in_parts_is_not_lost_by_looking_away() {
    for transport in TRANSPORTS {
        let (edge, mut cloud) = both(transport).await;
        let frame = Bytes::from(vec![7; MAX_FRAME]);
        let begun = time::Instant::now();
        edge.send(Lane::Objects, &frame).await;
        let mut received = None;
        let mut looks = 0;
        while received.is_none() && begun.elapsed() < LONG {
            looks += 1;
            tokio::select! {
                biased;
                frame = cloud.receiver.receive() => received = frame.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        }
        assert!(received == Some(frame), "{transport}: it did not arrive whole after {looks} looks");
        assert!(cloud.progress.last() > begun, "{transport}: no progress was noted");
    }
}

#[tokio::test]
async fn a_length_that_nobody_may_send_and_an_end_too_early_are_errors() {
    let ends = Ends::new();
    for (bytes, wanted) in [
        (&[0xff, 0, 0, 0, 1][..], "peer sent a frame of 4278190080 bytes"),
        (&[0, 1, 0, 1, 1], "peer sent a frame of 65537 bytes"),
        (&[0, 0, 0, 9, 1], "link ended in the middle of a frame"),
        (&[0, 0], "link ended in the middle of a frame"),
    ] {
        let port = ends.quic_port();
        let edge = async {
            let mut tls = (*ends.client).clone();
            tls.alpn_protocols = vec![b"skerry/2".to_vec()];
            let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
            let config = quinn::ClientConfig::new(Arc::new(crypto));
            let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let connecting = endpoint.connect_with(config, port.local_addr().unwrap(), "127.0.0.1").unwrap();
            let connection = connecting.await.unwrap();
            let mut sender = connection.open_uni().await.unwrap();
            sender.write_all(bytes).await.unwrap();
            sender.finish().unwrap();
            (connection, sender)
        };
        let cloud = async { quic::accept(port.accept().await.unwrap().await.unwrap()).await.unwrap() };
        let (_edge, cloud) = tokio::join!(edge, cloud);
        let error = End::of(cloud).next().await.unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}");
    }
}

#[tokio::test]
async fn pieces_that_nobody_may_send_are_errors() {
    let large = vec![0; 40_000];
    for (messages, wanted) in [
        (vec![Message::Binary(Bytes::new())], "peer sent a piece of a frame on no lane"),
        (vec![Message::Binary(Bytes::from_static(&[3, 0]))], "peer sent a piece of a frame on no lane"),
        (vec![Message::text("{}")], "peer sent a frame that is not binary"),
        (
            vec![websocket::whole(Lane::Control, &[large.clone(), large].concat())],
            "peer sent a frame of 80000 bytes",
        ),
    ] {
        let (client, server) = duplex(1 << 20);
        let peer = (Ipv4Addr::LOCALHOST, 1).into();
        let mut cloud = End::of(websocket::server(server, peer, Progress::new()).await);
        let mut edge = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        for message in messages {
            edge.send(message).await.unwrap();
        }
        let error = cloud.next().await.unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}");
    }
}

/// What is sent before the handshake is over could be sent again by anybody: a client that would like to, with a ticket of the
/// session before, may not.
#[tokio::test]
async fn nothing_is_said_before_the_handshake_is_over() {
    let ends = Ends::new();
    assert_eq!(ends.server.max_early_data_size, 0);
    let port = ends.quic_port();
    let mut tls = (*ends.client).clone();
    tls.enable_early_data = true;
    let mut over_quic = tls.clone();
    over_quic.alpn_protocols = vec![b"skerry/2".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(over_quic).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    for _ in 0..2 {
        let address = port.local_addr().unwrap();
        let connecting = endpoint.connect_with(config.clone(), address, "127.0.0.1").unwrap();
        let connecting = connecting.into_0rtt().map(drop).expect_err("it would speak at once");
        let (edge, cloud) = tokio::join!(connecting, async { port.accept().await.unwrap().await.unwrap() });
        let edge = edge.unwrap();
        // The ticket comes after the handshake, before this.
        cloud.open_uni().await.unwrap().write_all(b"x").await.unwrap();
        edge.accept_uni().await.unwrap();
    }

    let tls = Arc::new(tls);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for first in [true, false] {
        let cloud = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut stream = TlsAcceptor::from(Arc::new(ends.server.clone())).accept(tcp).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream
        };
        let edge = async {
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let connector = TlsConnector::from(Arc::clone(&tls));
            let mut stream = connector.connect(ends.name.clone(), tcp).await.unwrap();
            stream.read_u8().await.unwrap();
            stream
        };
        let (edge, cloud) = tokio::join!(edge, cloud);
        // So there is a ticket.
        let kind = cloud.get_ref().1.handshake_kind();
        assert!(first || kind == Some(rustls::HandshakeKind::Resumed), "{kind:?}");
        drop(edge);
        let mut next = rustls::ClientConnection::new(Arc::clone(&tls), ends.name.clone()).unwrap();
        assert!(next.early_data().is_none(), "it may speak at once");
    }
}

/// Whichever end knows of it.
#[tokio::test]
async fn tcp_keeps_to_packets_that_a_narrow_line_carries() {
    let any = (Ipv4Addr::LOCALHOST, 0);
    for (edge, cloud) in [(true, false), (false, true), (true, true)] {
        let listener = TcpListener::bind(any).await.unwrap();
        if cloud {
            prepare_listener(&listener).unwrap();
        }
        let address = listener.local_addr().unwrap();
        let connecting =
            async { if edge { connect(&[address]).await } else { TcpStream::connect(address).await } };
        let (here, there) = tokio::join!(connecting, listener.accept());
        for tcp in [here.unwrap(), there.unwrap().0] {
            let longest = SockRef::from(&tcp).tcp_mss().unwrap();
            assert!(longest <= SEGMENT, "edge {edge}, cloud {cloud}: {longest} bytes in a packet");
        }
    }
}

#[tokio::test]
async fn the_first_address_that_answers_is_taken() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let good = listener.local_addr().unwrap();
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    assert_eq!(connect(&[gone, good]).await.unwrap().peer_addr().unwrap(), good);
    assert_eq!(connect(&[gone]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(connect(&[]).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn who_is_refused_over_quic_is_told_why() {
    let ends = Ends::new();
    let port = ends.quic_port();
    let cloud = async {
        let connection = port.accept().await.unwrap().await.unwrap();
        quic::refuse(&connection, 403, "node edge-1 belongs to another machine\n");
        connection
    };
    let edge = async {
        match ends.over_quic(&port).await {
            Ok(link) => End::of(link).next().await.unwrap_err(),
            Err(error) => error,
        }
    };
    let (_cloud, error) = tokio::join!(cloud, edge);
    let error = error.to_string();
    assert!(error.ends_with("HTTP 403: node edge-1 belongs to another machine"), "{error}");
}

/// Carries datagrams between the edge and whichever cloud it is told, and to the edge those of that cloud alone.
struct Relay {
    address: SocketAddr,
    cloud: watch::Sender<SocketAddr>,
    /// What has gone through, with the headers of UDP and IPv4.
    bytes: Arc<AtomicU64>,
    /// The longest datagram that is carried.
    longest: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Relay {
    async fn to(cloud: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (cloud, current) = watch::channel(cloud);
        let bytes = Arc::<AtomicU64>::default();
        let longest = Arc::new(AtomicUsize::new(usize::MAX));
        let (counted, carried) = (Arc::clone(&bytes), Arc::clone(&longest));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let (mut edge, mut datagram) = (None, [0; 2048]);
            loop {
                let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
                counted.fetch_add(length as u64 + HEADERS, Ordering::Relaxed);
                if length > carried.load(Ordering::Relaxed) {
                    continue;
                }
                let cloud = *current.borrow();
                let to = match edge {
                    _ if from == cloud => edge,
                    None => {
                        edge = Some(from);
                        Some(cloud)
                    }
                    Some(edge) => (from == edge).then_some(cloud),
                };
                if let Some(to) = to {
                    socket.send_to(&datagram[..length], to).await.unwrap();
                }
            }
        });
        Self { address, cloud, bytes, longest, _task: task }
    }

    /// The bytes so far, once nothing goes through any more.
    async fn settled(&self) -> u64 {
        let mut before = u64::MAX;
        loop {
            let now = self.bytes.load(Ordering::Relaxed);
            if now == before {
                return now;
            }
            before = now;
            // Longer than an acknowledgement is put off.
            time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// An edge and a cloud over QUIC, with a relay between them.
async fn over_a_relay(ends: &Ends, port: &quinn::Endpoint) -> (End, End, Relay) {
    let line = Relay::to(port.local_addr().unwrap()).await;
    let cloud = async { quic::accept(port.accept().await.unwrap().await.unwrap()).await.unwrap() };
    let edge = async {
        let address = line.address;
        let link = quic::connect(address, &address.to_string(), &ends.name, &ends.client).await.unwrap();
        let edge = End::of(link);
        edge.frames.push(Lane::Control, Bytes::from_static(HELLO));
        edge
    };
    let (edge, cloud) = tokio::join!(edge, cloud);
    let mut cloud = End::of(cloud);
    assert_eq!(cloud.next().await.unwrap().as_deref(), Some(HELLO));
    (edge, cloud, line)
}

/// Either end finds it out of what it has written itself: at a round trip of a second, which a machine short of CPU makes of this
/// line, after some 25 s.
#[tokio::test]
async fn a_line_that_swallows_long_packets_is_given_up_over_quic() {
    let ends = Ends::new();
    let port = ends.quic_port();
    let (mut edge, mut cloud, line) = over_a_relay(&ends, &port).await;
    let large = Bytes::from(vec![7; 3000]);
    edge.send(Lane::Objects, &large).await;
    assert_eq!(cloud.next().await.unwrap(), Some(large.clone()));
    // What is sent again may be some bytes shorter than before, and would get through at 1199.
    line.longest.store(1100, Ordering::Relaxed);
    for end in [&edge, &cloud] {
        end.send(Lane::Objects, &large).await;
    }
    for end in [&mut edge, &mut cloud] {
        let ended = time::timeout(3 * LONG, end.writer.join_next()).await.expect("nobody finds it out");
        let error = ended.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, LinkError::Narrow), "{error}");
    }
}

/// On metered lines each beat is paid for.
#[tokio::test]
async fn a_quiet_line_carries_less_than_twelve_kilobytes_an_hour() {
    const PINGS: usize = 5;
    let ends = Ends::new();
    let port = ends.quic_port();
    let (edge, mut cloud, line) = over_a_relay(&ends, &port).await;
    let opened = line.settled().await;
    assert!(opened < 8_000, "opening the link took {opened} bytes");
    let (mut before, mut beats) = (opened, Vec::new());
    for _ in 0..PINGS {
        let ping = codec::encode(Body::Ping(Ping::default())).unwrap();
        edge.frames.push(Lane::Control, ping.clone());
        assert_eq!(cloud.next().await.unwrap(), Some(ping));
        let now = line.settled().await;
        beats.push(now - before);
        before = now;
    }
    // A machine that stands still in between has one of them sent again.
    beats.sort_unstable();
    let a_beat = beats[PINGS / 2];
    let an_hour = a_beat * 3600 / quic::HEARTBEAT.as_secs();
    assert!(an_hour < 12_000, "{a_beat} bytes a beat, {an_hour} an hour");
    eprintln!("opening a link over QUIC: {opened} bytes; a beat: {a_beat} bytes, {an_hour} an hour");
}

/// As after `kill -9` and a start: nothing is known there of the connection, and whoever had it is asked to speak.
#[tokio::test]
async fn a_cloud_that_knows_no_such_connection_says_so_to_the_next_ping() {
    let ends = Ends::new();
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (before, after) = (ends.quic_port(), ends.quic_on(socket.try_clone().unwrap()));
    let (mut edge, _cloud, line) = over_a_relay(&ends, &before).await;
    line.settled().await;
    line.cloud.send(after.local_addr().unwrap()).unwrap();
    let heard = edge.progress.last();
    knock(&socket, line.address).unwrap();
    time::timeout(LONG, edge.knocks.heard()).await.expect("a knock");
    assert_eq!(edge.progress.last(), heard, "a knock is no sign of the peer's life");
    edge.frames.push(Lane::Control, Bytes::from_static(b"ping"));
    let error = edge.next().await.unwrap_err();
    assert!(chain(&error).to_string().contains("reset by peer"), "{}", chain(&error));
}

/// The other end of a handshake that fails.
async fn refused(transport: &str, server: rustls::ServerConfig, client: rustls::ClientConfig) -> LinkError {
    let (name, client) = (ServerName::try_from("127.0.0.1").unwrap(), Arc::new(client));
    let link = if transport == "quic" {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = quic::listen(socket, quic::server_config(server).unwrap(), b"secret").unwrap();
        let peer = port.local_addr().unwrap();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move { port.accept().await.unwrap().await.unwrap_err() });
        let link = quic::connect(peer, "cloud:1", &name, &client).await;
        accepting.join_next().await.unwrap().unwrap();
        link
    } else {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async {
            let (tcp, _) = listener.accept().await.unwrap();
            TlsAcceptor::from(Arc::new(server)).accept(tcp).await.map(drop).unwrap_err()
        };
        let connect = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            websocket::over(Line::over(tcp).unwrap(), "cloud:1", name, client).await
        };
        tokio::join!(connect, accept).0
    };
    match link {
        Ok(link) => {
            let mut end = End::of(link);
            end.frames.push(Lane::Control, Bytes::from_static(HELLO));
            end.receiver.receive().await.unwrap_err()
        }
        Err(error) => error,
    }
}

#[tokio::test]
async fn who_is_not_trusted_is_told_whose_ca_it_is() {
    tls::install_provider();
    let ca = || CertificateAuthority::generate().unwrap();
    let (ours, other) = (ca(), ca());
    let trusted = [ours.certificate().clone()];
    for transport in TRANSPORTS {
        for (trusts, holds, wanted) in [
            (&ours, &other, "cloudcore at cloud:1 does not trust the CA of this node's certificate"),
            (&other, &ours, "cloudcore at cloud:1 has a certificate of a CA that this node does not trust"),
        ] {
            let (chain, key) = ours.issue_server(&["127.0.0.1".to_owned()]).unwrap();
            let server = tls::server_config(chain, key, &trusted, Duration::ZERO).unwrap();
            let (key, csr) = tls::node_csr(NODE).unwrap();
            let chain = vec![CertificateDer::from(holds.sign_node_csr(&csr, NODE, LONG).unwrap())];
            let trusts = [trusts.certificate().clone()];
            let client = tls::client_config(&trusts, chain, tls::pkcs8(key), Arc::default()).unwrap();
            let error = time::timeout(LONG, refused(transport, server, client)).await.unwrap();
            assert!(error.to_string().starts_with(wanted), "{transport}: {}", chain_of(&error));
        }
    }
}

fn chain_of(error: &LinkError) -> String {
    chain(error).to_string()
}

/// One that would not verify the client's certificate: whom it lets in has gone on with an earlier session.
#[tokio::test]
async fn an_earlier_session_is_gone_on_with_at_any_server_that_has_the_secret() {
    tls::install_provider();
    let ca = || CertificateAuthority::generate().unwrap();
    let (ours, other) = (ca(), ca());
    for transport in TRANSPORTS {
        let server = |trusted: &CertificateAuthority, secret: &[u8]| {
            let (chain, key) = ours.issue_server(&["127.0.0.1".to_owned()]).unwrap();
            let trusted = [trusted.certificate().clone()];
            tls::resumable(tls::server_config(chain, key, &trusted, Duration::ZERO).unwrap(), secret)
        };
        let client = || {
            let (key, csr) = tls::node_csr(NODE).unwrap();
            let chain = vec![CertificateDer::from(ours.sign_node_csr(&csr, NODE, LONG).unwrap())];
            let trusts = [ours.certificate().clone()];
            Arc::new(tls::client_config(&trusts, chain, tls::pkcs8(key), Arc::default()).unwrap())
        };
        let edge = client();
        let gets_in = async |server, client: &Arc<rustls::ClientConfig>| {
            time::timeout(LONG, Box::pin(shown(transport, server, client))).await.unwrap()
        };
        assert!(gets_in(server(&ours, b"s"), &edge).await.is_some(), "{transport}");
        // Each session brings the ticket for the next one.
        for _ in 0..2 {
            let certificate = gets_in(server(&other, b"s"), &edge).await.expect(transport);
            assert_eq!(tls::node_of(&certificate).as_deref(), Some(NODE), "{transport}");
        }
        // Another client has none of them, and where the secret is another one they are worth nothing.
        assert!(gets_in(server(&other, b"s"), &client()).await.is_none(), "{transport}");
        assert!(gets_in(server(&other, b"another"), &edge).await.is_none(), "{transport}");
    }
}

/// The certificate by which a server knows a client that it has let in, and that has heard from it.
async fn shown(
    transport: &str,
    server: rustls::ServerConfig,
    client: &Arc<rustls::ClientConfig>,
) -> Option<CertificateDer<'static>> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let (mut edge, cloud, certificate) = if transport == "quic" {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = quic::listen(socket, quic::server_config(server).unwrap(), b"secret").unwrap();
        let peer = port.local_addr().unwrap();
        let accept = async {
            let connection = port.accept().await.unwrap().await.ok()?;
            let certificate = quic::peer_certificate(&connection).unwrap();
            Some((quic::accept(connection).await.unwrap(), certificate))
        };
        let connect = async {
            let end = End::of(quic::connect(peer, "cloud:1", &name, client).await.unwrap());
            end.frames.push(Lane::Control, Bytes::from_static(HELLO));
            end
        };
        let (edge, accepted) = tokio::join!(connect, accept);
        let (cloud, certificate) = accepted?;
        (edge, cloud, certificate)
    } else {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async {
            let (tcp, peer) = listener.accept().await.unwrap();
            let stream = TlsAcceptor::from(Arc::new(server)).accept(Watched::new(tcp)).await.ok()?;
            let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
            let progress = stream.get_ref().0.progress();
            let upgraded = tokio_tungstenite::accept_async(stream).await.unwrap();
            Some((websocket::server(upgraded.into_inner(), peer, progress).await, certificate))
        };
        let connect = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            websocket::over(Line::over(tcp).unwrap(), "cloud:1", name, Arc::clone(client)).await
        };
        let (edge, accepted) = tokio::join!(connect, accept);
        let (cloud, certificate) = accepted?;
        (End::of(edge.unwrap()), cloud, certificate)
    };
    let cloud = End::of(cloud);
    cloud.frames.push(Lane::Control, Bytes::from_static(HELLO));
    assert_eq!(edge.next().await.unwrap().as_deref(), Some(HELLO));
    Some(certificate)
}
