//! The protocol `virtual`: no device at all, for trying things out. What was set stays so; everything else rises and falls.

use std::{f64::consts::TAU, time::Duration};

use crds::devices::v1beta1::PropertyType;
use tokio::time::Instant;

use super::{
    driver::{Driver, Reading, Trouble},
    spec::{DeviceSpec, Property},
    value::{Value, whole},
};

/// From the lowest value to the highest and back, unless `period` (milliseconds) says otherwise.
const PERIOD: Duration = Duration::from_mins(1);
/// Where the model sets no bounds.
const BOUNDS: (f64, f64) = (0.0, 100.0);

pub(super) struct Virtual {
    properties: Vec<Simulated>,
    begun: Instant,
    period: Duration,
}

struct Simulated {
    kind: PropertyType,
    minimum: f64,
    maximum: f64,
    /// `None`: it moves.
    set: Option<Value>,
}

impl Virtual {
    /// # Errors
    /// A period that is none.
    pub(super) fn new(spec: &DeviceSpec) -> Result<Self, String> {
        let period = match spec.connection.get("period") {
            None => PERIOD,
            Some(period) => {
                let millis = period.as_u64().filter(|millis| *millis > 0);
                let none = || {
                    format!("spec.protocol.configData.period is {period}, which is no number of milliseconds")
                };
                Duration::from_millis(millis.ok_or_else(none)?)
            }
        };
        let properties = spec.properties.iter().map(Simulated::new).collect();
        Ok(Self { properties, begun: Instant::now(), period })
    }

    /// Where in the period it is, from 0 to 1.
    fn phase(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() / self.period.as_secs_f64() % 1.0
    }
}

impl Simulated {
    fn new(property: &Property) -> Self {
        let (minimum, maximum) = match (property.range.minimum, property.range.maximum) {
            (Some(minimum), Some(maximum)) => (minimum, maximum),
            (Some(minimum), None) => (minimum, minimum + BOUNDS.1),
            (None, Some(maximum)) => (maximum - BOUNDS.1, maximum),
            (None, None) => BOUNDS,
        };
        // What can be set stands still, so that it is seen to be set.
        let set = property.writable.then(|| match property.kind {
            PropertyType::Int => Value::Integer(whole(minimum.ceil()).unwrap_or_default()),
            PropertyType::Float | PropertyType::Double => Value::Float(minimum),
            PropertyType::Boolean => Value::Boolean(false),
            PropertyType::Bytes => Value::Bytes(Box::default()),
            PropertyType::String | PropertyType::Stream => Value::Text("".into()),
        });
        Self { kind: property.kind, minimum, maximum, set }
    }

    fn value(&self, phase: f64) -> Result<Value, Trouble> {
        if let Some(set) = &self.set {
            return Ok(set.clone());
        }
        let height = (1.0 - (phase * TAU).cos()) / 2.0;
        let number = self.minimum + height * (self.maximum - self.minimum);
        match self.kind {
            PropertyType::Int => Ok(Value::Integer(whole(number.round()).unwrap_or_default())),
            PropertyType::Float | PropertyType::Double => Ok(Value::Float((number * 100.0).round() / 100.0)),
            PropertyType::Boolean => Ok(Value::Boolean(phase >= 0.5)),
            PropertyType::String => Ok(Value::Text(if phase >= 0.5 { "falls" } else { "rises" }.into())),
            PropertyType::Bytes => Ok(Value::Bytes([u8::from(phase >= 0.5)].into())),
            PropertyType::Stream => Err(Trouble::property("a STREAM has no values".to_owned())),
        }
    }
}

impl Driver for Virtual {
    async fn read(&mut self, properties: &[usize]) -> Vec<Reading> {
        let phase = self.phase();
        let simulated = |at: &usize| Some((*at, self.properties.get(*at)?.value(phase)));
        properties.iter().filter_map(simulated).collect()
    }

    async fn write(&mut self, property: usize, value: &Value) -> Result<(), Trouble> {
        match self.properties.get_mut(property) {
            Some(simulated) => {
                simulated.set = Some(value.clone());
                Ok(())
            }
            None => Err(Trouble::property("there is no such property".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::devicetwin::spec::tests::spec;

    #[tokio::test(start_paused = true)]
    async fn what_is_set_stays_and_the_rest_moves_between_its_bounds() {
        let model = json!({"protocol": "virtual", "properties": [
            {"name": "heat", "type": "FLOAT", "accessMode": "ReadOnly", "minimum": "-10", "maximum": "30"},
            {"name": "fan", "type": "BOOLEAN"},
        ]});
        let device = json!({"deviceModelRef": {"name": "m"}, "protocol": {"protocolName": "virtual",
            "configData": {"period": 4000}}, "properties": [{"name": "heat"}, {"name": "fan"}]});
        let spec = spec(&device, &model).unwrap();
        let mut driver = Virtual::new(&spec).unwrap();
        let mut heats = Vec::new();
        for _ in 0..4 {
            let readings = driver.read(&[0, 1]).await;
            assert_eq!(readings[1], (1, Ok(Value::Boolean(false))));
            heats.push(readings[0].1.clone().unwrap().to_string());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(heats, ["-10", "10", "30", "10"]);
        driver.write(1, &Value::Boolean(true)).await.unwrap();
        assert_eq!(driver.read(&[1]).await, [(1, Ok(Value::Boolean(true)))]);
        let mut wrong = spec;
        wrong.connection.insert("period".to_owned(), json!(0));
        assert!(Virtual::new(&wrong).is_err_and(|error| error.contains("period is 0")));
    }
}
