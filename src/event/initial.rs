//! The events inside an `incoming_chat`: LiveChat sends a chat's first message and its pre-chat form there, and not as `incoming_event`.
//! Each becomes the body that LiveChat would have sent, around the bytes that it did send.

use serde_json::value::RawValue;

use super::json::{self, list, members, object};
use super::normalize::{Author, Origin};
use super::receive::{Webhook, receive};
use super::verify::Verified;

/// So many events of a chat become records of their own at most, and so many bytes of bodies. LiveChat's chats begin with one or two; what
/// is beyond stays in the `incoming_chat` alone, and is counted.
pub const EVENTS_MAX: usize = 100;
pub const BYTES_MAX: usize = 1 << 20;

/// The bodies of a chat's initial events.
#[derive(Default)]
pub struct Initial {
    bodies: Vec<(String, Option<Author>)>,
    /// Events beyond the limits.
    pub left_out: u64,
}

impl Initial {
    /// Those of a verified webhook; none where that is no `incoming_chat`, or has no events.
    pub fn of(webhook: &Verified<'_>) -> Self {
        let webhook = webhook.webhook();
        if webhook.action.is_none_or(|action| action.name != "incoming_chat") {
            return Self::default();
        }
        let payload = object(webhook.payload);
        let chat = payload.get("chat").map(|chat| object(chat.get())).unwrap_or_default();
        let thread = chat.get("thread").map(|thread| object(thread.get())).unwrap_or_default();
        let authors = Author::of_users(chat.get("users").copied());
        let mut initial = Self::default();
        let mut bytes = 0;
        for event in list(thread.get("events").copied()) {
            let event = event.get();
            let size = event.len() + webhook.additional_data.map_or(0, str::len);
            if initial.bodies.len() == EVENTS_MAX || bytes + size > BYTES_MAX {
                initial.left_out += 1;
                continue;
            }
            bytes += size;
            let author = json::text(&object(event), "author_id").and_then(|id| authors.get(&*id).copied());
            initial.bodies.push((body(webhook, chat.get("id").copied(), thread.get("id").copied(), event), author));
        }
        initial
    }

    /// As verified webhooks, in the order of the thread.
    pub fn webhooks(&self) -> impl Iterator<Item = Verified<'_>> {
        self.bodies.iter().filter_map(|(body, author)| {
            let delivery = receive(body.as_bytes()).ok()?; // what has been read as JSON before is not refused
            Some(Verified::made(delivery, Origin::Initial, *author))
        })
    }
}

/// The webhook that LiveChat would have sent for an event of a chat.
fn body(webhook: &Webhook<'_>, chat: Option<&RawValue>, thread: Option<&RawValue>, event: &str) -> String {
    let (chat, thread) = (chat.map(RawValue::get), thread.map(RawValue::get));
    let payload = members([("chat_id", chat), ("thread_id", thread), ("event", Some(event))]);
    members([
        ("webhook_id", webhook.webhook_id),
        ("action", Some("\"incoming_event\"")),
        ("organization_id", webhook.organization_id),
        ("license_id", webhook.license_id),
        ("payload", Some(&payload)),
        ("additional_data", webhook.additional_data),
    ])
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::super::verify::verify;
    use super::super::{Event, Keyring, Receipt, normalize::normalize};
    use super::*;

    fn verified(body: &str) -> Verified<'_> {
        let keyring = Keyring::new([("k".to_owned(), &"k".to_owned().into())]);
        verify(receive(body.as_bytes()).expect("well-formed"), &keyring, Timestamp::UNIX_EPOCH)
            .ok()
            .expect("verified")
            .0
    }

    fn normalized(webhook: Verified<'_>) -> Event<'_> {
        normalize(webhook, Receipt { app: "a", time: Timestamp::UNIX_EPOCH, fresh_id: Uuid::now_v7 })
    }

    fn incoming_chat(action: &str, chat: &str) -> String {
        format!(
            r#"{{"webhook_id":"w","secret_key":"k","action":"{action}","organization_id":"o","payload":{{"chat":{chat}}},"additional_data":{{"x": 1}}}}"#
        )
    }

    #[test]
    fn each_event_becomes_what_livechat_would_have_sent_with_its_bytes_its_id_and_its_author() {
        const USERS: &str = r#"[{"id":"c-1","type":"customer"},{"id":"ann@example.com","type":"agent"},{"id":"5c9871d5","type":"agent"},{"id":"b-1","type":"bot"},7,{"type":"agent"}]"#;
        let event = |n: u8, more: &str| format!(r#"{{ "id" : "T1_{n}", "text":"Gr\u00fc\u00dfe é 1e999" {more}}}"#);
        let authors = [
            (r#","type":"message","author_id":"c-1""#, Some(Author::Customer)),
            (r#","type":"filled_form","author_id":"ann@example.com""#, Some(Author::Agent)),
            (r#","type":"message","author_id":"5c9871d5""#, None),
            (r#","type":"message","author_id":"b-1""#, Some(Author::Bot)),
            (r#","type":"message","author_id":"a-stranger""#, None),
            (r#","type":"system_message""#, Some(Author::System)),
            (r#","type":"system","author_id":"c-1""#, Some(Author::System)),
            ("", None),
        ];
        let events: Vec<_> = authors.iter().zip(1..).map(|((more, _), n)| event(n, more)).collect();
        let chat = format!(r#"{{"id":"C1","users":{USERS},"thread":{{"id":"T1","events":[{}]}}}}"#, events.join(" , "));
        let body = incoming_chat("incoming_chat", &chat);
        let initial = Initial::of(&verified(&body));
        let made: Vec<_> = initial.webhooks().map(normalized).collect();
        assert_eq!((made.len(), initial.left_out), (events.len(), 0));
        for ((made, event), (_, author)) in made.iter().zip(&events).zip(authors) {
            let data = format!(
                r#"{{"webhook_id":"w","action":"incoming_event","organization_id":"o","payload":{{"chat_id":"C1","thread_id":"T1","event":{event}}},"additional_data":{{"x": 1}}}}"#
            );
            assert_eq!(made.data().concat(), data);
            let delivered = data.replacen('{', r#"{"secret_key":"k","#, 1);
            let delivered = normalized(verified(&delivered));
            assert_eq!((made.id, made.key(), made.content_hash), (delivered.id, "C1", delivered.content_hash));
            assert!(made.is_id_derived && made.faults.is_empty());
            assert_eq!((made.origin, made.author), (Origin::Initial, author), "{event}");
            // Beside the chat's users, only a type proves the author.
            assert_eq!(delivered.author, author.filter(|author| *author == Author::System));
        }
    }

    #[test]
    fn what_is_no_chat_with_events_has_none() {
        for (action, chat) in [
            ("incoming_event", r#"{"id":"C","thread":{"events":[{"id":"1"}]}}"#),
            ("incoming_chat", r#"{"id":"C","users":[],"properties":{},"thread":{}}"#),
            ("incoming_chat", r#"{"thread":{"events":null}}"#),
            ("incoming_chat", r#"{"thread":{"events":{"id":"1"}}}"#),
            ("incoming_chat", r#"{"thread":[]}"#),
            ("incoming_chat", "7"),
        ] {
            let body = incoming_chat(action, chat);
            let initial = Initial::of(&verified(&body));
            assert_eq!((initial.webhooks().count(), initial.left_out), (0, 0), "{action} {chat}");
        }
        // Under the older name; with what is missing absent, as in a webhook of that kind.
        let body = incoming_chat("incoming_chat_thread", r#"{"users":"x","thread":{"events":[7]}}"#);
        let initial = Initial::of(&verified(&body));
        let data: Vec<_> = initial.webhooks().map(|webhook| normalized(webhook).data().concat()).collect();
        assert_eq!(data.len(), 1);
        assert!(data[0].contains(r#""payload":{"event":7}"#), "{data:?}");
    }

    #[test]
    fn a_chat_with_too_many_events_has_the_first_ones_and_the_rest_is_counted() {
        let left_out = |events: usize, bytes: usize| {
            let event = format!(r#"{{"id":"1","text":"{}"}}"#, "x".repeat(bytes));
            let chat = format!(r#"{{"id":"C","thread":{{"id":"T","events":[{}]}}}}"#, vec![event; events].join(","));
            let body = incoming_chat("incoming_chat", &chat);
            let initial = Initial::of(&verified(&body));
            assert_eq!(initial.webhooks().count() + initial.left_out as usize, events);
            initial.left_out
        };
        assert_eq!((left_out(EVENTS_MAX, 10), left_out(EVENTS_MAX + 3, 10)), (0, 3));
        assert_eq!((left_out(4, BYTES_MAX / 4), left_out(4, BYTES_MAX / 5)), (1, 0));
    }
}
