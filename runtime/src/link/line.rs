//! What is below our TLS: a connection to cloudcore, or one to a proxy that leads there.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Progress, Watched, prepare, shared_tcp::SharedTcp};

/// A connection that is prepared for a link, and noted from the first byte on. What the kernel tells of it is of TCP's other end: over a
/// proxy, it is the proxy that confirms.
pub struct Line {
    io: Io,
    peer: SocketAddr,
    progress: Progress,
}

enum Io {
    Tcp(Watched<SharedTcp>),
    /// Within the proxy's own TLS, whose buffers are as large as all else of a link.
    Tls(Box<TlsStream<Watched<SharedTcp>>>),
}

impl Line {
    pub fn over(tcp: TcpStream) -> io::Result<Self> {
        prepare(&tcp)?;
        let peer = tcp.peer_addr()?;
        let tcp = SharedTcp::new(tcp);
        let of = tcp.of();
        let tcp = Watched::new(tcp);
        let progress = Progress { tcp: Some(of), ..tcp.progress() };
        Ok(Self { io: Io::Tcp(tcp), peer, progress })
    }

    /// The other end of TCP.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// What follows is within TLS with the other end.
    pub(super) async fn secure(self, name: ServerName<'static>, tls: Arc<ClientConfig>) -> io::Result<Self> {
        let Self { io, peer, progress } = self;
        let Io::Tcp(tcp) = io else { return Err(io::Error::other("it is within TLS already")) };
        let tls = TlsConnector::from(tls).connect(name, tcp).await?;
        Ok(Self { io: Io::Tls(Box::new(tls)), peer, progress })
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
}
