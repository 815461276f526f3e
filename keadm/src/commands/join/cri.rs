//! The container runtime: found, asked, and at the end cleaned of this node's pods.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use proto::cri::v1::{
    CgroupDriver, ListPodSandboxRequest, PodSandbox, RemovePodSandboxRequest, RuntimeCondition,
    RuntimeConfigRequest, StatusRequest, StopPodSandboxRequest, VersionRequest,
    runtime_service_client::RuntimeServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

/// Where containerd and CRI-O listen by default.
pub(super) const USUAL: [&str; 3] = [
    "unix:///run/containerd/containerd.sock",
    "unix:///var/run/crio/crio.sock",
    "unix:///run/crio/crio.sock",
];
const ASK: Duration = Duration::from_secs(10);
/// Stopping waits for the network plugin.
const WORK: Duration = Duration::from_mins(2);
const MAX_MESSAGE: usize = 16 << 20;
/// edged writes it on every sandbox that it makes.
const OURS: &str = "node.skerry.io/pod-start-time";

pub(crate) struct Cri {
    client: RuntimeServiceClient<Channel>,
}

impl Cri {
    pub(crate) async fn connect(endpoint: &str) -> Result<Self> {
        let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
        // The URI is not used: the connector knows the socket.
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(ASK)
            .connect_with_connector(service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .with_context(|| format!("failed to connect to the container runtime at {endpoint}"))?;
        Ok(Self { client: RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE) })
    }

    /// Its name and version.
    pub(crate) async fn version(&mut self) -> Result<String> {
        let version = self.client.version(within(ASK, VersionRequest::default())).await;
        let version = version.context("the container runtime does not say its version")?.into_inner();
        Ok(format!("{} {}", version.runtime_name, version.runtime_version))
    }

    /// What it manages cgroups with, if it says.
    pub(crate) async fn cgroup_driver(&mut self) -> Result<Option<CgroupDriver>> {
        match self.client.runtime_config(within(ASK, RuntimeConfigRequest {})).await {
            Ok(answer) => Ok(answer.into_inner().linux.map(|linux| linux.cgroup_driver())),
            // containerd before 2.0.
            Err(status) if status.code() == Code::Unimplemented => {
                let status = self.client.status(within(ASK, StatusRequest { verbose: true })).await;
                let status = status.context("the container runtime does not say its state")?.into_inner();
                Ok(proto::cri::configured_driver(&status.info))
            }
            Err(status) => Err(status).context("the container runtime does not say its cgroup driver"),
        }
    }

    /// What keeps it from running pods, as it says itself.
    pub(crate) async fn unmet(&mut self) -> Result<Vec<RuntimeCondition>> {
        let status = self.client.status(within(ASK, StatusRequest::default())).await;
        let status = status.context("the container runtime does not say its state")?.into_inner().status;
        let conditions = status.map(|status| status.conditions).unwrap_or_default();
        let is_needed = |name: &str| matches!(name, "RuntimeReady" | "NetworkReady");
        Ok(conditions.into_iter().filter(|one| !one.status && is_needed(&one.r#type)).collect())
    }

    /// The sandboxes that an edgecore made.
    pub(crate) async fn edged_sandboxes(&mut self) -> Result<Vec<PodSandbox>> {
        let list = self.client.list_pod_sandbox(within(ASK, ListPodSandboxRequest::default())).await;
        let list = list.context("the container runtime does not list its pods")?.into_inner();
        Ok(list.items.into_iter().filter(|sandbox| sandbox.annotations.contains_key(OURS)).collect())
    }

    /// With its containers; one that is gone already is no failure.
    pub(crate) async fn remove(&mut self, sandbox: &PodSandbox) -> Result<()> {
        let pod_sandbox_id = sandbox.id.clone();
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        let gone = |status: &tonic::Status| status.code() == Code::NotFound;
        match self.client.stop_pod_sandbox(within(WORK, stop)).await {
            Err(status) if !gone(&status) => Err(status).context("failed to stop a pod's sandbox")?,
            _ => {}
        }
        match self.client.remove_pod_sandbox(within(WORK, RemovePodSandboxRequest { pod_sandbox_id })).await {
            Err(status) if !gone(&status) => Err(status).context("failed to remove a pod's sandbox"),
            _ => Ok(()),
        }
    }
}

fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}
