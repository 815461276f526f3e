//! A Debian system for virtual machines, as an operator would have installed it: systemd, and Debian's containerd, runc and
//! CNI plugins. Of the bench's own it has a shell behind a port, and a place for a disk.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    cache_dir, turn,
    vm::{self, VmAssets},
};
use crate::{
    process::{command, output, output_async},
    progress::during,
    vm::{DISK, SHELL_PORT, disk_image},
};

/// What a machine of [`crate::vm::Debian`] boots.
#[derive(Clone, Debug)]
pub struct DebianAssets {
    pub vm: VmAssets,
    /// The system's disk; a machine writes to a copy of its own.
    pub image: PathBuf,
}

const SUITE: &str = "bookworm";
const PACKAGES: &[&str] = &[
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "dbus",
    "iproute2",
    "iptables",
    "kmod",
    "procps",
    "runc",
    "systemd",
    "systemd-sysv",
    "udev",
];
/// Raised when what is put into the system changes.
const FORMAT: u32 = 1;
/// For what a machine writes.
const ROOM_MIB: u64 = 1500;

/// The kernel and the system, made once.
pub async fn ensure_debian() -> Result<DebianAssets> {
    let _turn = turn("bench").await?;
    let vm = vm::ensure().await?;
    // The modules in it are those of the kernel beside it.
    let kernel = vm.kernel_version()?;
    let image = cache_dir()?.join(format!("debian-{FORMAT}-{SUITE}-{kernel}.img"));
    if !image.exists() {
        let dir = tempfile::tempdir_in(cache_dir()?)?;
        let root = dir.path().join("root");
        let mut install = command("mmdebstrap", ["--quiet", "--mode=root", "--variant=essential"]);
        install.arg(format!("--include={}", PACKAGES.join(","))).arg(SUITE).arg(&root);
        during("installing a Debian for virtual machines, once", output_async(install)).await?;
        furnish(&root, &vm.modules.join(&kernel))?;
        let new = image.with_extension("new");
        disk_image(&new, &root, ROOM_MIB, &["-O", "^has_journal"]).await?;
        fs::rename(&new, &image)?;
    }
    Ok(DebianAssets { vm, image })
}

fn furnish(root: &Path, modules: &Path) -> Result<()> {
    fs::create_dir_all(root.join("lib/modules"))?;
    let mut copy = command("cp", ["--recursive"]);
    copy.arg(modules).arg(root.join("lib/modules"));
    output(copy)?;
    let mut index = command("chroot", [root]);
    index.arg("/sbin/depmod").args(modules.file_name());
    output(index)?;
    let file = |path: &str, text: &str| {
        fs::write(root.join(path), text).with_context(|| format!("failed to write {path} of the system"))
    };
    fs::create_dir_all(root.join(DISK.trim_start_matches('/')))?;
    file("etc/fstab", &format!("/dev/vda / ext4 noatime 0 0\n/dev/vdb {DISK} ext4 ro 0 0\n"))?;
    file(
        "etc/systemd/network/80-machine.network",
        "[Match]\nName=en*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n",
    )?;
    let units = "etc/systemd/system";
    file(&format!("{units}/shell.socket"), &format!("[Socket]\nListenStream={SHELL_PORT}\nAccept=yes\n"))?;
    file(
        &format!("{units}/shell@.service"),
        "[Service]\nExecStart=/bin/bash -s\nStandardInput=socket\nStandardOutput=socket\nStandardError=socket\n",
    )?;
    for (target, unit) in [
        ("sockets.target", "/etc/systemd/system/shell.socket"),
        ("multi-user.target", "/lib/systemd/system/systemd-networkd.service"),
    ] {
        let wants = root.join(units).join(format!("{target}.wants"));
        fs::create_dir_all(&wants)?;
        let name = Path::new(unit).file_name().context("a unit is a file")?;
        symlink(unit, wants.join(name))?;
    }
    // The console is for the log.
    symlink("/dev/null", root.join(units).join("serial-getty@ttyS0.service"))?;
    Ok(())
}
