//! The Kafka client of the relay, with a real Kafka: what it asks of the brokers, what it changes there, and what it guarantees
//! whatever `kafka.properties` says.

use std::process::{Command, Output};

use crate::support::relay::SECRET;

/// Runs a command to its end with this configuration.
fn run(command: &str, brokers: &str, more: &str) -> Output {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "[kafka]\nbrokers = \"{brokers}\"\nstart_timeout = \"5s\"\n{more}\n\
         [[apps]]\nname = \"default\"\nsecret_keys = [{{ name = \"k\", value = \"{SECRET}\" }}]\n"
    );
    std::fs::write(file.path(), text).expect("written");
    let mut program = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    program.args([command, "--config"]).arg(file.path()).output().expect("the relay's binary")
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

#[test]
fn a_guarantee_cannot_be_configured_away_under_any_name() {
    for property in ["acks", "topic.acks", "request.required.acks", "topic.partitioner", "topic.message.timeout.ms"] {
        let setting = format!("{{ \"{property}\" = \"1\" }}");
        for command in ["serve", "check"] {
            let output = run(command, "127.0.0.1:1", &format!("properties = {setting}"));
            let text = text(&output);
            assert_eq!(output.status.code(), Some(64), "{text}");
            assert!(text.contains(&format!("kafka.properties.\"{property}\": may not be set: ")), "{text}");
        }
    }
    for (command, code) in [("serve", 64), ("check", 1)] {
        let output = run(command, "127.0.0.1:1", "properties = { \"topic.max.in.flight\" = \"6\" }");
        let text = text(&output);
        assert!(output.status.code() == Some(code) && text.contains("`max.in.flight` must be set <= 5"), "{text}");
    }
}
