//! What goes over a site's line, counted by nftables in the site's network namespace: IP packets with their headers.

use std::{fs, ops::Sub};

use anyhow::{Context, Result};
use harness::{Site, process};

use super::reading;

#[derive(Clone, Copy)]
pub(crate) struct Carried {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// Since [`count`] was called, or, of a difference, between two looks.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    /// Of the links, over either transport.
    pub(crate) up: Carried,
    pub(crate) down: Carried,
    /// Whatever else there is.
    pub(crate) other: Carried,
}

/// Begins to count. `cloud` is cloudcore's `HOST:PORT`.
pub(crate) fn count(site: &Site, cloud: &str) -> Result<()> {
    let (_, port) = cloud.rsplit_once(':').context("cloudcore's endpoint has a port")?;
    let rules = format!(
        "table inet bench {{\n\
         counter up {{ }}\n counter down {{ }}\n counter other {{ }}\n\
         chain in {{ type filter hook input priority 0;\n\
         iifname \"sk*\" meta l4proto {{ tcp, udp }} th sport {port} counter name down accept;\n\
         iifname \"sk*\" counter name other; }}\n\
         chain out {{ type filter hook output priority 0;\n\
         oifname \"sk*\" meta l4proto {{ tcp, udp }} th dport {port} counter name up accept;\n\
         oifname \"sk*\" counter name other; }}\n\
         }}\n"
    );
    let file = site.dir().join("bench.nft");
    fs::write(&file, rules)?;
    process::output(site.command("nft", ["-f".as_ref(), file.as_os_str()])?)?;
    Ok(())
}

impl Line {
    pub(crate) fn of(site: &Site) -> Result<Self> {
        Self::parse(&process::output(site.command("nft", ["list", "counters"])?)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let counter = |name: &str| {
            let (_, rest) = text.split_once(&format!("counter {name} {{")).context("nft lacks a counter")?;
            let (packets, bytes) = rest.trim_start().split_once("bytes").context("nft counts no bytes")?;
            let bytes = reading::number(&format!("bytes{bytes}"), "bytes ")?;
            anyhow::Ok(Carried { packets: reading::number(packets, "packets ")?, bytes })
        };
        Ok(Self { up: counter("up")?, down: counter("down")?, other: counter("other")? })
    }
}

impl Sub for Carried {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { packets: self.packets - before.packets, bytes: self.bytes - before.bytes }
    }
}

impl Sub for Line {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { up: self.up - before.up, down: self.down - before.down, other: self.other - before.other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nft_lists_is_read() {
        let listed = |up: u64| {
            let counter =
                |name: &str, bytes: u64| format!("\tcounter {name} {{\n\t\tpackets 8 bytes {bytes}\n\t}}\n");
            let counters = [counter("up", up), counter("down", 440), counter("other", 112)].concat();
            Line::parse(&format!("table inet bench {{\n{counters}}}\n")).unwrap()
        };
        let line = listed(616) - listed(16);
        assert_eq!((line.up.bytes, line.up.packets, line.down.bytes), (600, 0, 0));
        assert_eq!((listed(616).down.bytes, listed(616).other.bytes, listed(616).up.packets), (440, 112, 8));
        assert!(Line::parse("table inet bench {\n}\n").is_err());
    }
}
