//! What a walk through the whole index shows: the digest, and a fingerprint of every entry.

use proto::Digest;

use super::index::{Index, IndexError, Table};

#[derive(Default)]
pub(super) struct Summary {
    pub(super) digest: Digest,
    pub(super) live_bytes: u64,
    pub(super) entries: u64,
    pub(super) fingerprint: u32,
}

pub(super) fn summarize(index: &Index) -> Result<Summary, IndexError> {
    let mut summary = Summary::default();
    let mut fingerprint = crc32fast::Hasher::new();
    index.each_of_all(|entry| {
        summary.entries += 1;
        summary.live_bytes += (entry.key.len() + entry.head.meta.len() + entry.value.len()) as u64;
        fingerprint.update(&[entry.table as u8]);
        for part in [&entry.key[..], &entry.head.meta, &entry.value] {
            fingerprint.update(part);
        }
        if entry.table == Table::Objects {
            let object = entry.object()?;
            summary.digest.add(&object.key, object.version.hash);
        }
        Ok(())
    })?;
    summary.fingerprint = fingerprint.finalize();
    Ok(summary)
}
