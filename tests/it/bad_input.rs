//! Senders that are broken, slow or hostile: none of them stops the relay, gets its event in unverified, or makes it tell a secret.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::support::http::{Answer, connect, post, raw, read, request};
use crate::support::kafka;
use crate::support::relay::{Relay, SECRET, await_that};
use crate::support::{chat_id, incoming_event, with_secret};

/// Answers come within this time, whatever happens.
const DEADLINE: Duration = Duration::from_secs(8);

/// The relay of all tests here. It logs all that it can, and waits for nobody.
fn relay() -> Option<&'static Relay> {
    static RELAY: LazyLock<Option<Relay>> = LazyLock::new(|| {
        let settings = [
            ("log.filter", "\"trace,h2=trace\""),
            ("server.header_timeout", "\"1s\""),
            ("server.body_timeout", "\"1s\""),
            ("server.linger_timeout", "\"500ms\""),
        ];
        let relay = Relay::start(kafka::shared_or_skip()?.bootstrap(), &settings).ready();
        // A broker that has just started may be slow with its first record, and `assert_unharmed` has a deadline.
        post(relay.webhooks, incoming_event(&chat_id(), 1));
        Some(relay)
    });
    RELAY.as_ref()
}

/// Ends each test here: an honest webhook is answered 200 still, and the log tells no secret.
fn assert_unharmed(relay: &Relay) {
    let since = Instant::now();
    let answer = post(relay.webhooks, incoming_event(&chat_id(), 1));
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert!(since.elapsed() < DEADLINE, "{:?}", since.elapsed());
    assert_discreet(&relay.log());
}

/// Fails where `text` has the secret key, or the heart of it, in one of the forms in which bytes are written.
fn assert_discreet(text: &str) {
    let heart = b"Xq9-key-of";
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    };
    let numbers: Vec<String> = heart.iter().map(u8::to_string).collect();
    assert!(SECRET.as_bytes().windows(heart.len()).any(|part| part == heart));
    for form in [
        "Xq9-key-of".to_owned(),
        hex(heart),
        hex(heart).to_uppercase(),
        numbers.join(", "),
        numbers.join(","),
        // Its base64, by where in three bytes it begins.
        "WHE5LWtleS1v".to_owned(),
        "hxOS1rZXktb2".to_owned(),
        "YcTkta2V5LW9m".to_owned(),
        hex(&Sha256::digest(SECRET)),
    ] {
        if let Some(at) = text.find(&form) {
            panic!(
                "`{form}` in: {}",
                String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(300)..at + form.len()])
            );
        }
    }
}

/// A webhook with this payload, without its secret key.
fn with_payload(payload: &str) -> String {
    format!(r#"{{"action":"incoming_event","organization_id":"o","payload":{payload}}}"#)
}

/// How many records there are with exactly these `data`.
fn arrived(data: &str) -> usize {
    let end = format!(r#","data":{data}}}"#);
    let found = kafka::shared().read_all(&["livechat.incoming_event"]);
    found.iter().filter(|message| message.value.ends_with(end.as_bytes())).count()
}

/// All that is answered until the connection ends; empty where it is reset at once.
fn to_the_end(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let since = Instant::now();
    let _ = stream.read_to_end(&mut all); // resets are an end, too
    assert!(since.elapsed() < DEADLINE, "the connection did not end");
    let text = String::from_utf8_lossy(&all).into_owned();
    assert_discreet(&text);
    text
}

fn head(lines: &str) -> Vec<u8> {
    format!("POST /webhooks HTTP/1.1\r\nhost: relay\r\n{lines}\r\n").into_bytes()
}

// Bodies

#[test]
fn a_body_that_is_no_text_or_no_single_object_is_answered_400() {
    let Some(relay) = relay() else { return };
    let twice = |first: &str, second: &str| {
        format!(r#"{{"secret_key":"{SECRET}","action":"a","payload":{{}},"{first}":1,"{second}":2}}"#).into_bytes()
    };
    for body in [
        Vec::new(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"\xff\xfe{\0}\0".to_vec(),
        [incoming_event("C", 1).as_bytes(), b"\0"].concat(),
        [incoming_event("C", 1).as_bytes(), b"{}"].concat(),
        incoming_event("C\u{1}", 1).into_bytes(),
        incoming_event("C", 1).replace("org-of", "\u{1b}org-of").into_bytes(),
        [b"{\"secret_key\":\"", &b"\xc3\x28"[..], b"\",\"action\":\"a\",\"payload\":1}"].concat(),
        [b"{\"secret_key\":\"", &b"\xed\xa0\x80"[..], b"\",\"action\":\"a\",\"payload\":1}"].concat(),
        twice("x", "x"),
        twice("x", r"\u0078"),
        twice("secret_key", "y"),
        twice(r"secret\u005fkey", "y"),
        twice(r"\ud83d\ude80", "\u{1f680}"),
        twice("\\ud800", "y"),
        format!("{{{}", r#""a":1,"#.repeat(100_000)).into_bytes(),
        "[".repeat(100_000).into_bytes(),
        "{\"a\":".repeat(100_000).into_bytes(),
    ] {
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let answer = post(relay.webhooks, body);
        assert_eq!(answer.status, 400, "{text}");
        assert_discreet(&answer.body);
    }
    assert_unharmed(relay);
}

#[test]
fn a_payload_of_any_kind_arrives_as_it_was_sent() {
    let Some(relay) = relay() else { return };
    let mark = chat_id();
    let payloads = [
        format!("[ \"{mark}1\"]"),
        format!("\"{mark}2\""),
        format!("{{ \"chat_id\" : [\"{mark}3\"] , \"chat_id\":null }}"),
        format!("[null,-0.0e-0,1E400,12345678901234567890123,\"\\ud800 \\u0000 \u{7f}\u{2028}{mark}4\"]"),
        format!("[[[[]]],{{\"\":{{}}}},\"{mark}5\"\r\n\t ]"),
    ];
    for payload in &payloads {
        let data = with_payload(payload);
        assert_eq!(post(relay.webhooks, with_secret(&data, SECRET)).status, 200, "{payload}");
        assert_eq!(arrived(&data), 1, "{payload}");
    }
    for payload in ["null", "0", "true", "\"\"", "[]", "{}"] {
        let event = with_secret(&with_payload(payload), SECRET);
        assert_eq!(post(relay.webhooks, event).status, 200, "{payload}");
    }
    assert_unharmed(relay);
}

#[test]
fn a_payload_a_hundred_thousand_levels_deep_arrives_byte_for_byte() {
    let Some(relay) = relay() else { return };
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let data = with_payload(&format!("{}\"{}\"{}", open.repeat(100_000), chat_id(), close.repeat(100_000)));
        assert_eq!(post(relay.webhooks, with_secret(&data, SECRET)).status, 200, "{open}");
        assert_eq!(arrived(&data), 1, "{open}");
    }
    assert_unharmed(relay);
}

#[test]
fn strings_of_a_mebibyte_arrive_byte_for_byte() {
    let Some(relay) = relay() else { return };
    let part = "Grüße \\ud83d\\ude80\u{1f680}\\\"";
    let long = format!("{}{}", chat_id(), part.repeat((1 << 20) / part.len()));
    for payload in [format!("\"{long}\""), format!("{{\"{long}\":1}}"), format!("{{\"chat_id\":\"{long}\"}}")] {
        let data = with_payload(&payload);
        assert_eq!(post(relay.webhooks, with_secret(&data, SECRET)).status, 200, "{payload:.99}");
        assert_eq!(arrived(&data), 1, "{payload:.99}");
    }
    assert_unharmed(relay);
}

#[test]
fn a_key_in_a_wrong_shape_is_no_key() {
    let Some(relay) = relay() else { return };
    let mark = chat_id();
    let event = |key: &str| with_payload(&format!("\"{mark}\"")).replacen('{', &format!("{{\"secret_key\":{key},"), 1);
    for key in [
        "0".to_owned(),
        "null".to_owned(),
        "true".to_owned(),
        "\"\"".to_owned(),
        format!("[\"{SECRET}\"]"),
        format!("{{\"secret_key\":\"{SECRET}\"}}"),
        format!("\"{SECRET}\\u0000\""),
        format!("\"\\u0000{SECRET}\""),
        format!("\"{SECRET} \""),
        format!("\"{SECRET}\\ud800\""),
        format!("\"{}\"", SECRET.to_uppercase()),
        format!("\"{}\"", &SECRET[1..]),
        format!("\"{}\"", SECRET.repeat(10_000)),
    ] {
        let answer = post(relay.webhooks, event(&key));
        assert_eq!((answer.status, answer.body.as_str()), (401, "unauthorized\n"), "{key:.99}");
    }
    let escaped: String = SECRET.chars().fold(String::new(), |mut all, c| {
        let _ = write!(all, "\\u{:04x}", u32::from(c));
        all
    });
    assert_eq!(post(relay.webhooks, event(&format!("\"{escaped}\""))).status, 200, "JSON knows only one text here");
    assert_eq!(arrived(&with_payload(&format!("\"{mark}\""))), 1);
    assert!(!relay.log().contains(&mark), "nothing unverified is logged");
    assert_unharmed(relay);
}

// HTTP/1

#[test]
fn a_body_whose_length_is_nonsense_is_answered_400() {
    let Some(relay) = relay() else { return };
    for lines in [
        "content-length: -1\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "content-length: 5 5\r\n",
        "content-length: 5, 6\r\n",
        "content-length: \r\n",
        "content-length: 99999999999999999999999999\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length : 5\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding:\u{b}chunked\r\n",
        "transfer-encoding: chunked\r\n content-length: 5\r\n",
        "\u{0}: x\r\n",
        "x: a\rb\r\n",
        "x: a\u{0}b\r\n",
        "x\r\n",
        ": x\r\n",
    ] {
        let answer = raw(relay.webhooks, [head(lines), b"{\"a\":1}".to_vec()].concat());
        assert_eq!(answer.expect("an answer").status, 400, "{lines:?}");
    }
    assert_unharmed(relay);
}

#[test]
fn garbage_among_chunks_is_answered_400() {
    let Some(relay) = relay() else { return };
    for chunks in [
        "x\r\n",
        "-1\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nhello\r\n",
        "5;\u{0}\nhello\r\n0\r\n\r\n",
        "\r\n\r\n",
    ] {
        let answer = raw(relay.webhooks, [head("transfer-encoding: chunked\r\n"), chunks.into()].concat());
        assert_eq!(answer.expect("an answer").status, 400, "{chunks:?}");
    }
    assert_unharmed(relay);
}

#[test]
fn a_request_with_two_lengths_smuggles_nothing_behind_it() {
    let Some(relay) = relay() else { return };
    let mark = chat_id();
    let smuggled = request("/webhooks", "", incoming_event(&mark, 1));
    let behind = smuggled.len() + 5;
    for lines in [
        format!("content-length: {behind}\r\ntransfer-encoding: chunked\r\n"),
        format!("transfer-encoding: chunked\r\ncontent-length: {behind}\r\n"),
        format!("content-length: {behind}\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n"),
    ] {
        let mut stream = connect(relay.webhooks);
        stream.write_all(&[head(&lines), b"0\r\n\r\n".to_vec(), smuggled.clone()].concat()).expect("a socket");
        let all = to_the_end(&mut stream);
        assert!(all.starts_with("HTTP/1.1 400 ") && all.matches("HTTP/1.1").count() == 1, "{lines:?}: {all}");
    }
    assert_unharmed(relay);
    let found = kafka::shared().read_all(&["livechat.incoming_event"]);
    assert!(!found.iter().any(|message| message.key.as_deref() == Some(mark.as_bytes())));
}

#[test]
fn a_body_without_end_is_cut_off_by_its_size_or_its_time() {
    let Some(relay) = relay() else { return };
    for (chunk, pause, status) in [(64 * 1024, Duration::ZERO, 413), (1, Duration::from_millis(50), 408)] {
        let mut stream = connect(relay.webhooks);
        stream.write_all(&head("transfer-encoding: chunked\r\n")).expect("a socket");
        let mut endless = stream.try_clone().expect("a socket");
        let sender = std::thread::spawn(move || {
            let chunk = format!("{chunk:x}\r\n{}\r\n", " ".repeat(chunk));
            while endless.write_all(chunk.as_bytes()).is_ok() {
                std::thread::sleep(pause);
            }
        });
        let answer = read(&mut stream).expect("an answer");
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")));
        sender.join().expect("no panic"); // the relay does not read for ever
    }
    assert_unharmed(relay);
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let Some(relay) = relay() else { return };
    let body = incoming_event(&chat_id(), 1);
    let mut stream = connect(relay.webhooks);
    write!(stream, "POST /webhooks HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("a socket");
    assert_eq!(read(&mut stream).expect("an answer").status, 200);
    assert_eq!(to_the_end(&mut stream), "");
    let chunked = raw(relay.webhooks, "POST /webhooks HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(chunked.expect("an answer").status, 400);
    assert_unharmed(relay);
}

#[test]
fn what_is_no_http_is_answered_400_or_closed() {
    let Some(relay) = relay() else { return };
    let client_hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03random-random-random-random-rando\x20";
    for bytes in [
        &client_hello[..],
        b"GET /\r\n",
        b"GET\r\n\r\n",
        b"\0\0\0\0\0\0\0\0",
        b"POST /web\0hooks HTTP/1.1\r\n\r\n",
        b"POST /webhooks\0 HTTP/1.1\r\n\r\n",
        b"PO\0ST /webhooks HTTP/1.1\r\n\r\n",
        b"POST /webhooks HTTP/1.1\0\r\n\r\n",
        b"POST /webhooks HTTP/3.0\r\n\r\n",
        b"POST  /webhooks  HTTP/1.1\r\n\r\n",
        b"POST http:///webhooks HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"PRI * HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x05\x01\x00",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nPOST /webhooks HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = connect(relay.webhooks);
        stream.write_all(bytes).expect("a socket");
        stream.shutdown(Shutdown::Write).expect("a socket");
        let all = to_the_end(&mut stream);
        let status = all.strip_prefix("HTTP/1.1 ").map(|answer| &answer[..3]);
        assert!(matches!(status, None | Some("400" | "404" | "408")), "{:?}: {all}", String::from_utf8_lossy(bytes));
    }
    assert_unharmed(relay);
}

#[test]
fn an_upgrade_that_is_not_offered_is_passed_over() {
    let Some(relay) = relay() else { return };
    for lines in
        ["connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: \r\n", "upgrade: websocket\r\n"]
    {
        let answer = raw(relay.webhooks, request("/webhooks", lines, incoming_event(&chat_id(), 1)));
        assert_eq!(answer.expect("an answer").status, 200, "{lines}");
    }
    let connect = raw(relay.webhooks, "CONNECT relay:80 HTTP/1.1\r\nhost: relay\r\n\r\n").expect("an answer");
    assert_eq!(connect.status, 404);
    assert_unharmed(relay);
}

// Clients that leave

#[test]
fn an_event_that_was_sent_whole_is_published_though_its_sender_hangs_up_at_once() {
    let Some(relay) = relay() else { return };
    let chats: Vec<String> = (0..50).map(|_| chat_id()).collect();
    for (n, chat) in chats.iter().enumerate() {
        let mut stream = connect(relay.webhooks);
        stream.write_all(&request("/webhooks", "", incoming_event(chat, 1))).expect("a socket");
        if n % 2 == 0 {
            stream.shutdown(Shutdown::Write).expect("a socket"); // it listens on: even its answer comes
            assert_eq!(read(&mut stream).expect("an answer").status, 200);
        }
    }
    await_that("every event is in Kafka", || {
        let found = kafka::shared().read_all(&["livechat.incoming_event"]);
        chats.iter().all(|chat| found.iter().filter(|m| m.key.as_deref() == Some(chat.as_bytes())).count() == 1)
    });
    assert_unharmed(relay);
}

#[test]
fn a_client_that_leaves_in_the_middle_leaves_nothing_behind() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("log.filter", "\"trace\"")]);
    let whole = request("/webhooks", "", incoming_event(&chat_id(), 1));
    for length in (0..whole.len()).step_by(7) {
        let mut stream = connect(relay.webhooks);
        stream.write_all(&whole[..length]).expect("a socket");
        if length % 2 == 0 {
            reset(stream);
        }
    }
    await_that("its connections are gone", || relay.metric("livechat_relay_connections") == 0.0);
    await_that("its bytes are free again", || relay.metric("livechat_relay_bytes_in_flight") == 0.0);
    assert_unharmed(&relay);
}

/// Ends a connection by a reset instead of a goodbye.
fn reset(stream: TcpStream) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        stream.set_nonblocking(true).expect("a socket");
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        stream.set_zero_linger().expect("a socket");
    });
}

#[test]
fn two_hundred_slow_clients_do_not_slow_others() {
    let Some(relay) = relay() else { return };
    let starts =
        [&b"PO"[..], b"POST /webhooks HTTP/1.1\r\nho", &head("content-length: 9\r\n"), b"PRI * HTTP/2.0\r\n\r\nSM"];
    let mut slow: Vec<TcpStream> = (0..200).map(|_| connect(relay.webhooks)).collect();
    for (n, stream) in slow.iter_mut().enumerate() {
        stream.write_all(starts[n % starts.len()]).expect("a socket");
    }
    assert_unharmed(relay);
    for mut stream in slow {
        let answer = read(&mut stream).map(|answer| answer.status);
        assert!(matches!(answer, None | Some(408)), "{answer:?}"); // a body is answered, a head is not
    }
    assert_unharmed(relay);
}

#[test]
fn a_client_that_never_reads_its_answers_is_left() {
    let Some(relay) = relay() else { return };
    let mut deaf = connect(relay.webhooks);
    deaf.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket");
    let many = b"GET /nowhere HTTP/1.1\r\nhost: relay\r\n\r\n".repeat(1_000);
    let since = Instant::now();
    while deaf.write_all(&many).is_ok() {
        assert!(since.elapsed() < DEADLINE, "the relay takes requests from who takes no answers");
    }
    assert_unharmed(relay);
}

// HTTP/2

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Kinds of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

// Flags of frames.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The headers of `GET /`, and of `POST /webhooks`, in the static table's words.
const GET: &[u8] = &[0x82, 0x84, 0x86];
const POST: &[u8] = b"\x83\x86\x04\x09/webhooks";

/// What an answer's headers begin with: its status, in the static table's words.
const OK: u8 = 0x88;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame");
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads on until a frame of this kind comes for this stream, and answers its payload.
fn await_frame(from: &mut TcpStream, kind: u8, stream: u32) -> Vec<u8> {
    let wanted = [&[kind][..], &stream.to_be_bytes()].concat();
    loop {
        let mut head = [0; 9];
        from.read_exact(&mut head).expect("a frame");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        from.read_exact(&mut payload).expect("the rest of it");
        if [&head[3..4], &head[5..]].concat() == wanted {
            return payload;
        }
    }
}

#[test]
fn a_webhook_over_http_2_may_come_byte_by_byte() {
    let Some(relay) = relay() else { return };
    let event = incoming_event(&chat_id(), 1);
    let (begin, end) = event.as_bytes().split_at(99);
    let frames = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, b""),
        frame(HEADERS, END_HEADERS, 1, POST),
        frame(DATA, 0, 1, begin),
        frame(DATA, END_STREAM, 1, end),
    ];
    let mut stream = connect(relay.webhooks);
    for byte in frames.concat() {
        stream.write_all(&[byte]).expect("a socket");
    }
    assert_eq!(await_frame(&mut stream, HEADERS, 1)[0], OK);
    assert_unharmed(relay);
}

#[test]
fn a_stream_beyond_streams_max_is_refused_and_the_others_are_answered() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("server.streams_max", "2"), ("log.filter", "\"trace\"")]);
    let mut stream = connect(relay.webhooks);
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat()).expect("a socket");
    for number in [1, 3, 5] {
        stream.write_all(&frame(HEADERS, END_HEADERS, number, POST)).expect("a socket");
    }
    let refused_stream = 7_u32.to_be_bytes();
    assert_eq!(await_frame(&mut stream, RST_STREAM, 5), refused_stream);
    for number in [1, 3] {
        let event = incoming_event(&chat_id(), 1);
        stream.write_all(&frame(DATA, END_STREAM, number, event.as_bytes())).expect("a socket");
        assert_eq!(await_frame(&mut stream, HEADERS, number)[0], OK);
    }
    assert_unharmed(&relay);
}

#[test]
fn of_the_requests_at_once_on_an_admin_connection_one_is_answered_and_ends_it() {
    let Some(relay) = relay() else { return };
    let ask = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x82\x86\x04\x06/livez");
    let mut stream = connect(relay.admin);
    let both = [ask(1), ask(3)].concat();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, b""), &both].concat()).expect("a socket");
    assert_eq!(await_frame(&mut stream, RST_STREAM, 3), 7_u32.to_be_bytes());
    assert_eq!(await_frame(&mut stream, HEADERS, 1)[0], OK);
    await_frame(&mut stream, GOAWAY, 0);
    assert_unharmed(relay);
}

#[test]
fn a_path_that_no_app_can_have_is_refused_before_its_body_and_ends_the_connection() {
    let Some(relay) = relay() else { return };
    let path = format!("/webhooks/{}", "a".repeat(15_000));
    let length = [0x7f, 0xa3, 0x74]; // 127 and 14,883 in seven bits a byte, the lower ones first
    let block = [b"\x83\x86\x04", &length[..], path.as_bytes()].concat();
    assert_eq!(path.len(), 127 + (0x23 | 0x74 << 7));
    let mut stream = connect(relay.webhooks);
    stream
        .write_all(&[PREFACE, &frame(SETTINGS, 0, 0, b""), &frame(HEADERS, END_HEADERS, 1, &block)].concat())
        .expect("a socket");
    const NOT_FOUND: u8 = 0x8d;
    assert_eq!(await_frame(&mut stream, HEADERS, 1)[0], NOT_FOUND);
    await_frame(&mut stream, GOAWAY, 0);
    let answer = raw(relay.webhooks, format!("POST {path} HTTP/1.1\r\nhost: relay\r\ncontent-length: 9\r\n\r\n"));
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (404, Some("close")));
    assert_unharmed(relay);
}

#[test]
fn garbage_behind_an_http_2_preface_ends_the_connection() {
    let Some(relay) = relay() else { return };
    let settings = frame(SETTINGS, 0, 0, b"");
    for garbage in [
        b"GET / HTTP/1.1\r\nhost: relay\r\n\r\n".to_vec(),
        vec![0xff; 100],
        [settings.clone(), frame(SETTINGS, 0, 0, b"12345")].concat(),
        [settings.clone(), frame(HEADERS, END_STREAM | END_HEADERS, 0, GET)].concat(),
        [settings.clone(), frame(HEADERS, END_STREAM | END_HEADERS, 2, GET)].concat(),
        [settings.clone(), frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 50])].concat(),
        [settings.clone(), frame(DATA, 0, 1, b"data of no stream")].concat(),
        [settings, frame(HEADERS, END_STREAM, 1, GET), frame(CONTINUATION, 0, 1, b"").repeat(10_000)].concat(),
    ] {
        let mut stream = connect(relay.webhooks);
        let _ = stream.write_all(&[PREFACE, &garbage].concat()); // the connection may end before all is written
        to_the_end(&mut stream);
    }
    assert_unharmed(relay);
}

#[test]
fn streams_that_are_reset_as_fast_as_they_are_opened_do_no_harm() {
    let Some(relay) = relay() else { return };
    let mut flood = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    for stream in (1..20_000).step_by(2) {
        flood.extend_from_slice(&frame(HEADERS, END_STREAM | END_HEADERS, stream, GET));
        flood.extend_from_slice(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let mut stream = connect(relay.webhooks);
    let _ = stream.write_all(&flood); // the connection may end before all is written
    assert_unharmed(relay);
    to_the_end(&mut stream);
    assert_unharmed(relay);
}

#[test]
fn a_stranger_who_resets_streams_writes_nothing_into_the_log() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]).ready();
    for _ in 0..20 {
        let mut flood = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
        for stream in (1..200).step_by(2) {
            flood.extend_from_slice(&frame(HEADERS, END_HEADERS, stream, POST));
            flood.extend_from_slice(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        let mut stream = connect(relay.webhooks);
        let _ = stream.write_all(&flood); // the connection may end before all is written
        to_the_end(&mut stream);
    }
    assert_unharmed(&relay);
    assert!(!relay.log().contains("recv_reset"), "{}", relay.log());
}

// Anything

/// The statuses of the table.
const STATUSES: [u16; 10] = [200, 400, 401, 404, 405, 408, 413, 415, 431, 503];

#[test]
fn whatever_bytes_are_changed_the_answer_is_one_of_the_table_or_none() {
    let Some(relay) = relay() else { return };
    let whole = request("/webhooks", "traceparent: 00-x\r\n", incoming_event(&chat_id(), 1));
    let change = (0..whole.len(), prop_oneof![any::<u8>(), prop::sample::select(&b" \r\n\0\":,{}[]\\0-"[..])], 0..3);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&prop::collection::vec(change, 1..6), |changes| {
        let mut bytes = whole.clone();
        for (at, byte, how) in changes {
            let at = at.min(bytes.len() - 1);
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        let mut stream = connect(relay.webhooks);
        stream.write_all(&bytes).expect("the relay reads on");
        stream.shutdown(Shutdown::Write).expect("a socket");
        let answer = read(&mut stream);
        prop_assert!(answer.as_ref().is_none_or(|Answer { status, .. }| STATUSES.contains(status)), "{answer:?}");
        to_the_end(&mut stream);
        Ok(())
    });
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_unharmed(relay);
}
