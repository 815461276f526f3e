//! fsGroup: who in the pod can read and write a volume.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
};

pub(super) fn chown_group(path: &Path, group: i64) -> io::Result<()> {
    let group = u32::try_from(group).map_err(|_| io::Error::other("fsGroup is out of range"))?;
    chown(path, None, Some(group))
}

/// The directory becomes the group's, and what is made in it stays so. Looked at each time: a crash may have come in
/// between, and a tmpfs is fresh after a power cut though its directory is not.
pub(super) fn give(directory: &Path, group: i64) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    let mode = metadata.permissions().mode();
    if i64::from(metadata.gid()) == group && mode & 0o2770 == 0o2770 {
        return Ok(());
    }
    chown_group(directory, group)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(mode | 0o2770))
}
