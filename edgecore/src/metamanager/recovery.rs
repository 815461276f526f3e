//! Getting the state back from the files, whatever a crash, a power cut or a bad sector made of them.

use std::io;

use proto::Digest;
use tracing::warn;

use super::{
    checkpoint,
    clean_stop::{Files, Marker},
    files::{self, Directory, Inventory},
    index::{self, Index},
    journal::Journal,
    replay::{self, Plan},
    reports::Collected,
    summary::summarize,
};

/// Ids to skip when records may be missing that had been handed out: more than a site makes in a lifetime of one
/// epoch, and there are 2^24 such leaps in a 64-bit number that the wire encodes in at most ten bytes.
const ID_LEAP: u64 = 1 << 40;

/// The state, ready for use.
pub(super) struct Recovered {
    pub(super) index: Index,
    /// Number of the directory that sled is in.
    pub(super) index_number: u64,
    pub(super) digest: Digest,
    pub(super) collected: Collected,
    /// Of the last record in the state.
    pub(super) sequence: u64,
    /// Checkpoint from which, with the journals since, this state can be had again.
    pub(super) base: u64,
    pub(super) highest_epoch: u64,
    /// After a clean stop; else a new one has to be started, with a checkpoint, before anything is written.
    pub(super) journal: Option<Journal>,
    pub(super) live_bytes: u64,
    pub(super) clean: bool,
    pub(super) healed: Vec<String>,
}

/// Brings the state back. Fails only when the directory cannot be read or written at all.
pub(super) fn recover(directory: &Directory, outbox_bytes: u64) -> io::Result<Recovered> {
    let found = directory.inventory()?;
    let marker = match std::fs::read(directory.marker()) {
        Ok(bytes) => Some(Marker::decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(%error, "the clean-stop marker cannot be read");
            Some(None)
        }
    };
    // From here on the stop is no longer clean, whatever happens next.
    let read_only = match tidy(directory, marker.is_some()) {
        Ok(()) => false,
        // A marker that stays is outdated as soon as there is a newer journal.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => true,
        Err(error) => return Err(error),
    };
    let mut healed = Vec::new();
    match marker {
        // sled writes when it is opened.
        _ if read_only => {}
        Some(Some(marker)) => match reopen(directory, &found, marker, outbox_bytes) {
            Ok(recovered) => {
                remove_indexes(directory, &found, Some(recovered.index_number));
                return Ok(recovered);
            }
            Err(reason) => {
                warn!(reason, "sled is set aside and built again");
                healed.push(format!("the store is not as the last clean stop left it: {reason}"));
            }
        },
        Some(None) => healed.push("the clean-stop marker is damaged".to_owned()),
        None => {}
    }
    rebuild(directory, &found, outbox_bytes, healed)
}

fn tidy(directory: &Directory, marked: bool) -> io::Result<()> {
    if marked {
        files::remove(&directory.marker())?;
        directory.sync()?;
    }
    files::remove(&directory.scratch())
}

/// Takes sled's directory as it is, if it is what the marker says in every entry.
fn reopen(
    directory: &Directory,
    found: &Inventory,
    marker: Marker,
    outbox_bytes: u64,
) -> Result<Recovered, String> {
    let Marker { epoch, sequence, index_number, next_report, dropped_reports, entries, fingerprint, files } =
        marker;
    if found.checkpoints.last() != Some(&epoch) || found.journals.last() != Some(&epoch) {
        return Err("there is a newer checkpoint or journal, or the marker's own is missing".to_owned());
    }
    let journal = Journal::open_empty(directory, epoch, sequence + 1).map_err(|error| error.to_string())?;
    let journal = journal.ok_or("the journal is not empty")?;
    let path = directory.index(index_number);
    let present = Files::read(&path).map_err(|error| format!("it cannot be read: {error}"))?;
    if present != files {
        return Err("its files have changed".to_owned());
    }
    let mut collected = collect(directory, epoch, outbox_bytes)?;
    collected.outbox.next = collected.outbox.next.max(next_report);
    collected.outbox.dropped = dropped_reports;
    let opened = index::guarded(move || {
        let index = Index::open_sled(&path)?;
        let position = index.position()?;
        let summary = summarize(&index)?;
        Ok((index, position, summary))
    });
    let (index, position, summary) = opened.map_err(|error| runtime::chain(&error).to_string())?;
    if position != Some((epoch, sequence)) || summary.entries != entries || summary.fingerprint != fingerprint
    {
        index.discard();
        return Err("its content is not that of the marker".to_owned());
    }
    Ok(Recovered {
        index,
        index_number,
        digest: summary.digest,
        sequence,
        base: epoch,
        highest_epoch: epoch,
        journal: Some(journal),
        live_bytes: summary.live_bytes + collected.reports.bytes(),
        collected,
        clean: true,
        healed: Vec::new(),
    })
}

/// The outbox, of which sled has nothing.
fn collect(directory: &Directory, epoch: u64, outbox_bytes: u64) -> Result<Collected, String> {
    let path = directory.checkpoint(epoch);
    let mut collected = Collected::new(outbox_bytes);
    let read = collected.open(&path).and_then(|file| {
        checkpoint::read(&path, epoch, |placed| {
            collected.apply(&placed, file);
            Ok::<_, io::Error>(())
        })
    });
    match read {
        Ok(found) if found.whole => Ok(collected),
        Ok(_) => Err(format!("checkpoint {epoch} is damaged")),
        Err(error) => Err(format!("checkpoint {epoch} cannot be read: {error}")),
    }
}

fn rebuild(
    directory: &Directory,
    found: &Inventory,
    outbox_bytes: u64,
    mut healed: Vec<String>,
) -> io::Result<Recovered> {
    let plan = Plan::choose(directory, found, &mut healed);
    let number = found.indexes.last().map_or(1, |last| last + 1);
    remove_indexes(directory, found, None);
    let built = replay::build(directory, &plan, number, outbox_bytes)?;
    let mut collected = built.collected;
    let outbox = &mut collected.outbox;
    if !built.loaded.notes.is_empty() || plan.salvage {
        outbox.next = outbox.next.saturating_add(ID_LEAP);
    }
    healed.extend(built.loaded.notes);
    Ok(Recovered {
        index: built.index,
        index_number: number,
        digest: built.summary.digest,
        sequence: built.loaded.next_sequence.saturating_sub(1),
        base: plan.base,
        highest_epoch: found.highest_epoch(),
        journal: None,
        live_bytes: built.summary.live_bytes + collected.reports.bytes(),
        collected,
        clean: found.checkpoints.is_empty() && found.journals.is_empty(),
        healed,
    })
}

/// The directories of earlier sleds are of no use: what they hold is in the checkpoint and the journal.
fn remove_indexes(directory: &Directory, found: &Inventory, keep: Option<u64>) {
    for &number in found.indexes.iter().filter(|&&number| Some(number) != keep) {
        if let Err(error) = files::remove(&directory.index(number)) {
            warn!(number, %error, "an old sled directory is left behind");
        }
    }
}
