//! Devices of any other protocol: an app or a mapper at the site drives them, says what they are, and is told what they should be.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{
    driver::{Driver, Heard, Reading, Trouble},
    twin::State,
    value::Value,
};

/// What was said of a device, and its actor has not taken yet: the latest of each property, by its position.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Shared>);

#[derive(Default)]
struct Shared {
    said: Mutex<Said>,
    notify: Notify,
}

#[derive(Default)]
struct Said {
    values: BTreeMap<usize, Value>,
    state: Option<State>,
}

impl Inbox {
    pub(super) fn say(&self, property: usize, value: Value) {
        self.said().values.insert(property, value);
        self.0.notify.notify_one();
    }

    pub(super) fn say_state(&self, state: State) {
        self.said().state = Some(state);
        self.0.notify.notify_one();
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct External(pub(super) Inbox);

impl Driver for External {
    const IS_ASKED: bool = false;

    async fn heard(&mut self) -> Heard {
        loop {
            let Said { values, state } = std::mem::take(&mut *self.0.said());
            if !values.is_empty() || state.is_some() {
                return Heard {
                    readings: values.into_iter().map(|(at, value)| (at, Ok(value))).collect(),
                    state,
                };
            }
            self.0.0.notify.notified().await;
        }
    }

    async fn read(&mut self, _: &[usize]) -> Vec<Reading> {
        Vec::new()
    }

    async fn write(&mut self, _: usize, _: &Value) -> Result<(), Trouble> {
        // It is there once it has been reported. Until then it is said ever again, ever more seldom.
        Err(Trouble::property(
            "whoever drives the device has been told, and has not reported it yet".to_owned(),
        ))
    }
}
