//! What may stand at a key. The reader says it with each key that it reads; mistakes, the schema, and the types of variables follow from it.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::{Value as Json, json};
use toml::Value;

use super::flat::list;

#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// With what it must be, in words.
    Text(String),
    Flag,
    Choice(Vec<&'static str>),
    Number(RangeInclusive<u64>),
    /// A number with a meaning of its own, said in words, or one in the bounds.
    NumberOr(i64, &'static str, RangeInclusive<u64>),
    Size(RangeInclusive<ByteSize>),
    Time(RangeInclusive<Duration>),
    Address,
    Networks,
    /// One, or several in an array.
    Texts,
    /// A date with a time and an offset.
    Instant,
    /// A text, a number, or true or false.
    Scalar,
    /// A text, or a table that says where it stands.
    Secret,
    /// As a secret, but not only a text.
    Property,
    /// Of tables.
    Array,
    /// Whose names are not ours.
    Table,
}

/// Fewer bytes are no secret that the relay takes, so a short text may be shown.
const SECRET_BYTES_MIN: usize = 8;

impl Shape {
    pub fn text() -> Self {
        Self::Text("a text in quotes".to_owned())
    }

    /// As it is said after "must be".
    pub fn wanted(&self) -> String {
        match self {
            Self::Text(wanted) => wanted.clone(),
            Self::Flag => "true or false".to_owned(),
            Self::Choice(names) => {
                format!("one of {}", names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", "))
            }
            Self::Number(bounds) => format!("a whole number from {} to {}", bounds.start(), bounds.end()),
            Self::NumberOr(other, meaning, bounds) => {
                format!("{other} ({meaning}), or a whole number from {} to {}", bounds.start(), bounds.end())
            }
            Self::Size(bounds) => format!("a size from {} to {}", bounds.start(), bounds.end()),
            Self::Time(bounds) => format!("a duration from {:?} to {:?}", bounds.start(), bounds.end()),
            Self::Address => "an IP address and a port".to_owned(),
            Self::Networks => "a list of networks".to_owned(),
            Self::Texts => "a text in quotes, or several in an array; none may be empty".to_owned(),
            Self::Instant => "a date with a time and its offset".to_owned(),
            Self::Scalar => "a text, a number, or true or false".to_owned(),
            Self::Secret | Self::Property => "a text in quotes, or a table with one of file, env or value".to_owned(),
            Self::Array => "an array of tables".to_owned(),
            Self::Table => "a table".to_owned(),
        }
    }

    /// For a key that has neither a default nor an example in `config/default.toml`.
    pub fn example(&self) -> Option<&'static str> {
        match self {
            Self::Instant => Some("2026-12-31T00:00:00Z"),
            Self::Address => Some("\"127.0.0.1:8080\""),
            Self::Networks => Some("[\"10.0.0.0/8\", \"2001:db8::7\"]"),
            _ => None,
        }
    }

    /// A wrong value as a mistake may show it. A secret that stands in the wrong place is never shown: of texts only those that
    /// are too short for one, a number with a unit, and a host with a port, where no free text is expected.
    pub fn shown(&self, value: &Value) -> Option<String> {
        let is_narrow = matches!(
            self,
            Self::Flag
                | Self::Choice(_)
                | Self::Number(_)
                | Self::NumberOr(..)
                | Self::Size(_)
                | Self::Time(_)
                | Self::Address
                | Self::Instant
        );
        let may_be_secret = matches!(self, Self::Scalar | Self::Secret | Self::Property | Self::Array | Self::Table);
        match value {
            Value::Boolean(_) | Value::Datetime(_) => Some(value.to_string()),
            Value::Integer(_) | Value::Float(_) => (!may_be_secret).then(|| value.to_string()),
            Value::String(text) if is_narrow => {
                let is_short = text.len() < SECRET_BYTES_MIN;
                let is_shown = is_short || is_quantity(text) || *self == Self::Address && is_host_and_port(text);
                is_shown.then(|| value.to_string())
            }
            _ => None,
        }
    }

    /// Text from a variable as a value of this shape; where it is none, it stays a text, and is refused as such.
    pub fn typed(&self, text: &str) -> Value {
        let typed = match self {
            Self::Number(_) | Self::NumberOr(..) => text.parse().ok().map(Value::Integer),
            Self::Flag => text.parse().ok().map(Value::Boolean),
            Self::Networks | Self::Texts => Some(list(text)),
            _ => None,
        };
        typed.unwrap_or_else(|| Value::String(text.to_owned()))
    }

    /// As JSON Schema. Bounds of sizes and times are in the description: a pattern cannot compare them.
    pub fn schema(&self) -> Json {
        let text = json!({ "type": "string" });
        let scalar = json!({ "type": ["string", "number", "boolean"] });
        let secret = |value: Json| {
            let place = json!({
                "type": "object",
                "properties": { "file": text, "env": text, "value": value },
                "additionalProperties": false,
                "minProperties": 1,
                "maxProperties": 1,
            });
            json!({ "anyOf": [value, place] })
        };
        match self {
            Self::Text(_) => text,
            Self::Flag => json!({ "type": "boolean" }),
            Self::Choice(names) => json!({ "enum": names }),
            Self::Number(bounds) => {
                json!({ "type": "integer", "minimum": bounds.start(), "maximum": bounds.end() })
            }
            Self::NumberOr(other, _, bounds) => {
                json!({ "anyOf": [{ "const": other }, Self::Number(bounds.clone()).schema()] })
            }
            Self::Size(_) => json!({ "type": "string", "pattern": "^[0-9.]+\\s*([KMGTPEkmgtpe][Ii]?)?[Bb]?$" }),
            Self::Time(_) => json!({ "type": "string", "pattern": "^(P.+|[0-9].*[A-Za-zµ:].*)$" }),
            Self::Address => json!({ "type": "string", "pattern": "^.+:[0-9]{1,5}$" }),
            Self::Networks => json!({ "type": "array", "items": text }),
            Self::Texts => {
                let text = json!({ "type": "string", "minLength": 1 });
                json!({ "anyOf": [text, { "type": "array", "items": text, "minItems": 1 }] })
            }
            Self::Instant => json!({ "type": "string", "format": "date-time" }),
            Self::Scalar => scalar,
            Self::Secret => secret(text.clone()),
            Self::Property => secret(scalar),
            Self::Array => json!({ "type": "array" }),
            Self::Table => json!({ "type": "object" }),
        }
    }
}

/// `65MiB`, `2 apples`, `-5`.
fn is_quantity(text: &str) -> bool {
    let number = text.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '-' | '.' | ','));
    let unit = number.trim_start();
    number.len() < text.len() && unit.len() <= SECRET_BYTES_MIN && unit.bytes().all(|b| b.is_ascii_alphabetic())
}

fn is_host_and_port(text: &str) -> bool {
    let is_host = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    text.rsplit_once(':').is_some_and(|(host, port)| {
        is_host(host) && (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
    })
}
