//! How little of something may be left, as the kubelet's eviction thresholds are written.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::quantity::Memory;

/// `10%` of all there is, or an amount: `100Mi`, `1G`, `4096`.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    text: String,
    least: Least,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Least {
    /// From 0 to 1.
    Share(f64),
    Amount(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotThreshold(String);

impl std::error::Error for NotThreshold {}

impl fmt::Display for NotThreshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a threshold; write a share from 0% to 100%, or an amount as in 100Mi", self.0)
    }
}

impl Threshold {
    /// `10%`
    pub fn percent(percent: u8) -> Self {
        Self { text: format!("{percent}%"), least: Least::Share(f64::from(percent) / 100.0) }
    }

    /// `100Mi`
    pub fn mebibytes(mebibytes: u32) -> Self {
        Self { text: format!("{mebibytes}Mi"), least: Least::Amount(u64::from(mebibytes) << 20) }
    }

    /// Whether `available` of `total` is less than there should be. Where there is none of it at all, it is not counted.
    #[expect(clippy::cast_precision_loss, reason = "nobody counts a share to the last byte")]
    pub fn is_missed(&self, available: u64, total: u64) -> bool {
        total > 0
            && match self.least {
                Least::Share(share) => (available as f64) < total as f64 * share,
                Least::Amount(amount) => available < amount,
            }
    }
}

impl FromStr for Threshold {
    type Err = NotThreshold;

    fn from_str(text: &str) -> Result<Self, NotThreshold> {
        let error = || NotThreshold(text.to_owned());
        let least = match text.strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.parse().map_err(|_| error())?;
                if !(0.0..=100.0).contains(&percent) {
                    return Err(error());
                }
                Least::Share(percent / 100.0)
            }
            None => Least::Amount(text.parse::<Memory>().map_err(|_| error())?.bytes()),
        };
        Ok(Self { text: text.to_owned(), least })
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Threshold;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a threshold, as in 10% or 100Mi")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Threshold, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, amount: u64) -> Result<Threshold, E> {
                Ok(Threshold { text: amount.to_string(), least: Least::Amount(amount) })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Threshold {
    fn schema_name() -> Cow<'static, str> {
        "Threshold".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "threshold" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_or_an_amount_of_what_there_is() {
        let missed = |text: &str, available| text.parse::<Threshold>().unwrap().is_missed(available, 1000);
        for (text, least) in
            [("10%", 100), ("0.5%", 5), ("0%", 0), ("100%", 1000), ("300", 300), ("1k", 1000)]
        {
            assert!(!missed(text, least) && (least == 0 || missed(text, least - 1)), "{text}");
        }
        assert_eq!(Threshold::percent(10), "10%".parse().unwrap());
        assert_eq!(Threshold::mebibytes(100), "100Mi".parse().unwrap());
        assert!(!"1".parse::<Threshold>().unwrap().is_missed(0, 0));
        for text in ["", "%", "-1%", "101%", "NaN%", "inf%", "10 %", "1.5Gi", "10MB"] {
            let problem = text.parse::<Threshold>().unwrap_err().to_string();
            assert!(problem.starts_with(&format!("{text:?} is not a threshold")), "{problem}");
        }
    }
}
