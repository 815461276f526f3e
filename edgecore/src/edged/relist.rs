//! What the runtime has, all of it in two calls. Asked once a second while something is under way, and less and less
//! often, down to once in ten seconds, while nothing happens: an idle node should sleep. A runtime that tells of
//! events is asked as soon as it does.

use std::{collections::HashMap, sync::Arc, time::Duration};

use proto::cri::v1;
use tokio::{
    sync::{Notify, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    cri::{CriError, Runtime},
    labels,
    pod::PodUid,
};

const BUSY: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(10);
/// With events a relist is only there for those that got lost.
const QUIET_WITH_EVENTS: Duration = Duration::from_mins(1);
/// Events come in bursts: a pod that starts makes several.
const GATHER: Duration = Duration::from_millis(50);

/// What the runtime lists of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed {
    pub sandboxes: Vec<v1::PodSandbox>,
    pub containers: Vec<v1::Container>,
}

/// What the runtime listed of all pods.
#[derive(Debug)]
pub struct Snapshot {
    /// Before the first call was made: what was done later may not show.
    pub asked_at: Instant,
    pub pods: HashMap<PodUid, Listed>,
}

/// `None` before the first answer; then the last one that there was, and whether the runtime answers now.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub snapshot: Option<Arc<Snapshot>>,
    pub unreachable: Option<String>,
}

/// Tells the relister that something is under way.
#[derive(Clone, Default)]
pub struct Poke(Arc<Notify>);

impl Poke {
    pub fn poke(&self) {
        self.0.notify_one();
    }
}

pub struct Relister {
    pub runtime: Runtime,
    pub poke: Poke,
    pub views: watch::Sender<View>,
}

impl Relister {
    pub async fn run(self, stop: CancellationToken) {
        let mut period = BUSY;
        let mut events = Events::Unknown;
        loop {
            let changed = self.relist().await;
            if matches!(events, Events::Unknown) && self.views.borrow().unreachable.is_none() {
                events = self.subscribe().await;
            }
            let quiet = if matches!(events, Events::Stream(_)) { QUIET_WITH_EVENTS } else { QUIET };
            period = if changed { BUSY } else { (period * 2).min(quiet) };
            // Every arm only waits: what it would have done is done by the next round.
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.poke.0.notified() => {
                    period = BUSY;
                    time::sleep(BUSY).await;
                }
                () = time::sleep(period) => {}
                alive = next_event(&mut events) => {
                    if !alive {
                        events = Events::Unknown;
                    }
                    time::sleep(GATHER).await;
                }
            }
        }
    }

    async fn subscribe(&self) -> Events {
        match self.runtime.events().await {
            Ok(stream) => Events::Stream(Box::new(stream)),
            Err(error) if error.is_unreachable() => Events::Unknown,
            Err(error) => {
                tracing::info!(error = %runtime::chain(&error), "the runtime has no container events; relisting");
                Events::None
            }
        }
    }

    async fn relist(&self) -> bool {
        match list(&self.runtime, None).await {
            Ok((asked_at, pods)) => {
                let was_unreachable = self.views.borrow().unreachable.is_some();
                if was_unreachable {
                    tracing::info!("container runtime answers again");
                }
                let changed = was_unreachable
                    || self.views.borrow().snapshot.as_ref().is_none_or(|before| before.pods != pods);
                let view = View { snapshot: Some(Arc::new(Snapshot { asked_at, pods })), unreachable: None };
                // Without a change nobody is woken.
                self.views.send_if_modified(|current| {
                    *current = view;
                    changed
                });
                changed
            }
            Err(error) => {
                let message = runtime::chain(&error).to_string();
                self.views.send_if_modified(|current| {
                    let news = current.unreachable.is_none();
                    if news {
                        tracing::warn!(error = message, "container runtime does not answer");
                    }
                    current.unreachable = Some(message);
                    news
                });
                false
            }
        }
    }
}

enum Events {
    /// To be asked for.
    Unknown,
    /// An older runtime.
    None,
    Stream(Box<tonic::Streaming<v1::ContainerEventResponse>>),
}

/// True when there was one, false when there will be no more.
async fn next_event(events: &mut Events) -> bool {
    match events {
        Events::Stream(stream) => matches!(stream.message().await, Ok(Some(_))),
        Events::Unknown | Events::None => std::future::pending().await,
    }
}

/// Of one pod, or of all.
pub async fn list(
    runtime: &Runtime,
    pod: Option<&PodUid>,
) -> Result<(Instant, HashMap<PodUid, Listed>), CriError> {
    let asked_at = Instant::now();
    let label_selector = pod.map(|uid| labels::pod_selector(uid.as_str())).unwrap_or_default();
    let sandboxes = runtime.list_sandboxes(v1::PodSandboxFilter {
        label_selector: label_selector.clone(),
        ..Default::default()
    });
    let containers = runtime.list_containers(v1::ContainerFilter { label_selector, ..Default::default() });
    let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
    let mut pods: HashMap<PodUid, Listed> = HashMap::new();
    for sandbox in sandboxes {
        if let Some(uid) = sandbox.labels.get(labels::POD_UID).and_then(|uid| PodUid::new(uid)) {
            pods.entry(uid).or_default().sandboxes.push(sandbox);
        }
    }
    for container in containers {
        if let Some(uid) = container.labels.get(labels::POD_UID).and_then(|uid| PodUid::new(uid)) {
            pods.entry(uid).or_default().containers.push(container);
        }
    }
    // Runtimes list in no order.
    for listed in pods.values_mut() {
        listed.sandboxes.sort_by(|a, b| a.id.cmp(&b.id));
        listed.containers.sort_by(|a, b| a.id.cmp(&b.id));
    }
    Ok((asked_at, pods))
}
