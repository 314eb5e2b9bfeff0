//! Kafka goes away, and comes back: 503 in time while it is gone, 200 again without a restart.

use std::time::{Duration, Instant};

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::kafka::Kafka;
use crate::support::relay::{DEADLINES, Relay, await_that};
use crate::support::{chat_id, http, incoming_event};

/// The longest that an answer may take: `server.response_deadline`, and a second for a busy machine.
const DEADLINE: Duration = Duration::from_secs(9);

/// Eight senders at once; each answer's status and time.
fn post_eight(relay: &Relay) -> Vec<(u16, Duration)> {
    std::thread::scope(|scope| {
        let post = || {
            let began = Instant::now();
            (http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status, began.elapsed())
        };
        let senders: Vec<_> = (0..8).map(|_| scope.spawn(post)).collect();
        senders.into_iter().map(|sender| sender.join().expect("a sender")).collect()
    })
}

fn assert_503_in_time(answers: &[(u16, Duration)]) {
    assert!(answers.iter().all(|(status, took)| *status == 503 && *took < DEADLINE), "{answers:?}");
}

#[test]
fn kafka_killed_means_503_in_time_and_kafka_back_means_200_without_a_restart() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let relay = Relay::start(kafka.bootstrap(), DEADLINES).ready();
    // A broker that has just started may be slow with its first record.
    await_that("200", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 200);

    kafka.kill(0);
    assert_503_in_time(&post_eight(&relay));
    let answer = http::post(relay.webhooks, incoming_event(&chat_id(), 1));
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    await_that("readiness is off", || http::get(relay.admin, "/readyz").status == 503);
    assert_eq!(http::get(relay.admin, "/livez").status, 200);

    kafka.start_node(0);
    await_that("200 again", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 200);
    await_that("readiness is on", || http::get(relay.admin, "/readyz").status == 200);
    await_that("it is told", || {
        relay.log().contains("Kafka is unreachable: webhooks are answered 503") && relay.log().contains("Kafka is back")
    });
}

#[test]
fn brokers_that_hang_mean_503_in_time_and_200_when_they_go_on() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let relay = Relay::start(kafka.bootstrap(), DEADLINES).ready();
    // A broker that has just started may be slow with its first record.
    await_that("200", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 200);

    kafka.pause(0);
    assert_503_in_time(&post_eight(&relay));

    kafka.resume(0);
    await_that("200 again", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 200);
}

#[test]
fn a_relay_that_started_before_kafka_serves_when_kafka_is_there() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    kafka.kill(0);
    let relay = Relay::start(kafka.bootstrap(), &[DEADLINES, &[("kafka.start_timeout", "\"500ms\"")]].concat());
    assert!(relay.has_logged("starting without Kafka"), "{}", relay.log());
    assert_503_in_time(&post_eight(&relay));

    kafka.start_node(0);
    let relay = relay.ready();
    await_that("200", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 200);
    assert_eq!(kafka.topics().len(), 48, "the topics were created once Kafka was there");
}

#[test]
fn a_producer_beyond_help_is_replaced() {
    // A fatal state of the idempotent producer cannot be brought about with a real broker at will.
    let mock = MockCluster::new(1).expect("a mock cluster");
    for topic in livechat_relay::event::actions::names().chain(["unlisted", "dead-letter"]) {
        mock.create_topic(&format!("livechat.{topic}"), 3, 1).expect("a topic");
    }
    mock.request_errors(
        RDKafkaApiKey::InitProducerId,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED],
    );
    let settings = [DEADLINES, &[("topics.create", "false"), ("kafka.start_timeout", "\"500ms\"")]].concat();
    let relay = Relay::start(&mock.bootstrap_servers(), &settings);

    await_that("200 from a new producer", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 200);
    assert!(relay.metric("livechat_relay_producer_rebuilds_total") >= 1.0, "{}", relay.log());
}

/// One 200 after another, on a topic each in turn; how many were not 200.
fn post_until(relay: &Relay, stop: &std::sync::atomic::AtomicBool, answered: &std::sync::Mutex<Vec<String>>) -> usize {
    let mut refused = 0;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let chat = chat_id();
        if http::post(relay.webhooks, incoming_event(&chat, 1)).status == 200 {
            answered.lock().expect("no panic holds it").push(chat);
        } else {
            refused += 1;
        }
    }
    refused
}

#[test]
fn a_rolling_restart_and_a_killed_broker_of_three_lose_nothing_that_was_answered_200() {
    let Some(kafka) = Kafka::start_or_skip(3, &[("min.insync.replicas", "2")]) else { return };
    let relay = Relay::start(kafka.bootstrap(), &[DEADLINES, &[("topics.replication", "3")]].concat()).ready();
    let (stop, answered) = (std::sync::atomic::AtomicBool::new(false), std::sync::Mutex::new(Vec::new()));
    let count = || answered.lock().expect("no panic holds it").len();
    let more = |what: &str| {
        let before = count();
        await_that(what, || count() > before + 50);
    };

    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| post_until(&relay, &stop, &answered))));
        more("events before");
        for node in 0..3 {
            kafka.restart(node);
            more("events after a restart");
        }
        kafka.kill(0);
        more("events with a broker gone");
        kafka.start_node(0);
        (0..3).for_each(|node| kafka.kill(node));
        await_that("503", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 503);
        kafka.start_all();
        more("events after all were gone");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });

    let found = kafka.read_all(&["livechat.incoming_event"]);
    let found: std::collections::HashSet<_> = found.into_iter().filter_map(|m| m.key).collect();
    let answered = answered.into_inner().expect("no panic holds it");
    let lost: Vec<_> = answered.iter().filter(|chat| !found.contains(chat.as_bytes())).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}\n{}", lost.len(), answered.len(), kafka.logs(0));
}

#[test]
fn a_topic_that_is_deleted_holds_back_only_itself_until_it_is_there_again() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    // Until the test creates it: the relay would do so, too.
    let relay = Relay::start(kafka.bootstrap(), &[DEADLINES, &[("topics.check_interval", "\"1h\"")]].concat()).ready();
    let tagged = || incoming_event(&chat_id(), 1).replace("incoming_event", "thread_tagged");
    await_that("200", || http::post(relay.webhooks, tagged()).status == 200);

    kafka.delete_topic("livechat.thread_tagged");
    await_that("503 for the deleted topic", || http::post(relay.webhooks, tagged()).status == 503);
    // A broker that has just started may be slow with its first record.
    await_that("200", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 200);

    kafka.create_topic("livechat.thread_tagged", 3, &[("max.message.bytes", "3145728")]);
    await_that("200 for the new topic", || http::post(relay.webhooks, tagged()).status == 200);
}
