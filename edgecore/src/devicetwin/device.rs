//! A device of this node, as its actor and the rest of the process share it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crds::devices::v1beta1::DeviceStatus;
use jiff::Timestamp;
use tokio::sync::Notify;
use tracing::warn;

use super::{
    changes::Changes,
    external::Inbox,
    kept,
    spec::{DeviceSpec, Property},
    twin::{State, Twin, UnixMs},
    value::Value,
};
use crate::metamanager::{Store, StoreError};

pub(super) struct Device {
    pub(super) spec: DeviceSpec,
    /// Properties that cannot be driven, and why.
    refused: Vec<(Box<str>, String)>,
    /// Held for moments, and never while something is waited for. The same when the spec changes: what is known, and not kept yet,
    /// stays so.
    twin: Arc<Mutex<Twin>>,
    /// Where others say what it is; `None`: it is driven here.
    inbox: Option<Inbox>,
    poke: Notify,
    changes: Changes,
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

fn kept(spec: &DeviceSpec, store: &Store) -> Twin {
    kept::read(&spec.key, store).unwrap_or_else(|error| {
        warn!(device = %spec.key, error = %runtime::chain(&error), "a twin cannot be read; it begins anew");
        Twin::default()
    })
}

/// What the store was given is not known to be there: it was refused, or nobody has waited for the answer, as when an actor ends
/// because the Device has changed.
struct Unsure<'a> {
    device: &'a Device,
    is_kept: bool,
}

impl Drop for Unsure<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.device.twin().note_unkept();
        }
    }
}

impl Device {
    /// With the twin of the device that was there `before` with the same uid and protocol, or else the one that the store has, as
    /// far as that is of this very device.
    pub(super) fn new(
        spec: DeviceSpec,
        refused: Vec<(Box<str>, String)>,
        inbox: Option<Inbox>,
        before: Option<&Self>,
        (changes, store): (Changes, &Store),
    ) -> Self {
        let twin = before
            .map_or_else(|| Arc::new(Mutex::new(kept(&spec, store))), |before| Arc::clone(&before.twin));
        let device = Self { spec, refused, twin, inbox, poke: Notify::new(), changes };
        {
            let mut twin = device.twin();
            twin.adapt(&device.spec);
            twin.desire(&device.spec, unix_ms());
            if device.is_external() && before.is_none() {
                let reason = format!(
                    "protocol {:?} has no driver here, and nobody has reported of the device since edgecore started",
                    device.spec.protocol
                );
                twin.absence = Some(reason.into());
            }
        }
        device.touch();
        device
    }

    /// Whether a device of this spec is this one, but for what has changed in it.
    pub(super) fn is_as(&self, spec: &DeviceSpec) -> bool {
        self.spec.uid == spec.uid && self.spec.protocol == spec.protocol
    }

    /// Where others go on to say what it is.
    pub(super) fn shared_inbox(&self) -> Option<Inbox> {
        self.inbox.clone()
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

    /// What has changed and is not kept yet, and `also` this property.
    pub(super) async fn keep(&self, also: Option<&str>, store: &Store) -> Result<(), StoreError> {
        let unkept = || {
            let mut twin = self.twin();
            let changes = twin.take_unkept(&self.spec, also);
            (twin, changes)
        };
        let mut unsure = Unsure { device: self, is_kept: false };
        let kept = store.change_locals(unkept).await;
        unsure.is_kept = kept.is_ok();
        kept
    }

    /// Has the property be so, from now on and until something else is said later. Durable when it returns.
    pub(super) async fn set(&self, property: &str, value: &str, store: &Store) -> Result<(), SetError> {
        let of_spec = self.property(property)?;
        let refused = |reason: String| SetError::Refused { property: property.to_owned(), reason };
        if !of_spec.writable {
            return Err(refused("the model says that it is ReadOnly".to_owned()));
        }
        let parsed = Value::parse(of_spec.kind, value).map_err(|error| refused(error.to_string()))?;
        of_spec.range.check(&parsed).map_err(|error| refused(error.to_string()))?;
        self.twin().set_here(of_spec, &parsed, unix_ms());
        self.keep(Some(property), store).await?;
        self.poke.notify_one();
        self.touch();
        Ok(())
    }

    /// What somebody at the site says that the property is, who drives the device.
    pub(super) fn report(&self, property: &str, value: &str) -> Result<(), SetError> {
        let inbox = self.inbox()?;
        let of_spec = self.property(property)?;
        let refused = |reason: String| SetError::Refused { property: property.to_owned(), reason };
        let parsed = Value::parse(of_spec.kind, value).map_err(|error| refused(error.to_string()))?;
        inbox.say(property, parsed);
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

    fn property(&self, name: &str) -> Result<&Property, SetError> {
        let found = self.spec.properties.iter().find(|known| *known.name == *name);
        found.ok_or_else(|| {
            let known: Vec<&str> = self.spec.properties.iter().map(|known| &*known.name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            SetError::NoProperty { device: self.display_name(), property: name.to_owned(), known }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use serde_json::json;

    use super::*;
    use crate::{devicetwin::spec::tests::spec, metamanager::Options};

    #[tokio::test]
    async fn what_nobody_waited_for_is_kept_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let model = json!({"protocol": "virtual", "properties": [{"name": "speed", "type": "INT"}]});
        let spec = spec(&json!({"deviceModelRef": {"name": "pumps"}}), &model).unwrap();
        let device = Device::new(spec, Vec::new(), None, None, (Changes::default(), &store));
        loop {
            device.twin().note_unkept();
            let mut keeping = Box::pin(device.keep(None, &store));
            if poll!(keeping.as_mut()).is_pending() {
                break;
            }
        }
        assert!(!device.twin().take_unkept(&device.spec, None).is_empty(), "it counts as kept");
        device.keep(None, &store).await.unwrap();
        device.twin().note_unkept();
        device.keep(None, &store).await.unwrap();
        assert!(device.twin().take_unkept(&device.spec, None).is_empty());
    }
}
