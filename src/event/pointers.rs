//! Finds what an action's pointers lead to while serde_json reads the payload.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::actions::{POINTERS_MAX, Pointer};
use super::json;

/// For each pointer of an action, in order: the raw value that it leads to, if the payload has one.
pub(super) type Found<'a> = [Option<&'a str>; POINTERS_MAX];

/// Reads an object of the payload, and the objects within it that pointers lead through. Everything else is skipped, which
/// takes no stack, however deep it is nested.
pub(super) struct Walk<'w, 'a> {
    /// The text that serde_json reads.
    pub(super) text: &'a str,
    pub(super) pointers: &'w [Pointer],
    /// The names that lead from the payload to this object.
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
            // The pointer that ends at this member, and one that goes on into it.
            let (mut ends, mut goes_on) = (None, None);
            for (i, (_, pointer)) in pointers.iter().enumerate() {
                let Some([next, rest @ ..]) = pointer.strip_prefix(path) else { continue };
                if name.as_deref() == Some(next) {
                    found[i] = None; // if a member occurs twice, the last one counts, as for most parsers
                    *if rest.is_empty() { &mut ends } else { &mut goes_on } = Some(i);
                }
            }
            match (ends, goes_on) {
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
