//! After downtime: what LiveChat's archives have of it comes to Kafka, with the ids of LiveChat's own events.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET, await_that};
use crate::support::simulator::{CLIENT, ORGANIZATION, PUBLIC_URL, Simulator, apps};

const ACTIONS: [&str; 3] = ["incoming_chat", "incoming_event", "chat_deactivated"];

const OTHER: &str = "390e44e6-0000-4000-8000-00000000000b";

struct Place {
    livechat: Simulator,
    mock: Mock,
    relay: Relay,
    spool: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self::with(&[])
    }

    /// With more of a relay's settings.
    fn with(more: &[(&str, &str)]) -> Self {
        let (livechat, mock) = (Simulator::start(), Mock::start());
        let spool = tempfile::tempdir().expect("a directory");
        let [url, directory] =
            [livechat.url.clone(), spool.path().display().to_string()].map(|text| format!("{text:?}"));
        let apps = apps("");
        let settings = [
            ("apps", apps.as_str()),
            ("livechat.api", &url),
            ("livechat.accounts", &url),
            ("livechat.attempts_max", "1"),
            ("livechat.timeout", "\"60s\""),
            ("events.initial", "true"),
            ("spool.directory", &directory),
        ];
        let relay = mock.relay(&[&settings, more].concat());
        livechat.route_to(relay.webhooks);
        Self { livechat, mock, relay, spool }
    }

    /// A chat at this minute of an hour, which only the archive knows of unless it is delivered.
    fn chat(&self, minute: u32, deliver: bool) -> String {
        let told = json!({"at": at(minute), "deliver": deliver});
        self.livechat.post("chats", told)["chat_id"].as_str().expect("a chat").to_owned()
    }

    fn go_on(&self, chat: &str, what: &str, minute: u32, deliver: bool) {
        self.livechat.post(&format!("chats/{chat}/{what}"), json!({"at": at(minute), "deliver": deliver}));
    }

    fn backfill(&self, arguments: &[&str]) -> Output {
        self.backfill_of(ORGANIZATION, arguments)
    }

    fn backfill_of(&self, organization: &str, arguments: &[&str]) -> Output {
        let child = self.start(&[&["--organization", organization][..], arguments].concat());
        let output = child.wait_with_output().expect("its end");
        assert!(!text(&output).contains("simulated-personal-access-token"), "{}", text(&output));
        output
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        command
            .args(["backfill", "--json", "--config"])
            .arg(self.relay.file())
            .args(["--from", &at(0)])
            .args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the relay's binary")
    }

    /// Registers a webhook for each of the actions.
    fn register(&self) {
        for action in ACTIONS {
            let url = format!("{PUBLIC_URL}/webhooks/default");
            let wanted = json!({"owner_client_id": CLIENT, "action": action, "type": "license", "url": url, "secret_key": SECRET});
            assert_eq!(self.livechat.call("register_webhook", wanted).status, 200);
        }
    }

    /// So many calls of LiveChat were made.
    fn calls(&self) -> usize {
        self.livechat.get("requests").as_array().expect("a list").len()
    }

    /// What a backfill that succeeds has read.
    fn counts(&self, arguments: &[&str]) -> Value {
        let output = self.backfill(arguments);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["counts"].take()
    }

    fn events(&self, action: &str) -> Vec<Value> {
        let messages = self.mock.read(&format!("livechat.{action}"));
        messages.iter().map(|message| serde_json::from_slice(&message.value).expect("JSON")).collect()
    }
}

fn at(minute: u32) -> String {
    format!("2026-11-22T10:{minute:02}:00Z")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn what_was_delivered_and_what_is_read_from_the_archive_have_the_same_ids() {
    let place = Place::new();
    place.register();
    let [ended, running] = [1, 2].map(|minute| place.chat(minute, true));
    for (chat, what) in [(&ended, "message"), (&running, "message"), (&ended, "message"), (&ended, "end")] {
        place.go_on(chat, what, 5, true);
    }
    await_that("all is delivered", || place.livechat.report()["answered"] == 6);

    let counts = place.counts(&["--to", &at(10)]);
    assert_eq!(
        (&counts["threads"], &counts["running_chats"], &counts["chat_deactivated"]),
        (&json!(1), &json!(1), &json!(1))
    );
    for action in ACTIONS {
        let mut ids: BTreeMap<bool, BTreeSet<String>> = BTreeMap::new();
        for event in place.events(action) {
            let is_backfilled = event["backfill"] == "true";
            assert_eq!(event["organizationid"], ORGANIZATION);
            assert!(!is_backfilled || event["data"].get("webhook_id").is_none());
            ids.entry(is_backfilled).or_default().insert(event["id"].as_str().expect("an id").to_owned());
        }
        assert_eq!(ids.len(), 2, "{action}");
        assert_eq!(ids[&true], ids[&false], "{action}: the ids differ");
    }
    let authors: BTreeSet<_> =
        place.events("incoming_event").iter().map(|event| event["authorkind"].to_string()).collect();
    assert!(authors.contains("\"customer\""), "{authors:?}");
}

#[test]
fn it_reads_the_time_that_is_asked_for_and_goes_on_where_it_was_ended() {
    let place = Place::new();
    // 100 threads are a page. One began before the time, one ends after it.
    let chats: Vec<_> = (0..101).map(|n| place.chat(1 + n / 10, false)).collect();
    chats.iter().for_each(|chat| place.go_on(chat, "end", 20, false));
    let late = place.chat(40, false);
    place.go_on(&late, "end", 41, false);
    place.livechat.fault(json!({"method": "list_archives", "skip": 1, "times": 0, "error": "internal", "status": 500}));

    let dry = place.backfill(&["--to", &at(30), "--dry-run"]);
    let estimate: Value = serde_json::from_slice(&dry.stdout).expect("JSON");
    assert_eq!((&estimate["threads"], &estimate["calls"]), (&json!(101), &json!(3)), "{estimate}");
    place.livechat.delete("faults");
    place.livechat.fault(json!({"method": "list_archives", "skip": 1, "times": 0, "error": "internal", "status": 500}));

    let ended = place.backfill(&["--to", &at(30)]);
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended));
    assert!(text(&ended).contains("the same command continues where this one has ended"), "{}", text(&ended));
    assert_eq!(place.events("incoming_chat").len(), 100);
    // What was read with one of these would not fit to what is read with another.
    for (organization, options) in
        [(ORGANIZATION, &["--to", &at(31)][..]), (ORGANIZATION, &["--max-thread-age", "72h"]), (OTHER, &[])]
    {
        let other = place.backfill_of(organization, options);
        let expected = format!("--to {} --max-thread-age 24h --organization {ORGANIZATION}. Continue that one", at(30));
        assert!(other.status.code() == Some(64) && text(&other).contains(&expected), "{}", text(&other));
    }

    place.livechat.delete("faults");
    place.livechat.delete("requests");
    let counts = place.counts(&[]);
    assert_eq!((&counts["threads"], &counts["incoming_chat"]), (&json!(101), &json!(101)), "{counts}");
    let bodies: Vec<_> =
        place.livechat.requests("list_archives").iter().map(|request| request["body"].to_string()).collect();
    assert!(bodies.len() == 1 && bodies[0].contains("page_id"), "the first page was read again: {bodies:?}");
    let found: BTreeSet<_> = place.events("incoming_chat").iter().map(|event| event["chatid"].to_string()).collect();
    assert_eq!((found.len(), place.events("incoming_chat").len()), (101, 101));
    assert!(!found.contains(&json!(late).to_string()));
    let again = place.backfill(&[]);
    assert!(again.status.code() == Some(1) && text(&again).contains("is complete"), "{}", text(&again));

    // A page id that LiveChat does not know any more: the archive is read from its beginning.
    let file = place.spool.path().join("backfill-default.json");
    let mut cursor: Value = serde_json::from_slice(&std::fs::read(&file).expect("the cursor")).expect("JSON");
    cursor["step"] = json!({"archive": {"page_id": "of-last-year"}});
    std::fs::write(&file, cursor.to_string()).expect("written");
    assert_eq!(place.counts(&[])["threads"], 101);

    // Of another time, what is complete is no hindrance, and what is not is not given up unasked.
    cursor["from"] = json!("2020-01-01T00:00:00Z");
    std::fs::write(&file, cursor.to_string()).expect("written");
    let other = place.backfill(&[]);
    assert!(other.status.code() == Some(64) && text(&other).contains("which is not complete"), "{}", text(&other));
    cursor["step"] = json!("done");
    std::fs::write(&file, cursor.to_string()).expect("written");
    assert_eq!(place.counts(&[])["threads"], 102, "up to now, which is after the late one");
}

#[test]
fn without_a_relay_or_a_right_it_says_so_and_calls_nothing_more() {
    let mut place = Place::new();
    place.livechat.fault(json!({"method": "list_chats", "error": "authorization", "status": 403}));
    // The cursor is there before the first call, and has what was called.
    let refused = place.backfill(&[]);
    assert!(refused.status.code() == Some(1) && text(&refused).contains("authorization"), "{}", text(&refused));
    assert!(text(&refused).contains("the same command starts again, with the running chats"), "{}", text(&refused));
    let file = std::fs::read(place.spool.path().join("backfill-default.json")).expect("the cursor");
    let cursor: Value = serde_json::from_slice(&file).expect("JSON");
    assert_eq!((&cursor["step"], &cursor["counts"]["calls"]), (&json!("running_chats"), &json!(1)));
    assert_eq!(place.counts(&[])["calls"], 3, "the one that was refused, and two");

    // Where the cursor cannot be written, no call is made for nothing.
    let before = place.calls();
    let nowhere = place.spool.path().join("no/cursor.json").display().to_string();
    for arguments in [&["--cursor", &nowhere][..], &["--cursor", &nowhere, "--dry-run"]] {
        let unwritten = place.backfill(arguments);
        let expected = "no/cursor.json cannot be written";
        assert!(unwritten.status.code() == Some(1) && text(&unwritten).contains(expected), "{}", text(&unwritten));
    }
    assert_eq!(place.calls(), before);
    place.relay.signal(rustix::process::Signal::TERM);
    place.relay.end();
    let before = place.calls();
    for arguments in [&[][..], &["--dry-run"]] {
        let unreached = place.backfill(arguments);
        assert!(
            unreached.status.code() == Some(1) && text(&unreached).contains("no relay answers at"),
            "{}",
            text(&unreached)
        );
    }
    assert_eq!(place.calls(), before);
}

#[test]
fn the_events_of_an_organization_that_is_not_the_apps_are_refused_and_a_dry_run_says_so() {
    let place = Place::new();
    let refused = |output: &Output, why: &str| {
        assert!(output.status.code() == Some(64) && text(output).contains(why), "{}", text(output));
    };
    let took = |output: &Output, note: &str| {
        let said = text(output).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(output.status.success() && said.contains(note), "{said}");
    };
    for blank in ["", " "] {
        refused(&place.backfill_of(blank, &[]), "for '--organization <ID>': it is blank");
    }
    assert_eq!(place.calls(), 0);
    // Before the relay has had a webhook, only a person can know.
    let from_option = format!("The organization {OTHER} is taken from --organization: LiveChat does not tell whose");
    took(&place.backfill_of(OTHER, &["--dry-run"]), &from_option);
    place.register();
    place.chat(1, true);
    await_that("it is delivered", || place.livechat.report()["answered"] == 1);
    let before = place.calls();
    for dry_run in [&[][..], &["--dry-run"]] {
        refused(&place.backfill_of(OTHER, dry_run), &format!("one that is known of the app default: {ORGANIZATION}"));
        let unnamed = place.start(dry_run).wait_with_output().expect("its end");
        refused(&unnamed, &format!("known here: {ORGANIZATION}"));
    }
    assert_eq!(place.calls(), before);
    took(&place.backfill(&["--dry-run"]), "The running relay has had webhooks of it.");

    // What the configuration names is right, too.
    let file = std::fs::read_to_string(place.relay.file()).expect("a file");
    let account = "account_id = ";
    assert!(file.contains(account), "{file}");
    let named = file.replacen(account, &format!("organizations = [\"{OTHER}\"], {account}"), 1);
    std::fs::write(place.relay.file(), named).expect("written");
    took(&place.backfill_of(OTHER, &["--dry-run"]), "It is among the organizations of the app in the configuration.");
    refused(&place.backfill_of("neither", &[]), &format!("{ORGANIZATION}, {OTHER}"));

    // The tokens of a login say it themselves.
    let credential = ["account_id", "personal_access_token"];
    assert!(credential.iter().all(|key| file.contains(key)), "{file}");
    let tokens = place.spool.path().join("tokens.json").display().to_string();
    let (before, after) = file.split_once("account_id = ").expect("the account");
    let (_, after) = after.split_once("} ").expect("the end of the token");
    std::fs::write(place.relay.file(), format!("{before}tokens = {tokens:?} {after}")).expect("written");
    let without = place.backfill_of(ORGANIZATION, &["--dry-run"]);
    assert!(text(&without).contains("is not logged in") && text(&without).contains("auth login --app default -c"));
    let log_in = |client: &str, organization: &str| {
        let pair = json!({
            "client_id": client, "access_token": "a", "refresh_token": null, "account_id": "a",
            "organization_id": organization, "scopes": [], "expires_at": null
        });
        std::fs::write(&tokens, pair.to_string()).expect("written");
    };
    log_in("another", ORGANIZATION);
    let of_another = place.backfill(&["--dry-run"]);
    assert!(text(&of_another).contains("has tokens of another app"), "{}", text(&of_another));
    log_in(CLIENT, "");
    let unnamed = place.start(&["--dry-run"]).wait_with_output().expect("its end");
    refused(&unnamed, &format!("the tokens in {tokens} do not say it: give --organization"));
    log_in(CLIENT, ORGANIZATION);
    refused(
        &place.backfill_of(OTHER, &["--dry-run"]),
        &format!("read the archives of the organization {ORGANIZATION}"),
    );
    assert!(place.events("incoming_chat").iter().all(|event| event["organizationid"] == ORGANIZATION));
}

#[test]
fn a_page_of_more_than_32_mib_halves_the_pages_and_every_thread_is_read_once() {
    let place = Place::new();
    let chats: Vec<_> = (0..160).map(|n| place.chat(1 + n / 10, false)).collect();
    // What the pages have of later than the time: 600 kB in each of the last 60 threads.
    let long = "x".repeat(600_000);
    for chat in &chats[100..] {
        place.livechat.post(&format!("chats/{chat}/message"), json!({"at": at(40), "deliver": false, "text": long}));
    }
    chats.iter().for_each(|chat| place.go_on(chat, "end", 41, false));
    let output = place.backfill(&["--to", &at(30)]);
    assert!(output.status.success() && text(&output).contains("the archive is read from its beginning"));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["counts"]["threads"], &report["counts"]["incoming_chat"]), (&json!(160), &json!(160)));
    let limits: Vec<_> = place
        .livechat
        .requests("list_archives")
        .iter()
        .map(|request| {
            serde_json::from_str::<Value>(request["body"].as_str().expect("a text")).expect("JSON")["limit"].as_u64()
        })
        .collect();
    assert_eq!(limits, [Some(100), None, Some(50), None, None, None]);
    let found: BTreeSet<_> = place.events("incoming_chat").iter().map(|event| event["chatid"].to_string()).collect();
    assert_eq!(found.len(), 160);
}

#[test]
fn one_that_was_killed_goes_on_from_its_cursor() {
    let place = Place::new();
    let chats: Vec<_> = (0..101).map(|n| place.chat(1 + n / 10, false)).collect();
    chats.iter().for_each(|chat| place.go_on(chat, "end", 20, false));
    place.livechat.fault(json!({"method": "list_archives", "skip": 1, "times": 0, "answer": "hang"}));
    let mut killed = place.start(&["--organization", ORGANIZATION, "--to", &at(30)]);
    await_that("the second page is asked for", || place.livechat.requests("list_archives").len() == 2);
    killed.kill().expect("it runs");
    killed.wait().expect("a child");
    assert_eq!(place.events("incoming_chat").len(), 100);

    place.livechat.delete("faults");
    place.livechat.delete("requests");
    let counts = place.counts(&[]);
    assert_eq!((&counts["threads"], &counts["delivered"]["duplicate"]), (&json!(101), &json!(0)), "{counts}");
    let archives = place.livechat.requests("list_archives");
    assert!(archives.len() == 1 && archives[0]["body"].to_string().contains("page_id"), "{archives:?}");
    assert!(place.livechat.requests("list_chats").is_empty());
    assert_eq!(place.events("incoming_chat").len(), 101);
}

#[test]
fn while_the_spool_is_full_it_waits_and_then_all_is_there() {
    let place = Place::with(&[
        ("spool.bytes_max", "\"1MiB\""),
        ("spool.segment_bytes", "\"64KiB\""),
        ("kafka.publish_deadline", "\"500ms\""),
        ("server.body_bytes_max", "\"16KiB\""),
    ]);
    // Two pages, of which the first is more than the spool holds.
    let long = "x".repeat(14_000);
    let chats: Vec<_> = (0..104).map(|n| place.chat(1 + n / 10, false)).collect();
    for chat in &chats {
        place.livechat.post(&format!("chats/{chat}/message"), json!({"at": at(15), "deliver": false, "text": long}));
        place.go_on(chat, "end", 20, false);
    }
    place.mock.freeze();
    let backfill = place.start(&["--organization", ORGANIZATION, "--to", &at(30)]);
    await_that("the relay refuses", || {
        let text = crate::support::http::get(place.relay.admin, "/metrics").body;
        let is_refused = |line: &str| line.starts_with("livechat_relay_events_total") && line.contains("unavailable");
        text.lines().any(|line| is_refused(line) && !line.ends_with(" 0"))
    });
    place.mock.thaw();
    let output = backfill.wait_with_output().expect("its end");
    assert!(output.status.success(), "{}", text(&output));
    let counts = serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["counts"].take();
    assert_eq!((&counts["threads"], &counts["chat_deactivated"]), (&json!(104), &json!(104)), "{counts}");
    for action in ACTIONS {
        let ids = || place.events(action).iter().map(|event| event["id"].to_string()).collect::<BTreeSet<_>>();
        let expected = counts[action].as_u64().expect("a number");
        await_that(action, || ids().len() as u64 == expected);
    }
}
