//! The login, the code, the tokens: what is sent, what comes of it, and what each refusal is taken for.

use super::*;

fn accounts(server: &Server) -> Accounts {
    Accounts::new(&server.config())
}

fn pair() -> Value {
    json!({ "access_token": "fra:access-1", "account_id": "account-1", "expires_in": 28800, "organization_id": "organization-1",
            "refresh_token": "refresh-1", "scope": "webhooks.state:rw,chats--all:ro", "token_type": "Bearer", "licence_id": 1 })
}

#[tokio::test]
async fn a_login_has_a_challenge_and_a_state_and_its_code_becomes_tokens() {
    let server = Server::start(|_, _| ok(pair())).await;
    let accounts = accounts(&server);
    let redirect_uri = "http://localhost:7413/callback";
    let [one, other] = [(); 2].map(|()| accounts.login(&app(), redirect_uri).expect("a login"));
    let query: std::collections::BTreeMap<_, _> = one.url.query_pairs().into_owned().collect();
    let members: Vec<_> = query.keys().map(String::as_str).collect();
    assert_eq!(
        members,
        ["client_id", "code_challenge", "code_challenge_method", "redirect_uri", "response_type", "state"]
    );
    assert_eq!(
        (&*query["code_challenge_method"], &*query["response_type"], &*query["redirect_uri"]),
        ("S256", "code", redirect_uri)
    );
    assert_eq!(query["state"], one.state.expose_secret());
    assert_ne!(one.state.expose_secret(), other.state.expose_secret());
    assert!((43..=128).contains(&one.verifier.expose_secret().len()));

    // Encoded twice, as LiveChat's own tool has seen it.
    let code = code("fra%3Acode-1").expect("a code");
    let pair = accounts.exchange(&app(), &code, redirect_uri, Some(&one.verifier)).await.expect("tokens");
    let seen = &server.seen()[0];
    let form: std::collections::BTreeMap<_, _> =
        reqwest::Url::parse(&format!("x:?{}", seen.body)).expect("a form").query_pairs().into_owned().collect();
    assert_eq!(seen.line, "POST /v2/token");
    assert_eq!(seen.header("content-type"), Some("application/x-www-form-urlencoded"));
    let expected = [
        ("client_id", "client-1"),
        ("client_secret", SECRETS[2]),
        ("code", "fra:code-1"),
        ("code_verifier", one.verifier.expose_secret()),
        ("grant_type", "authorization_code"),
        ("redirect_uri", redirect_uri),
    ];
    assert_eq!(form.iter().map(|(name, value)| (&**name, &**value)).collect::<Vec<_>>(), expected);
    assert_eq!(pair.access_token.expose_secret(), "fra:access-1");
    assert_eq!(pair.scopes, BTreeSet::from(["webhooks.state:rw".to_owned(), "chats--all:ro".to_owned()]));
    assert_eq!(
        (&*pair.organization_id, &*pair.account_id, &*pair.client_id),
        ("organization-1", "account-1", "client-1")
    );
    assert!(pair.expires_at.is_some_and(|end| end > jiff::Timestamp::now()));
    let text = format!("{pair:?}");
    assert!(!text.contains("access-1") && !text.contains("refresh-1"), "{text}");
}

#[tokio::test]
async fn errors_of_both_shapes_are_sorted_by_what_helps() {
    let table = [
        (401, json!({ "error": "unauthorized_client", "error_description": "d" }), Kind::Authentication),
        (401, json!({ "error": "invalid_client" }), Kind::Authentication),
        (422, json!({ "error": "invalid_grant" }), Kind::Authentication),
        (400, json!({ "oauth_exception": "unauthorized_client", "exception_description": "d" }), Kind::Authentication),
        (
            422,
            json!({ "error": "invalid_request", "invalid_fields": { "client_id": "is required" } }),
            Kind::Validation,
        ),
        (403, json!({ "error": "access_denied", "sub_error": "insufficient_scope" }), Kind::Authorization),
        (429, json!({ "error": "temporarily_unavailable" }), Kind::TooManyRequests),
        (500, json!({ "error": "server_error" }), Kind::Unavailable),
        (404, json!({ "error": "resource_not_found" }), Kind::NotFound),
        (410, json!({ "error": "join_link_expired", "error_description": "d" }), Kind::Validation),
        (400, json!({ "error": "made_up", "invalid_fields": { "code": "x" } }), Kind::Validation),
        (400, json!({ "oauth_exception": "made_up" }), Kind::Validation),
        (400, json!({ "error": "made_up" }), Kind::Unintelligible),
        (400, json!({ "error": "no name", "error_description": "d" }), Kind::Unintelligible),
        (501, json!({ "error": "not_implemented", "error_description": "d" }), Kind::Unavailable),
        (401, json!("text"), Kind::Authentication),
        (200, json!("text"), Kind::Unintelligible),
        (200, json!({ "access_token": 1 }), Kind::Unintelligible),
        (502, json!(null), Kind::Unavailable),
        (404, json!(null), Kind::Unintelligible),
    ];
    for (status, body, kind) in table {
        let text = body.to_string();
        let server = Server::start(move |_, _| reply(status, "content-type: text/html\r\n", &text)).await;
        let code = SecretString::from("code-of-the-test");
        let failure = accounts(&server)
            .exchange(&app(), &code, "https://relay.example/install/shop", None)
            .await
            .expect_err("refused");
        assert_eq!(failure.kind, kind, "{body}: {failure}");
        assert_told(&failure);
        // A code is good for once, so what may have used it is not sent again.
        let tries = if kind == Kind::TooManyRequests { 3 } else { 1 };
        assert_eq!(server.seen().len(), tries, "{body}");
    }
}

#[tokio::test]
async fn the_text_of_a_refusal_names_the_fields_and_repeats_no_code() {
    let body = json!({ "error": "invalid_request", "error_description": "code code-of-the-test", "invalid_fields": { "redirect_uri": "x" } });
    let server = Server::start(move |_, _| reply(422, "", &body.to_string())).await;
    let code = SecretString::from("code-of-the-test");
    let failure = accounts(&server).exchange(&app(), &code, "https://relay.example", None).await.expect_err("refused");
    assert!(failure.what.contains("redirect_uri") && !failure.what.contains("code-of-the-test"), "{failure}");
}

#[tokio::test]
async fn info_says_for_whom_a_token_is_and_a_strange_token_is_told_from_an_outage() {
    let info = json!({ "access_token": "access-0", "client_id": "client-1", "organization_id": "o", "account_id": "a", "expires_in": 60, "scope": "x y,z" });
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        Some("Bearer access-0") => ok(info.clone()),
        Some("Bearer slow") => reply(500, "", "{\"error\": \"server_error\"}"),
        Some("Bearer ended") => reply(422, "", "{\"error\": \"invalid_request\"}"),
        _ => reply(422, "", "{\"error\": \"unauthorized\"}"),
    })
    .await;
    let accounts = accounts(&server);
    let info = accounts.info(&"access-0".into()).await.expect("an answer");
    assert_eq!(
        (&*info.client_id, &*info.organization_id, &*info.account_id, info.expires_in),
        ("client-1", "o", "a", Duration::from_secs(60))
    );
    assert_eq!(info.scopes.len(), 3);
    assert_eq!(server.seen()[0].line, "GET /v2/info");
    for token in ["strange", "ended"] {
        assert_eq!(accounts.info(&token.into()).await.expect_err(token).kind, Kind::Authentication);
    }
    assert_eq!(accounts.info(&"slow".into()).await.expect_err("trouble").kind, Kind::Unavailable);
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn a_token_that_livechat_does_not_know_is_revoked_already() {
    for (status, body, is_done) in [
        (200, "", true),
        (200, "{}", true),
        (404, "{\"error\": \"resource_not_found\"}", true),
        (401, "{\"error\": \"unauthorized\"}", true),
        (422, "{\"error\": \"invalid_request\"}", true),
        (400, "{\"error\": \"invalid_request\"}", false),
        (400, "{\"error\": \"bad_request\"}", false),
        (401, "<html>", false),
        (401, "{\"error\": \"text\"}", false),
        (404, "{\"error\": \"not_found\"}", false),
        (403, "{\"error\": \"access_denied\"}", false),
        (404, "<html>", false),
        (503, "", false),
    ] {
        let server = Server::start(move |_, _| reply(status, "", body)).await;
        let revoked = accounts(&server).revoke(&"access-0".into()).await;
        assert_eq!(revoked.is_ok(), is_done, "{status} {body}");
        if let Err(failure) = revoked {
            assert_told(&failure);
            // What to look at is told by who answers.
            assert_eq!(failure.remedy.contains("is not LiveChat"), body == "<html>", "{failure}");
        }
        let seen = &server.seen()[0];
        assert_eq!((&*seen.line, seen.header("authorization")), ("DELETE /v2/token", Some("Bearer access-0")));
    }
}

#[test]
fn a_scope_has_those_that_are_part_of_it() {
    for (have, needed, expected) in [
        ("webhooks.state:rw", "webhooks.state:ro", true),
        ("webhooks.state:ro", "webhooks.state:rw", false),
        ("webhooks.state:ro", "webhooks.state:ro", true),
        ("webhooks.state:rw", "webhooks.configuration:rw", false),
        ("webhooks.configuration:rw", "webhooks.state:ro", false),
        ("", "webhooks.state:ro", false),
        ("chats--all:ro", "chats--access:ro", true),
        ("chats--all:rw", "chats--access:ro", true),
        ("chats--all:rw", "chats--my:ro", true),
        ("chats--access:ro", "chats--all:ro", false),
        ("chats--access:rw", "chats--all:ro", false),
        ("chats--all:ro", "chats--access:rw", false),
        ("chats--my:rw", "chats--all:ro", false),
        ("chats--odd:rw", "chats--my:ro", false),
        ("chats--odd:rw", "chats--odd:rw", true),
        // LiveChat says nothing of these two.
        ("chats:rw", "chats--my:ro", false),
        ("chats--all:rw", "chats:ro", false),
        ("chats:manage", "chats:ro", false),
        ("custom:admin", "custom:admin", true),
        ("odd", "odd", true),
        ("odd", "odd:ro", false),
    ] {
        assert_eq!(covers(have, needed), expected, "{have} {needed}");
    }
}

#[test]
fn a_code_is_visible_ascii_however_often_it_was_encoded() {
    let long = "x".repeat(1024);
    for (text, expected) in [("dal:x_-~.1", "dal:x_-~.1"), ("dal%3Ax", "dal:x"), ("a+b/c=", "a+b/c="), (&long, &long)] {
        assert_eq!(code(text).expect(text).expose_secret(), expected);
    }
    for text in ["", "%", "a%zz", "%20", "a b", "a%0d%0ab", "%ff", "%C3%A9", "%2525", &format!("{long}x")] {
        assert!(code(text).is_none(), "{text}");
    }
}

#[tokio::test]
async fn a_refused_exchange_names_the_one_cause_that_livechat_tells_or_the_likelier_one_first() {
    let (secret, id, code) = ("client_secret of shop", "client_id client-1 of shop", "start again");
    let fields = |name: &str| json!({ "error": "invalid_request", "invalid_fields": { name: "cannot be empty" } });
    let table = [
        (json!({ "error": "invalid_client" }), vec![secret]),
        (json!({ "error": "invalid_grant" }), vec![code]),
        (json!({ "error": "unauthorized_client" }), vec![code, secret]),
        (fields("client_secret"), vec![secret]),
        (fields("redirect_uri"), vec!["add https://relay.example to the Redirect URI whitelist"]),
        (fields("client_id"), vec![id]),
        (json!({ "oauth_exception": "client_id_not_found" }), vec![id]),
    ];
    for (body, expected) in table {
        let text = body.to_string();
        let server = Server::start(move |_, _| reply(401, "", &text)).await;
        let code_sent = SecretString::from("code-of-the-test");
        for client_secret in [Some(SECRETS[2].into()), None] {
            let is_public = client_secret.is_none();
            let app = App { client_secret, ..app() };
            let exchanged = accounts(&server).exchange(&app, &code_sent, "https://relay.example", None).await;
            let remedy = exchanged.expect_err("refused").remedy;
            let places = [secret, id, code, "whitelist"].map(|cause| remedy.find(cause));
            let found = places.iter().flatten().count();
            assert_eq!(found, expected.len(), "{body}: {remedy}");
            assert!(expected.iter().map(|cause| remedy.find(cause)).is_sorted(), "{body}: {remedy}");
            assert!(expected.iter().all(|cause| remedy.contains(cause)), "{body}: {remedy}");
            // Who has set none cannot compare it.
            assert_eq!(remedy.contains("set client_secret"), is_public && expected.contains(&secret), "{remedy}");
        }
    }
}
