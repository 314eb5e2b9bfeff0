//! Secret keys that are rotated: what a sender is answered before, while and after a key is valid, and what tells the operator.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET, await_that, configuration};
use crate::support::{chat_id, data, http, with_secret};

const OLD: &str = "s3cr3t-Xq9-old-key-of-the-tests";

fn start(mock: &Mock, apps: &str) -> Relay {
    // The mock does not answer what the topics' settings are; so long a start waits for that.
    let settings = [("apps", apps), ("kafka.start_timeout", "\"1s\"")];
    Relay::start(&mock.bootstrap(), &settings).ready()
}

/// A relay whose old key ends in so many seconds, and when that is; none where it has ended before the first webhook.
fn started(mock: &Mock, keys: &str, seconds: u64) -> Option<(Relay, Timestamp)> {
    let end = Timestamp::now() + Duration::from_secs(seconds);
    let apps = format!(
        r#"[{{ name = "default", secret_keys = {{ directory = {keys:?}, not_after = {{ "2026-10" = {end} }} }} }}]"#
    );
    let relay = start(mock, &apps);
    let status = http::post(relay.webhooks, with_secret(&data(&chat_id(), 1), OLD)).status;
    (status == 200).then_some((relay, end))
}

/// A sender changes its key at some time of its own; the old key ends after that. No right key is refused, no ended key is taken.
#[test]
fn a_rotation_under_load_has_no_wrong_answer_and_the_metrics_tell_of_it() {
    let mock = Mock::start();
    let keys = tempfile::tempdir().expect("a directory");
    for (name, key) in [("2026-10", OLD), ("2026-11", SECRET)] {
        std::fs::write(keys.path().join(name), format!("{key}\n")).expect("written");
    }
    // A busy machine may need more time for the start.
    let (relay, end) = [4, 10, 25, 60]
        .into_iter()
        .find_map(|seconds| started(&mock, keys.path().to_str().expect("text"), seconds))
        .expect("in time");
    assert!(relay.has_logged("the secret key 2026-10 expires on"));

    let has_ended = AtomicBool::new(false);
    let send = |sender: usize| {
        let (chat, mut n, mut counts) = (chat_id(), 0, [0, 0, 0]);
        // Each changes its key somewhere between two events; one never does.
        while !has_ended.load(Ordering::Relaxed) || n < 200 {
            let key = if n % 2 == 1 && sender > 0 { SECRET } else { OLD };
            n += 1;
            let began = Timestamp::now();
            let status = http::post(relay.webhooks, with_secret(&data(&chat, n), key)).status;
            let answered = Timestamp::now();
            match (key, status) {
                (SECRET, 200) => counts[0] += 1,
                (OLD, 200) if began < end => counts[1] += 1,
                (OLD, 401) if answered >= end => {
                    counts[2] += 1;
                    has_ended.store(true, Ordering::Relaxed);
                }
                _ => panic!("{status} for a webhook with the key {key} from {began} to {answered}; it ends at {end}"),
            }
        }
        counts
    };
    let counts = std::thread::scope(|scope| {
        let send = &send;
        let senders: Vec<_> = (0..4).map(|sender| scope.spawn(move || send(sender))).collect();
        senders.into_iter().map(|sender| sender.join().expect("no wrong answer")).collect::<Vec<_>>()
    });
    let [new, old, expired] = [0, 1, 2].map(|i| counts.iter().map(|counts| f64::from(counts[i])).sum::<f64>());
    assert!(new > 0.0 && expired > 0.0, "{counts:?}");
    assert_eq!(http::post(relay.webhooks, with_secret(&data(&chat_id(), 1), SECRET)).status, 200);
    let key = |metric: &str, key: &str| {
        relay.metric(&format!(r#"livechat_relay_secret_key_{metric}{{app="default",key="{key}"}}"#))
    };
    assert_eq!((key("used_total", "2026-11"), key("used_total", "2026-10")), (new + 1.0, old + 1.0));
    assert_eq!(relay.metric(r#"livechat_relay_rejected_total{reason="expired"}"#), expired);
    assert_eq!(key("not_after_timestamp_seconds", "2026-10"), end.as_second() as f64);
    let (last_old, ended) = (key("last_used_timestamp_seconds", "2026-10"), end.as_millisecond() as f64 / 1000.0);
    assert!(last_old <= ended && key("last_used_timestamp_seconds", "2026-11") > last_old, "{last_old} {ended}");

    // A stranger cannot tell an ended key from a wrong one; the operator reads its name.
    let answer = |key: &str| http::post(relay.webhooks, with_secret(&data(&chat_id(), 1), key));
    let [expired, wrong] = [answer(OLD), answer("s3cr3t-of-a-stranger")];
    let without_date =
        |head: &str| head.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n");
    assert_eq!((without_date(&expired.head), &expired.body), (without_date(&wrong.head), &wrong.body));
    assert!(relay.has_logged(r#""key":"2026-10","reason":"expired","not_after""#), "{}", relay.log());
    assert!(!relay.log().contains("s3cr3t"));
}

/// `check --offline` of a configuration with these keys: what it prints without its line breaks, and its exit code.
fn check(secret_keys: &str) -> (String, Option<i32>) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let apps = format!(r#"[{{ name = "default", secret_keys = {secret_keys} }}]"#);
    std::fs::write(file.path(), configuration("localhost:1", &[("apps", apps.as_str())])).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    let output =
        command.args(["check", "--offline", "--config"]).arg(file.path()).output().expect("the relay's binary");
    let text = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    (text, output.status.code())
}

#[test]
fn check_shows_the_dates_warns_of_an_end_and_fails_where_no_key_is_left() {
    let in_days = |days: i64| Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
    let key = |name: &str, days: i64| {
        format!(r#"{{ name = "{name}", value = "{name}-0123456789abcdef", not_after = {} }}"#, in_days(days))
    };
    let (text, code) = check(&format!("[{}]", key("far", 15)));
    assert!(
        code == Some(0) && text.contains("ok app default: secret keys far (until ") && !text.contains("warn dates"),
        "{text}"
    );
    let (text, code) = check(&format!("[{}, {}]", key("near", 13), key("far", 15)));
    assert!(code == Some(0) && text.contains("warn dates app default: the secret key near expires on"), "{text}");
    let (text, code) = check(&format!("[{}]", key("near", 13)));
    assert!(code == Some(1) && text.contains("FAIL dates app default: no secret key will be valid from"), "{text}");
    let (text, code) = check(&format!("[{}]", key("past", -1)));
    assert!(code == Some(1) && text.contains("FAIL dates app default: no secret key is valid now"), "{text}");

    let keys = tempfile::tempdir().expect("a directory");
    std::fs::write(keys.path().join("2026-11"), SECRET).expect("written");
    std::fs::write(keys.path().join("2026-11~"), OLD).expect("written");
    let (text, code) = check(&format!("{{ directory = {:?} }}", keys.path()));
    assert!(code == Some(0) && text.contains("these are ignored: 2026-11~"), "{text}");
    std::fs::remove_file(keys.path().join("2026-11")).expect("removed");
    let (text, code) = check(&format!("{{ directory = {:?} }}", keys.path()));
    assert!(code == Some(1) && text.contains("contains no keys: add a file for each"), "{text}");
}

/// What an operator waits for before a key is removed.
#[test]
fn a_key_that_has_verified_nothing_since_the_start_says_so() {
    let mock = Mock::start();
    let apps = format!(
        r#"[{{ name = "default", secret_keys = [{{ name = "a", value = "{OLD}" }}, {{ name = "b", value = "{SECRET}" }}] }}]"#
    );
    let relay = start(&mock, &apps);
    let last = |key: &str| {
        relay.metric(&format!(r#"livechat_relay_secret_key_last_used_timestamp_seconds{{app="default",key="{key}"}}"#))
    };
    let began = Timestamp::now().as_millisecond() as f64 / 1000.0;
    assert_eq!(http::post(relay.webhooks, with_secret(&data(&chat_id(), 1), SECRET)).status, 200);
    await_that("the use is shown", || last("b") >= began);
    assert_eq!(last("a"), 0.0);
    assert!(!http::get(relay.admin, "/metrics").body.contains("not_after_timestamp_seconds{"), "no key has a date");
}
