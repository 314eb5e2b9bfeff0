//! `check`, where apps have `[apps.livechat]`: as whom LiveChat would be called, without a call; and whether the running relay has the
//! file that was checked.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::mock::Mock;
use crate::support::relay::{Relay, configuration};
use crate::support::simulator::{ACCOUNT, CLIENT, Simulator, TOKEN, apps};

/// The findings of a check by this name, with their status.
fn findings(file: &Path, check: &str) -> Vec<(String, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    let output = command.args(["check", "--offline", "--json", "-c"]).arg(file).output().expect("the relay's binary");
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(!text.contains(TOKEN), "{text}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{text}"));
    let all = report["findings"].as_array().expect("a list").iter().filter(|finding| finding["check"] == check);
    let text = |finding: &Value, name: &str| finding[name].as_str().expect("a text").to_owned();
    all.map(|finding| (text(finding, "status"), text(finding, "detail"))).collect()
}

#[test]
fn it_says_as_whom_livechat_is_called_and_calls_nothing() {
    let (livechat, directory) = (Simulator::start(), tempfile::tempdir().expect("a directory"));
    let file = directory.path().join("relay.toml");
    let check = |apps: &str| {
        let api = format!("{:?}", livechat.url);
        let settings = [("apps", apps), ("livechat.api", &api), ("livechat.accounts", &api)];
        std::fs::write(&file, configuration("localhost:9092", &settings)).expect("written");
        findings(&file, "livechat")
    };
    let personal = apps(r#"webhooks = [{ actions = ["incoming_chat", "incoming_event"] }]"#);
    let told = |credential: &str, webhooks: &str| {
        format!("default: Client ID {CLIENT}, API 3.6; {credential}; {webhooks}; installation page off, app's page off")
    };
    let at = |place: &str| format!("personal access token of the account {ACCOUNT} ({place})");
    let value = at("apps[default].livechat.personal_access_token.value");
    assert_eq!(check(&personal), [("ok".to_owned(), told(&value, "2 webhooks wanted"))]);

    let token = directory.path().join("token");
    let in_file = personal.replace(&format!("{{ value = {TOKEN:?} }}"), &format!("{{ file = {token:?} }}"));
    let missing = check(&in_file);
    assert_eq!(missing[0].0, "warn");
    assert!(missing[0].1.starts_with("LiveChat cannot be called: "), "{missing:?}");
    std::fs::write(&token, TOKEN).expect("written");
    let place = at(&format!("the file {}", token.display()));
    assert_eq!(check(&in_file), [("ok".to_owned(), told(&place, "2 webhooks wanted"))]);

    let tokens = directory.path().join("tokens.json");
    let with_login = apps(&format!("tokens = {tokens:?}"))
        .replace(&format!("account_id = \"{ACCOUNT}\", personal_access_token = {{ value = {TOKEN:?} }}, "), "");
    let login = format!("no tokens yet: `livechat-relay auth login -c {}` writes {}", file.display(), tokens.display());
    assert_eq!(check(&with_login), [("warn".to_owned(), told(&login, "webhooks not in the configuration"))]);
    let log_in = |client: &str, organization: &str| {
        let stored = json!({
            "client_id": client, "access_token": TOKEN, "refresh_token": null, "account_id": ACCOUNT,
            "organization_id": organization, "scopes": [], "expires_at": null
        });
        std::fs::write(&tokens, stored.to_string()).expect("written");
    };
    for (client, organization, status, of_login) in [
        (CLIENT, "o-1", "ok", format!("tokens of the organization o-1 ({})", tokens.display())),
        (CLIENT, "", "ok", format!("tokens of an organization that they do not name ({})", tokens.display())),
        (
            "another",
            "o-1",
            "warn",
            format!(
                "{} has tokens of another Client ID, another: `livechat-relay auth login --app default -c {}` replaces them",
                tokens.display(),
                file.display()
            ),
        ),
    ] {
        log_in(client, organization);
        let told = told(&of_login, "webhooks not in the configuration");
        assert_eq!(check(&with_login), [(status.to_owned(), told)]);
    }
    assert_eq!(livechat.get("requests"), json!([]));
}

#[test]
fn it_says_where_the_running_relay_has_another_file_than_the_one_that_is_checked() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let spool = format!("{:?}", directory.path().join("spool"));
    let relay: Relay = mock.relay(&[("spool.directory", &spool)]);
    let own = relay.file();
    let [other, same] = ["other.toml", "link.toml"].map(|name| directory.path().join(name));
    std::fs::copy(&own, &other).expect("copied");
    std::os::unix::fs::symlink(&own, &same).expect("a link");
    let as_it_is = ("ok".to_owned(), format!("runs with {} as it is", own.display()));
    for file in [&own, &same] {
        assert_eq!(findings(file, "running relay"), std::slice::from_ref(&as_it_is));
    }
    let differs = format!("it runs with {}, and not with what was checked, {}", own.display(), other.display());
    assert_eq!(findings(&other, "running relay"), [("warn".to_owned(), differs)]);
    let checked = format!("{} is complete; webhooks on 127.0.0.1:0", other.display());
    assert_eq!(findings(&other, "configuration"), [("ok".to_owned(), checked)]);
}
