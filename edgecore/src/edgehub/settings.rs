//! How the edge's half of the link is used: what the node's ConfigMap says, as the store holds it, and where that says
//! nothing, what `modules.edgeHub.sync` of edgecore.yaml does.
//!
//! Which ConfigMap it is, the node's annotation says, or the cloud in its welcome. One that is wrong changes nothing: the
//! last good document, which is kept beside the objects, stays in force, and an event on the Node says what is wrong.

use std::collections::HashSet;

use bytes::Bytes;
use crds::{
    SYNC_CONFIG_ANNOTATION,
    componentconfig::sync::{
        Bandwidth, ClassName, LinkSettings, SYNC_DOCUMENT, Strategy, SyncStrategy, USUAL_CONFIG_MAP,
        config_map_name,
    },
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use proto::{
    ResourceKey,
    message::{DownSettings, ReportKind},
    resource::content_hash,
};
use runtime::chain;
use serde_json::Value;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::HubStore;
use crate::{event_name::event_name, metamanager::StoreError};

/// Where the last good document is kept.
const KEPT: &str = "sync-strategy";
/// Where the name of the ConfigMap is kept that the cloud has told, unless it is the usual one.
const FLEET: &str = "sync-config";
/// Complaints that are not made again: one a pod and mistake, and then some.
const REMEMBERED: usize = 1024;

/// How the link is used now, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkUse {
    pub settings: LinkSettings,
    /// Reports wait for the end of their interval.
    pub holding: bool,
}

pub(super) struct Settings {
    node: String,
    own: SyncStrategy,
    good: SyncStrategy,
    /// The text of `good`, if there is any.
    kept: Option<Bytes>,
    /// The ConfigMap of nodes that name none.
    fleet: String,
    /// The ConfigMap that was looked at last, and its hash.
    looked_at: Option<(ResourceKey, u64)>,
    complaints: HashSet<u64>,
    in_force: watch::Sender<LinkUse>,
}

/// What the node's ConfigMap is.
enum Source {
    None,
    Key(ResourceKey),
    Wrong(String),
}

impl Settings {
    pub(super) fn load(node: &str, own: SyncStrategy, store: &impl HubStore) -> Self {
        let local = |key| store.local(key).ok().flatten();
        let kept = local(KEPT);
        let good = kept.as_deref().and_then(parse).unwrap_or_default();
        let fleet = local(FLEET).and_then(|fleet| String::from_utf8(fleet.into()).ok());
        let settings = LinkSettings::of([&good, &own]);
        let (in_force, _) = watch::channel(LinkUse { settings, holding: false });
        Self {
            node: node.to_owned(),
            own,
            good,
            kept,
            fleet: fleet.unwrap_or_else(|| USUAL_CONFIG_MAP.to_owned()),
            looked_at: None,
            complaints: HashSet::new(),
            in_force,
        }
    }

    pub(super) fn in_force(&self) -> LinkSettings {
        self.in_force.borrow().settings
    }

    pub(super) fn note_holding(&self, holding: bool) {
        self.in_force.send_if_modified(|now| std::mem::replace(&mut now.holding, holding) != holding);
    }

    pub(super) fn watch(&self) -> watch::Receiver<LinkUse> {
        self.in_force.subscribe()
    }

    /// For the hello: what edgecore.yaml says, and what the last good document does.
    pub(super) fn down(&self) -> (Option<DownSettings>, Option<DownSettings>) {
        (down(&self.own), down(&self.good))
    }

    /// The cloud has told which ConfigMap it is for nodes that name none.
    pub(super) async fn told(
        &mut self,
        fleet: Option<String>,
        store: &impl HubStore,
    ) -> Result<(), StoreError> {
        let fleet = fleet.unwrap_or_else(|| USUAL_CONFIG_MAP.to_owned());
        if fleet != self.fleet {
            store.put_local(FLEET, fleet.clone().into()).await?;
            self.fleet = fleet;
        }
        self.look(store).await
    }

    /// The store's Node or one of its ConfigMaps may have changed.
    pub(super) async fn look(&mut self, store: &impl HubStore) -> Result<(), StoreError> {
        match self.source(store)? {
            Source::None => self.take(SyncStrategy::default(), None, store).await,
            Source::Wrong(wrong) => self.complain(&format!("Node//{}", self.node), &wrong, store).await,
            Source::Key(key) => {
                let Some(object) = store.get(&key)? else {
                    self.looked_at = None;
                    return self.take(SyncStrategy::default(), None, store).await;
                };
                let seen = (key, object.version.hash);
                if self.looked_at.as_ref() == Some(&seen) {
                    return Ok(());
                }
                let name = format!("{}/{}", seen.0.namespace(), seen.0.name());
                match runtime::config::document(&name, &object.bytes, SYNC_DOCUMENT, SyncStrategy::validate) {
                    Ok((good, text)) => self.take(good, Some(text.into()), store).await?,
                    Err(error) => {
                        let wrong = format!("{}; the link goes on as before", chain(&error));
                        self.complain(&format!("Node//{}", self.node), &wrong, store).await?;
                    }
                }
                self.looked_at = Some(seen);
                Ok(())
            }
        }
    }

    fn source(&self, store: &impl HubStore) -> Result<Source, StoreError> {
        let own = ResourceKey::new("Node", "", &self.node).ok();
        let node = own.map(|key| store.get(&key)).transpose()?.flatten();
        let node: Value = node.and_then(|node| serde_json::from_slice(&node.bytes).ok()).unwrap_or_default();
        let named = node["metadata"]["annotations"][SYNC_CONFIG_ANNOTATION].as_str();
        let map = named.unwrap_or(&self.fleet);
        let key = config_map_name(map)
            .and_then(|(namespace, name)| ResourceKey::new("ConfigMap", namespace, name).ok());
        Ok(match (key, named) {
            (Some(key), _) => Source::Key(key),
            (None, None) => Source::None,
            (None, Some(named)) => {
                let named: String = named.chars().take(300).collect();
                Source::Wrong(format!(
                    "annotation {SYNC_CONFIG_ANNOTATION}: {named:?} is not NAMESPACE/NAME, as in {USUAL_CONFIG_MAP}; the \
                     link goes on as before"
                ))
            }
        })
    }

    /// This counts from now on, over restarts, too.
    async fn take(
        &mut self,
        good: SyncStrategy,
        text: Option<Bytes>,
        store: &impl HubStore,
    ) -> Result<(), StoreError> {
        if text == self.kept {
            return Ok(());
        }
        self.good = good;
        let now = LinkSettings::of([&self.good, &self.own]);
        if self.in_force.send_if_modified(|link| std::mem::replace(&mut link.settings, now) != now) {
            info!(settings = ?now, "link settings changed");
        }
        // Until it is kept, the next look tries again.
        match &text {
            Some(text) => store.put_local(KEPT, text.clone()).await?,
            None => store.delete_local(KEPT).await?,
        }
        self.kept = text;
        Ok(())
    }

    /// Makes an event of it, once.
    pub(super) async fn complain(
        &mut self,
        about: &str,
        wrong: &str,
        store: &impl HubStore,
    ) -> Result<(), StoreError> {
        if self.complaints.len() >= REMEMBERED {
            self.complaints.clear();
        }
        let Ok(key) = about.parse::<ResourceKey>() else { return Ok(()) };
        if !self.complaints.insert(content_hash(format!("{key} {wrong}").as_bytes())) {
            return Ok(());
        }
        warn!(%key, wrong, "invalid link settings");
        let object = store.get(&key)?.map(|object| object.bytes).unwrap_or_default();
        let object: Value = serde_json::from_slice(&object).unwrap_or_default();
        let uid = object["metadata"]["uid"].as_str().unwrap_or(key.name());
        match serde_json::to_vec(&event(&self.node, &key, uid, wrong)) {
            Ok(payload) => store.report(ReportKind::Event, &key, payload.into()).await.map(drop),
            Err(error) => {
                debug!(%error, "an event does not serialize");
                Ok(())
            }
        }
    }
}

fn parse(text: &[u8]) -> Option<SyncStrategy> {
    let text = std::str::from_utf8(text).ok()?;
    runtime::config::parse(text, SYNC_DOCUMENT.as_ref(), SyncStrategy::validate).ok()
}

fn down(document: &SyncStrategy) -> Option<DownSettings> {
    let SyncStrategy { strategy, compression, deduplication: _, priority_classes: _, bandwidth } = document;
    let Bandwidth { up: _, down } = *bandwidth;
    let full = strategy.map(|strategy| strategy == Strategy::Full);
    let millis = |name| {
        document.interval(name).map(|interval| u64::try_from(interval.as_millis()).unwrap_or(u64::MAX))
    };
    let settings = DownSettings {
        full,
        compression: *compression,
        bandwidth: down,
        critical_ms: millis(ClassName::Critical),
        standard_ms: millis(ClassName::Standard),
        batch_ms: millis(ClassName::Batch),
    };
    (settings != DownSettings::default()).then_some(settings)
}

fn event(node: &str, key: &ResourceKey, uid: &str, message: &str) -> Event {
    let now = Timestamp::now();
    let time = Some(Time(Timestamp::from_second(now.as_second()).unwrap_or(now)));
    let namespace = Some(key.namespace().to_owned()).filter(|namespace| !namespace.is_empty());
    let component = Some("edgehub".to_owned());
    let reason = if key.kind() == "Node" { "InvalidSyncConfig" } else { "InvalidPriorityClass" };
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(key.name(), now)),
            namespace: namespace.clone(),
            ..Default::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(key.kind().to_owned()),
            name: Some(key.name().to_owned()),
            namespace,
            uid: Some(uid.to_owned()),
            ..Default::default()
        },
        reason: Some(reason.to_owned()),
        message: Some(message.chars().take(1024).collect()),
        type_: Some("Warning".to_owned()),
        count: Some(1),
        first_timestamp: time.clone(),
        last_timestamp: time,
        source: Some(EventSource { component: component.clone(), host: Some(node.to_owned()) }),
        reporting_component: component,
        reporting_instance: Some(node.to_owned()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use proto::Object;
    use serde_json::json;

    use super::*;
    use crate::metamanager::{DesiredChange, MemoryStore};

    async fn put(store: &MemoryStore, key: &str, object: Value) {
        let object = Object::new(key.parse().unwrap(), 1, object.to_string().into());
        HubStore::apply(store, vec![DesiredChange::Put(object)]).await.unwrap();
    }

    async fn map(store: &MemoryStore, key: &str, document: &str) {
        put(store, key, json!({ "data": { SYNC_DOCUMENT: document } })).await;
    }

    fn events(store: &MemoryStore) -> Vec<Value> {
        let reports = HubStore::pending_reports(store, 0, 100).unwrap();
        reports.iter().map(|report| serde_json::from_slice(&report.payload).unwrap()).collect()
    }

    #[test]
    fn the_least_bandwidth_is_that_of_the_thinnest_line() {
        assert_eq!(crds::componentconfig::sync::LEAST_BANDWIDTH, runtime::link::SLOWEST);
    }

    const USUAL: &str = "ConfigMap/default/sync-config";

    #[tokio::test]
    async fn the_last_good_document_counts_after_a_restart_too() {
        let store = MemoryStore::default();
        let own: SyncStrategy = serde_saphyr::from_str("bandwidth: {up: 2000}").unwrap();
        let load = || Settings::load("n", own.clone(), &store);
        let mut settings = load();
        settings.look(&store).await.unwrap();
        assert_eq!(settings.in_force().up, Some(2000));
        let classes = "priorityClasses: [{name: batch, syncInterval: 2s}, {name: critical, syncInterval: 0}]";
        map(&store, USUAL, &format!("bandwidth: {{up: 3000, down: 8000}}\n{classes}")).await;
        settings.look(&store).await.unwrap();
        assert_eq!(settings.in_force().up, Some(3000));
        let told = settings.down().1.unwrap();
        assert_eq!(told.bandwidth, Some(8000));
        assert_eq!((told.critical_ms, told.standard_ms, told.batch_ms), (Some(0), None, Some(2000)));
        assert!(events(&store).is_empty());

        for _ in 0..2 {
            map(&store, USUAL, "bandwidth: {up: 30}").await;
            settings.look(&store).await.unwrap();
            settings.look(&store).await.unwrap();
            assert_eq!(settings.in_force().up, Some(3000));
            assert_eq!(events(&store).len(), 1, "once");
            // Another process, with the wrong one in the store.
            settings.looked_at = None;
        }
        let told = &events(&store)[0];
        let message = told["message"].as_str().unwrap();
        assert!(message.contains("ConfigMap default/sync-config: sync-strategy.yaml"), "{message}");
        assert!(message.contains("bandwidth.up: 30 ") && message.contains("write 1000 or more"), "{message}");
        assert_eq!(
            (&told["reason"], &told["involvedObject"]["kind"]),
            (&json!("InvalidSyncConfig"), &json!("Node"))
        );
        assert_eq!(load().in_force().up, Some(3000));
        for _ in 0..2 {
            settings.complain("Pod/a/web", "its class is none", &store).await.unwrap();
        }
        let told = &events(&store)[1..];
        assert_eq!((told.len(), &told[0]["reason"]), (1, &json!("InvalidPriorityClass")));
        assert_eq!(told[0]["involvedObject"]["namespace"], "a");

        HubStore::apply(&store, vec![DesiredChange::Delete(USUAL.parse().unwrap())]).await.unwrap();
        settings.look(&store).await.unwrap();
        assert_eq!((settings.in_force().up, load().in_force().up), (Some(2000), Some(2000)));
    }

    #[tokio::test]
    async fn the_node_and_then_the_cloud_say_which_config_map_it_is() {
        let store = MemoryStore::default();
        for (key, up) in [(USUAL, 3000), ("ConfigMap/fleet/link", 4000), ("ConfigMap/site/link", 5000)] {
            map(&store, key, &format!("bandwidth: {{up: {up}}}")).await;
        }
        let mut settings = Settings::load("n", SyncStrategy::default(), &store);
        settings.look(&store).await.unwrap();
        assert_eq!(settings.in_force().up, Some(3000));
        settings.told(Some("fleet/link".to_owned()), &store).await.unwrap();
        assert_eq!(settings.in_force().up, Some(4000));
        let mut settings = Settings::load("n", SyncStrategy::default(), &store);
        settings.look(&store).await.unwrap();
        assert_eq!(settings.in_force().up, Some(4000));
        let node =
            |map: &str| json!({ "metadata": { "uid": "u", "annotations": { SYNC_CONFIG_ANNOTATION: map } } });
        for (named, up) in [("site/link", Some(5000)), ("site", Some(5000)), ("site/gone", None)] {
            put(&store, "Node//n", node(named)).await;
            settings.look(&store).await.unwrap();
            assert_eq!(settings.in_force().up, up, "{named}");
        }
        let told = events(&store);
        assert_eq!((told.len(), &told[0]["involvedObject"]["uid"]), (1, &json!("u")));
        assert!(told[0]["message"].as_str().unwrap().contains("\"site\" is not NAMESPACE/NAME"));
        settings.told(Some(String::new()), &store).await.unwrap();
        put(&store, "Node//n", json!({ "metadata": {} })).await;
        settings.look(&store).await.unwrap();
        assert_eq!(settings.in_force(), LinkSettings::default());
    }
}
