//! Virtual machines, for what a process on this machine cannot have: a power cut that takes the kernel's memory with it,
//! and systemd with all that it manages.
//!
//! qemu in software emulation (no KVM is needed) boots Debian's kernel and an initial file system of the bench's own. A
//! [`Machine`] has the tree that the caller has given ([`tree`]), read-only, and a second disk, [`Disk`], which is its to keep and
//! forgets in a power cut what was not flushed. A [`Debian`] is a whole system. A machine's network is in qemu's process: it
//! reaches this machine at 10.0.2.2, and one port of it can be reached from here.

pub(crate) mod cpio;
mod debian;
mod disk;
mod tree;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};

pub(crate) use debian::{DISK, SHELL_PORT};
pub use debian::{Debian, DebianOptions};
pub use disk::Disk;
pub(crate) use tree::disk_image;
pub use tree::{data_image, extract, tree};

use crate::{
    process::{Daemon, command},
    run::Run,
    setup::VmAssets,
};

/// Where a machine finds the one that it runs on.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// What the kernel says when it finds the disk's file system damaged.
const DAMAGED: [&str; 2] = ["EXT4-fs error", "FAILED: "];

/// How a machine is made.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    pub name: String,
    /// From [`tree`].
    pub root: PathBuf,
    pub memory_mib: u32,
    /// A port of the machine that is to be reached from here.
    pub port: u16,
}

/// A machine that runs. Dropped, it is dead, and what it had not flushed may be gone.
pub struct Machine {
    qemu: Daemon,
    address: SocketAddr,
    disk: Disk,
}

impl Machine {
    pub fn boot(run: &Arc<Run>, assets: &VmAssets, options: &MachineOptions, disk: Disk) -> Result<Self> {
        let drives = [
            format!("file={},format=raw,if=virtio,readonly=on", plain(&options.root)?),
            // With a cache that forgets, as the machine is told; the disk is what forgets, not qemu.
            format!("file=nbd+unix:///?socket={},format=raw,if=virtio,cache=none", plain(disk.socket())?),
        ];
        let (mut qemu, address) = qemu(assets, "quiet", options.memory_mib, &drives, options.port)?;
        // A kernel that panics ends qemu, and shows.
        qemu.arg("-no-reboot");
        let qemu = Daemon::start(run, &options.name, qemu)?;
        Ok(Self { qemu, address, disk })
    }

    /// Leads to the machine's port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// An error, with the end of its console, if the machine is down or has a damaged disk.
    pub fn check_alive(&mut self) -> Result<()> {
        self.qemu.check_alive()?;
        let console = std::fs::read(self.qemu.log())?;
        let console = String::from_utf8_lossy(&console);
        let damage = console.lines().find(|line| DAMAGED.iter().any(|damage| line.contains(damage)));
        ensure!(damage.is_none(), "the machine's console says: {}", damage.unwrap_or_default());
        Ok(())
    }

    /// The power is cut. Of what was not flushed, those blocks survive that `keep` chooses; answers how many sectors were not.
    pub fn power_cut(mut self, keep: impl FnMut() -> bool) -> Result<usize> {
        self.qemu.kill9()?;
        self.disk.power_cut(keep)
    }
}

/// qemu with its disks, and where a port of the machine is to be found.
fn qemu(
    assets: &VmAssets,
    kernel_arguments: &str,
    memory_mib: u32,
    drives: &[String],
    port: u16,
) -> Result<(Command, SocketAddr)> {
    // Free a moment ago; whoever takes it meanwhile makes qemu end, and the test fail with its log.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut qemu =
        command("qemu-system-x86_64", ["-machine", "pc,accel=tcg", "-cpu", "Nehalem,+rdrand", "-smp", "1"]);
    qemu.args(["-m", &memory_mib.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-kernel", plain(&assets.kernel)?, "-initrd", plain(&assets.initramfs)?])
        .arg("-append")
        .arg(format!(
            "console=ttyS0 panic=-1 mitigations=off nokaslr random.trust_cpu=on {kernel_arguments}"
        ));
    for drive in drives {
        qemu.args(["-drive", drive]);
    }
    qemu.args(["-netdev", &format!("user,id=net,hostfwd=tcp:{address}-:{port}")])
        .args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    Ok((qemu, address))
}

fn plain(path: &Path) -> Result<&str> {
    path.to_str().context("a run's directory has a plain name")
}
