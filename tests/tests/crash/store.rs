//! Looking into an edge's store while no edgecore has it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use edgecore::metamanager::{Options, Store};

use super::ledger::State;

/// What a crash left, as the next edgecore will find it.
pub(crate) struct Found {
    pub(crate) held: State,
    pub(crate) digest: String,
    /// What was damaged.
    pub(crate) healed: Vec<String>,
}

/// Opens a copy, so that the next edgecore finds the store as the crash left it. sled is not copied: after a crash nobody
/// reads it. Blocks.
pub(crate) fn look(dir: &Path) -> Result<Found> {
    let copy = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    for entry in fs::read_dir(dir).with_context(|| format!("no store in {}", dir.display()))? {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().context("a listed file has a name")?;
            fs::copy(&path, copy.path().join(name))?;
        }
    }
    let store = Store::open(copy.path(), Options::default()).context("the store does not open")?;
    let inventory = store.inventory()?;
    let held: State = inventory
        .into_iter()
        .map(|(key, version)| (key.as_str().to_owned(), version.resource_version))
        .collect();
    let digest = store.digest();
    ensure!(
        digest.count == held.len() as u64,
        "the digest counts {}, the store holds {}",
        digest.count,
        held.len()
    );
    Ok(Found { held, digest: digest.to_string(), healed: store.opened().healed.clone() })
}

/// What a crash in the middle of an append leaves, and no damage: bytes that nobody was promised.
pub(crate) fn is_torn_tail(healed: &str) -> bool {
    healed.starts_with("journal ") && healed.ends_with(" bytes that are no record")
}
