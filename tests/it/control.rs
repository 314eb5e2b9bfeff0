//! `spool` and `dead-letters` as a person types them, while the relay runs and while it does not.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::support::kafka::Kafka;
use crate::support::mock::Mock;
use crate::support::relay::{DEADLINES, Relay, SECRET, await_that};
use crate::support::{chat_id, http, incoming_event};

/// A relay's surroundings: what the commands find in the environment.
struct Place {
    brokers: String,
    directory: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Place {
    fn start(kafka: &Kafka) -> (Self, Relay) {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = temporary.path().join("spool");
        let quoted = format!("\"{}\"", directory.display());
        let relay = Relay::start(kafka.bootstrap(), &[DEADLINES, &[("spool.directory", &quoted)]].concat());
        await_that("Kafka is there", || relay.metric("livechat_relay_kafka_up") == 1.0);
        let place = Self { brokers: kafka.bootstrap().to_owned(), directory, _temporary: temporary };
        (place, relay)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command_as(None, arguments).output().expect("the relay's binary")
    }

    /// A command, as the user of this process, or as another one.
    fn command_as(&self, user: Option<u32>, arguments: &[&str]) -> Command {
        let relay = env!("CARGO_BIN_EXE_livechat-relay");
        let mut command = match user {
            None => Command::new(relay),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups", relay]);
                command
            }
        };
        command.args(arguments);
        command.env("LIVECHAT_RELAY__SPOOL__DIRECTORY", &self.directory);
        command.env("LIVECHAT_RELAY__KAFKA__BROKERS", &self.brokers);
        command.env("LIVECHAT_RELAY__KAFKA__START_TIMEOUT", "20s");
        command.env("LIVECHAT_RELAY__APPS__0__NAME", "default");
        command.env("LIVECHAT_RELAY__APPS__0__SECRET_KEYS__0__NAME", "test");
        command.env("LIVECHAT_RELAY__APPS__0__SECRET_KEYS__0__VALUE", SECRET);
        command
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

/// Whether a text stands in any file of a spool.
fn has_bytes_of(directory: &Path, text: &str) -> bool {
    let segments = std::fs::read_dir(directory).expect("a spool").map(|file| file.expect("a file").path());
    let mut segments = segments.filter(|path| path.is_file());
    segments.any(|path| std::fs::read(path).expect("a file").windows(text.len()).any(|bytes| bytes == text.as_bytes()))
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
        assert_eq!(text.contains("\nKafka         unavailable for "), is_running, "{text}");
        assert!(text.lines().all(|line| line.len() <= 80 || line.starts_with("spool ")), "{text}");
        for format in [&[][..], &["--json"]] {
            let stderr = place.run(&[&["spool", "list", "--limit", "3"], format].concat()).stderr;
            assert!(String::from_utf8_lossy(&stderr).contains("3 shown; 2 more were not looked at: raise --limit"));
        }
        let listed = lines(&place.prints(&["spool", "list", "--json", "--limit", "3"]));
        assert!(listed.len() == 3 && listed.iter().all(|event| event["key"] == chat.as_str()), "{listed:?}");
        assert_eq!(place.prints(&["spool", "list", "--topic", "livechat.incoming_event"]).lines().count(), 7);
        let meant = place.run(&["spool", "list", "--topic", "incoming_event"]);
        let hint = "no event of topic incoming_event waits; did you mean livechat.incoming_event?\n";
        assert_eq!((&*meant.stdout, &*String::from_utf8_lossy(&meant.stderr)), (&b""[..], hint));
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
    await_that("the brokers are missed", || place.json(&["spool", "status", "--json"])["kafka_error"].is_object());
    looked(true);
    relay.signal(Signal::KILL);
    relay.end();
    looked(false);

    assert!(
        place
            .fails(&["spool", "drain", "--timeout", "1s"], 1)
            .contains("5 events left in the spool: Kafka is unavailable: ")
    );
    kafka.resume(0);
    assert_eq!(place.json(&["spool", "drain", "--json"])["left"], 0);
    assert!(kafka.read_all(&["livechat.incoming_event"]).len() >= 5);
    assert_eq!(place.json(&["spool", "status", "--json"])["events"], 0);
}

#[test]
fn a_drain_without_a_relay_says_which_topics_are_missing_and_goes_on_once_they_exist() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = temporary.path().join("spool");
    let quoted = format!("\"{}\"", directory.display());
    let settings = [DEADLINES, &[("spool.directory", &*quoted), ("topics.create", "false")]].concat();
    let mut relay = Relay::start(kafka.bootstrap(), &settings);
    await_that("Kafka is there", || relay.metric("livechat_relay_kafka_up") == 1.0);
    post(&relay, &chat_id(), 0..2);
    relay.signal(Signal::KILL);
    relay.end();

    let place = Place { brokers: kafka.bootstrap().to_owned(), directory, _temporary: temporary };
    let mut drain = place.command_as(None, &["spool", "drain"]);
    let drain = drain.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let mut drain = drain.spawn().expect("the relay's binary");
    let mut lines = BufReader::new(drain.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    let expected =
        "waiting: topics are missing: livechat.incoming_event; `livechat-relay serve` creates them (topics.create)";
    assert!(lines.any(|line| line == expected), "it says so while it waits");
    kafka.create_topic("livechat.incoming_event", 1, &[]);
    lines.for_each(drop);
    assert!(drain.wait().expect("a child").success());
    assert_eq!(kafka.read_all(&["livechat.incoming_event"]).len(), 2);
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
    let large = |chat: &str, n| incoming_event(chat, n).replacen("\"payload\":{", &member, 1);
    let chats = [(); 4].map(|()| chat_id());
    (0..4).zip(&chats).for_each(|(n, chat)| assert_eq!(http::post(relay.webhooks, large(chat, n)).status, 200));
    await_that("they are dead letters", || relay.metric("livechat_relay_dead_letters_on_disk") == 4.0);
    let dropped = place.json(&["spool", "drop", "--key", &chats[3], "--yes", "--json"]);
    assert_eq!(
        (&dropped["events"], &dropped["dead_letters"], &dropped["erased"]),
        (&0.into(), &1.into(), &true.into())
    );
    assert!(!has_bytes_of(&place.directory, &chats[3]) && has_bytes_of(&place.directory, &chats[2]));

    let looked = || -> Vec<u64> {
        let listed = lines(&place.prints(&["dead-letters", "list", "--json"]));
        assert!(listed.iter().all(|letter| letter["reason"] == "too_large" && letter["bytes"].as_u64() > Some(4000)));
        let numbers: Vec<u64> = listed.iter().filter_map(|letter| letter["number"].as_u64()).collect();
        let text = place.prints(&["dead-letters", "list"]);
        assert!(text.contains("  too_large  "), "{text}");
        let status = place.prints(&["spool", "status"]);
        assert!(
            status.contains(&format!("dead letters  {}, ", numbers.len()))
                && status.contains("`livechat-relay dead-letters list`\n"),
            "{status}"
        );
        let shown = place.prints(&["dead-letters", "show", &numbers[0].to_string()]);
        assert!(shown.contains("livechat.incoming_event") && shown.contains(&filler), "{shown}");
        assert_eq!(lines(&place.prints(&["dead-letters", "export"])).len(), numbers.len());
        numbers
    };
    let numbers = looked();
    assert_eq!(numbers.len(), 3);
    assert!(place.fails(&["dead-letters", "drop", "--all"], 64).contains("Drop 3 dead letters?"));
    let dropped = place.prints(&["dead-letters", "drop", &numbers[0].to_string(), "--yes"]);
    assert_eq!(dropped, "1 dead letter dropped\n");
    assert!(place.fails(&["dead-letters", "show", &numbers[0].to_string()], 1).contains("there is no dead letter"));
    assert!(place.fails(&["dead-letters", "drop", "999999", "--yes"], 1).contains("there is no dead letter 999999"));
    assert!(place.fails(&["dead-letters", "drop"], 64).contains("required"));

    let again = place.run(&["dead-letters", "replay", &numbers[1].to_string(), "--timeout", "10s"]);
    let told = String::from_utf8_lossy(&again.stdout).into_owned();
    let reason = "Message size too large";
    let expected = format!("{}  rejected again by livechat.incoming_event: {reason}\n", numbers[1]);
    assert!(again.status.code() == Some(1) && told == expected, "{told}");
    let why = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(why, "error: 0 dead letters published, 1 rejected again\n");
    kafka.delete_topic("livechat.incoming_event");
    kafka.create_topic("livechat.incoming_event", 1, &[("max.message.bytes", "3145728")]);
    let replayed = place.prints(&["dead-letters", "replay", &numbers[1].to_string()]);
    assert!(replayed.contains("published to livechat.incoming_event"), "{replayed}");
    assert_eq!(kafka.read_all(&["livechat.incoming_event"]).len(), 1);
    assert!(place.fails(&["dead-letters", "replay", "7"], 1).contains("0 dead letters published, 1 not there"));
    let audit = relay.await_log("dead-letters drop");
    let audit: serde_json::Value = serde_json::from_str(&audit).expect("JSON");
    assert_eq!(audit["uid"], rustix::process::geteuid().as_raw());
    assert!(audit["pid"].as_u64() > Some(1) && audit["gid"].is_u64() && audit["has_left"].is_null(), "{audit}");
    let answer: serde_json::Value = serde_json::from_str(audit["answer"].as_str().expect("text")).expect("JSON");
    let dropped = &answer["dropped"];
    assert_eq!((&dropped["dead_letters"], &dropped["topics"][0]), (&1.into(), &"livechat.incoming_event".into()));
    let audit = relay.await_log("dead-letters replay");
    assert!(audit.contains("refused") && audit.contains("livechat.incoming_event"), "{audit}");

    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    assert_eq!(looked(), numbers[2..]);
    kafka.pause(0);
    let report = place.run(&["dead-letters", "replay", "--all", "--json", "--timeout", "1s"]);
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).expect("JSON");
    assert_eq!((&report["waiting"], &report["letters"][0]["fate"]), (&1.into(), &"waiting".into()));
    kafka.resume(0);
    assert!(place.prints(&["dead-letters", "replay", "--all"]).contains("1 dead letter published"));
    assert_eq!(kafka.read_all(&["livechat.incoming_event"]).len(), 2);
    assert_eq!(place.prints(&["dead-letters", "list", "--json"]), "");
}

#[test]
fn dead_letters_in_the_topic_are_listed_and_shown() {
    let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
    kafka.create_topic("livechat.incoming_event", 1, &[("max.message.bytes", "2000")]);
    kafka.create_topic("livechat.dead-letter", 1, &[]);
    let (place, relay) = Place::start(&kafka);
    assert!(place.prints(&["dead-letters", "list", "--kafka", "--json"]).is_empty());
    // The broker measures what is compressed.
    let filler: String = (0..300).map(|_| uuid::Uuid::now_v7().simple().to_string()).collect();
    let member = format!("\"payload\":{{\"filler\":\"{filler}\",");
    let chats = [(); 2].map(|()| chat_id());
    for (n, chat) in (0..2).zip(&chats) {
        let large = incoming_event(chat, n).replacen("\"payload\":{", &member, 1);
        assert_eq!(http::post(relay.webhooks, large).status, 200);
    }
    let to_topic = r#"livechat_relay_dead_letters_total{reason="too_large",to="topic"}"#;
    await_that("they are in the topic", || relay.metric(to_topic) == 2.0);

    let listed = lines(&place.prints(&["dead-letters", "list", "--kafka", "--json"]));
    let numbers: Vec<_> =
        listed.iter().map(|letter| (letter["partition"].as_u64(), letter["number"].as_u64())).collect();
    assert_eq!(numbers, [(Some(0), Some(0)), (Some(0), Some(1))]);
    for (letter, chat) in listed.iter().zip(&chats) {
        assert_eq!((&letter["key"], &letter["topic"]), (&chat.as_str().into(), &"livechat.incoming_event".into()));
        assert_eq!((&letter["reason"], &letter["error"]), (&"too_large".into(), &"MessageSizeTooLarge".into()));
        assert_eq!(letter["action"], "incoming_event");
    }
    let text = place.prints(&["dead-letters", "list", "--kafka", "--limit", "1"]);
    assert!(text.lines().count() == 3 && text.contains(" 0/0 "), "{text}");
    assert!(place.prints(&["dead-letters", "show", "0/1"]).contains(&filler));
    assert_eq!(place.json(&["dead-letters", "show", "0/1", "--json"])["value"]["chatid"], chats[1].as_str());
    assert!(place.fails(&["dead-letters", "show", "0/9"], 1).contains("there is no dead letter 0/9"));
    assert!(place.fails(&["dead-letters", "show", "0-9"], 64).contains("2/17 for one on Kafka"));
}

/// A relay with a spool in a directory of the test's, and Kafka away.
fn spooling(mock: &Mock, place: &Place) -> Relay {
    let quoted = format!("\"{}\"", place.directory.display());
    let usual = [
        ("topics.create", "false"),
        ("kafka.start_timeout", "\"200ms\""),
        ("kafka.probe_interval", "\"200ms\""),
        ("kafka.publish_deadline", "\"1s\""),
        ("server.response_deadline", "\"8s\""),
        ("spool.directory", quoted.as_str()),
    ];
    Relay::start(&mock.bootstrap(), &usual)
}

fn place(mock: &Mock) -> Place {
    let temporary = tempfile::tempdir().expect("a directory");
    Place { brokers: mock.bootstrap(), directory: temporary.path().join("spool"), _temporary: temporary }
}

fn post(relay: &Relay, chat: &str, numbers: std::ops::Range<u64>) {
    numbers.for_each(|n| {
        assert_eq!(http::post(relay.webhooks, incoming_event(chat, n)).status, 200, "{}", relay.log());
    });
}

#[test]
fn the_socket_is_its_owners_from_the_start_and_that_of_a_killed_relay_is_replaced() {
    let mock = Mock::start();
    mock.freeze();
    let place = place(&mock);
    let socket = place.directory.join("control.sock");
    let mut relay = spooling(&mock, &place);
    await_that("the socket is there", || socket.exists());
    let found = socket.symlink_metadata().expect("a socket");
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    post(&relay, &chat_id(), 0..1);
    relay.signal(Signal::KILL);
    relay.end();
    assert!(socket.exists(), "a killed relay leaves it");
    assert!(place.prints(&["spool", "status"]).contains("no relay runs"));

    let mut relay = spooling(&mock, &place);
    await_that("another one is there", || UnixStream::connect(&socket).is_ok());
    assert!(place.prints(&["spool", "status"]).contains("of a running relay"));
    let elsewhere = Place { directory: place.directory.join("nowhere"), ..place };
    let at = ["--socket", socket.to_str().expect("text")];
    assert!(elsewhere.prints(&[&["spool", "status"], &at[..]].concat()).contains("of a running relay"));
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    assert!(!socket.exists(), "a relay that stops takes it away");
    let refused = elsewhere.fails(&[&["spool", "status"], &at[..]].concat(), 1);
    assert!(refused.contains("no relay answers at"), "{refused}");
}

#[test]
fn a_relay_whose_socket_cannot_be_bound_works_and_says_so() {
    let mock = Mock::start();
    let place = place(&mock);
    std::fs::create_dir(&place.directory).expect("made");
    std::fs::set_permissions(&place.directory, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
    std::fs::write(place.directory.join("control.sock"), "mine").expect("a file in its place");
    let mut relay = spooling(&mock, &place);
    let told = relay.await_log("no control socket");
    assert!(told.contains("there is a file that is no socket"), "{told}");
    post(&relay, &chat_id(), 0..1);
    assert_eq!(std::fs::read(place.directory.join("control.sock")).expect("it is kept"), b"mine");
    let told = place.fails(&["spool", "status"], 1);
    assert!(told.contains("is in use: process ") && told.contains("--socket"), "{told}");

    let long = "x".repeat(110);
    let told = Relay::launch(&mock.bootstrap(), &[("control.socket", &format!("\"/tmp/{long}/s\""))], &[]);
    let told = told.err().expect("it does not start");
    assert!(told.contains("control.socket: has 117 bytes"), "{told}");
}

#[test]
fn without_a_spool_the_socket_is_where_systemd_has_made_a_directory_and_says_that_there_is_none() {
    let mock = Mock::start();
    let runtime = tempfile::tempdir().expect("a directory");
    let directories = format!("{}:/run/another", runtime.path().display());
    let settings = [("topics.create", "false"), ("kafka.start_timeout", "\"200ms\"")];
    let relay = Relay::launch(&mock.bootstrap(), &settings, &[("RUNTIME_DIRECTORY", &directories)]);
    let _relay = relay.unwrap_or_else(|log| panic!("the relay did not start:\n{log}"));
    let socket = runtime.path().join("control.sock");
    await_that("the socket is there", || UnixStream::connect(&socket).is_ok());
    let place = place(&mock);
    let told = place.fails(&["spool", "status", "--socket", socket.to_str().expect("text")], 1);
    assert!(told.contains("this relay has no spool: spool.directory is not configured"), "{told}");

    let second = Relay::launch(&mock.bootstrap(), &settings, &[("RUNTIME_DIRECTORY", &directories)]);
    let mut second = second.unwrap_or_else(|log| panic!("the relay did not start:\n{log}"));
    assert!(second.await_log("no control socket").contains("another process answers there"));
    UnixStream::connect(&socket).expect("the first one's socket is left alone");
}

#[test]
fn a_request_is_one_line_and_what_is_none_is_refused_with_the_reason() {
    let mock = Mock::start();
    let place = place(&mock);
    let relay = spooling(&mock, &place);
    let socket = place.directory.join("control.sock");
    await_that("the socket is there", || UnixStream::connect(&socket).is_ok());
    let ask = |line: &[u8]| -> String {
        let mut stream = UnixStream::connect(&socket).expect("a relay");
        let _ = stream.write_all(line); // what is too long is not read to its end
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("an answer");
        answer
    };
    assert!(ask(b"{\"command\":\"status\"}\n").starts_with("{\"status\":{"));
    assert!(ask(b"GET /spool HTTP/1.1\r\n\r\n").contains("the request cannot be read"));
    assert!(ask(&vec![b' '; 300_000]).contains("the request is too long"));
    assert!(ask(b"{\"command\":\"drop\",\"filter\":{}}\n").contains("a drop needs a filter"));
    assert!(ask(b"{\"command\":\"drop_dead_letters\"}\n").contains("missing field `which`"));
    assert!(ask(b"{\"command\":\"drop_dead_letters\",\"number\":[1]}\n").contains("unknown field `number`"));
    assert_eq!(http::get(relay.admin, "/spool").status, 404, "nothing of the spool is on the admin listener");
    assert_eq!(http::get(relay.admin, "/dead-letters").status, 404);

    let held: Vec<_> = (0..8).map(|_| UnixStream::connect(&socket).expect("a connection")).collect();
    await_that("all of control.connections_max are taken", || {
        ask(b"{\"command\":\"status\"}\n").contains("control.connections_max")
    });
    std::mem::drop(held);
    await_that("they are free again", || ask(b"{\"command\":\"status\"}\n").contains("accepting"));
}

#[test]
fn the_events_of_one_chat_are_listed_exported_and_erased_and_no_others() {
    let mock = Mock::start();
    mock.freeze();
    let place = place(&mock);
    let mut relay = spooling(&mock, &place);
    let [kept, first, second] = [(); 3].map(|()| chat_id());
    // Replay has the first event in its hands.
    post(&relay, &kept, 0..2);
    post(&relay, &first, 2..5);
    post(&relay, &second, 5..9);
    let read = |arguments: &[&str]| lines(&place.prints(arguments));
    let keys = |listed: &[serde_json::Value]| -> Vec<String> {
        listed.iter().map(|event| event["key"].as_str().expect("a key").to_owned()).collect()
    };
    let of_first = read(&["spool", "list", "--key", &first, "--json"]);
    assert_eq!(keys(&of_first), [&*first; 3]);
    let one = &of_first[1];
    assert_eq!((&one["action"], &one["app"]), (&"incoming_event".into(), &"default".into()));
    let id = one["id"].as_str().expect("an id");
    let by_id =
        read(&["spool", "export", "--id", id, "--action", "incoming_event", "--app", "default", "--since", "1h"]);
    assert!(by_id.len() == 1 && by_id[0]["value"]["id"] == id && by_id[0]["number"] == one["number"], "{by_id:?}");
    for none in [["--until", "1h"], ["--action", "incoming_chat"], ["--app", "other"], ["--topic", "livechat.unlisted"]]
    {
        assert!(read(&[&["spool", "list", "--json"], &none[..]].concat()).is_empty(), "{none:?}");
    }

    assert!(place.fails(&["spool", "drop"], 64).contains("say what to drop: --topic"));
    assert!(place.fails(&["spool", "drop", "--key", &first], 64).contains("add --yes"));
    assert!(place.fails(&["spool", "drop", "--since", "yesterday"], 64).contains("write for example"));
    assert_eq!(read(&["spool", "drop", "--key", &first, "--dry-run", "--json"]).len(), 3);
    assert_eq!(read(&["spool", "list", "--key", &first, "--json"]).len(), 3, "a dry run drops nothing");
    assert!(has_bytes_of(&place.directory, &first));
    let told = place.prints(&["spool", "drop", "--key", &first, "--yes"]);
    assert!(told.starts_with("3 events dropped\nno file of the spool has them any more\n"), "{told}");
    assert!(!has_bytes_of(&place.directory, &first) && has_bytes_of(&place.directory, &second));
    let audit: serde_json::Value = serde_json::from_str(&relay.await_log("spool drop")).expect("JSON");
    assert_eq!(audit["uid"], rustix::process::geteuid().as_raw());
    assert!(!relay.log().contains(&first), "whose events were dropped is not in the log");

    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    let dropped = place.json(&["spool", "drop", "--key", &second, "--yes", "--json"]);
    assert_eq!((&dropped["events"], &dropped["erased"]), (&4.into(), &true.into()));
    assert!(!has_bytes_of(&place.directory, &second) && has_bytes_of(&place.directory, &kept));
    mock.thaw();
    assert_eq!(place.json(&["spool", "drain", "--json"])["left"], 0);
    let keys: Vec<_> = mock.read("livechat.incoming_event").into_iter().filter_map(|message| message.key).collect();
    assert!(!keys.is_empty() && keys.iter().all(|key| key == kept.as_bytes()), "{keys:?}");
}

/// All that looking must not change of a spool: of its directory and of each file the bytes, owner, mode, and times of change.
fn state_of(directory: &Path) -> Vec<(PathBuf, Vec<u8>, [i64; 8])> {
    let files = std::fs::read_dir(directory).expect("a spool").map(|file| file.expect("a file").path());
    let mut paths: Vec<_> = files.chain([directory.to_owned()]).collect();
    paths.sort();
    let state = |path: PathBuf| {
        let found = path.symlink_metadata().expect("a file");
        let bytes = if found.is_file() { std::fs::read(&path).expect("a file") } else { Vec::new() };
        let owner =
            [i64::from(found.uid()), i64::from(found.gid()), i64::from(found.mode()), found.ino().cast_signed()];
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        (path, bytes, [owner, times].concat().try_into().expect("eight"))
    };
    paths.into_iter().map(state).collect()
}

/// Every command that looks, as the user of this process, and where that is root, as another one, too.
fn assert_looking_changes_nothing(place: &Place, user: Option<u32>) {
    let before = state_of(&place.directory);
    for command in [
        &["spool", "status"][..],
        &["spool", "list"],
        &["spool", "list", "--key", "x"],
        &["spool", "export"],
        &["spool", "drop", "--key", "x", "--dry-run"],
        &["dead-letters", "list"],
        &["dead-letters", "export"],
    ] {
        let output = place.command_as(user, command).output().expect("the relay's binary");
        assert!(output.status.success(), "{command:?} as {user:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let checked = place.command_as(user, &["check", "--json"]).output().expect("the relay's binary");
    let checked: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    let spool = checked["findings"].as_array().expect("findings").iter().find(|found| found["check"] == "spool");
    let detail = spool.expect("the spool's")["detail"].as_str().expect("text");
    assert!(detail.contains("4 events wait in it"), "{detail}");
    assert!(state_of(&place.directory) == before, "looking as {user:?} has changed something");
}

/// Every command that changes a spool fails, and prints nothing that looks like success.
fn assert_changes_fail(place: &Place, user: Option<u32>, options: &[&str], why: &str) {
    for command in [
        &["spool", "drain"][..],
        &["spool", "drop", "--key", "x", "--yes"],
        &["dead-letters", "drop", "--all", "--yes"],
        &["dead-letters", "replay", "--all"],
    ] {
        let output = place.command_as(user, &[command, options].concat()).output().expect("the relay's binary");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && told.contains(why), "{command:?} as {user:?}: {told}");
        assert!(output.stdout.is_empty(), "{command:?} as {user:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn a_spool_that_cannot_be_opened_is_not_taken_for_an_empty_one() {
    let mock = Mock::start();
    mock.freeze();
    let place = place(&mock);
    let mut relay = spooling(&mock, &place);
    post(&relay, &chat_id(), 0..2);
    relay.signal(Signal::TERM);
    assert!(relay.end().success());

    let lock = place.directory.join("lock");
    std::fs::remove_file(&lock).expect("a relay's");
    std::fs::create_dir(&lock).expect("in its place: it cannot be opened to be written, whoever tries");
    assert_changes_fail(&place, None, &[], "lock: Is a directory");
    let socket = place.directory.with_file_name("control");
    let (directory, at) = (format!("\"{}\"", place.directory.display()), format!("\"{}\"", socket.display()));
    let settings = [("spool.directory", &*directory), ("control.socket", &at), ("topics.create", "false")];
    let _relay = Relay::start(&mock.bootstrap(), &settings);
    await_that("the socket is there", || UnixStream::connect(&socket).is_ok());
    let through_it = ["--socket", socket.to_str().expect("text")];
    assert_changes_fail(&place, None, &through_it, "nothing in the spool can be read or changed: the spool has failed");
    let status = place.json(&[&["spool", "status", "--json"], &through_it[..]].concat());
    assert!(status["accepting"] == false && status["problems"][0].is_string(), "{status}");

    std::fs::remove_dir(&lock).expect("empty");
    let events = || place.json(&[&["spool", "status", "--json"], &through_it[..]].concat())["events"] == 2;
    await_that("the relay has opened it", events);
}

#[test]
fn a_drain_or_drop_of_all_that_left_out_a_file_has_failed() {
    let mock = Mock::start();
    mock.freeze();
    let place = place(&mock);
    let mut relay = spooling(&mock, &place);
    post(&relay, &chat_id(), 0..2);
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    std::fs::write(place.directory.join("99.seg"), b"no segment").expect("a file");
    mock.thaw();
    let output = place.run(&["spool", "drain", "--json"]);
    let (printed, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.code() == Some(1) && told.contains("not published: ") && told.contains("99.seg"), "{told}");
    assert!(printed.starts_with("{\"left\":0,"), "what could be read is on Kafka: {printed}");
    let told = place.fails(&["dead-letters", "drop", "--all", "--yes"], 1);
    assert!(told.contains("not searched: ") && told.contains("99.seg"), "{told}");
}

#[test]
fn looking_at_a_stopped_relays_spool_changes_nothing_as_its_user_and_as_root() {
    let mock = Mock::start();
    mock.freeze();
    let place = place(&mock);
    for (signal, events) in [(Signal::TERM, 0..2), (Signal::KILL, 2..4)] {
        let mut relay = spooling(&mock, &place);
        post(&relay, &chat_id(), events);
        relay.signal(signal);
        relay.end();
    }
    assert_looking_changes_nothing(&place, None);
    let mut relay = spooling(&mock, &place);
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    assert_looking_changes_nothing(&place, None);
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can look at another user's spool");
    }

    const OTHER: u32 = 65534;
    std::fs::set_permissions(place.directory.parent().expect("a directory"), std::fs::Permissions::from_mode(0o711))
        .expect("it is ours");
    for file in state_of(&place.directory) {
        std::os::unix::fs::lchown(file.0, Some(OTHER), Some(OTHER)).expect("root may");
    }
    assert_looking_changes_nothing(&place, None);
    if place.command_as(Some(OTHER), &["--version"]).output().is_ok_and(|output| output.status.success()) {
        assert_looking_changes_nothing(&place, Some(OTHER));
        // A relay of our own, and its socket.
        let at = place.directory.with_file_name("control.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&at).expect("bound");
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        let status = ["spool", "status", "--socket", at.to_str().expect("text")];
        let refused = place.command_as(Some(OTHER), &status).output().expect("the relay's binary");
        let expected = format!(
            "error: {} cannot be opened: Permission denied (os error 13); run this as the relay's user, or as root\n",
            at.display()
        );
        assert_eq!(String::from_utf8_lossy(&refused.stderr), expected);
        let output = place.command_as(Some(OTHER + 1), &["spool", "status"]).output().expect("the relay's binary");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && told.contains("run this as the relay's user, or as root"), "{told}");
        assert_changes_fail(&place, Some(OTHER + 1), &[], "run this as the relay's user, or as root");
    } else {
        eprintln!("skipped: another user cannot run the relay's binary where it is");
    }
    let before = state_of(&place.directory);
    assert_changes_fail(&place, None, &[], "it belongs to user 65534, not to the user of this process");
    assert!(state_of(&place.directory) == before, "what root would make the relay could not use");
    std::fs::set_permissions(&place.directory, std::fs::Permissions::from_mode(0o770)).expect("root may");
    let told = place.fails(&["spool", "status"], 1);
    assert!(
        told.contains("other users may write to it (its mode is 770); remove that permission: chmod go-w"),
        "{told}"
    );
}

#[test]
fn an_output_that_is_closed_ends_a_command_quietly_and_one_that_is_full_is_an_error() {
    let mock = Mock::start();
    mock.freeze();
    let place = place(&mock);
    let mut relay = spooling(&mock, &place);
    let large = |n| incoming_event(&chat_id(), n).replace("Grüße", &"x".repeat(100_000));
    (0..20).for_each(|n| assert_eq!(http::post(relay.webhooks, large(n)).status, 200));
    let commands = [&["spool", "export"][..], &["spool", "list"], &["spool", "list", "--json"], &["spool", "status"]];
    let check = || {
        for command in commands {
            let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
            let output = place.command_as(None, command).stdout(full).output().expect("the relay's binary");
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_told = told.contains("standard output cannot be written: No space left on device");
            assert!(output.status.code() == Some(1) && is_told, "{command:?}: {told}");

            let (reader, writer) = std::io::pipe().expect("a pipe");
            std::mem::drop(reader);
            let output = place.command_as(None, command).stdout(writer).output().expect("the relay's binary");
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(0) && told.is_empty(), "{command:?}: {told}");
        }
        let file = place.directory.with_file_name(format!("export-{}", uuid::Uuid::now_v7()));
        place.prints(&["spool", "export", "--output", file.to_str().expect("text")]);
        assert_eq!(file.metadata().expect("a file").permissions().mode() & 0o7777, 0o600);
    };
    check();
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    check();
}

/// Changes a byte of an event on the disk, as a disk may.
fn damage(directory: &Path, chat: &str) {
    let files = std::fs::read_dir(directory).expect("a spool").map(|file| file.expect("a file").path());
    let segments = files.filter(|path| path.extension().is_some_and(|extension| extension == "seg"));
    for path in segments {
        let mut bytes = std::fs::read(&path).expect("a segment");
        if let Some(at) = bytes.windows(chat.len()).position(|found| found == chat.as_bytes()) {
            bytes[at] ^= 1;
            return std::fs::write(&path, bytes).expect("written");
        }
    }
    panic!("{chat} is in no segment");
}

/// The names of all members of an object, and of the objects in it but those of a value of the user's.
fn members(json: &serde_json::Value) -> BTreeSet<String> {
    match json {
        serde_json::Value::Array(items) => items.iter().flat_map(members).collect(),
        serde_json::Value::Object(object) => {
            let below = object.iter().filter(|(name, _)| *name != "value").flat_map(|(_, value)| members(value));
            object.keys().cloned().chain(below).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// The members that docs/operations.md names for a command.
fn documented(command: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).expect("the docs");
    let row = text.lines().find(|line| line.starts_with(&format!("| `{command}`"))).expect("a row");
    let shape = row.split(" | ").nth(1).expect("two columns");
    shape.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn damage_is_found_by_verify_and_json_has_the_documented_members() {
    let mock = Mock::start();
    mock.freeze();
    let place = place(&mock);
    let mut relay = spooling(&mock, &place);
    let [first, second] = [(); 2].map(|()| chat_id());
    post(&relay, &first, 0..2);
    post(&relay, &second, 2..3);
    let verified = place.json(&["spool", "verify", "--json"]);
    assert_eq!((&verified["ok"], &verified["segments"][0]["events"]), (&true.into(), &3.into()));
    assert_eq!(members(&verified), documented("spool verify"));
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    assert!(place.prints(&["spool", "verify"]).ends_with("3 events can be read\n"));

    damage(&place.directory, &second);
    let output = place.run(&["spool", "verify", "--json"]);
    let verified: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = &verified["segments"][0];
    assert_eq!((&found["events"], &found["damaged"], &verified["ok"]), (&2.into(), &1.into(), &false.into()));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(members(&place.json(&["spool", "status", "--json"])), documented("spool status"));
    let mut items = lines(&place.prints(&["spool", "export"]));
    assert!(items.len() == 3 && items[2]["value_hex"].is_string(), "{items:?}");
    let told = place.fails(&["spool", "drop", "--key", &second, "--yes"], 1);
    assert!(told.contains("1 damaged entries could not be compared with the filter"), "{told}");

    let relay = spooling(&mock, &place);
    mock.thaw();
    await_that("the damaged one is a dead letter", || relay.metric("livechat_relay_dead_letters_on_disk") == 1.0);
    items.extend(lines(&place.prints(&["dead-letters", "list", "--json"])));
    let mut of_disk = documented("spool list");
    assert!(of_disk.remove("partition"), "only those on Kafka have one");
    assert_eq!(members(&items.into()), of_disk);
    assert_eq!(members(&place.json(&["spool", "drain", "--json"])), documented("spool drain"));
    let replayed = place.run(&["dead-letters", "replay", "--all", "--json"]);
    let replayed: serde_json::Value = serde_json::from_slice(&replayed.stdout).expect("JSON");
    assert_eq!(replayed["corrupted"], 1);
    assert_eq!(members(&replayed), documented("dead-letters replay"));
    assert_eq!(members(&place.json(&["dead-letters", "drop", "--all", "--yes", "--json"])), documented("spool drop"));
}

#[test]
fn the_replay_of_a_topic_is_paused_and_resumed_and_others_go_on() {
    let mock = Mock::start();
    mock.freeze();
    let place = place(&mock);
    let relay = spooling(&mock, &place);
    let chats = [(); 3].map(|()| chat_id());
    let tagged = |n| incoming_event(&chats[0], n).replace("\"incoming_event\"", "\"thread_tagged\"");
    chats.iter().for_each(|chat| post(&relay, chat, 0..3));
    let paused = place.json(&["spool", "pause", "livechat.incoming_event", "--json"]);
    assert_eq!((&paused["paused"], &paused["events"]), (&true.into(), &9.into()));
    assert_eq!(members(&paused), documented("spool pause"));
    assert_eq!(http::post(relay.webhooks, tagged(1)).status, 200);
    assert!(place.fails(&["spool", "pause", "livechat.incoming_evnt"], 1).contains("no event of topic"));
    assert!(place.fails(&["spool", "resume", "livechat.thread_tagged"], 1).contains("is not paused"));
    mock.thaw();
    let waiting = |topic: &str| relay.metric(&format!("livechat_relay_spool_records{{topic=\"{topic}\"}}"));
    await_that("the other topic is empty", || waiting("livechat.thread_tagged") == 0.0);
    post(&relay, &chats[1], 3..6);
    assert!(waiting("livechat.incoming_event") >= 11.0, "all but one that may have been on its way wait");
    assert!(
        place
            .prints(&["spool", "status"])
            .contains("\n  paused; resume it with `livechat-relay spool resume livechat.incoming_event`\n")
    );
    let dropped = place.json(&["spool", "drop", "--key", &chats[2], "--yes", "--json"]);
    assert_eq!(dropped["events"], 3);
    assert!(place.prints(&["spool", "resume", "livechat.incoming_event"]).contains("goes on"));
    await_that("it is empty", || waiting("livechat.incoming_event") == 0.0);
    let published = mock.read("livechat.incoming_event");
    let events_of = |chat: &str| -> BTreeSet<u64> {
        let of_chat = published.iter().filter(|message| message.key.as_deref() == Some(chat.as_bytes()));
        let value = of_chat.map(|message| serde_json::from_slice::<serde_json::Value>(&message.value).expect("JSON"));
        value.filter_map(|value| value["eventid"].as_str()?.rsplit('_').next()?.parse().ok()).collect()
    };
    assert_eq!((events_of(&chats[0]), events_of(&chats[1])), ((0..3).collect(), (0..6).collect()));
    assert!(events_of(&chats[2]).is_empty(), "what was dropped while the replay was paused is not published");
}

#[test]
fn where_there_is_no_spool_or_no_relay_the_command_says_what_is_missing() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = temporary.path().join("nowhere");
    let nowhere = Place { brokers: "localhost:1".to_owned(), directory, _temporary: temporary };
    for command in [&["spool", "status"][..], &["dead-letters", "list"], &["spool", "drain"]] {
        assert!(nowhere.fails(command, 1).contains("there is no spool in"));
        assert!(!nowhere.directory.exists(), "nothing is made by looking");
    }
    assert!(nowhere.fails(&["spool", "pause", "livechat.incoming_event"], 1).contains("there is no spool in"));
    let unset =
        Command::new(env!("CARGO_BIN_EXE_livechat-relay")).args(["spool", "status"]).output().expect("the binary");
    assert_eq!(unset.status.code(), Some(64));
}
