//! Building the index from checkpoints and journals.

use std::io;

use tracing::{info, warn};

use super::{
    checkpoint,
    files::{self, Directory, Inventory},
    index::{self, Index, IndexError},
    journal::{JOURNAL_MAGIC, Reader},
    record::Placed,
    reports::Collected,
    summary::{Summary, summarize},
};

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("failed to read the store's files")]
    Io(#[from] io::Error),
    #[error("failed to fill the index")]
    Index(#[from] IndexError),
}

/// Which files the state is read from.
pub(super) struct Plan {
    pub(super) base: u64,
    /// No checkpoint is whole: take every good record there is, in the order of time.
    pub(super) salvage: bool,
    /// Epochs of the checkpoints to read, then those of the journals, ascending.
    checkpoints: Vec<u64>,
    journals: Vec<u64>,
    /// Sequence of the first record that is not part of the state.
    limit: u64,
}

impl Plan {
    pub(super) fn choose(directory: &Directory, found: &Inventory, healed: &mut Vec<String>) -> Self {
        for &epoch in found.checkpoints.iter().rev() {
            match checkpoint::verify(&directory.checkpoint(epoch), epoch) {
                Ok(Some(_)) => return Self::from_base(found, epoch, u64::MAX),
                Ok(None) => healed.push(format!("checkpoint {epoch} is damaged")),
                Err(error) => healed.push(format!("checkpoint {epoch} cannot be read: {error}")),
            }
        }
        let nothing_yet = found.checkpoints.is_empty()
            && found.journals.iter().all(|&epoch| {
                Reader::open(&directory.journal(epoch), JOURNAL_MAGIC, epoch)
                    .is_ok_and(|reader| !reader.has_records())
            });
        if !nothing_yet {
            healed.push(format!(
                "no whole checkpoint among {}; what is readable is kept, the rest comes from the cloud",
                found.checkpoints.len()
            ));
        }
        let base = found.checkpoints.first().or(found.journals.first()).copied().unwrap_or(0);
        Self {
            base,
            salvage: !nothing_yet,
            checkpoints: found.checkpoints.clone(),
            journals: found.journals.clone(),
            limit: u64::MAX,
        }
    }

    fn from_base(found: &Inventory, base: u64, limit: u64) -> Self {
        let journals = found.journals.iter().copied().filter(|&epoch| epoch >= base).collect();
        Self { base, salvage: false, checkpoints: vec![base], journals, limit }
    }

    /// For the state of a running store, up to and with record `sequence`: from its last checkpoint, or the one before.
    pub(super) fn of_running(directory: &Directory, base: u64, sequence: u64) -> io::Result<Self> {
        let found = directory.inventory()?;
        for &epoch in found.checkpoints.iter().rev().filter(|epoch| **epoch <= base) {
            match checkpoint::verify(&directory.checkpoint(epoch), epoch) {
                Ok(Some(_)) => return Ok(Self::from_base(&found, epoch, sequence + 1)),
                Ok(None) => warn!(epoch, "the checkpoint is damaged"),
                Err(error) => warn!(epoch, %error, "the checkpoint cannot be read"),
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "no checkpoint is whole"))
    }
}

pub(super) struct Built {
    pub(super) index: Index,
    pub(super) summary: Summary,
    pub(super) collected: Collected,
    pub(super) loaded: Loaded,
}

/// Builds the index anew in sled directory `number`, or in memory when that cannot be.
pub(super) fn build(directory: &Directory, plan: &Plan, number: u64, outbox_bytes: u64) -> io::Result<Built> {
    let path = directory.index(number);
    let created = files::remove(&path).map_err(LoadError::from).and_then(|()| {
        let path = path.clone();
        let index = index::guarded(move || Index::open_sled(&path))?;
        fill(directory, plan, index, outbox_bytes)
    });
    match created {
        Ok(built) => return Ok(built),
        Err(error) => {
            warn!(error = %runtime::chain(&error), "sled cannot be built; the state is kept in memory for now");
        }
    }
    if let Err(error) = files::remove(&path) {
        warn!(%error, "a broken sled directory is left behind");
    }
    fill(directory, plan, Index::in_memory(), outbox_bytes).map_err(|error| match error {
        LoadError::Io(error) => error,
        LoadError::Index(error) => io::Error::other(error),
    })
}

fn fill(directory: &Directory, plan: &Plan, mut index: Index, outbox_bytes: u64) -> Result<Built, LoadError> {
    let mut collected = Collected::new(outbox_bytes);
    let filled = load(directory, plan, &mut index, &mut collected);
    let summarized = filled.and_then(|loaded| {
        let summary = summarize(&index)?;
        Ok((loaded, summary))
    });
    match summarized {
        Ok((loaded, summary)) => Ok(Built { index, summary, collected, loaded }),
        Err(error) => {
            index.discard();
            Err(error)
        }
    }
}

pub(super) struct Loaded {
    pub(super) next_sequence: u64,
    /// What was found damaged or missing.
    pub(super) notes: Vec<String>,
}

/// Applies every operation of the plan's files, oldest first.
fn load(
    directory: &Directory,
    plan: &Plan,
    index: &mut Index,
    collected: &mut Collected,
) -> Result<Loaded, LoadError> {
    let mut loaded = Loaded { next_sequence: 1, notes: Vec::new() };
    let mut epochs: Vec<u64> = plan.checkpoints.iter().chain(&plan.journals).copied().collect();
    epochs.sort_unstable();
    epochs.dedup();
    for epoch in epochs {
        if plan.checkpoints.contains(&epoch) {
            let path = directory.checkpoint(epoch);
            let read = collected.open(&path).map_err(LoadError::from).and_then(|file| {
                checkpoint::read(&path, epoch, |placed| apply(index, collected, &placed, file))
            });
            match read {
                Ok(found) => {
                    if let Some(header) = found.header {
                        loaded.next_sequence = loaded.next_sequence.max(header.sequence + 1);
                    }
                    if plan.salvage {
                        loaded.notes.push(format!("{} entries of checkpoint {epoch} kept", found.operations));
                    }
                }
                Err(LoadError::Io(error)) => {
                    loaded.notes.push(format!("checkpoint {epoch} cannot be read: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        if plan.journals.contains(&epoch) {
            load_journal(directory, plan, epoch, &mut loaded, (index, collected))?;
        } else {
            loaded.notes.push(format!("journal {epoch} is missing"));
        }
    }
    collected.finish();
    Ok(loaded)
}

fn apply(index: &mut Index, collected: &mut Collected, placed: &Placed, file: u32) -> Result<(), LoadError> {
    collected.apply(placed, file);
    Ok(index.apply(&placed.op)?)
}

fn load_journal(
    directory: &Directory,
    plan: &Plan,
    epoch: u64,
    loaded: &mut Loaded,
    (index, collected): (&mut Index, &mut Collected),
) -> Result<(), LoadError> {
    let path = directory.journal(epoch);
    let opened =
        Reader::open(&path, JOURNAL_MAGIC, epoch).and_then(|reader| Ok((reader, collected.open(&path)?)));
    let (reader, file) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            loaded.notes.push(format!("journal {epoch} cannot be read: {error}"));
            return Ok(());
        }
    };
    let first = if let Some(header) = reader.header {
        header.sequence
    } else {
        loaded.notes.push(format!("the header of journal {epoch} is damaged"));
        loaded.next_sequence
    };
    if first > loaded.next_sequence && !plan.salvage {
        loaded.notes.push(format!("records {} to {} are missing", loaded.next_sequence, first - 1));
    }
    let limit = plan.journals.iter().filter(|&&other| other > epoch);
    let limit = limit.filter_map(|&other| begins_with(directory, other)).fold(plan.limit, u64::min);
    let start = first.max(loaded.next_sequence.min(limit));
    let start = if plan.salvage { first } else { start };
    let replayed = reader
        .replay(start, limit, |ops| ops.iter().try_for_each(|placed| apply(index, collected, placed, file)));
    let replayed = match replayed {
        Err(LoadError::Io(error)) => {
            loaded.notes.push(format!("journal {epoch} cannot be read to its end: {error}"));
            return Ok(());
        }
        other => other?,
    };
    for (from, to) in &replayed.lost {
        loaded.notes.push(format!("records {from} to {} of journal {epoch} are damaged", to - 1));
    }
    if replayed.cut > 0 && limit == u64::MAX {
        info!(epoch, bytes = replayed.cut, "unfinished tail of the journal cut off");
        loaded.notes.push(format!("journal {epoch} ended in {} bytes that are no record", replayed.cut));
    }
    loaded.next_sequence = loaded.next_sequence.max(replayed.next_sequence);
    Ok(())
}

/// Sequence of the first record of an epoch that was really begun: what an older journal has from there on was never
/// acknowledged. An empty journal without a checkpoint is what is left of an attempt.
fn begins_with(directory: &Directory, epoch: u64) -> Option<u64> {
    let reader = Reader::open(&directory.journal(epoch), JOURNAL_MAGIC, epoch).ok()?;
    let begun = reader.has_records() || directory.checkpoint(epoch).exists();
    reader.header.filter(|_| begun).map(|header| header.sequence)
}
