//! What the calls of the container runtime have taken, by method, as a metric: what edgecore itself adds to a pod's
//! start is the rest.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Mutex<BTreeMap<&'static str, Spent>>>);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    pub calls: u64,
    /// Of these: those that were refused, or had no answer.
    pub failed: u64,
    pub time: Duration,
}

impl Calls {
    pub(super) fn note(&self, method: &'static str, time: Duration, failed: bool) {
        // No invariant can be broken by a panic in between.
        let mut methods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = methods.entry(method).or_default();
        spent.calls += 1;
        spent.failed += u64::from(failed);
        spent.time += time;
    }

    /// By method, in CRI's names.
    pub fn spent(&self) -> BTreeMap<&'static str, Spent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Collector for Calls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let methods = self.spent();
        let name = "edgecore_runtime_calls";
        let help = "Calls of the container runtime";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (method, spent) in &methods {
            let counter = ConstCounter::new(spent.calls);
            counter.encode(family.encode_family(&[("method", *method)])?)?;
        }
        let name = "edgecore_runtime_failed_calls";
        let help = "Calls of the container runtime that were refused or had no answer";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (method, spent) in &methods {
            let counter = ConstCounter::new(spent.failed);
            counter.encode(family.encode_family(&[("method", *method)])?)?;
        }
        let name = "edgecore_runtime_seconds";
        let help = "Time spent in calls of the container runtime, those that ran side by side added up";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (method, spent) in &methods {
            let counter = ConstCounter::new(spent.time.as_secs_f64());
            counter.encode(family.encode_family(&[("method", *method)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    #[test]
    fn calls_are_counted_by_method() {
        let calls = Calls::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(calls.clone()));
        calls.note("RunPodSandbox", Duration::from_millis(1500), false);
        calls.note("RunPodSandbox", Duration::from_millis(500), true);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        for line in [
            "edgecore_runtime_calls_total{method=\"RunPodSandbox\"} 2",
            "edgecore_runtime_failed_calls_total{method=\"RunPodSandbox\"} 1",
            "edgecore_runtime_seconds_total{method=\"RunPodSandbox\"} 2.0",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }
}
