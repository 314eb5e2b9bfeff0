//! Every sample of an action through the real relay, and what was found in it: the project's own, and, where
//! `LIVECHAT_SAMPLES_DIR` names them, the ones that LiveChat's documentation prints, against the catalogue beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::support::relay::{Relay, SECRET};
use crate::support::{http, kafka};

/// What a sample is expected to yield.
struct Expected {
    name: String,
    version: String,
    body: String,
    action: String,
    chat: Option<String>,
    key: Option<String>,
    has_time: bool,
    is_strong: bool,
}

#[derive(Default)]
struct Tally {
    samples: usize,
    actions: BTreeSet<String>,
    chat: usize,
    key: usize,
    time: usize,
    identity: usize,
}

/// Posts each sample, finds its event by a mark in its additional data, and compares.
fn run(samples: Vec<Expected>) {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    // Samples of several versions are the same event, and would be taken for retries.
    let relay = Relay::start(kafka.bootstrap(), &[("retries.window", "\"0s\"")]);
    let mut marks = HashMap::new();
    for (i, sample) in samples.iter().enumerate() {
        let mark = format!("{}-{i}", uuid::Uuid::now_v7().simple());
        let body = sample.body.replacen('{', &format!(r#"{{"mark":"{mark}","#), 1);
        let answer = http::post(relay.webhooks, &body);
        assert_eq!(answer.status, 200, "{}: {}", sample.name, answer.body);
        marks.insert(mark, sample);
    }
    let topics: Vec<String> = kafka.topics().into_iter().filter(|topic| topic.starts_with("livechat.")).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut wrong = Vec::new();
    for message in kafka.read_all(&topics) {
        let Ok(event) = serde_json::from_slice::<Value>(&message.value) else { continue };
        let Some(sample) = event["data"]["mark"].as_str().and_then(|mark| marks.remove(mark)) else { continue };
        let tally = tallies.entry(&sample.version).or_default();
        tally.samples += 1;
        tally.actions.insert(sample.action.clone());
        let text = |name: &str| event[name].as_str().map(str::to_owned);
        let key = message.key.map(|key| String::from_utf8_lossy(&key).into_owned());
        let is_derived =
            text("id").and_then(|id| uuid::Uuid::parse_str(&id).ok()).is_some_and(|id| id.get_version_num() == 8);
        tally.chat += usize::from(text("chatid").is_some());
        tally.key += usize::from(key.is_some());
        tally.time += usize::from(text("time").is_some());
        tally.identity += usize::from(is_derived);
        let mut check = |what: &str, found: String, expected: String| {
            if found != expected {
                wrong.push(format!("{}: {what} is {found}, and should be {expected}", sample.name));
            }
        };
        check("topic", message.topic, format!("livechat.{}", sample.action));
        check("chatid", format!("{:?}", text("chatid")), format!("{:?}", sample.chat));
        check("key", format!("{key:?}"), format!("{:?}", sample.key));
        check("time", text("time").is_some().to_string(), sample.has_time.to_string());
        check("identity", is_derived.to_string(), sample.is_strong.to_string());
    }
    // To standard error itself: what a test prints is shown only when it fails, and this table is to be read.
    let mut table = String::new();
    let columns =
        ["samples", "actions", "chat id", "key", "time", "identity"].map(|name| format!("{name:>9}")).concat();
    table += &format!("\n{:<12}{columns}\n", "version");
    for (version, t) in &tallies {
        let figures = [t.samples, t.actions.len(), t.chat, t.key, t.time, t.identity];
        table += &format!("{version:<12}{}\n", figures.map(|n| format!("{n:>9}")).concat());
    }
    std::io::stderr().write_all(table.as_bytes()).expect("standard error");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    assert!(marks.is_empty(), "not on Kafka: {:?}", marks.values().map(|s| &s.name).collect::<Vec<_>>());
}

/// The value at a pointer that has no wildcards.
fn at<'v>(body: &'v Value, pointer: &str) -> Option<&'v Value> {
    body.pointer(pointer).filter(|value| !value.is_null())
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Reads `actions.json` and the samples' folder, wherever of the two the variable points to.
fn published() -> Option<Vec<Expected>> {
    let directory = PathBuf::from(std::env::var_os("LIVECHAT_SAMPLES_DIR")?);
    let catalogue = [directory.join("actions.json"), directory.join("../actions.json")];
    let catalogue = catalogue.iter().find_map(|path| std::fs::read_to_string(path).ok()).expect("actions.json");
    let payloads = Some(directory.join("payloads")).filter(|path| path.is_dir()).unwrap_or(directory);
    let catalogue: Vec<Value> = serde_json::from_str(&catalogue).expect("JSON");
    let mut samples = Vec::new();
    for version in ["3.1", "3.2", "3.3", "3.4", "3.5", "3.6"] {
        let folder = payloads.join(format!("v{version}"));
        let mut files: Vec<_> =
            std::fs::read_dir(folder).expect("samples").map(|e| e.expect("an entry").path()).collect();
        files.sort();
        samples.extend(files.iter().filter_map(|file| expected(file, version, &catalogue)));
    }
    Some(samples)
}

/// What the catalogue says of a printed sample; `None` for a file that is no whole webhook.
fn expected(file: &Path, version: &str, catalogue: &[Value]) -> Option<Expected> {
    let body: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("a sample")).ok()?;
    let delivered = body.get("action")?.as_str()?.to_owned();
    body.get("payload")?;
    let is_named = |entry: &&Value| {
        entry["action"] == delivered.as_str()
            || entry["aliases_in_older_versions"]
                .as_object()
                .is_some_and(|older| older.values().any(|name| name == delivered.as_str()))
    };
    let entry = catalogue.iter().find(is_named).unwrap_or_else(|| panic!("{delivered} is not in the catalogue"));
    let overrides = &entry["overrides_per_version"][version];
    let pointers = overrides.get("key_pointers").unwrap_or(&entry["key_pointers"]).as_object().expect("pointers");
    let find = |pointers: &Map<String, Value>, name: &str| {
        pointers.get(name)?.as_str()?.split(" | ").find_map(|pointer| text(at(&body, pointer)?))
    };
    let tenant = ["/organization_id", "/license_id"].iter().find_map(|pointer| text(at(&body, pointer)?));
    let chat = find(pointers, "chat_id");
    let by_catalogue = entry["partition_key"].as_str().and_then(|name| find(pointers, name));
    let resource = find(pointers, "resource_id").filter(|_| chat.is_none());
    let customer = find(pointers, "customer_id").filter(|_| entry["action"] == "customer_session_fields_updated");
    let times = overrides.get("time_pointers").unwrap_or(&entry["time_pointers"]).as_array().expect("pointers");
    let times: Vec<_> = times.iter().filter_map(|time| text(at(&body, time["pointer"].as_str()?)?)).collect();
    let identity = entry["dedupe_identity"].as_array().expect("an identity");
    let has_all = identity.iter().filter_map(Value::as_str).all(|part| match part {
        "tenant" => true,
        "created_at" | "seen_up_to" | "summary.updated_at" => !times.is_empty(),
        name => find(pointers, name).is_some(),
    });
    let mut with_secret = body.clone();
    with_secret.as_object_mut()?.insert("secret_key".to_owned(), SECRET.into());
    Some(Expected {
        name: format!("v{version}/{}", file.file_name()?.to_string_lossy()),
        version: version.to_owned(),
        body: with_secret.to_string(),
        action: entry["action"].as_str()?.to_owned(),
        key: chat.clone().or(by_catalogue).or(resource).or(customer).or(tenant).or_else(|| Some("default".to_owned())),
        chat,
        has_time: !times.is_empty(),
        is_strong: entry["dedupe_strength"] == "strong" && has_all,
    })
}

#[test]
fn samples_that_livechat_has_published_yield_what_the_catalogue_says() {
    match published() {
        Some(samples) => run(samples),
        None => println!("skipped: LIVECHAT_SAMPLES_DIR is not set; the project's own samples are run all the same"),
    }
}

#[test]
fn samples_of_our_own_yield_chat_id_key_time_and_identity() {
    let seed = u64::from(uuid::Uuid::now_v7().as_fields().1) << 8 | 2;
    let samples = livechat_relay::samples::traffic::one_of_each(seed);
    let expected = samples.iter().map(|sample| {
        let action = livechat_relay::event::actions::find(sample.action()).expect("in the catalogue");
        let data: Value = serde_json::from_str(sample.data()).expect("JSON");
        let slot = |wanted| {
            let paths = action.pointers.iter().filter(|(slot, _)| *slot == wanted);
            paths.map(|(_, path)| format!("/payload/{}", path.join("/"))).find_map(|pointer| text(at(&data, &pointer)?))
        };
        use livechat_relay::event::actions::{Identity, Slot};
        let tenant = ["/organization_id", "/license_id"].iter().find_map(|pointer| text(at(&data, pointer)?));
        let older = if sample.action() == action.name { "own" } else { "own, older" };
        Expected {
            name: sample.action().to_owned(),
            version: older.to_owned(),
            body: sample.body(SECRET),
            action: action.name.to_owned(),
            chat: slot(Slot::Chat),
            key: action.key.iter().find_map(|key| slot(*key)).or(tenant).or_else(|| Some("default".to_owned())),
            has_time: slot(Slot::Time).or(slot(Slot::UnixTime)).is_some(),
            is_strong: matches!(action.identity, Identity::Strong(slots) if slots.iter().all(|s| slot(*s).is_some())),
        }
    });
    run(expected.collect());
}
