//! What a walk through the whole index shows: the digest, the outbox, and a fingerprint of every entry.

use proto::Digest;

use super::{
    checkpoint::Counters,
    index::{Index, IndexError, Table},
    outbox::Outbox,
};

pub(super) struct Summary {
    pub(super) digest: Digest,
    pub(super) outbox: Outbox,
    pub(super) live_bytes: u64,
    pub(super) entries: u64,
    pub(super) fingerprint: u32,
}

pub(super) fn summarize(index: &Index, outbox_bytes: u64, counters: Counters) -> Result<Summary, IndexError> {
    let mut summary = Summary {
        digest: Digest::default(),
        outbox: Outbox::new(outbox_bytes, counters.next_report, counters.dropped_reports),
        live_bytes: 0,
        entries: 0,
        fingerprint: 0,
    };
    let mut fingerprint = crc32fast::Hasher::new();
    index.each_of_all(|entry| {
        summary.entries += 1;
        summary.live_bytes += (entry.key.len() + entry.head.meta.len() + entry.value.len()) as u64;
        fingerprint.update(&[entry.table as u8]);
        for part in [&entry.key[..], &entry.head.meta, &entry.value] {
            fingerprint.update(part);
        }
        match entry.table {
            Table::Objects => {
                let object = entry.object()?;
                summary.digest.add(&object.key, object.version.hash);
            }
            Table::Outbox => summary.outbox.insert(&entry.report()?),
            Table::Local => {}
        }
        Ok(())
    })?;
    summary.fingerprint = fingerprint.finalize();
    Ok(summary)
}
