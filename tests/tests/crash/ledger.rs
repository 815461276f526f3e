//! What an edge may hold, and nothing else: read from cloudcore's trace of what it sent and what was acked.
//!
//! Batches are applied whole and in order, so after a crash the store holds what was there before, all that was acked,
//! and then some number of the batches that were under way. A session's batches that were never acked may be there or not
//! when the next session begins, so for a while several states are possible; looking at the store leaves one.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Resource versions by key.
pub(crate) type State = BTreeMap<String, u64>;

/// For cloudcore's `/loglevel`.
pub(crate) const LOG_FILTER: &str = "info,cloudcore::cloudhub::session=trace";
const TARGET: &str = " cloudcore::cloudhub::session: ";

type Change = (String, Option<u64>);

pub(crate) struct Ledger {
    log: PathBuf,
    offset: u64,
    /// What the store may have held when the batches of `under_way` were sent.
    possible: Vec<State>,
    session: String,
    under_way: Vec<(u64, Vec<Change>)>,
    /// Batches and changes that were acked so far.
    pub(crate) acked: (usize, usize),
}

impl Ledger {
    /// Begins at the end of cloudcore's log, with what the store holds now.
    pub(crate) fn begin(log: &Path, held: State) -> Result<Self> {
        let offset = log.metadata().with_context(|| format!("no log {}", log.display()))?.len();
        Ok(Self {
            log: log.to_owned(),
            offset,
            possible: vec![held],
            session: String::new(),
            under_way: Vec::new(),
            acked: (0, 0),
        })
    }

    /// Takes in what cloudcore has logged since the last call.
    pub(crate) fn read(&mut self) -> Result<()> {
        let mut log = File::open(&self.log)?;
        ensure!(log.metadata()?.len() >= self.offset, "cloudcore's log was cut; the trace is lost");
        log.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        log.read_to_string(&mut text)?;
        // The last line may be in the middle of being written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.offset += whole as u64;
        for line in text[..whole].lines() {
            self.take(line).with_context(|| line.to_owned())?;
        }
        Ok(())
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let Some((span, event)) = line.split_once(TARGET) else { return Ok(()) };
        let session = field(span, "session").unwrap_or_default();
        let session = session.trim_end_matches(['}', ':']);
        let number = |name| field(event, name).and_then(|text| text.parse::<u64>().ok());
        let change = if event.starts_with("batch acked ") {
            let seq = number("seq").context("an ack has a number")?;
            if session == self.session {
                self.settle(seq);
            }
            return Ok(());
        } else if event.starts_with("put sent ") || event.starts_with("patch sent ") {
            Some(number("version").context("a version was sent")?)
        } else if event.starts_with("delete sent ") {
            None
        } else {
            return Ok(());
        };
        if session != self.session {
            self.possible = self.candidates();
            self.under_way.clear();
            session.clone_into(&mut self.session);
        }
        let seq = number("seq").context("a batch has a number")?;
        let key = field(event, "key").context("a change has a key")?.to_owned();
        match self.under_way.last_mut() {
            Some((last, changes)) if *last == seq => changes.push((key, change)),
            _ => self.under_way.push((seq, vec![(key, change)])),
        }
        Ok(())
    }

    /// All batches up to this one are in the store.
    fn settle(&mut self, seq: u64) {
        let count = self.under_way.iter().take_while(|(of, _)| *of <= seq).count();
        for (_, changes) in self.under_way.drain(..count) {
            self.acked.0 += 1;
            self.acked.1 += changes.len();
            for state in &mut self.possible {
                apply(state, &changes);
            }
        }
        self.possible.sort_unstable();
        self.possible.dedup();
    }

    /// Every state that the store may be in.
    fn candidates(&self) -> Vec<State> {
        let mut candidates = self.possible.clone();
        for state in &self.possible {
            let mut state = state.clone();
            for (_, changes) in &self.under_way {
                apply(&mut state, changes);
                candidates.push(state.clone());
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }

    /// Holds what was found in the store, with no edgecore running, to what may be there. From then on that is what it held.
    pub(crate) fn check(&mut self, found: State) -> Result<()> {
        let candidates = self.candidates();
        if !candidates.contains(&found) {
            let nearest = candidates.iter().map(|state| difference(state, &found)).min_by_key(Vec::len);
            bail!(
                "the store is in none of the {} states that it may be in; the nearest, and what is there:\n{}",
                candidates.len(),
                nearest.unwrap_or_default().join("\n")
            );
        }
        self.possible = vec![found];
        self.under_way.clear();
        Ok(())
    }
}

fn apply(state: &mut State, changes: &[Change]) {
    for (key, version) in changes {
        match version {
            Some(version) => state.insert(key.clone(), *version),
            None => state.remove(key),
        };
    }
}

fn difference(expected: &State, found: &State) -> Vec<String> {
    let keys = expected.keys().chain(found.keys().filter(|key| !expected.contains_key(*key)));
    keys.filter(|key| expected.get(*key) != found.get(*key))
        .map(|key| format!("{key}: {:?}, {:?}", expected.get(key), found.get(key)))
        .collect()
}

/// The value of `name=value` in a line of the text log.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let words = text.split([' ', '{']);
    words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}
