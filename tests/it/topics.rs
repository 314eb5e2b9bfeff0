//! Topics that are missing and cannot be created, with a real broker: each holds back only itself, is named in the log and in a metric,
//! and heals without a restart.

use std::sync::LazyLock;

use rustix::process::Signal;

use crate::support::kafka::Kafka;
use crate::support::relay::{Relay, Settings, await_that};
use crate::support::{chat_id, http, incoming_event};
use crate::topic_trouble;

/// One node whose authorizer denies everybody to create topics, unless a rule for the topic allows it, or there is none for it.
fn kafka() -> Option<&'static Kafka> {
    static RULES: LazyLock<Option<&'static Kafka>> = LazyLock::new(|| {
        let kafka = topic_trouble::kafka()?;
        // Who may create topics in the cluster may create each. With the first rule all that no rule allows is forbidden.
        kafka.tool("acls", &["--add", "--allow-principal", "User:*", "--operation", "All", "--cluster"]);
        kafka.tool("acls", &["--add", "--deny-principal", "User:*", "--operation", "Create", "--cluster"]);
        Some(kafka)
    });
    *RULES
}

/// Nobody may create the topics of this name, or with this prefix; all else is allowed.
struct Denied<'a> {
    kafka: &'a Kafka,
    topics: [&'a str; 4],
}

impl<'a> Denied<'a> {
    fn new(kafka: &'a Kafka, pattern: &'a str, name: &'a str) -> Self {
        let topics = ["--resource-pattern-type", pattern, "--topic", name];
        let allowed = ["--add", "--allow-principal", "User:*", "--operation", "All"];
        kafka.tool("acls", &[&allowed[..], &topics].concat());
        kafka.tool("acls", &[&["--add", "--deny-principal", "User:*", "--operation", "Create"][..], &topics].concat());
        Self { kafka, topics }
    }

    fn lift(self) {
        let denied = ["--remove", "--force", "--deny-principal", "User:*", "--operation", "Create"];
        self.kafka.tool("acls", &[&denied[..], &self.topics].concat());
    }
}

/// What a topic needs for the largest event; without a spool a relay does not start with others.
const LARGE_ENOUGH: (&str, &str) = ("max.message.bytes", "3145728");

/// A relay with topics of its own.
struct Stage {
    relay: Relay,
    prefix: &'static str,
    chat: String,
    posted: u64,
}

impl Stage {
    fn start(kafka: &Kafka, prefix: &'static str, more: Settings<'_>) -> Self {
        let quoted = format!("{prefix:?}");
        let settings: Settings<'_> = &[
            ("topics.prefix", &quoted),
            ("topics.partitions", "1"),
            ("topics.check_interval", "\"200ms\""),
            ("kafka.publish_deadline", "\"2s\""),
            ("server.response_deadline", "\"8s\""),
        ];
        let relay = Relay::start(kafka.bootstrap(), &[settings, more].concat());
        Self { relay, prefix, chat: chat_id(), posted: 0 }
    }

    fn ready(self) -> Self {
        Self { relay: self.relay.ready(), ..self }
    }

    fn named(&self, action: &str) -> String {
        format!("{}{action}", self.prefix)
    }

    /// Posts an event of the chat to the topic in trouble.
    fn post_tagged(&mut self) -> u16 {
        self.posted += 1;
        let body = incoming_event(&self.chat, self.posted).replace("incoming_event", "thread_tagged");
        http::post(self.relay.webhooks, body).status
    }

    fn count(&self, action: &str, outcome: &str) -> f64 {
        self.relay.metric(&format!("livechat_relay_events_total{{action=\"{action}\",outcome=\"{outcome}\"}}"))
    }

    /// How many topics are ready, missing and refused.
    fn topics(&self) -> [f64; 3] {
        ["ready", "missing", "refused"]
            .map(|state| self.relay.metric(&format!("livechat_relay_topics{{state=\"{state}\"}}")))
    }

    /// Events of another topic are published, and not by way of the spool, though the first one may.
    fn others_are_direct(&self) {
        let post = || http::post(self.relay.webhooks, incoming_event(&chat_id(), 1)).status;
        await_that("another topic's event is direct", || {
            let before = self.count("incoming_event", "published");
            post() == 200 && self.count("incoming_event", "published") == before + 1.0
        });
        let before = self.count("incoming_event", "published");
        (0..5).for_each(|_| assert_eq!(post(), 200));
        assert_eq!(self.count("incoming_event", "published"), before + 5.0, "{}", self.relay.log());
    }

    /// All of the chat's events are on Kafka, in their order.
    fn await_all_in_order(&self, kafka: &Kafka) {
        let topic = self.named("thread_tagged");
        let mut found = Vec::new();
        await_that("all are published", || {
            found = topic_trouble::order(kafka, &topic);
            found.len() as u64 == self.posted
        });
        assert_eq!(found, (1..=self.posted).collect::<Vec<_>>());
    }

    /// Lines that say which topics are missing. The metric changes before the first is written, so it is awaited.
    fn complaints(&self) -> Vec<serde_json::Value> {
        assert!(self.relay.has_logged("topics are missing"), "{}", self.relay.log());
        let log = self.relay.log();
        let lines = log.lines().filter(|line| line.contains("topics are missing"));
        lines.map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }
}

fn spool(directory: &tempfile::TempDir) -> String {
    format!("\"{}\"", directory.path().join("spool").display())
}

#[test]
fn a_topic_that_may_not_be_created_holds_back_only_itself_until_it_may_over_a_restart_too() {
    let Some(kafka) = kafka() else { return };
    let denied = Denied::new(kafka, "literal", "denied.thread_tagged");
    let (directory, chat) = (tempfile::tempdir().expect("a directory"), chat_id());
    let path = spool(&directory);
    let start = || Stage::start(kafka, "denied.", &[("spool.directory", &path)]);

    let mut stage = Stage { chat, ..start() };
    for _ in 0..3 {
        await_that("the topics are known", || stage.topics() == [47.0, 0.0, 1.0]);
        assert_eq!(stage.relay.metric("livechat_relay_kafka_up"), 1.0);
        (0..3).for_each(|_| assert_eq!(stage.post_tagged(), 200, "{}", stage.relay.log()));
        stage.others_are_direct();
        let complaints = stage.complaints();
        assert_eq!(complaints.len(), 1, "a state is logged once: {}", stage.relay.log());
        assert_eq!(complaints[0]["topics"], "denied.thread_tagged");
        let [reason, remedy] = ["reason", "remedy"].map(|name| complaints[0][name].as_str().unwrap_or_default());
        assert!(reason.contains("TopicAuthorizationFailed") && remedy.contains("Create"), "{complaints:?}");
        // A restart changes nothing.
        stage.relay.signal(Signal::TERM);
        assert!(stage.relay.end().success());
        let Stage { chat, posted, .. } = stage;
        stage = Stage { chat, posted, ..start() };
    }

    denied.lift();
    await_that("the topic is created", || stage.topics() == [48.0, 0.0, 0.0]);
    stage.await_all_in_order(kafka);
    let before = stage.count("thread_tagged", "published");
    await_that("its events are direct", || {
        assert_eq!(stage.post_tagged(), 200);
        stage.count("thread_tagged", "published") > before
    });
    stage.await_all_in_order(kafka);
}

#[test]
fn topics_that_are_there_take_events_though_no_topic_may_be_created() {
    let Some(kafka) = kafka() else { return };
    kafka.create_topic("made.incoming_event", 1, &[LARGE_ENOUGH]);
    let _denied = Denied::new(kafka, "prefixed", "made.");
    let mut stage = Stage::start(kafka, "made.", &[]).ready();
    assert_eq!(stage.topics(), [1.0, 0.0, 47.0]);
    stage.others_are_direct();
    assert_eq!(stage.post_tagged(), 503, "there is no spool");
    assert_eq!(http::get(stage.relay.admin, "/readyz").status, 200);
}

#[test]
fn sizes_that_the_brokers_do_not_show_are_a_warning_and_no_good_news() {
    let Some(kafka) = kafka() else { return };
    let hidden = ["--deny-principal", "User:*", "--operation", "DescribeConfigs", "--topic", "hidden.incoming_event"];
    let allowed = ["--allow-principal", "User:*", "--operation", "All", "--topic", "hidden.incoming_event"];
    kafka.create_topic("hidden.incoming_event", 1, &[("max.message.bytes", "20000")]);
    kafka.tool("acls", &[&["--add"], &allowed[..]].concat());
    kafka.tool("acls", &[&["--add"], &hidden[..]].concat());
    let mut stage = Stage::start(kafka, "hidden.", &[]).ready();
    let log = stage.relay.await_log("the topics' max.message.bytes could not be read");
    assert!(log.contains("DescribeConfigs"), "{log}");
    stage.others_are_direct();
}

#[test]
fn too_many_replicas_are_told_by_the_setting_and_a_topic_that_is_made_by_hand_takes_events() {
    let Some(kafka) = kafka() else { return };
    let mut stage = Stage::start(kafka, "replicas3.", &[("topics.replication", "3")]).ready();
    assert_eq!(stage.topics(), [0.0, 0.0, 48.0]);
    assert_eq!(stage.post_tagged(), 503);
    let complaints = stage.complaints();
    assert_eq!(complaints.len(), 1, "one line for all 48: {}", stage.relay.log());
    assert!(complaints[0]["remedy"].as_str().is_some_and(|text| text.contains("topics.replication")), "{complaints:?}");

    let topic = stage.named("thread_tagged");
    kafka.create_topic(&topic, 1, &[LARGE_ENOUGH]);
    await_that("it takes events", || stage.post_tagged() == 200);
    await_that("it is counted", || stage.topics() == [1.0, 0.0, 47.0]);
}

#[test]
fn a_name_that_collides_with_another_teams_holds_back_only_its_topic() {
    let Some(kafka) = kafka() else { return };
    kafka.create_topic("team_a.thread_tagged", 1, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let mut stage = Stage::start(kafka, "team.a.", &[("spool.directory", &spool(&directory))]);
    await_that("the topics are known", || stage.topics() == [47.0, 0.0, 1.0]);
    assert_eq!(stage.post_tagged(), 200);
    stage.others_are_direct();
    let complaints = stage.complaints();
    assert_eq!(complaints[0]["topics"], "team.a.thread_tagged");
    assert!(complaints[0]["remedy"].as_str().is_some_and(|text| text.contains("topics.prefix")), "{complaints:?}");

    kafka.delete_topic("team_a.thread_tagged");
    stage.await_all_in_order(kafka);
}

#[test]
fn with_create_off_a_missing_topic_is_no_reason_not_to_start_and_takes_events_when_it_is_there() {
    let Some(kafka) = kafka() else { return };
    kafka.create_topic("off.incoming_event", 1, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let settings = [("topics.create", "false"), ("spool.directory", &*spool(&directory))];
    let mut stage = Stage::start(kafka, "off.", &settings);
    await_that("the topics are known", || stage.topics() == [1.0, 47.0, 0.0]);
    assert_eq!(stage.post_tagged(), 200);
    stage.others_are_direct();
    assert_eq!(stage.complaints()[0]["reason"], "topics.create is false");

    kafka.create_topic("off.thread_tagged", 1, &[]);
    stage.await_all_in_order(kafka);
    assert_eq!(kafka.topics().iter().filter(|topic| topic.starts_with("off.")).count(), 2, "the relay has made none");
}

#[test]
fn a_topic_that_is_deleted_under_the_running_relay_is_created_again() {
    let Some(kafka) = kafka() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let settings =
        [("spool.directory", &*spool(&directory)), ("topics.settings", r#"{ "retention.ms" = "604800001" }"#)];
    let mut stage = Stage::start(kafka, "again.", &settings);
    await_that("the topics are known", || stage.topics() == [48.0, 0.0, 0.0]);
    let topic = stage.named("thread_tagged");
    kafka.delete_topic_at_once(&topic);
    assert!(stage.relay.has_logged(r#""created":1,"#), "{}", stage.relay.log());
    (0..3).for_each(|_| assert_eq!(stage.post_tagged(), 200));
    stage.await_all_in_order(kafka);
    assert_eq!(kafka.setting(&topic, "retention.ms"), "604800001", "it is as [topics] has it");
}

#[test]
fn kafka_that_is_frozen_at_the_start_gets_all_events_when_it_goes_on() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    kafka.pause(0);
    let directory = tempfile::tempdir().expect("a directory");
    let settings = [("spool.directory", &*spool(&directory)), ("kafka.start_timeout", "\"1s\"")];
    let mut stage = Stage::start(&kafka, "frozen.", &settings);
    (0..3).for_each(|_| assert_eq!(stage.post_tagged(), 200));
    assert!(stage.relay.has_logged("Kafka is unavailable: events are spooled"), "{}", stage.relay.log());
    assert_eq!(stage.topics(), [0.0; 3]);

    kafka.resume(0);
    await_that("the topics are created", || stage.topics() == [48.0, 0.0, 0.0]);
    stage.await_all_in_order(&kafka);
    stage.others_are_direct();
}

#[test]
fn new_topics_have_the_brokers_replicas_and_two_of_three_in_sync_and_the_others_keep_what_they_have() {
    let Some(kafka) = Kafka::start_or_skip(3, &[]) else { return };
    kafka.create_topic("three.thread_tagged", 1, &[LARGE_ENOUGH]);
    let mut stage = Stage::start(&kafka, "three.", &[]).ready();
    assert_eq!(stage.topics(), [48.0, 0.0, 0.0]);
    assert_eq!(stage.post_tagged(), 200);
    assert_eq!(kafka.setting("three.incoming_chat", "min.insync.replicas"), "2");
    assert_eq!(kafka.setting("three.thread_tagged", "min.insync.replicas"), "1");
    assert!(!stage.relay.has_logged("topics have one replica"), "{}", stage.relay.log());
    let alone = [("topics.replication", "1")];
    let mut alone = Stage::start(&kafka, "alone.", &alone).ready();
    let log = alone.relay.await_log("topics have one replica on a cluster of several brokers");
    assert!(log.contains("all 48 topics"), "{log}");
    drop(alone);

    kafka.kill(2);
    await_that("one broker may be down", || stage.post_tagged() == 200);
}
