//! subPath: a part of a volume. What is in the volume is the pod's to change, also while it is being looked at, so a
//! path is never resolved twice: it is opened below the volume with the kernel watching that it stays there, and what
//! was opened is bind-mounted to a place of edged's own, which is what the runtime is told.

use std::{
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{PermissionsExt as _, chown},
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2};

use super::VolumeError;

pub(super) fn bind(volume: &str, root: &Path, sub: &str, slot: &Path) -> Result<PathBuf, VolumeError> {
    let relative = Path::new(sub);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(VolumeError::Path { volume: volume.to_owned(), path: sub.to_owned() });
    }
    mount(root, relative, slot).map_err(|source| VolumeError::Io {
        volume: volume.to_owned(),
        operation: "failed to mount its subPath",
        source,
    })?;
    Ok(slot.to_owned())
}

fn mount(root: &Path, relative: &Path, slot: &Path) -> io::Result<()> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let base = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let open = || openat2(&base, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside);
    let target = match open() {
        Err(rustix::io::Errno::NOENT) => {
            make_directories(&base, relative)?;
            open()?
        }
        opened => opened?,
    };
    let is_directory = FileType::from_raw_mode(fstat(&target)?.st_mode) == FileType::Directory;
    // From an earlier attempt at the same container: the volume may have changed since.
    if slot.exists() && super::is_mount(slot)? {
        rustix::mount::unmount(slot, rustix::mount::UnmountFlags::DETACH)?;
    }
    if let Some(parent) = slot.parent() {
        fs::create_dir_all(parent)?;
    }
    match (is_directory, slot.is_dir()) {
        (true, false) => fs::create_dir(slot)?,
        (false, _) if !slot.exists() => drop(fs::File::create_new(slot)?),
        _ => {}
    }
    let source = format!("/proc/self/fd/{}", target.as_raw_fd());
    rustix::mount::mount_bind(source.as_str(), slot)?;
    Ok(())
}

/// One component at a time, each opened with the kernel watching. Who may write to the volume may write to them: they
/// have its mode, and its group where that is handed down.
fn make_directories(base: &impl std::os::fd::AsFd, relative: &Path) -> io::Result<()> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let like = fstat(base)?;
    let mut made = PathBuf::new();
    let mut parent = openat2(base, ".", flags, Mode::empty(), inside)?;
    for part in relative.components().filter(|part| matches!(part, Component::Normal(_))) {
        let is_new = match mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        made.push(part);
        parent = openat2(base, &made, flags, Mode::empty(), inside)?;
        if is_new {
            // What was opened as a path takes no fchmod; its entry in /proc does. After mkdirat, past the umask.
            let opened = format!("/proc/self/fd/{}", parent.as_raw_fd());
            if like.st_mode & 0o2000 != 0 {
                chown(&opened, None, Some(like.st_gid))?;
            }
            fs::set_permissions(&opened, fs::Permissions::from_mode(like.st_mode & 0o7777))?;
        }
    }
    Ok(())
}
