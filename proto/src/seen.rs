//! How new the newest is of what an edge was told.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use crate::{
    limits::{MAX_KEY, MAX_KINDS},
    message::{Position, Positions},
};

/// By kind (`Pod`, `Widget.example.com`), the newest resource version of what was put and deleted. A cache that has seen less
/// may hold what was replaced since, and lack what was not (versions can be compared: KEP-5504).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen(BTreeMap<Box<str>, u64>);

/// More kinds than anybody has, or a name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kinds} positions, the longest name of a kind has {longest} bytes: at most {MAX_KINDS} and {MAX_KEY}"
)]
pub struct TooManyKinds {
    kinds: usize,
    longest: usize,
}

impl Seen {
    /// Whether this says more than what was known.
    pub fn raise(&mut self, kind: &str, resource_version: u64) -> bool {
        match self.0.get_mut(kind) {
            Some(known) if *known >= resource_version => false,
            Some(known) => {
                *known = resource_version;
                true
            }
            None => {
                self.0.insert(kind.into(), resource_version);
                true
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(kind, version)| (&**kind, *version))
    }

    /// As they go over the link.
    pub fn positions(&self) -> Vec<Position> {
        self.iter()
            .map(|(kind, resource_version)| Position { kind: kind.to_owned(), resource_version })
            .collect()
    }

    /// # Errors
    /// There is more of them than anybody has.
    pub fn from_positions(positions: &[Position]) -> Result<Self, TooManyKinds> {
        let kinds = positions.len();
        let longest = positions.iter().map(|position| position.kind.len()).max().unwrap_or_default();
        if kinds > MAX_KINDS || longest > MAX_KEY {
            return Err(TooManyKinds { kinds, longest });
        }
        let mut seen = Self::default();
        for position in positions {
            seen.raise(&position.kind, position.resource_version);
        }
        Ok(seen)
    }

    /// As an edge keeps it.
    pub fn to_bytes(&self) -> Bytes {
        Positions { positions: self.positions() }.encode_to_vec().into()
    }

    /// The reverse of [`to_bytes`](Self::to_bytes). `None` for what is no such thing.
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        Self::from_positions(&Positions::decode(bytes).ok()?.positions).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_grows_and_comes_back_from_bytes() {
        let mut seen = Seen::default();
        assert!(
            seen.raise("Pod", 7) && !seen.raise("Pod", 7) && !seen.raise("Pod", 6) && seen.raise("Pod", 8)
        );
        assert!(seen.raise("Node", 1));
        assert_eq!(seen.iter().collect::<Vec<_>>(), [("Node", 1), ("Pod", 8)]);
        assert_eq!(Seen::from_bytes(seen.to_bytes()), Some(seen));
        assert_eq!(Seen::from_bytes(Bytes::from_static(b"garbage")), None);
    }

    #[test]
    fn it_is_bounded() {
        let position = |kind: String| Position { kind, resource_version: 1 };
        let many: Vec<_> = (0..=MAX_KINDS).map(|n| position(n.to_string())).collect();
        assert!(Seen::from_positions(&many[1..]).is_ok() && Seen::from_positions(&many).is_err());
        assert!(Seen::from_positions(&[position("x".repeat(MAX_KEY + 1))]).is_err());
    }
}
