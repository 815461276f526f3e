//! The edge's socket for QUIC, which notes when something came from the cloud: that a ping has arrived is told by QUIC's own
//! acknowledgement, and needs no answer above it.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::Progress;

#[derive(Debug)]
pub(super) struct WatchedUdp {
    socket: Arc<dyn AsyncUdpSocket>,
    peer: SocketAddr,
    progress: Progress,
}

impl WatchedUdp {
    /// To be called within a runtime.
    pub(super) fn new(socket: UdpSocket, peer: SocketAddr, progress: Progress) -> io::Result<Self> {
        Ok(Self { socket: TokioRuntime.wrap_udp_socket(socket)?, peer, progress })
    }
}

impl AsyncUdpSocket for WatchedUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.socket.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = polled
            && meta[..count].iter().any(|datagram| datagram.addr == self.peer)
        {
            self.progress.note();
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
