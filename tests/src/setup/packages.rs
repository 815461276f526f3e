//! Debian's packages that the bench runs on.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    process::{command, output_async},
    progress::during,
};

/// A package and a file that only it brings. Asking for the file is quicker than asking dpkg, and is content with a
/// program that came from elsewhere.
const NEEDED: &[(&str, &[&str])] = &[
    ("containerd", &["/usr/bin/containerd", "/usr/local/bin/containerd"]),
    ("runc", &["/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc"]),
    ("containernetworking-plugins", &["/usr/lib/cni/bridge"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"]),
    ("nftables", &["/usr/sbin/nft"]),
    // sysctl, for the benches with thousands of nodes.
    ("procps", &["/usr/sbin/sysctl", "/sbin/sysctl"]),
    // An MQTT broker that is there anyway.
    ("mosquitto", &["/usr/sbin/mosquitto"]),
    // The bridge and portmap plugins call it for masquerading and host ports.
    ("iptables", &["/usr/sbin/iptables"]),
    ("tinyproxy-bin", &["/usr/bin/tinyproxy", "/usr/sbin/tinyproxy"]),
    ("stunnel4", &["/usr/bin/stunnel4"]),
    // cloudcore's allocator is built with it.
    ("make", &["/usr/bin/make"]),
    ("bash-static", &["/usr/bin/bash-static", "/bin/bash-static"]),
    // Debian has the same path for busybox and busybox-static; the images need the one without libraries.
    ("busybox-static", &["/usr/share/doc/busybox-static/copyright"]),
];

/// For virtual machines alone.
const NEEDED_FOR_VMS: &[(&str, &[&str])] = &[
    ("qemu-system-x86", &["/usr/bin/qemu-system-x86_64"]),
    ("e2fsprogs", &["/usr/sbin/mke2fs", "/sbin/mke2fs"]),
    ("xz-utils", &["/usr/bin/xz"]),
    ("mmdebstrap", &["/usr/bin/mmdebstrap"]),
];

/// For libFuzzer alone, which is C++; Rust needs a C compiler only.
const NEEDED_FOR_FUZZING: &[(&str, &[&str])] = &[("g++", &["/usr/bin/c++"])];

pub(super) async fn ensure() -> Result<()> {
    install(NEEDED).await
}

pub(super) async fn ensure_vm() -> Result<()> {
    install(NEEDED_FOR_VMS).await
}

pub(super) async fn ensure_fuzzing() -> Result<()> {
    install(NEEDED_FOR_FUZZING).await
}

async fn install(needed: &[(&str, &[&str])]) -> Result<()> {
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(_, files)| !files.iter().any(|file| Path::new(file).exists()))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the bench needs root (namespaces, containerd), and Debian's {}", missing.join(", "));
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("this is not a Debian system; install these by hand: {}", missing.join(", "));
    }
    // An installation that was interrupted is finished first; apt-get refuses to go on otherwise.
    during("dpkg --configure -a", output_async(command("dpkg", ["--configure", "-a"])))
        .await
        .context("failed to finish an interrupted installation")?;
    update().await?;
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(&missing);
    during(&format!("apt-get install {}", missing.join(" ")), output_async(apt(&args)))
        .await
        .context("failed to install Debian's packages")?;
    Ok(())
}

pub(super) async fn update() -> Result<()> {
    during("apt-get update", output_async(apt(&["update"])))
        .await
        .map(drop)
        .context("failed to update Debian's package lists")
}

fn apt(args: &[&str]) -> Command {
    let mut apt = command("apt-get", ["-qq", "-o", "DPkg::Lock::Timeout=120"]);
    apt.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    apt
}
