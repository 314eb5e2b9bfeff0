//! Reads keys one by one out of the merged sources, and remembers what was asked for and what was wrong.
//!
//! The sources are flat: `apps[0].secret_keys[0].file` → a value. A mistake has the value in it only where it cannot be a secret in the
//! wrong place.

mod secrets;
mod unknown;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::declared::declared;
use super::flat::{Values, defaults, identity, key_of, parse};
use super::origins::{Origins, Place};
use super::reload::Sources;
use super::shape::Shape;
use super::{Mistakes, Need};
use secrets::{may_pass, text_of};

/// Starts the names of variables that set keys.
const PREFIX: &str = "LIVECHAT_RELAY__";

/// The variable that names the file.
const FILE_VARIABLE: &str = "LIVECHAT_RELAY_CONFIG";

pub struct Reader {
    values: Values,
    /// Stand for values that are wrong, so that reading goes on and finds all mistakes.
    defaults: Values,
    environment: BTreeMap<OsString, OsString>,
    origins: Origins,
    need: Need,
    /// Digests of the files that were read, by the key that names them.
    files: BTreeMap<(String, PathBuf), [u8; 32]>,
    /// The keys that were read, with what may stand there.
    asked: BTreeMap<String, Shape>,
    /// Each with whether it may pass by itself.
    mistakes: BTreeMap<(Place, String), bool>,
    remarks: Remarks,
}

/// What is to be said of a configuration that is right.
#[derive(Default)]
pub struct Remarks {
    pub warnings: Vec<String>,
    pub ignored: Vec<String>,
}

impl Reader {
    /// Merges the sources.
    ///
    /// # Errors
    /// When there is no sense in reading on: the file cannot be read, or is not valid TOML.
    pub fn new(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        need: Need,
    ) -> Result<Self, Mistakes> {
        let mut values = defaults();
        let mut origins = Origins { file: file.map(Path::to_owned), ..Origins::default() };
        if let Some(path) = file {
            let one = |why: String, may_pass| Mistakes {
                lines: vec![format!("{}:{why}", path.display())],
                may_pass,
                ..Mistakes::default()
            };
            let text = text_of(path).map_err(|e| one(format!(" cannot be read: {e}"), may_pass(&e)))?;
            let is_toml =
                path.extension().is_none_or(|name| !["yaml", "yml", "json"].iter().any(|other| name == *other));
            let hint = if is_toml { "" } else { "; the configuration is written in TOML" };
            let parsed = parse(&text, |name| declared().has_name(name));
            let (of_file, lines) = parsed.map_err(|why| one(why + hint, false))?;
            values.extend(of_file);
            origins.lines = lines;
        }
        let mut reader = Self::of_values(values, origins, environment.into_iter().collect(), need);
        reader.take_variables();
        Ok(reader)
    }

    /// Of sources that are merged already.
    pub fn of_values(values: Values, origins: Origins, environment: BTreeMap<OsString, OsString>, need: Need) -> Self {
        Self {
            values,
            defaults: defaults(),
            environment,
            origins,
            need,
            files: BTreeMap::new(),
            asked: BTreeMap::new(),
            mistakes: BTreeMap::new(),
            remarks: Remarks::default(),
        }
    }

    pub fn values(&self) -> &Values {
        &self.values
    }

    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// The keys that were read so far, with what may stand there.
    pub fn asked(&self) -> &BTreeMap<String, Shape> {
        &self.asked
    }

    /// Sets what variables set. Those of other programs do not matter, whatever is in them.
    fn take_variables(&mut self) {
        let mut set: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in self.environment.clone() {
            let (name, is_text) = (name.to_string_lossy().into_owned(), name.to_str().is_some());
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let mut mistake = |why: &str| self.add(Place::Environment, format!("{name}: {why}"), false);
            let (Some(value), true) = (value.to_str(), is_text) else {
                mistake("is not UTF-8");
                continue;
            };
            let Some(key) = key_of(rest) else {
                mistake("is not the name of a key; separate sections and keys by two underscores");
                continue;
            };
            let identity = identity(&key);
            if let Some(other) = set.insert(identity.clone(), name.clone()) {
                mistake(&format!("sets the same key as {other}; keep one of them"));
            }
            self.values.retain(|known, _| self::identity(known) != identity);
            let shape = declared().shape(&key).cloned().unwrap_or_else(Shape::text);
            self.values.insert(key.clone(), shape.typed(value));
            self.origins.variables.insert(key, name);
        }
    }

    /// As [`Reader::note`], with a number, a size or a duration that does not agree with others.
    pub fn mistake(&mut self, key: &str, why: &str) {
        let is_compared = |shape: &&Shape| matches!(shape, Shape::Number(_) | Shape::Size(_) | Shape::Time(_));
        let shape = self.asked.get(key).filter(is_compared);
        let value = shape.and_then(|shape| shape.shown(self.values.get(key)?));
        let value = value.map(|value| format!("; it is {value}")).unwrap_or_default();
        self.note(key, &format!("{why}{value}"), false);
    }

    /// `may_pass`: another try may find it right.
    pub fn note(&mut self, key: &str, why: &str, may_pass: bool) {
        let variable = self.origins.variables.get(key).map(|name| format!(" ({name})")).unwrap_or_default();
        self.add(self.origins.place(key), format!("{key}{variable}: {why}"), may_pass);
    }

    fn add(&mut self, place: Place, text: String, may_pass: bool) {
        self.mistakes.insert((place, text), may_pass);
    }

    pub fn warn(&mut self, key: &str, why: &str) {
        self.remarks.warnings.push(format!("{key}: {why}"));
    }

    /// The remarks and the sources, or all that was wrong.
    ///
    /// # Errors
    /// [`Mistakes`], where there are any.
    pub fn finish(mut self) -> Result<(Remarks, Sources), Mistakes> {
        self.unknown_keys();
        self.unknown_variables();
        if self.mistakes.is_empty() {
            return Ok((self.remarks, Sources::new(self.origins.file, self.environment, &self.values, self.files)));
        }
        let may_pass = self.mistakes.values().all(|may_pass| *may_pass);
        let file = self.origins.file.unwrap_or_default();
        let lines = self.mistakes.into_keys().map(|(place, text)| match place {
            Place::Line(line) => format!("{}:{line}: {text}", file.display()),
            Place::File => format!("{}: {text}", file.display()),
            Place::Environment => text,
        });
        Err(Mistakes { lines: lines.collect(), may_pass, ..Mistakes::default() })
    }

    /// Whether a file was given, and not only variables.
    pub fn has_file(&self) -> bool {
        self.origins.file.is_some()
    }

    /// Whether anything stands at this key or below it.
    pub fn has(&self, key: &str) -> bool {
        let mut from = self.values.range(key.to_owned()..).map_while(|(known, _)| known.strip_prefix(key));
        from.any(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }

    /// Whether the command needs what is not in the configuration, but where the configuration says: secrets and files.
    pub fn needs(&self, key: &str) -> bool {
        match self.need {
            Need::Everything => true,
            Need::Live(kept) => !kept.has(key),
            Need::Kafka => key.starts_with("kafka."),
            Need::LiveChat => is_of_livechat(key),
            Need::Registration => is_of_livechat(key) || key.contains("].secret_keys"),
            Need::Settings => false,
        }
    }

    /// Whether the command registers webhooks, which sends LiveChat a secret key.
    pub fn registers(&self) -> bool {
        self.need == Need::Registration
    }

    /// Whether a mistake with this key was noted.
    pub fn is_mistaken(&self, key: &str) -> bool {
        self.mistakes
            .keys()
            .any(|(_, mistake)| mistake.strip_prefix(key).is_some_and(|rest| rest.starts_with([':', ' '])))
    }
}

/// Whether a key is in `[livechat]`, or in that part of an app.
fn is_of_livechat(key: &str) -> bool {
    key.starts_with("livechat.") || key.contains("].livechat.")
}
