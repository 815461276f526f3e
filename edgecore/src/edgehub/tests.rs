//! A line that says nothing any more, and one that is only thin. The cloud's end of the connection is in the test's hands,
//! byte by byte, and so is the time, from the moment on that the session is up.

use std::path::Path;

use futures_util::{SinkExt as _, StreamExt as _};
use proto::{
    codec,
    message::{Body, Hello, Pong, Welcome},
    session::timers::HANDSHAKE,
};
use runtime::{
    link::websocket,
    tls::{self, authority::CertificateAuthority},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy_bidirectional, duplex},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::*;
use crate::metamanager::{Options, Store};

const NODE: &str = "edge-1";
const BEAT: Duration = Duration::from_secs(10);
/// How far time goes at once. A paused clock goes on to the next timer even when it finds that a socket can be read.
const STEP: Duration = Duration::from_millis(10);
/// Whatever is to be read is read within a few steps, and timers count milliseconds.
const MARGIN: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<TlsStream<DuplexStream>>;

/// A connection of the edge. What the cloud has said waits in `wire` until the test takes it to `tcp`.
struct Line {
    _hub: JoinSet<()>,
    _asks: mpsc::Sender<Ask>,
    _dir: TempDir,
    state: watch::Receiver<HubState>,
    tcp: TcpStream,
    wire: DuplexStream,
    socket: Socket,
    hello: Hello,
}

impl Line {
    /// The edge's hello is read, and nothing is answered.
    async fn open() -> Self {
        tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ca = CertificateAuthority::generate().unwrap();
        let (chain, key) = ca.issue_server(&["127.0.0.1".to_owned()]).unwrap();
        let server =
            tls::server_config(chain, key, std::slice::from_ref(ca.certificate()), Duration::ZERO).unwrap();
        let config = HubConfig {
            node: NODE.to_owned(),
            server: listener.local_addr().unwrap().to_string(),
            proxy: String::new(),
            proxy_ca_file: String::new(),
            websocket: true,
            quic: None,
            quic_probes: (LONG, LONG),
            heartbeat: BEAT,
            handshake_timeout: LONG,
            write_deadline: LONG,
            sync: SyncStrategy::default(),
            identity: identity(dir.path(), &ca),
            token_file: dir.path().join("token"),
            token: String::new(),
        };
        let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
        let (asks, asked) = mpsc::channel(1);
        let (hub, state) = EdgeHub::new(config, store, asked).unwrap();
        let mut running = JoinSet::new();
        running.spawn(async move { hub.run(CancellationToken::new()).await.unwrap() });

        let (mut tcp, _) = listener.accept().await.unwrap();
        // Else the kernel waits for an answer before it sends the next few bytes, and its time is not the test's.
        tcp.set_nodelay(true).unwrap();
        // Room for all that a test says.
        let (cloud, mut wire) = duplex(1 << 20);
        let greeted = async {
            let tls = TlsAcceptor::from(Arc::new(server)).accept(cloud).await.unwrap();
            let mut socket = tokio_tungstenite::accept_async(tls).await.unwrap();
            let Some(Ok(Message::Binary(frame))) = socket.next().await else { panic!("no hello") };
            let Body::Hello(hello) = codec::decode(frame.slice(1..)).unwrap() else { panic!("no hello") };
            (socket, hello)
        };
        let (socket, hello) = tokio::select! {
            greeted = greeted => greeted,
            ended = copy_bidirectional(&mut tcp, &mut wire) => panic!("{ended:?}"),
        };
        Self { _hub: running, _asks: asks, _dir: dir, state, tcp, wire, socket, hello }
    }

    /// After the hello and the welcome.
    async fn greeted() -> Self {
        let mut line = Self::open().await;
        let protocol = line.hello.protocol_max;
        let welcome = Welcome { protocol, ..Welcome::default() };
        line.socket.send(frame(Body::Welcome(welcome))).await.unwrap();
        tokio::select! {
            connected = line.state.wait_for(|state| state.connected) => drop(connected.unwrap()),
            ended = copy_bidirectional(&mut line.tcp, &mut line.wire) => panic!("{ended:?}"),
        }
        line
    }

    fn is_up(&self) -> bool {
        self.state.borrow().connected
    }

    /// How long the edge still takes the silent line for a line.
    async fn until_given_up(&mut self) -> Duration {
        let begun = Instant::now();
        let ended = self.state.wait_for(|state| state.last_error.contains("nothing heard from the peer"));
        time::timeout(10 * BEAT, ended).await.expect("the line is given up").unwrap();
        begun.elapsed()
    }
}

fn identity(dir: &Path, ca: &CertificateAuthority) -> IdentityPaths {
    let (key, csr) = tls::node_csr(NODE).unwrap();
    let certificate = ca.sign_node_csr(&csr, NODE, Duration::from_hours(1)).unwrap();
    let paths = IdentityPaths {
        ca: dir.join("ca.crt"),
        certificate: dir.join("node.crt"),
        key: dir.join("node.key"),
    };
    tls::write_durably(&paths.ca, 0o644, tls::pem("CERTIFICATE", ca.certificate()).as_bytes()).unwrap();
    tls::write_durably(&paths.certificate, 0o644, tls::pem("CERTIFICATE", &certificate).as_bytes()).unwrap();
    tls::write_durably(&paths.key, 0o600, tls::pem("PRIVATE KEY", &key).as_bytes()).unwrap();
    paths
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
async fn a_cloud_that_never_answers_is_given_up_in_time() {
    let mut line = Line::open().await;
    time::pause();
    let given_up = line.until_given_up().await;
    assert!(given_up <= HANDSHAKE + MARGIN, "{given_up:?}");
}

#[tokio::test]
async fn a_line_that_falls_silent_is_given_up_after_two_heartbeats() {
    let mut line = Line::greeted().await;
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
    assert_eq!(line.state.borrow().sessions, 1);
}

/// A process that was stopped, a disk that took its time: what has come meanwhile is looked at first.
#[tokio::test]
async fn what_came_while_nobody_looked_is_a_sign_of_life() {
    let mut line = Line::greeted().await;
    time::pause();
    // More than once, because chance decides what is looked at first where nothing else does.
    for round in 0..16 {
        line.socket.send(frame(Body::Pong(Pong::default()))).await.unwrap();
        let mut said = [0; 64];
        let length = line.wire.read(&mut said).await.unwrap();
        assert_eq!(line.tcp.try_write(&said[..length]).unwrap(), length);
        time::advance(3 * BEAT).await;
        pass(MARGIN).await;
        assert!(line.is_up(), "round {round}: given up");
    }
    assert_eq!(line.state.borrow().sessions, 1);
}
