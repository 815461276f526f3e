//! edged: a kubelet in Rust over the Container Runtime Interface. It makes the node's pods what the store says they
//! are, adopts what runs already, and reports what is; with or without a cloud in reach.
//!
//! In: the desired objects of the store, what the runtime lists. Out: reports into the store's outbox, questions for
//! tokens. What survives a restart, a reboot, a power cut: the store, and the labels on the runtime's own objects;
//! a running container is never touched because edgecore was away.
//!
//! Reading order: [`pod`] what is desired, [`pod_state`] the decisions, [`pod_worker`] their execution, [`status`] what
//! is reported; [`cri`] and [`relist`] the runtime; [`volumes`], [`images`] (and [`image_gc`]), [`mod@env`] and their neighbours, what a
//! container is made of; [`node_status`] the node.

pub mod calls;
mod cgroup;
pub mod cri;
mod dispatcher;
pub mod dns;
pub mod env;
pub mod events;
mod expand;
pub mod hosts;
pub mod image_gc;
pub mod images;
pub mod labels;
pub mod logs;
pub mod node_status;
pub mod pod;
pub mod pod_state;
pub mod pod_worker;
pub mod probes;
pub mod relist;
pub mod requests;
pub mod resources;
pub mod security;
pub mod sources;
pub mod status;
pub mod tokens;
pub mod unsupported;
pub mod volumes;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use proto::{cri::v1::CgroupDriver, resource::KeyError};
use tokio::{
    sync::{OnceCell, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    calls::Calls,
    cri::{CriError, Runtime},
    dispatcher::Dispatcher,
    dns::DnsSettings,
    events::Events,
    image_gc::{ImageGc, ImageGcLimits},
    logs::{LogLimits, LogPaths},
    node_status::{NodeReporter, NodeStatusConfig},
    pod_worker::Shared,
    relist::{Poke, Relister},
    sources::Sources,
    status::NodeFacts,
    tokens::Tokens,
    volumes::Volumes,
};
use crate::{
    doors::Doors,
    edgehub::{Ask, HubState},
    metamanager::Store,
};

/// Kubelet's own bounds.
const LOG_LIMITS: LogLimits = LogLimits { max_bytes: 10 << 20, max_files: 5 };

/// What edged is told by the configuration.
#[derive(Clone, Debug)]
pub struct EdgedConfig {
    pub node: String,
    pub node_status: NodeStatusConfig,
    /// `unix:///run/containerd/containerd.sock`
    pub runtime_endpoint: String,
    /// `None`: asked of the runtime.
    pub cgroup_driver: Option<CgroupDriver>,
    /// Empty: the runtime's own. CRI has no call to choose it, so it is only checked to be there.
    pub sandbox_image: String,
    pub pods_dir: PathBuf,
    pub pod_logs_dir: PathBuf,
    pub container_logs_dir: PathBuf,
    /// Empty: pods use the node's own servers.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum EdgedError {
    #[error("failed to set up the client of the container runtime")]
    Runtime(#[from] CriError),
    #[error("the node's name cannot be used")]
    Node(#[from] KeyError),
    #[error("a task of edged ended: {0}")]
    Task(String),
}

/// See the module.
pub struct Edged {
    dispatcher: Dispatcher,
    relister: Relister,
    reporter: NodeReporter,
    image_gc: ImageGc,
    runtime: Runtime,
}

impl Edged {
    /// Touches neither the network nor the runtime.
    pub fn new(
        config: EdgedConfig,
        store: Store,
        cloud: mpsc::Sender<Ask>,
        hub: watch::Receiver<HubState>,
        doors: Doors,
    ) -> Result<Self, EdgedError> {
        let EdgedConfig {
            node,
            node_status,
            runtime_endpoint,
            cgroup_driver,
            sandbox_image,
            pods_dir,
            pod_logs_dir,
            container_logs_dir,
            cluster_dns,
            cluster_domain,
            resolv_conf,
        } = config;
        let runtime = Runtime::new(&runtime_endpoint)?;
        let (views_sender, views) = watch::channel(relist::View::default());
        let (facts_sender, facts) = watch::channel(NodeFacts { name: node.clone(), ..Default::default() });
        let poke = Poke::default();
        let capacity = node_status.capacity();
        let sources = Sources::new(store.clone());
        let tokens = Tokens::new(store.clone(), cloud);
        let shared = Arc::new(Shared {
            runtime: runtime.clone(),
            store: store.clone(),
            volumes: Volumes {
                root: pods_dir.clone(),
                sources: sources.clone(),
                tokens: tokens.clone(),
                capacity,
            },
            sources,
            tokens,
            events: Events::new(store.clone(), &node),
            logs: LogPaths::new(pod_logs_dir, container_logs_dir),
            dns: DnsSettings {
                cluster_servers: cluster_dns.iter().map(ToString::to_string).collect(),
                cluster_domain,
                resolv_conf,
            },
            // As with kubelet: beside the pods.
            seccomp_profiles: pods_dir.with_file_name("seccomp"),
            // Known once pods have a way to the API server from the edge.
            api_server: None,
            capacity,
            node: facts,
            cgroup_driver: OnceCell::new_with(cgroup_driver),
            oom_refused: AtomicBool::new(false),
            poke: poke.clone(),
            hub: hub.clone(),
            doors,
        });
        let image_gc =
            ImageGc::new(runtime.clone(), store.clone(), sandbox_image.clone(), ImageGcLimits::default());
        let relister = Relister { runtime: runtime.clone(), poke, views: views_sender };
        let reporter = NodeReporter::new(
            node_status,
            sandbox_image,
            runtime.clone(),
            store,
            views.clone(),
            facts_sender,
            hub,
        )?;
        Ok(Self {
            dispatcher: Dispatcher::new(shared, views, LOG_LIMITS),
            relister,
            reporter,
            image_gc,
            runtime,
        })
    }

    /// What the container runtime has taken, for the registry of metrics.
    pub fn calls(&self) -> Calls {
        self.runtime.calls()
    }

    /// The client of the container runtime, for who asks it something else than to run pods.
    pub fn runtime(&self) -> Runtime {
        self.runtime.clone()
    }

    /// Runs until it is told to stop; the pods go on.
    pub async fn run(self, stop: CancellationToken) -> Result<(), EdgedError> {
        let Self { dispatcher, relister, reporter, image_gc, runtime: _ } = self;
        let mut tasks = JoinSet::new();
        tasks.spawn(dispatcher.run(stop.clone()));
        tasks.spawn(relister.run(stop.clone()));
        tasks.spawn(reporter.run(stop.clone()));
        tasks.spawn(image_gc.run(stop.clone()));
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(|error| EdgedError::Task(error.to_string()))?;
            if !stop.is_cancelled() {
                return Err(EdgedError::Task("it returned".to_owned()));
            }
        }
        Ok(())
    }
}
