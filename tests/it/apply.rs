//! `webhooks apply` and `rotate` against a simulated LiveChat: what it has afterwards, also when they were killed, and that no event is lost,
//! refused or published twice meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::http;
use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET, await_that, configuration};
use crate::support::simulator::{self, Simulator};
use crate::support::{chat_id, incoming_event};

const ACTIONS: &str = r#"actions = ["incoming_chat", "incoming_event", "thread_tagged"]"#;

/// `apps`, with the keys in a directory, and these webhooks.
fn apps(keys: &Path, webhooks: &str) -> String {
    let listed = format!(r#"secret_keys = [{{ name = "test", value = "{SECRET}" }}]"#);
    let apps = simulator::apps(&format!("webhooks = [{{ {webhooks} }}]"));
    assert!(apps.contains(&listed));
    apps.replace(&listed, &format!("secret_keys = {{ directory = \"{}\" }}", keys.display()))
}

/// A simulated LiveChat, a directory with one key, and what a relay is configured with.
struct Place {
    livechat: Simulator,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("keys")).expect("a directory");
        std::fs::write(directory.path().join("keys/2026-10"), SECRET).expect("written");
        Self { livechat: Simulator::start(), directory }
    }

    fn keys(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path().join("keys")).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|one| one.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    /// The text of a configuration.
    fn configuration(&self, brokers: &str, webhooks: &str) -> String {
        let [apps, api, socket] = [
            apps(&self.directory.path().join("keys"), webhooks),
            format!("{:?}", self.livechat.url),
            format!("\"{}\"", self.directory.path().join("control.sock").display()),
        ];
        let settings = [
            ("apps", apps.as_str()),
            ("livechat.api", &api),
            ("livechat.accounts", &api),
            ("livechat.propagation", "\"2s\""),
            ("livechat.retry_min", "\"10ms\""),
            ("control.socket", &socket),
            ("reload.check_interval", "\"1s\""),
            ("topics.create", "false"),
            ("kafka.start_timeout", "\"200ms\""),
        ];
        configuration(brokers, &settings)
    }

    /// A file with it, for commands without a relay.
    fn file(&self, webhooks: &str) -> std::path::PathBuf {
        let file = self.directory.path().join("relay.toml");
        std::fs::write(&file, self.configuration("127.0.0.1:1", webhooks)).expect("written");
        file
    }

    /// What is registered: action, whether it is filtered, secret key.
    fn registered(&self) -> Vec<(String, bool, String)> {
        let text = |one: &Value, name: &str| one[name].as_str().expect("a text").to_owned();
        let is_filtered = |one: &Value| one["filters"].as_object().is_some_and(|filters| !filters.is_empty());
        let of = |one: &Value| (text(one, "action"), is_filtered(one), text(one, "secret_key"));
        let mut registered: Vec<_> = self.livechat.registrations().iter().map(of).collect();
        registered.sort();
        registered
    }
}

fn command(file: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    command.arg("webhooks").args(arguments).arg("--config").arg(file).stdin(Stdio::null());
    command
}

fn run(file: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command(file, arguments).output().expect("the binary");
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

/// As when it is piped into a command that has ended.
fn run_unread(file: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = command(file, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary");
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().expect("its end");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Registered by hand.
fn register(place: &Place, action: &str, url: &str) {
    let owner = simulator::CLIENT;
    let webhook =
        json!({ "action": action, "url": url, "secret_key": SECRET, "owner_client_id": owner, "type": "license" });
    assert_eq!(place.livechat.call("register_webhook", webhook).status, 200);
}

const FILTERED: &str = r#"actions = ["incoming_chat", "incoming_event", "thread_tagged"], filters = { source_type = ["my_client", "other_clients", "system"] }"#;

fn wanted(is_filtered: bool, key: &str) -> Vec<(String, bool, String)> {
    ["incoming_chat", "incoming_event", "thread_tagged"]
        .map(|action| (action.to_owned(), is_filtered, key.to_owned()))
        .into()
}

#[test]
fn apply_registers_what_is_wanted_once_and_removes_what_is_not() {
    let place = Place::new();
    let file = place.file(ACTIONS);
    let (code, text) = run(&file, &["apply"]);
    assert!(code == Some(64) && text.contains("add --yes"), "{text}");
    let (code, text) = run(&file, &["apply", "--dry-run"]);
    assert!(code == Some(0) && text.contains("1. register 3 webhooks") && place.registered().is_empty(), "{text}");
    let (code, text) = run(&file, &["apply", "--yes"]);
    assert_eq!((code, place.registered()), (Some(0), wanted(false, SECRET)), "{text}");
    assert!(text.contains("3 registered, 0 unregistered") && !text.contains(SECRET), "{text}");
    let (code, text) = run(&file, &["apply", "--yes"]);
    assert!(code == Some(0) && place.livechat.requests("register_webhook").len() == 3, "{text}");

    let file = place.file(r#"actions = ["incoming_event"]"#);
    let (code, text) = run(&file, &["apply", "--yes", "--json"]);
    let report: Value =
        serde_json::from_str(text.lines().find(|line| line.starts_with('{')).unwrap_or(&text)).expect("JSON");
    assert_eq!((code, report["done"].as_array().map(Vec::len)), (Some(0), Some(2)), "{text}");
    assert_eq!(place.registered(), [("incoming_event".to_owned(), false, SECRET.to_owned())]);

    // Where nothing can be done there is nothing to ask.
    (1..=3).for_each(|n| register(&place, "thread_tagged", &format!("https://crm.example/{n}")));
    let (code, text) = run(&place.file(r#"actions = ["incoming_event", "thread_tagged"]"#), &["apply"]);
    assert!(code == Some(1) && text.contains("thread_tagged cannot be registered"), "{code:?} {text}");
    assert!(text.contains("0 to register, 0 to unregister") && !text.contains("add --yes"), "{text}");
    let ids = place.livechat.registrations();
    let of_others = ids.iter().filter(|one| one["action"] == "thread_tagged").filter_map(|one| one["id"].as_str());
    of_others.for_each(|id| _ = run(&file, &["unregister", id, "--yes"]));

    // What fails half way is said.
    let file = place.file(ACTIONS);
    place.livechat.fault(json!({ "method": "register_webhook", "skip": 1, "times": 0, "error": "authorization" }));
    let (code, text) = run(&file, &["apply", "--yes"]);
    assert!(code == Some(1) && text.contains("1 registered and 0 unregistered before that"), "{text}");
}

/// A command that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// The second of two at once says so. Killed while LiveChat has a call, or has done it and the answer is on its way, and run again, `apply`
/// ends in the wanted state.
#[test]
fn apply_killed_at_any_call_and_run_again_ends_in_the_wanted_state() {
    let calls = [
        ("list_webhooks", 0),
        ("register_webhook", 0),
        ("register_webhook", 1),
        ("register_webhook", 2),
        ("unregister_webhook", 0),
        ("unregister_webhook", 2),
        ("list_webhooks", 1),
    ];
    let kill = |(method, skip): (&str, usize), when: &str| {
        let place = Place::new();
        assert_eq!(run(&place.file(ACTIONS), &["apply", "--yes"]).0, Some(0));
        let file = place.file(FILTERED);
        place.livechat.delete("requests");
        place.livechat.fault(json!({ "method": method, "skip": skip, "times": 1, "when": when, "answer": "hang" }));
        let apply = command(&file, &["apply", "--yes"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut apply = Ended(apply.expect("the binary"));
        await_that("the call has come", || place.livechat.requests(method).len() > skip);
        if method == "register_webhook" && skip == 0 {
            let (code, text) = run(&file, &["apply", "--yes"]);
            assert!(code == Some(1) && text.contains("another `webhooks apply`"), "{text}");
        }
        apply.0.kill().expect("killed");
        apply.0.wait().expect("ended");
        place.livechat.delete("faults");
        let (code, text) = run(&file, &["apply", "--yes"]);
        assert_eq!(code, Some(0), "{method} {skip} {when}: {text}");
        assert_eq!(place.registered(), wanted(true, SECRET), "{method} {skip} {when}: {text}");
    };
    let kill = &kill;
    std::thread::scope(|scope| {
        for call in calls {
            for when in ["before", "after"] {
                scope.spawn(move || kill(call, when));
            }
        }
    });
}

/// A command that the user ends with Ctrl-C once LiveChat has had this many registrations; how it ends.
fn interrupted(place: &Place, file: &Path, arguments: &[&str], registrations: usize) -> (Option<i32>, String) {
    let child = command(file, arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the binary");
    await_that("all is registered", || place.livechat.registrations().len() == registrations);
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid");
    kill_process(pid, Signal::INT).expect("a process of ours");
    let Output { status, stderr, .. } = child.wait_with_output().expect("its end");
    (status.code(), String::from_utf8_lossy(&stderr).split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn apply_that_is_interrupted_says_what_is_done_and_how_it_goes_on() {
    let place = Place::new();
    assert_eq!(run(&place.file(ACTIONS), &["apply", "--yes"]).0, Some(0));
    let file = place.file(FILTERED);
    let (code, text) = interrupted(&place, &file, &["apply", "--yes"], 6);
    assert!(code == Some(1) && text.contains("3 registered and 0 unregistered before that"), "{code:?} {text}");
    let again = format!("`livechat-relay webhooks apply -c {}` continues from here", file.display());
    assert!(
        text.contains("of 3 actions the old webhook and the new one are registered") && text.contains(&again),
        "{text}"
    );
    let (code, text) = run(&file, &["apply", "--yes"]);
    assert_eq!((code, place.registered()), (Some(0), wanted(true, SECRET)), "{text}");
}

/// LiveChat's listing shows the keys here, as LiveChat's own clients have it.
#[test]
fn a_rotation_that_is_interrupted_is_named_everywhere_and_registers_nothing_a_third_time() {
    let (place, mock) = (Place::new(), Mock::start());
    place.livechat.switch(json!({ "secret_in_listing": true }));
    let relay = Relay::start_as(&place.configuration(&mock.bootstrap(), ACTIONS)).ready();
    let file = relay.file();
    assert_eq!(run(&file, &["apply", "--yes"]).0, Some(0));
    let (code, text) = run(&file, &["rotate", "--dry-run"]);
    assert!(code == Some(0) && text.contains("6 calls and a few that list") && text.lines().count() < 12, "{text}");

    let (code, text) = interrupted(&place, &file, &["rotate", "--yes"], 6);
    let keys = place.keys();
    assert!(code == Some(1) && keys.len() == 2, "{code:?} {keys:?} {text}");
    assert!(text.contains("3 registered and 0 unregistered") && text.contains("Both keys, 2026-10 and"), "{text}");

    let unfinished = format!("a rotation from 2026-10 to {} is unfinished", keys[1]);
    for command in ["plan", "adopt"] {
        let (code, text) = run(&file, &[command]);
        let words = text.replace("\n#", "").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(code == Some(0) && words.contains(&unfinished) && !words.contains("alike"), "{command}: {text}");
    }
    let (code, text) = run(&file, &["apply", "--yes"]);
    assert_eq!((code, place.registered().len()), (Some(0), 6), "the rotation alone removes one of two: {text}");
    let check = Command::new(env!("CARGO_BIN_EXE_livechat-relay")).arg("check").arg("--config").arg(&file).output();
    let text =
        String::from_utf8_lossy(&check.expect("the binary").stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(&unfinished), "{text}");

    let (code, text) = run(&file, &["rotate", "--yes"]);
    assert_eq!((code, place.keys().len()), (Some(0), 1), "{text}");
    assert_eq!(place.livechat.requests("register_webhook").len(), 6, "three of before, three of the rotation: {text}");
    let key = std::fs::read_to_string(place.directory.path().join("keys").join(&keys[1])).expect("read");
    assert_eq!(place.registered(), wanted(false, key.trim()));

    // One of which nothing but the end is left asks, too: a key is deleted then.
    std::fs::write(place.directory.path().join("keys/2026-09"), SECRET).expect("written");
    let (code, text) = run(&file, &["rotate"]);
    assert!(code == Some(64) && text.contains("0 calls") && text.contains("add --yes"), "{text}");
    assert_eq!(place.keys().len(), 2);
}

/// Makes things happen at LiveChat, once what is registered is in force; how many chats, messages and tags, and the chats' ids.
fn traffic(livechat: &Simulator, stop: &Receiver<()>) -> (BTreeMap<&'static str, usize>, BTreeSet<String>) {
    let begin = || livechat.post("chats", json!({}))["chat_id"].as_str().expect("an id").to_owned();
    await_that("the last webhook that was registered is in force", || {
        livechat.post(&format!("chats/{}/tag", begin()), json!({}));
        let sent = &livechat.report()["deliveries"];
        sent.as_array().is_some_and(|sent| sent.iter().any(|one| one["action"] == "thread_tagged"))
    });
    let (mut counts, mut chats, mut chat) = (BTreeMap::new(), BTreeSet::new(), String::new());
    // LiveChat is not as fast as this machine.
    while stop.recv_timeout(Duration::from_millis(20)) == Err(RecvTimeoutError::Timeout) {
        if counts.get("thread_tagged").is_none_or(|tags| tags % 50 == 0) {
            chat = begin();
            chats.insert(chat.clone());
            *counts.entry("incoming_chat").or_default() += 1;
        }
        livechat.post(&format!("chats/{chat}/message"), json!({ "text": "Hello" }));
        livechat.post(&format!("chats/{chat}/tag"), json!({ "tag": "the same" }));
        *counts.entry("incoming_event").or_default() += 1;
        *counts.entry("thread_tagged").or_default() += 1;
    }
    (counts, chats)
}

/// Runs a command while things happen; what is published then is each of them once.
fn under_load(place: &Place, mock: &Mock, relay: &Relay, arguments: &[&str]) -> String {
    let (stop, stopped) = mpsc::sync_channel(1);
    let events = |outcome: &str, action: &str| {
        relay.metric(&format!(r#"livechat_relay_events_total{{action="{action}",outcome="{outcome}"}}"#))
    };
    let ((happened, chats), text) = std::thread::scope(|scope| {
        let traffic = scope.spawn(move || traffic(&place.livechat, &stopped));
        await_that("events come", || events("published", "thread_tagged") > 20.0);
        let (code, text) = run(&relay.file(), arguments);
        let published = events("published", "thread_tagged");
        await_that("they go on", || events("published", "thread_tagged") > published + 20.0);
        drop(stop);
        assert_eq!(code, Some(0), "{text}\n{}", relay.log());
        (traffic.join().expect("no panic"), text)
    });
    await_that("all is delivered", || place.livechat.report()["pending"] == 0);
    let report = place.livechat.report();
    assert_eq!((&report["failed"], &report["dropped"]), (&json!(0), &json!(0)), "refused or lost: {text}");
    for (action, happened) in happened {
        let is_of_chat =
            |key: &Option<Vec<u8>>| key.as_ref().is_some_and(|key| chats.contains(&*String::from_utf8_lossy(key)));
        let mut records = mock.read(&format!("livechat.{action}"));
        records.retain(|record| is_of_chat(&record.key));
        let ids: BTreeSet<_> = records
            .iter()
            .map(|record| serde_json::from_slice::<Value>(&record.value).expect("JSON")["id"].to_string())
            .collect();
        assert_eq!((records.len(), ids.len()), (happened, happened), "{action}: {text}");
    }
    assert!(relay.metric(r#"livechat_relay_retries_total{result="copy"}"#) > 0.0, "two registrations have delivered");
    text
}

#[test]
fn apply_under_load_loses_refuses_and_repeats_no_event() {
    let (place, mock) = (Place::new(), Mock::start());
    place.livechat.switch(json!({ "delivery_lag": 1.0 }));
    let relay = Relay::start_as(&place.configuration(&mock.bootstrap(), ACTIONS)).ready();
    place.livechat.route_to(relay.webhooks);
    assert_eq!(run(&relay.file(), &["apply", "--yes"]).0, Some(0));
    relay.configure(&place.configuration(&mock.bootstrap(), FILTERED));
    let text = under_load(&place, &mock, &relay, &["apply", "--yes"]);
    assert!(text.contains("3 registered, 3 unregistered"), "{text}");
    assert_eq!(place.registered(), wanted(true, SECRET));
    let (code, list) = run(&relay.file(), &["list"]);
    assert!(code == Some(0) && list.lines().filter(|line| line.ends_with(" ago")).count() == 3, "{list}");
}

#[test]
fn rotate_under_load_loses_refuses_and_repeats_no_event() {
    let (place, mock) = (Place::new(), Mock::start());
    place.livechat.switch(json!({ "delivery_lag": 1.0 }));
    let relay = Relay::start_as(&place.configuration(&mock.bootstrap(), ACTIONS)).ready();
    place.livechat.route_to(relay.webhooks);
    assert_eq!(run(&relay.file(), &["apply", "--yes"]).0, Some(0));
    under_load(&place, &mock, &relay, &["rotate", "--yes"]);
    let keys = place.keys();
    assert!(keys.len() == 1 && keys[0] != "2026-10", "{keys:?}");
    let key = std::fs::read_to_string(place.directory.path().join("keys").join(&keys[0])).expect("read");
    assert_eq!(place.registered(), wanted(false, key.trim()));
    assert!(key.trim() != SECRET && !relay.log().contains(key.trim()));
}

/// Two relays with one directory of keys; the other one gets the webhooks. It has read the new key by itself before LiveChat has it.
#[test]
fn rotate_at_one_of_two_relays_has_the_other_one_refuse_no_event() {
    let (place, mock) = (Place::new(), Mock::start());
    place.livechat.switch(json!({ "delivery_lag": 1.0 }));
    let text = place.configuration(&mock.bootstrap(), ACTIONS);
    let rotating = Relay::start_as(&text).ready();
    let other = Relay::start_as(&text.replace("control.sock", "other.sock")).ready();
    place.livechat.route_to(other.webhooks);
    assert_eq!(run(&rotating.file(), &["apply", "--yes"]).0, Some(0));
    let socket = place.directory.path().join("control.sock").display().to_string();
    under_load(&place, &mock, &other, &["rotate", "--yes", "--socket", &socket]);
    let keys = place.keys();
    assert!(keys.len() == 1 && keys[0] != "2026-10", "{keys:?}");
}

#[test]
fn rotate_refuses_before_any_change_where_it_cannot_end() {
    let (place, mock) = (Place::new(), Mock::start());
    let file = place.file(ACTIONS);
    let (code, text) = run(&file, &["rotate", "--yes"]);
    assert!(code == Some(1) && text.contains("no relay answers"), "{text}");
    let relay = Relay::start_as(&place.configuration(&mock.bootstrap(), ACTIONS)).ready();
    // A directory where the new key would be written first: no user can write that file, not even root.
    std::fs::create_dir(place.directory.path().join("keys/.livechat-relay.new")).expect("a directory");
    let (code, text) = run(&relay.file(), &["rotate", "--yes"]);
    assert!(code == Some(1) && text.contains("a new key cannot be written"), "{text}");
    std::fs::remove_dir(place.directory.path().join("keys/.livechat-relay.new")).expect("removed");
    // A relay that takes no configuration takes no key.
    relay.configure(&format!("{}\n[nonsense]\nkey = 1\n", place.configuration(&mock.bootstrap(), ACTIONS)));
    let (code, text) = run(&file, &["rotate", "--yes"]);
    assert!(code == Some(1) && text.contains("keeps its former configuration"), "{text}");
    assert_eq!((place.keys(), place.registered()), (vec!["2026-10".to_owned()], vec![]));
    // Of one that was begun before webhooks may be registered already.
    std::fs::write(place.directory.path().join("keys/2026-11"), "the new secret key").expect("written");
    let (code, text) = run(&file, &["rotate", "--yes"]);
    assert!(code == Some(1) && text.contains("may be registered with it already") && !text.contains("asked"), "{text}");
    assert_eq!(place.keys().len(), 2);
}

/// A webhook that comes by another host is not replaced: without its key it would be refused.
#[test]
fn rotate_refuses_where_a_webhook_that_stays_delivers_with_the_old_key() {
    let (place, mock) = (Place::new(), Mock::start());
    let relay = Relay::start_as(&place.configuration(&mock.bootstrap(), ACTIONS)).ready();
    register(&place, "incoming_event", "https://other.example/webhooks/default");
    let id = place.livechat.registrations()[0]["id"].as_str().expect("an id").to_owned();
    let webhook = incoming_event(&chat_id(), 1).replace(r#""webhook_id":"7b2f""#, &format!(r#""webhook_id":"{id}""#));
    assert_eq!(http::post(relay.webhooks, webhook).status, 200);
    for arguments in [&["rotate", "--dry-run"][..], &["rotate", "--yes"]] {
        let (code, text) = run(&relay.file(), arguments);
        assert!(
            code == Some(1) && text.contains(&format!("the webhook {id} (incoming_event) delivers here")),
            "{text}"
        );
    }
    assert_eq!((place.keys().len(), place.registered().len()), (1, 1));
    // Nor does it begin where it could not register all.
    (1..=2).for_each(|n| register(&place, "incoming_event", &format!("https://crm.example/{n}")));
    let (code, text) = run(&relay.file(), &["rotate", "--yes"]);
    assert!(code == Some(1) && text.contains("incoming_event cannot be registered"), "{text}");
    assert_eq!((place.keys().len(), place.registered().len()), (1, 3));
}

/// While the old key becomes silent the configuration is made invalid.
#[test]
fn rotate_whose_last_reload_fails_says_that_only_the_reload_is_left() {
    let (place, mock) = (Place::new(), Mock::start());
    let text = place.configuration(&mock.bootstrap(), ACTIONS);
    let relay = Relay::start_as(&text).ready();
    let file = place.file(ACTIONS);
    // Time enough for the configuration to change.
    let slow = std::fs::read_to_string(&file).expect("read").replace("propagation = \"2s\"", "propagation = \"15s\"");
    std::fs::write(&file, slow).expect("written");
    let socket = place.directory.path().join("control.sock").display().to_string();
    std::thread::scope(|scope| {
        let rotate = scope.spawn(|| run(&file, &["rotate", "--yes", "--socket", &socket]));
        await_that("all is registered", || place.livechat.registrations().len() == 3);
        relay.configure(&format!("{text}\n[nonsense]\nkey = 1\n"));
        let (code, text) = rotate.join().expect("no panic");
        assert!(code == Some(1) && text.contains("only `livechat-relay reload") && !text.contains("again"), "{text}");
    });
    assert!(place.keys().len() == 1 && place.keys()[0] != "2026-10", "{:?}", place.keys());
}

#[test]
fn an_output_that_is_closed_ends_nothing_half_way_and_hides_no_failure() {
    let (place, mock) = (Place::new(), Mock::start());
    let relay = Relay::start_as(&place.configuration(&mock.bootstrap(), ACTIONS)).ready();
    place.livechat.fault(json!({ "method": "register_webhook", "skip": 1, "times": 1, "error": "authorization" }));
    let (code, text) = run_unread(&relay.file(), &["apply", "--yes", "--json"]);
    assert!(code == Some(1) && text.contains("1 registered and 0 unregistered"), "{code:?} {text}");
    place.livechat.delete("faults");
    let (code, text) = run_unread(&relay.file(), &["apply", "--yes"]);
    assert_eq!((code, place.registered()), (Some(0), wanted(false, SECRET)), "{text}");
    let (code, text) = run_unread(&relay.file(), &["rotate", "--yes"]);
    assert!(code == Some(0) && place.keys().len() == 1 && place.keys()[0] != "2026-10", "{code:?} {text}");
}

/// A key stays where a webhook that the relay does not know may have it, or another app; one that was rewritten is another one.
#[test]
fn a_key_that_something_else_may_use_is_not_deleted() {
    let (place, mock) = (Place::new(), Mock::start());
    let (text, key) = (place.configuration(&mock.bootstrap(), ACTIONS), place.directory.path().join("keys/2026-10"));
    let text = text.replace("check_interval = \"1s\"", "check_interval = \"0s\"");
    let relay = Relay::start_as(&text).ready();
    std::fs::write(&key, "another key of this name").expect("written");
    let (code, text_of_apply) = run(&relay.file(), &["apply", "--yes"]);
    assert!(code == Some(1) && text_of_apply.contains("secret keys have changed"), "{text_of_apply}");
    std::fs::write(&key, SECRET).expect("written");
    assert_eq!(run(&relay.file(), &["apply", "--yes"]).0, Some(0));

    let url = format!("{}/webhooks/default", simulator::PUBLIC_URL);
    place.livechat.switch(json!({ "extra_actions": ["mood_changed"] }));
    register(&place, "mood_changed", &url);
    let (code, rotated) = run(&relay.file(), &["rotate", "--yes", "--json"]);
    assert!(code == Some(1) && rotated.contains("(mood_changed) stays registered here"), "{rotated}");
    let report: Value =
        serde_json::from_str(rotated.lines().find(|line| line.starts_with('{')).expect("a report")).expect("JSON");
    assert!(report["failure"].as_str().is_some_and(|failure| failure.contains("mood_changed")), "{report}");
    assert_eq!(report["done"].as_array().map(Vec::len), Some(6), "{report}");
    assert!(rotated.contains("reload.check_interval is \"0s\""), "{rotated}");
    let with_old = place.registered().into_iter().filter(|(.., key)| key == SECRET).map(|(action, ..)| action);
    assert_eq!((with_old.collect::<Vec<_>>(), place.keys().len()), (vec!["mood_changed".to_owned()], 2));

    let keys = place.directory.path().join("keys");
    let other = format!(
        "[{{ name = \"other\", secret_keys = {{ directory = \"{}\" }} }}, {{ name = \"default\"",
        keys.display()
    );
    relay.configure(&text.replacen("[{ name = \"default\"", &other, 1));
    let (code, refused) = run(&relay.file(), &["rotate", "--yes"]);
    assert!(code == Some(64) && refused.contains("is that of the app other, too"), "{refused}");
    assert_eq!(place.keys().len(), 2);
}

/// Killed after the new key was written, after a registration, after the old ones are removed, and when the old key is known to be silent.
#[test]
fn rotate_killed_and_run_again_ends_with_one_key() {
    let kill = |(method, skip): (&str, usize)| {
        let (place, mock) = (Place::new(), Mock::start());
        let relay = Relay::start_as(&place.configuration(&mock.bootstrap(), ACTIONS)).ready();
        assert_eq!(run(&relay.file(), &["apply", "--yes"]).0, Some(0));
        place.livechat.delete("requests");
        place.livechat.fault(json!({ "method": method, "skip": skip, "times": 1, "when": "after", "answer": "hang" }));
        let rotate = command(&relay.file(), &["rotate", "--yes"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut rotate = Ended(rotate.expect("the binary"));
        await_that("the call has come", || place.livechat.requests(method).len() > skip);
        rotate.0.kill().expect("killed");
        rotate.0.wait().expect("ended");
        place.livechat.delete("faults");
        assert_eq!(place.keys().len(), 2, "{method} {skip}");
        let (code, text) = run(&relay.file(), &["rotate", "--yes"]);
        assert_eq!(code, Some(0), "{method} {skip}: {text}");
        let keys = place.keys();
        assert!(keys.len() == 1 && keys[0] != "2026-10" && text.contains("Continuing"), "{keys:?}: {text}");
        let key = std::fs::read_to_string(place.directory.path().join("keys").join(&keys[0])).expect("read");
        assert_eq!(place.registered(), wanted(false, key.trim()), "{method} {skip}: {text}");
    };
    let kill = &kill;
    std::thread::scope(|scope| {
        for call in [
            ("list_webhooks", 1),
            ("register_webhook", 1),
            ("unregister_webhook", 1),
            ("list_webhooks", 2),
            ("list_webhooks", 3),
        ] {
            scope.spawn(move || kill(call));
        }
    });
}
