//! Upstream's own programs, built once from the Go module in `tests/controlplane`, which pins their versions.
//!
//! A program in `KUBEBUILDER_ASSETS` is taken as it is, one on PATH if it is of the pinned minor version (an old kubectl
//! is on many machines). What remains is built.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{go::GoModule, on_path};
use crate::process::{command, output};

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
/// etcd is built apart: its package is called `server`, and it takes no Kubernetes version.
const KUBERNETES: &[(&str, &str)] = &[
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
];

pub(super) async fn ensure() -> Result<Programs> {
    let module = GoModule::new("controlplane")?;
    let names = || KUBERNETES.iter().map(|(name, _)| *name).chain(["etcd"]);
    let mut found = BTreeMap::new();
    for name in names() {
        if let Some(path) = find(name, &module)? {
            found.insert(name, path);
        }
    }
    let missing: Vec<&str> = names().filter(|name| !found.contains_key(name)).collect();
    if !missing.is_empty() {
        build(&module, &missing).await?;
    }
    let mut get = |name: &str| found.remove(name).unwrap_or_else(|| module.built().join(name));
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

fn find(name: &str, module: &GoModule) -> Result<Option<PathBuf>> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(|dir| Path::new(&dir).join(name));
    if let Some(path) = assets.into_iter().chain([module.built().join(name)]).find(|path| path.is_file()) {
        return Ok(Some(path));
    }
    let Some(path) = on_path(name) else { return Ok(None) };
    let package = if name == "etcd" { ETCD } else { "k8s.io/kubernetes" };
    let pinned = module.required_version(package)?;
    let minor = pinned.trim_start_matches('v').rsplit_once('.').map_or("", |(minor, _)| minor).to_owned();
    let args: &[&str] = if name == "kubectl" { &["version", "--client"] } else { &["--version"] };
    // A program that cannot say its version is one of the wrong version.
    let says = output(command(&path, args)).unwrap_or_default();
    let fits =
        says.split_whitespace().any(|word| word.trim_start_matches('v').starts_with(&format!("{minor}.")));
    Ok(fits.then_some(path))
}

async fn build(module: &GoModule, missing: &[&str]) -> Result<()> {
    let version = module.required_version("k8s.io/kubernetes")?;
    let packages: Vec<_> = KUBERNETES.iter().filter(|(name, _)| missing.contains(name)).copied().collect();
    if !packages.is_empty() {
        let what = format!("building Kubernetes {version} from source, once: about 6 minutes on two cores");
        let stamp = format!("-X k8s.io/component-base/version.gitVersion={version}");
        module.build(&what, &stamp, &packages).await?;
    }
    if missing.contains(&"etcd") {
        module.build("building etcd", "", &[("etcd", ETCD)]).await?;
    }
    Ok(())
}
