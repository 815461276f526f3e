//! The heartbeat of a connected node: its Lease in `kube-node-lease`, renewed for as long as its session lives.

use std::{convert::Infallible, time::Duration};

use jiff::Timestamp;
use kube::Client;
use runtime::backoff::{Backoff, jitter};
use serde_json::{Value, json};
use tokio::time;
use tracing::warn;

use super::api::{self, Failure, Patch};

const NAMESPACE: &str = "kube-node-lease";

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
    config: LeaseConfig,
) -> Infallible {
    let mut backoff = Backoff::new(Duration::from_millis(200), config.renew_every / 2);
    loop {
        match renew(&client, &node, uid().as_deref(), config.duration).await {
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

async fn renew(client: &Client, node: &str, uid: Option<&str>, duration: Duration) -> Result<(), Failure> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
    let lease = lease(node, uid, duration, Timestamp::now());
    match api::patch(client, &format!("{path}/{node}"), Patch::Merge, &lease).await {
        Err(Failure::Refused { code: 404, .. }) => {}
        other => return other.map(drop),
    }
    match api::create(client, &path, &lease).await {
        // Somebody else made it in between: the next renewal is due soon enough.
        Err(Failure::Refused { code: 409, .. }) => Ok(()),
        other => other.map(drop),
    }
}

fn lease(node: &str, uid: Option<&str>, duration: Duration, now: Timestamp) -> Value {
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": node, "namespace": NAMESPACE},
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_what_the_node_controller_reads() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let lease = lease("n", Some("u"), Duration::from_secs(40), now);
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
        assert_eq!(lease["spec"]["renewTime"], "2023-11-14T22:13:20.000000Z");
        assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "u");
    }
}
