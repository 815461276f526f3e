//! By which address the API server reaches this cloudcore.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use tokio::net::lookup_host;

/// The address of this machine from which `host` is reached: the way there is the way back. Nothing is sent.
///
/// # Errors
/// The name cannot be looked up, or there is no route.
pub async fn reaching(host: &str, port: u16) -> io::Result<IpAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for server in lookup_host((host, port)).await? {
        match towards(server) {
            Ok(address) => return Ok(address),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn towards(server: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel picks the address when a UDP socket is connected.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}

/// An API server on this very machine is reached by the loopback, which says nothing to people who look at a Node: of the
/// addresses that nodes are given, one that this machine has is better.
pub fn advertised(reached: IpAddr, given: &[IpAddr]) -> IpAddr {
    if !reached.is_loopback() {
        return reached;
    }
    given.iter().copied().find(|address| UdpSocket::bind((*address, 0)).is_ok()).unwrap_or(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_way_to_a_server_has_an_address() {
        assert_eq!(reaching("127.0.0.1", 6443).await.unwrap(), Ipv4Addr::LOCALHOST);
        assert!(reaching("no-such-host.invalid", 6443).await.is_err());
    }

    #[test]
    fn the_loopback_is_the_last_resort() {
        let (loopback, there): (IpAddr, IpAddr) =
            (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(192, 0, 2, 1).into());
        let other: IpAddr = Ipv4Addr::new(127, 0, 0, 2).into();
        assert_eq!(advertised(there, &[loopback]), there);
        assert_eq!(advertised(loopback, &[there]), loopback);
        assert_eq!(advertised(loopback, &[there, other]), other);
    }
}
