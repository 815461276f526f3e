//! What is known of a device: of each property what it is, as the device said last, and what it should be.
//!
//! Kept in the store, so that a restart with no cloud in reach goes on with what was set at the edge and knows what was said.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crds::devices::v1beta1;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::{
    kept::{self, Head},
    spec::{DeviceSpec, Property},
    value::{Value, type_name},
};

/// Milliseconds since 1970.
pub(super) type UnixMs = u64;

/// When a device was last online is kept so often, while it is.
const ONLINE_KEPT: Duration = Duration::from_mins(5);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum State {
    /// Not asked yet.
    #[default]
    Unknown,
    Online,
    Offline,
    /// Said by whoever drives it.
    Unhealthy,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Unhealthy => "unhealthy",
        }
    }

    /// As KubeEdge's mappers say it.
    pub(super) fn parse(state: &str) -> Option<Self> {
        match state.to_lowercase().as_str() {
            "online" | "ok" => Some(Self::Online),
            "offline" => Some(Self::Offline),
            "unknown" => Some(Self::Unknown),
            "unhealthy" => Some(Self::Unhealthy),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamped {
    pub(super) value: Box<str>,
    pub(super) at: UnixMs,
}

/// One property.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct PropertyTwin {
    /// What the device said last; `at` is when it has come to be so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reported: Option<Stamped>,
    /// Why it could not be read the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) read_error: Option<Box<str>>,
    /// What it should be; `at` is when that was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) desired: Option<Stamped>,
    /// Why the device does not have the desired value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) write_error: Option<Box<str>>,
    /// It was set at the edge, and not in the cloud.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) set_here: bool,
    /// What the Device said last that it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_cloud: Option<Box<str>>,
}

#[derive(Debug, Default)]
pub(super) struct Twin {
    uid: Box<str>,
    pub(super) state: State,
    /// When it was last heard of: every [`super::actor`]'s liveness stamp, and not each answer.
    pub(super) last_online: Option<UnixMs>,
    /// Why it cannot be reached.
    pub(super) absence: Option<Box<str>>,
    pub(super) properties: BTreeMap<Box<str>, PropertyTwin>,
    /// As the store has it.
    kept_head: Option<Head>,
    /// Properties of which the store has something else, or has something and `properties` has not.
    unkept: BTreeSet<Box<str>>,
}

impl Twin {
    /// As the store has it.
    pub(super) fn kept(head: Option<Head>, properties: BTreeMap<Box<str>, PropertyTwin>) -> Self {
        // Since it was kept when it was last online, it may have said something.
        let said = properties.values().filter_map(|twin| twin.reported.as_ref()).map(|reported| reported.at);
        let last_online = said.chain(head.as_ref().and_then(|head| head.last_online)).max();
        let uid = head.as_ref().map(|head| head.uid.clone()).unwrap_or_default();
        // It may have come or gone since.
        let state = State::Unknown;
        Self { uid, state, last_online, absence: None, properties, kept_head: head, unkept: BTreeSet::new() }
    }

    /// From now on it is the twin of a device of this spec.
    pub(super) fn adapt(&mut self, spec: &DeviceSpec) {
        if self.uid != spec.uid {
            let before = std::mem::take(self);
            self.uid = spec.uid.clone();
            self.unkept = before.unkept;
            self.unkept.extend(before.properties.into_keys());
        }
        let mut known = std::mem::take(&mut self.properties);
        for property in &spec.properties {
            self.properties.insert(property.name.clone(), known.remove(&property.name).unwrap_or_default());
        }
        self.unkept.extend(known.into_keys());
    }

    /// What the store does not have yet, and `also` of what there is; from now on it counts as kept.
    pub(super) fn take_unkept(&mut self, spec: &DeviceSpec, also: Option<&str>) -> Vec<kept::Change> {
        let mut changes = Vec::new();
        let is_head_due = !self.is_head_kept();
        if is_head_due {
            self.kept_head = Some(Head { uid: self.uid.clone(), last_online: self.last_online });
        }
        // Without it nothing else counts; who waits for `also` is not to trust that it gets there.
        if let Some(head) = self.kept_head.as_ref().filter(|_| is_head_due || also.is_some()) {
            changes.push(kept::head(&spec.key, head));
        }
        let mut names = std::mem::take(&mut self.unkept);
        names.extend(also.map(Into::into));
        changes.extend(names.iter().map(|name| kept::property(&spec.key, name, self.properties.get(name))));
        changes
    }

    /// The store has not taken what it was given.
    pub(super) fn note_unkept(&mut self) {
        self.kept_head = None;
        self.unkept.extend(self.properties.keys().cloned());
    }

    fn is_head_kept(&self) -> bool {
        let Some(kept) = &self.kept_head else { return false };
        let since = self.last_online.unwrap_or_default().saturating_sub(kept.last_online.unwrap_or_default());
        let is_recent = Duration::from_millis(since) < ONLINE_KEPT;
        // A device that goes was online until then.
        if self.state == State::Online { is_recent } else { since == 0 }
    }

    /// To be changed.
    fn property(&mut self, property: &Property) -> &mut PropertyTwin {
        self.unkept.insert(property.name.clone());
        self.properties.entry(property.name.clone()).or_default()
    }

    /// Takes over what the Device says that its properties should be, where it says something new. What was set at the edge since then
    /// is newer.
    pub(super) fn desire(&mut self, spec: &DeviceSpec, now: UnixMs) {
        let at = spec.changed_at.unwrap_or(now);
        for property in &spec.properties {
            if self.properties.get(&property.name).is_some_and(|twin| twin.from_cloud == property.desired) {
                continue;
            }
            let twin = self.property(property);
            twin.from_cloud.clone_from(&property.desired);
            // The API server's times are whole seconds; within one the cloud's counts, which has come last.
            let is_older =
                twin.set_here && twin.desired.as_ref().is_some_and(|here| here.at / 1000 > at / 1000);
            if !is_older {
                twin.write_error = None;
                twin.set_here = false;
                twin.desired = property.desired.clone().map(|value| Stamped { value, at });
            }
        }
    }

    /// What somebody at the edge has set; it has been checked.
    pub(super) fn set_here(&mut self, property: &Property, value: &Value, now: UnixMs) {
        let twin = self.property(property);
        twin.desired = Some(Stamped { value: value.to_string().into(), at: now });
        (twin.set_here, twin.write_error) = (true, None);
    }

    /// The device has said this of a property. Whether that is news.
    pub(super) fn observe(&mut self, property: &Property, value: &Value, now: UnixMs) -> bool {
        let text: Box<str> = value.to_string().into();
        // What it said is the truth, also where the model says that it cannot be.
        let doubt = property.range.check(value).err().map(|error| error.to_string().into());
        let known = self.properties.get(&property.name);
        let is_same =
            |reported: &Stamped| reported.value == text || is_near(property, &reported.value, value);
        let is_same = known.and_then(|twin| twin.reported.as_ref()).is_some_and(is_same);
        if is_same && known.is_some_and(|twin| twin.read_error == doubt) {
            return false;
        }
        let twin = self.property(property);
        twin.read_error = doubt;
        if !is_same {
            twin.reported = Some(Stamped { value: text, at: now });
        }
        true
    }

    /// A property could not be read. What it was is still what is known last.
    pub(super) fn miss(&mut self, property: &Property, reason: &str) -> bool {
        let known = self.properties.get(&property.name);
        let is_news = known.and_then(|twin| twin.read_error.as_deref()) != Some(reason);
        if is_news {
            self.property(property).read_error = Some(reason.into());
        }
        is_news
    }

    /// The value to be written, if the device is not known to have it. The error is why it will not be.
    pub(super) fn wanted(&self, property: &Property) -> Option<Result<Value, String>> {
        let twin = self.properties.get(&property.name)?;
        let desired = twin.desired.as_ref()?;
        if !property.writable {
            return Some(Err("the model says that the property is ReadOnly".to_owned()));
        }
        let value = match Value::parse(property.kind, &desired.value) {
            Ok(value) => value,
            Err(error) => return Some(Err(error.to_string())),
        };
        if let Err(error) = property.range.check(&value) {
            return Some(Err(error.to_string()));
        }
        let has = twin.reported.as_ref().is_some_and(|reported| {
            // 21 is 21.0.
            Value::parse(property.kind, &reported.value).is_ok_and(|reported| reported == value)
        });
        (!has).then_some(Ok(value))
    }

    /// Why the desired value is not there; `None`: it is, or will be. Whether that is news.
    pub(super) fn note_write(&mut self, property: &Property, error: Option<&str>) -> bool {
        let known = self.properties.get(&property.name);
        let is_news = known.and_then(|twin| twin.write_error.as_deref()) != error;
        if is_news {
            self.property(property).write_error = error.map(Into::into);
        }
        is_news
    }

    /// As the API has it; `refused` are properties that cannot be driven.
    pub(super) fn status(&self, spec: &DeviceSpec, refused: &[(Box<str>, String)]) -> v1beta1::DeviceStatus {
        let mut twins = Vec::new();
        for property in spec.properties.iter().filter(|property| property.to_cloud) {
            let Some(twin) = self.properties.get(&property.name) else { continue };
            let refusal =
                refused.iter().find(|(name, _)| *name == property.name).map(|(_, reason)| reason.as_str());
            let mut desired = stamped(twin.desired.as_ref(), property, twin.write_error.as_deref());
            if twin.set_here {
                desired.metadata.insert("source".to_owned(), "edge".to_owned());
                if let Some(overridden) = twin.from_cloud.as_deref().filter(|value| *value != desired.value) {
                    desired.metadata.insert("overrides".to_owned(), overridden.to_owned());
                }
            }
            twins.push(v1beta1::Twin {
                property_name: property.name.to_string(),
                reported: stamped(twin.reported.as_ref(), property, refusal.or(twin.read_error.as_deref())),
                observed_desired: desired,
            });
        }
        for (name, reason) in refused {
            if !spec.properties.iter().any(|property| property.name == *name) {
                let metadata = [("error".to_owned(), reason.clone())].into();
                twins.push(v1beta1::Twin {
                    property_name: name.to_string(),
                    reported: v1beta1::TwinProperty { value: String::new(), metadata },
                    ..v1beta1::Twin::default()
                });
            }
        }
        v1beta1::DeviceStatus {
            twins,
            state: self.state.name().to_owned(),
            last_online_time: self.last_online.map(rfc3339).unwrap_or_default(),
            extensions: self.absence.as_deref().map(error).unwrap_or_default(),
        }
    }
}

/// Too near to what was reported to be reported itself.
fn is_near(property: &Property, reported: &str, value: &Value) -> bool {
    let before = Value::parse(property.kind, reported).ok().and_then(|before| before.number());
    let distance = before.zip(value.number()).map(|(before, now)| (before - now).abs());
    property.deadband.zip(distance).is_some_and(|(deadband, distance)| distance < deadband)
}

fn stamped(stamped: Option<&Stamped>, property: &Property, error: Option<&str>) -> v1beta1::TwinProperty {
    let mut metadata = BTreeMap::new();
    if let Some(stamped) = stamped {
        metadata.insert("timestamp".to_owned(), stamped.at.to_string());
        metadata.insert("type".to_owned(), type_name(property.kind).to_owned());
    }
    if let Some(error) = error {
        metadata.insert("error".to_owned(), error.to_owned());
    }
    v1beta1::TwinProperty {
        value: stamped.map(|stamped| stamped.value.to_string()).unwrap_or_default(),
        metadata,
    }
}

/// Of a whole device.
fn error(reason: &str) -> Map<String, Json> {
    [("error".to_owned(), Json::from(reason))].into_iter().collect()
}

/// The status of a device that cannot be driven.
pub(super) fn undriven(reason: &str) -> v1beta1::DeviceStatus {
    v1beta1::DeviceStatus {
        state: State::Unknown.name().to_owned(),
        extensions: error(reason),
        ..v1beta1::DeviceStatus::default()
    }
}

fn rfc3339(at: UnixMs) -> String {
    let seconds = i64::try_from(at / 1000).unwrap_or_default();
    jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::devicetwin::spec::tests::spec;

    fn pump(desired: Option<&str>) -> DeviceSpec {
        let model = json!({"protocol": "modbus", "properties": [
            {"name": "speed", "type": "INT", "minimum": "0", "maximum": "3000"},
            {"name": "heat", "type": "FLOAT", "accessMode": "ReadOnly"},
        ]});
        let mut device =
            json!({"deviceModelRef": {"name": "pumps"}, "properties": [{"name": "speed"}, {"name": "heat"}]});
        if let Some(desired) = desired {
            device["properties"][0]["desired"] = json!({"value": desired});
        }
        spec(&device, &model).unwrap()
    }

    fn adapted(mut twin: Twin, spec: &DeviceSpec) -> Twin {
        twin.adapt(spec);
        twin
    }

    fn fresh(spec: &DeviceSpec) -> Twin {
        adapted(Twin::default(), spec)
    }

    /// As the store has it.
    fn kept(last_online: Option<UnixMs>, properties: BTreeMap<Box<str>, PropertyTwin>) -> Twin {
        Twin::kept(Some(Head { uid: "u".into(), last_online }), properties)
    }

    #[test]
    fn what_the_device_says_is_what_is_told() {
        let spec = pump(None);
        let mut twin = fresh(&spec);
        let [speed, heat] = &spec.properties[..] else { panic!() };
        assert!(twin.observe(speed, &Value::Integer(900), 1000));
        assert!(!twin.observe(speed, &Value::Integer(900), 2000), "no news");
        assert!(twin.observe(speed, &Value::Integer(3001), 3000));
        assert!(twin.miss(heat, "no such register") && !twin.miss(heat, "no such register"));
        twin.state = State::Online;
        twin.last_online = Some(3_000);
        let status =
            serde_json::to_value(twin.status(&spec, &[("noise".into(), "no such property".to_owned())]))
                .unwrap();
        assert_eq!(status["state"], "online");
        assert_eq!(status["lastOnlineTime"], "1970-01-01T00:00:03Z");
        assert_eq!(
            status["twins"][0]["reported"],
            json!({"value": "3001", "metadata": {
            "timestamp": "3000", "type": "int", "error": "3001 is more than the model's maximum 3000"}})
        );
        assert_eq!(
            status["twins"][1]["reported"],
            json!({"value": "", "metadata": {"error": "no such register"}})
        );
        assert_eq!(status["twins"][2]["propertyName"], "noise");
        assert_eq!(status["twins"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn what_is_near_is_no_news() {
        let model = json!({"protocol": "modbus", "properties": [
            {"name": "heat", "type": "FLOAT", "accessMode": "ReadOnly"},
        ]});
        let device =
            json!({"deviceModelRef": {"name": "pumps"}, "properties": [{"name": "heat", "deadband": 0.5}]});
        let spec = spec(&device, &model).unwrap();
        let mut twin = fresh(&spec);
        let heat = &spec.properties[0];
        let news: Vec<bool> = [20.0, 20.4, 20.49, 20.5, 20.1, 20.0]
            .iter()
            .map(|degrees| twin.observe(heat, &Value::Float(*degrees), 1000))
            .collect();
        assert_eq!(news, [true, false, false, true, false, true]);
    }

    #[test]
    fn a_desired_value_is_wanted_until_the_device_has_it() {
        let spec = pump(Some("900.0"));
        let mut twin = fresh(&spec);
        let speed = &spec.properties[0];
        twin.desire(&spec, 1000);
        assert_eq!(twin.wanted(speed), Some(Ok(Value::Integer(900))));
        twin.observe(speed, &Value::Integer(900), 2000);
        assert_eq!(twin.wanted(speed), None);
        // Somebody has set it back by hand.
        twin.observe(speed, &Value::Integer(0), 3000);
        assert_eq!(twin.wanted(speed), Some(Ok(Value::Integer(900))));
        let too_fast = pump(Some("9000"));
        twin.desire(&too_fast, 4000);
        let refused = twin.wanted(&too_fast.properties[0]);
        assert_eq!(refused, Some(Err("9000 is more than the model's maximum 3000".to_owned())));
        twin.desire(&pump(None), 5000);
        assert_eq!(twin.wanted(speed), None);
    }

    #[test]
    fn the_newest_of_edge_and_cloud_is_wanted() {
        let at = |desired: &str, at: UnixMs| DeviceSpec { changed_at: Some(at), ..pump(Some(desired)) };
        let spec = at("900", 1000);
        let speed = &spec.properties[0];
        let mut twin = fresh(&spec);
        twin.desire(&spec, 1500);
        twin.set_here(speed, &Value::Integer(500), 2000);
        let mut twin = adapted(kept(None, twin.properties), &spec);
        twin.desire(&spec, 3000);
        assert_eq!(twin.wanted(speed), Some(Ok(Value::Integer(500))));
        // Said in the cloud before that, and heard of after a cut.
        twin.desire(&at("901", 1000), 4000);
        assert_eq!(twin.wanted(speed), Some(Ok(Value::Integer(500))));
        let status = twin.status(&spec, &[]);
        let metadata = &status.twins[0].observed_desired.metadata;
        assert_eq!((metadata["source"].as_str(), metadata["overrides"].as_str()), ("edge", "901"));
        twin.desire(&at("902", 2100), 5000);
        assert_eq!(twin.wanted(speed), Some(Ok(Value::Integer(902))));
        assert!(!twin.status(&spec, &[]).twins[0].observed_desired.metadata.contains_key("source"));
        let other = DeviceSpec { uid: "another".into(), ..pump(None) };
        twin.adapt(&other);
        assert_eq!(twin.properties["speed"], PropertyTwin::default());
    }

    #[test]
    fn what_has_changed_is_kept_by_itself() {
        let spec = pump(None);
        let [speed, heat] = &spec.properties[..] else { panic!() };
        let mut twin = fresh(&spec);
        let keys = |changes: Vec<kept::Change>| {
            let is_there = |(key, value): (String, Option<Bytes>)| (key, value.is_some());
            changes.into_iter().map(is_there).collect::<BTreeMap<String, bool>>()
        };
        let of_head = kept::head(&spec.key, &Head::default()).0;
        let [of_speed, of_heat] = ["speed", "heat"].map(|name| kept::property(&spec.key, name, None).0);
        let is_kept = |names: &[&String]| names.iter().map(|name| (String::clone(name), true)).collect();
        (twin.state, twin.last_online) = (State::Online, Some(1_000));
        assert!(twin.observe(speed, &Value::Integer(900), 1_000));
        assert_eq!(keys(twin.take_unkept(&spec, None)), is_kept(&[&of_head, &of_speed]));
        twin.last_online = Some(300_999);
        assert!(!twin.observe(speed, &Value::Integer(900), 2_000) && twin.miss(heat, "gone"));
        assert!(!twin.note_write(speed, None));
        assert_eq!(keys(twin.take_unkept(&spec, None)), is_kept(&[&of_heat]));
        assert_eq!(keys(twin.take_unkept(&spec, None)), is_kept(&[]));
        // Somebody waits until it is kept, whoever has begun that.
        assert_eq!(keys(twin.take_unkept(&spec, Some("speed"))), is_kept(&[&of_head, &of_speed]));
        twin.state = State::Offline;
        assert_eq!(keys(twin.take_unkept(&spec, None)), is_kept(&[&of_head]));
        twin.note_unkept();
        assert_eq!(keys(twin.take_unkept(&spec, None)), is_kept(&[&of_head, &of_heat, &of_speed]));

        let said = twin.properties.clone();
        let old = said.iter().map(|(name, twin)| (format!("old-{name}").into(), twin.clone())).collect();
        let mut restored = adapted(kept(Some(500), old), &spec);
        let gone = ["old-heat", "old-speed"].map(|name| (kept::property(&spec.key, name, None).0, false));
        assert_eq!(
            keys(restored.take_unkept(&spec, None)),
            [(of_head, true)].into_iter().chain(gone).collect()
        );
        assert_eq!(kept(Some(500), said).last_online, Some(1_000), "when it has said something");
    }
}
