//! `[livechat]` and `[apps.livechat]`, right and wrong.

use std::io::Write as _;

use secrecy::ExposeSecret as _;

use super::*;
use crate::config::{Config as Whole, Mistakes, Need};

const APP: &str = "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"hunter2hunter2hunter2\" }]\n";

/// A configuration whose app `a` has more keys, and a table of these lines.
fn load(more: &str, livechat: &str, need: Need) -> Result<Whole, Mistakes> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    write!(file, "{more}\n{APP}[apps.livechat]\n{livechat}\n").expect("written");
    Whole::load(Some(file.path()), [], need)
}

fn mistakes(more: &str, livechat: &str) -> Vec<String> {
    load(more, livechat, Need::LiveChat).err().map(|mistakes| mistakes.without_places()).unwrap_or_default()
}

const RIGHT: &str = "client_id = \"c\"\npublic_url = \"https://hooks.example.com/relay/\"";

#[test]
fn an_app_has_what_it_is_given_and_the_urls_that_follow() {
    let full = format!(
        "{RIGHT}\nclient_secret = \"s\"\npersonal_access_token = {{ value = \"dal:p\" }}\naccount_id = \"u\"\npage = true\norganizations = \"o\"\ninstall = {{ scopes = [\"x:rw\"], enable_webhooks = true }}"
    );
    let config = load("livechat.watch = \"6h\"", &full, Need::Everything).expect("a configuration").livechat;
    assert_eq!(
        (config.api.origin(), config.watch),
        ("https://api.livechatinc.com", Some(Duration::from_secs(6 * 3600)))
    );
    let [app] = config.apps.as_slice() else { panic!("{config:?}") };
    assert_eq!(app.webhook_url(), "https://hooks.example.com/relay/webhooks/a");
    assert_eq!((app.client_id.as_str(), app.version, app.page, &app.wanted), ("c", Version::V3_6, true, &None));
    assert!(app.install.as_ref().is_some_and(|install| install.enable_webhooks && install.scopes.contains("x:rw")));
    let token = app.credential.as_ref().map(|credential| match credential {
        Credential::Personal { account_id, token } => (account_id.as_str(), token.expose_secret()),
        Credential::Tokens(path) => panic!("{}", path.display()),
    });
    assert_eq!(token, Some(("u", "dal:p")));
    let shown = format!("{config:?}");
    assert!(!shown.contains("dal:p") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn secrets_are_read_by_those_who_use_them() {
    let absent = format!(
        "{RIGHT}\nclient_secret = {{ file = \"/no\" }}\npersonal_access_token = {{ env = \"NO\" }}\naccount_id = \"u\""
    );
    let lines =
        |more: &str, livechat: &str, need| load(more, livechat, need).err().map_or(0, |mistakes| mistakes.lines.len());
    let all = [Need::Settings, Need::Kafka, Need::Everything, Need::LiveChat, Need::Registration];
    assert_eq!(all.map(|need| lines("", &absent, need)), [0, 0, 0, 2, 2]);
    assert_eq!(lines("livechat.watch = \"10m\"", &absent, Need::Everything), 1, "the token, not the client secret");
    let page = format!("{absent}\npage = true\norganizations = [\"o\"]");
    assert_eq!(lines("", &page, Need::Everything), 1, "the client secret, not the token");
    // A secret in two places is wrong, also where it is not read.
    let twice = format!("{RIGHT}\nclient_secret = {{ file = \"/no\", env = \"NO\" }}");
    assert_eq!(all.map(|need| lines("", &twice, need)), [1; 5]);
}

#[test]
fn new_registrations_get_the_last_key_that_is_valid() {
    let directory = tempfile::tempdir().expect("a directory");
    let key =
        |name: &str| std::fs::write(directory.path().join(name), format!("the secret key of {name}")).expect("written");
    ["2026-09", "2026-10", "2026-11"].into_iter().for_each(key);
    let path = directory.path().display();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let keys = format!("{{ directory = \"{path}\", not_after = {{ \"2026-11\" = 2020-01-01T00:00:00Z }} }}");
    write!(file, "[[apps]]\nname = \"a\"\nsecret_keys = {keys}\n[apps.livechat]\n{RIGHT}\n").expect("written");
    let of = |need| {
        let config = Whole::load(Some(file.path()), [], need).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        config.livechat.apps[0].clone()
    };
    let serving = of(Need::Everything).secret_key.expect("a key");
    assert!(serving.name == "2026-10" && serving.secret.is_none(), "a running relay keeps digests only");
    let (app, key) = (of(Need::Registration), of(Need::Registration).secret_key.expect("a key"));
    assert_eq!((key.name.as_str(), key.place), ("2026-10", format!("the file {path}/2026-10")));
    assert_eq!(key.secret.expect("read").expose_secret(), "the secret key of 2026-10");
    assert_eq!(app.key_directory.as_deref(), Some(directory.path()));
    assert!(of(Need::Settings).secret_key.is_none() && of(Need::LiveChat).key_directory.is_some());
    let listed = load("", RIGHT, Need::Settings).expect("a configuration").livechat.apps.remove(0).secret_key;
    let listed = listed.expect("a place");
    assert_eq!((listed.name.as_str(), listed.place.as_str()), ("k", "the configuration, at apps[0].secret_keys[0]"));
    assert!(listed.secret.is_none());
}

#[test]
fn what_livechat_would_refuse_is_a_mistake_with_its_key() {
    let app = |lines: &str| format!("client_id = \"c\"\n{lines}");
    let right = |lines: &str| format!("{RIGHT}\n{lines}");
    let url = |url: &str| app(&format!("public_url = \"{url}\""));
    let long = |n: usize| url(&format!("https://h.example/{}", "x".repeat(n)));
    for (more, livechat, mistake) in [
        ("", "public_url = \"https://a.example\"".to_owned(), "client_id: is missing: what LiveChat's"),
        ("", "client_id = \"\"\npublic_url = \"https://a.example\"".to_owned(), "client_id: is missing"),
        ("", "client_id = \"a b\"\npublic_url = \"https://a.example\"".to_owned(), "client_id: contains white space"),
        ("", app(""), "public_url: is missing: where LiveChat reaches"),
        ("", url("http://hooks.example.com"), "public_url: must begin with https://"),
        ("", url("http://localhost:8080"), "public_url: must begin with https://"),
        ("", url("ftp://a.example"), "public_url: must begin with https://"),
        ("", url("hooks.example.com"), "public_url: must be a URL"),
        ("", url("mailto:a@example.com"), "public_url: must be a URL"),
        ("", url("https://a.example/?q"), "public_url: has a query"),
        ("", url("https://a.example/#f"), "public_url: has a query"),
        ("", url("https://me@a.example/"), "public_url: has a query"),
        ("", url("https://a.example/webhooks"), "public_url: ends in /webhooks/…"),
        ("", url("https://a.example/relay/webhooks/a/"), "public_url: ends in /webhooks/…"),
        ("", long(472), "public_url: is too long"),
        ("", right("account_id = \"u\""), "personal_access_token: is missing"),
        ("", right("personal_access_token = \"p\""), "account_id: is missing"),
        ("", right("personal_access_token = \"p\"\naccount_id = \"u:p\""), "account_id: must be the id"),
        (
            "",
            right("personal_access_token = \"p\"\naccount_id = \"u\"\ntokens = \"t\""),
            "tokens: is a second credential",
        ),
        ("", right("tokens = \"\""), "tokens: is empty"),
        ("", right("page = \"yes\""), "page: must be true or false"),
        ("", right("page = true"), "organizations: is required for page"),
        ("", right("install = {}\norganizations = \"o\""), "client_secret: is required for install"),
        ("", right("install = {}\nclient_secret = \"s\""), "organizations: is required for install"),
        ("", right("install = true\nclient_secret = \"s\"\norganizations = \"o\""), "install: must be a table"),
        ("livechat.watch = \"6h\"", right(""), "apps[0].livechat: has no credentials"),
        ("livechat.watch = \"599s\"", right("tokens = \"t\""), "livechat.watch: must be a duration"),
        ("livechat.propagation = \"119s\"", right(""), "livechat.propagation: must be a duration from 120s"),
        ("livechat.retry_max = \"100ms\"", right(""), "livechat.retry_max: is less than livechat.retry_min"),
        ("livechat.api = \"http://api.example.com\"", right(""), "livechat.api: must be an address"),
        ("livechat.api = \"https://api.example.com/v3\"", right(""), "livechat.api: must be an address"),
        ("livechat.accounts = \"https://u:p@a.example\"", right(""), "livechat.accounts: must be an address"),
        ("livechat.ca = \"/no/such/file\"", right(""), "livechat.ca: the file cannot be read"),
        ("livechat.login_port = 0", right(""), "livechat.login_port: must be a whole number"),
    ] {
        let (start, found) = (format!("apps[0].livechat.{mistake}"), mistakes(more, &livechat));
        let is_it = |line: &String| line.starts_with(&start) || line.starts_with(mistake);
        assert!(found.len() == 1 && is_it(&found[0]), "{livechat}: {mistake}: {found:#?}");
    }
    let simulated = "livechat.api = \"http://127.0.0.1:9000\"";
    for (more, livechat) in [
        ("", right("tokens = \"t\"")),
        ("", long(471)),
        (simulated, url("http://localhost:8080")),
        (simulated, url("http://[::1]:8080")),
        ("livechat.propagation = \"120s\"", right("")),
        ("livechat.api = \"http://127.0.0.1:9000\"\nlivechat.propagation = \"0s\"", right("")),
        ("livechat.watch = \"10m\"", right("tokens = \"t\"")),
    ] {
        assert_eq!(mistakes(more, &livechat), Vec::<String>::new(), "{livechat}");
    }
    assert!(mistakes(simulated, &url("http://hooks.example.com"))[0].contains("must begin with https://"));
    let local = load("", &url("https://localhost:8443"), Need::LiveChat).expect("a configuration").warnings;
    assert!(local.len() == 1 && local[0].contains("cannot reach it"), "{local:?}");
}

#[test]
fn versions_that_are_gone_and_client_ids_of_two_apps_are_mistakes() {
    let two = |versions: [&str; 2], ids: [&str; 2]| {
        let app = |n: usize| {
            format!(
                "[[apps]]\nname = \"app{n}\"\napi_version = \"{}\"\nsecret_keys = [{{ name = \"k\", value = \"hunter2hunter2hunter2\" }}]\n[apps.livechat]\nclient_id = \"{}\"\npublic_url = \"https://a.example\"\n",
                versions[n], ids[n]
            )
        };
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        write!(file, "{}{}", app(0), app(1)).expect("written");
        Whole::load(Some(file.path()), [], Need::Settings)
            .err()
            .map(|mistakes| mistakes.without_places())
            .unwrap_or_default()
    };
    assert_eq!(two(["3.3", "3.7"], ["c", "d"]), Vec::<String>::new());
    let gone = two(["3.2", "3.8"], ["c", "d"]);
    assert!(
        gone.len() == 2 && gone[0].starts_with("apps[0].api_version: LiveChat has discontinued its API 3.2"),
        "{gone:?}"
    );
    assert!(gone[1].starts_with("apps[1].api_version: is not a version of LiveChat's Configuration API"), "{gone:?}");
    let same = two(["3.6", "3.6"], ["c", "c"]);
    assert!(same.len() == 1 && same[0].starts_with("apps[1].livechat.client_id: is also that of apps[0]"), "{same:?}");
}

#[test]
fn no_mistake_has_a_value_in_it() {
    const CANARY: &str = "CANARY7canary";
    let canaries = [
        format!("\"{CANARY}\""),
        format!("[\"{CANARY}\"]"),
        format!("{{ x = \"{CANARY}\" }}"),
        format!("{{ file = \"{CANARY}\" }}"),
    ];
    let keys = [
        "client_id",
        "client_secret",
        "public_url",
        "personal_access_token",
        "account_id",
        "tokens",
        "organizations",
        "install",
        "page",
        "webhooks",
        "install.scopes",
        "pages",
    ];
    for canary in &canaries {
        let entries = [
            "actions",
            "type",
            "filters",
            "filters.author_type",
            "filters.source_type",
            "filters.chat_presence",
            "filters.agent_ids",
            "additional_data",
            "description",
        ];
        let entries = entries.map(|key| format!("webhooks = [{{ actions = \"all\" }}, {{ {key} = {canary} }}]"));
        for lines in keys.map(|key| format!("{key} = {canary}")).into_iter().chain(entries) {
            let found = mistakes("", &lines);
            assert!(!found.is_empty() && !found.join("\n").contains(CANARY), "{lines}: {found:#?}");
        }
    }
}
