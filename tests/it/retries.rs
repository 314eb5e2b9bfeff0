//! Retries and copies of one event: one record where the relay can tell, and never a 200 for what then failed.

use rustix::process::Signal;

use crate::support::kafka::Kafka;
use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET, await_that};
use crate::support::{chat_id, data, http, incoming_event, kafka, with_secret};

fn copies(kafka: &Kafka, topic: &str, chat: &str) -> usize {
    kafka.read_all(&[topic]).into_iter().filter(|m| m.key.as_deref() == Some(chat.as_bytes())).count()
}

#[test]
fn a_retry_of_what_is_durable_is_answered_200_and_not_published_again() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]);
    let chat = chat_id();
    let other_registration = incoming_event(&chat, 1).replace("7b2f", "8c30");
    for body in [&incoming_event(&chat, 1), &incoming_event(&chat, 1), &other_registration] {
        assert_eq!(http::post(relay.webhooks, body).status, 200);
    }
    assert_eq!(copies(kafka, "livechat.incoming_event", &chat), 1);
    assert_eq!(relay.metric(r#"livechat_relay_retries_total{result="dropped"}"#), 2.0);
}

#[test]
fn what_only_looks_like_a_retry_is_published() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]);
    let chat = chat_id();
    // The same event id with another text; other additional data; and an action that can repeat byte for byte.
    let event = incoming_event(&chat, 1);
    let changed = event.replace("Grüße", "Gruß");
    let more = event.replace(r#""additional_data":{}"#, r#""additional_data":{"chat_presence_user_ids":[]}"#);
    for body in [&event, &changed, &more] {
        assert_eq!(http::post(relay.webhooks, body).status, 200);
    }
    assert_eq!(copies(kafka, "livechat.incoming_event", &chat), 3);
    let tagged = with_secret(&data(&chat, 1).replace("incoming_event", "thread_tagged"), SECRET);
    assert_eq!((http::post(relay.webhooks, &tagged).status, http::post(relay.webhooks, &tagged).status), (200, 200));
    assert_eq!(copies(kafka, "livechat.thread_tagged", &chat), 2);
}

/// Two registrations of one action, as while one replaces the other: each event comes twice, and two equal events are two.
#[test]
fn what_two_registrations_deliver_is_published_once_for_each_event() {
    let mock = Mock::start();
    let relay = Relay::start(&mock.bootstrap(), &[("kafka.start_timeout", "\"1s\"")]).ready();
    let old = with_secret(&data(&chat_id(), 1).replace("incoming_event", "thread_tagged"), SECRET);
    let new = old.replace("7b2f", "8c30");
    for body in [&old, &new, &new, &old, &old, &new] {
        assert_eq!(http::post(relay.webhooks, body).status, 200);
    }
    let events = |outcome: &str| {
        relay.metric(&format!(r#"livechat_relay_events_total{{action="thread_tagged",outcome="{outcome}"}}"#))
    };
    assert_eq!((events("published"), events("duplicate")), (3.0, 3.0));
    assert_eq!(relay.metric(r#"livechat_relay_retries_total{result="copy"}"#), 3.0);

    // What each registration has delivered is in the metrics, and a reload does not change that.
    let metrics = || http::get(relay.admin, "/metrics").body;
    let series = |text: &str| {
        let is_series = |line: &&str| line.starts_with("livechat_relay_webhook_last_delivery_timestamp_seconds{");
        text.lines().filter(is_series).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = series(&metrics());
    assert!(
        before.len() == 2 && before.iter().all(|line| line.contains(r#"action="thread_tagged",app="default""#)),
        "{before:?}"
    );
    relay.signal(Signal::HUP);
    assert!(relay.has_logged("the configuration has not changed"), "{}", relay.log());
    assert_eq!(series(&metrics()), before);
}

#[test]
fn two_apps_with_topics_of_their_own_both_have_an_event_that_both_get() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let apps = format!(
        r#"[{{ name = "staging", topic_prefix = "staging.", secret_keys = [{{ name = "k", value = "{SECRET}-of-staging" }}] }}, {{ name = "production", secret_keys = [{{ name = "k", value = "{SECRET}" }}] }}]"#
    );
    let spool = tempfile::tempdir().expect("a directory");
    let directory = format!("{:?}", spool.path());
    for spool in [&[][..], &[("spool.directory", directory.as_str())]] {
        let settings = [&[("apps", apps.as_str())], spool].concat();
        let relay = Relay::start(kafka.bootstrap(), &settings).ready();
        for (n, order) in [["staging", "production"], ["production", "staging"]].into_iter().enumerate() {
            let chat = chat_id();
            let event = data(&chat, n as u64);
            for app in order {
                let key = if app == "staging" { format!("{SECRET}-of-staging") } else { SECRET.to_owned() };
                let answer = http::post_to(relay.webhooks, &format!("/webhooks/{app}"), with_secret(&event, &key));
                assert_eq!(answer.status, 200);
            }
            for topic in ["livechat.incoming_event", "staging.livechat.incoming_event"] {
                assert_eq!(copies(kafka, topic, &chat), 1, "{topic}, {order:?}");
            }
        }
        assert_eq!(relay.metric(r#"livechat_relay_retries_total{result="dropped"}"#), 0.0);
    }
}

#[test]
fn switched_off_every_delivery_is_published() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("retries.window", "\"0s\"")]);
    let chat = chat_id();
    for _ in 0..2 {
        assert_eq!(http::post(relay.webhooks, incoming_event(&chat, 1)).status, 200);
    }
    assert_eq!(copies(kafka, "livechat.incoming_event", &chat), 2);
}

#[test]
fn copies_under_way_share_one_outcome_and_what_failed_is_new_again() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("kafka.publish_deadline", "\"3s\"")]).ready();
    let post_five = |body: &str| -> Vec<u16> {
        std::thread::scope(|scope| {
            let copies: Vec<_> = (0..5).map(|_| scope.spawn(|| http::post(relay.webhooks, body).status)).collect();
            copies.into_iter().map(|copy| copy.join().expect("a sender")).collect()
        })
    };
    let chat = chat_id();
    let body = incoming_event(&chat, 1);
    kafka.pause(0);
    let statuses = post_five(&body);
    assert_eq!(statuses, [503; 5]);
    assert_eq!(relay.metric(r#"livechat_relay_retries_total{result="joined"}"#), 4.0);

    kafka.resume(0);
    let mut tried = 1;
    await_that("200 for the retry", || {
        tried += 1;
        http::post(relay.webhooks, &body).status == 200
    });
    // What was refused may have reached the broker all the same, once for each that was new: the copies never went there.
    let found = copies(&kafka, "livechat.incoming_event", &chat);
    assert!((1..=tried).contains(&found), "{found} of {tried}");

    let second = incoming_event(&chat, 2);
    assert_eq!(post_five(&second), [200; 5]);
    let again = copies(&kafka, "livechat.incoming_event", &chat);
    assert_eq!(again, found + 1, "five copies at once, one record");
}
