//! One device: reads what is due, writes what is desired and not there, and reports what has changed.
//!
//! Level-triggered: what the device is to be is looked at again after each reading, so that a device that was away, was reset or was
//! set by hand is set again. A device whose spec changes gets a new actor.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use proto::message::ReportKind;
use runtime::backoff::Backoff;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tracing::{debug, info, warn};

use super::{
    device::{Device, unix_ms},
    driver::{Driver, Heard, Reading},
    events,
    gathered::Gathered,
    push::{Push, Sample},
    spec::DeviceSpec,
    twin::{State, UnixMs},
};
use crate::{
    edgehub::{HubState, next_session},
    metamanager::{Store, StoreError},
};

/// Properties that are due so soon are read with those that are due now.
const SLACK: Duration = Duration::from_millis(5);
/// A device of which nothing changes says so often that it is there.
const LIVENESS: Duration = Duration::from_mins(5);
/// Readings are reported at moments that lie so far apart, for all devices the same: what many of them have to say goes to the disk
/// with one sync. For those with a cycle at least [`PATIENT`] long it is little beside that.
const TOGETHER: Duration = Duration::from_millis(250);
const PATIENT: Duration = Duration::from_secs(1);
const LONGEST_STAGGER: Duration = Duration::from_secs(2);
/// Never.
const NEVER: Duration = Duration::from_hours(24 * 365 * 10);
/// While the store takes nothing.
const STORE_RETRY: Duration = Duration::from_secs(2);

pub(super) struct Actor<D> {
    device: Arc<Device>,
    driver: D,
    store: Store,
    hub: watch::Receiver<HubState>,
    /// By the property's position.
    schedule: Vec<Schedule>,
    /// How much sooner than a cycle after the first reading the second one comes: devices that began together are not asked in one
    /// burst for ever.
    stagger: Duration,
    /// Between attempts to reach a device that does not answer.
    absence: Backoff,
    /// When to report, if there is anything to say.
    report_at: Option<Instant>,
    reported_at: Instant,
    /// The session in which it was reported last.
    session: u64,
    /// Events that are not kept yet.
    happened: Vec<Bytes>,
    push: Push,
}

/// Between nothing and half a cycle, the same each time for one device. All its properties have the same, so that those which are read
/// together go on to be.
fn stagger(spec: &DeviceSpec) -> Duration {
    let shortest = spec.properties.iter().map(|property| property.collect).min().unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    spec.key.hash(&mut hasher);
    let share = u32::try_from(hasher.finish() % 1024).unwrap_or_default();
    shortest.min(LONGEST_STAGGER) * share / 2048
}

/// The first of the moments of [`TOGETHER`] that is still to come, and not before `due`.
fn together(due: Instant) -> Instant {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since = due.max(Instant::now()).saturating_duration_since(*FIRST);
    *FIRST + TOGETHER * moments(since)
}

/// How many of them have to pass for it to be later than `since`.
fn moments(since: Duration) -> u32 {
    u32::try_from(since.as_nanos() / TOGETHER.as_nanos() + 1).unwrap_or(u32::MAX)
}

struct Schedule {
    read_at: Instant,
    /// It has been read, or refused to be, since the actor began: a kept value may be old.
    is_known: bool,
    write_at: Option<Instant>,
    writes: Backoff,
    /// Of a property whose readings become fewer.
    gathered: Option<Box<Gathered>>,
    /// Not before this a reading is pushed again.
    push_at: Instant,
    /// The newest reading, until it is.
    unpushed: Option<(Box<str>, UnixMs)>,
}

impl<D: Driver> Actor<D> {
    pub(super) fn new(
        device: Arc<Device>,
        driver: D,
        store: Store,
        hub: watch::Receiver<HubState>,
        push: Push,
    ) -> Self {
        let now = Instant::now();
        let schedule = device
            .spec
            .properties
            .iter()
            .map(|property| Schedule {
                read_at: if D::IS_ASKED { now } else { now + NEVER },
                is_known: !D::IS_ASKED,
                // What is desired does not wait for a reading that does not come.
                write_at: (!D::IS_ASKED).then_some(now),
                writes: Backoff::new(Duration::from_secs(1), Duration::from_mins(1)),
                gathered: property.aggregation.map(|_| Box::new(Gathered::new(now))),
                push_at: now,
                unpushed: None,
            })
            .collect();
        Self {
            stagger: stagger(&device.spec),
            device,
            driver,
            store,
            hub,
            schedule,
            absence: Backoff::new(Duration::from_secs(1), Duration::from_secs(15)),
            // What the one before has not said.
            report_at: Some(now),
            reported_at: now,
            session: 0,
            happened: Vec::new(),
            push,
        }
    }

    /// Until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let next = self.next();
            tokio::select! {
                () = time::sleep_until(next) => {}
                // Something else is desired.
                () = self.device.poked() => {
                    for schedule in &mut self.schedule {
                        schedule.write_at = None;
                    }
                    self.report_at = Some(Instant::now());
                }
                heard = self.driver.heard() => self.take_heard(heard),
                session = next_session(&mut self.hub, self.session) => {
                    self.session = session;
                    // What the cloud may have missed.
                    self.report_at = Some(Instant::now());
                }
            }
            self.read_due().await;
            self.push_due();
            self.write_due().await;
            self.report_due().await;
        }
    }

    fn next(&self) -> Instant {
        let live = self.reported_at + LIVENESS;
        let times = self.schedule.iter().flat_map(|one| {
            // Of a device that is asked another reading comes, and goes instead.
            let push_at = one.unpushed.as_ref().filter(|_| !D::IS_ASKED).map(|_| one.push_at);
            [Some(one.read_at), one.write_at, push_at]
        });
        times.chain([self.report_at]).flatten().min().unwrap_or(live).min(live)
    }

    async fn read_due(&mut self) {
        let now = Instant::now();
        if !self.schedule.iter().any(|one| one.read_at <= now) {
            return;
        }
        let due: Vec<usize> =
            (0..self.schedule.len()).filter(|&at| self.schedule[at].read_at <= now + SLACK).collect();
        let stagger = std::mem::take(&mut self.stagger);
        for &at in &due {
            let cycle = self.device.spec.properties[at].collect.saturating_sub(stagger);
            let next = self.schedule[at].read_at + cycle;
            // What was missed is not made up for.
            self.schedule[at].read_at = if next > now { next } else { now + cycle };
        }
        let readings = self.driver.read(&due).await;
        self.take(readings);
    }

    fn take_heard(&mut self, Heard { readings, state }: Heard) {
        self.take(readings);
        if let Some(state) = state {
            self.turn(state, None);
        }
    }

    /// The device is so now. `reason` is why it is away, unless it has said so itself.
    fn turn(&mut self, state: State, reason: Option<&str>) {
        let before = {
            let mut twin = self.device.twin();
            twin.absence = reason.map(Into::into);
            if state == State::Online {
                twin.last_online = Some(unix_ms());
            }
            std::mem::replace(&mut twin.state, state)
        };
        if before == state {
            return;
        }
        let spec = &self.device.spec;
        match state {
            State::Online => {
                info!(device = %spec.key, "device is online");
                // Its first answer after a start of edgecore is no news.
                if before != State::Unknown {
                    self.happened.push(events::online(spec));
                }
            }
            State::Offline => {
                let reason = reason.unwrap_or("it has said so");
                warn!(device = %spec.key, reason, "device is offline");
                self.happened.push(events::offline(spec, reason));
            }
            State::Unknown | State::Unhealthy => {
                info!(device = %spec.key, state = state.name(), "device has said how it is");
            }
        }
        self.device.touch();
        self.say_by(Instant::now());
    }

    fn take(&mut self, readings: Vec<Reading>) {
        let (mut answered, mut absent) = (false, None);
        let now = unix_ms();
        let device = Arc::clone(&self.device);
        for (at, reading) in readings {
            let (Some(property), Some(schedule)) =
                (device.spec.properties.get(at), self.schedule.get_mut(at))
            else {
                continue;
            };
            let is_news = match reading {
                Ok(value) => {
                    answered = true;
                    schedule.is_known = true;
                    let value = match (property.aggregation, &mut schedule.gathered) {
                        (Some(aggregation), Some(gathered)) => {
                            gathered.take(aggregation, property.kind, value, Instant::now())
                        }
                        _ => Some(value),
                    };
                    if let (Some(value), Some(_)) = (&value, &property.push) {
                        schedule.unpushed = Some((value.to_string().into(), now));
                    }
                    value.is_some_and(|value| device.twin().observe(property, &value, now))
                }
                Err(trouble) if trouble.is_offline => {
                    absent = Some(trouble.reason);
                    continue;
                }
                Err(trouble) => {
                    answered = true;
                    schedule.is_known = true;
                    device.twin().miss(property, &trouble.reason)
                }
            };
            if is_news {
                device.touch();
            }
            if is_news && property.to_cloud {
                let due = self.reported_at + property.report;
                self.say_by(if property.report < PATIENT { due } else { together(due) });
            }
        }
        match absent {
            // Answers to some requests and not to others are no absence.
            Some(reason) if !answered => self.note_absence(&reason),
            _ if answered => {
                self.absence.reset();
                self.turn(State::Online, None);
            }
            _ => {}
        }
    }

    fn push_due(&mut self) {
        let now = Instant::now();
        for (property, schedule) in self.device.spec.properties.iter().zip(&mut self.schedule) {
            if let Some(target) = &property.push
                && schedule.push_at <= now
                && let Some((value, at)) = schedule.unpushed.take()
            {
                schedule.push_at = now + property.report;
                self.push.put(target, Sample { property: property.name.clone(), value, at });
            }
        }
    }

    fn note_absence(&mut self, reason: &str) {
        let again = Instant::now() + self.absence.next_delay();
        for schedule in &mut self.schedule {
            schedule.read_at = schedule.read_at.max(again);
            // It may be another when it comes back.
            schedule.is_known = false;
        }
        self.turn(State::Offline, Some(reason));
    }

    /// Writes each value that is to be there and is not, and reads it back.
    async fn write_due(&mut self) {
        let device = Arc::clone(&self.device);
        for (at, property) in device.spec.properties.iter().enumerate() {
            if !self.schedule[at].is_known {
                continue;
            }
            let wanted = device.twin().wanted(property);
            let value = match wanted {
                Some(Ok(value)) => value,
                refused => {
                    let reason = refused.and_then(Result::err);
                    self.schedule[at].write_at = None;
                    self.schedule[at].writes.reset();
                    if device.twin().note_write(property, reason.as_deref()) {
                        self.say_by(Instant::now());
                    }
                    continue;
                }
            };
            if self.schedule[at].write_at.is_some_and(|again| again > Instant::now()) {
                continue;
            }
            let outcome = self.driver.write(at, &value).await;
            let error = match outcome {
                Ok(()) => {
                    let readings = self.driver.read(&[at]).await;
                    self.take(readings);
                    let is_there = device.twin().wanted(property).is_none();
                    (!is_there).then(|| "the device took the value, and does not have it".to_owned())
                }
                Err(trouble) => Some(trouble.reason),
            };
            debug!(device = %device.spec.key, property = %property.name, error, "desired value written");
            let schedule = &mut self.schedule[at];
            schedule.write_at = error.is_some().then(|| Instant::now() + schedule.writes.next_delay());
            device.twin().note_write(property, error.as_deref());
            device.touch();
            // Somebody waits to see it.
            self.say_by(Instant::now());
        }
    }

    fn say_by(&mut self, due: Instant) {
        self.report_at = Some(self.report_at.map_or(due, |earlier| earlier.min(due)));
    }

    async fn report_due(&mut self) {
        let now = Instant::now();
        let is_alive = self.device.twin().state == State::Online && now >= self.reported_at + LIVENESS;
        if self.report_at.is_none_or(|due| due > now) && !is_alive {
            if now >= self.reported_at + LIVENESS {
                self.reported_at = now;
            }
            return;
        }
        let happened = std::mem::take(&mut self.happened);
        match self.report(happened).await {
            Ok(()) => (self.report_at, self.reported_at) = (None, now),
            Err(error) => {
                debug!(device = %self.device.spec.key, error = %runtime::chain(&error), "a twin is not kept yet");
                self.report_at = Some(now + STORE_RETRY);
            }
        }
    }

    /// An event that is not kept is lost: the status says the same.
    async fn report(&self, happened: Vec<Bytes>) -> Result<(), StoreError> {
        let spec = &self.device.spec;
        let payload = json!({"uid": spec.uid, "status": self.device.status()}).to_string();
        let events = happened.into_iter().map(|event| self.store.report(ReportKind::Event, &spec.key, event));
        // All in one group.
        let (kept, reported, events) = tokio::join!(
            self.device.keep(None, &self.store),
            // Each session is told again.
            self.store.report_in_memory(ReportKind::DeviceStatus, &spec.key, Bytes::from(payload)),
            join_all(events),
        );
        for failure in events.into_iter().filter_map(Result::err) {
            warn!(device = %spec.key, error = %runtime::chain(&failure), "an event is lost");
        }
        kept.and(reported.map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_many_devices_are_made_at_once() {
        let millis = Duration::from_millis;
        assert_eq!([0, 1, 249].map(|since| moments(millis(since))), [1; 3]);
        assert_eq!([250, 251, 499].map(|since| moments(millis(since))), [2; 3]);
    }
}
