//! What a mistake says, and that all of them are found at once.

use super::*;

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
        "kafka.properties.\"acks\": cannot be set: it is always `all`: 200 is only sent when all in-sync replicas",
        "kafka.properties.\"enable.idempotence\": cannot be set: ",
        "topics.prefix: has characters that Kafka does not allow in topic names",
        "topics.actions.incoming_evnt: is not one of LiveChat's actions",
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
        (
            "server.listen = \":8080\"",
            "server.listen: must be an IP address and a port, such as \"0.0.0.0:8080\", not \":8080\"",
        ),
        ("server.listen = \"localhost:8080\"", "must be an IP address and a port"),
        ("server.listen = 8080", "an IP address and a port, such as \"0.0.0.0:8080\", not 8080"),
        ("topics.create = \"yes\"", "topics.create: must be true or false, such as true, not \"yes\""),
        (
            "kafka.brokers = [\"a\", \"b\"]",
            "kafka.brokers: must be a text of host:port, several separated by commas (\"a:9092,b:9092\")",
        ),
        ("kafka.brokers = \"kafka://a:9092\"", "without kafka://"),
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
        ("[[app]]\nname = \"x\"", "unknown key `app[0]`; did you mean `[[apps]]`?"),
        ("[[rule]]\nname = \"x\"", "unknown key `rule[0]`; did you mean `[[rules]]`?"),
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
fn a_file_that_is_no_toml_is_reported_by_line_and_column() {
    let refused = refused("[server]\nlisten = \n", &[]).lines;
    assert!(refused[0].contains(":2:"), "{refused:?}");
    let load = |path: &str| Config::load(Some(Path::new(path)), [], Need::Everything).err().expect("mistakes");
    let missing = load("/no/such/file");
    assert!(missing.may_pass && missing.lines[0].starts_with("/no/such/file: cannot be read"), "{missing:?}");
    let directory = load("/");
    assert!(!directory.may_pass, "a directory does not become a file");
    assert_eq!(directory.lines, ["/: cannot be read: it is a directory; name a file in it"]);
    let yaml = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    std::fs::write(yaml.path(), "kafka:\n  brokers: x\n").expect("written");
    let yaml = load(yaml.path().to_str().expect("a path"));
    assert!(yaml.lines[0].ends_with("; the configuration is written in TOML"), "{yaml:?}");
    let mut latin = tempfile::NamedTempFile::new().expect("a file");
    latin.write_all(b"# caf\xe9").expect("written");
    let latin = load(latin.path().to_str().expect("a path"));
    assert!(!latin.may_pass && latin.lines[0].ends_with(": cannot be read: it is not UTF-8"), "{latin:?}");
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
fn oauthbearer_wants_something_that_gives_tokens() {
    let of = |properties: &str| mistakes(&format!("[kafka.properties]\n{properties}"));
    for name in ["sasl.mechanism", "sasl.mechanisms"] {
        let mechanism = format!("\"{name}\" = \"OAUTHBEARER\"");
        let alone = of(&mechanism);
        assert!(alone.len() == 1 && alone[0].contains(name), "{alone:?}");
        assert!(alone[0].contains("needs \"sasl.oauthbearer.method\" = \"oidc\""), "{alone:?}");
        assert_eq!(of(&format!("{mechanism}\n\"enable.sasl.oauthbearer.unsecure.jwt\" = true")), Vec::<String>::new());
        // Where librdkafka was built without libcurl, it has none of this, and only that is said.
        let with_endpoint = of(&format!("{mechanism}\n\"sasl.oauthbearer.method\" = \"oidc\""));
        assert!(with_endpoint.iter().all(|mistake| mistake.contains("lacks libcurl")), "{with_endpoint:?}");
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
