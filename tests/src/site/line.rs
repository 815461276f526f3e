//! Cutting the line between a site and the world, making it thin and lossy, and restoring it. For delay and reordering, which the
//! development machine's kernel cannot do, there is [`Wire`](super::Wire).

use std::{
    io::Write,
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{
    Site,
    address::{Address, ip},
};
use crate::process::{command, output};

/// How a line is cut. The two look different to those who speak over it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineCut {
    /// The host's end is down: the site's interface loses its carrier.
    Unplugged,
    /// Every packet is dropped in silence, in both directions; interfaces and routes look well.
    Silent,
}

/// A line that carries packets, but not well. The same in both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Impairment {
    /// Kilobits a second.
    pub rate: u32,
    /// Of a hundred packets, how many are lost, each by chance: 0 to 99.
    pub loss: u8,
}

const TABLE: &str = "skerry_line";
const WAY_OUT_TABLE: &str = "skerry_way_out";
const UDP_TABLE: &str = "skerry_udp";
const LOSS_TABLE: &str = "skerry_loss";
/// What may pass at once: a packet, and a little.
const BURST: &str = "4kb";
/// What waits longer than this for its turn is dropped, as by a modem with a full buffer.
const LATENCY: &str = "500ms";

impl Site {
    /// Cuts the line. A line that is cut already is cut the new way.
    pub fn cut(&mut self, how: LineCut) -> Result<()> {
        self.restore()?;
        cut(&self.address, how)?;
        self.line = Some(how);
        Ok(())
    }

    /// Restores the line, if it is cut.
    pub fn restore(&mut self) -> Result<()> {
        match self.line.take() {
            None => Ok(()),
            Some(LineCut::Unplugged) => ip(&["link", "set", &self.address.host_interface, "up"]),
            Some(LineCut::Silent) => rules(&self.address, &format!("delete table inet {TABLE}\n")),
        }
    }

    /// Makes the line thin and lossy, until [`Site::relieve`] or a power cut.
    pub fn impair(&self, Impairment { rate, loss }: Impairment) -> Result<()> {
        let Address { netns, site_interface, host_interface, .. } = &self.address;
        let rate = format!("{rate}kbit");
        let cap = ["root", "tbf", "rate", &rate, "burst", BURST, "latency", LATENCY];
        output(command("tc", ["qdisc", "replace", "dev", host_interface].into_iter().chain(cap)))?;
        let inside = format!("--net=/run/netns/{netns}");
        let tc = [&inside, "--", "tc", "qdisc", "replace", "dev", site_interface];
        output(command("nsenter", tc.into_iter().chain(cap)))?;
        let lose = format!("numgen random mod 100 < {loss} drop");
        self.rules(&format!(
            "table inet {LOSS_TABLE} {{\n\
             chain in {{ type filter hook prerouting priority -311; iifname \"{site_interface}\" {lose}; }}\n\
             chain out {{ type filter hook postrouting priority 311; oifname \"{site_interface}\" {lose}; }}\n\
             }}\n"
        ))
    }

    /// The line is as good as new.
    pub fn relieve(&self) -> Result<()> {
        let Address { netns, site_interface, host_interface, .. } = &self.address;
        output(command("tc", ["qdisc", "delete", "dev", host_interface, "root"]))?;
        let inside = format!("--net=/run/netns/{netns}");
        output(command("nsenter", [&inside, "--", "tc", "qdisc", "delete", "dev", site_interface, "root"]))?;
        self.rules(&format!("delete table inet {LOSS_TABLE}\n"))
    }

    /// UDP is dropped in silence, in both directions, until [`Site::unblock_udp`] or a power cut.
    pub fn block_udp(&self) -> Result<()> {
        let interface = &self.address.site_interface;
        self.rules(&format!(
            "table inet {UDP_TABLE} {{\n\
             chain in {{ type filter hook prerouting priority -312; iifname \"{interface}\" meta l4proto udp drop; }}\n\
             chain out {{ type filter hook postrouting priority 312; oifname \"{interface}\" meta l4proto udp drop; }}\n\
             }}\n"
        ))
    }

    /// UDP gets through again.
    pub fn unblock_udp(&self) -> Result<()> {
        self.rules(&format!("delete table inet {UDP_TABLE}\n"))
    }

    /// Of what begins at the site, only connections to these TCP ports get out, until a power cut.
    pub fn allow_only_tcp(&self, ports: &[u16]) -> Result<()> {
        let interface = &self.address.site_interface;
        let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        self.rules(&format!(
            "table inet {WAY_OUT_TABLE} {{\n\
             chain out {{ type filter hook postrouting priority 313; oifname \"{interface}\" tcp dport != {{ {ports} }} drop; \
             oifname \"{interface}\" meta l4proto udp drop; }}\n\
             }}\n"
        ))
    }

    /// Gives the site another address, `second` or the one that it began with, and takes the one before away. The host is
    /// reached at the same address as before, by a new way. Returns the address that the site has now.
    pub fn change_address(&self, second: bool) -> Result<Ipv4Addr> {
        let Address { netns, site_interface, host_interface, .. } = &self.address;
        let (new, old) = match (self.address.first_pair(), self.address.second_pair()) {
            (first, other) if second => (other, first),
            (first, other) => (first, other),
        };
        ip(&["addr", "replace", &format!("{}/30", new.host), "dev", host_interface])?;
        ip(&["-n", netns, "addr", "add", &format!("{}/30", new.site), "dev", site_interface])?;
        // With the address go the routes through it.
        ip(&["-n", netns, "addr", "del", &format!("{}/30", old.site), "dev", site_interface])?;
        let gateway = new.host.to_string();
        ip(&["-n", netns, "route", "replace", "default", "via", &gateway, "dev", site_interface])?;
        Ok(new.site)
    }

    pub fn is_cut(&self) -> bool {
        self.line.is_some()
    }

    /// Whether the kernel lets a program say how long TCP waits at most before it sends something again (Linux 6.15).
    pub fn tcp_can_send_again_soon() -> bool {
        Path::new("/proc/sys/net/ipv4/tcp_rto_max_ms").exists()
    }
}

pub(super) fn cut(address: &Address, how: LineCut) -> Result<()> {
    match how {
        LineCut::Unplugged => ip(&["link", "set", &address.host_interface, "down"]),
        LineCut::Silent => {
            let interface = &address.site_interface;
            // Before connection tracking on the way in, after everything on the way out.
            rules(
                address,
                &format!(
                    "table inet {TABLE} {{\n\
                     chain in {{ type filter hook prerouting priority -310; iifname \"{interface}\" drop; }}\n\
                     chain out {{ type filter hook postrouting priority 310; oifname \"{interface}\" drop; }}\n\
                     }}\n"
                ),
            )
        }
    }
}

impl Site {
    /// Loads nftables rules in the site's network namespace.
    pub(crate) fn rules(&self, text: &str) -> Result<()> {
        rules(&self.address, text)
    }
}

/// Loads nftables rules in the site's network namespace.
fn rules(address: &Address, text: &str) -> Result<()> {
    let mut nft = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", address.netns))
        .args(["--", "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to run nft")?;
    nft.stdin.take().context("nft's input is a pipe")?.write_all(text.as_bytes())?;
    let out = nft.wait_with_output()?;
    if !out.status.success() {
        bail!("nft refused the rules: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}
