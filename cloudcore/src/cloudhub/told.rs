//! What a node's edge has said of how the node and its pods are, as long as it is connected: whatever else comes to stand in
//! the API is written over, as a kubelet does with its pods.

use std::collections::HashMap;

use bytes::Bytes;
use proto::{
    ResourceKey, codec, dictionary,
    message::{Body, Report, Reports},
};

use super::frames;
use crate::edgecontroller::{claim::Claim, index::Index};

/// A status that the API server has taken.
#[derive(Debug)]
pub(super) struct Told {
    /// The report as a frame: it is needed once in a long while, and a fifth as long.
    frame: Bytes,
    print: u64,
    /// It is to be written again, and that has not ended yet.
    healing: bool,
    /// The print that was written over last. Where it is there again, others add to the status, or the API server writes it in another
    /// way: it is left so until it changes.
    tried: Option<u64>,
}

/// By the key of what it is about, the newest of each.
#[derive(Debug, Default)]
pub(super) struct StatusesTold(HashMap<String, Told>);

impl Told {
    /// `None` if the report is too long for a frame, which none is that came in one.
    pub(super) fn new(report: Report, print: u64) -> Option<Self> {
        let frame =
            frames::encode(Body::Reports(Reports { reports: vec![report] }), dictionary::NEWEST).ok()?;
        // As much room as it takes.
        Some(Self { frame: Bytes::copy_from_slice(&frame), print, healing: false, tried: None })
    }
}

impl StatusesTold {
    /// What has come of the newest report of a status: `None`, if it was refused.
    pub(super) fn note(&mut self, key: String, told: Option<Told>) {
        match told {
            Some(mut told) => {
                told.tried = self
                    .0
                    .get(&key)
                    .filter(|before| before.print == told.print)
                    .and_then(|before| before.tried);
                self.0.insert(key, told);
            }
            None => drop(self.0.remove(&key)),
        }
    }

    /// The report of this key that is to be made again.
    pub(super) fn report(&self, key: &str) -> Option<Report> {
        match codec::decode(self.0.get(key)?.frame.clone()) {
            Ok(Body::Reports(reports)) => reports.reports.into_iter().next(),
            _ => None,
        }
    }

    /// The keys of those that are not so in the API, as far as the index, which is complete, knows. Each is told once, until
    /// something is [noted](Self::note).
    pub(super) fn astray(&mut self, index: &Index, claim: &Claim, is_here: bool) -> Vec<String> {
        let mut astray = Vec::new();
        self.0.retain(|text, told| {
            let Ok(key) = text.parse::<ResourceKey>() else { return false };
            let is_node = key.kind() == "Node";
            let Some((print, version)) = index.status(&key).or(is_node.then_some((None, 0))) else {
                return false;
            };
            // Else what this session has written is still to be heard of.
            let is_heard = version == 0 || claim.newest(&key, version) == version;
            let differs = if is_here {
                is_heard && print != Some(told.print)
            } else {
                is_node && index.node(key.name()).is_none_or(|node| node.ready.as_deref() == Some("Unknown"))
            };
            let held = print.unwrap_or_default();
            if held == told.print {
                told.tried = None;
            }
            if differs && !told.healing && told.tried != Some(held) {
                told.healing = true;
                told.tried = Some(held);
                astray.push(text.clone());
            }
            true
        });
        if self.0.is_empty() {
            self.0 = HashMap::new();
        }
        astray
    }
}
