//! KubeEdge's topics of devices and of the node, as apps and mappers at a site use them.

use std::fmt;

/// A device as a topic names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceId {
    /// KubeEdge had none before 1.17.
    pub(super) namespace: Option<Box<str>>,
    pub(super) name: Box<str>,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What an app wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    TwinGet(DeviceId),
    TwinUpdate(DeviceId),
    StateUpdate(DeviceId),
    MembershipGet,
}

impl Asked {
    /// `None` of what is for others.
    pub(super) fn of(topic: &str, node: &str) -> Option<Self> {
        let rest = topic.strip_prefix("$hw/events/")?;
        if let Some(rest) = rest.strip_prefix("node/") {
            return (rest.strip_prefix(node)? == "/membership/get").then_some(Self::MembershipGet);
        }
        let parts: Vec<&str> = rest.strip_prefix("device/")?.split('/').collect();
        let (namespace, name, what) = match parts[..] {
            [namespace, name, part, verb] => (Some(namespace.into()), name, (part, verb)),
            [name, part, verb] => (None, name, (part, verb)),
            _ => return None,
        };
        let device = DeviceId { namespace, name: name.into() };
        match what {
            ("twin", "get") => Some(Self::TwinGet(device)),
            ("twin", "update") => Some(Self::TwinUpdate(device)),
            ("state", "update") => Some(Self::StateUpdate(device)),
            _ => None,
        }
    }
}

/// The filters of all that apps ask, in the same forms.
pub(super) fn asked(node: &str) -> Vec<String> {
    let mut filters = vec![of_node(node, "membership/get")];
    for device in ["+/+", "+"] {
        filters.extend(["twin/get", "twin/update", "state/update"].map(|what| of_device(&device, what)));
    }
    filters
}

/// Below the topics of a device, as in `twin/get/result`.
pub(super) fn of_device(device: &impl fmt::Display, what: &str) -> String {
    format!("$hw/events/device/{device}/{what}")
}

pub(super) fn of_node(node: &str, what: &str) -> String {
    format!("$hw/events/node/{node}/{what}")
}

/// Readings, for whoever wants them.
pub(super) fn of_data(device: &impl fmt::Display) -> String {
    format!("$ke/events/device/{device}/data/update")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_says_what_is_wanted_of_what() {
        let of = |topic: &str| Asked::of(topic, "edge-1");
        let device =
            |namespace: Option<&str>| DeviceId { namespace: namespace.map(Into::into), name: "pump".into() };
        assert_eq!(of("$hw/events/device/a/pump/twin/get"), Some(Asked::TwinGet(device(Some("a")))));
        assert_eq!(of("$hw/events/device/pump/twin/update"), Some(Asked::TwinUpdate(device(None))));
        assert_eq!(of("$hw/events/device/a/pump/state/update"), Some(Asked::StateUpdate(device(Some("a")))));
        assert_eq!(of("$hw/events/node/edge-1/membership/get"), Some(Asked::MembershipGet));
        for topic in [
            "$hw/events/device/a/pump/twin/get/result",
            "$hw/events/device/a/pump/twin/update/delta",
            "$hw/events/node/edge-2/membership/get",
            "$hw/events/node/edge-1/membership/get/result",
            "$hw/events/device/a/b/pump/twin/get",
            "somewhere/else",
        ] {
            assert_eq!(of(topic), None, "{topic}");
        }
        assert_eq!(
            of_device(&device(Some("a")), "twin/get/result"),
            "$hw/events/device/a/pump/twin/get/result"
        );
    }
}
