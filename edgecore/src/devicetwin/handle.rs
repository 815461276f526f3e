//! The devices of this node, for the rest of the process.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use proto::ResourceKey;
use serde_json::{Value as Json, json};
use tokio::sync::SetOnce;

use super::{
    changes::{Changes, Follower},
    device::{Device, SetError},
    twin::{Stamped, State},
    value::type_name,
};
use crate::metamanager::Store;

/// What is driven, and what is not and why.
pub(super) enum Known {
    Driven(Arc<Device>),
    Undriven(String),
}

/// Clones share what they show.
#[derive(Clone)]
pub struct Devices {
    known: Arc<RwLock<BTreeMap<ResourceKey, Known>>>,
    /// Set once each device that the store has is in `known`.
    all_known: Arc<SetOnce<()>>,
    changes: Changes,
    store: Store,
}

/// What is known of a property. A value has the milliseconds since 1970 from which on it is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyView {
    /// As the metadata of a twin has it: int, float, double, string, boolean, bytes or stream.
    pub kind: &'static str,
    pub reported: Option<(Box<str>, u64)>,
    pub desired: Option<(Box<str>, u64)>,
}

/// A device, as lists of them have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub key: ResourceKey,
    pub state: &'static str,
    /// Milliseconds since 1970.
    pub last_online: Option<u64>,
}

impl Devices {
    pub(super) fn new(store: Store) -> Self {
        Self { known: Arc::default(), all_known: Arc::default(), changes: Changes::default(), store }
    }

    pub(super) fn put(&self, key: &ResourceKey, known: Known) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), known);
        self.changes.touch(key);
    }

    pub(super) fn remove(&self, key: &ResourceKey) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        self.changes.touch(key);
    }

    pub(super) fn known(&self) -> RwLockReadGuard<'_, BTreeMap<ResourceKey, Known>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each device that there is has been put.
    pub(super) fn note_all_known(&self) {
        // It fails only when that has been said.
        drop(self.all_known.set(()));
    }

    /// Until the devices that the store has at the start are known: before that, one that is missing here may be there.
    pub(super) async fn all_known(&self) {
        self.all_known.wait().await;
    }

    pub(super) fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// To be told of devices that change from now on.
    pub fn follow(&self) -> Follower {
        self.changes.follow()
    }

    /// The device of this name; without a namespace, if there is one such in all of them.
    pub fn find(&self, namespace: Option<&str>, name: &str) -> Option<ResourceKey> {
        let known = self.known();
        let is_it = |key: &&ResourceKey| {
            key.name() == name && namespace.is_none_or(|namespace| key.namespace() == namespace)
        };
        let mut found = known.keys().filter(is_it);
        let first = found.next()?;
        found.next().is_none().then(|| first.clone())
    }

    pub fn members(&self) -> Vec<Member> {
        let known = self.known();
        let member = |(key, known): (&ResourceKey, &Known)| {
            let (state, last_online) = match known {
                Known::Driven(device) => {
                    let twin = device.twin();
                    (twin.state.name(), twin.last_online)
                }
                Known::Undriven(_) => (State::Unknown.name(), None),
            };
            Member { key: key.clone(), state, last_online }
        };
        known.iter().map(member).collect()
    }

    /// The properties of a device; none of one that cannot be driven. `None`: it is none of this node's.
    pub fn twins(&self, key: &ResourceKey) -> Option<BTreeMap<Box<str>, PropertyView>> {
        let known = self.known();
        let Known::Driven(device) = known.get(key)? else { return Some(BTreeMap::new()) };
        let twin = device.twin();
        let stamped = |stamped: &Option<Stamped>| stamped.as_ref().map(|one| (one.value.clone(), one.at));
        let view = |property: &super::spec::Property| {
            let of_twin = twin.properties.get(&property.name)?;
            let (reported, desired) = (stamped(&of_twin.reported), stamped(&of_twin.desired));
            let view = PropertyView { kind: type_name(property.kind), reported, desired };
            Some((property.name.clone(), view))
        };
        Some(device.spec.properties.iter().filter_map(view).collect())
    }

    /// What an app or a mapper at the site says that a property is, of a device that it drives.
    pub fn report(&self, device: &ResourceKey, property: &str, value: &str) -> Result<(), SetError> {
        self.driven(device, property)?.report(property, value)
    }

    /// As [`report`](Self::report), of the whole device: online or ok, offline, unknown, unhealthy, in any case.
    pub fn report_state(&self, device: &ResourceKey, state: &str) -> Result<(), SetError> {
        let driven = self.driven(device, "state")?;
        let parsed = State::parse(state).ok_or_else(|| SetError::Refused {
            property: "state".to_owned(),
            reason: format!("{state:?} is none of online, ok, offline, unknown, unhealthy"),
        })?;
        driven.report_state(parsed)
    }

    fn driven(&self, device: &ResourceKey, property: &str) -> Result<Arc<Device>, SetError> {
        match self.known().get(device) {
            Some(Known::Driven(device)) => Ok(Arc::clone(device)),
            Some(Known::Undriven(reason)) => {
                let (property, reason) = (property.to_owned(), reason.clone());
                Err(SetError::Refused { property, reason })
            }
            None => Err(SetError::NoDevice { device: format!("{}/{}", device.namespace(), device.name()) }),
        }
    }

    /// Each with namespace, name, protocol and status, in the order of their names.
    pub fn page(&self) -> Json {
        let known = self.known();
        known
            .iter()
            .map(|(key, known)| {
                let (protocol, status) = match known {
                    Known::Driven(device) => (&*device.spec.protocol, json!(device.status())),
                    Known::Undriven(reason) => ("", json!({"state": "unknown", "extensions": {"error": reason}})),
                };
                json!({"namespace": key.namespace(), "name": key.name(), "protocol": protocol, "status": status})
            })
            .collect()
    }

    /// Has the property be so, from now on and until something else is said later. Durable when it returns.
    pub async fn set(&self, device: &ResourceKey, property: &str, value: &str) -> Result<(), SetError> {
        let driven = self.driven(device, property)?;
        driven.set(property, value, &self.store).await
    }
}
