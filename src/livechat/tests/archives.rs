//! Pages of archives: what is asked for, how they end, and what becomes of one that is too large.

use super::*;

fn times() -> [jiff::Timestamp; 2] {
    ["2026-11-28T10:00:00.5Z", "2026-11-28T11:00:00Z"].map(|time| time.parse().expect("a time"))
}

#[tokio::test]
async fn the_first_page_has_the_times_and_the_next_ones_only_their_id() {
    let server = Server::start(|_, n| match n {
        1 => reply(200, "", r#"{"chats":[{"id":"c1",  "thread":{}}],"found_chats":2,"next_page_id":"p2"}"#),
        _ => reply(200, "", r#"{"chats":null,"next_page_id":""}"#),
    })
    .await;
    let (mut archives, [from, to]) = (Archives::new(&server.config(), &app()), times());
    let first = archives.page(from, to, None).await.expect("a page");
    assert_eq!((first.chats[0].get(), first.found_chats), (r#"{"id":"c1",  "thread":{}}"#, Some(2)));
    let last = archives.page(from, to, first.next_page_id.as_deref()).await.expect("a page");
    assert!(last.chats.is_empty() && last.next_page_id.is_none());
    let seen = server.seen();
    assert_eq!(seen[0].line, "POST /v3.6/agent/action/list_archives");
    let filters = json!({ "from": "2026-11-28T10:00:00.500000+00:00", "to": "2026-11-28T11:00:00.000000+00:00" });
    assert_eq!(seen[0].json(), json!({ "filters": filters, "sort_order": "asc", "limit": 100 }));
    assert_eq!(seen[1].json(), json!({ "page_id": "p2" }));
    assert_eq!(archives.calls(), 2);
}

#[tokio::test]
async fn a_page_that_is_too_large_is_asked_for_with_fewer_threads() {
    let server = Server::start(|seen, _| match seen.json()["limit"].as_u64() {
        Some(limit) if limit <= 25 => ok(json!({ "chats": [], "next_page_id": "p2" })),
        _ => reply(200, "", &" ".repeat((32 << 20) + 1)),
    })
    .await;
    let (mut archives, [from, to]) = (Archives::new(&server.config(), &app()), times());
    archives.page(from, to, None).await.expect("a page of 25");
    let failure = archives.page(from, to, Some("p2")).await.expect_err("too large");
    assert!(failure.what.contains("32 MiB") && failure.remedy.contains("first page again"), "{failure}");
    archives.page(from, to, None).await.expect("a smaller page");
    let limits: Vec<_> = server.seen().iter().map(|seen| seen.json()["limit"].as_u64()).collect();
    assert_eq!(limits, [Some(100), Some(50), Some(25), None, Some(12)]);
}

#[tokio::test]
async fn running_chats_and_one_chat_are_as_the_version_has_them() {
    for (version, filter, member) in [
        (Version::V3_5, "include_active", "chats_summary"),
        (Version::V3_6, "active", "chats_summary"),
        (Version::V3_7, "active", "chats_info"),
    ] {
        let server = Server::start(move |seen, _| {
            let chat = json!({ "id": "c1" });
            ok(if seen.is("get_chat") { chat } else { json!({ (member): [chat], "found_chats": 1 }) })
        })
        .await;
        let archives = Archives::new(&server.config(), &App { version, ..app() });
        let page = archives.running_chats(None).await.expect("a page");
        assert_eq!((page.chats[0].get(), page.next_page_id), (r#"{"id":"c1"}"#, None));
        assert_eq!(archives.chat("c1").await.expect("a chat").get(), r#"{"id":"c1"}"#);
        let seen = server.seen();
        assert_eq!(seen[0].json(), json!({ "filters": { (filter): true }, "limit": 100 }));
        assert_eq!(
            (&*seen[1].line, seen[1].json()),
            (&*format!("POST /v{version}/agent/action/get_chat"), json!({ "chat_id": "c1" }))
        );
    }
}
