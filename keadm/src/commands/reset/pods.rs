//! The node's pods: their sandboxes, and what a sandbox leaves behind outside of the node's directories.
//!
//! A pod is the node's if edged made a directory for it: for its volumes, or for its logs. Another node's pods, of an
//! edgecore with another root directory, are left alone.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use crds::componentconfig::edgecore::EdgePaths;
use proto::cri::v1::PodSandbox;

use super::{
    cgroups::{self, CGROUPS},
    files,
};
use crate::{commands::join::cri::Cri, output};

pub(super) async fn remove(endpoint: &str, paths: &EdgePaths, dry_run: bool) -> Result<()> {
    // Before the directories by which they are known go away.
    let mut uids: BTreeSet<String> = names(&paths.pods_dir).collect();
    uids.extend(remove_sandboxes(endpoint, paths, dry_run).await?);
    for uid in &uids {
        remove_logs(paths, uid, dry_run)?;
        cgroups::remove(Path::new(CGROUPS), &cgroups::of_pod(uid), dry_run);
    }
    cgroups::remove(Path::new(CGROUPS), &cgroups::of_classes(), dry_run);
    remove_dead_links(paths, dry_run)
}

/// The uids of the pods that it removed.
async fn remove_sandboxes(endpoint: &str, paths: &EdgePaths, dry_run: bool) -> Result<Vec<String>> {
    let socket = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    if !socket.exists() {
        output::unchanged(format_args!("no container runtime at {endpoint}: no pods to remove"));
        return Ok(Vec::new());
    }
    let mut cri = Cri::connect(endpoint)
        .await
        .context("start the container runtime, so that the pods can be removed")?;
    let (own, others): (Vec<_>, Vec<_>) =
        cri.edged_sandboxes().await?.into_iter().partition(|sandbox| is_own(paths, sandbox));
    if !others.is_empty() {
        output::note(format_args!(
            "left alone: {} pod sandboxes at {endpoint} that are not of this root directory; their own is to be named \
             with --root-dir, or crictl rmp -f removes them: {}",
            others.len(),
            others.iter().map(|sandbox| &*sandbox.id).collect::<Vec<_>>().join(" ")
        ));
    }
    if dry_run {
        for sandbox in &own {
            output::planned(format_args!("remove the pod sandbox {}", sandbox.id));
        }
    } else if !own.is_empty() {
        let work = async {
            for sandbox in &own {
                cri.remove(sandbox).await.with_context(|| format!("sandbox {}", sandbox.id))?;
            }
            Ok(())
        };
        output::step(&format!("pods are removed: {}", own.len()), work).await?;
    }
    Ok(own.iter().filter_map(|sandbox| Some(sandbox.metadata.as_ref()?.uid.clone())).collect())
}

fn is_own(paths: &EdgePaths, sandbox: &PodSandbox) -> bool {
    let Some(pod) = &sandbox.metadata else { return false };
    let logs = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
    is_plain(&pod.uid)
        && (paths.pods_dir.join(&pod.uid).is_dir()
            || (is_plain(&logs) && paths.pod_logs_dir.join(logs).is_dir()))
}

/// The name of one file, as all that Kubernetes makes is.
fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains('/')
}

/// The pod's directory below /var/log/pods, and what leads there from /var/log/containers.
fn remove_logs(paths: &EdgePaths, uid: &str, dry_run: bool) -> Result<()> {
    let suffix = format!("_{uid}");
    for name in names(&paths.pod_logs_dir).filter(|name| name.ends_with(&suffix)) {
        let logs = paths.pod_logs_dir.join(name);
        for link in names(&paths.container_logs_dir).map(|name| paths.container_logs_dir.join(name)) {
            if fs::read_link(&link).is_ok_and(|target| target.starts_with(&logs)) {
                files::remove(&link, dry_run)?;
            }
        }
        files::remove(&logs, dry_run)?;
    }
    Ok(())
}

/// In /var/log/containers, the links whose target is gone: the logs of earlier pods went with them.
fn remove_dead_links(paths: &EdgePaths, dry_run: bool) -> Result<()> {
    for link in names(&paths.container_logs_dir).map(|name| paths.container_logs_dir.join(name)) {
        if link.is_symlink() && !link.exists() {
            files::remove(&link, dry_run)?;
        }
    }
    Ok(())
}

/// Of all that is in a directory; of one that is not there, none.
pub(super) fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proto::cri::v1::PodSandboxMetadata;

    use super::*;

    const UID: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

    fn sandbox(uid: &str) -> PodSandbox {
        let metadata = PodSandboxMetadata {
            name: "guest".to_owned(),
            uid: uid.to_owned(),
            namespace: "default".to_owned(),
            ..PodSandboxMetadata::default()
        };
        PodSandbox { metadata: Some(metadata), ..PodSandbox::default() }
    }

    #[test]
    fn only_pods_that_this_root_knows_are_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let paths = EdgePaths::under(dir.path());
        assert!(!is_own(&paths, &sandbox(UID)));
        fs::create_dir_all(paths.pods_dir.join("another")).unwrap();
        for uid in [UID, "", "."] {
            assert!(!is_own(&paths, &sandbox(uid)), "{uid:?}");
        }
        fs::create_dir_all(paths.pods_dir.join(UID)).unwrap();
        assert!(is_own(&paths, &sandbox(UID)));
        fs::remove_dir(paths.pods_dir.join(UID)).unwrap();
        fs::create_dir_all(paths.pod_logs_dir.join(format!("default_guest_{UID}"))).unwrap();
        assert!(is_own(&paths, &sandbox(UID)));
        assert!(!is_own(&EdgePaths::under(Path::new("/nowhere")), &sandbox(UID)));
    }

    #[tokio::test]
    async fn logs_go_with_their_links_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let paths = EdgePaths::under(dir.path());
        fs::create_dir_all(&paths.container_logs_dir).unwrap();
        fs::create_dir_all(paths.pods_dir.join(UID)).unwrap();
        let logs = |uid: &str| paths.pod_logs_dir.join(format!("default_guest_{uid}"));
        let link = |uid: &str| paths.container_logs_dir.join(format!("guest_default_c-{uid}.log"));
        for uid in [UID, "another"] {
            fs::create_dir_all(logs(uid).join("c")).unwrap();
            fs::write(logs(uid).join("c/0.log"), "").unwrap();
            symlink(logs(uid).join("c/0.log"), link(uid)).unwrap();
        }
        symlink("/nowhere", link("dead")).unwrap();
        let endpoint = format!("unix://{}/none.sock", dir.path().display());
        remove(&endpoint, &paths, true).await.unwrap();
        assert!(logs(UID).exists() && link(UID).is_symlink());
        remove(&endpoint, &paths, false).await.unwrap();
        assert!(!logs(UID).exists() && !link(UID).is_symlink() && !link("dead").is_symlink());
        assert!(logs("another").exists() && link("another").exists());
    }
}
