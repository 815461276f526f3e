//! Starting: a sandbox with its network, then containers. What fails is noted with a reason that kubectl shows and
//! tried again with a growing delay; only a runtime that does not answer ends the pass.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use proto::cri::v1::{self, CgroupDriver};
use tokio::time::Instant;

use super::{PodWorker, Shared, WorkError};
use crate::edged::{
    cgroup::{self, CGROUPS},
    cri::CriError,
    env, hosts,
    images::ImageError,
    pod::DesiredPod,
    pod_state::{Waiting, Why},
    requests::{self, ContainerParts},
    resources,
    security::{self, SecurityError},
    volumes::{Mounted, VolumeError},
};

const FIRST_RETRY: Duration = Duration::from_secs(2);
/// Pulls are dear: kubelet's own delays.
const FIRST_PULL_RETRY: Duration = Duration::from_secs(10);
/// What the whole pod waits for comes and goes with the site.
const LAST_HOLD: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_mins(5);
/// A postStart hook that never ends; kubelet waits for ever.
const POST_START_LIMIT: Duration = Duration::from_hours(1);

impl PodWorker {
    pub(super) async fn create_sandbox(&mut self, pod: &DesiredPod, attempt: u32) -> Result<bool, WorkError> {
        let handler = match self.runtime_handler(pod) {
            Ok(handler) => handler,
            Err(message) => return Ok(self.hold("FailedCreatePodSandBox", message)),
        };
        let driver = self.cgroup_driver().await;
        let config = match self.sandbox_config(pod, attempt, driver) {
            Ok(config) => config,
            Err(error) => return Ok(self.hold("FailedCreatePodSandBox", error.to_string())),
        };
        if let Err(error) = fs::create_dir_all(&config.log_directory) {
            let message = format!("failed to make the log directory: {error}");
            return Ok(self.hold("FailedCreatePodSandBox", message));
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
        let slice = async {
            match driver {
                CgroupDriver::Systemd => Box::pin(cgroup::tell_systemd(&pod.spec, &pod.uid)).await,
                CgroupDriver::Cgroupfs => Ok(()),
            }
        };
        // A token may have to come from the cloud meanwhile. What needs the pod's address comes with the next sync.
        let (sandbox, mounted, slice) =
            tokio::join!(runtime.run_sandbox(config, handler), shared.volumes.sync(pod, &[], &node), slice);
        self.note_volumes(mounted);
        match sandbox {
            Ok(id) => {
                tracing::info!(pod = %pod.key, uid = %pod.uid, sandbox = id, attempt, "sandbox created");
                let group = match driver {
                    CgroupDriver::Systemd if slice.is_ok() => {
                        let class = resources::qos_class(&pod.spec);
                        Box::pin(cgroup::weigh_slice(Path::new(CGROUPS), class)).await
                    }
                    CgroupDriver::Systemd => slice,
                    CgroupDriver::Cgroupfs => cgroup::write(Path::new(CGROUPS), &pod.spec, &pod.uid),
                };
                if let Err(error) = group {
                    // Its containers have their own numbers; only beside other pods it may get too much or too little.
                    tracing::warn!(pod = %pod.key, %error, "cgroup of the pod not set up");
                }
                if attempt > 0 {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.normal(None, "SandboxChanged", message);
                }
                self.memory.hold = self.memory.hold.filter(|_| self.mounted.is_none());
                self.foresee_sandbox(&id).await?;
                Ok(true)
            }
            Err(error) if error.is_unreachable() => Err(error.into()),
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {}", runtime::chain(&error));
                Ok(self.hold("FailedCreatePodSandBox", message))
            }
        }
    }

    fn sandbox_config(
        &self,
        pod: &DesiredPod,
        attempt: u32,
        driver: CgroupDriver,
    ) -> Result<v1::PodSandboxConfig, SecurityError> {
        let start = self.observed.pod_start().unwrap_or(self.first_seen);
        let Shared { logs, dns, seccomp_profiles, .. } = self.shared.as_ref();
        requests::sandbox(pod, attempt, start, logs, dns, driver, seccomp_profiles)
    }

    pub(super) async fn cgroup_driver(&self) -> CgroupDriver {
        let asked = self.shared.cgroup_driver.get_or_try_init(|| async {
            Ok::<_, CriError>(self.runtime.cgroup_driver().await?.unwrap_or_else(guessed_driver))
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
    fn hold(&mut self, reason: &'static str, message: String) -> bool {
        self.warn(None, reason, &message);
        self.memory.hold = Some(self.hold_until());
        self.memory.waiting = Some(Waiting { reason: "ContainerCreating".to_owned(), message });
        false
    }

    fn note_volumes(&mut self, mounted: Result<Mounted, VolumeError>) {
        match mounted {
            Ok(mounted) => {
                self.mounted = Some(mounted);
                self.references_mounted = Some(self.current.references);
                self.holds = 0;
            }
            Err(error) => {
                self.mounted = None;
                self.hold("FailedMount", failed_mount(&error));
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
                self.references_mounted != Some(self.current.references)
                    || mounted.refresh.is_some_and(|refresh| refresh <= now)
            }
        };
        if running && due {
            let node = self.shared.node.borrow().clone();
            let ips = self.addresses.as_ref().map(|(_, ips)| ips.clone()).unwrap_or_default();
            match self.shared.volumes.sync(&pod, &ips, &node).await {
                Ok(mounted) => {
                    self.mounted = Some(mounted);
                    self.references_mounted = Some(self.current.references);
                }
                // What runs goes on with what it has.
                Err(error) => {
                    self.warn(None, "FailedMount", &failed_mount(&error));
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
        if self.mounted.is_none() || self.references_mounted != Some(self.current.references) {
            let node = self.shared.node.borrow().clone();
            let ips = self.addresses.as_ref().map(|(_, ips)| ips.clone()).unwrap_or_default();
            match self.shared.volumes.sync(pod, &ips, &node).await {
                // What ran goes on with what it had, also when one of its containers has to start again.
                Err(error) if self.mounted.is_some() => {
                    self.warn(None, "FailedMount", &failed_mount(&error));
                }
                mounted => self.note_volumes(mounted),
            }
            if self.mounted.is_none() {
                return Ok(false);
            }
        }
        let image = spec.image.as_deref().unwrap_or_default();
        match self.try_start(pod, spec, attempt, &sandbox.id, sandbox.attempt).await {
            Ok(id) => {
                tracing::info!(pod = %pod.key, container = name, id, attempt, "container started");
                let memory = self.memory.containers.entry(name.to_owned()).or_default();
                memory.failure = None;
                memory.failures = 0;
                memory.unhealthy = None;
                memory.ready = spec.readiness_probe.as_ref().map(|_| false);
                memory.started = spec.startup_probe.as_ref().map(|_| false);
                self.foresee_container(&id, &sandbox.id).await?;
                return Ok(true);
            }
            Err(StartError::Runtime(error)) if error.is_unreachable() => return Err(error.into()),
            Err(StartError::Superseded) => return Ok(false),
            Err(StartError::Runtime(error)) => {
                let message = runtime::chain(&error).to_string();
                self.fail(name, image, "RunContainerError", message, FIRST_RETRY);
            }
            Err(StartError::Waiting { reason, message }) => {
                let pulling =
                    matches!(reason.as_str(), "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName");
                let first = if pulling { FIRST_PULL_RETRY } else { FIRST_RETRY };
                self.fail(name, image, &reason, message, first);
            }
        }
        // One that fails does not hold up the others; what is left of it shows in a list.
        self.foreseen = None;
        Ok(true)
    }

    /// Back-off and the events, in the kubelet's words.
    fn fail(&mut self, name: &str, image: &str, reason: &str, message: String, first: Duration) {
        let memory = self.memory.containers.entry(name.to_owned()).or_default();
        let delay = first.saturating_mul(1 << memory.failures.min(10)).min(LAST_RETRY);
        memory.failures = memory.failures.saturating_add(1);
        let again = memory.failures > 1;
        let (reason, message) = match reason {
            "ErrImagePull" => {
                self.warn(Some(name), "Failed", &format!("Failed to pull image \"{image}\": {message}"));
                self.warn(Some(name), "Failed", "Error: ErrImagePull");
                if again {
                    let told = format!("Back-off pulling image \"{image}\"");
                    self.normal(Some(name), "BackOff", &told);
                    self.warn(Some(name), "Failed", "Error: ImagePullBackOff");
                    ("ImagePullBackOff", format!("{told}: ErrImagePull: {message}"))
                } else {
                    (reason, message)
                }
            }
            "ErrImageNeverPull" => {
                self.warn(Some(name), "ErrImageNeverPull", &message);
                self.warn(Some(name), "Failed", "Error: ErrImageNeverPull");
                (reason, message)
            }
            "InvalidImageName" => {
                self.warn(Some(name), "InspectFailed", &message);
                self.warn(Some(name), "Failed", "Error: InvalidImageName");
                (reason, message)
            }
            // Has been told where it failed.
            "PostStartHookError" => (reason, message),
            _ => {
                self.warn(Some(name), "Failed", &format!("Error: {message}"));
                (reason, message)
            }
        };
        let waiting = Waiting { reason: reason.to_owned(), message };
        let until = Instant::now() + delay;
        self.memory.containers.entry(name.to_owned()).or_default().failure = Some((waiting, until));
    }

    async fn try_start(
        &mut self,
        pod: &DesiredPod,
        spec: &Container,
        attempt: u32,
        sandbox_id: &str,
        sandbox_attempt: u32,
    ) -> Result<String, StartError> {
        let config_error = |error: &(dyn std::error::Error + 'static)| StartError::Waiting {
            reason: "CreateContainerConfigError".to_owned(),
            message: runtime::chain(error).to_string(),
        };
        let sandbox_config = self
            .sandbox_config(pod, sandbox_attempt, self.cgroup_driver().await)
            .map_err(|error| config_error(&error))?;
        let image = self.image(pod, spec, &sandbox_config).await?;
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
        let mut security = security::container(pod, spec, &image.user, &self.shared.seccomp_profiles)
            .map_err(|error| config_error(&error))?;
        if let Some(target) = pod.target(&spec.name) {
            let running = self.observed.latest(target).filter(|container| container.is_running());
            let id = running.map(|container| container.id.clone()).ok_or_else(|| StartError::Waiting {
                reason: "CreateContainerConfigError".to_owned(),
                message: format!("target container {target:?} is not running"),
            })?;
            let namespaces = security.namespace_options.get_or_insert_default();
            namespaces.set_pid(v1::NamespaceMode::Target);
            namespaces.target_id = id;
        }
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
        let id = self.create_and_start(pod, spec, attempt, sandbox_id, config, sandbox_config).await?;
        self.post_start(pod, spec, &id).await?;
        Ok(id)
    }

    /// The container counts as started when its hook is done; one whose hook fails is ended.
    async fn post_start(&mut self, pod: &DesiredPod, spec: &Container, id: &str) -> Result<(), StartError> {
        let handler = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        let Some(handler) = handler else { return Ok(()) };
        let hook = self.hook(handler, spec, id);
        let result = tokio::select! {
            result = hook.run(POST_START_LIMIT) => result,
            // Whoever comes next finds the container running, and ends it if that is what is wanted.
            () = self.superseded(&spec.name) => return Err(StartError::Superseded),
        };
        let Err(message) = result else { return Ok(()) };
        // Only in the status: the answer of a hook may hold what is not for everybody's events.
        self.warn(Some(&spec.name), "FailedPostStartHook", "PostStartHook failed");
        self.normal(Some(&spec.name), "Killing", &Why::PostStart.message(&spec.name));
        self.runtime.stop_container(id, pod.grace()).await.map_err(StartError::Runtime)?;
        Err(StartError::Waiting { reason: "PostStartHookError".to_owned(), message })
    }

    async fn create_and_start(
        &mut self,
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
            self.normal(Some(&spec.name), "Created", "Container created");
            if let Err(error) = self.shared.logs.make_link(pod, &spec.name, attempt, &id) {
                tracing::warn!(%error, "log link not made");
            }
            let Err(error) = self.runtime.start_container(&id).await else {
                self.normal(Some(&spec.name), "Started", "Container started");
                return Ok(id);
            };
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
                // The id is a new one each time: an event with it would be a new one, too.
                None => {
                    return Err(match start_error("RunContainerError", error) {
                        StartError::Waiting { reason, message } => {
                            StartError::Waiting { reason, message: message.replace(&id, &spec.name) }
                        }
                        other => other,
                    });
                }
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
        let directory = self.shared.volumes.make_pod_directory(&pod.uid)?;
        let hosts_file = directory.join("etc-hosts");
        hosts::write(&hosts_file, &self.hosts(pod, ips))?;
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

    fn hosts(&self, pod: &DesiredPod, ips: &[String]) -> String {
        let devices = self.door(pod).map(|door| (door, &*self.current.devices));
        hosts::content(pod, ips, &self.shared.dns.cluster_domain, Path::new("/etc/hosts"), devices)
    }

    /// Where the pod finds what speaks for devices, once its addresses are known.
    fn door(&self, pod: &DesiredPod) -> Option<IpAddr> {
        if pod.host_network() { Some(Ipv4Addr::LOCALHOST.into()) } else { self.pass.as_ref()?.door() }
    }

    /// Devices come and go while its containers run. Returns when to look again.
    pub(super) fn refresh_hosts(&mut self) -> Option<Instant> {
        let pod = Arc::clone(&self.current.pod);
        let file = self.shared.volumes.pod_directory(&pod.uid).join("etc-hosts");
        if self.devices_named.as_ref() == Some(&self.current.devices) || self.door(&pod).is_none() {
            return None;
        }
        let ips = self.addresses.as_ref().map_or(&[][..], |(_, ips)| ips);
        // Its first container gets one.
        if file.exists()
            && let Err(error) = hosts::write(&file, &self.hosts(&pod, ips))
        {
            tracing::warn!(pod = %pod.key, %error, "the names of devices are not in its hosts file yet");
            return Some(Instant::now() + LAST_HOLD);
        }
        self.devices_named = Some(Arc::clone(&self.current.devices));
        None
    }

    pub(super) fn termination_file(&self, pod: &DesiredPod, container: &str, attempt: u32) -> PathBuf {
        let directory = self.shared.volumes.pod_directory(&pod.uid);
        directory.join("containers").join(container).join(format!("{attempt}.message"))
    }
}

pub(super) enum StartError {
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
    StartError::Waiting { reason: reason.to_owned(), message: error.plain() }
}

fn failed_mount(error: &VolumeError) -> String {
    format!("MountVolume.SetUp failed for volume \"{}\" : {}", error.volume(), runtime::chain(error))
}

fn is_oom_refusal(error: &CriError) -> bool {
    error.to_string().contains("oom_score_adj")
}

/// Of a runtime that does not tell: systemd where it runs the machine.
fn guessed_driver() -> CgroupDriver {
    // As sd_booted(3) has it.
    if Path::new("/run/systemd/system").is_dir() { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }
}
