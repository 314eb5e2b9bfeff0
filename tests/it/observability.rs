//! What the relay tells of itself: metrics that Prometheus takes, and no secret in anything it says.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::support::relay::{Relay, SECRET};
use crate::support::{chat_id, data, http, incoming_event, kafka, with_secret};

/// A bit of everything that can happen to a webhook.
fn exercise(relay: &Relay) {
    let chat = chat_id();
    let good = incoming_event(&chat, 1);
    assert_eq!(http::post(relay.webhooks, &good).status, 200);
    for (body, status) in [
        (with_secret(&data(&chat, 2), &format!("{SECRET}x")), 401),
        (good.replacen("incoming_event", "never_heard_of", 1), 200),
        (good.replacen(r#""action""#, r#""actio""#, 1), 400),
        (good.replacen('{', "[", 1), 400),
        (good[..good.len() - 1].to_owned(), 400),
        (good.replacen(r#""payload""#, r#""secret_key":"again","payload""#, 1), 400),
        (good.replace(&format!(r#""{chat}""#), "17"), 200),
    ] {
        let answer = http::post(relay.webhooks, &body);
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert!(!answer.body.contains(SECRET) && !answer.head.contains(&SECRET.to_lowercase()));
    }
    assert_eq!(http::post_to(relay.webhooks, "/webhooks/nobody", &good).status, 401);
    assert_eq!(http::post_to(relay.webhooks, "/elsewhere", &good).status, 404);
}

#[test]
fn promtool_accepts_the_metrics() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]).ready();
    exercise(&relay);
    let metrics = http::get(relay.admin, "/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let refused = |reason| relay.metric(&format!(r#"livechat_relay_rejected_total{{reason="{reason}"}}"#));
    assert_eq!(["unauthorized", "unknown_app", "no_secret_key"].map(refused), [1.0, 1.0, 0.0]);
    assert_eq!(relay.metric(r#"livechat_relay_secret_key_used_total{app="default",key="test"}"#), 3.0);
    assert_eq!(relay.metric(r#"livechat_relay_events_total{action="unlisted",outcome="published"}"#), 1.0);
    assert_eq!(relay.metric(r#"livechat_relay_payload_faults_total{reason="no_key"}"#), 0.0);
    assert_eq!((relay.metric("livechat_relay_ready"), relay.metric("livechat_relay_bytes_in_flight")), (1.0, 0.0));

    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut promtool = match promtool {
        Ok(promtool) => promtool,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: promtool: {error}; `scripts/ensure.sh promtool` gets it");
            return;
        }
        Err(error) => panic!("promtool: {error}; `scripts/ensure.sh promtool` gets it"),
    };
    promtool.stdin.take().expect("a pipe").write_all(metrics.body.as_bytes()).expect("written");
    let checked = promtool.wait_with_output().expect("a child");
    let said = String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && said.is_empty(), "{said}");
}

#[test]
fn with_a_token_metrics_are_for_those_who_send_it_and_the_probes_stay_open() {
    const TOKEN: &str = "s3cr3t-Xq9+token/of~the.tests==";
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{TOKEN}\n")).expect("written");
    let token = format!("{{ file = {:?} }}", file.path());
    let relay = Relay::start("127.0.0.1:1", &[("admin.token", &token), ("log.filter", "\"trace\"")]);
    let scrape = |method: &str, authorization: &str| {
        let head = format!("{method} /metrics HTTP/1.1\r\nhost: relay\r\n{authorization}\r\n");
        http::raw(relay.admin, head)
    };
    for wrong in ["", "authorization: Bearer wrong\r\n", "authorization: Basic czNjcjN0\r\n"] {
        let answer = scrape("GET", wrong).expect("an answer");
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("bearer")), "{wrong}");
        assert!(!answer.body.contains("livechat_relay"), "{}", answer.body);
    }
    let answer = scrape("GET", &format!("Authorization: bearer {TOKEN}\r\n")).expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("\nlivechat_relay_scrapes_unauthorized_total 3\n"), "{}", answer.body);
    assert_eq!(http::get(relay.admin, "/livez").status, 200);
    assert_eq!(http::get(relay.admin, "/readyz").status, 503);
    assert!(relay.has_logged("scrape refused: admin.token is missing or wrong"), "{}", relay.log());
    assert!(!relay.log().contains("s3cr3t"), "{}", relay.log());
}

#[test]
fn the_secret_is_in_no_log_at_trace_level_no_metric_and_no_record() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{SECRET}\n")).expect("written");
    let apps = format!(r#"[{{ name = "default", secret_keys = [{{ name = "k", file = {:?} }}] }}]"#, file.path());
    let settings = [
        ("apps", apps.as_str()),
        ("log.filter", "\"trace\""),
        ("kafka.properties", r#"{ "ssl.key.password" = "s3cr3t-Xq9-of-kafka", "debug" = "msg,broker,security" }"#),
    ];
    let mut relay = Relay::start(kafka.bootstrap(), &settings);

    exercise(&relay);
    let metrics = http::get(relay.admin, "/metrics").body;
    relay.signal(rustix::process::Signal::TERM);
    relay.end();

    let log = relay.log();
    assert!(log.contains("TRACE") && log.contains("DEBUG"), "the log is not at trace level");
    assert!(!log.contains("s3cr3t"), "{}", log.lines().find(|line| line.contains("s3cr3t")).unwrap_or_default());
    assert!(!metrics.contains("s3cr3t"));
    for message in kafka.read_all(&["livechat.incoming_event", "livechat.unlisted"]) {
        let value = String::from_utf8_lossy(&message.value).into_owned();
        assert!(!value.contains("s3cr3t"), "{value}");
        assert!(message.headers.iter().all(|(_, value)| !String::from_utf8_lossy(value).contains("s3cr3t")));
    }
}
