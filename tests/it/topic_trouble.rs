//! One topic in trouble, with a real broker: it holds back only itself, and heals by itself when the trouble is over.

use std::sync::LazyLock;

use rustix::process::Signal;

use crate::support::kafka::Kafka;
use crate::support::relay::{Relay, Settings, await_that};
use crate::support::{chat_id, http, incoming_event};

/// One node with an authorizer, for all tests of this file and of `topics.rs`: each has topics of its own.
pub fn kafka() -> Option<&'static Kafka> {
    static KAFKA: LazyLock<Option<Kafka>> = LazyLock::new(|| {
        let authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer";
        Kafka::start_or_skip(1, &[("authorizer.class.name", authorizer), ("allow.everyone.if.no.acl.found", "true")])
    });
    KAFKA.as_ref()
}

/// The rule that it is about stands behind it.
const DENY: [&str; 5] = ["--deny-principal", "User:*", "--operation", "Write", "--topic"];

/// A relay with a spool and topics of its own, one of which will be in trouble.
struct Stage<'a> {
    kafka: &'a Kafka,
    prefix: &'static str,
    relay: Relay,
    directory: tempfile::TempDir,
    /// The chat of the events to the topic in trouble; one chat, so that they are in one order.
    chat: String,
    posted: u64,
}

impl Stage<'static> {
    fn set(prefix: &'static str) -> Option<Self> {
        Some(Stage::set_on(kafka()?, prefix, 1))
    }
}

impl<'a> Stage<'a> {
    fn set_on(kafka: &'a Kafka, prefix: &'static str, replication: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let relay = start(kafka, prefix, &directory, replication);
        await_that("Kafka is there", || relay.metric("livechat_relay_kafka_up") == 1.0);
        let mut stage = Self { kafka, prefix, relay, directory, chat: chat_id(), posted: 0 };
        stage.healed();
        stage.others_go_on();
        stage
    }

    /// The topic in trouble.
    fn topic(&self) -> String {
        self.named("thread_tagged")
    }

    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Posts events to the topic in trouble.
    fn post(&mut self, events: u64) {
        (0..events).for_each(|_| self.post_with("Grüße"));
    }

    fn post_with(&mut self, text: &str) {
        let body = incoming_event(&self.chat, self.posted).replace("incoming_event", "thread_tagged");
        let answer = http::post(self.relay.webhooks, body.replace("Grüße", text));
        assert_eq!(answer.status, 200, "{}", self.relay.log());
        self.posted += 1;
    }

    fn count(&self, action: &str, outcome: &str) -> f64 {
        self.relay.metric(&format!("livechat_relay_events_total{{action=\"{action}\",outcome=\"{outcome}\"}}"))
    }

    fn spooled(&self, topic: &str) -> f64 {
        let series = format!("livechat_relay_spool_records{{topic=\"{topic}\"}} ");
        let text = http::get(self.relay.admin, "/metrics").body;
        text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0.0)
    }

    /// Events of another topic are published directly. The first one may find out that not all of Kafka is unreachable.
    fn others_go_on(&self) {
        let post = || assert_eq!(http::post(self.relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
        post();
        await_that("the others are direct", || self.spooled(&self.named("incoming_event")) == 0.0);
        let before = self.count("incoming_event", "published");
        (0..5).for_each(|_| post());
        assert_eq!(self.count("incoming_event", "published"), before + 5.0, "{}", self.relay.log());
    }

    /// Nobody may write to the topic in trouble.
    fn forbid(&self) {
        self.kafka.tool("acls", &[&["--add"], &DENY[..], &[&self.topic()]].concat());
    }

    fn allow(&self) {
        self.kafka.tool("acls", &[&["--remove", "--force"], &DENY[..], &[&self.topic()]].concat());
    }

    /// Waits until the topic takes events directly again.
    fn healed(&mut self) {
        await_that("the spool is empty", || self.spooled(&self.topic()) == 0.0);
        let before = self.count("thread_tagged", "published");
        await_that("direct again", || {
            self.post(1);
            self.count("thread_tagged", "published") > before
        });
    }

    fn order(&self) -> Vec<u64> {
        order(self.kafka, &self.topic())
    }

    fn assert_all_in_order(&self) {
        assert_eq!(self.order(), (0..self.posted).collect::<Vec<_>>());
    }
}

/// The numbers of a chat's events in a topic, first occurrences only.
pub fn order(kafka: &Kafka, topic: &str) -> Vec<u64> {
    let mut order = Vec::new();
    for message in kafka.read_all(&[topic]) {
        let value: serde_json::Value = serde_json::from_slice(&message.value).expect("JSON");
        let id = value["data"]["payload"]["event"]["id"].as_str().expect("an id");
        let number = id.rsplit('_').next().and_then(|n| n.parse().ok()).expect("a number");
        if !order.contains(&number) {
            order.push(number);
        }
    }
    order
}

fn start(kafka: &Kafka, prefix: &str, directory: &tempfile::TempDir, replication: u32) -> Relay {
    let (path, prefix) = (format!("\"{}\"", directory.path().join("spool").display()), format!("{prefix:?}"));
    let replication = replication.to_string();
    let settings: Settings<'_> = &[
        ("topics.prefix", &prefix),
        ("topics.partitions", "1"),
        ("topics.check_interval", "\"1h\""), // the tests create them again
        ("topics.replication", &replication),
        ("kafka.publish_deadline", "\"1s\""),
        ("server.response_deadline", "\"8s\""),
        ("spool.directory", &path),
    ];
    Relay::start(kafka.bootstrap(), settings)
}

fn incompressible(bytes: usize) -> String {
    (0..bytes / 20).map(|_| chat_id()).collect()
}

#[test]
fn a_topic_that_is_deleted_holds_back_only_itself_until_it_is_there_again() {
    let Some(mut stage) = Stage::set("deleted.") else { return };
    let before = stage.posted;
    stage.kafka.delete_topic(&stage.topic());
    stage.post(5);
    assert_eq!(stage.spooled(&stage.topic()), 5.0);
    stage.others_go_on();

    stage.kafka.create_topic(&stage.topic(), 1, &[]);
    stage.healed();
    assert_eq!(stage.order(), (before..stage.posted).collect::<Vec<_>>());
}

#[test]
fn a_topic_that_may_not_be_written_holds_back_only_itself_until_it_may() {
    let Some(mut stage) = Stage::set("forbidden.") else { return };
    stage.forbid();
    stage.post(5);
    assert_eq!(stage.spooled(&stage.topic()), 5.0);
    assert!(stage.relay.has_logged("is unavailable until someone fixes it"), "{}", stage.relay.log());
    stage.others_go_on();

    stage.allow();
    stage.healed();
    stage.assert_all_in_order();
}

#[test]
fn a_topic_that_is_short_of_replicas_holds_back_only_itself_until_it_has_enough() {
    // Kafka takes no more replicas for needed than a topic has: one of three has to be away.
    let Some(kafka) = Kafka::start_or_skip(3, &[]) else { return };
    let mut stage = Stage::set_on(&kafka, "replicas.", 3);
    kafka.set_topic(&stage.topic(), &[("min.insync.replicas", "3")]);
    kafka.stop(2);
    stage.post(5);
    assert_eq!(stage.spooled(&stage.topic()), 5.0);
    stage.others_go_on();

    kafka.start_node(2);
    stage.healed();
    stage.assert_all_in_order();
}

#[test]
fn of_a_backlog_that_is_refused_whole_only_what_is_too_large_by_itself_becomes_a_dead_letter() {
    let Some(mut stage) = Stage::set("large.") else { return };
    // A backlog's batch is larger than this, each event of it but one is not.
    stage.kafka.set_topic(&stage.topic(), &[("max.message.bytes", "20000")]);
    stage.forbid();
    let large = stage.posted + 10;
    let mut large_chat = String::new();
    (0..100).for_each(|_| {
        stage.chat = chat_id(); // of one chat, one event is under way at a time
        if stage.posted == large {
            large_chat.clone_from(&stage.chat);
        }
        let bytes = if stage.posted == large { 100_000 } else { 2_000 };
        stage.post_with(&incompressible(bytes));
    });

    assert_eq!(stage.spooled(&stage.topic()), 100.0);
    stage.allow();
    stage.healed();
    stage.others_go_on();

    let mut found = stage.order();
    found.sort_unstable();
    assert_eq!(found, (0..stage.posted).filter(|n| *n != large).collect::<Vec<_>>());
    let series = r#"livechat_relay_dead_letters_total{reason="too_large",to="topic"}"#;
    assert_eq!(stage.relay.metric(series), 1.0);
    let letters = stage.kafka.read_all(&[&stage.named("dead-letter")]);
    assert!(letters.len() == 1 && letters[0].key.as_deref() == Some(large_chat.as_bytes()));
    assert!(letters[0].headers.contains(&("dead-letter-topic".to_owned(), stage.topic().into_bytes())));
}

#[test]
fn a_dead_letter_that_its_topic_cannot_take_either_is_parked_on_the_disk_and_survives_a_restart() {
    let Some(mut stage) = Stage::set("parked.") else { return };
    for topic in [stage.topic(), stage.named("dead-letter")] {
        stage.kafka.set_topic(&topic, &[("max.message.bytes", "20000")]);
    }
    let large = stage.posted;
    stage.post_with(&incompressible(100_000));
    await_that("it is parked", || stage.relay.metric("livechat_relay_dead_letters_on_disk") == 1.0);
    stage.healed();
    stage.others_go_on();
    assert_eq!(stage.relay.metric(r#"livechat_relay_dead_letters_total{reason="too_large",to="disk"}"#), 1.0);

    stage.relay.signal(Signal::KILL);
    stage.relay.end();
    let relay = start(stage.kafka, stage.prefix, &stage.directory, 1);
    assert_eq!(relay.metric("livechat_relay_dead_letters_on_disk"), 1.0);
    assert!(!stage.order().contains(&large));
}
