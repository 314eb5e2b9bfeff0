//! Where each value comes from: the defaults, a line of the file, or a variable.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::flat::Lines;

#[derive(Clone, Debug, Default)]
pub struct Origins {
    pub file: Option<PathBuf>,
    pub lines: Lines,
    /// The variables that have set keys, by key.
    pub variables: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    Default,
    Line(usize),
    Variable(&'a str),
}

/// Where a mistake has to be corrected. Sorted as one reads a file; what is missing from it comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Line(usize),
    File,
    Environment,
}

impl Origins {
    pub fn of(&self, key: &str) -> Origin<'_> {
        let line = || self.lines.get(key).map(|line| Origin::Line(*line));
        self.variables.get(key).map(|name| Origin::Variable(name)).or_else(line).unwrap_or(Origin::Default)
    }

    /// Of a key that is missing: the table that it is missing from.
    pub fn place(&self, key: &str) -> Place {
        if self.file.is_none() || self.variables.contains_key(key) {
            return Place::Environment;
        }
        let tables = key.rmatch_indices(['.', '[']).map(|(at, _)| &key[..at]);
        let mut lines = std::iter::once(key).chain(tables).filter_map(|key| self.lines.get(key));
        lines.next().map_or(Place::File, |line| Place::Line(*line))
    }
}
