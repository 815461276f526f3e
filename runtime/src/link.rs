//! The link's transports. One trait pair; nothing above it knows which transport carries the frames.
//!
//! A frame is at most [`proto::limits::MAX_FRAME`] bytes; the transport keeps frame boundaries and order. Neither half
//! may be used again after it returned an error.

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
use proto::limits::MAX_FRAME;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

pub mod quic;
#[cfg(test)]
mod tests;
pub mod websocket;

/// The thinnest line that still is one, in bytes a second.
const SLOWEST: u64 = 1000;

/// What so many bytes take at most.
pub fn slowest(bytes: usize) -> Duration {
    Duration::from_secs(bytes as u64 / SLOWEST)
}

/// When bytes came from the peer last. A large frame on a thin line takes longer than a peer may be silent: while parts of
/// it come, it is not.
#[derive(Clone, Debug)]
pub struct Progress {
    begun: Instant,
    /// In microseconds after `begun`.
    last: Arc<AtomicU64>,
}

impl Progress {
    fn new() -> Self {
        Self { begun: Instant::now(), last: Arc::default() }
    }

    pub fn last(&self) -> Instant {
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
    #[error("link broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("peer sent a frame that is not binary")]
    NotBinary,
    #[error("peer sent a frame of {0} bytes; {MAX_FRAME} is the most")]
    TooLong(usize),
    #[error("link ended in the middle of a frame")]
    Truncated,
    #[error("no transport is switched on")]
    NoTransport,
}

impl LinkError {
    fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }
}

/// Sends frames, each flushed to the transport.
pub trait FrameSender: Send {
    /// Not safe to cancel: a frame may be half written.
    fn send(&mut self, frame: Bytes) -> BoxFuture<'_, Result<(), LinkError>>;
    /// Tells the peer that nothing more comes.
    fn close(&mut self) -> BoxFuture<'_, Result<(), LinkError>>;
}

/// Receives frames; `None` once the peer has closed.
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
