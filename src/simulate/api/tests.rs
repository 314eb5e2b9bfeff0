//! The APIs' errors in the order of their checks, what versions and tokens change, and the pages of archives.

use bytes::Bytes;
use hyper::HeaderMap;

use super::super::chats::Details;
use super::super::setup::{Account, Client, Organization, PersonalAccessToken, Setup};
use super::super::state::{Grant, Pair};
use super::*;

const CLIENT: &str = "0a1b2c3d0000400080000000000000c1";
const PERSONAL: &str =
    "Basic MGExYjJjM2QtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMGExOmRhbDpzaW11bGF0ZWQtcGVyc29uYWwtYWNjZXNzLXRva2Vu";

/// Of an agent who is no administrator.
const AGENT: &str = "Basic YWdlbnQ6dA==";

fn state() -> State {
    let mut setup = Setup::with_relay_at("https://relay.example");
    let organization = Organization { id: "other".into(), license_id: 2, region: "fra".into() };
    let client = Client { id: "foreign".into(), organization_id: "other".into(), ..setup.clients[0].clone() };
    setup.organizations.push(organization);
    let administrator = setup.accounts[0].clone();
    setup.accounts.push(Account { id: "agent".to_owned(), role: Role::Agent, ..administrator });
    let scopes = ["chats--access:ro", "webhooks.configuration:rw"].map(str::to_owned).into();
    setup.personal_access_tokens.push(PersonalAccessToken { token: "t".into(), account_id: "agent".into(), scopes });
    setup.clients.push(client);
    let mut state = State::new(setup, Instant::now());
    let grant = |scopes: &[&str]| Grant {
        client: CLIENT.to_owned(),
        account: state.setup.accounts[0].id.clone(),
        organization: state.setup.organizations[0].id.clone(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
    };
    let until = Instant::now() + Duration::from_secs(3600);
    let pairs =
        [("all", grant(&["webhooks.configuration:rw", "webhooks.state:rw"])), ("state", grant(&["webhooks.state:ro"]))];
    let pairs = pairs.map(|(access, grant)| Pair { access: access.to_owned(), refresh: None, grant, until });
    state.pairs.extend(pairs);
    state
}

/// The status, the error's type or nothing, and the body.
fn call(state: &mut State, authorization: &str, path: &str, body: &str) -> (u16, String, Value) {
    let authorization = (!authorization.is_empty()).then(|| authorization.parse().unwrap());
    let headers = HeaderMap::from_iter(authorization.map(|value| (hyper::header::AUTHORIZATION, value)));
    let (path, body) = (path.to_owned(), Bytes::copy_from_slice(body.as_bytes()));
    let request = Request { method: Method::POST, path, query: String::new(), headers, body };
    let answer = answer(state, &request, Instant::now());
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    (answer.status, body["error"]["type"].as_str().unwrap_or_default().to_owned(), body)
}

fn register(more: &str) -> String {
    format!(
        r#"{{"owner_client_id":"{CLIENT}","action":"incoming_event","type":"license","secret_key":"k","url":"https://a.example"{more}}}"#
    )
}

#[test]
fn the_first_check_that_fails_says_what_is_wrong() {
    let mut state = state();
    let long = format!("https://{}", "a".repeat(500));
    let without = |member: &str| register("").replacen(member, "x", 1);
    let configuration = "/v3.6/configuration/action/register_webhook";
    for (authorization, path, body, status, error) in [
        ("", "/v3.2/configuration/action/register_webhook", "", 400, "unsupported_version"),
        ("", "/v3.6/configuration/action/list_registered_webhooks", "", 404, "not_found"),
        ("", configuration, "", 400, "validation"),
        ("", configuration, "[]", 400, "validation"),
        ("", configuration, "{}", 401, "authentication"),
        ("Bearer dal:simulated-personal-access-token", configuration, "{}", 401, "authentication"),
        ("Basic YTpi", configuration, "{}", 401, "authentication"),
        ("Bearer state", configuration, "{}", 403, "authorization"),
        (AGENT, configuration, "{}", 403, "authorization"),
        (PERSONAL, configuration, "{}", 400, "validation"),
        (PERSONAL, configuration, &register("").replace(CLIENT, "foreign"), 403, "authorization"),
        (PERSONAL, configuration, &without("action"), 400, "validation"),
        (PERSONAL, configuration, &without("secret_key"), 400, "validation"),
        (PERSONAL, configuration, &without("license"), 400, "validation"),
        (PERSONAL, configuration, &register("").replace("https://a.example", &long), 400, "validation"),
        (PERSONAL, configuration, &register("").replace("incoming_event", "incoming_customer"), 400, "validation"),
        (PERSONAL, configuration, &register(r#","filters":{"agent_ids":{"values":[]}}"#), 400, "validation"),
        (
            PERSONAL,
            "/v3.3/configuration/action/register_webhook",
            &register(r#","filters":{"source_type":["system"]}"#),
            400,
            "validation",
        ),
        (PERSONAL, configuration, &register(r#","additional_data":["chat"]"#), 400, "validation"),
        (
            PERSONAL,
            configuration,
            &register(r#","filters":{"source_type":["system"]},"additional_data":["chat_properties"]"#),
            200,
            "",
        ),
        (
            PERSONAL,
            "/v3.5/configuration/action/register_webhook",
            &register("").replace("incoming_event", "incoming_customer"),
            200,
            "",
        ),
    ] {
        let (answered, kind, all) = call(&mut state, authorization, path, body);
        assert_eq!((answered, kind.as_str()), (status, error), "{path} {body}: {all}");
    }
    assert_eq!(state.registrations.len(), 2);
}

#[test]
fn the_state_is_of_the_tokens_client_or_of_a_named_one() {
    let mut state = state();
    let named = format!(r#"{{"owner_client_id":"{CLIENT}"}}"#);
    for (authorization, version, body, error) in [
        (PERSONAL, "3.6", "{}", "validation"),
        (PERSONAL, "3.4", named.as_str(), ""),
        ("Bearer all", "3.6", "{}", ""),
        ("Bearer state", "3.6", named.as_str(), ""),
        ("Bearer all", "3.4", named.as_str(), "validation"),
        ("Bearer all", "3.4", "{}", ""),
    ] {
        let path = format!("/v{version}/configuration/action/get_license_webhooks_state");
        let (_, kind, all) = call(&mut state, authorization, &path, body);
        assert_eq!(kind, error, "{authorization} {version} {body}");
        assert!(!error.is_empty() || all["license_webhooks_enabled"] == true);
    }
    let enable = "/v3.6/configuration/action/enable_license_webhooks";
    assert_eq!(call(&mut state, "Bearer state", enable, "{}").1, "authorization", "ro is not rw");
}

#[test]
fn regions_and_rates_are_checked_before_scopes() {
    let mut state = state();
    let path = "/v3.6/configuration/action/register_webhook";
    state.switches.set(&json!({"strict_region": true})).unwrap();
    let (status, kind, body) = call(&mut state, "Bearer state", path, "{}");
    assert_eq!(
        (status, kind.as_str(), &body["error"]["data"]),
        (421, "misdirected_request", &json!({"region": "dal"}))
    );
    let limit = json!({"strict_region": false, "rate_limit": {"calls": 1, "seconds": 3600, "retry_after": 7}, "statuses": {"authorization": 400}});
    state.switches.set(&limit).unwrap();
    assert_eq!(call(&mut state, "Bearer state", path, "{}").0, 400);
    assert_eq!(call(&mut state, "Bearer state", path, "{}").1, "too_many_requests");
}

#[test]
fn archives_are_paged_without_a_gap_and_page_ids_stand_alone() {
    let mut state = state();
    let State { chats, setup, .. } = &mut state;
    let at = |second: i64| jiff::Timestamp::from_second(1_795_000_000 + second).unwrap();
    for n in [0, 1, 1, 1, 2, 3] {
        let text = (n == 2).then(|| "A Needle in it".to_owned());
        let details = Details { at: Some(at(n)), text, ..Details::default() };
        let chat = chats.start(&details, setup).unwrap().chat_id.unwrap();
        if n < 3 {
            chats.go_on(&chat, "chat_deactivated", &details, setup).unwrap();
        }
    }
    let list =
        |state: &mut State, body: Value| call(state, PERSONAL, "/v3.6/agent/action/list_archives", &body.to_string());
    for order in ["asc", "desc"] {
        let (_, _, mut page) = list(&mut state, json!({"sort_order": order, "limit": 2}));
        let mut times = Vec::new();
        loop {
            assert_eq!(page["found_chats"], 5, "a running thread is none of the archives");
            let chats = page["chats"].as_array().unwrap();
            times.extend(chats.iter().map(|chat| chat["thread"]["created_at"].as_str().unwrap().to_owned()));
            let Some(next) = page.get("next_page_id") else { break };
            page = list(&mut state, json!({"page_id": next})).2;
        }
        let is_sorted = if order == "asc" { times.is_sorted() } else { times.iter().rev().is_sorted() };
        assert!(times.len() == 5 && is_sorted, "{times:?}");
    }
    let of_agent = call(&mut state, AGENT, "/v3.6/agent/action/list_archives", "{}").2;
    assert_eq!(of_agent["found_chats"], 5, "agents may read archives");
    let (_, _, between) = list(&mut state, json!({"filters": {"from": at(1).to_string(), "to": at(1).to_string()}}));
    assert_eq!(between["found_chats"], 3);
    let (_, _, newest) = list(&mut state, json!({"limit": 1}));
    let (known, id) = (newest["next_page_id"].clone(), newest["chats"][0]["id"].clone());
    for filters in [json!({"query": "needle"}), json!({"chat_ids": [id, "unknown"]})] {
        let (_, _, found) = list(&mut state, json!({"filters": filters}));
        assert_eq!((&found["found_chats"], &found["chats"][0]["id"]), (&json!(1), &id), "{filters}");
    }
    assert_eq!(list(&mut state, json!({"filters": {"query": "haystack of needles"}})).2["found_chats"], 0);
    let before = call(&mut state, PERSONAL, "/v3.5/agent/action/list_archives", r#"{"filters": {"chat_ids": []}}"#);
    assert_eq!(before.1, "validation", "it is a filter from 3.6 on");
    for wrong in [
        json!({"page_id": known, "limit": 1}),
        json!({"page_id": known, "filters": {}}),
        json!({"page_id": "unknown"}),
        json!({"limit": 101}),
        json!({"limit": 0}),
        json!({"filters": {"thread_ids": [], "from": at(1).to_string()}}),
        json!({"filters": {"thread_ids": []}, "limit": 1}),
        json!({"filters": {"from": "yesterday"}}),
        json!({"filters": {"query": 1}}),
        json!({"filters": {"chat_ids": vec!["x"; 1001]}}),
        json!({"filters": {"tags": {"values": []}}}),
        json!({"sort_order": "up"}),
    ] {
        assert_eq!(list(&mut state, wrong.clone()).1, "validation", "{wrong}");
    }
}

#[test]
fn base64_is_decoded() {
    let text = |encoded| decode_base64(encoded).and_then(|bytes| String::from_utf8(bytes).ok());
    assert_eq!(text("YTpiOmM=").as_deref(), Some("a:b:c"));
    assert_eq!(text("w6TDtsO8").as_deref(), Some("äöü"));
    assert_eq!(text("YQ").as_deref(), Some("a"));
    assert_eq!(text("Y_Q"), None);
}

#[test]
fn a_path_names_api_version_and_method() {
    assert_eq!(parts("/v3.6/configuration/action/list_webhooks"), Some(("3.6", "configuration", "list_webhooks")));
    assert_eq!(parts("/v3.6/customer/action/list_chats"), None);
    assert_eq!(parts("/v2/token"), None);
}
