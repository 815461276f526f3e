//! Stopping: the preStop hook, the signal, the kill, all within the grace period.

use std::time::Duration;

use futures_util::future;
use k8s_openapi::api::core::v1::LifecycleHandler;
use tokio::time::{self, Instant};

use super::{PodWorker, WorkError};
use crate::edged::{
    cri::{CriError, Runtime},
    pod_state::Stop,
    probes::check::Check,
};

/// What a container has after a hook that took all of its time.
const LEAST_GRACE: Duration = Duration::from_secs(2);

struct Hook {
    check: Option<Check>,
    sleep: Duration,
}

impl PodWorker {
    pub(super) async fn stop_containers(&mut self, stops: Vec<Stop>) -> Result<bool, WorkError> {
        let mut work = Vec::new();
        for stop in &stops {
            tracing::info!(pod = %self.current.pod.key, container = stop.name, why = stop.why, "stopping container");
            self.probes.forget(&stop.name);
            work.push(stop_one(self.runtime.clone(), self.hook(stop), stop.clone()));
        }
        let work = future::join_all(work);
        let (before, grace) = (self.current.intent, self.current.pod.grace());
        let urgent = async {
            // A shorter grace period, or the object itself gone, does not wait for the longer one.
            loop {
                if self.input.changed().await.is_err() {
                    return future::pending().await;
                }
                let input = self.input.borrow_and_update();
                if input.intent != before || input.pod.grace() != grace {
                    return;
                }
            }
        };
        let results = tokio::select! {
            // The runtime goes on with what it began; the next decision asks it again, with what is left of the time.
            results = work => results,
            () = urgent => {
                self.input.mark_changed();
                return Ok(false);
            }
        };
        results.into_iter().collect::<Result<Vec<()>, _>>()?;
        for stop in stops {
            if let Some(memory) = self.memory.containers.get_mut(&stop.name) {
                memory.unhealthy = None;
            }
        }
        Ok(true)
    }

    /// Of a container that runs, once.
    fn hook(&mut self, stop: &Stop) -> Option<Hook> {
        let pod = self.current.pod.clone();
        let (_, spec) = pod.container(&stop.name)?;
        let handler: &LifecycleHandler = spec.lifecycle.as_ref()?.pre_stop.as_ref()?;
        let memory = self.memory.containers.entry(stop.name.clone()).or_default();
        if memory.pre_stopped.replace(stop.id.clone()).as_ref() == Some(&stop.id) {
            return None;
        }
        let address = self.address();
        let sleep = handler.sleep.as_ref().and_then(|sleep| u64::try_from(sleep.seconds).ok()).unwrap_or(0);
        Some(Hook {
            check: Check::of_hook(handler, spec, address.as_deref(), &self.runtime, &stop.id),
            sleep: Duration::from_secs(sleep),
        })
    }
}

async fn stop_one(runtime: Runtime, hook: Option<Hook>, stop: Stop) -> Result<(), CriError> {
    let began = Instant::now();
    if let Some(Hook { check, sleep }) = hook {
        let work = async {
            time::sleep(sleep).await;
            match check {
                Some(check) => check.run(stop.grace).await,
                None => Ok(()),
            }
        };
        match time::timeout(stop.grace, work).await {
            Ok(Ok(())) => {}
            Ok(Err(message)) => tracing::warn!(container = stop.name, message, "preStop hook failed"),
            Err(_) => tracing::warn!(container = stop.name, "preStop hook took all of the grace period"),
        }
    }
    let passed = began.elapsed();
    // Without a hook the grace period is whole, or what is left of it after a restart of this work.
    let left = if passed < Duration::from_millis(10) {
        stop.grace
    } else {
        stop.grace.saturating_sub(passed).max(LEAST_GRACE)
    };
    runtime.stop_container(&stop.id, left).await
}
