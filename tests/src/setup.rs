//! Getting what the machine lacks, once: Debian packages, upstream's control plane, test images, the product.
//!
//! What was made is kept under `$SKERRY_CACHE` (default `~/.cache/skerry`), keyed by what it was made from; a second
//! call takes a moment. Two calls at a time take turns by a file lock.

mod containerd;
mod control_plane;
mod debian;
mod go;
mod images;
mod packages;
mod product;
mod vm;

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

pub use debian::{DebianAssets, ensure_debian};
pub use images::{AGNHOST, AGNHOST_NEXT, BUSYBOX, PAUSE, of_program};
pub use product::{build_simulator, build_simulator_release, cargo};
pub use vm::{VmAssets, ensure_vm};

use crate::progress::during;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Assets {
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kube_scheduler: PathBuf,
    pub kubectl: PathBuf,
    pub kubelet: PathBuf,
    /// The directory of the current containerd, its shim and ctr; Debian's are on PATH.
    pub containerd: PathBuf,
    /// OCI archives, to be imported by a site's containerd.
    pub images: Vec<PathBuf>,
    /// Holds cloudcore, edgecore and keadm; `None` when only the bench itself was asked for.
    pub product: Option<PathBuf>,
}

impl Assets {
    /// The product's program directory.
    ///
    /// # Errors
    /// When the assets were made by [`ensure_bench`].
    pub fn product(&self) -> Result<&Path> {
        self.product.as_deref().context("the product's programs were not asked for: use setup::ensure")
    }
}

/// All of it: the bench, and the product built from the source tree.
pub async fn ensure() -> Result<Assets> {
    let mut assets = ensure_bench().await?;
    let _turn = turn("product").await?;
    assets.product = Some(product::build().await?);
    Ok(assets)
}

/// What `cargo xtask fuzz` compiles with.
pub async fn ensure_fuzzing() -> Result<()> {
    packages::ensure_fuzzing().await
}

/// As [`ensure`], with the programs as they ship: what is measured is what people get.
pub async fn ensure_release() -> Result<Assets> {
    let mut assets = ensure_bench().await?;
    let _turn = turn("product").await?;
    assets.product = Some(product::build_release().await?);
    Ok(assets)
}

/// What the bench needs, without the product's programs.
pub async fn ensure_bench() -> Result<Assets> {
    let _turn = turn("bench").await?;
    packages::ensure().await?;
    let programs = control_plane::ensure().await?;
    let images = images::ensure(&programs.agnhost)?;
    Ok(Assets {
        etcd: programs.etcd,
        kube_apiserver: programs.kube_apiserver,
        kube_controller_manager: programs.kube_controller_manager,
        kube_scheduler: programs.kube_scheduler,
        kubectl: programs.kubectl,
        kubelet: programs.kubelet,
        containerd: containerd::ensure().await?,
        images,
        product: None,
    })
}

/// `$SKERRY_CACHE`, or `~/.cache/skerry`.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("SKERRY_CACHE") {
        return Ok(dir.into());
    }
    let home = env::var_os("HOME").context("neither SKERRY_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/skerry"))
}

/// The root of the source tree that this was compiled from.
pub fn source_dir() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the harness is a directory of the workspace").to_owned()
}

async fn turn(name: &str) -> Result<File> {
    let dir = cache_dir()?;
    fs::create_dir_all(&dir).with_context(|| format!("failed to make {}", dir.display()))?;
    let path = dir.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("failed to open {}", path.display()))?;
    let lock = tokio::task::spawn_blocking(move || file.lock().map(|()| file));
    Ok(during("waiting for another setup", lock).await??)
}

/// Finds a program as a shell would.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}
