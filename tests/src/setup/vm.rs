//! What a virtual machine boots: Debian's kernel for clouds, taken from its package without installing it, and an initial
//! file system with busybox and the modules for virtio.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{cache_dir, packages, turn};
use crate::{
    process::{command, output, output_async},
    progress::during,
    vm::cpio::Archive,
};

/// Where to find what a machine is made of.
#[derive(Clone, Debug)]
pub struct VmAssets {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The kernel's modules, as they are to be found below `/lib/modules`.
    pub(super) modules: PathBuf,
}

impl VmAssets {
    /// The name of the directory of its modules.
    pub(super) fn kernel_version(&self) -> Result<String> {
        let version = fs::read_dir(&self.modules)?.next().context("a kernel has modules")??.file_name();
        version.into_string().map_err(|version| anyhow!("{} is no version", version.display()))
    }
}

/// Always names the newest kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the machine needs that is no part of the kernel itself; what these need comes with them.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net"];
/// Raised when what is put into the initial file system changes.
const FORMAT: u32 = 2;

/// qemu, a kernel, an initial file system.
pub async fn ensure_vm() -> Result<VmAssets> {
    let _turn = turn("bench").await?;
    ensure().await
}

/// For who has its turn.
pub(super) async fn ensure() -> Result<VmAssets> {
    if !cfg!(target_arch = "x86_64") {
        bail!("virtual machines are made for amd64 only, as the kernel that they boot");
    }
    packages::ensure_vm().await?;
    let dir = cache_dir()?.join(format!("vm-{FORMAT}"));
    let assets = VmAssets {
        kernel: dir.join("vmlinuz"),
        initramfs: dir.join("initramfs"),
        modules: dir.join("modules"),
    };
    if !assets.initramfs.exists() {
        let unpacked = kernel_package().await?;
        let modules = ["lib/modules", "usr/lib/modules"].map(|below| unpacked.path().join(below));
        let modules =
            modules.iter().find(|dir| dir.is_dir()).context("the kernel's package has no modules")?;
        fs::create_dir_all(&dir)?;
        // Of a setup that was interrupted.
        if assets.modules.exists() {
            fs::remove_dir_all(&assets.modules)?;
        }
        fs::rename(modules, &assets.modules)?;
        let kernel = find(&unpacked.path().join("boot"), &|name| name.starts_with("vmlinuz-"));
        fs::copy(kernel.first().context("the kernel's package has no kernel")?, &assets.kernel)?;
        let new = dir.join("initramfs.new");
        fs::write(&new, initramfs(&assets.modules)?)?;
        // Last: it says that all is there.
        fs::rename(&new, &assets.initramfs)?;
    }
    Ok(assets)
}

fn kernel_name() -> Result<String> {
    let listed = output(command("apt-cache", ["depends", KERNEL]))?;
    let name = listed.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    name.map(str::to_owned).with_context(|| format!("{KERNEL} depends on no kernel"))
}

/// The package's content, in a directory that is not kept.
async fn kernel_package() -> Result<tempfile::TempDir> {
    let package = if let Ok(name) = kernel_name() {
        name
    } else {
        // apt's lists are not there, or old; if it is something else, it is said the second time.
        packages::update().await?;
        kernel_name()?
    };
    let dir = tempfile::tempdir_in(cache_dir()?)?;
    // As root: apt's own user cannot write here.
    let mut download = command("apt-get", ["-qq", "-o", "APT::Sandbox::User=root", "download", &package]);
    download.current_dir(dir.path());
    during(&format!("downloading {package}"), output_async(download)).await?;
    let found = find(dir.path(), &|name| name.starts_with("linux-image-"));
    let deb = found.first().with_context(|| format!("apt-get has downloaded no {package}"))?;
    let mut unpack = command("dpkg-deb", ["--extract"]);
    unpack.arg(deb).arg(dir.path());
    during("unpacking the kernel", output_async(unpack)).await?;
    Ok(dir)
}

fn initramfs(modules: &Path) -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    for path in find(modules, &|name| name.contains(".ko")) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.split('.').next().unwrap_or_default().replace('-', "_");
        files.insert(name, path);
    }
    let mut order = Vec::new();
    let mut loaded = BTreeSet::new();
    for module in MODULES {
        load(module, &files, &mut loaded, &mut order)?;
    }
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "root", "modules"] {
        archive.directory(dir);
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
    archive.file("bin/busybox", 0o755, &fs::read(busybox.context("busybox-static brings no busybox")?)?);
    let mut init = String::from(
        "#!/bin/busybox sh\n\
         busybox() { /bin/busybox \"$@\" || echo \"FAILED: $*\"; }\n\
         busybox mount -t proc proc /proc\n\
         busybox mount -t sysfs sys /sys\n\
         busybox mount -t devtmpfs dev /dev\n",
    );
    for (name, content) in order {
        let path = format!("modules/{name}.ko");
        archive.file(&path, 0o644, &content);
        init.extend(["busybox insmod /", &path, "\n"]);
    }
    init.push_str(
        "busybox mount -t ext4 -o ro /dev/vda /root\n\
         for dir in dev proc sys; do busybox mount --move /$dir /root/$dir; done\n\
         exec /bin/busybox switch_root /root /sbin/init\n",
    );
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive.finish())
}

/// Puts a module into the order of loading, behind those that it needs.
fn load(
    module: &str,
    files: &BTreeMap<String, PathBuf>,
    loaded: &mut BTreeSet<String>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if !loaded.insert(module.to_owned()) {
        return Ok(());
    }
    // Not there: then it is a part of the kernel.
    let Some(path) = files.get(module) else { return Ok(()) };
    let content = if path.extension().is_some_and(|extension| extension == "xz") {
        let mut xz = command("xz", ["--decompress"]);
        xz.arg(path);
        output(xz)?;
        fs::read(path.with_extension(""))?
    } else {
        fs::read(path)?
    };
    for needed in dependencies(&content) {
        load(&needed, files, loaded, order)?;
    }
    order.push((module.to_owned(), content));
    Ok(())
}

/// What a module says that it needs: `depends=a,b` among the strings of its information.
fn dependencies(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let text: Vec<u8> = module[at + FIELD.len()..].iter().copied().take_while(|byte| *byte != 0).collect();
    let text = String::from_utf8_lossy(&text);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// Files below a directory whose name fits, links not followed.
fn find(dir: &Path, fits: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(find(&entry.path(), fits)),
            Ok(kind) if kind.is_file() && fits(&entry.file_name().to_string_lossy()) => {
                found.push(entry.path());
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        let module = b"\0license=GPL\0depends=virtio,virtio-ring\0name=virtio_blk\0";
        assert_eq!(dependencies(module), ["virtio", "virtio_ring"]);
        assert_eq!(dependencies(b"\0depends=\0name=failover\0"), Vec::<String>::new());
    }
}
