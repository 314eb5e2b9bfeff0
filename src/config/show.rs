//! The configuration as it is in force: each value with where it comes from, and without secrets.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::Value;

use super::declared::declared;
use super::flat::{PLACES, PROPERTIES, Segment, join, json_of, segments};
use super::origins::{Origin, Origins};
use super::read::Reader;
use super::{Config, Mistakes, Need, build};

/// Stands for every secret, whatever its length. It is too short to be taken for one: a relay that is given a printed configuration does not
/// start with a secret that all can read.
const MASK: &str = "***";

/// Properties of librdkafka that are no secrets; the value of any other may be one.
const OPEN_PROPERTIES: [&str; 3] = ["security.protocol", "sasl.mechanism", "sasl.mechanisms"];

/// A configuration that is right, for people and programs.
#[derive(Serialize)]
pub struct Shown {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    pub settings: Vec<Setting>,
    pub warnings: Vec<String>,
}

/// A key that has a value.
#[derive(Serialize)]
pub struct Setting {
    pub key: String,
    #[serde(serialize_with = "as_json")]
    pub value: Value,
    pub source: Source,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "from", rename_all = "lowercase")]
pub enum Source {
    Default,
    File { line: usize },
    Environment { variable: String },
}

impl Config {
    /// Reads the sources as [`Config::load`] does, but no secret, and none of the files that they name.
    ///
    /// # Errors
    /// [`Mistakes`]: the configuration is wrong.
    pub fn show(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Shown, Mistakes> {
        let mut reader = Reader::new(file, environment, Need::Settings)?;
        build(&mut reader);
        let (values, origins) = (reader.values().clone(), reader.origins().clone());
        let (remarks, _) = reader.finish()?;
        let is_container = |key: &str, value: &Value| {
            let is_empty =
                value.as_table().is_some_and(toml::Table::is_empty) || value.as_array().is_some_and(Vec::is_empty);
            let mut below = values.range(key.to_owned()..).skip(1).map(|(other, _)| other);
            let is_filled =
                below.next().and_then(|other| other.strip_prefix(key)).is_some_and(|rest| rest.starts_with(['.', '[']));
            value.is_table() || is_empty && is_filled
        };
        let shown = values.iter().filter(|(key, value)| !is_container(key, value));
        let settings = shown.map(|(key, value)| Setting {
            key: key.clone(),
            value: if is_masked(key) { MASK.into() } else { value.clone() },
            source: source(&origins, key),
        });
        let mut settings: Vec<_> = settings.collect();
        settings.sort_by_cached_key(|setting| segments(&setting.key));
        Ok(Shown { file: origins.file, settings, warnings: remarks.warnings })
    }
}

/// JSON has no dates: they are texts in it.
fn as_json<S: serde::Serializer>(value: &Value, serializer: S) -> Result<S::Ok, S::Error> {
    json_of(value).serialize(serializer)
}

fn source(origins: &Origins, key: &str) -> Source {
    match origins.of(key) {
        Origin::Default => Source::Default,
        Origin::Line(line) => Source::File { line },
        Origin::Variable(name) => Source::Environment { variable: name.to_owned() },
    }
}

/// Whether a secret itself stands at a key, and not where it can be found.
fn is_masked(key: &str) -> bool {
    let (segments, value) = (segments(key), Segment::Name("value".to_owned()));
    let secret = match segments.split_last() {
        Some((last, secret)) if *last == value && declared().has_secret(secret) => secret,
        _ => &segments,
    };
    let is_open = OPEN_PROPERTIES.iter().any(|name| *secret == super::flat::segments(&join(PROPERTIES, name)));
    declared().has_secret(secret) && !is_open
}

impl Shown {
    /// As a configuration file that can be read back, with the source of each value in a comment.
    pub fn toml(&self) -> String {
        let (mut text, mut begun) = (String::new(), BTreeSet::new());
        for setting in self.tables_last() {
            let (table, name) = split(&setting.key);
            for end in 1..=table.len() {
                let is_element = matches!(table[end - 1], Segment::Index(_));
                if (is_element || end == table.len()) && begun.insert(table[..end].to_vec()) {
                    let header = header(&table[..end]);
                    let _ = if is_element { write!(text, "\n[[{header}]]\n") } else { write!(text, "\n[{header}]\n") };
                }
            }
            let _ = writeln!(text, "{name} = {}  # {}", setting.value, self.said(&setting.source)); // a String takes all
        }
        text
    }

    /// The values of a table before the tables in it, as TOML has them.
    fn tables_last(&self) -> Vec<&Setting> {
        let mut settings: Vec<_> = self.settings.iter().collect();
        settings.sort_by_cached_key(|setting| split(&setting.key));
        settings
    }

    fn said(&self, source: &Source) -> String {
        match source {
            Source::Default => "default".to_owned(),
            Source::File { line } => format!("{}:{line}", self.file.as_deref().unwrap_or(Path::new("")).display()),
            Source::Environment { variable } => variable.clone(),
        }
    }
}

/// The table of a key, and its name in that table. Where a secret stands is part of its name: `token.file`.
fn split(key: &str) -> (Vec<Segment>, String) {
    let mut table = segments(key);
    let mut name = last(&mut table);
    if PLACES.contains(&name.as_str()) && declared().is_only_secret(&table) {
        name = format!("{}.{name}", last(&mut table));
    }
    (table, name)
}

/// Takes the last name of a key from it.
fn last(key: &mut Vec<Segment>) -> String {
    match key.pop() {
        Some(Segment::Name(name)) => quoted(&name),
        _ => String::new(),
    }
}

/// As a table's name in brackets, where array elements have no numbers.
fn header(table: &[Segment]) -> String {
    let names = table.iter().filter_map(|segment| match segment {
        Segment::Name(name) => Some(quoted(name)),
        Segment::Index(_) => None,
    });
    names.collect::<Vec<_>>().join(".")
}

fn quoted(name: &str) -> String {
    join("", name)
}
