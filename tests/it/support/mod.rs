//! What the tests stand on: a real Kafka, a real relay process, and HTTP with every byte in hand.

pub mod http;
pub mod kafka;
pub mod mock;
pub mod pebble;
pub mod relay;
pub mod simulator;
pub mod tls;

/// A chat id that no other test uses.
pub fn chat_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()[12..].to_uppercase()
}

/// A webhook of `incoming_event` in this chat, as LiveChat would send it; `n` tells the events of a chat apart.
pub fn incoming_event(chat_id: &str, n: u64) -> String {
    with_secret(&data(chat_id, n), relay::SECRET)
}

/// What consumers get of [`incoming_event`].
pub fn data(chat_id: &str, n: u64) -> String {
    format!(
        r#"{{"webhook_id":"7b2f","action":"incoming_event","organization_id":"org-of-the-tests","payload":{{"chat_id":"{chat_id}","thread_id":"T{chat_id}","event":{{"id":"T{chat_id}_{n}","type":"message","text":"Grüße \"{n}\" \ud83d\ude80","author_id":"ada@example.com","created_at":"2026-11-22T10:00:00.{n:06}Z"}}}},"additional_data":{{}}}}"#
    )
}

/// `data` with the secret key as its first member.
pub fn with_secret(data: &str, secret: &str) -> String {
    data.replacen('{', &format!(r#"{{"secret_key":"{secret}","#), 1)
}
