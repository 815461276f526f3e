//! Changing the CPU and memory of a container while it runs (KEP-1287).

use std::{path::Path, time::Duration};

use k8s_openapi::api::core::v1::Container;
use proto::cri::v1::CgroupDriver;
use tokio::time::Instant;

use super::{PodWorker, WorkError};
use crate::edged::{
    cgroup::{self, CGROUPS},
    cri::CriError,
    pod::DesiredPod,
    pod_state::Waiting,
    resources,
};

/// What is in the way may go: less memory is used, the runtime recovers.
const RETRY: Duration = Duration::from_secs(30);
/// A node does not grow.
const NEVER: Duration = Duration::from_hours(24 * 365);

impl PodWorker {
    pub(super) async fn resize(&mut self, pod: &DesiredPod, id: &str, name: &str) -> Result<(), WorkError> {
        let Some((_, spec)) = pod.container(name) else { return Ok(()) };
        let wanted = resources::resizable(spec);
        let capacity = self.shared.capacity;
        let most = |amount: i128| i64::try_from(amount).unwrap_or(i64::MAX);
        let (milli_cpu, memory) = (most(capacity.milli_cpu), most(capacity.memory.into()));
        let failure =
            if let Some((resource, asked, capacity)) = resources::infeasible(&pod.spec, milli_cpu, memory) {
                // In the kubelet's words.
                let message = format!(
                    "Node didn't have enough capacity: {resource}, requested: {asked}, capacity: {capacity}"
                );
                Some(("Infeasible", message, NEVER))
            } else {
                self.update(pod, spec, id).await?.err().map(|message| ("Error", message, RETRY))
            };
        let memory = self.memory.containers.entry(name.to_owned()).or_default();
        memory.resize_failure = failure.map(|(reason, message, wait)| {
            tracing::warn!(pod = %pod.key, container = name, reason, message, "container not resized");
            (wanted.clone(), Waiting { reason: reason.to_owned(), message }, Instant::now() + wait)
        });
        if memory.resize_failure.is_none() {
            tracing::info!(pod = %pod.key, container = name, resources = wanted, "container resized");
            memory.resized = Some((id.to_owned(), wanted));
        }
        Ok(())
    }

    /// The container, and the pod's group around it, which must not have less than it.
    async fn update(
        &self,
        pod: &DesiredPod,
        spec: &Container,
        id: &str,
    ) -> Result<Result<(), String>, WorkError> {
        let mut limits = resources::container_resources(&pod.spec, spec, self.shared.capacity.memory);
        let now = self.observed.latest(&spec.name).and_then(|latest| self.memory.applied(latest));
        let grows = now.is_some_and(|now| resources::cpu_grows(now, spec));
        if limits.memory_limit_in_bytes > 0
            && let Some(used) = self.memory_in_use(id).await?
            && i64::try_from(used).unwrap_or(i64::MAX) > limits.memory_limit_in_bytes
        {
            // The kernel would kill it.
            let limit = limits.memory_limit_in_bytes;
            return Ok(Err(format!("the memory limit {limit} is below the current usage {used}")));
        }
        // What is no longer bounded; a zero would leave it as it is.
        for number in [&mut limits.cpu_quota, &mut limits.memory_limit_in_bytes] {
            if *number == 0 {
                *number = -1;
            }
        }
        // Under version 1 the group is refused less than a container in it has.
        if grows {
            self.write_group(pod).await;
        }
        match self.runtime.update_container(id, limits).await {
            Err(error) if error.is_unreachable() => return Err(error.into()),
            Err(error) => return Ok(Err(runtime::chain(&error).to_string())),
            Ok(()) => {}
        }
        if !grows {
            self.write_group(pod).await;
        }
        Ok(Ok(()))
    }

    async fn memory_in_use(&self, id: &str) -> Result<Option<u64>, CriError> {
        let stats = self.runtime.container_stats(id).await?;
        Ok(stats.and_then(|stats| Some(stats.memory?.working_set_bytes?.value)))
    }

    async fn write_group(&self, pod: &DesiredPod) {
        let done = match self.cgroup_driver().await {
            CgroupDriver::Systemd => match cgroup::tell_systemd(&pod.spec, &pod.uid).await {
                Ok(()) => cgroup::weigh_slice(Path::new(CGROUPS), resources::qos_class(&pod.spec)).await,
                failed => failed,
            },
            CgroupDriver::Cgroupfs => cgroup::write(Path::new(CGROUPS), &pod.spec, &pod.uid),
        };
        if let Err(error) = done {
            tracing::warn!(pod = %pod.key, %error, "cgroup of the pod not resized");
        }
    }
}
