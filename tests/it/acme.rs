//! A certificate by itself, with Pebble as the authority: issued, renewed under load, and served on while the authority is away.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::mock::Mock;
use crate::support::pebble::{NAME, Pebble, address};
use crate::support::relay::{Relay, await_that};
use crate::support::tls::{self, Authority};
use crate::support::{chat_id, http, incoming_event, kafka};

const NOT_AFTER: &str = "livechat_relay_tls_certificate_not_after_timestamp_seconds{name=\"hooks.example.com\"}";
const FAILURES: &str = "livechat_relay_acme_consecutive_failures";

fn issued(relay: &Relay) -> f64 {
    relay.metric("livechat_relay_acme_orders_total{result=\"issued\"}")
}

fn start(mock: &Mock, settings: &[(&'static str, String)]) -> Relay {
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Relay::start(&mock.bootstrap(), &settings).ready()
}

/// Where the authority's challenges arrive, at another address.
fn elsewhere(pebble: &Pebble) -> SocketAddr {
    SocketAddr::from((address(), pebble.target.port()))
}

#[test]
fn a_certificate_is_issued_and_renewed_while_webhooks_come_in() {
    let (mock, mut pebble, cache) = (Mock::start(), Pebble::new(30), tempfile::tempdir().expect("a directory"));
    pebble.start();
    let relay = start(&mock, &pebble.settings(pebble.target, &cache.path().join("acme")));
    await_that("a certificate is issued", || issued(&relay) == 1.0);
    let (client, first) = (pebble.client(), relay.metric(NOT_AFTER));

    let (sent, shown) = tls::under_load(&client, relay.webhooks, NAME, || {
        await_that("it is renewed", || relay.metric(NOT_AFTER) > first);
        let before = relay.metric("livechat_relay_requests_total{code=\"200\"}");
        let after = || relay.metric("livechat_relay_requests_total{code=\"200\"}") > before + 10.0;
        await_that("webhooks come after it", after);
    });
    assert!(shown.len() >= 2, "new handshakes get the new certificate");
    assert_eq!(relay.metric("livechat_relay_requests_total{code=\"200\"}"), f64::from(sent));
    assert!(relay.has_logged("TLS certificate issued"), "{}", relay.log());
    assert!(relay.log().contains("\"name\":\"hooks.example.com\""), "{}", relay.log());
    assert!(relay.has_logged("the ACME authority connects to port 443: forward it"), "{}", relay.log());
}

#[test]
fn while_the_authority_is_away_the_old_certificate_serves_on_and_that_is_said() {
    let (mock, mut pebble, cache) = (Mock::start(), Pebble::new(36), tempfile::tempdir().expect("a directory"));
    let mut relay = start(&mock, &pebble.settings(pebble.target, cache.path()));
    // From the start on: webhooks cannot come in, and the listener is there.
    relay.await_log("no TLS certificate was issued: handshakes fail until there is one");
    await_that("it is tried again", || relay.metric(FAILURES) >= 2.0);
    let ready = http::get(relay.admin, "/readyz");
    assert_eq!((ready.status, ready.body.starts_with("ready, but there is no TLS certificate yet")), (200, true));
    let refused =
        tls::connect(&Authority::new(cache.path()).client(), relay.webhooks, NAME).expect_err("no certificate");
    assert!(refused.to_string().contains("alert"), "{refused}");

    pebble.start();
    await_that("it is issued at last", || issued(&relay) == 1.0 && relay.metric(FAILURES) == 0.0);
    let (client, first) = (pebble.client(), relay.metric(NOT_AFTER));
    pebble.stop();
    let said = relay.await_log("the TLS certificate expires soon and was not renewed");
    let said: serde_json::Value = serde_json::from_str(&said).expect("a line of JSON");
    assert!(said["level"] == "ERROR" && said["days_left"] == 0 && said["not_after"].is_string(), "{said}");
    assert!(said["why"].as_str().is_some_and(|why| why.contains("Connection refused")), "{said}");
    let answer = tls::post(&client, relay.webhooks, NAME, incoming_event(&chat_id(), 1));
    assert_eq!(answer.expect("the old certificate").status, 200);

    // It is back, and has forgotten the account.
    pebble.start();
    await_that("it is renewed", || relay.metric(NOT_AFTER) > first && relay.metric(FAILURES) == 0.0);
    assert!(relay.has_logged("accountDoesNotExist"), "{}", relay.log());
}

#[test]
fn of_two_relays_with_one_cache_one_orders_and_the_other_takes_over() {
    let (mock, mut pebble, cache) = (Mock::start(), Pebble::new(36), tempfile::tempdir().expect("a directory"));
    pebble.start();
    let mut first = start(&mock, &pebble.settings(pebble.target, cache.path()));
    await_that("the first has ordered", || issued(&first) == 1.0);
    let mut second = start(&mock, &pebble.settings(elsewhere(&pebble), cache.path()));
    let client = pebble.client();
    let shown = |relay: &Relay| tls::shown(&tls::connect(&client, relay.webhooks, NAME).expect("a handshake"));
    assert_eq!(shown(&first), shown(&second));
    assert!(second.has_logged("TLS certificate loaded from the ACME cache"), "{}", second.log());
    second.await_log("another relay with this ACME cache orders the certificate");
    // The one that orders renews; the other finds that.
    let before = second.metric(NOT_AFTER);
    await_that("the second has the renewed one", || second.metric(NOT_AFTER) > before);
    assert_eq!(issued(&second), 0.0);

    // The first ends, and the name's address is now the second's.
    first.signal(rustix::process::Signal::TERM);
    first.end();
    pebble.point_names_to(second.webhooks);
    await_that("the second has ordered", || issued(&second) >= 1.0);
    drop(second);

    // A restart serves what is in the cache; without the cache it orders another one.
    let settings = pebble.settings(elsewhere(&pebble), cache.path());
    let mut third = start(&mock, &settings);
    let served = shown(&third);
    assert_eq!(issued(&third), 0.0);
    third.signal(rustix::process::Signal::TERM);
    third.end();
    for entry in std::fs::read_dir(cache.path()).expect("the cache") {
        std::fs::remove_file(entry.expect("a file").path()).expect("removed");
    }
    let fourth = start(&mock, &settings);
    pebble.point_names_to(fourth.webhooks);
    await_that("another one is ordered", || issued(&fourth) == 1.0);
    assert_ne!(shown(&fourth), served);
}

#[test]
fn what_the_authority_says_is_in_the_log_and_it_is_left_alone_for_as_long_as_it_wants() {
    let (mock, mut pebble, cache) = (Mock::start(), Pebble::new(60), tempfile::tempdir().expect("a directory"));
    pebble.start();
    // Challenges do not arrive: the name's address is not the relay's.
    let mut relay = start(&mock, &pebble.settings(elsewhere(&pebble), cache.path()));
    let said = relay.await_log("no TLS certificate was issued");
    assert!(
        said.contains("the authority says: Failed to connect to 127.77.")
            && said.contains("does port 443 of the domain reach this listener?"),
        "{said}"
    );

    // A cache that is none: nothing is ordered.
    let file = cache.path().join("file");
    std::fs::write(&file, "").expect("written");
    let mut relay = start(&mock, &pebble.settings(pebble.target, &file.join("acme")));
    let said = relay.await_log("no TLS certificate was issued");
    assert!(said.contains("see server.tls.acme.cache"), "{said}");

    // An authority that has had enough.
    let authority = Authority::new(cache.path());
    let limited = Limited::start(&authority);
    let mut settings = pebble.settings(elsewhere(&pebble), &cache.path().join("other"));
    for (key, value) in &mut settings {
        match *key {
            "server.tls.acme.directory" => *value = format!("\"https://localhost:{}/dir\"", limited.port),
            "server.tls.acme.ca" => *value = format!("\"{}\"", authority.ca().display()),
            "server.listen" => *value = "\"127.0.0.1:0\"".to_owned(),
            _ => {}
        }
    }
    let mut relay = start(&mock, &settings);
    let said = relay.await_log("no TLS certificate was issued");
    assert!(said.contains("too many new orders") && said.contains("(rateLimited)"), "{said}");
    assert!(said.contains("\"next_order_in\":\"3600s\""), "{said}");
    assert_eq!(*limited.asked.lock().expect("no panic"), ["GET", "HEAD", "POST"], "it is asked once");
}

/// An authority that answers what is posted with 429 and wants an hour of peace.
struct Limited {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Limited {
    fn start(authority: &Authority) -> Self {
        let files = authority.issue("limited", &["localhost"]);
        let chain = vec![rustls::pki_types::CertificateDer::from_pem_file(&files.certificate).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
        let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a server");
        let port = kafka::free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let asked_by = Arc::clone(&asked);
        let server = Arc::new(server);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let connection = ServerConnection::new(Arc::clone(&server)).expect("a connection");
                let mut stream = StreamOwned::new(connection, stream);
                while let Some(method) = method(&mut stream) {
                    asked_by.lock().expect("no panic").push(method.clone());
                    let url = |name: &str| format!("\"{name}\":\"https://localhost:{port}/{name}\"");
                    let directory = format!("{{{},{},{}}}", url("newNonce"), url("newAccount"), url("newOrder"));
                    let (status, kind, body) = match method.as_str() {
                        "GET" => ("200 OK", "application/json", directory),
                        "HEAD" => ("200 OK", "text/plain", String::new()),
                        _ => ("429 Too Many Requests", "application/problem+json", PROBLEM.to_owned()),
                    };
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nreplay-nonce: AAAA\r\nretry-after: 3600\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    if stream.write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        Self { port, asked }
    }
}

const PROBLEM: &str =
    r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many new orders (300) from this account"}"#;

/// Reads one request; its method.
fn method(stream: &mut impl std::io::Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    stream.read_exact(&mut vec![0; length]).ok()?;
    Some(head.split(' ').next()?.to_uppercase())
}
