//! emptyDir.sizeLimit of volumes on the disk: a pod that outgrows one is evicted, as by the kubelet. A tmpfs has its
//! bound from the kernel.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::Instant};

use super::PodWorker;
use crate::edged::{pod_state::Terminal, resources};

const PERIOD: Duration = Duration::from_secs(10);
/// Of the time between two looks, a look may take this part.
const EFFORT: u32 = 50;

struct Bounded {
    name: String,
    limit: String,
    bytes: u64,
    directory: PathBuf,
}

impl PodWorker {
    /// Answers when to look again.
    pub(super) async fn enforce_size_limits(&mut self) -> Option<Instant> {
        let bounded = self.bounded_volumes();
        if bounded.is_empty() {
            return None;
        }
        let began = Instant::now();
        if let Some(due) = self.measure_at.filter(|due| *due > began) {
            return Some(due);
        }
        // A large tree takes long to walk: not on a thread that others need.
        let over = spawn_blocking(move || {
            bounded.into_iter().find(|volume| match usage(&volume.directory) {
                Ok(bytes) => bytes > volume.bytes,
                Err(error) => {
                    tracing::warn!(volume = volume.name, %error, "size of a volume not measured");
                    false
                }
            })
        });
        // It fails only when the process ends.
        let over = over.await.ok().flatten();
        let due = Instant::now() + PERIOD.max(began.elapsed() * EFFORT);
        self.measure_at = Some(due);
        let Some(volume) = over else { return Some(due) };
        let message =
            format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ", volume.name, volume.limit);
        self.warn(None, "Evicted", &message);
        self.memory.terminal =
            Some(Terminal { succeeded: false, reason: Some("Evicted".to_owned()), message: Some(message) });
        Some(Instant::now())
    }

    fn bounded_volumes(&self) -> Vec<Bounded> {
        let pod = &self.current.pod;
        let volumes = pod.spec.volumes.iter().flatten();
        volumes
            .filter_map(|volume| {
                let source = volume.empty_dir.as_ref()?;
                let limit = source.size_limit.as_ref()?;
                let bytes = resources::units(limit).and_then(|bytes| u64::try_from(bytes).ok())?;
                let on_disk = source.medium.as_deref().unwrap_or_default().is_empty() && bytes > 0;
                on_disk.then(|| Bounded {
                    name: volume.name.clone(),
                    limit: limit.0.clone(),
                    bytes,
                    directory: self.shared.volumes.volume_directory(&pod.uid, &volume.name),
                })
            })
            .collect()
    }
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
