//! What devices said last, as metrics.

use std::fmt;

use crds::devices::v1beta1::PropertyType;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::{
    handle::{Devices, Known},
    twin::State,
    value::Value,
};

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices").finish_non_exhaustive()
    }
}

impl Collector for Devices {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let known = self.known();
        let help = "What a device said last that a property is; true is 1, false is 0";
        let mut family =
            encoder.encode_descriptor("edgecore_device_property", help, None, MetricType::Gauge)?;
        for (key, device) in &*known {
            let Known::Driven(device) = device else { continue };
            let twin = device.twin();
            for property in &device.spec.properties {
                let reported = twin.properties.get(&property.name).and_then(|twin| twin.reported.as_ref());
                let Some(value) = reported.and_then(|reported| number(property.kind, &reported.value)) else {
                    continue;
                };
                let labels =
                    [("namespace", key.namespace()), ("device", key.name()), ("property", &*property.name)];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "1 while a device answers";
        let mut family =
            encoder.encode_descriptor("edgecore_device_online", help, None, MetricType::Gauge)?;
        for (key, device) in &*known {
            let is_online = matches!(device, Known::Driven(device) if device.twin().state == State::Online);
            let labels = [("namespace", key.namespace()), ("device", key.name())];
            ConstGauge::new(i64::from(is_online)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// `None` of what is no number.
fn number(kind: PropertyType, text: &str) -> Option<f64> {
    match Value::parse(kind, text).ok()? {
        Value::Boolean(state) => Some(f64::from(u8::from(state))),
        value => value.number(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_number_is_a_metric() {
        for (kind, text, wanted) in [
            (PropertyType::Int, "-7", Some(-7.0)),
            (PropertyType::Float, "21.5", Some(21.5)),
            (PropertyType::Boolean, "true", Some(1.0)),
            (PropertyType::String, "21", None),
        ] {
            assert_eq!(number(kind, text), wanted, "{text}");
        }
    }
}
