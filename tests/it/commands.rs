//! The commands as a person types them: what they print, and how they end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::security;
use crate::support::relay::{Relay, SECRET, Settings};
use crate::support::tls::Authority;
use crate::support::{chat_id, http, incoming_event, kafka};

pub fn relay(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    command.args(arguments).env("LIVECHAT_SECRET_KEY", SECRET).output().expect("the relay's binary")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn configuration(brokers: &str, more: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let app = format!("[[apps]]\nname = \"default\"\nsecret_keys = [{{ name = \"k\", value = \"{SECRET}\" }}]\n");
    let kafka = format!("[kafka]\nbrokers = \"{brokers}\"\nstart_timeout = \"2s\"\n");
    std::fs::write(file.path(), format!("{kafka}{more}\n{app}")).expect("written");
    file
}

#[test]
fn demo_and_check_end_quietly_when_their_output_is_closed_and_with_an_error_when_it_is_full() {
    let file = configuration("localhost:1", "");
    let config = file.path().to_str().expect("text");
    for arguments in [
        &["demo", "--once", "--port", "0", "--metrics-port", "0"][..],
        &["check", "--offline", "--config", config],
        &["check", "--offline", "--json", "--config", config],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        command.args(arguments);
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
        let output = command.stdout(full).output().expect("the relay's binary");
        let told = stderr(&output);
        let is_told = told.lines().count() == 1
            && told.contains("standard output cannot be written: No space left on device (os error 28)");
        assert!(output.status.code() == Some(1) && is_told, "{arguments:?}: {told}");

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command.stdout(writer).output().expect("the relay's binary");
        assert_eq!((output.status.code(), &*stderr(&output)), (Some(0), ""), "{arguments:?}");
    }
    let mut wrong = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = wrong.args(["check", "--offline"]).stdout(writer).output().expect("the relay's binary");
    assert_eq!(output.status.code(), Some(64), "what is wrong is still the exit code");
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
fn send_says_why_webhooks_failed_and_repeats_only_what_may_succeed() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let target = Relay::start(kafka.bootstrap(), &[]);
    let url = format!("http://{}/webhooks", target.webhooks);
    let some = ["--count", "3", "--actions", "incoming_chat"];
    let output = relay(&[&["send", &url, "--secret-key", "not the right one"], &some[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("0 of 3 webhooks answered 200") && text.contains("401: 3; retries: 0"), "{text}");
    let why = "3 of 3 webhooks failed: 401 unauthorized";
    assert!(
        stderr(&output).contains(why) && stderr(&output).contains("is the secret key right"),
        "{}",
        stderr(&output)
    );

    let output = relay(&[&["send", &format!("{url}/other/path")], &some[..]].concat());
    assert!(stderr(&output).contains("3 of 3 webhooks failed: 404 "), "{}", stderr(&output));

    let output = relay(&["send", &url, "--actions", "incoming_shat"]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        stderr(&output),
        "error: there is no sample of an action `incoming_shat`; did you mean `incoming_chat`?\n"
    );
    let output = relay(&["send", &url.replace("http:", "https:"), "--count", "1"]);
    assert!(stderr(&output).ends_with("; that port speaks no TLS: use http://\n"), "{}", stderr(&output));
    assert_eq!(relay(&["send", "ftp://localhost/webhooks"]).status.code(), Some(64));
}

#[test]
fn send_gives_up_as_livechat_does_where_a_server_takes_nothing() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", server.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let Ok(mut stream) = stream else { continue };
            let (mut request, mut piece) = (Vec::new(), [0; 16_384]);
            while !request.ends_with(b"}") {
                let length = stream.read(&mut piece).expect("a request");
                request.extend_from_slice(&piece[..length]);
            }
            let request = String::from_utf8_lossy(&request);
            let body = format!("later {}", request.rsplit("\r\n\r\n").next().unwrap_or_default());
            let head = format!(
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + &body).as_bytes()); // the client may have gone
        }
    });
    let output = relay(&["send", &url, "--count", "1", "--retries", "2", "--retry-wait", "10ms"]);
    assert!(stdout(&output).contains("503: 3; retries: 2"), "{}", stdout(&output));
    let (text, stderr) = (stdout(&output), stderr(&output));
    assert!(stderr.contains("1 of 1 webhooks failed: 503 later {\"webhook_id\"") && stderr.contains("***"), "{stderr}");
    assert!(!text.contains(SECRET) && !stderr.contains(SECRET), "what a server sends back is shown without the key");
    assert!(stderr.len() < 800, "{stderr}");
    let began = stderr.lines().next().unwrap_or_default();
    assert!(began.starts_with("retry in 10ms: 503 later {"), "why it takes so long is said at once: {stderr}");
    assert_eq!(stderr.matches("retry in").count(), 1, "{stderr}");
}

#[test]
fn send_that_is_interrupted_says_what_has_failed() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", server.local_addr().expect("an address"));
    std::thread::spawn(move || server.incoming().for_each(drop));
    let mut send = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    send.args(["send", &url, "--count", "3", "--connections", "3", "--retry-wait", "1h"]);
    send.env("LIVECHAT_SECRET_KEY", SECRET).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut send = send.spawn().expect("the relay's binary");
    let mut told = BufReader::new(send.stderr.take().expect("standard error"));
    let mut first = String::new();
    told.read_line(&mut first).expect("a line");
    assert!(first.starts_with(&format!("retry in 3600s: no answer from {url}: ")), "{first}");

    let pid = rustix::process::Pid::from_child(&send);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is there");

    let mut rest = String::new();
    told.read_to_string(&mut rest).expect("text");
    assert_eq!(send.wait().expect("its end").code(), Some(1));
    let (failed, reason) = (rest.contains(" webhooks failed: no answer from "), first.split_once(": ").expect("it").1);
    assert!(failed && rest.contains(reason.trim_end()), "{rest}");
}

#[test]
fn send_takes_no_empty_secret_key_and_no_empty_run_and_advises_no_key_on_the_command_line() {
    let send = |variable: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        let output = command.env("LIVECHAT_SECRET_KEY", variable).arg("send").args(arguments).output().expect("it");
        assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
        stderr(&output)
    };
    const URL: &str = "http://127.0.0.1:1/";
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "\n").expect("written");
    let path = file.path().to_str().expect("text");
    let empty = |place: &str| format!("error: the secret key is empty: {place}\n");
    assert_eq!(send("", &[URL]), empty("the variable LIVECHAT_SECRET_KEY"));
    assert_eq!(send(SECRET, &[URL, "--secret-key", ""]), empty("--secret-key"));
    assert_eq!(send(SECRET, &[URL, "--secret-key-file", path]), empty(&format!("--secret-key-file {path}")));
    assert!(send(SECRET, &[URL, "--count", "0"]).contains("'0' for '--count"));
    let usage = send(SECRET, &[]);
    assert!(usage.contains("Usage: livechat-relay send [OPTIONS] <URL>") && !usage.contains("--secret-key"), "{usage}");
}

#[test]
fn send_ends_at_once_where_no_server_answers_and_says_which_key_it_wants() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let url = format!("http://127.0.0.1:{port}/webhooks");
    let output = relay(&["send", &url, "--retry-wait", "1h"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("error: cannot connect to {url}: Connection refused (os error 111)");
    assert!(stderr(&output).starts_with(&expected) && stdout(&output).is_empty(), "{}", stderr(&output));

    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{SECRET}\n")).expect("written");
    let send = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        command.env_remove("LIVECHAT_SECRET_KEY").args(["send", &url]).args(more).output().expect("it runs")
    };
    let output = send(&[]);
    assert!(output.status.code() == Some(64) && stderr(&output).contains("LIVECHAT_SECRET_KEY"), "{}", stderr(&output));
    let file = ["--secret-key-file", file.path().to_str().expect("a path")];
    assert!(stderr(&send(&file)).starts_with(&expected), "{}", stderr(&send(&file)));
    assert!(
        stderr(&relay(&[&["send", &url], &file[..]].concat())).starts_with(&expected),
        "the file counts, whatever the environment has"
    );
    assert_eq!(send(&["--secret-key-file", "/no/such/file"]).status.code(), Some(64));
    assert_eq!(relay(&["send", "http://user:password@127.0.0.1:1/"]).status.code(), Some(64));
}

#[test]
fn send_speaks_https_and_trusts_the_authority_that_it_is_given() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new(directory.path());
    let files = authority.issue("relay", &["localhost"]);
    let pair = format!("[{{ certificate = {:?}, key = {:?} }}]", files.certificate, files.key);
    let tls: Settings<'_> = &[("server.tls.certificates", &pair)];
    let target = Relay::start(kafka.bootstrap(), tls).ready();
    let url = format!("https://localhost:{}/webhooks", target.webhooks.port());
    let ca = authority.ca();
    let output = relay(&["send", &url, "--count", "3", "--ca", ca.to_str().expect("a path")]);
    assert!(stdout(&output).contains("3 of 3 webhooks answered 200"), "{}{}", stdout(&output), stderr(&output));

    let output = relay(&["send", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot connect to") && stderr(&output).contains("UnknownIssuer"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_command_that_needs_a_configuration_and_got_none_says_how_to_give_it() {
    let backfill = ["backfill", "--from", "2h"];
    for arguments in [
        &["webhooks", "plan"][..],
        &["webhooks", "apply"],
        &["webhooks", "rotate"],
        &backfill,
        &["spool", "status"],
        &["reload"],
    ] {
        let output = relay(arguments);
        let told = stderr(&output);
        assert!(output.status.code() == Some(64) && told.contains("add -c FILE"), "{arguments:?}: {told}");
    }
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
    let configure = |admin: &str| {
        let text = format!("admin.listen = {admin:?}\n{}", readme_configuration());
        std::fs::write(folder.path().join("relay.toml"), text).expect("written");
    };
    configure("127.0.0.1:0");
    let run = |command: &str| {
        let mut relay = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        relay.args([command, "--config", "relay.toml"]).current_dir(folder.path());
        relay.env("LIVECHAT_SECRET_KEY", SECRET).env("LIVECHAT_RELAY__KAFKA__BROKERS", kafka.bootstrap());
        relay.env("LIVECHAT_RELAY__SERVER__LISTEN", "127.0.0.1:0");
        relay
    };
    let check = || {
        let output = run("check").output().expect("the relay's binary");
        let text = stdout(&output);
        assert!(output.status.success(), "{text}{}", stderr(&output));
        text
    };
    let before = check();
    let before = before.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(before.contains("is made by the first start") && !before.contains("FAIL"), "{before}");

    let mut serve = run("serve").stderr(std::process::Stdio::piped()).spawn().expect("the relay's binary");
    let log = std::io::BufReader::new(serve.stderr.take().expect("a pipe"));
    let mut lines = std::io::BufRead::lines(log).map_while(Result::ok);
    assert!(lines.any(|line| line.contains("the control socket is ready")), "it serves");
    let pid = rustix::process::Pid::from_child(&serve);
    let during = check();
    assert!(during.contains("is in use by a relay") && during.contains("the running relay has them"), "{during}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    configure(&address); // a restart would fail
    let changed = check();
    assert!(changed.contains(&format!("admin.listen: cannot listen on {address}:")), "{changed}");
    configure("127.0.0.1:0");
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
    Relay::start(kafka.bootstrap(), &[]).await_log("topics are ready"); // it creates them
    let (good, code) = check(kafka.bootstrap(), "", &[]);
    assert_eq!(code, Some(0), "{good}");
    for line in [
        "ok configuration",
        "ok app default: secret keys k",
        "ok ports free: 127.0.0.1:0, 127.0.0.1:0",
        "ok brokers 1 at",
        "ok topics all there",
        "ok sizes every topic accepts the largest event",
    ] {
        assert!(good.contains(line), "no `{line}` in:\n{good}");
    }
    assert!(good.contains(" ready: ") && good.contains(" checks, "), "{good}");

    let with_prefix = |prefix: &str| format!("[topics]\nprefix = {prefix:?}\ncreate = false");
    let (missing, code) = check(kafka.bootstrap(), &with_prefix("other."), &[]);
    assert_eq!(code, Some(1));
    let all =
        "FAIL topics missing: all 48 topics; topics.create is false: create them, or set `topics.create = true` error:";
    assert!(missing.contains(all), "nothing is said of the sizes of topics that do not exist: {missing}");

    let prefix = format!("{}.", chat_id());
    kafka.create_topic(&format!("{prefix}incoming_event"), 1, &[("max.message.bytes", "3145728")]);
    let (some, code) = check(kafka.bootstrap(), &with_prefix(&prefix), &[]);
    assert_eq!(code, Some(1));
    for part in [
        format!("warn dead letters the topic {prefix}dead-letter is missing"),
        format!("FAIL topics missing: {prefix}access_set, {prefix}agent_approved, {prefix}agent_created and 43 more, "),
        "ok sizes every topic that is not missing accepts the largest event".to_owned(),
    ] {
        assert!(some.contains(&part), "no `{part}` in {some}");
    }

    let (wrong, code) = check(kafka.bootstrap(), "lingr = \"1s\"\ncompression = \"zip\"", &[]);
    assert_eq!(code, Some(64));
    let said = ["unknown key `kafka.lingr`; did you mean `kafka.linger`?", "kafka.compression: must be one of"];
    assert!(said.iter().all(|part| wrong.contains(part)), "{wrong}");
    assert_eq!(wrong.matches("FAIL configuration").count(), 1, "several mistakes have one heading: {wrong}");

    for arguments in [&[][..], &["--offline"]] {
        let property = "[kafka.properties]\n\"securty.protocol\" = \"ssl\"";
        let (property, code) = check(kafka.bootstrap(), property, arguments);
        assert!(code == Some(64) && property.contains("securty.protocol"), "{property}");
    }
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
    assert!(stderr(&output).contains("apps: is empty (no configuration file is given"), "{}", stderr(&output));
    assert_eq!(relay(&["serv"]).status.code(), Some(64));
    assert_eq!(relay(&[]).status.code(), Some(64));
}

#[test]
fn with_log_format_json_a_start_that_fails_is_json_lines_and_nothing_else() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let json = "[log]\nformat = \"json\"";
    let port_in_use = format!("{json}\n[server]\nlisten = \"{}\"", taken.local_addr().expect("an address"));
    let [wrong, port_in_use] = [&*format!("{json}\n[server]\nlisten = \"8080\""), &port_in_use]
        .map(|settings| configuration("127.0.0.1:1", settings));
    let is_logged = |file: &str, env: &[(&str, &str)], phrase: &str, code| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        let output = command.args(["serve", "--config", file]).envs(env.iter().copied()).output().expect("the binary");
        let told = stderr(&output);
        let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let last = lines.last().expect("a line");
        assert!(last["level"] == "ERROR" && last["message"].as_str().is_some_and(|m| m.contains(phrase)), "{told}");
        assert_eq!(output.status.code(), Some(code), "{told}");
    };
    let path = |file: &tempfile::NamedTempFile| file.path().to_str().expect("a path").to_owned();
    is_logged(&path(&wrong), &[], "server.listen: ", 64);
    is_logged(&path(&port_in_use), &[], "server.listen: cannot listen on 127.0.0.1:", 1);
    let of_variable = [("LIVECHAT_RELAY__LOG__FORMAT", "json")];
    is_logged("/nowhere/relay.toml", &of_variable, "/nowhere/relay.toml: cannot be read: ", 1);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "[server").expect("written");
    is_logged(&path(&file), &of_variable, "unclosed table", 64);

    let other = configuration("127.0.0.1:1", "[log]\nformat = \"jsn\"");
    let told = stderr(&relay(&["serve", "--config", &path(&other)]));
    assert!(told.starts_with("error: the configuration is wrong:\n") && told.contains("log.format"), "{told}");
}

/// Every text that `--help` prints, as it was last looked at. `UPDATE_SNAPSHOTS=1` takes the present one.
#[test]
fn the_help_is_as_it_was_last_read() {
    let mut text = String::new();
    for command in [
        "",
        "serve",
        "check",
        "health",
        "demo",
        "reload",
        "log-level",
        "send",
        "tail",
        "spool",
        "spool drain",
        "dead-letters",
        "dead-letters replay",
        "webhooks",
        "webhooks plan",
        "webhooks unregister",
        "actions",
        "contract",
        "config",
        "config default",
        "config show",
        "config schema",
        "completions",
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

#[test]
fn health_says_what_the_probes_say_and_ends_with_0_or_1() {
    let target = Relay::start("127.0.0.1:1", &[("kafka.start_timeout", "\"200ms\"")]);
    let address = target.admin.to_string();
    let health = |arguments: &[&str]| {
        let output = relay(&[&["health"], arguments].concat());
        (output.status.code(), stdout(&output) + &stderr(&output))
    };
    let not_ready =
        "error: not ready: Kafka is unavailable\nkafka: down\nspool: none\ntopics: 0 ready, 0 missing, 0 refused\n";
    assert_eq!(health(&["--address", &address]), (Some(1), not_ready.to_owned()));
    assert_eq!(health(&["--address", &address, "--live"]), (Some(0), "alive\n".to_owned()));
    // From the configuration, which need not be complete: no app, and a token that is not here.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let settings =
        format!("[admin]\nlisten = \"0.0.0.0:{}\"\ntoken = {{ file = \"/nowhere\" }}\n", target.admin.port());
    std::fs::write(file.path(), settings).expect("written");
    let config = file.path().to_str().expect("text");
    assert_eq!(health(&["--config", config, "--live"]), (Some(0), "alive\n".to_owned()));
    // The listener for webhooks is another.
    let (code, text) = health(&["--address", &target.webhooks.to_string()]);
    assert!(code == Some(1) && text.contains("404 Not Found; is this the admin listener of a relay?"), "{text}");
    drop(target);
    let (code, text) = health(&["--address", &address]);
    assert!(code == Some(1) && text.contains(&format!("error: http://{address}/readyz: Connection refused")), "{text}");
}

/// What `check` prints, without the breaks of its lines, and its exit code.
fn check(brokers: &str, more: &str, arguments: &[&str]) -> (String, Option<i32>) {
    let file = configuration(brokers, more);
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    command.args(["check", "--config"]).arg(file.path()).args(arguments);
    for listen in ["LIVECHAT_RELAY__SERVER__LISTEN", "LIVECHAT_RELAY__ADMIN__LISTEN"] {
        command.env(listen, "127.0.0.1:0"); // the usual ports may be in use
    }
    let output = command.output().expect("the relay's binary");
    let text = stdout(&output) + &stderr(&output);
    (text.split_whitespace().collect::<Vec<_>>().join(" "), output.status.code())
}

#[test]
fn check_finds_a_port_that_another_program_has() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|address| (taken, address.to_string()));
    let (_taken, address) = taken.expect("an address");
    let directory = tempfile::tempdir().expect("a directory");
    let ports = |control: &str| {
        let more = format!("[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"{address}\"\n{control}");
        let file = configuration("127.0.0.1:1", &more);
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        command.env_remove("INVOCATION_ID").args(["check", "--json", "--config"]).arg(file.path());
        let output = command.output().expect("the relay's binary");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = report["findings"].as_array().expect("a list").iter();
        let ports = findings.filter(|finding| finding["check"] == "ports");
        let shown = |name: &str, finding: &Value| finding[name].as_str().expect("text").to_owned();
        ports.map(|finding| format!("{} {}", shown("status", finding), shown("detail", finding))).collect::<Vec<_>>()
    };
    let why = format!("admin.listen: cannot listen on {address}: Address already in use (os error 98)");
    let socket = directory.path().join("control.sock");
    assert_eq!(
        ports(&format!("[control]\nsocket = {socket:?}")),
        [
            format!("fail {why}: another program has it; stop that, or choose another port"),
            "ok free: 127.0.0.1:0".to_owned()
        ]
    );
    let unknown = &ports("")[0]; // a relay without a control socket may run
    assert!(unknown.starts_with(&format!("warn {why}; is that this relay")), "{unknown}");
}

#[test]
fn the_ports_of_demo_are_not_the_same() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let port = port.to_string();
    let output = relay(&["demo", "--once", "--port", &port, "--metrics-port", &port]);
    let expected = format!(
        "cannot listen on 127.0.0.1:{port}: Address already in use (os error 98); choose another port with --metrics-port"
    );
    assert!(output.status.code() == Some(1) && stderr(&output).contains(&expected), "{}", stderr(&output));
}

#[test]
fn check_says_why_kafka_cannot_be_reached_and_what_to_change_and_shows_no_secret() {
    let [directory, stranger] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    [&directory, &stranger].iter().for_each(|directory| security::certificate(directory.path()));
    let Some((kafka, secured)) = security::secured(directory.path()) else { return };
    let ca = |directory: &tempfile::TempDir| format!("{:?}", directory.path().join("ca.pem"));
    let properties = |protocol: &str, mechanism: &str, password: &str, ca: &str| {
        format!(
            r#"properties = {{ "security.protocol" = "{protocol}", "ssl.ca.location" = {ca}, "sasl.mechanism" = "{mechanism}", "sasl.username" = "relay", "sasl.password" = "{password}" }}"#
        )
    };
    let with = |protocol: &str, mechanism: &str| properties(protocol, mechanism, "s3cr3t-wrong", &ca(&directory));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("an address").to_string();
    let none = String::new();
    for (brokers, properties, why, remedy) in [
        (&*secured, with("sasl_ssl", "PLAIN"), "Invalid username or password", "\"sasl.password\""),
        (&secured, with("sasl_ssl", "SCRAM-SHA-512"), "invalid credentials", "\"sasl.password\""),
        (
            &secured,
            with("sasl_ssl", "SCRAM-SHA-256"),
            "supported mechanisms: PLAIN,SCRAM-SHA-512",
            "\"sasl.mechanism\"",
        ),
        (kafka.bootstrap(), with("ssl", "PLAIN"), "SSL handshake failed", "that port speaks no TLS"),
        (kafka.bootstrap(), with("sasl_plaintext", "PLAIN"), "mechanism handshake failed", "that port wants no login"),
        (&secured, none.clone(), "connection closed by peer", "that port wants TLS"),
        (&secured, with("sasl_plaintext", "PLAIN"), "connection closed by peer", "that port wants TLS"),
        (&secured, with("ssl", "PLAIN"), "closed by peer", "that port wants a login"),
        (
            &secured,
            properties("sasl_ssl", "PLAIN", security::PASSWORD, &ca(&stranger)),
            "certificate verify failed",
            "\"ssl.ca.location\"",
        ),
        ("no-such-host.invalid:9092", none.clone(), ": Failed to resolve: ", "the DNS"),
        ("127.0.0.1:1", none.clone(), "127.0.0.1:1: Connection refused; ", "is the port right"),
        (&silent, none, "no answer within 2s", "firewall"),
    ] {
        let (text, code) = check(brokers, &properties, &[]);
        assert_eq!(code, Some(1), "{text}");
        let found = text.split_once("FAIL brokers").map_or("", |(_, found)| found);
        assert!(found.contains(&format!("no broker answers at {brokers}")), "{text}");
        assert!(found.contains(why) && found.contains(remedy), "{why}, {remedy}: {text}");
        assert!(!text.contains("s3cr3t"), "{text}");
    }
    let right = properties("sasl_ssl", "PLAIN", security::PASSWORD, &ca(&directory));
    let (text, code) = check(&format!("127.0.0.1:1,{secured}"), &right, &[]);
    assert_eq!(code, Some(0), "one of two is enough: {text}");
}

#[test]
fn check_names_a_broker_that_cannot_be_reached_at_the_address_that_it_advertises() {
    let port = kafka::free_port();
    let advertised = format!("PLAINTEXT://127.0.0.1:{port}");
    let Some(kafka) = kafka::Kafka::start_or_skip(1, &[("advertised.listeners", &advertised)]) else { return };
    let (text, code) = check(kafka.bootstrap(), "", &[]);
    assert_eq!(code, Some(1), "{text}");
    let found = format!("{} answers, but 1 of 1 cannot be reached", kafka.bootstrap());
    assert!(text.contains(&found) && text.contains(&format!("broker 0 at 127.0.0.1:{port}: ")), "{text}");
    assert!(text.contains("Connection refused") && text.contains("advertised.listeners"), "{text}");

    // The brokers answer, as far as the relay can tell; it keeps what they do not take.
    let directory = tempfile::tempdir().expect("a directory");
    let path = format!("\"{}\"", directory.path().join("spool").display());
    let settings =
        [("spool.directory", &*path), ("kafka.publish_deadline", "\"1s\""), ("kafka.start_timeout", "\"1s\"")];
    let target = Relay::start(kafka.bootstrap(), &settings);
    assert_eq!(http::post(target.webhooks, incoming_event(&chat_id(), 1)).status, 200, "{}", target.log());
    assert_eq!(target.metric(r#"livechat_relay_events_total{action="incoming_event",outcome="spooled"}"#), 1.0);
}

#[test]
fn check_asks_the_brokers_whether_they_would_create_the_topics_and_names_the_setting() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let prefix = format!("would-{}.", chat_id());
    let with = |more: &str| format!("[topics]\nprefix = {prefix:?}\n{more}");

    let (text, code) = check(kafka.bootstrap(), &with(""), &[]);
    assert!(code == Some(0) && text.contains("ok topics 48 missing; serve creates them"), "{text}");
    let (text, code) = check(kafka.bootstrap(), &with("replication = 2"), &[]);
    assert!(code == Some(1) && text.contains("FAIL topics missing: all 48 topics"), "{text}");
    assert!(text.contains("InvalidReplicationFactor") && text.contains("set topics.replication"), "{text}");
    assert!(!text.contains("ok sizes"), "nothing is known of topics that do not exist: {text}");
    let (text, code) = check(kafka.bootstrap(), &with("settings = { \"retention.mss\" = 1 }"), &[]);
    assert!(code == Some(1) && text.contains("InvalidConfig") && text.contains("change topics.settings"), "{text}");
    assert!(!kafka.topics().iter().any(|topic| topic.starts_with(&prefix)), "check creates none");
}

#[test]
fn check_warns_of_what_works_and_may_lose_events_and_that_is_no_failure() {
    let Some(kafka) = kafka::Kafka::start_or_skip(3, &[]) else { return };
    kafka.create_topic("one.thread_tagged", 1, &[("retention.ms", "3600000"), ("max.message.bytes", "20000")]);
    kafka.create_topic("one.incoming_event", 1, &[("max.message.bytes", "20001"), ("min.insync.replicas", "2")]);
    let directory = tempfile::tempdir().expect("a directory");
    let more = |more: &str| {
        format!(
            "[spool]\ndirectory = \"{}\"\n[topics]\nprefix = \"one.\"\n{more}",
            directory.path().join("s").display()
        )
    };
    let (text, code) = check(kafka.bootstrap(), &more("replication = 1"), &[]);
    assert_eq!(code, Some(0), "{text}");
    for warning in [
        "warn replicas one, though there are 3 brokers: one.access_set, ",
        "set topics.replication = 3",
        "warn replicas min.insync.replicas is 1: one.thread_tagged;",
        "warn retention less than three days (retention.ms): one.thread_tagged;",
        "warn sizes one.thread_tagged accepts records of 20000 bytes at most; one.incoming_event accepts records of 20001 bytes at most;",
    ] {
        assert!(text.to_lowercase().contains(&warning.to_lowercase()), "no `{warning}` in {text}");
    }

    let (text, _) = check(kafka.bootstrap(), &more(""), &[]);
    assert!(!text.contains("replicas one,"), "{text}");
    assert!(text.contains("min.insync.replicas is 1: one.thread_tagged;"), "{text}");

    let (text, code) = check(kafka.bootstrap(), &more("create = false"), &["--json"]);
    assert_eq!(code, Some(1), "{text}");
    let report: Value = serde_json::from_str(text.split("error:").next().unwrap_or_default()).expect("JSON");
    assert_eq!(report["ok"], false);
    let found = |check: &str, status: &str| {
        let findings = report["findings"].as_array().expect("findings");
        let found = findings.iter().find(|f| f["check"] == check && f["status"] == status);
        found.and_then(|f| f["detail"].as_str()).unwrap_or_else(|| panic!("no {status} {check} in {text}")).to_owned()
    };
    assert!(found("topics", "fail").contains("one.incoming_chat") && !found("topics", "fail").contains("dead-letter"));
    assert!(found("dead letters", "warn").contains("the topic one.dead-letter is missing: they are kept on the disk"));
    assert_eq!(found("brokers", "ok"), format!("3 at {}", kafka.bootstrap()));
}

#[test]
fn check_shows_each_step_as_it_is_done_and_ends_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("an address").to_string();
    let file = configuration(&silent, "");
    let text = std::fs::read_to_string(file.path()).expect("written").replace("\"2s\"", "\"5m\"");
    std::fs::write(file.path(), text).expect("written");
    let path = file.path().to_str().expect("a path");

    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    let mut child = command
        .args(["check", "--timeout", "10m", "--config", path])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the relay's binary");
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("a pipe")));
    let spool = lines.map_while(Result::ok).find(|line| line.starts_with("ok    spool"));
    assert!(spool.is_some() && child.try_wait().expect("a child").is_none(), "it is still asking the brokers");
    child.kill().expect("a process of ours");
    child.wait().expect("a child");

    let late = relay(&["check", "--timeout", "500ms", "--config", path]);
    let text = stdout(&late);
    assert_eq!(late.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL  time           not done within 500ms, while checking: brokers;"), "{text}");

    let offline = relay(&["check", "--offline", "--config", path]);
    let text = stdout(&offline);
    assert!(offline.status.success() && text.contains("ok    app") && !text.contains("brokers"), "{text}");
    let verdict = text.lines().last().unwrap_or_default();
    assert!(verdict.starts_with("ready: ") && verdict.ends_with(", Kafka not asked"), "{text}");
}
