//! The commands as a person types them: what they print, and how they end.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::relay::{Relay, SECRET};
use crate::support::{chat_id, http, incoming_event, kafka};

fn relay(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    command.args(arguments).env("LIVECHAT_SECRET_KEY", SECRET).output().expect("the relay's binary")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn configuration(brokers: &str, more: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let app = format!("[[apps]]\nname = \"default\"\nsecret_keys = [{{ name = \"k\", value = \"{SECRET}\" }}]\n");
    let kafka = format!("[kafka]\nbrokers = \"{brokers}\"\nstart_timeout = \"2s\"\n");
    std::fs::write(file.path(), format!("{kafka}{more}\n{app}")).expect("written");
    file
}

#[test]
fn the_demo_sends_all_and_finds_all() {
    let output = relay(&["demo", "--once", "--port", "0"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    let sent = livechat_relay::cli::traffic::actions().count();
    assert!(
        text.contains(&format!("{sent} webhooks sent, {sent} answered 200, {sent} events on 46 topics,")),
        "{text}"
    );
    assert!(text.contains(&format!("{sent} of them byte for byte what was sent, less the secret key.")), "{text}");
    assert!(text.contains("livechat.incoming_chat ") && !text.contains('\x1b'), "no colours where nobody sees them");
}

#[test]
fn send_reports_what_was_answered_and_saves_it_without_the_secret() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let target = Relay::start(kafka.bootstrap(), &[]);
    let url = format!("http://{}/webhooks", target.webhooks);
    let directory = tempfile::tempdir().expect("a directory");
    let saved = directory.path().join("saved");
    let path = saved.to_str().expect("a path");

    let output = relay(&["send", &url, "--count", "500", "--json", "--save", path]);

    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success(), "{report}");
    assert_eq!((report["sent"].as_u64(), report["answered_200"].as_u64()), (Some(500), Some(500)));
    assert_eq!(report["answers"], serde_json::json!({"200": 500}));
    let lines = std::fs::read_to_string(path).expect("the file");
    assert_eq!(lines.lines().count(), 500);
    assert!(!lines.contains(SECRET) && lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert_eq!(target.metric(r#"livechat_relay_requests_total{code="200"}"#), 500.0);
}

#[test]
fn send_gives_up_as_livechat_does() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let target = Relay::start(kafka.bootstrap(), &[]);
    let url = format!("http://{}/webhooks", target.webhooks);
    let wrong = ["--secret-key", "wrong", "--retries", "2", "--retry-wait", "10ms"];
    let output = relay(&[&["send", &url, "--count", "3", "--actions", "incoming_chat"], &wrong[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("0 of 3 answered 200") && stdout(&output).contains("401: 9; retries: 6"),
        "{}",
        stdout(&output)
    );
    assert!(stderr(&output).contains("3 webhooks were not answered 200"), "{}", stderr(&output));

    let output = relay(&["send", &url, "--actions", "incoming_shat"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        stderr(&output).contains("no sample of action `incoming_shat`; there are incoming_chat,"),
        "{}",
        stderr(&output)
    );
    assert_eq!(relay(&["send", "https://localhost/webhooks"]).status.code(), Some(64));
}

#[test]
fn tail_prints_what_it_is_asked_for() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let source = Relay::start(kafka.bootstrap(), &[]);
    let chat = chat_id();
    for n in 0..3 {
        assert_eq!(http::post(source.webhooks, incoming_event(&chat, n)).status, 200);
    }
    let tail = ["tail", "--brokers", kafka.bootstrap(), "--from-beginning", "--count", "3", "--chat", &chat];

    let output = relay(&[&tail[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let events: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(events.len(), 3);
    assert_eq!(events[0]["topic"], "livechat.incoming_event");
    assert_eq!(
        (&events[0]["key"], &events[0]["attributes"]["chatid"]),
        (&Value::from(chat.clone()), &Value::from(chat.clone()))
    );
    assert_eq!(events[2]["data"]["payload"]["event"]["text"], "Grüße \"2\" 🚀");

    let only = ["--topic", "livechat.incoming_event", "--action", "incoming_event"];
    let text = stdout(&relay(&[&tail[..], &only[..]].concat()));
    assert_eq!(text.lines().count(), 3);
    assert!(text.contains(&format!("chats/{chat}")) && text.contains("“Grüße \"1\" 🚀”"), "{text}");
}

#[test]
fn tail_says_what_is_wrong() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let nowhere = relay(&["tail", "--brokers", kafka.bootstrap(), "--topic", "no.such.topic"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(stderr(&nowhere).contains("no such topic"), "{}", stderr(&nowhere));
    let file = configuration("127.0.0.1:1", "");
    let away = relay(&["tail", "--config", file.path().to_str().expect("a path")]);
    assert_eq!(away.status.code(), Some(1));
    assert!(stderr(&away).contains("no broker answers at 127.0.0.1:1"), "{}", stderr(&away));
}

/// README's own configuration file.
fn readme_configuration() -> String {
    let readme = include_str!("../../README.md");
    let block = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("README has a configuration file").to_owned()
}

#[test]
fn readmes_own_commands_work_in_an_empty_folder_before_the_first_start_and_after_it() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("relay.toml"), readme_configuration()).expect("written");
    let run = |command: &str| {
        let mut relay = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        relay.args([command, "--config", "relay.toml"]).current_dir(folder.path());
        relay.env("LIVECHAT_SECRET_KEY", SECRET).env("LIVECHAT_RELAY__KAFKA__BROKERS", kafka.bootstrap());
        relay.env("LIVECHAT_RELAY__SERVER__LISTEN", "127.0.0.1:0").env("LIVECHAT_RELAY__ADMIN__LISTEN", "127.0.0.1:0");
        relay
    };
    let check = || {
        let output = run("check").output().expect("the relay's binary");
        let text = stdout(&output);
        assert!(output.status.success(), "{text}{}", stderr(&output));
        text
    };
    let before = check();
    assert!(before.contains("is made by the first start") && !before.contains("FAIL"), "{before}");

    let mut serve = run("serve").stderr(std::process::Stdio::piped()).spawn().expect("the relay's binary");
    let log = std::io::BufReader::new(serve.stderr.take().expect("a pipe"));
    let mut lines = std::io::BufRead::lines(log).map_while(Result::ok);
    assert!(lines.any(|line| line.contains("taking webhooks")), "it serves");
    let pid = rustix::process::Pid::from_child(&serve);
    assert!(check().contains("is in use by a relay"));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a process of ours");
    for line in lines {
        assert!(!line.contains("ERROR"), "{line}");
    }
    assert!(serve.wait().expect("a child").success());
    assert!(check().contains("accepts; 0 events wait in it"), "once a relay has run and stopped");
}

#[test]
fn check_finds_a_cluster_ready_or_tells_why_not() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    drop(Relay::start(kafka.bootstrap(), &[])); // creates the topics
    let check = |brokers: &str, more: &str, json: &[&str]| {
        let file = configuration(brokers, more);
        relay(&[&["check", "--config", file.path().to_str().expect("a path")], json].concat())
    };

    let good = check(kafka.bootstrap(), "", &[]);
    assert!(good.status.success(), "{}{}", stdout(&good), stderr(&good));
    for line in [
        "ok    configuration",
        "ok    app            default: secret keys k",
        "ok    brokers        1 at",
        "ok    topics         all there",
        "ok    sizes",
    ] {
        assert!(stdout(&good).contains(line), "no `{line}` in:\n{}", stdout(&good));
    }

    let missing = check(kafka.bootstrap(), "[topics]\nprefix = \"other.\"\ncreate = false", &["--json"]);
    assert_eq!(missing.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&missing.stdout).expect("JSON");
    assert_eq!(report["ok"], false);
    let topics =
        report["findings"].as_array().expect("findings").iter().find(|f| f["check"] == "topics").expect("topics");
    assert!(topics["detail"].as_str().expect("text").contains("other.incoming_event"), "{topics}");

    let away = check("127.0.0.1:1", "", &[]);
    assert_eq!(away.status.code(), Some(1));
    assert!(stdout(&away).contains("FAIL  brokers        no broker answers at 127.0.0.1:1"), "{}", stdout(&away));

    let wrong = check(kafka.bootstrap(), "lingr = \"1s\"\ncompression = \"zip\"", &[]);
    assert_eq!(wrong.status.code(), Some(64));
    let text = stdout(&wrong);
    assert!(
        text.contains("kafka.lingr: is no key; did you mean kafka.linger?")
            && text.contains("kafka.compression: is `zip`"),
        "{text}"
    );

    let property = check(kafka.bootstrap(), "[kafka.properties]\n\"securty.protocol\" = \"ssl\"", &[]);
    assert_eq!(property.status.code(), Some(1), "{}", stdout(&property));
    assert!(stdout(&property).contains("securty.protocol"), "{}", stdout(&property));
}

#[test]
fn a_port_that_is_taken_and_a_wrong_configuration_end_serve_with_the_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = format!("[server]\nlisten = \"{}\"", taken.local_addr().expect("an address"));
    let file = configuration("127.0.0.1:1", &listen);
    let output = relay(&["serve", "--config", file.path().to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("server.listen: cannot listen on 127.0.0.1:") && stderr(&output).contains("in use"),
        "{}",
        stderr(&output)
    );

    let output = relay(&["serve"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        stderr(&output).contains("apps: is empty: give [[apps]] with a name and secret_keys"),
        "{}",
        stderr(&output)
    );
    assert_eq!(relay(&["serv"]).status.code(), Some(64));
    assert_eq!(relay(&[]).status.code(), Some(64));
}

/// Every text that `--help` prints, as it was last looked at. `UPDATE_SNAPSHOTS=1` takes the present one.
#[test]
fn a_variable_of_the_environment_that_is_no_text_is_no_reason_to_end() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    let output =
        command.arg("check").env("NO_TEXT", std::ffi::OsStr::from_bytes(b"\xff")).output().expect("the binary");
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(stdout(&output).contains("apps: is empty"), "{}", stdout(&output));
}

#[test]
fn the_help_is_as_it_was_last_read() {
    let mut text = String::new();
    for command in [
        "",
        "serve",
        "check",
        "demo",
        "send",
        "tail",
        "spool",
        "spool drain",
        "dead-letters",
        "dead-letters replay",
        "actions",
        "contract",
    ] {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let output = relay(&arguments);
        assert!(output.status.success());
        text += &format!("$ livechat-relay {}\n{}\n", arguments.join(" "), stdout(&output));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/snapshots/help.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().expect("a directory")).expect("made");
        std::fs::write(path, &text).expect("written");
    }
    let last = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(text, last, "the help has changed; read it, and run with UPDATE_SNAPSHOTS=1 if it is right");
}
