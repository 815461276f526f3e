//! How slaves misbehave, as real ones were seen to.

use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Fault {
    /// An exception instead of the answer.
    Exception { code: u8 },
    /// Nothing.
    Silence,
    /// The answer, so much later.
    Late { milliseconds: u64 },
    /// The first half of the answer.
    Half,
    /// RTU: another checksum.
    WrongCrc,
    /// The answer of another unit.
    WrongUnit,
    /// TCP: the answer to another transaction.
    WrongTransaction,
    /// TCP: the first half, and then a reset.
    Reset,
    /// RTU: what nobody asked for, before the answer.
    Noise,
}

/// The fault of the next `requests` requests; to `unit`, if one is named.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Faults {
    fault: Option<Fault>,
    #[serde(default)]
    requests: u64,
    #[serde(default)]
    unit: Option<u8>,
}

impl Faults {
    pub(super) fn next(&mut self, unit: u8) -> Option<Fault> {
        if self.requests == 0 || self.unit.is_some_and(|named| named != unit) {
            return None;
        }
        self.requests -= 1;
        self.fault
    }
}
