//! Finding what belongs to a run (or to one site of it), and taking it away.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{RUN_DIR_VARIABLE, Resource};
use crate::process::{command, kill9, output, wait_gone};

/// A killed process is gone at once, unless the kernel holds it in a write to a slow disk.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// A process may fork while it is being looked for; each round finds the children of the one before.
const ROUNDS: usize = 20;

/// Processes, their cgroups, and the recorded resources of a run. Safe to repeat.
pub(super) fn take_down(dir: &Path) -> Result<()> {
    kill_all(dir)?;
    let state = match fs::read_to_string(dir.join("state")) {
        Ok(state) => state,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("failed to read the run's state file"),
    };
    for line in state.lines().rev() {
        // The last line is cut short when the owner was killed while writing it; nothing was made yet then.
        let Ok(resource) = serde_json::from_str::<Resource>(line) else { continue };
        match resource {
            Resource::Site { netns, host_interface } => remove_network(&netns, &host_interface)?,
        }
    }
    Ok(())
}

/// Removes the ends of a site's line, if they are there.
pub(crate) fn remove_network(netns: &str, host_interface: &str) -> Result<()> {
    if Path::new("/sys/class/net").join(host_interface).exists() {
        output(command("ip", ["link", "delete", host_interface]))?;
    }
    for netns in [&netns_of_wire(netns), netns] {
        if Path::new("/run/netns").join(netns).exists() {
            output(command("ip", ["netns", "delete", netns]))?;
        }
    }
    Ok(())
}

/// The network namespace of the line in user space to a site, if it has one.
pub(crate) fn netns_of_wire(netns: &str) -> String {
    format!("{netns}-w")
}

/// SIGKILL to every process of the run or site whose directory is `dir`, until none is left; then their cgroups.
pub fn kill_all(dir: &Path) -> Result<()> {
    let mut cgroups = BTreeSet::new();
    for _ in 0..ROUNDS {
        let pids = processes_below(dir)?;
        if pids.is_empty() {
            return remove_cgroups(&cgroups);
        }
        for pid in &pids {
            cgroups.extend(cgroups_of(*pid));
        }
        kill(&pids)?;
    }
    bail!("processes below {} come back faster than they can be killed", dir.display())
}

/// Every process that carries a mark of `dir`, a run's or a site's directory (see the module doc of `run`).
pub fn processes_below(dir: &Path) -> Result<Vec<u32>> {
    let environment = format!("{RUN_DIR_VARIABLE}={}\0", dir.display()).into_bytes();
    let mount = mount_mark(dir)?;
    processes(|proc_dir| {
        contains(&read(&proc_dir.join("environ")), &environment)
            || contains(&read(&proc_dir.join("mountinfo")), &mount)
    })
}

/// SIGKILL to every process that has this in its environment, until none is left.
pub(crate) fn kill_marked(mark: &str) -> Result<()> {
    for _ in 0..ROUNDS {
        let pids = processes(|proc_dir| contains(&read(&proc_dir.join("environ")), mark.as_bytes()))?;
        if pids.is_empty() {
            return Ok(());
        }
        kill(&pids)?;
    }
    bail!("processes with {mark} come back faster than they can be killed")
}

fn kill(pids: &[u32]) -> Result<()> {
    // All are told to die before one is waited for: a power cut has no order.
    for pid in pids {
        kill9(*pid)?;
    }
    for pid in pids {
        if !wait_gone(*pid, GONE_WITHIN)? {
            bail!("process {pid} is still there {GONE_WITHIN:?} after SIGKILL");
        }
    }
    Ok(())
}

/// The processes that are marked, but for this one.
fn processes(is_marked: impl Fn(&Path) -> bool) -> Result<Vec<u32>> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end between the listing and the look: then there is nothing to read, and nothing to kill.
        if pid != own && !is_zombie(pid) && is_marked(&PathBuf::from(format!("/proc/{pid}"))) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// How a mount below `dir` shows in mountinfo. Not the whole path: for a bind mount that file gives the path inside
/// the filesystem, which is shorter when the directory's parents are mounts of their own.
fn mount_mark(dir: &Path) -> Result<Vec<u8>> {
    let name = dir.file_name().and_then(|name| name.to_str()).context("a run's directory has a name")?;
    if name.starts_with(super::PREFIX) {
        return Ok(format!("/{name}/").into_bytes());
    }
    let run = dir.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let run = run.context("a site's directory is in a run's")?;
    Ok(format!("/{run}/{name}/").into_bytes())
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => bytes,
        Err(_) => Vec::new(),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn is_zombie(pid: u32) -> bool {
    !crate::process::is_running(pid)
}

/// The cgroups of a process in all hierarchies (v1 and v2), with the hierarchy's root; without those that it
/// shares with the bench itself.
fn cgroups_of(pid: u32) -> Vec<(PathBuf, PathBuf)> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut dirs = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if path == "/" || own.lines().any(|line| line.rsplit(':').next() == Some(path)) {
            continue;
        }
        let hierarchy = match controllers {
            "" if Path::new("/sys/fs/cgroup/unified").exists() => "unified",
            "" => "",
            named => named.trim_start_matches("name="),
        };
        let root = Path::new("/sys/fs/cgroup").join(hierarchy);
        let dir = root.join(path.trim_start_matches('/'));
        dirs.push((root, dir));
    }
    dirs
}

/// What all pods of a machine share, parents after children.
const SHARED_CGROUPS: &[&str] = &["kubepods/besteffort", "kubepods/burstable", "kubepods", "k8s.io"];

/// Removes cgroups and the parents that are empty then, but not those that all sites of the machine share: another
/// one may just be making a pod in it.
fn remove_cgroups(dirs: &BTreeSet<(PathBuf, PathBuf)>) -> Result<()> {
    for (root, dir) in dirs.iter().rev() {
        let mut dir = dir.as_path();
        while dir != root && !SHARED_CGROUPS.iter().any(|shared| root.join(shared) == dir) {
            if !remove_cgroup(dir)? {
                break;
            }
            let Some(parent) = dir.parent() else { break };
            dir = parent;
        }
    }
    Ok(())
}

/// Removes the empty shared cgroups, when no run is left that could want them.
pub(super) fn remove_shared_cgroups() -> Result<()> {
    let base = Path::new("/sys/fs/cgroup");
    let mut roots = vec![base.to_owned()];
    for entry in fs::read_dir(base)? {
        roots.push(entry?.path());
    }
    for root in &roots {
        for shared in SHARED_CGROUPS {
            if root.join(shared).is_dir() {
                remove_cgroup(&root.join(shared))?;
            }
        }
    }
    Ok(())
}

/// `false` when it is in use.
fn remove_cgroup(dir: &Path) -> Result<bool> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::ResourceBusy | ErrorKind::DirectoryNotEmpty) => {
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("failed to remove {}", dir.display())),
    }
}
