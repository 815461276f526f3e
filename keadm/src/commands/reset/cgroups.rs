//! The control groups that pods leave behind: their own, and the QoS classes' once no pod is below them. Of either version,
//! by either driver.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::pods::names;
use crate::{init_system, output};

/// Where the kernel shows them.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// Below a hierarchy, in the order in which they have to go.
pub(super) fn of_pod(uid: &str) -> Vec<String> {
    // A dash is a level of the tree in a slice's name.
    let slice = uid.replace('-', "_");
    vec![
        format!("kubepods/pod{uid}"),
        format!("kubepods/burstable/pod{uid}"),
        format!("kubepods/besteffort/pod{uid}"),
        format!("kubepods.slice/kubepods-pod{slice}.slice"),
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice"),
        format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice}.slice"),
    ]
}

pub(super) fn of_classes() -> Vec<String> {
    [
        "kubepods/burstable",
        "kubepods/besteffort",
        "kubepods",
        "kubepods.slice/kubepods-burstable.slice",
        "kubepods.slice/kubepods-besteffort.slice",
        "kubepods.slice",
    ]
    .map(str::to_owned)
    .into()
}

/// One that has others below it stays. An empty one does no harm, so that one which cannot be removed is only said.
pub(super) fn remove(root: &Path, groups: &[String], dry_run: bool) {
    for group in groups {
        for path in in_hierarchies(root, group) {
            if fs::read_dir(&path)
                .is_ok_and(|mut below| below.any(|entry| entry.is_ok_and(|entry| entry.path().is_dir())))
            {
                continue;
            }
            if dry_run {
                output::planned(format_args!("remove the cgroup {}", path.display()));
                continue;
            }
            if let Some(slice) =
                path.file_name().filter(|name| Path::new(name).extension() == Some("slice".as_ref()))
            {
                init_system::stop_slice(&slice.to_string_lossy());
            }
            match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    output::note(format_args!("the cgroup {} is left: {error}", path.display()));
                }
                _ => {}
            }
        }
    }
}

/// Where a group is: version 2 has its tree at the root itself, version 1 one in each directory.
fn in_hierarchies(root: &Path, group: &str) -> Vec<PathBuf> {
    let hierarchies = names(root).map(|name| root.join(name));
    std::iter::once(root.to_owned())
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join(group))
        .filter(|path| path.is_dir())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions_and_drivers_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let own = [
            "kubepods/burstable/pod7c9e-7425",
            "kubepods.slice/kubepods-pod7c9e_7425.slice",
            "memory/kubepods/pod7c9e-7425",
            "systemd/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod7c9e_7425.slice",
        ];
        let others = ["cpu/kubepods/besteffort/pod1", "memory/kubepods/besteffort/pod1/container"];
        for group in own.into_iter().chain(others) {
            fs::create_dir_all(root.join(group)).unwrap();
        }
        remove(root, &of_pod("7c9e-7425"), true);
        assert!(own.iter().all(|group| root.join(group).is_dir()));
        remove(root, &of_pod("7c9e-7425"), false);
        remove(root, &of_classes(), false);
        for group in own {
            assert!(!root.join(group).exists(), "{group}");
        }
        for group in ["kubepods", "kubepods.slice", "systemd/kubepods.slice"] {
            assert!(!root.join(group).exists(), "{group}");
        }
        for group in others {
            assert!(root.join(group).exists(), "{group}");
        }
    }
}
