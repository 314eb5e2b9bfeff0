//! The secret keys of an app: in the configuration, or in a directory with a file for each.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use toml::Value;

use super::flat::nearest;
use super::read::Reader;
use crate::event::{Keyring, Validity};
use crate::livechat::SecretKey;

/// With fewer bytes a key can be guessed, or might be with patience.
pub const KEY_BYTES: (usize, usize) = (8, 16);

/// The most keys of an app.
const KEYS_MAX: usize = 64;

/// What was read.
#[derive(Default)]
pub struct Keys {
    secrets: Vec<(String, SecretString, Validity)>,
    /// Where each stands, by name, for people; in the order of `secrets`, and there where the secrets are not needed.
    places: Vec<(String, String)>,
    pub directory: Option<PathBuf>,
}

pub fn keys(r: &mut Reader, place: &str) -> Keys {
    let directory = format!("{place}.directory");
    if r.has(&directory) { in_directory(r, place, &directory) } else { listed(r, place) }
}

impl Keys {
    pub fn keyring(&self) -> Keyring {
        Keyring::dated(self.secrets.iter().map(|(name, secret, validity)| (name.clone(), secret, *validity)))
    }

    /// The last one that is valid; where the secrets were not read, the last one. Only who `registers` gets the secret: a running relay
    /// keeps digests.
    pub fn newest(&self, now: Timestamp, registers: bool) -> Option<SecretKey> {
        let valid = self.secrets.iter().rfind(|(.., validity)| validity.covers(now));
        let (name, secret) = match valid {
            Some((name, secret, _)) => (name, registers.then(|| secret.clone())),
            None if self.secrets.is_empty() => (&self.places.last()?.0, None),
            None => return None,
        };
        let (_, place) = self.places.iter().find(|(of, _)| of == name)?;
        Some(SecretKey { name: name.clone(), place: place.clone(), secret })
    }
}

/// An array of tables: a key each, with its dates.
fn listed(r: &mut Reader, place: &str) -> Keys {
    const EXAMPLE: &str = "[{ name = \"2026-11\", file = \"/run/secrets/livechat\" }], or { directory = \"…\" }";
    let count = r.count(place, EXAMPLE, Some(&format!("needs at least one key, such as {EXAMPLE}")));
    if count > KEYS_MAX {
        r.mistake(place, &format!("has more than {KEYS_MAX} keys"));
    }
    let (mut names, mut keys) = (Vec::new(), Keys::default());
    for key in (0..count).map(|i| format!("{place}[{i}]")) {
        let name_key = format!("{key}.name");
        let name = r.optional_text(&name_key).unwrap_or_default();
        if let Some(why) = bad_name(&name) {
            r.mistake(&name_key, why);
        } else if names.contains(&name) {
            r.mistake(&name_key, "is already the name of another key");
        }
        names.push(name.clone());
        let [not_before, not_after] = ["not_before", "not_after"].map(|date| format!("{key}.{date}"));
        let validity =
            Validity { not_before: r.optional_instant(&not_before), not_after: r.optional_instant(&not_after) };
        check_order(r, &not_after, validity);
        keys.places.push((name.clone(), whereabouts(r, &key)));
        if let Some(secret) = r.secret(&key) {
            let holder = r.holder(&key);
            keys.add(r, &key, &holder, (name, secret, validity));
        }
    }
    keys
}

fn whereabouts(r: &Reader, key: &str) -> String {
    let text = |place: &str| r.values().get(&format!("{key}.{place}")).and_then(Value::as_str);
    let file = text("file").map(|path| format!("the file {path}"));
    let variable = || text("env").map(|name| format!("the variable {name}"));
    file.or_else(variable).unwrap_or_else(|| format!("the configuration, at {key}"))
}

/// A directory: a key a file, named by it. Files come and go without a change of the configuration; their dates, where they have any,
/// stand there, by name.
fn in_directory(r: &mut Reader, place: &str, directory: &str) -> Keys {
    if r.has(&format!("{place}[0]")) {
        r.mistake(place, "has both keys and a directory; keep one of them");
    }
    let [not_before, not_after] = ["not_before", "not_after"].map(|table| dates(r, &format!("{place}.{table}")));
    let mut keys = Keys::default();
    let Some(path) = r.optional_text(directory) else { return keys };
    keys.directory = Some(PathBuf::from(&path));
    if !r.needs(directory) {
        return keys;
    }
    let Some(files) = r.files_in(directory, Path::new(&path), KEYS_MAX) else { return keys };
    if files.is_empty() {
        let why = "contains no keys: add a file for each; its name is the key's name in metrics";
        r.note(directory, why, true); // its volume may not be mounted yet
    }
    for (name, path) in &files {
        let date = |dates: &Dates| dates.iter().find(|(of, ..)| of == name).and_then(|(.., date)| *date);
        let validity = Validity { not_before: date(&not_before), not_after: date(&not_after) };
        check_order(r, &format!("{place}.not_after.{name:?}"), validity);
        keys.places.push((name.clone(), format!("the file {}", path.display())));
        if let Some(why) = bad_name(name) {
            r.mistake(directory, &format!("a file's name {why}"));
        } else if let Some(secret) = r.secret_in(directory, name, path) {
            keys.add(r, directory, &format!("{name} "), (name.clone(), secret, validity));
        }
    }
    let names = || files.iter().map(|(name, _)| name.as_str());
    for (name, key, _) in not_before.iter().chain(&not_after).filter(|(of, ..)| !names().any(|name| name == of)) {
        let hint = nearest(name, names()).map(|name| format!("; did you mean {name:?}?")).unwrap_or_default();
        r.warn(key, &format!("the directory has no such key{hint}"));
    }
    keys
}

/// Names of keys, each with the key of the configuration that dates it.
type Dates = Vec<(String, String, Option<Timestamp>)>;

fn dates(r: &mut Reader, table: &str) -> Dates {
    let names = r.names(table);
    names.into_iter().map(|(name, key)| (name, key.clone(), r.optional_instant(&key))).collect()
}

fn check_order(r: &mut Reader, key: &str, Validity { not_before, not_after }: Validity) {
    if not_before.zip(not_after).is_some_and(|(from, until)| until <= from) {
        r.mistake(key, "is not later than not_before: the key would never be valid");
    }
}

fn bad_name(name: &str) -> Option<&'static str> {
    let is_right = (1..=64).contains(&name.len()) && !name.contains(char::is_control);
    (!is_right).then_some("must be a text of 1 to 64 bytes; metrics and the log show it")
}

impl Keys {
    /// Adds a key whose length will do, and that is not there yet. `holder` goes before what is said of it.
    fn add(&mut self, r: &mut Reader, place: &str, holder: &str, key: (String, SecretString, Validity)) {
        let secret = key.1.expose_secret();
        let (least, enough) = KEY_BYTES;
        if secret.len() < least {
            r.mistake(place, &format!("{holder}has fewer than {least} bytes and could be guessed"));
        } else if secret.len() < enough {
            r.warn(place, &format!("{holder}has fewer than {enough} bytes; a longer key is harder to guess"));
        }
        if let Some((other, ..)) = self.secrets.iter().find(|(_, other, _)| other.expose_secret() == secret) {
            let other = if self.directory.is_none() { "an earlier one".to_owned() } else { other.clone() };
            r.mistake(place, &format!("{holder}is the same key as {other}"));
        }
        self.secrets.push(key);
    }
}
