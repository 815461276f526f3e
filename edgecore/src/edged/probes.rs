//! Startup, liveness and readiness probes: one task a probe of a running container, which tells the worker when its
//! verdict changes.

pub(super) mod check;
mod grpc;
mod http;

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time,
};

use self::check::{Check, Miss};
use super::{
    cri::Runtime,
    pod::DesiredPod,
    pod_state::{Memory, Observed, State, Why},
};

/// Verdicts that wait for the worker: it takes them before it does anything else.
const QUEUE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

/// What a probe has come to.
#[derive(Debug)]
pub struct Verdict {
    pub container: String,
    pub id: String,
    pub kind: Kind,
    pub passed: bool,
    /// Why not.
    pub message: String,
}

/// The probes of one pod.
pub struct Probes {
    runtime: Runtime,
    tasks: JoinSet<()>,
    /// Per container name and kind: the container probed, and its task.
    active: HashMap<(String, Kind), (String, AbortHandle)>,
    verdicts: mpsc::Receiver<Verdict>,
    tell: mpsc::Sender<Verdict>,
}

impl Probes {
    pub fn new(runtime: Runtime) -> Self {
        let (tell, verdicts) = mpsc::channel(QUEUE);
        Self { runtime, tasks: JoinSet::new(), active: HashMap::new(), verdicts, tell }
    }

    /// The next verdict; waits for ever while there is none.
    pub async fn next(&mut self) -> Verdict {
        match self.verdicts.recv().await {
            Some(verdict) => verdict,
            // Not while `tell` lives.
            None => std::future::pending().await,
        }
    }

    /// Takes a verdict into the memory from which the next decision is made.
    pub fn note(&mut self, verdict: &Verdict, memory: &mut Memory) {
        let key = (verdict.container.clone(), verdict.kind);
        // From a container that is gone by now.
        if self.active.get(&key).is_none_or(|(id, _)| *id != verdict.id) {
            return;
        }
        let memory = memory.containers.entry(verdict.container.clone()).or_default();
        match (verdict.kind, verdict.passed) {
            (Kind::Readiness, passed) => memory.ready = Some(passed),
            (Kind::Startup, true) => memory.started = Some(true),
            (Kind::Startup, false) => memory.unhealthy = Some((verdict.id.clone(), Why::Startup)),
            (Kind::Liveness, false) => memory.unhealthy = Some((verdict.id.clone(), Why::Liveness)),
            (Kind::Liveness, true) => {}
        }
    }

    /// Starts the probes of containers that run, and ends those of others.
    pub fn keep_up(
        &mut self,
        pod: &DesiredPod,
        observed: &Observed,
        address: Option<&str>,
        memory: &mut Memory,
    ) {
        while self.tasks.try_join_next().is_some() {}
        for (_, spec) in pod.all_containers() {
            let latest = observed.latest(&spec.name);
            let running = latest.and_then(|latest| match latest.state {
                State::Running { started_at } => Some((latest.id.as_str(), started_at)),
                _ => None,
            });
            let Some((id, started_at)) = running else {
                self.forget(&spec.name);
                continue;
            };
            let memory = memory.containers.entry(spec.name.clone()).or_default();
            if let Some(startup) = &spec.startup_probe
                && memory.started.is_none()
            {
                // Adopted: it has started if it had the time to.
                let limit =
                    initial_delay(startup) + period(startup) * threshold(startup.failure_threshold, 3);
                memory.started = Some(age(started_at) > limit);
            }
            let adopted = spec.readiness_probe.is_some() && memory.ready.is_none();
            if adopted {
                // Adopted: as ready as it was for whoever used it while edgecore was away; the first verdict corrects it.
                memory.ready = Some(true);
            }
            let started = memory.started != Some(false);
            let wanted = [
                (Kind::Startup, spec.startup_probe.as_ref().filter(|_| !started)),
                (Kind::Liveness, spec.liveness_probe.as_ref().filter(|_| started)),
                (Kind::Readiness, spec.readiness_probe.as_ref().filter(|_| started)),
            ];
            for (kind, probe) in wanted {
                match probe {
                    Some(probe) => {
                        let ready = memory.ready;
                        self.start(spec, id, started_at, kind, probe, address, (ready, adopted));
                    }
                    None => self.end(&spec.name, kind),
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one caller, which has them apart")]
    fn start(
        &mut self,
        spec: &Container,
        id: &str,
        started_at: Timestamp,
        kind: Kind,
        probe: &Probe,
        address: Option<&str>,
        (ready, adopted): (Option<bool>, bool),
    ) {
        let key = (spec.name.clone(), kind);
        if self.active.get(&key).is_some_and(|(known, task)| known == id && !task.is_finished()) {
            return;
        }
        self.end(&spec.name, kind);
        let Some(check) = Check::of(probe, spec, address, &self.runtime, id) else { return };
        let task = Prober {
            check,
            kind,
            container: spec.name.clone(),
            id: id.to_owned(),
            delay: initial_delay(probe).saturating_sub(age(started_at)),
            period: period(probe),
            timeout: seconds(probe.timeout_seconds, 1),
            failures: threshold(probe.failure_threshold, 3),
            successes: threshold(probe.success_threshold, 1),
            // A readiness that is taken over is the first verdict.
            decisive: adopted && kind == Kind::Readiness,
            last: if kind == Kind::Readiness { ready.filter(|ready| *ready) } else { None },
            tell: self.tell.clone(),
        };
        let handle = self.tasks.spawn(task.run());
        self.active.insert(key, (id.to_owned(), handle));
    }

    fn end(&mut self, container: &str, kind: Kind) {
        if let Some((_, task)) = self.active.remove(&(container.to_owned(), kind)) {
            task.abort();
        }
    }

    /// The container is being stopped, or has ended.
    pub fn forget(&mut self, container: &str) {
        for kind in [Kind::Startup, Kind::Liveness, Kind::Readiness] {
            self.end(container, kind);
        }
    }

    pub fn clear(&mut self) {
        self.active.clear();
        self.tasks.abort_all();
    }
}

struct Prober {
    check: Check,
    kind: Kind,
    container: String,
    id: String,
    delay: Duration,
    period: Duration,
    timeout: Duration,
    failures: u32,
    successes: u32,
    /// The next result decides by itself: what is adopted may have long been otherwise.
    decisive: bool,
    last: Option<bool>,
    tell: mpsc::Sender<Verdict>,
}

impl Prober {
    async fn run(mut self) {
        time::sleep(self.delay).await;
        let mut ticks = time::interval(self.period);
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let (mut passed, mut failed) = (0, 0);
        loop {
            ticks.tick().await;
            let result = match time::timeout(self.timeout, self.check.run(self.timeout)).await {
                Ok(result) => result,
                Err(_) => Err(Miss::Failed(format!("timed out after {} s", self.timeout.as_secs()))),
            };
            let result = match result {
                Ok(()) => Ok(()),
                Err(Miss::Failed(message)) => Err(message),
                // A runtime that is being restarted must not cost what runs its life.
                Err(Miss::Unknown(message)) => {
                    tracing::warn!(container = self.container, kind = ?self.kind, message, "probe not made");
                    continue;
                }
            };
            let decisive = std::mem::take(&mut self.decisive);
            let verdict = match &result {
                Ok(()) => {
                    (passed, failed) = (passed + 1, 0);
                    (passed >= self.successes || decisive).then_some(true)
                }
                Err(message) => {
                    tracing::debug!(container = self.container, kind = ?self.kind, message, "probe failed");
                    (passed, failed) = (0, failed + 1);
                    (failed >= self.failures || decisive).then_some(false)
                }
            };
            let Some(verdict) = verdict.filter(|verdict| Some(*verdict) != self.last) else { continue };
            self.last = Some(verdict);
            let told = Verdict {
                container: self.container.clone(),
                id: self.id.clone(),
                kind: self.kind,
                passed: verdict,
                message: result.err().unwrap_or_default(),
            };
            if self.tell.send(told).await.is_err() {
                return;
            }
        }
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default),
    )
}

fn period(probe: &Probe) -> Duration {
    seconds(probe.period_seconds, 10)
}

fn initial_delay(probe: &Probe) -> Duration {
    Duration::from_secs(probe.initial_delay_seconds.and_then(|delay| u64::try_from(delay).ok()).unwrap_or(0))
}

fn threshold(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
}

fn age(started_at: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(started_at)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While the runtime is restarted it answers nobody; a connection that is refused is another matter.
    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_is_away_fails_no_probe() {
        let runtime = Runtime::new("unix:///nonexistent/containerd.sock").unwrap();
        let exec =
            Check::Exec { runtime: Box::new(runtime), id: "a0".to_owned(), command: vec!["true".to_owned()] };
        let refused = Check::Tcp { host: "127.0.0.1".to_owned(), port: 1 };
        for (check, fails) in [(exec, false), (refused, true)] {
            let (tell, mut verdicts) = mpsc::channel(QUEUE);
            let prober = Prober {
                check,
                kind: Kind::Liveness,
                container: "a".to_owned(),
                id: "a0".to_owned(),
                delay: Duration::ZERO,
                period: Duration::from_secs(1),
                timeout: Duration::from_secs(1),
                failures: 3,
                successes: 1,
                decisive: false,
                last: None,
                tell,
            };
            let told = tokio::select! {
                () = prober.run() => unreachable!("the receiver lives"),
                verdict = verdicts.recv() => verdict.map(|verdict| verdict.passed),
                () = time::sleep(Duration::from_mins(1)) => None,
            };
            assert_eq!(told, fails.then_some(false));
        }
    }
}
