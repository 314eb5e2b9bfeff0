//! What answers, and is not LiveChat; and what does not answer.

use rustls::{RootCertStore, ServerConfig};

use super::*;
use crate::livechat;

#[tokio::test]
async fn an_answer_that_is_none_of_livechat_s_is_told_and_not_tried_again() {
    let table = [
        (200, "", "<html>Sign in to the network</html>"),
        (200, "", "[{\"id\": \"w1\", \"action"),
        (200, "", "[{\"id\": \"w1\"}]"),
        (200, "", "\"text\""),
        (404, "", "<html>"),
        (403, "", "{\"error\": \"text\"}"),
        (301, "location: https://evil.example/\r\n", ""),
        (307, "location: /elsewhere\r\n", ""),
    ];
    for (status, headers, body) in table {
        let server = Server::start(move |_, _| reply(status, headers, body)).await;
        let failure = server.api().list_webhooks().await.expect_err(body);
        assert_eq!((failure.kind.clone(), server.seen().len()), (Kind::Unintelligible, 1), "{failure}");
        assert_told(&failure);
    }
}

#[tokio::test]
async fn without_livechat_s_json_the_status_says_what_may_help() {
    for (status, kind) in
        [(401, Kind::Authentication), (429, Kind::TooManyRequests), (502, Kind::Unavailable), (408, Kind::Unavailable)]
    {
        let server = Server::start(move |_, _| reply(status, "", "<html>")).await;
        let failure = server.api().list_webhooks().await.expect_err("no JSON");
        assert_eq!(failure.kind, kind);
        assert_told(&failure);
    }
}

#[tokio::test]
async fn more_than_the_limit_is_not_read() {
    for (size, is_read) in [((2 << 20) - 2, true), (2 << 20, false), (10 << 20, false)] {
        let server = Server::start(move |_, _| reply(200, "", &format!("[{}]", " ".repeat(size)))).await;
        let listed = server.api().list_webhooks().await;
        assert_eq!(listed.is_ok(), is_read, "{size}");
        if let Err(failure) = listed {
            assert!(failure.kind == Kind::Unintelligible && failure.what.contains("more than 2 MiB"), "{failure}");
        }
    }
}

#[tokio::test]
async fn silence_ends_with_the_time_limit_and_a_broken_answer_with_its_connection() {
    let server = Server::start(|_, _| Reply::Silence).await;
    let config = Config { timeout: Duration::from_millis(50), attempts_max: 2, ..server.config() };
    let failure = Api::new(&config, &app()).list_webhooks().await.expect_err("silence");
    assert!(failure.kind == Kind::Unavailable && failure.what.contains("does not answer in time"), "{failure}");
    assert_told(&failure);

    let broken = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[";
    let server = Server::start(move |_, _| Reply::Bytes(broken.into())).await;
    let api = server.api();
    let failure = api.list_webhooks().await.expect_err("half an answer");
    assert_eq!((failure.kind.clone(), server.seen().len(), api.calls()), (Kind::Unavailable, 3, 3), "{failure}");
    assert_told(&failure);
}

fn at(address: &str, roots: Option<&Arc<RootCertStore>>) -> livechat::Server {
    livechat::Server::new(livechat::Server::address(address).expect("an address"), roots)
}

#[tokio::test]
async fn nothing_that_listens_is_told_with_the_address() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let server = Server::start(|_, _| Reply::Silence).await;
    let config = Config { api: at(&format!("http://{free}"), None), ..server.config() };
    let api = Api::new(&config, &app());
    // Nothing was sent, so nothing has to be looked for.
    let failure = api.register_webhook(&wanted(), &key(), &BTreeSet::new()).await.expect_err("no server");
    assert!(failure.kind == Kind::Unavailable && failure.what.contains("127.0.0.1"), "{failure}");
    assert_eq!(api.calls(), 0);
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_told_and_gets_no_token() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let der = certified.cert.der().clone();
    let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], certified.signing_key.serialize_der().try_into().expect("a key"))
        .expect("a configuration");
    let server = Server::start_with(Some(TlsAcceptor::from(Arc::new(tls))), |_, _| ok(json!([]))).await;
    let address = format!("https://localhost:{}", server.address.port());
    let config = Config { api: at(&address, None), ..server.config() };
    let failure = Api::new(&config, &app()).list_webhooks().await.expect_err("a stranger");
    assert!(failure.kind == Kind::Unintelligible && failure.what.contains("certificate"), "{failure}");
    assert!(failure.remedy.contains("livechat.ca") && server.seen().is_empty(), "{failure}");
    // With its own root it is trusted.
    let mut roots = RootCertStore::empty();
    roots.add(der).expect("a root");
    let config = Config { api: at(&address, Some(&Arc::new(roots))), ..config };
    assert_eq!(Api::new(&config, &app()).list_webhooks().await.expect("a list"), []);
}

#[test]
fn tokens_travel_readable_on_loopback_only() {
    for good in ["https://api.livechatinc.com", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1/"] {
        assert!(livechat::Server::address(good).is_some(), "{good}");
    }
    for bad in [
        "http://api.livechatinc.com",
        "http://127.0.0.1.evil.example",
        "http://10.0.0.1",
        "ftp://127.0.0.1",
        "https://api.livechatinc.com/v3",
        "https://u:p@api.livechatinc.com",
        "api",
    ] {
        assert!(livechat::Server::address(bad).is_none(), "{bad}");
    }
}
