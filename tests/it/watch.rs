//! `livechat.watch`: what the metrics and the log say of the registrations at LiveChat, and that LiveChat's trouble is none of the relay's.

use serde_json::json;

use crate::support::http;
use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET, await_that, metric};
use crate::support::simulator::{self, CLIENT, Simulator};
use crate::support::{chat_id, incoming_event};

const WEBHOOKS: &str = r#"webhooks = [{ actions = ["incoming_chat", "incoming_event", "thread_tagged"] }]"#;

fn start(livechat: &Simulator, mock: &Mock) -> Relay {
    start_with(livechat, mock, &simulator::apps(WEBHOOKS))
}

fn start_with(livechat: &Simulator, mock: &Mock, apps: &str) -> Relay {
    let api = format!("{:?}", livechat.url);
    let settings = [("apps", apps), ("livechat.api", &api), ("livechat.accounts", &api)];
    mock.relay(&[&settings[..], &[("livechat.watch", "\"10m\""), ("livechat.attempts_max", "1")]].concat())
}

/// The value of a metric; `None` where it is not there.
fn value(relay: &Relay, series: &str) -> Option<f64> {
    let text = http::get(relay.admin, "/metrics").body;
    text.contains(&format!("\n{series} ")).then(|| metric(&text, series))
}

fn state(relay: &Relay, state: &str) -> Option<f64> {
    value(relay, &format!(r#"livechat_relay_registrations{{app="default",state="{state}"}}"#))
}

/// How many comparisons have had a result; `None` before there is a count.
fn checks(relay: &Relay, app: &str, result: &str) -> Option<f64> {
    value(relay, &format!(r#"livechat_relay_registration_checks_total{{app="{app}",result="{result}"}}"#))
}

fn register(livechat: &Simulator, action: &str, url: &str) {
    let body = json!({ "action": action, "secret_key": "k", "url": url, "owner_client_id": CLIENT, "type": "license" });
    assert_eq!(livechat.call("register_webhook", body).status, 200);
}

#[test]
fn what_is_registered_and_what_is_wanted_are_compared() {
    let (livechat, mock) = (Simulator::start(), Mock::start());
    livechat.switch(json!({ "deprecation": { "3.6": "2027-03-01" } }));
    register(&livechat, "incoming_chat", "https://relay.example/webhooks/default");
    register(&livechat, "incoming_event", "https://relay.example/webhooks/former-name");
    register(&livechat, "bot_created", "https://relay.example/webhooks/default");
    register(&livechat, "tag_created", "https://elsewhere.example/webhooks/default");
    let relay = start(&livechat, &mock);
    await_that("it is compared", || state(&relay, "missing").is_some());
    let states = ["as_wanted", "missing", "misaddressed", "not_wanted", "foreign"].map(|of| state(&relay, of));
    assert_eq!(states, [Some(1.0), Some(2.0), Some(1.0), Some(1.0), Some(1.0)]);
    assert_eq!(value(&relay, r#"livechat_relay_license_webhooks_enabled{app="default"}"#), Some(1.0));
    let end = r#"livechat_relay_api_version_end_timestamp_seconds{app="default",stage="deprecation"}"#;
    assert_eq!(value(&relay, end), Some(1_803_859_200.0)); // `date -ud 2027-03-01 +%s`
    assert!(
        relay.has_logged(r#""missing":"incoming_event, thread_tagged","misaddressed":"incoming_event""#),
        "{}",
        relay.log()
    );

    // Without `watch` nothing is shown: an alert would otherwise never end.
    let text = std::fs::read_to_string(relay.file()).expect("a file");
    relay.configure(&text.replace("watch = \"10m\"", ""));
    await_that("it is shown no more", || state(&relay, "missing").is_none());
}

#[test]
fn a_livechat_that_cannot_be_asked_is_counted_and_does_no_harm() {
    let (livechat, mock) = (Simulator::start(), Mock::start());
    livechat.fault(json!({ "method": "list_webhooks", "times": 1, "error": "authentication" }));
    let relay = start(&livechat, &mock);
    let checks = |result| checks(&relay, "default", result);
    await_that("it has failed", || checks("failed") == Some(1.0));
    assert!(relay.has_logged("could not be compared"), "{}", relay.log());
    assert_eq!((state(&relay, "missing"), checks("compared")), (None, Some(0.0)));
    assert_eq!(http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);

    // A change of what is asked is a reason to ask again; another one is not: calls are billed.
    let text = std::fs::read_to_string(relay.file()).expect("a file");
    let text = text.replace("filter = \"info\"", "filter = \"debug\"");
    relay.configure(&text);
    assert!(relay.has_logged("configuration reloaded"), "{}", relay.log());
    relay.configure(&text.replace("watch = \"10m\"", "watch = \"11m\""));
    await_that("it is compared", || checks("compared") == Some(1.0));
    assert_eq!(state(&relay, "missing"), Some(3.0));
    assert_eq!(livechat.requests("list_webhooks").len(), 2);
}

#[test]
fn each_app_has_counts_of_its_own() {
    let (livechat, mock) = (Simulator::start(), Mock::start());
    let (right, wrong) =
        (simulator::apps(WEBHOOKS), simulator::apps(WEBHOOKS).replace(simulator::TOKEN, "dal:revoked"));
    assert_ne!(right, wrong);
    let wrong = wrong.replace("\"default\"", "\"west\"").replace(SECRET, "the secret key of west");
    let wrong = wrong.replace(CLIENT, "0a1b2c3d0000400080000000000000c2");
    let apps = format!("[{}, {}]", right.trim_matches(['[', ']']), wrong.trim_matches(['[', ']']));
    let relay = start_with(&livechat, &mock, &apps);
    let counts = |app| ["compared", "failed"].map(|result| checks(&relay, app, result));
    await_that("both have been tried", || counts("west") == [Some(0.0), Some(1.0)]);
    assert_eq!(counts("default"), [Some(1.0), Some(0.0)]);
}

/// Two keys in a directory, and a webhook registered with each: `plan` says the same, and leaves both to `rotate`.
#[test]
fn an_unfinished_rotation_is_not_as_it_is_wanted_and_both_registrations_are() {
    let (livechat, mock) = (Simulator::start(), Mock::start());
    let keys = tempfile::tempdir().expect("a directory");
    for (name, key) in [("2026-10", SECRET), ("2026-11", "the new secret key")] {
        std::fs::write(keys.path().join(name), key).expect("written");
    }
    for action in ["incoming_chat", "incoming_chat", "incoming_event", "thread_tagged"] {
        register(&livechat, action, &format!("{}/webhooks/default", simulator::PUBLIC_URL));
    }
    let listed = format!(r#"secret_keys = [{{ name = "test", value = "{SECRET}" }}]"#);
    let apps = simulator::apps(WEBHOOKS);
    assert!(apps.contains(&listed));
    let apps = apps.replace(&listed, &format!("secret_keys = {{ directory = \"{}\" }}", keys.path().display()));
    let relay = start_with(&livechat, &mock, &apps);
    await_that("it is compared", || state(&relay, "as_wanted") == Some(4.0));
    assert_eq!(["missing", "not_wanted"].map(|of| state(&relay, of)), [Some(0.0), Some(0.0)]);
    assert!(relay.has_logged(r#""rotation_unfinished":true"#), "{}", relay.log());
    std::fs::remove_file(keys.path().join("2026-10")).expect("removed");
    compare_again(&relay, 11);
    // Without the rotation nothing says which of the two has the right key: both are too many, and the action is not missing.
    await_that("it is said", || state(&relay, "not_wanted") == Some(2.0));
    assert_eq!(["missing", "as_wanted"].map(|of| state(&relay, of)), [Some(0.0), Some(2.0)]);
}

/// Has it compared once more: another interval is a reason.
fn compare_again(relay: &Relay, minutes: u32) {
    let total = || {
        let of = |result| checks(relay, "default", result).expect("a count");
        of("compared") + of("failed")
    };
    let before = total();
    let text = std::fs::read_to_string(relay.file()).expect("a file");
    let lines = text
        .lines()
        .map(|line| if line.starts_with("watch = ") { format!("watch = \"{minutes}m\"") } else { line.to_owned() });
    relay.configure(&lines.collect::<Vec<_>>().join("\n"));
    await_that("it is compared again", || total() > before);
}

#[test]
fn a_state_that_is_not_known_is_not_taken_for_the_wanted_one() {
    const ENABLED: &str = r#"livechat_relay_license_webhooks_enabled{app="default"}"#;
    let (livechat, mock) = (Simulator::start(), Mock::start());
    for action in ["incoming_chat", "incoming_event", "thread_tagged"] {
        register(&livechat, action, "https://relay.example/webhooks/default");
    }
    let relay = start(&livechat, &mock);
    await_that("it is compared", || value(&relay, ENABLED) == Some(1.0));
    assert!(relay.has_logged("the registrations at LiveChat match the configuration"), "{}", relay.log());
    let owner = || json!({ "owner_client_id": CLIENT });
    assert_eq!(livechat.call("disable_license_webhooks", owner()).status, 200);
    compare_again(&relay, 11);
    await_that("LiveChat sends none", || value(&relay, ENABLED) == Some(0.0));
    assert!(relay.has_logged(r#""enabled":false"#), "{}", relay.log());

    // LiveChat's trouble costs the comparison: what was found stays, and is said once.
    livechat.fault(json!({ "method": "get_license_webhooks_state", "times": 0, "error": "internal", "status": 500 }));
    compare_again(&relay, 12);
    compare_again(&relay, 13);
    assert_eq!(checks(&relay, "default", "failed"), Some(2.0));
    assert_eq!((value(&relay, ENABLED), state(&relay, "as_wanted")), (Some(0.0), Some(3.0)));
    assert!(relay.has_logged("could not be compared"), "{}", relay.log());
    assert_eq!(relay.log().matches("could not be compared").count(), 1, "{}", relay.log());

    // Without leave to ask the state is unknown, and all else is compared.
    livechat.delete("faults");
    let refused =
        json!({ "method": "get_license_webhooks_state", "times": 1, "error": "authorization", "status": 403 });
    livechat.fault(refused);
    compare_again(&relay, 14);
    await_that("the state is unknown", || value(&relay, ENABLED).is_none());
    assert_eq!(state(&relay, "as_wanted"), Some(3.0));

    // An app that is not installed gets no webhooks.
    livechat.fault(json!({ "method": "get_license_webhooks_state", "times": 1, "error": "not_found", "status": 404 }));
    compare_again(&relay, 15);
    await_that("the app is not installed", || value(&relay, ENABLED) == Some(0.0));
    assert_eq!(livechat.call("enable_license_webhooks", owner()).status, 200);
    compare_again(&relay, 16);
    await_that("LiveChat sends them", || value(&relay, ENABLED) == Some(1.0));
    assert!(relay.has_logged("the registrations at LiveChat match the configuration again"), "{}", relay.log());

    // Of an app that is no longer there nothing is shown.
    let text = std::fs::read_to_string(relay.file()).expect("a file");
    relay.configure(&text.replacen(r#"name = "default""#, r#"name = "other""#, 1));
    await_that("the app has another name", || value(&relay, ENABLED).is_none());
    let of_other = r#"livechat_relay_registrations{app="other",state="misaddressed"}"#;
    await_that("its registrations go elsewhere now", || value(&relay, of_other) == Some(3.0));
    assert_eq!(checks(&relay, "default", "compared"), None);
    assert_eq!(["compared", "failed"].map(|result| checks(&relay, "other", result)), [Some(1.0), Some(0.0)]);
}
