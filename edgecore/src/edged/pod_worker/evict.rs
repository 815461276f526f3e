//! What a pod may take of the disk: sizeLimit of its emptyDirs (a tmpfs has its bound from the kernel), and the limits of its
//! containers' ephemeral-storage. A pod that outgrows one is evicted, as by the kubelet.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Container, Volume},
    apimachinery::pkg::api::resource::Quantity,
};
use tokio::{task::spawn_blocking, time::Instant};

use super::PodWorker;
use crate::edged::{pod_state::Terminal, resources};

const PERIOD: Duration = Duration::from_secs(10);
/// Of the time between two looks, a look may take this part.
const EFFORT: u32 = 50;

/// Something on the disk, and what it may be.
struct Measured {
    directory: PathBuf,
    /// What is elsewhere, and counts with it.
    beside: u64,
    limit: Option<u64>,
    /// What is said when there is more.
    message: String,
}

impl PodWorker {
    /// Answers when to look again.
    pub(super) async fn enforce_disk_limits(&mut self) -> Option<Instant> {
        let pod = self.current.pod.clone();
        let total = resources::pod_storage_limit(&pod.spec);
        let volumes: Vec<_> = pod.spec.volumes.iter().flatten().filter(|volume| is_on_disk(volume)).collect();
        if total.is_none() && !volumes.iter().any(|volume| size_limit(volume).is_some()) {
            return None;
        }
        let began = Instant::now();
        if let Some(due) = self.measure_at.filter(|due| *due > began) {
            return Some(due);
        }
        let mut measured: Vec<_> = volumes
            .into_iter()
            .map(|volume| {
                let limit = size_limit(volume);
                let said = limit.map_or("", |limit| &limit.0);
                Measured {
                    directory: self.shared.volumes.volume_directory(&pod.uid, &volume.name),
                    beside: 0,
                    limit: limit.and_then(bytes),
                    message: format!(
                        "Usage of EmptyDir volume \"{}\" exceeds the limit \"{said}\". ",
                        volume.name
                    ),
                }
            })
            .collect();
        if total.is_some() {
            for (_, spec) in pod.all_containers() {
                measured.push(self.container_on_disk(spec).await);
            }
        }
        let total = total.map(|limit| (limit, resources::storage_text(limit)));
        // A large tree takes long to walk: not on a thread that others need. It fails only when the process ends.
        let over = spawn_blocking(move || over(&measured, total)).await.ok().flatten();
        let due = Instant::now() + PERIOD.max(began.elapsed() * EFFORT);
        self.measure_at = Some(due);
        let Some(message) = over else { return Some(due) };
        self.warn(None, "Evicted", &message);
        self.memory.terminal = Some(Terminal::failed("Evicted", message));
        Some(Instant::now())
    }

    /// Its logs, and the layer that it writes to.
    async fn container_on_disk(&self, spec: &Container) -> Measured {
        let limit = spec.resources.as_ref().and_then(|resources| resources.limits.as_ref()?.get(STORAGE));
        let mut layer = 0;
        if let Some(container) = self.observed.latest(&spec.name) {
            match self.runtime.container_stats(&container.id).await {
                Ok(stats) => {
                    let used = stats.and_then(|stats| stats.writable_layer?.used_bytes);
                    layer = used.map_or(0, |used| used.value);
                }
                Err(error) => {
                    tracing::warn!(container = spec.name, error = %runtime::chain(&error), "layer not measured");
                }
            }
        }
        let said = limit.map_or("", |limit| &limit.0);
        Measured {
            directory: self.shared.logs.pod(&self.current.pod).join(&spec.name),
            beside: layer,
            limit: limit.and_then(bytes),
            message: format!(
                "Container {} exceeded its local ephemeral storage limit \"{said}\". ",
                spec.name
            ),
        }
    }
}

const STORAGE: &str = "ephemeral-storage";

fn is_on_disk(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref().unwrap_or_default().is_empty())
}

fn size_limit(volume: &Volume) -> Option<&Quantity> {
    volume.empty_dir.as_ref()?.size_limit.as_ref().filter(|limit| bytes(limit).is_some())
}

fn bytes(limit: &Quantity) -> Option<u64> {
    resources::units(limit).and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0)
}

/// What is to be said of the first that is more than it may be, or of all together.
fn over(measured: &[Measured], total: Option<(u64, String)>) -> Option<String> {
    let mut sum = 0_u64;
    for Measured { directory, beside, limit, message } in measured {
        match usage(directory) {
            Ok(used) => {
                let used = used.saturating_add(*beside);
                if limit.is_some_and(|limit| used > limit) {
                    return Some(message.clone());
                }
                sum = sum.saturating_add(used);
            }
            Err(error) => tracing::warn!(directory = %directory.display(), %error, "not measured"),
        }
    }
    let (limit, said) = total?;
    (sum > limit)
        .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {said}. "))
}

/// What a tree takes of the disk. What goes while it is walked is not counted.
fn usage(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_limit_and_all_have_one() {
        let dir = tempfile::tempdir().unwrap();
        let measured = |name: &str, size: usize, beside: u64, limit: Option<u64>| {
            let directory = dir.path().join(name);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("file"), vec![1; size]).unwrap();
            Measured { directory, beside, limit, message: name.to_owned() }
        };
        let all = [measured("a", 64 << 10, 0, Some(128 << 10)), measured("b", 0, 100 << 10, None)];
        assert_eq!(over(&all, None), None);
        assert_eq!(over(&all, Some((200 << 10, "200Ki".to_owned()))), None);
        let said = over(&all, Some((160 << 10, "160Ki".to_owned()))).unwrap();
        assert!(said.contains("total limit of containers 160Ki"), "{said}");
        let gone = Measured {
            directory: dir.path().join("gone"),
            beside: 2 << 20,
            limit: Some(1 << 20),
            message: "gone".to_owned(),
        };
        assert_eq!(over(&[gone], None).as_deref(), Some("gone"));
        let all = [measured("c", 256 << 10, 0, Some(128 << 10))];
        assert_eq!(over(&all, None).as_deref(), Some("c"));
    }
}
