//! Keys and variables that set nothing, each with what was probably meant.

use std::collections::BTreeSet;

use toml::Value;

use super::{FILE_VARIABLE, PREFIX, Reader};
use crate::config::flat::nearest;
use crate::config::origins::{Origin, Place};
use crate::config::shape::Shape;

impl Reader {
    /// Keys that are set and were not asked for, each with what was probably meant.
    pub fn unknown_keys(&mut self) {
        let tables =
            |key: &String| key.match_indices(['.', '[']).map(|(at, _)| key[..at].to_owned()).collect::<Vec<_>>();
        let asked = || self.asked.keys();
        let known: BTreeSet<String> = asked().flat_map(tables).chain(asked().cloned()).collect();
        for (key, value) in self.values.clone() {
            let is_empty = value.as_table().is_some_and(toml::Table::is_empty) || value == Value::Array(Vec::new());
            if self.asked.contains_key(&key) || (is_empty && known.contains(&key)) {
                continue;
            }
            if known.contains(&key) {
                self.mistake(&key, &format!("must be a table: [{key}]"));
                continue;
            }
            // Of an unknown table its name is enough.
            let ends = key.match_indices('.').map(|(at, _)| at).chain([key.len()]);
            let unknown = ends.map(|end| &key[..end]).find(|part| !known.contains(*part)).unwrap_or(&key);
            // The index of an array says nothing of what it is.
            let name = unknown.strip_suffix(']').and_then(|rest| Some(rest.rsplit_once('[')?.0)).unwrap_or(unknown);
            let elsewhere = unknown.split_once('.').map(|(_, key)| key).filter(|key| known.contains(*key));
            let hint = elsewhere.map(|key| format!("`{key}` belongs above the first [table] of the file"));
            let is_telling = name.rsplit('.').next().is_some_and(|last| last.len() > 2);
            let longer = || known.iter().map(String::as_str).find(|known| is_telling && known.starts_with(name));
            let hint = hint.or_else(|| {
                let near = nearest(name, known.iter().map(String::as_str)).or_else(longer)?;
                let is_array = self.asked.get(near) == Some(&Shape::Array) && !near.contains('.');
                Some(if is_array { format!("did you mean `[[{near}]]`?") } else { format!("did you mean `{near}`?") })
            });
            let hint = hint.unwrap_or_else(|| "`livechat-relay config default` prints all keys".to_owned());
            let (variable, place) = match self.origins.of(&key) {
                Origin::Variable(name) => (format!("{name}: "), Place::Environment),
                _ => (String::new(), self.origins.place(unknown)),
            };
            self.add(place, format!("{variable}unknown key `{unknown}`; {hint}"), false);
        }
    }

    /// Variables that look like ours and set nothing.
    pub fn unknown_variables(&mut self) {
        let own = self.asked.keys().map(|key| format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__")));
        let own: Vec<String> = own.chain([FILE_VARIABLE.to_owned()]).collect();
        for name in self.environment.keys().map(|name| name.to_string_lossy()) {
            // Kubernetes gives every container such variables of each service, one named livechat-relay included.
            let is_of_kubernetes = name.contains("_SERVICE_") || name.contains("_PORT");
            let is_like_ours =
                name.starts_with("LIVECHAT_RELAY_") && !name.starts_with(PREFIX) && name != FILE_VARIABLE;
            if is_like_ours && !is_of_kubernetes {
                let hint = nearest(&name, own.iter().map(String::as_str));
                let hint = hint.map(|own| format!("; did you mean {own}?")).unwrap_or_default();
                self.remarks.warnings.push(format!("{name}: the relay does not read this variable{hint}"));
            }
        }
        if self.environment.contains_key(std::ffi::OsStr::new("RUST_LOG")) {
            self.remarks
                .warnings
                .push("RUST_LOG: is not read; set log.filter, or LIVECHAT_RELAY__LOG__FILTER".to_owned());
        }
    }
}
