//! The table of answers, row by row, and every limit of a connection from both sides.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::http::{Answer, connect, get, post, post_to, raw, read, request};
use crate::support::relay::{Relay, SECRET, await_that};
use crate::support::{chat_id, incoming_event, kafka, with_secret};

/// `server.body_bytes_max` of the relays here.
const BODY_MAX: usize = 1024;

/// `server.header_bytes_max`, the default.
const HEAD_MAX: usize = 16 * 1024;

/// Answers come within this time, whatever happens.
const DEADLINE: Duration = Duration::from_secs(8);

fn relay() -> Option<&'static Relay> {
    static RELAY: LazyLock<Option<Relay>> = LazyLock::new(|| {
        Some(Relay::start(kafka::shared_or_skip()?.bootstrap(), &[("server.body_bytes_max", "\"1KiB\"")]).ready())
    });
    RELAY.as_ref()
}

/// A relay that waits for nobody.
fn impatient_relay() -> Option<&'static Relay> {
    static RELAY: LazyLock<Option<Relay>> = LazyLock::new(|| {
        let settings = [
            ("server.header_timeout", "\"300ms\""),
            ("server.body_timeout", "\"300ms\""),
            ("server.write_timeout", "\"300ms\""),
            ("server.keepalive_timeout", "\"600ms\""),
            ("server.linger_timeout", "\"300ms\""),
        ];
        Some(Relay::start(kafka::shared_or_skip()?.bootstrap(), &settings))
    });
    RELAY.as_ref()
}

// 200

#[test]
fn a_verified_webhook_is_answered_200_with_an_empty_body_at_the_path_of_its_app_and_of_a_lone_app() {
    let Some(relay) = relay() else { return };
    for path in ["/webhooks/default", "/webhooks", "/webhooks?retry=1", "/webhooks/default?"] {
        let answer = post_to(relay.webhooks, path, incoming_event(&chat_id(), 1));
        assert_eq!(
            (answer.status, answer.body.as_str(), answer.header("content-length")),
            (200, "", Some("0")),
            "{path}"
        );
    }
}

#[test]
fn of_two_apps_each_takes_its_own_key_only_and_none_answers_at_the_bare_path() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let apps = r#"[{ name = "east", secret_keys = [{ name = "k", value = "key-of-the-east-app" }] },
                   { name = "west", secret_keys = [{ name = "k", value = "key-of-the-west-app" }] }]"#
        .replace('\n', "");
    let relay = Relay::start(kafka.bootstrap(), &[("apps", &apps)]);
    let event = |key| with_secret(r#"{"action":"incoming_event","payload":{}}"#, key);
    for (path, key, status) in [
        ("/webhooks/east", "key-of-the-east-app", 200),
        ("/webhooks/west", "key-of-the-west-app", 200),
        ("/webhooks/east", "key-of-the-west-app", 401),
        ("/webhooks/west", "key-of-the-east-app", 401),
        ("/webhooks", "key-of-the-east-app", 404),
    ] {
        assert_eq!(post_to(relay.webhooks, path, event(key)).status, status, "{path} {key}");
    }
}

// 401

#[test]
fn a_wrong_key_a_missing_key_and_an_unknown_app_are_answered_alike_to_the_byte() {
    let Some(relay) = relay() else { return };
    let wrong = with_secret(r#"{"action":"incoming_event","payload":{}}"#, "no-key-of-ours");
    let refused = |path: &str, body: &str| {
        let answer = post_to(relay.webhooks, path, body);
        assert_eq!(answer.status, 401, "{path} {body}");
        let head: Vec<String> =
            answer.head.lines().filter(|line| !line.starts_with("date:")).map(str::to_owned).collect();
        (head, answer.body)
    };
    let first = refused("/webhooks", &wrong);
    assert!(first.0.contains(&"www-authenticate: livechat-secret-key".to_owned()), "{first:?}");
    assert_eq!(first, refused("/webhooks/default", &wrong));
    assert_eq!(first, refused("/webhooks", r#"{"action":"incoming_event","payload":{}}"#));
    assert_eq!(first, refused("/webhooks/nobody", &incoming_event(&chat_id(), 1)));
    assert_eq!(first, refused("/webhooks/nobody", &wrong));
    assert_eq!(first, refused("/webhooks/DEFAULT", &incoming_event(&chat_id(), 1)));
}

// 400

#[test]
fn what_is_no_webhook_is_answered_400() {
    let Some(relay) = relay() else { return };
    let keyed = |rest: &str| format!(r#"{{"secret_key":"{SECRET}"{rest}}}"#).into_bytes();
    for body in [
        Vec::new(),
        b"no JSON".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        keyed(r#","action":"incoming_event","payload":{"#),
        keyed(r#","action":"incoming_event","payload":{},"action":"incoming_event""#),
        keyed(r#","action":"incoming_event","payload":{},"\u0070ayload":{}"#),
        keyed(r#","payload":{}"#),
        keyed(r#","action":7,"payload":{}"#),
        keyed(r#","action":"incoming_event""#),
        [keyed(r#","action":"incoming_event","payload":"#), vec![b'"', 0xff, b'"', b'}']].concat(),
    ] {
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(post(relay.webhooks, body).status, 400, "{text}");
    }
}

#[test]
fn one_valid_host_is_wanted_of_http_1_1_and_none_of_1_0() {
    let Some(relay) = relay() else { return };
    let body = incoming_event(&chat_id(), 1);
    let post = |version: &str, hosts: &str| {
        let length = body.len();
        let head = format!("POST /webhooks HTTP/{version}\r\n{hosts}content-length: {length}\r\n\r\n");
        raw(relay.webhooks, head + &body).expect("an answer").status
    };
    for (version, hosts, status) in [
        ("1.1", "host: relay\r\n", 200),
        ("1.1", "host: relay:8080\r\n", 200),
        ("1.1", "host: [::1]:8080\r\n", 200),
        ("1.1", "host:\r\n", 200),
        ("1.1", "", 400),
        ("1.1", "host: a\r\nhost: a\r\n", 400),
        ("1.1", "host: a b\r\n", 400),
        ("1.1", "host: user@relay\r\n", 400),
        ("1.0", "", 200),
        ("1.0", "host: a\r\nhost: b\r\n", 400),
    ] {
        assert_eq!(post(version, hosts), status, "HTTP/{version} {hosts:?}");
    }
}

// 404, 405, 415

#[test]
fn another_path_is_answered_404_whatever_the_method() {
    let Some(relay) = relay() else { return };
    for path in ["/", "/webhook", "/webhooksx", "/webhooks/", "/webhooks/default/", "/webhooks/a/b", "/metrics", "*"] {
        for method in ["POST", "GET", "OPTIONS"] {
            let answer = raw(relay.webhooks, format!("{method} {path} HTTP/1.1\r\nhost: relay\r\n\r\n"));
            assert_eq!(answer.expect("an answer").status, 404, "{method} {path}");
        }
    }
}

#[test]
fn another_method_is_answered_405_with_the_one_that_is_allowed() {
    let Some(relay) = relay() else { return };
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "BREW"] {
        let answer = raw(relay.webhooks, format!("{method} /webhooks HTTP/1.1\r\nhost: relay\r\n\r\n"));
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("post")), "{method}");
    }
}

#[test]
fn a_body_that_is_declared_other_than_plain_json_in_utf_8_is_answered_415() {
    let Some(relay) = relay() else { return };
    for (headers, status) in [
        ("", 200),
        ("content-type: application/json\r\n", 200),
        ("content-type: Application/JSON; charset=UTF-8\r\n", 200),
        ("content-type: application/json;charset=\"utf-8\"\r\ncontent-encoding: identity\r\n", 200),
        ("content-type: application/json; charset=utf8\r\n", 200),
        ("content-type: text/plain\r\n", 415),
        ("content-type: application/json5\r\n", 415),
        ("content-type: application/json; charset=latin1\r\n", 415),
        ("content-type: \u{e9}\r\n", 415),
        ("content-type: application/json\r\ncontent-encoding: gzip\r\n", 415),
        ("content-encoding: br\r\n", 415),
    ] {
        let body = incoming_event(&chat_id(), 1);
        let request =
            format!("POST /webhooks HTTP/1.1\r\nhost: relay\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
        assert_eq!(raw(relay.webhooks, request).expect("an answer").status, status, "{headers}");
    }
}

// 413

/// A webhook of exactly so many bytes.
fn padded(bytes: usize) -> String {
    let event = incoming_event(&chat_id(), 1);
    format!("{event}{}", " ".repeat(bytes - event.len()))
}

fn chunked(body: &str, chunk: usize) -> Vec<u8> {
    let mut request = b"POST /webhooks HTTP/1.1\r\nhost: relay\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.as_bytes().chunks(chunk) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

#[test]
fn a_body_of_body_bytes_max_passes_and_one_byte_more_is_answered_413() {
    let Some(relay) = relay() else { return };
    for (bytes, status) in [(BODY_MAX, 200), (BODY_MAX + 1, 413)] {
        assert_eq!(post(relay.webhooks, padded(bytes)).status, status, "declared, {bytes}");
        for chunk in [1, 100, bytes] {
            let answer = raw(relay.webhooks, chunked(&padded(bytes), chunk)).expect("an answer");
            assert_eq!(answer.status, status, "{bytes} in chunks of {chunk}");
        }
    }
}

#[test]
fn a_body_declared_too_large_is_refused_before_it_is_sent() {
    let Some(relay) = relay() else { return };
    for length in [BODY_MAX as u64 + 1, 1 << 40, i64::MAX as u64] {
        let mut stream = connect(relay.webhooks);
        write!(stream, "POST /webhooks HTTP/1.1\r\nhost: relay\r\ncontent-length: {length}\r\n\r\n").expect("a socket");
        let answer = read(&mut stream).expect("an answer");
        assert_eq!((answer.status, answer.header("connection")), (413, Some("close")), "{length}");
        assert_eq!(rest(&mut stream).expect("a clean end"), b"");
    }
}

#[test]
fn a_client_that_sends_its_too_large_body_anyway_is_answered_and_not_reset() {
    let Some(relay) = relay() else { return };
    let mut stream = connect(relay.webhooks);
    stream.write_all(&request("/webhooks", "", vec![b' '; 1 << 20])).expect("the relay reads on");
    assert_eq!(read(&mut stream).expect("an answer").status, 413);
    assert_eq!(rest(&mut stream).expect("a clean end"), b"");
}

/// What else comes until the connection ends; an error where it is reset.
fn rest(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).map(|_| rest)
}

// 431

/// A good request with a head of exactly so many bytes.
fn headed(bytes: usize) -> Vec<u8> {
    let body = incoming_event(&chat_id(), 1);
    let bare = request("/webhooks", "x: \r\n", &body).len() - body.len();
    request("/webhooks", &format!("x: {}\r\n", "x".repeat(bytes - bare)), body)
}

#[test]
fn a_head_of_header_bytes_max_passes_and_one_byte_more_is_answered_431() {
    let Some(relay) = relay() else { return };
    for (bytes, status) in [(HEAD_MAX - 1, 200), (HEAD_MAX, 200), (HEAD_MAX + 1, 431), (4 * HEAD_MAX, 431)] {
        let mut stream = connect(relay.webhooks);
        stream.write_all(&headed(bytes)).expect("the relay reads on");
        assert_eq!(read(&mut stream).expect("an answer").status, status, "{bytes}");
        if status == 431 {
            assert_eq!(rest(&mut stream).expect("a clean end"), b"");
        }
    }
}

#[test]
fn a_head_or_a_path_without_end_is_answered_431() {
    let Some(relay) = relay() else { return };
    for (start, more) in [("POST /webhooks/", "x"), ("POST /webhooks HTTP/1.1\r\n", "a: b\r\n"), ("POST /", "%20")] {
        let endless = format!("{start}{}", more.repeat(HEAD_MAX));
        assert_eq!(raw(relay.webhooks, endless).expect("an answer").status, 431, "{start}");
    }
}

#[test]
fn a_hundred_headers_pass_and_more_are_answered_431() {
    let Some(relay) = relay() else { return };
    for (more, status) in [(97, 200), (98, 431)] {
        let headers = "x: x\r\n".repeat(more);
        let answer = raw(relay.webhooks, request("/webhooks", &headers, incoming_event(&chat_id(), 1)));
        assert_eq!(answer.expect("an answer").status, status, "{more} and three");
    }
}

// Heads that are late, and 408 for bodies

/// The end of a connection, which comes without an answer within `header_timeout`, not `keepalive_timeout`.
fn assert_ends_as_late_head(relay: &Relay, mut slow: TcpStream) {
    let ends = || relay.metric(r#"livechat_relay_connections_ended_total{reason="header_timeout"}"#);
    assert_eq!(rest(&mut slow).expect("a clean end"), b"");
    await_that("it is counted", || ends() > 0.0);
}

#[test]
fn a_head_that_does_not_come_or_does_not_end_ends_the_connection_while_others_are_answered_at_once() {
    let Some(relay) = impatient_relay() else { return };
    for start in
        ["", "P", "PRI * HTTP/2.0\r\n", "POST /webhooks HTTP/1.1\r\nhost: re", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut slow = connect(relay.webhooks);
        slow.write_all(start.as_bytes()).expect("a socket");
        assert_eq!(post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).expect("a clean end");
        assert!(!rest.starts_with(b"HTTP/"), "{start:?}: {rest:?}"); // HTTP/2 has said what its settings are
    }
}

#[test]
fn the_second_head_on_a_connection_may_take_no_longer_than_the_first_wherever_it_begins() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    // An hour of keep-alive: what ends here ends as a head.
    let settings = [("server.header_timeout", "\"500ms\""), ("server.keepalive_timeout", "\"1h\"")];
    let relay = Relay::start(kafka.bootstrap(), &settings);
    let event = || request("/webhooks", "", incoming_event(&chat_id(), 1));
    for length in [1, 20, 60] {
        let begun = event()[..length].to_vec();
        // By itself, and in one segment with the first.
        let mut alone = connect(relay.webhooks);
        alone.write_all(&event()).expect("a socket");
        assert_eq!(read(&mut alone).expect("an answer").status, 200);
        alone.write_all(&begun).expect("a socket");
        let mut behind = connect(relay.webhooks);
        behind.write_all(&[event(), begun].concat()).expect("a socket");
        assert_eq!(read(&mut behind).expect("an answer").status, 200);
        assert_ends_as_late_head(&relay, alone);
        assert_ends_as_late_head(&relay, behind);
    }
    // What is complete is idle, however it was written.
    let mut idle = connect(relay.webhooks);
    for request in [event(), [event(), event()].concat()] {
        idle.write_all(&request).expect("a socket");
        while let Some(answer) = read(&mut idle) {
            assert_eq!(answer.status, 200);
            idle.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
        }
    }
    idle.set_read_timeout(Some(DEADLINE)).expect("a socket");
    idle.write_all(&event()).expect("a socket");
    assert_eq!(read(&mut idle).expect("it is open").status, 200);
}

#[test]
fn a_body_that_does_not_end_is_answered_408_while_others_are_answered_at_once() {
    let Some(relay) = impatient_relay() else { return };
    for start in ["content-length: 100\r\n\r\n{", "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"] {
        let mut slow = connect(relay.webhooks);
        write!(slow, "POST /webhooks HTTP/1.1\r\nhost: relay\r\n{start}").expect("a socket");
        assert_eq!(post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
        assert_is_late(&mut slow);
    }
}

#[test]
fn a_body_that_only_trickles_is_answered_408() {
    let Some(relay) = impatient_relay() else { return };
    let mut slow = connect(relay.webhooks);
    write!(slow, "POST /webhooks HTTP/1.1\r\nhost: relay\r\ncontent-length: 1000000\r\n\r\n").expect("a socket");
    let mut trickle = slow.try_clone().expect("a socket");
    let writer = std::thread::spawn(move || {
        while trickle.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_is_late(&mut slow);
    slow.shutdown(std::net::Shutdown::Both).expect("a socket");
    writer.join().expect("no panic");
}

fn assert_is_late(slow: &mut TcpStream) {
    let answer = read(slow).expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    assert_eq!(rest(slow).expect("a clean end"), b"");
}

// Connections

#[test]
fn an_idle_connection_is_closed_after_keepalive_timeout_without_a_word() {
    let Some(relay) = impatient_relay() else { return };
    let mut quiet = connect(relay.webhooks);
    quiet.write_all(&request("/webhooks", "", incoming_event(&chat_id(), 1))).expect("a socket");
    assert_eq!(read(&mut quiet).expect("an answer").status, 200);
    let since = Instant::now();
    assert_eq!(rest(&mut quiet).expect("a clean end"), b"");
    assert!(since.elapsed() < DEADLINE);
}

#[test]
fn keep_alive_is_earned_by_a_webhook_that_is_accepted_and_before_that_a_refusal_closes_the_connection() {
    let Some(relay) = relay() else { return };
    let refused: Vec<_> = mixed().into_iter().filter(|(_, status)| *status != 200).collect();
    for (request, status) in &refused {
        let mut stream = connect(relay.webhooks);
        stream.write_all(request).expect("a socket");
        let answer = read(&mut stream).expect("an answer");
        assert_eq!((answer.status, answer.header("connection")), (*status, Some("close")));
        assert_eq!(rest(&mut stream).expect("a clean end"), b"");
    }
}

#[test]
fn a_connection_that_has_earned_it_takes_request_after_request_whatever_they_are_answered() {
    let Some(relay) = relay() else { return };
    let mut stream = connect(relay.webhooks);
    for round in 0..3 {
        for (request, status) in mixed() {
            stream.write_all(&request).expect("a socket");
            assert_eq!(read(&mut stream).expect("an answer").status, status, "round {round}");
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let Some(relay) = relay() else { return };
    let requests: Vec<_> = (0..5).flat_map(|_| mixed()).collect();
    let mut stream = connect(relay.webhooks);
    let all: Vec<u8> = requests.iter().flat_map(|(request, _)| request.clone()).collect();
    stream.write_all(&all).expect("a socket");
    for (n, (_, status)) in requests.iter().enumerate() {
        assert_eq!(read(&mut stream).expect("an answer").status, *status, "request {n}");
    }
}

/// Requests after which a connection goes on.
fn mixed() -> Vec<(Vec<u8>, u16)> {
    vec![
        (request("/webhooks", "", incoming_event(&chat_id(), 1)), 200),
        (b"GET /webhooks HTTP/1.1\r\nhost: relay\r\n\r\n".to_vec(), 405),
        (request("/webhooks", "", "{}"), 400),
        (chunked(&incoming_event(&chat_id(), 1), 100), 200),
        (request("/webhooks/nobody", "", incoming_event(&chat_id(), 1)), 401),
        (b"GET /nowhere HTTP/1.1\r\nhost: relay\r\n\r\n".to_vec(), 404),
    ]
}

/// hyper can hold back an answer while bytes of a next request are there; LiveChat's patience would end meanwhile.
#[test]
fn an_answer_does_not_wait_for_the_request_behind_it() {
    let Some(relay) = relay() else { return };
    let mut stream = connect(relay.webhooks);
    let mut both = request("/webhooks", "", incoming_event(&chat_id(), 1));
    let second = request("/webhooks", "", incoming_event(&chat_id(), 2));
    let (begun, left) = second.split_at(60);
    both.extend_from_slice(begun);
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream.write_all(&both).expect("a socket");
    assert_eq!(read(&mut stream).expect("the first answer").status, 200);
    stream.write_all(left).expect("a socket");
    assert_eq!(read(&mut stream).expect("the second answer").status, 200);
}

#[test]
fn where_a_refused_request_leaves_a_body_unread_the_connection_says_that_it_closes() {
    let Some(relay) = relay() else { return };
    let body = incoming_event(&chat_id(), 1);
    for (path, headers, status) in
        [("/nowhere", "", 404), ("/webhooks", "content-encoding: gzip\r\n", 415), ("/webhooks/a/b", "", 404)]
    {
        let mut stream = connect(relay.webhooks);
        stream.write_all(&request(path, headers, &body)).expect("a socket");
        let answer = read(&mut stream).expect("an answer");
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{path}");
        assert_eq!(rest(&mut stream).expect("a clean end"), b"");
    }
}

#[test]
fn who_asks_before_sending_a_body_is_told_to_go_on_or_refused_at_once() {
    let Some(relay) = relay() else { return };
    let body = incoming_event(&chat_id(), 1);
    let ask = |length: usize, path: &str| {
        let mut stream = connect(relay.webhooks);
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: relay\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
        .expect("a socket");
        let answer = read(&mut stream).expect("an answer");
        (stream, answer.status)
    };
    let (mut stream, status) = ask(body.len(), "/webhooks");
    assert_eq!(status, 100);
    stream.write_all(body.as_bytes()).expect("a socket");
    assert_eq!(read(&mut stream).expect("an answer").status, 200);
    assert_eq!(ask(BODY_MAX + 1, "/webhooks").1, 413);
    assert_eq!(ask(body.len(), "/nowhere").1, 404);
}

#[test]
fn beyond_connections_max_the_connection_that_has_waited_longest_makes_room_strangers_first() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    // A stranger that is younger than the grace would be spared, and one that is late ends by itself.
    let grace = Duration::from_millis(10);
    let settings =
        [("server.connections_max", "3"), ("server.eviction_grace", "\"10ms\""), ("server.header_timeout", "\"1m\"")];
    let relay = Relay::start(kafka.bootstrap(), &settings);
    let event = || request("/webhooks", "", incoming_event(&chat_id(), 1));
    let say = |stream: &mut TcpStream| {
        stream.write_all(&event()).expect("a socket");
        read(stream).map(|answer| answer.status)
    };
    let [mut first, mut second] = [connect(relay.webhooks), connect(relay.webhooks)];
    assert_eq!((say(&mut first), say(&mut second)), (Some(200), Some(200)));
    let open = |n: f64| await_that("they are open", || relay.metric("livechat_relay_connections") == n);
    let mut stranger = connect(relay.webhooks);
    stranger.write_all(b"POST /webhooks HTTP/1.1\r\n").expect("a socket");
    open(3.0);
    let is_open = Instant::now();
    await_that("the stranger is past the grace", || is_open.elapsed() > grace);

    let mut third = connect(relay.webhooks);
    assert_eq!(say(&mut third), Some(200), "a stranger makes room though it came last");
    assert_eq!(rest(&mut stranger).expect("a clean end"), b"");
    let mut fourth = connect(relay.webhooks);
    assert_eq!(say(&mut fourth), Some(200));
    assert_eq!(rest(&mut first).expect("a clean end"), b"", "of those that are known, the one that has waited longest");
    assert_eq!((say(&mut second), say(&mut third)), (Some(200), Some(200)));
    assert_eq!(relay.metric(r#"livechat_relay_connections_ended_total{reason="evicted"}"#), 2.0);
    assert!(relay.has_logged("connections_max is reached"), "{}", relay.log());
}

// HTTP/2

#[test]
fn http_2_is_spoken_with_the_same_answers() {
    let Some(relay) = relay() else { return };
    let good = || incoming_event(&chat_id(), 1);
    let long = "x".repeat(2 * HEAD_MAX);
    for (method, path, header, body, status) in [
        ("POST", "/webhooks", ("x", "x"), good(), 200),
        ("POST", "/webhooks/default", ("content-type", "application/json"), good(), 200),
        ("POST", "/webhooks/nobody", ("x", "x"), good(), 401),
        ("POST", "/webhooks", ("x", "x"), "{}".to_owned(), 400),
        ("POST", "/nowhere", ("x", "x"), good(), 404),
        ("GET", "/webhooks", ("x", "x"), String::new(), 405),
        ("POST", "/webhooks", ("content-type", "text/plain"), good(), 415),
        ("POST", "/webhooks", ("x", "x"), padded(BODY_MAX), 200),
        ("POST", "/webhooks", ("x", "x"), padded(BODY_MAX + 1), 413),
        ("POST", "/webhooks", ("x", &long[..HEAD_MAX - 512]), good(), 200),
        ("POST", "/webhooks", ("x", &long), good(), 431),
    ] {
        let answer = over_http2(relay.webhooks, async |mut relay| {
            let request = Request::builder().method(method).uri(format!("http://relay{path}"));
            send(&mut relay, request.header(header.0, header.1).body(Bytes::from(body).into()).expect("a request"))
                .await
        });
        assert_eq!(answer.status(), status, "{method} {path} {}", header.0);
        assert_eq!(answer.headers().get("allow").is_some(), status == 405);
        assert!(status != 200 || answer.body().is_empty());
    }
}

#[test]
fn a_thousand_requests_at_once_on_one_http_2_connection_are_all_answered_and_published() {
    let (Some(kafka), Some(relay)) = (kafka::shared_or_skip(), relay()) else { return };
    let chat = chat_id();
    over_http2(relay.webhooks, async |relay| {
        let mut requests = tokio::task::JoinSet::new();
        for n in 0..1_000 {
            let request = Request::post("http://relay/webhooks").body(Bytes::from(incoming_event(&chat, n)).into());
            let mut relay = relay.clone();
            requests.spawn(async move { send(&mut relay, request.expect("a request")).await.status() });
        }
        assert!(requests.join_all().await.iter().all(|status| *status == 200));
    });
    let found = kafka.read_all(&["livechat.incoming_event"]);
    assert_eq!(found.iter().filter(|m| m.key.as_deref() == Some(chat.as_bytes())).count(), 1_000);
}

#[test]
fn over_http_2_too_a_slow_body_is_answered_408_and_an_idle_connection_is_closed() {
    let Some(relay) = impatient_relay() else { return };
    over_http2(relay.webhooks, async |mut relay| {
        let request = Request::post("http://relay/webhooks").body(Never).expect("a request");
        assert_eq!(relay.send_request(request).await.expect("an answer").status(), 408);
        let since = Instant::now();
        while !relay.is_closed() {
            assert!(since.elapsed() < DEADLINE, "the relay closes an idle connection");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// A body whose first byte never comes.
struct Never;

impl Body for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}

/// A connection in clear text of a client that knows that the server speaks HTTP/2.
fn over_http2<B, T>(to: SocketAddr, talk: impl AsyncFnOnce(SendRequest<B>) -> T) -> T
where
    B: Body<Data = Bytes, Error = std::convert::Infallible> + Unpin + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(to).await.expect("a listener");
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("HTTP/2");
        tokio::spawn(connection);
        talk(sender).await
    })
}

async fn send(relay: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let (head, body) = relay.send_request(request).await.expect("an answer").into_parts();
    Response::from_parts(head, body.collect().await.expect("its body").to_bytes())
}

// 503

fn assert_unavailable(answer: &Answer, retry_after: &str) {
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some(retry_after)));
}

/// What a request counts for besides its body.
const REQUEST_BYTES: usize = 1024;

#[test]
fn a_body_that_is_declared_and_does_not_come_takes_no_room_and_one_that_has_come_for_longest_makes_it() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let settings = [("server.body_bytes_max", "\"32KiB\""), ("server.bytes_in_flight_max", "\"64KiB\"")];
    let relay = Relay::start(kafka.bootstrap(), &settings);
    let begun = |declared: usize, sent: usize| {
        let mut slow = connect(relay.webhooks);
        let head = format!("POST /webhooks HTTP/1.1\r\nhost: relay\r\ncontent-length: {declared}\r\n\r\n");
        slow.write_all(&[head.into_bytes(), vec![b' '; sent]].concat()).expect("a socket");
        slow
    };
    let held = |bytes: usize| {
        await_that("they are held", || relay.metric("livechat_relay_bytes_in_flight") == bytes as f64);
    };
    let _declared: Vec<_> = (0..20).map(|_| begun(32 << 10, 0)).collect();
    held(20 * REQUEST_BYTES);
    assert_eq!(post(relay.webhooks, padded(30 << 10)).status, 200);

    let mut oldest = begun(32 << 10, 31 << 10);
    held(20 * REQUEST_BYTES + (32 << 10));
    let mut next = begun(32 << 10, 1 << 10);
    held(20 * REQUEST_BYTES + (34 << 10));
    assert_eq!(post(relay.webhooks, padded(20 << 10)).status, 200, "eleven heads make room");
    held(9 * REQUEST_BYTES + (34 << 10));
    assert_eq!(post(relay.webhooks, padded(32 << 10)).status, 200, "and the others, and the older of the two bodies");
    held(2 << 10);
    let answer = read(&mut oldest).expect("an answer");
    assert_unavailable(&answer, "5");
    assert_eq!(answer.header("connection"), Some("close"));
    next.write_all(&vec![b' '; 31 << 10]).expect("a socket");
    assert_eq!(read(&mut next).expect("an answer").status, 400, "it was read to its end");
    held(0);
    assert!(relay.metric(r#"livechat_relay_unavailable_total{reason="slow_body"}"#) >= 1.0);
}

#[test]
fn what_is_verified_makes_no_room_and_is_held_until_its_report() {
    let Some(kafka) = kafka::Kafka::start_or_skip(1, &[]) else { return };
    let settings = [("server.bytes_in_flight_max", "\"64KiB\""), ("server.body_bytes_max", "\"60KiB\"")];
    let relay = Relay::start(kafka.bootstrap(), &settings).ready();
    kafka.pause(0);
    let mut waiting = connect(relay.webhooks);
    waiting.write_all(&request("/webhooks", "", padded(40 << 10))).expect("a socket");
    let held = || relay.metric("livechat_relay_bytes_in_flight");
    await_that("it is held", || held() == ((40 << 10) + REQUEST_BYTES) as f64);
    assert_unavailable(&post(relay.webhooks, padded(30 << 10)), "5");
    drop(waiting); // whoever hangs up is published all the same, and held as long
    assert_unavailable(&post(relay.webhooks, padded(30 << 10)), "5");
    kafka.resume(0);
    await_that("all is free again", || held() == 0.0);
    assert_eq!(post(relay.webhooks, padded(50 << 10)).status, 200);
    assert!(relay.metric(r#"livechat_relay_unavailable_total{reason="overloaded"}"#) >= 2.0);
}

#[test]
fn without_kafka_webhooks_are_answered_503_in_time_and_what_is_wrong_is_still_wrong() {
    if kafka::shared_or_skip().is_none() {
        return;
    }
    let settings = [
        ("kafka.start_timeout", "\"200ms\""),
        ("kafka.publish_deadline", "\"300ms\""),
        ("server.body_timeout", "\"1s\""),
        ("server.retry_after", "\"7s\""),
    ];
    let relay = Relay::start("127.0.0.1:1", &settings);
    let since = Instant::now();
    std::thread::scope(|threads| {
        for _ in 0..20 {
            threads.spawn(|| assert_unavailable(&post(relay.webhooks, incoming_event(&chat_id(), 1)), "7"));
        }
    });
    assert!(since.elapsed() < DEADLINE, "{:?}", since.elapsed());
    assert_eq!(post(relay.webhooks, r#"{"action":"incoming_event","payload":{}}"#).status, 401);
    assert_eq!(post(relay.webhooks, "{}").status, 400);
    assert_eq!(get(relay.admin, "/readyz").status, 503);
    assert_eq!(get(relay.admin, "/livez").status, 200);
}

// The admin listener

#[test]
fn the_admin_listener_answers_its_three_paths_to_who_only_looks() {
    let Some(relay) = relay() else { return };
    await_that("the relay is ready", || get(relay.admin, "/readyz").body.starts_with("ready\nkafka: up\n"));
    assert_eq!(get(relay.admin, "/livez").body, "alive\n");
    let metrics = get(relay.admin, "/metrics");
    assert_eq!(
        (metrics.status, metrics.header("content-type")),
        (200, Some("text/plain; version=0.0.4; charset=utf-8"))
    );
    assert!(metrics.body.contains("# HELP livechat_relay_"));
    for path in ["/", "/metrics/", "/webhooks"] {
        assert_eq!(get(relay.admin, path).status, 404, "{path}");
    }

    for method in ["POST", "DELETE"] {
        let answer = raw(relay.admin, format!("{method} /livez HTTP/1.1\r\nhost: relay\r\n\r\n")).expect("an answer");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("get, head")), "{method}");
    }
}

#[test]
fn the_admin_listener_answers_probes_whatever_holds_its_connections() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("admin.connections_max", "8")]).ready();
    let mut held = Vec::new();
    for n in 0..50 {
        let mut stream = connect(relay.admin);
        if n % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: relay\r\n\r\n").expect("a socket"); // and reads nothing
        }
        held.push(stream);
        assert_eq!(get(relay.admin, "/livez").status, 200);
        assert_eq!(get(relay.admin, "/readyz").status, 200);
    }
    for mut stream in held {
        let _ = stream.read_to_end(&mut Vec::new()); // each ends, by a reset if need be
    }
}
