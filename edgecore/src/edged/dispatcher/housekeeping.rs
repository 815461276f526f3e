//! What no worker looks after: directories of pods that are long gone, logs that grow, pods that only the runtime
//! still knows.

use jiff::Timestamp;
use proto::{ResourceKey, cri::v1};

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
    pub(super) fn housekeep(&self) {
        let pods = match self.shared.store.list("Pod") {
            Ok(pods) => pods,
            Err(error) => return tracing::warn!(error = %runtime::chain(&error), "no housekeeping"),
        };
        // A store that may have lost its pods is no ground to delete anything.
        if pods.is_empty() && !self.shared.store.opened().healed.is_empty() {
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
        if let Err(error) = self.shared.logs.sweep_links() {
            tracing::warn!(%error, "log links not swept");
        }
    }

    pub(super) async fn rotate_logs(&self) {
        let Some(snapshot) = self.views.borrow().snapshot.clone() else { return };
        let now = Timestamp::now();
        let containers = snapshot.pods.values().flat_map(|listed| &listed.containers);
        let running =
            containers.filter(|container| container.state() == v1::ContainerState::ContainerRunning);
        for container in running {
            let Some(path) = self.log_path(container) else { continue };
            match logs::rotate(&path, self.log_limits, now) {
                Ok(false) => {}
                Ok(true) => {
                    if let Err(error) = self.shared.runtime.reopen_log(&container.id).await {
                        tracing::warn!(container = container.id, error = %runtime::chain(&error), "log not reopened");
                    }
                }
                Err(error) => tracing::warn!(%error, path = %path.display(), "log not rotated"),
            }
        }
    }

    fn log_path(&self, container: &v1::Container) -> Option<std::path::PathBuf> {
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
