//! JSON (RFC 8259), checked and read in one go, without building a tree.
//!
//! What serde_json takes for JSON is JSON here, and nothing else is: the tests hold the two against each other. Nesting has
//! no limit, because nothing here calls itself for what it does not look into.

use std::borrow::Cow;

/// The text is no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson;

/// The text of a raw JSON string. `None` for any other value, and for lone surrogates, which are no text.
pub fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(raw).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

/// Whether `text` is a value of JSON and nothing else, without space around it.
pub fn is_json(text: &str) -> bool {
    value_end(text.as_bytes(), 0) == Some(text.len())
}

/// The name of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// Where it begins, in the text that is walked through.
    pub at: usize,
    /// Decoded; `None` where it has a lone surrogate, and is no text.
    pub text: Option<Cow<'a, str>>,
}

/// A walk through an object: [`Members::name`], then one of [`Members::value`] and [`Members::object`], and so on.
pub struct Members<'a> {
    /// What the walk began with.
    text: &'a str,
    /// Before a comma, a value, or the end of the object; past its end once it was reached.
    at: usize,
    is_first: bool,
}

impl<'a> Members<'a> {
    /// A walk through the object that `text` begins with, if so.
    pub fn of(text: &'a str) -> Option<Self> {
        text.starts_with('{').then_some(Self { text, at: 1, is_first: true })
    }

    /// A walk that stands before the value that `text` is, as if it had just passed a name.
    pub fn before(text: &'a str) -> Self {
        Self { text, at: 0, is_first: false }
    }

    /// The next name; `None` at the end.
    pub fn name(&mut self) -> Result<Option<Name<'a>>, NotJson> {
        let bytes = self.text.as_bytes();
        let mut start = past_space(bytes, self.at);
        match bytes.get(start) {
            Some(b'}') => {
                self.at = start + 1;
                return Ok(None);
            }
            Some(b',') if !self.is_first => start = past_space(bytes, start + 1),
            Some(_) if self.is_first => self.is_first = false,
            _ => return Err(NotJson),
        }
        let (end, is_plain) = string_end(bytes, start).ok_or(NotJson)?;
        self.at = past_colon(bytes, end).ok_or(NotJson)?;
        let text = if is_plain {
            self.text.get(start + 1..end - 1).map(Cow::Borrowed)
        } else {
            self.text.get(start..end).and_then(string)
        };
        Ok(Some(Name { at: start, text }))
    }

    /// The value behind the name.
    pub fn value(&mut self) -> Result<&'a str, NotJson> {
        let start = self.at;
        self.at = value_end(self.text.as_bytes(), start).ok_or(NotJson)?;
        self.text.get(start..self.at).ok_or(NotJson)
    }

    /// The same, with its members shown to `walk`, which goes through all of them. Any other value than an object has no members.
    pub fn object(&mut self, walk: impl FnOnce(&mut Self) -> Result<(), NotJson>) -> Result<&'a str, NotJson> {
        let start = self.at;
        if self.text.as_bytes().get(start) != Some(&b'{') {
            return self.value();
        }
        let mut inner = Members { text: self.text, at: start + 1, is_first: true };
        walk(&mut inner)?;
        self.at = inner.at;
        self.text.get(start..self.at).ok_or(NotJson)
    }

    /// Whether nothing stands behind the object, whose end was reached.
    pub fn is_over(&self) -> bool {
        self.at == self.text.len()
    }
}

fn past_space(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = bytes.get(at) {
        at += 1;
    }
    at
}

/// Where the value begins whose name has ended at `from`.
fn past_colon(bytes: &[u8], from: usize) -> Option<usize> {
    let colon = past_space(bytes, from);
    (*bytes.get(colon)? == b':').then(|| past_space(bytes, colon + 1))
}

/// Past the closing quote of the string that opens at `start`, and whether it has no escapes.
fn string_end(bytes: &[u8], start: usize) -> Option<(usize, bool)> {
    if *bytes.get(start)? != b'"' {
        return None;
    }
    let (mut at, mut is_plain) = (start + 1, true);
    loop {
        at += special(bytes.get(at..)?)?;
        match bytes[at] {
            b'"' => return Some((at + 1, is_plain)),
            b'\\' => at += escape(&bytes[at..])?,
            _ => return None, // a control character
        }
        is_plain = false;
    }
}

/// The length of the escape that `bytes` begin with.
fn escape(bytes: &[u8]) -> Option<usize> {
    match bytes.get(1)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(2),
        b'u' => bytes.get(2..6)?.iter().all(u8::is_ascii_hexdigit).then_some(6),
        _ => None,
    }
}

/// Where the first quote, backslash or control character is. Most strings are short and are looked at eight bytes at a time;
/// what is longer in blocks, for which the compiler has wide registers.
fn special(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH: u64 = ONES << 7;
    const QUOTES: u64 = ONES * b'"' as u64;
    const BACKSLASHES: u64 = ONES * b'\\' as u64;
    const SPACES: u64 = ONES * b' ' as u64;
    const BLOCK: usize = 32;
    // In each, the lowest bit that is set is that of the first byte that was looked for.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let below_space = |word: u64| word.wrapping_sub(SPACES) & !word & HIGH;
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*word);
        let hits = zeros(word ^ QUOTES) | zeros(word ^ BACKSLASHES) | below_space(word);
        if hits != 0 {
            return Some(at + hits.trailing_zeros() as usize / 8);
        }
        at += size_of::<u64>();
        if at.is_multiple_of(BLOCK) {
            let (blocks, _) = bytes[at..].as_chunks::<BLOCK>();
            let has_special = |block: &[u8; BLOCK]| block.iter().fold(false, |any, &b| any | is_special(b));
            at += BLOCK * blocks.iter().position(has_special).unwrap_or(blocks.len());
        }
    }
    Some(at + bytes[at..].iter().position(|&b| is_special(b))?)
}

const fn is_special(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

/// Past the value that starts at `start`.
fn value_end(bytes: &[u8], start: usize) -> Option<usize> {
    match bytes.get(start)? {
        b'"' => Some(string_end(bytes, start)?.0),
        b'{' | b'[' => nested_end(bytes, start),
        _ => scalar_end(bytes, start),
    }
}

/// Where the value begins whose name begins at `start`.
fn past_name(bytes: &[u8], start: usize) -> Option<usize> {
    past_colon(bytes, string_end(bytes, start)?.0)
}

fn nested_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut open = Open::default();
    let mut at = start;
    loop {
        // A value begins here.
        match bytes.get(at)? {
            b'{' => {
                at = past_space(bytes, at + 1);
                open.push(true);
                if *bytes.get(at)? != b'}' {
                    at = past_name(bytes, at)?;
                    continue;
                }
            }
            b'[' => {
                at = past_space(bytes, at + 1);
                open.push(false);
                if *bytes.get(at)? != b']' {
                    continue;
                }
            }
            b'"' => at = string_end(bytes, at)?.0,
            _ => at = scalar_end(bytes, at)?,
        }
        // One has ended, or is about to.
        loop {
            at = past_space(bytes, at);
            match (*bytes.get(at)?, open.is_object()) {
                (b',', true) => {
                    at = past_name(bytes, past_space(bytes, at + 1))?;
                    break;
                }
                (b',', false) => {
                    at = past_space(bytes, at + 1);
                    break;
                }
                (b'}', true) | (b']', false) => {
                    at += 1;
                    if open.pop() {
                        return Some(at);
                    }
                }
                _ => return None,
            }
        }
    }
}

/// Which objects and arrays are open: a bit for each, so that depth costs next to nothing.
#[derive(Default)]
struct Open {
    innermost: u64,
    depth: usize,
    outer: Vec<u64>,
}

impl Open {
    fn push(&mut self, is_object: bool) {
        if self.depth != 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.innermost);
        }
        self.innermost = self.innermost << 1 | u64::from(is_object);
        self.depth += 1;
    }

    /// Whether it was the last.
    fn pop(&mut self) -> bool {
        self.depth -= 1;
        self.innermost >>= 1;
        if self.depth != 0 && self.depth.is_multiple_of(64) {
            self.innermost = self.outer.pop().unwrap_or_default();
        }
        self.depth == 0
    }

    const fn is_object(&self) -> bool {
        self.innermost & 1 == 1
    }
}

/// Past the number, `true`, `false` or `null` that starts at `start`.
fn scalar_end(bytes: &[u8], start: usize) -> Option<usize> {
    let rest = bytes.get(start..)?;
    let word = [&b"null"[..], b"true", b"false"].into_iter().find(|word| rest.starts_with(word));
    word.map_or_else(|| number_end(bytes, start), |word| Some(start + word.len()))
}

fn number_end(bytes: &[u8], start: usize) -> Option<usize> {
    let past_digits = |from: usize| {
        let digits = bytes.get(from..)?.iter().take_while(|b| b.is_ascii_digit()).count();
        (digits > 0).then_some(from + digits)
    };
    let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
    at = if bytes.get(at) == Some(&b'0') { at + 1 } else { past_digits(at)? };
    if bytes.get(at) == Some(&b'.') {
        at = past_digits(at + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        at += 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        at = past_digits(at)?;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    /// Names and raw values of the object that `text` is.
    fn members(text: &str) -> Result<Vec<(Option<String>, &str)>, NotJson> {
        let mut walk = Members::of(text).ok_or(NotJson)?;
        let found = rest(&mut walk)?;
        if walk.is_over() { Ok(found) } else { Err(NotJson) }
    }

    fn rest<'a>(walk: &mut Members<'a>) -> Result<Vec<(Option<String>, &'a str)>, NotJson> {
        let mut found = Vec::new();
        while let Some(name) = walk.name()? {
            found.push((name.text.map(Cow::into_owned), walk.value()?));
        }
        Ok(found)
    }

    fn named(name: &str, value: &'static str) -> (Option<String>, &'static str) {
        (Some(name.to_owned()), value)
    }

    #[test]
    fn members_come_raw_and_in_order() {
        let text = r#"{ "a" : {"x":["}",{"y":"\"}"}]} ,"b\"":[1, 2 ],"c":null, "d" :-1.5e3,"e":"" }"#;
        let found = members(text).expect("JSON");
        let a = r#"{"x":["}",{"y":"\"}"}]}"#;
        let others = [named("b\"", "[1, 2 ]"), named("c", "null"), named("d", "-1.5e3"), named("e", r#""""#)];
        assert_eq!(found[0], named("a", a));
        assert_eq!(found[1..], others);
        let mut walk = Members::of(text).expect("an object");
        let mut inner = Vec::new();
        assert_eq!(walk.name().map(|name| name.map(|name| name.at)), Ok(Some(2)));
        let value = walk.object(|members| {
            inner = rest(members)?;
            Ok(())
        });
        assert_eq!((value, inner), (Ok(a), vec![named("x", r#"["}",{"y":"\"}"}]"#)]));
        assert_eq!(walk.name().map(|name| name.and_then(|name| name.text)), Ok(Some("b\"".into())));
        assert_eq!(walk.object(|_| unreachable!("an array has no members")), Ok("[1, 2 ]"));
        assert_eq!(rest(&mut walk), Ok(others[1..].to_vec()));
        assert_eq!(members(r#"{"\ud800":1}"#), Ok(vec![(None, "1")]));
        assert_eq!((members("{}"), members("{ }")), (Ok(vec![]), Ok(vec![])));
        for other in
            ["[]", "1", "null", "\"{\"", "", "{", "{}}", "{} ", r#"{"a":1,}"#, r#"{,"a":1}"#, r#"{"a":1 "b":2}"#]
        {
            assert_eq!(members(other), Err(NotJson), "{other}");
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
        for length in 0..140 {
            for (text, is_plain) in
                [("é".repeat(length / 2) + &"x".repeat(length % 2), true), ("\\".repeat(length * 2), length == 0)]
            {
                let raw = format!("\"{text}\",\"\"");
                assert_eq!(string_end(raw.as_bytes(), 0), Some((text.len() + 2, is_plain)), "{raw}");
                assert_eq!(string_end(&raw.as_bytes()[..=text.len()], 0), None, "{raw}");
            }
            for control in ["\0", "\u{1f}", "\n"] {
                let raw = format!("\"{}{control}{}\"", "x".repeat(length), "y".repeat(length));
                assert!(!is_json(&raw), "{raw:?}");
            }
        }
    }

    /// What is JSON, by serde_json; depth costs it nothing there.
    fn is_json_to_serde(text: &str) -> bool {
        text.trim() == text && serde_json::from_str::<IgnoredAny>(text).is_ok()
    }

    #[test]
    fn what_is_nearly_json_is_none() {
        for text in [
            "0",
            "-0",
            "01",
            "-",
            "-a",
            "1.",
            ".5",
            "1.5",
            "1e",
            "1e+",
            "1E-07",
            "1e5.",
            "+1",
            "0x1",
            "1 2",
            "NaN",
            "1e400",
            "true",
            "tru",
            "truee",
            "null1",
            "nul",
            "False",
            "\"",
            "\"\\",
            "\"\\\"",
            r#""\x""#,
            r#""\u12G4""#,
            r#""\u123""#,
            r#""\u1234""#,
            r#""\ud800""#,
            r#""\/\b\f\n\r\t\\""#,
            "\"\u{7f}\u{80}\"",
            "[",
            "[]",
            "[ ]",
            "[,]",
            "[1,]",
            "[1 2]",
            "[1,2",
            "[[]",
            "[]]",
            "[}",
            "{]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{1:2}",
            "{\"a\":[{}]}",
            "{\"a\":{}]",
            "[{\"a\":1},{\"b\":[2,{\"c\":null}]} , 3 ]",
            "\u{feff}1",
            "[1]//",
            "'a'",
        ] {
            assert_eq!(is_json(text), is_json_to_serde(text), "{text}");
        }
    }

    #[test]
    fn brackets_match_at_any_depth() {
        for depth in [1, 63, 64, 65, 128, 129, 1000] {
            let open: String = (0..depth).map(|i| if i % 3 == 0 { "[" } else { "{\"a\":" }).collect();
            let close: String = (0..depth).rev().map(|i| if i % 3 == 0 { "]" } else { "}" }).collect();
            let text = format!("{open}1{close}");
            assert!(is_json(&text), "{depth}");
            for wrong in 0..depth {
                let at = open.len() + 1 + wrong;
                let other = if &text[at..=at] == "]" { "}" } else { "]" };
                assert!(!is_json(&format!("{}{other}{}", &text[..at], &text[at + 1..])), "{depth}: {wrong}");
            }
        }
    }

    /// Pieces of JSON in any order: more often nearly JSON than any text would be.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            8 => proptest::sample::select(vec!["{", "}", "[", "]", ",", ":", " ", "\"", "\\", "\"a\":", "1", "0", "-", ".", "e", "null", "true"]),
            2 => proptest::sample::select(vec!["\"text\"", "\"\\u00e9\"", "\\u", "é", "\n", "\t", "{\"b\":2}", "[3]", "x"]),
        ];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            any::<Option<bool>>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            ".{0,80}".prop_map(Into::into)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::btree_map(".{0,8}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn json_is_what_serde_takes_for_json(text in prop_oneof![pieces(), ".*"]) {
            prop_assert_eq!(is_json(&text), is_json_to_serde(&text));
        }

        #[test]
        fn a_walk_goes_through_what_is_an_object_and_through_nothing_else(text in pieces()) {
            let text = format!("{{{text}");
            prop_assert_eq!(members(&text).is_ok(), is_json(&text));
        }

        #[test]
        fn json_with_a_byte_changed_is_what_serde_takes_it_for(value in value(), at in any::<proptest::sample::Index>(), put in "[ -~\n]?") {
            let text = serde_json::to_string(&value).expect("JSON");
            prop_assert!(is_json(&text));
            let at = at.index(text.len());
            prop_assume!(text.is_char_boundary(at) && text.is_char_boundary(at + 1));
            let changed = format!("{}{put}{}", &text[..at], &text[at + 1..]);
            prop_assert_eq!(is_json(&changed), is_json_to_serde(&changed), "{}", changed);
        }

        #[test]
        fn every_object_is_seen_as_serde_sees_it(names in proptest::collection::btree_map(".{0,8}", ".{0,48}", 0..8)) {
            let text = serde_json::to_string(&names).expect("a map of text is JSON");
            let seen: BTreeMap<_, _> = members(&text)
                .expect("JSON")
                .into_iter()
                .map(|(n, v)| (n.expect("text"), string(v).expect("text").into_owned()))
                .collect();
            prop_assert_eq!(seen, names);
        }
    }
}
