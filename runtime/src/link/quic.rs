//! QUIC (RFC 9000): either side opens a unidirectional stream a lane, in the order of the lanes; on it frames, each with its
//! length before it in four bytes (big-endian). The edge's address may change at any time, and the connection goes on.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{
    FutureExt, TryFutureExt,
    future::{BoxFuture, try_join_all},
};
use proto::Lane;
use quinn::{
    ApplicationClose, Connection, ConnectionError, ConnectionId, ConnectionIdGenerator, Endpoint,
    EndpointConfig, ReadError, RecvStream, SendStream, TokioRuntime, TransportConfig, TransportErrorCode,
    VarInt, WriteError,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use rustls::AlertDescription;
use rustls_pki_types::{CertificateDer, ServerName};
use socket2::SockRef;
use tokio::sync::Notify;

use super::{
    FrameReceiver, FrameSender, Heard, Knocks, Link, LinkError, Progress,
    congestion::{self, Watching},
    credits::Credits,
    framing::Lengths,
    narrow, patiently,
    queue::{FrameQueue, PIECE},
    streams::{self, Streams},
    udp::WatchedUdp,
    window,
};

/// The protocol's name in the handshake (RFC 7301); it changes when what the streams carry does.
const ALPN: &[u8] = b"skerry/2";
/// Bytes of a lane that are on their way, or have come and nobody has read them: there is one such window for all that QUIC
/// carries, and the largest that a stream may have ([`super::window`]) is this. A session bounds what is on its way itself. It is
/// what the sender holds for the lane, too, so that no lane waits for another one.
const WINDOW: u32 = window::LARGEST;
const LANES: u32 = 3;
const STREAMS: u32 = streams::MAX as u32;
/// As much as all lanes and streams may hold: streams that nobody reads hold up no lane.
const TOTAL_WINDOW: u32 = LANES * WINDOW + STREAMS * window::FIRST + window::SPARE;
/// The credits of streams, after the lanes.
const CREDITS: u32 = 1;
/// Beside the lanes: what is sent to see whether it arrives (see [`narrow`]).
const PROBES: u32 = 1;
/// The longest time between two pings on QUIC. What translates addresses in between (NAT) forgets UDP after half a minute and
/// more, TCP after hours, and a cloudcore that ended without a word is found out by the next ping alone.
pub const HEARTBEAT: Duration = Duration::from_secs(44);
/// Bytes of the name that a connection has at the cloud's end.
const CLOUD_NAME: usize = 8;
/// Between stateless resets. A whole fleet may have lost the same cloudcore, and a reset is shorter than what it answers.
const RESET_INTERVAL: Duration = Duration::from_micros(50);
/// Connections that nobody has accepted yet, and what is kept for each meanwhile: its first flight.
const WAITING: usize = 1024;
const WAITING_BYTES: u64 = 16 << 10;
/// Of a socket to which a whole fleet speaks, or that speaks for one, each way. The kernel gives no more than net.core.rmem_max
/// and wmem_max.
const BUFFER: usize = 4 << 20;
/// Read at once.
const CHUNK: usize = 64 << 10;
/// Why a connection ends when nothing is wrong.
pub(super) const CLOSED: VarInt = VarInt::from_u32(0);

/// TLS that cannot be used for QUIC.
#[derive(Debug, thiserror::Error)]
#[error("TLS has no cipher suite for QUIC")]
pub struct NoSuite(#[from] quinn::crypto::rustls::NoInitialCipherSuite);

/// `streams` is how many the peer may open beside the lanes.
fn transport(streams: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(LANES + CREDITS + PROBES))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(TOTAL_WINDOW))
        .send_window(u64::from(TOTAL_WINDOW))
        .congestion_controller_factory(Arc::new(Watching::default()))
        // The session knows how long a peer may be silent.
        .max_idle_timeout(None)
        // The search for larger packets costs each new connection 10 KB, and wins 1 % of what follows.
        .mtu_discovery_config(None);
    transport
}

/// What cloudcore's end of the port does; to be set anew with each new certificate.
pub fn server_config(mut tls: rustls::ServerConfig) -> Result<quinn::ServerConfig, NoSuite> {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config
        .transport_config(Arc::new(transport(0)))
        .max_incoming(WAITING)
        .incoming_buffer_size(WAITING_BYTES)
        .incoming_buffer_size_total(WAITING as u64 * WAITING_BYTES / 4);
    Ok(config)
}

/// The key of stateless resets that goes with a secret.
pub fn reset_key(secret: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), b"skerry QUIC stateless reset");
    *tag.as_ref().first_chunk().expect("an HMAC-SHA256 has 32 bytes")
}

/// Listens for connections. To be called within a runtime.
///
/// `reset_key` is the same after a restart, and at all replicas: who speaks to one that does not know it is told so at once
/// (stateless reset), where TCP would be by the kernel.
pub fn listen(socket: UdpSocket, config: quinn::ServerConfig, reset_key: &[u8]) -> io::Result<Endpoint> {
    enlarge_buffers(&socket);
    let mut endpoint = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key)));
    endpoint.cid_generator(|| Box::new(Names(CLOUD_NAME))).min_reset_interval(RESET_INTERVAL);
    let (socket, _) = WatchedUdp::new(socket, None)?;
    Endpoint::new_with_abstract_socket(endpoint, Some(config), Arc::new(socket), Arc::new(TokioRuntime))
}

fn enlarge_buffers(socket: &UdpSocket) {
    let buffers = SockRef::from(socket);
    for enlarged in [buffers.set_recv_buffer_size(BUFFER), buffers.set_send_buffer_size(BUFFER)] {
        if let Err(error) = enlarged {
            tracing::debug!(%error, "the buffers of the UDP port stay as they are");
        }
    }
}

/// The certificate that the peer has proven to hold, if it has shown one.
pub fn peer_certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

/// Tells a peer why it gets no link: `status` is that of the HTTP answer in the same case.
pub fn refuse(connection: &Connection, status: u16, reason: &str) {
    congestion::close(connection, VarInt::from_u32(status.into()), reason.trim_end().as_bytes());
}

/// The link, once the edge's first bytes are there.
pub async fn accept(connection: Connection) -> Result<Link, LinkError> {
    let address = connection.remote_address().to_string();
    let control = connection.accept_uni().await.map_err(|error| lost(&address, error))?;
    let progress = Progress::counted_by(connection.clone());
    link(connection, Some(control), address, progress).await
}

/// Connects to `peer`, and proves who both sides are. `address` is what people call it.
pub async fn connect(
    peer: SocketAddr,
    address: &str,
    server_name: &ServerName<'_>,
    tls: &rustls::ClientConfig,
) -> Result<Link, LinkError> {
    Dialer::default().connect(peer, address, server_name, tls, &Heard::default()).await
}

/// From which socket connections are made.
#[derive(Clone, Debug, Default)]
pub struct Dialer(Option<(Endpoint, Knocks)>);

impl Dialer {
    /// One socket for any number of connections: a process that plays many edges has fewer file handles than these. To be
    /// called within a runtime.
    pub fn shared(socket: UdpSocket) -> io::Result<Self> {
        // Here the name is what tells one connection's packets from another's.
        let mut config = EndpointConfig::default();
        config.cid_generator(|| Box::new(Names(CLOUD_NAME)));
        enlarge_buffers(&socket);
        let (socket, knocks) = WatchedUdp::new(socket, None)?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(config, None, Arc::new(socket), runtime)?;
        Ok(Self(Some((endpoint, knocks))))
    }

    /// As [`connect`]. From a socket of its own it tells soon when the server has answered at all.
    pub async fn connect(
        &self,
        peer: SocketAddr,
        address: &str,
        server_name: &ServerName<'_>,
        tls: &rustls::ClientConfig,
        heard: &Heard,
    ) -> Result<Link, LinkError> {
        let failed = |source| LinkError::Connect { address: address.to_owned(), source };
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| failed(io::Error::other(error)))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport(STREAMS)));
        let (endpoint, knocks, progress) = match &self.0 {
            Some((endpoint, knocks)) => (endpoint.clone(), knocks.clone(), None),
            None => own_endpoint(peer, heard).map_err(failed)?,
        };
        let connecting = endpoint
            .connect_with(config, peer, &server_name.to_str())
            .map_err(|error| failed(io::Error::other(error)))?;
        let connection = connecting.await.map_err(|error| lost(address, error))?;
        heard.note();
        let progress = match progress {
            Some(progress) => progress.confirmed_by(connection.clone()),
            None => Progress::counted_by(connection.clone()),
        };
        let link = link(connection, None, address.to_owned(), progress).await?;
        Ok(Link { knocks, ..link })
    }
}

/// An endpoint for one connection, with what is heard on it.
fn own_endpoint(peer: SocketAddr, heard: &Heard) -> io::Result<(Endpoint, Knocks, Option<Progress>)> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let progress = Progress::new();
    let watched = (peer, progress.clone(), heard.clone());
    let (socket, knocks) = WatchedUdp::new(UdpSocket::bind((any, 0))?, Some(watched))?;
    // One connection a socket needs no name for it, and a quiet line counts bytes.
    let mut config = EndpointConfig::default();
    config.cid_generator(|| Box::new(Names(0)));
    let endpoint =
        Endpoint::new_with_abstract_socket(config, None, Arc::new(socket), Arc::new(TokioRuntime))?;
    Ok((endpoint, knocks, Some(progress)))
}

/// Random names of connections, of so many bytes. Any could be ours, so that those of a cloudcore that is no more are answered,
/// too.
struct Names(usize);

impl ConnectionIdGenerator for Names {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut name = [0; CLOUD_NAME];
        SystemRandom::new().fill(&mut name).expect("the kernel has random bytes");
        ConnectionId::new(&name[..self.0])
    }

    fn cid_len(&self) -> usize {
        self.0
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

async fn link(
    connection: Connection,
    control: Option<RecvStream>,
    address: String,
    progress: Progress,
) -> Result<Link, LinkError> {
    let mut streams = Vec::with_capacity(Lane::ALL.len());
    for lane in Lane::ALL {
        let stream = connection.open_uni().await.map_err(|error| lost(&address, error))?;
        // The largest goes first. It fails only on a stream that has ended.
        drop(stream.set_priority(-(lane as i32)));
        streams.push((lane, stream));
    }
    let credits = Credits::new();
    // It costs nothing before something is written on it.
    let telling = connection.open_uni().await.map_err(|error| lost(&address, error))?;
    let mut incoming =
        [None, None, None].map(|stream| Incoming { stream, unread: Lengths::default(), ended: false });
    incoming[Lane::Control as usize].stream = control;
    Ok(Link {
        peer: connection.remote_address(),
        receiver: Box::new(Receiver {
            incoming,
            greeted: false,
            told: Told { stream: None, unread: BytesMut::new(), credits: Arc::clone(&credits) },
            connection: connection.clone(),
            address: address.clone(),
        }),
        streams: Streams::over_quic(connection.clone(), Arc::clone(&credits)),
        sender: Box::new(Sender { streams, telling, credits, connection, address }),
        progress,
        transport: "quic",
        confirms: true,
        knocks: Knocks::default(),
    })
}

struct Sender {
    streams: Vec<(Lane, SendStream)>,
    telling: SendStream,
    credits: Arc<Credits>,
    connection: Connection,
    address: String,
}

impl FrameSender for Sender {
    fn run(
        self: Box<Self>,
        queue: FrameQueue,
        patience: Duration,
    ) -> BoxFuture<'static, Result<(), LinkError>> {
        let Self { streams, telling, credits, connection, address } = *self;
        async move {
            // Each lane by itself: one that waits for its window holds no other up.
            let written = Notify::new();
            let lanes = streams
                .into_iter()
                .map(|(lane, stream)| write(lane, stream, &queue, patience, &address, &written));
            tokio::select! {
                ended = try_join_all(lanes) => drop(ended?),
                narrow = narrow::found_out(&connection, &written) => return Err(narrow),
                () = tell(&credits, telling) => {}
            }
            congestion::close(&connection, CLOSED, b"");
            Ok(())
        }
        .boxed()
    }
}

/// Writes what there is on a lane to its end, and sees it arrive.
async fn write(
    lane: Lane,
    mut stream: SendStream,
    queue: &FrameQueue,
    patience: Duration,
    address: &str,
    written: &Notify,
) -> Result<(), LinkError> {
    let mut sum = 0;
    while let Some(frame) = queue.next(lane).await {
        let bytes = frame.len();
        // On the heap: most of the time nothing is written on most lanes.
        Box::pin(write_frame(lane, &mut stream, frame, queue, patience, address)).await?;
        sum += bytes;
        if sum >= narrow::WORTH {
            sum = 0;
            written.notify_one();
        }
    }
    // That it was ended before is as good.
    if stream.finish().is_ok() {
        drop(stream.stopped().await);
    }
    Ok(())
}

async fn write_frame(
    lane: Lane,
    stream: &mut SendStream,
    frame: Bytes,
    queue: &FrameQueue,
    patience: Duration,
    address: &str,
) -> Result<(), LinkError> {
    let bytes = frame.len();
    let length = u32::try_from(bytes).map_err(|_| LinkError::TooLong(bytes))?;
    let mut head = Bytes::copy_from_slice(&length.to_be_bytes());
    let mut rest = frame;
    loop {
        // What the stream has taken waits for nothing any more.
        let piece = if queue.is_open() { rest.len() } else { rest.len().min(PIECE) };
        let piece = rest.split_to(piece);
        queue.admitted(lane, head.len() + piece.len()).await;
        let mut parts = [std::mem::take(&mut head), piece];
        let writing = stream.write_all_chunks(&mut parts).map_err(|error| match error {
            WriteError::ConnectionLost(error) => lost(address, error),
            error => LinkError::broken(error),
        });
        patiently(patience, bytes, writing).await?;
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// Tells the peer what it may send of streams, as long as there is a connection: that there is none any more, the lanes say.
async fn tell(credits: &Credits, mut stream: SendStream) {
    // A stream that waits for its credit waits for no object. It fails only on a stream that has ended.
    drop(stream.set_priority(-(Lane::Status as i32)));
    while stream.write_chunk(credits.owed().await).await.is_ok() {}
    std::future::pending::<()>().await;
}

/// What the peer tells of what may be sent on streams.
struct Told {
    stream: Option<RecvStream>,
    unread: BytesMut,
    credits: Arc<Credits>,
}

impl Told {
    /// Reads more. Safe to cancel: nothing is waited for after something was read.
    async fn read(&mut self) -> Result<(), LinkError> {
        let chunk = match &mut self.stream {
            Some(stream) => stream.read_chunk(CHUNK, true).await,
            None => Ok(None),
        };
        // That the connection is lost, the lanes say.
        let Ok(Some(chunk)) = chunk else { return std::future::pending().await };
        self.unread.extend_from_slice(&chunk.bytes);
        self.credits.receive(&mut self.unread)
    }
}

/// A lane of the peer.
struct Incoming {
    /// Once the peer has used it, or one after it.
    stream: Option<RecvStream>,
    unread: Lengths,
    /// The peer has ended it.
    ended: bool,
}

impl Incoming {
    fn next_frame(&mut self, lane: Lane) -> Result<Option<Bytes>, LinkError> {
        match self.unread.next_frame(lane)? {
            None if self.ended && !self.unread.is_empty() => Err(LinkError::Truncated),
            frame => Ok(frame),
        }
    }

    /// Reads more. Safe to cancel: what was read is kept before anything else is waited for.
    async fn read(&mut self) -> Result<(), ReadError> {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.ended) else {
            return std::future::pending().await;
        };
        let chunk = stream.read_chunk(CHUNK, true).await?;
        self.ended = chunk.is_none();
        self.unread.push(&chunk.map(|chunk| chunk.bytes).unwrap_or_default());
        Ok(())
    }
}

struct Receiver {
    incoming: [Incoming; Lane::ALL.len()],
    /// The first frame has come; the other lanes are looked at from then on.
    greeted: bool,
    told: Told,
    connection: Connection,
    address: String,
}

impl FrameReceiver for Receiver {
    fn receive(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, LinkError>> {
        async {
            loop {
                // Whoever ends without a greeting has nothing to say on the others.
                self.greeted |= self.incoming[Lane::Control as usize].ended;
                let lanes = if self.greeted { &Lane::ALL[..] } else { &Lane::ALL[..1] };
                for lane in lanes {
                    if let Some(frame) = self.incoming[*lane as usize].next_frame(*lane)? {
                        self.greeted = true;
                        return Ok(Some(frame));
                    }
                }
                if self.incoming.iter().all(|lane| lane.ended) {
                    return Ok(None);
                }
                let missing = self.incoming.iter().position(|lane| lane.stream.is_none());
                let [control, status, objects] = &mut self.incoming;
                // All of it is safe to cancel.
                let read = tokio::select! {
                    biased;
                    read = control.read() => read,
                    read = status.read(), if self.greeted => read,
                    told = self.told.read() => {
                        told?;
                        continue;
                    }
                    read = objects.read(), if self.greeted => read,
                    stream = self.connection.accept_uni() => match (stream, missing) {
                        (Ok(stream), Some(lane)) => {
                            self.incoming[lane].stream = Some(stream);
                            continue;
                        }
                        (Err(error), _) => Err(ReadError::ConnectionLost(error)),
                        (Ok(stream), None) if self.told.stream.is_none() => {
                            self.told.stream = Some(stream);
                            continue;
                        }
                        // A probe, which has arrived.
                        (Ok(_), None) => continue,
                    },
                };
                match read {
                    Ok(()) => {}
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

fn unknown_ca() -> TransportErrorCode {
    TransportErrorCode::crypto(AlertDescription::UnknownCA.into())
}

fn lost(address: &str, error: ConnectionError) -> LinkError {
    match error {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }) => LinkError::Refused {
            address: address.to_owned(),
            status: u16::try_from(error_code.into_inner()).unwrap_or(0),
            reason: String::from_utf8_lossy(&reason).chars().take(200).collect(),
        },
        // At this end TLS fails with the alert that the other end is sent.
        ConnectionError::TransportError(error) if error.code == unknown_ca() => {
            LinkError::CloudNotTrusted { address: address.to_owned() }
        }
        ConnectionError::ConnectionClosed(close) if close.error_code == unknown_ca() => {
            LinkError::NodeNotTrusted { address: address.to_owned() }
        }
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            LinkError::Busy { address: address.to_owned() }
        }
        error => LinkError::Quic { address: address.to_owned(), source: error },
    }
}
