//! Virtual machines, for what a process on this machine cannot have: a power cut that takes the kernel's memory with it.
//!
//! qemu in software emulation (no KVM is needed) boots Debian's kernel, an initial file system of the bench's own, and then
//! the tree that the caller has given ([`tree`]), read-only. A second disk, [`Disk`], is the machine's to keep; it forgets in a
//! power cut what was not flushed. The machine's network is in qemu's process: it reaches this machine at 10.0.2.2, and one
//! port of it can be reached from here.

pub(crate) mod cpio;
mod disk;
mod tree;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};

pub use disk::Disk;
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
        // Free a moment ago; whoever takes it meanwhile makes qemu end, and the test fail with its log.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let path =
            |path: &Path| path.to_str().map(str::to_owned).context("a run's directory has a plain name");
        let mut qemu = command(
            "qemu-system-x86_64",
            ["-machine", "pc,accel=tcg", "-cpu", "Nehalem,+rdrand", "-smp", "1"],
        );
        qemu.args(["-m", &options.memory_mib.to_string()])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .args(["-kernel", &path(&assets.kernel)?, "-initrd", &path(&assets.initramfs)?])
            // A kernel that panics ends qemu, and shows.
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on"])
            .args(["-drive", &format!("file={},format=raw,if=virtio,readonly=on", path(&options.root)?)])
            .args([
                "-drive",
                // With a cache that forgets, as the machine is told; the disk is what forgets, not qemu.
                &format!("file=nbd+unix:///?socket={},format=raw,if=virtio,cache=none", path(disk.socket())?),
            ])
            .args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:{}", options.port)])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        let qemu = Daemon::start(run, &options.name, qemu)?;
        Ok(Self { qemu, address: (Ipv4Addr::LOCALHOST, port).into(), disk })
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
