//! A registration whose outcome is not known: found by a listing, made by another try, or told to be unknown; never made twice unseen.

use super::*;

fn known(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn closed() -> Reply {
    Reply::Bytes(Vec::new())
}

#[tokio::test]
async fn what_an_unclear_call_has_registered_is_found_once_the_listing_has_it() {
    for unclear in [
        || error(503, "service_unavailable"),
        || error(500, "internal"),
        closed,
        || reply(200, "", "<html>"),
        || ok(json!({})),
    ] {
        let lists = Mutex::new(0);
        let server = Server::start(move |seen, _| {
            if seen.is("register_webhook") {
                return unclear();
            }
            let mut lists = lists.lock().expect("no panic");
            *lists += 1;
            // It lags, and has one that stood before.
            ok(if *lists < 3 { json!([listed("old")]) } else { json!([listed("old"), listed("new")]) })
        })
        .await;
        let id = server.api().register_webhook(&wanted(), &key(), &known(&["old"])).await.expect("an id");
        assert_eq!((id.as_str(), server.count("register_webhook"), server.count("list_webhooks")), ("new", 1, 3));
    }
}

#[tokio::test]
async fn what_no_listing_has_is_registered_by_another_try() {
    let server = Server::start(|seen, n| match n {
        1 => closed(),
        _ if seen.is("register_webhook") => ok(json!({ "id": "new" })),
        // As wanted but for one member each.
        _ => {
            let others = [("url", "https://other.example"), ("action", "incoming_chat"), ("type", "bot")];
            let others = others.map(|(name, value)| {
                let mut other = listed(name);
                other[name] = json!(value);
                other
            });
            let mut filtered = listed("filters");
            filtered["filters"]["surprise"] = json!(1);
            ok(others.into_iter().chain([filtered, listed("old")]).collect())
        }
    })
    .await;
    let id = server.api().register_webhook(&wanted(), &key(), &known(&["old"])).await.expect("an id");
    assert_eq!((id.as_str(), server.count("register_webhook"), server.count("list_webhooks")), ("new", 2, 5));
}

#[tokio::test]
async fn where_neither_call_nor_listing_is_answered_the_text_says_that_it_is_not_known() {
    let server = Server::start(|_, _| error(503, "service_unavailable")).await;
    let failure = server.api().register_webhook(&wanted(), &key(), &known(&[])).await.expect_err("away");
    assert!(failure.what.contains("it is unknown whether incoming_event is registered"), "{failure}");
    assert!(failure.remedy.contains("webhooks plan"), "{failure}");
    assert_told(&failure);
    assert_eq!((server.count("register_webhook"), server.count("list_webhooks")), (1, 3));
}

#[tokio::test]
async fn after_a_second_unclear_call_it_is_given_up_and_said() {
    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let server =
        Server::start(|seen, _| if seen.is("register_webhook") { error(500, "internal") } else { ok(json!(null)) })
            .await;
    let tell = |what: &str, most: Duration| TOLD.lock().expect("no panic").push(format!("{what}: {most:?}"));
    let api = server.api().telling(tell);
    let failure = api.register_webhook(&wanted(), &key(), &known(&[])).await.expect_err("never");
    let told = TOLD.lock().expect("no panic").join("\n");
    assert!(told.ends_with("it is unknown whether incoming_event is registered: 30ms"), "{told}");
    assert_eq!((told.lines().count(), SECRETS.iter().any(|secret| told.contains(secret))), (1, false), "{told}");
    assert!(failure.what.contains("LiveChat has not listed incoming_event"), "{failure}");
    assert_told(&failure);
    assert_eq!((server.count("register_webhook"), server.count("list_webhooks")), (2, 10));
}

#[tokio::test]
async fn a_refusal_is_clear_and_costs_no_listing() {
    for (refusal, kind) in [("limit_reached", Kind::LimitReached), ("authorization", Kind::Authorization)] {
        let server = Server::start(move |_, _| error(422, refusal)).await;
        let failure = server.api().register_webhook(&wanted(), &key(), &known(&[])).await.expect_err("refused");
        assert_eq!((failure.kind, server.seen().len()), (kind, 1));
    }
}

#[tokio::test]
async fn too_many_requests_is_tried_again_without_a_listing() {
    let server =
        Server::start(|_, n| if n < 3 { error(429, "too_many_requests") } else { ok(json!({ "id": "new" })) }).await;
    assert_eq!(server.api().register_webhook(&wanted(), &key(), &known(&[])).await.expect("an id"), "new");
    assert_eq!(server.count("list_webhooks"), 0);
}

#[tokio::test]
async fn already_exists_is_success_only_if_what_exists_was_not_known() {
    let server = Server::start(|seen, _| {
        if seen.is("register_webhook") { error(409, "already_exists") } else { ok(json!([listed("there")])) }
    })
    .await;
    let api = server.api();
    assert_eq!(api.register_webhook(&wanted(), &key(), &known(&[])).await.expect("an id"), "there");
    // One that was known has another secret key, for all that can be seen.
    let failure = api.register_webhook(&wanted(), &key(), &known(&["there"])).await.expect_err("exists");
    assert!(failure.kind == Kind::Validation && failure.what.contains("already_exists"), "{failure}");
}
