//! Names of the store's files, and the few ways in which files are written, replaced and removed.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Holds Secrets: for root only.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// The store's directory, locked against a second process for as long as this lives.
pub(super) struct Directory {
    path: PathBuf,
    lock: File,
}

/// What lies in the directory, each list in ascending order.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) checkpoints: Vec<u64>,
    pub(super) journals: Vec<u64>,
    pub(super) indexes: Vec<u64>,
}

impl Inventory {
    /// Of checkpoints and journals.
    pub(super) fn highest_epoch(&self) -> u64 {
        self.checkpoints.last().max(self.journals.last()).copied().unwrap_or(0)
    }
}

impl Directory {
    /// Creates the directory if it is missing. `Ok(None)` when another process holds it.
    pub(super) fn lock(path: &Path) -> io::Result<Option<Self>> {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)?;
        let name = path.join("lock");
        let lock =
            match OpenOptions::new().create(true).truncate(false).write(true).mode(FILE_MODE).open(&name) {
                // What is stored can be read, and the lock needs no writing.
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&name)?,
                opened => opened?,
            };
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path: path.to_owned(), lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn checkpoint(&self, epoch: u64) -> PathBuf {
        self.path.join(format!("checkpoint.{epoch:016x}"))
    }

    pub(super) fn journal(&self, epoch: u64) -> PathBuf {
        self.path.join(format!("journal.{epoch:016x}"))
    }

    pub(super) fn index(&self, number: u64) -> PathBuf {
        self.path.join(format!("sled.{number:016x}"))
    }

    pub(super) fn marker(&self) -> PathBuf {
        self.path.join("clean")
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.path.join("scratch")
    }

    pub(super) fn inventory(&self) -> io::Result<Inventory> {
        let mut found = Inventory::default();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let Some((stem, number)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            let Ok(number) = u64::from_str_radix(number, 16) else { continue };
            match stem {
                "checkpoint" => found.checkpoints.push(number),
                "journal" => found.journals.push(number),
                "sled" => found.indexes.push(number),
                _ => {}
            }
        }
        for list in [&mut found.checkpoints, &mut found.journals, &mut found.indexes] {
            list.sort_unstable();
        }
        Ok(found)
    }

    /// Makes creations, renames and removals in the directory durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Bytes that the file system can still take, by its own account.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bfree.saturating_mul(stat.f_frsize))
    }

    /// Puts a small file in place as a whole: written aside, synced, renamed, directory synced.
    pub(super) fn replace(&self, target: &Path, content: &[u8]) -> io::Result<()> {
        let scratch = self.scratch();
        let mut file = create(&scratch)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&scratch, target)?;
        self.sync()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Closing the file is not enough while a child process, between fork and exec, has it too.
        if let Err(error) = self.lock.unlock() {
            tracing::debug!(%error, "the store's lock goes with the process");
        }
    }
}

/// An empty file, whatever was there before.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).write(true).truncate(true).mode(FILE_MODE).open(path)
}

/// Removes a file or directory that may be missing.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
