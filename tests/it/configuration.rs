//! The configuration as commands read it: file and environment, exit codes, and what is never printed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Output};

use crate::support::relay::{Relay, SECRET, await_that};

/// Stands where a secret might stand.
const CANARY: &str = "CANARY7canary";

/// Commands that need all of a configuration, and commands that look at Kafka or at a spool.
const RELAY: [&str; 2] = ["serve", "check"];
const LOOKERS: [&str; 4] = ["tail", "spool status", "spool drain", "dead-letters list"];

/// A directory with a configuration, `relay.toml`, whose one app has its key in the file `key`. No broker answers.
struct Place(tempfile::TempDir);

impl Place {
    fn new(more: &str) -> Self {
        let place = Self(tempfile::tempdir().expect("a directory"));
        let kafka = "kafka.brokers = \"127.0.0.1:1\"\nkafka.start_timeout = \"100ms\"\nspool.directory = \"spool\"";
        let addresses = "server.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:1\"";
        let app = "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", file = \"key\" }]";
        place.write("relay.toml", &format!("{kafka}\n{addresses}\n{more}\n{app}\n"));
        place
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("written");
    }

    /// Runs a command to its end; its exit code and the words that it printed, wherever its lines break.
    fn run(&self, command: &str, env: &[(&str, &[u8])]) -> (i32, String) {
        let mut relay = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        relay.args(command.split(' ')).args(["--config", "relay.toml"]).current_dir(self.0.path());
        relay.envs(env.iter().map(|(name, value)| (name, OsStr::from_bytes(value))));
        let Output { status, stdout, stderr } = relay.output().expect("the relay's binary");
        let printed = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let words: Vec<_> = printed.split_whitespace().collect();
        (status.code().expect("an end without a signal"), words.join(" "))
    }
}

#[test]
fn what_cannot_be_read_now_is_exit_code_1_and_a_wrong_configuration_64() {
    let place = Place::new("");
    for command in RELAY {
        let (code, printed) = place.run(command, &[]);
        assert!(code == 1 && printed.contains("apps[0].secret_keys[0].file: the file cannot be read"), "{printed}");
        let (code, printed) = place.run(command, &[("LIVECHAT_RELAY__LOG__FORMAT", b"yaml")]);
        assert!(code == 64 && printed.contains("log.format") && printed.contains("cannot be read"), "{printed}");
    }
    place.write("key", SECRET);
    let ca: (&str, &[u8]) = ("LIVECHAT_RELAY__KAFKA__PROPERTIES__SSL_CA_LOCATION", b"ca.pem");
    for command in RELAY {
        let (code, printed) = place.run(command, &[ca]);
        assert!(code == 1 && printed.contains("\"ssl.ca.location\""), "{printed}");
        // Each is a property, and together they make no client.
        let (code, printed) = place.run(
            command,
            &[
                ("LIVECHAT_RELAY__KAFKA__PROPERTIES__SSL_CERTIFICATE_PEM", b"no PEM"),
                ("LIVECHAT_RELAY__KAFKA__PROPERTIES__SECURITY_PROTOCOL", b"ssl"),
            ],
        );
        assert!(code == 64 && printed.contains("kafka.properties"), "{printed}");
    }
    assert!(place.run("check", &[]).1.contains("ok configuration"), "now that the key is there");
}

#[test]
fn every_command_reports_what_is_wrong_and_no_secret_that_it_does_not_need() {
    let place = Place::new("kafka.broker = \"x\"");
    for command in RELAY.into_iter().chain(LOOKERS) {
        let (code, printed) = place.run(command, &[("LIVECHAT_RELAY__ADMIN__LISTEN", b":8081")]);
        let hint = "unknown key `kafka.broker`; did you mean `kafka.brokers`?";
        assert!(code == 64 && printed.contains(hint) && printed.contains("admin.listen"), "{command}: {printed}");
    }
    let place = Place::new("");
    for command in LOOKERS {
        let (code, printed) = place.run(command, &[]);
        assert!(code == 1 && !printed.contains("secret_keys"), "{command}: {printed}");
    }
}

#[test]
fn all_properties_of_the_environment_count() {
    let properties: [(&str, &[u8]); 3] = [
        ("LIVECHAT_RELAY__KAFKA__PROPERTIES__ACKS", b"1"),
        ("LIVECHAT_RELAY__KAFKA__PROPERTIES__SASL_PASWORD", b"x"),
        ("LIVECHAT_RELAY__KAFKA__PROPERTIES__SECURITY_PROTOCOL", b"tls"),
    ];
    let (code, printed) = Place::new("").run("tail", &properties);
    assert!(
        code == 64 && ["acks", "sasl.pasword", "security.protocol"].iter().all(|name| printed.contains(name)),
        "{printed}"
    );
}

#[test]
fn no_command_prints_what_stands_where_a_secret_might() {
    let place = Place::new(&format!(
        "[kafka.properties]\n\"sasl.pasword\" = \"{CANARY}\"\n\"sasl.jaas.config\" = \"{CANARY}\""
    ));
    let wrong: [(&str, &[u8]); 5] = [
        ("LIVECHAT_RELAY__APPS__0__SECRET_KEYS__0__VALU", CANARY.as_bytes()),
        ("LIVECHAT_RELAY__APP_WEBHOOKS__TOKEN", CANARY.as_bytes()),
        ("LIVECHAT_RELAY__KAFKA__PROPERTIES__SASL_PASSWORD", b"CANARY7canary\xff"),
        ("LIVECHAT_RELAY_SECRET_KEY", b"CANARY7canary\xff"),
        ("OF_OTHERS", b"CANARY7canary\xff"),
    ];
    for command in RELAY.into_iter().chain(LOOKERS) {
        let (code, printed) = place.run(command, &wrong);
        assert!(code == 64 && !printed.contains(CANARY), "{command}: {printed}");
        assert!(
            printed.contains("LIVECHAT_RELAY__KAFKA__PROPERTIES__SASL_PASSWORD: is not UTF-8"),
            "{command}: {printed}"
        );
    }
    let send = Command::new(env!("CARGO_BIN_EXE_livechat-relay"))
        .args(["send", "http://127.0.0.1:1/webhooks"])
        .env("LIVECHAT_SECRET_KEY", OsStr::from_bytes(b"CANARY7canary\xff"))
        .output()
        .expect("the relay's binary");
    assert!(send.status.code() == Some(64) && !String::from_utf8_lossy(&send.stderr).contains(CANARY), "{send:?}");
}

#[test]
fn a_mistake_is_said_with_its_file_and_line() {
    let place = Place::new("[server.tls]\nhandshakes_max = 0");
    for command in RELAY.into_iter().chain(LOOKERS).chain(["config show"]) {
        let (code, printed) = place.run(command, &[]);
        let mistake =
            "relay.toml:7: server.tls.handshakes_max: must be a whole number from 1 to 100000, such as 512, not 0";
        assert!(code == 64 && printed.contains(mistake), "{command}: {printed}");
    }
}

#[test]
fn config_show_prints_what_is_in_force_without_a_secret_and_reads_none() {
    let secrets = format!("[kafka.properties]\n\"sasl.password\" = \"{CANARY}\"\n[admin.tls]\nclient_ca = \"none\"\n");
    let place = Place::new(&format!("{secrets}certificate = \"none\"\nkey = \"none\""));
    let variable: (&str, &[u8]) = ("LIVECHAT_RELAY__ADMIN__TOKEN", CANARY.as_bytes());
    for command in ["config show", "config show --json"] {
        let (code, printed) = place.run(command, &[variable]);
        assert!(code == 0 && !printed.contains(CANARY), "{command}: {printed}");
        assert!(printed.contains("***") && printed.contains("LIVECHAT_RELAY__ADMIN__TOKEN"), "{command}: {printed}");
    }
    let (_, printed) = place.run("config show", &[variable]);
    let (_, set) = place.run("config show --no-defaults", &[variable]);
    for line in [
        "brokers = \"127.0.0.1:1\" # relay.toml:1",
        "token = \"***\" # LIVECHAT_RELAY__ADMIN__TOKEN",
        "file = \"key\" # relay.toml:14",
        "format = \"text\" # default",
    ] {
        assert!(printed.contains(line), "no `{line}` in {printed}");
        assert_eq!(set.contains(line), !line.ends_with("# default"), "`{line}`: {set}");
    }
    assert!(!set.contains("# default"), "{set}");
}

#[test]
fn the_reference_is_a_configuration_and_the_schema_is_json() {
    let run = |command: &str| {
        let mut relay = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        let Output { status, stdout, .. } = relay.args(command.split(' ')).output().expect("the relay's binary");
        assert!(status.success(), "{command}");
        String::from_utf8(stdout).expect("text")
    };
    let place = Place::new("");
    place.write("relay.toml", &run("config default"));
    let variables: [(&str, &[u8]); 2] =
        [("LIVECHAT_RELAY__KAFKA__BROKERS", b"127.0.0.1:1"), ("LIVECHAT_RELAY__KAFKA__START_TIMEOUT", b"100ms")];
    let (code, printed) = place.run("tail", &variables);
    assert!(code == 1 && printed.contains("no broker answers"), "{printed}");
    let schema: serde_json::Value = serde_json::from_str(&run("config schema")).expect("JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn commands_that_read_kafka_say_why_they_cannot() {
    let patient: (&str, &[u8]) = ("LIVECHAT_RELAY__KAFKA__START_TIMEOUT", b"60s");
    for command in ["tail", "dead-letters list --kafka"] {
        let (code, printed) = Place::new("").run(command, &[patient]);
        assert!(code == 1 && printed.contains("nothing listens there"), "{command}: {printed}");
    }
}

#[test]
fn librdkafka_logs_no_part_of_a_property() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = format!("\"{}\"", directory.path().join("spool").display());
    let properties = format!(
        "{{ \"security.protocol\" = \"sasl_plaintext\", \"sasl.mechanism\" = \"OAUTHBEARER\", \
         \"enable.sasl.oauthbearer.unsecure.jwt\" = true, \"sasl.oauthbearer.config\" = \"{CANARY}\" }}"
    );
    let settings =
        [("spool.directory", spool.as_str()), ("kafka.properties", &properties), ("log.filter", "\"trace\"")];
    let relay = Relay::start("127.0.0.1:1", &settings);
    await_that("it is logged", || relay.has_logged("Unrecognized sasl.oauthbearer.config"));
    assert!(!relay.log().contains(CANARY), "{}", relay.log());
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let misspelt: (&str, &[u8]) = ("LIVECHAT_RELAY_KAFKA_BROKERS", CANARY.as_bytes());
    let hint = "did you mean LIVECHAT_RELAY__KAFKA__BROKERS?";
    for command in LOOKERS {
        let (_, printed) = Place::new("").run(command, &[misspelt]);
        assert!(
            printed.contains(&format!(
                "warning: LIVECHAT_RELAY_KAFKA_BROKERS: the relay does not read this variable; {hint}"
            )),
            "{printed}"
        );
        assert!(!printed.contains(CANARY), "{printed}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let spool = format!("\"{}\"", directory.path().join("spool").display());
    let relay =
        Relay::launch("127.0.0.1:1", &[("spool.directory", &spool)], &[("LIVECHAT_RELAY_KAFKA_BROKERS", CANARY)]);
    let relay = relay.expect("a warning is no reason not to start");
    await_that("the warning is logged", || relay.has_logged(hint));
    assert!(!relay.log().contains(CANARY), "{}", relay.log());
}
