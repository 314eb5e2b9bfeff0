//! The events inside an `incoming_chat`, as records of their own.

use crate::support::kafka::Message;
use crate::support::relay::SECRET;
use crate::support::{http, incoming_event, mock::Mock, with_secret};

#[test]
fn switched_on_the_first_message_is_an_incoming_event_with_the_id_of_livechats_own() {
    let mock = Mock::start();
    let relay = mock.relay(&[("events.initial", "true"), ("events.mode", "\"binary\"")]);
    // The chat of `incoming_event("C1", 1)`, with that event inside.
    let own = incoming_event("C1", 1);
    let (start, end) = (own.find("{\"id\"").expect("the event"), own.find("},\"additional_data\"").expect("its end"));
    let event = &own[start..end];
    let chat = format!(
        r#"{{"webhook_id":"7b2f","action":"incoming_chat","organization_id":"org-of-the-tests","payload":{{"chat":{{"id":"C1","users":[{{"id":"ada@example.com","type":"agent"}}],"thread":{{"id":"TC1","events":[{event}]}}}}}},"additional_data":{{}}}}"#
    );
    assert_eq!(http::post(relay.webhooks, with_secret(&chat, SECRET)).status, 200);
    let other = own.replacen("\"text\"", "\"edited\":1,\"text\"", 1);
    assert_eq!([&own, &other].map(|body| http::post(relay.webhooks, body).status), [200, 200]);

    assert_eq!(mock.read("livechat.incoming_chat").len(), 1);
    let found = mock.read("livechat.incoming_event");
    let [initial, other] = &found[..] else { panic!("{} records: the same event again is a retry", found.len()) };
    assert_eq!(initial.value, own.replacen(&format!("\"secret_key\":\"{SECRET}\","), "", 1).as_bytes());
    let header = |message: &Message, name: &str| {
        let found = message.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    };
    assert_eq!((&initial.key, header(initial, "ce_id")), (&other.key, header(other, "ce_id")));
    let attributes = |message| ["ce_initial", "ce_authorkind", "ce_eventid"].map(|name| header(message, name));
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(attributes(initial), [text("true"), text("agent"), text("TC1_1")]);
    assert_eq!(attributes(other), [None, None, text("TC1_1")]);
}
