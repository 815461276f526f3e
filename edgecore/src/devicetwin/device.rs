//! A device of this node, as its actor and the rest of the process share it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use crds::devices::v1beta1::DeviceStatus;
use jiff::Timestamp;
use tokio::sync::Notify;
use tracing::warn;

use super::{
    changes::Changes,
    external::Inbox,
    spec::{DeviceSpec, Property},
    twin::{State, Twin, UnixMs},
    value::Value,
};
use crate::metamanager::{Store, StoreError};

pub(super) struct Device {
    pub(super) spec: DeviceSpec,
    /// Properties that cannot be driven, and why.
    refused: Vec<(Box<str>, String)>,
    /// Held for moments, and never while something is waited for.
    twin: Mutex<Twin>,
    /// Where others say what it is; `None`: it is driven here.
    inbox: Option<Inbox>,
    poke: Notify,
    changes: Changes,
}

/// The key under which the store keeps a device's twin.
pub(super) fn twin_key(namespace: &str, name: &str) -> String {
    format!("twin/{namespace}/{name}")
}

pub(super) fn unix_ms() -> UnixMs {
    UnixMs::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// Why a value was not set.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error("device {device} is none of this node's")]
    NoDevice { device: String },
    #[error("device {device} has no property {property}; it has {known}")]
    NoProperty { device: String, property: String, known: String },
    #[error("property {property} is not set: {reason}")]
    Refused { property: String, reason: String },
    #[error("device {device} is driven by this node itself, by {protocol}: what it says is what counts")]
    Driven { device: String, protocol: String },
    #[error("the value could not be kept")]
    Store(#[from] StoreError),
}

impl Device {
    /// With the twin that the store has of it, as far as that is of this very device.
    pub(super) fn new(
        spec: DeviceSpec,
        refused: Vec<(Box<str>, String)>,
        inbox: Option<Inbox>,
        changes: Changes,
        store: &Store,
    ) -> Self {
        let kept = store.local(&twin_key(spec.key.namespace(), spec.key.name())).unwrap_or_else(|error| {
            warn!(device = %spec.key, error = %runtime::chain(&error), "a twin cannot be read; it begins anew");
            None
        });
        let mut twin = Twin::restored(kept.as_deref(), &spec);
        twin.desire(&spec, unix_ms());
        if inbox.is_some() {
            let reason = format!(
                "protocol {:?} has no driver here, and nobody has reported of the device since edgecore started",
                spec.protocol
            );
            twin.absence = Some(reason.into());
        }
        let twin = Mutex::new(twin);
        let device = Self { spec, refused, twin, inbox, poke: Notify::new(), changes };
        device.touch();
        device
    }

    /// Others drive it.
    pub(super) fn is_external(&self) -> bool {
        self.inbox.is_some()
    }

    /// Somebody may want to look at it.
    pub(super) fn touch(&self) {
        self.changes.touch(&self.spec.key);
    }

    pub(super) fn twin(&self) -> MutexGuard<'_, Twin> {
        // Nothing below panics while it holds this.
        self.twin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> DeviceStatus {
        self.twin().status(&self.spec, &self.refused)
    }

    /// Until something else is desired than was.
    pub(super) async fn poked(&self) {
        self.poke.notified().await;
    }

    /// Durable when it returns.
    pub(super) async fn keep(&self, store: &Store) -> Result<(), StoreError> {
        let kept = serde_json::to_vec(&*self.twin()).unwrap_or_default();
        store.put_local(&twin_key(self.spec.key.namespace(), self.spec.key.name()), Bytes::from(kept)).await
    }

    /// Has the property be so, from now on and until something else is said later. Durable when it returns.
    pub(super) async fn set(&self, property: &str, value: &str, store: &Store) -> Result<(), SetError> {
        let (_, of_spec) = self.property(property)?;
        let refused = |reason: String| SetError::Refused { property: property.to_owned(), reason };
        if !of_spec.writable {
            return Err(refused("the model says that it is ReadOnly".to_owned()));
        }
        let parsed = Value::parse(of_spec.kind, value).map_err(|error| refused(error.to_string()))?;
        of_spec.range.check(&parsed).map_err(|error| refused(error.to_string()))?;
        self.twin().set_here(of_spec, &parsed, unix_ms());
        self.keep(store).await?;
        self.poke.notify_one();
        self.touch();
        Ok(())
    }

    /// What somebody at the site says that the property is, who drives the device.
    pub(super) fn report(&self, property: &str, value: &str) -> Result<(), SetError> {
        let inbox = self.inbox()?;
        let (at, of_spec) = self.property(property)?;
        let refused = |reason: String| SetError::Refused { property: property.to_owned(), reason };
        let parsed = Value::parse(of_spec.kind, value).map_err(|error| refused(error.to_string()))?;
        inbox.say(at, parsed);
        Ok(())
    }

    /// As [`report`](Self::report), of the whole device.
    pub(super) fn report_state(&self, state: State) -> Result<(), SetError> {
        self.inbox()?.say_state(state);
        Ok(())
    }

    fn display_name(&self) -> String {
        format!("{}/{}", self.spec.key.namespace(), self.spec.key.name())
    }

    fn inbox(&self) -> Result<&Inbox, SetError> {
        let (device, protocol) = (self.display_name(), self.spec.protocol.to_string());
        self.inbox.as_ref().ok_or(SetError::Driven { device, protocol })
    }

    fn property(&self, name: &str) -> Result<(usize, &Property), SetError> {
        let found = self.spec.properties.iter().enumerate().find(|(_, known)| *known.name == *name);
        found.ok_or_else(|| {
            let known: Vec<&str> = self.spec.properties.iter().map(|known| &*known.name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            SetError::NoProperty { device: self.display_name(), property: name.to_owned(), known }
        })
    }
}
