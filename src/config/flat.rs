//! TOML and variables as flat keys: `apps[0].secret_keys[0].file` → a value; and what was probably meant by one that is not known.

use std::collections::BTreeMap;

use serde::Deserialize as _;
use serde_json::Value as Json;
use toml::Value;
use toml::de::{DeTable, DeValue, Deserializer};

use super::DEFAULTS;
use crate::publish::canonical;

pub type Values = BTreeMap<String, Value>;

/// Librdkafka's properties, and the settings of topics: tables whose names are not ours, and have dots.
pub const PROPERTIES: &str = "kafka.properties";
pub const SETTINGS: &str = "topics.settings";

/// Where a secret may stand.
pub const PLACES: [&str; 3] = ["file", "env", "value"];

pub fn defaults() -> Values {
    flat(toml::from_str(DEFAULTS).expect("the defaults are TOML, as unit tests show"))
}

/// Where keys and tables stand in a file: their lines, from 1.
pub type Lines = BTreeMap<String, usize>;

/// Parses TOML. A mistake names line and column without the line itself, which may hold a secret; of the line's text only a name that
/// `is_read`.
pub fn parse(text: &str, is_read: impl Fn(&str) -> bool) -> Result<(Values, Lines), String> {
    let starts: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let line_at = |at: usize| starts.partition_point(|start| *start <= at);
    let mistake = |error: &toml::de::Error, why: &str| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = line_at(at);
        let before = &text[starts[line - 1]..at];
        let name = before.split('=').next().map(str::trim).filter(|name| before.contains('=') && is_read(name));
        let hint =
            name.map(|name| format!(": the value of `{name}`; a text needs quotes on both sides")).unwrap_or_default();
        let twice = error.span().and_then(|span| text.get(span)).filter(|name| why == "duplicate key" && is_read(name));
        let twice = twice.map(|name| format!(" `{name}`: it is set above")).unwrap_or_default();
        format!("{line}:{}: {why}{hint}{twice}", before.chars().count() + 1)
    };
    let first = |error: toml::de::Error| mistake(&error, error.message().lines().next().unwrap_or("is not valid TOML"));
    let table = DeTable::parse(text).map_err(first)?;
    let mut lines = Lines::new();
    note_lines("", table.get_ref(), &line_at, &mut lines);
    // Its message has the number in it, which may be a secret without quotes.
    let table = toml::Table::deserialize(Deserializer::from(table));
    let table = table.map_err(|error| mistake(&error, "is a number that is too large"))?;
    Ok((flat(table), lines))
}

fn note_lines(table: &str, found: &DeTable<'_>, line_at: &impl Fn(usize) -> usize, lines: &mut Lines) {
    for (name, value) in found {
        let key = join(table, name.get_ref());
        lines.insert(key.clone(), line_at(name.span().start));
        match value.get_ref() {
            DeValue::Table(table) => note_lines(&key, table, line_at, lines),
            DeValue::Array(array) => {
                for (n, element) in array.iter().enumerate() {
                    let Some(table) = element.get_ref().as_table() else { continue };
                    let key = format!("{key}[{n}]");
                    lines.insert(key.clone(), line_at(element.span().start));
                    note_lines(&key, table, line_at, lines);
                }
            }
            _ => {}
        }
    }
}

pub fn flat(table: toml::Table) -> Values {
    let mut values = Values::new();
    table.into_iter().for_each(|(name, value)| flatten(join("", &name), value, &mut values));
    values
}

fn flatten(key: String, value: Value, into: &mut Values) {
    match value {
        Value::Table(table) if !table.is_empty() => {
            table.into_iter().for_each(|(name, value)| flatten(join(&key, &name), value, into));
        }
        Value::Array(array) if !array.is_empty() && array.iter().all(Value::is_table) => {
            array.into_iter().enumerate().for_each(|(i, value)| flatten(format!("{key}[{i}]"), value, into));
        }
        value => drop(into.insert(key, value)),
    }
}

/// The key of what a table has under this name.
pub fn join(table: &str, name: &str) -> String {
    let is_ours = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match table {
        "" if is_ours => name.to_owned(),
        "" => format!("{name:?}"),
        _ if is_ours && table != PROPERTIES && table != SETTINGS => format!("{table}.{name}"),
        _ => format!("{table}.{name:?}"),
    }
}

/// `APPS__0__NAME` → `apps[0].name`. Variables cannot have the dots of librdkafka's names and of topic settings: underscores stand
/// for them.
pub fn key_of(variable: &str) -> Option<String> {
    let mut key = String::new();
    for part in variable.to_ascii_lowercase().split("__") {
        key = match part.parse::<usize>() {
            _ if part.is_empty() => return None,
            Ok(index) if !key.is_empty() => format!("{key}[{index}]"),
            _ if key == PROPERTIES || key == SETTINGS => join(&key, &part.replace('_', ".")),
            _ => join(&key, part),
        };
    }
    Some(identity_of_property(&key).unwrap_or(key))
}

/// What is one thing under several keys: a secret, wherever it stands, and a property, whatever its name.
pub fn identity(key: &str) -> String {
    let places = PLACES.iter().find_map(|place| key.strip_suffix(place)?.strip_suffix('.'));
    let key = places.unwrap_or(key);
    identity_of_property(key).unwrap_or_else(|| key.to_owned())
}

/// The key of a property under the one name that the relay has for it.
fn identity_of_property(key: &str) -> Option<String> {
    let (name, rest) = key.strip_prefix(PROPERTIES)?.strip_prefix(".\"")?.split_once('"')?;
    Some(format!("{}{rest}", join(PROPERTIES, canonical(name))))
}

/// A list of texts, with commas between them.
pub fn list(text: &str) -> Value {
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    Value::Array(texts.map(|text| Value::String(text.to_owned())).collect())
}

/// The one of these names that was probably meant.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| name.replace("__", "_").replace('.', "_");
    let name = plain(name);
    // A prefix of all is no likeness.
    let most = name.strip_prefix("LIVECHAT_RELAY_").unwrap_or(&name).len() / 3;
    let distance = |known: &'a str| (strsim::damerau_levenshtein(&plain(known), &name), known);
    known.map(distance).filter(|(distance, _)| *distance <= most).min().map(|(_, known)| known)
}

/// A part of a key: `apps[0].name` has three.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    Name(String),
    Index(usize),
}

/// The parts of a key, as [`join`] made it.
pub fn segments(key: &str) -> Vec<Segment> {
    let (mut found, mut rest) = (Vec::new(), key);
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some((name, after)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
            found.push(Segment::Name(name.to_owned()));
            rest = after;
        } else if let Some((index, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            found.push(Segment::Index(index.parse().unwrap_or(usize::MAX)));
            rest = after;
        } else {
            let (name, after) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
            found.push(Segment::Name(name.to_owned()));
            rest = after;
        }
    }
    found
}

/// The same in JSON, which has no dates: they are texts in it.
pub fn json_of(value: &Value) -> Json {
    match value {
        Value::Datetime(date) => date.to_string().into(),
        Value::Array(array) => array.iter().map(json_of).collect(),
        Value::Table(table) => table.iter().map(|(name, value)| (name.clone(), json_of(value))).collect(),
        value => serde_json::json!(value),
    }
}
