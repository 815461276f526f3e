//! The state that the journal is applied to, and that reads are answered from: sled, or, where sled cannot be had
//! (a full disk, a fault inside sled), ordered maps in memory with the same content.
//!
//! An entry is cut into parts of at most [`PART`] bytes, because sled puts big values into files of their own that it
//! never syncs. Key of a part: the entry's key, then the part's number (`u16`, big-endian). Part 0 starts with the
//! entry's head: length of meta (`u16`), meta, length of the value (`u32`), CRC-32 of key, meta and value.
//! Objects: key `Kind/ns/name\0`, meta is the version. Local: key `key\0`, no meta. Reports are not here (`reports.rs`).

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::ControlFlow,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use proto::{Object, ResourceKey, Version};

use super::record::Op;

const PART: usize = 4096;

/// sled takes it as a hint. More would buy speed that nobody needs with memory that an edge does not have.
const CACHE_BYTES: u64 = 1 << 20;

/// sled has been seen to loop on damaged files. Opening and reading through a large store takes seconds.
const GUARD_LIMIT: Duration = Duration::from_mins(1);

const POSITION: &[u8] = b"position";

/// Why the index could not be read or changed. The store answers by building a new one from checkpoint and journal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IndexError {
    #[error("sled failed")]
    Sled(#[from] sled::Error),
    #[error("sled panicked: {0}")]
    Panicked(String),
    #[error("sled did not answer")]
    Hung,
    #[error("the entry {key:?} is damaged")]
    Damaged { key: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Table {
    Objects,
    Local,
}

const TABLES: [(Table, &str); 2] = [(Table::Objects, "objects"), (Table::Local, "local")];

/// What identifies an entry's content without reading it all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) meta: Vec<u8>,
    length: u32,
    crc: u32,
}

impl Head {
    pub(super) fn new(key: &[u8], meta: &[u8], value: &[u8]) -> Self {
        let mut crc = crc32fast::Hasher::new();
        for part in [key, meta, value] {
            crc.update(part);
        }
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        Self { meta: meta.to_vec(), length, crc: crc.finalize() }
    }

    /// The head, and what of the value is in part 0.
    fn decode(mut part: &[u8]) -> Option<(Self, &[u8])> {
        let meta_length = usize::from(part.try_get_u16_le().ok()?);
        let (meta, mut rest) = part.split_at_checked(meta_length)?;
        let length = rest.try_get_u32_le().ok()?;
        let crc = rest.try_get_u32_le().ok()?;
        Some((Self { meta: meta.to_vec(), length, crc }, rest))
    }

    fn size(&self) -> usize {
        2 + self.meta.len() + 8
    }

    /// Number of the entry's parts.
    fn parts(&self) -> usize {
        (self.size() + self.length as usize).div_ceil(PART)
    }

    pub(super) fn version(&self) -> Option<Version> {
        let mut meta = &self.meta[..];
        let hash = meta.try_get_u64_le().ok()?;
        Some(Version { hash, resource_version: meta.try_get_u64_le().ok()? })
    }
}

pub(super) fn object_key(key: &ResourceKey) -> Vec<u8> {
    local_key(key.as_str())
}

pub(super) fn local_key(key: &str) -> Vec<u8> {
    let mut bytes = key.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn object_meta(version: Version) -> Vec<u8> {
    let mut meta = Vec::with_capacity(16);
    meta.put_u64_le(version.hash);
    meta.put_u64_le(version.resource_version);
    meta
}

/// The head that an object would be stored with.
pub(super) fn object_head(object: &Object) -> Head {
    Head::new(&object_key(&object.key), &object_meta(object.version), &object.bytes)
}

/// A whole entry, as [`Index::each`] finds it.
pub(super) struct Entry {
    pub(super) table: Table,
    pub(super) key: Vec<u8>,
    pub(super) head: Head,
    pub(super) value: Bytes,
}

impl Entry {
    fn damaged(&self) -> IndexError {
        damaged(&self.key)
    }

    pub(super) fn object(self) -> Result<Object, IndexError> {
        let version = self.head.version().ok_or_else(|| self.damaged())?;
        Ok(Object { key: self.resource_key()?, version, bytes: self.value })
    }

    pub(super) fn resource_key(&self) -> Result<ResourceKey, IndexError> {
        self.text()?.parse().map_err(|_| self.damaged())
    }

    pub(super) fn text(&self) -> Result<String, IndexError> {
        let (_, text) = self.key.split_last().ok_or_else(|| self.damaged())?;
        String::from_utf8(text.to_vec()).map_err(|_| self.damaged())
    }

    /// The operation that makes this entry.
    pub(super) fn into_op(self) -> Result<Op, IndexError> {
        Ok(match self.table {
            Table::Objects => Op::PutObject(self.object()?),
            Table::Local => Op::PutLocal(self.text()?, self.value),
        })
    }
}

fn damaged(key: &[u8]) -> IndexError {
    IndexError::Damaged { key: String::from_utf8_lossy(key).into_owned() }
}

/// Waits for sled's own lock, which sled only tries. The store's lock is held by now, so nobody else uses the
/// directory: what holds this one is a thread of sled that ends late, or a process that this one forked and that is
/// about to `exec`. [`guarded`] ends a wait without end.
fn wait_for_lock(sled: &Path) -> io::Result<()> {
    let file = match File::open(sled.join("db")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    file.lock()?;
    file.unlock()
}

pub(super) enum Index {
    Sled { db: sled::Db, trees: [sled::Tree; 2] },
    Memory([BTreeMap<Vec<u8>, Vec<u8>>; 2]),
}

impl Index {
    /// Opens or creates sled's directory.
    pub(super) fn open_sled(path: &Path) -> Result<Self, IndexError> {
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        caught(|| {
            wait_for_lock(path).map_err(sled::Error::from)?;
            let db = config.open()?;
            let [objects, local] = TABLES.map(|(_, name)| db.open_tree(name));
            Ok(Self::Sled { trees: [objects?, local?], db })
        })
    }

    pub(super) fn in_memory() -> Self {
        Self::Memory(Default::default())
    }

    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self, Self::Memory(_))
    }

    /// Applies one operation; reports and counters are not the index's.
    pub(super) fn apply(&mut self, op: &Op) -> Result<(), IndexError> {
        match op {
            Op::PutObject(object) => {
                let meta = object_meta(object.version);
                self.put(Table::Objects, &object_key(&object.key), &meta, &object.bytes)
            }
            Op::DeleteObject(key) => self.remove(Table::Objects, &object_key(key)),
            Op::PutLocal(key, value) => self.put(Table::Local, &local_key(key), &[], value),
            Op::DeleteLocal(key) => self.remove(Table::Local, &local_key(key)),
            Op::PutReport(_) | Op::RemoveReport(_) | Op::DropReport(_) | Op::Counters { .. } | Op::End(_) => {
                Ok(())
            }
        }
    }

    pub(super) fn head(&self, table: Table, key: &[u8]) -> Result<Option<Head>, IndexError> {
        let Some(part) = self.part(table, key, 0)? else { return Ok(None) };
        Head::decode(&part).map(|(head, _)| Some(head)).ok_or_else(|| damaged(key))
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Entry>, IndexError> {
        let Some(first) = self.part(table, key, 0)? else { return Ok(None) };
        let (head, chunk) = Head::decode(&first).ok_or_else(|| damaged(key))?;
        let mut value = Vec::with_capacity(head.length as usize);
        value.extend_from_slice(chunk);
        for number in 1..head.parts() {
            value.extend_from_slice(&self.part(table, key, number)?.ok_or_else(|| damaged(key))?);
        }
        whole(table, key.to_vec(), head, value).map(Some)
    }

    /// Calls `visit` with each entry whose key is at least `start` and begins with `within`, in the order of keys.
    pub(super) fn each(
        &self,
        table: Table,
        start: &[u8],
        within: &[u8],
        mut visit: impl FnMut(Entry) -> Result<ControlFlow<()>, IndexError>,
    ) -> Result<(), IndexError> {
        let mut open: Option<(Vec<u8>, Head, Vec<u8>)> = None;
        let mut step = |key: &[u8], part: &[u8]| {
            let Some((entry, number)) = key.split_last_chunk::<2>() else { return Err(damaged(key)) };
            if u16::from_be_bytes(*number) == 0 {
                if let Some((key, head, value)) = open.take()
                    && visit(whole(table, key, head, value)?)?.is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
                let (head, chunk) = Head::decode(part).ok_or_else(|| damaged(entry))?;
                let mut value = Vec::with_capacity(head.length as usize);
                value.extend_from_slice(chunk);
                open = Some((entry.to_vec(), head, value));
            } else {
                let Some((key, _, value)) = &mut open else { return Err(damaged(entry)) };
                if key != entry {
                    return Err(damaged(entry));
                }
                value.extend_from_slice(part);
            }
            Ok(ControlFlow::Continue(()))
        };
        let mut broken = false;
        match self {
            Self::Sled { trees, .. } => caught(|| {
                for pair in trees[table as usize].range(start..) {
                    let (key, part) = pair?;
                    if !key.starts_with(within) {
                        break;
                    }
                    if step(&key, &part)?.is_break() {
                        broken = true;
                        break;
                    }
                }
                Ok(())
            })?,
            Self::Memory(tables) => {
                for (key, part) in tables[table as usize].range(start.to_vec()..) {
                    if !key.starts_with(within) {
                        break;
                    }
                    if step(key, part)?.is_break() {
                        broken = true;
                        break;
                    }
                }
            }
        }
        if let (false, Some((key, head, value))) = (broken, open) {
            // The last one: whether the visitor wants more no longer matters.
            visit(whole(table, key, head, value)?).map(drop)?;
        }
        Ok(())
    }

    /// Calls `visit` with every entry of every table.
    pub(super) fn each_of_all(
        &self,
        mut visit: impl FnMut(Entry) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        for (table, _) in TABLES {
            self.each(table, &[], &[], |entry| visit(entry).map(ControlFlow::Continue))?;
        }
        Ok(())
    }

    /// Epoch and sequence that the last clean stop left in sled.
    pub(super) fn position(&self) -> Result<Option<(u64, u64)>, IndexError> {
        let Self::Sled { db, .. } = self else { return Ok(None) };
        let value = caught(|| Ok(db.get(POSITION)?))?;
        Ok(value.and_then(|value| {
            let mut from = &value[..];
            Some((from.try_get_u64_le().ok()?, from.try_get_u64_le().ok()?))
        }))
    }

    /// Writes the position, and all that sled still holds in memory, to its files. They are not synced by this.
    pub(super) fn flush(&self, epoch: u64, sequence: u64) -> Result<(), IndexError> {
        let Self::Sled { db, .. } = self else { return Ok(()) };
        let mut position = Vec::with_capacity(16);
        position.put_u64_le(epoch);
        position.put_u64_le(sequence);
        caught(|| {
            db.insert(POSITION, position)?;
            db.flush()?;
            Ok(())
        })
    }

    /// Lets go of it on a thread of its own: sled does I/O, and may panic, when it is dropped.
    pub(super) fn discard(self) {
        let dropping = thread::Builder::new().name("sled-drop".to_owned()).spawn(move || drop(self));
        if let Err(error) = dropping {
            tracing::warn!(%error, "no thread to close sled on");
        }
    }

    fn put(&mut self, table: Table, key: &[u8], meta: &[u8], value: &[u8]) -> Result<(), IndexError> {
        let head = Head::new(key, meta, value);
        let old_parts = self.head(table, key)?.map_or(0, |old| old.parts());
        let mut part = Vec::with_capacity(PART.min(head.size() + value.len()));
        part.put_u16_le(u16::try_from(meta.len()).unwrap_or(u16::MAX));
        part.put_slice(meta);
        part.put_u32_le(head.length);
        part.put_u32_le(head.crc);
        let (chunk, mut rest) = value.split_at(value.len().min(PART - head.size()));
        part.put_slice(chunk);
        self.put_part(table, key, 0, part)?;
        for number in 1..head.parts() {
            let (chunk, tail) = rest.split_at(rest.len().min(PART));
            self.put_part(table, key, number, chunk.to_vec())?;
            rest = tail;
        }
        (head.parts()..old_parts).try_for_each(|number| self.remove_part(table, key, number))
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<(), IndexError> {
        let parts = self.head(table, key)?.map_or(0, |old| old.parts());
        (0..parts).try_for_each(|number| self.remove_part(table, key, number))
    }

    fn part(&self, table: Table, key: &[u8], number: usize) -> Result<Option<Part<'_>>, IndexError> {
        let key = part_key(key, number);
        match self {
            Self::Sled { trees, .. } => caught(|| Ok(trees[table as usize].get(key)?.map(Part::Sled))),
            Self::Memory(tables) => Ok(tables[table as usize].get(&key).map(|part| Part::Memory(part))),
        }
    }

    fn put_part(&mut self, table: Table, key: &[u8], number: usize, part: Vec<u8>) -> Result<(), IndexError> {
        let key = part_key(key, number);
        match self {
            Self::Sled { trees, .. } => {
                caught(|| trees[table as usize].insert(key, part).map(drop).map_err(Into::into))
            }
            Self::Memory(tables) => {
                tables[table as usize].insert(key, part);
                Ok(())
            }
        }
    }

    fn remove_part(&mut self, table: Table, key: &[u8], number: usize) -> Result<(), IndexError> {
        let key = part_key(key, number);
        match self {
            Self::Sled { trees, .. } => {
                caught(|| trees[table as usize].remove(key).map(drop).map_err(Into::into))
            }
            Self::Memory(tables) => {
                tables[table as usize].remove(&key);
                Ok(())
            }
        }
    }
}

enum Part<'a> {
    Sled(sled::IVec),
    Memory(&'a [u8]),
}

impl std::ops::Deref for Part<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Sled(bytes) => bytes,
            Self::Memory(bytes) => bytes,
        }
    }
}

fn part_key(key: &[u8], number: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 2);
    bytes.extend_from_slice(key);
    // A value is at most MAX_FRAME long: a thousand parts.
    bytes.put_u16(u16::try_from(number).unwrap_or(u16::MAX));
    bytes
}

fn whole(table: Table, key: Vec<u8>, head: Head, value: Vec<u8>) -> Result<Entry, IndexError> {
    if Head::new(&key, &head.meta, &value) != head {
        return Err(damaged(&key));
    }
    Ok(Entry { table, key, head, value: value.into() })
}

fn caught<T>(call: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    panic::catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        Err(IndexError::Panicked(runtime::supervisor::panic_message(panic.as_ref()).to_owned()))
    })
}

/// Runs what may panic or hang on a thread of its own.
pub(super) fn guarded<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, IndexError> + Send + 'static,
) -> Result<T, IndexError> {
    let (sender, answer) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("sled-open".to_owned()).spawn(move || {
        if sender.send(caught(call)).is_err() {
            tracing::warn!("sled answered after it was given up");
        }
    });
    thread.map_err(|error| IndexError::Sled(error.into()))?;
    answer.recv_timeout(GUARD_LIMIT).unwrap_or(Err(IndexError::Hung))
}
