//! Every setting, tried from both sides of what it may be: by the reader, and by the schema.

use toml::Value;

use super::*;
use crate::config::flat::{json_of, parse};

/// A key; what has to be set besides it, where keys must agree; values at its limits; and values past them, or of another type. A default
/// stands in `config/default.toml`.
type Row = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

#[rustfmt::skip]
const LIMITS: &[Row] = &[
    ("admin.connection_timeout", "", &["\"10ms\"", "\"1h\""], &["\"9ms\"", "\"3600001ms\"", "5"]),
    ("admin.connections_max", "", &["1", "10000"], &["0", "10001", "\"5\""]),
    ("admin.listen", "", &["\"127.0.0.1:0\"", "\"[::1]:65535\""], &["\"localhost:8081\"", "\":8081\"", "\"127.0.0.1:65536\"", "8081"]),
    ("admin.streams_max", "", &["1", "10000"], &["0", "10001", "\"5\""]),
    ("control.connections_max", "", &["1", "100"], &["0", "101", "\"5\""]),
    ("control.request_bytes_max", "", &["\"1024B\"", "\"16777216B\""], &["\"1023B\"", "\"16777217B\"", "5"]),
    ("control.request_timeout", "", &["\"100ms\"", "\"10m\""], &["\"99ms\"", "\"600001ms\"", "5"]),
    ("control.write_timeout", "", &["\"100ms\"", "\"24h\""], &["\"99ms\"", "\"86400001ms\"", "5"]),
    ("events.initial", "", &["true", "false"], &["\"yes\"", "1"]),
    ("events.mode", "", &["\"structured\"", "\"binary\""], &["\"other\"", "5"]),
    ("kafka.brokers", "", &["\"a\"", "\"a:1,[::1]:65535\""], &["\"\"", "\"a:65536\"", "\"kafka://a:9092\"", "[\"a:1\"]"]),
    ("kafka.client_id", "", &["\"x\""], &["5"]),
    ("kafka.compression", "", &["\"none\"", "\"gzip\"", "\"snappy\"", "\"lz4\"", "\"zstd\""], &["\"other\"", "5"]),
    ("kafka.linger", "", &["\"0s\"", "\"1s\""], &["\"-1ms\"", "\"1001ms\"", "5"]),
    ("kafka.probe_interval", "", &["\"100ms\"", "\"5m\""], &["\"99ms\"", "\"300001ms\"", "5"]),
    ("kafka.properties", "", &["{ \"security.protocol\" = \"ssl\" }"], &["5", "{ acks = \"1\" }", "{ \"no.such\" = \"x\" }"]),
    ("kafka.publish_deadline", "", &["\"100ms\"", "\"1m\""], &["\"99ms\"", "\"60001ms\"", "5"]),
    ("kafka.queue_bytes_max", "server.body_bytes_max = \"64KiB\"", &["\"1048576B\"", "\"2147483648B\""], &["\"1048575B\"", "\"2147483649B\"", "5"]),
    ("kafka.queue_records_max", "", &["1", "10000000"], &["0", "10000001", "\"5\""]),
    ("kafka.start_timeout", "", &["\"100ms\"", "\"5m\""], &["\"99ms\"", "\"300001ms\"", "5"]),
    ("livechat.accounts", "", &["\"https://a.example\"", "\"http://127.0.0.1:7414\""], &["\"http://a.example\"", "\"https://a.example/path\"", "5"]),
    ("livechat.api", "", &["\"https://a.example\"", "\"http://localhost:7414\""], &["\"http://a.example\"", "\"https://a.example/path\"", "5"]),
    ("livechat.attempts_max", "", &["1", "20"], &["0", "21", "\"5\""]),
    ("livechat.login_port", "", &["1", "65535"], &["0", "65536", "\"5\""]),
    ("livechat.login_timeout", "", &["\"10s\"", "\"1h\""], &["\"9999ms\"", "\"3600001ms\"", "5"]),
    ("livechat.propagation", "", &["\"2m\"", "\"10m\""], &["\"119999ms\"", "\"600001ms\"", "5"]),
    ("livechat.retry_max", "livechat.retry_min = \"10ms\"", &["\"10ms\"", "\"10m\""], &["\"9ms\"", "\"600001ms\"", "5"]),
    ("livechat.retry_min", "", &["\"10ms\"", "\"1m\""], &["\"9ms\"", "\"60001ms\"", "5"]),
    ("livechat.timeout", "", &["\"1s\"", "\"2m\""], &["\"999ms\"", "\"120001ms\"", "5"]),
    ("log.filter", "", &["\"error\"", "\"trace,h2=trace\""], &["\"loud\"", "\"h2=debug\"", "5"]),
    ("log.format", "", &["\"text\"", "\"json\""], &["\"other\"", "5"]),
    ("log.temporary_max", "", &["\"1s\"", "\"168h\""], &["\"999ms\"", "\"604800001ms\"", "5"]),
    ("reload.check_interval", "", &["\"0s\"", "\"1h\""], &["\"-1ms\"", "\"3600001ms\"", "5"]),
    ("reload.timeout", "", &["\"100ms\"", "\"20s\""], &["\"99ms\"", "\"20001ms\"", "5"]),
    ("retries.entries_max", "", &["0", "10000000"], &["-1", "10000001", "\"5\""]),
    ("retries.window", "", &["\"0s\"", "\"1h\""], &["\"-1ms\"", "\"3600001ms\"", "5"]),
    ("server.backlog", "", &["1", "1000000"], &["0", "1000001", "\"5\""]),
    ("server.body_bytes_max", "", &["\"1B\"", "\"67108864B\""], &["\"0B\"", "\"67108865B\"", "5"]),
    ("server.body_timeout", "", &["\"10ms\"", "\"1m\""], &["\"9ms\"", "\"60001ms\"", "5"]),
    ("server.bytes_in_flight_max", "server.body_bytes_max = \"1B\"", &["\"65536B\"", "\"4294967296B\""], &["\"65535B\"", "\"4294967297B\"", "5"]),
    ("server.client_address", "", &["\"peer\"", "\"proxy-protocol\"", "\"forwarded\"", "\"x-forwarded-for\""], &["\"other\"", "5"]),
    ("server.client_networks", "", &["[]", "[\"10.0.0.0/8\", \"::1\"]"], &["[\"10.0.0.0/33\"]", "[8]", "\"10.0.0.0/8\""]),
    ("server.connections_max", "", &["1", "1000000"], &["0", "1000001", "\"5\""]),
    ("server.drain_delay", "", &["\"0s\"", "\"5m\""], &["\"-1ms\"", "\"300001ms\"", "5"]),
    ("server.drain_timeout", "", &["\"0s\"", "\"5m\""], &["\"-1ms\"", "\"300001ms\"", "5"]),
    ("server.eviction_grace", "", &["\"1ms\"", "\"10s\""], &["\"0ms\"", "\"10001ms\"", "5"]),
    ("server.failed_verifications.burst", "", &["1", "60000"], &["0", "60001", "\"5\""]),
    ("server.failed_verifications.per_minute", "", &["1", "60000"], &["0", "60001", "\"5\""]),
    ("server.failed_verifications.sources_max", "", &["1", "10000000"], &["0", "10000001", "\"5\""]),
    ("server.header_bytes_max", "", &["\"8192B\"", "\"1048576B\""], &["\"8191B\"", "\"1048577B\"", "5"]),
    ("server.header_timeout", "", &["\"10ms\"", "\"1m\""], &["\"9ms\"", "\"60001ms\"", "5"]),
    ("server.keepalive_timeout", "", &["\"10ms\"", "\"1h\""], &["\"9ms\"", "\"3600001ms\"", "5"]),
    ("server.large_bytes_in_flight_max", "server.body_bytes_max = \"1B\"", &["\"65536B\"", "\"4294967296B\""], &["\"65535B\"", "\"4294967297B\"", "5"]),
    ("server.linger_timeout", "", &["\"1ms\"", "\"1m\""], &["\"0ms\"", "\"60001ms\"", "5"]),
    ("server.listen", "", &["\"127.0.0.1:0\"", "\"[::1]:65535\""], &["\"localhost:8080\"", "\":8080\"", "\"127.0.0.1:65536\"", "8080"]),
    ("server.proxy_header_bytes_max", "", &["\"232B\"", "\"65551B\""], &["\"231B\"", "\"65552B\"", "5"]),
    ("server.response_deadline", "server.body_timeout = \"10ms\"\nkafka.publish_deadline = \"100ms\"", &["\"110ms\"", "\"1m\""], &["\"109ms\"", "\"60001ms\"", "5"]),
    ("server.retry_after", "", &["\"1s\"", "\"1h\""], &["\"999ms\"", "\"3600001ms\"", "5"]),
    ("server.streams_max", "", &["1", "10000"], &["0", "10001", "\"5\""]),
    ("server.tls.acme.directory", "", &["\"https://a.example/directory\""], &["\"http://a.example\"", "5"]),
    ("server.tls.acme.order_timeout", "", &["\"1s\"", "\"1h\""], &["\"999ms\"", "\"3600001ms\"", "5"]),
    ("server.tls.acme.retry_max", "server.tls.acme.retry_min = \"1s\"", &["\"1s\"", "\"168h\""], &["\"999ms\"", "\"604800001ms\"", "5"]),
    ("server.tls.acme.retry_min", "", &["\"1s\"", "\"24h\""], &["\"999ms\"", "\"86400001ms\"", "5"]),
    ("server.tls.handshake_timeout", "", &["\"10ms\"", "\"1m\""], &["\"9ms\"", "\"60001ms\"", "5"]),
    ("server.tls.handshakes_max", "", &["1", "100000"], &["0", "100001", "\"5\""]),
    ("server.trusted_proxies", "", &["[]", "[\"10.0.0.0/8\", \"::1\"]"], &["[\"10.0.0.0/33\"]", "[8]", "\"10.0.0.0/8\""]),
    ("server.window_bytes", "", &["\"16384B\"", "\"67108864B\""], &["\"16383B\"", "\"67108865B\"", "5"]),
    ("server.write_timeout", "", &["\"10ms\"", "\"1h\""], &["\"9ms\"", "\"3600001ms\"", "5"]),
    ("spool.bytes_max", "", &["\"1048576B\"", "\"1099511627776B\""], &["\"1048575B\"", "\"1099511627777B\"", "5"]),
    ("spool.dead_letters_bytes_max", "", &["\"1048576B\"", "\"1099511627776B\""], &["\"1048575B\"", "\"1099511627777B\"", "5"]),
    ("spool.drain_timeout", "", &["\"0s\"", "\"24h\""], &["\"-1ms\"", "\"86400001ms\"", "5"]),
    ("spool.failover_after", "", &["\"1s\"", "\"24h\""], &["\"999ms\"", "\"86400001ms\"", "5"]),
    ("spool.free_min", "", &["\"0B\"", "\"1099511627776B\""], &["\"-1B\"", "\"1099511627777B\"", "5"]),
    ("spool.lock_timeout", "", &["\"0s\"", "\"10m\""], &["\"-1ms\"", "\"600001ms\"", "5"]),
    ("spool.queue_bytes_max", "", &["\"1048576B\"", "\"4294967296B\""], &["\"1048575B\"", "\"4294967297B\"", "5"]),
    ("spool.queue_records_max", "", &["1", "1000000"], &["0", "1000001", "\"5\""]),
    ("spool.replay_bytes_max", "", &["\"1024B\"", "\"1073741824B\""], &["\"1023B\"", "\"1073741825B\"", "5"]),
    ("spool.replay_rate", "", &["0", "1000000"], &["-1", "1000001", "\"5\""]),
    ("spool.replay_records_max", "", &["1", "100000"], &["0", "100001", "\"5\""]),
    ("spool.retry_max", "spool.retry_min = \"10ms\"", &["\"10ms\"", "\"10m\""], &["\"9ms\"", "\"600001ms\"", "5"]),
    ("spool.retry_min", "", &["\"10ms\"", "\"1m\""], &["\"9ms\"", "\"60001ms\"", "5"]),
    ("spool.segment_bytes", "", &["\"65536B\"", "\"1073741824B\""], &["\"65535B\"", "\"1073741825B\"", "5"]),
    ("spool.switch_timeout", "", &["\"1ms\"", "\"5s\""], &["\"0ms\"", "\"5001ms\"", "5"]),
    ("topics.actions", "", &["{ incoming_event = \"drop\" }", "{ unlisted = \"a.b\" }"], &["5", "{ incoming_evnt = \"drop\" }", "{ incoming_event = \"a b\" }", "{ incoming_event = 5 }"]),
    ("topics.check_interval", "", &["\"100ms\"", "\"1h\""], &["\"99ms\"", "\"3600001ms\"", "5"]),
    ("topics.create", "", &["true", "false"], &["\"yes\"", "1"]),
    ("topics.key", "", &["\"plain\"", "\"hashed\""], &["\"other\"", "5"]),
    ("topics.partitions", "", &["1", "10000"], &["0", "10001", "\"5\""]),
    ("topics.prefix", "", &["\"\"", "\"a.b-c_d.\""], &["\"a b\"", "\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"", "5"]),
    ("topics.replication", "", &["-1", "1", "100"], &["-2", "0", "101", "\"5\""]),
    ("topics.settings.\"max.message.bytes\"", "", &["\"2113536\"", "3000000"], &["\"2113535\"", "[1]"]),
];

fn with(row: &Row, value: &str) -> String {
    format!("{}\n{} = {value}\n", row.1, row.0)
}

#[test]
fn every_setting_has_its_limits_and_is_tried_from_both_sides() {
    let rows: Vec<&str> = LIMITS.iter().map(|(key, ..)| *key).collect();
    // An empty table is a key whose names are not ours.
    let keys = super::flat::defaults();
    let keys: Vec<&str> = keys.keys().map(String::as_str).filter(|key| *key != "server.tls").collect();
    let mut expected = keys.clone();
    expected.sort_unstable();
    let mut found = rows.clone();
    found.sort_unstable();
    assert_eq!(found, expected, "each key of config/default.toml has a row");
    for row @ (key, _, right, wrong) in LIMITS {
        // Of a property or a topic the mistake names that, and of a setting its table.
        let table = key.split_once(".\"").map_or(*key, |(table, _)| table);
        let is_of_key = |mistake: &String| mistake.strip_prefix(table).is_some_and(|rest| rest.starts_with([':', '.']));
        for value in *right {
            let found: Vec<_> = mistakes(&with(row, value)).into_iter().filter(is_of_key).collect();
            assert_eq!(found, Vec::<String>::new(), "{key} = {value}");
        }
        for value in *wrong {
            let found = mistakes(&with(row, value));
            assert!(found.iter().any(is_of_key), "{key} = {value}: {found:#?}");
        }
        assert!(!right.is_empty() && !wrong.is_empty(), "{key}");
    }
}

/// Of what a text says only a few words are in the schema, and no bounds.
#[test]
fn the_schema_takes_what_the_relay_takes_and_refuses_other_types_words_and_numbers() {
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for row @ (key, _, right, wrong) in LIMITS {
        let is_valid = |value: &str| {
            let table: toml::Table = with(row, value).parse().expect("TOML");
            validator.is_valid(&json_of(&toml::Value::Table(table)))
        };
        for value in *right {
            assert!(is_valid(value), "{key} = {value}");
        }
        let default = super::flat::defaults().remove(*key);
        let is_enum = key.split('.').fold(&schema, |schema, name| &schema["properties"][name])["enum"].is_array();
        let is_text = |value: &str| value.starts_with('"') && !is_enum && default.as_ref().is_some_and(Value::is_str);
        for value in wrong.iter().filter(|value| !is_text(value) && !value.contains(['{', '/'])) {
            assert!(!is_valid(value), "{key} = {value}");
        }
    }
}

/// Every configuration file in the project's documents: its source, and its text.
fn configurations() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![("config/default.toml".to_owned(), DEFAULTS.to_owned())];
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    for path in ["deploy/relay.toml", "deploy/https.toml", "deploy/systemd/relay.toml"] {
        found.push((path.to_owned(), read(path)));
    }
    for path in ["README.md", "docs/livechat.md", "docs/operations.md", "docs/proxies.md"] {
        let text = read(path);
        for (n, block) in text.split("```toml\n").skip(1).enumerate() {
            let block = block.split("```").next().unwrap_or_default();
            // A part of an app.
            let before = if block.starts_with("[apps.") { "[[apps]]\n" } else { "" };
            found.push((format!("{path}, block {}", n + 1), format!("{before}{block}")));
        }
    }
    found
}

#[test]
fn every_configuration_of_the_documents_is_as_the_schema_says_and_has_no_unknown_key() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let configurations = configurations();
    assert!(configurations.len() > 15, "{}", configurations.len());
    for (source, text) in configurations {
        let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{source}: {e}"));
        let json = json_of(&Value::Table(table));
        let errors: Vec<_> = validator.iter_errors(&json).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert_eq!(errors, Vec::<String>::new(), "{source}");
        let found =
            read(&text, &[], Need::Settings).err().map(|mistakes| mistakes.without_places()).unwrap_or_default();
        assert!(!found.iter().any(|mistake| mistake.contains("unknown key")), "{source}: {found:?}");
    }
}

#[test]
fn readme_and_the_reference_begin_with_the_line_by_which_editors_find_the_schema() {
    let configurations = configurations();
    for source in ["config/default.toml", "README.md, block 1"] {
        let text = configurations.iter().find(|(of, _)| of == source).map(|(_, text)| text).expect("a configuration");
        let first = text.lines().next().and_then(|line| line.strip_prefix("#:schema ")).expect("the line");
        assert!(first.ends_with("config.schema.json"), "{source}: {first}");
    }
}

#[test]
fn the_schema_refuses_unknown_keys_and_what_stands_in_the_wrong_place() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let is_valid = |text: &str| {
        let (values, _) = parse(text, |_| false).expect("TOML");
        assert!(!values.is_empty());
        validator.is_valid(&json_of(&Value::Table(text.parse().expect("TOML"))))
    };
    for right in [
        "admin.token = \"x\"",
        "admin.token.file = \"/x\"",
        "apps = [{ name = \"a\", secret_keys = [{ name = \"k\", env = \"X\", not_after = 2026-12-31T00:00:00Z }] }]",
        "apps = [{ name = \"a\", secret_keys = { directory = \"/x\", not_after = { \"2026-10\" = 2026-12-31T00:00:00Z } } }]",
        "kafka.properties.\"sasl.password\" = { file = \"/x\" }",
        "kafka.properties.\"retries\" = 7",
        "topics.settings.\"retention.ms\" = 5",
        "server.tls.acme.contact = \"ops@example.com\"",
        "rules = [{ name = \"r\", chat = [\"C\"], do = \"sample\", rate = 1000000 }]",
    ] {
        assert!(is_valid(right), "{right}");
    }
    for wrong in [
        "servr.listen = \"0.0.0.0:8080\"",
        "server.lisen = \"0.0.0.0:8080\"",
        "server = 5",
        "server.tls.certificates = \"/x\"",
        "server.tls.certificates = [{ certificat = \"/x\" }]",
        "admin.token = 5",
        "admin.token = { fil = \"/x\" }",
        "admin.token = { file = \"/x\", env = \"X\" }",
        "apps.name = \"a\"",
        "apps = [{ secret_keys = [{ name = \"k\", valu = \"x\" }] }]",
        "apps = [{ secret_keys = [\"x\"] }]",
        "apps = [{ secret_keys = { directory = 5 } }]",
        "apps = [{ livechat.page = \"yes\" }]",
        "kafka.properties = [\"x\"]",
        "kafka.properties.\"sasl.password\" = { fil = \"/x\" }",
        "topics.settings.\"retention.ms\" = [5]",
        "topics.actions.incoming_event = 5",
        "rules = [{ do = \"dorp\" }]",
        "rules = [{ rate = 1 }]",
        "rules = [{ chat = [] }]",
        "server.tls.acme.domains = []",
    ] {
        assert!(!is_valid(wrong), "{wrong}");
    }
}

#[test]
fn every_setting_is_described_in_the_schema() {
    let schema = schema();
    for key in super::flat::defaults().keys().filter(|key| !key.contains('"')) {
        let of_key = key.split('.').fold(&schema, |schema, name| &schema["properties"][name]);
        let description = of_key["description"].as_str().unwrap_or_default();
        let is_said = description.split("Must be").next().is_some_and(|said| said.trim().len() > 10);
        assert!(is_said, "{key} has no comment in config/default.toml: {description:?}");
    }
    let of_secret_key = &schema["properties"]["apps"]["items"]["properties"]["livechat"]["properties"]["public_url"];
    assert!(
        of_secret_key["description"].as_str().is_some_and(|text| text.starts_with("where LiveChat reaches the relay"))
    );
}
