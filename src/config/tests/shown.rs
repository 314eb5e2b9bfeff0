//! What is said of a configuration: where a mistake stands, and the configuration in force.

use super::*;
use crate::config::show::{Setting, Shown, Source};

/// A file `relay.toml` in the directory, whose path the mistakes have.
fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("relay.toml");
    std::fs::write(&path, text).expect("written");
    (directory, path)
}

fn lines(text: &str, env: &[(&str, &str)]) -> Vec<String> {
    let (_directory, path) = written(text);
    let env = env.iter().map(|(name, value)| (name.into(), value.into()));
    let found = Config::load(Some(&path), env, Need::Settings).err().expect("mistakes").lines;
    found.into_iter().map(|line| line.replace(path.to_str().expect("text"), "relay.toml")).collect()
}

#[test]
fn a_mistake_names_file_and_line_in_the_order_of_the_file() {
    let text = r#"
[server]
body_timeout = "soon"
lisen = "x"

[[apps]]
name = "a b"
secret_keys = [
  { name = "k", value = "hunter2hunter2hunter2" },
  { name = "l", valu = "x" },
]
[apps.livechat]
page = "yes"
"#;
    let found = lines(text, &[("LIVECHAT_RELAY__LOG__FORMAT", "yaml"), ("LIVECHAT_RELAY__KAFKA__BROKER", "a:1")]);
    let expected = [
        "relay.toml:3: server.body_timeout: must be a duration from 10ms to 60s, such as \"3s\", not \"soon\"",
        "relay.toml:4: unknown key `server.lisen`; did you mean `server.listen`?",
        "relay.toml:7: apps[0].name: must be 1 to 64 characters of a-z",
        "relay.toml:10: apps[0].secret_keys[1]: needs one of file, env or value",
        "relay.toml:10: unknown key `apps[0].secret_keys[1].valu`",
        "relay.toml:12: apps[0].livechat.client_id: is missing",
        "relay.toml:12: apps[0].livechat.public_url: is missing",
        "relay.toml:13: apps[0].livechat.page: must be true or false, such as true, not \"yes\"",
        "LIVECHAT_RELAY__KAFKA__BROKER: unknown key `kafka.broker`; did you mean `kafka.brokers`?",
        "log.format (LIVECHAT_RELAY__LOG__FORMAT): must be one of \"text\", \"json\", such as \"text\", not \"yaml\"",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (line, start) in found.iter().zip(expected) {
        assert!(line.starts_with(start), "{line}\n{start}");
    }
}

#[test]
fn values_that_do_not_agree_are_shown() {
    let found = lines("server.response_deadline = \"4s\"\n", &[]);
    assert!(found.len() == 1 && found[0].ends_with("would come too late; it is \"4s\""), "{found:?}");
}

#[test]
fn a_syntax_error_names_the_key_and_a_number_that_is_too_large_is_not_shown() {
    for (text, expected) in [
        (
            "[server]\nlisten = 0.0.0.0:80\n",
            "relay.toml:2:13: invalid float, expected nothing: the value of `listen`; a text needs",
        ),
        ("hunter2hunter2 = hunter2\n", "relay.toml:1:"),
        ("[server]\nstreams_max = 1\nstreams_max = 2", "relay.toml:3:1: duplicate key `streams_max`: it is set above"),
        ("hunter2 = 1\nhunter2 = 2", "relay.toml:2:1: duplicate key"),
        (
            "[admin]\ntoken = 123456789012345678901\n",
            "relay.toml:2:9: is a number that is too large: the value of `token`",
        ),
    ] {
        let found = lines(text, &[]);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
        assert!(!found[0].contains("hunter2") && !found[0].contains("1234567890"), "{found:?}");
    }
}

#[test]
fn a_wrong_value_is_shown_only_where_it_can_be_no_secret() {
    for (key, value, is_shown) in [
        ("server.body_timeout", "\"soon\"", true),
        ("server.body_timeout", "\"3 fortnights\"", false),
        ("server.body_timeout", "\"61 minutes\"", true),
        ("server.body_bytes_max", "\"2 apples\"", true),
        ("server.listen", "\"localhost:8080\"", true),
        ("server.listen", "\"hunter2:hunter2\"", false),
        ("log.format", "\"hunter2\"", true),
        ("log.format", "\"hunter2hunter2\"", false),
        ("log.filter", "\"loud\"", false),
        ("admin.token", "12345678", false),
        ("topics.settings.\"retention.ms\"", "[12345678]", false),
        ("spool.directory", "5", true),
    ] {
        let found = lines(&format!("{key} = {value}\n"), &[]).join("\n");
        assert_eq!(found.contains(value), is_shown, "{key} = {value}: {found}");
    }
}

fn show(text: &str, env: &[(&str, &str)]) -> (Shown, PathBuf) {
    let (_directory, path) = written(text);
    let env = env.iter().map(|(name, value)| (name.into(), value.into()));
    let shown = Config::show(Some(&path), env);
    (shown.unwrap_or_else(|mistakes| panic!("{mistakes}")), path)
}

const COMPLETE: &str = r#"
[admin]
token = "hunter2hunter2"
[app_webhooks]
token = { value = "hunter2hunter2hunter2hunter2hunter2hunter2" }
[kafka.properties]
"security.protocol" = "ssl"
"sasl.password" = "hunter2hunter2"
"ssl.key.password" = { value = "hunter2hunter2" }
"ssl.keystore.password" = { file = "/run/secrets/store" }
[topics]
key = "hashed"
key_secret = "hunter2hunter2hunter2"
[topics.actions]
thread_tagged = "drop"
[[rules]]
name = "r"
chat = ["C", "D"]
do = "drop"
until = 2026-12-01T00:00:00Z
[[apps]]
name = "one"
secret_keys = [{ name = "k", value = "hunter2hunter2" }, { name = "l", env = "KEY" }]
[apps.livechat]
client_id = "c"
client_secret = "hunter2hunter2"
public_url = "https://hooks.example.com"
personal_access_token = "hunter2hunter2"
account_id = "a"
webhooks = [{ actions = "all" }, { actions = "incoming_event", filters = { author_type = "customer" } }]
[[apps]]
name = "two"
secret_keys = { directory = "/run/keys", not_after = { "2026-10" = 2026-12-31T00:00:00Z } }
"#;

#[test]
fn the_configuration_in_force_has_the_source_of_each_value_and_no_secret() {
    let env = [("LIVECHAT_RELAY__LOG__FORMAT", "json"), ("LIVECHAT_RELAY__TOPICS__SETTINGS__RETENTION_MS", "5")];
    let (shown, path) = show(COMPLETE, &env);
    let of = |key: &str| {
        let found = shown.settings.iter().find(|setting| setting.key == key);
        let Setting { value, source, .. } = found.unwrap_or_else(|| panic!("no {key}"));
        (value.to_string(), source)
    };
    let environment = |name: &str| Source::Environment { variable: format!("LIVECHAT_RELAY__{name}") };
    for (key, value, source) in [
        ("server.listen", "\"0.0.0.0:8080\"", Source::Default),
        ("admin.token", "\"***\"", Source::File { line: 3 }),
        ("app_webhooks.token.value", "\"***\"", Source::File { line: 5 }),
        ("kafka.properties.\"security.protocol\"", "\"ssl\"", Source::File { line: 7 }),
        ("kafka.properties.\"sasl.password\"", "\"***\"", Source::File { line: 8 }),
        ("kafka.properties.\"ssl.key.password\".value", "\"***\"", Source::File { line: 9 }),
        ("kafka.properties.\"ssl.keystore.password\".file", "\"/run/secrets/store\"", Source::File { line: 10 }),
        ("topics.key_secret", "\"***\"", Source::File { line: 13 }),
        ("apps[0].secret_keys[0].value", "\"***\"", Source::File { line: 23 }),
        ("apps[0].secret_keys[1].env", "\"KEY\"", Source::File { line: 23 }),
        ("apps[0].livechat.client_secret", "\"***\"", Source::File { line: 26 }),
        ("apps[0].livechat.personal_access_token", "\"***\"", Source::File { line: 28 }),
        ("log.format", "\"json\"", environment("LOG__FORMAT")),
        ("topics.settings.\"retention.ms\"", "\"5\"", environment("TOPICS__SETTINGS__RETENTION_MS")),
    ] {
        assert_eq!(of(key), (value.to_owned(), &source), "{key}");
    }
    let (toml, json) = (shown.toml(), serde_json::to_string(&shown).expect("JSON"));
    assert!(!toml.contains("hunter2") && !json.contains("hunter2"), "{toml}{json}");
    assert!(toml.contains(&format!("thread_tagged = \"drop\"  # {}:15\n", path.display())), "{toml}");
    assert!(toml.contains("format = \"json\"  # LIVECHAT_RELAY__LOG__FORMAT\n"), "{toml}");
    assert!(
        json.contains(r#"{"key":"rules[0].until","value":"2026-12-01T00:00:00Z","source":{"from":"file","line":20}}"#),
        "{json}"
    );
}

#[test]
fn the_printed_configuration_reads_back_as_the_same() {
    let values = |shown: &Shown| -> Vec<_> {
        shown.settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())).collect()
    };
    let (first, _) = show(
        COMPLETE,
        &[
            ("LIVECHAT_RELAY__APPS__1__LIVECHAT__PAGE", "true"),
            ("LIVECHAT_RELAY__APPS__1__LIVECHAT__CLIENT_ID", "d"),
            ("LIVECHAT_RELAY__APPS__1__LIVECHAT__PUBLIC_URL", "https://b.example"),
            ("LIVECHAT_RELAY__APPS__1__LIVECHAT__ORGANIZATIONS", "o,p"),
        ],
    );
    let (again, _) = show(&first.toml(), &[]);
    assert_eq!(values(&again), values(&first));
    assert!(again.settings.iter().all(|setting| matches!(setting.source, Source::File { .. })), "{}", again.toml());
}

/// The mask is no secret that a relay would start with.
#[test]
fn a_relay_does_not_start_with_a_printed_configuration_for_its_secrets() {
    let file = format!("admin.token = \"hunter2hunter2\"\n{APP}");
    let (shown, _) = show(&file, &[]);
    let found = load(&shown.toml(), &[]).err().expect("mistakes");
    assert!(found.len() == 2 && found.iter().any(|line| line.contains("has fewer than 8 bytes")), "{found:?}");
}

#[test]
fn lists_and_numbers_of_the_environment_keep_their_type_over_a_reload() {
    let (_directory, path) = written(&format!("kafka.brokers = \"a:1\"\n{APP}"));
    let env = [
        ("LIVECHAT_RELAY__RULES__0__NAME", "r"),
        ("LIVECHAT_RELAY__RULES__0__CHAT", "C, D"),
        ("LIVECHAT_RELAY__RULES__0__DO", "sample"),
        ("LIVECHAT_RELAY__RULES__0__RATE", "100"),
    ];
    let env = env.map(|(name, value)| (name.into(), value.into()));
    let running = Config::load(Some(&path), env, Need::Everything).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(running.policy.rules.iter().count(), 1);
    std::fs::write(&path, format!("kafka.brokers = \"b:1\"\nlog.filter = \"debug\"\n{APP}")).expect("written");
    let new = running.reload().unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!((new.changed, new.needs_restart), (vec!["log.filter".to_owned()], vec!["kafka.brokers".to_owned()]));
    assert_eq!(new.config.policy.rules.iter().count(), 1);
}
