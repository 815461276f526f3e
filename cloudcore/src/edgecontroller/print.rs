//! Statuses as numbers, which are equal where writing one over the other would change nothing.
//!
//! Each session begins with the edge saying how everything is, and a fleet that comes back says it all at once: what the API
//! server has already is not written again. And what somebody else has made of it meanwhile is seen, and written over.
//! Where in doubt two prints differ, which costs a write.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::objects::Fields;

/// Of a pod's conditions, those that neither the edge nor a readiness gate's owner writes.
const OTHERS: [&str; 2] = ["PodScheduled", "DisruptionTarget"];
/// The API server's own, unchangeable since it made the pod.
const QOS: &str = "qosClass";
/// Of a node's condition: cloudcore writes them as it sees them.
const TIMES: [&str; 2] = ["lastHeartbeatTime", "lastTransitionTime"];

/// Of a `v1.PodStatus` that was reported.
///
/// # Errors
///
/// It is no JSON object with a list of conditions.
pub fn of_reported_pod(status: &str) -> Result<u64, serde_json::Error> {
    of(status, &[], |_| true, &[])
}

/// Of a `v1.PodStatus` that the API server has, in which `gates` are the conditions that its readiness gates wait for.
///
/// # Errors
///
/// As [`of_reported_pod`].
pub fn of_pod(status: &str, gates: &[&str]) -> Result<u64, serde_json::Error> {
    let is_the_edges = |kind: &str| !OTHERS.contains(&kind) && !gates.contains(&kind);
    of(status, &[QOS], is_the_edges, &[])
}

/// Of a `v1.NodeStatus`, without the times of its conditions.
///
/// # Errors
///
/// As [`of_reported_pod`].
pub fn of_node(status: &str) -> Result<u64, serde_json::Error> {
    of(status, &[], |_| true, &TIMES)
}

/// Of the status of a device, whether it was reported or the API server has it.
///
/// # Errors
///
/// As [`of_reported_pod`].
pub fn of_device(status: &str) -> Result<u64, serde_json::Error> {
    of(status, &[], |_| true, &[])
}

/// `without` those fields, the conditions that are not `counted`, and in each those fields.
fn of(
    status: &str,
    without: &[&str],
    counted: impl Fn(&str) -> bool,
    without_in_condition: &[&str],
) -> Result<u64, serde_json::Error> {
    #[derive(Deserialize)]
    struct Condition<'a> {
        #[serde(borrow, default)]
        r#type: std::borrow::Cow<'a, str>,
    }
    let fields: Fields<'_> = serde_json::from_str(status)?;
    let mut sum = 0_u64;
    for (field, value) in fields.each().filter(|(field, _)| !without.contains(field)) {
        if field != "conditions" {
            let Print(value) = serde_json::from_str(value.get())?;
            sum = sum.wrapping_add(value.map_or(0, |value| hash(&(field, value))));
            continue;
        }
        // By type, whatever their order.
        for raw in serde_json::from_str::<Option<Vec<&RawValue>>>(value.get())?.unwrap_or_default() {
            if !counted(&serde_json::from_str::<Condition<'_>>(raw.get())?.r#type) {
                continue;
            }
            let mut condition = 0_u64;
            for (field, value) in serde_json::from_str::<Fields<'_>>(raw.get())?.each() {
                let Print(value) = serde_json::from_str(value.get())?;
                let value = value.filter(|_| !without_in_condition.contains(&field));
                condition = condition.wrapping_add(value.map_or(0, |value| hash(&(field, value))));
            }
            sum = sum.wrapping_add(hash(&condition));
        }
    }
    Ok(sum)
}

fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Of any JSON; none of what the API server leaves out or puts in as it likes: `null`, `""`, `[]` and `{}`.
struct Print(Option<u64>);

impl<'de> Deserialize<'de> for Print {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PrintVisitor).map(Self)
    }
}

struct PrintVisitor;

impl<'de> Visitor<'de> for PrintVisitor {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(hash(&value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(hash(&value)))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(hash(&value)))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(hash(&value.to_bits())))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok((!value.is_empty()).then(|| hash(&value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Print(item)) = items.next_element()? {
            all.push(item);
        }
        Ok((!all.is_empty()).then(|| hash(&all)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut all = None;
        while let Some((Print(field), Print(value))) = fields.next_entry()? {
            if let Some(value) = value {
                all = Some(hash(&(field, value)).wrapping_add(all.unwrap_or_default()));
            }
        }
        Ok(all.map(|all| hash(&all)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reported(status: &Value) -> u64 {
        of_reported_pod(&status.to_string()).unwrap()
    }

    fn held(status: &Value) -> u64 {
        of_pod(&status.to_string(), &["example.com/gate"]).unwrap()
    }

    fn pod() -> Value {
        json!({"phase": "Running", "podIP": "10.0.0.1", "message": "", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z", "reason": ""},
                {"type": "Initialized", "status": "True"}],
            "containerStatuses": [
                {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}},
                {"name": "b", "ready": false, "started": false}]})
    }

    #[test]
    fn what_the_api_server_and_others_add_to_a_pods_status_does_not_count() {
        let mut with = pod();
        with["qosClass"] = "Burstable".into();
        with.as_object_mut().unwrap().remove("message");
        with["containerStatuses"][0]["lastState"] = json!({});
        with["conditions"] = json!([
            {"type": "PodScheduled", "status": "True"},
            {"type": "Initialized", "status": "True", "lastProbeTime": null},
            {"lastTransitionTime": "2026-01-01T00:00:00Z", "type": "Ready", "status": "True"},
            {"type": "example.com/gate", "status": "False"}]);
        assert_eq!(reported(&pod()), held(&with));
    }

    #[test]
    fn everything_else_does() {
        let whole = reported(&pod());
        for (path, value) in [
            ("/phase", json!("Failed")),
            ("/podIP", json!("10.0.0.2")),
            ("/podIP", json!(null)),
            ("/message", json!("m")),
            ("/conditions/0/status", json!("False")),
            ("/conditions/0/lastTransitionTime", json!("2026-01-01T00:00:01Z")),
            ("/conditions/1", json!({"type": "PodResizePending", "status": "True"})),
            ("/containerStatuses/0/restartCount", json!(1)),
            ("/containerStatuses/0/state", json!({"waiting": {"reason": "r"}})),
            ("/containerStatuses/1/started", json!(null)),
            ("/containerStatuses/1/started", json!(true)),
            ("/containerStatuses/1", json!({})),
        ] {
            let mut other = pod();
            *other.pointer_mut(path).unwrap() = value;
            assert_ne!(whole, held(&other), "{path} {other}");
        }
        let mut swapped = pod();
        swapped["containerStatuses"].as_array_mut().unwrap().reverse();
        assert_ne!(whole, held(&swapped));
        let mut more = pod();
        more["nominatedNodeName"] = "n".into();
        assert_ne!(whole, held(&more));
        for text in ["", "7", "[]", r#"{"conditions": 7}"#, r#"{"conditions": [7]}"#] {
            assert!(of_reported_pod(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn of_a_nodes_conditions_the_times_do_not_count() {
        let node = |time: &str, ready: &str| {
            let status = json!({"capacity": {"cpu": "2"}, "conditions": [
                {"type": "Ready", "status": ready, "lastHeartbeatTime": time, "lastTransitionTime": time}]});
            of_node(&status.to_string()).unwrap()
        };
        assert_eq!(node("2026-01-01T00:00:00Z", "True"), node("2026-01-01T00:00:01Z", "True"));
        assert_ne!(node("2026-01-01T00:00:00Z", "True"), node("2026-01-01T00:00:00Z", "Unknown"));
    }
}
