//! Where container logs are, and how they stay bounded. The runtime writes them; the paths are kubelet's, so that
//! `kubectl logs` and log shippers find them:
//! `<logs>/pods/<namespace>_<name>_<uid>/<container>/<restart count>.log`, with links in `<logs>/containers/`.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::pod::{DesiredPod, PodUid};

/// Bounds of one container's logs.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    pub max_bytes: u64,
    /// With the one that is written to.
    pub max_files: usize,
}

#[derive(Clone, Debug)]
pub struct LogPaths {
    pods: PathBuf,
    links: PathBuf,
}

impl LogPaths {
    pub fn new(pods: PathBuf, links: PathBuf) -> Self {
        Self { pods, links }
    }

    pub fn pods(&self) -> &Path {
        &self.pods
    }

    pub fn pod(&self, pod: &DesiredPod) -> PathBuf {
        self.pods().join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid))
    }

    /// Relative to the pod's directory: what CRI wants.
    pub fn container(container: &str, attempt: u32) -> String {
        format!("{container}/{attempt}.log")
    }

    fn link(&self, pod: &DesiredPod, container: &str, id: &str) -> PathBuf {
        self.links.join(format!("{}_{}_{container}-{id}.log", pod.name(), pod.namespace()))
    }

    pub fn make_link(&self, pod: &DesiredPod, container: &str, attempt: u32, id: &str) -> io::Result<()> {
        let link = self.link(pod, container, id);
        fs::create_dir_all(&self.links)?;
        match symlink(self.pod(pod).join(Self::container(container, attempt)), link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// To be called when the container is removed from the runtime.
    pub fn remove_container(
        &self,
        pod: &DesiredPod,
        container: &str,
        attempt: u32,
        id: &str,
    ) -> io::Result<()> {
        gone(fs::remove_file(self.link(pod, container, id)))?;
        let directory = self.pod(pod).join(container);
        let prefix = format!("{attempt}.log");
        for entry in listed(&directory)? {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                gone(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Everything of a pod that is gone.
    pub fn remove_pod(&self, pod: &DesiredPod) -> io::Result<()> {
        let prefix = format!("{}_{}_", pod.name(), pod.namespace());
        let directory = self.pod(pod);
        for entry in listed(&self.links)? {
            let ours = entry.file_name().to_string_lossy().starts_with(&prefix)
                && fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&directory));
            if ours {
                gone(fs::remove_file(entry.path()))?;
            }
        }
        gone(fs::remove_dir_all(directory))
    }

    /// Links whose log is gone.
    pub fn sweep_links(&self) -> io::Result<()> {
        for entry in listed(&self.links)? {
            if entry.file_type()?.is_symlink() && !entry.path().exists() {
                gone(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    /// The pods that have a log directory.
    pub fn uids(&self) -> io::Result<Vec<(PodUid, PathBuf)>> {
        let entries = listed(&self.pods)?.into_iter();
        Ok(entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some((PodUid::new(name.rsplit('_').next()?)?, entry.path()))
            })
            .collect())
    }

    /// One more than the highest restart count that left a log: what goes on counting when the runtime has lost all.
    pub fn next_attempt(&self, pod: &DesiredPod, container: &str) -> u32 {
        let entries = listed(&self.pod(pod).join(container)).unwrap_or_default();
        let attempts = entries
            .iter()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse::<u32>().ok());
        attempts.max().map_or(0, |attempt| attempt.saturating_add(1))
    }
}

/// Moves a log that is too long aside and drops the oldest of those before. Returns where it
/// went: the runtime is to open the log anew.
pub fn rotate(path: &Path, limits: LogLimits, now: Timestamp) -> io::Result<Option<PathBuf>> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if length <= limits.max_bytes {
        return Ok(None);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(None);
    };
    let prefix = format!("{name}.");
    let mut old: Vec<PathBuf> = listed(directory)?
        .into_iter()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    old.sort();
    // The one in use and the one that is set aside now are two of the files.
    let keep = limits.max_files.saturating_sub(2);
    for path in &old[..old.len().saturating_sub(keep)] {
        gone(fs::remove_file(path))?;
    }
    let aside = directory.join(format!("{prefix}{}", now.strftime("%Y%m%d-%H%M%S")));
    fs::rename(path, &aside)?;
    Ok(Some(aside))
}

/// The runtime did not open the log anew and writes to what was set aside: the next round tries again. A log that it
/// did open stays.
pub fn rotate_back(aside: &Path, path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, aside, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The last of a log, for a container that left no other message.
pub fn tail(path: &Path) -> io::Result<String> {
    const BYTES: u64 = 2048;
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    io::Seek::seek(&mut file, io::SeekFrom::Start(length.saturating_sub(BYTES)))?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, BYTES), &mut bytes)?;
    // Each line begins with its time, stream and a tag.
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn listed(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_stays_within_its_bounds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let limits = LogLimits { max_bytes: 10, max_files: 3 };
        for second in 0..6 {
            fs::write(&path, "more than ten bytes").unwrap();
            assert!(rotate(&path, limits, Timestamp::from_second(second).unwrap()).unwrap().is_some());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        fs::write(&path, "short").unwrap();
        assert!(rotate(&path, limits, Timestamp::from_second(9).unwrap()).unwrap().is_none());

        fs::write(&path, "more than ten bytes").unwrap();
        let aside = rotate(&path, limits, Timestamp::from_second(10).unwrap()).unwrap().unwrap();
        rotate_back(&aside, &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "more than ten bytes");
        assert!(!aside.exists());
        // Opened anew after all.
        fs::write(&aside, "old").unwrap();
        rotate_back(&aside, &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "more than ten bytes");
    }
}
