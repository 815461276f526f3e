//! How the link of an edge node is used: `modules.edgeHub.sync` of `edgecore.yaml`, and the document
//! [`SYNC_DOCUMENT`] of a ConfigMap, by which the cloud changes it.
//!
//! Each field may be left out. What the ConfigMap says counts; what it leaves out is as `edgecore.yaml` has it; what
//! neither says is the default. So a document for a whole fleet takes no site's own bandwidth cap away.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Fault, Faults, is_dns_name};

/// The key in the ConfigMap's data.
pub const SYNC_DOCUMENT: &str = "sync-strategy.yaml";

/// The ConfigMap that is looked at unless somebody says otherwise.
pub const USUAL_CONFIG_MAP: &str = "default/sync-config";

/// The least bandwidth in bytes a second: the thinnest line that still is one, on which a heartbeat takes a tenth of a second.
pub const LEAST_BANDWIDTH: u64 = 1000;

/// Namespace and name of a ConfigMap that is written as `NAMESPACE/NAME`.
pub fn config_map_name(text: &str) -> Option<(&str, &str)> {
    let (namespace, name) = text.split_once('/')?;
    (is_dns_name(namespace) && !namespace.contains('.') && is_dns_name(name)).then_some((namespace, name))
}

/// A year: whoever writes more has mistaken the unit.
const LONGEST_INTERVAL: Duration = Duration::from_hours(366 * 24);

/// How the link is used. Each of these can be changed from the cloud by a ConfigMap, see docs/ARCHITECTURE.md.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SyncStrategy {
    /// differential: of an object that changed, what changed is sent. full: the whole object is. Left out: differential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Whether what is sent, both ways, is compressed. What changed of an object is always as short as it gets. Left out: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<bool>,
    /// Whether a status is left out that says what the cloud has been told in the same session already, as after a change
    /// and back. Left out: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deduplication: Option<bool>,
    /// How often reports go up at most, and objects down, by class, each with a name (critical, standard, batch) and a syncInterval, as
    /// in 5m or 1h30m. Of reports, critical: what kubectl get shows of pods and the node; standard: events, and the rest of their status;
    /// batch: what chooses it by the annotation skerry.io/priority-class. In an interval what has not been said in it goes up
    /// at once, what has been is held back to its end, and then goes up as it is by then. Objects have the class that their own
    /// annotation of that name chooses, or none: a change of one waits for its class's interval at most, with all others of the class.
    /// What the node does not have yet, and a pod that is deleted, wait for nothing. Nor does a class that is not listed.
    pub priority_classes: Vec<PriorityClass>,
    #[serde(deserialize_with = "null_is_default")]
    pub bandwidth: Bandwidth,
}

/// A section in which nothing is set is null in YAML.
fn null_is_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bandwidth, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What the link may take of the line. Heartbeats and acks are counted, and never wait.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bandwidth {
    /// Bytes a second from the edge to the cloud, 1000 or more; 0 for no cap. Left out: no cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up: Option<u64>,
    /// Bytes a second from the cloud to the edge, 1000 or more; 0 for no cap. Left out: no cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down: Option<u64>,
}

/// How objects go down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    Differential,
    Full,
}

/// Which reports wait for each other, and which objects do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClassName {
    Critical,
    Standard,
    Batch,
}

impl ClassName {
    pub const ALL: [Self; 3] = [Self::Critical, Self::Standard, Self::Batch];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Standard => "standard",
            Self::Batch => "batch",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PriorityClass {
    pub name: ClassName,
    pub sync_interval: Interval,
}

/// What counts for a link: every field has a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkSettings {
    /// Objects go down whole.
    pub full: bool,
    /// Frames are not compressed.
    pub plain: bool,
    /// A status that says nothing new is sent all the same.
    pub repeat: bool,
    /// By class, in the order of [`ClassName::ALL`]; zero where nothing waits.
    pub intervals: [Duration; ClassName::ALL.len()],
    /// Bytes a second.
    pub up: Option<u64>,
    pub down: Option<u64>,
}

impl LinkSettings {
    /// What the first of them says counts for more than what the next one does.
    pub fn of(documents: [&SyncStrategy; 2]) -> Self {
        let first = |value: fn(&SyncStrategy) -> Option<u64>| {
            documents.into_iter().find_map(value).filter(|&bytes| bytes > 0)
        };
        let unless = |value: fn(&SyncStrategy) -> Option<bool>| {
            documents.into_iter().find_map(value).is_some_and(|wanted| !wanted)
        };
        Self {
            full: documents.into_iter().find_map(|document| document.strategy) == Some(Strategy::Full),
            plain: unless(|document| document.compression),
            repeat: unless(|document| document.deduplication),
            intervals: ClassName::ALL.map(|name| {
                let interval = documents.into_iter().find_map(|document| document.interval(name));
                interval.unwrap_or_default()
            }),
            up: first(|document| document.bandwidth.up),
            down: first(|document| document.bandwidth.down),
        }
    }
}

impl SyncStrategy {
    /// Checks what the types alone do not, and reports every fault.
    pub fn validate(&self) -> Result<(), Vec<Fault>> {
        let mut faults = Faults::default();
        self.check(&mut faults, "");
        faults.done()
    }

    pub(super) fn check(&self, faults: &mut Faults, prefix: &str) {
        for (key, bytes) in [("up", self.bandwidth.up), ("down", self.bandwidth.down)] {
            let bytes = bytes.unwrap_or_default();
            faults.check(bytes == 0 || bytes >= LEAST_BANDWIDTH, &format!("{prefix}bandwidth.{key}"), || {
                format!(
                    "{bytes} bytes a second carry no heartbeats beside anything else; write {LEAST_BANDWIDTH} or more, \
                     or 0 for no cap"
                )
            });
        }
        for (at, class) in self.priority_classes.iter().enumerate() {
            let earlier = self.priority_classes[..at].iter().any(|other| other.name == class.name);
            faults.check(!earlier, &format!("{prefix}priorityClasses[{at}].name"), || {
                format!("{:?} is there twice; leave one of them out", class.name.as_str())
            });
        }
    }

    /// That of a class, if it is listed.
    pub fn interval(&self, name: ClassName) -> Option<Duration> {
        let class = self.priority_classes.iter().find(|class| class.name == name)?;
        Some(class.sync_interval.duration)
    }
}

/// A time span as Kubernetes writes it: `5m`, `1h30m`, `90s`, `0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interval {
    text: String,
    duration: Duration,
}

impl Interval {
    /// To the millisecond, and a year at most.
    pub fn of(duration: Duration) -> Self {
        let duration = duration.min(LONGEST_INTERVAL);
        let millis = u64::try_from(duration.as_millis()).expect("a year of milliseconds");
        Self { text: format!("{millis}ms"), duration: Duration::from_millis(millis) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotInterval(String);

impl std::error::Error for NotInterval {}

impl fmt::Display for NotInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a time span of at most a year; write it with h, m and s, as in 5m or 1h30m",
            self.0
        )
    }
}

impl std::str::FromStr for Interval {
    type Err = NotInterval;

    fn from_str(text: &str) -> Result<Self, NotInterval> {
        let error = || NotInterval(text.to_owned());
        let mut rest = text;
        let mut duration = Duration::ZERO;
        // As Go does, which takes no other number without a unit.
        if text == "0" {
            rest = "0s";
        }
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| error())?;
            let units = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let unit = match &rest[digits..digits + units] {
                "h" => Duration::from_hours(1),
                "m" => Duration::from_mins(1),
                "s" => Duration::from_secs(1),
                "ms" => Duration::from_millis(1),
                _ => return Err(error()),
            };
            let number = u32::try_from(number).map_err(|_| error())?;
            duration =
                unit.checked_mul(number).and_then(|part| duration.checked_add(part)).ok_or_else(error)?;
            rest = &rest[digits + units..];
        }
        if duration > LONGEST_INTERVAL {
            return Err(error());
        }
        Ok(Self { text: text.to_owned(), duration })
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Interval;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time span, as in 5m or 1h30m")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Interval, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Interval, E> {
                number.to_string().parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Interval {
    fn schema_name() -> Cow<'static, str> {
        "Interval".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> SyncStrategy {
        serde_saphyr::from_str(text).unwrap()
    }

    /// The document that people are shown.
    const SHOWN: &str = "strategy: differential\ncompression: true\ndeduplication: true\npriorityClasses:\n  \
        - name: critical\n    syncInterval: 5m\n  - name: standard\n    syncInterval: 1h\n  - name: batch\n    \
        syncInterval: 24h\n";

    #[test]
    fn the_shown_document_says_what_it_says() {
        let shown = read(SHOWN);
        assert_eq!(shown.validate(), Ok(()));
        let settings = LinkSettings::of([&shown, &SyncStrategy::default()]);
        let intervals = [5, 60, 24 * 60].map(Duration::from_mins);
        assert_eq!(settings, LinkSettings { intervals, ..LinkSettings::default() });
    }

    #[test]
    fn what_a_document_leaves_out_is_as_the_next_one_has_it() {
        let own = read(
            "strategy: full\ncompression: false\nbandwidth: {up: 2000, down: 3000}\npriorityClasses: [{name: batch, syncInterval: 1m}]",
        );
        let map = read(
            "strategy: differential\nbandwidth: {up: 0}\ndeduplication: false\npriorityClasses: [{name: critical, syncInterval: 2s}]",
        );
        let settings = LinkSettings::of([&map, &own]);
        let intervals = [Duration::from_secs(2), Duration::ZERO, Duration::from_mins(1)];
        let wanted =
            LinkSettings { full: false, plain: true, repeat: true, intervals, up: None, down: Some(3000) };
        assert_eq!(settings, wanted);
    }

    #[test]
    fn a_cap_that_stops_heartbeats_and_a_class_that_is_there_twice_are_faults() {
        let wrong = read(
            "bandwidth: {up: 999, down: 1}\npriorityClasses: [{name: batch, syncInterval: 1m}, {name: batch, syncInterval: 2m}]",
        );
        let faults: Vec<String> = wrong.validate().unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults[0].starts_with("bandwidth.up: 999 bytes a second") && faults[0].contains("1000 or more")
        );
        assert!(faults[2].starts_with("priorityClasses[1].name: \"batch\" is there twice"), "{}", faults[2]);
        for none in [0, LEAST_BANDWIDTH] {
            assert_eq!(read(&format!("bandwidth: {{up: {none}}}")).validate(), Ok(()));
        }
    }

    #[test]
    fn an_interval_that_somebody_counted_is_none_that_nobody_could_write() {
        for (duration, text) in [
            (Duration::from_micros(1_500_500), "1500ms"),
            (Duration::ZERO, "0ms"),
            (Duration::MAX, "31622400000ms"),
        ] {
            let interval = Interval::of(duration);
            assert_eq!(interval.text, text);
            assert_eq!(interval.duration, duration.min(interval.duration));
        }
        assert_eq!("1500ms".parse::<Interval>().unwrap(), Interval::of(Duration::from_millis(1500)));
    }

    #[test]
    fn intervals_are_read_as_kubernetes_writes_them() {
        for (text, seconds) in
            [("5m", 300), ("1h30m", 5400), ("90s", 90), ("0", 0), ("0s", 0), ("24h", 86_400)]
        {
            assert_eq!(text.parse::<Interval>().unwrap().duration, Duration::from_secs(seconds), "{text}");
        }
        assert_eq!("1500ms".parse::<Interval>().unwrap().duration, Duration::from_millis(1500));
        for text in ["", "5", "m", "-5m", "5 m", "5d", "1.5h", "99999999999h", "9999999h", "5m5", "h5"] {
            let error = text.parse::<Interval>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not a time span")), "{error}");
        }
    }
}
