use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::PathBuf,
};

use crds::componentconfig::sync::SyncStrategy;
use runtime::tls::{self, CertificateAuthority};
use rustls::pki_types::CertificateDer;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::edgehub::{
    IdentityPaths,
    places::{self, Place},
};

const LONG: Duration = Duration::from_secs(20);
const NODE: &str = "edge-1";

/// cloudcore's port: TCP is answered, and UDP lies in the socket until somebody listens.
struct Port {
    server: rustls::ServerConfig,
    client: Arc<ClientConfig>,
    udp: UdpSocket,
    address: String,
    _tcp: JoinSet<()>,
}

impl Port {
    async fn open() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into()).await
    }

    async fn at(ip: IpAddr) -> Self {
        tls::install_provider();
        let ca = CertificateAuthority::generate().unwrap();
        let (chain, key) = ca.issue_server(&[ip.to_string()]).unwrap();
        let server =
            tls::server_config(chain, key, std::slice::from_ref(ca.certificate()), Duration::ZERO).unwrap();
        let (key, csr) = tls::node_csr(NODE).unwrap();
        let chain = vec![CertificateDer::from(ca.sign_node_csr(&csr, NODE, LONG).unwrap())];
        let client =
            tls::client_config(&[ca.certificate().clone()], chain, tls::pkcs8(key), Arc::default()).unwrap();
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let udp = UdpSocket::bind(address).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server.clone()));
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut open = Vec::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                // One that the edge gave up is no concern of ours.
                let Ok(stream) = acceptor.accept(tcp).await else { continue };
                open.extend(tokio_tungstenite::accept_async(stream).await);
            }
        });
        Self { server, client: Arc::new(client), udp, address: address.to_string(), _tcp: accepting }
    }

    fn transports(&self, websocket: bool, quic: bool) -> Transports {
        let file = PathBuf::new();
        let config = HubConfig {
            node: NODE.to_owned(),
            server: self.address.clone(),
            proxy: String::new(),
            proxy_ca_file: String::new(),
            websocket,
            quic: quic.then(|| self.address.clone()),
            quic_probes: (Duration::from_millis(20), Duration::from_millis(100)),
            heartbeat: LONG,
            handshake_timeout: LONG,
            write_deadline: LONG,
            sync: SyncStrategy::default(),
            identity: IdentityPaths { ca: file.clone(), certificate: file.clone(), key: file.clone() },
            token_file: file,
            token: String::new(),
        };
        Transports::new(&config, (&config.server, config.quic.as_deref()), None).unwrap()
    }

    /// From now on UDP gets through.
    fn answer_udp(&self) -> (quinn::Endpoint, JoinSet<()>) {
        let socket = self.udp.try_clone().unwrap();
        let config = quic::server_config(self.server.clone()).unwrap();
        let endpoint = quic::listen(socket, config, b"secret").unwrap();
        let mut accepting = JoinSet::new();
        let accept = endpoint.clone();
        accepting.spawn(async move {
            let mut open = Vec::new();
            while let Some(incoming) = accept.accept().await {
                open.extend(incoming.await);
            }
        });
        (endpoint, accepting)
    }

    /// What carries the next link, and how long it took to come up.
    async fn connect(&self, transports: &mut Transports) -> (&'static str, Duration) {
        let begun = Instant::now();
        let link = time::timeout(LONG, transports.connect(&self.client, Manner::Usual, Heard::default()))
            .await
            .unwrap()
            .unwrap();
        (link.transport, begun.elapsed())
    }
}

#[tokio::test]
async fn a_cloudcore_that_is_busy_is_not_asked_again_over_the_websocket() {
    let port = Port::open().await;
    let config = quic::server_config(port.server.clone()).unwrap();
    let cloud = quic::listen(port.udp.try_clone().unwrap(), config, b"secret").unwrap();
    let mut refusing = JoinSet::new();
    refusing.spawn(async move { cloud.accept().await.unwrap().refuse() });
    let mut transports = port.transports(true, true);
    let link = transports.connect(&port.client, Manner::Usual, Heard::default()).await;
    assert!(matches!(link, Err(LinkError::Busy { .. })), "{:?}", link.err());
    let _answering = port.answer_udp();
    assert_eq!(port.connect(&mut transports).await.0, "quic", "and it is tried first the next time");
}

#[tokio::test]
async fn where_udp_is_swallowed_the_websocket_is_up_soon_and_quic_comes_back() {
    let port = Port::open().await;
    let mut transports = port.transports(true, true);
    let (transport, took) = port.connect(&mut transports).await;
    assert!(transport == "websocket" && took < Duration::from_secs(3), "{transport} after {took:?}");
    // It is remembered.
    let (transport, took) = port.connect(&mut transports).await;
    assert!(transport == "websocket" && took < HEAD_START, "{transport} after {took:?}");

    let _answering = port.answer_udp();
    let link = time::timeout(LONG, transports.quic_again(|| Some(Arc::clone(&port.client)))).await.unwrap();
    assert_eq!(link.transport, "quic");
    let (transport, took) = port.connect(&mut transports).await;
    assert!(transport == "quic" && took < HEAD_START, "{transport} after {took:?}");

    // Up, but of no use.
    transports.quic_failed();
    assert_eq!(port.connect(&mut transports).await.0, "websocket");
}

#[tokio::test]
async fn either_transport_speaks_ipv6() {
    let port = Port::at(Ipv6Addr::LOCALHOST.into()).await;
    let _answering = port.answer_udp();
    for (websocket, quic, wanted) in [(true, false, "websocket"), (false, true, "quic")] {
        let mut transports = port.transports(websocket, quic);
        assert_eq!(port.connect(&mut transports).await.0, wanted);
    }
}

#[tokio::test]
async fn what_is_switched_off_is_not_used() {
    let port = Port::open().await;
    let mut transports = port.transports(true, false);
    assert_eq!(port.connect(&mut transports).await.0, "websocket");
    let again = time::timeout(HEAD_START, transports.quic_again(|| Some(Arc::clone(&port.client)))).await;
    assert!(again.is_err(), "QUIC is probed");

    let mut transports = port.transports(false, true);
    let waiting =
        time::timeout(2 * HEAD_START, transports.connect(&port.client, Manner::Usual, Heard::default()))
            .await;
    assert!(waiting.is_err(), "a link without QUIC");
    let _answering = port.answer_udp();
    assert_eq!(port.connect(&mut transports).await.0, "quic");
}

#[tokio::test]
async fn a_cloud_that_is_not_there_is_told_soon() {
    let port = Port::open().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut transports = port.transports(true, true);
    for server in [&mut transports.quic, &mut transports.websocket] {
        server.as_mut().unwrap().address.clone_from(&nobody);
    }
    let error = time::timeout(
        2 * (HEAD_START + LAST_CHANCE),
        transports.connect(&port.client, Manner::Usual, Heard::default()),
    )
    .await;
    let error = chain(&error.unwrap().err().unwrap()).to_string();
    assert!(error.contains("refused"), "{error}");
}

impl Port {
    fn place(&self, websocket: bool) -> Place {
        let server = Server::parse("websocket.server", &self.address).unwrap();
        Place { server, transports: self.transports(websocket, !websocket) }
    }
}

#[tokio::test]
async fn a_cloudcore_that_answers_nothing_costs_two_seconds_and_less_in_doubt() {
    let (silent, good) = (Port::open().await, Port::open().await);
    let _answering = good.answer_udp();
    for (manner, wanted) in [(Manner::Usual, 2.0..3.5), (Manner::InDoubt, 0.5..2.0)] {
        // The order is that of the list, from the one where it is begun.
        for (from, at) in [(0, 1), (1, 0)] {
            let mut places = [silent.place(false), good.place(false)];
            if from == 1 {
                places.swap(0, 1);
            }
            let begun = Instant::now();
            let dialed = time::timeout(LONG, places::dial(&mut places, from, &good.client, manner)).await;
            let (with, link) = dialed.unwrap().map_err(|(_, error)| error).unwrap();
            let took = begun.elapsed().as_secs_f64();
            assert_eq!((with, link.transport), (at, "quic"));
            assert!(wanted.contains(&took), "{manner:?}: {took}");
        }
    }
}

#[tokio::test]
async fn a_cloudcore_that_has_begun_to_answer_is_no_reason_to_dial_another() {
    // The kernel answers, and nobody accepts.
    let slow = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let good = Port::open().await;
    let mut places = [good.place(true), good.place(true)];
    let address = slow.local_addr().unwrap().to_string();
    places[0].transports.websocket.as_mut().unwrap().address = address;
    for manner in [Manner::Usual, Manner::InDoubt] {
        let dialing = places::dial(&mut places, 0, &good.client, manner);
        assert!(time::timeout(2 * HEAD_START, dialing).await.is_err(), "the other one was dialed");
    }
    // What fails is told, so that the next is not waited for.
    drop(slow);
    let failed =
        time::timeout(LONG, places::dial(&mut places, 0, &good.client, Manner::Usual)).await.unwrap();
    assert_eq!(failed.err().map(|(at, _)| at), Some(0));
}
