//! Reads single values out of JSON text that a parser has already accepted, without building a tree.
//!
//! What is asked of it is never wrong JSON; were it so, the answers would be `None`, not a panic.

use std::borrow::Cow;

/// The text of a raw JSON string. `None` for any other value, and for lone surrogates, which are no text.
pub fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_some() {
        serde_json::from_str(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// The members of a raw JSON object as (raw name, raw value), in their order. Empty for any other value.
pub fn members(raw: &str) -> Members<'_> {
    let at = if raw.starts_with('{') { 1 } else { raw.len() };
    Members { raw, at }
}

pub struct Members<'a> {
    raw: &'a str,
    at: usize,
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.raw.as_bytes();
        let name = skip_to(bytes, self.at, |b| b == b'"')?;
        let name_end = string_end(bytes, name)?;
        let value = skip_to(bytes, name_end, |b| b != b':' && !b.is_ascii_whitespace())?;
        let value_end = value_end(bytes, value)?;
        self.at = value_end;
        Some((self.raw.get(name..name_end)?, self.raw.get(value..value_end)?))
    }
}

fn skip_to(bytes: &[u8], from: usize, wanted: impl Fn(u8) -> bool) -> Option<usize> {
    Some(from + bytes.get(from..)?.iter().position(|&b| wanted(b))?)
}

/// Past the closing quote of the string that opens at `start`.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at + 1);
        }
        at += 2; // the backslash and what it escapes, be it a quote or another backslash
    }
}

/// Past the value that starts at `start`; nesting is counted, so that depth costs nothing.
fn value_end(bytes: &[u8], start: usize) -> Option<usize> {
    match bytes.get(start)? {
        b'"' => string_end(bytes, start),
        b'{' | b'[' => {
            let (mut at, mut depth) = (start, 0_usize);
            loop {
                at = skip_to(bytes, at, |b| matches!(b, b'"' | b'{' | b'[' | b'}' | b']'))?;
                match bytes[at] {
                    b'"' => {
                        at = string_end(bytes, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    _ => depth -= 1,
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let scalar =
                bytes[start..].iter().position(|&b| matches!(b, b',' | b'}' | b']') || b.is_ascii_whitespace());
            Some(scalar.map_or(bytes.len(), |length| start + length))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_come_raw_and_in_order() {
        let raw = r#"{ "a" : {"x":["}",{"y":"\"}"}]} ,"b\"":[1, 2 ],"c":null, "d" :-1.5e3,"e":"" }"#;
        let found: Vec<_> = members(raw).collect();
        assert_eq!(
            found,
            [
                (r#""a""#, r#"{"x":["}",{"y":"\"}"}]}"#),
                (r#""b\"""#, "[1, 2 ]"),
                (r#""c""#, "null"),
                (r#""d""#, "-1.5e3"),
                (r#""e""#, r#""""#)
            ]
        );
        for other in ["[]", "1", "null", "\"{\"", "{}", "{ }"] {
            assert_eq!(members(other).count(), 0, "{other}");
        }
    }

    #[test]
    fn only_strings_that_are_text_are_strings() {
        assert_eq!(string(r#""a\u0041\n""#).as_deref(), Some("aA\n"));
        for other in [r#""\ud800""#, "1", "null", "{}", "\""] {
            assert_eq!(string(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".*") {
            members(&text).for_each(drop);
            let _ = string(&text);
        }

        #[test]
        fn every_object_is_seen_as_serde_sees_it(names in proptest::collection::btree_map(".{0,8}", ".{0,16}", 0..8)) {
            let text = serde_json::to_string(&names).expect("a map of text is JSON");
            let seen: std::collections::BTreeMap<_, _> = members(&text)
                .map(|(n, v)| (string(n).expect("text").into_owned(), string(v).expect("text").into_owned()))
                .collect();
            prop_assert_eq!(seen, names);
        }
    }
}
