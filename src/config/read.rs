//! Reads keys one by one out of the merged sources, and remembers what was asked for and what was wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use config::{Config, File, FileFormat, Map, Value, ValueKind};
use jiff::SignedDuration;
use secrecy::SecretString;
use serde::de::DeserializeOwned;

use super::{DEFAULTS, Mistakes};

/// Starts the names of variables that set keys.
const PREFIX: &str = "LIVECHAT_RELAY__";

pub struct Reader {
    merged: Config,
    /// Stand for values that are wrong, so that reading goes on and finds all mistakes.
    defaults: Config,
    asked: BTreeSet<String>,
    mistakes: Vec<String>,
}

impl Reader {
    /// Merges the sources.
    ///
    /// # Errors
    /// When there is no sense in reading on: the file cannot be read, or is no TOML.
    pub fn new(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, Mistakes> {
        let one = |mistake: String| Mistakes(vec![mistake]);
        let defaults = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        let mut builder = defaults.clone();
        if let Some(path) = file {
            let path_text = path.display();
            let text = std::fs::read_to_string(path).map_err(|e| one(format!("{path_text}: cannot be read: {e}")))?;
            syntax(&text).map_err(|why| one(format!("{path_text}:{why}")))?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        let mut mistakes = Vec::new();
        let env: BTreeMap<_, _> = env.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        for (name, value) in env {
            match variable(&name, value) {
                Ok((key, value)) => {
                    let set = builder.set_override(key, value);
                    builder = set.map_err(|_| one(format!("{name}: names no key")))?;
                }
                Err(why) => mistakes.push(format!("{name}: {why}")),
            }
        }
        // The one thing that can fail here is a key with two shapes, such as LIVECHAT_RELAY__SERVER=1.
        let built = defaults.build().and_then(|defaults| Ok((defaults, builder.build()?)));
        let (defaults, merged) = built.map_err(|e| one(e.to_string()))?;
        Ok(Self { merged, defaults, asked: BTreeSet::new(), mistakes })
    }

    pub fn mistake(&mut self, key: &str, why: &str) {
        let line = format!("{key}: {why}");
        if !self.mistakes.contains(&line) {
            self.mistakes.push(line);
        }
    }

    /// What was read, or all that was wrong.
    ///
    /// # Errors
    /// [`Mistakes`], where there are any.
    pub fn finish<T>(mut self, read: T) -> Result<T, Mistakes> {
        self.mistakes.sort();
        if self.mistakes.is_empty() { Ok(read) } else { Err(Mistakes(self.mistakes)) }
    }

    /// Keys that are set, and that were not asked for.
    pub fn refuse_unknown_keys(&mut self) {
        let mut keys = Vec::new();
        for (name, value) in self.merged.cache.clone().into_table().unwrap_or_default() {
            leaves(name, value, &self.asked, &mut keys);
        }
        self.unknown(keys);
    }

    /// Keys that do not exist, each with what was probably meant.
    pub fn unknown(&mut self, keys: impl IntoIterator<Item = String>) {
        for key in keys {
            let near = self.asked.iter().map(|known| (strsim::damerau_levenshtein(known, &key), known));
            let hint = near.filter(|(distance, _)| *distance <= 4).min().map(|(_, known)| known.clone());
            let hint =
                hint.map_or_else(|| "config/default.toml lists all".to_owned(), |k| format!("did you mean {k}?"));
            self.mistake(&key, &format!("is no key; {hint}"));
        }
    }

    /// A value that serde reads. What stands there is not repeated: it may be a secret in the wrong place.
    pub fn get<T: DeserializeOwned>(&mut self, key: &str) -> T {
        self.asked.insert(key.to_owned());
        self.merged.get(key).unwrap_or_else(|error| {
            self.mistake(key, &plain(&error));
            self.default(key)
        })
    }

    fn default<T: DeserializeOwned>(&self, key: &str) -> T {
        self.defaults.get(key).expect("every key that must be there has a default, as unit tests show")
    }

    /// A text that may be absent.
    pub fn optional_text(&mut self, key: &str) -> Option<String> {
        self.asked.insert(key.to_owned());
        match self.merged.get::<String>(key) {
            Err(config::ConfigError::NotFound(_)) => None,
            found => found.map_err(|error| self.mistake(key, &plain(&error))).ok(),
        }
    }

    pub fn one_of(&mut self, key: &str, choices: &[&str]) -> String {
        let chosen = self.get::<String>(key);
        if choices.contains(&chosen.as_str()) {
            return chosen;
        }
        self.mistake(key, &format!("is `{chosen}`, and must be one of {}", choices.join(", ")));
        self.default(key)
    }

    /// A number of a type that has room for the bounds.
    pub fn number<N: TryFrom<u64>>(&mut self, key: &str, bounds: RangeInclusive<u64>) -> N {
        let mut number = self.get::<u64>(key);
        if !bounds.contains(&number) {
            self.mistake(key, &format!("is {number}, and must be {} to {}", bounds.start(), bounds.end()));
            number = self.default(key);
        }
        fit(number)
    }

    /// Bytes, as a number of a type that has room for the bounds.
    pub fn size<N: TryFrom<u64>>(&mut self, key: &str, bounds: RangeInclusive<ByteSize>) -> N {
        let text = self.get::<String>(key);
        match text.parse::<ByteSize>() {
            Ok(size) if bounds.contains(&size) => return fit(size.as_u64()),
            Ok(size) => self.mistake(key, &format!("is {size}, and must be {} to {}", bounds.start(), bounds.end())),
            Err(_) => self.mistake(key, &format!("is `{text}`, which is no size; write for example \"2MiB\"")),
        }
        fit(self.default::<ByteSize>(key).as_u64())
    }

    pub fn time(&mut self, key: &str, bounds: RangeInclusive<Duration>) -> Duration {
        let text = self.get::<String>(key);
        match duration(&text) {
            Some(time) if bounds.contains(&time) => return time,
            Some(time) => {
                self.mistake(key, &format!("is {time:?}, and must be {:?} to {:?}", bounds.start(), bounds.end()))
            }
            None => {
                self.mistake(key, &format!("is `{text}`, which is no duration; write for example \"8s\" or \"500ms\""))
            }
        }
        duration(&self.default::<String>(key)).expect("a default is a duration")
    }

    /// A table whose names are free, such as librdkafka's properties.
    pub fn table(&mut self, key: &str) -> Vec<(String, Value)> {
        self.asked.insert(key.to_owned());
        let table = self.merged.get_table(key).map_err(|_| self.mistake(key, "must be a table"));
        let mut table: Vec<_> = table.unwrap_or_default().into_iter().collect();
        table.sort_by(|(one, _), (other, _)| one.cmp(other));
        table
    }

    /// An array of tables; none where the key is missing.
    pub fn array(&mut self, key: &str) -> Vec<Map<String, Value>> {
        self.asked.insert(key.to_owned());
        let Ok(value) = self.merged.get::<Value>(key) else { return Vec::new() };
        let tables = value.into_array().ok().and_then(|a| a.into_iter().map(|v| v.into_table().ok()).collect());
        tables.unwrap_or_else(|| {
            self.mistake(key, &format!("must be an array of tables: [[{key}]]"));
            Vec::new()
        })
    }

    /// As [`Reader::secret`], for a key that may be missing.
    pub fn optional_secret(&mut self, key: &str) -> Option<SecretString> {
        self.asked.insert(key.to_owned());
        let value = self.merged.get::<Value>(key).ok()?;
        self.secret(key, &value)
    }

    /// A secret: a text, or a table that says where it stands. Mistakes name the place, never the secret.
    pub fn secret(&mut self, key: &str, value: &Value) -> Option<SecretString> {
        let text = |value: &Value| match &value.kind {
            ValueKind::String(text) => Some(text.clone()),
            ValueKind::Boolean(flag) => Some(flag.to_string()),
            ValueKind::I64(number) => Some(number.to_string()),
            _ => None,
        };
        let ValueKind::Table(table) = &value.kind else {
            return text(value).map(SecretString::from).or_else(|| {
                self.mistake(key, "must be a text, or a table with file, env or value");
                None
            });
        };
        self.unknown(
            table.keys().filter(|k| !["file", "env", "value"].contains(&k.as_str())).map(|k| format!("{key}.{k}")),
        );
        let place = |name: &str| table.get(name).and_then(text);
        let found = match (place("file"), place("env"), place("value")) {
            (Some(file), None, None) => std::fs::read_to_string(&file)
                .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                .map_err(|e| format!("file {file} cannot be read: {e}")),
            (None, Some(name), None) => {
                std::env::var(&name).map_err(|_| format!("the environment has no variable {name}, or it is not UTF-8"))
            }
            (None, None, Some(value)) => Ok(value),
            _ => Err("needs one of file, env or value".to_owned()),
        };
        found.map(SecretString::from).map_err(|why| self.mistake(key, &why)).ok()
    }
}

/// As people write it.
fn duration(text: &str) -> Option<Duration> {
    text.parse::<SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok())
}

/// A number within a key's bounds, in the type that its module has for it.
fn fit<N: TryFrom<u64>>(number: u64) -> N {
    N::try_from(number).ok().expect("the type has room for the key's bounds")
}

/// Checks TOML, and tells of a mistake by line and column without the line itself, which may hold a secret.
fn syntax(text: &str) -> Result<(), String> {
    let Err(error) = toml::from_str::<toml::Table>(text) else { return Ok(()) };
    let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    Err(format!("{line}:{column}: {}", error.message().lines().next().unwrap_or("is no TOML")))
}

/// `LIVECHAT_RELAY__APPS__0__NAME` → `apps[0].name`, with its value. Names of librdkafka and of topic settings have
/// dots, which variables cannot have: there underscores stand for them.
fn variable(name: &str, value: String) -> Result<(String, Value), &'static str> {
    let parts: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
    if parts.iter().any(String::is_empty) {
        return Err("names no key: sections and keys are parted by two underscores");
    }
    let value = Value::new(Some(&"the environment".to_owned()), ValueKind::String(value));
    if let [section, table, name] = &parts[..]
        && matches!((section.as_str(), table.as_str()), ("kafka", "properties") | ("topics", "settings"))
    {
        let entry = Map::from_iter([(name.replace('_', "."), value)]);
        return Ok((format!("{section}.{table}"), entry.into()));
    }
    let mut key = String::new();
    for part in parts {
        match part.parse::<u8>() {
            Ok(index) if !key.is_empty() => key.push_str(&format!("[{index}]")),
            _ if key.is_empty() => key = part,
            _ => key = format!("{key}.{part}"),
        }
    }
    Ok((key, value))
}

/// The keys below `name` that nobody asked for.
fn leaves(name: String, value: Value, asked: &BTreeSet<String>, unknown: &mut Vec<String>) {
    if asked.contains(&name) {
        return;
    }
    match value.kind {
        ValueKind::Table(table) if !table.is_empty() => {
            for (key, value) in table {
                leaves(format!("{name}.{key}"), value, asked, unknown);
            }
        }
        _ => unknown.push(name),
    }
}

/// What serde says, without the value and without the key, which stands before it anyway.
fn plain(error: &config::ConfigError) -> String {
    use config::ConfigError::{At, NotFound, Type};
    match error {
        NotFound(_) => "is missing".to_owned(),
        Type { expected, .. } => format!("must be {expected}"),
        At { error, .. } => plain(error),
        other => {
            let text = other.to_string();
            text.split(" for key").next().unwrap_or(&text).to_owned()
        }
    }
}
