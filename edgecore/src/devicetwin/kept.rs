//! A twin in the store: an entry for the device, and one for each property of which something is known. A reading that changes
//! writes its own alone, a hundred bytes.
//!
//! | key | JSON |
//! |---|---|
//! | `twin/<namespace>/<name>` | `Head` |
//! | `twin/<namespace>/<name>/<hash of the property's name>` | the property's name, and its `PropertyTwin` |

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::{ResourceKey, resource::content_hash};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::twin::{PropertyTwin, Twin, UnixMs};
use crate::metamanager::{Store, StoreError};

/// What is kept of a device beside its properties.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// A device of the same name with another uid begins anew.
    pub(super) uid: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_online: Option<UnixMs>,
}

/// What an entry is to be, as [`Store::change_locals`] takes it.
pub(super) type Change = (String, Option<Bytes>);

fn head_key(device: &ResourceKey) -> String {
    format!("twin/{}/{}", device.namespace(), device.name())
}

/// Names are of any length, and of any characters.
fn property_key(device: &ResourceKey, property: &str) -> String {
    format!("{}/{:016x}", head_key(device), content_hash(property.as_bytes()))
}

pub(super) fn head(device: &ResourceKey, head: &Head) -> Change {
    (head_key(device), Some(Bytes::from(serde_json::to_vec(head).unwrap_or_default())))
}

/// `None`: nothing is known of the property any more.
pub(super) fn property(device: &ResourceKey, name: &str, twin: Option<&PropertyTwin>) -> Change {
    let value = twin.map(|twin| Bytes::from(serde_json::to_vec(&(name, twin)).unwrap_or_default()));
    (property_key(device, name), value)
}

/// What the store has of a device. An entry that cannot be read is passed over.
pub(super) fn read(device: &ResourceKey, store: &Store) -> Result<Twin, StoreError> {
    let key = head_key(device);
    let head = store.local(&key)?.and_then(|head| parsed(&key, &head));
    let mut properties = BTreeMap::new();
    for (key, value) in store.list_local(&format!("{key}/"))? {
        if let Some((name, twin)) = parsed(&key, &value) {
            properties.insert(name, twin);
        }
    }
    Ok(Twin::kept(head, properties))
}

fn parsed<'a, T: Deserialize<'a>>(key: &str, value: &'a [u8]) -> Option<T> {
    serde_json::from_slice(value)
        .inspect_err(|error| warn!(key, %error, "an entry of a twin cannot be read"))
        .ok()
}

/// Deletes what the store has of a device.
pub(super) async fn forget(device: &ResourceKey, store: &Store) -> Result<(), StoreError> {
    let key = head_key(device);
    let mut keys: Vec<Change> =
        store.list_local(&format!("{key}/"))?.into_iter().map(|(key, _)| (key, None)).collect();
    keys.push((key, None));
    store.change_locals(|| ((), keys)).await
}
