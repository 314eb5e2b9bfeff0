//! Bytes → record: no input panics, what is published is a valid event, and its `data` is the input less the secret key.

#![no_main]

#[expect(
    dead_code,
    unused_imports,
    reason = "the target makes records; what else the relay needs of the steps is unused here"
)]
#[path = "../../src/event/mod.rs"]
mod event;

use std::sync::LazyLock;

use event::normalize::normalize;
use event::receive::receive;
use event::route::route;
use event::verify::{verify, verify_app_webhook};
use event::{Keyring, Keys, Mode, Receipt, Record, Rejection, Routing, Topics};
use serde::de::IgnoredAny;
use serde_json::Value;

static KEYRING: LazyLock<Keyring> = LazyLock::new(|| Keyring::new([("k".to_owned(), &"k".to_owned().into())]));
static ROUTING: LazyLock<[Routing; 2]> = LazyLock::new(|| {
    let topics = Topics::new("livechat.", |_| None);
    [
        Routing { topics: topics.clone(), mode: Mode::Structured, keys: Keys::Plain, api_version: None },
        Routing { topics, mode: Mode::Binary, keys: Keys::hashed(b"a secret of the fuzzer"), api_version: None },
    ]
});

fn receipt() -> Receipt<'static> {
    Receipt { app: "default", time: jiff::Timestamp::UNIX_EPOCH, fresh_id: || uuid::Uuid::from_u128(7 << 76) }
}

fn record(body: &[u8], routing: &Routing) -> Option<Record> {
    let (webhook, _) = verify(receive(body).ok()?, &KEYRING, receipt().time).ok()?;
    route(normalize(webhook, receipt()), routing, None, None).map(|prepared| prepared.record)
}

/// `data` is the body less its secret key, whatever a full parser makes of both.
fn check(body: &[u8], value: &[u8]) {
    let event: Value = match serde_json::from_slice(value) {
        Ok(event) => event,
        // A full parser may refuse what is passed through unread: depth, lone surrogates, numbers out of range.
        Err(_) => return assert!(serde_json::from_slice::<Value>(body).is_err(), "the envelope is broken"),
    };
    let mut sent: Value = serde_json::from_slice(body).expect("its envelope was parsed");
    sent.as_object_mut().expect("an object").remove("secret_key");
    assert_eq!(event["data"], sent);
    for (name, text) in event.as_object().expect("an object").iter().filter(|(name, _)| *name != "data") {
        let text = text.as_str().unwrap_or_else(|| panic!("{name} is no text"));
        assert!(!text.is_empty() && !text.contains(char::is_control), "{name}");
    }
    let has = |name: &str| event.get(name).is_some();
    assert!(
        ["specversion", "id", "source", "type", "recordedtime", "partitionkey", "contenthash"].into_iter().all(has)
    );
}

/// What is refused as no JSON is none, and what is not refused so is JSON.
fn check_json(body: &[u8]) {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
    match receive(body).err() {
        Some(Rejection::NotUtf8) => assert!(text.is_empty()),
        // A name with a lone surrogate is JSON by the letter, and no text.
        Some(Rejection::NotJson) => assert!(!is_json || text.contains("\\u"), "refused"),
        _ => assert!(is_json, "taken for JSON"),
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check_json(input);
    if let Ok((webhook, _)) = verify_app_webhook("k", input, &KEYRING, receipt().time) {
        normalize(webhook, receipt());
    }
    // As it is, and with the secret key put in where an object begins, so that most inputs get past it.
    let with_secret = [br#"{"secret_key":"k","#, input.strip_prefix(b"{").unwrap_or(input)].concat();
    for body in [input, &with_secret] {
        if let Some(record) = record(body, &ROUTING[0]) {
            check(body, &record.value);
            assert!(record.topic.starts_with("livechat.") && !record.key.is_empty());
            let binary = record_in_headers(body);
            assert!(
                serde_json::from_slice::<Value>(&binary.value).is_ok()
                    || serde_json::from_slice::<Value>(body).is_err()
            );
        }
    }
});

fn record_in_headers(body: &[u8]) -> Record {
    let record = record(body, &ROUTING[1]).expect("what one mode takes, the other takes");
    assert!(record.headers.iter().any(|(name, value)| name == "ce_id" && value.len() == 36));
    assert_eq!(record.key.len(), 32);
    record
}
