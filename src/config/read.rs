//! Reads keys one by one out of the merged sources, and remembers what was asked for and what was wrong.
//!
//! The sources are flat: `apps[0].secret_keys[0].file` → a value. No text about a mistake has the value in it: it may be a secret
//! in the wrong place.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use toml::Value;

use super::flat::{PLACES, PROPERTIES, Values, defaults, flat, identity, key_of, list, nearest, parse, typed};
use super::reload::{Sources, digest};
use super::{Mistakes, Need};
use crate::http::client::Networks;

/// Starts the names of variables that set keys.
const PREFIX: &str = "LIVECHAT_RELAY__";

/// The variable that names the file.
const FILE_VARIABLE: &str = "LIVECHAT_RELAY_CONFIG";

/// Bytes of a file at most. The configuration and the secrets have a few kB, bundles of CA certificates 300 kB; one that names a device
/// has no end, and must not take the memory of a running relay.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The most names of files that one remark has.
const NAMES_SHOWN: usize = 8;

const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;

pub struct Reader {
    values: Values,
    /// Stand for values that are wrong, so that reading goes on and finds all mistakes.
    defaults: Values,
    environment: BTreeMap<OsString, OsString>,
    /// The variables that have set keys, by key.
    variables: BTreeMap<String, String>,
    need: Need,
    file: Option<PathBuf>,
    /// Digests of the files that were read, by the key that names them.
    files: BTreeMap<(String, PathBuf), [u8; 32]>,
    asked: BTreeSet<String>,
    /// Each with whether it may pass by itself.
    mistakes: BTreeMap<String, bool>,
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
    /// When there is no sense in reading on: the file cannot be read, or is no TOML.
    pub fn new(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        need: Need,
    ) -> Result<Self, Mistakes> {
        let mut values = defaults();
        if let Some(path) = file {
            let one = |why: String, may_pass| Mistakes {
                lines: vec![format!("{}:{why}", path.display())],
                may_pass,
                socket: None,
            };
            let text = text_of(path).map_err(|e| one(format!(" cannot be read: {e}"), may_pass(&e)))?;
            values.extend(flat(parse(&text).map_err(|why| one(why, false))?));
        }
        let environment = environment.into_iter().collect();
        let mut reader = Self::of_values(values, file.map(Path::to_owned), environment, need);
        reader.take_variables();
        Ok(reader)
    }

    /// Of sources that are merged already.
    pub fn of_values(
        values: Values,
        file: Option<PathBuf>,
        environment: BTreeMap<OsString, OsString>,
        need: Need,
    ) -> Self {
        Self {
            values,
            defaults: defaults(),
            environment,
            variables: BTreeMap::new(),
            need,
            file,
            files: BTreeMap::new(),
            asked: BTreeSet::new(),
            mistakes: BTreeMap::new(),
            remarks: Remarks::default(),
        }
    }

    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Sets what variables set. Those of others are none of our business, whatever is in them.
    fn take_variables(&mut self) {
        let mut set: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in self.environment.clone() {
            let (name, is_text) = (name.to_string_lossy().into_owned(), name.to_str().is_some());
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let (Some(value), true) = (value.to_str(), is_text) else {
                self.mistake(&name, "is not UTF-8");
                continue;
            };
            let Some(key) = key_of(rest) else {
                self.mistake(&name, "names no key: sections and keys are separated by two underscores");
                continue;
            };
            let identity = identity(&key);
            if let Some(other) = set.insert(identity.clone(), name.clone()) {
                self.mistake(&name, &format!("and {other} set the same key; keep one of them"));
            }
            self.values.retain(|known, _| self::identity(known) != identity);
            self.values.insert(key.clone(), typed(value, self.defaults.get(&key)));
            self.variables.insert(key, name);
        }
    }

    pub fn mistake(&mut self, key: &str, why: &str) {
        self.note(key, why, false);
    }

    /// As `mistake`; `may_pass`: another try may find it right.
    pub fn note(&mut self, key: &str, why: &str, may_pass: bool) {
        let variable = self.variables.get(key).map(|name| format!(" ({name})")).unwrap_or_default();
        self.mistakes.insert(format!("{key}{variable}: {why}"), may_pass);
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
            return Ok((self.remarks, Sources::new(self.file, self.environment, &self.values, self.files)));
        }
        let may_pass = self.mistakes.values().all(|may_pass| *may_pass);
        Err(Mistakes { lines: self.mistakes.into_keys().collect(), may_pass, socket: None })
    }

    /// Keys that are set and were not asked for, each with what was probably meant.
    fn unknown_keys(&mut self) {
        let tables =
            |key: &String| key.match_indices(['.', '[']).map(|(at, _)| key[..at].to_owned()).collect::<Vec<_>>();
        let known: BTreeSet<String> = self.asked.iter().flat_map(tables).chain(self.asked.clone()).collect();
        for (key, value) in self.values.clone() {
            let is_empty = value.as_table().is_some_and(toml::Table::is_empty) || value == Value::Array(Vec::new());
            if self.asked.contains(&key) || (is_empty && known.contains(&key)) {
                continue;
            }
            if known.contains(&key) {
                self.mistake(&key, &format!("must be a table: [{key}]"));
                continue;
            }
            let variable = self.variables.get(&key).map(|name| format!("{name}: ")).unwrap_or_default();
            // Of an unknown table its name is enough.
            let ends = key.match_indices('.').map(|(at, _)| at).chain([key.len()]);
            let unknown = ends.map(|end| &key[..end]).find(|part| !known.contains(*part)).unwrap_or(&key);
            let hint = nearest(unknown, known.iter().map(String::as_str));
            let hint = hint.map(|known| format!("did you mean `{known}`?"));
            let hint = hint.unwrap_or_else(|| "config/default.toml has all keys".to_owned());
            self.mistakes.insert(format!("{variable}unknown key `{unknown}`; {hint}"), false);
        }
    }

    /// Variables that look like ours and set nothing.
    fn unknown_variables(&mut self) {
        let own = self.asked.iter().map(|key| format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__")));
        let own: Vec<String> = own.chain([FILE_VARIABLE.to_owned()]).collect();
        for name in self.environment.keys().map(|name| name.to_string_lossy()) {
            // Kubernetes gives every container such variables of each service, one named livechat-relay included.
            let is_of_kubernetes = name.contains("_SERVICE_") || name.contains("_PORT");
            let is_like_ours =
                name.starts_with("LIVECHAT_RELAY_") && !name.starts_with(PREFIX) && name != FILE_VARIABLE;
            if is_like_ours && !is_of_kubernetes {
                let hint = nearest(&name, own.iter().map(String::as_str));
                let hint = hint.map(|own| format!("; did you mean {own}?")).unwrap_or_default();
                self.remarks.warnings.push(format!("{name}: the relay reads no such variable{hint}"));
            }
        }
        if self.environment.contains_key(std::ffi::OsStr::new("RUST_LOG")) {
            self.remarks
                .warnings
                .push("RUST_LOG: is not read; set log.filter, or LIVECHAT_RELAY__LOG__FILTER".to_owned());
        }
    }

    /// Whether a file was given, and not only variables.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
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

    /// The value of a key that has a default.
    pub fn read<T>(&mut self, key: &str, wanted: &str, read: impl Fn(&Value) -> Option<T>) -> T {
        self.asked.insert(key.to_owned());
        let default = &self.defaults[key];
        let value = self.values.get(key).unwrap_or(default);
        if let Some(found) = read(value) {
            return found;
        }
        let is = if value.same_type(default) { String::new() } else { format!(", not {}", kind(value)) };
        let (why, found) = (format!("must be {wanted}, such as {default}{is}"), read(default));
        self.mistake(key, &why);
        found.expect("the default is right, as unit tests show")
    }

    pub fn text(&mut self, key: &str) -> String {
        self.read(key, "a text in quotes", |value| value.as_str().map(str::to_owned))
    }

    pub fn flag(&mut self, key: &str) -> bool {
        self.read(key, "true or false", Value::as_bool)
    }

    pub fn choice<T: Clone, const N: usize>(&mut self, key: &str, choices: [(&str, T); N]) -> T {
        let names = choices.each_ref().map(|(name, _)| format!("\"{name}\"")).join(", ");
        self.read(key, &format!("one of {names}"), |value| {
            choices.iter().find(|(name, _)| value.as_str() == Some(*name)).map(|(_, choice)| choice.clone())
        })
    }

    /// A number of a type that has room for the bounds.
    pub fn number<N: TryFrom<u64>>(&mut self, key: &str, bounds: RangeInclusive<u64>) -> N {
        let number = |value: &Value| u64::try_from(value.as_integer()?).ok().filter(|n| bounds.contains(n));
        fit(self.read(key, &format!("a whole number from {} to {}", bounds.start(), bounds.end()), number))
    }

    /// Bytes, as a number of a type that has room for the bounds.
    pub fn size<N: TryFrom<u64>>(&mut self, key: &str, bounds: RangeInclusive<ByteSize>) -> N {
        let size = |value: &Value| value.as_str()?.parse::<ByteSize>().ok().filter(|size| bounds.contains(size));
        fit(self.read(key, &format!("a size from {} to {}", bounds.start(), bounds.end()), size).as_u64())
    }

    pub fn time(&mut self, key: &str, bounds: RangeInclusive<Duration>) -> Duration {
        let time = |value: &Value| duration(value.as_str()?).filter(|time| bounds.contains(time));
        self.read(key, &format!("a duration from {:?} to {:?}", bounds.start(), bounds.end()), time)
    }

    /// A duration that may be absent.
    pub fn optional_time(&mut self, key: &str, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        self.asked.insert(key.to_owned());
        let time = self.values.get(key)?.as_str().and_then(duration).filter(|time| bounds.contains(time));
        time.or_else(|| {
            self.mistake(key, &format!("must be a duration from {:?} to {:?}", bounds.start(), bounds.end()));
            None
        })
    }

    pub fn address(&mut self, key: &str) -> SocketAddr {
        self.read(key, "an IP address and a port", |value| value.as_str()?.parse().ok())
    }

    /// An address that may be absent.
    pub fn optional_address(&mut self, key: &str) -> Option<SocketAddr> {
        let text = self.optional_text(key)?;
        let address = text.parse().ok();
        if address.is_none() {
            self.mistake(key, "must be an IP address and a port, such as \"127.0.0.1:8080\"");
        }
        address
    }

    /// A list of networks and single addresses; which of them is wrong is said by its number.
    pub fn networks(&mut self, key: &str) -> Networks {
        self.asked.insert(key.to_owned());
        let example = "[\"10.0.0.0/8\", \"2001:db8::7\"]";
        let value = self.values.get(key).unwrap_or(&self.defaults[key]);
        let Some(entries) = value.as_array() else {
            let why = format!("must be a list of networks, such as {example}, not {}", kind(value));
            self.mistake(key, &why);
            return Networks::default();
        };
        let texts: Vec<&str> = entries.iter().map(|entry| entry.as_str().unwrap_or_default()).collect();
        if let Some(wrong) = texts.iter().position(|text| Networks::parse([*text]).is_none()) {
            self.mistake(key, &format!("its entry {} is no network: write them as in {example}", wrong + 1));
            return Networks::default();
        }
        Networks::parse(texts).unwrap_or_default()
    }

    /// Whether a mistake with this key was noted.
    pub fn is_mistaken(&self, key: &str) -> bool {
        self.mistakes.keys().any(|mistake| mistake.strip_prefix(key).is_some_and(|rest| rest.starts_with([':', ' '])))
    }

    /// A text that a condition holds for.
    pub fn text_that(&mut self, key: &str, wanted: &str, is_right: impl Fn(&str) -> bool) -> String {
        self.read(key, wanted, |value| value.as_str().filter(|text| is_right(text)).map(str::to_owned))
    }

    /// A text that may be absent.
    pub fn optional_text(&mut self, key: &str) -> Option<String> {
        self.asked.insert(key.to_owned());
        let value = self.values.get(key)?;
        let (text, kind) = (value.as_str().map(str::to_owned), kind(value));
        if text.is_none() {
            self.mistake(key, &format!("must be a text in quotes, not {kind}"));
        }
        text
    }

    /// Texts that may be absent: one, or several in an array; in a variable with commas between them.
    pub fn optional_texts(&mut self, key: &str) -> Option<Vec<String>> {
        self.asked.insert(key.to_owned());
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let listed = |text: &str| self.variables.contains_key(key).then(|| list(text));
        let value = self.values.get(key)?;
        let texts = match &value.as_str().and_then(listed).unwrap_or_else(|| value.clone()) {
            Value::Array(values) if !values.is_empty() => values.iter().map(text).collect::<Option<Vec<_>>>(),
            value => text(value).map(|text| vec![text]),
        };
        texts.or_else(|| {
            self.mistake(key, "must be a text in quotes, or several in an array; none may be empty");
            None
        })
    }

    /// A number that may be absent.
    pub fn optional_number(&mut self, key: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        self.asked.insert(key.to_owned());
        let number = self.values.get(key)?.as_integer();
        let number = number.and_then(|number| u64::try_from(number).ok()).filter(|number| bounds.contains(number));
        number.or_else(|| {
            self.mistake(key, &format!("must be a whole number from {} to {}", bounds.start(), bounds.end()));
            None
        })
    }

    /// A moment that may be absent: a date with a time and an offset, as TOML or as RFC 3339 in a text.
    pub fn optional_instant(&mut self, key: &str) -> Option<Timestamp> {
        self.asked.insert(key.to_owned());
        let instant = match self.values.get(key)? {
            Value::Datetime(instant) => instant.to_string().parse(),
            value => value.as_str().unwrap_or_default().parse(),
        };
        let why = "must be a date with a time and its offset, such as 2026-12-31T00:00:00Z";
        instant.map_err(|_: jiff::Error| self.mistake(key, why)).ok()
    }

    /// The names in a table, each with its key.
    pub fn names(&mut self, table: &str) -> Vec<(String, String)> {
        self.asked.insert(table.to_owned());
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
                self.asked.insert(key);
            }
        }
        if let Some(name) = unquoted.first() {
            self.mistake(table, &format!("names with dots need quotes: \"{name}\" = …"));
        }
        names.into_iter().collect()
    }

    /// How many tables stand in an array of tables; where there are none, `none` is the mistake.
    pub fn count(&mut self, key: &str, example: &str, none: Option<&str>) -> usize {
        self.asked.insert(key.to_owned());
        let mut count = 0;
        while self.has(&format!("{key}[{count}]")) {
            count += 1;
        }
        if count == 0 && self.has(key) && self.values.get(key) != Some(&Value::Array(Vec::new())) {
            self.mistake(key, &format!("must be an array of tables, such as {example}"));
            self.asked.extend(self.values.keys().filter(|known| known.starts_with(key)).cloned());
        } else if let (0, Some(why)) = (count, none) {
            self.mistake(key, why);
        }
        count
    }

    /// A value that is passed on: a text, a number, or true or false.
    pub fn scalar(&mut self, key: &str) -> Option<String> {
        let scalar = self.values.get(key).and_then(scalar);
        if scalar.is_none() {
            self.mistake(key, "must be a text, a number, or true or false");
        }
        scalar
    }

    /// A secret that must be there: a text, or a table that says where it stands. `None` where it is wrong, which is a mistake, or
    /// where the command does not need it.
    pub fn secret(&mut self, key: &str) -> Option<SecretString> {
        let (place, text) = self.place(key)?;
        if !self.needs(key) {
            return None;
        }
        let text = match place.strip_prefix(key) {
            Some(".file") => self.file(&place, Path::new(&text))?,
            Some(".env") => self.variable(&place, &text)?,
            _ => text,
        };
        let is_pem = key.starts_with(PROPERTIES) && key.ends_with(".pem\"");
        trimmed(&text, is_pem).map_err(|why| self.mistake(&place, why)).ok()
    }

    /// The key at which a secret or its place stands, and the text there.
    fn place(&mut self, key: &str) -> Option<(String, String)> {
        let keys = PLACES.map(|place| format!("{key}.{place}")).into_iter().chain([key.to_owned()]);
        self.asked.extend(keys.clone());
        let mut found = keys.filter(|key| self.values.contains_key(key));
        let (place, another) = (found.next(), found.next());
        let Some(place) = place.filter(|_| another.is_none()) else {
            let why = if another.is_some() {
                "has several of file, env and value"
            } else {
                "needs one of file, env or value"
            };
            self.mistake(key, why);
            return None;
        };
        let value = &self.values[&place];
        let text = if key.starts_with(PROPERTIES) { scalar(value) } else { value.as_str().map(str::to_owned) };
        if text.is_none() {
            let table = if place == key { ", or a table with one of file, env or value" } else { "" };
            self.mistake(&place, &format!("must be a text in quotes{table}, not {}", kind(value)));
        }
        Some((place, text?))
    }

    /// True or false, that may be absent.
    pub fn optional_flag(&mut self, key: &str) -> Option<bool> {
        self.asked.insert(key.to_owned());
        let value = self.values.get(key)?;
        let typed =
            self.variables.contains_key(key).then(|| value.as_str().and_then(|text| text.parse().ok())).flatten();
        value.as_bool().or(typed).or_else(|| {
            self.mistake(key, "must be true or false");
            None
        })
    }

    /// Whether the command registers webhooks, which sends LiveChat a secret key.
    pub fn registers(&self) -> bool {
        self.need == Need::Registration
    }

    /// As [`Reader::optional_secret`], for one that calls of LiveChat need. A relay that runs makes some of them: whether it `is_used` there.
    pub fn secret_for_livechat(&mut self, key: &str, is_used: bool) -> Option<SecretString> {
        if is_used || matches!(self.need, Need::LiveChat | Need::Registration) {
            return self.optional_secret(key);
        }
        if self.has(key) {
            self.place(key);
        }
        None
    }

    /// As [`Reader::secret`], for one that may be absent.
    pub fn optional_secret(&mut self, key: &str) -> Option<SecretString> {
        self.asked.insert(key.to_owned());
        if self.has(key) { self.secret(key) } else { None }
    }

    fn file(&mut self, key: &str, path: &Path) -> Option<String> {
        let read = text_of(path).inspect(|text| self.remember(key, path, text.as_bytes()));
        read.map_err(|e| self.note(key, &format!("the file cannot be read: {e}"), may_pass(&e))).ok()
    }

    /// What a file has in it, so that the next look finds whether that has changed.
    fn remember(&mut self, key: &str, path: &Path, content: &[u8]) {
        self.files.insert((key.to_owned(), path.to_owned()), digest(content));
    }

    /// The files of a directory, by name and sorted. Not among them, and remarked: subdirectories, hidden files, as Kubernetes has beside
    /// those of a mounted secret, and what editors leave.
    pub fn files_in(&mut self, key: &str, directory: &Path, most: usize) -> Option<Vec<(String, PathBuf)>> {
        let (mut files, mut ignored) = (Vec::new(), Vec::new());
        let entries = std::fs::read_dir(directory).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else {
                    self.mistake(key, "has a file whose name is not UTF-8");
                    continue;
                };
                let path = entry.path();
                let is_left_over = name.ends_with('~') || path.extension().is_some_and(|extension| extension == "swp");
                if name.starts_with('.') || is_left_over || path.is_dir() {
                    ignored.push(name);
                } else {
                    files.push((name, path));
                }
                if files.len() > most {
                    break;
                }
            }
            Ok(())
        });
        if let Err(e) = entries {
            self.note(key, &format!("the directory cannot be read: {e}"), may_pass(&e));
            return None;
        }
        if files.len() > most {
            self.mistake(key, &format!("has more than {most} files"));
            return None;
        }
        if !ignored.is_empty() {
            ignored.sort();
            let more = ignored.len().saturating_sub(NAMES_SHOWN);
            let names = ignored[..ignored.len() - more].join(", ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            self.remarks.ignored.push(format!("{key}: these are not read as keys: {names}{more}"));
        }
        files.sort();
        Some(files)
    }

    /// As [`Reader::secret`], from a file of a directory.
    pub fn secret_in(&mut self, key: &str, name: &str, path: &Path) -> Option<SecretString> {
        // Whatever else is there, such as a pipe, might keep us waiting.
        let wrong = std::fs::metadata(path).ok().and_then(|file| match file.len() {
            _ if !file.is_file() => Some("is no file"),
            0..=SECRET_FILE_BYTES_MAX => None,
            _ => Some("is larger than 64 KiB: it is no secret key"),
        });
        if let Some(why) = wrong {
            self.mistake(key, &format!("{name} {why}"));
            return None;
        }
        let text = self.file(&format!("{key}: {name}"), path)?;
        trimmed(&text, false).map_err(|why| self.mistake(key, &format!("{name} {why}"))).ok()
    }

    fn variable(&mut self, key: &str, name: &str) -> Option<String> {
        let value = self.environment.get(std::ffi::OsStr::new(name));
        let text = value.ok_or("the environment has no such variable");
        let text = text.and_then(|value| value.to_str().ok_or("the variable is not UTF-8")).map(str::to_owned);
        text.map_err(|why| self.mistake(key, why)).ok()
    }

    /// What is in a file that this key names. `None` where it cannot be read, which is a mistake, or where the command does not need it.
    pub fn bytes_of(&mut self, key: &str, path: &Path) -> Option<Vec<u8>> {
        if !self.needs(key) {
            return None;
        }
        match content_of(path) {
            Ok(content) => {
                self.remember(key, path, &content);
                Some(content)
            }
            Err(e) => {
                self.note(key, &format!("the file cannot be read: {e}"), may_pass(&e));
                None
            }
        }
    }

    /// Notes where a file, or a directory, that is read by others later cannot be read now.
    pub fn readable(&mut self, key: &str, path: &SecretString) {
        let path = Path::new(path.expose_secret());
        match content_of(path) {
            Ok(content) => self.remember(key, path, &content),
            Err(e) if matches!(e.kind(), io::ErrorKind::IsADirectory | io::ErrorKind::FileTooLarge) => {}
            Err(e) => self.note(key, &format!("the file cannot be read: {e}"), may_pass(&e)),
        }
    }
}

/// Whether a key is in `[livechat]`, or in that part of an app.
fn is_of_livechat(key: &str) -> bool {
    key.starts_with("livechat.") || key.contains("].livechat.")
}

/// # Errors
/// What the system says, or that the file is too large.
fn content_of(path: &Path) -> io::Result<Vec<u8>> {
    let (file, mut bytes) = (std::fs::File::open(path)?, Vec::new());
    if file.metadata()?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory; name a file in it"));
    }
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 4 MiB"));
    }
    Ok(bytes)
}

fn text_of(path: &Path) -> io::Result<String> {
    String::from_utf8(content_of(path)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Whether a file may be readable at another try: a mount that is late, a secret that is being replaced.
fn may_pass(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, InvalidData, InvalidFilename, InvalidInput, IsADirectory};
    !matches!(error.kind(), FileTooLarge | InvalidData | InvalidFilename | InvalidInput | IsADirectory)
}

/// A secret without what editors and shells put around it: blanks, line ends, a byte order mark.
fn trimmed(text: &str, is_pem: bool) -> Result<SecretString, &'static str> {
    let text = text.trim_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    let is_wrong = |c: char| c.is_control() && !(is_pem && matches!(c, '\t' | '\r' | '\n'));
    match text {
        "" => Err("is empty"),
        _ if text.contains(is_wrong) => Err("has a control character in it, such as a line end"),
        _ => Ok(SecretString::from(text)),
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

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Some(value.to_string()),
        _ => None,
    }
}

fn kind(value: &Value) -> String {
    let kind = value.type_str();
    format!("{} {kind}", if kind.starts_with(['a', 'i']) { "an" } else { "a" })
}
