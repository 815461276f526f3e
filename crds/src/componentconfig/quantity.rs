//! Kubernetes quantities of memory, as they are written in a configuration file.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An amount of memory: `100Mi`, `1G`, or a plain number of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    text: String,
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotMemory(String);

impl std::error::Error for NotMemory {}

impl fmt::Display for NotMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not an amount of memory; write bytes, or a number with k, M, G, T, Ki, Mi, Gi, Ti",
            self.0
        )
    }
}

impl Memory {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl std::str::FromStr for Memory {
    type Err = NotMemory;

    fn from_str(text: &str) -> Result<Self, NotMemory> {
        let error = || NotMemory(text.to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let unit: u64 = match suffix {
            "" => 1,
            "k" => 1000,
            "M" => 1000 * 1000,
            "G" => 1000 * 1000 * 1000,
            "T" => 1000 * 1000 * 1000 * 1000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(error()),
        };
        let number: u64 = number.parse().map_err(|_| error())?;
        let bytes = number.checked_mul(unit).ok_or_else(error)?;
        Ok(Self { text: text.to_owned(), bytes })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Memory;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of memory, as in 100Mi")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Memory, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Memory, E> {
                Ok(Memory { text: bytes.to_string(), bytes })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Memory {
    fn schema_name() -> Cow<'static, str> {
        "Memory".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "quantity" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_units_of_kubernetes() {
        for (text, bytes) in [("100Mi", 100 << 20), ("1G", 1_000_000_000), ("4096", 4096), ("3Ki", 3072)] {
            assert_eq!(text.parse::<Memory>().unwrap().bytes(), bytes);
        }
        for text in ["", "Mi", "-1Mi", "1.5Gi", "100 Mi", "100MB", "99999999999Ti"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }
}
