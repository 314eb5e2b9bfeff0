//! The durable spool: what Kafka cannot take is answered 200 after an fsync, survives everything, and reaches Kafka in order.

use std::collections::HashMap;

use rustix::process::Signal;

use crate::support::kafka::{Kafka, Message};
use crate::support::relay::{DEADLINES, Relay, Settings, await_that};
use crate::support::{chat_id, http, incoming_event};

const TOPIC: &str = "livechat.incoming_event";

/// A relay with a spool in `directory`, and the product's deadlines.
fn spooling(kafka: &Kafka, directory: &tempfile::TempDir, more: Settings<'_>) -> Relay {
    let path = format!("\"{}\"", directory.path().join("spool").display());
    let mut settings = DEADLINES.to_vec();
    settings.push(("spool.directory", &path));
    settings.extend(more);
    Relay::start(kafka.bootstrap(), &settings)
}

fn post(relay: &Relay, chat: &str, n: u64) {
    let answer = http::post(relay.webhooks, incoming_event(chat, n));
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, relay.log());
}

fn spooled(relay: &Relay) -> f64 {
    let text = http::get(relay.admin, "/metrics").body;
    let lanes = text.lines().filter(|line| line.starts_with("livechat_relay_spool_records{"));
    lanes.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// The numbers of each chat's events, in the order of Kafka, first occurrences only.
fn orders(messages: Vec<Message>) -> HashMap<String, Vec<u64>> {
    let mut orders: HashMap<String, Vec<u64>> = HashMap::new();
    for message in messages {
        let value: serde_json::Value = serde_json::from_slice(&message.value).expect("JSON");
        let id = value["eventid"].as_str().expect("an id");
        let number = id.rsplit('_').next().and_then(|n| n.parse().ok()).expect("a number");
        let order = orders.entry(value["chatid"].as_str().expect("a chat").to_owned()).or_default();
        if !order.contains(&number) {
            order.push(number);
        }
    }
    orders
}

#[test]
fn an_event_that_kafka_does_not_take_is_answered_200_after_an_fsync_and_published_in_order_later() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let mut relay = spooling(&kafka, &directory, &[]);
    await_that("Kafka is there", || relay.metric("livechat_relay_kafka_up") == 1.0);
    let chats = [chat_id(), chat_id()];
    let post_all = |relay: &Relay, numbers: std::ops::Range<u64>| {
        numbers.for_each(|n| chats.iter().for_each(|chat| post(relay, chat, n)));
    };
    post_all(&relay, 0..3);
    await_that("these are in Kafka", || spooled(&relay) == 0.0); // a new broker on a busy machine may be slow at first
    kafka.pause(0);
    post_all(&relay, 3..50);
    assert_eq!(spooled(&relay), 94.0);
    assert_eq!(http::get(relay.admin, "/readyz").status, 200, "the spool makes events durable");

    relay.signal(Signal::KILL);
    relay.end();
    let mut relay = spooling(&kafka, &directory, &[]);
    assert_eq!(spooled(&relay), 94.0);
    post_all(&relay, 50..60);
    kafka.resume(0);
    await_that("the spool is empty", || spooled(&relay) == 0.0);
    post_all(&relay, 60..70);
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    assert!(relay.has_logged("stopped: no events are left"), "{}", relay.log());

    let orders = orders(kafka.read_all(&[TOPIC]));
    for chat in &chats {
        assert_eq!(orders[chat], (0..70).collect::<Vec<_>>());
    }
}

/// Its broker refuses the batch with the large event, and what is under way behind it.
#[test]
fn when_the_middle_of_one_chats_backlog_is_refused_the_rest_keeps_its_order() {
    const LARGE: u64 = 41;
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let relay = spooling(&kafka, &directory, &[("kafka.properties", "{ \"batch.num.messages\" = \"4\" }")]);
    await_that("Kafka is there", || relay.metric("livechat_relay_kafka_up") == 1.0);
    kafka.set_topic(TOPIC, &[("max.message.bytes", "20000")]);
    let chat = chat_id();
    post(&relay, &chat, 0);
    await_that("it is in Kafka", || spooled(&relay) == 0.0);
    kafka.pause(0);
    for number in 1..100 {
        let text: String = if number == LARGE { (0..5_000).map(|_| chat_id()).collect() } else { "Hello".to_owned() };
        let answer = http::post(relay.webhooks, incoming_event(&chat, number).replace("Grüße", &text));
        assert_eq!(answer.status, 200, "{}", relay.log());
    }
    kafka.resume(0);
    await_that("the spool is empty", || spooled(&relay) == 0.0);
    let order = &orders(kafka.read_all(&[TOPIC]))[&chat];
    assert_eq!(*order, (0..100).filter(|number| *number != LARGE).collect::<Vec<_>>());
    assert_eq!(relay.metric(r#"livechat_relay_dead_letters_total{reason="too_large",to="topic"}"#), 1.0);
}

#[test]
fn a_response_deadline_of_a_second_still_leaves_kafka_its_time() {
    let Some(kafka) = crate::support::kafka::shared_or_skip() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let path = format!("\"{}\"", directory.path().join("spool").display());
    let soon = [
        ("spool.directory", path.as_str()),
        ("server.response_deadline", "\"1s\""),
        ("server.body_timeout", "\"100ms\""),
        ("kafka.publish_deadline", "\"500ms\""),
    ];
    let relay = Relay::start(kafka.bootstrap(), &soon);
    let published = r#"livechat_relay_events_total{action="incoming_event",outcome="published"}"#;
    await_that("one goes directly", || {
        http::post(relay.webhooks, incoming_event(&chat_id(), 1));
        relay.metric(published) > 0.0
    });
}
