//! Bytes → [`Delivery`]: serde_json reads the body once and checks all of it. Values are borrowed, and those that the action's
//! pointers lead to are noted on the way.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed as _, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Rejection;
use super::actions::{self, APP_WEBHOOK, Action};
use super::json;
use super::normalize::{Author, Origin};
use super::pointers::{Found, Walk};
use super::route::UNLISTED;

/// How many members the body's object may have. LiveChat's have 7 (API 3.6); the limit bounds what a stranger can make us do.
pub const MEMBERS_MAX: usize = 64;

/// A webhook as it was delivered, not yet verified. Holds the secret key: it has no `Debug`.
pub struct Delivery<'a> {
    /// `secret_key` as delivered, raw.
    pub(super) secret_key: Option<&'a str>,
    pub(super) webhook: Webhook<'a>,
}

/// What a webhook says, without its secret key. Values are raw.
pub(super) struct Webhook<'a> {
    /// The delivered object without its secret key: the bytes before and after it.
    pub(super) data: [&'a str; 2],
    /// The end of the attribute `type`: the action's current name; for an unknown action the delivered name, if it can be one.
    pub(super) name: Cow<'a, str>,
    /// The catalogue's entry for the action.
    pub(super) action: Option<&'static Action>,
    pub(super) payload: &'a str,
    /// What the action's pointers lead to.
    pub(super) found: Found<'a>,
    pub(super) webhook_id: Option<&'a str>,
    pub(super) organization_id: Option<&'a str>,
    pub(super) license_id: Option<&'a str>,
    pub(super) additional_data: Option<&'a str>,
    pub(super) origin: Origin,
    /// Who wrote the event, where something beside the webhook proves it.
    pub(super) author: Option<Author>,
}

/// Reads a webhook out of `body` without copying it.
///
/// # Errors
/// A [`Rejection`] when the body is not a JSON object with an `action` and a `payload`, or has a member twice. To send the same
/// body again does not help.
pub fn receive(body: &[u8]) -> Result<Delivery<'_>, Rejection> {
    let object = Object::read(body)?;
    let action_name = object.value("action").and_then(json::string).ok_or(Rejection::NoAction)?;
    let payload = object.value("payload").ok_or(Rejection::NoPayload)?;
    let found = match (object.found, object.action) {
        (Some(found), _) => found,
        (None, Some(action)) => find_afterwards(action, payload)?,
        (None, None) => Found::default(),
    };
    let webhook = Webhook {
        data: object.without("secret_key"),
        name: object.action.map_or_else(|| typed(action_name), |action| action.name.into()),
        action: object.action,
        payload,
        found,
        webhook_id: object.value("webhook_id"),
        organization_id: object.value("organization_id"),
        license_id: object.value("license_id"),
        additional_data: object.value("additional_data"),
        origin: Origin::Delivered,
        author: None,
    };
    Ok(Delivery { secret_key: object.value("secret_key"), webhook })
}

/// As [`receive`], for an App Webhook: another product of LiveChat's, with a body of another shape and no secret key in it. `event` is
/// its `action`.
pub(super) fn receive_app_webhook(body: &[u8]) -> Result<Webhook<'_>, Rejection> {
    let object = Object::read(body)?;
    let event = object.value("event").and_then(json::string).ok_or(Rejection::NoAction)?;
    let mut found = Found::default();
    found[0] = object.value("date");
    Ok(Webhook {
        data: [object.text, ""],
        name: if is_name(&event) { format!("app.{event}").into() } else { UNLISTED.into() },
        action: Some(&APP_WEBHOOK),
        payload: object.value("payload").ok_or(Rejection::NoPayload)?,
        found,
        webhook_id: None,
        organization_id: object.value("organizationID"),
        license_id: object.value("licenseID"),
        additional_data: None,
        origin: Origin::Delivered,
        author: None,
    })
}

/// Where `body` has what it is refused for, in a line for its sender; `None` where the reason says all. It names positions and members that
/// LiveChat documents, and no other part of the body. This reads the body once more: what is refused need not be fast.
pub fn explain(rejection: Rejection, body: &[u8]) -> Option<String> {
    match rejection {
        Rejection::NotUtf8 => {
            let before = std::str::from_utf8(body).err()?.valid_up_to();
            Some(format!("the body is not UTF-8: see byte {}\n", before + 1))
        }
        Rejection::NotJson if body.trim_ascii().is_empty() => {
            Some("the body is empty; send the webhook as JSON\n".to_owned())
        }
        Rejection::NotJson => {
            let error = serde_json::from_slice::<IgnoredAny>(body).err()?;
            let what = if error.is_eof() { "ends before its JSON is complete" } else { "is not JSON" };
            Some(format!("the body {what}: see line {}, column {}\n", error.line(), error.column()))
        }
        Rejection::MemberTwice => {
            let object = Object::parse(body).ok()?;
            let member = duplicate(&object.members)?;
            let text = std::str::from_utf8(body).ok()?;
            let before = &text[..json::offset(text, object.text) + member.range.start];
            let (line, last) = before.split('\n').enumerate().last()?;
            let (line, column) = (line + 1, last.len() + 1);
            let name = DOCUMENTED.iter().find(|name| **name == member.name);
            let name = name.map_or(String::new(), |name| format!(" \"{name}\""));
            Some(format!("duplicate key{name} in the JSON object: see line {line}, column {column}\n"))
        }
        _ => None,
    }
}

/// The members that LiveChat documents, of webhooks and of App Webhooks.
const DOCUMENTED: [&str; 11] = [
    "secret_key",
    "action",
    "payload",
    "webhook_id",
    "organization_id",
    "license_id",
    "additional_data",
    "event",
    "date",
    "organizationID",
    "licenseID",
];

/// An unknown action keeps its name if that looks like LiveChat's names. Any other text must not become part of a `type`.
fn typed(delivered: Cow<'_, str>) -> Cow<'_, str> {
    if is_name(&delivered) { delivered } else { UNLISTED.into() }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// What the action's pointers lead to in a payload that comes before its action, as LiveChat's never does: it is read a second time.
/// A payload that is not an object has nothing to find.
fn find_afterwards<'a>(action: &Action, payload: &'a str) -> Result<Found<'a>, Rejection> {
    let mut found = Found::default();
    if payload.starts_with('{') {
        let walk = Walk { text: payload, pointers: action.pointers, path: &[], found: &mut found };
        let mut json = serde_json::Deserializer::from_str(payload);
        walk.deserialize(&mut json).map_err(|_| Rejection::NotJson)?;
    }
    Ok(found)
}

/// A member of the body's object.
struct Member<'a> {
    /// Decoded.
    name: Cow<'a, str>,
    /// Raw.
    value: &'a str,
    /// From the quote that opens the name to the end of the value.
    range: Range<usize>,
}

/// The object that a body is.
struct Object<'a> {
    /// The body without the white space around it.
    text: &'a str,
    /// In the order of the text. No name occurs twice.
    members: Vec<Member<'a>>,
    /// The catalogue's entry for the member `action`.
    action: Option<&'static Action>,
    /// What the action's pointers lead to, where `payload` is an object that comes after `action`.
    found: Option<Found<'a>>,
}

impl<'a> Object<'a> {
    /// Reads the body, once.
    fn read(body: &'a [u8]) -> Result<Self, Rejection> {
        let object = Self::parse(body)?;
        if object.members.len() > MEMBERS_MAX {
            Err(Rejection::TooManyMembers)
        } else if duplicate(&object.members).is_some() {
            Err(Rejection::MemberTwice)
        } else {
            Ok(object)
        }
    }

    fn parse(body: &'a [u8]) -> Result<Self, Rejection> {
        let text = std::str::from_utf8(body).map_err(|_| Rejection::NotUtf8)?.trim_matches(json::SPACE);
        if !text.starts_with('{') {
            let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
            return Err(if is_json { Rejection::NotAnObject } else { Rejection::NotJson });
        }
        if !text.ends_with('}') {
            return Err(Rejection::NotJson); // `visit_map` relies on it: the last value ends before this brace
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let object = json.deserialize_map(Reader { text }).map_err(|_| Rejection::NotJson)?;
        json.end().map_err(|_| Rejection::NotJson)?;
        Ok(object)
    }

    /// The raw value of a member.
    fn value(&self, name: &str) -> Option<&'a str> {
        self.members.iter().find(|member| member.name == name).map(|member| member.value)
    }

    /// The text without a member, and without one of the commas beside it: what comes before it, and what comes after.
    fn without(&self, name: &str) -> [&'a str; 2] {
        let members = &self.members;
        let Some(i) = members.iter().position(|member| member.name == name) else { return [self.text, ""] };
        let Range { start, end } = members[i].range;
        match (members.get(i + 1), i.checked_sub(1)) {
            (Some(next), _) => [&self.text[..start], &self.text[next.range.start..]],
            (None, Some(previous)) => [&self.text[..members[previous].range.end], &self.text[end..]],
            (None, None) => [&self.text[..start], &self.text[end..]],
        }
    }
}

/// Reads an [`Object`] from `text`.
struct Reader<'a> {
    text: &'a str,
}

impl<'a> Visitor<'a> for Reader<'a> {
    type Value = Object<'a>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Object<'a>, A::Error> {
        let text = self.text;
        let (mut members, mut found, mut action) = (Vec::with_capacity(8), None, None::<&'static Action>);
        let mut next = map.next_key::<&RawValue>()?;
        while let Some(raw_name) = next {
            let name = json::string(raw_name.get()).ok_or_else(|| A::Error::custom("a name is not Unicode"))?;
            match (&*name, action) {
                ("action", _) => {
                    action = json::string(map.next_value::<&RawValue>()?.get()).and_then(|name| actions::find(&name))
                }
                ("payload", Some(action)) if json::is_object(text, raw_name) => {
                    let found = found.insert(Found::default());
                    map.next_value_seed(Walk { text, pointers: action.pointers, path: &[], found })?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            next = map.next_key()?;
            // serde_json gives no raw value of what a seed has read. So the text between two names is the value.
            let start = json::offset(text, raw_name.get());
            let end = next.map_or(text.len() - 1, |next| json::offset(text, next.get()));
            let value = json::value_between(text, start + raw_name.get().len(), end);
            let range = start..json::offset(text, value) + value.len();
            if members.len() <= MEMBERS_MAX {
                members.push(Member { name, value, range }); // one more than allowed is enough to refuse the body
            }
        }
        Ok(Object { text, members, action, found })
    }
}

/// The first member whose name has occurred before. Names are compared decoded: `"action"` and `"\u0061ction"` are the same name to a
/// JSON parser.
fn duplicate<'o, 'a>(members: &'o [Member<'a>]) -> Option<&'o Member<'a>> {
    let has_earlier = |(i, m): &(usize, &Member<'_>)| members[..*i].iter().any(|earlier| earlier.name == m.name);
    members.iter().enumerate().find(has_earlier).map(|(_, member)| member)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn why(body: &[u8]) -> Rejection {
        receive(body).err().expect("rejected")
    }

    #[test]
    fn the_envelope_is_borrowed_not_copied() {
        let body =
            br#" { "webhook_id" : "w", "action":"incoming_event" ,"payload": {"a" : [1, 2]} , "organization_id":"o"} "#;
        let delivery = receive(body).expect("well-formed");
        let webhook = &delivery.webhook;
        assert!(matches!(webhook.name, Cow::Borrowed("incoming_event")));
        assert_eq!(webhook.payload, r#"{"a" : [1, 2]}"#);
        assert_eq!(webhook.webhook_id, Some(r#""w""#));
        assert_eq!(webhook.organization_id, Some(r#""o""#));
        assert!(webhook.license_id.is_none() && delivery.secret_key.is_none());
    }

    #[test]
    fn each_malformed_body_has_its_reason() {
        assert_eq!(why(b"{\"action\":\"\xff\",\"payload\":{}}"), Rejection::NotUtf8);
        for not_json in [
            "",
            " ",
            "{",
            "nul",
            r#"{"action":"a","payload":{}"#,
            r#"{"action":"a","payload":{}} x"#,
            r#"{"action" "a"}"#,
            r#"{"action":"a","payload":{},}"#,
            r#"{"action":"a","payload":{"b":01}}"#,
            r#"{"payload":{"id":tru},"action":"agent_created"}"#,
            "[",
        ] {
            assert_eq!(why(not_json.as_bytes()), Rejection::NotJson, "{not_json}");
        }
        for other in ["[]", "1", "null", "\"text\"", "true"] {
            assert_eq!(why(other.as_bytes()), Rejection::NotAnObject, "{other}");
        }
        for action in [
            "{}",
            r#"{"payload":{}}"#,
            r#"{"action":1,"payload":{}}"#,
            r#"{"action":null,"payload":{}}"#,
            r#"{"action":"\ud800","payload":{}}"#,
        ] {
            assert_eq!(why(action.as_bytes()), Rejection::NoAction, "{action}");
        }
        assert_eq!(why(br#"{"action":"a","data":{}}"#), Rejection::NoPayload);
        assert_eq!(why(br#"{"action":"a","payload":{},"action":"b"}"#), Rejection::MemberTwice);
        assert_eq!(why(br#"{"action":"a","payload":{},"\u0061ction":"b"}"#), Rejection::MemberTwice);
    }

    #[test]
    fn a_sender_is_told_where_the_body_is_wrong_and_nothing_of_what_is_in_it() {
        for (body, expected) in [
            (&b" \n"[..], Some("the body is empty; send the webhook as JSON")),
            (b"{\"action\":\"\xff\"}", Some("the body is not UTF-8: see byte 12")),
            (b"\xef\xbb\xbf{}", Some("the body is not JSON: see line 1, column 1")),
            (br#"{"action":hunter2}"#, Some("the body is not JSON: see line 1, column 11")),
            (
                b"{\n \"action\":\"a\",\n \"payload\":{}",
                Some("the body ends before its JSON is complete: see line 3, column 13"),
            ),
            (
                br#"{"payload":{},"action":"a","payload":{}}"#,
                Some("duplicate key \"payload\" in the JSON object: see line 1, column 28"),
            ),
            (
                b"\n{\"action\":1,\n  \"\\u0061ction\":2}",
                Some("duplicate key \"action\" in the JSON object: see line 3, column 3"),
            ),
            (br#"{"hunter2":1,"hunter2":2}"#, Some("duplicate key in the JSON object: see line 1, column 14")),
            (b"[]", None),
            (br#"{"payload":{}}"#, None),
        ] {
            let text = explain(why(body), body);
            assert_eq!(text.as_deref().map(str::trim_end), expected, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn any_payload_is_a_payload() {
        for payload in ["{}", "[]", "null", "1", "\"\"", "[{\"id\":1}]"] {
            let body = format!(r#"{{"action":"a","payload":{payload}}}"#);
            assert_eq!(receive(body.as_bytes()).expect("well-formed").webhook.payload, payload);
        }
    }

    #[test]
    fn the_members_may_come_in_any_order() {
        let found = |body: &str| {
            let Webhook { action, found, .. } = receive(body.as_bytes()).expect("well-formed").webhook;
            let found: Vec<_> = found.into_iter().flatten().map(str::to_owned).collect();
            (action.map(|action| action.name), found)
        };
        let payload = r#""payload" : {"id":1,"thread_id":"T1","chat_id":"C1"}"#;
        let expected = (Some("chat_deactivated"), vec![r#""C1""#.to_owned(), r#""T1""#.to_owned()]);
        assert_eq!(found(&format!(r#"{{"action":"thread_closed",{payload}}}"#)), expected);
        assert_eq!(found(&format!(r#"{{{payload},"action":"thread_closed"}}"#)), expected);
        assert_eq!(found(&format!(r#"{{{payload},"action":"unheard_of"}}"#)), (None, vec![]));
    }

    /// The values that an action's pointers lead to, with the path of each.
    fn found(body: &str) -> Vec<(String, Option<String>)> {
        let Webhook { action, found, .. } = receive(body.as_bytes()).expect("well-formed").webhook;
        let pointers = action.map_or(&[][..], |action| action.pointers).iter();
        let path = |path: &[&str]| path.iter().map(|name| format!("/{name}")).collect();
        pointers.zip(found).map(|((_, to), raw)| (path(to), raw.map(str::to_owned))).collect()
    }

    #[test]
    fn of_a_member_that_stands_twice_the_last_counts_whole_at_every_depth() {
        for (payload, chat, thread) in [
            (r#"{"chat":{"id":"A"},"chat":{}}"#, None, None),
            (r#"{"chat":{"id":"A"},"chat":{"id":"B"}}"#, Some(r#""B""#), None),
            (r#"{"chat":{"id":"A"},"chat":1}"#, None, None),
            (r#"{"chat":1,"chat":{"id":"A"}}"#, Some(r#""A""#), None),
            (r#"{"chat":{"id":"A","id":null}}"#, Some("null"), None),
            (r#"{"chat":{"id":"A","thread":{"id":"T"},"thread":{"x":1}}}"#, Some(r#""A""#), None),
            (r#"{"chat":{"thread":{"id":"T"}},"c\u0068at":{"id":"A"}}"#, Some(r#""A""#), None),
            (r#"{"chat":{"thread":{"id":"T","id":"U"}}}"#, None, Some(r#""U""#)),
        ] {
            for body in [
                format!(r#"{{"action":"incoming_chat","payload":{payload}}}"#),
                format!(r#"{{"payload":{payload},"action":"incoming_chat"}}"#),
            ] {
                let found = found(&body);
                assert_eq!((found[0].1.as_deref(), found[1].1.as_deref()), (chat, thread), "{body}");
            }
        }
    }

    /// Objects in which names stand twice more often than not.
    fn object() -> impl Strategy<Value = String> {
        let leaf = proptest::sample::select(vec!["1", "null", "{}", "[]", r#""A""#, r#""\u00e9""#, r#"[{"id":1}]"#]);
        leaf.prop_map(str::to_owned).prop_recursive(4, 24, 6, |inner| {
            let name =
                proptest::sample::select(vec!["chat", "thread", "thre\\u0061d", "id", "created_at", "timestamp", "x"]);
            proptest::collection::vec((name, inner), 0..6).prop_map(|members| {
                let members: Vec<_> = members.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
                format!("{{{}}}", members.join(","))
            })
        })
    }

    proptest! {
        #[test]
        fn pointers_lead_to_what_a_map_of_the_payload_has(payload in object(), is_action_first in any::<bool>()) {
            let action = r#""action":"incoming_chat""#;
            let body = if is_action_first {
                format!(r#"{{{action},"payload":{payload}}}"#)
            } else {
                format!(r#"{{"payload":{payload},{action}}}"#)
            };
            // Of members that stand twice, serde_json's map keeps the last one.
            let map: Value = serde_json::from_str(&payload).expect("JSON");
            for (path, raw) in found(&body) {
                let raw: Option<Value> = raw.map(|raw| serde_json::from_str(&raw).expect("JSON"));
                prop_assert_eq!(raw.as_ref(), map.pointer(&path), "{} {}", payload, path);
            }
        }
    }

    /// Pieces of JSON in any order: more often nearly JSON than any text would be.
    fn pieces() -> impl Strategy<Value = String> {
        let common =
            vec!["{", "}", "[", "]", ",", ":", " ", "\"", "\\", "\"a\":", "1", "0", "-", ".", "e", "null", "true"];
        let rare = vec!["\"text\"", "\"\\u00e9\"", "\\u", "é", "\n", "\t", "{\"b\":2}", "[3]", "x"];
        let piece = prop_oneof![8 => proptest::sample::select(common), 2 => proptest::sample::select(rare)];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    /// An object's members, written as JSON, each with white space before its name, its colon, its value and what follows.
    fn spaced_members() -> impl Strategy<Value = Vec<(String, String, [String; 4])>> {
        let value = prop_oneof![
            object(),
            ".{0,8}".prop_map(|text| Value::from(text).to_string()),
            proptest::sample::select(vec!["-1.5e3", "1e999", "[ ]", "[\",\", 2 ]", "null", r#""\ud800""#])
                .prop_map(str::to_owned),
        ];
        let name = ".{0,4}".prop_map(|name| Value::from(name).to_string());
        let member = (name, value, std::array::from_fn(|_| "[ \t\r\n]{0,2}"));
        proptest::collection::vec(member, 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn json_is_what_serde_json_takes_for_json(body in prop_oneof![pieces(), pieces().prop_map(|p| format!("{{{p}")), ".*"]) {
            let is_json = serde_json::from_str::<IgnoredAny>(&body).is_ok();
            let is_taken = !matches!(Object::read(body.as_bytes()).err(), Some(Rejection::NotJson));
            prop_assert_eq!(is_taken, is_json);
        }

        #[test]
        fn members_are_what_stands_between_names_without_the_space(members in spaced_members()) {
            let written: Vec<_> =
                members.iter().map(|(name, value, [a, b, c, d])| format!("{a}{name}{b}:{c}{value}{d}")).collect();
            let body = format!("{{{}}}", written.join(","));
            let mut names: Vec<_> = members.iter().map(|(name, ..)| name).collect();
            names.sort();
            names.dedup();
            match Object::read(body.as_bytes()) {
                Ok(object) => {
                    let read = object.members.iter().map(|m| (Value::from(&*m.name).to_string(), m.value.to_owned()));
                    let expected = members.iter().map(|(name, value, _)| (name.clone(), value.clone()));
                    prop_assert!(read.eq(expected), "{}", body);
                    for m in &object.members {
                        prop_assert!(body[m.range.clone()].starts_with('"') && body[m.range.clone()].ends_with(m.value), "{}", body);
                    }
                }
                Err(rejection) => prop_assert!(rejection == Rejection::MemberTwice && names.len() < members.len(), "{}", body),
            }
        }
    }

    #[test]
    fn members_are_bounded_from_both_sides() {
        let body = |n: usize| {
            let more: String = (2..n).map(|i| format!(r#","m{i}":{i}"#)).collect();
            format!(r#"{{"action":"a","payload":{{}}{more}}}"#)
        };
        assert!(receive(body(MEMBERS_MAX).as_bytes()).is_ok());
        assert_eq!(why(body(MEMBERS_MAX + 1).as_bytes()), Rejection::TooManyMembers);
        assert_eq!(why(body(1000).as_bytes()), Rejection::TooManyMembers);
        assert_eq!(why(body(1000).trim_end_matches('}').as_bytes()), Rejection::NotJson);
    }

    #[test]
    fn a_hundred_thousand_levels_do_not_overflow_the_stack() {
        let deep = 100_000;
        let body = format!(r#"{{"action":"a","payload":{}{}}}"#, "[".repeat(deep), "]".repeat(deep));
        assert_eq!(receive(body.as_bytes()).expect("well-formed").webhook.payload.len(), 2 * deep);
        assert_eq!(why(format!(r#"{{"action":"a","payload":{}"#, "[".repeat(deep)).as_bytes()), Rejection::NotJson);
    }
}
