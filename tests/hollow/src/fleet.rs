//! All hollow nodes of a process.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use crds::componentconfig::sync::SyncStrategy;
use edgecore::edgehub::{HubConfig, HubStore as _};
use proto::ResourceKey;
use runtime::link::quic::Dialer;
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    changes::Changes,
    identity::Identities,
    node::{Node, View},
    store::NodeStore,
};

/// Connections over QUIC that share a socket: the kernel keeps a few hundred KiB of what nobody has read yet, and a fleet
/// that comes back at once sends more.
const NODES_A_SOCKET: usize = 128;
/// Reasons told apart, for the summary to be read.
const MAX_REASONS: usize = 32;
/// For the goodbyes.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    Quic,
    Websocket,
    /// As edges do: QUIC first, the WebSocket where it does not get through
    Auto,
}

pub struct FleetConfig {
    /// cloudcore's `HOST:PORT`.
    pub server: String,
    pub nodes: usize,
    /// The nodes are `PREFIX-0` and on.
    pub prefix: String,
    pub transport: Transport,
    pub heartbeat: Duration,
    /// Nodes that are started in a second.
    pub ramp: f64,
    pub identities: Identities,
}

impl FleetConfig {
    pub fn names(&self) -> Vec<String> {
        (0..self.nodes).map(|number| name(&self.prefix, number)).collect()
    }
}

/// Of the node with this number.
pub(crate) fn name(prefix: &str, number: usize) -> String {
    format!("{prefix}-{number}")
}

/// A running fleet. Dropped, it is gone without a word; see [`Fleet::stop`].
pub struct Fleet {
    prefix: String,
    nodes: Vec<View>,
    /// Of each node: what was counted already, and over what it went.
    counted: Vec<(u64, u64, &'static str)>,
    carried: BTreeMap<&'static str, Carried>,
    errors: Arc<Errors>,
    changes: Arc<Changes>,
    begun: Instant,
    stop: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

/// Bytes of frames, before TLS and the transport add theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    pub up: u64,
    pub down: u64,
}

/// The fleet at a moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Since the start.
    pub seconds: f64,
    pub nodes: usize,
    /// The cloud has let them in.
    pub connected: usize,
    /// Their stores hold all that the cloud wants there.
    pub synced: usize,
    /// The API server has taken their status in this session.
    pub ready: usize,
    pub quic: usize,
    pub websocket: usize,
    /// Sessions since the start.
    pub sessions: u64,
    /// Objects that were put or deleted since the start.
    pub deltas: u64,
    /// The same by kind.
    pub kinds: BTreeMap<String, u64>,
    /// Pods that are said to run, or to have ended.
    pub pods: usize,
    /// By transport.
    pub bytes: BTreeMap<String, Carried>,
    /// Why sessions ended or did not begin.
    pub errors: BTreeMap<String, u64>,
}

/// How often what went wrong.
#[derive(Default)]
pub(crate) struct Errors(Mutex<BTreeMap<String, u64>>);

impl Errors {
    pub(crate) fn note(&self, reason: String) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = counts.contains_key(&reason) || counts.len() < MAX_REASONS;
        *counts.entry(if known { reason } else { "other".to_owned() }).or_default() += 1;
    }
}

impl Fleet {
    /// Starts all nodes, one after the other. To be called within a runtime.
    pub fn start(config: &FleetConfig) -> Result<Self> {
        if config.nodes == 0 || config.ramp <= 0.0 {
            bail!("a fleet has at least one node, and starts more than none in a second");
        }
        config.identities.prepare(&config.names())?;
        let (errors, changes) = (Arc::<Errors>::default(), Arc::<Changes>::default());
        let stop = CancellationToken::new();
        let mut dialer = Dialer::default();
        let (mut nodes, mut tasks) = (Vec::new(), JoinSet::new());
        for (number, name) in config.names().into_iter().enumerate() {
            if number % NODES_A_SOCKET == 0 && config.transport != Transport::Websocket {
                dialer = socket().context("failed to open a socket for QUIC")?;
            }
            let store = NodeStore::new(Arc::clone(&changes));
            let hub = hub_config(config, name);
            let (node, view) =
                Node::new(hub, config.prefix.as_str().into(), &dialer, store, Arc::clone(&errors))?;
            nodes.push(view);
            let (stop, wait) = (stop.clone(), Duration::from_secs_f64(number as f64 / config.ramp));
            tasks.spawn(async move {
                tokio::select! {
                    () = time::sleep(wait) => node.run(stop).await,
                    () = stop.cancelled() => Ok(()),
                }
            });
        }
        let counted = vec![(0, 0, ""); nodes.len()];
        let carried = BTreeMap::new();
        Ok(Self {
            prefix: config.prefix.clone(),
            nodes,
            counted,
            carried,
            errors,
            changes,
            begun: Instant::now(),
            stop,
            tasks,
        })
    }

    /// What [`crate::changes`] counts for these nodes.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// Bytes are put down to the transport that a node has now, or had last.
    pub fn snapshot(&mut self) -> Snapshot {
        let mut snapshot = Snapshot {
            seconds: self.begun.elapsed().as_secs_f64(),
            nodes: self.nodes.len(),
            ..Snapshot::default()
        };
        for (node, counted) in self.nodes.iter().zip(&mut self.counted) {
            let state = node.state.borrow();
            snapshot.connected += usize::from(state.connected);
            snapshot.synced += usize::from(state.synced);
            snapshot.ready += usize::from(state.node_ready);
            snapshot.quic += usize::from(state.connected && state.transport == "quic");
            snapshot.websocket += usize::from(state.connected && state.transport == "websocket");
            snapshot.sessions += state.sessions;
            node.store.add_deltas(&mut snapshot.kinds);
            snapshot.pods += node.store.pods();
            let (up, down) = (node.traffic.sent(), node.traffic.received());
            let over = if state.transport.is_empty() { counted.2 } else { state.transport };
            let carried = self.carried.entry(over).or_default();
            carried.up += up - counted.0;
            carried.down += down - counted.1;
            *counted = (up, down, over);
        }
        snapshot.deltas = snapshot.kinds.values().sum();
        let named = self.carried.iter().filter(|(over, _)| !over.is_empty());
        snapshot.bytes = named.map(|(over, carried)| ((*over).to_owned(), *carried)).collect();
        snapshot.errors = self.errors.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        snapshot
    }

    /// Of what each node holds, as on cloudcore's page `/digestz`.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let digests = self.nodes.iter().enumerate();
        digests.map(|(number, node)| (name(&self.prefix, number), node.store.digest().to_string())).collect()
    }

    /// What the node with this number holds, as JSON.
    pub fn object(&self, node: usize, key: &ResourceKey) -> Option<Bytes> {
        let held = self.nodes.get(node)?.store.get(key);
        held.ok().flatten().map(|object| object.bytes)
    }

    /// Waits for a node to end, which none does by itself.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => error.into(),
            Some(Ok(Ok(()))) | None => anyhow::anyhow!("a node has ended"),
        }
    }

    /// Says goodbye on all links.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // Those that are left are dropped.
        drop(time::timeout(GRACE, all).await);
    }
}

pub(crate) fn hub_config(config: &FleetConfig, node: String) -> HubConfig {
    HubConfig {
        proxy: String::new(),
        proxy_ca_file: String::new(),
        identity: config.identities.paths(&node),
        node,
        server: config.server.clone(),
        websocket: config.transport != Transport::Quic,
        quic: (config.transport != Transport::Websocket).then(|| config.server.clone()),
        quic_probes: (Duration::from_mins(1), Duration::from_hours(1)),
        heartbeat: config.heartbeat,
        handshake_timeout: Duration::from_secs(30),
        write_deadline: Duration::from_secs(15),
        sync: SyncStrategy::default(),
        token_file: PathBuf::new(),
        token: config.identities.token().to_owned(),
    }
}

pub(crate) fn socket() -> Result<Dialer> {
    Ok(Dialer::shared(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)?)
}
