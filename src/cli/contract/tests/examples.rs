//! The examples are events as the relay writes them, valid, and always the same.

use super::*;

/// What every event may have; the table says what else it has.
const OF_EVERY_EVENT: [&str; 16] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "recordedtime",
    "datacontenttype",
    "organizationid",
    "licenseid",
    "webhookid",
    "app",
    "apiversion",
    "authorkind",
    "partitionkey",
    "contenthash",
    "data",
];

#[test]
fn every_action_has_an_example_that_is_valid_and_has_the_attributes_of_the_table() {
    let (contract, setup) = (Contract::load(), Setup::of_defaults());
    let mut ids = BTreeSet::new();
    for l in listed().filter(|l| l.action != UNLISTED) {
        let event = setup.example(l.action).expect(l.action).value;
        assert_eq!(event["type"], format!("com.livechat.{}", l.action));
        assert_eq!(contract.faults(&event), [""; 0]);
        let id = event["id"].as_str().expect("an id").to_owned();
        let derived = matches!(l.identity, Derivation::Strong(_));
        assert_eq!(id.as_bytes()[14], if derived { b'8' } else { b'7' }, "{}", l.action);
        assert!(ids.insert(id), "{}: the id of another example", l.action);
        for name in event.as_object().expect("an object").keys().map(String::as_str) {
            let in_table = l.attributes.contains_key(name) || name == "time" && !l.time.is_empty();
            assert!(in_table || OF_EVERY_EVENT.contains(&name), "{}: {name}", l.action);
        }
    }
    assert!(setup.example(UNLISTED).is_none());
}

#[test]
fn every_event_of_an_app_has_an_example_that_is_valid() {
    let (contract, setup) = (Contract::load(), Setup::of_defaults());
    let mut ids = BTreeSet::new();
    for name in app_names() {
        let event = setup.example(name).expect(name).value;
        assert_eq!(event["type"], format!("com.livechat.{name}"));
        assert_eq!(event["data"]["event"], name.trim_start_matches("app."));
        assert_eq!([&event["time"], &event["organizationid"]].map(Value::is_string), [true; 2], "{event}");
        assert_eq!(contract.faults(&event), [""; 0]);
        assert!(ids.insert(event["id"].as_str().expect("an id").to_owned()), "{name}: the id of another example");
        let text = super::super::example(name).expect(name);
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), event);
    }
    let described: BTreeSet<_> = app_events().as_object().expect("an object").keys().cloned().collect();
    assert_eq!(described, app_names().map(str::to_owned).collect());
    let schema = fragment(include_str!("../app_webhook.json"));
    let events = schema["properties"]["event"]["examples"].as_array().expect("events").iter().filter_map(Value::as_str);
    assert_eq!(events.map(|event| format!("app.{event}")).collect::<Vec<_>>(), APP_EVENTS);
}

/// Else consumers find a member in an example that neither the schema nor the types have.
#[test]
fn every_member_of_an_example_is_in_its_schema() {
    let files = files(&Setup::of_defaults());
    let schema = |name: &str| serde_json::from_str::<Value>(&files[name]).expect(name);
    let mut unknown = Vec::new();
    for name in listed().map(|l| l.action).filter(|name| *name != UNLISTED).chain(app_names()) {
        let mut event: Value = serde_json::from_str(&files[&example_path_of(name)]).expect("JSON");
        let data = event["data"].take();
        let schema_of_data = match name {
            APP_INSTALLED => schema(INSTALLED),
            name if name.starts_with("app.") => schema(APP_WEBHOOK),
            name => schema(&path_of(name)),
        };
        for (value, schema) in [(&event, &schema(ENVELOPE)), (&data, &schema_of_data)] {
            find_unknown(value, &[schema], schema, name, &mut unknown);
        }
    }
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// Adds the paths of members that none of the schemas of `value` has; a schema without properties leaves them open. `root` has the `$defs`.
fn find_unknown(value: &Value, schemas: &[&Value], root: &Value, path: &str, to: &mut Vec<String>) {
    let (mut all, mut left) = (Vec::new(), schemas.to_vec());
    while let Some(schema) = left.pop() {
        all.push(schema);
        left.extend(schema["$ref"].as_str().and_then(|reference| root.pointer(reference.strip_prefix('#')?)));
        left.extend(["allOf", "anyOf", "oneOf"].iter().filter_map(|name| schema[name].as_array()).flatten());
        left.extend(["then", "else"].iter().filter_map(|name| schema.get(name)));
    }
    let of = |name: &str| all.iter().filter_map(|schema| schema.get(name)).collect::<Vec<_>>();
    match value {
        Value::Object(members) => {
            let (properties, others) = (of("properties"), of("additionalProperties"));
            for (name, member) in members {
                let found: Vec<_> =
                    properties.iter().filter_map(|known| known.get(name)).chain(others.clone()).collect();
                let path = format!("{path}/{name}");
                if !found.is_empty() {
                    find_unknown(member, &found, root, &path, to);
                } else if !properties.is_empty() {
                    to.push(path);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| find_unknown(item, &of("items"), root, path, to)),
        _ => {}
    }
}

#[test]
fn an_example_has_its_data_last_no_secret_and_is_the_same_every_time() {
    let text = || super::super::example("incoming_event").expect("an example");
    assert_eq!(text(), text());
    let members: Vec<_> = text().lines().filter_map(|line| Some(line.strip_prefix("  \"")?.to_owned())).collect();
    assert!(members.first().expect("members").starts_with("app\""), "{members:?}");
    assert!(members.last().expect("members").starts_with("data\""), "{members:?}");
    assert!(!text().contains("secret"), "{}", text());
}

#[test]
fn asyncapi_has_the_same_examples_as_the_files() {
    let files = files(&Setup::of_defaults());
    let document = document(&Setup::of_defaults());
    let mut titles = BTreeSet::new();
    for (name, message) in document["components"]["messages"].as_object().expect("messages") {
        assert!(titles.insert(message["title"].as_str().expect("a title")), "{name} has the title of another message");
        if [UNLISTED, asyncapi::DEAD_LETTER].contains(&name.as_str()) {
            assert!(message.get("examples").is_none(), "{name}");
            continue;
        }
        let example = &message["examples"][0];
        let of_file: Value = serde_json::from_str(&files[&example_path_of(name)]).expect("JSON");
        assert_eq!(example["payload"], of_file, "{name}");
        assert_eq!(example["headers"], json!({ "content-type": "application/cloudevents+json" }));
    }
}
