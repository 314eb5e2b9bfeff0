//! Each error that a produce can meet, with a broker that sends it: what becomes of the event, and that all is well again
//! without a restart when the error is over. The brokers are librdkafka's mock, which answers with any error it is told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use livechat_relay::publish::{REMEDIES, Remedy};
use rdkafka::types::{RDKafkaApiKey, RDKafkaErrorCode as Code, RDKafkaRespErr};

use crate::support::kafka::{self, Message};
use crate::support::mock::Mock;
use crate::support::relay::{Relay, Settings, await_that};
use crate::support::{chat_id, data, http, incoming_event};

const TOPIC: &str = "livechat.incoming_event";
const OTHER: &str = "livechat.thread_tagged";
const DEAD_LETTERS: &str = "livechat.dead-letter";

/// So long may an answer take: `server.response_deadline`, and a second for a busy machine.
const DEADLINE: Duration = Duration::from_secs(9);

/// More answers than are asked for in one test.
const ALWAYS: usize = 500;

/// A mock cluster, and a relay with a spool in front of it.
struct Stage {
    relay: Relay,
    mock: Mock,
    _directory: tempfile::TempDir,
}

impl Stage {
    /// The relay knows its topics, and its producer its brokers.
    fn set() -> Self {
        let stage = Self::set_with(&[]);
        await_that("Kafka is there", || stage.relay.metric("livechat_relay_kafka_up") == 1.0);
        assert_eq!(stage.post(&chat_id()), "published");
        stage
    }

    fn set_with(more: Settings<'_>) -> Self {
        let mock = Mock::start();
        let directory = tempfile::tempdir().expect("a directory");
        let relay = start(&mock.bootstrap(), &directory, more);
        Self { relay, mock, _directory: directory }
    }

    /// The next `n` produces are answered so, whatever their topic; a row of librdkafka's own, which no broker sends, is
    /// handed to the delivery report as it came.
    fn answer(&self, code: Code, n: usize) {
        let code = RDKafkaRespErr::try_from(code as i32).expect("a code of librdkafka");
        self.mock.0.request_errors(RDKafkaApiKey::Produce, &vec![code; n]);
    }

    fn answer_no_more(&self) {
        self.mock.0.clear_request_errors(RDKafkaApiKey::Produce);
    }

    /// Posts an event, and says what it has become, by the metrics; the answer is 200, in time.
    fn post(&self, chat: &str) -> &'static str {
        self.post_as("incoming_event", chat)
    }

    fn post_other(&self, chat: &str) -> &'static str {
        self.post_as("thread_tagged", chat)
    }

    fn post_as(&self, action: &str, chat: &str) -> &'static str {
        let counts = || {
            ["published", "spooled", "dead_lettered"].map(|outcome| {
                let series = format!("livechat_relay_events_total{{action=\"{action}\",outcome=\"{outcome}\"}}");
                (outcome, self.relay.metric(&series))
            })
        };
        let (before, began) = (counts(), Instant::now());
        let answer = http::post(self.relay.webhooks, incoming_event(chat, 1).replace("incoming_event", action));
        assert!(answer.status == 200 && began.elapsed() < DEADLINE, "{answer:?}\n{}", self.relay.log());
        let risen = counts().into_iter().zip(before).find(|((_, now), (_, before))| now > before);
        risen.expect("each event is counted").0.0
    }

    fn errors(&self, code: &str) -> f64 {
        errors(&self.relay, code)
    }

    fn dead_letters(&self, to: &str) -> f64 {
        let of = |reason| format!("livechat_relay_dead_letters_total{{reason=\"{reason}\",to=\"{to}\"}}");
        ["too_large", "invalid"].into_iter().map(|reason| self.relay.metric(&of(reason))).sum()
    }

    /// Waits until the brokers have all that was spooled.
    fn drained(&self) {
        await_that("the spool is empty", || spooled(&self.relay) == 0.0);
    }

    fn read(&self, topic: &str) -> Vec<Message> {
        self.mock.read(topic)
    }

    /// Whether the event is on this topic, byte for byte.
    fn is_on(&self, topic: &str, chat: &str) -> bool {
        self.read(topic).iter().any(|message| is_whole(message, topic, chat))
    }
}

fn start(brokers: &str, directory: &tempfile::TempDir, more: Settings<'_>) -> Relay {
    let path = format!("\"{}\"", directory.path().join("spool").display());
    let usual = [
        ("topics.create", "false"),
        ("kafka.start_timeout", "\"200ms\""),
        ("kafka.probe_interval", "\"200ms\""),
        ("kafka.publish_deadline", "\"1s\""),
        ("server.response_deadline", "\"8s\""),
        ("spool.directory", path.as_str()),
    ];
    let kept = usual.iter().filter(|(key, _)| more.iter().all(|(set, _)| set != key));
    let settings: Vec<_> = kept.chain(more).copied().collect();
    Relay::start(brokers, &settings)
}

fn errors(relay: &Relay, code: &str) -> f64 {
    let series = format!("livechat_relay_kafka_errors_total{{code=\"{code}\"}} ");
    let text = http::get(relay.admin, "/metrics").body;
    text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0.0)
}

fn spooled(relay: &Relay) -> f64 {
    let text = http::get(relay.admin, "/metrics").body;
    let lanes = text.lines().filter(|line| line.starts_with("livechat_relay_spool_records{"));
    lanes.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Whether the message is this event's: the envelope of its own, and the data as it was posted.
fn is_whole(message: &Message, topic: &str, chat: &str) -> bool {
    let action = if topic == OTHER { "thread_tagged" } else { "incoming_event" };
    let end = format!(r#""data":{}}}"#, data(chat, 1).replace("incoming_event", action));
    message.key.as_deref() == Some(chat.as_bytes()) && message.value.ends_with(end.as_bytes())
}

/// What becomes of an event whose produce is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Becomes {
    /// Nothing: librdkafka sends it again. Where the answer stays the same for `publish_deadline`, it is spooled.
    SentAgain,
    /// Spooled at once, and published by the next try.
    Spooled,
    /// A dead letter; where the dead-letter topic refuses it, too, it is kept on the disk.
    DeadLetter(&'static str),
    /// Spooled at once; the producer ends in a fatal state, and a new one publishes it.
    Rebuilt,
}

/// By code. Those of librdkafka's own, which no broker sends, are answered by the mock all the same: it shows what the relay
/// makes of the report. How they come about in life is below, where it can be brought about.
#[rustfmt::skip]
const CASES: [(Becomes, &[Code]); 5] = [
    (Becomes::SentAgain, &[
        Code::UnknownTopicOrPartition, Code::RequestTimedOut, Code::InvalidMessage, Code::LeaderNotAvailable,
        Code::NotLeaderForPartition, Code::BrokerNotAvailable, Code::ReplicaNotAvailable, Code::NotEnoughReplicas,
        Code::NotEnoughReplicasAfterAppend, Code::KafkaStorageError, Code::UnknownProducerId,
        Code::OperationTimedOut, Code::TimedOutQueue, Code::SSL, Code::BrokerTransportFailure,
    ]),
    (Becomes::Spooled, &[
        Code::UnknownTopic, Code::UnknownTopicId, Code::UnknownPartition, Code::InvalidTopic, Code::TopicAuthorizationFailed,
        Code::ClusterAuthorizationFailed, Code::PolicyViolation, Code::InvalidConfig, Code::UnsupportedForMessageFormat,
        Code::UnsupportedCompressionType, Code::UnsupportedVersion, Code::UnsupportedFeature, Code::InvalidRequest,
        Code::InvalidRequiredAcks, Code::Authentication, Code::SaslAuthenticationFailed, Code::UnsupportedSASLMechanism,
        Code::InvalidTimestamp, Code::MessageTimedOut, Code::AllBrokersDown, Code::Resolve, Code::NetworkException, Code::FencedLeaderEpoch,
        Code::UnknownLeaderEpoch, Code::ISRInsufficient, Code::ThrottlingQuotaExceeded, Code::QueueFull, Code::PurgeQueue,
        Code::PurgeInflight, Code::Unknown, Code::InvalidProducerEpoch, Code::InvalidProducerIdMapping, Code::ProducerFenced,
        Code::BadMessage, Code::InvalidDifferentRecord, Code::NoOffset,
        // Only their name is known of a producer that has ended so: the next record that it is given is refused as `Fatal`.
        Code::Fatal, Code::Fenced, Code::Inconsistent,
    ]),
    (Becomes::DeadLetter("too_large"), &[Code::MessageSizeTooLarge, Code::InvalidMessageSize, Code::MessageBatchTooLarge]),
    (Becomes::DeadLetter("invalid"), &[Code::InvalidRecord]),
    (Becomes::Rebuilt, &[Code::OutOfOrderSequenceNumber]),
];

fn case(code: Code) -> Becomes {
    let case = CASES.iter().find(|(_, codes)| codes.contains(&code));
    case.unwrap_or_else(|| panic!("no row without a test: {code:?}")).0
}

/// How often a record is refused until it is a dead letter: at first, when it is sent from the spool, and when it is sent alone.
const REFUSALS: usize = 3;

fn show(code: Code) {
    let stage = Stage::set();
    let [first, second, other] = [chat_id(), chat_id(), chat_id()];
    match case(code) {
        Becomes::SentAgain => {
            stage.answer(code, 1);
            assert_eq!(stage.post(&first), "published");
            stage.answer(code, ALWAYS);
            assert_eq!(stage.post(&second), "spooled");
        }
        Becomes::Spooled => {
            stage.answer(code, 3);
            assert_eq!(stage.post(&first), "spooled");
            assert!(stage.errors(&format!("{code:?}")) >= 1.0);
            stage.post(&second);
        }
        Becomes::DeadLetter(reason) => {
            stage.answer(code, ALWAYS);
            stage.post(&second);
            await_that("it is on the disk", || stage.relay.metric("livechat_relay_dead_letters_on_disk") == 1.0);
            await_that("it is counted", || stage.dead_letters("disk") == 1.0); // a moment after the fsync
            assert!(!stage.is_on(DEAD_LETTERS, &second));
            stage.answer_no_more();
            await_that("events go to Kafka directly", || stage.post(&chat_id()) == "published");

            stage.answer(code, REFUSALS);
            stage.post(&first);
            await_that("a dead letter", || stage.dead_letters("topic") == 1.0);
            assert!(!stage.is_on(TOPIC, &first));
            let letter = stage.read(DEAD_LETTERS).into_iter().find(|letter| is_whole(letter, TOPIC, &first));
            let headers = letter.expect("byte for byte").headers;
            let header = |name| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice());
            assert_eq!(header("dead-letter-topic"), Some(TOPIC.as_bytes()));
            assert_eq!(header("dead-letter-reason"), Some(reason.as_bytes()));
            assert_eq!(header("dead-letter-error"), Some(format!("{code:?}").as_bytes()));
            assert_eq!(header("content-type"), Some(b"application/cloudevents+json".as_slice()));
        }
        Becomes::Rebuilt => {
            stage.answer(code, 1);
            assert_eq!(stage.post(&first), "spooled");
            await_that("a new producer", || stage.relay.metric("livechat_relay_producer_rebuilds_total") == 1.0);
            stage.post(&second);
        }
    }
    stage.post_other(&other);

    stage.answer_no_more();
    stage.drained();
    let is_published = !matches!(case(code), Becomes::DeadLetter(_));
    assert_eq!((stage.is_on(TOPIC, &first), stage.is_on(TOPIC, &second)), (is_published, is_published));
    assert!(stage.is_on(OTHER, &other));
    assert_eq!(stage.post(&chat_id()), "published");
}

/// Its first request to a topic is refused while the next is under way: librdkafka takes the ack of that for both.
#[test]
fn without_a_spool_what_got_lost_on_its_way_to_the_brokers_is_handed_over_again() {
    let mock = Mock::start();
    let settings = [("topics.create", "false"), ("kafka.start_timeout", "\"200ms\"")];
    let relay = Relay::start(
        &mock.bootstrap(),
        &[&settings[..], &[("kafka.properties", "{ \"batch.num.messages\" = \"1\" }")]].concat(),
    );
    let lost =
        || http::get(relay.admin, "/metrics").body.contains("livechat_relay_kafka_errors_total{code=\"NoOffset\"}");
    for action in ["incoming_event", "thread_tagged", "thread_untagged", "chat_deactivated", "incoming_chat"] {
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
        mock.0.request_errors(RDKafkaApiKey::Produce, &[refusal]);
        let chats: Vec<String> = (0..8).map(|_| chat_id()).collect();
        let post = |chat: &String| {
            http::post(relay.webhooks, incoming_event(chat, 1).replace("incoming_event", action)).status
        };
        let answers: Vec<u16> = std::thread::scope(|scope| {
            let posts: Vec<_> = chats.iter().map(|chat| scope.spawn(move || post(chat))).collect();
            posts.into_iter().map(|answer| answer.join().expect("an answer")).collect()
        });
        assert_eq!(answers, [200; 8], "{}", relay.log());
        let there = mock.read(&format!("livechat.{action}"));
        assert!(
            chats.iter().all(|chat| there
                .iter()
                .any(|message| String::from_utf8_lossy(&message.value).contains(chat.as_str()))),
            "{action}"
        );
        if lost() {
            return;
        }
    }
    panic!("nothing got lost: {}", relay.log());
}

#[test]
fn each_error_that_a_broker_answers_with_has_the_remedy_that_the_table_says() {
    let rows = Mutex::new(REMEDIES.to_vec());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let row = rows.lock().expect("no panic holds it").pop();
                    let Some((code, _)) = row else { return };
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| show(code))) {
                        let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        failed.lock().expect("no panic holds it").push(format!("{code:?}: {why}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic holds it");
    assert!(failed.is_empty(), "{} rows: {}", failed.len(), failed.join("\n"));
    for (code, remedy) in REMEDIES {
        let is_dead_letter = matches!(case(code), Becomes::DeadLetter(_));
        assert_eq!(is_dead_letter, remedy == Remedy::DeadLetter, "{code:?}");
    }
}

/// A broker refuses a batch whole for one record in it. The relay has no spool that takes anything, so that it cannot leave the rest to
/// replay.
fn of_a_batch_only_what_is_too_large_becomes_a_dead_letter(settings: Settings<'_>) {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let prefix = format!("batch-{}.", chat_id());
    let (topic, quoted) = (format!("{prefix}incoming_event"), format!("{prefix:?}"));
    let usual = [("topics.prefix", quoted.as_str()), ("topics.partitions", "1"), ("kafka.linger", "\"500ms\"")];
    let relay = Relay::start(kafka.bootstrap(), &[&usual, settings].concat()).ready();
    await_that("its topics are there", || relay.metric("livechat_relay_topics{state=\"ready\"}") == 48.0);
    kafka.set_topic(&topic, &[("max.message.bytes", "20000")]);
    let count = |outcome: &str| {
        relay.metric(&format!("livechat_relay_events_total{{action=\"incoming_event\",outcome=\"{outcome}\"}}"))
    };
    let (mut small, mut large) = (Vec::new(), Vec::new());
    // On a busy machine the requests may come apart: then others than the large one are not refused with it.
    for _ in 0..20 {
        let refused = errors(&relay, "MessageSizeTooLarge");
        let chats: Vec<String> = (0..8).map(|_| chat_id()).collect();
        let post = |number: usize| {
            let text: String = if number == 3 { (0..5_000).map(|_| chat_id()).collect() } else { "Grüße".to_owned() };
            http::post(relay.webhooks, incoming_event(&chats[number], 1).replace("Grüße", &text)).status
        };
        let answers: Vec<u16> = std::thread::scope(|scope| {
            let posts: Vec<_> = (0..8).map(|number| scope.spawn(move || post(number))).collect();
            posts.into_iter().map(|answer| answer.join().expect("an answer")).collect()
        });
        assert_eq!(answers, [200; 8], "{}", relay.log());
        large.push(chats[3].clone());
        small.extend(chats.into_iter().enumerate().filter(|(number, _)| *number != 3).map(|(_, chat)| chat));

        let keys = |topic: &str| -> Vec<String> {
            let messages = kafka.read_all(&[topic]);
            let keys =
                messages.into_iter().map(|message| String::from_utf8(message.key.expect("a key")).expect("a chat"));
            let mut keys: Vec<_> = keys.collect();
            keys.sort();
            keys
        };
        let sorted = |chats: &[String]| {
            let mut chats = chats.to_vec();
            chats.sort();
            chats
        };
        assert_eq!(keys(&topic), sorted(&small), "each once: {}", relay.log());
        assert_eq!(keys(&format!("{prefix}dead-letter")), sorted(&large));
        assert_eq!((count("published"), count("dead_lettered")), (small.len() as f64, large.len() as f64));
        if errors(&relay, "MessageSizeTooLarge") - refused > 2.0 {
            return; // the large one twice, with its batch and alone; so there were others in its batch
        }
    }
    panic!("no batch was refused whole: {}", relay.log());
}

#[test]
fn without_a_spool_of_a_batch_only_what_is_too_large_becomes_a_dead_letter() {
    of_a_batch_only_what_is_too_large_becomes_a_dead_letter(&[]);
}

#[test]
fn with_a_full_spool_of_a_batch_only_what_is_too_large_becomes_a_dead_letter() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = format!("\"{}\"", directory.path().join("spool").display());
    let settings = [
        ("spool.directory", path.as_str()),
        ("spool.free_min", "\"1TiB\""), // no disk has so much
    ];
    of_a_batch_only_what_is_too_large_becomes_a_dead_letter(&settings);
}

#[test]
fn a_topic_without_a_leader_holds_back_only_itself() {
    let stage = Stage::set();
    let [first, second] = [chat_id(), chat_id()];
    stage.mock.0.partition_leader(TOPIC, 0, None).expect("a topic");
    assert_eq!(stage.post(&first), "spooled");
    stage.post_other(&chat_id()); // the first failure could have been everybody's
    await_that("the others are acked", || spooled(&stage.relay) == 1.0);

    await_that("tried again", || stage.errors("MessageTimedOut") >= 2.0);
    assert_eq!(stage.post_other(&chat_id()), "published");
    assert_eq!(stage.post(&second), "spooled");

    stage.mock.0.partition_leader(TOPIC, 0, Some(1)).expect("a topic");
    stage.drained();
    assert!(stage.is_on(TOPIC, &first) && stage.is_on(TOPIC, &second));
}

#[test]
fn a_topic_that_may_not_be_written_holds_back_only_itself() {
    let stage = Stage::set();
    let chat = chat_id();
    stage.mock.0.topic_error(TOPIC, RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).expect("a topic");
    stage.answer(Code::TopicAuthorizationFailed, 1);
    assert_eq!(stage.post(&chat), "spooled");
    await_that("an operator is asked", || stage.relay.log().contains("is unavailable until someone fixes it"));
    assert_eq!(stage.post_other(&chat_id()), "published");
    assert_eq!(spooled(&stage.relay), 1.0);

    stage.mock.0.topic_error(TOPIC, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).expect("a topic");
    stage.drained();
    assert!(stage.is_on(TOPIC, &chat));
}

#[test]
fn brokers_that_hang_or_hang_up_mean_the_spool_until_they_go_on() {
    let stage = Stage::set();
    let [hung, closed, other] = [chat_id(), chat_id(), chat_id()];
    stage.mock.freeze();
    assert_eq!(stage.post(&hung), "spooled");
    assert!(stage.errors("MessageTimedOut") > 0.0);
    assert_eq!(stage.post_other(&other), "spooled");
    stage.mock.thaw();
    stage.drained();

    stage.answer(Code::BrokerTransportFailure, ALWAYS);
    assert_eq!(stage.post(&closed), "spooled");
    assert!(stage.errors("AllBrokersDown") > 0.0);
    stage.answer_no_more();
    stage.drained();
    assert!(stage.is_on(TOPIC, &hung) && stage.is_on(TOPIC, &closed) && stage.is_on(OTHER, &other));
}

#[test]
fn a_full_producer_queue_means_the_spool() {
    let stage = Stage::set_with(&[("kafka.queue_records_max", "1"), ("kafka.publish_deadline", "\"3s\"")]);
    await_that("Kafka is there", || stage.relay.metric("livechat_relay_kafka_up") == 1.0);
    await_that("it takes events", || stage.post(&chat_id()) == "published");
    let [first, other] = [chat_id(), chat_id()];
    stage.mock.0.partition_leader(TOPIC, 0, None).expect("a topic");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| http::post(stage.relay.webhooks, incoming_event(&first, 1)).status);
        await_that("the queue is full", || stage.relay.metric("livechat_relay_records_in_flight") == 1.0);
        assert_eq!(stage.post_other(&other), "spooled");
        assert!(stage.errors("QueueFull") >= 1.0);
        assert_eq!(waiting.join().expect("an answer"), 200);
    });
    stage.mock.0.partition_leader(TOPIC, 0, Some(1)).expect("a topic");
    stage.drained();
    assert!(stage.is_on(TOPIC, &first) && stage.is_on(OTHER, &other));
}

#[test]
fn what_was_under_way_in_a_producer_that_is_replaced_is_published_by_the_next() {
    let stage = Stage::set_with(&[("kafka.publish_deadline", "\"3s\"")]);
    await_that("Kafka is there", || stage.relay.metric("livechat_relay_kafka_up") == 1.0);
    let [first, other] = [chat_id(), chat_id()];
    stage.mock.0.partition_leader(TOPIC, 0, None).expect("a topic");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| http::post(stage.relay.webhooks, incoming_event(&first, 1)).status);
        await_that("one is under way", || stage.relay.metric("livechat_relay_records_in_flight") == 1.0);
        stage.answer(Code::OutOfOrderSequenceNumber, 1);
        assert_eq!(stage.post_other(&other), "spooled");
        assert_eq!(waiting.join().expect("an answer"), 200);
    });
    // The next record that is handed over finds the fatal error.
    await_that("another producer", || stage.relay.metric("livechat_relay_producer_rebuilds_total") >= 1.0);
    stage.mock.0.partition_leader(TOPIC, 0, Some(1)).expect("a topic");
    stage.drained();
    assert!(stage.is_on(TOPIC, &first) && stage.is_on(OTHER, &other));
}

#[test]
fn wrong_addresses_and_wrong_security_are_logged_and_what_came_meanwhile_is_published_once_they_are_right() {
    let security = |protocol: &str| {
        let sasl = r#""sasl.mechanism" = "PLAIN", "sasl.username" = "relay", "sasl.password" = "wrong""#;
        format!(r#"{{ "security.protocol" = "{protocol}", {sasl} }}"#)
    };
    let (ssl, sasl) = (security("ssl"), security("sasl_plaintext"));
    let stage = Stage::set_with(&[]);
    let right = stage.mock.bootstrap();
    let wrongs: [(&str, Settings<'_>, &str); 4] = [
        ("no-such-host.invalid:9092", &[], "Resolve"),
        ("127.0.0.1:1", &[], "BrokerTransportFailure"),
        (&right, &[("kafka.properties", &ssl)], "BrokerTransportFailure"),
        (&right, &[("kafka.properties", &sasl)], "Authentication"),
    ];
    for (brokers, settings, code) in wrongs {
        let (directory, chat) = (tempfile::tempdir().expect("a directory"), chat_id());
        let relay = start(brokers, &directory, settings);
        assert_eq!(http::post(relay.webhooks, incoming_event(&chat, 1)).status, 200, "{code}");
        await_that("it is logged", || relay.log().contains(&format!("\"code\":\"{code}\"")));
        assert_eq!(spooled(&relay), 1.0);
        drop(relay);

        let relay = start(&right, &directory, &[]);
        await_that("the spool is empty", || spooled(&relay) == 0.0);
        assert!(stage.is_on(TOPIC, &chat), "{code}");
    }
}
