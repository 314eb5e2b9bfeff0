//! Tokens in a file: replaced whole, refreshed once however many want it, and never used before they are on the disk.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;

use super::*;

fn pair(n: u32, lasts: i64) -> TokenPair {
    TokenPair {
        client_id: "client-1".to_owned(),
        access_token: format!("access-{n}").into(),
        refresh_token: Some(format!("refresh-{n}").into()),
        account_id: "account-1".to_owned(),
        organization_id: "organization-1".to_owned(),
        scopes: BTreeSet::from(["webhooks.state:rw".to_owned()]),
        expires_at: Some(Timestamp::now() + SignedDuration::from_secs(lasts)),
    }
}

async fn write(path: &Path, pair: &TokenPair) -> Result<(), Failure> {
    TokenFile::new(path).lock().await?.reserve()?.replace(pair)
}

/// A directory with the tokens of a login.
async fn login(lasts: i64) -> (TempDir, App) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tokens.json");
    write(&path, &pair(0, lasts)).await.expect("written");
    (directory, App { credential: Some(Credential::Tokens(path)), ..app() })
}

/// A LiveChat whose refresh tokens are good for once, as those of public clients are, and which takes the newest access token only.
async fn rotating() -> Server {
    let newest = Mutex::new(0);
    Server::start(move |seen, _| {
        let mut newest = newest.lock().expect("no panic");
        if seen.is("token") {
            if !seen.body.contains(&format!("refresh_token=refresh-{newest}")) {
                return reply(401, "", "{\"error\": \"invalid_grant\"}");
            }
            *newest += 1;
            return ok(
                json!({ "access_token": format!("access-{newest}"), "refresh_token": format!("refresh-{newest}"),
                              "expires_in": 28800, "token_type": "Bearer", "scope": "webhooks.state:rw" }),
            );
        }
        let is_newest = *newest > 0 && seen.header("authorization") == Some(&format!("Bearer access-{newest}"));
        if is_newest { ok(json!([])) } else { error(401, "authentication") }
    })
    .await
}

fn kept(app: &App) -> String {
    let Some(Credential::Tokens(path)) = &app.credential else { panic!("no file") };
    let pair = TokenFile::new(path).read().expect("readable").expect("tokens");
    pair.access_token.expose_secret().to_owned()
}

#[tokio::test]
async fn the_file_is_for_its_owner_and_comes_back_as_it_went_in() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tokens.json");
    assert!(TokenFile::new(&path).read().expect("nothing").is_none());
    for n in [1, 2] {
        write(&path, &pair(n, 60)).await.expect("written");
    }
    let read = TokenFile::new(&path).read().expect("readable").expect("tokens");
    assert_eq!(read.access_token.expose_secret(), "access-2");
    assert_eq!((read.refresh_token.expect("one").expose_secret(), read.scopes.len()), ("refresh-2", 1));
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    let mut names: Vec<_> =
        std::fs::read_dir(&directory).expect("entries").map(|e| e.expect("one").file_name()).collect();
    names.sort();
    assert_eq!(names, ["tokens.json", "tokens.json.lock"]);
    std::fs::write(&path, "{\"access_token\": \"access-0").expect("written");
    let failure = TokenFile::new(&path).read().expect_err("damaged");
    assert!(failure.kind == Kind::Local && failure.what.contains("damaged"), "{failure}");
    assert_told(&failure);
}

#[tokio::test]
async fn tokens_at_their_end_are_refreshed_before_they_are_sent() {
    let (_directory, app) = login(30).await;
    let server = rotating().await;
    let api = Api::new(&server.config(), &app);
    for _ in 0..2 {
        api.list_webhooks().await.expect("a list");
    }
    let lines: Vec<_> =
        server.seen().iter().map(|seen| seen.line.rsplit('/').next().expect("a name").to_owned()).collect();
    assert_eq!(lines, ["token", "list_webhooks", "list_webhooks"]);
    assert_eq!(kept(&app), "access-1");
}

#[tokio::test]
async fn a_token_that_livechat_does_not_take_is_refreshed_once() {
    let (_directory, app) = login(3600).await;
    let server = rotating().await;
    let api = Api::new(&server.config(), &app);
    api.list_webhooks().await.expect("a list");
    assert_eq!((server.count("token"), server.count("list_webhooks")), (1, 2));

    let (_directory, app) = login(3600).await;
    let server = Server::start(|seen, _| {
        let pair = json!({ "access_token": "access-9", "refresh_token": null, "token_type": "Bearer" });
        if seen.is("token") { ok(pair) } else { error(401, "authentication") }
    })
    .await;
    let failure = Api::new(&server.config(), &app).list_webhooks().await.expect_err("never");
    assert!(failure.kind == Kind::Authentication && failure.remedy.contains("auth login --app shop"), "{failure}");
    assert_eq!((server.count("token"), server.count("list_webhooks")), (1, 2));
    let Some(Credential::Tokens(path)) = &app.credential else { panic!("no file") };
    let kept = TokenFile::new(path).read().expect("readable").expect("tokens");
    assert_eq!(kept.refresh_token.expect("the old one").expose_secret(), "refresh-0");
    assert_eq!((&*kept.organization_id, kept.scopes.len(), kept.expires_at), ("organization-1", 1, None));
}

#[tokio::test]
async fn a_token_that_info_calls_invalid_is_refreshed_too() {
    let (_directory, app) = login(3600).await;
    let server = Server::start(|seen, _| {
        if seen.is("token") {
            return ok(json!({ "access_token": "access-1", "expires_in": 3600, "token_type": "Bearer" }));
        }
        if seen.header("authorization") != Some("Bearer access-1") {
            return reply(422, "", "{\"error\": \"invalid_request\"}");
        }
        ok(json!({ "client_id": "client-1", "organization_id": "o", "account_id": "a", "expires_in": 60 }))
    })
    .await;
    let Some(Credential::Tokens(path)) = &app.credential else { panic!("no file") };
    let info = Session::new(&server.config(), &app, path).info().await.expect("refreshed");
    assert_eq!((&*info.organization_id, server.count("token"), server.count("info")), ("o", 1, 2));
}

#[tokio::test]
async fn of_many_who_want_a_refresh_one_refreshes() {
    let (_directory, app) = login(30).await;
    let server = rotating().await;
    // Each with a lock of its own, as another process has it.
    let apis: Vec<_> = (0..8).map(|_| Api::new(&server.config(), &app)).collect();
    let lists = futures_util::future::join_all(apis.iter().map(Api::list_webhooks)).await;
    assert!(lists.iter().all(Result::is_ok), "{lists:?}");
    assert_eq!(server.count("token"), 1);
    assert_eq!(kept(&app), "access-1");
}

#[tokio::test]
async fn a_refresh_that_is_not_waited_for_is_still_kept() {
    let (_directory, app) = login(30).await;
    let (asked, mut is_asked) = tokio::sync::mpsc::channel(1);
    let server = Server::start(move |_, _| {
        asked.try_send(()).expect("one refresh");
        ok(json!({ "access_token": "access-1", "refresh_token": "refresh-1", "expires_in": 60, "token_type": "Bearer" }))
    })
    .await;
    let api = Api::new(&server.config(), &app);
    tokio::select! {
        biased; // once it is asked, the list is not polled again
        _ = is_asked.recv() => {}
        listed = api.list_webhooks() => panic!("{listed:?}"),
    }
    drop(api);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while kept(&app) != "access-1" {
        assert!(tokio::time::Instant::now() < deadline, "the refreshed tokens were lost");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_directory_that_takes_nothing_costs_no_refresh_token_and_no_call() {
    let (directory, app) = login(30).await;
    // Not even root can write where a directory stands.
    std::fs::create_dir(directory.path().join("tokens.json.new")).expect("in its place");
    let server = rotating().await;
    let failure = Api::new(&server.config(), &app).list_webhooks().await.expect_err("no room");
    assert!(failure.kind == Kind::Local && failure.what.contains("tokens.json.new cannot be written"), "{failure}");
    assert_eq!((server.seen().len(), kept(&app).as_str()), (0, "access-0"));
}

#[tokio::test]
async fn without_a_login_or_with_that_of_another_client_the_text_says_to_log_in() {
    let (_directory, app) = login(3600).await;
    let server = rotating().await;
    for app in [
        App { client_id: "client-2".to_owned(), ..app.clone() },
        App { credential: Some(Credential::Tokens("/nonexistent/tokens.json".into())), ..app },
    ] {
        let failure = Api::new(&server.config(), &app).list_webhooks().await.expect_err("no login");
        assert!(failure.kind == Kind::Authentication && failure.remedy.contains("auth login --app shop"), "{failure}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_refresh_token_that_has_ended_says_to_log_in_again() {
    let (_directory, app) = login(30).await;
    let server =
        Server::start(|_, _| reply(422, "", "{\"error\": \"invalid_grant\", \"error_description\": \"refresh-0\"}"))
            .await;
    let failure = Api::new(&server.config(), &app).list_webhooks().await.expect_err("ended");
    assert!(failure.kind == Kind::Authentication && failure.remedy.contains("auth login --app shop"), "{failure}");
    assert!(!failure.what.contains("refresh-0"), "{failure}");
    assert_eq!((server.seen().len(), kept(&app).as_str()), (1, "access-0"));
}

#[tokio::test]
async fn what_root_writes_belongs_to_the_owner_of_the_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let owner = if rustix::process::geteuid().is_root() {
        chown(directory.path(), Some(4242), Some(4243)).expect("another owner");
        [4242, 4243]
    } else {
        let own = std::fs::metadata(&directory).expect("there");
        [own.uid(), own.gid()]
    };
    write(&directory.path().join("tokens.json"), &pair(0, 60)).await.expect("written");
    for name in ["tokens.json", "tokens.json.lock"] {
        let file = std::fs::metadata(directory.path().join(name)).expect("there");
        assert_eq!([file.uid(), file.gid()], owner, "{name}");
    }
}

#[tokio::test]
async fn what_lies_in_the_place_of_the_lock_is_not_followed_and_keeps_its_owner() {
    let (directory, elsewhere) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
    if rustix::process::geteuid().is_root() {
        chown(directory.path(), Some(4242), Some(4243)).expect("another owner");
    }
    let (path, target) = (directory.path().join("tokens.json"), elsewhere.path().join("shadow"));
    std::fs::write(&target, "of root").expect("written");
    let owner = || std::fs::metadata(&target).map(|file| (file.uid(), file.gid())).expect("there");
    let before = owner();
    let lock = directory.path().join("tokens.json.lock");
    std::os::unix::fs::symlink(&target, &lock).expect("a link");
    let failure = TokenFile::new(&path).lock().await.expect_err("a link");
    assert!(failure.kind == Kind::Local && failure.what.contains("tokens.json.lock"), "{failure}");
    assert_eq!(owner(), before);

    std::fs::remove_file(&lock).expect("removed");
    std::fs::hard_link(&target, &lock).expect("another name of the file");
    drop(TokenFile::new(&path).lock().await.expect("locked"));
    assert_eq!(owner(), before);

    let nowhere = directory.path().join("nowhere");
    std::fs::remove_file(&lock).expect("removed");
    std::os::unix::fs::symlink(&nowhere, &lock).expect("a link");
    TokenFile::new(&path).lock().await.expect_err("a link to nothing");
    assert!(!nowhere.exists());
}

#[tokio::test]
async fn a_call_that_is_not_allowed_names_the_scope_that_a_login_lacks_or_else_the_role_and_the_client_id() {
    let (_directory, app) = login(3600).await;
    let server = Server::start(|_, _| error(403, "authorization")).await;
    let api = Api::new(&server.config(), &app);
    let lacking = api.list_webhooks().await.expect_err("refused").remedy;
    assert!(lacking.contains("webhooks.configuration:rw") && lacking.contains("auth login --app shop"), "{lacking}");
    assert!(!lacking.contains("client_id"), "{lacking}");
    let foreign = api.license_webhooks_enabled().await.expect_err("refused").remedy;
    let causes = ["has the scope webhooks.state:ro", "is no administrator", "client_id client-1 is not an app"];
    assert!(causes.iter().all(|cause| foreign.contains(cause)), "{foreign}");
}
