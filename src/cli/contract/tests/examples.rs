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
    for l in listed().filter(|l| l.action != UNLISTED) {
        let example = &document["components"]["messages"][l.action]["examples"][0];
        let of_file: Value = serde_json::from_str(&files[&example_path_of(l.action)]).expect("JSON");
        assert_eq!(example["payload"], of_file, "{}", l.action);
        assert_eq!(example["headers"], json!({ "content-type": "application/cloudevents+json" }));
    }
}
