//! How an object is named, versioned and compared on the link and in the edge store.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::limits::MAX_KEY;

/// An object's identity: `Kind[.group]/namespace/name`, with an empty namespace for cluster-scoped kinds.
///
/// The kind is open, so whatever a pod refers to can travel with it without a change of the protocol.
/// The API version is not part of it: it is part of the object's bytes.
///
/// ```
/// let key: proto::ResourceKey = "Pod/default/web-0".parse().unwrap();
/// assert_eq!((key.kind(), key.namespace(), key.name()), ("Pod", "default", "web-0"));
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceKey {
    // One allocation a key: a cloudcore holds millions of them.
    text: Box<str>,
    kind_end: u16,
    namespace_end: u16,
}

/// Why a text is no [`ResourceKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("resource key of {length} bytes is longer than {MAX_KEY}")]
    TooLong { length: usize },
    #[error("resource key {text:?} is not of the form Kind[.group]/namespace/name")]
    Malformed { text: String },
}

impl ResourceKey {
    /// Builds a key from its parts; `namespace` is empty for cluster-scoped kinds.
    ///
    /// # Errors
    /// A part that is empty (but for the namespace), holds a `/` or a control character, or a key that is too long.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Result<Self, KeyError> {
        let text = format!("{kind}/{namespace}/{name}");
        text.parse()
    }

    /// `Kind` or `Kind.group`, as in `Device.devices.kubeedge.io`.
    pub fn kind(&self) -> &str {
        &self.text[..usize::from(self.kind_end)]
    }

    /// Empty for cluster-scoped kinds.
    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.kind_end) + 1..usize::from(self.namespace_end)]
    }

    pub fn name(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + 1..]
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for ResourceKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_KEY {
            return Err(KeyError::TooLong { length: text.len() });
        }
        let malformed = || KeyError::Malformed { text: text.to_owned() };
        let mut slashes = text.match_indices('/').map(|(at, _)| at);
        let (Some(kind_end), Some(namespace_end), None) = (slashes.next(), slashes.next(), slashes.next())
        else {
            return Err(malformed());
        };
        let name_missing = namespace_end + 1 == text.len();
        if kind_end == 0 || name_missing || text.chars().any(char::is_control) {
            return Err(malformed());
        }
        let offset = |at: usize| u16::try_from(at).map_err(|_| malformed());
        Ok(Self { text: text.into(), kind_end: offset(kind_end)?, namespace_end: offset(namespace_end)? })
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Which content of an object this is.
///
/// `hash` decides equality: a write that changes nothing the edge can see (managedFields, a status that the edge
/// itself reported) costs no byte on the line. `resource_version` tells age, see [`crate::Seen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// First eight bytes, big-endian, of the SHA-256 of the object's bytes.
    pub hash: u64,
    /// `metadata.resourceVersion` as a number (KEP-5504 makes it comparable); 0 when the object has none.
    pub resource_version: u64,
}

/// An object as it travels and as it is stored: JSON bytes, never parsed further than routing needs.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    pub key: ResourceKey,
    pub version: Version,
    pub bytes: Bytes,
}

impl Object {
    /// Takes the bytes of an object as they are and hashes them.
    pub fn new(key: ResourceKey, resource_version: u64, bytes: Bytes) -> Self {
        let version = Version { hash: content_hash(&bytes), resource_version };
        Self { key, version, bytes }
    }
}

impl fmt::Debug for Object {
    // The bytes may be a Secret's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} ({} bytes)", self.key, self.version.resource_version, self.bytes.len())
    }
}

/// The hash of [`Version::hash`].
pub fn content_hash(bytes: &[u8]) -> u64 {
    let sum = Sha256::digest(bytes);
    sum.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// A digest of a set of (key, content): equal sets have equal digests whatever the order of insertion, and adding or
/// removing an entry costs one hash. Not meant to resist a node that lies about its own store: it only fools itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    pub count: u64,
    pub sum: u128,
}

impl Digest {
    pub fn add(&mut self, key: &ResourceKey, hash: u64) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(entry_hash(key, hash));
    }

    pub fn remove(&mut self, key: &ResourceKey, hash: u64) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(entry_hash(key, hash));
    }
}

impl Digest {
    /// The sum as two numbers that protocol buffers can carry: high, low.
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    pub fn halves(&self) -> (u64, u64) {
        ((self.sum >> 64) as u64, self.sum as u64)
    }

    /// The reverse of [`halves`](Self::halves).
    pub fn from_halves(count: u64, high: u64, low: u64) -> Self {
        Self { count, sum: u128::from(high) << 64 | u128::from(low) }
    }
}

/// For people and pages: the count, and the sum in hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:032x}", self.count, self.sum)
    }
}

impl<'a> FromIterator<(&'a ResourceKey, u64)> for Digest {
    fn from_iter<I: IntoIterator<Item = (&'a ResourceKey, u64)>>(entries: I) -> Self {
        let mut digest = Self::default();
        for (key, hash) in entries {
            digest.add(key, hash);
        }
        digest
    }
}

fn entry_hash(key: &ResourceKey, hash: u64) -> u128 {
    let mut sum = Sha256::new();
    sum.update(key.as_str());
    sum.update(hash.to_be_bytes());
    sum.finalize().iter().take(16).fold(0, |hash, byte| hash << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_three_parts() {
        let node: ResourceKey = "Node//edge-1".parse().unwrap();
        assert_eq!((node.kind(), node.namespace(), node.name()), ("Node", "", "edge-1"));
        for text in ["", "Pod", "Pod/a", "Pod/a/", "/a/b", "Pod/a/b/c", "Pod/a/b\n"] {
            assert!(text.parse::<ResourceKey>().is_err(), "{text:?} was taken");
        }
        assert!(ResourceKey::new("Pod", "a", &"x".repeat(MAX_KEY)).is_err());
    }

    #[test]
    fn digest_forgets_order_and_removals() {
        let keys: Vec<ResourceKey> = (0..4).map(|n| format!("Pod/a/{n}").parse().unwrap()).collect();
        let forward: Digest = keys.iter().map(|key| (key, 1)).collect();
        let mut backward: Digest = keys.iter().rev().map(|key| (key, 1)).collect();
        assert_eq!(forward, backward);
        backward.remove(&keys[0], 1);
        assert_ne!(forward, backward);
        backward.add(&keys[0], 2);
        assert_ne!(forward, backward);
        backward.remove(&keys[0], 2);
        backward.add(&keys[0], 1);
        assert_eq!(forward, backward);
    }
}
