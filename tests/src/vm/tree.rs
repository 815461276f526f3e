//! Disk images from directories, and directories from disk images, with no mount.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::process::{command, output, output_async};

/// What every machine's system has. `init` goes on after it.
const PROLOGUE: &str = "#!/bin/busybox sh\n\
    PATH=/bin\n\
    mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /tmp && mount -t ext4 /dev/vdb /data || echo 'FAILED: mount'\n\
    ip link set lo up && ip link set eth0 up && ip address add 10.0.2.15/24 dev eth0 || echo 'FAILED: network'\n";
/// Used in `init`s.
const APPLETS: &[&str] = &["cat", "ip", "mount", "sh"];

/// Makes the image of a machine's system: busybox, the programs with the libraries that they need, and what is run
/// at the start (as root, after the disk was mounted at `/data` and the network is up).
pub async fn tree(image: &Path, programs: &[&Path], init: &str) -> Result<()> {
    let root = tempfile::tempdir_in(image.parent().context("an image is in a directory")?)?;
    for dir in ["bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "data"] {
        fs::create_dir(root.path().join(dir))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.context("busybox-static brings no busybox")?, root.path().join("bin/busybox"))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(applet))?;
    }
    for program in programs {
        let name = program.file_name().context("a program has a name")?;
        fs::copy(program, root.path().join("bin").join(name))?;
        for library in libraries(program)? {
            let target = root.path().join(library.strip_prefix("/")?);
            fs::create_dir_all(target.parent().context("a library is in a directory")?)?;
            fs::copy(&library, target)?;
        }
    }
    let path = root.path().join("sbin/init");
    fs::write(&path, format!("{PROLOGUE}{init}"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    // Nothing is written to it: no journal, little room.
    disk_image(image, root.path(), 32, &["-O", "^has_journal"]).await
}

/// Makes the image of a disk with what is in a directory, and room for so many MiB more.
pub async fn data_image(image: &Path, content: &Path, room_mib: u64) -> Result<()> {
    disk_image(image, content, room_mib, &[]).await
}

/// As [`data_image`], with further options of mke2fs.
pub(crate) async fn disk_image(image: &Path, content: &Path, room_mib: u64, options: &[&str]) -> Result<()> {
    let size = room_mib + size(content)? * 9 / 8 / (1 << 20);
    let mut mke2fs = command("mke2fs", ["-q", "-F", "-t", "ext4", "-m", "0"]);
    mke2fs.args(options).arg("-d").arg(content).arg(image).arg(format!("{size}M"));
    mke2fs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    output_async(mke2fs).await.map(drop)
}

/// Copies a directory out of an image that no machine uses, as the next mount would find it. The image stays as it is.
///
/// # Errors
/// When the file system needs more than a look into its journal.
pub async fn extract(image: &Path, directory: &str, target: &Path) -> Result<()> {
    let copy = target.join("image");
    fs::copy(image, &copy)?;
    let mut check = command("e2fsck", ["-p"]);
    check.arg(&copy).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    output_async(check).await.context("the machine's file system is damaged")?;
    let mut check = command("e2fsck", ["-f", "-n"]);
    check.arg(&copy).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    output_async(check).await.context("the machine's file system is damaged")?;
    let mut dump = command("debugfs", ["-R", &format!("rdump {directory} {}", target.display())]);
    dump.arg(&copy).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    output_async(dump).await?;
    fs::remove_file(copy)?;
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

/// What the dynamic linker would load, itself too.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut ldd = command("ldd", [""; 0]);
    ldd.arg(program);
    let listed = output(ldd)?;
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let paths: Vec<PathBuf> = paths.collect();
    if paths.is_empty() {
        bail!("{} names no libraries: {listed}", program.display());
    }
    Ok(paths)
}
