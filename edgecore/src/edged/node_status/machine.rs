//! What the machine says about itself. What cannot be read is empty or zero: a node without a DMI table is a node.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    thread,
};

use rustix::fs::StatVfs;

pub(super) struct Amount {
    pub(super) total: u64,
    pub(super) available: u64,
}

pub(super) fn cores() -> u64 {
    thread::available_parallelism().map_or(1, |cores| u64::try_from(cores.get()).unwrap_or(1))
}

pub(super) fn memory() -> Amount {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kibibytes.unwrap_or(0) * 1024
    };
    Amount { total: field("MemTotal:"), available: field("MemAvailable:") }
}

/// Bytes of the file system of `path`, or of the nearest directory above it that is there.
pub(super) fn disk(path: &Path) -> Amount {
    let of = |blocks: u64, stat: &StatVfs| blocks.saturating_mul(stat.f_frsize);
    file_system(path, |stat| Amount { total: of(stat.f_blocks, stat), available: of(stat.f_bavail, stat) })
}

/// Files that could be made there. File systems that make inodes as they are wanted (btrfs) have none and lack none.
pub(super) fn inodes(path: &Path) -> Amount {
    file_system(path, |stat| Amount { total: stat.f_files, available: stat.f_favail })
}

fn file_system(path: &Path, amount: impl Fn(&StatVfs) -> Amount) -> Amount {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(stat) => amount(&stat),
        Err(error) => {
            tracing::debug!(%error, "size of the disk is not known");
            Amount { total: 0, available: 0 }
        }
    }
}

pub(super) fn process_ids() -> Amount {
    // "0.20 0.18 0.12 1/80 11206": the fourth field has the threads of the machine.
    let used =
        line("/proc/loadavg").split(' ').nth(3).and_then(|field| field.split('/').nth(1)?.parse().ok());
    let total: u64 = line("/proc/sys/kernel/pid_max").parse().unwrap_or(u64::MAX);
    Amount { total, available: total.saturating_sub(used.unwrap_or(0)) }
}

/// In Kubernetes' words.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

pub(super) fn os_image() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The first line of a file.
pub(super) fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

/// The source address of the way to `cloud`, else of the default route, else the first that is not the loop.
pub(super) fn own_address(cloud: &str) -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing. A name is not looked up: that could wait for a network.
    let toward = |to: SocketAddr| -> Option<IpAddr> {
        let bind: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
    };
    // The other two are addresses for documentation.
    [cloud, "192.0.2.1:9", "[2001:db8::1]:9"]
        .iter()
        .filter_map(|text| text.parse().ok())
        .find_map(toward)
        .or_else(first_address)
}

fn first_address() -> Option<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?.filter_map(|interface| interface.address);
    let v4 = addresses.filter_map(|address| Some(IpAddr::V4(address.as_sockaddr_in()?.ip())));
    v4.into_iter().find(|ip| !ip.is_loopback() && !ip.is_unspecified())
}
