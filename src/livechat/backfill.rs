//! An archived thread → the webhooks that LiveChat would have sent of it within a time: `incoming_chat`, an `incoming_event` each, and
//! `chat_deactivated`. Their ids follow from the same chat, thread and event as those of LiveChat's own.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::event::json::{list, members, object, text};
use crate::event::{Archived, Author, Tenant};

/// What can be made of archives.
pub const ACTIONS: [&str; 3] = ["incoming_chat", "incoming_event", "chat_deactivated"];

/// What threads have within a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub incoming_chat: u64,
    pub incoming_event: u64,
    pub chat_deactivated: u64,
    /// Threads whose events LiveChat does not show: they are older than the account's plan has them.
    pub restricted_threads: u64,
    /// Events without a time that can be read: whether they are meant is not known.
    pub undated_events: u64,
}

/// Reads a chat with one thread, as `list_archives` and `get_chat` have it. The webhooks come in the order in which they happened; `tenant` is
/// part of their ids, so it has to be as in LiveChat's own.
///
/// The thread begins at its `created_at`. When it ended LiveChat does not say: it is taken for the time of its last event, which is mostly
/// the system message of its end; of a thread without events, for that of its beginning.
pub fn webhooks(chat: &RawValue, within: &Range<Timestamp>, tenant: &Tenant<'_>, found: &mut Found) -> Vec<Archived> {
    let chat = object(chat.get());
    let thread = chat.get("thread").map(|thread| object(thread.get())).unwrap_or_default();
    let [chat_id, thread_id] = [&chat, &thread].map(|object| object.get("id").map(|id| id.get()));
    let authors = Author::of_users(chat.get("users").copied());
    let webhook = |action: &str, payload: &str, author| Archived { body: body(action, payload, tenant), author };
    let [incoming_chat, incoming_event, chat_deactivated] = ACTIONS;
    let (mut webhooks, began) = (Vec::new(), time(&thread));
    found.restricted_threads += u64::from(thread.contains_key("restricted_access"));

    if began.is_some_and(|time| within.contains(&time)) {
        let chat = chat_without_events(&chat, &thread);
        webhooks.push(webhook(incoming_chat, &members([("chat", Some(chat.get()))]), None));
        found.incoming_chat += 1;
    }
    let mut last = began;
    for event in list(thread.get("events").copied()) {
        let parts = object(event.get());
        let Some(time) = time(&parts) else {
            found.undated_events += 1;
            continue;
        };
        last = last.max(Some(time));
        if within.contains(&time) {
            let author = text(&parts, "author_id").and_then(|id| authors.get(&*id).copied());
            let payload = members([("chat_id", chat_id), ("thread_id", thread_id), ("event", Some(event.get()))]);
            webhooks.push(webhook(incoming_event, &payload, author));
            found.incoming_event += 1;
        }
    }
    let has_ended = thread.get("active").is_some_and(|active| active.get() == "false");
    if has_ended && last.is_some_and(|time| within.contains(&time)) {
        let payload = members([("chat_id", chat_id), ("thread_id", thread_id)]);
        webhooks.push(webhook(chat_deactivated, &payload, None));
        found.chat_deactivated += 1;
    }
    webhooks
}

/// What a summary of `list_chats` says: the chat's id, where its latest thread is running and began before a time. The others have nothing to
/// give that archives do not have.
pub fn running_before(summary: &RawValue, to: Timestamp) -> Option<String> {
    let summary = object(summary.get());
    let last = summary.get("last_thread_summary").map(|thread| object(thread.get())).unwrap_or_default();
    let has_ended = last.get("active").is_some_and(|active| active.get() == "false");
    let is_meant = !has_ended && time(&last).is_none_or(|began| began < to);
    text(&summary, "id").filter(|_| is_meant).map(Cow::into_owned)
}

/// The `created_at` of a thread, or of an event.
fn time(object: &HashMap<String, &RawValue>) -> Option<Timestamp> {
    text(object, "created_at")?.parse().ok()
}

/// All of a chat but its events: each of them is a webhook of its own, or not of the time. Members come sorted, with their bytes.
fn chat_without_events(chat: &HashMap<String, &RawValue>, thread: &HashMap<String, &RawValue>) -> Box<RawValue> {
    let raw = |members| to_raw_value(members).expect("an object of JSON is JSON");
    let mut thread = sorted(thread);
    thread.remove("events");
    let thread = raw(&thread);
    let mut chat = sorted(chat);
    chat.insert("thread", &thread);
    raw(&chat)
}

fn sorted<'a>(object: &'a HashMap<String, &'a RawValue>) -> BTreeMap<&'a str, &'a RawValue> {
    object.iter().map(|(name, value)| (name.as_str(), *value)).collect()
}

fn body(action: &str, payload: &str, tenant: &Tenant<'_>) -> String {
    let action = format!("\"{action}\"");
    let (organization, license) = match tenant {
        Tenant::Organization(id) => (Some(serde_json::Value::from(&**id).to_string()), None),
        Tenant::License(id) => (None, Some(&**id)), // a number
        Tenant::Unnamed => (None, None),
    };
    members([
        ("action", Some(&action)),
        ("organization_id", organization.as_deref()),
        ("license_id", license),
        ("payload", Some(payload)),
    ])
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::normalize::normalize;
    use crate::event::receive::receive;
    use crate::event::verify::verify;
    use crate::event::{Keyring, Receipt, Verified};

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("JSON")
    }

    fn at(minute: u8) -> Timestamp {
        format!("2026-11-22T10:{minute:02}:00Z").parse().expect("a time")
    }

    fn made(chat: &str, from: u8, to: u8) -> (Vec<Archived>, Found) {
        let mut found = Found::default();
        let webhooks = webhooks(&raw(chat), &(at(from)..at(to)), &Tenant::Organization("o".into()), &mut found);
        (webhooks, found)
    }

    /// Chats, events and ends.
    fn numbers(found: &Found) -> [u64; 3] {
        [found.incoming_chat, found.incoming_event, found.chat_deactivated]
    }

    fn event(n: u8, more: &str) -> String {
        format!(r#"{{"id":"T_{n}" ,"created_at":"2026-11-22T10:{n:02}:00.000000Z"{more}}}"#)
    }

    /// A thread that began at 10:00, with events at 10:01, 10:02 and 10:03.
    fn chat(active: &str) -> String {
        let events =
            [event(1, r#","author_id":"c-1","text":"é""#), event(2, ""), event(3, r#","type":"system_message""#)];
        format!(
            r#"{{"users":[{{"id":"c-1","type":"customer"}}],"id":"C","thread":{{"tags":["t"],"id":"T","active":{active},"created_at":"2026-11-22T10:00:00Z","events":[{}]}}}}"#,
            events.join(",")
        )
    }

    #[test]
    fn a_thread_becomes_what_is_within_the_time_and_no_more() {
        for (active, from, to, expected) in [
            ("false", 0, 9, [1, 3, 1]),
            ("true", 0, 9, [1, 3, 0]),
            ("false", 1, 9, [0, 3, 1]),
            ("false", 0, 3, [1, 2, 0]),
            ("false", 3, 4, [0, 1, 1]),
            ("false", 4, 9, [0, 0, 0]),
            ("null", 0, 9, [1, 3, 0]),
        ] {
            let (webhooks, found) = made(&chat(active), from, to);
            assert_eq!(numbers(&found), expected, "{active} {from} {to}");
            assert_eq!(webhooks.len() as u64, expected.iter().sum::<u64>());
        }
    }

    #[test]
    fn each_has_the_id_and_the_key_of_livechats_own() {
        let keyring = Keyring::new([("k".to_owned(), &"k".to_owned().into())]);
        let receipt = Receipt { app: "a", time: Timestamp::UNIX_EPOCH, fresh_id: Uuid::nil };
        let identity = |webhook: Verified<'_>| {
            let event = normalize(webhook, receipt);
            assert!(event.is_id_derived && event.faults.is_empty());
            (event.id, event.key().to_owned(), event.time)
        };
        let delivered = |action: &str, payload: &str| {
            let body = format!(
                r#"{{"webhook_id":"w","secret_key":"k","action":"{action}","organization_id":"o","payload":{payload},"additional_data":{{}}}}"#
            );
            let delivery = receive(body.as_bytes()).expect("a webhook");
            identity(verify(delivery, &keyring, Timestamp::UNIX_EPOCH).ok().expect("its key").0)
        };
        let (webhooks, _) = made(&chat("false"), 0, 9);
        let found: Vec<_> = webhooks.iter().map(|made| identity(made.webhook().expect("a webhook"))).collect();
        let event =
            |n| delivered("incoming_event", &format!(r#"{{"thread_id":"T","chat_id":"C","event":{}}}"#, event(n, "")));
        let begun = delivered(
            "incoming_chat",
            r#"{"chat":{"id":"C","thread":{"id":"T","created_at":"2026-11-22T10:00:00.000Z"}}}"#,
        );
        let ended = delivered("chat_deactivated", r#"{"chat_id":"C","thread_id":"T","user_id":"u"}"#);
        assert_eq!(found, [begun, event(1), event(2), event(3), ended]);
        assert_eq!(webhooks.iter().map(|made| made.author).collect::<Vec<_>>()[..2], [None, Some(Author::Customer)]);
        assert_eq!(
            webhooks[0].body,
            r#"{"action":"incoming_chat","organization_id":"o","payload":{"chat":{"id":"C","thread":{"active":false,"created_at":"2026-11-22T10:00:00Z","id":"T","tags":["t"]},"users":[{"id":"c-1","type":"customer"}]}}}"#
        );
    }

    #[test]
    fn what_the_archive_does_not_show_is_counted_and_what_is_no_thread_has_nothing() {
        let (_, found) = made(
            r#"{"id":"C","thread":{"id":"T","active":false,"restricted_access":"x","created_at":"2026-11-22T10:00:00Z"}}"#,
            0,
            9,
        );
        assert_eq!((numbers(&found), found.restricted_threads), ([1, 0, 1], 1));
        let (_, found) =
            made(r#"{"id":"C","thread":{"id":"T","events":[{"id":"1"},{"id":"2","created_at":"soon"},7]}}"#, 0, 9);
        assert_eq!((numbers(&found), found.undated_events), ([0, 0, 0], 3));
        for strange in ["7", "[]", "{}", r#"{"thread":7}"#, r#"{"id":"C","thread":{"events":{},"created_at":[]}}"#] {
            assert!(made(strange, 0, 9).0.is_empty(), "{strange}");
        }
    }

    #[test]
    fn the_license_of_api_3_3_is_a_number() {
        let tenant = Tenant::License("104130623".into());
        let webhooks = webhooks(&raw(&chat("false")), &(at(0)..at(9)), &tenant, &mut Found::default());
        assert!(webhooks[1].body.contains(r#""license_id":104130623,"payload""#), "{}", webhooks[1].body);
    }

    #[test]
    fn of_running_chats_those_are_read_that_may_have_something() {
        let of = |thread: &str| running_before(&raw(&format!(r#"{{"id":"C"{thread}}}"#)), at(5));
        let began = |minute: u8, active: bool| {
            of(&format!(r#","last_thread_summary":{{"active":{active},"created_at":"2026-11-22T10:{minute:02}:00Z"}}"#))
        };
        let chat = Some("C".to_owned());
        assert_eq!((began(4, true), of("")), (chat.clone(), chat));
        assert_eq!((began(5, true), began(4, false)), (None, None));
        assert_eq!(running_before(&raw("{}"), at(5)), None);
    }
}
