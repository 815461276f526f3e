//! Kubernetes events about pods, through the outbox. Each costs a write to the disk and bytes on the line, so only
//! what someone should know is told, and the same thing about the same pod not again within an hour.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use proto::message::ReportKind;
use tokio::time::Instant;

use super::pod::{DesiredPod, PodUid};
use crate::metamanager::Store;

const REPEAT: Duration = Duration::from_hours(1);
/// Beyond it all is forgotten: an event may then come twice.
const REMEMBERED: usize = 4096;
const MAX_MESSAGE: usize = 1024;

/// Pod, reason, message.
type Told = (PodUid, &'static str, String);

#[derive(Clone)]
pub struct Events {
    store: Store,
    node: Arc<str>,
    told: Arc<Mutex<HashMap<Told, Instant>>>,
}

impl Events {
    pub fn new(store: Store, node: &str) -> Self {
        Self { store, node: node.into(), told: Arc::default() }
    }

    pub async fn warn(&self, pod: &DesiredPod, reason: &'static str, message: &str) {
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        if !self.is_new(pod, reason, &message) {
            return tracing::debug!(pod = %pod.key, reason, message, "pod event again");
        }
        tracing::warn!(pod = %pod.key, uid = %pod.uid, reason, message, "pod event");
        let payload = match serde_json::to_vec(&self.event(pod, reason, message)) {
            Ok(payload) => Bytes::from(payload),
            Err(error) => return tracing::error!(%error, "an event does not serialize"),
        };
        // An event is the one thing that may be lost: the status says the same.
        if let Err(error) = self.store.report(ReportKind::Event, &pod.key, payload).await {
            tracing::warn!(error = %runtime::chain(&error), "event not kept");
        }
    }

    fn is_new(&self, pod: &DesiredPod, reason: &'static str, message: &str) -> bool {
        // No invariant can be broken by a panic in between.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if told.len() >= REMEMBERED {
            told.clear();
        }
        let key = (pod.uid.clone(), reason, message.to_owned());
        let before = told.insert(key.clone(), now);
        match before {
            Some(at) if now.duration_since(at) < REPEAT => {
                told.insert(key, at);
                false
            }
            _ => true,
        }
    }

    fn event(&self, pod: &DesiredPod, reason: &str, message: String) -> Event {
        let now = Timestamp::now();
        let time = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", pod.name(), now.as_nanosecond())),
                namespace: Some(pod.namespace().to_owned()),
                ..Default::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name().to_owned()),
                namespace: Some(pod.namespace().to_owned()),
                uid: Some(pod.uid.to_string()),
                ..Default::default()
            },
            reason: Some(reason.to_owned()),
            message: Some(message),
            type_: Some("Warning".to_owned()),
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
