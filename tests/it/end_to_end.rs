//! Webhooks through the real relay to the real Kafka, and what stands there.

use crate::support::relay::Relay;
use crate::support::{chat_id, data, http, incoming_event, kafka};

#[test]
fn a_verified_webhook_is_on_its_topic_when_200_is_answered() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]);
    let chat = chat_id();
    let answer = http::post(relay.webhooks, incoming_event(&chat, 1));
    assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{}", relay.log());
    let found = kafka.read_all(&["livechat.incoming_event"]);
    let ours: Vec<_> = found.iter().filter(|m| m.key.as_deref() == Some(chat.as_bytes())).collect();
    assert_eq!(ours.len(), 1);
    let value = std::str::from_utf8(&ours[0].value).expect("text");
    assert!(value.ends_with(&format!(r#","data":{}}}"#, data(&chat, 1))), "{value}");
}
