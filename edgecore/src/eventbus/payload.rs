//! What is said on KubeEdge's topics of devices.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use crate::devicetwin::{PropertyView, SetError};

pub(super) type Twins = BTreeMap<Box<str>, PropertyView>;

/// Of `…/get`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Question {
    #[serde(default)]
    pub(super) event_id: String,
}

/// Of `…/twin/update`.
#[derive(Debug, Deserialize)]
pub(super) struct TwinUpdate {
    #[serde(default)]
    pub(super) event_id: String,
    /// `null` removes a twin in KubeEdge.
    pub(super) twin: BTreeMap<String, Option<Entry>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    pub(super) expected: Option<Said>,
    pub(super) actual: Option<Said>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Said {
    value: Option<Json>,
}

impl Said {
    /// Numbers and booleans are taken for what they would be as text.
    pub(super) fn text(&self) -> Option<String> {
        match self.value.as_ref()? {
            Json::Null => None,
            Json::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }
}

/// Of `…/state/update`.
#[derive(Debug, Deserialize)]
pub(super) struct StateUpdate {
    #[serde(default)]
    pub(super) event_id: String,
    pub(super) state: String,
}

/// Why something was not done, with the code that KubeEdge has for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn bad(reason: String) -> Self {
        Self { code: 400, reason }
    }
}

impl From<SetError> for Refusal {
    fn from(error: SetError) -> Self {
        let code = match &error {
            SetError::NoDevice { .. } | SetError::NoProperty { .. } => 404,
            SetError::Refused { .. } => 400,
            SetError::Driven { .. } => 409,
            SetError::Store(_) => 500,
        };
        Self { code, reason: runtime::chain(&error).to_string() }
    }
}

/// Reads what an app has sent.
pub(super) fn read<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(payload)
        .map_err(|error| Refusal::bad(format!("the payload is malformed: {error}")))
}

pub(super) fn refused(event_id: &str, now: u64, refusal: &Refusal) -> Json {
    json!({"event_id": event_id, "timestamp": now, "code": refusal.code, "reason": refusal.reason})
}

fn entry(view: &PropertyView) -> Json {
    let mut entry = json!({"optional": true, "metadata": {"type": view.kind}});
    for (name, stamped) in [("expected", &view.desired), ("actual", &view.reported)] {
        if let Some((value, at)) = stamped {
            entry[name] = json!({"value": value, "metadata": {"timestamp": at}});
        }
    }
    entry
}

fn entries<'a>(twins: impl Iterator<Item = (&'a Box<str>, &'a PropertyView)>) -> Map<String, Json> {
    twins.map(|(name, view)| (name.to_string(), entry(view))).collect()
}

/// Of `…/twin/get/result` and `…/twin/update/result`.
pub(super) fn twins(event_id: &str, now: u64, twins: &Twins) -> Json {
    json!({"event_id": event_id, "timestamp": now, "twin": entries(twins.iter())})
}

fn is_to_change(view: &PropertyView) -> bool {
    let value = |stamped: &Option<(Box<str>, u64)>| stamped.as_ref().map(|(value, _)| value.clone());
    view.desired.is_some() && value(&view.desired) != value(&view.reported)
}

/// Of `…/twin/update/delta`: what is not as it should be. `None` where all of it is.
pub(super) fn delta(now: u64, twins: &Twins) -> Option<Json> {
    let open = || twins.iter().filter(|(_, view)| is_to_change(view));
    let wanted: Map<String, Json> = open()
        .filter_map(|(name, view)| Some((name.to_string(), Json::from(&*view.desired.as_ref()?.0))))
        .collect();
    let delta = json!({"event_id": "", "timestamp": now, "twin": entries(open()), "delta": wanted});
    (!wanted.is_empty()).then_some(delta)
}

/// Of `…/twin/update/document`: what has changed.
pub(super) fn document(now: u64, last: &Twins, current: &Twins) -> Option<Json> {
    let changed: Map<String, Json> = current
        .iter()
        .filter(|(name, view)| last.get(*name) != Some(view))
        .map(|(name, view)| {
            let last = last.get(name).map_or(Json::Null, entry);
            (name.to_string(), json!({"last": last, "current": entry(view)}))
        })
        .collect();
    (!changed.is_empty()).then(|| json!({"event_id": "", "timestamp": now, "twin": changed}))
}

/// Of `…/data/update`: what the device has said anew.
pub(super) fn data(now: u64, last: &Twins, current: &Twins) -> Option<Json> {
    let said: Map<String, Json> = current
        .iter()
        .filter(|(name, view)| last.get(*name).is_none_or(|last| last.reported != view.reported))
        .filter_map(|(name, view)| {
            let (value, at) = view.reported.as_ref()?;
            Some((
                name.to_string(),
                json!({"value": value, "metadata": {"timestamp": at, "type": view.kind}}),
            ))
        })
        .collect();
    (!said.is_empty()).then(|| json!({"event_id": "", "timestamp": now, "data": said}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twins_of(reported: &str, desired: Option<&str>) -> Twins {
        let view = PropertyView {
            kind: "int",
            reported: Some((reported.into(), 1)),
            desired: desired.map(|desired| (desired.into(), 2)),
        };
        [("speed".into(), view)].into()
    }

    #[test]
    fn what_is_said_is_what_kubeedge_says() {
        let (before, after) = (twins_of("900", None), twins_of("900", Some("1200")));
        let entry = json!({"optional": true, "metadata": {"type": "int"},
            "actual": {"value": "900", "metadata": {"timestamp": 1}},
            "expected": {"value": "1200", "metadata": {"timestamp": 2}}});
        assert_eq!(twins("e", 3, &after), json!({"event_id": "e", "timestamp": 3, "twin": {"speed": entry}}));
        let delta_of = delta(3, &after).unwrap();
        assert_eq!(delta_of["delta"], json!({"speed": "1200"}));
        assert_eq!(delta_of["twin"]["speed"], entry);
        assert_eq!(delta(3, &before), None);
        assert_eq!(delta(3, &twins_of("1200", Some("1200"))), None);
        assert_eq!(document(3, &before, &after).unwrap()["twin"]["speed"]["current"], entry);
        assert_eq!(document(3, &after, &after), None);
        assert_eq!(data(3, &before, &after), None, "the device has said nothing");
        let said = data(3, &after, &twins_of("1200", Some("1200"))).unwrap();
        assert_eq!(said["data"]["speed"]["value"], "1200");
    }

    #[test]
    fn what_apps_send_is_read_or_says_why_not() {
        let update: TwinUpdate = read(
            br#"{"event_id": "e", "timestamp": 1, "twin": {
            "speed": {"expected": {"value": 1200}, "metadata": {"type": "int"}}, "gone": null}}"#,
        )
        .unwrap();
        let Some(Some(entry)) = update.twin.get("speed") else { panic!() };
        assert_eq!(entry.expected.as_ref().and_then(Said::text).as_deref(), Some("1200"));
        assert!(entry.actual.is_none() && update.twin["gone"].is_none());
        for payload in [&b"{"[..], b"[]", b"{\"twin\": 7}", b"\xff", b""] {
            assert_eq!(read::<TwinUpdate>(payload).unwrap_err().code, 400);
        }
    }
}
