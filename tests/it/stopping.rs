//! SIGTERM: what is under way is answered, what was answered is in Kafka, and the end comes in time.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::kafka::Kafka;
use crate::support::relay::{Relay, await_that};
use crate::support::{chat_id, http, incoming_event, kafka};

/// What a sender saw until its connection was closed.
struct Seen {
    answered: Vec<String>,
    unanswered: usize,
    statuses: HashSet<u16>,
}

/// Sends on one connection until the relay says that it closes it; a request without an answer is one too many.
fn send_until_closed(relay: &Relay) -> Seen {
    let mut connection = http::connect(relay.webhooks);
    let mut seen = Seen { answered: Vec::new(), unanswered: 0, statuses: HashSet::new() };
    loop {
        let chat = chat_id();
        if connection.write_all(&http::request("/webhooks", "", incoming_event(&chat, 1))).is_err() {
            seen.unanswered += 1;
            return seen;
        }
        let Some(answer) = http::read(&mut connection) else {
            seen.unanswered += 1;
            return seen;
        };
        seen.statuses.insert(answer.status);
        if answer.status == 200 {
            seen.answered.push(chat);
        }
        if answer.header("connection") == Some("close") {
            return seen;
        }
    }
}

#[test]
fn under_load_every_request_is_answered_and_each_200_is_in_kafka() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let mut relay = Relay::start(kafka.bootstrap(), &[]).ready();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..16).map(|_| scope.spawn(|| send_until_closed(&relay))).collect();
        await_that("load", || relay.metric(r#"livechat_relay_requests_total{code="200"}"#) > 500.0);
        relay.signal(Signal::TERM);
        senders.into_iter().map(|sender| sender.join().expect("a sender")).collect()
    });
    assert!(relay.end().success(), "{}", relay.log());
    assert!(relay.has_logged("stopped: no events are left"), "{}", relay.log());

    assert_eq!(seen.iter().map(|s| s.unanswered).sum::<usize>(), 0);
    assert!(seen.iter().all(|s| s.statuses == HashSet::from([200])));
    let found: HashSet<_> = kafka.read_all(&["livechat.incoming_event"]).into_iter().filter_map(|m| m.key).collect();
    let answered: Vec<_> = seen.iter().flat_map(|s| &s.answered).collect();
    assert!(answered.len() > 500);
    let lost: Vec<_> = answered.iter().filter(|chat| !found.contains(chat.as_bytes())).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), answered.len());
}

#[test]
fn readiness_is_off_while_requests_are_still_taken() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let mut relay = Relay::start(kafka.bootstrap(), &[("server.drain_delay", "\"3s\"")]).ready();
    relay.signal(Signal::TERM);
    await_that("readiness is off", || http::get(relay.admin, "/readyz").body.contains("shutting down"));
    let answer = http::post(relay.webhooks, incoming_event(&chat_id(), 1));
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(relay.end().success());
}

#[test]
fn what_kafka_does_not_ack_in_time_is_answered_503_and_the_end_comes() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let mut relay = Relay::start(kafka.bootstrap(), &[("server.drain_timeout", "\"300ms\"")]).ready();
    kafka.pause(0);
    let mut waiting = http::connect(relay.webhooks);
    waiting.write_all(&http::request("/webhooks", "", incoming_event(&chat_id(), 1))).expect("written");
    await_that("the record is on its way", || relay.metric("livechat_relay_records_in_flight") >= 1.0);

    let began = Instant::now();
    relay.signal(Signal::TERM);
    assert_eq!(http::read(&mut waiting).expect("an answer").status, 503);
    relay.end();
    assert!(began.elapsed() < Duration::from_secs(8), "{}", relay.log());
    kafka.resume(0);
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    for signal in [Signal::TERM, Signal::INT] {
        let mut relay = Relay::start(kafka.bootstrap(), &[]);
        let mut idle = http::connect(relay.webhooks);
        let silent = http::connect(relay.webhooks);
        idle.write_all(&http::request("/webhooks", "", incoming_event(&chat_id(), 1))).expect("written");
        assert_eq!(http::read(&mut idle).expect("an answer").status, 200);
        let began = Instant::now();
        relay.signal(signal);
        assert!(relay.end().success());
        assert!(began.elapsed() < Duration::from_secs(5), "{}", relay.log());
        drop((idle, silent));
    }
}

#[test]
fn with_a_spool_and_without_kafka_nothing_is_waited_for_in_vain_at_the_end() {
    let spool = tempfile::tempdir().expect("a directory");
    let directory = format!("{:?}", spool.path());
    let settings = [("spool.directory", directory.as_str()), ("kafka.start_timeout", "\"200ms\"")];
    let mut relay = Relay::start("127.0.0.1:1", &settings);
    assert_eq!(http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    relay.await_log("stopped: events remain in the spool");
    assert!(!relay.log().contains("the replay has not ended in time"), "{}", relay.log());
}

#[test]
fn the_admin_listener_answers_while_the_spool_is_drained_at_the_end() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let spool = tempfile::tempdir().expect("a directory");
    let directory = format!("{:?}", spool.path());
    let settings = [("spool.directory", directory.as_str()), ("kafka.publish_deadline", "\"500ms\"")];
    let mut relay = Relay::start_with(kafka.bootstrap(), &settings, &["--drain"]).ready();
    assert_eq!(http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
    kafka.pause(0);
    assert_eq!(http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
    relay.signal(Signal::TERM);
    relay.await_log("stopping: the spool is emptied first");
    assert_eq!(http::get(relay.admin, "/livez").status, 200);
    assert!(http::get(relay.admin, "/readyz").body.contains("shutting down"));
    let waiting = r#"livechat_relay_spool_records{topic="livechat.incoming_event"}"#;
    assert!(relay.metric(waiting) >= 1.0);
    kafka.resume(0);
    assert!(relay.end().success());
    assert!(relay.has_logged("stopped: no events are left"), "{}", relay.log());
}

/// GNU `timeout`, for one, signals the process and then its group.
#[test]
fn signals_that_follow_the_first_within_a_second_are_one_with_it() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let mut relay = Relay::start(kafka.bootstrap(), &[]);
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        relay.signal(signal);
    }
    assert_eq!(relay.end().code(), Some(0), "{}", relay.log());
    assert!(relay.has_logged("stopped: no events are left"), "{}", relay.log());
}

#[test]
fn a_second_signal_ends_at_once() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let mut relay = Relay::start(kafka.bootstrap(), &[("server.drain_delay", "\"60s\"")]);
    relay.signal(Signal::TERM);
    relay.await_log("stopping: requests in flight are finished");
    // Signals that follow the first at once are one with it.
    await_that("the second signal counts", || {
        relay.signal(Signal::TERM);
        relay.has_ended()
    });
    let status = relay.end();
    assert_eq!((status.code(), status.signal()), (Some(143), None), "{}", relay.log());
}
