//! What `config/default.toml` says of each key: its comments as descriptions, and the examples in them.
//!
//! A comment stands above its key or table. Lines in it that are indented show keys which have no default, with a comment of their own
//! at their end, or the sentences before them. They are in the table that is shown before them, else in the one that follows, else in the
//! one that they are in themselves.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::DEFAULTS;
use super::flat::{Segment, flat, join, segments};

/// By key, with `[]` for the numbers of array elements.
#[derive(Debug, Default)]
pub struct Reference {
    descriptions: BTreeMap<String, String>,
    examples: BTreeMap<String, toml::Value>,
}

pub fn reference() -> &'static Reference {
    static REFERENCE: LazyLock<Reference> = LazyLock::new(|| Reference::read(DEFAULTS));
    &REFERENCE
}

/// `apps[0].name` → `apps[].name`.
fn general(key: &str) -> String {
    segments(key).into_iter().fold(String::new(), |key, segment| match segment {
        Segment::Name(name) => join(&key, &name),
        Segment::Index(_) => key + "[]",
    })
}

impl Reference {
    pub fn description(&self, key: &str) -> Option<&str> {
        self.descriptions.get(&general(key)).map(String::as_str)
    }

    /// A value that is right, as TOML.
    pub fn example(&self, key: &str) -> Option<String> {
        self.examples.get(&general(key)).map(toml::Value::to_string)
    }

    pub fn example_value(&self, key: &str) -> Option<&toml::Value> {
        self.examples.get(&general(key))
    }

    fn read(text: &str) -> Self {
        let (mut reference, mut comment) = (Self::default(), Vec::new());
        let (mut table, mut last) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(text) = line.strip_prefix('#') {
                comment.push(text);
                continue;
            }
            let header = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            if let Some(header) = header {
                header.clone_into(&mut table);
                last.clear();
                reference.take_examples(&comment, &table);
                reference.describe(&table, &sentences(&comment));
            } else if let Some((name, _)) = line.split_once(" = ") {
                reference.take_examples(&comment, &table);
                // Keys that share a comment follow one another.
                if !comment.is_empty() {
                    let own = comment.rsplit(|line| is_shown(line)).next();
                    last = own.map(sentences).unwrap_or_default();
                }
                let key = segments(name).into_iter().fold(table.clone(), |key, segment| match segment {
                    Segment::Name(name) => join(&key, &name),
                    Segment::Index(_) => key,
                });
                reference.describe(&key, &last);
            } else {
                reference.take_examples(&comment, &table);
            }
            comment.clear();
        }
        reference
    }

    fn describe(&mut self, key: &str, description: &str) {
        if !description.is_empty() {
            self.descriptions.entry(key.to_owned()).or_insert_with(|| description.to_owned());
        }
    }

    /// Reads the keys that a comment shows.
    fn take_examples(&mut self, comment: &[&str], table: &str) {
        let (mut table, mut lines, mut before) = (table.to_owned(), comment.iter().peekable(), Vec::new());
        while let Some(line) = lines.next() {
            let Some(shown) = line.strip_prefix(SHOWN) else {
                before.push(*line);
                continue;
            };
            let said = sentences(&std::mem::take(&mut before));
            if let Some(header) = shown.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
                table = format!("{header}[]");
            } else if let Some(header) = shown.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                table = header.replace("apps.", "apps[].");
            } else if let Some((name, rest)) = shown.split_once(" = ").filter(|(name, _)| is_name(name)) {
                let (value, mut description) = match rest.split_once(" # ") {
                    Some((value, description)) => (value.trim(), description.to_owned()),
                    None => (rest.trim(), said),
                };
                // Its comment may go on, on lines that have nothing else.
                while let Some(more) = lines.peek().and_then(|line| line.trim_start().strip_prefix("# ")) {
                    description.push(' ');
                    description.push_str(more);
                    lines.next();
                }
                let key = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
                self.describe(&key, &description);
                self.take_example(&key, value);
            }
        }
    }

    /// One with an ellipsis, or that goes on on further lines, is none.
    fn take_example(&mut self, key: &str, value: &str) {
        let parsed = format!("x = {value}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("x"));
        let Some(value) = parsed.filter(|value| !value.to_string().contains('…')) else { return };
        let whole: toml::Table = [("x".to_owned(), value.clone())].into_iter().collect();
        for (path, value) in flat(whole) {
            self.examples.entry(general(&path.replacen('x', key, 1))).or_insert(value);
        }
        self.examples.entry(key.to_owned()).or_insert(value);
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Begins what a comment shows.
const SHOWN: &str = "   ";

fn is_shown(line: &str) -> bool {
    line.starts_with(SHOWN)
}

/// The sentences of a comment, without what it shows.
fn sentences(comment: &[&str]) -> String {
    let lines = comment.iter().filter(|line| !is_shown(line)).map(|line| line.trim());
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
