//! The heartbeat of a connected node: its Lease in `kube-node-lease`, renewed for as long as its session lives.
//!
//! It holds the session's claim ([`super::claim`]). It says, too, where a node is that speaks QUIC: [`addresses`] is how a
//! cloudcore that has just started finds those of the process before it.

use std::{collections::HashMap, convert::Infallible, future, net::SocketAddr, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use kube::Client;
use runtime::backoff::{Backoff, jitter};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time,
};
use tracing::{info, warn};

use super::{
    api::{self, Answer, Failure, Patch},
    claim::{Claim, Horizon},
    index::Index,
};

const COLLECTION: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const NAMESPACE: &str = "kube-node-lease";
/// From where a node speaks QUIC, as in `192.0.2.7:40213`.
const ADDRESS: &str = "skerry.io/quic-address";
/// The claim of the node's session.
const CLAIM: &str = "skerry.io/session";
/// Leases a page.
const PAGE: u32 = 500;
/// An edge that does not answer for so long is with the session whose claim was found.
const ANSWER: Duration = Duration::from_secs(10);
/// Who has not renewed for so long has gone, or given up.
const RECENT: SignedDuration = SignedDuration::from_mins(5);

/// How leases are kept.
#[derive(Debug, Clone, Copy)]
pub struct LeaseConfig {
    pub renew_every: Duration,
    pub duration: Duration,
}

/// Keeps the Lease of a node for one session, with its claim; dropped at the end of the session.
pub struct Keeper<A> {
    pub client: Client,
    pub index: Arc<Index>,
    pub node: Arc<str>,
    pub claim: Arc<Claim>,
    /// Of all nodes: bounds how many Leases are written at once.
    pub turns: Arc<Semaphore>,
    pub address: A,
    pub config: LeaseConfig,
}

impl<A: Fn() -> Option<SocketAddr>> Keeper<A> {
    /// Claims the node and renews its Lease; returns when the edge does not answer, which is elsewhere then.
    pub async fn run(self) {
        loop {
            let (number, lease) = self.write_claim().await;
            let seen = Horizon::of(&self.index);
            let standing = async {
                self.claim.call().await;
                self.claim.stand(number, seen);
                future::pending::<Infallible>().await
            };
            tokio::select! {
                // The edge's answer comes too late then.
                () = self.renew(number, lease) => {}
                // Never ends.
                never = standing => match never {},
            }
            self.claim.fall();
            info!("the node's Lease has another claim, or has gone");
            if time::timeout(ANSWER, self.claim.call()).await.is_err() {
                return;
            }
        }
    }

    /// The claim's number and the Lease with it.
    async fn write_claim(&self) -> (u64, Seen) {
        let mut backoff = self.backoff();
        loop {
            let (number, text) = self.claim.next();
            let turn = self.turn().await;
            let mut lease = self.lease();
            lease["metadata"]["annotations"][CLAIM] = text.into();
            // On the heap: it is much larger than what waits for the next time.
            let written = Box::pin(put(&self.client, &self.node, &lease)).await;
            drop(turn);
            match written {
                Ok(seen) => return (number, seen),
                Err(failure) => time::sleep(warned(&failure, &mut backoff)).await,
            }
        }
    }

    /// Until the claim is not there any more.
    ///
    /// Renewals are spread over the last tenth of the interval, so that nodes that came back together do not stay in step.
    async fn renew(&self, number: u64, mut seen: Seen) {
        let mut backoff = self.backoff();
        let mut delay = self.next_renewal();
        loop {
            time::sleep(delay).await;
            // On the heap: it is much larger than what waits for the next time.
            match Box::pin(self.renew_once(number, &mut seen)).await {
                Ok(true) => {
                    backoff.reset();
                    delay = self.next_renewal();
                }
                Ok(false) => return,
                Err(failure) => delay = warned(&failure, &mut backoff),
            }
        }
    }

    /// False, if the claim is not there any more.
    async fn renew_once(&self, number: u64, seen: &mut Seen) -> Result<bool, Failure> {
        let _turn = self.turn().await;
        loop {
            let horizon = Horizon::of(&self.index);
            match self.write_over(number, seen).await {
                Ok(renewed) => {
                    *seen = renewed;
                    self.claim.found(number, horizon);
                    return Ok(true);
                }
                // Whoever touched it need not have claimed the node.
                Err(failure) if failure.is_conflict() => match read(&self.client, &self.node).await? {
                    Some((now, Some(claim))) if claim == self.claim.text(number) => *seen = now,
                    _ => return Ok(false),
                },
                Err(Failure::Refused { code: 404, .. }) => return Ok(false),
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Renews the Lease, if it is as it was seen.
    async fn write_over(&self, number: u64, seen: &Seen) -> Result<Seen, Failure> {
        let mut lease = self.lease();
        let path = path(&self.node);
        let metadata = &mut lease["metadata"];
        metadata["resourceVersion"] = (*seen.version).into();
        // Without its owner it would stay when the Node has gone.
        if seen.is_ours && metadata["ownerReferences"].is_array() {
            // A patch costs the API server a fifth more, and a Lease is most of what it has to do for a quiet node.
            // The uid keeps it from making a Lease that is not there (it creates on update).
            metadata["uid"] = (*seen.uid).into();
            let annotations = &mut metadata["annotations"];
            annotations[CLAIM] = self.claim.text(number).into();
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.retain(|_, value| !value.is_null());
            }
            Seen::of(&api::replace(&self.client, &path, &lease).await?)
        } else {
            Seen::of(&api::patch(&self.client, &path, Patch::Merge, &lease).await?)
        }
    }

    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed; without a permit the bound is all that is lost.
        self.turns.acquire().await.ok()
    }

    fn next_renewal(&self) -> Duration {
        let every = self.config.renew_every;
        every * 4 / 5 + jitter(every / 5)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(Duration::from_millis(200), self.config.renew_every / 2)
    }

    fn lease(&self) -> Value {
        let uid = self.index.node(&self.node).map(|node| node.uid);
        lease(&self.node, uid.as_deref(), (self.address)(), self.config.duration, Timestamp::now())
    }
}

/// When to try again.
fn warned(failure: &Failure, backoff: &mut Backoff) -> Duration {
    let delay = backoff.next_delay();
    warn!(error = %runtime::chain(failure), ?delay, "failed to write the node's lease; trying again");
    delay
}

/// Writes the Lease whatever it was.
async fn put(client: &Client, node: &str, lease: &Value) -> Result<Seen, Failure> {
    let path = path(node);
    match api::patch(client, &path, Patch::Merge, lease).await {
        Err(Failure::Refused { code: 404, .. }) => {}
        answer => return Seen::of(&answer?),
    }
    match api::create(client, COLLECTION, lease).await {
        // Somebody else made it in between.
        Err(Failure::Refused { code: 409, .. }) => {
            Seen::of(&api::patch(client, &path, Patch::Merge, lease).await?)
        }
        answer => Seen::of(&answer?),
    }
}

/// The Lease and the claim in it, if there is one.
pub(super) async fn read(client: &Client, node: &str) -> Result<Option<(Seen, Option<String>)>, Failure> {
    match api::read(client, &path(node)).await {
        Err(Failure::Refused { code: 404, .. }) => Ok(None),
        answer => {
            let mut metadata = answer?.part::<Held>()?.metadata;
            let claim = metadata.annotations.remove(CLAIM);
            Ok(Some((metadata.seen(), claim)))
        }
    }
}

fn path(node: &str) -> String {
    format!("{COLLECTION}/{node}")
}

/// A Lease, as far as it matters for writing it again.
pub(super) struct Seen {
    version: Box<str>,
    uid: Box<str>,
    /// Nothing is in it that others have put there.
    is_ours: bool,
}

impl Seen {
    fn of(answer: &Answer) -> Result<Self, Failure> {
        Ok(answer.part::<Held>()?.metadata.seen())
    }
}

#[derive(Deserialize)]
struct Held {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: Box<str>,
    uid: Box<str>,
    #[serde(default)]
    annotations: HashMap<String, String>,
    #[serde(default)]
    labels: HashMap<String, String>,
    #[serde(default)]
    finalizers: Vec<String>,
}

impl Metadata {
    fn seen(self) -> Seen {
        let Self { resource_version: version, uid, annotations, labels, finalizers } = self;
        let is_ours = annotations.keys().all(|key| key == ADDRESS || key == CLAIM)
            && labels.is_empty()
            && finalizers.is_empty();
        Seen { version, uid, is_ours }
    }
}

fn lease(
    node: &str,
    uid: Option<&str>,
    address: Option<SocketAddr>,
    duration: Duration,
    now: Timestamp,
) -> Value {
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": node,
            "namespace": NAMESPACE,
            // A null takes away what the last session has left.
            "annotations": {ADDRESS: address.map(|address| address.to_string())},
            // Nobody applies a Lease. Whose each field is costs the API server a quarter of a renewal to keep, and is two thirds of what
            // it stores; this has it forget that until somebody does.
            "managedFields": [{}],
        },
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": duration.as_secs().max(1),
            "renewTime": format!("{now:.6}"),
        },
    });
    // So that the Lease goes when the Node is deleted.
    if let Some(uid) = uid {
        lease["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]);
    }
    lease
}

/// Where nodes were lately that speak QUIC, with their names.
pub async fn addresses(client: &Client) -> Result<Vec<(String, SocketAddr)>, Failure> {
    let (mut addresses, mut next) = (Vec::new(), String::new());
    loop {
        let page = api::get(client, &format!("{COLLECTION}?limit={PAGE}&continue={next}")).await?;
        let items = page["items"].as_array();
        addresses.extend(items.into_iter().flatten().filter_map(|lease| recent(lease, Timestamp::now())));
        match page["metadata"]["continue"].as_str() {
            // The token is URL-safe base64, but for padding.
            Some(token) if !token.is_empty() => next = token.replace('=', "%3D"),
            _ => return Ok(addresses),
        }
    }
}

fn recent(lease: &Value, now: Timestamp) -> Option<(String, SocketAddr)> {
    let renewed: Timestamp = lease["spec"]["renewTime"].as_str()?.parse().ok()?;
    if now.duration_since(renewed) > RECENT {
        return None;
    }
    let address = lease["metadata"]["annotations"][ADDRESS].as_str()?.parse().ok()?;
    Some((lease["metadata"]["name"].as_str()?.to_owned(), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_what_the_node_controller_reads() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let address: SocketAddr = "192.0.2.7:4711".parse().unwrap();
        let lease = lease("n", Some("u"), Some(address), Duration::from_secs(40), now);
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
        assert_eq!(lease["spec"]["renewTime"], "2023-11-14T22:13:20.000000Z");
        assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(recent(&lease, now + RECENT), Some(("n".to_owned(), address)));
        assert_eq!(recent(&lease, now + RECENT + SignedDuration::from_secs(1)), None);
        assert_eq!(recent(&json!({}), now), None);
    }
}
