//! What the kernel tells of the network: when the address from which cloudcore is reached becomes another one, or is there again, the
//! edge says something at once, because cloudcore cannot know where it is now. It sleeps until the kernel says so (rtnetlink).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, socket_with},
};
use tokio::net::UnixDatagram;
use tracing::debug;

/// Of links, and of addresses and routes of either family (`RTMGRP_*`).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Without a socket it never tells anything. It is one of rtnetlink; tokio has no name for it, and receives from any socket of
/// datagrams alike.
#[derive(Debug, Default)]
pub(super) struct Network(Option<UnixDatagram>);

impl Network {
    /// To be called within a runtime.
    pub(super) fn watch() -> Self {
        match open() {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                debug!(%error, "the kernel does not tell of the network");
                Self(None)
            }
        }
    }

    /// Returns once `peer` is reached from another address than `from` says. Safe to cancel.
    pub(super) async fn changed(&self, peer: SocketAddr, from: &mut Option<IpAddr>) {
        let Some(socket) = &self.0 else { return std::future::pending().await };
        loop {
            // What it says does not matter. That something was lost says as much.
            if let Err(error) = socket.recv(&mut [0; 1024]).await
                && error.raw_os_error() != Some(Errno::NOBUFS.raw_os_error())
            {
                debug!(%error, "the kernel tells no more of the network");
                return std::future::pending().await;
            }
            let now = way_to(peer);
            // While there is none, nothing can be said.
            if std::mem::replace(from, now) != now && now.is_some() {
                return;
            }
        }
    }
}

fn open() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Without a protocol it is that of routes.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    UnixDatagram::from_std(unix::net::UnixDatagram::from(socket))
}

/// The address from which a peer is reached now. Nothing is sent.
pub(super) fn way_to(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn nothing_is_told_while_nothing_changes() {
        let network = Network::watch();
        assert!(network.0.is_some(), "the kernel refuses the socket");
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let mut from = way_to(peer);
        assert_eq!(from, Some(Ipv4Addr::LOCALHOST.into()));
        assert!(timeout(Duration::from_millis(100), network.changed(peer, &mut from)).await.is_err());
    }
}
