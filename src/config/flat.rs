//! TOML and variables as flat keys: `apps[0].secret_keys[0].file` → a value; and what was probably meant by one that is not known.

use std::collections::BTreeMap;

use toml::Value;

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

/// Parses TOML. A mistake names line and column without the line itself, which may hold a secret.
pub fn parse(text: &str) -> Result<toml::Table, String> {
    toml::from_str::<toml::Table>(text).map_err(|error| {
        let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        format!("{line}:{column}: {}", error.message().lines().next().unwrap_or("is no TOML"))
    })
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

/// The text takes the type of the key's default; one that does not fit stays a text, and is refused as such.
pub fn typed(text: &str, default: Option<&Value>) -> Value {
    let typed = match default {
        Some(Value::Integer(_)) => text.parse().ok().map(Value::Integer),
        Some(Value::Boolean(_)) => text.parse().ok().map(Value::Boolean),
        Some(Value::Array(_)) => Some(list(text)),
        _ => None,
    };
    typed.unwrap_or_else(|| Value::String(text.to_owned()))
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
