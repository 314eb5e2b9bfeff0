//! What is sent, what is understood, and what a refusal is taken for.

use proptest::prelude::*;

use super::*;
use crate::livechat::api::read_filters;

proptest! {
    #[test]
    fn filters_that_are_registered_are_read_from_the_listing_as_they_were(
        author_type in option("[a-z]{1,9}"),
        only_my_chats in proptest::option::of(any::<bool>()),
        present_users in users(),
        my_bots in proptest::option::of(any::<bool>()),
        source_type in proptest::option::of(names()),
        agent_ids in users(),
    ) {
        let wanted = Filters { author_type, only_my_chats, present_users, my_bots, source_type, agent_ids };
        let Value::Object(members) = serde_json::to_value(&wanted).expect("JSON") else { panic!("no object") };
        prop_assert_eq!(read_filters(members), (wanted, serde_json::Map::new()));
    }
}

fn option(pattern: &'static str) -> impl Strategy<Value = Option<String>> {
    proptest::option::of(pattern)
}

fn names() -> impl Strategy<Value = BTreeSet<String>> {
    proptest::collection::btree_set(".{1,9}", 1..4)
}

fn users() -> impl Strategy<Value = Option<Users>> {
    proptest::option::of(prop_oneof![names().prop_map(Users::Values), names().prop_map(Users::ExcludeValues)])
}

#[tokio::test]
async fn the_type_of_an_error_decides_whatever_the_status_says() {
    let table = [
        ("authentication", Kind::Authentication),
        ("Authorization", Kind::Authorization),
        ("missing_access", Kind::Authorization),
        ("VALIDATION", Kind::Validation),
        ("already_exists", Kind::Validation),
        ("unsupported_version", Kind::Version),
        ("not_found", Kind::NotFound),
        ("limit_reached", Kind::LimitReached),
        ("license_expired", Kind::LicenseExpired),
        ("too_many_requests", Kind::TooManyRequests),
        ("internal", Kind::Unavailable),
        ("request_timeout", Kind::Unavailable),
        ("service_unavailable", Kind::Unavailable),
        ("misdirected_request", Kind::Unintelligible), // without a region
        ("ownership_transfer", Kind::Validation),
    ];
    for (name, expected) in table {
        for status in [200, 400, 418] {
            let server = Server::start(move |_, _| error(status, name)).await;
            let failure = server.api().list_webhooks().await.expect_err("a refusal");
            assert_eq!(failure.kind, expected, "{name} {status}");
            assert_told(&failure);
            assert!(failure.what.contains("of the test") && failure.what.contains(&name.to_lowercase()), "{failure}");
        }
    }
}

#[tokio::test]
async fn a_message_that_repeats_a_secret_is_told_without_it_and_cut() {
    let message = format!("bad {} {}\u{1b}[2J{}", SECRETS[0], SECRETS[1], "x".repeat(5000));
    let body = json!({ "error": { "type": "validation", "message": message } }).to_string();
    let server = Server::start(move |_, _| reply(400, "", &body)).await;
    let failure = server.api().register_webhook(&wanted(), &key(), &BTreeSet::new()).await.expect_err("refused");
    assert_told(&failure);
    assert!(failure.what.contains("bad … …") && !failure.what.contains('\u{1b}'), "{failure}");
}

#[tokio::test]
async fn a_personal_token_goes_with_its_account_and_its_region() {
    let server = Server::start(|_, _| ok(json!([]))).await;
    let api = server.api();
    assert_eq!(api.list_webhooks().await.expect("a list"), []);
    assert_eq!(api.list_webhook_names().await.expect("a list"), []);
    let [list, names] = server.seen().try_into().expect("two requests");
    assert_eq!(list.line, "POST /v3.6/configuration/action/list_webhooks");
    assert_eq!(list.json(), json!({ "owner_client_id": "client-1" }));
    // account-1:fra:pat-of-the-test
    assert_eq!(list.header("authorization"), Some("Basic YWNjb3VudC0xOmZyYTpwYXQtb2YtdGhlLXRlc3Q="));
    assert_eq!(list.header("x-region"), Some("fra"));
    assert_eq!(list.header("content-type"), Some("application/json"));
    assert!(list.header("user-agent").is_some_and(|agent| agent.starts_with("livechat-relay/")));
    assert_eq!((names.header("authorization"), names.header("x-region")), (None, None));
    assert_eq!(names.json(), json!({ "version": "3.6" }));
    assert_eq!(api.calls(), 1, "a call without a token is not billed");
}

#[tokio::test]
async fn a_call_without_a_credential_says_which_key_is_missing() {
    let server = Server::start(|_, _| ok(json!([]))).await;
    let api = Api::new(&server.config(), &App { credential: None, ..app() });
    assert!(api.list_webhook_names().await.is_ok());
    let failure = api.list_webhooks().await.expect_err("no credential");
    assert!(failure.kind == Kind::Authentication && failure.remedy.contains("personal_access_token"), "{failure}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_misdirected_call_is_repeated_in_its_region_which_is_remembered() {
    let misdirected = |region: &str| {
        let error = json!({ "type": "misdirected_request", "message": "Wrong region", "data": { "region": region } });
        reply(421, "", &json!({ "error": error }).to_string())
    };
    let server = Server::start(move |seen, _| match seen.header("x-region") {
        Some("us-south1") => ok(json!([])),
        _ => misdirected("us-south1"),
    })
    .await;
    let api = server.api();
    for _ in 0..2 {
        assert!(api.list_webhooks().await.is_ok());
    }
    let regions: Vec<_> = server.seen().iter().map(|seen| seen.header("x-region").map(str::to_owned)).collect();
    assert_eq!(regions, ["fra", "us-south1", "us-south1"].map(|name| Some(name.to_owned())));

    let server = Server::start(move |_, n| misdirected(["dal", "fra"][n % 2])).await;
    let failure = server.api().list_webhooks().await.expect_err("sent to and fro");
    assert_eq!((failure.kind.clone(), server.seen().len()), (Kind::Region("dal".to_owned()), 2), "{failure}");

    for hostile in ["", "evil.example", "a\r\nx: y", "UPPER", &"a".repeat(33)] {
        let hostile = hostile.to_owned();
        let server = Server::start(move |_, _| misdirected(&hostile)).await;
        let failure = server.api().list_webhooks().await.expect_err("no region");
        assert_eq!((failure.kind.clone(), server.seen().len()), (Kind::Unintelligible, 1), "{failure}");
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again_so_often_and_not_more() {
    let server = Server::start(|_, n| match n {
        1 => error(503, "service_unavailable"),
        2 => reply(429, "retry-after: 0\r\n", "slow down"),
        _ => ok(json!(null)),
    })
    .await;
    let api = server.api();
    assert_eq!(api.list_webhooks().await.expect("at last"), []);
    assert_eq!((server.seen().len(), api.calls()), (3, 3));

    let server = Server::start(|_, _| error(500, "internal")).await;
    let api = server.api();
    let failure = api.list_webhooks().await.expect_err("never");
    assert_eq!((failure.kind, server.seen().len()), (Kind::Unavailable, 3));
    assert_eq!(api.calls(), 0, "a status of 500 is not billed");
}

#[tokio::test]
async fn a_long_rest_that_livechat_wants_is_told_and_not_waited_out() {
    let server = Server::start(|_, _| reply(429, "retry-after: 3600\r\n", "{}")).await;
    let failure = server.api().list_webhooks().await.expect_err("a rest");
    assert!(failure.kind == Kind::TooManyRequests && failure.what.contains("a pause of 3600 s"), "{failure}");
    assert_eq!(server.seen().len(), 1);

    // Pages wait less than commands.
    let server = Server::start(|_, _| reply(429, "retry-after: 3\r\n", "{}")).await;
    let config = Config { retry_after_max: Duration::from_secs(2), ..server.config() };
    let failure = Api::new(&config, &app()).list_webhooks().await.expect_err("a rest");
    assert!(failure.what.contains("a pause of 3 s"), "{failure}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_webhook_that_is_not_there_is_unregistered() {
    let server = Server::start(|_, _| error(404, "NOT_FOUND")).await;
    server.api().unregister_webhook("w1").await.expect("done");
    assert_eq!(server.seen()[0].json(), json!({ "id": "w1", "owner_client_id": "client-1" }));
    // A proxy's 404 says nothing of the webhook.
    let server = Server::start(|_, _| reply(404, "", "<h1>Not Found</h1>")).await;
    let failure = server.api().unregister_webhook("w1").await.expect_err("another server");
    assert_eq!(failure.kind, Kind::Unintelligible);
    assert_told(&failure);
}

#[tokio::test]
async fn the_client_id_of_a_license_s_state_is_left_to_the_token_where_it_has_one() {
    let with = json!({ "owner_client_id": "client-1" });
    for version in Version::ALL {
        let server = Server::start(|_, _| ok(json!({ "license_webhooks_enabled": false }))).await;
        let app = App { version, ..app() };
        let api = Api::with_token(&server.config(), &app, "access-0".into());
        assert!(!api.license_webhooks_enabled().await.expect("a state"));
        api.enable_license_webhooks().await.expect("done");
        Api::new(&server.config(), &app).disable_license_webhooks().await.expect("done");
        let seen = server.seen();
        let without = json!({});
        assert_eq!([&seen[0].json(), &seen[1].json(), &seen[2].json()], [&without, &without, &with], "{version}");
        assert_eq!((seen[0].header("authorization"), seen[0].header("x-region")), (Some("Bearer access-0"), None));
        let paths = ["get_license_webhooks_state", "enable_license_webhooks", "disable_license_webhooks"];
        assert!(
            seen.iter()
                .zip(paths)
                .all(|(seen, name)| seen.line.ends_with(&format!("/v{version}/configuration/action/{name}")))
        );
    }
}

#[tokio::test]
async fn a_method_without_members_may_answer_nothing() {
    let server = Server::start(|_, _| reply(200, "", "")).await;
    server.api().enable_license_webhooks().await.expect("done");
    let failure = server.api().license_webhooks_enabled().await.expect_err("no state");
    assert_eq!(failure.kind, Kind::Unintelligible);
}

#[tokio::test]
async fn what_the_headers_say_of_the_version_s_end_is_kept() {
    let server = Server::start(|_, n| match n {
        1 => reply(200, "Legacy: 2026-01-31\r\nDeprecation: 2027-03-01T00:00:00Z\r\n", "[]"),
        _ => reply(200, "Legacy: soon\r\n", "[]"),
    })
    .await;
    let api = server.api();
    assert_eq!(api.notices(), Notices::default());
    for _ in 0..2 {
        api.list_webhooks().await.expect("a list");
        let dates = (api.notices().legacy.expect("a date"), api.notices().deprecation.expect("a date"));
        assert_eq!(dates, (jiff::civil::date(2026, 1, 31), jiff::civil::date(2027, 3, 1)));
    }
}

#[tokio::test]
async fn a_listing_is_read_whatever_it_leaves_out_or_adds() {
    let answer = json!([
        listed("w1"),
        { "id": "w2", "action": "tag_created", "url": "http://a", "filters": null, "new": 1 },
        { "id": "w3", "action": "incoming_chat", "url": "http://a", "type": "bot", "description": null, "additional_data": [],
          "filters": { "chat_presence": { "user_ids": { "values": [], "exclude_values": ["a"] }, "my_bots": false, "mood": "good" },
                       "only_my_chats": true, "source_type": ["system"], "agent_ids": { "values": ["b"] }, "author_type": "" } },
        { "id": "w4", "action": "a", "url": "b", "type": "galaxy", "filters": { "author_type": 7, "chat_presence": {} } },
    ]);
    let server = Server::start(move |_, _| ok(answer.clone())).await;
    let registered = server.api().list_webhooks().await.expect("a list");
    let text = format!("{registered:?}");
    assert!(registered[0].is_as(&wanted()) && !text.contains(SECRETS[1]), "{text}");
    assert_eq!((registered[1].additional_data.as_ref(), &registered[1].filters), (None, &Filters::default()));
    let expected = Filters {
        author_type: None,
        only_my_chats: Some(true),
        present_users: Some(Users::ExcludeValues(BTreeSet::from(["a".to_owned()]))),
        my_bots: Some(false),
        source_type: Some(BTreeSet::from(["system".to_owned()])),
        agent_ids: Some(Users::Values(BTreeSet::from(["b".to_owned()]))),
    };
    assert_eq!((registered[2].level, &registered[2].filters), (Level::Bot, &expected));
    assert_eq!(registered[2].unknown_filters.as_deref(), Some(r#"{"mood":"good"}"#));
    assert_eq!(registered[3].unknown_filters.as_deref(), Some(r#"{"author_type":7,"type":"galaxy"}"#));

    // What was read of filters is registered as it stood.
    let server =
        Server::start(|seen, _| if seen.is("register_webhook") { ok(json!({ "id": "new" })) } else { ok(json!([])) })
            .await;
    let wanted = Wanted { filters: expected, ..wanted() };
    assert_eq!(server.api().register_webhook(&wanted, &key(), &BTreeSet::new()).await.expect("an id"), "new");
    let body = server.seen()[0].json();
    assert_eq!(
        body["filters"],
        json!({ "chat_presence": { "user_ids": { "exclude_values": ["a"] }, "my_bots": false }, "only_my_chats": true,
                "source_type": ["system"], "agent_ids": { "values": ["b"] } })
    );
    assert_eq!(
        (&body["secret_key"], &body["type"], &body["additional_data"]),
        (&json!(SECRETS[1]), &json!("license"), &json!(["chat_properties"]))
    );
}

#[tokio::test]
async fn names_are_read_with_what_each_action_offers() {
    let names = json!([{ "action": "incoming_event", "filters": ["author_type"], "additional_data": ["chat_properties"] }, { "action": "new" }]);
    let server = Server::start(move |_, _| ok(names.clone())).await;
    let names = server.api().list_webhook_names().await.expect("names");
    assert_eq!(names[0].filters, BTreeSet::from(["author_type".to_owned()]));
    assert_eq!(
        names[1],
        Offered { action: "new".to_owned(), filters: BTreeSet::new(), additional_data: BTreeSet::new() }
    );
}

#[tokio::test]
async fn a_refused_token_names_the_token_first_and_then_its_account() {
    let server = Server::start(|_, _| error(401, "authentication")).await;
    let remedy = server.api().list_webhooks().await.expect_err("refused").remedy;
    let places = ["personal_access_token", "api-access/personal-access-tokens", "account_id account-1"];
    assert!(places.iter().map(|place| remedy.find(place)).is_sorted() && remedy.contains(places[0]), "{remedy}");
    assert!(!remedy.contains("client_id"), "{remedy}");
}

#[tokio::test]
async fn a_call_that_is_not_allowed_names_its_own_scope_and_then_the_client_id() {
    let server = Server::start(|_, _| error(403, "authorization")).await;
    let api = server.api();
    let refused = [
        (api.list_webhooks().await.map(drop), "webhooks.configuration:rw"),
        (api.unregister_webhook("w1").await, "webhooks.configuration:rw"),
        (api.license_webhooks_enabled().await.map(drop), "webhooks.state:ro"),
        (api.disable_license_webhooks().await, "webhooks.state:rw"),
        (Archives::new(&server.config(), &app()).chat("C1").await.map(drop), "chats--all:ro"),
    ];
    for (called, scope) in refused {
        let remedy = called.expect_err("refused").remedy;
        assert!(remedy.find(scope) < remedy.find("client_id client-1"), "{remedy}");
        let others = remedy.matches(":r").count();
        assert_eq!(others, 1, "{remedy}");
    }
}

#[tokio::test]
async fn an_account_that_is_suspended_awaits_approval_or_may_not_is_no_matter_of_scopes_and_client_ids() {
    for (name, expected) in [
        ("requester_suspended", "suspended"),
        ("requester_awaiting_approval", "awaits approval"),
        ("not_allowed", "administrator"),
        ("missing_access", "administrator"),
    ] {
        let server = Server::start(move |_, _| error(403, name)).await;
        let remedy = server.api().list_webhooks().await.expect_err("refused").remedy;
        assert!(remedy.contains(expected), "{name}: {remedy}");
        assert!(!remedy.contains("client_id") && !remedy.contains("scope"), "{name}: {remedy}");
    }
}

#[tokio::test]
async fn a_client_id_that_livechat_names_is_the_one_cause() {
    let message = "`owner_client_id` is not owned by your organization";
    let body = json!({ "error": { "type": "authorization", "message": message } }).to_string();
    let server = Server::start(move |_, _| reply(403, "", &body)).await;
    let remedy = server.api().list_webhooks().await.expect_err("refused").remedy;
    assert!(remedy.starts_with("client_id client-1") && !remedy.contains("scope"), "{remedy}");
}

/// What the log has of calls at its finest level, the libraries' lines among it.
#[tokio::test]
async fn the_log_has_a_line_for_each_call_and_no_secret() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let lines = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || lines.clone());
    let guard = tracing::subscriber::set_default(subscriber.finish());

    // LiveChat repeats what it was sent, wherever it can.
    let server = Server::start(|seen, _| {
        let secrets = format!("{} {}", SECRETS[0], SECRETS[1]);
        match seen.line.rsplit('/').next() {
            Some("list_webhooks") => reply(200, "X-Request-Id: request-1\r\n", &json!([listed("w1")]).to_string()),
            Some("register_webhook") => {
                let error = json!({ "error": { "type": "validation", "message": secrets } });
                reply(400, &format!("X-Request-Id: {secrets}\r\n"), &error.to_string())
            }
            Some("token") => {
                reply(401, "", &json!({ "error": SECRETS[2], "error_description": "code-of-the-test" }).to_string())
            }
            _ => Reply::Bytes(Vec::new()),
        }
    })
    .await;
    let config = Config { attempts_max: 1, ..server.config() };
    let (api, accounts) = (Api::new(&config, &app()), Accounts::new(&config));
    api.list_webhooks().await.expect("a list");
    api.register_webhook(&wanted(), &key(), &BTreeSet::new()).await.expect_err("refused");
    let code = SecretString::from("code-of-the-test");
    let verifier = SecretString::from("verifier-of-the-test");
    accounts.exchange(&app(), &code, "https://relay.example", Some(&verifier)).await.expect_err("refused");
    accounts.info(&SECRETS[3].into()).await.expect_err("no answer");
    drop(guard);

    let log = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("text");
    let line = |path: &str| {
        let mut lines = log.lines().filter(|line| line.contains("livechat::http") && line.contains(path));
        let line = lines.next().unwrap_or_else(|| panic!("{path}: {log}"));
        assert_eq!(lines.next(), None, "one line for each call");
        line
    };
    let listed = line("/v3.6/configuration/action/list_webhooks");
    for part in ["DEBUG", "method=POST", "status=200", "request_id=\"request-1\"", "ms="] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    assert!(
        line("/v3.6/configuration/action/register_webhook")
            .contains("status=400 error=\"validation\" request_id=\"… …\""),
        "{log}"
    );
    assert!(line("/v2/token").contains("status=401 error=\"\""), "{log}");
    assert!(line("/v2/info").contains("LiveChat has not answered") && line("/v2/info").contains("method=GET"), "{log}");
    // Basic authorization is readable, too.
    let encoded = "YWNjb3VudC0xOmZyYTpwYXQtb2YtdGhlLXRlc3Q=";
    for secret in SECRETS.into_iter().chain(["code-of-the-test", "verifier-of-the-test", encoded]) {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}
