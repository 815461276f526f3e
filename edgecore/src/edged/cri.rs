//! The client of the container runtime: one gRPC connection over its Unix socket, made when first used and again
//! whenever it broke. Each call has a deadline but the image pull, and the time spent in calls is counted, so that
//! what edgecore itself adds can be told from what the runtime took.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use proto::cri::{
    containerd::tasks::tasks_client::TasksClient,
    v1::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
};
use tokio::{net::UnixStream, time};
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

use super::calls::Calls;

mod lost_task;

/// A CNI plugin may take its time; this is what kubelet gives it, too.
const SANDBOX_DEADLINE: Duration = Duration::from_mins(2);
/// Calls that make the runtime start or remove something.
const WORK_DEADLINE: Duration = Duration::from_mins(2);
/// Calls that only ask.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// A list of some hundred containers with their annotations is above gRPC's own 4 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    #[error("container runtime socket address {0:?} is not of the form unix:///path")]
    Address(String),
    /// Nobody was asked: the runtime is down.
    #[error("container runtime at {} cannot be reached for {call}: {message}", .socket.display())]
    Unreachable { call: &'static str, socket: PathBuf, message: String },
    #[error("{call} had no answer within {} s", .limit.as_secs())]
    Deadline { call: &'static str, limit: Duration },
    #[error("{call} failed: {message}")]
    Refused { call: &'static str, code: Code, message: String },
}

impl CriError {
    /// What the runtime said, for people who know which call they look at.
    pub fn plain(&self) -> String {
        match self {
            Self::Refused { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }

    pub fn is_not_found(&self) -> bool {
        // containerd 1.6 wraps some of its not-found errors as Unknown.
        matches!(self, Self::Refused { code, message, .. }
            if *code == Code::NotFound || (*code == Code::Unknown && message.contains("not found")))
    }

    /// containerd's CRI takes a container for one that does not run, and containerd itself has a task for it.
    fn is_lost_task(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains("cannot delete running task"))
    }

    /// What was asked for took too long; it may be the runtime's own bound that ended it.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Refused { code: Code::DeadlineExceeded, .. })
    }

    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Refused { code: Code::Unimplemented, .. })
    }

    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Cheap to clone; clones made by [`Runtime::metered`] count their own time.
#[derive(Clone)]
pub struct Runtime {
    socket: Arc<PathBuf>,
    pods: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    tasks: TasksClient<Channel>,
    spent_micros: Arc<AtomicU64>,
    calls: Calls,
}

impl Runtime {
    /// `address` is `unix:///path/to.sock` or a path. Connects at the first call.
    pub fn new(address: &str) -> Result<Self, CriError> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        if !path.starts_with('/') {
            return Err(CriError::Address(address.to_owned()));
        }
        let socket = Arc::new(PathBuf::from(path));
        let target = socket.clone();
        // The authority is not used, but must be there.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(
            tower::service_fn(move |_: Uri| {
                let target = target.clone();
                async move { connect(&target).await }
            }),
        );
        Ok(Self {
            socket,
            pods: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            tasks: TasksClient::new(channel.clone()),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            spent_micros: Arc::default(),
            calls: Calls::default(),
        })
    }

    /// The same connection with a counter of its own.
    #[must_use]
    pub fn metered(&self) -> Self {
        Self { spent_micros: Arc::default(), ..self.clone() }
    }

    /// The time spent in calls since the last time this was asked.
    pub fn take_spent(&self) -> Duration {
        Duration::from_micros(self.spent_micros.swap(0, Ordering::Relaxed))
    }

    /// What all calls over this connection have taken.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    pub async fn version(&self) -> Result<v1::VersionResponse, CriError> {
        let request = v1::VersionRequest { version: "v1".to_owned() };
        self.call("Version", Some(ASK_DEADLINE), self.pods.clone().version(request)).await
    }

    pub async fn status(&self) -> Result<v1::StatusResponse, CriError> {
        let request = v1::StatusRequest { verbose: false };
        self.call("Status", Some(ASK_DEADLINE), self.pods.clone().status(request)).await
    }

    /// `None` for a runtime that does not tell.
    pub async fn cgroup_driver(&self) -> Result<Option<v1::CgroupDriver>, CriError> {
        let request = v1::RuntimeConfigRequest {};
        let mut client = self.pods.clone();
        match self.call("RuntimeConfig", Some(ASK_DEADLINE), client.runtime_config(request)).await {
            Ok(answer) => Ok(Some(answer.linux.unwrap_or_default().cgroup_driver())),
            // containerd before 2.0.
            Err(error) if error.is_unimplemented() => {
                let request = v1::StatusRequest { verbose: true };
                let status =
                    self.call("Status", Some(ASK_DEADLINE), self.pods.clone().status(request)).await?;
                Ok(proto::cri::configured_driver(&status.info))
            }
            Err(error) => Err(error),
        }
    }

    pub async fn run_sandbox(
        &self,
        config: v1::PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String, CriError> {
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler };
        let mut client = self.pods.clone();
        let answer = self
            .call("RunPodSandbox", Some(SANDBOX_DEADLINE), Box::pin(client.run_pod_sandbox(request)))
            .await?;
        Ok(answer.pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut client = self.pods.clone();
        gone_is_fine(
            self.call("StopPodSandbox", Some(SANDBOX_DEADLINE), client.stop_pod_sandbox(request)).await,
        )
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<(), CriError> {
        match self.ask_to_remove_sandbox(id).await {
            Err(error) if error.is_lost_task() => {
                let filter = v1::ContainerFilter { pod_sandbox_id: id.to_owned(), ..Default::default() };
                for container in self.list_containers(filter).await? {
                    self.remove_container(&container.id).await?;
                }
                self.ask_to_remove_sandbox(id).await
            }
            result => result,
        }
    }

    async fn ask_to_remove_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut client = self.pods.clone();
        gone_is_fine(
            self.call("RemovePodSandbox", Some(WORK_DEADLINE), client.remove_pod_sandbox(request)).await,
        )
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<Option<v1::PodSandboxStatus>, CriError> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let mut client = self.pods.clone();
        match self.call("PodSandboxStatus", Some(ASK_DEADLINE), client.pod_sandbox_status(request)).await {
            Ok(answer) => Ok(answer.status),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Those of one pod, or of all pods.
    pub async fn list_sandboxes(
        &self,
        filter: v1::PodSandboxFilter,
    ) -> Result<Vec<v1::PodSandbox>, CriError> {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        let mut client = self.pods.clone();
        Ok(self.call("ListPodSandbox", Some(ASK_DEADLINE), client.list_pod_sandbox(request)).await?.items)
    }

    pub async fn create_container(&self, request: v1::CreateContainerRequest) -> Result<String, CriError> {
        let mut client = self.pods.clone();
        Ok(self
            .call("CreateContainer", Some(WORK_DEADLINE), Box::pin(client.create_container(request)))
            .await?
            .container_id)
    }

    /// While it runs.
    pub async fn update_container(
        &self,
        id: &str,
        linux: v1::LinuxContainerResources,
    ) -> Result<(), CriError> {
        let request = v1::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(linux) };
        let mut client = self.pods.clone();
        let asked = client.update_container_resources(request);
        self.call("UpdateContainerResources", Some(WORK_DEADLINE), asked).await?;
        Ok(())
    }

    /// `None` for a container that the runtime has no figures of, or that is gone.
    pub async fn container_stats(&self, id: &str) -> Result<Option<v1::ContainerStats>, CriError> {
        let request = v1::ContainerStatsRequest { container_id: id.to_owned() };
        let mut client = self.pods.clone();
        match self.call("ContainerStats", Some(ASK_DEADLINE), client.container_stats(request)).await {
            Err(error) if error.is_not_found() => Ok(None),
            answer => Ok(answer?.stats),
        }
    }

    pub async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        let mut client = self.pods.clone();
        self.call("StartContainer", Some(WORK_DEADLINE), client.start_container(request)).await?;
        Ok(())
    }

    /// Returns when the container has ended; it is killed after `grace`.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        // Rounded up: a second is the unit, and a part of one is not nothing.
        let timeout = i64::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        let limit = grace.saturating_add(SANDBOX_DEADLINE);
        let mut client = self.pods.clone();
        gone_is_fine(self.call("StopContainer", Some(limit), client.stop_container(request)).await)
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        match self.ask_to_remove_container(id).await {
            Err(error) if error.is_lost_task() => {
                self.end_lost_task(id).await?;
                self.ask_to_remove_container(id).await
            }
            result => result,
        }
    }

    async fn ask_to_remove_container(&self, id: &str) -> Result<(), CriError> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        let mut client = self.pods.clone();
        gone_is_fine(
            self.call("RemoveContainer", Some(WORK_DEADLINE), client.remove_container(request)).await,
        )
    }

    pub async fn list_containers(&self, filter: v1::ContainerFilter) -> Result<Vec<v1::Container>, CriError> {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        let mut client = self.pods.clone();
        Ok(self.call("ListContainers", Some(ASK_DEADLINE), client.list_containers(request)).await?.containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<Option<v1::ContainerStatus>, CriError> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let mut client = self.pods.clone();
        match self.call("ContainerStatus", Some(ASK_DEADLINE), client.container_status(request)).await {
            Ok(answer) => Ok(answer.status),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        let mut client = self.pods.clone();
        self.call("ReopenContainerLog", Some(ASK_DEADLINE), client.reopen_container_log(request)).await?;
        Ok(())
    }

    /// Runs a command in a container; the runtime ends it after `limit`.
    pub async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        limit: Duration,
    ) -> Result<v1::ExecSyncResponse, CriError> {
        let timeout = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX).max(1);
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout };
        let mut client = self.pods.clone();
        self.call("ExecSync", Some(limit.saturating_add(ASK_DEADLINE)), client.exec_sync(request)).await
    }

    /// Where the runtime's own streaming server has the command's streams: a URL for one use.
    pub async fn exec_url(&self, request: v1::ExecRequest) -> Result<String, CriError> {
        let mut client = self.pods.clone();
        Ok(self.call("Exec", Some(ASK_DEADLINE), client.exec(request)).await?.url)
    }

    /// As [`exec_url`](Self::exec_url), of the container's own process.
    pub async fn attach_url(&self, request: v1::AttachRequest) -> Result<String, CriError> {
        let mut client = self.pods.clone();
        Ok(self.call("Attach", Some(ASK_DEADLINE), client.attach(request)).await?.url)
    }

    /// As [`exec_url`](Self::exec_url), of ports in the sandbox's network.
    pub async fn port_forward_url(&self, request: v1::PortForwardRequest) -> Result<String, CriError> {
        let mut client = self.pods.clone();
        Ok(self.call("PortForward", Some(ASK_DEADLINE), client.port_forward(request)).await?.url)
    }

    /// Endless; answers `Unimplemented` on runtimes older than the call.
    pub async fn events(&self) -> Result<Streaming<v1::ContainerEventResponse>, CriError> {
        let mut client = self.pods.clone();
        self.call(
            "GetContainerEvents",
            Some(ASK_DEADLINE),
            client.get_container_events(v1::GetEventsRequest {}),
        )
        .await
    }

    pub async fn image_status(&self, image: &str) -> Result<Option<v1::Image>, CriError> {
        let request = v1::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        let mut client = self.images.clone();
        Ok(self.call("ImageStatus", Some(ASK_DEADLINE), client.image_status(request)).await?.image)
    }

    /// As long as it takes: a large image over a thin line takes hours.
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<v1::AuthConfig>,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String, CriError> {
        let request = v1::PullImageRequest {
            image: Some(image_spec(image)),
            auth,
            sandbox_config: Some(sandbox_config),
        };
        let mut client = self.images.clone();
        Ok(self.call("PullImage", None, Box::pin(client.pull_image(request))).await?.image_ref)
    }

    pub async fn list_images(&self) -> Result<Vec<v1::Image>, CriError> {
        let mut client = self.images.clone();
        let request = v1::ListImagesRequest { filter: None };
        Ok(self.call("ListImages", Some(ASK_DEADLINE), client.list_images(request)).await?.images)
    }

    pub async fn remove_image(&self, image: &str) -> Result<(), CriError> {
        let request = v1::RemoveImageRequest { image: Some(image_spec(image)) };
        let mut client = self.images.clone();
        gone_is_fine(self.call("RemoveImage", Some(SANDBOX_DEADLINE), client.remove_image(request)).await)
    }

    /// Where the images are.
    pub async fn image_filesystems(&self) -> Result<Vec<String>, CriError> {
        let mut client = self.images.clone();
        let request = v1::ImageFsInfoRequest {};
        let answer = self.call("ImageFsInfo", Some(ASK_DEADLINE), client.image_fs_info(request)).await?;
        let ids = answer.image_filesystems.into_iter().filter_map(|filesystem| filesystem.fs_id);
        Ok(ids.map(|id| id.mountpoint).collect())
    }

    async fn call<T>(
        &self,
        call: &'static str,
        limit: Option<Duration>,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CriError> {
        let began = time::Instant::now();
        let result = match limit {
            Some(limit) => time::timeout(limit, answer).await.map_err(|_| CriError::Deadline { call, limit }),
            None => Ok(answer.await),
        };
        let spent = began.elapsed();
        self.spent_micros.fetch_add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.calls.note(call, spent, !matches!(result, Ok(Ok(_))));
        tracing::trace!(call, micros = spent.as_micros(), "runtime call");
        result?.map(Response::into_inner).map_err(|status| self.refusal(call, &status))
    }

    fn refusal(&self, call: &'static str, status: &Status) -> CriError {
        let message = status.message().to_owned();
        if status.code() == Code::Unavailable {
            return CriError::Unreachable { call, socket: self.socket.as_ref().clone(), message };
        }
        CriError::Refused { call, code: status.code(), message }
    }
}

async fn connect(path: &Path) -> std::io::Result<TokioIo<UnixStream>> {
    Ok(TokioIo::new(UnixStream::connect(path).await?))
}

fn image_spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// Stopping or removing what is not there has done its work.
fn gone_is_fine<T>(result: Result<T, CriError>) -> Result<(), CriError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
