//! The link's transports. One trait pair; nothing above it knows which transport carries the frames.
//!
//! A frame is at most [`proto::limits::MAX_FRAME`] bytes; the transport keeps frame boundaries and order. Neither half
//! may be used again after it returned an error.

use std::{
    io,
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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub mod websocket;

/// The thinnest line that still is one, in bytes a second.
const SLOWEST: u64 = 1000;

/// What so many bytes take at most.
pub fn slowest(bytes: usize) -> Duration {
    Duration::from_secs(bytes as u64 / SLOWEST)
}

/// Bytes that have come from the peer. A large frame on a thin line takes longer than a peer may be silent: while this
/// grows, it is not.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Whether more have come than `had`, which becomes what there is now.
    pub fn grew(&self, had: &mut u64) -> bool {
        let now = self.0.load(Ordering::Relaxed);
        std::mem::replace(had, now) != now
    }
}

/// An open connection to the peer, authenticated by TLS on both sides.
pub struct Link {
    pub sender: Box<dyn FrameSender>,
    pub receiver: Box<dyn FrameReceiver>,
    pub progress: Progress,
    pub peer: SocketAddr,
    /// For people and metrics: `websocket`.
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
    #[error("{address} refused the connection: HTTP {status}: {reason}")]
    Refused { address: String, status: u16, reason: String },
    #[error("link broke")]
    Broken(#[source] tokio_tungstenite::tungstenite::Error),
    #[error("peer sent a frame that is not binary")]
    NotBinary,
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

/// A stream that counts what is read from it.
struct Counted<S> {
    io: S,
    progress: Progress,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.progress.0.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
