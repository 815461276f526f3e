//! Cutting the line between a site and the world, and restoring it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{
    Site,
    address::{Address, ip},
};

/// How a line is cut. The two look different to those who speak over it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineCut {
    /// The host's end is down: the site's interface loses its carrier.
    Unplugged,
    /// Every packet is dropped in silence, in both directions; interfaces and routes look well.
    Silent,
}

const TABLE: &str = "skerry_line";

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

    pub fn is_cut(&self) -> bool {
        self.line.is_some()
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
