//! A checkpoint: all live state in one file, from which, with the journals since, the index can be built again.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    sync::Arc,
};

use super::{
    files::{self, Directory},
    index::{Index, IndexError},
    journal::{CHECKPOINT_MAGIC, FILE_HEADER, FileHeader, Reader},
    queue::Queue,
    record::{HEADER, Op, Placed},
    reports::{Place, Reports},
};

/// A record of a checkpoint is closed at this size. Small, because a damaged byte costs its whole record.
const RECORD_BYTES: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("failed to write the file")]
    Io(#[from] io::Error),
    #[error("failed to read the state")]
    Index(#[from] IndexError),
}

/// Counts that are part of the state, but of no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) next_report: u64,
    pub(super) dropped_reports: u64,
}

/// A checkpoint that is there.
pub(super) struct Written {
    pub(super) length: u64,
    /// As it has them.
    pub(super) reports: Reports,
    /// Reports that it does not have, because they could not be read back.
    pub(super) lost: Vec<u64>,
}

/// Writes the checkpoint of `epoch`: the state after record `sequence`. Durable when this returns.
pub(super) fn write(
    directory: &Directory,
    epoch: u64,
    sequence: u64,
    counters: Counters,
    (index, reports): (&Index, &Reports),
) -> Result<Written, WriteError> {
    let scratch = directory.scratch();
    let written = write_scratch(&scratch, epoch, sequence, counters, (index, reports));
    let placed = written.and_then(|written| {
        fs::rename(&scratch, directory.checkpoint(epoch))?;
        directory.sync()?;
        Ok(written)
    });
    if placed.is_err()
        && let Err(error) = files::remove(&scratch)
    {
        tracing::debug!(%error, "unfinished checkpoint left behind");
    }
    placed
}

fn write_scratch(
    scratch: &Path,
    epoch: u64,
    sequence: u64,
    counters: Counters,
    (index, reports): (&Index, &Reports),
) -> Result<Written, WriteError> {
    let mut out = Out { file: BufWriter::new(files::create(scratch)?), epoch, records: 0, ops: 0, length: 0 };
    out.bytes(&FileHeader { epoch, sequence }.encode(CHECKPOINT_MAGIC))?;
    let Counters { next_report, dropped_reports } = counters;
    let mut payload = Vec::new();
    Op::Counters { next_report, dropped_reports }.encode(&mut payload);
    out.ops += 1;
    let mut failed = None;
    index.each_of_all(|entry| {
        if failed.is_some() {
            return Ok(());
        }
        entry.into_op()?.encode(&mut payload);
        out.ops += 1;
        if payload.len() >= RECORD_BYTES {
            failed = out.record(&mut payload).err();
        }
        Ok(())
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let (mut places, mut lost) = (Queue::default(), Vec::new());
    for id in reports.ids() {
        let Some(operation) = reports.operation(id) else {
            lost.push(id);
            continue;
        };
        let offset = out.length + (HEADER + payload.len()) as u64;
        let length = u32::try_from(operation.len()).unwrap_or(u32::MAX);
        places.insert(id, Place { offset, length, file: 0 });
        payload.extend_from_slice(&operation);
        out.ops += 1;
        if payload.len() >= RECORD_BYTES {
            out.record(&mut payload)?;
        }
    }
    Op::End(out.ops).encode(&mut payload);
    out.record(&mut payload)?;
    let file = out.file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(Written { length: out.length, reports: reports.moved(Arc::new(file), places), lost })
}

struct Out {
    file: BufWriter<File>,
    epoch: u64,
    records: u64,
    ops: u64,
    length: u64,
}

impl Out {
    fn record(&mut self, payload: &mut Vec<u8>) -> io::Result<()> {
        let mut record = Vec::with_capacity(payload.len() + HEADER);
        super::record::append(&mut record, self.epoch, self.records, 0, |out| out.append(payload));
        self.records += 1;
        self.bytes(&record)
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.length += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

/// What reading a checkpoint came to.
pub(super) struct Found {
    pub(super) header: Option<FileHeader>,
    /// From its header to its end, without a gap.
    pub(super) whole: bool,
    pub(super) operations: u64,
}

/// Applies every good record, in order.
pub(super) fn read<E: From<io::Error>>(
    path: &Path,
    epoch: u64,
    mut apply: impl FnMut(Placed) -> Result<(), E>,
) -> Result<Found, E> {
    let reader = Reader::open(path, CHECKPOINT_MAGIC, epoch)?;
    let mut found = Found { header: reader.header, whole: reader.header.is_some(), operations: 0 };
    let (mut offset, mut next, mut end) = (FILE_HEADER as u64, 0, None);
    while !reader.is_at_end(offset) {
        let record = if let Some(record) = reader.record_at(offset)? {
            record
        } else {
            found.whole = false;
            let Some(record) = reader.find_record(offset)? else { break };
            record
        };
        found.whole &= record.sequence == next && end.is_none();
        next = record.sequence + 1;
        offset = record.end;
        let Some(ops) = Op::decode_placed(record.payload, record.start + HEADER as u64) else {
            found.whole = false;
            continue;
        };
        for placed in ops {
            if let Op::End(count) = placed.op {
                end = Some(count);
            } else {
                found.operations += 1;
                apply(placed)?;
            }
        }
    }
    found.whole &= end == Some(found.operations);
    Ok(found)
}

/// The checkpoint's header, if every byte of it is good.
pub(super) fn verify(path: &Path, epoch: u64) -> io::Result<Option<FileHeader>> {
    let found = read(path, epoch, |_| Ok::<_, io::Error>(()))?;
    Ok(found.header.filter(|_| found.whole))
}
