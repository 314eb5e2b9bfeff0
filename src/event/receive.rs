//! Bytes → [`Delivery`]: one pass over the body, which checks all of it, borrows everything, and finds on its way what the
//! action's pointers lead to.

use std::borrow::Cow;
use std::ops::Range;

use super::Rejection;
use super::actions::{self, Action};
use super::pointers::Found;
use super::scan::{self, NotJson};

/// More members than LiveChat's envelope has or is likely to get (7 in API 3.6); a bound on what a stranger makes us do.
pub const MEMBERS_MAX: usize = 64;

/// A webhook as it was delivered, not yet verified. Holds the secret key: it has no `Debug`.
pub struct Delivery<'a> {
    pub(super) body: &'a str,
    /// `secret_key` as delivered, and the bytes to leave out so that the rest is the object without it.
    pub(super) secret: Option<(&'a str, Range<usize>)>,
    pub(super) action: Cow<'a, str>,
    /// The catalogue's entry for it.
    pub(super) known: Option<&'static Action>,
    pub(super) payload: &'a str,
    /// What the entry's pointers lead to in the payload.
    pub(super) found: Found<'a>,
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
    let (mut action, mut known, mut found) = (None, None, None);
    let (body, members) = members_of(body, |name, members| match (name, known) {
        ("action", _) => {
            let raw = members.value()?;
            action = scan::string(raw);
            known = action.as_deref().and_then(actions::find);
            Ok(raw)
        }
        ("payload", Some(action)) => look(action, members, &mut found),
        _ => members.value(),
    })?;
    let (mut secret, mut payload) = (None, None);
    let (mut webhook_id, mut organization_id, mut license_id, mut additional_data) = (None, None, None, None);
    for (i, member) in members.iter().enumerate() {
        match &*member.name {
            "secret_key" => secret = Some((member.value, cut(body, &members, i))),
            "payload" => payload = Some(member.value),
            "webhook_id" => webhook_id = Some(member.value),
            "organization_id" => organization_id = Some(member.value),
            "license_id" => license_id = Some(member.value),
            "additional_data" => additional_data = Some(member.value),
            _ => {}
        }
    }
    let action = action.ok_or(Rejection::NoAction)?;
    let payload = payload.ok_or(Rejection::NoPayload)?;
    if let (Some(action), None) = (known, found) {
        // The payload came before its action, which LiveChat's never does.
        look(action, &mut scan::Members::before(payload), &mut found).map_err(|NotJson| Rejection::NotJson)?;
    }
    Ok(Delivery {
        body,
        secret,
        action,
        known,
        payload,
        found: found.unwrap_or_default(),
        webhook_id,
        organization_id,
        license_id,
        additional_data,
    })
}

/// Reads the payload, and notes what the pointers of its action lead to.
fn look<'a>(
    action: &Action,
    members: &mut scan::Members<'a>,
    found: &mut Option<Found<'a>>,
) -> Result<&'a str, NotJson> {
    members.object(|payload| found.insert(Found::default()).look(action.pointers, payload))
}

/// A member of the outer object: its decoded name, and where its raw text stands in the body.
pub(super) struct Member<'a> {
    pub(super) name: Cow<'a, str>,
    /// Where the name begins in the body.
    at: usize,
    pub(super) value: &'a str,
}

/// The members of the body's one object, in their order, none of them twice; `value` reads the value of each.
pub(super) fn members_of<'a>(
    body: &'a [u8],
    mut value: impl FnMut(&str, &mut scan::Members<'a>) -> Result<&'a str, NotJson>,
) -> Result<(&'a str, Vec<Member<'a>>), Rejection> {
    let not_json = |NotJson| Rejection::NotJson;
    let body = std::str::from_utf8(body).map_err(|_| Rejection::NotUtf8)?;
    let body = body.trim_matches([' ', '\t', '\r', '\n']); // JSON's white space: around the object, no part of it
    let other = || if scan::is_json(body) { Rejection::NotAnObject } else { Rejection::NotJson };
    let mut walk = scan::Members::of(body).ok_or_else(other)?;
    let mut members = Vec::with_capacity(8);
    while let Some(name) = walk.name().map_err(not_json)? {
        let (at, name) = (name.at, name.text.ok_or(Rejection::NotJson)?);
        let value = value(&name, &mut walk).map_err(not_json)?;
        members.push(Member { name, at, value });
        if members.len() > MEMBERS_MAX {
            return Err(Rejection::TooManyMembers);
        }
    }
    if !walk.is_over() {
        return Err(Rejection::NotJson);
    }
    if has_twins(&members) { Err(Rejection::MemberTwice) } else { Ok((body, members)) }
}

/// Names are compared as decoded: `"action"` and `"\u0061ction"` are one name to every JSON parser behind us.
fn has_twins(members: &[Member<'_>]) -> bool {
    members.iter().enumerate().any(|(i, m)| members[..i].iter().any(|earlier| earlier.name == m.name))
}

/// The bytes of member `i` with the one comma that must go with it.
fn cut(body: &str, members: &[Member<'_>], i: usize) -> Range<usize> {
    let end = |m: &Member<'_>| m.value.as_ptr() as usize - body.as_ptr() as usize + m.value.len();
    match (members.get(i + 1), i.checked_sub(1)) {
        (Some(next), _) => members[i].at..next.at,
        (None, Some(previous)) => end(&members[previous])..end(&members[i]),
        (None, None) => members[i].at..end(&members[i]),
    }
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
    fn any_payload_is_a_payload() {
        for payload in ["{}", "[]", "null", "1", "\"\"", "[{\"id\":1}]"] {
            let body = format!(r#"{{"action":"a","payload":{payload}}}"#);
            assert_eq!(receive(body.as_bytes()).expect("well-formed").payload, payload);
        }
    }

    #[test]
    fn the_members_may_come_in_any_order() {
        let found = |body: &str| {
            let delivery = receive(body.as_bytes()).expect("well-formed");
            let found: Vec<_> = delivery.found.values().flatten().map(str::to_owned).collect();
            (delivery.known.map(|action| action.name), found)
        };
        let payload = r#""payload" : {"id":1,"thread_id":"T1","chat_id":"C1"}"#;
        let expected = (Some("chat_deactivated"), vec![r#""C1""#.to_owned(), r#""T1""#.to_owned()]);
        assert_eq!(found(&format!(r#"{{"action":"thread_closed",{payload}}}"#)), expected);
        assert_eq!(found(&format!(r#"{{{payload},"action":"thread_closed"}}"#)), expected);
        assert_eq!(found(&format!(r#"{{{payload},"action":"unheard_of"}}"#)), (None, vec![]));
    }

    /// The values that an action's pointers lead to, with the path of each.
    fn found(body: &str) -> Vec<(String, Option<String>)> {
        let delivery = receive(body.as_bytes()).expect("well-formed");
        let pointers = delivery.known.map_or(&[][..], |action| action.pointers).iter();
        let path = |path: &[&str]| path.iter().map(|name| format!("/{name}")).collect();
        pointers.zip(delivery.found.values()).map(|((_, to), raw)| (path(to), raw.map(str::to_owned))).collect()
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
