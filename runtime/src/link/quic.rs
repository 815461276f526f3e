//! QUIC (RFC 9000): one bidirectional stream, opened by the edge; on it frames, each with its length before it in four
//! bytes (big-endian). The edge's address may change at any time, and the connection goes on.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{FutureExt, future::BoxFuture};
use proto::limits::MAX_FRAME;
use quinn::{
    ApplicationClose, Connection, ConnectionError, Endpoint, EndpointConfig, MtuDiscoveryConfig, ReadError,
    RecvStream, SendStream, TokioRuntime, TransportConfig, VarInt, WriteError,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls_pki_types::{CertificateDer, ServerName};

use super::{FrameReceiver, FrameSender, Link, LinkError, Progress};

/// The protocol's name in the handshake (RFC 7301); it changes when what the stream carries does.
const ALPN: &[u8] = b"skerry/1";
/// Bytes that may come before somebody reads them: on a round trip of 50 ms enough for 20 MB a second.
const RECEIVE_WINDOW: u32 = 1 << 20;
/// Bytes that wait here for the line or for its acknowledgement.
const SEND_WINDOW: u64 = 1 << 20;
/// Read at once.
const CHUNK: usize = 64 << 10;
/// Between searches for a larger packet size. A search sends full packets, and a quiet line is to stay quiet.
const MTU_SEARCH: Duration = Duration::from_hours(6);
/// Why a connection ends when nothing is wrong.
const CLOSED: VarInt = VarInt::from_u32(0);

/// TLS that cannot be used for QUIC.
#[derive(Debug, thiserror::Error)]
#[error("TLS has no cipher suite for QUIC")]
pub struct NoSuite(#[from] quinn::crypto::rustls::NoInitialCipherSuite);

fn transport() -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.interval(MTU_SEARCH);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        // The session knows how long a peer may be silent.
        .max_idle_timeout(None)
        .mtu_discovery_config(Some(mtu));
    transport
}

/// What cloudcore's end of the port does; to be set anew with each new certificate.
pub fn server_config(mut tls: rustls::ServerConfig) -> Result<quinn::ServerConfig, NoSuite> {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport()));
    Ok(config)
}

/// Listens for connections. To be called within a runtime.
pub fn listen(socket: UdpSocket, config: quinn::ServerConfig) -> io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))
}

/// The certificate that the peer has proven to hold, if it has shown one.
pub fn peer_certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

/// Tells a peer why it gets no link: `status` is that of the HTTP answer in the same case.
pub fn refuse(connection: &Connection, status: u16, reason: &str) {
    connection.close(VarInt::from_u32(status.into()), reason.trim_end().as_bytes());
}

/// The link, once the edge's first bytes are there.
pub async fn accept(connection: Connection) -> Result<Link, LinkError> {
    let address = connection.remote_address();
    let (sender, receiver) =
        connection.accept_bi().await.map_err(|error| lost(&address.to_string(), error))?;
    Ok(link(connection, sender, receiver, address.to_string()))
}

/// Connects to `peer`, and proves who both sides are. `address` is what people call it.
pub async fn connect(
    peer: SocketAddr,
    address: &str,
    server_name: &ServerName<'_>,
    tls: &rustls::ClientConfig,
) -> Result<Link, LinkError> {
    let failed = |source| LinkError::Connect { address: address.to_owned(), source };
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| failed(io::Error::other(error)))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).map_err(failed)?;
    let endpoint =
        Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).map_err(failed)?;
    let connecting = endpoint
        .connect_with(config, peer, &server_name.to_str())
        .map_err(|error| failed(io::Error::other(error)))?;
    let connection = connecting.await.map_err(|error| lost(address, error))?;
    let (sender, receiver) = connection.open_bi().await.map_err(|error| lost(address, error))?;
    Ok(link(connection, sender, receiver, address.to_owned()))
}

fn link(connection: Connection, sender: SendStream, stream: RecvStream, address: String) -> Link {
    let progress = Progress::new();
    let peer = connection.remote_address();
    let receiver =
        Receiver { stream, unread: BytesMut::new(), progress: progress.clone(), address: address.clone() };
    Link {
        sender: Box::new(Sender { stream: sender, connection, address }),
        receiver: Box::new(receiver),
        progress,
        peer,
        transport: "quic",
    }
}

struct Sender {
    stream: SendStream,
    connection: Connection,
    address: String,
}

impl FrameSender for Sender {
    fn send(&mut self, frame: Bytes) -> BoxFuture<'_, Result<(), LinkError>> {
        async {
            let length = u32::try_from(frame.len()).map_err(|_| LinkError::TooLong(frame.len()))?;
            let mut parts = [Bytes::copy_from_slice(&length.to_be_bytes()), frame];
            self.stream.write_all_chunks(&mut parts).await.map_err(|error| match error {
                WriteError::ConnectionLost(error) => lost(&self.address, error),
                error => LinkError::broken(error),
            })
        }
        .boxed()
    }

    fn close(&mut self) -> BoxFuture<'_, Result<(), LinkError>> {
        async {
            // What is under way arrives first; that it was ended before is as good.
            if self.stream.finish().is_ok() {
                drop(self.stream.stopped().await);
            }
            self.connection.close(CLOSED, b"");
            Ok(())
        }
        .boxed()
    }
}

struct Receiver {
    stream: RecvStream,
    /// The beginning of a frame, or more than one.
    unread: BytesMut,
    progress: Progress,
    address: String,
}

impl Receiver {
    fn next_frame(&mut self) -> Result<Option<Bytes>, LinkError> {
        let Some(head) = self.unread.first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(LinkError::TooLong(length));
        }
        if self.unread.len() - head.len() < length {
            return Ok(None);
        }
        self.unread.advance(4);
        let frame = self.unread.split_to(length).freeze();
        if self.unread.is_empty() {
            // It would keep the room of the largest frame for good.
            self.unread = BytesMut::new();
        }
        Ok(Some(frame))
    }
}

impl FrameReceiver for Receiver {
    fn receive(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, LinkError>> {
        async {
            loop {
                if let Some(frame) = self.next_frame()? {
                    return Ok(Some(frame));
                }
                // Safe to cancel: what was read is kept before anything else is waited for.
                match self.stream.read_chunk(CHUNK, true).await {
                    Ok(Some(chunk)) => {
                        self.progress.note();
                        self.unread.extend_from_slice(&chunk.bytes);
                    }
                    Ok(None) if self.unread.is_empty() => return Ok(None),
                    Ok(None) => return Err(LinkError::Truncated),
                    Err(ReadError::ConnectionLost(ConnectionError::ApplicationClosed(close)))
                        if close.error_code == CLOSED =>
                    {
                        return Ok(None);
                    }
                    Err(ReadError::ConnectionLost(error)) => return Err(lost(&self.address, error)),
                    Err(error) => return Err(LinkError::broken(error)),
                }
            }
        }
        .boxed()
    }
}

fn lost(address: &str, error: ConnectionError) -> LinkError {
    match error {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }) => LinkError::Refused {
            address: address.to_owned(),
            status: u16::try_from(error_code.into_inner()).unwrap_or(0),
            reason: String::from_utf8_lossy(&reason).chars().take(200).collect(),
        },
        error => LinkError::Quic { address: address.to_owned(), source: error },
    }
}
