//! A line that says nothing any more, and one that is only thin, as cloudcore sees them. The edge's end of the connection is
//! in the test's hands, byte by byte, and so is the time, from the moment on that the session is up. The API server is out
//! of reach: a session needs none.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code, its helpers too")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use cloudcore::{
    cloudhub::{listener::CloudHub, registry::Registry, session::SessionContext},
    config::HubConfig,
    edgecontroller::{index::Index, lease::LeaseConfig, objects::KINDS, upstream::Upstream},
    metrics::{EndLabels, Metrics, TransportLabels},
};
use futures_util::{SinkExt as _, StreamExt as _};
use proto::{
    codec,
    message::{Body, Hello, PROTOCOL, Ping},
    session::timers::HANDSHAKE,
};
use runtime::{
    link::websocket,
    tls::{self, Authorities},
};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy_bidirectional, duplex},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{self, Instant},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};
use tokio_util::sync::CancellationToken;

const NODE: &str = "edge-1";
const BEAT: Duration = Duration::from_secs(10);
/// How far time goes at once. A paused clock goes on to the next timer even when it finds that a socket can be read.
const STEP: Duration = Duration::from_millis(10);
/// Whatever is to be read is read within a few steps, and timers count milliseconds.
const MARGIN: Duration = Duration::from_millis(100);

type Socket = WebSocketStream<TlsStream<DuplexStream>>;

/// A connection to cloudcore. What the edge has said waits in `wire` until the test takes it to `tcp`.
struct Line {
    _hub: JoinSet<()>,
    metrics: Metrics,
    tcp: TcpStream,
    wire: DuplexStream,
    socket: Socket,
}

fn context(metrics: &Metrics) -> SessionContext {
    // Nobody listens there.
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = kube::Client::try_from(config).unwrap();
    let index = Arc::new(Index::new());
    for kind in &KINDS {
        index.replace(kind, Vec::new(), Vec::new(), 1);
    }
    let upstream = Upstream::new(client.clone(), Arc::clone(&index), metrics.clone(), Arc::default());
    SessionContext {
        client,
        upstream: Arc::new(upstream.unwrap()),
        index,
        notes: Semaphore::new(1),
        leases: Arc::new(Semaphore::new(1)),
        registry: Arc::new(Registry::default()),
        patches: Arc::default(),
        metrics: metrics.clone(),
        hub: HubConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            quic: None,
            names: vec!["127.0.0.1".to_owned()],
            node_limit: 1,
            keepalive: 10 * BEAT,
            write_timeout: BEAT,
            certificate_validity: Duration::from_hours(1),
            certificate_grace: Duration::ZERO,
        },
        lease: LeaseConfig { renew_every: BEAT, duration: 4 * BEAT },
    }
}

/// cloudcore's port alone.
struct Port {
    hub: JoinSet<()>,
    metrics: Metrics,
    address: SocketAddr,
    client: Arc<ClientConfig>,
}

impl Port {
    async fn open() -> Self {
        tls::install_provider();
        let authorities = Authorities::generate().unwrap();
        let ca = authorities.issuer();
        let (key, csr) = tls::node_csr(NODE).unwrap();
        let certificate = ca.sign_node_csr(&csr, NODE, Duration::from_hours(1)).unwrap();
        let chain = vec![CertificateDer::from(certificate)];
        let client =
            tls::client_config(&[ca.certificate().clone()], chain, tls::pkcs8(key), Arc::default()).unwrap();

        let metrics = Metrics::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hub = CloudHub::new(listener, None, Arc::new(context(&metrics)), authorities);
        let mut running = JoinSet::new();
        running.spawn(async move { hub.run(CancellationToken::new()).await.unwrap() });
        Self { hub: running, metrics, address, client: Arc::new(client) }
    }
}

impl Line {
    /// The upgrade is answered, and nothing is said.
    async fn open() -> Self {
        let Port { hub, metrics, address, client } = Port::open().await;
        let mut tcp = TcpStream::connect(address).await.unwrap();
        // Else the kernel waits for an answer before it sends the next few bytes, and its time is not the test's.
        tcp.set_nodelay(true).unwrap();
        // Room for all that a test says.
        let (edge, mut wire) = duplex(1 << 20);
        let upgrade = async {
            let connector = TlsConnector::from(client);
            let name = ServerName::IpAddress(address.ip().into());
            let tls = connector.connect(name, edge).await.unwrap();
            client_async(format!("wss://{address}/link"), tls).await.unwrap().0
        };
        let socket = tokio::select! {
            socket = upgrade => socket,
            ended = copy_bidirectional(&mut tcp, &mut wire) => panic!("{ended:?}"),
        };
        Self { _hub: hub, metrics, tcp, wire, socket }
    }

    /// After the hello and the welcome.
    async fn greeted() -> Self {
        let mut line = Self::open().await;
        let Self { tcp, wire, socket, .. } = &mut line;
        let hello = Hello {
            protocol_min: PROTOCOL.0,
            protocol_max: PROTOCOL.1,
            node: NODE.to_owned(),
            heartbeat_ms: u32::try_from(BEAT.as_millis()).unwrap(),
            ..Hello::default()
        };
        let welcomed = async {
            socket.send(frame(Body::Hello(hello))).await.unwrap();
            let Some(Ok(Message::Binary(frame))) = socket.next().await else { panic!("no welcome") };
            assert!(matches!(codec::decode(frame.slice(1..)), Ok(Body::Welcome(_))), "no welcome");
        };
        tokio::select! {
            () = welcomed => {}
            ended = copy_bidirectional(tcp, wire) => panic!("{ended:?}"),
        }
        line
    }

    fn is_up(&self) -> bool {
        self.metrics.sessions.get_or_create(&TransportLabels { transport: "websocket" }).get() == 1
    }

    /// How long cloudcore still takes the silent line for a line.
    async fn until_given_up(&self) -> Duration {
        let begun = Instant::now();
        while self.is_up() {
            assert!(begun.elapsed() < 10 * BEAT, "the line is not given up");
            time::sleep(STEP).await;
        }
        let ends = &self.metrics.session_ends;
        assert_eq!(ends.get_or_create(&EndLabels { reason: "silent" }).get(), 1);
        begun.elapsed()
    }
}

fn frame(body: Body) -> Message {
    websocket::whole(body.lane(), &codec::encode(body).unwrap())
}

async fn pass(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        time::sleep(STEP).await;
    }
}

#[tokio::test]
async fn an_edge_that_says_no_hello_is_given_up_in_time() {
    let line = Line::open().await;
    time::pause();
    pass(MARGIN).await;
    assert!(line.is_up(), "there is no session");
    let given_up = line.until_given_up().await;
    assert!(given_up <= HANDSHAKE, "{given_up:?}");
}

#[tokio::test]
async fn a_line_that_falls_silent_is_given_up_after_two_heartbeats() {
    let line = Line::greeted().await;
    time::pause();
    let given_up = line.until_given_up().await;
    assert!(given_up > BEAT && given_up <= 2 * BEAT + MARGIN, "{given_up:?}");
}

#[tokio::test]
async fn a_few_bytes_of_a_large_frame_are_a_sign_of_life() {
    let mut line = Line::greeted().await;
    time::pause();
    // More than one record of TLS, of which not one comes through whole.
    line.socket.send(Message::Binary(vec![7; 100_000].into())).await.unwrap();
    let begun = Instant::now();
    let mut few = [0; 7];
    while begun.elapsed() < BEAT * 9 / 2 {
        pass(BEAT / 2).await;
        line.wire.read_exact(&mut few).await.unwrap();
        line.tcp.write_all(&few).await.unwrap();
        assert!(line.is_up(), "given up after {:?}", begun.elapsed());
    }
    let given_up = line.until_given_up().await;
    assert!(given_up.abs_diff(2 * BEAT) <= MARGIN, "{given_up:?}");
}

/// A process that was stopped: what has come meanwhile is looked at first.
#[tokio::test]
async fn what_came_while_nobody_looked_is_a_sign_of_life() {
    let mut line = Line::greeted().await;
    time::pause();
    // More than once, because chance decides what is looked at first where nothing else does.
    for round in 0..16 {
        line.socket.send(frame(Body::Ping(Ping::default()))).await.unwrap();
        let mut said = [0; 64];
        let length = line.wire.read(&mut said).await.unwrap();
        assert_eq!(line.tcp.try_write(&said[..length]).unwrap(), length);
        time::advance(3 * BEAT).await;
        pass(MARGIN).await;
        assert!(line.is_up(), "round {round}: given up");
    }
}

/// Those who say nothing, and those who begin TLS and say no more: both have an address of their own, and none of it is used up.
#[tokio::test]
async fn strangers_who_hang_in_their_handshake_keep_nobody_out() {
    let port = Port::open().await;
    let name = ServerName::IpAddress(port.address.ip().into());
    let mut hello = Vec::new();
    ClientConnection::new(Arc::clone(&port.client), name.clone()).unwrap().write_tls(&mut hello).unwrap();
    let mut strangers = Vec::new();
    for number in 0..1200 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
        let mut tcp = socket.connect(port.address).await.unwrap();
        if number % 2 == 0 {
            // It may have been shown out at once.
            drop(tcp.write_all(&hello).await);
        }
        strangers.push(tcp);
    }
    let connector = TlsConnector::from(Arc::clone(&port.client));
    let welcome =
        async { connector.connect(name, TcpStream::connect(port.address).await.unwrap()).await.unwrap() };
    // Half of what a stranger has to go through its handshake.
    time::timeout(Duration::from_secs(5), welcome).await.expect("a node is kept out");
}

/// A node may open more links than it goes on to use: not all that there is room for.
#[tokio::test]
async fn links_that_say_no_hello_keep_nobody_out() {
    let port = Port::open().await;
    let text = port.address.to_string();
    let name = || ServerName::IpAddress(port.address.ip().into());
    let link = || websocket::connect(&text, name(), Arc::clone(&port.client));
    let mut links = Vec::new();
    for _ in 0..600 {
        links.push(link().await.unwrap());
    }
    let crowded_out = port.metrics.session_ends.get_or_create_owned(&EndLabels { reason: "crowded out" });
    assert!(crowded_out.get() > 0, "there is room for all of them");
    time::timeout(Duration::from_secs(5), link()).await.expect("a node is kept out").unwrap();
}
