//! The cloud's end of a WebSocket, by hand.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use crds::componentconfig::sync::SyncStrategy;
use edgecore::edgehub::{HubConfig, IdentityPaths};
use futures_util::{SinkExt as _, StreamExt as _};
use proto::{
    codec,
    message::{Body, Hello, Welcome},
};
use runtime::{
    link::websocket,
    tls::{self, authority::CertificateAuthority},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

pub(crate) const LONG: Duration = Duration::from_secs(30);
pub(crate) const NODE: &str = "edge-1";

pub(crate) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// The cloud's port, under the test's control.
pub(crate) struct Cloud {
    listener: TcpListener,
    pub(crate) tls: Arc<rustls::ServerConfig>,
}

impl Cloud {
    /// A CA, a server certificate, and the identity of [`NODE`] in `dir`.
    pub(crate) async fn start(dir: &Path) -> Result<(Self, IdentityPaths, SocketAddr)> {
        tls::install_provider();
        let ca = CertificateAuthority::generate()?;
        let (chain, key) = ca.issue_server(&["127.0.0.1".to_owned()])?;
        let server = tls::server_config(chain, key, std::slice::from_ref(ca.certificate()), Duration::ZERO)?;
        let (key, csr) = tls::node_csr(NODE)?;
        let certificate = ca.sign_node_csr(&csr, NODE, Duration::from_hours(1))?;
        let paths = IdentityPaths {
            ca: dir.join("ca.crt"),
            certificate: dir.join("node.crt"),
            key: dir.join("node.key"),
        };
        tls::write_durably(&paths.ca, 0o644, tls::pem("CERTIFICATE", ca.certificate()).as_bytes())?;
        tls::write_durably(&paths.certificate, 0o644, tls::pem("CERTIFICATE", &certificate).as_bytes())?;
        tls::write_durably(&paths.key, 0o600, tls::pem("PRIVATE KEY", &key).as_bytes())?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        Ok((Self { listener, tls: Arc::new(server) }, paths, address))
    }

    /// The edge's next connection, after its hello.
    pub(crate) async fn accept(&self) -> Result<(Socket, Hello)> {
        let accepted = async {
            let mut socket = self.upgrade().await?;
            let Some(Ok(Message::Binary(frame))) = socket.next().await else { bail!("no hello") };
            let Body::Hello(hello) = codec::decode(frame.slice(1..))? else {
                bail!("the first frame is no hello")
            };
            Ok((socket, hello))
        };
        timeout(LONG, accepted).await.context("the edge did not come back")?
    }

    /// The edge's next connection, of which nothing is known yet.
    pub(crate) async fn upgrade(&self) -> Result<Socket> {
        let (tcp, _) = self.listener.accept().await?;
        let stream = TlsAcceptor::from(Arc::clone(&self.tls)).accept(tcp).await?;
        Ok(tokio_tungstenite::accept_async(stream).await?)
    }

    /// As [`Cloud::accept`], welcomed.
    pub(crate) async fn welcome(&self) -> Result<Socket> {
        let (mut socket, hello) = self.accept().await?;
        let welcome = Welcome { protocol: hello.protocol_max, ..Welcome::default() };
        socket.send(frame(Body::Welcome(welcome))?).await?;
        Ok(socket)
    }
}

/// An edge of that cloud, over the WebSocket alone, with a heartbeat of 5 s.
pub(crate) fn edge(identity: IdentityPaths, address: SocketAddr, dir: &Path) -> HubConfig {
    HubConfig {
        node: NODE.to_owned(),
        server: address.to_string(),
        proxy: String::new(),
        proxy_ca_file: String::new(),
        websocket: true,
        quic: None,
        quic_probes: (LONG, LONG),
        heartbeat: Duration::from_secs(5),
        handshake_timeout: LONG,
        write_deadline: LONG,
        sync: SyncStrategy::default(),
        identity,
        token_file: dir.join("token"),
        token: String::new(),
    }
}

pub(crate) fn frame(body: Body) -> Result<Message> {
    Ok(websocket::whole(body.lane(), &codec::encode(body)?))
}
