//! Defaults < file < environment → a checked [`Config`], or every mistake at once, each with its key.

mod read;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::{ExposeSecret, SecretString};

use crate::budget::{REQUEST_BYTES, SMALL_BODY_BYTES_MAX};
use crate::event::normalize::APP_EVENTS;
use crate::event::route::{ENVELOPE_BYTES_MAX, Route, UNLISTED};
use crate::event::{Keyring, Keys, Mode, Routing, Topics, actions};
use crate::relay::{APP_WEBHOOKS, App, Policy, TOKEN_BYTES_MAX};
use crate::{budget, dedup, http, publish, replay, spool, telemetry, topics};
use read::Reader;

/// `config/default.toml`: every key, its default and its reason.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The whole configuration, each part in the type of the module that uses it.
pub struct Config {
    pub server: Server,
    pub admin: Listener,
    pub kafka: publish::Config,
    pub topics: topics::Config,
    /// Absent: events are answered 503 while Kafka is away.
    pub spool: Option<Spool>,
    pub log: telemetry::Config,
    pub policy: Policy,
}

/// `[spool]`.
#[derive(Clone, Debug)]
pub struct Spool {
    pub spool: spool::Config,
    pub replay: replay::Config,
    /// How long `serve --drain` waits at its end for the spool to be empty.
    pub drain_timeout: Duration,
}

/// A listener that is not bound yet.
#[derive(Clone, Debug)]
pub struct Listener {
    pub listen: SocketAddr,
    /// Connections that wait to be accepted.
    pub backlog: u32,
    pub limits: http::Limits,
}

/// `[server]`.
#[derive(Clone, Debug)]
pub struct Server {
    pub listener: Listener,
    pub webhooks: http::webhook::Config,
    pub budget: budget::Config,
    pub drain_delay: Duration,
    pub drain_timeout: Duration,
}

/// All that is wrong with a configuration, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

impl Config {
    /// Reads `file`, where one is given, and the environment over the defaults.
    ///
    /// # Errors
    /// [`Mistakes`]: all of them, so that one look is enough. None of them tells a secret.
    pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, Mistakes> {
        let (mut reader, unreadable) = Reader::new(DEFAULTS, file, env).map_err(Mistakes)?;
        let config = build(&mut reader);
        let mistakes = reader.finish(unreadable);
        config.filter(|_| mistakes.is_empty()).ok_or(Mistakes(mistakes))
    }

    /// The parts of a configuration that reach Kafka, which is all that `tail` needs: no apps, no secrets.
    ///
    /// # Errors
    /// [`Mistakes`] in those parts.
    pub fn load_kafka(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(publish::Config, String), Mistakes> {
        let (mut reader, _) = Reader::new(DEFAULTS, file, env).map_err(Mistakes)?;
        let kafka = kafka(&mut reader);
        let prefix = reader.get::<String>("topics.prefix");
        let mistakes = reader.mistakes();
        kafka.zip(prefix).filter(|_| mistakes.is_empty()).ok_or(Mistakes(mistakes))
    }

    /// The parts that lead to the spool: its own, and the address of the admin listener.
    ///
    /// # Errors
    /// [`Mistakes`] in those parts.
    pub fn load_spool(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Option<Spool>, SocketAddr), Mistakes> {
        let (mut reader, _) = Reader::new(DEFAULTS, file, env).map_err(Mistakes)?;
        let spool = spool(&mut reader);
        let admin = reader.get("admin.listen");
        let mistakes = reader.mistakes();
        admin.filter(|_| mistakes.is_empty()).map(|admin| (spool, admin)).ok_or(Mistakes(mistakes))
    }
}

/// Reads every key, even after a mistake, so that all of them are known and all mistakes are found.
fn build(r: &mut Reader) -> Option<Config> {
    let server = server(r);
    let admin = admin(r, server.as_ref());
    let kafka = kafka(r);
    let topics = topics(r);
    let routes = routes(r);
    let log = log(r);
    let apps = apps(r, routes.as_ref());
    let app_webhooks = app_webhooks(r, routes.as_ref());
    let retries = retries(r);
    let spool = spool(r);
    if let (Some(server), Some(kafka)) = (&server, &kafka) {
        let (body, publish) = (server.webhooks.body_timeout, kafka.publish_deadline);
        if body + publish > server.webhooks.response_deadline {
            r.mistake("server.response_deadline", "is shorter than server.body_timeout and kafka.publish_deadline together; the answer would come too late");
        }
        let body = server.webhooks.body_bytes_max;
        let (key, max) = if body > SMALL_BODY_BYTES_MAX {
            ("server.large_bytes_in_flight_max", server.budget.large_bytes_in_flight_max)
        } else {
            ("server.bytes_in_flight_max", server.budget.bytes_in_flight_max)
        };
        if body + REQUEST_BYTES > max {
            r.mistake(key, "is less than server.body_bytes_max and 1 KiB: the largest body would never be accepted");
        }
        if (server.webhooks.body_bytes_max + ENVELOPE_BYTES_MAX) as u64 > kafka.queue_bytes_max {
            r.mistake("kafka.queue_bytes_max", "is less than one record of server.body_bytes_max");
        }
    }
    let topics = topics?;
    if let (Some(max), Some(kafka)) = (topics.settings.get("max.message.bytes"), &kafka)
        && topics.create
        && spool.is_none()
        && max.parse::<u64>().is_ok_and(|max| max < kafka.record_bytes_max)
    {
        let needed = kafka.record_bytes_max;
        r.mistake(
            "topics.settings",
            &format!(
                "max.message.bytes is {max}, and must be {needed} or more for server.body_bytes_max and the envelope, or have a spool.directory for dead letters"
            ),
        );
    }
    let dead_letter = Arc::from(format!("{}{DEAD_LETTER}", r.get::<String>("topics.prefix").unwrap_or_default()));
    let policy = Policy { apps, app_webhooks, retries: retries?, dead_letter };
    for [one, other] in colliding(policy.topics()) {
        let why = format!("{one} and {other} collide: Kafka's metrics take `.` and `_` for one; use one of them");
        r.mistake("topics", &why);
    }
    Some(Config { server: server?, admin: admin?, kafka: kafka?, topics, spool, log: log?, policy })
}

const SECOND: Duration = Duration::from_secs(1);

fn server(r: &mut Reader) -> Option<Server> {
    let listen = r.get("server.listen");
    let body_bytes_max = r.size("server.body_bytes_max", ByteSize::b(1), ByteSize::mib(64));
    let body_timeout = r.time("server.body_timeout", Duration::from_millis(10), 60 * SECOND);
    let header_bytes_max = r.size("server.header_bytes_max", ByteSize::kib(8), ByteSize::mib(1));
    let header_timeout = r.time("server.header_timeout", Duration::from_millis(10), 60 * SECOND);
    let keepalive_timeout = r.time("server.keepalive_timeout", Duration::from_millis(10), 3600 * SECOND);
    let connections_max = r.number("server.connections_max", 1, 1_000_000);
    let backlog = r.number("server.backlog", 1, 1_000_000);
    let streams_max = r.number("server.streams_max", 1, 10_000);
    let bytes_in_flight_max = r.size("server.bytes_in_flight_max", ByteSize::kib(64), ByteSize::gib(4));
    let large_bytes_in_flight_max = r.size("server.large_bytes_in_flight_max", ByteSize::kib(64), ByteSize::gib(4));
    let write_timeout = r.time("server.write_timeout", Duration::from_millis(10), 3600 * SECOND);
    let window_bytes = r.size("server.window_bytes", ByteSize::kib(16), ByteSize::mib(64));
    let response_deadline = r.time("server.response_deadline", Duration::from_millis(100), 60 * SECOND);
    let retry_after = r.time("server.retry_after", SECOND, 3600 * SECOND);
    let drain_delay = r.time("server.drain_delay", Duration::ZERO, 300 * SECOND);
    let drain_timeout = r.time("server.drain_timeout", Duration::ZERO, 300 * SECOND);
    let linger_timeout = r.time("server.linger_timeout", Duration::from_millis(1), 60 * SECOND);
    let limits = http::Limits {
        connections_max: connections_max? as usize,
        header_bytes_max: header_bytes_max?,
        header_timeout: header_timeout?,
        keepalive_timeout: keepalive_timeout?,
        write_timeout: write_timeout?,
        linger_timeout: linger_timeout?,
        streams_max: u32::try_from(streams_max?).ok()?,
        window_bytes: u32::try_from(window_bytes?).ok()?,
        lifetime: None,
    };
    let webhooks = http::webhook::Config {
        body_bytes_max: body_bytes_max?,
        body_timeout: body_timeout?,
        response_deadline: response_deadline?,
        retry_after: retry_after?,
    };
    let budget = budget::Config {
        bytes_in_flight_max: bytes_in_flight_max?,
        large_bytes_in_flight_max: large_bytes_in_flight_max?,
    };
    let listener = Listener { listen: listen?, backlog: u32::try_from(backlog?).ok()?, limits };
    Some(Server { listener, webhooks, budget, drain_delay: drain_delay?, drain_timeout: drain_timeout? })
}

/// The admin listener has the server's limits, but for the number of connections.
fn admin(r: &mut Reader, server: Option<&Server>) -> Option<Listener> {
    let listen = r.get("admin.listen");
    let connections_max = r.number("admin.connections_max", 1, 10_000);
    let lifetime = r.time("admin.connection_timeout", Duration::from_millis(10), 3600 * SECOND);
    let Listener { limits, backlog, .. } = server?.listener.clone();
    let limits = http::Limits { connections_max: connections_max? as usize, lifetime: Some(lifetime?), ..limits };
    Some(Listener { listen: listen?, backlog, limits })
}

fn kafka(r: &mut Reader) -> Option<publish::Config> {
    let brokers = r.get::<String>("kafka.brokers");
    if brokers.as_deref().is_some_and(|b| b.trim().is_empty()) {
        r.mistake("kafka.brokers", "is empty; write for example \"kafka-1:9092,kafka-2:9092\"");
    }
    let client_id = r.get("kafka.client_id");
    let publish_deadline = r.time("kafka.publish_deadline", Duration::from_millis(100), 60 * SECOND);
    let linger = r.time("kafka.linger", Duration::ZERO, SECOND);
    if let (Some(linger), Some(deadline)) = (linger, publish_deadline)
        && (deadline..=SECOND).contains(&linger)
    {
        r.mistake("kafka.linger", "is not shorter than kafka.publish_deadline: no record would be sent in time");
    }
    let compression = r.one_of("kafka.compression", &["none", "gzip", "snappy", "lz4", "zstd"]);
    let queue_bytes_max = r.size("kafka.queue_bytes_max", ByteSize::mib(1), ByteSize::gib(2));
    let queue_records_max = r.number("kafka.queue_records_max", 1, 10_000_000);
    let start_timeout = r.time("kafka.start_timeout", Duration::from_millis(100), 300 * SECOND);
    let probe_interval = r.time("kafka.probe_interval", Duration::from_millis(100), 300 * SECOND);
    let body_bytes_max = r.size("server.body_bytes_max", ByteSize::b(1), ByteSize::mib(64));
    let properties = properties(r);
    Some(publish::Config {
        brokers: brokers?,
        client_id: client_id?,
        publish_deadline: publish_deadline?,
        linger: linger?,
        compression: compression?,
        queue_bytes_max: queue_bytes_max? as u64,
        queue_records_max: queue_records_max?,
        start_timeout: start_timeout?,
        probe_interval: probe_interval?,
        record_bytes_max: (body_bytes_max? + ENVELOPE_BYTES_MAX) as u64,
        properties,
    })
}

fn properties(r: &mut Reader) -> Vec<(String, SecretString)> {
    let mut properties: Vec<(String, SecretString)> = Vec::new();
    for (name, value) in r.table("kafka.properties") {
        let key = format!("kafka.properties.\"{name}\"");
        let is_same = |(other, _): &&(String, _)| publish::canonical(other) == publish::canonical(&name);
        if let Some((other, _)) = properties.iter().find(is_same) {
            r.mistake(&key, &format!("and \"{other}\" are two names of one property; keep one of them"));
        } else if let Some(why) = publish::Config::refusal(&name) {
            r.mistake(&key, &format!("may not be set: {why}"));
        } else if let Some(value) = r.secret(&key, &value) {
            properties.push((name, value));
        }
    }
    properties
}

fn topics(r: &mut Reader) -> Option<topics::Config> {
    let create = r.get("topics.create");
    let partitions = r.number("topics.partitions", 1, 10_000);
    let replication = r.number("topics.replication", 1, 100);
    let mut settings = BTreeMap::new();
    for (name, value) in r.table("topics.settings") {
        match value.into_string() {
            Ok(value) => drop(settings.insert(name, value)),
            Err(_) => r.mistake(&format!("topics.settings.\"{name}\""), "must be a text or a number"),
        }
    }
    Some(topics::Config {
        create: create?,
        partitions: i32::try_from(partitions?).ok()?,
        replication: i32::try_from(replication?).ok()?,
        settings,
    })
}

/// What decides where events go, but for an app's own prefix.
struct Routes {
    prefix: String,
    own: HashMap<String, Route>,
    mode: Mode,
    keys: Keys,
}

impl Routes {
    fn of_app(&self, topic_prefix: &str, api_version: Option<String>) -> Arc<Routing> {
        let prefix = format!("{topic_prefix}{}", self.prefix);
        self.routing(Topics::new(&prefix, |name| self.own.get(name).cloned()), api_version)
    }

    fn routing(&self, topics: Topics, api_version: Option<String>) -> Arc<Routing> {
        Arc::new(Routing { topics, mode: self.mode, keys: self.keys.clone(), api_version })
    }
}

fn routes(r: &mut Reader) -> Option<Routes> {
    let prefix = r.get::<String>("topics.prefix");
    if let Some(prefix) = &prefix {
        check_prefix(r, "topics.prefix", prefix);
    }
    let mode = r.get::<Mode>("events.mode");
    let keys = keys_of_records(r);
    let mut own = HashMap::new();
    for (action, value) in r.table("topics.actions") {
        let key = format!("topics.actions.{action}");
        if !actions::names().chain(APP_EVENTS).chain([UNLISTED]).any(|name| name == action) {
            r.mistake(&key, "is no action of LiveChat; `unlisted` stands for those that the relay does not know");
        }
        match value.into_string() {
            Ok(topic) if topic == "drop" => drop(own.insert(action, Route::Drop)),
            Ok(topic) => match bad_topic(&topic) {
                Some(why) => r.mistake(&key, why),
                None => drop(own.insert(action, Route::Topic(Arc::from(topic)))),
            },
            Err(_) => r.mistake(&key, "must be a topic's name or \"drop\""),
        }
    }
    Some(Routes { prefix: prefix?, own, mode: mode?, keys: keys? })
}

/// A prefix must leave room for the longest action's name.
fn check_prefix(r: &mut Reader, key: &str, prefix: &str) {
    let longest = APP_EVENTS.into_iter().chain(actions::names()).max_by_key(|name| name.len()).unwrap_or_default();
    if let Some(why) = bad_topic(&format!("{prefix}{longest}")) {
        r.mistake(key, why);
    }
}

fn keys_of_records(r: &mut Reader) -> Option<Keys> {
    let key = r.one_of("topics.key", &["plain", "hashed"])?;
    let secret = r.optional_secret("topics.key_secret");
    match (key.as_str(), secret) {
        ("hashed", Some(secret)) if secret.expose_secret().len() >= 16 => {
            Some(Keys::hashed(secret.expose_secret().as_bytes()))
        }
        ("hashed", _) => {
            r.mistake(
                "topics.key_secret",
                "is needed for topics.key = \"hashed\": 16 bytes or more, or the hashes can be guessed",
            );
            None
        }
        _ => Some(Keys::Plain),
    }
}

fn retries(r: &mut Reader) -> Option<dedup::Config> {
    let window = r.time("retries.window", Duration::ZERO, 3600 * SECOND);
    let entries_max = r.number("retries.entries_max", 0, 10_000_000);
    Some(dedup::Config { window: window?, entries_max: entries_max? as usize })
}

/// What stands after the prefix in the name of the dead letters' topic.
pub const DEAD_LETTER: &str = "dead-letter";

/// Looks at every key, whether there is a spool or not.
fn spool(r: &mut Reader) -> Option<Spool> {
    let directory = r.optional_text("spool.directory");
    let bytes_max = r.size("spool.bytes_max", ByteSize::mib(1), ByteSize::tib(1));
    let segment_bytes = r.size("spool.segment_bytes", ByteSize::kib(64), ByteSize::gib(1));
    let free_min = r.size("spool.free_min", ByteSize::b(0), ByteSize::tib(1));
    let queue_records_max = r.number("spool.queue_records_max", 1, 1_000_000);
    let queue_bytes_max = r.size("spool.queue_bytes_max", ByteSize::mib(1), ByteSize::gib(4));
    let lock_timeout = r.time("spool.lock_timeout", Duration::ZERO, 600 * SECOND);
    let switch_timeout = r.time("spool.switch_timeout", Duration::from_millis(1), 5 * SECOND);
    let failover_after = r.time("spool.failover_after", SECOND, 24 * 3600 * SECOND);
    let drain_timeout = r.time("spool.drain_timeout", Duration::ZERO, 24 * 3600 * SECOND);
    let records_max = r.number("spool.replay_records_max", 1, 100_000);
    let replay_bytes_max = r.size("spool.replay_bytes_max", ByteSize::kib(1), ByteSize::gib(1));
    let retry_min = r.time("spool.retry_min", Duration::from_millis(10), 60 * SECOND);
    let retry_max = r.time("spool.retry_max", Duration::from_millis(10), 600 * SECOND);
    if directory.as_deref() == Some("") {
        r.mistake("spool.directory", "is empty; leave it out for no spool");
    }
    let replay = replay::Config {
        records_max: records_max? as usize,
        bytes_max: replay_bytes_max?,
        retry_min: retry_min?,
        retry_max: retry_max?.max(retry_min?),
    };
    let spool = spool::Config {
        directory: std::path::absolute(directory?).ok()?, // relative to the working directory
        bytes_max: bytes_max? as u64,
        segment_bytes: u32::try_from(segment_bytes?).ok()?,
        free_min: free_min? as u64,
        queue_records_max: queue_records_max? as usize,
        queue_bytes_max: queue_bytes_max? as u64,
        lock_timeout: lock_timeout?,
        switch_timeout: switch_timeout?,
        failover_after: failover_after?,
    };
    Some(Spool { spool, replay, drain_timeout: drain_timeout? })
}

/// The shortest token that nobody guesses by trying.
const TOKEN_BYTES_MIN: usize = 32;

fn app_webhooks(r: &mut Reader, routes: Option<&Routes>) -> Option<Arc<App>> {
    let token = r.optional_secret("app_webhooks.token")?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let length = TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX;
    if !length.contains(&token.expose_secret().len()) || !token.expose_secret().bytes().all(legal) {
        r.mistake(
            "app_webhooks.token",
            "must be 32 to 256 of a-z A-Z 0-9 - . _ ~: it is part of a path, and all the protection there is",
        );
    }
    let routes = routes?;
    let topics = Topics::of_app_webhooks(&routes.prefix, |name| routes.own.get(name).cloned());
    let keyring = Keyring::new([("path".to_owned(), &token)]);
    Some(Arc::new(App { name: APP_WEBHOOKS.to_owned(), keyring, routing: routes.routing(topics, None) }))
}

/// Why Kafka would not take this name for a topic.
fn bad_topic(name: &str) -> Option<&'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match name {
        "" | "." | ".." => Some("is no name for a topic"),
        _ if name.len() > 249 => Some("is too long for a topic: 249 bytes at most"),
        _ if !name.bytes().all(legal) => {
            Some("has characters that Kafka does not take in topics; take a-z A-Z 0-9 . _ -")
        }
        _ => None,
    }
}

/// Names that differ only in `.` and `_`.
fn colliding(topics: Vec<Arc<str>>) -> Vec<[Arc<str>; 2]> {
    let mut seen: HashMap<String, Arc<str>> = HashMap::new();
    let collision = |name: Arc<str>| seen.insert(name.replace('.', "_"), Arc::clone(&name)).map(|other| [other, name]);
    topics.into_iter().filter_map(collision).collect()
}

fn log(r: &mut Reader) -> Option<telemetry::Config> {
    let format = r.get("log.format");
    let filter = r.get::<String>("log.filter");
    if let Some(Err(why)) = filter.as_deref().map(telemetry::Config::check) {
        r.mistake("log.filter", &why);
    }
    Some(telemetry::Config { format: format?, filter: filter? })
}

fn apps(r: &mut Reader, routes: Option<&Routes>) -> HashMap<String, Arc<App>> {
    let mut apps = HashMap::new();
    let tables = r.array("apps");
    if tables.is_empty() {
        r.mistake("apps", "is empty: give [[apps]] with a name and secret_keys, as config/default.toml shows");
    }
    for (i, mut app) in tables.into_iter().enumerate() {
        let key = |name: &str| format!("apps[{i}].{name}");
        let name = app.remove("name").and_then(|v| v.into_string().ok()).unwrap_or_default();
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(1..=64).contains(&name.len()) || !name.bytes().all(legal) {
            r.mistake(&key("name"), "must be 1 to 64 of a-z A-Z 0-9 - _: it is part of a path");
        }
        if name == APP_WEBHOOKS {
            r.mistake(&key("name"), "is app-webhooks, the name that metrics have for [app_webhooks]; choose another");
        }
        let keys = keys(r, &key("secret_keys"), app.remove("secret_keys"));
        let mut text = |name: &str| {
            let text = app.remove(name).map(|value| value.into_string());
            text.and_then(|text| text.map_err(|_| r.mistake(&key(name), "must be a text")).ok())
        };
        let topic_prefix = text("topic_prefix").unwrap_or_default();
        let api_version = text("api_version");
        let version = |v: &String| (1..=8).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if !api_version.as_ref().is_none_or(version) {
            r.mistake(&key("api_version"), "must be a version of LiveChat's API, such as \"3.6\"");
        }
        r.unknown(app.keys().map(|name| key(name)));
        let keyring = Keyring::new(keys.iter().map(|(name, secret)| (name.clone(), secret)));
        let Some(routes) = routes else { continue };
        if !topic_prefix.is_empty() {
            check_prefix(r, &key("topic_prefix"), &format!("{topic_prefix}{}", routes.prefix));
        }
        let app = App { name: name.clone(), keyring, routing: routes.of_app(&topic_prefix, api_version) };
        if apps.insert(name.clone(), Arc::new(app)).is_some() {
            r.mistake(&key("name"), &format!("{name} stands twice"));
        }
    }
    apps
}

fn keys(r: &mut Reader, key: &str, value: Option<config::Value>) -> Vec<(String, SecretString)> {
    let entries = value.and_then(|v| v.into_array().ok()).unwrap_or_default();
    if entries.is_empty() {
        r.mistake(key, "is empty: give at least one, such as { name = \"2026-11\", file = \"/run/secrets/livechat\" }");
    }
    let mut keys: Vec<(String, SecretString)> = Vec::new();
    for (i, entry) in entries.into_iter().enumerate() {
        let key = format!("{key}[{i}]");
        let Ok(mut entry) = entry.into_table() else {
            r.mistake(&key, "must be a table, such as { name = \"2026-11\", file = \"/run/secrets/livechat\" }");
            continue;
        };
        let name = entry.remove("name").and_then(|v| v.into_string().ok()).unwrap_or_default();
        if !(1..=64).contains(&name.len()) || name.contains(char::is_control) {
            r.mistake(&format!("{key}.name"), "must be a text of 1 to 64 bytes: metrics tell the keys apart by it");
        }
        if keys.iter().any(|(other, _)| *other == name) {
            r.mistake(&format!("{key}.name"), &format!("{name} stands twice"));
        }
        let Some(secret) = r.secret(&key, &entry.into()) else { continue };
        if secret.expose_secret().is_empty() {
            r.mistake(&key, "is empty: it would let everybody in");
        } else if keys.iter().any(|(_, other)| other.expose_secret() == secret.expose_secret()) {
            r.mistake(&key, "is the same key as one before it");
        }
        keys.push((name, secret));
    }
    keys
}

#[cfg(test)]
mod tests;
