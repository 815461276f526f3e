//! The socket for QUIC. The edge's notes when something came from the cloud: that a ping has arrived is told by QUIC's own
//! acknowledgement, and needs no answer above it. And it takes the knocks.

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
use tokio::sync::watch;

use super::{Heard, Knocks, Progress, knock};

/// Datagrams that an edge gives to the kernel at once: no more than quinn would. It keeps a buffer of as many as it has given for
/// each connection; whoever has thousands of connections gives them one by one.
const SEGMENTS: usize = 10;

#[derive(Debug)]
pub(super) struct WatchedUdp {
    socket: Arc<dyn AsyncUdpSocket>,
    /// The only peer, where there is one alone, and what is heard of it.
    peer: Option<(SocketAddr, Progress, Heard)>,
    knocks: watch::Sender<()>,
}

impl WatchedUdp {
    /// To be called within a runtime.
    pub(super) fn new(
        socket: UdpSocket,
        peer: Option<(SocketAddr, Progress, Heard)>,
    ) -> io::Result<(Self, Knocks)> {
        let (sender, receiver) = watch::channel(());
        let socket = TokioRuntime.wrap_udp_socket(socket)?;
        Ok((Self { socket, peer, knocks: sender }, Knocks(Some(receiver))))
    }

    fn look_at(&self, from: SocketAddr, datagrams: &[u8]) {
        match &self.peer {
            Some((peer, ..)) if *peer != from => {}
            _ if knock::is_knock(datagrams) => self.knocks.send_replace(()),
            Some((_, progress, heard)) => {
                progress.note();
                heard.note();
            }
            None => {}
        }
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
        if let Poll::Ready(Ok(count)) = polled {
            for (meta, buf) in meta.iter().zip(bufs).take(count) {
                self.look_at(meta.addr, &buf[..meta.len]);
            }
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        if self.peer.is_some() { self.socket.max_transmit_segments().min(SEGMENTS) } else { 1 }
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
