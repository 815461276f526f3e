//! What has gone over a link, by direction and lane: into the metrics of all links, and for the page of this one.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::metrics::counter::Counter;
use proto::{Lane, session::CLASSES};
use runtime::link::Link;
use serde_json::{Value, json};

use super::held::Held;
use crate::metrics::{BytesLabels, Metrics};

/// Shared by a session and whoever looks at it.
#[derive(Debug)]
pub struct Traffic {
    peer: SocketAddr,
    transport: &'static str,
    sent: Bytes,
    received: Bytes,
    held: Held,
}

#[derive(Debug)]
struct Bytes {
    own: [AtomicU64; Lane::ALL.len()],
    of_all: [Counter; Lane::ALL.len()],
}

impl Bytes {
    fn new(metrics: &Metrics, direction: &'static str) -> Self {
        let of_all = Lane::ALL
            .map(|lane| metrics.bytes.get_or_create_owned(&BytesLabels { direction, lane: lane.name() }));
        Self { own: Default::default(), of_all }
    }

    fn add(&self, lane: Lane, bytes: usize) {
        self.own[lane as usize].fetch_add(bytes as u64, Ordering::Relaxed);
        self.of_all[lane as usize].inc_by(bytes as u64);
    }

    fn page(&self) -> Value {
        Lane::ALL
            .into_iter()
            .map(|lane| (lane.name().to_owned(), json!(self.own[lane as usize].load(Ordering::Relaxed))))
            .collect()
    }
}

impl Traffic {
    pub fn of(link: &Link, metrics: &Metrics) -> Arc<Self> {
        Self::new(link.peer, link.transport, metrics)
    }

    #[cfg(test)]
    pub(crate) fn of_nobody() -> Arc<Self> {
        Self::new(([127, 0, 0, 1], 1).into(), "none", &Metrics::default())
    }

    fn new(peer: SocketAddr, transport: &'static str, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            peer,
            transport,
            sent: Bytes::new(metrics, "sent"),
            received: Bytes::new(metrics, "received"),
            held: Held::new(metrics),
        })
    }

    pub fn sent(&self, lane: Lane, bytes: usize) {
        self.sent.add(lane, bytes);
    }

    pub fn received(&self, lane: Lane, bytes: usize) {
        self.received.add(lane, bytes);
    }

    /// So many objects of each class wait.
    pub fn holds(&self, held: [usize; CLASSES]) {
        self.held.set(held);
    }

    /// For people: `peer` is the address from which the link was opened.
    pub fn page(&self) -> Value {
        json!({
            "peer": self.peer.to_string(),
            "transport": self.transport,
            "sentBytes": self.sent.page(),
            "receivedBytes": self.received.page(),
            "heldObjects": self.held.page(),
        })
    }
}
