//! Who has which addresses and interface names. Parallel runs of one machine share them out by file locks.

use std::{
    fs::{self, File, TryLockError},
    net::Ipv4Addr,
    path::Path,
};

use anyhow::{Context, Result, bail};

use super::line::{self, LineCut};
use crate::{
    process::{command, output},
    run::LOCKS,
};

/// Sites at a time on one machine. Each has a /30 of 10.213.0.0/16, another of 10.214.0.0/16, and a /24 of 10.216.0.0/14 for
/// its pods.
const SITES: u32 = 1024;
/// From 10.213.0.0 to 10.214.0.0.
const MOVE: u32 = 1 << 16;

/// The number of a site, and what follows from it.
pub(super) struct Address {
    pub(super) netns: String,
    /// At most 8 of the 15 bytes that an interface's name may have.
    pub(super) host_interface: String,
    pub(super) site_interface: String,
    pub(super) host_ip: Ipv4Addr,
    pub(super) site_ip: Ipv4Addr,
    pub(super) pod_cidr: String,
    /// Held, never read: freed with the process that holds it, however that ends.
    _lock: File,
}

/// Both ends of a line.
pub(super) struct Pair {
    pub(super) host: Ipv4Addr,
    pub(super) site: Ipv4Addr,
}

impl Address {
    /// The addresses that a site begins with.
    pub(super) fn first_pair(&self) -> Pair {
        Pair { host: self.host_ip, site: self.site_ip }
    }

    /// Those that it may change to.
    pub(super) fn second_pair(&self) -> Pair {
        let moved = |address: Ipv4Addr| Ipv4Addr::from(u32::from(address) + MOVE);
        Pair { host: moved(self.host_ip), site: moved(self.site_ip) }
    }

    /// Takes a number that no living site has.
    pub(super) fn claim() -> Result<Self> {
        fs::create_dir_all(LOCKS)?;
        let first = std::process::id() % SITES;
        for number in (first..SITES).chain(0..first) {
            let path = Path::new(LOCKS).join(format!("site-{number}.lock"));
            let lock = File::create(&path).with_context(|| format!("failed to open {}", path.display()))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            let address = Self::of(number, lock);
            // A site that was kept up has its interface, but nobody holds its lock.
            let interface = Path::new("/sys/class/net").join(&address.host_interface);
            if !interface.exists() && !Path::new("/run/netns").join(&address.netns).exists() {
                return Ok(address);
            }
        }
        bail!(
            "all {SITES} site numbers of this machine are taken; `cargo xtask down` frees those of dead runs"
        )
    }

    fn of(number: u32, lock: File) -> Self {
        let base = u32::from(Ipv4Addr::new(10, 213, 0, 0)) + number * 4;
        let pods = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 216, 0, 0)) + number * 256);
        Self {
            netns: format!("skerry-{number}"),
            host_interface: format!("sk{number}h"),
            site_interface: format!("sk{number}e"),
            host_ip: Ipv4Addr::from(base + 1),
            site_ip: Ipv4Addr::from(base + 2),
            pod_cidr: format!("{pods}/24"),
            _lock: lock,
        }
    }

    /// Makes the namespace and both ends of the line. A line that is cut is cut before it could carry anything.
    pub(super) fn lay(&self, cut: Option<LineCut>) -> Result<()> {
        let (netns, host, site) = (&self.netns, &self.host_interface, &self.site_interface);
        let host_ip = self.host_ip.to_string();
        ip(&["netns", "add", netns])?;
        ip(&["link", "add", host, "type", "veth", "peer", "name", site, "netns", netns])?;
        if let Some(cut) = cut {
            line::cut(self, cut)?;
        }
        ip(&["addr", "add", &format!("{host_ip}/30"), "dev", host])?;
        if cut != Some(LineCut::Unplugged) {
            ip(&["link", "set", host, "up"])?;
        }
        ip(&["-n", netns, "link", "set", "lo", "up"])?;
        ip(&["-n", netns, "addr", "add", &format!("{}/30", self.site_ip), "dev", site])?;
        ip(&["-n", netns, "link", "set", site, "up"])?;
        ip(&["-n", netns, "route", "add", "default", "via", &host_ip, "dev", site])
    }
}

pub(super) fn ip(args: &[&str]) -> Result<()> {
    output(command("ip", args)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_stays_inside_its_networks_and_names() {
        let file = tempfile::tempfile().unwrap();
        let last = Address::of(SITES - 1, file);
        assert_eq!(last.site_ip, Ipv4Addr::new(10, 213, 15, 254));
        assert_eq!(last.pod_cidr, "10.219.255.0/24");
        assert!(last.host_interface.len() <= 15);
    }
}
