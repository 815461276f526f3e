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
        Arc,
        atomic::{AtomicU64, Ordering},
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
    net::TcpStream,
    sync::watch,
    time::{self, Instant},
};

mod bucket;
pub mod framing;
mod knock;
mod mux;
pub mod proxy;
pub mod queue;
pub mod quic;
pub mod streams;
#[cfg(test)]
mod tests;
mod udp;
pub mod websocket;

pub use knock::knock;
use streams::Streams;

/// Bytes that the kernel takes before it has sent those before them.
const UNSENT: u32 = 4 << 10;

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
    /// In microseconds after `begun`.
    last: Arc<AtomicU64>,
    /// A connection that only counts what comes: it is looked at when somebody asks.
    counting: Option<(quinn::Connection, Arc<AtomicU64>)>,
}

impl Progress {
    fn new() -> Self {
        Self { begun: Instant::now(), last: Arc::default(), counting: None }
    }

    fn counted_by(connection: quinn::Connection) -> Self {
        Self { counting: Some((connection, Arc::default())), ..Self::new() }
    }

    /// Where the peer is now, if its address may change.
    pub fn address(&self) -> Option<SocketAddr> {
        self.counting.as_ref().map(|(connection, _)| connection.remote_address())
    }

    pub fn last(&self) -> Instant {
        if let Some((connection, seen)) = &self.counting {
            let now = connection.stats().udp_rx.datagrams;
            if seen.swap(now, Ordering::Relaxed) != now {
                self.note();
            }
        }
        self.begun + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }

    fn note(&self) {
        let now = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
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
    // What the kernel has taken cannot be overtaken any more.
    SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT)
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
