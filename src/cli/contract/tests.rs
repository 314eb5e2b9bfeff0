//! The contract holds what it says: its files are current, and every sample of a webhook becomes an event that is valid.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Registry, Resource, Validator};
use secrecy::SecretString;
use serde_json::value::RawValue;

use super::super::actions::{Derivation, TOPIC_PREFIX};
use super::*;
use crate::config::Config;
use crate::event::initial::Initial;
use crate::event::receive::receive;
use crate::event::verify::{confirmed_installation, verify, verify_app_webhook};
use crate::event::{Archived, Event, Keyring, Keys, Mode, Receipt, Routing, Tenant, Topics, normalize, route};
use crate::livechat::backfill::{Found, webhooks};
use crate::samples::traffic::{Traffic, one_of_each};

mod configured;
mod examples;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_files_in_contract_are_what_the_catalogue_says() {
    let wanted = files(&Setup::of_defaults());
    let mut differ = BTreeSet::new();
    for directory in ["contract", "contract/actions", "contract/examples"] {
        let there = std::fs::read_dir(root().join(directory)).expect("contract/; run `make contract`");
        for path in there.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()) {
            let name = path.strip_prefix(root().join("contract")).expect("below it").to_string_lossy().into_owned();
            if !wanted.contains_key(&name) {
                differ.insert(name);
            }
        }
    }
    let differs = |(name, text): &(&String, &String)| {
        std::fs::read_to_string(root().join("contract").join(name)).ok().as_ref() != Some(*text)
    };
    differ.extend(wanted.iter().filter(differs).map(|(name, _)| name.clone()));
    assert!(differ.is_empty(), "not as the catalogue has them: {differ:?}; run `make contract`, and read what changes");
}

#[test]
fn every_action_has_words_and_no_words_are_left_over() {
    let words = fragment(include_str!("actions.json"));
    let described: BTreeSet<_> = words.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(described, listed().map(|l| l.action).collect());
    for l in listed() {
        assert!(words[l.action]["title"].is_string() && words[l.action]["description"].is_string(), "{}", l.action);
    }
    let slots = fragment(include_str!("envelope.json"))["slots"].take();
    let described: BTreeSet<_> = slots.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(described, Slot::ATTRIBUTES.map(|(_, name)| name).into());
}

#[test]
fn the_guide_has_every_attribute() {
    let guide = std::fs::read_to_string(root().join("docs/kafka.md")).expect("docs/kafka.md");
    for name in envelope()["properties"].as_object().expect("an object").keys().filter(|name| *name != "data") {
        assert!(guide.contains(&format!("| `{name}` |")), "docs/kafka.md: no row for {name}");
    }
}

/// The contract as a consumer loads it: each file alone, formats checked.
struct Contract {
    envelope: Validator,
    actions: BTreeMap<&'static str, Validator>,
    app_webhook: Validator,
    installed: Validator,
}

impl Contract {
    fn load() -> Self {
        let files = files(&Setup::of_defaults());
        let validator = |name: &str| {
            let schema = serde_json::from_str(&files[name]).expect(name);
            jsonschema::options().should_validate_formats(true).build(&schema).expect(name)
        };
        let actions = listed().map(|l| (l.action, validator(&path_of(l.action)))).collect();
        let [envelope, app_webhook, installed] = [ENVELOPE, APP_WEBHOOK, INSTALLED].map(validator);
        Self { envelope, actions, app_webhook, installed }
    }

    /// What is wrong with an event, by the envelope's schema and by its action's.
    fn faults(&self, event: &Value) -> Vec<String> {
        let name = event["type"].as_str().and_then(|name| name.strip_prefix("com.livechat.")).unwrap_or_default();
        let action = match self.actions.get(name) {
            Some(action) => action,
            None if name == APP_INSTALLED => &self.installed,
            None if name.starts_with("app.") => &self.app_webhook,
            None => &self.actions[UNLISTED],
        };
        let envelope = self.envelope.iter_errors(event);
        let data = action.iter_errors(&event["data"]);
        // What LiveChat's documentation prints has `{}` for what another page describes.
        let is_placeholder = |error: &jsonschema::ValidationError<'_>| {
            let is_empty = error.instance().as_object().is_some_and(serde_json::Map::is_empty);
            is_empty && matches!(error.kind(), ValidationErrorKind::Required { .. })
        };
        let text = |error: jsonschema::ValidationError<'_>| format!("{name} {}: {error}", error.instance_path());
        envelope.chain(data).filter(|error| !is_placeholder(error)).map(text).collect()
    }
}

#[test]
fn every_schema_is_found_by_its_id_and_needs_no_other() {
    let files = files(&Setup::of_defaults());
    let schemas = files.iter().filter(|(name, _)| name.ends_with(".schema.json"));
    let mut registry = Registry::new();
    let mut ids = BTreeSet::new();
    for (name, text) in schemas {
        let schema: Value = serde_json::from_str(text).expect("JSON");
        jsonschema::draft202012::meta::validate(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        let id = schema["$id"].as_str().expect(name).to_owned();
        assert!(ids.insert(id.clone()), "{id} twice");
        registry = registry.add(id, Resource::from_contents(schema)).expect(name);
    }
    assert_eq!(ids.len(), 47 + 5);
    let registry = registry.prepare().expect("schemas");
    let thread_tagged = json!({ "$ref": "urn:livechat-relay:actions:thread_tagged" });
    let validator = jsonschema::options().with_registry(&registry).build(&thread_tagged).expect("it is there");
    let mut data = json!({
        "webhook_id": "w", "action": "thread_tagged", "payload": { "chat_id": "C", "thread_id": "T", "tag": "x" },
    });
    assert!(validator.is_valid(&data));
    data["payload"]["chat_id"] = 7.into();
    assert!(!validator.is_valid(&data));
}

fn document(setup: &Setup) -> Value {
    let words = fragment(include_str!("actions.json"));
    asyncapi::document(setup, &listed().collect::<Vec<_>>(), &words, &Value::Null, &Value::Null)
}

fn receipt() -> Receipt<'static> {
    let time = "2026-11-22T14:27:51.102Z".parse().expect("a time");
    Receipt { app: "default", time, fresh_id: || uuid::uuid!("019343c4-0000-7000-8000-000000000000") }
}

fn published(event: Event<'_>, topics: Topics) -> Value {
    let routing = Routing { topics, mode: Mode::Structured, keys: Keys::Plain, api_version: None };
    let record = route::route(event, &routing, None, None).expect("a record").record;
    let value: Value = serde_json::from_slice(&record.value).expect("JSON");
    assert_eq!(value["partitionkey"], record.key);
    value
}

/// The event that the relay makes of a webhook.
fn event(body: &str) -> Value {
    events(body).swap_remove(0)
}

/// That, those that were inside of it, and where it is a chat, those that are made of it as if it stood in the archive.
fn events(body: &str) -> Vec<Value> {
    let secret = serde_json::from_str::<Value>(body).expect("JSON")["secret_key"].as_str().expect("a key").to_owned();
    let keyring = Keyring::new([("only".to_owned(), &SecretString::from(secret))]);
    let (verified, _) =
        verify(receive(body.as_bytes()).expect("a webhook"), &keyring, receipt().time).ok().expect("its key");
    let initial = Initial::of(&verified);
    let archived = archived(body);
    let archived = archived.iter().map(|archived| archived.webhook().expect("a webhook"));
    let webhooks = [verified].into_iter().chain(initial.webhooks()).chain(archived);
    webhooks
        .map(|webhook| published(normalize::normalize(webhook, receipt()), Topics::new(TOPIC_PREFIX, |_| None)))
        .collect()
}

fn archived(body: &str) -> Vec<Archived> {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        payload: HashMap<&'a str, &'a RawValue>,
    }
    let all = Timestamp::UNIX_EPOCH..Timestamp::MAX;
    let chat = serde_json::from_str::<Body<'_>>(body).ok().and_then(|body| body.payload.get("chat").copied());
    let made = |chat| webhooks(chat, &all, &Tenant::Organization("o".into()), &mut Found::default());
    chat.map(made).unwrap_or_default()
}

#[test]
fn our_own_samples_of_every_action_and_version_are_valid() {
    let contract = Contract::load();
    let (mut actions, mut types, mut faults, mut n) = (BTreeSet::new(), BTreeSet::new(), Vec::new(), 0);
    let samples = one_of_each(1).into_iter().chain(Traffic::new(2).take(3000));
    for event in samples.flat_map(|sample| events(&sample.body("k"))) {
        faults.extend(contract.faults(&event));
        actions.insert(event["type"].as_str().expect("a type").to_owned());
        types.extend(event["data"]["payload"]["event"]["type"].as_str().map(str::to_owned));
        n += 1;
    }
    assert!(faults.is_empty(), "{} faults, such as:\n{}", faults.len(), faults[..faults.len().min(20)].join("\n"));
    assert_eq!(actions.len(), 46);
    assert_eq!(types.len(), 8, "not every type of event came: {types:?}");
    println!("{n} events of {} actions and {} types of events are valid", actions.len(), types.len());
}

#[test]
fn samples_that_livechat_has_published_are_valid() {
    let Some(directory) = std::env::var_os("LIVECHAT_SAMPLES_DIR").map(PathBuf::from) else {
        return println!("skipped: LIVECHAT_SAMPLES_DIR is not set");
    };
    let contract = Contract::load();
    let (mut faults, mut valid, mut initial, mut backfilled) = (Vec::new(), 0, 0, 0);
    let (mut skipped, mut actions) = (0, BTreeSet::new());
    let versions = std::fs::read_dir(&directory).expect("the samples").map(|entry| entry.expect("an entry").path());
    let is_version = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("v3."));
    for version in versions.filter(is_version) {
        for file in std::fs::read_dir(&version).expect("samples").map(|entry| entry.expect("an entry").path()) {
            let text = std::fs::read_to_string(&file).expect("a sample");
            let mut body: Value = serde_json::from_str(&text).expect("JSON");
            if body.get("action").is_none() || body.get("payload").is_none() {
                skipped += 1; // the inner payload alone, as some pages print it
                continue;
            }
            body["secret_key"] = "k".into();
            for event in events(&body.to_string()) {
                let found = contract.faults(&event);
                valid += usize::from(found.is_empty());
                initial += usize::from(event["initial"] == "true");
                backfilled += usize::from(event["backfill"] == "true");
                actions.insert(event["type"].as_str().expect("a type").to_owned());
                faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", file.display())));
            }
        }
    }
    assert!(initial > 0 && backfilled > 0, "no sample of a chat with events");
    assert!(faults.is_empty(), "{valid} valid; faults:\n{}", faults.join("\n"));
    assert!(valid > 0, "no samples below {}", directory.display());
    println!("{valid} published samples of {} actions are valid, {skipped} without an envelope skipped", actions.len());
}

#[test]
fn app_webhooks_are_valid() {
    let contract = Contract::load();
    let keyring = Keyring::new([("path".to_owned(), &SecretString::from("token"))]);
    for name in APP_EVENTS {
        let body = json!({
            "applicationID": "tea_timer", "event": name.trim_start_matches("app."), "date": "2026-11-22T15:29:53+01:00",
            "licenseID": 1234, "organizationID": "o-1", "payload": { "total": 7 }, "userID": "u-1",
        });
        let body = body.to_string();
        let (verified, _) =
            verify_app_webhook("token", body.as_bytes(), &keyring, receipt().time).ok().expect("an App Webhook");
        let event =
            published(normalize::normalize(verified, receipt()), Topics::of_app_webhooks(TOPIC_PREFIX, |_| None));
        assert_eq!(event["type"], format!("com.livechat.{name}"));
        assert_eq!(contract.faults(&event), [""; 0]);
    }
}

#[test]
fn installations_are_valid() {
    let contract = Contract::load();
    let body = json!({
        "event": "installed", "date": "2026-11-28T12:00:00Z", "clientID": "c", "organizationID": "o-1", "accountID": "a",
        "payload": { "scopes": ["webhooks.state:ro"], "licenseWebhooksEnabled": true },
    });
    let body = body.to_string();
    let verified = confirmed_installation(body.as_bytes()).expect("an installation");
    let none = |_: &str| None;
    let topics = Topics::new(TOPIC_PREFIX, none).with_installations(TOPIC_PREFIX, none);
    let event = published(normalize::normalize(verified, receipt()), topics);
    assert_eq!(
        [&event["type"], &event["time"], &event["organizationid"], &event["partitionkey"]],
        ["com.livechat.app.installed", "2026-11-28T12:00:00Z", "o-1", "o-1"]
    );
    assert_eq!(contract.faults(&event), [""; 0]);
    let mut bad = event;
    bad["data"]["payload"]["licenseWebhooksEnabled"] = "yes".into();
    assert!(!contract.faults(&bad).is_empty());
}

#[test]
fn strange_webhooks_become_valid_envelopes() {
    let contract = Contract::load();
    for (action, payload, more) in [
        ("../../etc", "{}", ""),
        ("chat_cloned", "[1]", r#","organization_id":"ö \" / \\""#),
        ("incoming_event", "null", r#","license_id":123456,"organization_id":7.5"#),
        ("incoming_event", r#"{"chat_id":"C","event":{"id":["x"],"created_at":"yesterday"}}"#, ""),
        ("tag_deleted", r#"{"name":"a\u0000b"}"#, r#","webhook_id":"","event":"payment_collected""#),
    ] {
        let event = event(&format!(r#"{{"secret_key":"k","action":"{action}","payload":{payload}{more}}}"#));
        let faults: Vec<_> = contract.envelope.iter_errors(&event).map(|error| error.to_string()).collect();
        assert!(faults.is_empty(), "{event}: {faults:?}");
    }
}

#[test]
fn what_the_contract_rules_out_is_refused() {
    let contract = Contract::load();
    let good = event(
        r#"{"webhook_id":"w","secret_key":"k","action":"thread_tagged","payload":{"chat_id":"C","thread_id":"T","tag":"x"}}"#,
    );
    assert_eq!(contract.faults(&good), [""; 0]);
    let mut grown = good.clone();
    grown["attributeofnextyear"] = "x".into();
    grown["data"]["payload"]["member_of_next_year"] = json!({});
    assert_eq!(contract.faults(&grown), [""; 0], "both may get members");
    for (pointer, value) in [
        ("/id", json!("6ba7b810-9dad-11d1-80b4-00c04fd430c8")), // version 1
        ("/specversion", json!("0.3")),
        ("/type", json!("com.livechat.Thread Tagged")),
        ("/contenthash", json!("00")),
        ("/chatid", json!("")),
        ("/chatid", json!("a\nb")),
        ("/chatid", json!("x".repeat(257))),
        ("/partitionkey", Value::Null),
        ("/recordedtime", json!("yesterday")),
        ("/data", json!({ "action": "thread_tagged", "payload": {}, "secret_key": "k" })),
        ("/data/payload/chat_id", json!(7)),
        ("/data/payload", json!({ "chat_id": "C", "thread_id": "T" })),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).expect("a member") = value;
        assert!(!contract.faults(&bad).is_empty(), "taken: {bad}");
    }
}
