//! Devices of any other protocol: an app or a mapper at the site drives them, says what they are, and is told what they should be.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{
    driver::{Driver, Heard, Reading, Trouble},
    spec::DeviceSpec,
    twin::State,
    value::Value,
};

/// What was said of a device, and its actor has not taken yet: the latest of each property.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Shared>);

#[derive(Default)]
struct Shared {
    said: Mutex<Said>,
    notify: Notify,
}

#[derive(Default)]
struct Said {
    values: BTreeMap<Box<str>, Value>,
    state: Option<State>,
}

impl Inbox {
    pub(super) fn say(&self, property: &str, value: Value) {
        self.said().values.insert(property.into(), value);
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

pub(super) struct External {
    inbox: Inbox,
    /// Of the properties.
    positions: HashMap<Box<str>, usize>,
}

impl External {
    pub(super) fn new(inbox: Inbox, spec: &DeviceSpec) -> Self {
        let names = spec.properties.iter().map(|property| property.name.clone());
        Self { inbox, positions: names.zip(0..).collect() }
    }
}

impl Driver for External {
    const IS_ASKED: bool = false;

    async fn heard(&mut self) -> Heard {
        loop {
            let Said { values, state } = std::mem::take(&mut *self.inbox.said());
            if !values.is_empty() || state.is_some() {
                let reading = |(name, value)| Some((*self.positions.get(&name)?, Ok(value)));
                return Heard { readings: values.into_iter().filter_map(reading).collect(), state };
            }
            self.inbox.0.notify.notified().await;
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
