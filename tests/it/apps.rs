//! Several apps in one relay: the flood of one is not the 503 of the others.

use std::io::Write as _;
use std::net::TcpStream;

use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET, Settings, await_that};
use crate::support::{chat_id, data, http, with_secret};

/// Two apps with topics of their own.
fn start(mock: &Mock, settings: Settings<'_>) -> Relay {
    for app in ["flood", "quiet"] {
        mock.0.create_topic(&format!("{app}.livechat.incoming_event"), 1, 1).expect("a topic");
    }
    let app = |name: &str| {
        format!(
            r#"{{ name = "{name}", topic_prefix = "{name}.", secret_keys = [{{ name = "k", value = "{SECRET}" }}] }}"#
        )
    };
    let apps = format!("[{}, {}]", app("flood"), app("quiet"));
    let settings = [&[("apps", apps.as_str()), ("kafka.start_timeout", "\"1s\"")], settings].concat();
    Relay::start(&mock.bootstrap(), &settings).ready()
}

fn webhook(chat: &str, n: u64) -> String {
    with_secret(&data(chat, n), SECRET)
}

/// Sends a webhook, and does not wait for its answer.
fn begin(relay: &Relay, app: &str, chat: &str, n: u64) -> TcpStream {
    let mut stream = http::connect(relay.webhooks);
    let request = http::request(&format!("/webhooks/{app}"), "connection: close\r\n", webhook(chat, n));
    stream.write_all(&request).expect("written");
    stream
}

#[test]
fn each_app_has_counters_of_its_own_and_no_path_of_a_stranger_becomes_a_label() {
    let mock = Mock::start();
    let relay = start(&mock, &[]);
    let of = |name: &str, labels: &str| relay.metric(&format!("livechat_relay_{name}{{{labels}}}"));
    assert_eq!(of("unavailable_total", r#"app="quiet",reason="spool_full""#), 0.0, "there from the start");
    assert_eq!(http::post_to(relay.webhooks, "/webhooks/flood", webhook(&chat_id(), 1)).status, 200);
    let wrong = with_secret(&data("C", 1), "no-key-of-ours");
    assert_eq!(http::post_to(relay.webhooks, "/webhooks/quiet", &wrong).status, 401);
    assert_eq!(http::post_to(relay.webhooks, "/webhooks/invented", &wrong).status, 401);
    assert_eq!(http::post_to(relay.webhooks, "/invented", &wrong).status, 404);
    let published = |app| of("events_total", &format!(r#"app="{app}",outcome="published""#));
    assert_eq!((published("flood"), published("quiet")), (1.0, 0.0));
    for (app, refused) in [("flood", [0.0; 3]), ("quiet", [1.0, 0.0, 0.0]), ("unknown", [0.0, 1.0, 1.0])] {
        let of_reason = |reason| of("rejected_total", &format!(r#"app="{app}",reason="{reason}""#));
        assert_eq!(["unauthorized", "unknown_app", "not_found"].map(of_reason), refused, "{app}");
    }
    let metrics = http::get(relay.admin, "/metrics").body;
    let has_app =
        |app: &str| metrics.contains(&format!("livechat_relay_events_total{{action=\"unlisted\",app=\"{app}\""));
    assert_eq!(["flood", "quiet", "unknown"].map(has_app), [true, true, false]);
    assert!(!metrics.contains("invented"), "{metrics}");
}

#[test]
fn an_app_whose_webhooks_wait_for_kafka_leaves_memory_to_the_others() {
    let mock = Mock::start();
    let relay = start(&mock, &[("server.bytes_in_flight_max", "\"64KiB\""), ("server.body_bytes_max", "\"4KiB\"")]);
    mock.freeze();
    let flooded = || relay.metric(r#"livechat_relay_unavailable_total{reason="app_share"}"#);
    let chat = chat_id();
    let mut flood: Vec<_> =
        (0..1000).take_while(|_| flooded() == 0.0).map(|n| begin(&relay, "flood", &chat, n)).collect();
    assert!((16..50).contains(&flood.len()), "half of 64 KiB: {}", flood.len());
    assert!(relay.has_logged(r#""app":"flood""#) && relay.has_logged("so that other apps have room"));
    let held = relay.metric("livechat_relay_bytes_in_flight");
    let mut quiet = begin(&relay, "quiet", &chat, 0);
    await_that("the other app's webhook is held", || relay.metric("livechat_relay_bytes_in_flight") > held);
    mock.thaw();
    assert_eq!(http::read(&mut quiet).expect("an answer").status, 200);
    let answers: Vec<_> = flood.iter_mut().map(|stream| http::read(stream).expect("an answer")).collect();
    let (published, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert!(refused.iter().all(|answer| answer.status == 503 && answer.header("retry-after").is_some()));
    assert!(published.len() >= 16 && refused.len() as f64 == flooded(), "{} and {}", published.len(), refused.len());
    assert_eq!(http::post_to(relay.webhooks, "/webhooks/flood", webhook(&chat, 1000)).status, 200);
}

#[test]
fn an_app_whose_events_fill_the_spool_leaves_half_of_what_is_free_to_the_others() {
    let mock = Mock::start();
    let directory = tempfile::tempdir().expect("a directory");
    let directory = format!("{:?}", directory.path());
    let relay = start(
        &mock,
        &[
            ("spool.directory", directory.as_str()),
            ("spool.bytes_max", "\"1MiB\""),
            ("spool.segment_bytes", "\"64KiB\""),
            ("server.body_bytes_max", "\"16KiB\""),
            ("kafka.publish_deadline", "\"500ms\""),
        ],
    );
    mock.freeze();
    let chat = chat_id();
    let large = |n: u64| webhook(&chat, n).replace("Grüße", &"x".repeat(14_000));
    let post = |app: &str, n: u64| http::post_to(relay.webhooks, &format!("/webhooks/{app}"), large(n)).status;
    let taken = (0..200).take_while(|n| post("flood", *n) == 200).count();
    assert!((30..45).contains(&taken), "half of 1 MiB: {taken}");
    assert!(relay.has_logged("the app's waiting events have used up their share of the spool"));
    assert_eq!(relay.metric("livechat_relay_spool_accepting"), 1.0);
    let of_other = (0..10).filter(|n| post("quiet", *n) == 200).count();
    assert_eq!(of_other, 10);
    mock.thaw();
    await_that("what waited is published, and the app may have more", || post("flood", 1000) == 200);
}
