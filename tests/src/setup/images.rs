//! The test images, made of static binaries: no registry is asked for anything.
//!
//! | image | holds |
//! |---|---|
//! | `skerry.test/agnhost:1`, `:2` | upstream's agnhost as entrypoint, busybox and bash beside it; the two differ in a label, so in their id |
//! | `skerry.test/busybox:1` | busybox with its applets; bash, for names in the environment that other shells drop |
//! | `skerry.test/pause:3.9` | `agnhost pause`, a pod's first container |

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::cache_dir;
use crate::{
    oci::{Image, Layer, sha256_hex},
    process::{command, output},
};

pub const AGNHOST: &str = "skerry.test/agnhost:1";
pub const AGNHOST_NEXT: &str = "skerry.test/agnhost:2";
pub const BUSYBOX: &str = "skerry.test/busybox:1";
pub const PAUSE: &str = "skerry.test/pause:3.9";

/// Raised when what is put into the images changes.
const FORMAT: u32 = 1;

pub(super) fn ensure(agnhost: &Path) -> Result<Vec<PathBuf>> {
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let busybox = busybox.context("busybox-static brings no busybox")?;
    let bash = ["/usr/bin/bash-static", "/bin/bash-static"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists());
    let bash = bash.context("bash-static brings no bash-static")?;

    let dir = cache_dir()?.join("images").join(key(&[agnhost, &busybox, &bash])?);
    let archive = dir.join("images.tar");
    if archive.exists() {
        return Ok(vec![archive]);
    }
    fs::create_dir_all(&dir)?;
    let tools = tools_layer(&busybox, &bash)?;
    let mut program = Layer::new();
    program.file("agnhost", 0o755, &read(agnhost)?)?;
    let tools = tools.finish();
    let program = program.finish();

    let images = [
        Image::new(AGNHOST, &[&tools, &program], &["/agnhost"], &["pause"]).label("skerry.test/build", "1"),
        Image::new(AGNHOST_NEXT, &[&tools, &program], &["/agnhost"], &["pause"])
            .label("skerry.test/build", "2"),
        Image::new(BUSYBOX, &[&tools], &[], &["/bin/sh"]),
        Image::new(PAUSE, &[&program], &["/agnhost", "pause"], &[]),
    ];
    let new = dir.join("images.tar.new");
    fs::write(&new, crate::oci::archive(&images)?).context("failed to write the test images")?;
    fs::rename(&new, &archive)?;
    Ok(vec![archive])
}

/// An image of a program and the shared libraries that it loads, written to `archive`.
pub fn of_program(name: &str, program: &Path, archive: &Path) -> Result<()> {
    let mut layer = Layer::new();
    for dir in ["bin", "etc", "lib", "lib64", "tmp"] {
        layer.directory(dir, 0o755)?;
    }
    let file_name = program.file_name().and_then(|name| name.to_str()).context("a program has a name")?;
    layer.file(&format!("bin/{file_name}"), 0o755, &read(program)?)?;
    for library in libraries(program)? {
        let place = library.to_str().context("a library has a plain path")?;
        // The loader looks in /lib and /lib64; only its own path is fixed.
        let place = match place.strip_prefix("/lib64/") {
            Some(loader) => format!("lib64/{loader}"),
            None => format!("lib/{}", library.file_name().unwrap_or_default().display()),
        };
        layer.file(&place, 0o755, &read(&library)?)?;
    }
    let layer = layer.finish();
    let image = Image::new(name, &[&layer], &[&format!("/bin/{file_name}")], &[]);
    fs::write(archive, crate::oci::archive(&[image])?)
        .with_context(|| format!("failed to write {}", archive.display()))
}

/// What `ldd` says that a program loads, the loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = output(command("ldd", [program]))?;
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

fn tools_layer(busybox: &Path, bash: &Path) -> Result<Layer> {
    let mut layer = Layer::new();
    for dir in ["bin", "etc", "root", "run", "usr", "usr/bin", "var", "var/log"] {
        layer.directory(dir, 0o755)?;
    }
    layer.directory("tmp", 0o1777)?;
    layer.file("bin/busybox", 0o755, &read(busybox)?)?;
    layer.file("bin/bash", 0o755, &read(bash)?)?;
    layer.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    layer.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    let mut applets: Vec<String> = output(command(busybox, ["--list"]))?.lines().map(str::to_owned).collect();
    applets.sort();
    for applet in applets.iter().filter(|applet| !["busybox", "bash"].contains(&applet.as_str())) {
        layer.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    Ok(layer)
}

/// Of the inputs' paths, sizes and times of change: hashing 100 MB on each start would cost more than it is worth.
fn key(inputs: &[&Path]) -> Result<String> {
    let mut text = vec![FORMAT.to_string()];
    for path in inputs {
        let meta = fs::metadata(path).with_context(|| format!("failed to look at {}", path.display()))?;
        let time = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        text.push(format!("{} {} {}", path.display(), meta.len(), time.as_nanos()));
    }
    Ok(sha256_hex(text.join("\n").as_bytes())[..16].to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("failed to read {}", path.display()))
}
