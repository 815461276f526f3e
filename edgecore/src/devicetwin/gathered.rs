//! Readings that become one: a sensor that is read ten times a second and reported once a minute.

use std::time::Duration;

use crds::devices::v1beta1::{AggregationFunction, PropertyType};
use tokio::time::Instant;

use super::value::{Value, whole};

/// What is reported in place of each reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Aggregation {
    pub(super) function: AggregationFunction,
    pub(super) window: Duration,
}

/// Since the last one that was reported.
pub(super) struct Gathered {
    since: Instant,
    count: u64,
    sum: f64,
    minimum: f64,
    maximum: f64,
}

impl Gathered {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, count: 0, sum: 0.0, minimum: f64::INFINITY, maximum: f64::NEG_INFINITY }
    }

    /// Takes a reading in; the value of the window that ends with it, if one does.
    pub(super) fn take(
        &mut self,
        aggregation: Aggregation,
        kind: PropertyType,
        reading: Value,
        now: Instant,
    ) -> Option<Value> {
        self.count += 1;
        if let Some(number) = reading.number() {
            self.sum += number;
            self.minimum = self.minimum.min(number);
            self.maximum = self.maximum.max(number);
        }
        if now.saturating_duration_since(self.since) < aggregation.window {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "nobody reads so often")]
        let mean = self.sum / self.count as f64;
        let value = match aggregation.function {
            AggregationFunction::Last => reading,
            AggregationFunction::Count => Value::Integer(self.count.into()),
            AggregationFunction::Mean => number(kind, mean),
            AggregationFunction::Min => number(kind, self.minimum),
            AggregationFunction::Max => number(kind, self.maximum),
        };
        *self = Self::new(now);
        Some(value)
    }
}

/// Of the type that the model names.
fn number(kind: PropertyType, number: f64) -> Value {
    match kind {
        PropertyType::Int => Value::Integer(whole(number.round()).unwrap_or_default()),
        _ => Value::Float(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(function: AggregationFunction, kind: PropertyType) -> Vec<String> {
        let begun = Instant::now();
        let aggregation = Aggregation { function, window: Duration::from_secs(3) };
        let mut gathered = Gathered::new(begun);
        let readings = [1.0, 4.0, 2.0, 9.0, 9.0, 9.0, 9.0];
        let values = readings.iter().zip(1..).filter_map(|(reading, second)| {
            gathered.take(aggregation, kind, Value::Float(*reading), begun + Duration::from_secs(second))
        });
        values.map(|value| value.to_string()).collect()
    }

    #[test]
    fn a_window_becomes_one_value() {
        for (function, wanted) in [
            (AggregationFunction::Last, ["2", "9"]),
            (AggregationFunction::Count, ["3", "3"]),
            (AggregationFunction::Min, ["1", "9"]),
            (AggregationFunction::Max, ["4", "9"]),
            (AggregationFunction::Mean, ["2", "9"]),
        ] {
            assert_eq!(of(function, PropertyType::Int), wanted, "{function:?}");
        }
        assert!(of(AggregationFunction::Mean, PropertyType::Float)[0].starts_with("2.333"));
    }
}
