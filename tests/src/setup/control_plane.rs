//! Upstream's own programs, built once from the Go module in `tests/controlplane`, which pins their versions.
//!
//! A program in `KUBEBUILDER_ASSETS` is taken as it is, one on PATH if it is of the pinned minor version (an old kubectl
//! is on many machines). What remains is built into `<cache>/controlplane/<first 16 hex digits of the SHA-256 of go.sum>/`.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{cache_dir, on_path, source_dir};
use crate::{
    oci::sha256_hex,
    process::{command, output, output_async},
    progress::during,
};

pub(super) struct Programs {
    pub(super) etcd: PathBuf,
    pub(super) kube_apiserver: PathBuf,
    pub(super) kube_controller_manager: PathBuf,
    pub(super) kube_scheduler: PathBuf,
    pub(super) kubectl: PathBuf,
    pub(super) kubelet: PathBuf,
    pub(super) agnhost: PathBuf,
}

const ETCD: &str = "go.etcd.io/etcd/server/v3";
/// Built by one command, so that what they share is compiled once. etcd is built apart: its package is called
/// `server`, and it takes no Kubernetes version.
const KUBERNETES: &[(&str, &str)] = &[
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
];

pub(super) async fn ensure() -> Result<Programs> {
    let module = source_dir().join("tests/controlplane");
    let sum = fs::read(module.join("go.sum")).context("failed to read tests/controlplane/go.sum")?;
    let built = cache_dir()?.join("controlplane").join(&sha256_hex(&sum)[..16]);
    let names = || KUBERNETES.iter().map(|(name, _)| *name).chain(["etcd"]);
    let mut found = BTreeMap::new();
    for name in names() {
        if let Some(path) = find(name, &module, &built)? {
            found.insert(name, path);
        }
    }
    let missing: Vec<&str> = names().filter(|name| !found.contains_key(name)).collect();
    if !missing.is_empty() {
        build(&module, &built, &missing).await?;
    }
    let mut get = |name: &str| found.remove(name).unwrap_or_else(|| built.join(name));
    Ok(Programs {
        etcd: get("etcd"),
        kube_apiserver: get("kube-apiserver"),
        kube_controller_manager: get("kube-controller-manager"),
        kube_scheduler: get("kube-scheduler"),
        kubectl: get("kubectl"),
        kubelet: get("kubelet"),
        agnhost: get("agnhost"),
    })
}

fn find(name: &str, module: &Path, built: &Path) -> Result<Option<PathBuf>> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(|dir| Path::new(&dir).join(name));
    if let Some(path) = assets.into_iter().chain([built.join(name)]).find(|path| path.is_file()) {
        return Ok(Some(path));
    }
    let Some(path) = on_path(name) else { return Ok(None) };
    let package = if name == "etcd" { ETCD } else { "k8s.io/kubernetes" };
    let pinned = required_version(module, package)?;
    let minor = pinned.trim_start_matches('v').rsplit_once('.').map_or("", |(minor, _)| minor).to_owned();
    let args: &[&str] = if name == "kubectl" { &["version", "--client"] } else { &["--version"] };
    // A program that cannot say its version is one of the wrong version.
    let says = output(command(&path, args)).unwrap_or_default();
    let fits =
        says.split_whitespace().any(|word| word.trim_start_matches('v').starts_with(&format!("{minor}.")));
    Ok(fits.then_some(path))
}

/// Builds `missing` and puts each program in place when all are there: an interrupted build leaves nothing that looks
/// finished.
async fn build(module: &Path, built: &Path, missing: &[&str]) -> Result<()> {
    if on_path("go").is_none() {
        bail!("Go is not on PATH; it builds upstream's control plane for the tests");
    }
    let parent = built.parent().context("the cache has a parent directory")?;
    fs::create_dir_all(parent)?;
    let scratch = tempfile::Builder::new().prefix(".building-").tempdir_in(parent)?;
    let version = required_version(module, "k8s.io/kubernetes")?;
    let stamp = format!("-s -w -X k8s.io/component-base/version.gitVersion={version}");
    let go = |flags: &str, out: &Path| {
        let mut go = command("go", ["build", "-trimpath", "-ldflags", flags, "-o"]);
        go.arg(out).current_dir(module).env("CGO_ENABLED", "0");
        go
    };
    let packages: Vec<&str> =
        KUBERNETES.iter().filter(|(name, _)| missing.contains(name)).map(|(_, package)| *package).collect();
    if !packages.is_empty() {
        // With a slash at its end: a directory, also for a single program.
        let mut kubernetes = go(&stamp, &scratch.path().join(""));
        kubernetes.args(packages);
        let what = format!("building Kubernetes {version} from source, once: about 6 minutes on two cores");
        during(&what, output_async(kubernetes)).await.context("failed to build Kubernetes")?;
    }
    if missing.contains(&"etcd") {
        let mut etcd = go("-s -w", &scratch.path().join("etcd"));
        etcd.arg(ETCD);
        during("building etcd", output_async(etcd)).await.context("failed to build etcd")?;
    }
    fs::create_dir_all(built)?;
    for name in missing {
        fs::rename(scratch.path().join(name), built.join(name))
            .with_context(|| format!("failed to put {name} in place"))?;
    }
    Ok(())
}

/// The version of a module that go.mod requires.
fn required_version(module: &Path, package: &str) -> Result<String> {
    let text =
        fs::read_to_string(module.join("go.mod")).context("failed to read tests/controlplane/go.mod")?;
    let version = text.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        // The `tool` directive names a package alone; only a requirement has a version after it.
        (words.next() == Some(package)).then(|| words.next().filter(|word| word.starts_with('v')))?
    });
    version.map(str::to_owned).with_context(|| format!("go.mod requires no {package}"))
}
