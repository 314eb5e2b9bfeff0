//! The contract of an operator's configuration: its topics, its mode, its apps, and none of its secrets.

use super::*;

/// Secrets that are nowhere: writing a contract needs none.
const APPS: &str = r#"
    [[apps]]
    name = "support"
    secret_keys = [{ name = "a", file = "/nowhere" }]
    [[apps]]
    name = "sales"
    topic_prefix = "sales."
    api_version = "3.6"
    secret_keys = [{ name = "a", env = "NOWHERE" }]
    [app_webhooks]
    token = { file = "/nowhere" }
"#;

fn setup(toml: &str) -> Result<Setup, Failure> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), toml).expect("written");
    Setup::of(Config::load(Some(file.path()), [], Need::Settings)?)
}

fn members(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn the_topics_of_a_configuration_are_in_every_file() {
    let topics = r#"
        [topics]
        prefix = "lc."
        actions = { incoming_event = "messages", event_updated = "messages", tag_created = "drop" }
    "#;
    let setup = setup(&format!("{topics}{APPS}")).expect("a setup");
    let files = files(&setup);
    let topics_of = |action: &str| {
        let schema: Value = serde_json::from_str(&files[&path_of(action)]).expect("JSON");
        schema["x-livechat"]["topics"].clone()
    };
    assert_eq!(topics_of("incoming_chat"), json!(["lc.incoming_chat", "sales.lc.incoming_chat"]));
    assert_eq!(topics_of("incoming_event"), json!(["messages"]));
    assert_eq!(topics_of("tag_created"), json!([]));

    let row = |action: &str| {
        let start = format!("| [`{action}`]");
        files["actions.md"].lines().find(|line| line.starts_with(&start)).expect("a row").to_owned()
    };
    assert!(row("incoming_chat").contains("| `lc.incoming_chat`: `support`; `sales.lc.incoming_chat`: `sales` |"));
    assert!(row("incoming_event").contains("| `messages` |"));
    assert!(row("tag_created").contains("| dropped |") && !row("tag_created").contains("example"));
    for fact in [
        "Apps: `sales` (LiveChat's API 3.6), `support` (API version not configured)",
        "Mode: structured",
        "Dead letters, if there are any: on `lc.dead-letter`",
        "`app.payment_collected`: on `lc.app.payment_collected`",
    ] {
        assert!(files["actions.md"].contains(&format!("\n- {fact}")), "{fact}:\n{}", files["actions.md"]);
    }

    let example: Value = serde_json::from_str(&files[&example_path_of("incoming_chat")]).expect("JSON");
    assert_eq!([&example["app"], &example["apiversion"]], ["sales", "3.6"]);
    assert!(!files.contains_key(&example_path_of("tag_created")));
    // App Webhooks are switched on, and no app has an installation page.
    assert!(files.contains_key(&example_path_of("app.payment_collected")));
    assert!(files["actions.md"].contains("| [`app.payment_collected`](app_webhook.schema.json) ([example](examples/"));
    assert!(!files.contains_key(&example_path_of(APP_INSTALLED)) && !files["actions.md"].contains("app.installed"));
}

#[test]
fn asyncapi_has_a_channel_for_every_topic_that_a_configuration_has() {
    let topics =
        "[topics]\nactions = { incoming_event = \"messages\", event_updated = \"messages\", tag_created = \"drop\" }\n";
    let rules = r#"
        [[rules]]
        name = "bot"
        chat = "C"
        app = "sales"
        do = "topic"
        topic = "slow"
        [[rules]]
        name = "tags"
        action = "tag_created"
        do = "topic"
        topic = "tags"
        [[rules]]
        name = "poison"
        action = "incoming_chat"
        do = "dead-letter"
    "#;
    let setup = setup(&format!("{topics}{rules}{APPS}")).expect("a setup");
    let document = document(&setup);
    let policy = &setup.config.as_ref().expect("a configuration").policy;
    let wanted = policy.topics();
    assert_eq!(members(&document["channels"]), wanted.iter().map(|topic| &**topic).collect::<Vec<_>>());
    let dead_letters = &document["channels"]["livechat.dead-letter"]["messages"]["dead_letter"];
    assert_eq!(dead_letters["$ref"], "#/components/messages/dead_letter");
    assert_eq!(members(&document["operations"]), members(&document["channels"]));
    let messages = &document["channels"]["messages"];
    assert_eq!(members(&messages["messages"]), ["event_updated", "incoming_event"]);
    assert_eq!(messages["address"], "messages");
    // A rule takes what has no topic of its own, too.
    assert_eq!(members(&document["channels"]["tags"]["messages"]), ["tag_created"]);
    assert_eq!(members(&document["channels"]["sales.livechat.tag_deleted"]["messages"]), ["tag_deleted"]);
    let slow = members(&document["channels"]["slow"]["messages"]);
    assert!(slow.contains(&"incoming_chat") && slow.contains(&"incoming_event"), "{slow:?}");
    assert!(!slow.contains(&"agent_created") && !slow.contains(&APP_INSTALLED), "these have no chat: {slow:?}");
}

#[test]
fn binary_mode_and_hashed_keys_are_in_the_contract() {
    let keys = "events.mode = \"binary\"\ntopics = { key = \"hashed\", key_secret = { file = \"/nowhere\" } }\n";
    let setup = setup(&format!("{keys}{APPS}")).expect("a setup");
    let (files, document) = (files(&setup), document(&setup));
    let record: Value = serde_json::from_str(&files[&example_path_of("thread_tagged")]).expect("JSON");
    let data = &record["value"];
    assert_eq!(Contract::load().actions["thread_tagged"].iter_errors(data).count(), 0, "{data}");

    let message = &document["components"]["messages"]["thread_tagged"];
    let [example] = &message["examples"].as_array().expect("examples")[..] else { panic!("{message}") };
    assert_eq!([&example["payload"], &example["headers"]], [data, &record["headers"]]);
    assert!(files["actions.md"].contains("and the headers and the value of a record as an example"));
    let header = |name: &str| example["headers"][name].as_str().unwrap_or_else(|| panic!("no {name} in {example}"));
    assert_eq!([header("content-type"), header("ce_type")], ["application/json", "com.livechat.thread_tagged"]);
    assert_eq!(header("ce_partitionkey").len(), 32);
    assert!(header("ce_chatid").len() < 32);
    let headers = &document["components"]["schemas"]["headers"];
    assert!(headers["required"].as_array().expect("names").contains(&"ce_partitionkey".into()), "{headers}");
    for fact in ["Mode: binary", "Keys: hashed"] {
        assert!(files["actions.md"].contains(&format!("\n- {fact}")), "{fact}");
    }
}

#[test]
fn rules_and_events_within_a_chat_are_in_the_table() {
    let rules = r#"
        [events]
        initial = true
        [[rules]]
        name = "flood"
        action = "incoming_event"
        do = "drop"
        [[rules]]
        name = "bot"
        chat = "C"
        do = "topic"
        topic = "slow"
        until = 2026-12-01T00:00:00Z
    "#;
    let setup = setup(&format!("{rules}{APPS}")).expect("a setup");
    let table = &files(&setup)["actions.md"];
    for fact in [
        "The first events of a chat: inside the `incoming_chat`, and on `incoming_event`, too",
        "Rule `flood`: some events are dropped",
        "Rule `bot`: some events are on `slow`, until 2026-12-01T00:00:00Z",
    ] {
        assert!(table.contains(&format!("\n- {fact}")), "{fact}:\n{table}");
    }
}

#[test]
fn examples_of_actions_that_are_dropped_by_now_are_deleted_and_nothing_else_is() {
    let out = tempfile::tempdir().expect("a directory");
    let is_there = |name: &str| out.path().join(name).exists();
    write(&files(&Setup::of_defaults()), out.path()).expect("written");
    std::fs::write(out.path().join("examples/own.json"), "{}").expect("written");
    assert!(is_there("examples/tag_created.json"));
    let setup = setup(&format!("topics.actions.tag_created = \"drop\"\n{APPS}")).expect("a setup");
    write(&files(&setup), out.path()).expect("written");
    assert!(!is_there("examples/tag_created.json"));
    assert!(is_there("examples/own.json") && is_there("examples/tag_deleted.json"));
}

#[test]
fn a_configuration_without_an_app_is_refused() {
    let refused = setup("topics.prefix = \"lc.\"").err().expect("no setup");
    assert!(matches!(refused, Failure::Usage(why) if why.contains("no [[apps]]")));
}
