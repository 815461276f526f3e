//! A directory whose files change all at once, as kubelet lays it out:
//!
//! ```text
//! ..<time>/config/a      the files
//! ..data -> ..<time>     replaced by rename: the one step that readers see
//! config -> ..data/config
//! ```
//!
//! A crash before the rename leaves a directory that the next write removes; one after it leaves links that the next
//! write completes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::ownership;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

#[derive(Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// By relative path.
pub(super) type Files = BTreeMap<PathBuf, File>;

/// Writes nothing when the directory already holds just these files.
pub(super) fn write(directory: &Path, files: &Files, group: Option<i64>) -> io::Result<()> {
    let current = fs::read_link(directory.join(DATA)).ok();
    if !current.as_ref().is_some_and(|name| holds(&directory.join(name), files, group)) {
        replace(directory, files, group)?;
    }
    link(directory, files)?;
    sweep(directory, files)
}

fn holds(directory: &Path, files: &Files, group: Option<i64>) -> bool {
    let mut present = BTreeSet::new();
    if list(directory, Path::new(""), &mut present).is_err() || !present.iter().eq(files.keys()) {
        return false;
    }
    files.iter().all(|(path, file)| {
        let path = directory.join(path);
        let mode = fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o777);
        mode.is_ok_and(|mode| mode == with_group(file.mode, group))
            && fs::read(&path).is_ok_and(|old| old == file.content)
    })
}

fn list(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

fn replace(directory: &Path, files: &Files, group: Option<i64>) -> io::Result<()> {
    let name = format!("..{}", Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let fresh = directory.join(&name);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let path = fresh.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // Closed to others from its first byte on: it may be a secret.
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
        io::Write::write_all(&mut options.open(&path)?, &file.content)?;
        if let Some(group) = group {
            ownership::chown_group(&path, group)?;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(with_group(file.mode, group)))?;
    }
    let new_link = directory.join(DATA_NEW);
    match fs::remove_file(&new_link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&name, &new_link)?;
    fs::rename(new_link, directory.join(DATA))
}

/// A group that was given can read what the owner can.
fn with_group(mode: u32, group: Option<i64>) -> u32 {
    if group.is_some() { mode | (mode & 0o400) >> 3 } else { mode }
}

/// The names that readers use.
fn link(directory: &Path, files: &Files) -> io::Result<()> {
    for name in names(files) {
        let (path, target) = (directory.join(&name), Path::new(DATA).join(&name));
        if fs::read_link(&path).ok().as_ref() == Some(&target) {
            continue;
        }
        symlink(target, path)?;
    }
    Ok(())
}

fn names(files: &Files) -> BTreeSet<PathBuf> {
    files.keys().filter_map(|path| path.iter().next()).map(PathBuf::from).collect()
}

/// Old versions, and the names of files that are no more.
fn sweep(directory: &Path, files: &Files) -> io::Result<()> {
    let current = fs::read_link(directory.join(DATA))?;
    let names = names(files);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        if name == Path::new(DATA) || name == current || names.contains(&name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
