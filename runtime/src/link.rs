//! The link's transports. One trait pair; nothing above it knows which transport carries the frames.
//!
//! A frame is at most [`proto::limits::MAX_FRAME`] bytes; the transport keeps frame boundaries and order. Neither half
//! may be used again after it returned an error.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub mod websocket;

/// An open connection to the peer, authenticated by TLS on both sides.
pub struct Link {
    pub sender: Box<dyn FrameSender>,
    pub receiver: Box<dyn FrameReceiver>,
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
