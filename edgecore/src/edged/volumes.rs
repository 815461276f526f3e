//! The volumes of a pod: `<pods>/<uid>/volumes/<name>` for those that edged makes, the path itself for hostPath.
//! Contents that come from the API are written so that a reader sees either all of the old or all of the new
//! (`atomic`), and written again only when they differ. After a power cut files may be torn: they are compared with
//! what they should be at the first pass, like any other change.

mod atomic;
mod content;
mod host_path;
mod ownership;
mod sub_path;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Volume};
use proto::cri::v1;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{
    env,
    pod::{DesiredPod, PodUid},
    resources,
    sources::{SourceError, Sources},
    status::NodeFacts,
    tokens::{TokenError, Tokens},
};

/// Why a pod's volumes are not there: the pod waits.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{kind} \"{name}\" not found")]
    Missing { volume: String, kind: &'static str, name: String },
    #[error("{kind} \"{name}\" has no key {key:?}")]
    Key { volume: String, kind: &'static str, name: String, key: String },
    #[error("path {path:?} is not a relative path below the volume")]
    Path { volume: String, path: String },
    #[error("{field} is not supported")]
    Unsupported { volume: String, field: String },
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPath { volume: String, path: String, wanted: &'static str },
    #[error("{operation}")]
    Io {
        volume: String,
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("service account token")]
    Token {
        volume: String,
        #[source]
        source: TokenError,
    },
    #[error("failed to read its source")]
    Read {
        volume: String,
        #[source]
        source: SourceError,
    },
    #[error("volumeMount {mount:?} names no volume")]
    Mount { mount: String },
}

impl VolumeError {
    pub fn volume(&self) -> &str {
        match self {
            Self::Missing { volume, .. }
            | Self::Key { volume, .. }
            | Self::Path { volume, .. }
            | Self::Unsupported { volume, .. }
            | Self::HostPath { volume, .. }
            | Self::Io { volume, .. }
            | Self::Token { volume, .. }
            | Self::Read { volume, .. }
            | Self::Mount { mount: volume } => volume,
        }
    }
}

/// What volumes are made from.
#[derive(Clone)]
pub struct Volumes {
    pub root: PathBuf,
    pub sources: Sources,
    pub tokens: Tokens,
    pub capacity: env::Capacity,
}

/// The volumes of a pod, in place.
#[derive(Debug, Default)]
pub struct Mounted {
    /// Host path and whether the volume itself is read-only.
    paths: BTreeMap<String, (PathBuf, bool)>,
    /// When the first token in them wants to be renewed.
    pub refresh: Option<Timestamp>,
}

impl Volumes {
    pub fn pod_directory(&self, uid: &PodUid) -> PathBuf {
        self.root.join(uid.as_str())
    }

    /// What is in the volumes is for root and the containers that they are mounted into. As kubelet's, mode 0750.
    pub fn make_pod_directory(&self, uid: &PodUid) -> io::Result<PathBuf> {
        let directory = self.pod_directory(uid);
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&directory)?;
        Ok(directory)
    }

    pub fn volume_directory(&self, uid: &PodUid, volume: &str) -> PathBuf {
        self.pod_directory(uid).join("volumes").join(volume)
    }

    /// Makes what is missing and brings up to date what differs. Safe to repeat.
    pub async fn sync(
        &self,
        pod: &DesiredPod,
        pod_ips: &[String],
        node: &NodeFacts,
    ) -> Result<Mounted, VolumeError> {
        let mut mounted = Mounted::default();
        let group = pod.spec.security_context.as_ref().and_then(|security| security.fs_group);
        for volume in pod.spec.volumes.iter().flatten() {
            let name = &volume.name;
            let failed =
                |operation| move |source| VolumeError::Io { volume: name.clone(), operation, source };
            if let Some(source) = &volume.host_path {
                let path = host_path::prepare(name, source)?;
                mounted.paths.insert(name.clone(), (path, false));
                continue;
            }
            let directory = self.volume_directory(&pod.uid, name);
            self.make_pod_directory(&pod.uid)
                .and_then(|_| fs::create_dir_all(&directory))
                .map_err(failed("failed to make its directory"))?;
            if let Some(source) = &volume.empty_dir {
                empty_dir(&directory, source, self.memory_cap(pod))
                    .map_err(failed("failed to prepare the emptyDir"))?;
                if let Some(group) = group {
                    ownership::give(&directory, group).map_err(failed("failed to set its group"))?;
                }
                mounted.paths.insert(name.clone(), (directory, false));
                continue;
            }
            // As kubelet: what may be secret never reaches the disk by way of a volume; it comes back from the store.
            if volume.secret.is_some() || volume.projected.is_some() || volume.downward_api.is_some() {
                in_memory(&directory).map_err(failed("failed to mount a tmpfs"))?;
            }
            let context = content::Context { volumes: self, pod, pod_ips, node };
            let payload = context.payload(volume).await?;
            if let Some(refresh) = payload.refresh {
                mounted.refresh = Some(mounted.refresh.map_or(refresh, |other| other.min(refresh)));
            }
            atomic::write(&directory, &payload.files, group).map_err(failed("failed to write its files"))?;
            mounted.paths.insert(name.clone(), (directory, true));
        }
        Ok(mounted)
    }

    /// What a pod may fill of the memory, in bytes. As kubelet: no more than the pod is allowed or the node has.
    fn memory_cap(&self, pod: &DesiredPod) -> Option<i64> {
        let node = i64::try_from(self.capacity.memory).ok().filter(|bytes| *bytes > 0);
        resources::pod_memory_limit(&pod.spec).into_iter().chain(node).min()
    }

    /// The mounts of one container; `variables` is its environment, for subPathExpr.
    pub fn mounts(
        &self,
        pod: &DesiredPod,
        container: &Container,
        mounted: &Mounted,
        variables: &[(String, Vec<u8>)],
    ) -> Result<Vec<v1::Mount>, VolumeError> {
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let Some((root, read_only)) = mounted.paths.get(&mount.name) else {
                return Err(VolumeError::Mount { mount: mount.name.clone() });
            };
            let sub = match (&mount.sub_path, &mount.sub_path_expr) {
                (Some(path), _) if !path.is_empty() => Some(path.clone()),
                (_, Some(expression)) if !expression.is_empty() => {
                    Some(env::expand_one(expression, variables))
                }
                _ => None,
            };
            let host = match sub {
                Some(sub) => {
                    let slot = self.pod_directory(&pod.uid).join("volume-subpaths").join(&mount.name);
                    let slot = slot.join(&container.name).join(index.to_string());
                    sub_path::bind(&mount.name, root, &sub, &slot)?
                }
                None => root.clone(),
            };
            mounts.push(v1::Mount {
                container_path: absolute(&mount.mount_path),
                host_path: host.to_string_lossy().into_owned(),
                readonly: mount.read_only.unwrap_or(false) || *read_only,
                recursive_read_only: mount.recursive_read_only.as_deref() == Some("Enabled"),
                propagation: propagation(mount.mount_propagation.as_deref()).into(),
                ..Default::default()
            });
        }
        Ok(mounts)
    }

    /// Takes away the directory of a pod that is gone, with what is mounted below it.
    pub fn remove(&self, uid: &PodUid) -> io::Result<()> {
        remove(&self.pod_directory(uid))
    }

    /// The volumes alone: what else is in the pod's directory still tells how its containers ended.
    pub fn release(&self, uid: &PodUid) -> io::Result<()> {
        remove(&self.pod_directory(uid).join("volumes"))
    }

    /// The pods that have a directory.
    pub fn uids(&self) -> io::Result<Vec<PodUid>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries
            .filter_map(|entry| match entry {
                Ok(entry) => PodUid::new(entry.file_name().to_str()?).map(Ok),
                Err(error) => Some(Err(error)),
            })
            .collect()
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn propagation(text: Option<&str>) -> v1::MountPropagation {
    match text {
        Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
        _ => v1::MountPropagation::PropagationPrivate,
    }
}

fn empty_dir(directory: &Path, source: &EmptyDirVolumeSource, cap: Option<i64>) -> io::Result<()> {
    if source.medium.as_deref() == Some("Memory") && !is_mount(directory)? {
        let size = source.size_limit.as_ref().and_then(resources::units).filter(|size| *size > 0);
        let size = size.into_iter().chain(cap).min();
        let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
        mount_tmpfs(directory, &format!("mode=0777{size}"))?;
    }
    let metadata = fs::metadata(directory)?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
    // Anyone in the pod may write; a group that was given stays.
    if mode & 0o777 != 0o777 {
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(mode | 0o777))?;
    }
    Ok(())
}

/// Of a version of edgecore that had these files on the disk, nothing stays below the mount.
fn in_memory(directory: &Path) -> io::Result<()> {
    if is_mount(directory)? {
        return Ok(());
    }
    fs::remove_dir_all(directory)?;
    fs::create_dir(directory)?;
    // What is secret is not swapped out to the disk either. Kernels before 6.4 know no such option.
    match mount_tmpfs(directory, "mode=0755,noswap") {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            mount_tmpfs(directory, "mode=0755")
        }
        mounted => mounted,
    }
}

fn mount_tmpfs(directory: &Path, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount("tmpfs", directory, "tmpfs", flags, Some(options.as_c_str()))?)
}

fn is_mount(directory: &Path) -> io::Result<bool> {
    Ok(mounts_below(directory)?.iter().any(|mount| mount == directory))
}

/// Deepest first.
fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = directory.canonicalize()?;
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(unescape(point)));
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(&directory)).collect();
    below.reverse();
    Ok(below)
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = text.to_owned();
    for (code, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, plain);
    }
    out
}

/// The kind of a volume that edged has no way to make.
pub fn unsupported(volume: &Volume) -> Option<String> {
    let known = volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some();
    if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            if source.cluster_trust_bundle.is_some() {
                return Some("projected.sources[].clusterTrustBundle".to_owned());
            }
            if source.pod_certificate.is_some() {
                return Some("projected.sources[].podCertificate".to_owned());
            }
        }
    }
    let huge = volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref());
    if let Some(medium) = huge.filter(|medium| !matches!(*medium, "" | "Memory")) {
        return Some(format!("emptyDir.medium={medium}"));
    }
    if known {
        return None;
    }
    // Its name is what the object has beside its own name.
    let json = serde_json::to_value(volume).unwrap_or_default();
    let kind = json.as_object().and_then(|map| map.keys().find(|key| *key != "name").cloned());
    Some(kind.unwrap_or_else(|| "source".to_owned()))
}

/// Unmounts what is below a directory, and removes it.
fn remove(directory: &Path) -> io::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for mount in mounts_below(directory)? {
        rustix::mount::unmount(&mount, UnmountFlags::NOFOLLOW)?;
    }
    // A mount that is still there would be emptied with the directory: it may be the host's.
    if let Some(mount) = mounts_below(directory)?.pop() {
        return Err(io::Error::other(format!("{} is still mounted", mount.display())));
    }
    fs::remove_dir_all(directory)
}

#[cfg(test)]
mod tests;
