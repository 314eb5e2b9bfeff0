//! Defaults < file < environment → a checked [`Config`], or every mistake at once, each with its key.

mod read;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::{ExposeSecret, SecretString};

use crate::budget::{REQUEST_BYTES, SMALL_BODY_BYTES_MAX};
use crate::event::normalize::APP_EVENTS;
use crate::event::route::{ENVELOPE_BYTES_MAX, Route, UNLISTED};
use crate::event::{Keyring, Keys, Mode, Routing, Topics, actions};
use crate::relay::{APP_WEBHOOKS, App, Policy, TOKEN_BYTES_MAX};
use crate::{budget, control, dedup, http, publish, replay, spool, telemetry, topics};
use read::Reader;

/// `config/default.toml`: every key, its default and its reason.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The whole configuration, each part in the type of the module that uses it.
pub struct Config {
    pub server: Server,
    pub admin: Listener,
    pub control: control::Config,
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
        let mut reader = Reader::new(file, env)?;
        let config = build(&mut reader);
        reader.refuse_unknown_keys();
        reader.finish(config)
    }

    /// The parts of a configuration that reach Kafka, which is all that `tail` needs: no apps, no secrets.
    ///
    /// # Errors
    /// [`Mistakes`] in those parts.
    pub fn load_kafka(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(publish::Config, String), Mistakes> {
        let mut reader = Reader::new(file, env)?;
        let parts = (kafka(&mut reader), reader.get("topics.prefix"));
        reader.finish(parts)
    }

    /// The parts that lead to the spool: its own, and the control socket of the relay that has it.
    ///
    /// # Errors
    /// [`Mistakes`] in those parts.
    pub fn load_spool(file: Option<&Path>) -> Result<(Option<Spool>, control::Config), Mistakes> {
        let mut reader = Reader::new(file, environment())?;
        let spool = spool(&mut reader);
        let control = control(&mut reader, spool.as_ref());
        reader.finish((spool, control))
    }
}

/// Reads every key. A default stands for what is wrong, so that all mistakes are found.
fn build(r: &mut Reader) -> Config {
    let (server, spool) = (server(r), spool(r));
    let config = Config {
        admin: admin(r, &server),
        control: control(r, spool.as_ref()),
        server,
        kafka: kafka(r),
        topics: topics(r),
        spool,
        log: log(r),
        policy: policy(r),
    };
    check_times_and_sizes(r, &config);
    check_topics(r, &config);
    config
}

/// What several keys must agree on.
fn check_times_and_sizes(r: &mut Reader, Config { server, kafka, .. }: &Config) {
    let http::webhook::Config { body_bytes_max, body_timeout, response_deadline, .. } = server.webhooks;
    if body_timeout + kafka.publish_deadline > response_deadline {
        r.mistake(
            "server.response_deadline",
            "is shorter than server.body_timeout and kafka.publish_deadline together; the answer would come too late",
        );
    }
    let (key, max) = if body_bytes_max > SMALL_BODY_BYTES_MAX {
        ("server.large_bytes_in_flight_max", server.budget.large_bytes_in_flight_max)
    } else {
        ("server.bytes_in_flight_max", server.budget.bytes_in_flight_max)
    };
    if body_bytes_max + REQUEST_BYTES > max {
        r.mistake(key, "is less than server.body_bytes_max and 1 KiB: the largest body would never be accepted");
    }
    if kafka.record_bytes_max > kafka.queue_bytes_max {
        r.mistake("kafka.queue_bytes_max", "is less than one record of server.body_bytes_max");
    }
    if (kafka.publish_deadline..=LINGER_MAX).contains(&kafka.linger) {
        r.mistake("kafka.linger", "is not shorter than kafka.publish_deadline: no record would be sent in time");
    }
}

/// The topics take the largest record, or there is a spool for dead letters; and Kafka can tell them apart.
fn check_topics(r: &mut Reader, Config { topics, kafka, spool, policy, .. }: &Config) {
    if let Some(max) = topics.settings.get("max.message.bytes")
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
    for [one, other] in colliding(policy.topics()) {
        let why = format!("{one} and {other} collide: Kafka's metrics take `.` and `_` for one; use one of them");
        r.mistake("topics", &why);
    }
}

/// The variables of the environment. One that is not UTF-8 is no reason to end: it need not be for us.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |variable: std::ffi::OsString| variable.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const LINGER_MAX: Duration = SECOND;

fn server(r: &mut Reader) -> Server {
    let limits = http::Limits {
        connections_max: r.number("server.connections_max", 1..=1_000_000),
        eviction_grace: r.time("server.eviction_grace", MILLISECOND..=10 * SECOND),
        header_bytes_max: r.size("server.header_bytes_max", ByteSize::kib(8)..=ByteSize::mib(1)),
        header_timeout: r.time("server.header_timeout", 10 * MILLISECOND..=60 * SECOND),
        keepalive_timeout: r.time("server.keepalive_timeout", 10 * MILLISECOND..=3600 * SECOND),
        write_timeout: r.time("server.write_timeout", 10 * MILLISECOND..=3600 * SECOND),
        linger_timeout: r.time("server.linger_timeout", MILLISECOND..=60 * SECOND),
        streams_max: r.number("server.streams_max", 1..=10_000),
        window_bytes: r.size("server.window_bytes", ByteSize::kib(16)..=ByteSize::mib(64)),
        lifetime: None,
    };
    Server {
        listener: Listener {
            listen: r.get("server.listen"),
            backlog: r.number("server.backlog", 1..=1_000_000),
            limits,
        },
        webhooks: http::webhook::Config {
            body_bytes_max: body_bytes_max(r),
            body_timeout: r.time("server.body_timeout", 10 * MILLISECOND..=60 * SECOND),
            response_deadline: r.time("server.response_deadline", 100 * MILLISECOND..=60 * SECOND),
            retry_after: r.time("server.retry_after", SECOND..=3600 * SECOND),
        },
        budget: budget::Config {
            bytes_in_flight_max: r.size("server.bytes_in_flight_max", ByteSize::kib(64)..=ByteSize::gib(4)),
            large_bytes_in_flight_max: r.size("server.large_bytes_in_flight_max", ByteSize::kib(64)..=ByteSize::gib(4)),
        },
        drain_delay: r.time("server.drain_delay", Duration::ZERO..=300 * SECOND),
        drain_timeout: r.time("server.drain_timeout", Duration::ZERO..=300 * SECOND),
    }
}

fn body_bytes_max(r: &mut Reader) -> usize {
    r.size("server.body_bytes_max", ByteSize::b(1)..=ByteSize::mib(64))
}

/// The admin listener has the server's limits, but for the numbers of connections and streams, and how long one may last.
fn admin(r: &mut Reader, server: &Server) -> Listener {
    let limits = http::Limits {
        connections_max: r.number("admin.connections_max", 1..=10_000),
        streams_max: r.number("admin.streams_max", 1..=10_000),
        lifetime: Some(r.time("admin.connection_timeout", 10 * MILLISECOND..=3600 * SECOND)),
        ..server.listener.limits.clone()
    };
    Listener { listen: r.get("admin.listen"), limits, ..server.listener }
}

/// The socket is where it is configured, else in the spool's directory, else where systemd has made a directory for it.
fn control(r: &mut Reader, spool: Option<&Spool>) -> control::Config {
    let configured = r.optional_text("control.socket").map(PathBuf::from);
    let in_spool = || spool.map(|spool| spool.spool.directory.join(control::SOCKET));
    let runtime = || {
        let directories = std::env::var("RUNTIME_DIRECTORY").ok()?;
        directories.split(':').next().filter(|path| !path.is_empty()).map(|path| Path::new(path).join(control::SOCKET))
    };
    let socket = configured.or_else(in_spool).or_else(runtime);
    let length = socket.as_ref().map_or(0, |socket| socket.as_os_str().len());
    if length > control::SOCKET_PATH_BYTES_MAX {
        let most = control::SOCKET_PATH_BYTES_MAX;
        r.mistake(
            "control.socket",
            &format!("has a path of {length} bytes, where the system takes {most}: set a shorter one, such as \"/run/livechat-relay/control.sock\""),
        );
    }
    control::Config {
        socket,
        connections_max: r.number("control.connections_max", 1..=100),
        request_bytes_max: r.size("control.request_bytes_max", ByteSize::kib(1)..=ByteSize::mib(16)),
        request_timeout: r.time("control.request_timeout", 100 * MILLISECOND..=600 * SECOND),
        write_timeout: r.time("control.write_timeout", 100 * MILLISECOND..=24 * 3600 * SECOND),
    }
}

fn kafka(r: &mut Reader) -> publish::Config {
    let brokers = r.get::<String>("kafka.brokers");
    if brokers.trim().is_empty() {
        r.mistake("kafka.brokers", "is empty; write for example \"kafka-1:9092,kafka-2:9092\"");
    }
    publish::Config {
        brokers,
        client_id: r.get("kafka.client_id"),
        publish_deadline: r.time("kafka.publish_deadline", 100 * MILLISECOND..=60 * SECOND),
        linger: r.time("kafka.linger", Duration::ZERO..=LINGER_MAX),
        compression: r.one_of("kafka.compression", &["none", "gzip", "snappy", "lz4", "zstd"]),
        queue_bytes_max: r.size("kafka.queue_bytes_max", ByteSize::mib(1)..=ByteSize::gib(2)),
        queue_records_max: r.number("kafka.queue_records_max", 1..=10_000_000),
        start_timeout: r.time("kafka.start_timeout", 100 * MILLISECOND..=300 * SECOND),
        probe_interval: r.time("kafka.probe_interval", 100 * MILLISECOND..=300 * SECOND),
        record_bytes_max: (body_bytes_max(r) + ENVELOPE_BYTES_MAX) as u64,
        properties: properties(r),
    }
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

fn topics(r: &mut Reader) -> topics::Config {
    let mut settings = BTreeMap::new();
    for (name, value) in r.table("topics.settings") {
        match value.into_string() {
            Ok(value) => drop(settings.insert(name, value)),
            Err(_) => r.mistake(&format!("topics.settings.\"{name}\""), "must be a text or a number"),
        }
    }
    topics::Config {
        create: r.get("topics.create"),
        partitions: r.number("topics.partitions", 1..=10_000),
        replication: r.number("topics.replication", 1..=100),
        settings,
    }
}

/// What stands after the prefix in the name of the dead letters' topic.
pub const DEAD_LETTER: &str = "dead-letter";

fn policy(r: &mut Reader) -> Policy {
    let routes = routes(r);
    Policy {
        apps: apps(r, &routes),
        app_webhooks: app_webhooks(r, &routes),
        retries: dedup::Config {
            window: r.time("retries.window", Duration::ZERO..=3600 * SECOND),
            entries_max: r.number("retries.entries_max", 0..=10_000_000),
        },
        dead_letter: Arc::from(format!("{}{DEAD_LETTER}", routes.prefix)),
    }
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

fn routes(r: &mut Reader) -> Routes {
    let prefix = r.get::<String>("topics.prefix");
    check_prefix(r, "topics.prefix", &prefix);
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
    Routes { prefix, own, mode: r.get("events.mode"), keys: record_keys(r) }
}

/// A prefix must leave room for the longest action's name.
fn check_prefix(r: &mut Reader, key: &str, prefix: &str) {
    let longest = APP_EVENTS.into_iter().chain(actions::names()).max_by_key(|name| name.len()).unwrap_or_default();
    if let Some(why) = bad_topic(&format!("{prefix}{longest}")) {
        r.mistake(key, why);
    }
}

fn record_keys(r: &mut Reader) -> Keys {
    let key = r.one_of("topics.key", &["plain", "hashed"]);
    let secret = r.optional_secret("topics.key_secret");
    if key == "plain" {
        return Keys::Plain;
    }
    let secret = secret.as_ref().map_or("", ExposeSecret::expose_secret);
    if secret.len() < 16 {
        r.mistake(
            "topics.key_secret",
            "is needed for topics.key = \"hashed\": 16 bytes or more, or the hashes can be guessed",
        );
    }
    Keys::hashed(secret.as_bytes())
}

/// Looks at every key, whether there is a spool or not.
fn spool(r: &mut Reader) -> Option<Spool> {
    let directory = spool_directory(r);
    let retry_min = r.time("spool.retry_min", 10 * MILLISECOND..=60 * SECOND);
    let spool = Spool {
        spool: spool::Config {
            directory: directory.clone().unwrap_or_default(),
            bytes_max: r.size("spool.bytes_max", ByteSize::mib(1)..=ByteSize::tib(1)),
            segment_bytes: r.size("spool.segment_bytes", ByteSize::kib(64)..=ByteSize::gib(1)),
            free_min: r.size("spool.free_min", ByteSize::b(0)..=ByteSize::tib(1)),
            queue_records_max: r.number("spool.queue_records_max", 1..=1_000_000),
            queue_bytes_max: r.size("spool.queue_bytes_max", ByteSize::mib(1)..=ByteSize::gib(4)),
            lock_timeout: r.time("spool.lock_timeout", Duration::ZERO..=600 * SECOND),
            switch_timeout: r.time("spool.switch_timeout", MILLISECOND..=5 * SECOND),
            failover_after: r.time("spool.failover_after", SECOND..=24 * 3600 * SECOND),
        },
        replay: replay::Config {
            records_max: r.number("spool.replay_records_max", 1..=100_000),
            bytes_max: r.size("spool.replay_bytes_max", ByteSize::kib(1)..=ByteSize::gib(1)),
            retry_min,
            retry_max: r.time("spool.retry_max", 10 * MILLISECOND..=600 * SECOND).max(retry_min),
        },
        drain_timeout: r.time("spool.drain_timeout", Duration::ZERO..=24 * 3600 * SECOND),
    };
    directory.map(|_| spool)
}

/// Where it is relative, it is so to the working directory.
fn spool_directory(r: &mut Reader) -> Option<PathBuf> {
    let directory = r.optional_text("spool.directory")?;
    let absolute = std::path::absolute(&directory);
    absolute
        .map_err(|e| r.mistake("spool.directory", &format!("is `{directory}`: {e}; leave it out for no spool")))
        .ok()
}

/// The shortest token that nobody guesses by trying.
const TOKEN_BYTES_MIN: usize = 32;

fn app_webhooks(r: &mut Reader, routes: &Routes) -> Option<Arc<App>> {
    let token = r.optional_secret("app_webhooks.token")?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let length = TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX;
    if !length.contains(&token.expose_secret().len()) || !token.expose_secret().bytes().all(legal) {
        r.mistake(
            "app_webhooks.token",
            "must be 32 to 256 of a-z A-Z 0-9 - . _ ~: it is part of a path, and all the protection there is",
        );
    }
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

fn log(r: &mut Reader) -> telemetry::Config {
    let filter = r.get::<String>("log.filter");
    if let Err(why) = telemetry::Config::check(&filter) {
        r.mistake("log.filter", &why);
    }
    telemetry::Config { format: r.get("log.format"), filter }
}

fn apps(r: &mut Reader, routes: &Routes) -> HashMap<String, Arc<App>> {
    let mut apps = HashMap::new();
    let tables = r.array("apps");
    if tables.is_empty() {
        r.mistake("apps", "is empty: give [[apps]] with a name and secret_keys, as config/default.toml shows");
    }
    for (i, table) in tables.into_iter().enumerate() {
        let app = app(r, routes, &format!("apps[{i}]"), table);
        if apps.contains_key(&app.name) {
            r.mistake(&format!("apps[{i}].name"), &format!("{} stands twice", app.name));
        }
        apps.insert(app.name.clone(), Arc::new(app));
    }
    apps
}

fn app(r: &mut Reader, routes: &Routes, place: &str, mut table: config::Map<String, config::Value>) -> App {
    let key = |name: &str| format!("{place}.{name}");
    let mut text = |name: &str| {
        let text = table.remove(name)?.into_string();
        text.map_err(|_| r.mistake(&key(name), "must be a text")).ok()
    };
    let name = text("name").unwrap_or_default();
    let topic_prefix = text("topic_prefix").unwrap_or_default();
    let api_version = text("api_version");
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !(1..=64).contains(&name.len()) || !name.bytes().all(legal) {
        r.mistake(&key("name"), "must be 1 to 64 of a-z A-Z 0-9 - _: it is part of a path");
    }
    if name == APP_WEBHOOKS {
        r.mistake(&key("name"), "is app-webhooks, the name that metrics have for [app_webhooks]; choose another");
    }
    let version = |v: &String| (1..=8).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if !api_version.as_ref().is_none_or(version) {
        r.mistake(&key("api_version"), "must be a version of LiveChat's API, such as \"3.6\"");
    }
    if !topic_prefix.is_empty() {
        check_prefix(r, &key("topic_prefix"), &format!("{topic_prefix}{}", routes.prefix));
    }
    let keys = keys(r, &key("secret_keys"), table.remove("secret_keys"));
    r.unknown(table.keys().map(|name| key(name)));
    let keyring = Keyring::new(keys.iter().map(|(name, secret)| (name.clone(), secret)));
    App { name, keyring, routing: routes.of_app(&topic_prefix, api_version) }
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
