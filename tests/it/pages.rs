//! The installation page and the app's page: every page that a person may be shown, what LiveChat is asked for it, and what is left behind.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};

use crate::support::http::{Answer, connect, get, post_to, raw, request};
use crate::support::incoming_event;
use crate::support::mock::Mock;
use crate::support::relay::{Relay, Settings, await_that};
use crate::support::simulator::{ACCOUNT, CLIENT, CLIENT_SECRET, ORGANIZATION, PUBLIC_URL, Simulator, apps};

const SCOPES: [&str; 3] = ["chats--all:ro", "webhooks.configuration:rw", "webhooks.state:rw"];

/// A relay whose app has these lines in `[apps.livechat]`.
fn start(mock: &Mock, livechat: &Simulator, more: &str, settings: Settings<'_>) -> Relay {
    let (apps, address) =
        (apps(&format!("organizations = [\"{ORGANIZATION}\"], {more}")), format!("{:?}", livechat.url));
    let of_livechat = [("livechat.api", &*address), ("livechat.accounts", &*address), ("livechat.attempts_max", "1")];
    let is_set = |key: &str| settings.iter().any(|(set, _)| *set == key);
    let of_livechat: Vec<_> = of_livechat.into_iter().filter(|(key, _)| !is_set(key)).collect();
    mock.relay(&[settings, &[("apps", &*apps)], &of_livechat].concat())
}

const PAGES: &str = r#"page = true, install = { scopes = ["webhooks.state:ro"], enable_webhooks = true }"#;

fn mock() -> Mock {
    let mock = Mock::start();
    mock.0.create_topic("livechat.app.installed", 1, 1).expect("a topic");
    mock
}

/// Presses Install, as `who` says; the query that the browser then comes with.
fn pressed(livechat: &Simulator, who: Value) -> String {
    let pressed = livechat.post("install", who);
    let (_, query) = pressed["url"].as_str().and_then(|url| url.split_once('?')).expect("a query");
    query.to_owned()
}

fn install(relay: &Relay, query: &str) -> Answer {
    let answer = get(relay.webhooks, &format!("/install/default?{query}"));
    assert_page(&answer);
    answer
}

fn installed(mock: &Mock) -> Vec<Value> {
    let records = mock.read("livechat.app.installed");
    records.iter().map(|record| serde_json::from_slice(&record.value).expect("JSON")).collect()
}

/// The calls of these methods.
fn calls<const N: usize>(livechat: &Simulator, methods: [&str; N]) -> [usize; N] {
    methods.map(|method| livechat.requests(method).len())
}

fn tokens(livechat: &Simulator) -> usize {
    livechat.get("state")["tokens"].as_array().map_or(0, Vec::len)
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
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[("log.filter", "\"trace\"")]);
    assert_eq!(livechat.call("disable_license_webhooks", json!({ "owner_client_id": CLIENT })).status, 200);
    livechat.switch(json!({ "code_encoded_twice": true }));
    let query = pressed(&livechat, json!({}));
    assert!(query.contains("%253A"), "{query}");

    let page = install(&relay, &format!("{query}&state="));
    assert_eq!((page.status, title(&page)), (200, "The app “default” is installed"));
    assert!(page.body.contains("The installation has enabled them") && page.body.contains("data-end=\"yes\""));
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.ends_with("frame-ancestors 'none'")));
    assert_eq!(livechat.get("state")["installations"][0]["enabled"], true);

    let events = installed(&mock);
    let [event] = events.as_slice() else { panic!("{events:?}") };
    let attributes = ["type", "organizationid", "app", "partitionkey"].map(|name| event[name].as_str().expect("text"));
    assert_eq!(attributes, ["com.livechat.app.installed", ORGANIZATION, "default", ORGANIZATION]);
    let mut data = event["data"].clone();
    assert_eq!(data["date"].take(), event["time"]);
    let expected = json!({
        "event": "installed", "date": null, "clientID": CLIENT, "organizationID": ORGANIZATION, "accountID": ACCOUNT,
        "payload": { "scopes": SCOPES, "licenseWebhooksEnabled": true },
    });
    assert_eq!(data, expected);

    let again = install(&relay, &query.replace("%25", "%"));
    assert_eq!((again.status, &again.body), (200, &page.body), "a page that is reloaded says what it said");
    assert_eq!(calls(&livechat, ["token", "revoke"]), [1, 1]);
    assert_eq!((installed(&mock).len(), tokens(&livechat)), (1, 0));

    assert!(relay.has_logged("an organization has installed the app"));
    let told = |line: &str| line.contains("has installed the app") && line.contains(ORGANIZATION);
    assert!(relay.log().lines().any(told), "{}", relay.log());
    let (metrics, code) = (get(relay.admin, "/metrics").body, query.rsplit("%253A").next().expect("a code"));
    let token = livechat.requests("revoke")[0]["headers"]["authorization"].as_str().expect("a token").to_owned();
    for secret in [code, token.trim_start_matches("Bearer "), CLIENT_SECRET] {
        for text in [&relay.log(), &page.body, &again.body, &metrics] {
            assert!(secret.len() > 20 && !text.contains(secret), "{secret} in {text}");
        }
    }
    let answered = |result| relay.metric(&format!("livechat_relay_page_requests_total{{result=\"{result}\"}}"));
    assert_eq!((answered("installed"), answered("shown")), (1.0, 1.0), "a reload is no installation");
    assert_eq!(relay.metric(r#"livechat_relay_events_total{action="app_installed",outcome="published"}"#), 1.0);
}

#[test]
fn every_error_that_a_query_brings_has_its_page_and_nothing_of_it_is_reflected() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    let evil = "%3Cscript%3Ealert(1)%3C%2Fscript%3Eevil";
    for (query, expected) in [
        ("", "There is nothing to install"),
        ("state=EVIL", "There is nothing to install"),
        ("code=one&code=two", "There is nothing to install"),
        ("code=%zz", "There is nothing to install"),
        ("error=access_denied&error_description=EVIL", "The app was not installed"),
        ("oauth_exception=EVIL", "The app was not installed"),
        ("oauth_exception=invalid_scope", "The app was not installed"),
        ("oauth_exception=invalid_request&exception_details=invalid_redirect_uri", "LiveChat does not know this app"),
        ("exception_details=too_many_redirects", "Too many attempts"),
        ("identity_exception=identity_lost", "You are not signed in"),
        ("error=server_error", "LiveChat has trouble"),
    ] {
        let answer = install(&relay, &query.replace("EVIL", evil));
        assert_eq!((answer.status, title(&answer)), (400, expected), "{query}");
        assert!(!answer.body.contains("evil") && answer.body.contains("data-end=\"no\""), "{}", answer.body);
    }
    assert_eq!(calls(&livechat, ["token"]), [0]);
    let answer = install(&relay, "code=evil-code");
    assert_eq!((answer.status, title(&answer)), (400, "LiveChat did not accept the code"));
    assert!(!answer.body.contains("evil"));
    assert_eq!(title(&install(&relay, "code=evil-code")), "LiveChat did not accept the code");
    assert_eq!((calls(&livechat, ["token"]), installed(&mock).len()), ([1], 0));
}

#[test]
fn while_livechat_fails_nothing_is_lost_and_a_reload_tries_once_more() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    let query = pressed(&livechat, json!({}));
    for (fault, status, expected) in [
        (json!({ "error": "server_error" }), 503, "LiveChat cannot be reached"),
        (json!({ "answer": "html" }), 503, "LiveChat cannot be reached"),
        (json!({ "answer": "redirect" }), 503, "LiveChat cannot be reached"),
        (json!({ "answer": "large" }), 503, "LiveChat cannot be reached"),
        (json!({ "error": "temporarily_unavailable" }), 503, "LiveChat cannot be reached"),
        (json!({ "error": "invalid_request" }), 503, "The relay is not set up for this app"),
    ] {
        let mut of_token = json!({ "method": "token" });
        of_token.as_object_mut().expect("an object").extend(fault.as_object().expect("an object").clone());
        livechat.fault(of_token);
        let answer = install(&relay, &query);
        assert_eq!((answer.status, title(&answer)), (status, expected), "{fault}");
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(install(&relay, &query).status, 200);
    // A token that cannot be revoked ends by itself; the app is installed all the same.
    livechat.fault(json!({ "method": "revoke", "answer": "close" }));
    assert_eq!(install(&relay, &pressed(&livechat, json!({}))).status, 200);
    assert!(relay.has_logged("could not be revoked"));
    assert_eq!((installed(&mock).len(), tokens(&livechat)), (2, 1));
    // Where the answer is lost, the code is used up all the same, which the page has foretold.
    livechat.fault(json!({ "method": "token", "answer": "truncated" }));
    let query = pressed(&livechat, json!({}));
    let lost = install(&relay, &query);
    assert!(lost.status == 503 && lost.body.contains("If LiveChat then does not accept the code"), "{}", lost.body);
    assert_eq!(title(&install(&relay, &query)), "LiveChat did not accept the code");
}

#[test]
fn an_organization_that_is_not_listed_and_one_without_the_scopes_are_turned_away_and_leave_no_token() {
    let (mock, livechat) = (mock(), Simulator::start());
    let wanted = r#"install = { scopes = ["chats--all:ro", "webhooks.state:rw", "agents--all:rw"] }"#;
    let relay = start(&mock, &livechat, wanted, &[]);
    let missing = install(&relay, &pressed(&livechat, json!({ "scopes": ["webhooks.state:ro", "chats--all:rw"] })));
    assert_eq!((missing.status, title(&missing)), (403, "Scopes are missing"));
    let listed = "<ul><li><code>agents--all:rw</code></li><li><code>webhooks.state:rw</code></li></ul>";
    assert!(missing.body.contains(listed), "{}", missing.body);
    drop(relay);

    let relay = start(&mock, &livechat, PAGES, &[]);
    list_instead(&relay, "another-organization");
    let query = pressed(&livechat, json!({}));
    let stranger = install(&relay, &query);
    assert_eq!((stranger.status, title(&stranger)), (403, "Your organization may not install this app"));
    assert!(relay.has_logged("an organization was turned away"));
    assert_eq!(title(&install(&relay, &query)), "Your organization may not install this app");
    assert_eq!(
        (calls(&livechat, ["token", "revoke", "get_license_webhooks_state"]), tokens(&livechat)),
        ([2, 2, 0], 0)
    );
    assert!(installed(&mock).is_empty());
}

/// Changes whom a relay that runs lists.
fn list_instead(relay: &Relay, organization: &str) {
    relay.configure(&std::fs::read_to_string(relay.file()).expect("the file").replace(ORGANIZATION, organization));
    relay.signal(rustix::process::Signal::HUP);
    assert!(relay.has_logged("configuration reloaded"));
}

#[test]
fn an_organization_that_does_not_own_the_app_can_install_it() {
    let (mock, (livechat, _directory)) = (mock(), with_strangers());
    let relay = start(&mock, &livechat, PAGES, &[]);
    list_instead(&relay, "other-organization");
    let page = install(&relay, &pressed(&livechat, json!({ "organization_id": "other-organization" })));
    assert!(page.status == 200 && page.body.contains("were on."), "{}", page.body);
    assert_eq!(installed(&mock)[0]["organizationid"], "other-organization");
}

#[test]
fn a_license_whose_webhooks_are_off_stays_so_unless_the_operator_wants_them_on() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, "install = { enable_webhooks = false }", &[]);
    let unknown = install(&relay, &pressed(&livechat, json!({ "scopes": ["webhooks.configuration:rw"] })));
    assert!(unknown.status == 200 && unknown.body.contains("could not be found out"), "{}", unknown.body);
    assert!(install(&relay, &pressed(&livechat, json!({}))).body.contains("were on."));
    assert_eq!(livechat.call("disable_license_webhooks", json!({ "owner_client_id": CLIENT })).status, 200);
    let off = install(&relay, &pressed(&livechat, json!({})));
    assert!(off.status == 200 && off.body.contains("were off: LiveChat sends none"), "{}", off.body);
    assert_eq!(livechat.get("state")["installations"][0]["enabled"], false);
    let states: Vec<Value> =
        installed(&mock).iter().map(|event| event["data"]["payload"]["licenseWebhooksEnabled"].clone()).collect();
    assert_eq!(states, [Value::Null, json!(true), json!(false)]);
}

#[test]
fn the_page_says_success_only_when_the_event_is_durable_and_a_reload_does_the_rest() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[("kafka.publish_deadline", "\"500ms\"")]);
    mock.freeze();
    let query = pressed(&livechat, json!({}));
    let waiting = install(&relay, &query);
    assert_eq!((waiting.status, title(&waiting)), (503, "Not finished yet"));
    assert!(waiting.header("retry-after").is_some() && !waiting.body.contains("is installed"));
    mock.thaw();
    await_that("the reload says success", || {
        let answer = install(&relay, &query);
        assert!(matches!(answer.status, 200 | 429 | 503), "{}", answer.body);
        answer.status == 200
    });
    assert_eq!(calls(&livechat, ["token", "revoke"]), [1, 1]);
    assert!(!installed(&mock).is_empty());
}

#[test]
fn a_browser_that_leaves_cancels_no_installation() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    livechat.fault(json!({ "method": "get_license_webhooks_state", "delay": 1.0 }));
    let query = pressed(&livechat, json!({}));
    let mut stream = connect(relay.webhooks);
    write!(stream, "GET /install/default?{query} HTTP/1.1\r\nhost: relay\r\n\r\n").expect("sent");
    await_that("the code is exchanged", || calls(&livechat, ["token"]) == [1]);
    drop(stream);
    await_that("the event is there", || installed(&mock).len() == 1);
    assert_eq!(tokens(&livechat), 0);
}

#[test]
fn pages_that_are_off_are_no_paths_and_other_methods_are_told_which() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, "page = false", &[]);
    let body = |answer: Answer| (answer.status, answer.body);
    let unknown = body(get(relay.webhooks, "/nothing"));
    assert!(unknown.0 == 404 && unknown.1.contains("not found"), "{}", unknown.1);
    for path in
        ["/install/default?code=x", "/app/default", "/app/default/facts", "/app/default/token", "/install", "/app"]
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
        ("GET", "/app/default/sign-out", "POST"),
    ] {
        let mut stream = connect(relay.webhooks);
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
        assert!(answer.contains(&format!("\r\nallow: {allow}\r\n")), "{method} {path}: {answer}");
    }
    assert_eq!(calls(&livechat, ["token", "info"]), [0, 0]);
}

/// A PKCE verifier, which is its own challenge by the method `plain`.
const VERIFIER: &str = "verifier-of-the-tests-verifier-of-the-tests-0123456789";

/// What the login page is sent back with, for an account of LiveChat's.
fn code(livechat: &Simulator, account: &str) -> String {
    let address = format!(
        "/?response_type=code&client_id={CLIENT}&redirect_uri={PUBLIC_URL}/app/default&state=s&code_challenge={VERIFIER}&code_challenge_method=plain&account_id={account}"
    );
    let location = livechat.authorize(&address);
    let code = location.split_once("?code=").and_then(|(_, rest)| rest.split_once("&state=s")).expect("a code").0;
    code.replace("%3A", ":")
}

fn sign_in(relay: &Relay, code: &str, verifier: &str) -> (u16, Value) {
    let body = json!({ "code": code, "code_verifier": verifier }).to_string();
    let answer = post_to(relay.webhooks, "/app/default/token", body);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    (answer.status, serde_json::from_str(&answer.body).expect("JSON"))
}

fn token(relay: &Relay, code: &str) -> String {
    let (status, body) = sign_in(relay, code, VERIFIER);
    assert_eq!(status, 200, "{body}");
    body["access_token"].as_str().expect("a token").to_owned()
}

fn facts(relay: &Relay, authorization: &str) -> (u16, Value) {
    let headers = format!("host: relay\r\nauthorization: {authorization}\r\nconnection: close\r\n");
    let answer = raw(relay.webhooks, format!("GET /app/default/facts HTTP/1.1\r\n{headers}\r\n")).expect("an answer");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{}", answer.head);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    (answer.status, serde_json::from_str(&answer.body).expect("JSON"))
}

fn error(label: &str) -> Value {
    json!({ "error": label })
}

/// With a second organization, of the account `other`, and the token `another-app` of a second app of the first one.
fn with_strangers() -> (Simulator, tempfile::TempDir) {
    let mut setup = Simulator::start().get("state")["setup"].clone();
    let push = |setup: &mut Value, list: &str, item: Value| setup[list].as_array_mut().expect("a list").push(item);
    push(&mut setup, "organizations", json!({ "id": "other-organization", "license_id": 2, "region": "fra" }));
    push(
        &mut setup,
        "accounts",
        json!({ "id": "other", "organization_id": "other-organization", "email": "o@example.com" }),
    );
    let mut client = setup["clients"][0].clone();
    client["id"] = "another-app".into();
    client["direct_installation_url"] = format!("{PUBLIC_URL}/another").into();
    push(&mut setup, "clients", client);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("setup.json");
    std::fs::write(&file, setup.to_string()).expect("written");
    (Simulator::start_with(&["--setup", file.to_str().expect("text")]), directory)
}

#[test]
fn facts_are_for_tokens_that_livechat_confirms_and_a_stranger_causes_no_call() {
    let (mock, (livechat, _directory)) = (mock(), with_strangers());
    let relay = start(&mock, &livechat, PAGES, &[]);
    let shell = get(relay.webhooks, "/app/default?theme=dark&plugin_id=%3Cscript%3Eevil");
    assert_page(&shell);
    assert_eq!(shell.status, 200);
    assert!(shell.body.contains(&format!("data-client-id=\"{CLIENT}\"")) && !shell.body.contains("evil"));
    let policy = shell.header("content-security-policy").expect("a policy");
    assert!(
        policy.ends_with("frame-ancestors https://my.livechatinc.com https://*.livechatinc.com https://*.livechat.com https://*.text.com"),
        "{policy}"
    );
    for implausible in
        ["", "Bearer", "Bearer short", "Basic dG9rZW4tb2YtdGhlLXRlc3Rz", "Bearer token with blanks in it"]
    {
        assert_eq!(facts(&relay, implausible), (401, error("unauthorized")), "{implausible}");
    }
    assert_eq!(calls(&livechat, ["*", "info", "get_license_webhooks_state"]), [0; 3]);

    let bearer = format!("Bearer {}", token(&relay, &code(&livechat, ACCOUNT)));
    let expected = |deliveries: Value| json!({ "time": null, "installed": true, "license_webhooks_enabled": true, "deliveries": deliveries });
    let shown = |bearer: &str| {
        let (status, mut body) = facts(&relay, bearer);
        assert!(status == 200 && body["time"].take().is_string(), "{status} {body}");
        body
    };
    std::thread::scope(|scope| {
        let viewers = [(); 10].map(|()| scope.spawn(|| shown(&bearer)));
        viewers.into_iter().for_each(|viewer| assert_eq!(viewer.join().expect("facts"), expected(json!([]))));
    });
    assert_eq!(post_to(relay.webhooks, "/webhooks", incoming_event("C", 1)).status, 200);
    let mut delivered = shown(&bearer);
    assert!(delivered["deliveries"][0]["last"].take().as_str().is_some_and(|last| last.ends_with('Z')));
    assert_eq!(delivered, expected(json!([{ "action": "incoming_event", "last": null }])));
    assert_eq!(calls(&livechat, ["info", "get_license_webhooks_state"]), [1, 1]);
    // Another user of the license has a token of his own, and the same answer.
    shown(&format!("Bearer {}", token(&relay, &code(&livechat, ACCOUNT))));
    assert_eq!(calls(&livechat, ["info", "get_license_webhooks_state"]), [2, 1]);
    // Tokens that are good elsewhere.
    let granted = |who: Value, redirect: &str| {
        let installed = livechat.post("install", who.clone());
        let client = who["client_id"].as_str().unwrap_or(CLIENT);
        let code = installed["code"].as_str().expect("a code");
        let form = json!({
            "grant_type": "authorization_code", "code": code, "client_id": client, "client_secret": CLIENT_SECRET,
            "redirect_uri": format!("{PUBLIC_URL}/{redirect}"),
        });
        let answer = post_to(livechat.address, "/v2/token", form.to_string());
        let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
        format!("Bearer {}", answer["access_token"].as_str().expect("a token"))
    };
    for (token, expected) in [
        ("Bearer token-that-livechat-does-not-know".to_owned(), (401, "unauthorized")),
        (granted(json!({ "organization_id": "other-organization" }), "install/default"), (403, "not_allowed")),
        (granted(json!({ "client_id": "another-app" }), "another"), (403, "not_allowed")),
    ] {
        for _ in 0..2 {
            assert_eq!(facts(&relay, &token), (expected.0, error(expected.1)), "{token}");
        }
    }
    assert_eq!(calls(&livechat, ["info", "get_license_webhooks_state"]), [5, 1], "what was refused is remembered, too");
    livechat.fault(json!({ "method": "info", "error": "server_error" }));
    assert_eq!(facts(&relay, "Bearer token-while-livechat-fails"), (503, error("unreachable")));
    assert_eq!(facts(&relay, "Bearer token-while-livechat-fails"), (401, error("unauthorized")));
    let blind = granted(json!({ "scopes": ["webhooks.configuration:rw"] }), "install/default");
    let (status, blind) = facts(&relay, &blind);
    assert_eq!((status, &blind["installed"], &blind["license_webhooks_enabled"]), (200, &Value::Null, &Value::Null));
    assert!(!relay.log().contains(bearer.trim_start_matches("Bearer ")));
}

#[test]
fn a_source_that_tries_tokens_or_codes_is_stopped_and_webhooks_go_on() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    let bearer = format!("Bearer {}", token(&relay, &code(&livechat, ACCOUNT)));
    // What LiveChat confirms costs nothing: an office of agents is one source.
    for _ in 0..22 {
        let agent = format!("Bearer {}", token(&relay, &code(&livechat, ACCOUNT)));
        assert_eq!(facts(&relay, &agent).0, 200);
    }
    assert_eq!(facts(&relay, &bearer).0, 200);
    let (mut tried, confirmed) = (0, 23);
    await_that("no more is tried", || {
        tried += 1;
        facts(&relay, &format!("Bearer token-that-is-guessed-{tried}")).0 == 429
    });
    assert!(tried > 15, "{tried}");
    assert_eq!(calls(&livechat, ["info"]), [confirmed + tried - 1]);
    assert_ne!(install(&relay, "code=guessed").status, 429, "installations have a limit of their own");
    await_that("codes are stopped, too", || {
        tried += 1;
        let answer = install(&relay, &format!("code=guessed-{tried}"));
        answer.status == 429 && title(&answer) == "Too many attempts" && answer.header("retry-after").is_some()
    });
    assert_eq!(facts(&relay, &bearer).0, 200, "a token that is known is not limited");
    assert_eq!(post_to(relay.webhooks, "/webhooks", incoming_event("C", 1)).status, 200);
}

#[test]
fn a_login_of_the_page_gives_a_token_once_and_to_listed_organizations_only() {
    let (mock, (livechat, _directory)) = (mock(), with_strangers());
    let relay = start(&mock, &livechat, PAGES, &[]);
    let good = code(&livechat, ACCOUNT);
    assert_eq!(sign_in(&relay, &good, &"x".repeat(43)), (400, error("code_refused")), "another verifier");
    assert_eq!(sign_in(&relay, &good, VERIFIER), (400, error("code_refused")));
    assert_eq!(calls(&livechat, ["token"]), [1]);
    let good = code(&livechat, ACCOUNT);
    assert!(token(&relay, &good).len() > 20);
    assert_eq!(sign_in(&relay, &good, VERIFIER), (400, error("code_used")));
    assert_eq!(tokens(&livechat), 1, "the page's own token stays good");
    assert_eq!(sign_in(&relay, &code(&livechat, "other"), VERIFIER), (403, error("not_allowed")));
    assert_eq!((calls(&livechat, ["token", "revoke"]), tokens(&livechat)), ([3, 1], 1));
    for (code, verifier) in [("good", "short"), ("", VERIFIER), ("a b", VERIFIER), ("good", &"v".repeat(129))] {
        assert_eq!(sign_in(&relay, code, verifier), (400, error("no_code")), "{code} {verifier}");
    }
    let typed = String::from_utf8(request("/app/default/token", "connection: close\r\n", "{}")).expect("text");
    let typed = raw(relay.webhooks, typed.replace("application/json", "text/plain")).expect("an answer");
    assert_eq!(typed.status, 415, "a page of another origin can send this without leave");
    assert_eq!(post_to(relay.webhooks, "/app/default/token", "x".repeat(5000)).status, 413);
    assert_eq!(calls(&livechat, ["token"]), [3]);
}

#[test]
fn a_page_signs_out_at_livechat_too_and_has_asked_for_one_scope() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    assert!(get(relay.webhooks, "/app/default").body.contains("data-scope=\"webhooks.state:ro\""));
    let token = token(&relay, &code(&livechat, ACCOUNT));
    let bearer = format!("Bearer {token}");
    assert_eq!((facts(&relay, &bearer).0, tokens(&livechat)), (200, 1));
    assert_eq!(sign_out(&relay, "Bearer short"), 401);
    assert_eq!(calls(&livechat, ["revoke"]), [0]);
    assert_eq!((sign_out(&relay, &bearer), tokens(&livechat)), (200, 0));
    assert_eq!(facts(&relay, &bearer), (401, error("unauthorized")));
}

fn sign_out(relay: &Relay, authorization: &str) -> u16 {
    let headers =
        format!("host: relay\r\nauthorization: {authorization}\r\ncontent-length: 0\r\nconnection: close\r\n");
    raw(relay.webhooks, format!("POST /app/default/sign-out HTTP/1.1\r\n{headers}\r\n")).expect("an answer").status
}

#[test]
fn sign_outs_with_made_up_tokens_are_stopped_and_those_of_viewers_cost_nothing() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[]);
    for _ in 0..22 {
        let viewer = format!("Bearer {}", token(&relay, &code(&livechat, ACCOUNT)));
        assert_eq!((facts(&relay, &viewer).0, sign_out(&relay, &viewer)), (200, 200));
    }
    let (mut tried, signed_out) = (0, 22);
    await_that("no more is tried", || {
        tried += 1;
        sign_out(&relay, &format!("Bearer token-that-is-made-up-{tried}")) == 429
    });
    assert!(tried > 15, "{tried}");
    assert_eq!(calls(&livechat, ["revoke"]), [signed_out + tried - 1]);
}

#[test]
fn copies_of_a_code_that_livechat_is_slow_with_leave_other_installations_their_turn() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[("server.response_deadline", "\"60s\"")]);
    livechat.fault(json!({ "method": "token", "delay": 100.0 }));
    let slow = pressed(&livechat, json!({}));
    let copies = [(); 8].map(|()| {
        let mut stream = connect(relay.webhooks);
        write!(stream, "GET /install/default?{slow} HTTP/1.1\r\nhost: relay\r\n\r\n").expect("sent");
        stream
    });
    await_that("LiveChat is asked", || calls(&livechat, ["token"]) == [1]);
    assert_eq!(install(&relay, &pressed(&livechat, json!({}))).status, 200);
    assert_eq!(calls(&livechat, ["token"]), [2]);
    drop(copies);
}

#[test]
fn a_pause_that_livechat_wants_is_not_waited_for_where_a_person_waits() {
    let (mock, livechat) = (mock(), Simulator::start());
    let relay = start(&mock, &livechat, PAGES, &[("livechat.attempts_max", "4")]);
    let bearer = format!("Bearer {}", token(&relay, &code(&livechat, ACCOUNT)));
    livechat.switch(json!({ "rate_limit": { "calls": 0, "seconds": 3600, "retry_after": 30 } }));
    assert_eq!(facts(&relay, &bearer), (503, error("unreachable")));
    assert!(relay.has_logged("asks for a pause of 30 s"), "the log has LiveChat's own reason");
    assert_eq!(calls(&livechat, ["get_license_webhooks_state"]), [1]);
}

#[test]
fn every_answer_leaves_within_the_response_deadline_though_livechat_hangs_and_so_does_a_stop() {
    let (mock, livechat) = (mock(), Simulator::start());
    let deadlines: Settings<'_> = &[
        ("kafka.publish_deadline", "\"500ms\""),
        ("server.response_deadline", "\"3s\""),
        ("server.body_timeout", "\"1s\""),
    ];
    let relay = start(&mock, &livechat, PAGES, deadlines);
    let began = std::time::Instant::now();
    // The state is not needed for an installation.
    livechat.fault(json!({ "method": "get_license_webhooks_state", "delay": 100.0 }));
    let page = install(&relay, &pressed(&livechat, json!({})));
    assert!(page.status == 200 && page.body.contains("could not be found out"), "{}", page.body);
    assert_eq!(calls(&livechat, ["revoke"]), [1]);
    livechat.fault(json!({ "method": "token", "delay": 100.0 }));
    let page = install(&relay, &pressed(&livechat, json!({})));
    assert_eq!((page.status, title(&page)), (503, "LiveChat cannot be reached"));
    livechat.fault(json!({ "method": "info", "delay": 100.0 }));
    assert_eq!(facts(&relay, "Bearer token-while-livechat-hangs"), (503, error("unreachable")));
    assert!(began.elapsed().as_secs() < 60, "LiveChat would have taken 300 s");
    livechat.fault(json!({ "method": "token", "delay": 100.0 }));
    let (query, asked) = (pressed(&livechat, json!({})), calls(&livechat, ["token"])[0]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| install(&relay, &query));
        await_that("LiveChat is asked", || calls(&livechat, ["token"]) == [asked + 1]);
        relay.signal(rustix::process::Signal::TERM);
        assert_eq!(waiting.join().expect("an answer").status, 503);
    });
}
