//! Starting: a sandbox with its network, then containers. What fails is noted with a reason that kubectl shows and
//! tried again with a growing delay; only a runtime that does not answer ends the pass.

use std::{fs, io, path::PathBuf, sync::atomic::Ordering, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use proto::cri::v1;
use tokio::time::Instant;

use super::{PodWorker, WorkError};
use crate::edged::{
    cri::CriError,
    env, hosts,
    images::{self, ImageError, PullPolicy},
    pod::DesiredPod,
    pod_state::Waiting,
    requests::{self, ContainerParts},
    resources, security,
    volumes::Mounted,
};

const FIRST_RETRY: Duration = Duration::from_secs(2);
/// Pulls are dear: kubelet's own delays.
const FIRST_PULL_RETRY: Duration = Duration::from_secs(10);
/// What the whole pod waits for comes and goes with the site.
const LAST_HOLD: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_mins(5);

impl PodWorker {
    pub(super) async fn create_sandbox(&mut self, pod: &DesiredPod, attempt: u32) -> Result<bool, WorkError> {
        let handler = match self.runtime_handler(pod) {
            Ok(handler) => handler,
            Err(message) => return self.hold(pod, "FailedCreatePodSandBox", message).await,
        };
        let config = self.sandbox_config(pod, attempt).await;
        if let Err(error) = fs::create_dir_all(&config.log_directory) {
            let message = format!("failed to make the log directory: {error}");
            return self.hold(pod, "FailedCreatePodSandBox", message).await;
        }
        if attempt == 0 {
            for (_, spec) in pod.all_containers() {
                let floor = self.shared.logs.next_attempt(pod, &spec.name);
                self.memory.containers.entry(spec.name.clone()).or_default().attempt_floor = floor;
            }
        }
        let node = self.shared.node.borrow().clone();
        let runtime = self.runtime.clone();
        let shared = self.shared.clone();
        // A token may have to come from the cloud meanwhile. What needs the pod's address comes with the next sync.
        let (sandbox, mounted) =
            tokio::join!(runtime.run_sandbox(config, handler), shared.volumes.sync(pod, &[], &node));
        self.note_volumes(pod, mounted).await;
        match sandbox {
            Ok(id) => {
                tracing::info!(pod = %pod.key, uid = %pod.uid, sandbox = id, attempt, "sandbox created");
                self.memory.hold = self.memory.hold.filter(|_| self.mounted.is_none());
                Ok(true)
            }
            Err(error) if error.is_unreachable() => Err(error.into()),
            Err(error) => {
                let message = format!("failed to create pod sandbox: {}", runtime::chain(&error));
                self.hold(pod, "FailedCreatePodSandBox", message).await
            }
        }
    }

    async fn sandbox_config(&self, pod: &DesiredPod, attempt: u32) -> v1::PodSandboxConfig {
        let driver = self.cgroup_driver().await;
        let start = self.observed.pod_start().unwrap_or(self.first_seen);
        requests::sandbox(pod, attempt, start, &self.shared.logs, &self.shared.dns, driver)
    }

    async fn cgroup_driver(&self) -> v1::CgroupDriver {
        let asked = self.shared.cgroup_driver.get_or_try_init(|| async {
            match self.runtime.cgroup_driver().await {
                Err(error) if error.is_unimplemented() => Ok(guessed_driver()),
                answer => answer,
            }
        });
        let driver = asked.await.copied();
        driver.unwrap_or_else(|error| {
            tracing::warn!(error = %runtime::chain(&error), "cgroup driver not told; guessed");
            guessed_driver()
        })
    }

    fn runtime_handler(&self, pod: &DesiredPod) -> Result<String, String> {
        let Some(class) = pod.spec.runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(String::new());
        };
        match self.shared.sources.runtime_class(class) {
            Ok(Some(class)) => Ok(class.handler),
            Ok(None) => Err(format!("RuntimeClass \"{class}\" not found")),
            Err(error) => Err(runtime::chain(&error).to_string()),
        }
    }

    fn hold_until(&mut self) -> Instant {
        let delay = FIRST_RETRY.saturating_mul(1 << self.holds.min(5)).min(LAST_HOLD);
        self.holds = self.holds.saturating_add(1);
        Instant::now() + delay
    }

    /// The whole pod waits.
    async fn hold(
        &mut self,
        pod: &DesiredPod,
        reason: &'static str,
        message: String,
    ) -> Result<bool, WorkError> {
        self.shared.events.warn(pod, reason, &message).await;
        self.memory.hold = Some(self.hold_until());
        self.memory.waiting = Some(Waiting { reason: "ContainerCreating".to_owned(), message });
        Ok(false)
    }

    async fn note_volumes(
        &mut self,
        pod: &DesiredPod,
        mounted: Result<Mounted, crate::edged::volumes::VolumeError>,
    ) {
        match mounted {
            Ok(mounted) => {
                self.mounted = Some(mounted);
                self.references_mounted = self.current.references;
                self.holds = 0;
            }
            Err(error) => {
                self.mounted = None;
                // Its result is the hold itself.
                let message = runtime::chain(&error).to_string();
                self.shared.events.warn(pod, "FailedMount", &message).await;
                self.memory.hold = Some(self.hold_until());
                self.memory.waiting = Some(Waiting { reason: "ContainerCreating".to_owned(), message });
            }
        }
    }

    /// While the pod runs: contents that changed, tokens that want renewal. Answers when to come back.
    pub(super) async fn refresh_volumes(&mut self) -> Option<Instant> {
        let pod = self.current.pod.clone();
        let running = self.observed.containers.iter().any(crate::edged::pod_state::ContainerView::is_running);
        let now = Timestamp::now();
        let due = match &self.mounted {
            None => true,
            Some(mounted) => {
                self.references_mounted != self.current.references
                    || mounted.refresh.is_some_and(|refresh| refresh <= now)
            }
        };
        if running && due {
            let node = self.shared.node.borrow().clone();
            let ips = self.addresses.as_ref().map(|(_, ips)| ips.clone()).unwrap_or_default();
            match self.shared.volumes.sync(&pod, &ips, &node).await {
                Ok(mounted) => {
                    self.mounted = Some(mounted);
                    self.references_mounted = self.current.references;
                }
                // What runs goes on with what it has.
                Err(error) => {
                    let message = runtime::chain(&error).to_string();
                    self.shared.events.warn(&pod, "FailedMount", &message).await;
                    return Some(Instant::now() + LAST_RETRY / 10);
                }
            }
        }
        let refresh = self.mounted.as_ref()?.refresh?;
        let wait = Duration::try_from(refresh.duration_since(now)).unwrap_or(FIRST_RETRY);
        Some(Instant::now() + wait.max(FIRST_RETRY))
    }

    pub(super) async fn start_container(
        &mut self,
        pod: &DesiredPod,
        name: &str,
        attempt: u32,
    ) -> Result<bool, WorkError> {
        let Some((_, spec)) = pod.container(name) else { return Ok(true) };
        let Some(sandbox) = self.observed.sandbox().cloned() else { return Ok(false) };
        if self.mounted.is_none() || self.references_mounted != self.current.references {
            let node = self.shared.node.borrow().clone();
            let ips = self.addresses.as_ref().map(|(_, ips)| ips.clone()).unwrap_or_default();
            let mounted = self.shared.volumes.sync(pod, &ips, &node).await;
            self.note_volumes(pod, mounted).await;
            if self.mounted.is_none() {
                return Ok(false);
            }
        }
        match self.try_start(pod, spec, attempt, &sandbox.id, sandbox.attempt).await {
            Ok(id) => {
                tracing::info!(pod = %pod.key, container = name, id, attempt, "container started");
                let memory = self.memory.containers.entry(name.to_owned()).or_default();
                memory.failure = None;
                memory.failures = 0;
                memory.unhealthy = None;
                memory.ready = spec.readiness_probe.as_ref().map(|_| false);
                memory.started = spec.startup_probe.as_ref().map(|_| false);
            }
            Err(StartError::Runtime(error)) if error.is_unreachable() => return Err(error.into()),
            Err(StartError::Superseded) => return Ok(false),
            Err(StartError::Runtime(error)) => {
                let message = runtime::chain(&error).to_string();
                self.fail(pod, name, "RunContainerError", message, FIRST_RETRY).await;
            }
            Err(StartError::Waiting { reason, message }) => {
                let pulling =
                    matches!(reason.as_str(), "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName");
                let first = if pulling { FIRST_PULL_RETRY } else { FIRST_RETRY };
                self.fail(pod, name, &reason, message, first).await;
            }
        }
        // One that fails does not hold up the others.
        Ok(true)
    }

    async fn fail(&mut self, pod: &DesiredPod, name: &str, reason: &str, message: String, first: Duration) {
        self.shared.events.warn(pod, "Failed", &format!("{reason}: container {name}: {message}")).await;
        let memory = self.memory.containers.entry(name.to_owned()).or_default();
        let delay = first.saturating_mul(1 << memory.failures.min(10)).min(LAST_RETRY);
        memory.failures = memory.failures.saturating_add(1);
        // From the second failure on, as kubelet says it.
        let (reason, message) = if reason == "ErrImagePull" && memory.failures > 1 {
            ("ImagePullBackOff".to_owned(), format!("back-off pulling image: {message}"))
        } else {
            (reason.to_owned(), message)
        };
        memory.failure = Some((Waiting { reason, message }, Instant::now() + delay));
    }

    async fn try_start(
        &mut self,
        pod: &DesiredPod,
        spec: &Container,
        attempt: u32,
        sandbox_id: &str,
        sandbox_attempt: u32,
    ) -> Result<String, StartError> {
        let sandbox_config = self.sandbox_config(pod, sandbox_attempt).await;
        let image = self.image(pod, spec, &sandbox_config).await?;
        let config_error = |error: &(dyn std::error::Error + 'static)| StartError::Waiting {
            reason: "CreateContainerConfigError".to_owned(),
            message: runtime::chain(error).to_string(),
        };
        let node = self.shared.node.borrow().clone();
        let ips = self.addresses.as_ref().map(|(_, ips)| ips.clone()).unwrap_or_default();
        let context = env::Context {
            pod,
            sources: &self.shared.sources,
            pod_ips: &ips,
            node: &node,
            api_server: self.shared.api_server.as_ref(),
            capacity: self.shared.capacity,
        };
        let variables = context.variables(spec).map_err(|error| config_error(&error))?;
        let security = security::container(pod, spec, &image.user).map_err(|error| config_error(&error))?;
        let mounted = self.mounted.as_ref().ok_or(StartError::Superseded)?;
        let mut mounts = self
            .shared
            .volumes
            .mounts(pod, spec, mounted, &variables)
            .map_err(|error| config_error(&error))?;
        let extra = self.own_mounts(pod, spec, attempt, &ips).map_err(|error| config_error(&error))?;
        // Those of the pod win over edged's own.
        mounts.extend(extra.into_iter().filter(|own| {
            !spec.volume_mounts.iter().flatten().any(|mount| mount.mount_path == own.container_path)
        }));
        let mut limits = resources::container_resources(&pod.spec, spec, self.shared.capacity.memory);
        if self.shared.oom_refused.load(Ordering::Relaxed) {
            limits.oom_score_adj = limits.oom_score_adj.max(0);
        }
        let parts = ContainerParts {
            attempt,
            image_id: image.id,
            command: env::expand_all(spec.command.as_ref(), &variables),
            args: env::expand_all(spec.args.as_ref(), &variables),
            envs: env::key_values(variables),
            mounts,
            security,
            resources: limits,
        };
        let config = requests::container(pod, spec, parts);
        self.create_and_start(pod, spec, attempt, sandbox_id, config, sandbox_config).await
    }

    async fn create_and_start(
        &self,
        pod: &DesiredPod,
        spec: &Container,
        attempt: u32,
        sandbox_id: &str,
        mut config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String, StartError> {
        loop {
            let request = v1::CreateContainerRequest {
                pod_sandbox_id: sandbox_id.to_owned(),
                config: Some(config.clone()),
                sandbox_config: Some(sandbox_config.clone()),
            };
            let id = self
                .runtime
                .create_container(request)
                .await
                .map_err(|error| start_error("CreateContainerError", error))?;
            if let Err(error) = self.shared.logs.make_link(pod, &spec.name, attempt, &id) {
                tracing::warn!(%error, "log link not made");
            }
            let Err(error) = self.runtime.start_container(&id).await else { return Ok(id) };
            let resources = config.linux.as_mut().and_then(|linux| linux.resources.as_mut());
            // Without CAP_SYS_RESOURCE the kernel takes no negative score.
            match resources.filter(|resources| resources.oom_score_adj < 0 && is_oom_refusal(&error)) {
                Some(resources) => {
                    if !self.shared.oom_refused.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "runtime refuses negative OOM scores; pods run with 0");
                    }
                    resources.oom_score_adj = 0;
                    self.runtime.remove_container(&id).await.map_err(StartError::Runtime)?;
                }
                None => return Err(start_error("RunContainerError", error)),
            }
        }
    }

    async fn image(
        &mut self,
        pod: &DesiredPod,
        spec: &Container,
        sandbox_config: &v1::PodSandboxConfig,
    ) -> Result<images::Ready, StartError> {
        let policy = PullPolicy::of(spec);
        let found = images::find(&self.runtime, spec).await?;
        let name = spec.image.as_deref().unwrap_or_default();
        match (policy, found) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(ready)) => Ok(ready),
            (PullPolicy::Never, None) => Err(StartError::Waiting {
                reason: "ErrImageNeverPull".to_owned(),
                message: format!("Container image {name:?} is not present with pull policy of Never"),
            }),
            (PullPolicy::Always | PullPolicy::IfNotPresent, found) => {
                // A pull may take hours: the cloud should know what the pod waits for.
                if let Err(error) = self.report(true).await {
                    tracing::warn!(error = %runtime::chain(&error), "status not reported before the pull");
                }
                let runtime = self.runtime.clone();
                let sources = self.shared.sources.clone();
                let pull = images::pull(&runtime, pod, spec, &sources, sandbox_config.clone());
                let result = tokio::select! {
                    // A pod that is no longer wanted, or is another by now, does not wait: the runtime gives the pull up.
                    result = pull => result,
                    () = self.superseded() => return Err(StartError::Superseded),
                };
                match (result, found) {
                    (Ok(()), _) => {
                        images::find(&self.runtime, spec).await?.ok_or_else(|| StartError::Waiting {
                            reason: "ErrImagePull".to_owned(),
                            message: format!("image {name:?} was pulled and is not there"),
                        })
                    }
                    // With policy Always: this pod has run with this image, so it was allowed to; a registry that is
                    // out of reach must not keep a site from starting again.
                    (Err(ImageError::Waiting(error)), Some(ready)) if self.ran_before(spec) => {
                        tracing::warn!(pod = %pod.key, image = name, error = error.message, "not pulled; using the local image");
                        Ok(ready)
                    }
                    (Err(error), _) => Err(error.into()),
                }
            }
        }
    }

    fn ran_before(&self, spec: &Container) -> bool {
        let hash = crate::edged::pod::container_hash(spec);
        self.observed.latest(&spec.name).is_some_and(|latest| latest.hash.as_ref() == Some(&hash))
    }

    /// Ends when what is being done is no longer what is wanted.
    async fn superseded(&mut self) {
        loop {
            if self.input.changed().await.is_err() {
                return std::future::pending().await;
            }
            let input = self.input.borrow();
            let same_images = input.pod.spec.containers.iter().map(|c| &c.image).eq(self
                .current
                .pod
                .spec
                .containers
                .iter()
                .map(|c| &c.image));
            if input.intent != self.current.intent || !same_images {
                return;
            }
        }
    }

    /// `/etc/hosts` and the file for the termination message.
    fn own_mounts(
        &self,
        pod: &DesiredPod,
        spec: &Container,
        attempt: u32,
        ips: &[String],
    ) -> io::Result<Vec<v1::Mount>> {
        let directory = self.shared.volumes.pod_directory(&pod.uid);
        fs::create_dir_all(&directory)?;
        let hosts_file = directory.join("etc-hosts");
        let text =
            hosts::content(pod, ips, &self.shared.dns.cluster_domain, std::path::Path::new("/etc/hosts"));
        hosts::write(&hosts_file, &text)?;
        let message_file = self.termination_file(pod, &spec.name, attempt);
        if let Some(parent) = message_file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&message_file, "")?;
        // Whoever the container runs as writes it.
        fs::set_permissions(&message_file, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        let mount = |container_path: &str, host_path: PathBuf| v1::Mount {
            container_path: container_path.to_owned(),
            host_path: host_path.to_string_lossy().into_owned(),
            ..Default::default()
        };
        Ok(vec![
            mount("/etc/hosts", hosts_file),
            mount(requests::termination_message_path(spec), message_file),
        ])
    }

    pub(super) fn termination_file(&self, pod: &DesiredPod, container: &str, attempt: u32) -> PathBuf {
        let directory = self.shared.volumes.pod_directory(&pod.uid);
        directory.join("containers").join(container).join(format!("{attempt}.message"))
    }
}

enum StartError {
    Runtime(CriError),
    Waiting {
        reason: String,
        message: String,
    },
    /// Something else is wanted by now.
    Superseded,
}

impl From<ImageError> for StartError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Waiting(Waiting { reason, message }) => Self::Waiting { reason, message },
            ImageError::Runtime(error) => Self::Runtime(error),
        }
    }
}

fn start_error(reason: &str, error: CriError) -> StartError {
    if error.is_unreachable() {
        return StartError::Runtime(error);
    }
    StartError::Waiting { reason: reason.to_owned(), message: error.to_string() }
}

fn is_oom_refusal(error: &CriError) -> bool {
    error.to_string().contains("oom_score_adj")
}

/// What containerd before 2.0 and no other source tells: systemd where it runs the machine.
fn guessed_driver() -> v1::CgroupDriver {
    // As sd_booted(3) has it. containerd's own default is cgroupfs, but a machine with systemd is set up for it.
    if std::path::Path::new("/run/systemd/system").is_dir() {
        v1::CgroupDriver::Systemd
    } else {
        v1::CgroupDriver::Cgroupfs
    }
}
