//! Values of properties: of the type that the model names, and as the text that the API has for them.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

use super::v1beta1::{ModelProperty, PropertyType};

/// No text of a value is longer: twins travel whole.
const MAX_TEXT: usize = 4096;

/// A value of a property.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// As large as any register is: a u64 does not fit an i64.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Text(Box<str>),
    Bytes(Box<[u8]>),
}

/// Why something is no value of a property.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ValueError {
    #[error("{text:?} is no {kind}")]
    Type { text: String, kind: &'static str },
    #[error("{value} is less than the model's minimum {minimum}")]
    TooSmall { value: String, minimum: f64 },
    #[error("{value} is more than the model's maximum {maximum}")]
    TooLarge { value: String, maximum: f64 },
    #[error("a value of {length} bytes is longer than {MAX_TEXT}")]
    TooLong { length: usize },
    #[error("a STREAM has no values")]
    Stream,
}

/// The least and the greatest value that a model allows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Range {
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
}

/// In lower case, as the status has it.
pub fn type_name(kind: PropertyType) -> &'static str {
    match kind {
        PropertyType::Int => "int",
        PropertyType::Float => "float",
        PropertyType::Double => "double",
        PropertyType::String => "string",
        PropertyType::Boolean => "boolean",
        PropertyType::Bytes => "bytes",
        PropertyType::Stream => "stream",
    }
}

impl Value {
    /// Reads what a user, an app or a device has written.
    ///
    /// # Errors
    /// What is no value of the type.
    pub fn parse(kind: PropertyType, text: &str) -> Result<Self, ValueError> {
        if text.len() > MAX_TEXT {
            return Err(ValueError::TooLong { length: text.len() });
        }
        let wrong = || ValueError::Type { text: text.chars().take(64).collect(), kind: type_name(kind) };
        let trimmed = text.trim();
        match kind {
            PropertyType::Int => {
                let whole = trimmed.parse().ok().or_else(|| whole(trimmed.parse().ok()?));
                whole.map(Self::Integer).ok_or_else(wrong)
            }
            PropertyType::Float | PropertyType::Double => {
                let number: f64 = trimmed.parse().map_err(|_| wrong())?;
                // "nan" and "inf" parse.
                if number.is_finite() { Ok(Self::Float(number)) } else { Err(wrong()) }
            }
            PropertyType::Boolean => match trimmed {
                "true" | "True" | "TRUE" | "1" | "on" | "ON" => Ok(Self::Boolean(true)),
                "false" | "False" | "FALSE" | "0" | "off" | "OFF" => Ok(Self::Boolean(false)),
                _ => Err(wrong()),
            },
            PropertyType::String => Ok(Self::Text(text.into())),
            PropertyType::Bytes => {
                BASE64.decode(trimmed).map(|bytes| Self::Bytes(bytes.into())).map_err(|_| wrong())
            }
            PropertyType::Stream => Err(ValueError::Stream),
        }
    }

    /// `None` of what is no number.
    pub fn number(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "compared with bounds that are no more exact")]
            Self::Integer(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Boolean(_) | Self::Text(_) | Self::Bytes(_) => None,
        }
    }
}

impl Range {
    /// That of a model.
    ///
    /// # Errors
    /// A bound that is no number.
    pub fn of(property: &ModelProperty) -> Result<Self, String> {
        Ok(Self {
            minimum: bound("minimum", &property.minimum)?,
            maximum: bound("maximum", &property.maximum)?,
        })
    }

    /// What is no number is in any range.
    ///
    /// # Errors
    /// Which bound the value is beyond.
    pub fn check(self, value: &Value) -> Result<(), ValueError> {
        let Some(number) = value.number() else { return Ok(()) };
        match self {
            Self { minimum: Some(minimum), .. } if number < minimum => {
                Err(ValueError::TooSmall { value: value.to_string(), minimum })
            }
            Self { maximum: Some(maximum), .. } if number > maximum => {
                Err(ValueError::TooLarge { value: value.to_string(), maximum })
            }
            _ => Ok(()),
        }
    }
}

fn bound(field: &str, text: &str) -> Result<Option<f64>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.map(Some).ok_or_else(|| format!("the model's {field} {text:?} is no number"))
}

/// `21.0` is an integer, as it is in JSON.
pub fn whole(number: f64) -> Option<i128> {
    // Up to here each whole number is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is looked at only if it is whole and within the bounds"
    )]
    let integer = number as i128;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(integer)
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            // Rust writes 1e300 with all its zeros.
            Self::Float(number) if *number != 0.0 && !(1e-6..1e15).contains(&number.abs()) => {
                write!(f, "{number:e}")
            }
            Self::Float(number) => write!(f, "{number}"),
            Self::Boolean(state) => write!(f, "{state}"),
            Self::Text(text) => f.write_str(text),
            Self::Bytes(bytes) => f.write_str(&BASE64.encode(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_values_of_their_type_or_none() {
        let parse = Value::parse;
        assert_eq!(parse(PropertyType::Int, " 21.0 "), Ok(Value::Integer(21)));
        assert_eq!(parse(PropertyType::Int, "18446744073709551615"), Ok(Value::Integer(u64::MAX.into())));
        assert_eq!(parse(PropertyType::Boolean, "ON"), Ok(Value::Boolean(true)));
        assert_eq!(parse(PropertyType::Float, "-0.5"), Ok(Value::Float(-0.5)));
        for (kind, text) in [
            (PropertyType::Int, "21.5"),
            (PropertyType::Int, ""),
            (PropertyType::Double, "NaN"),
            (PropertyType::Float, "inf"),
            (PropertyType::Boolean, "2"),
            (PropertyType::Bytes, "?"),
            (PropertyType::Stream, "x"),
        ] {
            assert!(parse(kind, text).is_err(), "{kind:?} {text:?}");
        }
        let error = parse(PropertyType::Int, "warm").unwrap_err();
        assert_eq!(error.to_string(), r#""warm" is no int"#);
    }

    #[test]
    fn what_the_model_does_not_allow_is_named() {
        let range = Range { minimum: Some(-50.0), maximum: Some(100.0) };
        assert_eq!(range.check(&Value::Integer(100)), Ok(()));
        let error = range.check(&Value::Integer(101)).unwrap_err();
        assert_eq!(error.to_string(), "101 is more than the model's maximum 100");
        assert!(range.check(&Value::Float(-50.5)).is_err());
        assert_eq!(range.check(&Value::Text("warm".into())), Ok(()));
    }

    proptest! {
        #[test]
        fn a_value_is_read_as_it_was_written(number in any::<f64>(), whole in any::<i64>(), bytes in any::<Vec<u8>>()) {
            prop_assume!(number.is_finite());
            for (kind, value) in [
                (PropertyType::Double, Value::Float(number)),
                (PropertyType::Int, Value::Integer(whole.into())),
                (PropertyType::Bytes, Value::Bytes(bytes.into())),
            ] {
                prop_assert_eq!(Value::parse(kind, &value.to_string()), Ok(value));
            }
        }
    }
}
