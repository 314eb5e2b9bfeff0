//! Bytes → [`Delivery`]: one parse of the outer object, which borrows everything and looks into nothing.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::{Deserializer as _, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Rejection, scan};

/// More members than LiveChat's envelope has or is likely to get (7 in API 3.6); a bound on what a stranger makes us do.
pub const MEMBERS_MAX: usize = 64;

/// A webhook as it was delivered, not yet verified. Holds the secret key: it has no `Debug`.
pub struct Delivery<'a> {
    pub(super) body: &'a str,
    /// `secret_key` as delivered, and the bytes to leave out so that the rest is the object without it.
    pub(super) secret: Option<(&'a str, Range<usize>)>,
    pub(super) action: Cow<'a, str>,
    pub(super) payload: &'a str,
    pub(super) webhook_id: Option<&'a str>,
    pub(super) organization_id: Option<&'a str>,
    pub(super) license_id: Option<&'a str>,
    pub(super) additional_data: Option<&'a str>,
}

/// Reads the envelope out of `body` without copying it.
///
/// # Errors
/// A [`Rejection`] when the body is no JSON object with an `action` and a `payload`, or has a member twice: the sender
/// has to send something else.
pub fn receive(body: &[u8]) -> Result<Delivery<'_>, Rejection> {
    let (body, members) = members_of(body)?;
    let (mut secret, mut action, mut payload) = (None, None, None);
    let (mut webhook_id, mut organization_id, mut license_id, mut additional_data) = (None, None, None, None);
    for (i, member) in members.iter().enumerate() {
        match &*member.name {
            "secret_key" => secret = Some((member.value, cut(body, &members, i))),
            "action" => action = Some(member.value),
            "payload" => payload = Some(member.value),
            "webhook_id" => webhook_id = Some(member.value),
            "organization_id" => organization_id = Some(member.value),
            "license_id" => license_id = Some(member.value),
            "additional_data" => additional_data = Some(member.value),
            _ => {}
        }
    }
    Ok(Delivery {
        body,
        secret,
        action: action.and_then(scan::string).ok_or(Rejection::NoAction)?,
        payload: payload.ok_or(Rejection::NoPayload)?,
        webhook_id,
        organization_id,
        license_id,
        additional_data,
    })
}

/// A member of the outer object: its decoded name, and where its raw text stands in the body.
pub(super) struct Member<'a> {
    pub(super) name: Cow<'a, str>,
    raw_name: &'a str,
    pub(super) value: &'a str,
}

/// The members of the body's one object, in their order; none of them twice.
pub(super) fn members_of(body: &[u8]) -> Result<(&str, Vec<Member<'_>>), Rejection> {
    let body = std::str::from_utf8(body).map_err(|_| Rejection::NotUtf8)?;
    let body = body.trim_matches([' ', '\t', '\r', '\n']); // JSON's white space: around the object, no part of it
    let members = members(body)?;
    if has_twins(&members) { Err(Rejection::MemberTwice) } else { Ok((body, members)) }
}

fn members(body: &str) -> Result<Vec<Member<'_>>, Rejection> {
    let mut reader = serde_json::Deserializer::from_str(body);
    let mut members = Vec::with_capacity(8);
    let outcome = reader.deserialize_map(Members(&mut members)).and_then(|()| reader.end());
    match outcome {
        Ok(()) => Ok(members),
        Err(_) if members.len() > MEMBERS_MAX => Err(Rejection::TooManyMembers),
        Err(e) if e.is_data() && members.is_empty() => Err(Rejection::NotAnObject),
        Err(_) => Err(Rejection::NotJson),
    }
}

struct Members<'m, 'a>(&'m mut Vec<Member<'a>>);

impl<'de> Visitor<'de> for Members<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(raw_name) = map.next_key::<&RawValue>()? {
            let raw_name = raw_name.get();
            let name = scan::string(raw_name).ok_or_else(|| A::Error::custom("a name that is no text"))?;
            let value = map.next_value::<&RawValue>()?.get();
            self.0.push(Member { name, raw_name, value });
            if self.0.len() > MEMBERS_MAX {
                return Err(A::Error::custom("too many members"));
            }
        }
        Ok(())
    }
}

/// Names are compared as decoded: `"action"` and `"\u0061ction"` are one name to every JSON parser behind us.
fn has_twins(members: &[Member<'_>]) -> bool {
    members.iter().enumerate().any(|(i, m)| members[..i].iter().any(|earlier| earlier.name == m.name))
}

/// The bytes of member `i` with the one comma that must go with it.
fn cut(body: &str, members: &[Member<'_>], i: usize) -> Range<usize> {
    let start = |m: &Member<'_>| offset(body, m.raw_name);
    let end = |m: &Member<'_>| offset(body, m.value) + m.value.len();
    match (members.get(i + 1), i.checked_sub(1)) {
        (Some(next), _) => start(&members[i])..start(next),
        (None, Some(previous)) => end(&members[previous])..end(&members[i]),
        (None, None) => start(&members[i])..end(&members[i]),
    }
}

/// Where `part`, which was borrowed from `body`, stands in it.
fn offset(body: &str, part: &str) -> usize {
    part.as_ptr() as usize - body.as_ptr() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(body: &[u8]) -> Rejection {
        receive(body).err().expect("rejected")
    }

    #[test]
    fn the_envelope_is_borrowed_not_copied() {
        let body =
            br#" { "webhook_id" : "w", "action":"incoming_event" ,"payload": {"a" : [1, 2]} , "organization_id":"o"} "#;
        let delivery = receive(body).expect("well-formed");
        assert_eq!(delivery.action, "incoming_event");
        assert!(matches!(delivery.action, Cow::Borrowed(_)));
        assert_eq!(delivery.payload, r#"{"a" : [1, 2]}"#);
        assert_eq!(delivery.webhook_id, Some(r#""w""#));
        assert_eq!(delivery.organization_id, Some(r#""o""#));
        assert!(delivery.license_id.is_none() && delivery.secret.is_none());
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
    fn any_payload_is_a_payload() {
        for payload in ["{}", "[]", "null", "1", "\"\"", "[{\"id\":1}]"] {
            let body = format!(r#"{{"action":"a","payload":{payload}}}"#);
            assert_eq!(receive(body.as_bytes()).expect("well-formed").payload, payload);
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
    }

    #[test]
    fn a_hundred_thousand_levels_do_not_overflow_the_stack() {
        let deep = 100_000;
        let body = format!(r#"{{"action":"a","payload":{}{}}}"#, "[".repeat(deep), "]".repeat(deep));
        assert_eq!(receive(body.as_bytes()).expect("well-formed").payload.len(), 2 * deep);
        assert_eq!(why(format!(r#"{{"action":"a","payload":{}"#, "[".repeat(deep)).as_bytes()), Rejection::NotJson);
    }
}
