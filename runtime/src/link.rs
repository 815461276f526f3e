//! The link's transports. One trait pair; nothing above it knows which transport carries the frames.
//!
//! A frame is at most [`proto::Lane::max_frame`] bytes. The transport keeps the ends of frames, and their order within a
//! [`proto::Lane`]; what is on a more urgent lane overtakes the rest, but for the first frame of either side, which is on
//! [`proto::Lane::Control`] and comes first. Neither half may be used again after it returned an error.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use queue::FrameQueue;
use rustls::{AlertDescription, CertificateError};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::{self, Instant},
};

mod bucket;
mod congestion;
mod credits;
pub mod framing;
mod kernel;
mod knock;
mod line;
mod mux;
mod narrow;
pub mod proxy;
pub mod queue;
pub mod quic;
mod shared_tcp;
pub mod streams;
#[cfg(test)]
mod tests;
mod udp;
pub mod websocket;
mod window;

pub use knock::knock;
pub use line::Line;
use streams::Streams;

/// Bytes that the kernel takes before it has sent those before them.
const UNSENT: u32 = 4 << 10;
/// Of TCP in a packet, which with its headers has 1200 bytes then. There are lines that swallow longer ones and tell nobody. On
/// them QUIC does not begin, whose first packets have 1228, and it is TCP that has to do without. What it costs is 40 bytes of
/// headers in 1160 instead of in 1460.
const SEGMENT: u32 = 1160;
/// How long what the edge sent may stay unconfirmed before its connection has failed: an edge that dials asks every two seconds.
const UNCONFIRMED: Duration = Duration::from_secs(10);
/// The same, for the cloud's end. The edge would not be told of a connection that was given up there, so it is the session that gives it
/// up. Without this, the kernel would count how often it has sent the same.
const UNCONFIRMED_BY_EDGE: Duration = Duration::from_hours(1);
/// What is not confirmed is sent again at least so often: TCP does it ever more seldom, and would learn of a line that is back when
/// it was away for as long again.
const AGAIN: Duration = Duration::from_secs(3);

/// The thinnest line that still is one, in bytes a second.
pub const SLOWEST: u64 = 1000;

/// What so many bytes take at most.
pub fn slowest(bytes: usize) -> Duration {
    Duration::from_secs(bytes as u64 / SLOWEST)
}

/// When something came from the peer last. A large frame on a thin line takes longer than a peer may be silent: while parts of
/// it come, it is not.
#[derive(Clone, Debug)]
pub struct Progress {
    begun: Instant,
    /// When something came, in microseconds after `begun`.
    noted: Arc<AtomicU64>,
    /// Which counts what comes, and what the peer confirms.
    connection: Option<quinn::Connection>,
    /// The count of what had come, where nobody notes it: it is looked at when somebody asks.
    seen: Option<Arc<AtomicU64>>,
    /// For whoever asks the kernel of it.
    tcp: Option<Weak<TcpStream>>,
}

/// How what was sent fares below the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// It grows when the peer's transport confirms something.
    pub confirmed: u64,
    /// The peer's transport may have something still to confirm.
    pub open: bool,
}

/// Whether a server has answered at all, told while the connection to it is made.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<AtomicBool>);

impl Heard {
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Progress {
    fn new() -> Self {
        Self { begun: Instant::now(), noted: Arc::default(), connection: None, seen: None, tcp: None }
    }

    fn counted_by(connection: quinn::Connection) -> Self {
        Self { seen: Some(Arc::default()), ..Self::new().confirmed_by(connection) }
    }

    fn confirmed_by(self, connection: quinn::Connection) -> Self {
        Self { connection: Some(connection), ..self }
    }

    /// How often the peer's transport has confirmed something that we sent, if it does.
    pub fn confirmed(&self) -> Option<u64> {
        self.connection.as_ref().map(|connection| connection.stats().frame_rx.acks)
    }

    /// How what was sent fares, if that can be found out. Over TCP the kernel is asked: nothing to be done for
    /// every frame.
    pub fn delivery(&self) -> Option<Delivery> {
        if let Some(confirmed) = self.confirmed() {
            return Some(Delivery { confirmed, open: true });
        }
        kernel::delivery(&*self.tcp.as_ref()?.upgrade()?).ok()
    }

    /// How long it takes to the peer and back, if the transport knows.
    pub fn round_trip(&self) -> Option<Duration> {
        self.connection.as_ref().map(quinn::Connection::rtt)
    }

    /// How often the peer has asked whether it is us: each time when what we sent came from another address than before.
    pub fn moves(&self) -> Option<u64> {
        self.connection.as_ref().map(|connection| connection.stats().frame_rx.path_challenge)
    }

    /// Where the peer is now, if its address may change.
    pub fn address(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(quinn::Connection::remote_address)
    }

    pub fn last(&self) -> Instant {
        if let (Some(connection), Some(seen)) = (&self.connection, &self.seen) {
            let now = connection.stats().udp_rx.datagrams;
            if seen.swap(now, Ordering::Relaxed) != now {
                self.note();
            }
        }
        self.begun + Duration::from_micros(self.noted.load(Ordering::Relaxed))
    }

    fn note(&self) {
        let now = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.noted.store(now, Ordering::Relaxed);
    }
}

/// An open connection to the peer, authenticated by TLS on both sides.
pub struct Link {
    pub sender: Box<dyn FrameSender>,
    pub receiver: Box<dyn FrameReceiver>,
    pub progress: Progress,
    pub peer: SocketAddr,
    /// For people and metrics: `quic` or `websocket`.
    pub transport: &'static str,
    /// The transport tells the edge itself when a ping has arrived, as progress: there is no need to answer it.
    pub confirms: bool,
    /// Somebody who says to be the peer asks for a ping, see [`knock()`].
    pub knocks: Knocks,
    /// To be closed when the session ends.
    pub streams: Streams,
}

/// A transport that has none never hears one.
#[derive(Clone, Debug, Default)]
pub struct Knocks(Option<watch::Receiver<()>>);

impl Knocks {
    /// The next one. Safe to cancel: none is lost, but several may be told as one.
    pub async fn heard(&mut self) {
        if let Some(knocks) = &mut self.0
            && knocks.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("failed to connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("TLS with {address} failed")]
    Tls {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{address} does not speak the link's protocol; is this cloudcore's port?")]
    Upgrade {
        address: String,
        #[source]
        source: tokio_tungstenite::tungstenite::Error,
    },
    /// Over QUIC, too, `status` is that of HTTP.
    #[error("{address} refused the connection: HTTP {status}: {reason}")]
    Refused { address: String, status: u16, reason: String },
    /// It does not take part in a handshake that would have to wait for long.
    #[error("{address} is busy: too many nodes come to it at once")]
    Busy { address: String },
    #[error("QUIC with {address} failed")]
    Quic {
        address: String,
        #[source]
        source: quinn::ConnectionError,
    },
    #[error(
        "cloudcore at {address} has a certificate of a CA that this node does not trust: the one that it trusts has been dropped \
         (`keadm certs rotate-ca`), or it is the cloudcore of another cluster; to join anew: keadm reset, then a token from \
         `keadm gettoken --node`"
    )]
    CloudNotTrusted { address: String },
    #[error(
        "cloudcore at {address} does not trust the CA of this node's certificate: it has been dropped (`keadm certs rotate-ca`), \
         or it is another cluster's; to join anew: keadm reset, then a token from `keadm gettoken --node`"
    )]
    NodeNotTrusted { address: String },
    #[error("link broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("peer sent a frame that is not binary")]
    NotBinary,
    #[error("peer sent a frame of {0} bytes, which is more than its lane takes")]
    TooLong(usize),
    #[error("peer sent a piece of a frame on no lane")]
    Piece,
    #[error("link ended in the middle of a frame")]
    Truncated,
    #[error("the link took nothing for {0:?}")]
    Stuck(Duration),
    #[error("large packets do not get through any more")]
    Narrow,
    #[error("no transport is switched on")]
    NoTransport,
}

/// Waits for a write of so many bytes.
async fn patiently<T>(
    patience: Duration,
    bytes: usize,
    write: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let patience = patience + slowest(bytes);
    time::timeout(patience, write).await.map_err(|_| LinkError::Stuck(patience))?
}

/// To be called with every connection that a WebSocket will be on.
pub fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    kernel::retransmit_within(tcp, AGAIN)?;
    // What the kernel has taken cannot be overtaken any more.
    SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT)
}

/// To be called with the listener of such connections.
pub fn prepare_listener(listener: &TcpListener) -> io::Result<()> {
    let options = SockRef::from(listener);
    options.set_tcp_user_timeout(Some(UNCONFIRMED_BY_EDGE))?;
    options.set_tcp_mss(SEGMENT)
}

/// The edge's end: connects to the first of these addresses that answers. Has no deadline of its own.
pub async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::InvalidInput, "no address to connect to");
    for address in addresses {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        let options = SockRef::from(&socket);
        // Now, because the first packet tells the other end.
        options.set_tcp_mss(SEGMENT)?;
        options.set_tcp_user_timeout(Some(UNCONFIRMED))?;
        // The few bytes that an edge sends are sent again after a round trip or two, and not ever more seldom at once: a line that
        // loses much is not to look like a dead one.
        options.set_tcp_thin_linear_timeouts(true)?;
        match socket.connect(*address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

impl LinkError {
    /// If what failed is that one end does not know the CA of the other.
    fn not_trusted(address: &str, error: &io::Error) -> Option<Self> {
        let address = address.to_owned();
        match error.get_ref()?.downcast_ref()? {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                Some(Self::CloudNotTrusted { address })
            }
            rustls::Error::AlertReceived(AlertDescription::UnknownCA) => {
                Some(Self::NodeNotTrusted { address })
            }
            _ => None,
        }
    }

    fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }
}

/// Sends frames.
pub trait FrameSender: Send {
    /// Writes what the queue holds, the most urgent first, until it is closed and empty; then tells the peer that nothing more
    /// comes. Not safe to cancel: a frame may be half written.
    ///
    /// # Errors
    /// The link broke, or took nothing for longer than `patience` and what the bytes take on the thinnest line.
    fn run(
        self: Box<Self>,
        queue: FrameQueue,
        patience: Duration,
    ) -> BoxFuture<'static, Result<(), LinkError>>;
}

/// Receives frames, the most urgent first; `None` once the peer has closed.
pub trait FrameReceiver: Send {
    /// Safe to cancel.
    fn receive(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, LinkError>>;
}

/// A stream that notes when something is read from it. It belongs below TLS, which hands out nothing of a record before it
/// has all of it: on a thin line that may take longer than a peer may be silent.
pub struct Watched<S> {
    io: S,
    progress: Progress,
}

impl<S> Watched<S> {
    pub fn new(io: S) -> Self {
        Self { io, progress: Progress::new() }
    }

    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.progress.note();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// TLS hands over several records at once: as one packet they cost less on the line than one by one.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
