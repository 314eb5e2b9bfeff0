//! Configurations, right and wrong, as an operator would write them.

mod limits;
mod shown;

use std::io::Write as _;

use secrecy::ExposeSecret as _;
use toml::Value;

use super::*;
use crate::event::Key;
use crate::relay::Endpoint;

fn load(file: &str, env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let mut on_disk = tempfile::NamedTempFile::new().expect("a file");
    on_disk.write_all(file.as_bytes()).expect("written");
    let env = env.iter().map(|(name, value)| (format!("LIVECHAT_RELAY__{name}").into(), value.into()));
    Config::load(Some(on_disk.path()), env, Need::Everything).map_err(|mistakes| mistakes.without_places())
}

/// The mistakes of a configuration whose app is right.
fn mistakes(file: &str) -> Vec<String> {
    let file = format!(
        "{file}\n[[apps]]\nname = \"default\"\nsecret_keys = [{{ name = \"k\", value = \"hunter2hunter2hunter2\" }}]\n"
    );
    load(&file, &[]).err().unwrap_or_default()
}

const APP: &str = "[[apps]]\nname = \"default\"\nsecret_keys = [{ name = \"k\", value = \"hunter2hunter2hunter2\" }]\n";

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
            ("APPS__1__SECRET_KEYS__0__VALUE", "a key of the second"),
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
fn every_mistake_is_reported_at_once_each_with_its_key() {
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
        "server.listen: must be an IP address and a port, such as \"0.0.0.0:8080\"",
        "server.body_bytes_max: must be a size from 1 B to 64.0 MiB, such as \"2MiB\"",
        "server.body_timeout: must be a duration from 10ms to 60s, such as \"3s\", not \"soon\"",
        "server.connections_max: must be a whole number from 1 to 1000000, such as 4096, not 0",
        "unknown key `server.lisen`; did you mean `server.listen`?",
        "kafka.compression: must be one of \"none\", \"gzip\", \"snappy\", \"lz4\", \"zstd\", such as \"lz4\"",
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
        (
            "[spool]\ndirectory = \"s\"\nsegment_bytes = \"1MiB\"\nbytes_max = \"2113536B\"",
            "[spool]\ndirectory = \"s\"\nsegment_bytes = \"1MiB\"\nbytes_max = \"2113535B\"",
        ),
        (
            "[spool]\ndirectory = \"s\"\nqueue_bytes_max = \"2113536B\"",
            "[spool]\ndirectory = \"s\"\nqueue_bytes_max = \"2113535B\"",
        ),
        (
            "[spool]\ndirectory = \"s\"\nsegment_bytes = \"4MiB\"\nbytes_max = \"4MiB\"",
            "[spool]\ndirectory = \"s\"\nsegment_bytes = \"4097KiB\"\nbytes_max = \"4MiB\"",
        ),
        (
            "[spool]\ndirectory = \"s\"\nretry_min = \"1s\"\nretry_max = \"1s\"",
            "[spool]\ndirectory = \"s\"\nretry_min = \"1001ms\"\nretry_max = \"1s\"",
        ),
        (
            "[server]\nlisten = \"127.0.0.1:9000\"\n[admin]\nlisten = \"127.0.0.2:9000\"",
            "[server]\nlisten = \"127.0.0.1:9000\"\n[admin]\nlisten = \"127.0.0.1:9000\"",
        ),
        (
            "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"",
            "[server]\nlisten = \"0.0.0.0:9000\"\n[admin]\nlisten = \"127.0.0.1:9000\"",
        ),
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
    assert!(only("[[apps]]\nname = \"a\"").contains("apps[0].secret_keys: needs at least one key"));
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\" }]").contains("needs one of file, env or value")
    );
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", file = \"/no/such/file\" }]")
            .contains("apps[0].secret_keys[0].file: the file cannot be read: No such file")
    );
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", env = \"NO_SUCH_VARIABLE\" }]")
            .contains("apps[0].secret_keys[0].env: the environment has no such variable")
    );
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_key = 1\nsecret_keys = [{ name = \"k\", value = \"v\" }]")
            .contains("unknown key `apps[0].secret_key`; did you mean `apps[0].secret_keys`?")
    );
    let a_table = "[apps]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"hunter2hunter2\" }]";
    assert_eq!(only(a_table), "apps: must be an array of tables, such as [[apps]] with a name and secret_keys");
    let a_key = "[[apps]]\nname = \"a\"\nsecret_keys = { name = \"k\", value = \"hunter2hunter2\" }";
    assert!(only(a_key).starts_with("apps[0].secret_keys: must be an array of tables, such as [{ name"));
    assert_eq!(only(a_key).lines().count(), 1, "{}", only(a_key));
    let twice = format!("{APP}{APP}");
    assert!(only(&twice).contains("apps[1].name: is the name of an app before it"));
    let same = "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"the same\" }, { name = \"k\", value = \"the same\" }]";
    assert!(
        only(same).contains("is the name of a key before it")
            && only(same).contains("is the same key as one before it")
    );
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
        let value = if one.starts_with("compression") { "gzip" } else { "1" };
        let found = of(&format!("\"{other}\" = \"{value}\"\n\"{one}\" = \"{value}\""));
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
fn who_says_who_the_client_is_must_be_named() {
    let server = |text: &str| mistakes(&format!("[server]\n{text}"));
    for right in [
        "client_address = \"peer\"",
        "client_address = \"proxy-protocol\"\ntrusted_proxies = [\"10.0.0.0/8\", \"2001:db8::7\"]",
        "client_networks = [\"203.0.113.0/24\", \"::1\"]",
        "proxy_header_bytes_max = \"232B\"",
        "proxy_header_bytes_max = \"65551B\"",
    ] {
        assert_eq!(server(right), Vec::<String>::new(), "{right}");
    }
    for (wrong, expected) in [
        (
            "client_address = \"forwarded\"",
            "server.trusted_proxies: is empty, but server.client_address is not \"peer\"",
        ),
        ("client_address = \"header\"", "server.client_address: must be one of \"peer\", \"proxy-protocol\""),
        ("trusted_proxies = [\"10.0.0.0/8\", \"example.com\"]", "server.trusted_proxies: its entry 2 is no network"),
        (
            "trusted_proxies = \"10.0.0.0/8\"",
            "server.trusted_proxies: must be a list of networks, such as [\"10.0.0.0/8\"",
        ),
        ("client_networks = [8]", "server.client_networks: its entry 1 is no network"),
        ("proxy_header_bytes_max = \"231B\"", "server.proxy_header_bytes_max: must be a size"),
        ("proxy_header_bytes_max = \"65552B\"", "server.proxy_header_bytes_max: must be a size"),
        (
            "client_address = \"forwarded\"\ntrusted_proxies = [\"10.0.0.0/33\"]",
            "server.trusted_proxies: its entry 1 is no network",
        ),
    ] {
        let found = server(wrong);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{wrong}: {found:?}");
    }
    let set = [("SERVER__CLIENT_ADDRESS", "forwarded"), ("SERVER__TRUSTED_PROXIES", "10.0.0.0/8, ::1")];
    let config = load(APP, &set).expect("a configuration");
    assert!(config.server.clients.trusted_proxies.contains(std::net::Ipv6Addr::LOCALHOST.into()));
    for (file, warned) in [
        ("trusted_proxies = [\"10.0.0.0/8\"]", "server.trusted_proxies: is not used"),
        (
            "client_address = \"forwarded\"\ntrusted_proxies = [\"::/0\"]",
            "server.trusted_proxies: has a network of all addresses",
        ),
    ] {
        let warnings = load(&format!("[server]\n{file}\n{APP}"), &[]).expect("a configuration").warnings;
        assert!(warnings.len() == 1 && warnings[0].starts_with(warned), "{warnings:?}");
    }
}

#[test]
fn a_file_that_is_no_toml_is_reported_by_line_and_column() {
    let refused = refused("[server]\nlisten = \n", &[]).lines;
    assert!(refused[0].contains(":2:"), "{refused:?}");
    let load = |path: &str| Config::load(Some(Path::new(path)), [], Need::Everything).err().expect("mistakes");
    let missing = load("/no/such/file");
    assert!(missing.may_pass && missing.lines[0].starts_with("/no/such/file: cannot be read"), "{missing:?}");
    assert!(!load("/").may_pass, "a directory does not become a file");
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
fn of_several_apps_each_owns_the_topics_that_no_other_has() {
    let app = |name: &str, prefix: &str| {
        format!(
            "[[apps]]\nname = \"{name}\"\ntopic_prefix = \"{prefix}\"\nsecret_keys = [{{ name = \"k\", value = \"hunter2hunter2\" }}]\n"
        )
    };
    let owners = |file: &str| load(file, &[]).expect("a configuration").policy.topics_by_app();
    assert!(owners(&app("a", "a.")).is_empty(), "one alone shares with no other");
    let actions = "[topics.actions]\nincoming_chat = \"chats\"\nincoming_event = \"chats\"\n";
    let owners = owners(&[actions, &app("a", "a."), &app("b", ""), &app("c", "")].concat());
    let owner = |topic: &str| owners.get(topic).map(|app| &**app);
    assert_eq!(owner("a.livechat.agent_created"), Some("a"));
    assert_eq!([owner("chats"), owner("livechat.agent_created"), owner("livechat.dead-letter")], [None; 3]);
    assert_eq!(owners.len(), 45);
}

#[test]
fn a_topic_that_a_rule_names_is_an_apps_only_where_its_rules_name_that_app_alone() {
    let app = |name: &str| {
        format!(
            "[[apps]]\nname = \"{name}\"\ntopic_prefix = \"{name}.\"\nsecret_keys = [{{ name = \"k\", value = \"hunter2hunter2\" }}]\n"
        )
    };
    let rules = [
        ("app = \"b\"", "a.livechat.incoming_event"),
        ("app = \"a\"", "a.livechat.incoming_chat"),
        ("app = \"b\"", "of-b"),
        ("app = [\"b\"]\nchat = \"C\"", "of-b"),
        ("app = \"b\"", "of-both"),
        ("app = \"a\"", "of-both"),
        ("app = \"b\"", "of-both"),
        ("app = [\"a\", \"b\"]", "of-several"),
        ("chat = \"C\"", "of-a-chat"),
        ("chat = \"C\"\nuntil = 2020-01-01T00:00:00Z", "a.livechat.agent_created"),
        ("app = \"a\"\nuntil = 2020-01-01T00:00:00Z", "past"),
    ];
    let rule = |(i, (criteria, topic)): (usize, (&str, &str))| {
        format!("[[rules]]\nname = \"{i}\"\n{criteria}\ndo = \"topic\"\ntopic = \"{topic}\"\n")
    };
    let rules: String = rules.into_iter().enumerate().map(rule).collect();
    let policy = load(&[app("a"), app("b"), rules].concat(), &[]).expect("a configuration").policy;
    let owners = policy.topics_by_app();
    let owner = |topic: &str| owners.get(topic).map(|app| &**app);
    assert_eq!(["a.livechat.incoming_chat", "a.livechat.agent_created"].map(owner), [Some("a"); 2]);
    assert_eq!(owner("of-b"), Some("b"));
    assert_eq!(["a.livechat.incoming_event", "of-both", "of-several", "of-a-chat"].map(owner), [None; 4]);
    let topics = policy.topics();
    let has = |name: &str| topics.iter().any(|topic| &**topic == name);
    assert!(has("of-b") && !has("past"), "a rule that is over needs no topic");
}

#[test]
fn hashed_keys_and_app_webhooks_need_secrets_that_cannot_be_guessed() {
    let hashed = |secret: &str| mistakes(&format!("[topics]\nkey = \"hashed\"\n{secret}"));
    assert_eq!(hashed("key_secret = \"0123456789abcdef\""), Vec::<String>::new());
    assert!(hashed("key_secret = \"0123456789abcde\"")[0].starts_with("topics.key_secret: is needed"));
    assert!(hashed("")[0].starts_with("topics.key_secret: is needed"));
    assert!(mistakes("[topics]\nkey = \"secret\"")[0].contains("must be one of \"plain\", \"hashed\""));

    let token = |token: &str| load(&format!("[app_webhooks]\ntoken = \"{token}\"\n{APP}"), &[]);
    let config = token(&"t".repeat(32)).expect("a configuration");
    assert_eq!(config.policy.topics().len(), 54);
    assert!(token(&"t".repeat(256)).is_ok());
    for wrong in ["t".repeat(31), "t".repeat(257), format!("{}/", "t".repeat(32))] {
        assert!(token(&wrong).err().expect("mistakes")[0].starts_with("app_webhooks.token: must be 32 to 256"));
    }
    for taken in ["app-webhooks", "unknown"] {
        let twin = format!(
            "[[apps]]\nname = \"{taken}\"\nsecret_keys = [{{ name = \"a\", value = \"hunter2hunter2hunter2\" }}]"
        );
        let mistake = format!("is {taken}, the name that metrics have");
        assert!(load(&twin, &[]).err().expect("a mistake")[0].contains(&mistake));
    }
    assert!(load(APP, &[]).expect("a configuration").policy.app_webhooks.is_none());
}

#[test]
fn only_an_app_with_an_installation_page_has_a_topic_for_installations() {
    let livechat = "[apps.livechat]\nclient_id = \"c\"\nclient_secret = { value = \"s\" }\npublic_url = \"https://hooks.example.com\"\norganizations = [\"o\"]";
    let topic = |more: &str| {
        let config = load(&format!("{APP}\n{livechat}\n{more}"), &[]).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        config.policy.topics().iter().find(|topic| topic.contains("installed")).map(ToString::to_string)
    };
    assert_eq!(topic("page = true"), None);
    assert_eq!(topic("install = { enable_webhooks = false }").as_deref(), Some("livechat.app.installed"));
    let own = "topics.actions = { \"app.installed\" = \"who.has.installed\" }\n";
    let config = load(&format!("{own}{APP}\n{livechat}\ninstall.enable_webhooks = true"), &[]);
    assert!(config.expect("a configuration").policy.topics().contains(&"who.has.installed".into()));
}

/// As `load`, with variables of any name and any bytes.
fn read(file: &str, env: &[(&str, &[u8])], need: Need) -> Result<Config, Mistakes> {
    use std::os::unix::ffi::OsStrExt as _;
    let on_disk = holding(file);
    let text = |bytes: &[u8]| std::ffi::OsStr::from_bytes(bytes).to_owned();
    let env = env.iter().map(|(name, value)| (text(name.as_bytes()), text(value)));
    Config::load(Some(on_disk.path()), env, need)
}

fn holding(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

/// What is wrong with a configuration in which something is.
fn refused(file: &str, env: &[(&str, &[u8])]) -> Mistakes {
    read(file, env, Need::Everything).err().expect("mistakes")
}

fn with_app(more: &str) -> String {
    format!("{more}\n{APP}")
}

/// A configuration of the app `a` with one key, which stands at `place`.
fn with_key(place: &str) -> String {
    format!("[[apps]]\nname = \"a\"\nsecret_keys = [{{ name = \"k\", {place} }}]\n")
}

#[test]
fn every_property_and_setting_of_the_environment_counts_beside_those_of_the_file() {
    let properties = "[kafka.properties]\n\"sasl.mechanisms\" = \"PLAIN\"\n\"retries\" = 7\n";
    let file = with_app(&format!("{properties}[topics.settings]\n\"retention.ms\" = 1"));
    let set = [
        ("KAFKA__PROPERTIES__SECURITY_PROTOCOL", "sasl_ssl"),
        ("KAFKA__PROPERTIES__SASL_MECHANISM", "SCRAM-SHA-256"),
        ("KAFKA__PROPERTIES__SASL_USERNAME", "relay"),
        ("TOPICS__SETTINGS__RETENTION_MS", "2"),
        ("TOPICS__SETTINGS__SEGMENT_MS", "3"),
    ];
    let config = load(&file, &set).expect("a configuration");
    let mut properties: Vec<_> = config.kafka.properties.iter().map(|(n, v)| (n.as_str(), v.expose_secret())).collect();
    properties.sort_unstable();
    let expected = [("sasl.mechanism", "SCRAM-SHA-256"), ("sasl.username", "relay"), ("security.protocol", "sasl_ssl")];
    assert_eq!(properties, [&[("retries", "7")], &expected[..]].concat());
    let settings: Vec<_> = config.topics.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(settings, [("max.message.bytes", "3145728"), ("retention.ms", "2"), ("segment.ms", "3")]);

    let refused = load(APP, &[("KAFKA__PROPERTIES__ACKS", "1"), ("KAFKA__PROPERTIES__RETRIES", "7")]);
    let refused = refused.err().expect("a mistake");
    assert!(refused[0].contains("\"acks\" (LIVECHAT_RELAY__KAFKA__PROPERTIES__ACKS): may not be set"), "{refused:?}");
}

#[test]
fn what_the_environment_sets_twice_is_a_mistake_that_names_both_variables() {
    for [one, other] in [
        ["KAFKA__PROPERTIES__SASL_MECHANISM", "KAFKA__PROPERTIES__SASL_MECHANISMS"],
        ["KAFKA__PROPERTIES__RETRIES", "KAFKA__PROPERTIES__TOPIC_RETRIES"],
        ["KAFKA__PROPERTIES__SASL_PASSWORD", "KAFKA__PROPERTIES__SASL_PASSWORD__FILE"],
        ["APPS__0__SECRET_KEYS__0__ENV", "APPS__0__SECRET_KEYS__0__FILE"],
        ["SERVER__LISTEN", "SERVER__listen"],
    ] {
        let found = load(APP, &[(one, "1"), (other, "1")]).err().expect("mistakes").join("\n");
        let both = format!("LIVECHAT_RELAY__{other}: and LIVECHAT_RELAY__{one} set the same key");
        assert!(found.contains(&both), "{found}");
    }
}

#[test]
fn the_environment_sets_every_secret_or_where_it_stands_and_the_file_says_nothing_then() {
    let secret = holding("0123456789abcdef0123456789abcdef");
    let path = secret.path().to_str().expect("a path").as_bytes();
    let file = [
        "[topics]\nkey = \"hashed\"\nkey_secret = { file = \"/no/such/file\" }",
        "[app_webhooks]\ntoken = \"short\"",
        "[kafka.properties]\n\"sasl.password\" = { env = \"NO\" }",
        &with_key("env = \"NO\""),
    ];
    let set: [(&str, &[u8]); 5] = [
        ("LIVECHAT_RELAY__TOPICS__KEY_SECRET__FILE", path),
        ("LIVECHAT_RELAY__APP_WEBHOOKS__TOKEN__ENV", b"TOKEN"),
        ("LIVECHAT_RELAY__KAFKA__PROPERTIES__SASL_PASSWORD__FILE", path),
        ("LIVECHAT_RELAY__APPS__0__SECRET_KEYS__0__FILE", path),
        ("TOKEN", b"abcdef0123456789abcdef0123456789"),
    ];
    let config = read(&file.join("\n"), &set, Need::Everything).expect("a configuration");
    let [(name, password)] = &config.kafka.properties[..] else { panic!("one property") };
    assert_eq!((name.as_str(), password.expose_secret()), ("sasl.password", "0123456789abcdef0123456789abcdef"));
    assert!(config.policy.app_webhooks.is_some() && accepts(&config, "0123456789abcdef0123456789abcdef"));
}

/// Whether a webhook of the app `a` with this key is verified.
fn accepts(config: &Config, secret: &str) -> bool {
    let body = format!(r#"{{"secret_key":"{secret}","action":"a","payload":{{}}}}"#);
    let delivery = crate::event::receive::receive(body.as_bytes()).expect("well-formed");
    crate::event::verify::verify(delivery, &config.policy.apps["a"].keyring, jiff::Timestamp::now()).is_ok()
}

/// The three places, each with this text.
fn places(text: &str, file: &tempfile::NamedTempFile) -> [String; 3] {
    let value = format!("value = {}", toml::Value::from(text));
    [format!("file = {:?}", file.path()), "env = \"KEY\"".to_owned(), value]
}

#[test]
fn what_surrounds_a_secret_is_no_part_of_it_wherever_it_stands() {
    for around in ["two words", "two words\n", "two words\r\n\n", "\u{feff}two words", " \ttwo words\t "] {
        let file = holding(around);
        for place in places(around, &file) {
            let config = read(&with_key(&place), &[("KEY", around.as_bytes())], Need::Everything);
            assert!(accepts(&config.expect("a configuration"), "two words"), "{place}: {around:?}");
        }
    }
}

#[test]
fn a_secret_that_cannot_be_right_is_reported_at_the_start_wherever_it_stands() {
    for (wrong, why) in [
        ("", "is empty"),
        ("\u{feff} \r\n", "is empty"),
        ("two\nlines", "has a control character in it"),
        ("h\0u\0n\0t\0e\0r\0", "has a control character in it"),
        ("hunter2", "has fewer than 8 bytes"),
    ] {
        let file = holding(wrong);
        for place in places(wrong, &file) {
            // A variable cannot have a NUL.
            let variable = wrong.replace('\0', "\u{1}");
            let found = refused(&with_key(&place), &[("KEY", variable.as_bytes())]);
            assert!(found.lines.len() == 1 && found.lines[0].contains(why), "{place}: {wrong:?}: {found:?}");
            assert!(!found.may_pass);
        }
    }
}

#[test]
fn a_certificate_may_have_lines_and_a_password_may_not() {
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let of = |name: &str| {
        let file = with_app(&format!("[kafka.properties]\n\"{name}\" = {{ env = \"PEM\" }}"));
        read(&file, &[("PEM", pem.as_bytes())], Need::Everything)
    };
    let certificate = of("ssl.certificate.pem").expect("a configuration");
    assert_eq!(certificate.kafka.properties[0].1.expose_secret(), pem.trim_end());
    assert!(of("sasl.password").err().expect("a mistake").lines[0].contains("has a control character in it"));
}

#[test]
fn secret_keys_that_are_short_are_warned_of() {
    let warnings = |bytes: usize| load(&with_key(&format!("value = \"{}\"", "x".repeat(bytes))), &[]);
    assert!(warnings(7).is_err());
    for short in [8, 15] {
        let expected = "apps[0].secret_keys[0]: has fewer than 16 bytes; a longer key is harder to guess";
        assert_eq!(warnings(short).expect("a configuration").warnings, [expected]);
    }
    assert_eq!(warnings(16).expect("a configuration").warnings, Vec::<String>::new());
}

#[test]
fn a_token_of_the_admin_listener_fits_into_a_header_and_has_a_length() {
    let with = |token: &str| with_app(&format!("[admin]\ntoken = {{ value = \"{token}\" }}"));
    for wrong in ["short-7", "two words long", "fünf und zwanzig", &"x".repeat(1025)] {
        let lines = refused(&with(wrong), &[]).without_places();
        assert!(lines.len() == 1 && lines[0].starts_with("admin.token: must be 8 to 1024 of"), "{lines:?}");
    }
    for (bytes, warnings) in [(8, 1), (15, 1), (16, 0), (1024, 0)] {
        let config = load(&with(&"x".repeat(bytes)), &[]).expect("a configuration");
        assert_eq!(config.warnings.len(), warnings, "{:?}", config.warnings);
        assert!(config.admin_token.is_some_and(|token| token.equals(&"x".repeat(bytes))));
    }
    assert!(load(&with_app(""), &[]).expect("a configuration").admin_token.is_none());
}

/// An app whose keys stand in `directory`, with more keys of the table where wanted.
fn with_directory(directory: &Path, more: &str) -> String {
    format!("[[apps]]\nname = \"a\"\nsecret_keys = {{ directory = {directory:?}{more} }}\n")
}

fn key_names(config: &Config) -> Vec<&str> {
    config.policy.apps["a"].keyring.keys().map(Key::name).collect()
}

#[test]
fn a_directory_has_a_key_a_file_and_what_else_is_in_it_is_left_out_and_remarked() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
    let load = |more: &str| load(&with_directory(directory.path(), more), &[]);
    assert!(load("").err().expect("a mistake")[0].starts_with("apps[0].secret_keys.directory: has no keys"));
    // As Kubernetes mounts a secret.
    std::fs::create_dir(directory.path().join("..2026_11")).expect("a directory");
    std::os::unix::fs::symlink("..2026_11", directory.path().join("..data")).expect("a link");
    write("..2026_11/2026-10", "the key of october\n");
    std::os::unix::fs::symlink("..data/2026-10", directory.path().join("2026-10")).expect("a link");
    write("2026-11", "the key of november");
    std::fs::create_dir(directory.path().join("old")).expect("a directory");
    for left_out in [".hidden", "2026-11~", "2026-11.swp"] {
        write(left_out, "no key");
    }
    let config = load("").expect("a configuration");
    assert_eq!(key_names(&config), ["2026-10", "2026-11"]);
    assert!(accepts(&config, "the key of october") && accepts(&config, "the key of november"));
    assert!(!accepts(&config, "no key"));
    let expected = "apps[0].secret_keys.directory: these are not read as keys: ..2026_11, ..data, .hidden, 2026-11.swp, 2026-11~, old";
    assert_eq!((config.ignored, config.warnings), (vec![expected.to_owned()], vec![]));

    for (name, text, expected) in [
        ("empty", "\n", "apps[0].secret_keys.directory: empty is empty"),
        ("short", "1234567", "apps[0].secret_keys.directory: short has fewer than 8 bytes"),
        ("twin", "the key of november", "apps[0].secret_keys.directory: twin is the same key as 2026-11"),
        ("lines", "the key\nof november", "apps[0].secret_keys.directory: lines has a control character"),
        (&"n".repeat(65), "a key with a long name", "apps[0].secret_keys.directory: a file's name must be"),
    ] {
        write(name, text);
        let found = load("").err().expect("a mistake");
        assert!(found.len() == 1 && found[0].starts_with(expected), "{name}: {found:?}");
        std::fs::remove_file(directory.path().join(name)).expect("removed");
    }
    std::os::unix::fs::symlink("nowhere", directory.path().join("broken")).expect("a link");
    assert!(load("").err().expect("a mistake")[0].contains("directory: broken: the file cannot be read: No such file"));
    std::fs::remove_file(directory.path().join("broken")).expect("removed");
    std::os::unix::fs::symlink("/dev/zero", directory.path().join("device")).expect("a link");
    assert!(load("").err().expect("a mistake")[0].contains("directory: device is no file"));
    std::fs::remove_file(directory.path().join("device")).expect("removed");
    assert!(load(", value = \"x\"").err().expect("a mistake")[0].contains("unknown key `apps[0].secret_keys.value`"));
}

#[test]
fn a_directory_of_keys_has_its_limits_and_may_be_late() {
    let directory = tempfile::tempdir().expect("a directory");
    let load = || load(&with_directory(directory.path(), ""), &[]);
    for n in 0..64 {
        std::fs::write(directory.path().join(n.to_string()), format!("the key number {n}")).expect("written");
    }
    assert_eq!(load().map(|config| key_names(&config).len()), Ok(64));
    std::fs::write(directory.path().join("more"), "one key more than there may be").expect("written");
    assert_eq!(load().err().expect("a mistake"), ["apps[0].secret_keys.directory: has more than 64 files"]);
    let listed = |n: usize| {
        let keys: String = (0..n).map(|n| format!("{{ name = \"{n}\", value = \"the key number {n}\" }},")).collect();
        self::load(&format!("[[apps]]\nname = \"a\"\nsecret_keys = [{keys}]"), &[]).is_ok()
    };
    assert!(listed(64) && !listed(65));

    let empty = tempfile::tempdir().expect("a directory");
    assert!(refused(&with_directory(empty.path(), ""), &[]).may_pass, "its volume may not be mounted yet");
    let missing = refused(&with_directory(Path::new("/no/such/directory"), ""), &[]);
    assert!(missing.may_pass && missing.lines[0].contains("directory: the directory cannot be read: No such"));
    let file = refused(&with_directory(Path::new("/dev/null"), ""), &[]);
    assert!(file.lines[0].contains("the directory cannot be read: Not a directory"), "{file}");
    let unread = read(&with_directory(Path::new("/no/such/directory"), ""), &[], Need::Kafka);
    assert!(unread.is_ok(), "a command that needs no keys reads none");
}

#[test]
fn keys_have_dates_in_their_table_or_beside_their_directory() {
    let validity = |config: &Config| -> Vec<_> {
        let text = |date: Option<jiff::Timestamp>| date.map_or("-".to_owned(), |date| date.to_string());
        let keys = config.policy.apps["a"].keyring.keys().map(Key::validity);
        keys.map(|dates| format!("{} {}", text(dates.not_before), text(dates.not_after))).collect()
    };
    let in_table = |dates: &str| load(&with_key(&format!("value = \"0123456789abcdef\"{dates}")), &[]);
    let both = ", not_before = 2026-11-01T00:00:00+01:00, not_after = \"2026-12-31T00:00:00Z\"";
    assert_eq!(validity(&in_table(both).expect("a configuration")), ["2026-10-31T23:00:00Z 2026-12-31T00:00:00Z"]);
    for (wrong, expected) in [
        ("not_after = 2026-12-31", "apps[0].secret_keys[0].not_after: must be a date with a time and its offset"),
        ("not_after = 2026-12-31T00:00:00", "apps[0].secret_keys[0].not_after: must be a date with a time"),
        ("not_before = 5", "apps[0].secret_keys[0].not_before: must be a date with a time"),
        ("not_befor = 5", "unknown key `apps[0].secret_keys[0].not_befor`; did you mean"),
        (
            "not_before = 2026-12-31T00:00:00Z, not_after = 2026-12-31T00:00:00Z",
            "apps[0].secret_keys[0].not_after: is not later than not_before",
        ),
    ] {
        let found = in_table(&format!(", {wrong}")).err().expect("a mistake");
        assert!(found.len() == 1 && found[0].starts_with(expected), "{wrong}: {found:?}");
    }

    let directory = tempfile::tempdir().expect("a directory");
    for name in ["2026-11", "2026.12"] {
        std::fs::write(directory.path().join(name), format!("the key of {name}")).expect("written");
    }
    let beside = |dates: &str| load(&with_directory(directory.path(), &format!(", {dates}")), &[]);
    let config = beside(
        "not_after = { \"2026-11\" = 2026-12-31T00:00:00Z }, not_before = { \"2026.12\" = 2026-12-01T00:00:00Z }",
    );
    assert_eq!(validity(&config.expect("a configuration")), ["- 2026-12-31T00:00:00Z", "2026-12-01T00:00:00Z -"]);
    // A key that was removed leaves its date behind.
    let left = beside("not_after = { \"2026-10\" = 2026-12-31T00:00:00Z }").expect("a configuration");
    let expected = "apps[0].secret_keys.not_after.2026-10: the directory has no such key; did you mean \"2026-11\"?";
    assert_eq!(left.warnings, [expected]);
    let both = "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"0123456789abcdef\" }]";
    let mixed = [("APPS__0__SECRET_KEYS__DIRECTORY", directory.path().to_str().expect("text"))];
    assert!(load(both, &mixed).err().expect("a mistake")[0].contains("has keys and a directory; keep one"));
}

#[test]
fn what_the_dates_bring_is_noticed() {
    let now: jiff::Timestamp = "2026-12-01T00:00:00Z".parse().expect("a time");
    let notices = |keys: &[&str]| {
        let keys: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(n, dates)| format!("{{ name = \"k{n}\", value = \"the key number {n}\"{dates} }}"))
            .collect();
        let file = format!("[[apps]]\nname = \"a\"\nsecret_keys = [{}]\n", keys.join(", "));
        let notices = load(&file, &[]).expect("a configuration").policy.notices(now);
        notices
            .into_iter()
            .map(|notice| format!("{} {}", if notice.is_failure { "FAIL" } else { "warn" }, notice.text))
            .collect::<Vec<_>>()
    };
    let after = |date: &str| format!(", not_after = {date}");
    let (ended, soon, late) =
        (after("2026-11-30T00:00:00Z"), after("2026-12-14T00:00:00Z"), after("2026-12-15T00:00:01Z"));
    assert_eq!(notices(&[&late]), [""; 0]);
    assert_eq!(
        notices(&[&ended, ""]),
        ["warn app a: the secret key k0 has expired on 2026-11-30T00:00:00Z; remove it"]
    );
    let expires = "warn app a: the secret key k0 expires on 2026-12-14T00:00:00Z; replace the registrations at LiveChat that have it";
    assert_eq!(notices(&[&soon, &late]), [expires]);
    let gap = "FAIL app a: no secret key will be valid on 2026-12-14T00:00:00Z; add one before";
    assert_eq!(notices(&[&soon]), [expires, gap]);
    assert!(
        notices(&[&ended])[1]
            .starts_with("FAIL app a: no secret key is valid now, so all its webhooks are answered 401")
    );
    assert_eq!(notices(&[", not_before = 2026-12-02T00:00:00Z"]).len(), 1);
}

#[test]
fn a_rule_says_which_events_and_what_becomes_of_them() {
    let file = r#"
        [[rules]]
        name = "the bot that floods"
        app = "default"
        action = ["incoming_event", "app.payment_collected"]
        do = "sample"
        rate = 100
        by = "event"
        until = 2026-12-01T00:00:00Z
        [[rules]]
        name = "quarantine"
        organization = "o-1"
        do = "topic"
        topic = "quarantine"
        [[rules]]
        name = "poison"
        chat = "PJ0MRSHTDG"
        do = "dead-letter"
    "#;
    let config = load(&format!("{file}{APP}"), &[]).expect("a configuration");
    let rules: Vec<_> = config.policy.rules.iter().map(|rule| format!("{}: {rule}", rule.name)).collect();
    let expected = [
        "the bot that floods: events of app default and action app.payment_collected, incoming_event are kept one in 100 until 2026-12-01T00:00:00Z",
        "quarantine: events of organization o-1 go to the topic quarantine",
        "poison: events of chat PJ0MRSHTDG go to the dead letters",
    ];
    assert_eq!(rules, expected);
    assert!(config.policy.topics().iter().any(|topic| &**topic == "quarantine"), "it is created as the routes' are");
    let ended = config.policy.notices("2026-12-01T00:00:00Z".parse().expect("a time"));
    assert!(
        ended.len() == 1 && ended[0].text.starts_with("rule the bot that floods: it has ended, and can be removed")
    );
    assert_eq!(config.policy.notices("2026-11-30T00:00:00Z".parse().expect("a time")), []);
}

#[test]
fn what_is_wrong_with_a_rule_is_said_with_its_key() {
    let with = |rule: &str| mistakes(&format!("[[rules]]\nname = \"r\"\n{rule}"));
    for (rule, expected) in [
        ("do = \"drop\"", "rules[0]: needs one of app, action, organization and chat"),
        ("chat = \"C\"", "rules[0].do: is missing: one of \"drop\", \"topic\", \"dead-letter\", \"sample\""),
        ("chat = \"C\"\ndo = \"dorp\"", "rules[0].do: must be one of"),
        ("chat = []\ndo = \"drop\"", "rules[0].chat: must be a text in quotes, or several in an array"),
        ("chat = [\"C\", \"\"]\ndo = \"drop\"", "rules[0].chat: must be a text"),
        ("chat = 5\ndo = \"drop\"", "rules[0].chat: must be a text"),
        ("app = \"defualt\"\ndo = \"drop\"", "rules[0].app: there is no app of such a name; did you mean \"default\"?"),
        (
            "action = \"incoming_evnt\"\ndo = \"drop\"",
            "rules[0].action: is no action of LiveChat; `unlisted` stands for those that the relay does not know; did you mean \"incoming_event\"?",
        ),
        (
            "action = \"thread_closed\"\ndo = \"drop\"",
            "rules[0].action: is no action of LiveChat; `unlisted` stands for those that the relay does not know; did you mean \"chat_deactivated\"?",
        ),
        ("chat = \"C\"\ndo = \"topic\"", "rules[0].topic: is no name for a topic"),
        ("chat = \"C\"\ndo = \"topic\"\ntopic = \"a b\"", "rules[0].topic: has characters that Kafka does not take"),
        (
            "chat = \"C\"\ndo = \"topic\"\ntopic = \"livechat_incoming_event\"",
            "topics: livechat.incoming_event and livechat_incoming_event collide",
        ),
        ("chat = \"C\"\ndo = \"drop\"\ntopic = \"a\"", "rules[0].topic: is for rules with do = \"topic\" only"),
        ("chat = \"C\"\ndo = \"drop\"\nrate = 5", "rules[0].rate: is for rules with do = \"sample\" only"),
        ("chat = \"C\"\ndo = \"sample\"", "rules[0].rate: is needed"),
        (
            "chat = \"C\"\ndo = \"sample\"\nrate = 5\nby = \"agent\"",
            "rules[0].by: must be one of \"chat\", \"event\", not \"agent\"",
        ),
        ("chat = \"C\"\ndo = \"drop\"\nuntil = \"soon\"", "rules[0].until: must be a date with a time and its offset"),
        ("chat = \"C\"\ndo = \"drop\"\nuntl = 5", "unknown key `rules[0].untl`; did you mean `rules[0].until`?"),
        (
            "chat = \"C\"\ndo = \"drop\"\n[[rules]]\nname = \"r\"\nchat = \"D\"\ndo = \"drop\"",
            "rules[1].name: is the name of a rule before it",
        ),
    ] {
        let found = with(rule);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{rule}: {found:#?}");
    }
}

#[test]
fn rules_have_their_limits() {
    let rules = |n: usize| -> String {
        (0..n).map(|n| format!("[[rules]]\nname = \"{n}\"\nchat = \"C\"\ndo = \"drop\"\n")).collect()
    };
    assert_eq!(mistakes(&rules(100)), [""; 0]);
    assert_eq!(mistakes(&rules(101)), ["rules: has more than 100 rules"]);
    let one = |name: usize, values: usize, rate: u64| {
        let (name, chats) = ("n".repeat(name), (0..values).map(|n| format!("\"C{n}\",")).collect::<String>());
        mistakes(&format!("[[rules]]\nname = \"{name}\"\nchat = [{chats}]\ndo = \"sample\"\nrate = {rate}"))
    };
    for (right, wrong) in [
        (one(64, 1, 2), one(65, 1, 2)),
        (one(1, 1, 2), one(0, 1, 2)),
        (one(1, 1000, 2), one(1, 1001, 2)),
        (one(1, 1, 2), one(1, 1, 1)),
        (one(1, 1, 1_000_000), one(1, 1, 1_000_001)),
    ] {
        assert_eq!((right, wrong.len()), (vec![], 1), "{wrong:?}");
    }
}

/// Stands where a secret might stand by mistake.
const CANARY: &str = "CANARY7canary";

/// A value of each kind, and the places where a secret may stand.
fn canaries() -> [String; 7] {
    [
        format!("\"{CANARY}\""),
        format!("[\"{CANARY}\"]"),
        format!("{{ x = \"{CANARY}\" }}"),
        format!("{{ file = \"{CANARY}\" }}"),
        format!("{{ env = \"{CANARY}\" }}"),
        format!("{{ file = \"{CANARY}\", value = \"{CANARY}\" }}"),
        format!("{{ value = [\"{CANARY}\"] }}"),
    ]
}

/// Fails where a mistake has the canary in it; whether there was a mistake.
fn is_refused_without_the_canary(file: &str, env: &[(&str, &[u8])]) -> bool {
    let Err(mistakes) = read(file, env, Need::Everything) else { return false };
    assert!(!mistakes.to_string().contains(CANARY), "{file}\n{mistakes}");
    true
}

#[test]
fn no_mistake_has_a_value_in_it_that_may_be_a_secret() {
    let mut keys = Vec::new();
    for (section, table) in DEFAULTS.parse::<toml::Table>().expect("TOML") {
        let names = table.as_table().expect("a section").keys();
        keys.extend(names.map(|name| format!("{section}.{name}")));
        keys.push(section);
    }
    keys.extend(
        ["spool.directory", "topics.key_secret", "app_webhooks.token", "admin.token", "servr.listen"]
            .map(str::to_owned),
    );
    for key in &keys {
        let variable = format!("LIVECHAT_RELAY__{}", key.to_uppercase().replace('.', "__"));
        for canary in canaries() {
            is_refused_without_the_canary(&format!("{key} = {canary}\n{APP}"), &[]);
            is_refused_without_the_canary(APP, &[(&variable, canary.as_bytes())]);
        }
        let twice: [(&str, &[u8]); 2] = [(&variable, CANARY.as_bytes()), (&variable.to_lowercase(), CANARY.as_bytes())];
        is_refused_without_the_canary(APP, &twice);
        assert!(
            is_refused_without_the_canary(APP, &[(&variable, &[CANARY.as_bytes(), b"\xff"].concat())]),
            "{variable}"
        );
    }
    assert!(keys.len() > 60, "{keys:?}");
}

#[test]
fn no_mistake_has_the_value_of_a_property_in_it() {
    for name in [
        "acks",
        "bootstrap.servers",
        "client.rack",
        "compression.codec",
        "debug",
        "error_cb",
        "sasl.jaas.config",
        "sasl.mechanism",
        "sasl.password",
        "sasl.pasword",
        "security.protocol",
        "socket.keepalive.enable",
        "socket.timeout.ms",
        "ssl.ca.location",
        "ssl.cipher.suites",
        "ssl.keystore.location",
        "ssl.truststore.location",
        "topic.blacklist",
    ] {
        for canary in canaries() {
            is_refused_without_the_canary(&with_app(&format!("[kafka.properties]\n\"{name}\" = {canary}")), &[]);
            is_refused_without_the_canary(&with_app(&format!("[kafka.properties]\n{name} = {canary}")), &[]);
        }
        for value in
            [CANARY.to_owned(), format!("all,{CANARY}"), format!("^({CANARY}"), format!("{CANARY} not supported")]
        {
            let file = with_app(&format!("[kafka.properties]\n\"{name}\" = {{ env = \"PW\" }}"));
            is_refused_without_the_canary(&file, &[("PW", value.as_bytes())]);
        }
    }
    assert!(is_refused_without_the_canary(
        &with_app(&format!("[kafka.properties]\n\"sasl.pasword\" = \"{CANARY}\"")),
        &[]
    ));
}

#[test]
fn no_mistake_has_the_value_of_an_app_in_it() {
    for canary in canaries() {
        let wrong = [
            format!("apps = {canary}"),
            format!("[[apps]]\nname = {canary}"),
            format!("[[apps]]\nsecret_key = {canary}"),
            format!("[[apps]]\nsecret_keys = {canary}"),
            format!("[[apps]]\nname = \"a\"\nsecret_keys = {{ directory = {canary} }}"),
            format!("[[apps]]\nname = \"a\"\nsecret_keys = {{ directory = \"/no\", not_after = {canary} }}"),
            with_key(&format!("value = \"hunter2hunter2hunter2\", not_after = {canary}")),
            format!("[[apps]]\nsecret_keys = [{canary}, {canary}]"),
            format!("[[apps]]\nname = \"a\"\nsecret_keys = [{{ name = {canary} }}, {{ name = {canary} }}]"),
            format!("[[apps]]\nname = \"a b\"\ntopic_prefix = {canary}\napi_version = {canary}"),
            with_key(&format!("valu = {canary}")),
            with_app(&format!("rules = {canary}")),
            with_app(&format!(
                "[[rules]]\nname = \"r\"\napp = {canary}\naction = {canary}\ndo = {canary}\nrate = {canary}\nuntil = {canary}"
            )),
            with_key(&format!("value = [{canary}]")),
            with_key(&format!("file = {canary}, env = {canary}")),
            format!("[[apps]]\nname = \"{CANARY}\"\n[[apps]]\nname = \"{CANARY}\"\n"),
        ];
        for file in wrong {
            assert!(is_refused_without_the_canary(&file, &[]), "{file}");
        }
    }
}

#[test]
fn no_syntax_error_has_a_value_in_it() {
    let whole = format!("[a]\n\"b\" = \"{CANARY}\"\nc = '''{CANARY}'''\nd = {CANARY}\n");
    let mut wrong = 0;
    for end in 0..whole.len() {
        let (before, after) = whole.split_at(end);
        for more in ["", "\"", "\n", "\0", "]", "\\x", " = ", "\u{7f}"] {
            for file in [format!("{before}{more}"), format!("{before}{more}{after}")] {
                wrong += usize::from(is_refused_without_the_canary(&file, &[]));
            }
        }
    }
    assert!(wrong > 1000, "{wrong} mistakes");
}

#[test]
fn a_variable_that_is_no_text_is_a_mistake_only_where_it_is_ours() {
    let config = read(APP, &[("OF_OTHERS", b"\xff"), ("LANG", b"C")], Need::Everything).expect("a configuration");
    assert_eq!(config.warnings, Vec::<String>::new());
    let ours = refused(APP, &[("LIVECHAT_RELAY__KAFKA__BROKERS", b"hunter2\xff")]);
    assert_eq!(ours.without_places(), ["LIVECHAT_RELAY__KAFKA__BROKERS: is not UTF-8"]);
    let named = refused(&with_key("env = \"KEY\""), &[("KEY", b"hunter2\xff")]);
    assert_eq!(named.without_places(), ["apps[0].secret_keys[0].env: the variable is not UTF-8"]);
}

#[test]
fn what_cannot_be_read_may_pass_and_what_is_wrong_does_not() {
    let (key, password) = (with_key("file = \"/no/such/file\""), "\"sasl.password\" = { file = \"/no/such/file\" }");
    let properties = |line: &str| with_app(&format!("[kafka.properties]\n{line}"));
    let hashed = with_app("[topics]\nkey = \"hashed\"\nkey_secret = { file = \"/no/such/file\" }");
    for file in [&key, &properties(password), &properties("\"ssl.ca.location\" = \"/no/such/file\""), &hashed] {
        let found = refused(file, &[]);
        assert!(found.may_pass && found.lines.len() == 1, "{file}\n{found}");
        let with_another = refused(&format!("log.format = \"yaml\"\n{file}"), &[]);
        assert!(!with_another.may_pass && with_another.lines.len() == 2, "{file}\n{with_another}");
    }
    assert!(!refused(&with_key("file = \"/\""), &[]).may_pass, "a directory");
    for right in ["probe", "/"] {
        assert!(load(&properties(&format!("\"ssl.ca.location\" = \"{right}\"")), &[]).is_ok(), "{right}");
    }
}

#[test]
fn a_command_reports_every_wrong_key_and_no_secret_that_it_does_not_need() {
    let topics =
        "[topics]\nkey = \"hashed\"\nkey_secret = { env = \"NO\" }\n[app_webhooks]\ntoken = { file = \"/no\" }\n";
    let secrets = topics.to_owned() + &with_key("file = \"/no\"");
    let kafka = "[kafka.properties]\n\"sasl.password\" = { file = \"/no\" }\n\"ssl.ca.location\" = \"/no\"\n";
    let lines = |file: &str, need| read(file, &[], need).err().map_or(0, |mistakes| mistakes.lines.len());
    assert_eq!([lines("", Need::Settings), lines("", Need::Kafka), lines("", Need::Everything)], [0, 0, 1]);
    let all = format!("{kafka}{secrets}");
    assert_eq!([lines(&all, Need::Settings), lines(&all, Need::Kafka), lines(&all, Need::Everything)], [0, 2, 5]);
    let wrong = "[server]\nlisen = 1\nlisten = 1\n".to_owned() + &with_key("valu = \"x\", value = \"hunter2hunter2\"");
    assert_eq!([Need::Settings, Need::Kafka, Need::Everything].map(|need| lines(&wrong, need)), [3, 3, 3]);
}

#[test]
fn variables_that_set_nothing_are_warned_of_with_what_was_meant() {
    let of = |name: &str| read(APP, &[(name, b"x")], Need::Everything).expect("a configuration").warnings.join("\n");
    for (name, meant) in [
        ("LIVECHAT_RELAY_KAFKA_BROKERS", "did you mean LIVECHAT_RELAY__KAFKA__BROKERS?"),
        ("LIVECHAT_RELAY_SPOOL__DIRECTORY", "did you mean LIVECHAT_RELAY__SPOOL__DIRECTORY?"),
        ("LIVECHAT_RELAY_CONFG", "did you mean LIVECHAT_RELAY_CONFIG?"),
        ("LIVECHAT_RELAY_NOTHING_OF_OURS", "the relay reads no such variable"),
        ("RUST_LOG", "set log.filter"),
    ] {
        assert!(of(name).contains(name) && of(name).contains(meant), "{name}: {}", of(name));
    }
    for name in [
        "LIVECHAT_RELAY_CONFIG",
        "LIVECHAT_RELAY_SERVICE_HOST",
        "LIVECHAT_RELAY_PORT_8080_TCP_ADDR",
        "LIVECHAT_RELAY_ADMIN_PORT",
        "LIVECHAT_SECRET_KEY",
    ] {
        assert_eq!(of(name), "", "{name}");
    }
    let unknown = load(APP, &[("KAFKA__BROKER", "a:1")]).err().expect("a mistake");
    assert_eq!(unknown, ["LIVECHAT_RELAY__KAFKA__BROKER: unknown key `kafka.broker`; did you mean `kafka.brokers`?"]);
}

#[test]
fn types_are_strict_and_a_mistake_says_what_to_write() {
    for (file, why) in [
        (
            "server.connections_max = true",
            "server.connections_max: must be a whole number from 1 to 1000000, such as 4096, not true",
        ),
        ("server.connections_max = 1.5", "such as 4096, not 1.5"),
        ("server.connections_max = \"5\"", "such as 4096, not \"5\""),
        ("server.body_bytes_max = 1000", "such as \"2MiB\", not 1000"),
        ("server.body_timeout = 3", "such as \"3s\", not 3"),
        ("server.listen = \":8080\"", "server.listen: must be an IP address and a port, such as \"0.0.0.0:8080\""),
        ("server.listen = \"localhost:8080\"", "must be an IP address and a port"),
        ("server.listen = 8080", "an IP address and a port, such as \"0.0.0.0:8080\", not 8080"),
        ("topics.create = \"yes\"", "topics.create: must be true or false, such as true, not \"yes\""),
        ("kafka.brokers = [\"a\", \"b\"]", "kafka.brokers: must be a text of host:port, several separated by commas"),
        ("kafka.brokers = \"kafka://a:9092\"", "without kafka:// before them"),
        ("kafka.brokers = \"a:9092,,b\"", "kafka.brokers: "),
        ("kafka.brokers = \"a:90920\"", "kafka.brokers: "),
        ("kafka.brokers = \"\"", "kafka.brokers: "),
        ("log.format = \"yaml\"", "log.format: must be one of \"text\", \"json\""),
        ("log.filter = \"verbose\"", "log.filter: must be error, warn, info, debug or trace"),
        ("log.filter = \"h2=debug\"", "log.filter: "),
        ("log.filter = \"off\"", "log.filter: "),
        ("log.filter = \"info, h2\"", "log.filter: "),
        ("log.filter = \"info,h2=loud\"", "log.filter: "),
        (
            "spool.directory = 5",
            "spool.directory: must be a text in quotes, such as \"/var/lib/livechat-relay/spool\", not 5",
        ),
        ("spool.directory = \"\"", "spool.directory: is empty"),
        ("kafak.brokers = \"a:1\"", "unknown key `kafak`; did you mean `kafka`?"),
        ("[[app]]\nname = \"x\"", "unknown key `app[0]`; did you mean `apps[0]`?"),
        ("[spol]", "unknown key `spol`; did you mean `spool`?"),
        ("spool = 5", "spool: must be a table: [spool]"),
        ("[kafka.properties]\nsecurity.protocol = \"plaintext\"", "names with dots need quotes: \"security.protocol\""),
        (
            "[kafka.properties]\nsasl.password = { env = \"X\" }\nsasl.username = \"x\"",
            "names with dots need quotes: \"s",
        ),
        (
            "[kafka.properties]\n\"sasl.password\" = { value = \"x\", fil = \"x\" }",
            "unknown key `kafka.properties.\"sasl.password\".fil`; did you mean `kafka.properties.\"sasl.password\".file`?",
        ),
        ("[topics.settings]\nretention.ms = 5", "topics.settings: names with dots need quotes: \"retention.ms\" = …"),
    ] {
        let found = mistakes(file);
        assert!(found.len() == 1 && found[0].contains(why), "{file}: {found:#?}");
    }
    for right in [
        "kafka.brokers = \"a\"",
        "kafka.brokers = \"a:1, b:2\"",
        "kafka.brokers = \"10.0.0.1:9092,[::1]:9092\"",
        "kafka.brokers = \"[::1]\"",
        "log.filter = \"INFO\"",
        "log.filter = \"trace,h2=trace\"",
        "log.filter = \"livechat_relay::publish=debug,error\"",
    ] {
        assert_eq!(mistakes(right), Vec::<String>::new(), "{right}");
    }
}

#[test]
fn text_from_the_environment_is_read_as_the_keys_type() {
    let config = load(APP, &[("SERVER__CONNECTIONS_MAX", "5"), ("TOPICS__CREATE", "false")]).expect("a configuration");
    assert_eq!((config.server.listener.limits.connections_max, config.topics.create), (5, false));
    let livechat = [
        ("APPS__0__LIVECHAT__CLIENT_ID", "c"),
        ("APPS__0__LIVECHAT__PUBLIC_URL", "https://hooks.example.com"),
        ("APPS__0__LIVECHAT__WEBHOOKS__0__ACTIONS", "bots,incoming_chat"),
        ("APPS__0__LIVECHAT__PAGE", "true"),
        ("APPS__0__LIVECHAT__ORGANIZATIONS", "o, p"),
    ];
    let app = load(APP, &livechat).expect("a configuration").livechat.apps.remove(0);
    assert_eq!((app.wanted().len(), app.page, app.organizations.len()), (4, true, 2));
    let wrong = [("APPS__0__LIVECHAT__PAGE", "yes"), ("APPS__0__LIVECHAT__ORGANIZATIONS", "")];
    for (name, text) in wrong {
        let set: Vec<_> = livechat.iter().filter(|(other, _)| *other != name).copied().chain([(name, text)]).collect();
        assert_eq!(load(APP, &set).err().map(|found| found.len()), Some(1), "{name}={text}");
    }
    let wrong = [("SERVER__CONNECTIONS_MAX", "true"), ("SERVER__CONNECTIONS_MAX", "1.5"), ("TOPICS__CREATE", "yes")];
    for (name, text) in wrong {
        assert_eq!(load(APP, &[(name, text)]).err().map(|found| found.len()), Some(1), "{name}={text}");
    }
}

#[test]
fn every_wrong_property_is_reported_at_once() {
    let found = mistakes(
        r#"
[kafka.properties]
"sasl.pasword" = "x"
"sasl.jaas.config" = "x"
"socket.timeout.ms" = "soon"
"sasl.mechanism" = "GSSAPI"
"#,
    );
    let expected = [
        "kafka.properties.\"sasl.pasword\": No such configuration property",
        "kafka.properties.\"sasl.jaas.config\": Java JAAS configuration is not supported",
        "kafka.properties.\"socket.timeout.ms\": its value is not valid",
        "kafka.properties.\"sasl.mechanism\": must be one of PLAIN, ",
    ];
    assert!(found.len() == 4 && found.iter().zip(expected).all(|(line, start)| line.starts_with(start)), "{found:#?}");
}

#[test]
fn without_a_file_and_without_apps_a_command_says_that_there_is_no_file() {
    let none = Config::load(None, [], Need::Everything).err().expect("a mistake").lines;
    assert!(none.len() == 1 && none[0].contains("no configuration file is given: add -c FILE, or"), "{none:?}");
    assert!(!load("", &[]).err().expect("a mistake")[0].contains("no configuration file"));
}
