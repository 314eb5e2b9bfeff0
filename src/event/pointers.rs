//! What an action's pointers lead to, found while serde_json reads the payload.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::actions::{POINTERS_MAX, Pointer};
use super::json;

/// For each pointer the raw value that it leads to, if one is there.
pub(super) type Found<'a> = [Option<&'a str>; POINTERS_MAX];

/// Reads an object of the payload, and fills in what pointers lead to there or further down. Its depth is that of the longest
/// pointer; what no pointer leads to is skipped, which takes no stack however deep it is.
pub(super) struct Walk<'w, 'a> {
    /// The text that is read.
    pub(super) text: &'a str,
    pub(super) pointers: &'w [Pointer],
    /// The names that lead from the payload to the object.
    pub(super) path: &'w [&'w str],
    pub(super) found: &'w mut Found<'a>,
}

impl<'a> DeserializeSeed<'a> for Walk<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Walk<'_, 'a> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { text, pointers, path, found } = self;
        while let Some(raw_name) = members.next_key::<&RawValue>()? {
            let name = json::string(raw_name.get());
            let (mut ends, mut longer) = (None, None);
            for (i, (_, pointer)) in pointers.iter().enumerate() {
                let Some([next, rest @ ..]) = pointer.strip_prefix(path) else { continue };
                if name.as_deref() == Some(next) {
                    found[i] = None; // of a member that occurs twice the last one counts, whole, as for most parsers
                    *if rest.is_empty() { &mut ends } else { &mut longer } = Some(i);
                }
            }
            match (ends, longer) {
                (_, Some(i)) if json::is_object(text, raw_name) => {
                    let path = &pointers[i].1[..=path.len()];
                    members.next_value_seed(Walk { text, pointers, path, found })?;
                }
                (Some(i), _) => found[i] = Some(members.next_value::<&RawValue>()?.get()),
                _ => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}
