//! The Kafka client of the relay, with a real Kafka: what it asks of the brokers, what it changes there, and what it guarantees
//! whatever `kafka.properties` says.

use std::process::{Command, Output};

use crate::support::kafka::Kafka;
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

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

#[test]
fn a_guarantee_cannot_be_configured_away_under_any_name() {
    for property in ["acks", "topic.acks", "request.required.acks", "topic.partitioner", "topic.message.timeout.ms"] {
        let setting = format!("{{ \"{property}\" = \"1\" }}");
        for command in ["serve", "check"] {
            let output = run(command, "127.0.0.1:1", &format!("properties = {setting}"));
            let text = text(&output);
            assert_eq!(output.status.code(), Some(64), "{text}");
            assert!(text.contains(&format!("kafka.properties.\"{property}\": may not be set: ")), "{text}");
        }
    }
    for (command, code) in [("serve", 64), ("check", 1)] {
        let output = run(command, "127.0.0.1:1", "properties = { \"topic.max.in.flight\" = \"6\" }");
        let text = text(&output);
        assert!(output.status.code() == Some(code) && text.contains("`max.in.flight` must be set <= 5"), "{text}");
    }
}

#[test]
fn neither_a_probe_nor_check_makes_a_topic_where_brokers_make_what_they_are_asked_for() {
    let Some(kafka) = Kafka::start_or_skip(1, &[("auto.create.topics.enable", "true")]) else { return };
    // librdkafka's own refreshes come often, too.
    let properties = r#"{ "topic.metadata.refresh.interval.ms" = "100" }"#;
    let settings = [("kafka.probe_interval", "\"200ms\""), ("kafka.properties", properties)];
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
    let output = run("check", kafka.bootstrap(), "");
    assert!(text(&output).contains("2 missing; serve creates them"), "{}", text(&output));
    let topics = kafka.topics();
    assert!(deleted.iter().all(|topic| !topics.contains(topic)), "{deleted:?} of {topics:?}");
    assert_eq!(topics.len(), 46);
}
