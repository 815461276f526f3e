//! The only datagram beside QUIC's: whoever has begun to listen asks those who spoke to a process before it to speak now. With
//! TCP the kernel tells them that it has died; with UDP they would learn of it by their next ping.
//!
//! Anybody can forge it, and gets a ping for it now and then: nobody acts on it but by asking the peer, which QUIC secures.

use std::{io, net::SocketAddr, net::UdpSocket};

/// No QUIC packet begins with a zero (RFC 9000, 17.2: the fixed bit).
const KNOCK: &[u8] = b"\0skerry:ping?";

/// Asks one peer, from the port to which it spoke.
///
/// # Errors
/// The kernel does not send it: there is no route, or no room now.
pub fn knock(socket: &UdpSocket, peer: SocketAddr) -> io::Result<()> {
    socket.send_to(KNOCK, peer).map(drop)
}

pub(super) fn is_knock(datagram: &[u8]) -> bool {
    datagram == KNOCK
}
