//! Refusals that a person understands: what the sender is told, what the log has, and what becomes of wrong keys without end.

use std::io::{Read as _, Write as _};

use crate::support::http::{Answer, connect, post, post_to, raw, read, request};
use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET};
use crate::support::{chat_id, data, incoming_event, with_secret};

fn wrong_key() -> String {
    with_secret(&data("C", 1), "no-key-of-ours")
}

fn lines(relay: &Relay, reason: &str) -> Vec<serde_json::Value> {
    let of = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok().filter(|line| line["reason"] == reason);
    relay.log().lines().filter_map(of).collect()
}

#[test]
fn a_sender_is_told_the_cause_and_the_remedy() {
    let mock = Mock::start();
    let settings = [("server.body_bytes_max", "\"1KiB\""), ("server.body_timeout", "\"3s\"")];
    let relay = mock.relay(&settings);
    let with_headers = |method: &str, path: &str, headers: &str| {
        let body = incoming_event(&chat_id(), 1);
        format!("{method} {path} HTTP/1.1\r\nhost: relay\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
            .into_bytes()
    };
    let of_body = |body: &str| request("/webhooks", "", body);
    let chunked = format!(
        "POST /webhooks HTTP/1.1\r\nhost: relay\r\ntransfer-encoding: chunked\r\n\r\n401\r\n{}",
        " ".repeat(0x401)
    );
    let late = "POST /webhooks HTTP/1.1\r\nhost: relay\r\ncontent-length: 9\r\n\r\n{";
    let long = format!("content-type: text/{}\r\n", "x".repeat(64));
    for (request, status, line) in [
        (
            with_headers("POST", "/webhooks", "content-type: application/x-www-form-urlencoded\r\n"),
            415,
            "Content-Type is application/x-www-form-urlencoded; send Content-Type: application/json (in UTF-8)",
        ),
        (
            with_headers("POST", "/webhooks", "content-type: application/json ; charset=latin1\r\n"),
            415,
            "charset is latin1; send the body in UTF-8",
        ),
        (
            with_headers("POST", "/webhooks", &format!("content-type: application/json; charset={SECRET}\r\n")),
            415,
            "send Content-Type: application/json (in UTF-8)",
        ),
        (with_headers("POST", "/webhooks", &long), 415, "send Content-Type: application/json (in UTF-8)"),
        (
            with_headers("POST", "/webhooks", "content-type: text/\u{e9}\r\n"),
            415,
            "send Content-Type: application/json (in UTF-8)",
        ),
        (
            with_headers("POST", "/webhooks", &format!("content-type: {SECRET}\r\n")),
            415,
            "send Content-Type: application/json (in UTF-8)",
        ),
        (
            with_headers("POST", "/webhooks", &format!("content-type: application/x; secret_key={SECRET}\r\n")),
            415,
            "Content-Type is application/x; send Content-Type: application/json (in UTF-8)",
        ),
        (
            with_headers("POST", "/webhooks", &format!("content-encoding: gzip, key={SECRET}\r\n")),
            415,
            "send the body without a Content-Encoding",
        ),
        (
            with_headers("POST", "/webhooks", "content-encoding: gzip\r\n"),
            415,
            "Content-Encoding is gzip; send the body without one",
        ),
        (with_headers("GET", "/webhooks", ""), 405, "GET is not allowed here; use POST"),
        (
            with_headers("POST", "/webhook", ""),
            404,
            "not found; POST webhooks to /webhooks/<app>, or to /webhooks if only one app is configured",
        ),
        (of_body(&" ".repeat(1025)), 413, "the body is larger than server.body_bytes_max, 1024 bytes"),
        (chunked.into_bytes(), 413, "the body is larger than server.body_bytes_max, 1024 bytes"),
        (late.into(), 408, "the body was not complete within server.body_timeout, 3s"),
        (of_body(""), 400, "the body is empty; send the webhook as JSON"),
        (of_body("{\n\"action\":}"), 400, "the body is not JSON: see line 2, column 10"),
        (of_body("{\"action\":\"a\""), 400, "the body ends before its JSON is complete: see line 1, column 13"),
        (
            of_body(r#"{"secret_key":"k","secret_key":"l"}"#),
            400,
            "duplicate key \"secret_key\" in the JSON object: see line 1, column 19",
        ),
        (of_body("[]"), 400, "the body is not a JSON object"),
        (of_body(r#"{"payload":{}}"#), 400, "the body has no string \"action\" (\"event\" in an App Webhook)"),
        (of_body(r#"{"action":"a"}"#), 400, "the body has no member \"payload\""),
        (of_body(&wrong_key()), 401, "unauthorized"),
        (request("/webhooks", "host: twice\r\n", "{}"), 400, "send one valid Host header"),
    ] {
        let answer = raw(relay.webhooks, &request).expect("an answer");
        let request = String::from_utf8_lossy(&request).into_owned();
        assert_eq!((answer.status, answer.body.as_str()), (status, &*format!("{line}\n")), "{request}");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"), "{request}");
    }
    assert!(!relay.log().contains(SECRET), "nor has the log a key in the wrong place");
}

#[test]
fn each_refusal_is_logged_by_reason_and_path_with_the_client_and_none_hides_another() {
    let mock = Mock::start();
    let mut relay = mock.relay(&[]);
    for n in 0..300 {
        assert_eq!(post_to(relay.webhooks, &format!("/scanned{n}"), "").status, 404);
    }
    assert_eq!(post_to(relay.webhooks, "/livechat/webhook/", "{}").status, 404);
    assert_eq!(post_to(relay.webhooks, "/webhooks/defualt", wrong_key()).status, 401);
    assert_eq!(post_to(relay.webhooks, &format!("/webhooks/{SECRET}"), wrong_key()).status, 401);
    for _ in 0..10 {
        assert_eq!(post(relay.webhooks, wrong_key()).status, 401);
        assert_eq!(post(relay.webhooks, "{").status, 400);
        assert_eq!(
            raw(relay.webhooks, "GET /webhooks HTTP/1.1\r\nhost: relay\r\n\r\n").expect("an answer").status,
            405
        );
    }
    relay.await_log("method_not_allowed");
    // Each path once: on a slow machine a line may come again after ten seconds.
    let paths = |reason| {
        let paths = lines(&relay, reason).into_iter().map(|line| line["path"].as_str().map(str::to_owned));
        let mut paths: Vec<Option<String>> = paths.collect();
        paths.dedup();
        paths
    };
    let not_found = paths("not_found");
    assert!(not_found.len() < 100 && not_found.contains(&Some("/livechat/webhook/".to_owned())), "{not_found:?}");
    let [typo, hidden, known] = ["/webhooks/defualt", "/webhooks/…", "/webhooks"].map(|path| Some(path.to_owned()));
    assert_eq!((paths("unknown_app"), paths("unauthorized")), (vec![typo, hidden], vec![known.clone()]));
    assert_eq!((paths("not_json"), paths("method_not_allowed")), (vec![known.clone()], vec![known]));
    let line = &lines(&relay, "not_json")[0];
    assert_eq!(
        (&line["client"], &line["app"], &line["suppressed"]),
        (&"127.0.0.1".into(), &"default".into(), &serde_json::Value::Null) // nothing was left out
    );
    assert_eq!(line["answer"], "the body ends before its JSON is complete: see line 1, column 1");
    assert!(!relay.log().contains(SECRET));
}

#[test]
fn tls_at_a_port_without_it_is_logged() {
    let mock = Mock::start();
    let mut relay = mock.relay(&[]);
    let hello = [&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 194]].concat();
    assert_eq!(raw(relay.webhooks, &hello).expect("an answer").status, 400);
    let line: serde_json::Value =
        serde_json::from_str(&relay.await_log("a client speaks TLS to a port without TLS")).expect("a JSON line");
    assert_eq!((&line["level"], &line["peer"]), (&"WARN".into(), &"127.0.0.1".into()));
}

#[test]
fn past_a_limit_wrong_keys_are_answered_429_and_a_right_key_is_never_limited() {
    const OLD: &str = "a-key-that-was-right-until-2025";
    let mock = Mock::start();
    let keys = format!(
        r#"[{{ name = "test", value = "{SECRET}" }}, {{ name = "old", value = "{OLD}", not_after = 2025-01-01T00:00:00Z }}]"#
    );
    let apps = format!(r#"[{{ name = "default", secret_keys = {keys} }}]"#);
    let limit = [("server.failed_verifications.per_minute", "1"), ("server.failed_verifications.burst", "3")];
    let mut relay = mock.relay(&[&limit[..], &[("apps", &apps)]].concat());
    // A key that was right is no guess.
    let expired = || post(relay.webhooks, with_secret(&data(&chat_id(), 1), OLD)).status;
    assert_eq!([(); 8].map(|()| expired()), [401; 8]);
    let statuses: Vec<u16> = (0..8).map(|_| post(relay.webhooks, wrong_key()).status).collect();
    assert_eq!((&statuses[..3], &statuses[3..]), (&[401; 3][..], &[429; 5][..]));
    assert_eq!(expired(), 401);
    assert_eq!(relay.metric(r#"livechat_relay_rejected_total{reason="expired"}"#), 9.0);

    // On a connection that has earned keep-alive, and is closed all the same.
    let mut stream = connect(relay.webhooks);
    let mut ask = |body: &str| -> Answer {
        stream.write_all(&request("/webhooks", "", body)).expect("a socket");
        read(&mut stream).expect("an answer")
    };
    for n in 0..5 {
        assert_eq!(ask(&incoming_event(&chat_id(), n)).status, 200);
    }
    let answer = ask(&wrong_key());
    assert_eq!((answer.status, answer.header("connection")), (429, Some("close")));
    let retry_after: u64 = answer.header("retry-after").expect("a header").parse().expect("seconds");
    assert!((1..=60).contains(&retry_after), "{retry_after}");
    assert_eq!(answer.body, "too many webhooks with a wrong secret key; try again later\n");

    // Nor is anything else that is wrong; and an unknown app is as a wrong key.
    assert_eq!(post(relay.webhooks, "{").status, 400);
    assert_eq!(post_to(relay.webhooks, "/webhooks/unknown", incoming_event("C", 1)).status, 429);
    assert_eq!(post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
    assert_eq!(relay.metric(r#"livechat_relay_rejected_total{reason="unauthorized"}"#), 3.0);
    assert_eq!(relay.metric(r#"livechat_relay_rejected_total{reason="too_many_failures"}"#), 7.0);
    assert_eq!(relay.metric(r#"livechat_relay_requests_total{code="429"}"#), 7.0);
    relay.await_log("not_json");
    assert_eq!(lines(&relay, "too_many_failures").len(), 1, "they stop");
}

#[test]
fn at_debug_each_webhook_has_a_line_that_identifies_it() {
    let mock = Mock::start();
    let mut relay = mock.relay(&[("log.filter", "\"debug\"")]);
    let (chat, quiet) = (chat_id(), chat_id());
    let body = incoming_event(&chat, 1);
    assert_eq!(post(relay.webhooks, &body).status, 200);
    assert_eq!(post(relay.webhooks, with_secret(&data(&quiet, 1), "no-key-of-ours")).status, 401);
    let line: serde_json::Value = serde_json::from_str(&relay.await_log("webhook handled")).expect("a JSON line");
    for (field, expected) in [
        ("app", "default"),
        ("key", "test"),
        ("action", "incoming_event"),
        ("topic", "livechat.incoming_event"),
        ("chat", &*chat),
        ("webhook_id", "7b2f"),
        ("record_key", &*chat),
        ("client", "127.0.0.1"),
        ("outcome", "Published"),
    ] {
        assert_eq!(line[field], expected, "{line}");
    }
    assert_eq!((&line["bytes"], &line["status"]), (&body.len().into(), &200.into()));
    assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{line}");
    let value = &mock.read("livechat.incoming_event")[0].value;
    let event: serde_json::Value = serde_json::from_slice(value).expect("JSON");
    assert_eq!(line["id"], event["id"]);
    assert!(line["ms"].is_u64(), "{line}");
    assert!(!relay.log().contains(SECRET) && !relay.log().contains(&quiet), "nothing unverified is logged");
}

/// Over HTTP/2 an answer before the end of a request ends in a reset of its stream, with which some clients lose the answer.
#[test]
fn over_http2_a_refusal_comes_after_the_body_that_is_on_its_way() {
    let mock = Mock::start();
    let relay = mock.relay(&[("server.linger_timeout", "\"30s\"")]);
    let mut stream = connect(relay.webhooks);
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).expect("a short frame");
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    // RFC 7541: :method POST, :scheme http, and literals of :path, :authority and content-type.
    let head = b"\x83\x86\x04\x09/webhooks\x01\x05relay\x0f\x10\x0atext/plain";
    let (settings, ping) = (frame(4, 0, 0, b""), frame(6, 0, 0, b"as-a-bar"));
    let request = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings, &frame(1, 4, 1, head), &ping].concat();
    stream.write_all(&request).expect("written");
    let mut reader = stream.try_clone().expect("a socket");
    let mut next = || {
        let mut header = [0; 9];
        reader.read_exact(&mut header).expect("a frame");
        let mut payload = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
        reader.read_exact(&mut payload).expect("a payload");
        (header[3], header[8], payload)
    };
    // Time enough for an answer to the head alone.
    for _ in 0..100 {
        let before: Vec<_> = std::iter::repeat_with(&mut next).take_while(|(kind, ..)| *kind != 6).collect();
        assert!(before.iter().all(|(_, stream, _)| *stream == 0), "{before:?}");
        stream.write_all(&ping).expect("written");
    }
    stream.write_all(&frame(0, 1, 1, b"{}")).expect("written");
    let (kind, ..) = std::iter::repeat_with(&mut next).find(|(_, stream, _)| *stream == 1).expect("an answer");
    assert_eq!(kind, 1, "HEADERS, not RST_STREAM");
    let (kind, _, text) = std::iter::repeat_with(&mut next).find(|(_, stream, _)| *stream == 1).expect("an answer");
    assert_eq!((kind, String::from_utf8_lossy(&text).starts_with("Content-Type is text/plain; send")), (0, true));
}
