//! Configurations, right and wrong, as an operator would write them.

use crate::relay::Endpoint;
use std::io::Write as _;

use super::*;

fn load(file: &str, env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let mut on_disk = tempfile::NamedTempFile::new().expect("a file");
    on_disk.write_all(file.as_bytes()).expect("written");
    let env = env.iter().map(|(name, value)| (format!("LIVECHAT_RELAY__{name}"), (*value).to_owned()));
    Config::load(Some(on_disk.path()), env).map_err(|mistakes| mistakes.0)
}

/// The mistakes of a configuration whose app is right.
fn mistakes(file: &str) -> Vec<String> {
    let file =
        format!("{file}\n[[apps]]\nname = \"default\"\nsecret_keys = [{{ name = \"k\", value = \"hunter2\" }}]\n");
    load(&file, &[]).err().unwrap_or_default()
}

const APP: &str = "[[apps]]\nname = \"default\"\nsecret_keys = [{ name = \"k\", value = \"hunter2\" }]\n";

#[test]
fn the_defaults_and_an_app_are_enough() {
    let config = load(APP, &[]).expect("a configuration");
    assert_eq!(config.server.listener.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8081");
    assert_eq!(config.server.webhooks.body_bytes_max, 2 << 20);
    assert_eq!(config.server.webhooks.response_deadline, Duration::from_secs(8));
    assert_eq!(config.policy.endpoint("/webhooks").as_ref().map(Endpoint::app), Some("default"));
    assert_eq!(config.policy.topics().len(), 48);
}

#[test]
fn the_environment_goes_over_the_file_and_the_file_over_the_defaults() {
    let file = format!(
        "[kafka]\nbrokers = \"file:1\"\nclient_id = \"file\"\n[kafka.properties]\n\"security.protocol\" = \"ssl\"\n{APP}"
    );
    let config = load(
        &file,
        &[
            ("KAFKA__BROKERS", "env:1,env:2"),
            ("KAFKA__PROPERTIES__SASL_PASSWORD", "p"),
            ("TOPICS__SETTINGS__RETENTION_MS", "60000"),
            ("APPS__1__NAME", "second"),
            ("APPS__1__SECRET_KEYS__0__NAME", "k"),
            ("APPS__1__SECRET_KEYS__0__VALUE", "v"),
            ("SERVER__CONNECTIONS_MAX", "5"),
        ],
    );
    let config = config.expect("a configuration");
    assert_eq!((config.kafka.brokers.as_str(), config.kafka.client_id.as_str()), ("env:1,env:2", "file"));
    let properties: Vec<_> =
        config.kafka.properties.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
    assert_eq!(properties, [("sasl.password", "p"), ("security.protocol", "ssl")]);
    assert_eq!(config.topics.settings["retention.ms"], "60000");
    assert_eq!(config.topics.settings["max.message.bytes"], "3145728");
    assert_eq!(config.policy.apps.len(), 2);
    assert!(config.policy.endpoint("/webhooks").is_none(), "which of the two?");
    assert_eq!(config.server.listener.limits.connections_max, 5);
}

#[test]
fn every_mistake_is_told_at_once_each_with_its_key() {
    let found = mistakes(
        r#"
[server]
listen = "somewhere"
body_bytes_max = "2 apples"
body_timeout = "soon"
connections_max = 0
lisen = "x"
[kafka]
compression = "zip"
[kafka.properties]
acks = "1"
"enable.idempotence" = "false"
[topics]
prefix = "live chat."
[topics.actions]
incoming_evnt = "drop"
[log]
filter = "livechat_relay=loud"
"#,
    );
    for expected in [
        "server.listen: ",
        "server.body_bytes_max: is `2 apples`, which is no size; write for example \"2MiB\"",
        "server.body_timeout: is `soon`, which is no duration; write for example \"8s\" or \"500ms\"",
        "server.connections_max: is 0, and must be 1 to 1000000",
        "server.lisen: is no key; did you mean server.listen?",
        "kafka.compression: is `zip`, and must be one of none, gzip, snappy, lz4, zstd",
        "kafka.properties.\"acks\": may not be set: 200 is only sent when all in-sync replicas have the event",
        "kafka.properties.\"enable.idempotence\": may not be set: ",
        "topics.prefix: has characters that Kafka does not take in topics",
        "topics.actions.incoming_evnt: is no action of LiveChat",
        "log.filter: ",
    ] {
        assert!(found.iter().any(|mistake| mistake.starts_with(expected)), "no `{expected}` in {found:#?}");
    }
    assert_eq!(found.len(), 11, "{found:#?}");
}

#[test]
fn limits_are_tried_from_both_sides() {
    for (right, wrong) in [
        (
            "[server]\nbody_bytes_max = \"64MiB\"\nlarge_bytes_in_flight_max = \"65MiB\"\n[topics.settings]\n\"max.message.bytes\" = \"70000000\"",
            "[server]\nbody_bytes_max = \"65MiB\"",
        ),
        ("[server]\nheader_bytes_max = \"8KiB\"", "[server]\nheader_bytes_max = \"8191B\""),
        ("[server]\nresponse_deadline = \"7s\"", "[server]\nresponse_deadline = \"6999ms\""),
        // The largest body, and what a request counts for besides it.
        ("[server]\nlarge_bytes_in_flight_max = \"2049KiB\"", "[server]\nlarge_bytes_in_flight_max = \"2048KiB\""),
        (
            "[server]\nbody_bytes_max = \"64KiB\"\nbytes_in_flight_max = \"65KiB\"",
            "[server]\nbody_bytes_max = \"64KiB\"\nbytes_in_flight_max = \"64KiB\"",
        ),
        ("[server]\nwindow_bytes = \"16KiB\"", "[server]\nwindow_bytes = \"16383B\""),
        ("[server]\nwrite_timeout = \"10ms\"", "[server]\nwrite_timeout = \"9ms\""),
        ("[admin]\nconnection_timeout = \"10ms\"", "[admin]\nconnection_timeout = \"9ms\""),
        (
            "[topics.settings]\n\"max.message.bytes\" = \"2113536\"",
            "[topics.settings]\n\"max.message.bytes\" = \"2113535\"",
        ),
        ("[topics]\npartitions = 1", "[topics]\npartitions = 0"),
        ("[topics.settings]\n\"retention.ms\" = 60000", "[topics.settings]\n\"retention.ms\" = [60000]"),
        ("[topics]\nprefix = \"\"", "[topics]\nprefix = \"é\""),
    ] {
        assert_eq!(mistakes(right), Vec::<String>::new(), "{right}");
        assert_ne!(mistakes(wrong), Vec::<String>::new(), "{wrong}");
    }
}

#[test]
fn apps_need_names_and_keys() {
    let only = |text: &str| load(text, &[]).err().expect("mistakes").join("\n");
    assert!(only("").contains("apps: is empty: give [[apps]]"));
    assert!(only("[[apps]]\nname = \"a/b\"\nsecret_keys = []").contains("apps[0].name: must be 1 to 64 of"));
    assert!(only("[[apps]]\nname = \"a\"").contains("apps[0].secret_keys: is empty"));
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"\" }]")
            .contains("it would let everybody in")
    );
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\" }]").contains("needs one of file, env or value")
    );
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", file = \"/no/such/file\" }]")
            .contains("/no/such/file cannot be read")
    );
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", env = \"NO_SUCH_VARIABLE\" }]")
            .contains("no variable NO_SUCH_VARIABLE")
    );
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_key = 1\nsecret_keys = [{ name = \"k\", value = \"v\" }]")
            .contains("apps[0].secret_key: is no key")
    );
    let twice = format!("{APP}{APP}");
    assert!(only(&twice).contains("default stands twice"));
    let same =
        "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"v\" }, { name = \"k\", value = \"v\" }]";
    assert!(only(same).contains("k stands twice") && only(same).contains("is the same key as one before it"));
}

#[test]
fn a_key_in_a_file_ends_where_its_line_does() {
    let mut secret = tempfile::NamedTempFile::new().expect("a file");
    secret.write_all(b"hunter2\r\n").expect("written");
    let file = format!("[[apps]]\nname = \"a\"\nsecret_keys = [{{ name = \"k\", file = {:?} }}]", secret.path());
    let config = load(&file, &[]).expect("a configuration");
    let delivery =
        crate::event::receive::receive(br#"{"secret_key":"hunter2","action":"a","payload":{}}"#).expect("well-formed");
    assert!(crate::event::verify::verify(delivery, &config.policy.apps["a"].keyring).is_ok());
}

#[test]
fn no_mistake_tells_a_secret() {
    for file in [
        "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"hunter2\" }",
        "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"hunter2 }]",
        "[[apps]]\nname = \"a\"\nsecret_keys = \"hunter2\"",
        "[[apps]]\nname = \"a\"\nsecret_keys = [\"hunter2\"]",
        "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = [\"hunter2\"] }]",
        "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", valu = \"hunter2\" }]",
        "[[apps]]\nname = \"a\"\nsecret_key = \"hunter2\"",
        "apps = \"hunter2\"",
        "[kafka]\nproperties = \"hunter2\"",
        "[kafka.properties]\n\"sasl.password\" = [\"hunter2\"]",
        "[kafka.properties]\n\"acks\" = \"hunter2\"",
    ] {
        let told = load(file, &[]).err().expect("mistakes").join("\n");
        assert!(!told.contains("hunter2"), "{file}\n{told}");
    }
}

#[test]
fn names_that_kafka_takes_for_one_are_refused() {
    let collision = mistakes("[topics.actions]\nincoming_event = \"a.b\"\nincoming_chat = \"a_b\"");
    assert!(collision.iter().any(|m| m.contains("a.b and a_b collide")), "{collision:?}");
    let long = |n: usize| mistakes(&format!("[topics.actions]\nincoming_event = {:?}", "x".repeat(n)));
    assert_eq!(long(249), Vec::<String>::new());
    assert!(long(250)[0].contains("249 bytes at most"));
}

#[test]
fn two_names_of_one_property_are_a_mistake_that_names_both() {
    let of = |properties: &str| mistakes(&format!("[kafka.properties]\n{properties}"));
    for [one, other] in [
        ["linger.ms", "queue.buffering.max.ms"],
        ["compression.type", "topic.compression.codec"],
        ["max.in.flight", "max.in.flight.requests.per.connection"],
        ["retries", "topic.retries"],
    ] {
        let found = of(&format!("\"{other}\" = \"1\"\n\"{one}\" = \"1\""));
        assert!(found.len() == 1 && found[0].contains(one) && found[0].contains(other), "{found:?}");
    }
    assert_eq!(of("\"topic.acks\" = \"1\"\n\"topic.partitioner\" = \"consistent\"").len(), 2);
    assert_eq!(of("\"topic.metadata.refresh.interval.ms\" = \"1000\"\n\"retries\" = \"7\""), Vec::<String>::new());
}

#[test]
fn a_batch_waits_less_than_a_record_may_take() {
    let set = |linger: &str| mistakes(&format!("[kafka]\npublish_deadline = \"500ms\"\nlinger = \"{linger}\""));
    for linger in ["0ms", "2ms", "499ms"] {
        assert_eq!(set(linger), Vec::<String>::new(), "{linger}");
    }
    for linger in ["-1ms", "500ms", "1001ms"] {
        let found = set(linger);
        assert!(found.len() == 1 && found[0].starts_with("kafka.linger: "), "{found:?}");
    }
}

#[test]
fn the_connections_that_wait_in_the_kernel_have_their_limits() {
    let set = |value: &str| mistakes(&format!("[server]\nbacklog = {value}"));
    for value in ["1", "1000000"] {
        assert_eq!(set(value), Vec::<String>::new(), "{value}");
    }
    for value in ["0", "1000001"] {
        let told = set(value);
        assert!(told.len() == 1 && told[0].starts_with("server.backlog: "), "{told:?}");
    }
}

#[test]
fn a_segment_of_the_spool_has_its_limits() {
    let set = |value: &str| mistakes(&format!("[spool]\nsegment_bytes = \"{value}\""));
    for value in ["64KiB", "1GiB"] {
        assert_eq!(set(value), Vec::<String>::new(), "{value}");
    }
    for value in ["65535B", "1025MiB"] {
        let told = set(value);
        assert!(told.len() == 1 && told[0].starts_with("spool.segment_bytes: "), "{told:?}");
    }
}

#[test]
fn a_file_that_is_no_toml_is_told_by_line_and_column() {
    let told = load("[server]\nlisten = \n", &[]).err().expect("mistakes");
    assert!(told[0].contains(":2:"), "{told:?}");
    let missing = Config::load(Some(Path::new("/no/such/file")), []).err().expect("mistakes");
    assert!(missing.0[0].starts_with("/no/such/file: cannot be read"), "{missing:?}");
}

#[test]
fn an_app_may_have_its_own_topics() {
    let sales = APP.replace("name = \"default\"", "name = \"sales\"\ntopic_prefix = \"sales.\"");
    let sales = sales.replace("name = \"sales\"", "name = \"sales\"\napi_version = \"3.6\"");
    let config = load(&format!("{APP}{sales}"), &[]).expect("a configuration");
    assert_eq!(config.policy.apps["sales"].routing.api_version.as_deref(), Some("3.6"));
    let unversioned = load(&sales.replace("3.6", "latest"), &[]).err().expect("mistakes");
    assert!(unversioned[0].starts_with("apps[0].api_version: must be a version"), "{unversioned:?}");
    let topics = config.policy.topics();
    assert_eq!(topics.len(), 95);
    assert!(topics.iter().any(|topic| &**topic == "sales.livechat.incoming_event"));
    let wrong = APP.replace("name = \"default\"", "topic_prefix = \"é\"\nname = \"default\"");
    assert!(load(&wrong, &[]).err().expect("mistakes")[0].starts_with("apps[0].topic_prefix: has characters"));
}

#[test]
fn hashed_keys_and_app_webhooks_need_secrets_that_cannot_be_guessed() {
    let hashed = |secret: &str| mistakes(&format!("[topics]\nkey = \"hashed\"\n{secret}"));
    assert_eq!(hashed("key_secret = \"0123456789abcdef\""), Vec::<String>::new());
    assert!(hashed("key_secret = \"0123456789abcde\"")[0].starts_with("topics.key_secret: is needed"));
    assert!(hashed("")[0].starts_with("topics.key_secret: is needed"));
    assert!(mistakes("[topics]\nkey = \"secret\"")[0].contains("must be one of plain, hashed"));

    let token = |token: &str| load(&format!("[app_webhooks]\ntoken = \"{token}\"\n{APP}"), &[]);
    let config = token(&"t".repeat(32)).expect("a configuration");
    assert_eq!(config.policy.topics().len(), 54);
    assert!(token(&"t".repeat(256)).is_ok());
    for wrong in ["t".repeat(31), "t".repeat(257), format!("{}/", "t".repeat(32))] {
        assert!(token(&wrong).err().expect("mistakes")[0].starts_with("app_webhooks.token: must be 32 to 256"));
    }
    let twin = "[[apps]]\nname = \"app-webhooks\"\nsecret_keys = [{ name = \"a\", value = \"v\" }]";
    assert!(load(twin, &[]).err().expect("a mistake")[0].contains("is app-webhooks, the name that metrics have"));
    assert!(load(APP, &[]).expect("a configuration").policy.app_webhooks.is_none());
}
