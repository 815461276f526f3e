//! The decoders of the store's files, as the fuzz targets call them. Each panics where it breaks a promise of its own.

use std::{fs, io, path::Path};

use bytes::Bytes;

use super::{
    checkpoint,
    clean_stop::Marker,
    journal::{CHECKPOINT_MAGIC, FileHeader, JOURNAL_MAGIC, Reader},
    record::{self, Op},
};

/// Of all files here.
const EPOCH: u64 = 1;

/// A record's payload: what is taken is written again as it was.
pub fn payload(bytes: &[u8]) {
    if let Some(ops) = Op::decode_all(Bytes::copy_from_slice(bytes)) {
        let mut again = Vec::new();
        for op in &ops {
            op.encode(&mut again);
        }
        assert_eq!(again, bytes);
    }
}

/// The clean-stop marker.
pub fn marker(bytes: &[u8]) {
    if let Some(marker) = Marker::decode(bytes) {
        assert_eq!(marker.encode(), bytes);
    }
}

/// What a journal's or checkpoint's file begins with, and records with these sequences and payloads, all of them sound.
pub fn file(of_checkpoint: bool, first: u64, records: &[(u64, u64, &[u8])]) -> Vec<u8> {
    let magic = if of_checkpoint { CHECKPOINT_MAGIC } else { JOURNAL_MAGIC };
    let mut file = FileHeader { epoch: EPOCH, sequence: first }.encode(magic).to_vec();
    for (sequence, durable, payload) in records {
        record::append(&mut file, EPOCH, *sequence, *durable, |out| out.extend_from_slice(payload));
    }
    file
}

/// A file with these bytes, read as a journal and as a checkpoint.
pub fn read(scratch: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(scratch, bytes)?;
    let journal = Reader::open(scratch, JOURNAL_MAGIC, EPOCH)?;
    let first = journal.header.map_or(1, |header| header.sequence);
    let mut applied = 0;
    let replayed = journal.replay(first, u64::MAX, |ops| {
        applied += ops.len();
        Ok::<_, io::Error>(())
    })?;
    assert!(replayed.next_sequence >= first);
    assert!(replayed.cut <= bytes.len() as u64 && applied <= bytes.len());
    assert!(replayed.lost.iter().all(|(from, to)| from < to), "{:?}", replayed.lost);
    let found = checkpoint::read(scratch, EPOCH, |_| Ok::<_, io::Error>(()))?;
    assert!(found.operations <= bytes.len() as u64 && (!found.whole || found.header.is_some()));
    Ok(())
}
