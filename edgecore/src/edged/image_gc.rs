//! Image garbage collection, with the kubelet's defaults: when the disk that holds the images is fuller than the high
//! threshold, images that nothing uses are removed, those unused for longest first, until it is below the low one.
//!
//! Beyond the kubelet's rules an image that a desired pod names stays, whether the pod runs or not: the registry may be
//! out of reach when it is wanted again.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
    time::Duration,
};

use proto::cri::v1;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{
    cri::{CriError, Runtime},
    pod::DesiredPod,
};
use crate::metamanager::{Store, StoreError};

const PERIOD: Duration = Duration::from_mins(5);

#[derive(Clone, Copy, Debug)]
pub struct ImageGcLimits {
    /// Percent of the disk.
    pub high: u64,
    pub low: u64,
    /// An image that came just now is about to be used.
    pub min_age: Duration,
}

impl Default for ImageGcLimits {
    fn default() -> Self {
        Self { high: 85, low: 80, min_age: Duration::from_mins(2) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ImageGcError {
    #[error(transparent)]
    Runtime(#[from] CriError),
    #[error("the desired pods cannot be read")]
    Store(#[from] StoreError),
    #[error("a desired pod cannot be understood, and may name any image")]
    Pod(#[from] super::pod::PodError),
    #[error("the size of the disk at {path:?} is not known")]
    Disk {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

/// See the module.
pub struct ImageGc {
    runtime: Runtime,
    store: Store,
    /// From the configuration; may be empty.
    sandbox_image: String,
    limits: ImageGcLimits,
    /// Of the images that are there: since when they are known, and when they were last used.
    seen: HashMap<String, Seen>,
}

struct Seen {
    first: Instant,
    used: Option<Instant>,
}

impl ImageGc {
    pub fn new(runtime: Runtime, store: Store, sandbox_image: String, limits: ImageGcLimits) -> Self {
        Self { runtime, store, sandbox_image, limits, seen: HashMap::new() }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            // Both arms only wait.
            tokio::select! {
                () = stop.cancelled() => return,
                () = time::sleep(PERIOD) => {}
            }
            if let Err(error) = self.collect().await {
                tracing::warn!(error = %runtime::chain(&error), "images not collected");
            }
        }
    }

    /// One round. Answers the ids of the images that were removed.
    pub async fn collect(&mut self) -> Result<Vec<String>, ImageGcError> {
        let images = self.runtime.list_images().await?;
        let used = self.used_by_containers().await?;
        self.remember(&images, &used);
        let surplus = self.surplus().await?;
        if surplus == 0 {
            return Ok(Vec::new());
        }
        let wanted = self.wanted().await?;
        let mut candidates: Vec<&v1::Image> = images
            .iter()
            .filter(|image| {
                !image.pinned && !is_pause(image) && !used.contains(&image.id) && !wanted.contains(&image.id)
            })
            .filter(|image| {
                self.seen.get(&image.id).is_some_and(|seen| seen.first.elapsed() >= self.limits.min_age)
            })
            .collect();
        candidates
            .sort_by_key(|image| (self.seen.get(&image.id).and_then(|seen| seen.used), Reverse(image.size)));
        let mut removed = Vec::new();
        let mut freed: u64 = 0;
        for image in candidates {
            if freed >= surplus {
                break;
            }
            match self.runtime.remove_image(&image.id).await {
                Ok(()) => {
                    tracing::info!(image = image.id, names = ?image.repo_tags, bytes = image.size, "image removed");
                    freed = freed.saturating_add(image.size);
                    removed.push(image.id.clone());
                }
                Err(error) if error.is_unreachable() => return Err(error.into()),
                Err(error) => tracing::warn!(image = image.id, %error, "image not removed"),
            }
        }
        if freed < surplus {
            tracing::warn!(freed, surplus, "the images' disk is too full, and no more image can be removed");
        }
        Ok(removed)
    }

    fn remember(&mut self, images: &[v1::Image], used: &HashSet<String>) {
        let now = Instant::now();
        let there: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.seen.retain(|id, _| there.contains(id.as_str()));
        for image in images {
            let seen = self.seen.entry(image.id.clone()).or_insert(Seen { first: now, used: None });
            if used.contains(&image.id) {
                seen.used = Some(now);
            }
        }
    }

    async fn used_by_containers(&self) -> Result<HashSet<String>, CriError> {
        let containers = self.runtime.list_containers(v1::ContainerFilter::default()).await?;
        let ids = containers.into_iter().flat_map(|container| {
            let named = container.image.map(|image| image.image);
            named.into_iter().chain([container.image_ref])
        });
        Ok(ids.collect())
    }

    /// The ids of what is not used now and must stay.
    async fn wanted(&self) -> Result<HashSet<String>, ImageGcError> {
        let mut names = BTreeSet::from([self.sandbox_image.clone()]);
        for object in self.store.list("Pod")? {
            let pod = DesiredPod::parse(&object)?;
            names.extend(pod.all_containers().filter_map(|(_, container)| container.image.clone()));
        }
        let mut ids = HashSet::new();
        for name in names.iter().filter(|name| !name.is_empty()) {
            match self.runtime.image_status(name).await {
                Ok(found) => ids.extend(found.map(|image| image.id)),
                // A name that is none names no image.
                Err(CriError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(ids)
    }

    /// Bytes that are to be freed.
    async fn surplus(&self) -> Result<u64, ImageGcError> {
        let mut most = 0;
        for path in self.runtime.image_filesystems().await? {
            let stat = rustix::fs::statvfs(Path::new(&path))
                .map_err(|error| ImageGcError::Disk { path: path.clone(), source: error.into() })?;
            let total = stat.f_blocks.saturating_mul(stat.f_frsize);
            let available = stat.f_bavail.saturating_mul(stat.f_frsize);
            most = most.max(surplus(total, available, self.limits));
        }
        Ok(most)
    }
}

/// No container is made from the sandboxes' image, and runtimes before containerd 2.0 do not pin it. Without it no pod
/// starts.
fn is_pause(image: &v1::Image) -> bool {
    image.repo_tags.iter().chain(&image.repo_digests).any(|name| {
        let last = name.rsplit('/').next().unwrap_or_default();
        last.split([':', '@']).next().is_some_and(|repository| repository.contains("pause"))
    })
}

fn surplus(total: u64, available: u64, limits: ImageGcLimits) -> u64 {
    let used = total.saturating_sub(available);
    if used < total / 100 * limits.high { 0 } else { used.saturating_sub(total / 100 * limits.low) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_the_thresholds_nothing_is_freed() {
        let surplus = |available| surplus(1000, available, ImageGcLimits::default());
        assert_eq!([surplus(1000), surplus(200), surplus(151)], [0, 0, 0]);
        assert_eq!([surplus(150), surplus(0)], [50, 200]);
    }
}
