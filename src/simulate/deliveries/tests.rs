//! Which registrations something that happened is sent to, and what the bodies look like.

use super::super::chats::Details;
use super::super::setup::{Organization, Setup};
use super::super::state::Delayed;
use super::*;

const CLIENT: &str = "0a1b2c3d0000400080000000000000c1";
const BOT: &str = "0a1b2c3d0000400080000000000000b1";

/// The app is installed for the first organization, and not for `other`.
fn state() -> State {
    let mut setup = Setup::with_relay_at("https://relay.example");
    setup.organizations.push(Organization { id: "other".into(), license_id: 22, region: "fra".into() });
    State::new(setup, Instant::now())
}

fn register(state: &mut State, version: u8, action: &str, level: &str, additional_data: &[&str]) {
    let there = Delayed::always(true, Instant::now());
    state.registrations.push(Registration {
        id: format!("of 3.{version} {level}"),
        owner: CLIENT.to_owned(),
        version,
        action: action.to_owned(),
        url: "https://relay.example/webhooks/default".to_owned(),
        secret_key: "k\"ey".to_owned(),
        level: level.to_owned(),
        filters: json!({}),
        additional_data: additional_data.iter().map(|name| (*name).to_owned()).collect(),
        description: String::new(),
        listed: there,
        delivered: there,
    });
}

fn bodies(state: &mut State, details: Value, action: &str) -> Vec<Value> {
    let details: Details = serde_json::from_value(details).unwrap();
    let State { chats, setup, .. } = &mut *state;
    let happening = match action {
        "incoming_chat" => chats.start(&details, setup),
        action => chats.aside(action, &details, setup),
    };
    let jobs = due(state, &happening.unwrap(), true, Instant::now());
    jobs.iter().map(|job| serde_json::from_slice(&job.body).unwrap()).collect()
}

#[test]
fn the_version_that_registered_decides_what_a_body_has() {
    let mut state = state();
    for version in [3, 4, 6] {
        register(&mut state, version, "tag_created", "license", &[]);
    }
    let bodies = bodies(&mut state, json!({}), "tag_created");
    let members = |member: &str| bodies.iter().map(|body| body.get(member).is_some()).collect::<Vec<_>>();
    assert_eq!(members("license_id"), [true, false, false]);
    assert_eq!(members("organization_id"), [false, true, true]);
    assert_eq!(members("requester"), [false, false, true]);
    let ids = bodies.iter().map(|body| (body["webhook_id"].as_str().unwrap(), body["secret_key"].as_str().unwrap()));
    assert!(ids.eq([("of 3.3 license", "k\"ey"), ("of 3.4 license", "k\"ey"), ("of 3.6 license", "k\"ey")]));
    assert!(bodies.iter().all(|body| body["payload"] == bodies[0]["payload"] && body["additional_data"] == json!({})));
}

#[test]
fn additional_data_is_what_was_asked_for() {
    let mut state = state();
    register(&mut state, 6, "incoming_chat", "license", &["chat_properties", "chat_presence_user_ids"]);
    let bodies = bodies(&mut state, json!({"client_id": "mine", "bots": [BOT]}), "incoming_chat");
    let additional_data = &bodies[0]["additional_data"];
    assert_eq!(additional_data["chat_properties"]["source"]["client_id"], "mine");
    assert!(additional_data["chat_presence_user_ids"].as_array().unwrap().contains(&json!(BOT)));
    assert_eq!(bodies[0]["payload"]["chat"]["properties"], additional_data["chat_properties"]);
}

#[test]
fn webhooks_of_bots_are_of_chats_with_a_bot_of_the_app() {
    let mut state = state();
    register(&mut state, 6, "incoming_chat", "bot", &[]);
    assert_eq!(bodies(&mut state, json!({}), "incoming_chat").len(), 0);
    assert_eq!(bodies(&mut state, json!({"bots": ["another"]}), "incoming_chat").len(), 0);
    assert_eq!(bodies(&mut state, json!({"bots": [BOT]}), "incoming_chat").len(), 1);
}

#[test]
fn each_organization_that_has_the_app_installed_has_its_webhooks() {
    let mut state = state();
    register(&mut state, 6, "incoming_chat", "license", &[]);
    let other = || json!({"organization_id": "other"});
    assert_eq!(bodies(&mut state, other(), "incoming_chat").len(), 0);
    state.install("other", CLIENT, true, Instant::now());
    let sent = bodies(&mut state, other(), "incoming_chat");
    assert_eq!((sent.len(), &sent[0]["organization_id"]), (1, &json!("other")));
    state.install("other", CLIENT, false, Instant::now());
    assert_eq!(bodies(&mut state, other(), "incoming_chat").len(), 0);
    assert_eq!(bodies(&mut state, json!({}), "incoming_chat").len(), 1);
}

#[test]
fn what_is_too_much_is_dropped_and_counted() {
    let mut state = state();
    register(&mut state, 6, "tag_created", "license", &[]);
    state.report.pending = PENDING_MAX;
    assert_eq!(bodies(&mut state, json!({}), "tag_created").len(), 0);
    let Report { sent, dropped, pending, .. } = &state.report;
    assert_eq!((*sent, *dropped, *pending), (1, 1, PENDING_MAX));
}

#[test]
fn the_longest_route_is_taken() {
    let mut state = state();
    let routes = [("https://relay.example", "http://a"), ("https://relay.example/webhooks", "http://b/w")];
    state.setup.routes.extend(routes.map(|(from, to)| (from.to_owned(), to.to_owned())));
    assert_eq!(state.setup.routed("https://relay.example/install/x?code=1"), "http://a/install/x?code=1");
    assert_eq!(state.setup.routed("https://relay.example/webhooks/x"), "http://b/w/x");
    assert_eq!(state.setup.routed("HTTPS://Relay.Example:443/webhooks/x"), "http://b/w/x", "it is the same address");
    state.setup.routes.insert("https://Other.example:443/".to_owned(), "http://c/".to_owned());
    assert_eq!(state.setup.routed("https://other.example/x"), "http://c/x");
    for elsewhere in ["https://elsewhere.example/", "https://relay.example.org/"] {
        assert_eq!(state.setup.routed(elsewhere), elsewhere);
    }
}
