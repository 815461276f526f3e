//! The heartbeat of a connected node: its Lease in `kube-node-lease`, renewed for as long as its session lives.
//!
//! It says, too, where a node is that speaks QUIC: [`addresses`] is how a cloudcore that has just started finds those of the
//! process before it.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use kube::Client;
use runtime::backoff::{Backoff, jitter};
use serde_json::{Value, json};
use tokio::time;
use tracing::warn;

use super::api::{self, Failure, Patch};

const COLLECTION: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const NAMESPACE: &str = "kube-node-lease";
/// From where a node speaks QUIC, as in `192.0.2.7:40213`.
const ADDRESS: &str = "skerry.io/quic-address";
/// Leases a page.
const PAGE: u32 = 500;
/// Who has not renewed for so long has gone, or given up.
const RECENT: SignedDuration = SignedDuration::from_mins(5);

/// How leases are kept.
#[derive(Debug, Clone, Copy)]
pub struct LeaseConfig {
    pub renew_every: Duration,
    pub duration: Duration,
}

/// Renews the node's Lease until it is dropped, which the end of the session does at once.
///
/// The first renewal is immediate; later ones are spread over the last tenth of the interval, so that nodes that came back
/// together do not stay in step.
pub async fn keep(
    client: Client,
    node: String,
    uid: impl Fn() -> Option<String> + Send,
    address: impl Fn() -> Option<SocketAddr> + Send,
    config: LeaseConfig,
) -> Infallible {
    let mut backoff = Backoff::new(Duration::from_millis(200), config.renew_every / 2);
    loop {
        let lease = lease(&node, uid().as_deref(), address(), config.duration, Timestamp::now());
        // On the heap: it is much larger than what waits for the next time.
        match Box::pin(renew(&client, &node, &lease)).await {
            Ok(()) => {
                backoff.reset();
                let fixed = config.renew_every * 4 / 5;
                time::sleep(fixed + jitter(config.renew_every / 5)).await;
            }
            Err(error) => {
                let delay = backoff.next_delay();
                warn!(error = %runtime::chain(&error), ?delay, "failed to renew the node's lease; trying again");
                time::sleep(delay).await;
            }
        }
    }
}

async fn renew(client: &Client, node: &str, lease: &Value) -> Result<(), Failure> {
    match api::patch(client, &format!("{COLLECTION}/{node}"), Patch::Merge, lease).await {
        Err(Failure::Refused { code: 404, .. }) => {}
        other => return other.map(drop),
    }
    match api::create(client, COLLECTION, lease).await {
        // Somebody else made it in between: the next renewal is due soon enough.
        Err(Failure::Refused { code: 409, .. }) => Ok(()),
        other => other.map(drop),
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
