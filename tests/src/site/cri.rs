//! A site's runtime asked over CRI, by a client of the bench's own: what edgecore says is checked against this.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use proto::cri::v1::{self, runtime_service_client::RuntimeServiceClient};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::Site;

/// As kubelet's.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// As kubelet's.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// As kubelet's.
const MAX_MESSAGE: usize = 16 << 20;

/// A container or a sandbox that the runtime has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    pub id: String,
    /// Its name in the pod; empty for a sandbox.
    pub name: String,
    pub attempt: u32,
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub sandbox: bool,
    /// As the pod names it; empty for a sandbox.
    pub image: String,
    pub running: bool,
}

/// How much bare CRI calls ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asking {
    /// The least that makes a container.
    Least,
    /// What a kubelet asks for beside: the runtime's seccomp profile for the sandbox, and the paths of /proc and /sys that a
    /// container must not see or change.
    AsKubelet,
}

/// A pod made by bare CRI calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BarePod {
    pub sandbox: String,
    pub container: String,
}

impl Site {
    /// A CRI client of the site's containerd. The socket lies on a disk that the host shares.
    pub async fn runtime(&self) -> Result<RuntimeServiceClient<Channel>> {
        let socket = self.dir.join("containerd.sock");
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The authority is not used, but must be there.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await;
        let channel = channel.with_context(|| format!("no containerd at site {}", self.name))?;
        Ok(RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    /// All containers and sandboxes, running or not, sorted by id.
    pub async fn containers(&self) -> Result<Vec<Container>> {
        let mut runtime = self.runtime().await?;
        let sandboxes =
            runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner().items;
        let containers = runtime.list_containers(v1::ListContainersRequest::default()).await?.into_inner();
        let mut all = Vec::new();
        for container in containers.containers {
            let pod = sandboxes.iter().find(|sandbox| sandbox.id == container.pod_sandbox_id);
            let pod = pod.and_then(|pod| pod.metadata.clone()).unwrap_or_default();
            let metadata = container.metadata.clone().unwrap_or_default();
            all.push(Container {
                running: container.state() == v1::ContainerState::ContainerRunning,
                id: container.id,
                name: metadata.name,
                attempt: metadata.attempt,
                namespace: pod.namespace,
                pod: pod.name,
                pod_uid: pod.uid,
                sandbox: false,
                image: container.image.unwrap_or_default().image,
            });
        }
        for sandbox in sandboxes {
            let metadata = sandbox.metadata.clone().unwrap_or_default();
            all.push(Container {
                running: sandbox.state() == v1::PodSandboxState::SandboxReady,
                id: sandbox.id,
                name: String::new(),
                attempt: metadata.attempt,
                namespace: metadata.namespace,
                pod: metadata.name,
                pod_uid: metadata.uid,
                sandbox: true,
                image: String::new(),
            });
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// The address that a pod has now; after a power cut the cloud does not know it.
    pub async fn pod_ip(&self, pod_uid: &str) -> Result<Ipv4Addr> {
        let containers = self.containers().await?;
        let sandbox = containers
            .iter()
            .find(|sandbox| sandbox.sandbox && sandbox.running && sandbox.pod_uid == pod_uid);
        let sandbox = sandbox.with_context(|| format!("no sandbox of pod {pod_uid} is ready"))?;
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: false };
        let status = self.runtime().await?.pod_sandbox_status(request).await?.into_inner().status;
        let network = status.and_then(|status| status.network).unwrap_or_default();
        network.ip.parse().with_context(|| format!("pod {pod_uid} has no address: {network:?}"))
    }

    /// Runs a pod of one container with no edgecore: to test the bench, and to have something to compare edgecore with.
    pub async fn run_bare_pod(
        &self,
        name: &str,
        image: &str,
        args: &[&str],
        host_port: Option<(u16, u16)>,
        asking: Asking,
    ) -> Result<BarePod> {
        let mut runtime = self.runtime().await?;
        let ports = host_port.map(|(host, container)| v1::PortMapping {
            host_port: host.into(),
            container_port: container.into(),
            ..Default::default()
        });
        let pod = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{name}-uid"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: format!("/var/log/pods/default_{name}"),
            port_mappings: ports.into_iter().collect(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("/kubepods/pod{name}-uid"),
                security_context: (asking == Asking::AsKubelet).then(|| v1::LinuxSandboxSecurityContext {
                    seccomp: Some(v1::SecurityProfile {
                        profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(),
                        localhost_ref: String::new(),
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = v1::RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
        let sandbox =
            runtime.run_pod_sandbox(request).await.context("RunPodSandbox")?.into_inner().pod_sandbox_id;
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            log_path: format!("{name}/0.log"),
            linux: (asking == Asking::AsKubelet).then(|| v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    masked_paths: MASKED.map(str::to_owned).to_vec(),
                    readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(pod),
        };
        let container =
            runtime.create_container(request).await.context("CreateContainer")?.into_inner().container_id;
        let request = v1::StartContainerRequest { container_id: container.clone() };
        runtime.start_container(request).await.context("StartContainer")?;
        Ok(BarePod { sandbox, container })
    }

    /// Stops and removes a pod of [`Site::run_bare_pod`].
    pub async fn remove_bare_pod(&self, pod: &BarePod) -> Result<()> {
        let mut runtime = self.runtime().await?;
        let pod_sandbox_id = pod.sandbox.clone();
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        runtime.stop_pod_sandbox(stop).await.context("StopPodSandbox")?;
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id };
        runtime.remove_pod_sandbox(remove).await.context("RemovePodSandbox")?;
        Ok(())
    }
}
