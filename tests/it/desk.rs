//! `spool` and `dead-letters` as a person types them, while the relay runs and while it does not.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::support::kafka::Kafka;
use crate::support::relay::{DEADLINES, Relay, await_that};
use crate::support::{chat_id, http, incoming_event};

/// A relay's surroundings: what the commands find in the environment.
struct Place {
    brokers: String,
    directory: PathBuf,
    admin: String,
    _temporary: tempfile::TempDir,
}

impl Place {
    fn start(kafka: &Kafka) -> (Self, Relay) {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = temporary.path().join("spool");
        let quoted = format!("\"{}\"", directory.display());
        let relay = Relay::start(kafka.bootstrap(), &[DEADLINES, &[("spool.directory", &quoted)]].concat());
        await_that("Kafka is there", || relay.metric("livechat_relay_kafka_up") == 1.0);
        let place = Self {
            brokers: kafka.bootstrap().to_owned(),
            directory,
            admin: relay.admin.to_string(),
            _temporary: temporary,
        };
        (place, relay)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_livechat-relay"))
            .args(arguments)
            .env("LIVECHAT_RELAY__SPOOL__DIRECTORY", &self.directory)
            .env("LIVECHAT_RELAY__ADMIN__LISTEN", &self.admin)
            .env("LIVECHAT_RELAY__KAFKA__BROKERS", &self.brokers)
            .output()
            .expect("the relay's binary")
    }

    /// What a command that succeeds has printed.
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.prints(arguments)).expect("JSON")
    }

    /// What a command that fails with `code` has to say.
    fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        String::from_utf8(output.stderr).expect("text")
    }
}

fn lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

fn exported(path: &Path) -> Vec<serde_json::Value> {
    lines(&std::fs::read_to_string(path).expect("a file"))
}

#[test]
fn what_waits_is_seen_exported_and_drained_with_and_without_a_relay() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let (place, mut relay) = Place::start(&kafka);
    kafka.pause(0);
    let chat = chat_id();
    (0..5).for_each(|n| assert_eq!(http::post(relay.webhooks, incoming_event(&chat, n)).status, 200));

    let looked = |is_running: bool| {
        let status = place.json(&["spool", "status", "--json"]);
        assert_eq!((&status["events"], &status["accepting"]), (&5.into(), &true.into()));
        assert_eq!(status["lanes"][0]["topic"], "livechat.incoming_event");
        let text = place.prints(&["spool", "status"]);
        assert!(text.contains("events        5,") && text.contains("livechat.incoming_event"), "{text}");
        assert_eq!(text.contains("of a running relay"), is_running, "{text}");
        let listed = lines(&place.prints(&["spool", "list", "--json", "--limit", "3"]));
        assert!(listed.len() == 3 && listed.iter().all(|event| event["key"] == chat.as_str()), "{listed:?}");
        assert_eq!(place.prints(&["spool", "list", "--topic", "livechat.incoming_event"]).lines().count(), 6);
        assert_eq!(place.prints(&["spool", "list", "--topic", "livechat.unlisted"]), "");
        let file = place.directory.with_file_name(format!("export-{is_running}"));
        place.prints(&["spool", "export", "--output", file.to_str().expect("text")]);
        let values = exported(&file);
        assert_eq!(values.len(), 5);
        assert_eq!(
            values[4]["value"]["eventid"],
            format!("{}_4", values[4]["value"]["threadid"].as_str().expect("a thread"))
        );
        let again = place.fails(&["spool", "export", "--output", file.to_str().expect("text")], 1);
        assert!(again.contains("exists"), "a file is not written over: {again}");
    };
    looked(true);
    relay.signal(Signal::KILL);
    relay.end();
    looked(false);

    assert!(place.fails(&["spool", "drain", "--timeout", "1s"], 1).contains("5 events are still in the spool"));
    kafka.resume(0);
    assert_eq!(place.json(&["spool", "drain", "--json"])["left"], 0);
    assert!(kafka.read_all(&["livechat.incoming_event"]).len() >= 5);
    assert_eq!(place.json(&["spool", "status", "--json"])["events"], 0);
}

#[test]
fn dead_letters_are_seen_replayed_and_dropped_with_and_without_a_relay() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    for topic in ["livechat.incoming_event", "livechat.dead-letter"] {
        kafka.create_topic(topic, 1, &[("max.message.bytes", "2000")]);
    }
    let (place, mut relay) = Place::start(&kafka);
    // The broker measures what is compressed.
    let filler: String = (0..300).map(|_| uuid::Uuid::now_v7().simple().to_string()).collect();
    let member = format!("\"payload\":{{\"filler\":\"{filler}\",");
    let large = |n| incoming_event(&chat_id(), n).replacen("\"payload\":{", &member, 1);
    (0..3).for_each(|n| assert_eq!(http::post(relay.webhooks, large(n)).status, 200));
    await_that("they are parked", || relay.metric("livechat_relay_dead_letters_on_disk") == 3.0);

    let looked = || -> Vec<u64> {
        let listed = lines(&place.prints(&["dead-letters", "list", "--json"]));
        assert!(listed.iter().all(|letter| letter["reason"] == "too_large" && letter["bytes"].as_u64() > Some(4000)));
        let numbers: Vec<u64> = listed.iter().filter_map(|letter| letter["number"].as_u64()).collect();
        let text = place.prints(&["dead-letters", "list"]);
        assert!(text.contains("too_large (MessageSizeTooLarge)"), "{text}");
        let shown = place.prints(&["dead-letters", "show", &numbers[0].to_string()]);
        assert!(shown.contains("livechat.incoming_event") && shown.contains(&filler), "{shown}");
        assert_eq!(lines(&place.prints(&["dead-letters", "export"])).len(), numbers.len());
        numbers
    };
    let numbers = looked();
    assert_eq!(numbers.len(), 3);
    assert_eq!(place.prints(&["dead-letters", "drop", &numbers[0].to_string()]), "1 dropped\n");
    assert!(place.fails(&["dead-letters", "show", &numbers[0].to_string()], 1).contains("there is no dead letter"));
    assert!(place.fails(&["dead-letters", "drop", "999999"], 1).contains("there is no dead letter 999999"));
    assert!(place.fails(&["dead-letters", "drop"], 64).contains("required"));

    kafka.delete_topic("livechat.incoming_event");
    kafka.create_topic("livechat.incoming_event", 1, &[("max.message.bytes", "3145728")]);
    assert_eq!(place.prints(&["dead-letters", "replay", &numbers[1].to_string()]), "1 replayed\n");
    await_that("it is in Kafka", || kafka.read_all(&["livechat.incoming_event"]).len() == 1);

    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    assert_eq!(looked(), numbers[2..]);
    assert!(
        place.prints(&["dead-letters", "replay", "--all"]).contains("the next relay, or `spool drain`, publishes them")
    );
    assert_eq!(place.json(&["spool", "drain", "--json"])["left"], 0);
    assert_eq!(kafka.read_all(&["livechat.incoming_event"]).len(), 2);
    assert_eq!(place.prints(&["dead-letters", "list", "--json"]), "");
}

#[test]
fn the_desk_is_for_this_machine_and_says_what_is_missing() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let (place, relay) = Place::start(&kafka);
    let request = |origin: &str| format!("GET /spool HTTP/1.1\r\nhost: x\r\n{origin}connection: close\r\n\r\n");
    assert_eq!(http::raw(relay.admin, request("")).expect("an answer").status, 200);
    assert_eq!(http::raw(relay.admin, request("origin: https://evil.example\r\n")).expect("an answer").status, 403);

    let without = Relay::start(kafka.bootstrap(), &[]);
    assert_eq!(http::get(without.admin, "/spool").status, 404);
    let other = Place {
        admin: without.admin.to_string(),
        directory: place.directory.clone(),
        brokers: place.brokers.clone(),
        _temporary: tempfile::tempdir().expect("a directory"),
    };
    assert!(other.fails(&["spool", "status"], 1).contains("there is no spool"), "another relay is asked");
    let nobody = Place { admin: "127.0.0.1:1".to_owned(), ..other };
    assert!(nobody.fails(&["spool", "status"], 1).contains("does not answer"));
    let nowhere = Place { directory: place.directory.join("nowhere"), ..nobody };
    assert!(nowhere.fails(&["dead-letters", "list"], 1).contains("there is no spool in"));
    let unset =
        Command::new(env!("CARGO_BIN_EXE_livechat-relay")).args(["spool", "status"]).output().expect("the binary");
    assert_eq!(unset.status.code(), Some(64));
}
