//! Stopping: the preStop hook, the signal, the kill, all within the grace period.

use std::time::Duration;

use futures_util::future;
use tokio::time::Instant;

use super::{PodWorker, WorkError, hooks::Hook};
use crate::edged::{
    cri::{CriError, Runtime},
    pod_state::Stop,
};

/// What a container has after a hook that took all of its time.
const LEAST_GRACE: Duration = Duration::from_secs(2);

impl PodWorker {
    pub(super) async fn stop_containers(&mut self, stops: Vec<Stop>) -> Result<bool, WorkError> {
        let mut work = Vec::new();
        for stop in &stops {
            tracing::info!(pod = %self.current.pod.key, container = stop.name, why = ?stop.why, "stopping container");
            self.normal(Some(&stop.name), "Killing", &stop.why.message(&stop.name));
            self.probes.forget(&stop.name);
            work.push(stop_one(self.runtime.clone(), self.pre_stop(stop), stop.clone()));
        }
        // The grace period may be long, and whoever waits should see why.
        self.keep_events().await;
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
        for (stop, result) in stops.iter().zip(results) {
            if let Err(message) = result? {
                // Only in the log: the answer of a hook may hold what is not for everybody.
                tracing::warn!(container = stop.name, message, "preStop hook failed");
                self.warn(Some(&stop.name), "FailedPreStopHook", "PreStopHook failed");
            }
        }
        for stop in stops {
            if let Some(memory) = self.memory.containers.get_mut(&stop.name) {
                memory.unhealthy = None;
            }
        }
        Ok(true)
    }

    /// Of a container that runs, once.
    fn pre_stop(&mut self, stop: &Stop) -> Option<Hook> {
        let pod = self.current.pod.clone();
        let (_, spec) = pod.container(&stop.name)?;
        let handler = spec.lifecycle.as_ref()?.pre_stop.as_ref()?;
        let memory = self.memory.containers.entry(stop.name.clone()).or_default();
        if memory.pre_stopped.replace(stop.id.clone()).as_ref() == Some(&stop.id) {
            return None;
        }
        Some(self.hook(handler, spec, &stop.id))
    }
}

/// What the hook came to, once the container has ended.
async fn stop_one(runtime: Runtime, hook: Option<Hook>, stop: Stop) -> Result<Result<(), String>, CriError> {
    let began = Instant::now();
    let (hooked, left) = match hook {
        // Without one the grace period is whole, or what is left of it after a restart of this work.
        None => (Ok(()), stop.grace),
        Some(hook) => {
            let hooked = hook.run(stop.grace).await;
            (hooked, stop.grace.saturating_sub(began.elapsed()).max(LEAST_GRACE))
        }
    };
    runtime.stop_container(&stop.id, left).await?;
    Ok(hooked)
}
