//! Raw JSON beside serde_json: the text of a raw string, and where a raw value is in the text around it.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

/// JSON's white space (RFC 8259 2).
pub const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];
const SPACE_AND_COLON: [char; 5] = [' ', '\t', '\n', '\r', ':'];
const SPACE_AND_COMMA: [char; 5] = [' ', '\t', '\n', '\r', ','];

/// The text of a raw JSON string, borrowed where it has no escapes. `None` for any other value, and for lone surrogates,
/// which JSON allows and Unicode does not.
pub fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(raw).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

/// Where `part` begins in `text`, of which it is a part.
pub fn offset(text: &str, part: &str) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize
}

/// Whether the value of the member with this name is an object. The name was read from `text`, and its value follows.
pub fn is_object(text: &str, name: &RawValue) -> bool {
    let name_end = offset(text, name.get()) + name.get().len();
    text[name_end..].trim_start_matches(SPACE_AND_COLON).starts_with('{')
}

/// The raw value between the end of its name and the start of the next name, or the end of the object.
pub fn value_between(text: &str, name_end: usize, next: usize) -> &str {
    text[name_end..next].trim_start_matches(SPACE_AND_COLON).trim_end_matches(SPACE_AND_COMMA)
}

/// The members of an object, raw, the last one of a name as most parsers have it; none of anything else.
pub fn object(raw: &str) -> HashMap<String, &RawValue> {
    serde_json::from_str(raw).unwrap_or_default()
}

/// The items of an array, raw; none of anything else.
pub fn list(raw: Option<&RawValue>) -> Vec<&RawValue> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
}

/// A member that is a text.
pub fn text<'a>(object: &HashMap<String, &'a RawValue>, name: &str) -> Option<Cow<'a, str>> {
    object.get(name).and_then(|raw| string(raw.get()))
}

/// An object of raw values, in this order; those that are absent are left out.
pub fn members<const N: usize>(members: [(&str, Option<&str>); N]) -> String {
    let members = members.iter().filter_map(|(name, raw)| Some(format!("\"{name}\":{}", (*raw)?)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}
