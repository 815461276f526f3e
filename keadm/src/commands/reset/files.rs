//! Mounts and files below a directory.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

use crate::output;

/// Unmounts whatever is mounted below these directories, the innermost first.
pub(super) fn unmount_below(dirs: &[PathBuf], dry_run: bool) -> Result<()> {
    let table = fs::read("/proc/self/mountinfo").context("failed to read the mount table")?;
    let mut points: Vec<PathBuf> = mount_points(&table)
        .into_iter()
        .filter(|point| dirs.iter().any(|dir| point != dir && point.starts_with(dir)))
        .collect();
    // A mount over another one is later in the table.
    points.reverse();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in points {
        if dry_run {
            output::planned(format_args!("unmount {}", point.display()));
            continue;
        }
        unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .with_context(|| format!("failed to unmount {}", point.display()))?;
    }
    Ok(())
}

/// The fifth field of each line, with its octal escapes resolved.
fn mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .collect()
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let digits = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let byte = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        if let Some(byte) = byte {
            out.push(byte);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Removes a file, or a directory with all that is in it; links are not followed. Whether it was there.
pub(super) fn remove(path: &Path, dry_run: bool) -> Result<bool> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found.with_context(|| format!("failed to look at {}", path.display()))?,
    };
    if dry_run {
        output::planned(format_args!("remove {}", path.display()));
        return Ok(true);
    }
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        // A disk of its own is mounted there: emptied, and left to whoever mounted it.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(true),
        removed => removed.map(|()| true).with_context(|| format!("failed to remove {}", path.display())),
    }
}

/// Removes a directory that may hold what is not ours, if nothing is left in it.
pub(super) fn remove_if_empty(path: &Path, dry_run: bool) -> Result<()> {
    if dry_run {
        return Ok(());
    }
    match fs::remove_dir(path) {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.kind() == io::ErrorKind::DirectoryNotEmpty =>
        {
            Ok(())
        }
        removed => removed.with_context(|| format!("failed to remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let table =
            b"36 35 98:0 / /srv/edge\\0401/pods rw - tmpfs tmpfs rw\n37 35 98:0 / /proc rw - proc proc rw\n";
        assert_eq!(mount_points(table), [PathBuf::from("/srv/edge 1/pods"), PathBuf::from("/proc")]);
        assert_eq!(unescape(b"a\\04"), b"a\\04");
    }

    #[test]
    fn links_are_removed_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, link) = (dir.path().join("kept"), dir.path().join("link"));
        fs::create_dir(&kept).unwrap();
        std::os::unix::fs::symlink(&kept, &link).unwrap();
        assert!(remove(&link, false).unwrap());
        assert!(kept.exists() && !link.exists());
        assert!(!remove(&link, false).unwrap());
        remove_if_empty(&kept, false).unwrap();
        assert!(!kept.exists());
    }
}
