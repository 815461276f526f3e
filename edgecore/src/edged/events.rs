//! Kubernetes events about pods, through the outbox, with the kubelet's reasons and words. Each costs a write to the
//! disk and bytes on the line, so the same thing about the same pod is not told again within an hour.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use proto::message::ReportKind;
use tokio::time::Instant;

use super::pod::{DesiredPod, Role};
use crate::{event_name::event_name, metamanager::Store};

const REPEAT: Duration = Duration::from_hours(1);
/// Beyond it all is forgotten: an event may then come twice. About 100 KiB.
const REMEMBERED: usize = 4096;
const MAX_MESSAGE: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Warning,
}

/// Something that happened to a pod.
#[derive(Debug)]
pub struct Happening<'a> {
    pub kind: Kind,
    pub reason: &'static str,
    pub message: &'a str,
    /// `None`: it is about the whole pod.
    pub container: Option<&'a str>,
}

#[derive(Clone)]
pub struct Events {
    store: Store,
    node: Arc<str>,
    /// By the hash of pod, container, reason and message: when it was told.
    told: Arc<Mutex<HashMap<u64, Instant>>>,
}

impl Events {
    pub fn new(store: Store, node: &str) -> Self {
        Self { store, node: node.into(), told: Arc::default() }
    }

    /// The event, unless it was told already.
    pub fn note(&self, pod: &DesiredPod, happening: &Happening<'_>) -> Option<Bytes> {
        let Happening { kind, reason, message, container } = *happening;
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        if !self.is_new(pod, happening) {
            tracing::debug!(pod = %pod.key, reason, message, "pod event again");
            return None;
        }
        match kind {
            Kind::Warning => {
                tracing::warn!(pod = %pod.key, uid = %pod.uid, container, reason, message, "pod event");
            }
            Kind::Normal => tracing::debug!(pod = %pod.key, container, reason, message, "pod event"),
        }
        match serde_json::to_vec(&self.event(pod, happening, message)) {
            Ok(payload) => Some(Bytes::from(payload)),
            Err(error) => {
                tracing::error!(%error, "an event does not serialize");
                None
            }
        }
    }

    /// Puts them into the outbox, all with one sync of the store.
    pub async fn keep(&self, pod: &DesiredPod, events: Vec<Bytes>) {
        let reports = events.into_iter().map(|event| self.store.report(ReportKind::Event, &pod.key, event));
        for result in future::join_all(reports).await {
            // An event is the one thing that may be lost: the status says the same.
            if let Err(error) = result {
                tracing::warn!(error = %runtime::chain(&error), "event not kept");
            }
        }
    }

    fn is_new(&self, pod: &DesiredPod, happening: &Happening<'_>) -> bool {
        let mut hasher = DefaultHasher::new();
        (&pod.uid, happening.container, happening.reason, happening.message).hash(&mut hasher);
        let now = Instant::now();
        // No invariant can be broken by a panic in between.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= REMEMBERED {
            told.clear();
        }
        let at = told.entry(hasher.finish());
        let mut is_new = true;
        at.and_modify(|at| {
            is_new = now.duration_since(*at) >= REPEAT;
            if is_new {
                *at = now;
            }
        })
        .or_insert(now);
        is_new
    }

    fn event(&self, pod: &DesiredPod, happening: &Happening<'_>, message: String) -> Event {
        let now = Timestamp::now();
        let time = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let field = happening.container.map(|name| {
            let list = match pod.container(name) {
                Some((Role::Init | Role::Sidecar, _)) => "initContainers",
                Some((Role::Ephemeral, _)) => "ephemeralContainers",
                _ => "containers",
            };
            format!("spec.{list}{{{name}}}")
        });
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(pod.name(), now)),
                namespace: Some(pod.namespace().to_owned()),
                ..Default::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name().to_owned()),
                namespace: Some(pod.namespace().to_owned()),
                uid: Some(pod.uid.to_string()),
                field_path: field,
                ..Default::default()
            },
            reason: Some(happening.reason.to_owned()),
            message: Some(message),
            type_: Some(format!("{:?}", happening.kind)),
            count: Some(1),
            first_timestamp: Some(Time(time)),
            last_timestamp: Some(Time(time)),
            source: Some(EventSource {
                component: Some("edged".to_owned()),
                host: Some(self.node.to_string()),
            }),
            reporting_component: Some("edged".to_owned()),
            reporting_instance: Some(self.node.to_string()),
            ..Default::default()
        }
    }
}
