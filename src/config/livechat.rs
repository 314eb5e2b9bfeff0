//! `[livechat]` and `[apps.livechat]`: how LiveChat is reached, and which webhooks are wanted there. What LiveChat would refuse is found
//! here, without a call.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;

use super::policy::ReadApp;
use super::read::Reader;
use super::webhooks::webhooks;
use super::{MILLISECOND, SECOND, tls};
use crate::livechat::catalogue::URL_CHARACTERS_MAX;
use crate::livechat::{App, Config, Credential, Install, Server, Version, is_loopback};

/// More often would cost calls, and a change at LiveChat takes up to two minutes to show.
const WATCH_MIN: Duration = Duration::from_secs(600);

const WATCH_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// By LiveChat's documentation: with less, a secret key would be deleted with which LiveChat still delivers. One that is simulated has its
/// own.
const PROPAGATION_MIN: Duration = Duration::from_secs(120);

/// A longer `Retry-After` is not waited out by a command: a person waits for it.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The most organizations, or scopes, of an app.
const VALUES_MAX: usize = 1000;

const CREDENTIALS: &str =
    "personal_access_token with account_id, or tokens, the file that `livechat-relay auth login` writes";

pub fn livechat(r: &mut Reader, apps: &[ReadApp]) -> Config {
    let roots = r.optional_text("livechat.ca").and_then(|path| tls::roots(r, "livechat.ca", &path)).map(Arc::new);
    let [api, accounts] = ["livechat.api", "livechat.accounts"].map(|key| Server::new(address(r, key), roots.as_ref()));
    let propagation_min = if api.is_local() { Duration::ZERO } else { PROPAGATION_MIN };
    let config = Config {
        timeout: r.time("livechat.timeout", SECOND..=120 * SECOND),
        attempts_max: r.number("livechat.attempts_max", 1..=20),
        retry_min: r.time("livechat.retry_min", 10 * MILLISECOND..=60 * SECOND),
        retry_max: r.time("livechat.retry_max", 10 * MILLISECOND..=600 * SECOND),
        retry_after_max: RETRY_AFTER_MAX,
        propagation: r.time("livechat.propagation", propagation_min..=600 * SECOND),
        watch: r.optional_time("livechat.watch", WATCH_MIN..=WATCH_MAX),
        login_port: r.number("livechat.login_port", 1..=65_535),
        login_timeout: r.time("livechat.login_timeout", 10 * SECOND..=3600 * SECOND),
        apps: Vec::new(),
        api,
        accounts,
    };
    if config.retry_max < config.retry_min {
        r.mistake("livechat.retry_max", "is less than livechat.retry_min");
    }
    let mut found: Vec<App> = Vec::new();
    let mut places: BTreeMap<String, &str> = BTreeMap::new();
    for read in apps {
        let place = format!("{}.livechat", read.place);
        if !r.has(&place) {
            continue;
        }
        let app = app(r, read, &place, &config);
        if let Some(other) = places.insert(app.client_id.clone(), &read.place).filter(|_| !app.client_id.is_empty()) {
            let why =
                format!("is also that of {other}: `webhooks apply` for one app would remove the webhooks of the other");
            r.mistake(&format!("{place}.client_id"), &why);
        }
        found.push(app);
    }
    if config.watch.is_some() && found.is_empty() {
        r.warn("livechat.watch", "there is nothing to watch: no app has a table [apps.livechat]");
    }
    Config { apps: found, ..config }
}

fn app(r: &mut Reader, read: &ReadApp, place: &str, livechat: &Config) -> App {
    let key = |name: &str| format!("{place}.{name}");
    let is_watched = livechat.watch.is_some();
    let version = read.api_version.as_deref().map_or(Ok(Version::V3_6), str::parse);
    let version = version.unwrap_or_else(|why: String| {
        r.mistake(&format!("{}.api_version", read.place), &why);
        Version::V3_6
    });
    let client_id = needed(
        r,
        &key("client_id"),
        "what LiveChat's Developer Console calls Client ID, in the app's block App Authorization",
    );
    let public_url = public_url(r, &key("public_url"), livechat.api.is_local());
    let organizations = texts(r, &key("organizations"));
    let (install, page) = (install(r, &key("install")), r.optional_flag(&key("page")).unwrap_or(false));
    for (is_on, name) in [(install.is_some(), "install"), (page, "page")] {
        if is_on && !r.has(&key("organizations")) {
            let why = format!("is required for {name}: the ids of the organizations that may use it, such as your own");
            r.mistake(&key("organizations"), &why);
        }
    }
    if install.is_some() && !r.has(&key("client_secret")) {
        r.mistake(
            &key("client_secret"),
            "is required for install: without it LiveChat issues no token for an installation",
        );
    }
    let credential = credential(r, place, is_watched);
    let is_refreshed = is_watched && matches!(credential, Some(Credential::Tokens(_)));
    let mut app = App {
        name: read.name.clone(),
        client_id,
        client_secret: r.secret_for_livechat(&key("client_secret"), install.is_some() || page || is_refreshed),
        public_url,
        version,
        credential,
        wanted: None,
        secret_key: read.keys.newest(Timestamp::now(), r.registers()),
        key_directory: read.keys.directory.clone(),
        install,
        page,
        organizations,
    };
    let longest =
        [app.webhook_url(), app.install_url(), app.page_url()].map(|url| url.chars().count()).into_iter().max();
    if longest.is_some_and(|longest| longest > URL_CHARACTERS_MAX) {
        let why = format!(
            "is too long: LiveChat allows {URL_CHARACTERS_MAX} characters, /webhooks/ and the app's name included"
        );
        r.mistake(&key("public_url"), &why);
    }
    let place = key("webhooks");
    app.wanted = r.has(&place).then(|| webhooks(r, &place, version, &app.webhook_url()));
    app
}

fn address(r: &mut Reader, key: &str) -> Url {
    let wanted =
        "an address that begins with https:// and has no path (http:// on localhost for `livechat-relay simulate`)";
    r.text_as(key, wanted, Server::address)
}

/// Where LiveChat reaches the relay, without a slash at its end. `is_simulated`: LiveChat is on this machine.
fn public_url(r: &mut Reader, key: &str, is_simulated: bool) -> String {
    let text = needed(r, key, "where LiveChat reaches the relay, such as \"https://hooks.example.com\"");
    if text.is_empty() {
        return text;
    }
    let url = match Url::parse(&text) {
        Ok(url) if url.has_host() => url,
        _ => {
            r.mistake(key, "must be a URL, such as \"https://hooks.example.com\"");
            return String::new();
        }
    };
    if url.path().trim_end_matches('/').rsplit('/').take(2).any(|part| part == "webhooks") {
        r.mistake(key, "ends in /webhooks/…, which the relay adds by itself: remove that part");
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        r.mistake(key, "has a query, a fragment, or a user, which the relay would not see: remove it");
    }
    let is_local = is_loopback(&url);
    if url.scheme() != "https" && !(url.scheme() == "http" && is_local && is_simulated) {
        let why = "must begin with https://: the secret key is in every webhook (http:// on localhost is for a simulated LiveChat only: livechat.api)";
        r.mistake(key, why);
    } else if is_local && !is_simulated {
        r.warn(key, "is on this machine, where LiveChat's servers cannot reach it");
    }
    url.as_str().trim_end_matches('/').to_owned()
}

/// At most one. The token is only read where it is used.
fn credential(r: &mut Reader, place: &str, is_watched: bool) -> Option<Credential> {
    let [token, account, tokens] =
        ["personal_access_token", "account_id", "tokens"].map(|name| format!("{place}.{name}"));
    let is_personal = r.has(&token) || r.has(&account);
    let secret = r.secret_for_livechat(&token, is_watched);
    let account_id = r.optional_text(&account);
    let file = r.optional_text(&tokens);
    if is_personal && r.has(&tokens) {
        r.mistake(&tokens, &format!("is a second credential; keep one of {CREDENTIALS}"));
    }
    if !is_personal && !r.has(&tokens) && is_watched {
        r.mistake(place, &format!("has no credentials, which livechat.watch needs: {CREDENTIALS}"));
    }
    if let Some(path) = file {
        if path.is_empty() {
            r.mistake(
                &tokens,
                "is empty; name a file on persistent storage, such as \"/var/lib/livechat-relay/tokens.json\"",
            );
        }
        return Some(Credential::Tokens(PathBuf::from(path)));
    }
    if is_personal && !r.has(&token) {
        r.mistake(&token, "is missing: account_id says whose personal access token it is");
    }
    if is_personal && !r.has(&account) {
        r.mistake(&account, "is missing: Developer Console shows it beside the personal access token");
    }
    // RFC 7617: what is before the first colon is the user.
    if account_id.as_deref().is_some_and(|id| id.is_empty() || id.contains([':', ' ']) || id.contains(char::is_control))
    {
        r.mistake(&account, "must be the id that Developer Console shows beside the personal access token");
    }
    Some(Credential::Personal { account_id: account_id?, token: secret? })
}

fn install(r: &mut Reader, place: &str) -> Option<Install> {
    let scopes = texts(r, &format!("{place}.scopes"));
    let enable_webhooks = r.optional_flag(&format!("{place}.enable_webhooks")).unwrap_or(false);
    r.has(place).then_some(Install { scopes, enable_webhooks })
}

/// A text that must be there; what it is, is said where it is not.
fn needed(r: &mut Reader, key: &str, what: &str) -> String {
    let text = r.optional_text(key).unwrap_or_default();
    if !r.has(key) || text.is_empty() && !r.is_mistaken(key) {
        r.mistake(key, &format!("is missing: {what}"));
    } else if text.contains(char::is_whitespace) || text.contains(char::is_control) {
        r.mistake(key, &format!("contains white space or a control character; expected {what}"));
    }
    text
}

pub fn texts(r: &mut Reader, key: &str) -> BTreeSet<String> {
    let texts = r.optional_texts(key).unwrap_or_default();
    if texts.len() > VALUES_MAX {
        r.mistake(key, &format!("has more than {VALUES_MAX} values"));
    }
    texts.into_iter().collect()
}

#[cfg(test)]
mod tests;
