//! The rules of OAuth at the simulated LiveChat, on the state alone.

use bytes::Bytes;
use hyper::HeaderMap;

use super::super::setup::Setup;
use super::*;

const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"; // of RFC 7636, appendix B

/// `server` has a secret; `browser` has none.
fn state() -> State {
    let mut setup = Setup::with_relay_at("https://relay.example");
    setup.clients[0].id = "server".to_owned();
    let browser = Client { id: "browser".to_owned(), secret: None, ..setup.clients[0].clone() };
    setup.clients.push(browser);
    State::new(setup, Instant::now())
}

fn members(text: &str) -> Members {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The status, and the body or where it redirects.
fn ask(state: &mut State, method: Method, path: &str, query: &str, body: &str, now: Instant) -> (u16, Value) {
    let headers =
        HeaderMap::from_iter([(hyper::header::CONTENT_TYPE, "application/x-www-form-urlencoded".parse().unwrap())]);
    let body = Bytes::copy_from_slice(body.as_bytes());
    let request = Request { method, path: path.to_owned(), query: query.to_owned(), headers, body };
    let name = super::method(&request).unwrap();
    let answer = answer(state, &request, name, now);
    let location = answer.headers.iter().find(|(name, _)| name == "location").map(|(_, to)| json!(to));
    (answer.status, location.unwrap_or_else(|| serde_json::from_slice(&answer.body).unwrap_or_default()))
}

fn code(state: &mut State, client: &str, challenge: &str, now: Instant) -> String {
    let query =
        format!("response_type=code&client_id={client}&redirect_uri=http://localhost:7413{challenge}&decision=accept");
    let (_, to) = ask(state, Method::POST, "/", "", &query, now);
    let code = to.as_str().unwrap().strip_prefix("http://localhost:7413?code=").unwrap_or_else(|| panic!("{to}"));
    code.replace("%3A", ":")
}

fn exchange(state: &mut State, client: &str, code: &str, more: &str, now: Instant) -> (u16, Value) {
    let secret = if client == "server" { "&client_secret=simulated-client-secret" } else { "" };
    let form = format!(
        "grant_type=authorization_code&client_id={client}&redirect_uri=http://localhost:7413&code={code}{secret}{more}"
    );
    ask(state, Method::POST, "/v2/token", "", &form, now)
}

#[test]
fn a_redirect_is_within_the_whitelist() {
    for (asked, whitelisted, is_right) in [
        ("https://a.example/install/default", "https://a.example/install/", true),
        ("https://a.example/install", "https://a.example", true),
        ("http://a.example/install", "https://a.example", false),
        ("https://a.example:444/", "https://a.example", false),
        ("https://a.example.evil/", "https://a.example", false),
        ("https://a.example/other", "https://a.example/install", false),
        ("https://a.example/install/../x", "https://a.example/install", false),
        ("https://a.example/install?x=1", "https://a.example/install", false),
        ("https://a.example/install#x", "https://a.example/install", false),
    ] {
        assert_eq!(is_whitelisted(asked, whitelisted), is_right, "{asked} for {whitelisted}");
    }
}

#[test]
fn mistakes_of_an_authorization_end_on_a_page_of_livechat() {
    let mut state = state();
    for (query, exception, details) in [
        ("client_id=none", "invalid_request", "client_id_not_found"),
        ("client_id=server", "invalid_request", "redirect_uri_not_set"),
        ("client_id=server&redirect_uri=http://localhost:1", "invalid_request", "invalid_redirect_uri"),
        ("client_id=server&redirect_uri=http://localhost:7413&response_type=token", "unsupported_response_type", ""),
        ("client_id=server&redirect_uri=http://localhost:7413&response_type=code&scope=x:rw", "invalid_scope", ""),
        (
            "client_id=browser&redirect_uri=http://localhost:7413&response_type=code",
            "invalid_request",
            "code_challenge",
        ),
    ] {
        let (status, to) = ask(&mut state, Method::GET, "/", query, "", Instant::now());
        let wanted = format!("/ooops?oauth_exception={exception}&exception_details={details}");
        assert!(status == 302 && to.as_str().unwrap().starts_with(&wanted), "{query}: {to}");
    }
}

#[test]
fn a_code_is_for_one_use_one_client_one_redirect_and_a_while() {
    let (mut state, now) = (state(), Instant::now());
    let first = code(&mut state, "server", "", now);
    assert!(first.starts_with("dal:"));
    assert_eq!(exchange(&mut state, "server", &first, "", now).0, 200);
    assert_eq!(exchange(&mut state, "server", &first, "", now).0, 401);

    let late = code(&mut state, "server", "", now);
    assert_eq!(exchange(&mut state, "server", &late, "", now + Duration::from_secs(180)).0, 401);
    let elsewhere = code(&mut state, "server", "", now);
    assert_eq!(exchange(&mut state, "server", &elsewhere, "&redirect_uri=http://localhost:7413/x", now).0, 401);
    let other = code(&mut state, "server", "", now);
    assert_eq!(exchange(&mut state, "browser", &other, "", now).0, 401);
}

#[test]
fn a_challenge_wants_its_verifier() {
    let (mut state, now) = (state(), Instant::now());
    let s256 = format!("&code_challenge={CHALLENGE}&code_challenge_method=s256");
    let plain = format!("&code_challenge={VERIFIER}");
    for (challenge, verifier, status) in [
        (&s256, format!("&code_verifier={VERIFIER}"), 200),
        (&s256, format!("&code_verifier={CHALLENGE}"), 401),
        (&s256, String::new(), 401),
        (&plain, format!("&code_verifier={VERIFIER}"), 200),
        (&plain, "&code_verifier=short".to_owned(), 401),
    ] {
        let code = code(&mut state, "browser", challenge, now);
        assert_eq!(exchange(&mut state, "browser", &code, &verifier, now).0, status, "{challenge} {verifier}");
    }
}

#[test]
fn refresh_tokens_rotate_only_where_there_is_no_secret() {
    let (mut state, now) = (state(), Instant::now());
    let challenge = format!("&code_challenge={VERIFIER}");
    for (client, challenge, verifier, is_kept) in [
        ("server", "", String::new(), true),
        ("browser", challenge.as_str(), format!("&code_verifier={VERIFIER}"), false),
    ] {
        let code = code(&mut state, client, challenge, now);
        let (_, issued) = exchange(&mut state, client, &code, &verifier, now);
        let first = issued["refresh_token"].as_str().unwrap();
        let refresh = format!("&grant_type=refresh_token&refresh_token={first}");
        let (status, refreshed) = exchange(&mut state, client, "", &refresh, now);
        assert_eq!((status, refreshed["refresh_token"] == *first), (200, is_kept), "{client}");
        let (status, again) = exchange(&mut state, client, "", &refresh, now);
        assert_eq!(status, if is_kept { 200 } else { 401 }, "{again}");
        assert!(is_kept || again["error"] == "invalid_grant");
    }
}

#[test]
fn the_twenty_sixth_token_ends_the_first_and_revoking_ends_both_of_a_pair() {
    let (mut state, now) = (state(), Instant::now());
    let issue = |state: &mut State| {
        let code = code(state, "server", "", now);
        exchange(state, "server", &code, "", now).1
    };
    let first = issue(&mut state);
    let second = issue(&mut state);
    let info = |state: &mut State, token: &Value| {
        ask(state, Method::GET, "/v2/info", &format!("code={}", token["access_token"].as_str().unwrap()), "", now)
    };
    (0..PAIRS_MAX - 2).for_each(|_| drop(issue(&mut state)));
    assert_eq!((info(&mut state, &first).0, state.pairs.len()), (200, PAIRS_MAX));
    issue(&mut state);
    assert_eq!((info(&mut state, &first).0, info(&mut state, &second).0), (401, 200));

    let refresh = format!("code={}", second["refresh_token"].as_str().unwrap());
    assert_eq!(ask(&mut state, Method::DELETE, "/v2/token", &refresh, "", now).0, 200);
    assert_eq!(info(&mut state, &second).0, 401);
    assert_eq!(ask(&mut state, Method::DELETE, "/v2/token", &refresh, "", now).0, 404);
}

#[test]
fn errors_have_either_shape() {
    let mut state = state();
    let ask = |state: &mut State| ask(state, Method::POST, "/v2/token", "", "grant_type=x", Instant::now());
    let (status, body) = ask(&mut state);
    assert_eq!((status, body["error"].as_str()), (422, Some("invalid_request")));
    assert!(body["invalid_fields"].get("client_id").is_some());
    state.switches.v1_errors = true;
    assert_eq!(ask(&mut state).1["oauth_exception"], "invalid_request");
    let missing = wanted(&state, &members("client_id=server")).is_err();
    assert!(missing);
}
