//! What no worker looks after: directories of pods that are long gone, logs that grow, pods that only the runtime
//! still knows.

use std::path::PathBuf;

use jiff::Timestamp;
use proto::{ResourceKey, cri::v1};
use tokio_util::sync::CancellationToken;

use super::Dispatcher;
use crate::edged::{
    labels,
    logs::{self, LogPaths},
    pod::{DesiredPod, PodUid},
    relist::Listed,
};

/// A pod as far as its labels tell.
pub(super) fn orphan(uid: &PodUid, listed: &Listed) -> Option<DesiredPod> {
    let sandboxes = listed.sandboxes.iter().map(|sandbox| &sandbox.labels);
    let labelled = sandboxes.chain(listed.containers.iter().map(|container| &container.labels)).next()?;
    let name = labelled.get(labels::POD_NAME)?;
    let namespace = labelled.get(labels::POD_NAMESPACE)?;
    let key = ResourceKey::new("Pod", namespace, name).ok()?;
    let grace = listed
        .containers
        .iter()
        .find_map(|container| container.annotations.get(labels::GRACE_PERIOD)?.parse::<i64>().ok());
    Some(DesiredPod::orphan(key, uid.clone(), grace))
}

impl Dispatcher {
    /// At start: what an edgecore before left when it was killed while it removed a pod. Only what neither the store
    /// nor the runtime knows.
    pub(super) async fn housekeep(&self) {
        // `token/<uid>/<audience>` and `terminal/<uid>`. Before the pods are: what is kept of a pod comes after it.
        let mut kept = Vec::new();
        for prefix in ["token/", "terminal/"] {
            match self.shared.store.list_local(prefix) {
                Ok(found) => kept.extend(found.into_iter().map(|(key, _)| key)),
                Err(error) => return tracing::warn!(error = %runtime::chain(&error), "no housekeeping"),
            }
        }
        let pods = match self.shared.store.list("Pod") {
            Ok(pods) => pods,
            Err(error) => return tracing::warn!(error = %runtime::chain(&error), "no housekeeping"),
        };
        // A store that may have lost any of its pods is no ground to delete anything.
        if !self.shared.store.opened().healed.is_empty() {
            return;
        }
        let parsed: Option<Vec<PodUid>> =
            pods.iter().map(|object| DesiredPod::parse(object).ok().map(|pod| pod.uid)).collect();
        let Some(wanted) = parsed else { return };
        let snapshot = self.views.borrow().snapshot.clone();
        let known = |uid: &PodUid| {
            wanted.contains(uid) || snapshot.as_ref().is_some_and(|snapshot| snapshot.pods.contains_key(uid))
        };
        let volumes = self.shared.volumes.uids().unwrap_or_default();
        for uid in volumes.iter().filter(|uid| !known(uid)) {
            match self.shared.volumes.remove(uid) {
                Ok(()) => tracing::info!(%uid, "directory of a pod that is gone removed"),
                Err(error) => tracing::warn!(%uid, %error, "directory of a pod that is gone not removed"),
            }
        }
        for (uid, path) in self.shared.logs.uids().unwrap_or_default() {
            if !known(&uid)
                && let Err(error) = std::fs::remove_dir_all(&path)
            {
                tracing::warn!(%uid, %error, "logs of a pod that is gone not removed");
            }
        }
        for key in kept {
            let uid = key.split('/').nth(1).and_then(PodUid::new);
            if uid.is_some_and(|uid| !known(&uid))
                && let Err(error) = self.shared.store.delete_local(&key).await
            {
                tracing::warn!(key, error = %runtime::chain(&error), "key of a pod that is gone not removed");
            }
        }
        if let Err(error) = self.shared.logs.sweep_links() {
            tracing::warn!(%error, "log links not swept");
        }
    }

    /// In a task: the runtime may take its time to open a log anew. One round at a time.
    pub(super) fn rotate_logs(&mut self, stop: &CancellationToken) {
        if !self.rotations.is_empty() {
            return;
        }
        let Some(snapshot) = self.views.borrow().snapshot.clone() else { return };
        let containers = snapshot.pods.values().flat_map(|listed| &listed.containers);
        let running =
            containers.filter(|container| container.state() == v1::ContainerState::ContainerRunning);
        let logs: Vec<(String, PathBuf)> =
            running.filter_map(|container| Some((container.id.clone(), self.log_path(container)?))).collect();
        let (shared, limits, stop) = (self.shared.clone(), self.log_limits, stop.clone());
        self.rotations.spawn(async move {
            for (id, path) in logs {
                // Between two logs: one that was set aside is also opened anew.
                if stop.is_cancelled() {
                    return;
                }
                match logs::rotate(&path, limits, Timestamp::now()) {
                    Ok(None) => {}
                    Ok(Some(aside)) => {
                        let Err(error) = shared.runtime.reopen_log(&id).await else { continue };
                        tracing::warn!(container = id, error = %runtime::chain(&error), "log not reopened");
                        if let Err(error) = logs::rotate_back(&aside, &path) {
                            tracing::warn!(%error, path = %path.display(), "log not put back");
                        }
                    }
                    Err(error) => tracing::warn!(%error, path = %path.display(), "log not rotated"),
                }
            }
        });
    }

    fn log_path(&self, container: &v1::Container) -> Option<PathBuf> {
        let label = |name: &str| container.labels.get(name);
        let pod = format!(
            "{}_{}_{}",
            label(labels::POD_NAMESPACE)?,
            label(labels::POD_NAME)?,
            label(labels::POD_UID)?
        );
        let metadata = container.metadata.as_ref()?;
        Some(self.shared.logs.pods().join(pod).join(LogPaths::container(&metadata.name, metadata.attempt)))
    }
}
