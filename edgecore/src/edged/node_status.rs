//! The node as the API shows it: capacity, conditions, addresses, versions, images. Reported when something other
//! than a reading has changed, and when everything is to be reported again.

mod machine;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
use crds::componentconfig::edgecore::EvictionHard;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ContainerImage, Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo},
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, Time},
    },
};
use proto::{ResourceKey, message::ReportKind, resource::KeyError};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{cri::Runtime, env::Capacity, relist, status::NodeFacts};
use crate::{
    edgehub::{HubState, next_session},
    metamanager::Store,
};

const RETRY: Duration = Duration::from_secs(2);
/// How often the images are listed.
const IMAGES_PERIOD: Duration = Duration::from_mins(5);
const MAX_IMAGES: usize = 50;
const MAX_IMAGE_NAMES: usize = 5;
/// Pressure that has gone is still shown for this long, so that a node at the edge of it does not flap.
const PRESSURE_LASTS: Duration = Duration::from_mins(5);
/// What the API server and its clients take the node's features from.
const KUBERNETES: &str = "v1.37.2";

/// What the configuration says about the node.
#[derive(Clone, Debug)]
pub struct NodeStatusConfig {
    pub node: String,
    /// `None`: the source address of the way to the cloud, or of the default route.
    pub node_ip: Option<IpAddr>,
    /// cloudcore's `HOST:PORT`.
    pub cloud: String,
    pub labels: BTreeMap<String, String>,
    /// False: registered as cordoned.
    pub schedulable: bool,
    pub max_pods: u32,
    /// Bytes; caps what is offered.
    pub memory_capacity: Option<u64>,
    /// Thousandths of a core; caps what is offered.
    pub cpu_millis: Option<u32>,
    /// How often pressure and the runtime are looked at.
    pub every: Duration,
    /// On the file system whose size is offered as ephemeral storage.
    pub pods_dir: PathBuf,
    /// Of what, below which the node is under pressure.
    pub least: EvictionHard,
}

impl NodeStatusConfig {
    pub fn capacity(&self) -> Capacity {
        let cpu = machine::cores() * 1000;
        let memory = machine::memory().total;
        Capacity {
            milli_cpu: self.cpu_millis.map_or(cpu, |cap| cpu.min(cap.into())).into(),
            memory: self.memory_capacity.map_or(memory, |cap| cap.min(memory)),
            ephemeral_storage: machine::disk(&self.pods_dir).total,
        }
    }

    fn address(&self) -> Option<IpAddr> {
        self.node_ip.or_else(|| machine::own_address(&self.cloud))
    }
}

pub struct NodeReporter {
    settings: NodeStatusConfig,
    key: ResourceKey,
    /// To be looked for once.
    sandbox_image: String,
    runtime: Runtime,
    store: Store,
    views: watch::Receiver<relist::View>,
    facts: watch::Sender<NodeFacts>,
    hub: watch::Receiver<HubState>,
    sessions: u64,
    runtime_version: String,
    images: Vec<ContainerImage>,
    images_at: Option<Instant>,
    /// Status and time of change of each condition.
    conditions: BTreeMap<&'static str, (String, Timestamp)>,
    pressure: BTreeMap<&'static str, Instant>,
    reported: Option<Node>,
}

impl NodeReporter {
    pub fn new(
        settings: NodeStatusConfig,
        sandbox_image: String,
        runtime: Runtime,
        store: Store,
        views: watch::Receiver<relist::View>,
        facts: watch::Sender<NodeFacts>,
        hub: watch::Receiver<HubState>,
    ) -> Result<Self, KeyError> {
        Ok(Self {
            key: ResourceKey::new("Node", "", &settings.node)?,
            settings,
            sandbox_image,
            runtime,
            store,
            views,
            facts,
            hub,
            sessions: 0,
            runtime_version: String::new(),
            images: Vec::new(),
            images_at: None,
            conditions: BTreeMap::new(),
            pressure: BTreeMap::new(),
            reported: None,
        })
    }

    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let wait = match self.look().await {
                Ok(()) if !self.runtime_version.is_empty() => self.settings.every,
                Ok(()) => RETRY,
                Err(error) => {
                    tracing::warn!(error = %runtime::chain(&error), "node status not stored");
                    RETRY
                }
            };
            let was_reachable = self.views.borrow_and_update().unreachable.is_none();
            let mut views = self.views.clone();
            // Every arm only waits.
            tokio::select! {
                () = stop.cancelled() => return,
                () = time::sleep(wait) => {}
                Ok(_) = views.wait_for(|view| view.unreachable.is_none() != was_reachable) => {}
                session = next_session(&mut self.hub, self.sessions) => {
                    self.sessions = session;
                    self.reported = None;
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), crate::metamanager::StoreError> {
        let ready = self.readiness().await;
        self.look_for_sandbox_image().await;
        self.refresh_images().await;
        let addresses = self.addresses();
        let ips: Vec<String> = self.settings.address().iter().map(ToString::to_string).collect();
        let runtime_name = self.runtime_version.split("://").next().unwrap_or_default().to_owned();
        let facts = NodeFacts { name: self.settings.node.clone(), ips, runtime_name };
        self.facts.send_if_modified(|current| {
            let changed = *current != facts;
            *current = facts;
            changed
        });
        let node = self.node(addresses, ready);
        if self.reported.as_ref() == Some(&node) {
            return Ok(());
        }
        let mut stamped = node.clone();
        let now = Timestamp::now();
        let conditions = stamped.status.iter_mut().filter_map(|status| status.conditions.as_mut()).flatten();
        for condition in conditions {
            condition.last_heartbeat_time = Some(Time(seconds(now)));
        }
        match serde_json::to_vec(&stamped) {
            Ok(payload) => {
                self.store.report(ReportKind::NodeStatus, &self.key, Bytes::from(payload)).await?;
                tracing::info!(node = self.settings.node, "node status reported");
                self.reported = Some(node);
            }
            Err(error) => tracing::error!(%error, "the node does not serialize"),
        }
        Ok(())
    }

    /// `Err` with reason and message while pods cannot be run.
    async fn readiness(&mut self) -> Result<(), (&'static str, String)> {
        if self.runtime_version.is_empty() {
            match self.runtime.version().await {
                Ok(version) => {
                    self.runtime_version = format!("{}://{}", version.runtime_name, version.runtime_version);
                }
                Err(error) => return Err(("ContainerRuntimeDown", runtime::chain(&error).to_string())),
            }
        }
        let status = match self.runtime.status().await {
            Ok(status) => status,
            Err(error) => {
                // After an upgrade of the runtime its version is another.
                self.runtime_version.clear();
                return Err(("ContainerRuntimeDown", runtime::chain(&error).to_string()));
            }
        };
        let conditions = status.status.unwrap_or_default().conditions;
        let bad = conditions.iter().find(|condition| {
            !condition.status && matches!(condition.r#type.as_str(), "RuntimeReady" | "NetworkReady")
        });
        match bad {
            None => Ok(()),
            Some(condition) => {
                let message =
                    format!("{} is false: {} {}", condition.r#type, condition.reason, condition.message);
                Err(("KubeletNotReady", message))
            }
        }
    }

    /// No sandbox is made without its image, which only the runtime's own configuration names.
    async fn look_for_sandbox_image(&mut self) {
        let image = std::mem::take(&mut self.sandbox_image);
        if image.is_empty() {
            return;
        }
        match self.runtime.image_status(&image).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                tracing::warn!(
                    image,
                    "the sandbox image is not on this node; it must be that of the runtime"
                );
            }
            Err(_) => self.sandbox_image = image,
        }
    }

    async fn refresh_images(&mut self) {
        if self.images_at.is_some_and(|at| at.elapsed() < IMAGES_PERIOD) {
            return;
        }
        // Without a runtime the list before stays: the images have not gone.
        let Ok(mut images) = self.runtime.list_images().await else { return };
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
        let shown = images.into_iter().take(MAX_IMAGES).map(|image| {
            let mut names: Vec<String> = image.repo_digests;
            names.extend(image.repo_tags);
            names.truncate(MAX_IMAGE_NAMES);
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        });
        self.images = shown.collect();
        self.images_at = Some(Instant::now());
    }

    fn addresses(&self) -> Vec<NodeAddress> {
        let address = |type_: &str, address: String| NodeAddress { address, type_: type_.to_owned() };
        let mut addresses: Vec<_> =
            self.settings.address().iter().map(|ip| address("InternalIP", ip.to_string())).collect();
        addresses.push(address("Hostname", self.settings.node.clone()));
        addresses
    }

    fn node(&mut self, addresses: Vec<NodeAddress>, ready: Result<(), (&'static str, String)>) -> Node {
        let name = self.settings.node.clone();
        let mut labels = self.settings.labels.clone();
        let own = [
            ("kubernetes.io/hostname", name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", machine::architecture()),
        ];
        labels.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        // Both "" and "true" are in the field: only its presence counts, so a value from the configuration stays.
        labels.entry("node-role.kubernetes.io/edge".to_owned()).or_default();
        let amounts = self.amounts();
        Node {
            metadata: ObjectMeta { name: Some(name), labels: Some(labels), ..Default::default() },
            spec: Some(NodeSpec {
                // The taint of that name comes from the control plane, which removes one that stands alone.
                unschedulable: (!self.settings.schedulable).then_some(true),
                ..Default::default()
            }),
            status: Some(NodeStatus {
                addresses: Some(addresses),
                allocatable: Some(amounts.clone()),
                capacity: Some(amounts),
                conditions: Some(self.conditions(ready)),
                images: Some(self.images.clone()),
                node_info: Some(self.system_info()),
                ..Default::default()
            }),
        }
    }

    fn amounts(&self) -> BTreeMap<String, Quantity> {
        let capacity = self.settings.capacity();
        let cpu = match capacity.milli_cpu {
            milli if milli % 1000 == 0 => (milli / 1000).to_string(),
            milli => format!("{milli}m"),
        };
        BTreeMap::from(
            [
                ("cpu", cpu),
                ("memory", format!("{}Ki", capacity.memory / 1024)),
                ("ephemeral-storage", format!("{}Ki", capacity.ephemeral_storage / 1024)),
                ("pods", self.settings.max_pods.to_string()),
            ]
            .map(|(name, amount)| (name.to_owned(), Quantity(amount))),
        )
    }

    fn conditions(&mut self, ready: Result<(), (&'static str, String)>) -> Vec<NodeCondition> {
        let memory = machine::memory();
        let disk = machine::disk(&self.settings.pods_dir);
        let inodes = machine::inodes(&self.settings.pods_dir);
        let pids = machine::process_ids();
        let least = &self.settings.least;
        let readings = [
            (
                "MemoryPressure",
                least.memory.is_missed(memory.available, memory.total),
                "KubeletHasSufficientMemory",
                "KubeletHasInsufficientMemory",
                "memory",
            ),
            (
                "DiskPressure",
                least.disk.is_missed(disk.available, disk.total)
                    || least.inodes.is_missed(inodes.available, inodes.total),
                "KubeletHasNoDiskPressure",
                "KubeletHasDiskPressure",
                "disk space",
            ),
            (
                "PIDPressure",
                least.pids.is_missed(pids.available, pids.total),
                "KubeletHasSufficientPID",
                "KubeletHasInsufficientPID",
                "process ids",
            ),
        ];
        let mut conditions = Vec::new();
        for (type_, low, well, ill, what) in readings {
            let now = Instant::now();
            if low {
                self.pressure.insert(type_, now);
            }
            let pressed =
                self.pressure.get(type_).is_some_and(|seen| now.duration_since(*seen) < PRESSURE_LASTS);
            let (reason, message) = if pressed {
                (ill, format!("the node is short of {what}"))
            } else {
                (well, format!("the node has sufficient {what}"))
            };
            conditions.push(self.condition(type_, pressed, reason, message));
        }
        conditions.push(match ready {
            Ok(()) => {
                self.condition("Ready", true, "KubeletReady", "edged is posting ready status".to_owned())
            }
            Err((reason, message)) => self.condition("Ready", false, reason, message),
        });
        conditions
    }

    fn condition(
        &mut self,
        type_: &'static str,
        holds: bool,
        reason: &str,
        message: String,
    ) -> NodeCondition {
        let status = if holds { "True" } else { "False" };
        let entry = self.conditions.entry(type_).or_insert_with(|| (status.to_owned(), Timestamp::now()));
        if entry.0 != status {
            *entry = (status.to_owned(), Timestamp::now());
        }
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(seconds(entry.1))),
            last_heartbeat_time: None,
        }
    }

    fn system_info(&self) -> NodeSystemInfo {
        NodeSystemInfo {
            architecture: machine::architecture().to_owned(),
            boot_id: machine::line("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: self.runtime_version.clone(),
            kernel_version: machine::line("/proc/sys/kernel/osrelease"),
            kube_proxy_version: String::new(),
            kubelet_version: format!("{KUBERNETES}-skerry-v{}", env!("CARGO_PKG_VERSION")),
            machine_id: machine::line("/etc/machine-id"),
            operating_system: "linux".to_owned(),
            os_image: machine::os_image(),
            system_uuid: machine::line("/sys/class/dmi/id/product_uuid"),
            ..Default::default()
        }
    }
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
