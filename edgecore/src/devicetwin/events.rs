//! Kubernetes events about devices, for `kubectl describe device` and whoever watches events.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;

use proto::ResourceKey;

use super::spec::DeviceSpec;
use crate::event_name::event_name;

const LONGEST: usize = 1024;

pub(super) fn offline(spec: &DeviceSpec, reason: &str) -> Bytes {
    event(&about(spec), "Warning", "DeviceOffline", &format!("the device does not answer: {reason}"))
}

pub(super) fn online(spec: &DeviceSpec) -> Bytes {
    event(&about(spec), "Normal", "DeviceOnline", "the device answers again")
}

/// What an event is about, and what tells of it.
pub(super) struct About<'a> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) key: &'a ResourceKey,
    pub(super) uid: &'a str,
    pub(super) component: &'static str,
}

fn about(spec: &DeviceSpec) -> About<'_> {
    About {
        api_version: "devices.kubeedge.io/v1beta1",
        kind: "Device",
        key: &spec.key,
        uid: &spec.uid,
        component: "devicetwin",
    }
}

/// `v1.Event`; cloudcore says whose it is.
pub(super) fn event(about: &About<'_>, kind: &str, reason: &str, message: &str) -> Bytes {
    let now = Timestamp::now();
    let time = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let (namespace, name) = (about.key.namespace(), about.key.name());
    let message: String = message.chars().take(LONGEST).collect();
    let event = json!({
        "metadata": {"name": event_name(name, now), "namespace": namespace},
        "involvedObject": {
            "apiVersion": about.api_version, "kind": about.kind,
            "namespace": namespace, "name": name, "uid": about.uid,
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "source": {"component": about.component},
        "reportingComponent": about.component,
    });
    event.to_string().into()
}
