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

/// A string of JSON that is no text: it has a lone surrogate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotText;

/// The members of a raw JSON object as (decoded name, raw value), in their order. Empty for any other value.
pub fn members(raw: &str) -> Members<'_> {
    let at = if raw.starts_with('{') { 1 } else { raw.len() };
    Members { raw, at }
}

/// A walk through an object: [`Members::name`], then one of [`Members::value`] and [`Members::object`], and so on.
pub struct Members<'a> {
    /// The outermost object that is walked through.
    raw: &'a str,
    /// Before a name, a value, or the end of the object; past its end once it was reached.
    at: usize,
}

impl<'a> Members<'a> {
    /// The next name; `None` at the end.
    pub fn name(&mut self) -> Option<Result<Cow<'a, str>, NotText>> {
        let bytes = self.raw.as_bytes();
        let start = skip_to(bytes, self.at, |b| b == b'"' || b == b'}')?;
        if bytes[start] == b'}' {
            self.at = start + 1;
            return None;
        }
        let (end, is_plain) = string_end(bytes, start)?;
        self.at = skip_to(bytes, end, |b| b != b':' && !b.is_ascii_whitespace())?;
        Some(if is_plain {
            Ok(Cow::Borrowed(self.raw.get(start + 1..end - 1)?))
        } else {
            string(self.raw.get(start..end)?).ok_or(NotText)
        })
    }

    /// The value behind the name.
    pub fn value(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.at = value_end(self.raw.as_bytes(), start)?;
        self.raw.get(start..self.at)
    }

    /// The same, with its members shown to `walk`, which goes through all of them: what is walked through is not searched for
    /// its end before. Any other value than an object has no members.
    pub fn object(&mut self, walk: impl FnOnce(&mut Self)) -> Option<&'a str> {
        let start = self.at;
        if self.raw.as_bytes().get(start) != Some(&b'{') {
            return self.value();
        }
        let mut inner = Members { raw: self.raw, at: start + 1 };
        walk(&mut inner);
        self.at = inner.at;
        self.raw.get(start..self.at)
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (Result<Cow<'a, str>, NotText>, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.name()?, self.value()?))
    }
}

fn skip_to(bytes: &[u8], from: usize, wanted: impl Fn(u8) -> bool) -> Option<usize> {
    Some(from + bytes.get(from..)?.iter().position(|&b| wanted(b))?)
}

/// Past the closing quote of the string that opens at `start`, and whether it has no escapes.
fn string_end(bytes: &[u8], start: usize) -> Option<(usize, bool)> {
    let (mut at, mut is_plain) = (start + 1, true);
    loop {
        at += quote_or_backslash(bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some((at + 1, is_plain));
        }
        at += 2; // the backslash and what it escapes, be it a quote or another backslash
        is_plain = false;
    }
}

/// The first 32 bytes eight at a time: most strings are shorter than a call of `memchr` is worth.
fn quote_or_backslash(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    const QUOTES: u64 = u64::from_ne_bytes([b'"'; 8]);
    const BACKSLASHES: u64 = u64::from_ne_bytes([b'\\'; 8]);
    const SHORT: usize = 4;
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7); // the lowest bit set is that of the first zero byte
    let (words, _) = bytes.as_chunks::<8>();
    let words = &words[..words.len().min(SHORT)];
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let hits = zeros(word ^ QUOTES) | zeros(word ^ BACKSLASHES);
        if hits != 0 {
            return Some(8 * i + hits.trailing_zeros() as usize / 8);
        }
    }
    let rest = 8 * words.len();
    Some(rest + memchr::memchr2(b'"', b'\\', &bytes[rest..])?)
}

/// Past the value that starts at `start`; nesting is counted, so that depth costs nothing.
fn value_end(bytes: &[u8], start: usize) -> Option<usize> {
    match bytes.get(start)? {
        b'"' => Some(string_end(bytes, start)?.0),
        b'{' | b'[' => {
            let (mut at, mut depth) = (start, 0_usize);
            loop {
                match bytes.get(at)? {
                    b'"' => {
                        at = string_end(bytes, at)?.0;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth == 1 => return Some(at + 1),
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                at += 1;
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
        let found: Vec<_> = members(raw).map(|(name, value)| (name.expect("text").into_owned(), value)).collect();
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(
            found,
            [("a", r#"{"x":["}",{"y":"\"}"}]}"#), ("b\"", "[1, 2 ]"), ("c", "null"), ("d", "-1.5e3"), ("e", r#""""#)]
        );
        let mut walk = members(raw);
        let mut inner = Vec::new();
        assert_eq!(walk.name(), Some(Ok("a".into())));
        let value = walk.object(|members| inner.extend(members.map(|(name, value)| (name.expect("text"), value))));
        assert_eq!((value, inner), (Some(found[0].1), vec![("x".into(), r#"["}",{"y":"\"}"}]"#)]));
        assert_eq!(walk.name(), Some(Ok("b\"".into())));
        assert_eq!(walk.object(|_| unreachable!("an array has no members")), Some("[1, 2 ]"));
        assert_eq!(walk.count(), 3);
        assert_eq!(members(r#"{"\ud800":1}"#).next(), Some((Err(NotText), "1")));
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

    #[test]
    fn a_string_ends_at_its_quote_however_long_it_is() {
        for length in 0..80 {
            for (text, is_plain) in
                [("é".repeat(length / 2) + &"x".repeat(length % 2), true), ("\\".repeat(length * 2), length == 0)]
            {
                let raw = format!("\"{text}\",\"\"");
                assert_eq!(string_end(raw.as_bytes(), 0), Some((text.len() + 2, is_plain)), "{raw}");
                assert_eq!(string_end(&raw.as_bytes()[..=text.len()], 0), None, "{raw}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".*") {
            members(&text).for_each(drop);
            let mut walk = members(&text);
            while walk.name().is_some() && walk.object(|inner| inner.for_each(drop)).is_some() {}
            let _ = string(&text);
        }

        #[test]
        fn every_object_is_seen_as_serde_sees_it(names in proptest::collection::btree_map(".{0,8}", ".{0,48}", 0..8)) {
            let text = serde_json::to_string(&names).expect("a map of text is JSON");
            let seen: std::collections::BTreeMap<_, _> = members(&text)
                .map(|(n, v)| (n.expect("text").into_owned(), string(v).expect("text").into_owned()))
                .collect();
            prop_assert_eq!(seen, names);
        }
    }
}
