//! The installation page and the app's page: every page that a person may be shown, what LiveChat is asked for it, and what is left behind.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};

use crate::support::http::{Answer, connect, get, post_to, raw, request};
use crate::support::livechat::{CLIENT, LiveChat};
use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET, Settings};

const CLIENT_SECRET: &str = "client-secret-of-the-tests-Zq7";

/// An app with both pages.
fn apps(livechat: &LiveChat, more: &str) -> [(&'static str, String); 4] {
    let address = format!("\"http://{}\"", livechat.address);
    let table = format!(
        r#"client_id = "{CLIENT}", client_secret = {{ value = "{CLIENT_SECRET}" }}, public_url = "http://127.0.0.1/relay", organizations = ["org-1"]{more}"#
    );
    let key = format!(r#"secret_keys = [{{ name = "test", value = "{SECRET}" }}]"#);
    [
        ("apps", format!(r#"[{{ name = "default", {key}, livechat = {{ {table} }} }}]"#)),
        ("livechat.api", address.clone()),
        ("livechat.accounts", address),
        ("livechat.attempts_max", "1".to_owned()),
    ]
}

const PAGES: &str = r#", page = true, install = { scopes = ["webhooks.state:ro"], enable_webhooks = true }"#;

fn start(mock: &Mock, livechat: &LiveChat, more: &str, settings: Settings<'_>) -> Relay {
    let apps = apps(livechat, more);
    let apps = apps.iter().map(|(key, value)| (*key, value.as_str()));
    mock.relay(&apps.chain(settings.iter().copied()).collect::<Vec<_>>())
}

fn mock() -> Mock {
    let mock = Mock::start();
    mock.0.create_topic("livechat.app.installed", 1, 1).expect("a topic");
    mock
}

/// What all pages have, whatever they say.
fn assert_page(answer: &Answer) {
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{}", answer.head);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    let policy = answer.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    assert!(!answer.body.contains("{{"), "{}", answer.body);
}

fn title(answer: &Answer) -> &str {
    answer.body.split_once("<h1>").and_then(|(_, rest)| rest.split_once("</h1>")).expect("a title").0
}

#[test]
fn an_installation_is_confirmed_once_published_and_leaves_no_token() {
    let (mock, livechat) = (mock(), LiveChat::start());
    let relay = start(&mock, &livechat, PAGES, &[("log.filter", "\"debug\"")]);

    let installed = get(relay.webhooks, "/install/default?code=good-a%253A1&state=");
    assert_page(&installed);
    assert_eq!((installed.status, title(&installed)), (200, "The app default is installed"));
    assert!(installed.body.contains("were off, and are on now") && installed.body.contains("data-end=\"yes\""));
    assert!(installed.header("content-security-policy").is_some_and(|p| p.ends_with("frame-ancestors 'none'")));
    assert!(livechat.are_webhooks_on());

    let records = mock.read("livechat.app.installed");
    let [record] = records.as_slice() else { panic!("{} records", records.len()) };
    let event: Value = serde_json::from_slice(&record.value).expect("JSON");
    assert_eq!(
        (&event["type"], &event["organizationid"], &event["app"]),
        (&json!("com.livechat.app.installed"), &json!("org-1"), &json!("default"))
    );
    assert_eq!(record.key.as_deref(), Some("org-1".as_bytes()));
    let mut data = event["data"].clone();
    assert_eq!(data["date"].take(), event["time"]);
    let scopes = json!(["webhooks.configuration:rw", "webhooks.state:rw"]);
    let expected = json!({
        "event": "installed", "date": null, "clientID": CLIENT, "organizationID": "org-1", "accountID": "account-1",
        "payload": { "scopes": scopes, "licenseWebhooksEnabled": true },
    });
    assert_eq!(data, expected);

    let exchange = livechat.requests().into_iter().find(|r| r.starts_with("POST /v2/token")).expect("an exchange");
    assert!(exchange.contains("redirect_uri=http%3A%2F%2F127.0.0.1%2Frelay%2Finstall%2Fdefault"), "{exchange}");
    assert!(exchange.contains("code=good-a%3A1") && !exchange.contains("verifier"), "{exchange}");
    assert_eq!(livechat.count("DELETE /v2/token Bearer token-good-a%3A1"), 1, "{:?}", livechat.requests());

    let again = get(relay.webhooks, "/install/default?code=good-a%3A1");
    assert_eq!((again.status, title(&again)), (400, "This code was used already"));
    assert!(again.body.contains("only reloaded"));
    assert_eq!((livechat.count("POST /v2/token"), mock.read("livechat.app.installed").len()), (1, 1));

    assert!(relay.has_logged("an organization has installed the app"));
    for secret in ["good-a%3A1", "good-a:1", "good-a%253A1", "token-good", "refresh-good", CLIENT_SECRET] {
        let metrics = get(relay.admin, "/metrics").body;
        assert!(
            ![relay.log(), installed.body.clone(), again.body.clone(), metrics]
                .iter()
                .any(|text| text.contains(secret)),
            "{secret}"
        );
    }
    assert_eq!(relay.metric(r#"livechat_relay_page_requests_total{result="installed"}"#), 1.0);
    assert_eq!(relay.metric(r#"livechat_relay_events_total{action="app_installed",outcome="published"}"#), 1.0);
}

#[test]
fn every_error_of_an_installation_has_its_page_and_reflects_nothing() {
    let (mock, livechat) = (mock(), LiveChat::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    let evil = "%3Cscript%3Ealert(1)%3C%2Fscript%3Eevil";
    for (query, status, expected) in [
        (String::new(), 400, "There is nothing to install"),
        (format!("?state={evil}"), 400, "There is nothing to install"),
        ("?code=good-1&code=good-2".to_owned(), 400, "There is nothing to install"),
        ("?code=%zz".to_owned(), 400, "There is nothing to install"),
        (format!("?error=access_denied&error_description={evil}"), 400, "The app was not installed"),
        (format!("?oauth_exception={evil}"), 400, "The app was not installed"),
        ("?oauth_exception=invalid_scope".to_owned(), 400, "The app was not installed"),
        (
            "?exception_details=invalid_redirect_uri&oauth_exception=invalid_request".to_owned(),
            400,
            "LiveChat does not know this app",
        ),
        ("?exception_details=too_many_redirects".to_owned(), 400, "Too many attempts"),
        ("?identity_exception=identity_lost".to_owned(), 400, "You are not signed in"),
        ("?error=server_error".to_owned(), 400, "LiveChat has trouble"),
        ("?code=evil-1".to_owned(), 400, "LiveChat did not accept the code"),
        ("?code=broken-1".to_owned(), 503, "LiveChat cannot be reached"),
        ("?code=strange-1".to_owned(), 503, "The relay is not set up for this app"),
        ("?code=elsewhere-1".to_owned(), 403, "Your organization may not install this app"),
        ("?code=blind-1".to_owned(), 403, "Scopes are missing"),
    ] {
        let answer = get(relay.webhooks, &format!("/install/default{query}"));
        assert_page(&answer);
        assert_eq!((answer.status, title(&answer)), (status, expected), "{query}");
        assert!(!answer.body.contains("evil") && !answer.body.contains("as it is"), "{}", answer.body);
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{query}");
    }
    let missing = get(relay.webhooks, "/install/default?code=blind-2");
    assert!(missing.body.contains("<code>webhooks.state:ro</code>"), "{}", missing.body);
    for code in ["elsewhere-1", "blind-1"] {
        assert_eq!(livechat.count(&format!("DELETE /v2/token Bearer token-{code}")), 1, "its token is revoked");
    }
    let refused = get(relay.webhooks, "/install/default?code=evil-1");
    assert_eq!(title(&refused), "This code was used already");
    let before = livechat.count("POST /v2/token");
    assert_eq!(title(&get(relay.webhooks, "/install/default?code=broken-1")), "LiveChat cannot be reached");
    assert_eq!(livechat.count("POST /v2/token"), before + 1, "it is tried once more");
    assert!(mock.read("livechat.app.installed").is_empty());
}

#[test]
fn a_license_whose_webhooks_are_off_stays_so_unless_the_operator_wants_them_on() {
    let (mock, livechat) = (mock(), LiveChat::start());
    let install = ", install = { enable_webhooks = false }";
    let relay = start(&mock, &livechat, install, &[]);
    let off = get(relay.webhooks, "/install/default?code=good-off");
    assert_eq!(off.status, 200);
    assert!(off.body.contains("are off") && !livechat.are_webhooks_on(), "{}", off.body);
    let unknown = get(relay.webhooks, "/install/default?code=blind-1");
    assert_eq!(unknown.status, 200);
    assert!(unknown.body.contains("could not be found out"), "{}", unknown.body);
    livechat.set_webhooks(true);
    assert!(get(relay.webhooks, "/install/default?code=good-on").body.contains("are on."));
    let states: Vec<Value> = mock
        .read("livechat.app.installed")
        .iter()
        .map(|record| {
            serde_json::from_slice::<Value>(&record.value).expect("JSON")["data"]["payload"]["licenseWebhooksEnabled"]
                .clone()
        })
        .collect();
    assert_eq!(states, [json!(false), Value::Null, json!(true)]);
}

#[test]
fn the_page_says_success_only_when_the_event_is_durable_and_a_reload_does_the_rest() {
    let (mock, livechat) = (mock(), LiveChat::start());
    let deadlines: Settings<'_> = &[
        ("kafka.publish_deadline", "\"500ms\""),
        ("server.response_deadline", "\"2s\""),
        ("server.body_timeout", "\"1s\""),
    ];
    let relay = start(&mock, &livechat, PAGES, deadlines);
    mock.freeze();
    let waiting = get(relay.webhooks, "/install/default?code=good-1");
    assert_page(&waiting);
    assert_eq!((waiting.status, title(&waiting)), (503, "Not finished yet"));
    assert!(waiting.header("retry-after").is_some() && !waiting.body.contains("is installed"));
    mock.thaw();
    crate::support::relay::await_that("the reload says success", || {
        let answer = get(relay.webhooks, "/install/default?code=good-1");
        assert!(matches!(answer.status, 200 | 503), "{}", answer.body);
        answer.status == 200
    });
    assert_eq!((livechat.count("POST /v2/token"), livechat.count("DELETE /v2/token")), (1, 1));
    assert!(!mock.read("livechat.app.installed").is_empty());
}

#[test]
fn pages_that_are_off_are_no_paths_and_other_methods_are_told_which() {
    let (mock, livechat) = (mock(), LiveChat::start());
    let relay = start(&mock, &livechat, "", &[]);
    let body = |answer: Answer| (answer.status, answer.body);
    let unknown = body(get(relay.webhooks, "/nothing"));
    assert_eq!(unknown.0, 404);
    for path in
        ["/install/default?code=good-1", "/app/default", "/app/default/facts", "/app/default/token", "/install", "/app"]
    {
        assert_eq!(body(get(relay.webhooks, path)), unknown, "{path}");
    }
    drop(relay);
    let relay = start(&mock, &livechat, PAGES, &[]);
    for path in ["/install/other", "/app/other", "/app/default/", "/install/default/x", "/app/default/facts/x"] {
        assert_eq!(body(get(relay.webhooks, path)), unknown, "{path}");
    }
    for (method, path, allow) in [
        ("HEAD", "/install/default", "GET"),
        ("POST", "/install/default", "GET"),
        ("PUT", "/app/default", "GET"),
        ("POST", "/app/default/facts", "GET"),
        ("GET", "/app/default/token", "POST"),
    ] {
        let mut stream = connect(relay.webhooks);
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
        assert!(answer.contains(&format!("\r\nallow: {allow}\r\n")), "{method} {path}: {answer}");
    }
    assert_eq!(livechat.requests().len(), 0);
}

fn facts(relay: &Relay, token: &str) -> (u16, Value) {
    let head = format!(
        "GET /app/default/facts HTTP/1.1\r\nhost: relay\r\nauthorization: {token}\r\nconnection: close\r\n\r\n"
    );
    let answer = raw(relay.webhooks, head).expect("an answer");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{}", answer.head);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    (answer.status, serde_json::from_str(&answer.body).expect("JSON"))
}

#[test]
fn facts_are_for_tokens_that_livechat_confirms_and_a_stranger_causes_no_call() {
    let (mock, livechat) = (mock(), LiveChat::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    livechat.set_webhooks(true);

    let shell = get(relay.webhooks, "/app/default?theme=dark&plugin_id=%3Cscript%3Eevil");
    assert_page(&shell);
    assert_eq!(shell.status, 200);
    assert!(shell.body.contains(&format!("data-client-id=\"{CLIENT}\"")) && !shell.body.contains("evil"));
    let policy = shell.header("content-security-policy").expect("a policy");
    assert!(policy.ends_with("frame-ancestors https://my.livechatinc.com https://*.livechatinc.com https://*.livechat.com https://*.text.com"), "{policy}");
    for implausible in
        ["", "Bearer", "Bearer short", "Basic dG9rZW4tb2YtdGhlLXRlc3Rz", "Bearer token with blanks in it"]
    {
        assert_eq!(facts(&relay, implausible), (401, json!({ "error": "unauthorized" })), "{implausible}");
    }
    assert_eq!(livechat.requests().len(), 0, "{:?}", livechat.requests());

    for _ in 0..3 {
        let (status, mut body) = facts(&relay, "Bearer token-good-1-of-the-tests");
        assert!(body["time"].take().is_string());
        assert_eq!(
            (status, body),
            (200, json!({ "time": null, "installed": true, "license_webhooks_enabled": true, "deliveries": [] }))
        );
    }
    assert_eq!(livechat.requests().len(), 2, "info and state, once: {:?}", livechat.requests());
    for (token, expected) in [
        ("Bearer token-unknown-of-the-tests", (401, "unauthorized")),
        ("Bearer token-elsewhere-of-the-tests", (403, "not_allowed")),
        ("Bearer token-another-of-the-tests", (403, "not_allowed")),
    ] {
        for _ in 0..2 {
            assert_eq!(facts(&relay, token), (expected.0, json!({ "error": expected.1 })), "{token}");
        }
    }
    assert_eq!(livechat.requests().len(), 2 + 3, "what was refused is remembered, too");
    assert_eq!(facts(&relay, "Bearer token-broken-of-the-tests"), (503, json!({ "error": "unreachable" })));
    let (status, blind) = facts(&relay, "Bearer token-blind-of-the-tests");
    assert_eq!((status, &blind["installed"], &blind["license_webhooks_enabled"]), (200, &Value::Null, &Value::Null));
    assert!(!relay.log().contains("of-the-tests\""), "{}", relay.log());
}

#[test]
fn a_source_that_tries_tokens_or_codes_is_stopped_and_webhooks_go_on() {
    let (mock, livechat) = (mock(), LiveChat::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    assert_eq!(facts(&relay, "Bearer token-good-1-of-the-tests").0, 200);
    let answers: Vec<u16> = (0..40).map(|n| facts(&relay, &format!("Bearer token-guess{n}-of-the-tests")).0).collect();
    let asked = answers.iter().filter(|status| **status == 401).count();
    assert!((15..40).contains(&asked), "{answers:?}");
    assert_eq!(answers.last(), Some(&429));
    assert!(livechat.count("GET /v2/info") <= asked + 1);
    let install = get(relay.webhooks, "/install/default?code=good-1");
    assert_page(&install);
    assert_eq!((install.status, title(&install)), (429, "Too many attempts"));
    assert!(install.header("retry-after").is_some());
    assert_eq!(facts(&relay, "Bearer token-good-1-of-the-tests").0, 200, "a token that is known is not limited");
    assert_eq!(post_to(relay.webhooks, "/webhooks", crate::support::incoming_event("C", 1)).status, 200);
}

#[test]
fn a_login_of_the_page_gives_a_token_once_and_to_listed_organizations_only() {
    let (mock, livechat) = (mock(), LiveChat::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    let verifier = "v".repeat(43);
    let login = |code: &str, verifier: &str| {
        let body = json!({ "code": code, "code_verifier": verifier }).to_string();
        let answer = post_to(relay.webhooks, "/app/default/token", body);
        (answer.status, serde_json::from_str::<Value>(&answer.body).expect("JSON"))
    };
    assert_eq!(login("good-1", &verifier), (200, json!({ "access_token": "token-good-1-of-the-tests" })));
    let exchange = &livechat.requests()[0];
    assert!(
        exchange.contains(&format!("code_verifier={verifier}"))
            && exchange.contains(&format!("client_secret={CLIENT_SECRET}"))
    );
    assert!(exchange.contains("redirect_uri=http%3A%2F%2F127.0.0.1%2Frelay%2Fapp%2Fdefault"), "{exchange}");
    assert_eq!(login("good-1", &verifier), (400, json!({ "error": "code_used" })));
    assert_eq!(login("refused-1", &verifier), (400, json!({ "error": "code_refused" })));
    assert_eq!(login("elsewhere-1", &verifier), (403, json!({ "error": "not_allowed" })));
    assert_eq!(livechat.count("DELETE /v2/token Bearer token-elsewhere-1"), 1);
    assert_eq!(livechat.count("DELETE"), 1, "the page's own token stays good");
    let calls = livechat.requests().len();
    for (code, verifier) in [("good-2", "short"), ("", &verifier), ("a b", &verifier), ("good-2", &"v".repeat(129))] {
        assert_eq!(login(code, verifier), (400, json!({ "error": "no_code" })), "{code} {verifier}");
    }
    let typed = request("/app/default/token", "connection: close\r\n", "{}");
    let typed = String::from_utf8(typed).expect("text").replace("application/json", "text/plain");
    assert_eq!(
        raw(relay.webhooks, typed).expect("an answer").status,
        415,
        "another origin can send this without leave"
    );
    assert_eq!(post_to(relay.webhooks, "/app/default/token", "x".repeat(5000)).status, 413);
    assert_eq!(livechat.requests().len(), calls);
}
