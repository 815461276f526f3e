//! The clean stop: what is written down so that the next start can take sled's directory as it is.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use bytes::{Buf as _, BufMut as _};
use tracing::info;

use super::{
    checkpoint::WriteError,
    files::Directory,
    index::{self, Index},
    outbox::Outbox,
    summary::summarize,
};

const MARKER_MAGIC: [u8; 8] = *b"SKCLEAN1";
const MARKER: usize = 80;

/// A sled directory beyond this many times the state's size, and this much besides, is built again at the next start:
/// that is cheaper than reading it, and gives the space back.
const INDEX_FACTOR: u64 = 16;
const INDEX_SPARE: u64 = 16 << 20;

/// Left by a clean stop: what sled's directory must hold to be taken as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    pub(super) index_number: u64,
    pub(super) next_report: u64,
    pub(super) dropped_reports: u64,
    pub(super) entries: u64,
    /// Of the entries, and of sled's files: damaged ones are never shown to sled, which may do anything with them.
    pub(super) fingerprint: u32,
    pub(super) files: Files,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    bytes: u64,
    crc: u32,
}

impl Marker {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MARKER);
        bytes.put_slice(&MARKER_MAGIC);
        for number in [
            self.epoch,
            self.sequence,
            self.index_number,
            self.next_report,
            self.dropped_reports,
            self.entries,
        ] {
            bytes.put_u64_le(number);
        }
        bytes.put_u32_le(self.fingerprint);
        bytes.put_u64_le(self.files.bytes);
        bytes.put_u64_le(u64::from(self.files.crc));
        bytes.put_u32_le(crc32fast::hash(&bytes));
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = bytes.get(MARKER_MAGIC.len()..)?;
        let marker = Self {
            epoch: from.try_get_u64_le().ok()?,
            sequence: from.try_get_u64_le().ok()?,
            index_number: from.try_get_u64_le().ok()?,
            next_report: from.try_get_u64_le().ok()?,
            dropped_reports: from.try_get_u64_le().ok()?,
            entries: from.try_get_u64_le().ok()?,
            fingerprint: from.try_get_u32_le().ok()?,
            files: Files {
                bytes: from.try_get_u64_le().ok()?,
                crc: u32::try_from(from.try_get_u64_le().ok()?).ok()?,
            },
        };
        (marker.encode() == bytes && marker.sequence < u64::MAX).then_some(marker)
    }
}

/// Makes sled's files durable and leaves the marker. The checkpoint of `epoch` must hold the state already.
pub(super) fn stop_cleanly(
    directory: &Directory,
    index: Index,
    index_number: u64,
    epoch: u64,
    sequence: u64,
    outbox: &Outbox,
) -> Result<(), WriteError> {
    if index.is_in_memory() {
        return Ok(());
    }
    let summary = summarize(&index)?;
    index.flush(epoch, sequence)?;
    index::guarded(move || {
        drop(index);
        Ok(())
    })?;
    let files = Files::sync_and_read(&directory.index(index_number))?;
    if files.bytes > INDEX_FACTOR * summary.live_bytes + INDEX_SPARE {
        info!(bytes = files.bytes, "sled has grown too large and will be built again");
        return Ok(());
    }
    let marker = Marker {
        epoch,
        sequence,
        index_number,
        next_report: outbox.next,
        dropped_reports: outbox.dropped,
        entries: summary.entries,
        fingerprint: summary.fingerprint,
        files,
    };
    directory.replace(&directory.marker(), &marker.encode())?;
    Ok(())
}

impl Files {
    /// sled's own flush is no fsync.
    fn sync_and_read(directory: &Path) -> io::Result<Self> {
        Self::walk(directory, true)
    }

    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        Self::walk(directory, false)
    }

    fn walk(directory: &Path, sync: bool) -> io::Result<Self> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            paths.push(entry?.path());
        }
        paths.sort_unstable();
        let mut found = Self::default();
        let mut crc = crc32fast::Hasher::new();
        let mut buffer = vec![0; 64 << 10];
        for path in paths {
            crc.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            if path.is_dir() {
                let inner = Self::walk(&path, sync)?;
                found.bytes += inner.bytes;
                crc.update(&inner.crc.to_le_bytes());
                continue;
            }
            let mut file = File::open(path)?;
            loop {
                let length = file.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                found.bytes += length as u64;
                crc.update(&buffer[..length]);
            }
            if sync {
                file.sync_all()?;
            }
        }
        if sync {
            File::open(directory)?.sync_all()?;
        }
        found.crc = crc.finalize();
        Ok(found)
    }
}
