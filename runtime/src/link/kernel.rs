//! What the kernel's TCP is told, and what it tells, beyond the usual.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use nix::{errno::Errno, libc, setsockopt_impl, sockopt_impl, sys::socket::SetSockOpt};

/// `TCP_RTO_MAX_MS`, of Linux 6.15.
const TCP_RTO_MAX_MS: libc::c_int = 44;
/// The state in /proc/net/tcp.
const ESTABLISHED: &str = "01";

sockopt_impl!(
    /// The longest time between two times that the kernel sends the same.
    RetransmitWithin,
    SetOnly,
    libc::IPPROTO_TCP,
    TCP_RTO_MAX_MS,
    u32
);

/// What is not confirmed is sent again at least so often. Where the kernel is too old for that, it sends it again ever more
/// seldom, as TCP does.
pub(super) fn retransmit_within(tcp: &impl AsFd, longest: Duration) -> io::Result<()> {
    let millis = u32::try_from(longest.as_millis()).unwrap_or(u32::MAX);
    match RetransmitWithin.set(tcp, &millis) {
        Ok(()) | Err(Errno::ENOPROTOOPT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Bytes that were written to a connection and that its peer has not confirmed. `None`: the kernel has no such connection.
pub(super) fn unconfirmed((local, peer): (SocketAddr, SocketAddr)) -> Option<u64> {
    let table = if local.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    // A process that may not read it knows no more of the connection than before.
    look_up(BufReader::new(File::open(table).ok()?), &(told(local), told(peer)))
}

fn look_up(table: impl BufRead, (local, peer): &(String, String)) -> Option<u64> {
    table.lines().map_while(Result::ok).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let is_it = fields.next()? == local && fields.next()? == peer && fields.next()? == ESTABLISHED;
        let (sending, _) = fields.next()?.split_once(':').filter(|_| is_it)?;
        u64::from_str_radix(sending, 16).ok()
    })
}

/// As the kernel writes it: words as they are in memory.
fn told(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.as_chunks().0.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word)));
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn what_the_peer_has_not_confirmed_is_counted() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut reader, _) = listener.accept().unwrap();
            let ends = (writer.local_addr().unwrap(), writer.peer_addr().unwrap());
            assert_eq!(unconfirmed(ends), Some(0));
            // Nobody reads, so that the kernels at both ends have all that they take.
            writer.set_nonblocking(true).unwrap();
            let mut written = 0;
            while let Ok(bytes) = writer.write(&[7; 8 << 10]) {
                written += bytes;
            }
            let waiting = usize::try_from(unconfirmed(ends).unwrap()).unwrap();
            assert!(waiting > 0 && waiting < written, "{waiting} of {written}");
            reader.read_exact(&mut vec![0; written]).unwrap();
            while unconfirmed(ends) != Some(0) {}
            drop((writer, reader));
            assert_ne!(unconfirmed(ends), Some(1), "it is not this one any more");
        }
    }

    #[test]
    fn lines_that_are_not_understood_are_passed_over() {
        let of = |table: &str| look_up(table.as_bytes(), &("A:1".to_owned(), "B:2".to_owned()));
        assert_eq!(of("sl local rem st tx:rx\n0: A:1 B:2 01 0000001F:0 0\n"), Some(31));
        assert_eq!(of("0: A:1 B:2 06 0000001F:0 0\n0: A:1 B:3 01 1:0\n\n0: A:1\n"), None);
        assert_eq!(of("0: A:1 B:2 01 x:0\n0: A:1 B:2 01 7\n"), None);
    }

    #[test]
    fn the_kernel_is_told_how_often_to_send_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        retransmit_within(&listener, Duration::from_secs(3)).unwrap();
    }
}
