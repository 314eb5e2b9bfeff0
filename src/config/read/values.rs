//! The value of a key, checked against its shape. What is wrong is noted as a mistake, and a default stands for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::{SignedDuration, Timestamp};
use toml::Value;

use super::Reader;
use crate::config::flat::PLACES;
use crate::config::reference::reference;
use crate::config::shape::Shape;
use crate::http::client::Networks;

impl Reader {
    /// The value of a key that has a default.
    fn read<T>(&mut self, key: &str, shape: Shape, read: impl Fn(&Value) -> Option<T>) -> T {
        let found = self.optional(key, shape, &read);
        found.unwrap_or_else(|| read(&self.defaults[key]).expect("the default is right, as unit tests show"))
    }

    /// The value of a key that may be absent.
    fn optional<T>(&mut self, key: &str, shape: Shape, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.values.get(key);
        let found = value.and_then(read);
        if let (Some(value), None) = (value, &found) {
            let why = self.refusal(key, &shape, value);
            self.note(key, &why, false);
        }
        self.asked.insert(key.to_owned(), shape);
        found
    }

    /// What must stand at a key, an example, and what stands there, where it can be shown.
    fn refusal(&self, key: &str, shape: &Shape, value: &Value) -> String {
        let example =
            self.defaults.get(key).filter(|default| **default != Value::Array(Vec::new())).map(Value::to_string);
        let example = example.or_else(|| reference().example(key)).or_else(|| shape.example().map(str::to_owned));
        let example = example.map(|example| format!(", such as {example}")).unwrap_or_default();
        let is_of_type = matches!((shape.schema()["type"].as_str(), value), (Some("string"), Value::String(_)))
            || matches!((shape, value), (Shape::Choice(_) | Shape::Texts, Value::String(_)));
        let given = match shape.shown(value) {
            Some(shown) => format!(", not {shown}"),
            None if is_of_type => String::new(),
            None => format!(", not {}", kind(value)),
        };
        format!("must be {}{example}{given}", shape.wanted())
    }

    pub fn text(&mut self, key: &str) -> String {
        self.read(key, Shape::text(), text)
    }

    pub fn flag(&mut self, key: &str) -> bool {
        self.read(key, Shape::Flag, Value::as_bool)
    }

    pub fn choice<T: Clone, const N: usize>(&mut self, key: &str, choices: [(&'static str, T); N]) -> T {
        self.read(key, shape_of(&choices), |value| chosen(value, &choices))
    }

    /// One of several texts, that may be absent.
    pub fn optional_choice<T: Clone, const N: usize>(
        &mut self,
        key: &str,
        choices: [(&'static str, T); N],
    ) -> Option<T> {
        self.optional(key, shape_of(&choices), |value| chosen(value, &choices))
    }

    /// A number of a type that has room for the bounds.
    pub fn number<N: TryFrom<u64>>(&mut self, key: &str, bounds: RangeInclusive<u64>) -> N {
        let number = |value: &Value| number(value, &bounds);
        fit(self.read(key, Shape::Number(bounds.clone()), number))
    }

    /// A number within the bounds, or another one that has a meaning of its own.
    pub fn number_or<N: TryFrom<i64>>(
        &mut self,
        key: &str,
        other: i64,
        meaning: &'static str,
        bounds: RangeInclusive<u64>,
    ) -> N {
        let shape = Shape::NumberOr(other, meaning, bounds.clone());
        self.read(key, shape, |value| {
            let found = value.as_integer()?;
            let is_right = found == other || number(value, &bounds).is_some();
            N::try_from(found).ok().filter(|_| is_right)
        })
    }

    /// Bytes, as a number of a type that has room for the bounds.
    pub fn size<N: TryFrom<u64>>(&mut self, key: &str, bounds: RangeInclusive<ByteSize>) -> N {
        let size = |value: &Value| value.as_str()?.parse::<ByteSize>().ok().filter(|size| bounds.contains(size));
        fit(self.read(key, Shape::Size(bounds.clone()), size).as_u64())
    }

    pub fn time(&mut self, key: &str, bounds: RangeInclusive<Duration>) -> Duration {
        self.read(key, Shape::Time(bounds.clone()), |value| time(value, &bounds))
    }

    /// A duration that may be absent.
    pub fn optional_time(&mut self, key: &str, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        self.optional(key, Shape::Time(bounds.clone()), |value| time(value, &bounds))
    }

    pub fn address(&mut self, key: &str) -> SocketAddr {
        self.read(key, Shape::Address, address)
    }

    /// An address that may be absent.
    pub fn optional_address(&mut self, key: &str) -> Option<SocketAddr> {
        self.optional(key, Shape::Address, address)
    }

    /// A list of networks and single addresses; which of them is wrong is said by its number.
    pub fn networks(&mut self, key: &str) -> Networks {
        let entries = self.read(key, Shape::Networks, |value| value.as_array().cloned());
        let texts: Vec<&str> = entries.iter().map(|entry| entry.as_str().unwrap_or_default()).collect();
        if let Some(wrong) = texts.iter().position(|text| Networks::parse([*text]).is_none()) {
            let example = Shape::Networks.example().unwrap_or_default();
            self.mistake(key, &format!("its entry {} is not a network; write networks like {example}", wrong + 1));
            return Networks::default();
        }
        Networks::parse(texts).unwrap_or_default()
    }

    /// A text that a condition holds for.
    pub fn text_that(&mut self, key: &str, wanted: &str, is_right: impl Fn(&str) -> bool) -> String {
        self.text_as(key, wanted, |text| is_right(text).then(|| text.to_owned()))
    }

    /// What a text stands for.
    pub fn text_as<T>(&mut self, key: &str, wanted: &str, read: impl Fn(&str) -> Option<T>) -> T {
        self.read(key, Shape::Text(wanted.to_owned()), |value| read(value.as_str()?))
    }

    /// A text that may be absent.
    pub fn optional_text(&mut self, key: &str) -> Option<String> {
        self.optional(key, Shape::text(), text)
    }

    /// Texts that may be absent: one, or several in an array; in a variable with commas between them.
    pub fn optional_texts(&mut self, key: &str) -> Option<Vec<String>> {
        let one = |value: &Value| text(value).filter(|text| !text.is_empty());
        self.optional(key, Shape::Texts, |value| match value {
            Value::Array(values) if values.is_empty() => None,
            Value::Array(values) => values.iter().map(one).collect(),
            value => one(value).map(|text| vec![text]),
        })
    }

    /// A number that may be absent.
    pub fn optional_number(&mut self, key: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        self.optional(key, Shape::Number(bounds.clone()), |value| number(value, &bounds))
    }

    /// True or false, that may be absent.
    pub fn optional_flag(&mut self, key: &str) -> Option<bool> {
        self.optional(key, Shape::Flag, Value::as_bool)
    }

    /// A moment that may be absent: a date with a time and an offset, as TOML or as RFC 3339 in a text.
    pub fn optional_instant(&mut self, key: &str) -> Option<Timestamp> {
        self.optional(key, Shape::Instant, |value| match value {
            Value::Datetime(instant) => instant.to_string().parse().ok(),
            value => value.as_str()?.parse().ok(),
        })
    }

    /// A value that is passed on: a text, a number, or true or false.
    pub fn scalar(&mut self, key: &str) -> Option<String> {
        self.optional(key, Shape::Scalar, scalar)
    }

    /// The names in a table, each with its key.
    pub fn names(&mut self, table: &str) -> Vec<(String, String)> {
        self.asked.insert(table.to_owned(), Shape::Table);
        if self.values.get(table).is_some_and(|value| !value.is_table()) {
            self.mistake(table, "must be a table");
        }
        let start = format!("{table}.");
        let keys: Vec<String> = self.values.keys().filter(|key| key.starts_with(&start)).cloned().collect();
        let (mut names, mut unquoted) = (BTreeMap::new(), Vec::new());
        for key in keys {
            let name = &key[start.len()..];
            let quoted = name.strip_prefix('"').and_then(|name| name.split_once('"'));
            let (name, rest) = quoted.unwrap_or((name, ""));
            let is_place = rest.is_empty() || PLACES.iter().any(|place| rest.strip_prefix('.') == Some(place));
            if is_place || name.contains('.') {
                let key = &key[..key.len() - rest.len()];
                names.insert(name.to_owned(), key.to_owned());
            } else {
                unquoted.push(format!("{name}{rest}"));
            }
            if is_place || !name.contains('.') {
                self.asked.entry(key).or_insert(Shape::Scalar);
            }
        }
        if let Some(name) = unquoted.first() {
            self.mistake(table, &format!("names with dots need quotes: \"{name}\" = …"));
        }
        names.into_iter().collect()
    }

    /// How many tables stand in an array of tables; where there are none, `none` is the mistake.
    pub fn count(&mut self, key: &str, example: &str, none: Option<&str>) -> usize {
        self.asked.insert(key.to_owned(), Shape::Array);
        let mut count = 0;
        while self.has(&format!("{key}[{count}]")) {
            count += 1;
        }
        if count == 0 && self.has(key) && self.values.get(key) != Some(&Value::Array(Vec::new())) {
            self.mistake(key, &format!("must be an array of tables, such as {example}"));
            let below = self.values.keys().filter(|known| known.starts_with(key)).cloned();
            self.asked.extend(below.map(|key| (key, Shape::Array)));
        } else if let (0, Some(why)) = (count, none) {
            self.mistake(key, why);
        }
        count
    }
}

fn shape_of<T>(choices: &[(&'static str, T)]) -> Shape {
    Shape::Choice(choices.iter().map(|(name, _)| *name).collect())
}

fn chosen<T: Clone>(value: &Value, choices: &[(&'static str, T)]) -> Option<T> {
    choices.iter().find(|(name, _)| value.as_str() == Some(*name)).map(|(_, choice)| choice.clone())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn number(value: &Value, bounds: &RangeInclusive<u64>) -> Option<u64> {
    u64::try_from(value.as_integer()?).ok().filter(|number| bounds.contains(number))
}

fn time(value: &Value, bounds: &RangeInclusive<Duration>) -> Option<Duration> {
    duration(value.as_str()?).filter(|time| bounds.contains(time))
}

/// As people write it.
fn duration(text: &str) -> Option<Duration> {
    text.parse::<SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok())
}

fn address(value: &Value) -> Option<SocketAddr> {
    value.as_str()?.parse().ok()
}

/// A number within a key's bounds, in the type that its module has for it.
fn fit<N: TryFrom<u64>>(number: u64) -> N {
    N::try_from(number).ok().expect("the type has room for the key's bounds")
}

pub fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Some(value.to_string()),
        _ => None,
    }
}

pub fn kind(value: &Value) -> String {
    let kind = value.type_str();
    format!("{} {kind}", if kind.starts_with(['a', 'i']) { "an" } else { "a" })
}
