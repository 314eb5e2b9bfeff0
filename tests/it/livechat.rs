//! The whole way with a simulated LiveChat and a real Kafka: install, log in, plan, apply, events, unregister.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::kafka::{self, Kafka};
use crate::support::relay::{Relay, await_that};
use crate::support::simulator::{self, ACCOUNT, ORGANIZATION, Simulator, TOKEN};
use crate::support::{chat_id, http};

/// Runs a command that succeeds; what it printed.
fn done(file: &Path, arguments: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    let output = command.args(arguments.split(' ')).arg("--config").arg(file).stdin(Stdio::null()).output();
    let output = output.expect("the relay's binary");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments}: {text}");
    text
}

/// `auth login --paste`, with a browser whose user lets the app in.
fn log_in(file: &Path, livechat: &Simulator) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    command.args(["auth", "login", "--paste", "--config"]).arg(file);
    let mut child =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("a child");
    let mut told = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let address =
        told.find_map(|line| line.ok().filter(|line| line.contains("response_type=code"))).expect("an address");
    let arrived = livechat.authorize(address.trim());
    writeln!(child.stdin.take().expect("a pipe"), "{arrived}").expect("written");
    let rest: Vec<_> = told.map_while(Result::ok).collect();
    assert!(child.wait().expect("a child").success(), "{rest:?}");
}

/// The events of these topics, each once: the action and the chat.
fn events(kafka: &Kafka, prefix: &str, actions: &[&str]) -> Vec<Value> {
    let topics: Vec<_> = actions.iter().map(|action| format!("{prefix}{action}")).collect();
    let records = kafka.read_all(&topics.iter().map(String::as_str).collect::<Vec<_>>());
    records.iter().map(|record| serde_json::from_slice(&record.value).expect("JSON")).collect()
}

#[test]
fn from_install_to_unregister() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let (livechat, directory) = (Simulator::start(), tempfile::tempdir().expect("a directory"));
    livechat.post("uninstall", json!({}));
    let personal = format!("account_id = \"{ACCOUNT}\", personal_access_token = {{ value = \"{TOKEN}\" }}");
    let app = simulator::apps(&format!(
        "webhooks = [{{ actions = [\"chats\", \"incoming_event\"] }}], organizations = [\"{ORGANIZATION}\"], \
         install = {{ scopes = [\"webhooks.state:rw\"], enable_webhooks = true }}"
    ));
    let tokens = format!("tokens = \"{}\"", directory.path().join("tokens.json").display());
    assert!(app.contains(&personal));
    let app = app.replace(&personal, &tokens);
    let prefix = format!("whole.{}.", chat_id().to_lowercase());
    let [api, quoted, socket] =
        [livechat.url.clone(), prefix.clone(), directory.path().join("control.sock").display().to_string()]
            .map(|text| format!("\"{text}\""));
    let relay = Relay::start(
        kafka.bootstrap(),
        &[
            ("apps", &*app),
            ("livechat.api", &api),
            ("livechat.accounts", &api),
            ("livechat.propagation", "\"10s\""),
            ("livechat.retry_min", "\"10ms\""),
            ("topics.prefix", &quoted),
            ("topics.partitions", "1"),
            ("control.socket", &socket),
        ],
    )
    .ready();
    livechat.route_to(relay.webhooks);
    let file = relay.file();

    // A user presses Install, and the browser comes to the relay.
    let pressed = livechat.post("install", json!({}));
    let (_, query) = pressed["url"].as_str().and_then(|url| url.split_once('?')).expect("a query");
    let page = http::get(relay.webhooks, &format!("/install/default?{query}"));
    assert!(page.status == 200 && page.body.contains("is installed"), "{page:?}");
    let installed = events(kafka, &prefix, &["app.installed"]);
    assert_eq!(
        installed.iter().map(|event| (&event["type"], &event["organizationid"])).collect::<Vec<_>>(),
        [(&json!("com.livechat.app.installed"), &json!(ORGANIZATION))]
    );

    log_in(&file, &livechat);
    assert!(done(&file, "auth status").contains(ORGANIZATION));
    assert!(done(&file, "webhooks plan").contains("Plan: 8 to register, 0 to unregister, 0 as wanted."));
    done(&file, "webhooks apply --yes");
    assert!(done(&file, "webhooks plan --exit-code").contains("Nothing to do: 8 as wanted."));

    // A customer writes, an agent answers.
    let chat = livechat.post("chats", json!({ "text": "Hello" }))["chat_id"].as_str().expect("an id").to_owned();
    livechat.post(&format!("chats/{chat}/message"), json!({ "text": "How can I help?", "author": "agent" }));
    livechat.post(&format!("chats/{chat}/end"), json!({}));
    await_that("LiveChat has its answers", || livechat.report()["pending"] == 0);
    let report = livechat.report();
    assert_eq!((&report["failed"], &report["dropped"]), (&json!(0), &json!(0)), "{report}");
    let published = events(kafka, &prefix, &["incoming_chat", "incoming_event", "chat_deactivated"]);
    let of_chat: BTreeSet<_> =
        published.iter().filter(|event| event["chatid"] == *chat).filter_map(|event| event["type"].as_str()).collect();
    let types = ["com.livechat.chat_deactivated", "com.livechat.incoming_chat", "com.livechat.incoming_event"];
    assert_eq!(of_chat, BTreeSet::from(types));
    let listing: Value = serde_json::from_str(&done(&file, "webhooks list --json")).expect("JSON");
    let delivered = listing.as_array().expect("a list").iter().filter(|one| one["last_delivery"].is_string()).count();
    assert_eq!(delivered, 3, "{listing}");

    done(&file, "webhooks unregister --all --yes");
    assert!(livechat.registrations().is_empty());
    let before = livechat.report()["sent"].clone();
    livechat.post("chats", json!({}));
    assert_eq!(livechat.report()["sent"], before, "LiveChat sends nothing any more");
    done(&file, "auth logout");
    assert!(!directory.path().join("tokens.json").exists());
}
