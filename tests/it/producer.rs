//! The Kafka client of the relay, with a real Kafka: what it asks of the brokers, what it changes there, and what it guarantees
//! whatever `kafka.properties` says.

use std::process::{Command, Output};

use crate::shim::{self, Knob, Shim};
use crate::support::kafka::{self, Kafka};
use crate::support::relay::{Relay, SECRET, await_that};
use crate::support::{chat_id, http, incoming_event};

/// Runs a command to its end with this configuration.
fn run(command: &str, brokers: &str, more: &str) -> Output {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "[kafka]\nbrokers = \"{brokers}\"\nstart_timeout = \"5s\"\n{more}\n\
         [[apps]]\nname = \"default\"\nsecret_keys = [{{ name = \"k\", value = \"{SECRET}\" }}]\n"
    );
    std::fs::write(file.path(), text).expect("written");
    let mut program = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    program.args([command, "--config"]).arg(file.path()).output().expect("the relay's binary")
}

/// What it has printed, without the breaks of its lines.
fn text(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_guarantee_cannot_be_configured_away_under_any_name() {
    for property in ["acks", "topic.acks", "request.required.acks", "topic.partitioner", "topic.message.timeout.ms"] {
        let setting = format!("{{ \"{property}\" = \"1\" }}");
        for command in ["serve", "check"] {
            let output = run(command, "127.0.0.1:1", &format!("properties = {setting}"));
            let text = text(&output);
            assert_eq!(output.status.code(), Some(64), "{text}");
            assert!(text.contains(&format!("kafka.properties.\"{property}\": cannot be set: ")), "{text}");
        }
    }
    for command in ["serve", "check"] {
        let output = run(command, "127.0.0.1:1", "properties = { \"topic.max.in.flight\" = \"6\" }");
        let text = text(&output);
        assert!(output.status.code() == Some(64) && text.contains("`max.in.flight` must be set <= 5"), "{text}");
    }
}

#[test]
fn neither_a_probe_nor_a_record_nor_check_makes_a_topic_where_brokers_make_what_they_are_asked_for() {
    let Some(kafka) = Kafka::start_or_skip(1, &[("auto.create.topics.enable", "true")]) else { return };
    // librdkafka's own refreshes come often, too.
    let properties = r#"{ "topic.metadata.refresh.interval.ms" = "100" }"#;
    let seldom = ("topics.check_interval", "\"1h\""); // the relay would create them again
    let settings = [("kafka.probe_interval", "\"200ms\""), ("kafka.properties", properties), seldom];
    let relay = Relay::start(kafka.bootstrap(), &settings).ready();
    await_that("200", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 200);

    // The topic that the probe asks for, and one that the producer knows.
    let deleted = [kafka.topics().remove(0), "livechat.incoming_event".to_owned()];
    deleted.iter().for_each(|topic| kafka.delete_topic(topic));
    for _ in 0..3 {
        kafka.pause(0);
        await_that("a probe has failed", || relay.metric("livechat_relay_kafka_up") == 0.0);
        kafka.resume(0);
        await_that("a probe was answered", || relay.metric("livechat_relay_kafka_up") == 1.0);
    }
    // A record for it makes none, either.
    await_that("503", || http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status == 503);
    let output = run("check", kafka.bootstrap(), "");
    assert!(text(&output).contains("2 missing; serve creates them"), "{}", text(&output));
    let topics = kafka.topics();
    assert!(deleted.iter().all(|topic| !topics.contains(topic)), "{deleted:?} of {topics:?}");
    assert_eq!(topics.len(), 46);
}

/// A relay whose clock can be set, with a topic of one partition. A batch waits for so long that what is posted at once is in one.
struct Clocked {
    kafka: &'static Kafka,
    relay: Relay,
    shim: Shim,
    topic: String,
    _directory: tempfile::TempDir,
}

/// More than Kafka lets a timestamp be ahead.
const TWO_HOURS: i64 = 7200;

impl Clocked {
    fn start(has_spool: bool) -> Option<Self> {
        let kafka = kafka::shared_or_skip()?;
        let prefix = format!("clock-{}.", chat_id());
        if let Some(why) = shim::no_compiler() {
            assert!(std::env::var_os("CI").is_none(), "{why}");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let spool = directory.path().join("spool");
        let shim = Shim::new(&directory.path().join("shim"), &spool);
        let directory_setting = has_spool.then(|| ("spool.directory", format!("\"{}\"", spool.display())));
        let settings: Vec<_> = [
            ("topics.prefix", format!("{prefix:?}")),
            ("topics.partitions", "1".to_owned()),
            ("kafka.linger", "\"500ms\"".to_owned()),
            // What the broker's default has been since 4.0.
            ("topics.settings", "{ \"message.timestamp.after.max.ms\" = \"3600000\" }".to_owned()),
        ]
        .into_iter()
        .chain(directory_setting)
        .collect();
        let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let environment = shim.environment();
        let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let relay = Relay::launch(kafka.bootstrap(), &settings, &environment).expect("it starts").ready();
        let clocked = Self { kafka, relay, shim, topic: format!("{prefix}incoming_event"), _directory: directory };
        clocked.await_direct();
        Some(clocked)
    }

    /// Waits until events go to Kafka directly.
    fn await_direct(&self) {
        let series = "livechat_relay_events_total{action=\"incoming_event\",outcome=\"published\"}";
        await_that("events go to Kafka directly", || {
            let before = self.relay.metric(series);
            self.post(&chat_id(), 0) == 200 && self.relay.metric(series) > before
        });
    }

    fn post(&self, chat: &str, number: u64) -> u16 {
        http::post(self.relay.webhooks, incoming_event(chat, number)).status
    }

    /// Eight events of different chats in one batch: of each Kafka reports no more than that it is invalid.
    fn post_eight(&self) -> Vec<(String, u16)> {
        let chats: Vec<String> = (0..8).map(|_| chat_id()).collect();
        std::thread::scope(|scope| {
            let posts: Vec<_> = chats.iter().map(|chat| scope.spawn(|| (chat.clone(), self.post(chat, 0)))).collect();
            posts.into_iter().map(|post| post.join().expect("an answer")).collect()
        })
    }

    fn says_that_clocks_differ(&self) -> bool {
        self.relay.has_logged("the clocks of the relay and of the brokers differ")
    }

    fn dead_letters(&self) -> f64 {
        let of = |to| format!("livechat_relay_dead_letters_total{{reason=\"invalid\",to=\"{to}\"}}");
        ["topic", "disk"].iter().map(|to| self.relay.metric(&of(to))).sum()
    }

    fn waiting(&self) -> f64 {
        let text = http::get(self.relay.admin, "/metrics").body;
        let series = format!("livechat_relay_spool_records{{topic=\"{}\"}} ", self.topic);
        text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0.0)
    }

    /// The chats in the topic, as often as they are there, in the order of their first.
    fn chats(&self) -> Vec<String> {
        let messages = self.kafka.read_all(&[&self.topic]);
        messages.into_iter().map(|message| String::from_utf8(message.key.expect("a key")).expect("a chat")).collect()
    }

    /// The numbers of one chat's events, first occurrences only.
    fn order(&self, chat: &str) -> Vec<u64> {
        let mut order = Vec::new();
        for message in
            self.kafka.read_all(&[&self.topic]).into_iter().filter(|m| m.key.as_deref() == Some(chat.as_bytes()))
        {
            let text = String::from_utf8(message.value).expect("JSON");
            let number =
                text.split(&format!("\"T{chat}_")).nth(1).and_then(|rest| rest.split('"').next()?.parse().ok());
            let number = number.expect("a number");
            if !order.contains(&number) {
                order.push(number);
            }
        }
        order
    }
}

/// With a spool: everything waits, says why, and is published in order when `heal` has set it right.
fn what_kafka_refuses_for_its_timestamp_waits(heal: impl Fn(&Clocked)) {
    let Some(clocked) = Clocked::start(true) else { return };
    let chat = chat_id();
    assert_eq!(clocked.post(&chat, 0), 200);
    clocked.shim.set(Knob::ClockOffsetSeconds, TWO_HOURS);
    let eight = clocked.post_eight();
    for number in 1..=20 {
        assert_eq!(clocked.post(&chat, number), 200, "{}", clocked.relay.log());
    }
    assert!(eight.iter().all(|(_, status)| *status == 200), "{eight:?}");
    assert!(clocked.says_that_clocks_differ(), "{}", clocked.relay.log());
    assert!(clocked.relay.has_logged("the topic is unavailable until someone fixes it"), "{}", clocked.relay.log());
    assert_eq!((clocked.waiting(), clocked.dead_letters()), (28.0, 0.0), "{}", clocked.relay.log());
    assert_eq!(clocked.order(&chat), [0]);

    heal(&clocked);
    await_that("all is published", || clocked.waiting() == 0.0);
    assert_eq!(clocked.order(&chat), (0..=20).collect::<Vec<_>>());
    let chats = clocked.chats();
    assert!(eight.iter().all(|(chat, _)| chats.contains(chat)));
    assert_eq!(clocked.dead_letters(), 0.0);
    clocked.await_direct();
}

#[test]
fn with_a_spool_events_of_a_relay_whose_clock_is_ahead_wait_until_the_clock_is_right() {
    what_kafka_refuses_for_its_timestamp_waits(|clocked| {
        clocked.shim.set(Knob::ClockOffsetSeconds, 0);
    });
}

#[test]
fn with_a_spool_events_of_a_relay_whose_clock_is_ahead_wait_until_the_topic_allows_it() {
    what_kafka_refuses_for_its_timestamp_waits(|clocked| {
        clocked.kafka.set_topic(&clocked.topic, &[("message.timestamp.after.max.ms", "36000000")]);
    });
}

#[test]
fn without_a_spool_events_of_a_relay_whose_clock_is_ahead_are_answered_503_until_the_clock_is_right() {
    let Some(clocked) = Clocked::start(false) else { return };
    clocked.shim.set(Knob::ClockOffsetSeconds, TWO_HOURS);
    let refused = clocked.post_eight();
    assert!(refused.iter().all(|(_, status)| *status == 503), "{refused:?}\n{}", clocked.relay.log());
    let chat = chat_id();
    assert_eq!(clocked.post(&chat, 0), 503);
    assert!(clocked.says_that_clocks_differ(), "{}", clocked.relay.log());
    assert_eq!(http::get(clocked.relay.admin, "/readyz").status, 200, "the brokers answer");

    clocked.shim.set(Knob::ClockOffsetSeconds, 0);
    for number in 0..3 {
        await_that("200", || clocked.post(&chat, number) == 200);
    }
    assert_eq!((clocked.order(&chat), clocked.dead_letters()), (vec![0, 1, 2], 0.0));
    let chats = clocked.chats();
    assert!(refused.iter().all(|(chat, _)| !chats.contains(chat)), "what was answered 503 is not there");
}
