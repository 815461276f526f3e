//! fsGroup: who in the pod can read and write a volume.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

pub(super) fn chown_group(path: &Path, group: i64) -> io::Result<()> {
    let group = u32::try_from(group).map_err(|_| io::Error::other("fsGroup is out of range"))?;
    chown(path, None, Some(group))
}

/// A fresh directory becomes the group's, and what is made in it stays so.
pub(super) fn give(directory: &Path, group: i64) -> io::Result<()> {
    chown_group(directory, group)?;
    let mode = fs::metadata(directory)?.permissions().mode();
    fs::set_permissions(directory, fs::Permissions::from_mode(mode | 0o2770))
}
