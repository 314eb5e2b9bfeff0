//! What makes the [`Policy`]: the apps with their keys, and where events go.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::SECOND;
use super::flat::nearest;
use super::keys::{Keys as SecretKeys, keys};
use super::read::Reader;
use super::rules::rules;
use crate::dedup;
use crate::event::normalize::{APP_EVENTS, APP_INSTALLED};
use crate::event::route::{Route, UNLISTED};
use crate::event::{Keyring, Keys, Mode, Routing, Topics, actions};
use crate::metrics::Counts;
use crate::relay::{APP_WEBHOOKS, App, Policy, TOKEN_BYTES_MAX, TOKEN_BYTES_MIN, UNKNOWN_APP};

/// What stands after the prefix in the name of the dead letters' topic.
pub const DEAD_LETTER: &str = "dead-letter";

/// An app as it was read, for what else belongs to it.
pub struct ReadApp {
    /// `apps[0]`.
    pub place: String,
    pub name: String,
    pub api_version: Option<String>,
    pub keys: SecretKeys,
}

/// The policy, and the apps in their order.
pub fn policy(r: &mut Reader) -> (Arc<Policy>, Vec<ReadApp>) {
    let routes = routes(r);
    let ((apps, read), dead_letter) = (apps(r, &routes), Arc::from(format!("{}{DEAD_LETTER}", routes.prefix)));
    let policy = Policy {
        rules: rules(r, &apps, &dead_letter),
        apps,
        app_webhooks: app_webhooks(r, &routes),
        retries: dedup::Config {
            window: r.time("retries.window", Duration::ZERO..=3600 * SECOND),
            entries_max: r.number("retries.entries_max", 0..=10_000_000),
        },
        dead_letter,
        initial: r.flag("events.initial"),
    };
    (Arc::new(policy), read)
}

/// What decides where events go, but for an app's own prefix.
struct Routes {
    prefix: String,
    own: HashMap<String, Route>,
    mode: Mode,
    keys: Keys,
}

impl Routes {
    /// With `is_installable` the app has an installation page, and its installations a topic.
    fn of_app(&self, topic_prefix: &str, api_version: Option<String>, is_installable: bool) -> Arc<Routing> {
        let prefix = format!("{topic_prefix}{}", self.prefix);
        let own = |name: &str| self.own.get(name).cloned();
        let topics = Topics::new(&prefix, own);
        self.routing(if is_installable { topics.with_installations(&prefix, own) } else { topics }, api_version)
    }

    fn routing(&self, topics: Topics, api_version: Option<String>) -> Arc<Routing> {
        Arc::new(Routing { topics, mode: self.mode, keys: self.keys.clone(), api_version })
    }
}

fn routes(r: &mut Reader) -> Routes {
    let prefix = r.text("topics.prefix");
    check_prefix(r, "topics.prefix", &prefix);
    let mut own = HashMap::new();
    for (action, key) in r.names("topics.actions") {
        let known = || actions::names().chain(APP_EVENTS).chain([APP_INSTALLED, UNLISTED]);
        if !known().any(|name| name == action) {
            let meant = actions::find(&action).map(|action| action.name).or_else(|| nearest(&action, known()));
            let meant = meant.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
            let why = "is not one of LiveChat's actions; use `unlisted` for those that the relay does not know";
            r.mistake(&key, &format!("{why}{meant}"));
        }
        match r.optional_text(&key) {
            Some(topic) if topic == "drop" => drop(own.insert(action, Route::Drop)),
            Some(topic) => match bad_topic(&topic) {
                Some(why) => r.mistake(&key, why),
                None => drop(own.insert(action, Route::Topic(Arc::from(topic)))),
            },
            None => {} // no text, as was noted
        }
    }
    let mode = r.choice("events.mode", [("structured", Mode::Structured), ("binary", Mode::Binary)]);
    Routes { prefix, own, mode, keys: record_keys(r) }
}

/// A prefix must leave room for the longest action's name.
fn check_prefix(r: &mut Reader, key: &str, prefix: &str) {
    let longest = APP_EVENTS.into_iter().chain(actions::names()).max_by_key(|name| name.len()).unwrap_or_default();
    if let Some(why) = bad_topic(&format!("{prefix}{longest}")) {
        r.mistake(key, why);
    }
}

fn record_keys(r: &mut Reader) -> Keys {
    let is_hashed = r.choice("topics.key", [("plain", false), ("hashed", true)]);
    let is_set = r.has("topics.key_secret");
    let secret = r.optional_secret("topics.key_secret");
    match secret.as_ref().map(ExposeSecret::expose_secret) {
        _ if !is_hashed => Keys::Plain,
        Some(secret) if secret.len() >= 16 => Keys::hashed(secret.as_bytes()),
        // What is wrong with it was noted, or this command only has to know that keys are hashed.
        None if is_set => Keys::hashed(&[]),
        _ => {
            let why =
                "is required for topics.key = \"hashed\": 16 bytes or more, otherwise the hashed ids can be guessed";
            r.mistake("topics.key_secret", why);
            Keys::Plain
        }
    }
}

fn app_webhooks(r: &mut Reader, routes: &Routes) -> Option<Arc<App>> {
    const TOKEN: &str = "app_webhooks.token";
    let is_set = r.has(TOKEN);
    let token = r.optional_secret(TOKEN);
    let is_legal = |token: &str| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) && token.bytes().all(legal)
    };
    if token.as_ref().is_some_and(|token| !is_legal(token.expose_secret())) {
        r.mistake(
            TOKEN,
            "must be 32 to 256 characters of a-z A-Z 0-9 - . _ ~: it is part of a path, and the only protection",
        );
    }
    let topics = Topics::of_app_webhooks(&routes.prefix, |name| routes.own.get(name).cloned());
    // A command that does not need the token still knows the topics; without it nothing is verified.
    let keyring = Keyring::new(token.iter().map(|token| ("path".to_owned(), token)));
    let (routing, counts) = (routes.routing(topics, None), Arc::new(Counts::of_app_webhooks()));
    is_set.then(|| Arc::new(App { name: APP_WEBHOOKS.to_owned(), keyring, routing, counts }))
}

/// Why Kafka would not accept this as the name of a topic.
pub fn bad_topic(name: &str) -> Option<&'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match name {
        "" | "." | ".." => Some("is not a topic name"),
        _ if name.len() > 249 => Some("is too long for a topic name: 249 bytes at most"),
        _ if !name.bytes().all(legal) => {
            Some("has characters that Kafka does not allow in topic names; use a-z A-Z 0-9 . _ -")
        }
        _ => None,
    }
}

/// Names that differ only in `.` and `_`.
pub fn colliding(topics: Vec<Arc<str>>) -> Vec<[Arc<str>; 2]> {
    let mut seen: HashMap<String, Arc<str>> = HashMap::new();
    let collision = |name: Arc<str>| seen.insert(name.replace('.', "_"), Arc::clone(&name)).map(|other| [other, name]);
    topics.into_iter().filter_map(collision).collect()
}

fn apps(r: &mut Reader, routes: &Routes) -> (HashMap<String, Arc<App>>, Vec<ReadApp>) {
    let (mut apps, mut all_read) = (HashMap::new(), Vec::new());
    const EXAMPLE: &str = "[[apps]] with a name and secret_keys";
    let no_file = " (no configuration file is given: add -c FILE, or set LIVECHAT_RELAY_CONFIG)";
    let none = format!("is empty{}: add {EXAMPLE}", if r.has_file() { "" } else { no_file });
    let is_needed = r.needs("apps");
    let count = r.count("apps", EXAMPLE, is_needed.then_some(&*none));
    for place in (0..count).map(|i| format!("apps[{i}]")) {
        let (app, read) = app(r, routes, &place);
        let name = app.name.clone();
        if apps.insert(name.clone(), Arc::new(app)).is_some() && !name.is_empty() {
            r.mistake(&format!("{place}.name"), "is already the name of another app");
        }
        all_read.push(read);
    }
    (apps, all_read)
}

fn app(r: &mut Reader, routes: &Routes, place: &str) -> (App, ReadApp) {
    let key = |name: &str| format!("{place}.{name}");
    let name = r.optional_text(&key("name")).unwrap_or_default();
    let topic_prefix = r.optional_text(&key("topic_prefix")).unwrap_or_default();
    let api_version = r.optional_text(&key("api_version"));
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !(1..=64).contains(&name.len()) || !name.bytes().all(legal) {
        r.mistake(&key("name"), "must be 1 to 64 characters of a-z A-Z 0-9 - _: it is part of a path");
    }
    let taken = match name.as_str() {
        APP_WEBHOOKS => Some("must not be app-webhooks: metrics use that name for [app_webhooks]"),
        UNKNOWN_APP => Some("must not be unknown: metrics use that name for requests to no app"),
        _ => None,
    };
    taken.iter().for_each(|taken| r.mistake(&key("name"), taken));
    let version = |v: &String| (1..=8).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if !api_version.as_ref().is_none_or(version) {
        r.mistake(&key("api_version"), "must be a version of LiveChat's API, such as \"3.6\"");
    }
    if !topic_prefix.is_empty() {
        check_prefix(r, &key("topic_prefix"), &format!("{topic_prefix}{}", routes.prefix));
    }
    let keys = keys(r, &key("secret_keys"));
    let is_installable = r.has(&key("livechat.install"));
    let routing = routes.of_app(&topic_prefix, api_version.clone(), is_installable);
    let app = App { name: name.clone(), keyring: keys.keyring(), routing, counts: Arc::new(Counts::of_app()) };
    (app, ReadApp { place: place.to_owned(), name, api_version, keys })
}
