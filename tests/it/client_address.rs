//! Who the client is: what trusted proxies say of it, what others say in vain, and what hangs on it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use rustix::process::Signal;

use crate::support::http::{Answer, connect, post, raw, read, request};
use crate::support::mock::Mock;
use crate::support::relay::{Relay, await_that, configuration};
use crate::support::{chat_id, incoming_event};

const TRUST_LOOPBACK: (&str, &str) = ("server.trusted_proxies", "[\"127.0.0.0/8\"]");

/// The log line of a refusal at this path.
fn refusal(relay: &mut Relay, path: &str) -> serde_json::Value {
    serde_json::from_str(&relay.await_log(&format!("\"path\":\"{path}\""))).expect("a JSON line")
}

fn ended(relay: &Relay, reason: &str) -> f64 {
    relay.metric(&format!("livechat_relay_connections_ended_total{{reason=\"{reason}\"}}"))
}

fn good() -> Vec<u8> {
    request("/webhooks", "", incoming_event(&chat_id(), 1))
}

fn v2(rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("a length").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &length[..], rest].concat()
}

fn v2_from(address: [u8; 4]) -> Vec<u8> {
    v2(&[&address[..], &[127, 0, 0, 1, 0x12, 0x34, 0, 80]].concat())
}

/// What comes until the connection ends, by a reset if need be.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    rest
}

#[test]
fn behind_the_proxy_protocol_a_connection_has_a_header_from_a_trusted_proxy_or_is_closed() {
    let mock = Mock::start();
    let settings = [
        ("server.client_address", "\"proxy-protocol\""),
        TRUST_LOOPBACK,
        ("server.header_timeout", "\"3s\""),
        ("server.client_networks", "[\"203.0.113.0/24\", \"127.0.0.1\"]"),
    ];
    let mut relay = mock.relay(&settings);
    let ask = |header: &[u8], request: Vec<u8>| raw(relay.webhooks, [header, &request].concat());
    let status = |header: &[u8]| ask(header, good()).map(|answer| answer.status);
    assert_eq!(status(&v2_from([203, 0, 113, 9])), Some(200));
    assert_eq!(status(b"PROXY TCP4 203.0.113.9 127.0.0.1 4660 80\r\n"), Some(200));
    assert_eq!(status(b"PROXY TCP6 ::ffff:203.0.113.9 ::1 4660 80\r\n"), Some(200));
    assert_eq!(status(b"PROXY UNKNOWN\r\n"), Some(200), "the proxy itself");
    assert_eq!(status(&v2_from([198, 51, 100, 1])), Some(403), "a client of another network");
    assert_eq!(ended(&relay, "proxy_protocol"), 0.0);

    let closed = [good(), b"PROXY TCP4 203.0.113.9\r\n".to_vec(), v2(&vec![0xee; 65_535])];
    for (n, header) in closed.iter().enumerate() {
        let mut stream = connect(relay.webhooks);
        let _ = stream.write_all(header); // it may be closed before all is written
        assert_eq!(rest(&mut stream), b"", "closed without a word");
        await_that("it is counted", || ended(&relay, "proxy_protocol") == (n + 1) as f64);
    }
    let mut slow = connect(relay.webhooks);
    slow.write_all(b"PROXY TCP4 203.0").expect("a socket");
    assert_eq!(rest(&mut slow), b"");
    await_that("it is late", || ended(&relay, "header_timeout") == 1.0);
    drop(connect(relay.webhooks));
    await_that("a probe is no fault", || ended(&relay, "client") >= 1.0);
    assert_eq!((ended(&relay, "proxy_protocol"), status(&v2_from([203, 0, 113, 9]))), (3.0, Some(200)));

    ask(&v2_from([203, 0, 113, 77]), request("/elsewhere", "", "")).expect("an answer");
    let line = refusal(&mut relay, "/elsewhere");
    assert_eq!(line["client"], "203.0.113.77");
    assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{line}");
    assert!(relay.has_logged("it is longer than server.proxy_header_bytes_max"), "{}", relay.log());
}

#[test]
fn a_proxy_header_from_anyone_else_closes_the_connection() {
    let mock = Mock::start();
    let settings = [("server.client_address", "\"proxy-protocol\""), ("server.trusted_proxies", "[\"192.0.2.0/24\"]")];
    let relay = mock.relay(&settings);
    let mut stream = connect(relay.webhooks);
    let _ = stream.write_all(&[v2_from([192, 0, 2, 1]), good()].concat());
    assert_eq!(rest(&mut stream), b"");
    await_that("it is counted", || ended(&relay, "proxy_protocol") == 1.0);
    assert!(relay.has_logged("the peer is not in server.trusted_proxies"), "{}", relay.log());
}

#[test]
fn where_no_proxy_is_configured_the_log_says_that_there_is_one() {
    let mock = Mock::start();
    let relay = mock.relay(&[]);
    for header in [v2_from([203, 0, 113, 9]), b"PROXY TCP4 203.0.113.9 127.0.0.1 4660 80\r\n".to_vec()] {
        let answer = raw(relay.webhooks, [header, good()].concat()).expect("an answer");
        assert_eq!(answer.status, 400);
        assert!(answer.body.contains("server.client_address"), "{}", answer.body);
    }
    assert!(relay.has_logged("it begins with a PROXY protocol header"), "{}", relay.log());
    await_that("both are counted", || ended(&relay, "proxy_protocol") == 2.0);

    let forwarded = || request("/webhooks", "x-forwarded-for: 203.0.113.9\r\n", incoming_event(&chat_id(), 1));
    for _ in 0..3 {
        assert_eq!(raw(relay.webhooks, forwarded()).expect("an answer").status, 200);
    }
    assert!(relay.has_logged("webhooks come through a proxy"), "{}", relay.log());
    assert_eq!(relay.log().matches("webhooks come through a proxy").count(), 1);
}

#[test]
fn who_the_client_is_changes_on_open_connections_and_no_right_webhook_is_refused() {
    let mock = Mock::start();
    let networks = ("server.client_networks", "[\"203.0.113.0/24\"]");
    let settings = |source| [("server.client_address", source), TRUST_LOOPBACK, networks];
    let relay = mock.relay(&settings("\"x-forwarded-for\""));
    let ask = |stream: &mut TcpStream, headers: &str| {
        stream.write_all(&request("/webhooks", headers, incoming_event(&chat_id(), 1))).expect("a socket");
        read(stream).expect("an answer")
    };
    let reload = |source: &'static str, n: f64| {
        relay.configure(&configuration(&mock.bootstrap(), &settings(source)));
        relay.signal(Signal::HUP);
        let applied = "livechat_relay_config_reloads_total{result=\"applied\"}";
        await_that("it is applied", || relay.metric(applied) == n);
    };
    let mut open = connect(relay.webhooks);
    assert_eq!(ask(&mut open, "x-forwarded-for: 203.0.113.9\r\n").status, 200);
    reload("\"forwarded\"", 1.0);
    assert_eq!(ask(&mut open, "forwarded: for=203.0.113.9\r\n").status, 200);
    let mut stranger = connect(relay.webhooks);
    assert_eq!(ask(&mut stranger, "x-forwarded-for: 203.0.113.9\r\n").status, 403);

    // The header of the connection is missing, and its peer in no network.
    reload("\"proxy-protocol\"", 2.0);
    let answer = ask(&mut open, "");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(raw(relay.webhooks, good()).map(|answer| answer.status), None, "a new one");
    let mut open = connect(relay.webhooks);
    open.write_all(&v2_from([203, 0, 113, 9])).expect("a socket");
    assert_eq!(ask(&mut open, "").status, 200);
    reload("\"forwarded\"", 3.0);
    let answer = ask(&mut open, "forwarded: for=203.0.113.9\r\n");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
}

#[test]
fn who_may_send_webhooks_is_decided_by_what_the_trusted_proxy_says() {
    let mock = Mock::start();
    let networks = ("server.client_networks", "[\"203.0.113.0/24\"]");
    for (source, by_proxy, spoofed) in [
        (
            "\"x-forwarded-for\"",
            "x-forwarded-for: 203.0.113.9",
            "x-forwarded-for: 203.0.113.9\r\nx-forwarded-for: 198.51.100.1",
        ),
        ("\"forwarded\"", "forwarded: for=\"203.0.113.9:80\"", "forwarded: for=203.0.113.9, for=198.51.100.1"),
    ] {
        let mut relay = mock.relay(&[("server.client_address", source), TRUST_LOOPBACK, networks]);
        let status = |headers: &str| {
            let request = request("/webhooks", &format!("{headers}\r\n"), incoming_event(&chat_id(), 1));
            raw(relay.webhooks, request).map(|Answer { status, .. }| status)
        };
        assert_eq!((status(by_proxy), status(spoofed)), (Some(200), Some(403)), "{source}");
        assert_eq!(refusal(&mut relay, "/webhooks")["client"], "198.51.100.1");
    }
    let nobody_is_trusted =
        [("server.client_address", "\"x-forwarded-for\""), ("server.trusted_proxies", "[\"192.0.2.1\"]"), networks];
    let relay = mock.relay(&nobody_is_trusted);
    let claimed = request("/webhooks", "x-forwarded-for: 203.0.113.9\r\n", incoming_event(&chat_id(), 1));
    assert_eq!(raw(relay.webhooks, claimed).expect("an answer").status, 403);
    // Before a body is read, and whatever the path.
    let declared = "POST /elsewhere HTTP/1.1\r\nhost: relay\r\ncontent-length: 100\r\n\r\n";
    let answer = raw(relay.webhooks, declared).expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (403, Some("close")));
    assert!(answer.body.contains("server.client_networks"), "{}", answer.body);
    assert_eq!(relay.metric(r#"livechat_relay_rejected_total{reason="client_network"}"#), 2.0);
    assert_eq!(post(relay.webhooks, "{}").status, 403);
    let mut stream = connect(relay.webhooks);
    stream.write_all(&good()).expect("a socket");
    assert_eq!(read(&mut stream).expect("an answer").status, 403, "nor with a right key");
}
