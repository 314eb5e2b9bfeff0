//! Secrets, and what else stands in the files and variables that the configuration names.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use toml::Value;

use super::Reader;
use super::values::{kind, scalar};
use crate::config::Need;
use crate::config::flat::{PLACES, PROPERTIES};
use crate::config::reload::digest;
use crate::config::shape::Shape;

/// Bytes of a file at most. The configuration and the secrets have a few kB, bundles of CA certificates 300 kB; one that names a device
/// has no end, and must not take the memory of a running relay.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The most names of files that one remark has.
const NAMES_SHOWN: usize = 8;

const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;

impl Reader {
    /// A secret that must be there: a text, or a table that says where it stands. `None` where it is wrong, which is a mistake, or
    /// where the command does not need it.
    pub fn secret(&mut self, key: &str) -> Option<SecretString> {
        let (place, text) = self.place(key)?;
        if !self.needs(key) {
            return None;
        }
        let holder = self.holder(key);
        let text = match place.strip_prefix(key) {
            Some(".file") => self.file(&place, Path::new(&text))?,
            Some(".env") => self.variable(&place, &text)?,
            _ => text,
        };
        let is_pem = key.starts_with(PROPERTIES) && key.ends_with(".pem\"");
        trimmed(&text, is_pem).map_err(|why| self.mistake(&place, &format!("{holder}{why}"))).ok()
    }

    /// What holds a secret that does not stand in the configuration itself, for what is said of it.
    pub fn holder(&self, key: &str) -> String {
        let text = |place: &str| self.values.get(&format!("{key}.{place}")).and_then(Value::as_str);
        match (text("file"), text("env")) {
            (Some(_), _) => "the file ".to_owned(),
            (None, Some(name)) => format!("the environment variable {} ", shown(name)),
            (None, None) => String::new(),
        }
    }

    /// The key at which a secret or its place stands, and the text there.
    fn place(&mut self, key: &str) -> Option<(String, String)> {
        let keys = PLACES.map(|place| format!("{key}.{place}")).into_iter().chain([key.to_owned()]);
        let is_property = key.starts_with(PROPERTIES);
        let shape = |place: &str| match place {
            _ if place == key && is_property => Shape::Property,
            _ if place == key => Shape::Secret,
            _ if is_property && place.strip_suffix(".value").is_some() => Shape::Scalar,
            _ => Shape::text(),
        };
        self.asked.extend(keys.clone().map(|place| (place.clone(), shape(&place))));
        let mut found = keys.filter(|key| self.values.contains_key(key));
        let (place, another) = (found.next(), found.next());
        let Some(place) = place.filter(|_| another.is_none()) else {
            let why = if another.is_some() {
                "has more than one of file, env and value; keep one"
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

    /// As [`Reader::optional_secret`], for one that calls to LiveChat need. A relay that runs makes some of them: whether it `is_used` there.
    pub fn secret_for_livechat(&mut self, key: &str, is_used: bool) -> Option<SecretString> {
        if is_used || matches!(self.need, Need::LiveChat | Need::Registration) {
            return self.optional_secret(key);
        }
        self.asked.insert(key.to_owned(), Shape::Secret);
        if self.has(key) {
            self.place(key);
        }
        None
    }

    /// As [`Reader::secret`], for one that may be absent.
    pub fn optional_secret(&mut self, key: &str) -> Option<SecretString> {
        self.asked.insert(key.to_owned(), Shape::Secret);
        if self.has(key) { self.secret(key) } else { None }
    }

    fn file(&mut self, key: &str, path: &Path) -> Option<String> {
        let read = text_of(path).inspect(|text| self.remember(key, path, text.as_bytes()));
        read.map_err(|e| self.note(key, &unreadable(path, &e), may_pass(&e))).ok()
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
            self.remarks.ignored.push(format!("{key}: these are ignored: {names}{more}"));
        }
        files.sort();
        Some(files)
    }

    /// As [`Reader::secret`], from a file of a directory.
    pub fn secret_in(&mut self, key: &str, name: &str, path: &Path) -> Option<SecretString> {
        // Whatever else is there, such as a pipe, might keep us waiting.
        let wrong = std::fs::metadata(path).ok().and_then(|file| match file.len() {
            _ if !file.is_file() => Some("is not a regular file"),
            0..=SECRET_FILE_BYTES_MAX => None,
            _ => Some("is larger than 64 KiB, so it cannot be a secret key"),
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
        let shown = shown(name);
        let text = value.ok_or_else(|| format!("the environment variable {shown} is not set"));
        let not_utf8 = || format!("the environment variable {shown} is not UTF-8");
        let text = text.and_then(|value| value.to_str().ok_or_else(not_utf8)).map(str::to_owned);
        text.map_err(|why| self.mistake(key, &why)).ok()
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
                self.note(key, &unreadable(path, &e), may_pass(&e));
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
            Err(e) => self.note(key, &unreadable(path, &e), may_pass(&e)),
        }
    }
}

/// What is no name of a variable may be the secret itself, in the wrong place.
fn shown(name: &str) -> &str {
    let is_name = name.contains('_') && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    if is_name { name } else { "of this name" }
}

/// The path itself stays untold: it may be a secret that stands in the wrong place.
fn unreadable(path: &Path, error: &io::Error) -> String {
    let from = std::env::current_dir().ok().filter(|_| path.is_relative());
    let from = from.map(|directory| format!(" (its path is relative to {})", directory.display())).unwrap_or_default();
    format!("the file cannot be read: {error}{from}")
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
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 4 MiB"));
    }
    Ok(bytes)
}

pub fn text_of(path: &Path) -> io::Result<String> {
    String::from_utf8(content_of(path)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Whether a file may be readable at another try: a mount that is late, a secret that is being replaced.
pub fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidData, InvalidFilename, InvalidInput, IsADirectory};
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
