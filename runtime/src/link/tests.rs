//! Both transports, held to the same.

use std::{net::Ipv4Addr, sync::Arc};

use proto::limits::MAX_FRAME;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{net::TcpListener, time};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::tls::{self, CertificateAuthority};

const TRANSPORTS: [&str; 2] = ["quic", "websocket"];
const LONG: Duration = Duration::from_secs(20);
const NODE: &str = "edge-1";

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
        let server = tls::server_config(chain, key, std::slice::from_ref(ca.certificate())).unwrap();
        let (key, csr) = tls::node_csr(NODE).unwrap();
        let chain = vec![CertificateDer::from(ca.sign_node_csr(&csr, NODE, LONG).unwrap())];
        let client = tls::client_config(&[ca.certificate().clone()], chain, tls::pkcs8(key)).unwrap();
        Self { server, client: Arc::new(client), name: ServerName::try_from("127.0.0.1").unwrap() }
    }

    fn quic_port(&self) -> quinn::Endpoint {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        quic::listen(socket, quic::server_config(self.server.clone()).unwrap()).unwrap()
    }

    async fn over_quic(&self, port: &quinn::Endpoint) -> Result<Link, LinkError> {
        let peer = port.local_addr().unwrap();
        quic::connect(peer, &peer.to_string(), &self.name, &self.client).await
    }

    /// The edge's end, which has sent `first`, and the cloud's.
    async fn link(&self, transport: &str, first: &Bytes) -> (Link, Link) {
        let greet = async |mut link: Link| {
            link.sender.send(first.clone()).await.unwrap();
            link
        };
        if transport == "quic" {
            let port = self.quic_port();
            let cloud = async {
                let connection = port.accept().await.unwrap().await.unwrap();
                let certificate = quic::peer_certificate(&connection).unwrap();
                assert_eq!(tls::node_of(&certificate).as_deref(), Some(NODE));
                quic::accept(connection).await.unwrap()
            };
            let edge = async { greet(self.over_quic(&port).await.unwrap()).await };
            return tokio::join!(edge, cloud);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let cloud = async {
            let (tcp, peer) = listener.accept().await.unwrap();
            let stream =
                TlsAcceptor::from(Arc::new(self.server.clone())).accept(Watched::new(tcp)).await.unwrap();
            let progress = stream.get_ref().0.progress();
            let upgraded = tokio_tungstenite::accept_async(stream).await.unwrap();
            websocket::server(upgraded.into_inner(), peer, progress).await
        };
        let edge = async {
            let text = address.to_string();
            let link = websocket::connect(&text, self.name.clone(), Arc::clone(&self.client)).await;
            greet(link.unwrap()).await
        };
        tokio::join!(edge, cloud)
    }
}

async fn next(link: &mut Link) -> Result<Option<Bytes>, LinkError> {
    time::timeout(LONG, link.receiver.receive()).await.expect("nothing comes")
}

#[tokio::test]
async fn frames_keep_their_order_and_their_ends() {
    let ends = Ends::new();
    for transport in TRANSPORTS {
        let hello = Bytes::from_static(b"hello");
        let (mut edge, mut cloud) = Box::pin(ends.link(transport, &hello)).await;
        assert_eq!((edge.transport, cloud.transport), (transport, transport));
        assert_eq!(next(&mut cloud).await.unwrap(), Some(hello));
        let frames: Vec<Bytes> = [0, 1, 3, 0, 70_000, MAX_FRAME, 2]
            .iter()
            .enumerate()
            .map(|(number, length)| vec![u8::try_from(number).unwrap(); *length].into())
            .collect();
        for _ in 0..2 {
            let send = async {
                for frame in &frames {
                    edge.sender.send(frame.clone()).await.unwrap();
                }
            };
            let receive = async {
                for frame in &frames {
                    let received = next(&mut cloud).await.unwrap();
                    assert!(received.as_ref() == Some(frame), "{transport}: not the {} bytes", frame.len());
                }
            };
            tokio::join!(send, receive);
            std::mem::swap(&mut edge, &mut cloud);
        }
        edge.sender.send(frames[1].clone()).await.unwrap();
        let (closed, ()) = tokio::join!(edge.sender.close(), async {
            assert_eq!(next(&mut cloud).await.unwrap(), Some(frames[1].clone()), "{transport}");
            assert_eq!(next(&mut cloud).await.unwrap(), None, "{transport}");
        });
        closed.unwrap();
    }
}

/// Whoever waits for a frame may turn to something else at any time.
#[tokio::test]
async fn a_frame_that_comes_in_parts_is_not_lost_by_looking_away() {
    let ends = Ends::new();
    for transport in TRANSPORTS {
        let hello = Bytes::from_static(b"hello");
        let (mut edge, mut cloud) = Box::pin(ends.link(transport, &hello)).await;
        assert_eq!(next(&mut cloud).await.unwrap(), Some(hello));
        let frame = Bytes::from(vec![7; MAX_FRAME]);
        let begun = time::Instant::now();
        let mut looks = 0;
        let send = edge.sender.send(frame.clone());
        let receive = async {
            while begun.elapsed() < LONG {
                looks += 1;
                tokio::select! {
                    biased;
                    received = cloud.receiver.receive() => return received.unwrap(),
                    () = tokio::task::yield_now() => {}
                }
            }
            None
        };
        let (sent, received) = tokio::join!(send, receive);
        sent.unwrap();
        assert!(received == Some(frame), "{transport}: it did not arrive whole after {looks} looks");
        assert!(cloud.progress.last() > begun, "{transport}: no progress was noted");
    }
}

#[tokio::test]
async fn a_length_that_nobody_may_send_and_an_end_too_early_are_errors() {
    let ends = Ends::new();
    for (bytes, wanted) in [
        (&[0xff, 0, 0, 0, 1][..], "peer sent a frame of 4278190080 bytes"),
        (&[0, 0, 0, 9, 1], "link ended in the middle of a frame"),
        (&[0, 0], "link ended in the middle of a frame"),
    ] {
        let port = ends.quic_port();
        let edge = async {
            let mut tls = (*ends.client).clone();
            tls.alpn_protocols = vec![b"skerry/1".to_vec()];
            let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
            let config = quinn::ClientConfig::new(Arc::new(crypto));
            let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let connecting = endpoint.connect_with(config, port.local_addr().unwrap(), "127.0.0.1").unwrap();
            let connection = connecting.await.unwrap();
            let (mut sender, receiver) = connection.open_bi().await.unwrap();
            sender.write_all(bytes).await.unwrap();
            sender.finish().unwrap();
            (connection, sender, receiver)
        };
        let cloud = async { quic::accept(port.accept().await.unwrap().await.unwrap()).await.unwrap() };
        let (_edge, mut cloud) = tokio::join!(edge, cloud);
        let error = next(&mut cloud).await.unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}");
    }
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
        let mut link = match ends.over_quic(&port).await {
            Ok(link) => link,
            Err(error) => return error,
        };
        next(&mut link).await.unwrap_err()
    };
    let (_cloud, error) = tokio::join!(cloud, edge);
    let error = error.to_string();
    assert!(error.ends_with("HTTP 403: node edge-1 belongs to another machine"), "{error}");
}
