//! HTTPS by the relay itself: certificates by name, what is no TLS, floods of handshakes, and client certificates on the admin listener.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rcgen::date_time_ymd;
use rustix::process::Signal;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::support::http::{self, request};
use crate::support::mock::Mock;
use crate::support::relay::{Relay, Settings, await_that, configuration, metric};
use crate::support::tls::{self, Authority, Files};
use crate::support::{chat_id, incoming_event};

const NAME: &str = "hooks.example.com";

/// `server.tls.certificates` with these.
fn certificates(files: &[&Files]) -> String {
    let quoted = |path: &Path| format!("\"{}\"", path.display());
    let pair = |Files { certificate, key }: &&Files| {
        format!("{{ certificate = {}, key = {} }}", quoted(certificate), quoted(key))
    };
    format!("[{}]", files.iter().map(pair).collect::<Vec<_>>().join(", "))
}

/// A relay with a certificate for [`NAME`], which the authority has issued.
fn start(mock: &Mock, authority: &Authority, settings: Settings<'_>) -> Relay {
    let files = certificates(&[&authority.issue("server", &[NAME])]);
    // A start with a spool does not wait for the brokers.
    let spool = format!("\"{}\"", authority.directory.join("spool").display());
    let own = [("server.tls.certificates", files.as_str()), ("spool.directory", &spool)];
    Relay::start(&mock.bootstrap(), &[settings, &own].concat()).ready()
}

fn ended(relay: &Relay, reason: &str) -> f64 {
    relay.metric(&format!("livechat_relay_connections_ended_total{{reason=\"{reason}\"}}"))
}

#[test]
fn webhooks_come_by_tls_1_2_and_1_3_and_by_http_1_and_2() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let authority = Authority::new(directory.path());
    let relay = start(&mock, &authority, &[("server.plain_listen", "\"127.0.0.1:0\"")]);
    let port = relay.webhooks.port();
    let body = directory.path().join("body");
    for options in [
        &["--tlsv1.2", "--tls-max", "1.2", "--http1.1"][..],
        &["--tlsv1.2", "--tls-max", "1.2", "--http2"],
        &["--tlsv1.3", "--http1.1"],
        &["--tlsv1.3", "--http2"],
    ] {
        std::fs::write(&body, incoming_event(&chat_id(), 1)).expect("written");
        let curl = Command::new("curl")
            .args([
                "-sS",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{http_version}",
                "-H",
                "content-type: application/json",
            ])
            .arg("--cacert")
            .arg(authority.ca())
            .args(["--resolve", &format!("{NAME}:{port}:127.0.0.1"), "--data-binary", &format!("@{}", body.display())])
            .args(options)
            .arg(format!("https://{NAME}:{port}/webhooks"))
            .output()
            .expect("curl; `scripts/ensure.sh curl` gets it");
        let version = if options.contains(&"--http2") { "2" } else { "1.1" };
        let answered = String::from_utf8_lossy(&curl.stdout);
        assert_eq!(answered, format!("200 {version}"), "{options:?}: {}", String::from_utf8_lossy(&curl.stderr));
    }
    assert_eq!(http::post(relay.plain.expect("a plain listener"), incoming_event(&chat_id(), 1)).status, 200);
    assert_eq!(mock.read("livechat.incoming_event").len(), 5);

    let client = authority.client();
    let handshakes =
        |session: &str| relay.metric(&format!("livechat_relay_tls_handshakes_total{{session=\"{session}\"}}"));
    assert_eq!([handshakes("full"), handshakes("resumed")], [4.0, 0.0]);
    for _ in 0..2 {
        let answer = tls::post(&client, relay.webhooks, NAME, incoming_event(&chat_id(), 1));
        assert_eq!(answer.expect("an answer").status, 200);
    }
    assert_eq!([handshakes("full"), handshakes("resumed")], [5.0, 1.0]);
}

#[test]
fn a_certificate_whose_files_are_replaced_is_taken_by_a_reload_while_webhooks_come_in() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let authority = Authority::new(directory.path());
    let relay = start(&mock, &authority, &[]);
    let mut client = ClientConfig::clone(&authority.client());
    client.resumption = Resumption::disabled(); // a resumed session shows the certificate of before
    let new = authority.issue_with("new", &[NAME], |params| params.not_after = date_time_ymd(2996, 1, 1));
    let series = format!("livechat_relay_tls_certificate_not_after_timestamp_seconds{{name=\"{NAME}\"}}");
    let before = relay.metric(&series);
    let (_, shown) = tls::under_load(&Arc::new(client), relay.webhooks, NAME, || {
        for (new, old) in [(&new.certificate, "server.pem"), (&new.key, "server-key.pem")] {
            std::fs::rename(new, directory.path().join(old)).expect("replaced");
        }
        relay.signal(Signal::HUP);
        await_that("it is taken", || relay.metric(&series) != before);
        let sent = || relay.metric("livechat_relay_requests_total{code=\"200\"}");
        let before = sent();
        await_that("webhooks come after it", || sent() > before + 10.0);
    });
    assert_eq!(shown.len(), 2, "new handshakes get the new certificate");
}

#[test]
fn a_client_gets_the_certificate_of_the_name_that_it_asks_for() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let authority = Authority::new(directory.path());
    let (first, second) = (authority.issue("first", &[NAME]), authority.issue("second", &["*.example.org"]));
    let files = certificates(&[&first, &second]);
    let relay = Relay::start(&mock.bootstrap(), &[("server.tls.certificates", &files)]).ready();
    let leaf = |files: &Files| CertificateDer::from_pem_file(&files.certificate).expect("a certificate").to_vec();
    let client = authority.client();
    for (name, expected) in [(NAME, &first), ("a.example.org", &second)] {
        let stream = tls::connect(&client, relay.webhooks, name).expect("a handshake");
        assert_eq!(tls::shown(&stream), leaf(expected), "{name}");
    }
    let refused = tls::connect(&client, relay.webhooks, "stranger.example").expect_err("another name");
    assert!(refused.to_string().contains("not valid for name"), "the first is shown: {refused}");
    assert!(relay.has_logged("TLS handshake failed"), "{}", relay.log());
    let until = relay.metric(&format!("livechat_relay_tls_certificate_not_after_timestamp_seconds{{name=\"{NAME}\"}}"));
    assert!(until > 1e9, "{until}");
}

#[test]
fn what_is_no_tls_of_ours_is_closed_and_counted_and_a_health_check_is_not_logged() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let authority = Authority::new(directory.path());
    let relay = start(&mock, &authority, &[("server.tls.handshake_timeout", "\"300ms\"")]);

    // A health check connects, and leaves.
    let before = ended(&relay, "client");
    drop(http::connect(relay.webhooks));
    await_that("the health check has ended", || ended(&relay, "client") > before);
    // A client that leaves in the middle of its handshake.
    let mut half = http::connect(relay.webhooks);
    half.write_all(&[22, 3, 1, 1, 0, 1]).expect("written");
    drop(half);
    await_that("it has ended", || ended(&relay, "client") > before + 1.0);
    assert!(!relay.log().contains("TLS handshake"), "{}", relay.log());

    let answer = http::raw(relay.webhooks, request("/webhooks", "", incoming_event(&chat_id(), 1))).expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (400, "this port speaks HTTPS; use https://\n"));
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(relay.metric("livechat_relay_rejected_total{reason=\"plain_http\"}"), 1.0);
    assert_eq!(relay.metric("livechat_relay_requests_total{code=\"400\"}"), 1.0);

    let silent = http::connect(relay.webhooks);
    let mut slow = http::connect(relay.webhooks);
    slow.write_all(&[22, 3, 1, 1, 0, 1]).expect("written");
    await_that("both are late", || ended(&relay, "handshake_timeout") == 2.0);
    assert!(relay.has_logged("server.tls.handshake_timeout"), "{}", relay.log());
    for mut late in [silent, slow] {
        assert!(matches!(late.read(&mut [0]), Ok(0) | Err(_)), "it is closed");
    }

    let mut garbage = http::connect(relay.webhooks);
    garbage.write_all(b"\x16garbage that looks like a record of TLS, and then is none").expect("written");
    await_that("garbage is closed", || ended(&relay, "handshake_failed") == 1.0);
    assert!(relay.has_logged("TLS handshake failed"));
    assert!(relay.log().contains("\"peer\":\"127.0.0.1:"), "{}", relay.log());

    for (n, version) in (2_u8..).zip(["-tls1", "-tls1_1"]) {
        let client = Command::new("openssl")
            .args(["s_client", "-connect", &relay.webhooks.to_string(), version, "-cipher", "DEFAULT@SECLEVEL=0"])
            .stdin(Stdio::null())
            .output()
            .expect("openssl; `scripts/ensure.sh openssl` gets it");
        let said = String::from_utf8_lossy(&client.stderr);
        assert!(!client.status.success() && said.contains("SSL alert number"), "{version}: {said}");
        await_that("it is counted", || ended(&relay, "handshake_failed") == f64::from(n));
    }
    let answer = tls::post(&authority.client(), relay.webhooks, NAME, incoming_event(&chat_id(), 1));
    assert_eq!(answer.expect("an answer").status, 200);
}

#[test]
fn half_open_handshakes_are_closed_for_those_who_mean_it() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let authority = Authority::new(directory.path());
    let settings = [
        ("server.tls.handshakes_max", "16"),
        ("server.tls.handshake_timeout", "\"60s\""),
        ("server.connections_max", "128"),
    ];
    let relay = start(&mock, &authority, &settings);
    let half_open = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(relay.webhooks).expect("a listener");
        stream.write_all(bytes).expect("written");
        stream
    };
    let client = authority.client();
    let mut held = Vec::new();
    for round in 0..20 {
        held.extend((0..10).flat_map(|_| [half_open(&[]), half_open(&[22, 3, 1, 1, 0, 1])]));
        let answer = tls::post(&client, relay.webhooks, NAME, incoming_event(&chat_id(), round));
        assert_eq!(answer.expect("an answer").status, 200, "round {round}");
    }
    await_that("all but the newest are closed", || ended(&relay, "evicted") >= 400.0 - 2.0 * 16.0);
    assert!(relay.metric("livechat_relay_connections") <= 2.0 * 16.0);
    assert!(relay.has_logged("server.tls.handshakes_max is reached"), "{}", relay.log());
}

#[test]
fn metrics_may_want_a_client_certificate_and_probes_have_a_listener_of_their_own() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let authority = Authority::new(directory.path());
    let server = authority.issue("admin", &["localhost"]);
    let prometheus = authority.issue("prometheus", &["prometheus.example.com"]);
    let stranger_directory = tempfile::tempdir().expect("a directory");
    let stranger = Authority::new(stranger_directory.path()).issue("stranger", &["prometheus.example.com"]);
    let [certificate, key, ca] =
        [&server.certificate, &server.key, &authority.ca()].map(|path| format!("\"{}\"", path.display()));
    let relay = Relay::start(
        &mock.bootstrap(),
        &[
            ("admin.tls.certificate", &certificate),
            ("admin.tls.key", &key),
            ("admin.tls.client_ca", &ca),
            ("admin.probes_listen", "\"127.0.0.1:0\""),
        ],
    );
    let metrics = |client: &_| tls::get(client, relay.admin, "localhost", "/metrics");
    let answer = metrics(&authority.client_with(&prometheus)).expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(
        metric(&answer.body, "livechat_relay_tls_certificate_not_after_timestamp_seconds{name=\"localhost\"}") > 1e9
    );
    for (refused, alert) in
        [(authority.client(), "CertificateRequired"), (authority.client_with(&stranger), "DecryptError")]
    {
        let error = metrics(&refused).expect_err("no certificate of the authority");
        assert!(error.to_string().contains(alert), "{error}, not {alert}");
    }
    let probes = relay.probes.expect("a listener");
    await_that("probes are answered", || http::get(probes, "/readyz").status == 200);
    assert_eq!([http::get(probes, "/livez").status, http::get(probes, "/metrics").status], [200, 404]);
}

/// What `check --offline` says of a relay with these settings, and its exit code.
fn check(settings: Settings<'_>) -> (String, Option<i32>) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("relay.toml");
    std::fs::write(&file, configuration("127.0.0.1:1", settings)).expect("written");
    let relay = Command::new(env!("CARGO_BIN_EXE_livechat-relay"))
        .args(["check", "--offline", "--config"])
        .arg(&file)
        .output()
        .expect("the relay's binary");
    let printed = [relay.stdout, relay.stderr].concat();
    let words: Vec<_> = String::from_utf8_lossy(&printed).split_whitespace().map(str::to_owned).collect();
    (words.join(" "), relay.status.code())
}

#[test]
fn check_says_for_whom_a_certificate_is_and_until_when_and_what_is_wrong() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new(directory.path());
    let good =
        authority.issue_with("good", &[NAME, "*.example.org"], |params| params.not_after = date_time_ymd(2996, 1, 1));
    let expired = authority.issue_with("expired", &[NAME], |params| params.not_after = date_time_ymd(2001, 1, 1));
    let early = authority.issue_with("early", &[NAME], |params| params.not_before = date_time_ymd(2996, 1, 1));
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("empty.pem"), "").expect("written");
    let (empty, missing) = (path("empty.pem"), path("missing.pem"));
    let pair = |certificate: &Path, key: &Path| {
        certificates(&[&Files { certificate: certificate.to_owned(), key: key.to_owned() }])
    };
    for (files, code, said) in [
        (certificates(&[&good]), 0, "ok certificate hooks.example.com, *.example.org: "),
        (certificates(&[&expired]), 1, "it expired on 2001-01-01T00:00:00Z: clients refuse it; renew it"),
        (certificates(&[&early]), 1, "it is not valid before 2996-01-01T00:00:00Z"),
        (
            pair(&good.certificate, &expired.key),
            64,
            "expired-key.pem does not belong to the certificate for hooks.example.com",
        ),
        (pair(&good.key, &good.certificate), 64, "are certificate and key swapped?"),
        (pair(&empty, &good.key), 64, "server.tls.certificates[0].certificate: "),
        (pair(&missing, &good.key), 1, "server.tls.certificates[0].certificate: the file cannot be read: No such file"),
        (
            pair(&good.certificate, directory.path()),
            64,
            "server.tls.certificates[0].key: the file cannot be read: it is a directory; name a file in it",
        ),
    ] {
        let (printed, found) = check(&[("server.tls.certificates", &files)]);
        assert!(printed.contains(said) && found == Some(code), "{said}, {code}: {found:?} {printed}");
    }
    let unused = SocketAddr::from(([127, 0, 0, 1], 1));
    let (printed, _) = check(&[("server.plain_listen", &format!("\"{unused}\""))]);
    assert!(printed.contains("server.plain_listen: is only for a relay with [server.tls]"), "{printed}");
}
