//! Which session may write how a node and its pods are.
//!
//! A node has one session at a time, but a cloudcore may not have noticed that its own is over: it was stopped, or the API server was
//! out of its reach, and what it has begun to write is written late. No older state takes the place of a newer one, because
//!
//! - a session begins with a claim, which it writes into the node's Lease ([`super::lease`]), and then calls the edge. From the
//!   answer on it is known that newer sessions claim later; before, no state is written.
//! - each state is written over a version of its object that is older than the claim of any newer session: one that had been seen
//!   when the claim was last found in its place, or the one that this session has written itself. Where a newer session has written
//!   since, there is another version, and the API server refuses.
//! - a claim is found in its place by a renewal, which is conditional on the Lease's last version, or by reading it.
//! - who finds another one there calls the edge: where it answers, the other session is the older one, whose claim came late.
//!
//! Each attempt to write a claim is a claim of its own, because one that was given up may still arrive.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use kube::Client;
use proto::ResourceKey;
use ring::rand::{SecureRandom, SystemRandom};
use runtime::token::hex;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use super::{
    api::Failure,
    index::Index,
    lease,
    objects::{DEVICE, DEVICE_STATUS, RULE},
};

/// Makes the claims of one process.
#[derive(Debug)]
pub struct Claims {
    process: Box<str>,
    made: AtomicU64,
}

/// The kernel has no random bytes, so that this process cannot be told from others.
#[derive(Debug, thiserror::Error)]
#[error("the kernel gives no random bytes for the claims of this process")]
pub struct NoRandomness;

impl Claims {
    pub fn new() -> Result<Self, NoRandomness> {
        let mut process = [0; 8];
        SystemRandom::new().fill(&mut process).map_err(|_| NoRandomness)?;
        Ok(Self { process: hex(&process).into(), made: AtomicU64::new(0) })
    }
}

/// How far the caches are, by kind of what is reported.
#[derive(Debug, Clone, Copy, Default)]
pub struct Horizon {
    pods: u64,
    nodes: u64,
    devices: u64,
    device_statuses: u64,
    rules: u64,
}

impl Horizon {
    pub fn of(index: &Index) -> Self {
        Self {
            pods: index.newest("Pod"),
            nodes: index.newest("Node"),
            devices: index.newest(DEVICE),
            device_statuses: index.newest(DEVICE_STATUS),
            rules: index.newest(RULE),
        }
    }

    fn at(&mut self, key: &ResourceKey) -> &mut u64 {
        match key.kind() {
            "Node" => &mut self.nodes,
            DEVICE => &mut self.devices,
            DEVICE_STATUS => &mut self.device_statuses,
            RULE => &mut self.rules,
            _ => &mut self.pods,
        }
    }
}

/// One session's.
#[derive(Debug)]
pub struct Claim {
    claims: Arc<Claims>,
    held: Mutex<Held>,
    /// One question about the Lease answers all who wait for it.
    asking: AsyncMutex<()>,
    /// There is something to do for the session.
    wake: Notify,
    answered: Notify,
}

/// Of the edge, for the claim.
#[derive(Debug, Default, PartialEq, Eq)]
enum Call {
    #[default]
    None,
    Wanted,
    Made,
    Answered,
}

#[derive(Debug, Default)]
struct Held {
    call: Call,
    /// The claim's number, from the edge's answer until another claim is found.
    number: Option<u64>,
    /// What was there when the claim was last found in its place.
    verified: Horizon,
    /// What this session has written beyond that.
    written: HashMap<ResourceKey, u64>,
}

impl Claim {
    pub fn new(claims: Arc<Claims>) -> Self {
        Self {
            claims,
            held: Mutex::default(),
            asking: AsyncMutex::default(),
            wake: Notify::new(),
            answered: Notify::new(),
        }
    }

    /// Whether states may be written.
    pub fn stands(&self) -> bool {
        self.held().number.is_some()
    }

    /// Until the session has to look at [`wants_call`](Self::wants_call), and at what it may begin now.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The edge is to be called, once.
    pub fn wants_call(&self) -> bool {
        let mut held = self.held();
        let wanted = held.call == Call::Wanted;
        if wanted {
            held.call = Call::Made;
        }
        wanted
    }

    /// The edge has answered the call that was made last.
    pub fn edge_answered(&self) {
        let mut held = self.held();
        if held.call == Call::Made {
            held.call = Call::Answered;
            self.answered.notify_one();
        }
    }

    /// Has the session call the edge, and waits for its answer.
    pub(super) async fn call(&self) {
        self.held().call = Call::Wanted;
        self.wake.notify_one();
        // What is left of a call before this one wakes, too.
        while self.held().call != Call::Answered {
            self.answered.notified().await;
        }
    }

    /// The number of a claim that there has not been, and its text.
    pub(super) fn next(&self) -> (u64, String) {
        let number = self.claims.made.fetch_add(1, Relaxed);
        (number, self.text(number))
    }

    pub(super) fn text(&self, number: u64) -> String {
        format!("{}.{number}", self.claims.process)
    }

    /// The claim was written when `seen` had been seen, and the edge has answered since.
    pub(super) fn stand(&self, number: u64, seen: Horizon) {
        self.held().number = Some(number);
        self.found(number, seen);
        self.wake.notify_one();
    }

    /// Another's is in its place.
    pub(super) fn fall(&self) {
        self.held().number = None;
    }

    /// The claim was in its place when `seen` had been seen. That counts from the edge's answer on.
    pub(super) fn found(&self, number: u64, seen: Horizon) {
        let mut held = self.held();
        if held.number != Some(number) {
            return;
        }
        let Held { verified, written, .. } = &mut *held;
        verified.pods = verified.pods.max(seen.pods);
        verified.nodes = verified.nodes.max(seen.nodes);
        verified.devices = verified.devices.max(seen.devices);
        verified.device_statuses = verified.device_statuses.max(seen.device_statuses);
        written.retain(|key, version| *version > *verified.at(key));
        if written.is_empty() {
            *written = HashMap::new();
        }
    }

    /// The newer of the version that a cache has and that which this session has written.
    pub fn newest(&self, key: &ResourceKey, cached: u64) -> u64 {
        self.held().written.get(key).map_or(cached, |written| cached.max(*written))
    }

    /// The object has this version by a write of this session.
    pub fn wrote(&self, key: &ResourceKey, version: u64) {
        let mut held = self.held();
        if version > *held.verified.at(key) {
            held.written.insert(key.clone(), version);
        }
    }

    /// No newer session has made `version`, which has been seen.
    pub async fn confirm(
        &self,
        client: &Client,
        index: &Index,
        node: &str,
        key: &ResourceKey,
        version: u64,
    ) -> Result<(), Failure> {
        if self.covers(key, version) {
            return Ok(());
        }
        let _turn = self.asking.lock().await;
        if self.covers(key, version) {
            return Ok(());
        }
        let Some(number) = self.held().number else { return Err(Failure::Unclaimed) };
        let mut seen = Horizon::of(index);
        *seen.at(key) = version.max(*seen.at(key));
        let claim = lease::read(client, node).await?.and_then(|(_, claim)| claim);
        if claim.is_none_or(|claim| claim != self.text(number)) {
            return Err(Failure::Unclaimed);
        }
        self.found(number, seen);
        Ok(())
    }

    fn covers(&self, key: &ResourceKey, version: u64) -> bool {
        let mut held = self.held();
        version <= *held.verified.at(key) || held.written.get(key) == Some(&version)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing below panics while it holds this.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn claims() -> Arc<Claims> {
        Arc::new(Claims::new().unwrap())
    }

    #[test]
    fn what_was_seen_before_the_claim_was_found_is_covered_and_so_is_what_the_session_wrote() {
        let claim = Claim::new(claims());
        let [pod, node] = ["Pod/a/x", "Node//n"].map(|key| key.parse::<ResourceKey>().unwrap());
        claim.wrote(&pod, 3);
        claim.stand(1, Horizon { pods: 5, nodes: 0, ..Horizon::default() });
        assert!(claim.stands() && claim.held().written.is_empty());
        assert!(claim.covers(&pod, 5) && !claim.covers(&pod, 6) && !claim.covers(&node, 5));
        claim.wrote(&pod, 7);
        assert!(claim.covers(&pod, 7) && !claim.covers(&pod, 6) && !claim.covers(&pod, 8));
        assert_eq!((claim.newest(&pod, 5), claim.newest(&pod, 9), claim.newest(&node, 4)), (7, 9, 4));
        claim.found(0, Horizon { pods: 9, nodes: 9, ..Horizon::default() });
        claim.found(1, Horizon { pods: 6, nodes: 6, ..Horizon::default() });
        assert!(claim.covers(&pod, 7) && claim.covers(&node, 6));
        claim.found(1, Horizon { pods: 8, nodes: 0, ..Horizon::default() });
        assert!(claim.held().written.is_empty() && claim.covers(&pod, 8) && claim.covers(&node, 6));
    }

    #[test]
    fn an_answer_is_one_to_the_call_that_was_made_last() {
        let claim = Claim::new(claims());
        let mut first = std::pin::pin!(claim.call());
        assert!(first.as_mut().now_or_never().is_none() && claim.wants_call() && !claim.wants_call());
        claim.edge_answered();
        // The first one is not waited for any more.
        let mut second = std::pin::pin!(claim.call());
        assert!(second.as_mut().now_or_never().is_none());
        claim.edge_answered();
        assert!(second.as_mut().now_or_never().is_none(), "it has not been called yet");
        assert!(claim.wants_call());
        claim.edge_answered();
        assert!(second.now_or_never().is_some());
    }

    #[test]
    fn no_two_claims_are_alike() {
        let of_one = claims();
        let (one, two) = (Claim::new(Arc::clone(&of_one)), Claim::new(of_one));
        let other = Claim::new(claims());
        let texts = [one.next().1, one.next().1, two.next().1, other.next().1];
        assert!((1..4).all(|at| !texts[..at].contains(&texts[at])), "{texts:?}");
    }
}
