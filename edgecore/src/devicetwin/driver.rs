//! What a protocol has to do for the device's actor.

use std::future::{self, Future};

use super::{twin::State, value::Value};

/// A property by its position in the spec, and what became of reading it.
pub(super) type Reading = (usize, Result<Value, Trouble>);

/// What came of itself.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Heard {
    pub(super) readings: Vec<Reading>,
    /// How the device is, where that was said.
    pub(super) state: Option<State>,
}

/// Why a property could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// For people.
    pub(super) reason: String,
    /// The device itself does not answer.
    pub(super) is_offline: bool,
}

impl Trouble {
    pub(super) fn device(reason: String) -> Self {
        Self { reason, is_offline: true }
    }

    pub(super) fn property(reason: String) -> Self {
        Self { reason, is_offline: false }
    }
}

/// One device, as its protocol reaches it. Deadlines are its own.
pub(super) trait Driver: Send + Sync + 'static {
    /// Whether the device answers to being asked; else all that is known of it is [heard](Self::heard).
    const IS_ASKED: bool = true;

    /// Returns what comes without being asked for, if anything does. Nothing is lost when it is dropped before.
    fn heard(&mut self) -> impl Future<Output = Heard> + Send {
        future::pending()
    }

    /// A reading for each of these that can be read at all.
    fn read(&mut self, properties: &[usize]) -> impl Future<Output = Vec<Reading>> + Send;

    /// Returns once the device has confirmed it. That it then has the value, reading it back tells.
    fn write(&mut self, property: usize, value: &Value) -> impl Future<Output = Result<(), Trouble>> + Send;
}
