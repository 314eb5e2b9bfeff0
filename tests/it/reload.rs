//! A running relay takes a changed configuration: all of it or nothing, said in the log, in metrics and by the commands, and no request
//! notices.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;

use crate::support::http;
use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET, await_that, configuration};
use crate::support::{chat_id, data, incoming_event, kafka, with_secret};

/// A relay with librdkafka's mock, whose control socket and secret files are in `directory`.
struct Place {
    relay: Relay,
    mock: Mock,
    directory: tempfile::TempDir,
}

type Settings<'a> = &'a [(&'a str, &'a str)];

const SUCCESSFUL: &str = "livechat_relay_config_last_reload_successful";

impl Place {
    fn start(settings: Settings<'_>) -> Self {
        let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
        let text = Self::text(&mock, directory.path(), settings);
        let relay = Relay::start_as(&text).ready();
        Self { relay, mock, directory }
    }

    fn text(mock: &Mock, directory: &Path, settings: Settings<'_>) -> String {
        let socket = format!("\"{}\"", directory.join("control.sock").display());
        // Looks at the sources are for the tests that want them.
        let own = [
            ("control.socket", socket.as_str()),
            ("topics.create", "false"),
            ("reload.check_interval", "\"0s\""),
            // The mock does not tell topic settings, and is asked in vain.
            ("kafka.start_timeout", "\"500ms\""),
        ];
        let is_set = |key: &str| settings.iter().any(|(set, _)| *set == key);
        let own: Vec<_> = own.into_iter().filter(|(key, _)| !is_set(key)).collect();
        configuration(&mock.bootstrap(), &[&own, settings].concat())
    }

    fn configure(&self, settings: Settings<'_>) {
        self.relay.configure(&Self::text(&self.mock, self.directory.path(), settings));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        command.args(arguments).arg("--socket").arg(self.path("control.sock")).output().expect("the relay's binary")
    }

    /// What `reload` answers, and its exit code.
    fn reload(&self, arguments: &[&str]) -> (serde_json::Value, Option<i32>) {
        let output = self.run(&[&["reload", "--json"], arguments].concat());
        (serde_json::from_slice(&output.stdout).unwrap_or_default(), output.status.code())
    }

    fn reloads(&self, result: &str) -> f64 {
        self.relay.metric(&format!("livechat_relay_config_reloads_total{{result=\"{result}\"}}"))
    }

    /// Posts a webhook with this secret key to an app.
    fn post(&self, app: &str, key: &str) -> http::Answer {
        http::post_to(self.relay.webhooks, &format!("/webhooks/{app}"), with_secret(&data(&chat_id(), 1), key))
    }
}

/// Apps that have their keys from files, by name.
fn apps(apps: &[(&str, &Path)]) -> String {
    let app = |(name, file): &(&str, &Path)| {
        let file = file.display();
        format!("{{ name = \"{name}\", secret_keys = [{{ name = \"test\", file = \"{file}\" }}] }}")
    };
    format!("[{}]", apps.iter().map(app).collect::<Vec<_>>().join(", "))
}

const DEFAULT: &str =
    r#"{ name = "default", secret_keys = [{ name = "test", value = "s3cr3t-Xq9-key-of-the-tests" }] }"#;
const OTHER: &str =
    r#"{ name = "other", topic_prefix = "x.", secret_keys = [{ name = "test", value = "the-key-of-the-other" }] }"#;

fn lines(text: &str, phrase: &str) -> usize {
    text.lines().filter(|line| line.contains(phrase)).count()
}

#[test]
fn a_reload_applies_apps_routes_and_limits_and_names_what_needs_a_restart() {
    let place = Place::start(&[]);
    place.mock.0.create_topic("x.livechat.incoming_event", 1, 1).expect("a topic");
    assert_eq!((place.post("default", SECRET).status, place.post("other", "the-key-of-the-other").status), (200, 401));
    let both = format!("[{DEFAULT}, {OTHER}]");
    let changed = [
        ("apps", both.as_str()),
        ("topics.actions", "{ incoming_event = \"drop\", incoming_chat = \"livechat.unlisted\" }"),
        ("server.header_bytes_max", "\"9KiB\""),
        ("server.body_bytes_max", "\"1KiB\""),
        ("server.retry_after", "\"9s\""),
        ("retries.window", "\"0s\""),
    ];
    place.configure(&changed);
    let expected = [
        "apps[other]",
        "retries.window",
        "server.header_bytes_max",
        "server.retry_after",
        "topics.actions.incoming_chat",
        "topics.actions.incoming_event",
    ];
    let (answer, code) = place.reload(&["--dry-run"]);
    assert_eq!((&answer["changed"], code), (&serde_json::json!(expected), Some(0)));
    assert_eq!((place.post("other", "the-key-of-the-other").status, place.reloads("applied")), (401, 0.0));

    let (answer, code) = place.reload(&[]);

    assert_eq!((&answer["changed"], code), (&serde_json::json!(expected), Some(0)));
    assert_eq!(answer["needs_restart"], serde_json::json!(["server.body_bytes_max"]));
    assert_eq!(place.relay.metric("livechat_relay_config_keys_awaiting_restart"), 1.0);
    let dropped = r#"livechat_relay_events_total{action="incoming_event",outcome="dropped"}"#;
    assert_eq!((place.post("other", "the-key-of-the-other").status, place.post("default", SECRET).status), (200, 200));
    assert_eq!(place.relay.metric(dropped), 2.0);
    let large_head = |bytes: usize| {
        let header = format!("x: {}\r\nconnection: close\r\n", "x".repeat(bytes));
        http::raw(place.relay.webhooks, http::request("/webhooks/default", &header, incoming_event(&chat_id(), 1)))
    };
    assert_eq!(large_head(10_000).map(|answer| answer.status), Some(431));
    // The keys that stay are counted on: a metric never falls.
    let uses = r#"livechat_relay_secret_key_used_total{app="default",key="test"}"#;
    assert_eq!(place.relay.metric(uses), 2.0);
    let (answer, _) = place.reload(&[]);
    assert_eq!((answer["changed"].as_array().map(Vec::len), place.reloads("unchanged")), (Some(0), 1.0));
    let changed = place.relay.log().lines().find(|line| line.contains("configuration reloaded")).map(str::to_owned);
    assert!(changed.expect("a line").contains("apps[other], retries.window, server.header_bytes_max"));
    assert!(!place.relay.log().contains("the-key-of-the-other"), "{}", place.relay.log());

    // A route back, and an app's topics of its own.
    place.configure(&[("apps", &both)]);
    assert_eq!(place.reload(&[]).1, Some(0));
    assert_eq!(place.post("other", "the-key-of-the-other").status, 200);
    assert_eq!(place.mock.read("x.livechat.incoming_event").len(), 1);
    assert_eq!(place.relay.metric("livechat_relay_config_keys_awaiting_restart"), 0.0);
}

#[test]
fn a_new_route_has_its_topic_before_its_first_event() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]).ready();
    assert_eq!(http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
    let topic = format!("reloaded-{}", chat_id());
    let route = format!("{{ incoming_event = \"{topic}\" }}");
    relay.configure(&configuration(kafka.bootstrap(), &[("topics.actions", &route)]));
    relay.signal(Signal::HUP);
    assert!(relay.has_logged("configuration reloaded"), "{}", relay.log());
    // Without a spool an event whose topic is missing is answered 503.
    let chat = chat_id();
    assert_eq!(http::post(relay.webhooks, incoming_event(&chat, 1)).status, 200);
    assert_eq!(kafka.read_all(&[&topic]).len(), 1);
}

#[test]
fn an_invalid_configuration_changes_nothing_and_says_so_everywhere_until_it_is_right_again() {
    let mut place = Place::start(&[]);
    let wrong = [("server.retry_after", "\"soon\""), ("log.filter", "\"s3cr3t-filter\""), ("apps", "[]")];
    place.configure(&wrong);
    place.relay.signal(Signal::HUP);
    let line = place.relay.await_log("the configuration is invalid; the former one stays");
    let keys = ["server.retry_after: must be a duration", "log.filter: must be", "apps: is empty"];
    assert!(keys.iter().all(|key| line.contains(key)) && line.contains("\"ERROR\""), "{line}");
    await_that("the metric says so", || place.relay.metric(SUCCESSFUL) == 0.0);
    assert_eq!(place.reloads("invalid"), 1.0);
    assert_eq!(place.post("default", SECRET).status, 200);

    let output = place.run(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(64) && keys.iter().all(|key| said.contains(key)), "{said}");
    let (answer, code) = place.reload(&[]);
    assert_eq!(
        (answer["mistakes"].as_array().map(Vec::len), &answer["may_pass"], code),
        (Some(3), &false.into(), Some(64))
    );
    assert!(!place.relay.log().contains("s3cr3t-filter") && !said.contains("s3cr3t-filter"));
    assert_eq!(place.post("default", SECRET).status, 200);

    // The commands reach the relay though they cannot read the file either.
    let file = place.relay.file().display().to_string();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        let output = command.args(arguments).args(["--config", &file]).output().expect("the relay's binary");
        (String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" "), output.status.code())
    };
    let (said, code) = command(&["check", "--offline"]);
    assert!(code == Some(64) && said.contains("FAIL running relay it cannot load") && said.contains(&file), "{said}");
    assert_eq!(command(&["reload"]).1, Some(64));
    assert_eq!((place.reloads("invalid"), command(&["log-level", "reset"]).1), (4.0, Some(0)));

    place.configure(&[]);
    let (answer, code) = place.reload(&[]);
    assert_eq!((answer["changed"].as_array().map(Vec::len), code), (Some(0), Some(0)));
    place.relay.await_log("the configuration is valid again");
    assert_eq!(place.relay.metric(SUCCESSFUL), 1.0);
}

#[test]
fn a_changed_secret_is_taken_without_being_told_and_a_mount_that_is_gone_costs_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    // As Kubernetes mounts a secret: the file is a link through `..data`, which is replaced.
    let (data, file) = (directory.path().join("..data"), directory.path().join("key"));
    let mount = |version: &str, key: &str| {
        let of_version = directory.path().join(version);
        std::fs::create_dir(&of_version).expect("a directory");
        std::fs::write(of_version.join("key"), key).expect("a key");
        let next = directory.path().join("..next");
        std::os::unix::fs::symlink(version, &next).expect("a link");
        std::fs::rename(next, &data).expect("replaced");
    };
    mount("1", "the first secret key");
    std::os::unix::fs::symlink("..data/key", &file).expect("a link");
    let apps = apps(&[("default", &file)]);
    let mut place = Place::start(&[("apps", &apps), ("reload.check_interval", "\"200ms\"")]);
    assert_eq!(
        (place.post("default", "the first secret key").status, place.post("default", "the second one").status),
        (200, 401)
    );

    mount("2", "the second one");
    let line = place.relay.await_log("configuration reloaded");
    assert!(line.contains("apps[default].secret_keys[test].file"), "{line}");
    assert_eq!(
        (place.post("default", "the first secret key").status, place.post("default", "the second one").status),
        (401, 200)
    );

    std::fs::remove_file(&data).expect("unmounted");
    let line = place.relay.await_log("the configuration cannot be read; the former one stays");
    assert!(
        line.contains("apps[0].secret_keys[0].file: the file cannot be read") && line.contains("\"WARN\""),
        "{line}"
    );
    assert_eq!(place.relay.metric(SUCCESSFUL), 0.0);
    let (answer, code) = place.reload(&["--dry-run"]);
    assert_eq!((&answer["may_pass"], code), (&true.into(), Some(1)));
    assert_eq!(place.post("default", "the second one").status, 200);

    std::os::unix::fs::symlink("2", &data).expect("mounted");
    place.relay.await_log("the configuration is valid again");
    assert_eq!(
        (place.reloads("unreadable"), place.reloads("applied")),
        (1.0, 1.0),
        "each is said once, not at each look"
    );
    assert_eq!((place.relay.metric(SUCCESSFUL), place.post("default", "the second one").status), (1.0, 200));
}

#[test]
fn a_file_system_that_hangs_holds_up_no_request_and_is_read_when_it_answers() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("key");
    std::fs::write(&file, "the first secret key").expect("a key");
    let apps = apps(&[("default", &file)]);
    let settings = [("apps", apps.as_str()), ("reload.timeout", "\"200ms\""), ("reload.check_interval", "\"100ms\"")];
    let mut place = Place::start(&settings);
    // To open a pipe that no one writes to never ends, as that of a file whose server is gone.
    std::fs::remove_file(&file).expect("removed");
    let made = Command::new("mkfifo").arg(&file).status().expect("mkfifo can be run");
    assert!(made.success());

    let line = place.relay.await_log("the configuration cannot be read; the former one stays");
    assert!(line.contains("not read within 200ms"), "{line}");
    assert_eq!(place.post("default", "the first secret key").status, 200);
    assert_eq!(place.reload(&[]).1, Some(1));
    assert_eq!(place.run(&["log-level", "warn"]).status.code(), Some(0), "what needs no file goes on");

    let mut pipe = std::fs::File::options().write(true).open(&file).expect("the look reads it");
    std::fs::remove_file(&file).expect("removed");
    std::fs::write(&file, "the second secret key").expect("a key");
    pipe.write_all(b"an old secret key").expect("written");
    drop(pipe);
    await_that("it is applied", || place.post("default", "the second secret key").status == 200);
    assert_eq!(place.post("default", "an old secret key").status, 401);
    assert_eq!(place.relay.metric(SUCCESSFUL), 1.0);
}

#[test]
fn a_request_that_is_under_way_when_its_app_is_removed_is_answered_as_if_it_were_not() {
    let both = format!("[{DEFAULT}, {OTHER}]");
    let place = Place::start(&[("apps", &both)]);
    place.mock.0.create_topic("x.livechat.incoming_event", 1, 1).expect("a topic");
    let body = with_secret(&data(&chat_id(), 1), "the-key-of-the-other");
    let request = http::request("/webhooks/other", "expect: 100-continue\r\n", &body);
    let head = request.len() - body.len();
    let mut connection = http::connect(place.relay.webhooks);
    connection.write_all(&request[..head]).expect("written");
    let mut asked = [0; 25];
    connection.read_exact(&mut asked).expect("the body is asked for: the app was found");
    assert!(asked.starts_with(b"HTTP/1.1 100 Continue"));

    place.configure(&[]);
    assert_eq!(place.reload(&[]).0["changed"], serde_json::json!(["apps[other]"]));

    assert_eq!(place.post("other", "the-key-of-the-other").status, 401);
    connection.write_all(&request[head..]).expect("written");
    assert_eq!(http::read(&mut connection).expect("an answer").status, 200);
    await_that("the event is on its topic", || place.mock.read("x.livechat.incoming_event").len() == 1);
}

#[test]
fn under_a_storm_of_reloads_right_and_wrong_no_request_fails() {
    const RELOADS: u64 = 300;
    let both = format!("[{DEFAULT}, {OTHER}]");
    let place = Place::start(&[("server.keepalive_timeout", "\"60s\"")]);
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let webhooks = place.relay.webhooks;
    let post = || {
        let (mut connection, mut statuses) = (http::connect(webhooks), HashSet::new());
        while !is_over.load(Ordering::Relaxed) {
            connection.write_all(&http::request("/webhooks/default", "", incoming_event(&chat_id(), 1))).expect("open");
            statuses.insert(http::read(&mut connection).expect("an answer on the same connection").status);
            sent.fetch_add(1, Ordering::Relaxed);
        }
        statuses
    };
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..8).map(|_| scope.spawn(post)).collect();
        for n in 0..RELOADS {
            let retry = format!("\"{}s\"", 1 + n % 60);
            let settings =
                [("server.retry_after", retry.as_str()), ("apps", &both), ("server.keepalive_timeout", "\"60s\"")];
            match n % 4 {
                0 => place.configure(&settings[..1]),
                1 => place.configure(&[("server.retry_after", "\"soon\"")]),
                _ => place.configure(&settings),
            }
            let before = sent.load(Ordering::Relaxed);
            place.relay.signal(Signal::HUP);
            await_that("requests go on", || sent.load(Ordering::Relaxed) > before);
        }
        place.configure(&[("server.retry_after", "\"61s\"")]);
        assert_eq!(place.reload(&[]).1, Some(0));
        is_over.store(true, Ordering::Relaxed);
        let statuses: HashSet<_> = senders.into_iter().flat_map(|sender| sender.join().expect("a sender")).collect();
        assert_eq!(statuses, HashSet::from([200]), "{}", place.relay.log());
    });
    let sent = sent.load(Ordering::Relaxed) as f64;
    assert_eq!(place.relay.metric(r#"livechat_relay_requests_total{code="200"}"#), sent);
    assert_eq!(place.relay.metric(r#"livechat_relay_secret_key_used_total{app="default",key="test"}"#), sent);
    assert!(place.reloads("applied") > 10.0 && place.reloads("invalid") > 5.0, "{}", place.relay.log());
    assert_eq!(place.mock.read("livechat.incoming_event").len() as f64, sent);
}

#[test]
fn the_log_has_another_filter_for_a_time_which_a_reload_does_not_end() {
    let mut place = Place::start(&[]);
    let handled = |place: &Place| lines(&place.relay.log(), "webhook handled");
    assert_eq!(place.post("default", SECRET).status, 200);
    for (filter, time) in [("verbose", "1m"), ("debug", "25h"), ("livechat_relay=debug", "1m")] {
        let refused = place.run(&["log-level", filter, "--for", time]);
        assert!(matches!(refused.status.code(), Some(1 | 64)), "{filter} {time}");
    }
    assert_eq!(handled(&place), 0);

    let output = place.run(&["log-level", "debug", "--for", "1h"]);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("the log's filter is debug until "), "{output:?}");
    assert_eq!(place.post("default", SECRET).status, 200);
    place.relay.await_log("webhook handled");
    place.configure(&[("log.filter", "\"warn\"")]);
    assert_eq!(place.reload(&[]).0["changed"], serde_json::json!(["log.filter"]));
    let before = handled(&place);
    assert_eq!(place.post("default", SECRET).status, 200);
    await_that("it is logged", || handled(&place) > before);

    // Its end is that of the time, or of who has set it; and then the filter is what is configured now.
    assert_eq!(place.run(&["log-level", "info", "--for", "1s"]).status.code(), Some(0));
    place.relay.await_log("the log filter is changed for a limited time");
    place.configure(&[("log.filter", "\"debug\"")]);
    assert_eq!(place.reload(&[]).1, Some(0));
    place.relay.await_log("the log filter is the configured one again");
    let before = handled(&place);
    assert_eq!(place.post("default", SECRET).status, 200);
    await_that("it is logged", || handled(&place) > before);
    assert_eq!(place.run(&["log-level", "error"]).status.code(), Some(0));
    let output = place.run(&["log-level", "reset"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "the log's filter is debug, as configured\n");
}

#[test]
fn check_says_whether_the_running_relay_has_the_configuration_as_it_is() {
    let place = Place::start(&[]);
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        let output = command.args(["check", "--offline", "--config"]).arg(place.relay.file()).output();
        let output = output.expect("the relay's binary");
        let text = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        (text, output.status.code())
    };
    let (text, code) = check();
    assert!(text.contains("ok running relay runs with") && code == Some(0), "{text}");
    place.configure(&[("server.retry_after", "\"9s\""), ("kafka.linger", "\"3ms\"")]);
    let (text, code) = check();
    assert!(text.contains("it has not loaded the changes in") && text.contains("does: server.retry_after"), "{text}");
    assert!(text.contains("need a restart: kafka.linger") && code == Some(0), "{text}");
    // What is wrong only where the relay runs: its environment, its user.
    let mut apps = apps(&[("default", Path::new("/proc/self/environ"))]);
    apps = apps.replace("file = \"/proc/self/environ\"", "env = \"ONLY_HERE\"");
    place.configure(&[("apps", &apps)]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    command.args(["check", "--offline", "--config"]).arg(place.relay.file()).env("ONLY_HERE", "a secret key of 16");
    let output = command.output().expect("the relay's binary");
    let text = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        text.contains("FAIL running relay it cannot load")
            && text.contains("the environment variable ONLY_HERE is not set"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1));
}

/// While webhooks come, another key is added, the senders change to it, the old one gets its end, and its file is removed.
#[test]
fn a_whole_rotation_under_load_refuses_no_webhook_with_the_key_of_its_time() {
    const SENDERS: usize = 4;
    let keys = tempfile::tempdir().expect("a directory");
    let add = |name: &str| {
        let hidden = keys.path().join(format!(".{name}"));
        std::fs::write(&hidden, format!("the-key-of-{name}\n")).expect("written");
        std::fs::rename(hidden, keys.path().join(name)).expect("renamed");
    };
    let apps =
        |dates: &str| format!(r#"[{{ name = "default", secret_keys = {{ directory = {:?}{dates} }} }}]"#, keys.path());
    add("2026-10");
    let place = Place::start(&[("apps", &apps(""))]);
    let webhooks = place.relay.webhooks;
    let post = |key: &str| {
        let body = with_secret(&data(&chat_id(), 1), &format!("the-key-of-{key}"));
        http::post_to(webhooks, "/webhooks/default", body).status
    };
    let reload = |dates: &str| {
        place.configure(&[("apps", &apps(dates))]);
        let (answer, code) = place.reload(&[]);
        assert_eq!(code, Some(0), "{answer}");
    };
    let metric = |series: &str| place.relay.metric(&format!("livechat_relay_{series}"));
    let used = |key: &str| metric(&format!(r#"secret_key_used_total{{app="default",key="{key}"}}"#));

    let (is_new, is_over, changed) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let send = || {
        let mut last = "2026-10";
        while !is_over.load(Ordering::SeqCst) {
            let key = if is_new.load(Ordering::SeqCst) { "2026-11" } else { "2026-10" };
            let status = post(key);
            if status != 200 {
                is_over.store(true, Ordering::SeqCst); // who waits for something must not wait in vain
            }
            assert_eq!(status, 200, "{key}");
            changed.fetch_add(u64::from(last != key), Ordering::SeqCst);
            last = key;
        }
    };
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
        let await_that = |what: &str, condition: &dyn Fn() -> bool| {
            await_that(what, || is_over.load(Ordering::SeqCst) || condition());
        };
        await_that("the old key is used", &|| used("2026-10") > 20.0);
        add("2026-11");
        reload("");
        is_new.store(true, Ordering::SeqCst);
        await_that("all senders have changed", &|| changed.load(Ordering::SeqCst) == SENDERS as u64);
        let end = jiff::Timestamp::now();
        reload(&format!(", not_after = {{ \"2026-10\" = {end} }}"));
        assert_eq!((post("2026-10"), metric(r#"rejected_total{reason="expired"}"#)), (401, 1.0));
        let before = used("2026-11");
        std::fs::remove_file(keys.path().join("2026-10")).expect("removed");
        reload("");
        assert_eq!((post("2026-10"), metric(r#"rejected_total{reason="unauthorized"}"#)), (401, 1.0));
        await_that("webhooks go on", &|| used("2026-11") > before + 20.0);
        is_over.store(true, Ordering::SeqCst);
        senders.into_iter().for_each(|sender| sender.join().expect("every answer was 200"));
    });
    let text = http::get(place.relay.admin, "/metrics").body;
    assert!(
        text.contains(r#"key="2026-11""#) && !text.contains(r#"key="2026-10""#),
        "the removed key is shown no more"
    );
    assert!(!place.relay.log().contains("the-key-of"));
}
