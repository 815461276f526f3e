//! Where a property is in a slave's registers, and what the bits there mean.
//!
//! Modbus says how bits and words travel (Application Protocol V1.1b3, 4.2 and 6), and nothing of values that are larger than a word,
//! signed or scaled: that is the maker's choice, so the visitor says it, with KubeEdge's names.

use crds::devices::v1beta1::PropertyType;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value as Json};

use crate::devicetwin::{
    spec::Property,
    value::{Value, whole},
};

/// Of one request: Application Protocol V1.1b3, 6.1 to 6.4.
pub(super) const MAX_BITS: u16 = 2000;
pub(super) const MAX_WORDS: u16 = 125;
/// Of one request that writes, 6.12.
const MAX_WRITTEN: u16 = 123;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub(super) enum Table {
    #[serde(rename = "CoilRegister", alias = "Coil")]
    Coils,
    #[serde(rename = "DiscreteInputRegister", alias = "DiscreteInput")]
    DiscreteInputs,
    #[serde(rename = "InputRegister", alias = "Input")]
    Inputs,
    #[serde(rename = "HoldingRegister", alias = "Holding")]
    Holdings,
}

impl Table {
    pub(super) fn is_bits(self) -> bool {
        matches!(self, Self::Coils | Self::DiscreteInputs)
    }

    fn is_writable(self) -> bool {
        matches!(self, Self::Coils | Self::Holdings)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Coils => "CoilRegister",
            Self::DiscreteInputs => "DiscreteInputRegister",
            Self::Inputs => "InputRegister",
            Self::Holdings => "HoldingRegister",
        }
    }
}

/// The words, or bits, of one property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) table: Table,
    /// From 0, as on the wire.
    pub(super) address: u16,
    pub(super) count: u16,
}

impl Place {
    /// The address after the last.
    pub(super) fn end(self) -> u32 {
        u32::from(self.address) + u32::from(self.count)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Register {
    pub(super) place: Place,
    form: Form,
    kind: PropertyType,
    scale: f64,
    /// The bytes of each word change places.
    swap_bytes: bool,
    /// The words come in the opposite order.
    swap_words: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Bit,
    Unsigned,
    Signed,
    Float,
    /// As they are: STRING, BYTES.
    Raw,
}

/// `configData` of a property's `visitors`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Visitor {
    register: Table,
    #[serde(deserialize_with = "number")]
    offset: f64,
    /// Words, or bits.
    #[serde(default = "one", deserialize_with = "number")]
    limit: f64,
    #[serde(default = "one", deserialize_with = "number")]
    scale: f64,
    #[serde(default)]
    is_swap: bool,
    #[serde(default)]
    is_register_swap: bool,
    /// What is in the registers, where the model's type does not tell.
    data_type: Option<String>,
}

fn one() -> f64 {
    1.0
}

/// KubeEdge's examples have numbers as text here and there.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Number(f64),
        Text(String),
    }
    match Number::deserialize(deserializer)? {
        Number::Number(number) => Ok(number),
        Number::Text(text) => {
            text.trim().parse().map_err(|_| D::Error::custom(format!("{text:?} is no number")))
        }
    }
}

impl Register {
    /// The error says which field of the visitor is wrong.
    pub(super) fn parse(property: &Property) -> Result<Self, String> {
        if property.visitor.is_empty() {
            return Err("visitors.configData is missing: name at least register and offset".to_owned());
        }
        let Visitor { register: table, offset, limit, scale, is_swap, is_register_swap, data_type } =
            parse_visitor(&property.visitor)?;
        let kind = property.kind;
        let address = small("offset", offset)?;
        let largest = if table.is_bits() { 1 } else { MAX_WORDS };
        // KubeEdge's mappers read one where the limit is 0.
        let count = match small("limit", limit)? {
            0 => 1,
            count if count <= largest => count,
            count => {
                let what = if table.is_bits() { "bits" } else { "registers" };
                return Err(format!("limit {count} is more than the {largest} {what} of a {}", table.name()));
            }
        };
        let place = Place { table, address, count };
        if place.end() > 0x1_0000 {
            return Err(format!("offset {address} with limit {count} is beyond the last register, 65535"));
        }
        if !scale.is_finite() || scale == 0.0 {
            return Err(format!("scale {scale} is no factor"));
        }
        let form = match data_type.as_deref() {
            None => usual_form(table, property, count)?,
            Some(named) => named_form(table, named, count, kind)?,
        };
        if property.writable && property.desired.is_some() && !table.is_writable() {
            return Err(format!(
                "a {} cannot be written: make the model's accessMode ReadOnly, or take the desired value away",
                table.name()
            ));
        }
        Ok(Self { place, form, kind, scale, swap_bytes: is_swap, swap_words: is_register_swap })
    }

    pub(super) fn is_writable(&self) -> bool {
        self.place.table.is_writable() && self.place.count <= MAX_WRITTEN
    }

    pub(super) fn bit_value(&self, bit: bool) -> Value {
        match self.kind {
            PropertyType::Boolean => Value::Boolean(bit),
            PropertyType::Float | PropertyType::Double => Value::Float(if bit { self.scale } else { 0.0 }),
            PropertyType::Int => scaled(i128::from(bit), self.scale),
            PropertyType::String | PropertyType::Bytes | PropertyType::Stream => {
                Value::Text(if bit { "1" } else { "0" }.into())
            }
        }
    }

    /// `words` are as many as the place has. The error says what is wrong with them.
    pub(super) fn words_value(&self, words: &[u16]) -> Result<Value, String> {
        let bytes = self.bytes(words);
        let value = match self.form {
            Form::Bit => return Ok(self.bit_value(words.iter().any(|word| *word != 0))),
            Form::Raw if self.kind == PropertyType::Bytes => return Ok(Value::Bytes(bytes.into())),
            Form::Raw => {
                // Devices fill up with zeros.
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                let text = std::str::from_utf8(&bytes[..end])
                    .map_err(|_| format!("the registers hold no text: {:02x?}", &bytes[..end]))?;
                return Ok(Value::Text(text.into()));
            }
            Form::Float => {
                let number = match bytes.len() {
                    // Not 0.10000000149011612.
                    4 => f32::from_be_bytes(sized(&bytes)).to_string().parse().unwrap_or(f64::NAN),
                    _ => f64::from_be_bytes(sized(&bytes)),
                };
                let number = if is_one(self.scale) { number } else { number * self.scale };
                if !number.is_finite() {
                    return Err("the device says that the value is no number".to_owned());
                }
                Value::Float(number)
            }
            Form::Unsigned | Form::Signed => {
                let unsigned = bytes.iter().fold(0_i128, |sum, byte| sum << 8 | i128::from(*byte));
                let bits = 8 * bytes.len();
                let negative = self.form == Form::Signed && unsigned >> (bits - 1) == 1;
                scaled(if negative { unsigned - (1 << bits) } else { unsigned }, self.scale)
            }
        };
        Ok(match (value, self.kind) {
            #[expect(
                clippy::cast_precision_loss,
                reason = "the model says that it is a floating-point number"
            )]
            (Value::Integer(number), PropertyType::Float | PropertyType::Double) => {
                Value::Float(number as f64)
            }
            // As KubeEdge's mappers do: an INT with a scale of 0.1 is cut off.
            (Value::Float(number), PropertyType::Int) => {
                whole(number.trunc()).map_or(Value::Float(number), Value::Integer)
            }
            (value, _) => value,
        })
    }

    /// What is to be written so that this value is read back.
    pub(super) fn bit_for(&self, value: &Value) -> Result<bool, String> {
        match value {
            Value::Boolean(state) => Ok(*state),
            Value::Integer(0) => Ok(false),
            Value::Integer(1) => Ok(true),
            Value::Text(text) if &**text == "0" => Ok(false),
            Value::Text(text) if &**text == "1" => Ok(true),
            other => Err(format!("{other} does not fit a {}: it is 0 or 1", self.place.table.name())),
        }
    }

    /// As [`bit_for`](Self::bit_for), for words.
    pub(super) fn words_for(&self, value: &Value) -> Result<Vec<u16>, String> {
        let length = 2 * usize::from(self.place.count);
        let misfit = || format!("{value} does not fit {length} bytes of {}", self.place.table.name());
        let bytes = match (self.form, value) {
            (Form::Bit, value) => padded(u128::from(self.bit_for(value)?), length),
            (Form::Raw, Value::Text(text)) if text.len() <= length => {
                let mut bytes = text.as_bytes().to_vec();
                bytes.resize(length, 0);
                bytes
            }
            (Form::Raw, Value::Bytes(bytes)) if bytes.len() == length => bytes.to_vec(),
            (Form::Float, value) => {
                let number = value.number().ok_or_else(misfit)? / self.scale;
                match length {
                    4 => {
                        #[expect(
                            clippy::cast_possible_truncation,
                            reason = "what becomes infinite is refused"
                        )]
                        let number = number as f32;
                        number.is_finite().then(|| number.to_be_bytes().to_vec()).ok_or_else(misfit)?
                    }
                    _ => number.to_be_bytes().to_vec(),
                }
            }
            (Form::Unsigned | Form::Signed, value) => {
                let number = self.unscaled(value).ok_or_else(misfit)?;
                let bits = 8 * length;
                let least = if self.form == Form::Signed { -(1_i128 << (bits - 1)) } else { 0 };
                let greatest = if self.form == Form::Signed { 1_i128 << (bits - 1) } else { 1_i128 << bits };
                if number < least || number >= greatest {
                    return Err(misfit());
                }
                #[expect(clippy::cast_sign_loss, reason = "two's complement")]
                let bits = number as u128;
                padded(bits, length)
            }
            (Form::Raw, _) => return Err(misfit()),
        };
        let words: Vec<u16> =
            bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        // Swapping twice is not swapping.
        let bytes = self.bytes(&words);
        Ok(bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect())
    }

    fn unscaled(&self, value: &Value) -> Option<i128> {
        match value {
            Value::Integer(number) if is_one(self.scale) => Some(*number),
            Value::Boolean(state) => Some((*state).into()),
            // 21.3 / 0.1 is 213.00000000000003.
            value => whole((value.number()? / self.scale).round()),
        }
    }

    /// In the order in which numbers are written, the greatest first.
    fn bytes(&self, words: &[u16]) -> Vec<u8> {
        let swapped = |word: &u16| if self.swap_bytes { word.swap_bytes() } else { *word }.to_be_bytes();
        if self.swap_words {
            words.iter().rev().flat_map(swapped).collect()
        } else {
            words.iter().flat_map(swapped).collect()
        }
    }
}

fn parse_visitor(config: &Map<String, Json>) -> Result<Visitor, String> {
    serde_json::from_value(Json::Object(config.clone()))
        .map_err(|error| format!("visitors.configData: {error}"))
}

fn small(field: &str, number: f64) -> Result<u16, String> {
    whole(number)
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| format!("{field} {number} is no whole number from 0 to 65535"))
}

/// What the model's type tells. KubeEdge's mappers take every integer for unsigned; one whose model has a negative minimum is not.
fn usual_form(table: Table, property: &Property, count: u16) -> Result<Form, String> {
    if table.is_bits() {
        return Ok(Form::Bit);
    }
    let form = match property.kind {
        PropertyType::Boolean => Form::Bit,
        PropertyType::Int if property.range.minimum.is_some_and(|minimum| minimum < 0.0) => Form::Signed,
        PropertyType::Int => Form::Unsigned,
        // A scaled integer, as most sensors have it.
        PropertyType::Float | PropertyType::Double if count == 1 => {
            if property.range.minimum.is_some_and(|minimum| minimum < 0.0) {
                Form::Signed
            } else {
                Form::Unsigned
            }
        }
        PropertyType::Float | PropertyType::Double => Form::Float,
        PropertyType::String | PropertyType::Bytes => Form::Raw,
        PropertyType::Stream => return Err("a STREAM cannot be read from registers".to_owned()),
    };
    fits(form, count).map(|()| form)
}

fn named_form(table: Table, named: &str, count: u16, kind: PropertyType) -> Result<Form, String> {
    let (form, words) = match named.to_lowercase().as_str() {
        "bool" | "boolean" => (Form::Bit, 1),
        "int16" => (Form::Signed, 1),
        "uint16" => (Form::Unsigned, 1),
        "int32" => (Form::Signed, 2),
        "uint32" => (Form::Unsigned, 2),
        "int64" => (Form::Signed, 4),
        "uint64" => (Form::Unsigned, 4),
        "float32" | "float" => (Form::Float, 2),
        "float64" | "double" => (Form::Float, 4),
        "string" | "bytes" => (Form::Raw, count),
        _ => {
            return Err(format!(
                "dataType {named:?} is none of bool, int16, uint16, int32, uint32, int64, uint64, float32, float64, string, bytes"
            ));
        }
    };
    if table.is_bits() && form != Form::Bit {
        return Err(format!("dataType {named} does not fit a {}, which has bits", table.name()));
    }
    if words != count {
        return Err(format!("dataType {named} takes a limit of {words}, and not of {count}"));
    }
    let is_text = matches!(kind, PropertyType::String | PropertyType::Bytes);
    if is_text != (form == Form::Raw) {
        return Err(format!("dataType {named} does not fit the model's type"));
    }
    Ok(form)
}

fn fits(form: Form, count: u16) -> Result<(), String> {
    match form {
        Form::Bit if count != 1 => Err(format!("a BOOLEAN takes a limit of 1, and not of {count}")),
        Form::Unsigned | Form::Signed if !matches!(count, 1 | 2 | 4) => {
            Err(format!("an INT takes a limit of 1, 2 or 4, and not of {count}"))
        }
        Form::Float if !matches!(count, 2 | 4) => Err(format!(
            "a FLOAT or DOUBLE takes a limit of 1 (an integer that is scaled), 2 or 4, and not of {count}"
        )),
        _ => Ok(()),
    }
}

/// It is written so, and not computed.
fn is_one(scale: f64) -> bool {
    (scale - 1.0).abs() < f64::EPSILON
}

fn scaled(number: i128, scale: f64) -> Value {
    if is_one(scale) {
        return Value::Integer(number);
    }
    #[expect(clippy::cast_precision_loss, reason = "a scale makes it a floating-point number")]
    let product = number as f64 * scale;
    // 213 * 0.1 is 21.3, and not 21.300000000000004: as exact as the scale is written.
    let decimals = (-scale.abs().log10()).ceil().clamp(0.0, 12.0);
    let power = 10_f64.powf(decimals + 3.0);
    let rounded = (product * power).round() / power;
    Value::Float(if rounded.is_finite() { rounded } else { product })
}

fn padded(number: u128, length: usize) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    match length.checked_sub(bytes.len()) {
        Some(more) => [vec![0; more], bytes.to_vec()].concat(),
        None => bytes[bytes.len() - length..].to_vec(),
    }
}

fn sized<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut sized = [0; N];
    for (to, from) in sized.iter_mut().zip(bytes) {
        *to = *from;
    }
    sized
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crds::devices::validation;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::devicetwin::{spec::tests::spec, value::Range};

    fn property(kind: PropertyType, minimum: Option<f64>, visitor: Json) -> Property {
        let Json::Object(visitor) = visitor else { panic!("no object") };
        Property {
            name: "p".into(),
            kind,
            writable: true,
            range: Range { minimum, maximum: None },
            collect: Duration::from_secs(1),
            report: Duration::from_secs(1),
            to_cloud: true,
            deadband: None,
            aggregation: None,
            push: None,
            mapper_push: None,
            desired: None,
            visitor,
        }
    }

    fn register(kind: PropertyType, minimum: Option<f64>, visitor: Json) -> Result<Register, String> {
        Register::parse(&property(kind, minimum, visitor))
    }

    fn holding(kind: PropertyType, limit: u16, more: Json) -> Register {
        let mut visitor = json!({"register": "HoldingRegister", "offset": 2, "limit": limit});
        if let (Json::Object(visitor), Json::Object(more)) = (&mut visitor, more) {
            visitor.extend(more);
        }
        register(kind, None, visitor).unwrap()
    }

    #[test]
    fn the_seeds_visitors_are_read() {
        let coil = json!({"register": "CoilRegister", "offset": 2, "limit": 1, "scale": 1.0});
        let coil = register(PropertyType::Int, Some(-50.0), coil).unwrap();
        assert_eq!(coil.place, Place { table: Table::Coils, address: 2, count: 1 });
        assert_eq!((coil.bit_value(true), coil.bit_value(false)), (Value::Integer(1), Value::Integer(0)));
        let input = json!({"register": "DiscreteInputRegister", "offset": 3, "limit": 1});
        let input = register(PropertyType::Boolean, None, input).unwrap();
        assert_eq!(input.bit_value(true), Value::Boolean(true));
        assert!(!input.is_writable());
    }

    #[test]
    fn numbers_are_as_the_visitor_says() {
        use PropertyType::{Boolean, Double, Float, Int, String};
        for (register, words, value) in [
            (holding(Int, 1, json!({})), &[0xffce_u16][..], Value::Integer(0xffce)),
            (holding(Int, 1, json!({"dataType": "int16"})), &[0xffce], Value::Integer(-50)),
            (
                holding(Int, 2, json!({"dataType": "int32", "isRegisterSwap": true})),
                &[0xfffe, 0xffff],
                Value::Integer(-2),
            ),
            (holding(Int, 1, json!({"isSwap": true})), &[0x0100], Value::Integer(1)),
            (holding(Int, 4, json!({})), &[0xffff; 4], Value::Integer(u64::MAX.into())),
            (holding(Int, 1, json!({"scale": "0.1"})), &[219], Value::Integer(21)),
            (holding(Float, 1, json!({"scale": 0.1})), &[213], Value::Float(21.3)),
            (holding(Float, 2, json!({})), &[0x3dcc, 0xcccd], Value::Float(0.1)),
            (
                holding(Float, 2, json!({"isSwap": true, "isRegisterSwap": true})),
                &[0xcdcc, 0xcc3d],
                Value::Float(0.1),
            ),
            (holding(Double, 4, json!({})), &[0xc059, 0, 0, 0], Value::Float(-100.0)),
            (holding(Boolean, 1, json!({})), &[2], Value::Boolean(true)),
            (holding(String, 3, json!({})), &[0x6869, 0x2100, 0], Value::Text("hi!".into())),
        ] {
            assert_eq!(register.words_value(words), Ok(value), "{register:?}");
        }
        assert!(holding(Float, 2, json!({})).words_value(&[0x7fc0, 0]).is_err(), "not a number");
        assert!(holding(String, 1, json!({})).words_value(&[0xffff]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        use PropertyType::{Boolean, Float, Int, String};
        let refused = |register: &Register, value| register.words_for(&value).unwrap_err();
        let word = holding(Int, 1, json!({}));
        assert_eq!(refused(&word, Value::Integer(65536)), "65536 does not fit 2 bytes of HoldingRegister");
        refused(&word, Value::Integer(-1));
        refused(&word, Value::Text("warm".into()));
        refused(&holding(Int, 1, json!({"dataType": "int16"})), Value::Integer(32768));
        refused(&holding(Float, 2, json!({})), Value::Float(1e300));
        refused(&holding(String, 1, json!({})), Value::Text("too long".into()));
        let tenths = holding(Float, 1, json!({"scale": 0.1}));
        assert_eq!(tenths.words_for(&Value::Float(21.3)), Ok(vec![213]));
        assert_eq!(holding(Boolean, 1, json!({})).words_for(&Value::Boolean(true)), Ok(vec![1]));
    }

    #[test]
    fn a_wrong_visitor_says_which_field() {
        let wrong = |kind, visitor| register(kind, None, visitor).unwrap_err();
        let int = PropertyType::Int;
        for (visitor, message) in [
            (json!({}), "visitors.configData is missing"),
            (json!({"register": "Registers", "offset": 1}), "unknown variant `Registers`"),
            (json!({"register": "CoilRegister"}), "missing field `offset`"),
            (json!({"register": "CoilRegister", "offset": "two"}), r#""two" is no number"#),
            (
                json!({"register": "CoilRegister", "offset": -1}),
                "offset -1 is no whole number from 0 to 65535",
            ),
            (json!({"register": "CoilRegister", "offset": 1, "limit": 2}), "limit 2 is more than the 1 bits"),
            (json!({"register": "InputRegister", "offset": 65535, "limit": 2}), "beyond the last register"),
            (
                json!({"register": "InputRegister", "offset": 1, "limit": 3}),
                "a limit of 1, 2 or 4, and not of 3",
            ),
            (json!({"register": "InputRegister", "offset": 1, "scale": 0}), "scale 0 is no factor"),
            (
                json!({"register": "InputRegister", "offset": 1, "dataType": "int32"}),
                "takes a limit of 2, and not of 1",
            ),
            (
                json!({"register": "InputRegister", "offset": 1, "dataType": "word"}),
                r#"dataType "word" is none of"#,
            ),
        ] {
            let error = wrong(int, visitor);
            assert!(error.contains(message), "{error}");
        }
        let mut read_only = property(int, None, json!({"register": "InputRegister", "offset": 1}));
        read_only.desired = Some("1".into());
        assert!(Register::parse(&read_only).unwrap_err().contains("cannot be written"));
    }

    /// As far as it looks at registers.
    #[test]
    fn kubectl_apply_refuses_what_is_refused_here() {
        let registers =
            ["Coil", "CoilRegister", "DiscreteInputRegister", "Input", "HoldingRegister", "Words"];
        let limits = [json!(0), json!(1), json!(2), json!("2")];
        for register in registers {
            for limit in &limits {
                for kind in ["BOOLEAN", "INT"] {
                    for data_type in [None, Some("bool"), Some("int32")] {
                        for desired in [None, Some("1")] {
                            let mut visitor = json!({"register": register, "offset": 1, "limit": limit});
                            if let Some(data_type) = data_type {
                                visitor["dataType"] = data_type.into();
                            }
                            let mut property = json!({"name": "p", "visitors": {"configData": visitor}});
                            if let Some(desired) = desired {
                                property["desired"] = json!({"value": desired});
                            }
                            let device = json!({"deviceModelRef": {"name": "m"}, "properties": [property]});
                            let model =
                                json!({"protocol": "modbus", "properties": [{"name": "p", "type": kind}]});
                            let here = Register::parse(&spec(&device, &model).unwrap().properties[0]);
                            let there = validation::device(
                                &serde_json::from_value(device).unwrap(),
                                &serde_json::from_value(model).unwrap(),
                            );
                            assert!(here.is_err() || there.is_empty(), "{here:?} {there:?}");
                            // What does not fit its dataType is told by the edge alone.
                            assert!(here.is_ok() || !there.is_empty() || data_type.is_some(), "{here:?}");
                        }
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            number in any::<i64>(),
            form in 0..6_usize,
            swap in any::<bool>(),
            swap_words in any::<bool>(),
        ) {
            let number = i128::from(number);
            let (limit, name): (u16, &str) =
                [(1, "int16"), (1, "uint16"), (2, "int32"), (2, "uint32"), (4, "int64"), (4, "uint64")][form];
            let bits = 16 * u32::from(limit);
            let number = number.rem_euclid(1 << bits) - if form % 2 == 0 { 1 << (bits - 1) } else { 0 };
            let more = json!({"dataType": name, "isSwap": swap, "isRegisterSwap": swap_words});
            let register = holding(PropertyType::Int, limit, more);
            let words = register.words_for(&Value::Integer(number)).unwrap();
            prop_assert_eq!(words.len(), usize::from(limit));
            prop_assert_eq!(register.words_value(&words), Ok(Value::Integer(number)));
        }
    }
}
