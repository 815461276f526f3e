//! The journal: the file that is appended to and synced before anything is acknowledged, and how it is read back.

use std::{
    fs::File,
    io::{self, Write as _},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use bytes::{Buf as _, BufMut as _, Bytes};

use super::{
    files::{self, Directory},
    record::{self, HEADER, Header, MAX_PAYLOAD, Op, Placed},
};

pub(super) const JOURNAL_MAGIC: [u8; 8] = *b"SKJRNL01";
pub(super) const CHECKPOINT_MAGIC: [u8; 8] = *b"SKCHKP01";

/// Bytes of [`FileHeader`] on disk.
pub(super) const FILE_HEADER: usize = 28;

/// How much of a damaged file is looked at in one step when searching for its next good record.
const SEARCH_WINDOW: usize = 64 << 10;

/// First bytes of a journal or checkpoint: magic, epoch, sequence, CRC-32 of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) epoch: u64,
    /// A journal: sequence of its first record. A checkpoint: sequence of the last record that it contains.
    pub(super) sequence: u64,
}

impl FileHeader {
    pub(super) fn encode(self, magic: [u8; 8]) -> [u8; FILE_HEADER] {
        let mut bytes = [0; FILE_HEADER];
        let mut at = &mut bytes[..];
        at.put_slice(&magic);
        at.put_u64_le(self.epoch);
        at.put_u64_le(self.sequence);
        let crc = crc32fast::hash(&bytes[..FILE_HEADER - 4]);
        bytes[FILE_HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; FILE_HEADER], magic: [u8; 8]) -> Option<Self> {
        let mut from = &bytes[8..];
        let header = Self { epoch: from.get_u64_le(), sequence: from.get_u64_le() };
        // None follows the last number there is.
        (header.encode(magic) == *bytes && header.sequence < u64::MAX).then_some(header)
    }
}

/// The journal in use.
pub(super) struct Journal {
    file: Arc<File>,
    epoch: u64,
    length: u64,
    records: u64,
    #[cfg(test)]
    pub(super) fail_next_sync: bool,
}

impl Journal {
    /// Creates the journal of an epoch, durable when this returns.
    pub(super) fn create(directory: &Directory, epoch: u64, first_sequence: u64) -> io::Result<Self> {
        let mut file = files::create(&directory.journal(epoch))?;
        file.write_all(&FileHeader { epoch, sequence: first_sequence }.encode(JOURNAL_MAGIC))?;
        file.sync_all()?;
        directory.sync()?;
        Ok(Self::at_start(file, epoch))
    }

    /// Opens a journal that holds no record yet; `None` when it is anything else.
    pub(super) fn open_empty(
        directory: &Directory,
        epoch: u64,
        first_sequence: u64,
    ) -> io::Result<Option<Self>> {
        let file = File::options().read(true).write(true).open(directory.journal(epoch))?;
        let expected = FileHeader { epoch, sequence: first_sequence }.encode(JOURNAL_MAGIC);
        let mut found = [0; FILE_HEADER];
        if file.metadata()?.len() != FILE_HEADER as u64 {
            return Ok(None);
        }
        file.read_exact_at(&mut found, 0)?;
        Ok((found == expected).then(|| Self::at_start(file, epoch)))
    }

    fn at_start(file: File, epoch: u64) -> Self {
        Self {
            file: Arc::new(file),
            epoch,
            length: FILE_HEADER as u64,
            records: 0,
            #[cfg(test)]
            fail_next_sync: false,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// To read from.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Appends whole records. After an error the file must not be used again: what it holds is not known.
    pub(super) fn append(&mut self, bytes: &[u8], records: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        self.records += records;
        Ok(())
    }

    /// Makes everything that was appended durable. After an error the file must not be used again: the kernel may
    /// have dropped the pages and would report success the next time.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if std::mem::take(&mut self.fail_next_sync) {
            return Err(io::Error::other("injected by the test"));
        }
        self.file.sync_data()
    }
}

/// A journal or checkpoint being read. Never holds more than one record in memory.
pub(super) struct Reader {
    file: File,
    length: u64,
    epoch: u64,
    /// `None` when the file's header is damaged.
    pub(super) header: Option<FileHeader>,
}

pub(super) struct Record {
    pub(super) sequence: u64,
    durable: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) payload: Bytes,
}

/// How the reading of a journal ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replayed {
    /// Sequence of the first record that is not there.
    pub(super) next_sequence: u64,
    /// Bytes of an unfinished tail.
    pub(super) cut: u64,
    /// Records that had been durable and are damaged or missing, as ranges `(first, one past the last)`.
    pub(super) lost: Vec<(u64, u64)>,
}

impl Reader {
    pub(super) fn open(path: &Path, magic: [u8; 8], epoch: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut reader = Self { file, length, epoch, header: None };
        let mut bytes = [0; FILE_HEADER];
        if reader.read(&mut bytes, 0)? {
            reader.header = FileHeader::decode(&bytes, magic).filter(|header| header.epoch == epoch);
        }
        Ok(reader)
    }

    pub(super) fn is_at_end(&self, offset: u64) -> bool {
        offset >= self.length
    }

    pub(super) fn has_records(&self) -> bool {
        self.length > FILE_HEADER as u64
    }

    /// The record that starts at `offset`, if it is whole.
    pub(super) fn record_at(&self, offset: u64) -> io::Result<Option<Record>> {
        let mut bytes = [0; HEADER];
        if !self.read(&mut bytes, offset)? {
            return Ok(None);
        }
        let header = Header::decode(&bytes);
        let start = offset + HEADER as u64;
        let end = start + u64::from(header.length);
        if header.epoch != self.epoch || header.length as usize > MAX_PAYLOAD || end > self.length {
            return Ok(None);
        }
        let mut payload = vec![0; header.length as usize];
        if !self.read(&mut payload, start)? || !header.fits(&bytes, &payload) || header.sequence == u64::MAX {
            return Ok(None);
        }
        let Header { sequence, durable, .. } = header;
        Ok(Some(Record { sequence, durable, start: offset, end, payload: payload.into() }))
    }

    /// The first whole record that starts at `from` or later.
    pub(super) fn find_record(&self, from: u64) -> io::Result<Option<Record>> {
        let mut window = Vec::new();
        let mut base = from;
        while base + HEADER as u64 <= self.length {
            let want = (self.length - base).min((SEARCH_WINDOW + HEADER) as u64);
            window.resize(usize::try_from(want).unwrap_or(SEARCH_WINDOW), 0);
            if !self.read(&mut window, base)? {
                return Ok(None);
            }
            let starts = window.len() - HEADER + 1;
            for at in 0..starts {
                // The epoch, eight bytes into a header, is the same in all records: a cheap first look.
                if window[at + 8..at + 16] == self.epoch.to_le_bytes()
                    && let Some(record) = self.record_at(base + at as u64)?
                {
                    return Ok(Some(record));
                }
            }
            base += starts as u64;
        }
        Ok(None)
    }

    /// Reads a journal from its start, whatever state it is in. `apply` gets the operations of each good record from
    /// `first` up to `limit`, excluded.
    pub(super) fn replay<E: From<io::Error>>(
        &self,
        first: u64,
        limit: u64,
        mut apply: impl FnMut(Vec<Placed>) -> Result<(), E>,
    ) -> Result<Replayed, E> {
        let mut seen = Replayed { next_sequence: first, ..Replayed::default() };
        let mut offset = FILE_HEADER as u64;
        while !self.is_at_end(offset) && seen.next_sequence < limit {
            let expected = seen.next_sequence;
            let in_order = self.record_at(offset)?.filter(|record| record.sequence <= expected);
            let found = match in_order {
                None => self.find_durable(offset, expected, limit)?,
                in_order => in_order,
            };
            let Some(record) = found else {
                seen.cut = self.length - offset;
                break;
            };
            offset = record.end;
            if record.sequence < expected {
                continue;
            }
            if record.sequence > expected {
                seen.lost.push((expected, record.sequence));
            }
            seen.next_sequence = record.sequence + 1;
            match Op::decode_placed(record.payload, record.start + HEADER as u64) {
                Some(ops) => apply(ops)?,
                None => seen.lost.push((record.sequence, record.sequence + 1)),
            }
        }
        Ok(seen)
    }

    /// The first good record at `from` or later, if a good record, it or a later one, shows that `expected` had been
    /// durable once. Without such a proof all that follows is the torn tail of a group that nobody was promised.
    fn find_durable(&self, from: u64, expected: u64, limit: u64) -> io::Result<Option<Record>> {
        let Some(first) = self.find_record(from)? else { return Ok(None) };
        if first.sequence < expected || first.sequence >= limit {
            return Ok(None);
        }
        let (mut durable, mut next) = (first.durable, first.end);
        while durable < expected {
            let Some(later) = self.find_record(next)? else { return Ok(None) };
            (durable, next) = (later.durable, later.end);
        }
        debug_assert!(first.start >= from, "searched forwards");
        Ok(Some(first))
    }

    /// Whether all of `bytes` could be read; false at the end of the file.
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
        if offset.saturating_add(bytes.len() as u64) > self.length {
            return Ok(false);
        }
        match self.file.read_exact_at(bytes, offset) {
            Ok(()) => Ok(true),
            // A sector that cannot be read is damage like any other.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Appends one record with `ops` to `out`; answers which bytes of `out` the reports among them are.
pub(super) fn append_ops(
    out: &mut Vec<u8>,
    epoch: u64,
    sequence: u64,
    durable: u64,
    ops: &[Op],
) -> Vec<Range<usize>> {
    let mut reports = Vec::new();
    record::append(out, epoch, sequence, durable, |out| {
        for op in ops {
            let start = out.len();
            op.encode(out);
            if matches!(op, Op::PutReport(_)) {
                reports.push(start..out.len());
            }
        }
    });
    reports
}
