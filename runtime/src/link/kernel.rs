//! What the kernel's TCP is told, and what it tells, beyond the usual.

use std::{io, os::fd::AsFd, time::Duration};

use nix::{
    errno::Errno,
    getsockopt_impl, libc, setsockopt_impl, sockopt_impl,
    sys::socket::{GetSockOpt, SetSockOpt, sockopt::GetStruct},
};

use super::Delivery;

/// `TCP_RTO_MAX_MS`, of Linux 6.15.
const TCP_RTO_MAX_MS: libc::c_int = 44;

sockopt_impl!(
    /// The longest time between two times that the kernel sends the same.
    RetransmitWithin,
    SetOnly,
    libc::IPPROTO_TCP,
    TCP_RTO_MAX_MS,
    u32
);

/// The beginning of `struct tcp_info` (linux/tcp.h), as Linux 4.1 has it and each one since.
#[repr(C)]
#[derive(Clone, Copy)]
#[expect(unreachable_pub, reason = "the option that has it is pub by its macro")]
pub struct Info {
    _states: [u8; 8],
    _timers_and_sizes: [u32; 4],
    unacked: u32,
    _until_total_retrans: [u32; 19],
    _pacing: [u64; 2],
    bytes_acked: u64,
}

sockopt_impl!(
    /// How a connection fares.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    Info,
    GetStruct<Info>
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

/// What a connection's peer has confirmed, and whether something is on its way to it.
pub(super) fn delivery(tcp: &impl AsFd) -> io::Result<Delivery> {
    let info = TcpInfo.get(tcp)?;
    Ok(Delivery { confirmed: info.bytes_acked, open: info.unacked > 0 })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        mem::offset_of,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn the_structure_is_that_of_the_kernel() {
        assert_eq!(offset_of!(Info, unacked), offset_of!(libc::tcp_info, tcpi_unacked));
        assert_eq!(offset_of!(Info, bytes_acked), offset_of!(libc::tcp_info, tcpi_bytes_acked));
    }

    #[test]
    fn what_the_peer_has_confirmed_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, _) = listener.accept().unwrap();
        let before = delivery(&writer).unwrap();
        assert!(!before.open);
        let message = [7; 1000];
        writer.write_all(&message).unwrap();
        reader.read_exact(&mut [0; 1000]).unwrap();
        while delivery(&writer).unwrap().open {}
        assert_eq!(delivery(&writer).unwrap().confirmed, before.confirmed + 1000);
    }

    #[test]
    fn the_kernel_is_told_how_often_to_send_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        retransmit_within(&listener, Duration::from_secs(3)).unwrap();
    }
}
