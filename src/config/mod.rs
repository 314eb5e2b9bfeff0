//! Defaults < file < environment → a checked [`Config`], or every mistake at once, each with its key.

mod file_system;
mod read;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
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
use crate::telemetry::Format;
use crate::{budget, control, dedup, http, publish, replay, spool, telemetry, topics};
use read::{PROPERTIES, Reader, SETTINGS};

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
    /// Begins the name of every topic that the configuration does not name.
    pub topic_prefix: String,
    /// What is allowed, and probably not meant, a line each.
    pub warnings: Vec<String>,
}

/// What a command needs besides the configuration itself. Every command reports every unknown key and every wrong value;
/// secrets, and what files hold, are only looked up for those who use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Settings,
    /// What clients of Kafka need.
    Kafka,
    /// All, the secret keys of at least one app included.
    Everything,
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

/// All that is wrong with a configuration, a line each, without the values that are wrong.
#[derive(Debug, thiserror::Error)]
#[error("{}", .lines.join("\n"))]
pub struct Mistakes {
    pub lines: Vec<String>,
    /// All that is wrong is files that cannot be read now: another try may find them.
    pub may_pass: bool,
}

impl Config {
    /// Reads `file`, where one is given, and the environment over the defaults.
    ///
    /// # Errors
    /// [`Mistakes`]: all of them, so that one look is enough. None of them has a value in it.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        need: Need,
    ) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(file, environment, need)?;
        let config = build(&mut reader);
        let (config, warnings) = reader.finish(config)?;
        Ok(Self { warnings, ..config })
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
        topic_prefix: r.text("topics.prefix"),
        warnings: Vec::new(),
    };
    check_times_and_sizes(r, &config);
    check_spool(r, &config);
    check_topics(r, &config);
    check_listeners(r, &config);
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
                "max.message.bytes must be {needed} or more for server.body_bytes_max and the envelope, or have a spool.directory for dead letters"
            ),
        );
    }
    for [one, other] in colliding(policy.topics()) {
        let why = format!("{one} and {other} collide: Kafka's metrics take `.` and `_` for one; use one of them");
        r.mistake("topics", &why);
    }
}

/// An address that is bound twice. One without an IP address stands for all.
fn check_listeners(r: &mut Reader, Config { server, admin, .. }: &Config) {
    let (one, other) = (server.listener.listen, admin.listen);
    let is_same_ip = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    if one.port() != 0 && one.port() == other.port() && is_same_ip {
        r.mistake("admin.listen", "has the port of server.listen; give it another one");
    }
}

/// What the spool can hold, and where it is.
fn check_spool(r: &mut Reader, Config { spool, kafka, .. }: &Config) {
    let Some(Spool { spool, replay, .. }) = spool else { return };
    let budgets = [
        ("spool.bytes_max", spool.bytes_max),
        ("spool.dead_letters_bytes_max", spool.dead_letters_bytes_max),
        ("spool.queue_bytes_max", spool.queue_bytes_max),
    ];
    for (key, max) in budgets {
        if max < kafka.record_bytes_max {
            r.mistake(key, "is less than one event of server.body_bytes_max and its envelope (16 KiB)");
        }
    }
    if u64::from(spool.segment_bytes) > spool.bytes_max {
        r.mistake("spool.segment_bytes", "is more than spool.bytes_max: the first file would be larger than all");
    }
    if replay.retry_max < replay.retry_min {
        r.mistake("spool.retry_max", "is less than spool.retry_min");
    }
    if r.needs("spool") {
        file_system::warnings(spool).iter().for_each(|(key, why)| r.warn(key, why));
    }
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
            listen: r.address("server.listen"),
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
    Listener { listen: r.address("admin.listen"), limits, ..server.listener }
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
    let brokers = "a text of host:port, several separated by commas and without kafka:// before them";
    publish::Config {
        brokers: r.text_that("kafka.brokers", brokers, |text| text.split(',').all(is_broker)),
        client_id: r.text("kafka.client_id"),
        publish_deadline: r.time("kafka.publish_deadline", 100 * MILLISECOND..=60 * SECOND),
        linger: r.time("kafka.linger", Duration::ZERO..=LINGER_MAX),
        compression: r.choice("kafka.compression", COMPRESSIONS.map(|name| (name, name.to_owned()))),
        queue_bytes_max: r.size("kafka.queue_bytes_max", ByteSize::mib(1)..=ByteSize::gib(2)),
        queue_records_max: r.number("kafka.queue_records_max", 1..=10_000_000),
        start_timeout: r.time("kafka.start_timeout", 100 * MILLISECOND..=300 * SECOND),
        probe_interval: r.time("kafka.probe_interval", 100 * MILLISECOND..=300 * SECOND),
        record_bytes_max: (body_bytes_max(r) + ENVELOPE_BYTES_MAX) as u64,
        properties: properties(r),
    }
}

const COMPRESSIONS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

fn is_broker(text: &str) -> bool {
    let text = text.trim();
    let is_port = |port: &str| port.ends_with(']') || port.parse::<u16>().is_ok();
    let is_plain = !text.is_empty() && !text.contains("://") && !text.contains(char::is_whitespace);
    is_plain && text.rsplit_once(':').is_none_or(|(host, port)| !host.is_empty() && is_port(port))
}

fn properties(r: &mut Reader) -> Vec<(String, SecretString)> {
    let mut properties: Vec<(String, SecretString)> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (name, key) in r.names(PROPERTIES) {
        let is_same = |other: &&String| publish::canonical(other) == publish::canonical(&name);
        if let Some(other) = names.iter().find(is_same) {
            r.mistake(&key, &format!("and \"{other}\" are two names of one property; keep one of them"));
        } else if let Some(why) = publish::Config::refusal(&name) {
            r.mistake(&key, &format!("may not be set: {why}"));
        } else if let Some(value) = r.secret(&key) {
            check_property(r, &key, &name, &value);
            properties.push((name.clone(), value));
        }
        names.push(name);
    }
    properties
}

/// What librdkafka itself says of a property, and whether the file that it names can be read.
fn check_property(r: &mut Reader, key: &str, name: &str, value: &SecretString) {
    let names_file = matches!(name.rsplit('.').next(), Some("location" | "file")) && name != "ssl.engine.location";
    if let Err(why) = publish::Config::check_property(name, value) {
        r.mistake(key, &why);
    } else if names_file && value.expose_secret() != "probe" {
        r.readable(key, value);
    }
}

fn topics(r: &mut Reader) -> topics::Config {
    let mut settings = BTreeMap::new();
    for (name, key) in r.names(SETTINGS) {
        if let Some(value) = r.scalar(&key) {
            settings.insert(name, value);
        }
    }
    topics::Config {
        create: r.flag("topics.create"),
        partitions: r.number("topics.partitions", 1..=10_000),
        replication: r.number("topics.replication", 1..=100),
        check_interval: r.time("topics.check_interval", 100 * MILLISECOND..=3600 * SECOND),
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
    let prefix = r.text("topics.prefix");
    check_prefix(r, "topics.prefix", &prefix);
    let mut own = HashMap::new();
    for (action, key) in r.names("topics.actions") {
        if !actions::names().chain(APP_EVENTS).chain([UNLISTED]).any(|name| name == action) {
            r.mistake(&key, "is no action of LiveChat; `unlisted` stands for those that the relay does not know");
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
        None if is_set => Keys::Plain, // what is wrong with it was noted, or this command does not need it
        _ => {
            let why = "is needed for topics.key = \"hashed\": 16 bytes or more, or the hashes can be guessed";
            r.mistake("topics.key_secret", why);
            Keys::Plain
        }
    }
}

/// Looks at every key, whether there is a spool or not.
fn spool(r: &mut Reader) -> Option<Spool> {
    let directory = spool_directory(r);
    let spool = Spool {
        spool: spool::Config {
            directory: directory.clone().unwrap_or_default(),
            bytes_max: r.size("spool.bytes_max", ByteSize::mib(1)..=ByteSize::tib(1)),
            dead_letters_bytes_max: r.size("spool.dead_letters_bytes_max", ByteSize::mib(1)..=ByteSize::tib(1)),
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
            rate: r.number("spool.replay_rate", 0..=1_000_000),
            retry_min: r.time("spool.retry_min", 10 * MILLISECOND..=60 * SECOND),
            retry_max: r.time("spool.retry_max", 10 * MILLISECOND..=600 * SECOND),
        },
        drain_timeout: r.time("spool.drain_timeout", Duration::ZERO..=24 * 3600 * SECOND),
    };
    directory.map(|_| spool)
}

/// Where it is relative, it is so to the working directory.
fn spool_directory(r: &mut Reader) -> Option<PathBuf> {
    let directory = r.optional_text("spool.directory")?;
    let absolute = std::path::absolute(&directory);
    absolute.map_err(|_| r.mistake("spool.directory", "is empty; leave it out for no spool")).ok()
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
    let levels =
        "error, warn, info, debug or trace, perhaps with levels of modules (\"info,livechat_relay::publish=debug\")";
    telemetry::Config {
        format: r.choice("log.format", [("text", Format::Text), ("json", Format::Json)]),
        filter: r.text_that("log.filter", levels, telemetry::Config::is_filter),
    }
}

fn apps(r: &mut Reader, routes: &Routes) -> HashMap<String, Arc<App>> {
    let mut apps = HashMap::new();
    const EXAMPLE: &str = "[[apps]] with a name and secret_keys";
    let no_file = " (no configuration file is given: --config, or LIVECHAT_RELAY_CONFIG)";
    let none = format!("is empty{}: give {EXAMPLE}", if r.has_file() { "" } else { no_file });
    let is_needed = r.needs("apps");
    let count = r.count("apps", EXAMPLE, is_needed.then_some(&*none));
    for place in (0..count).map(|i| format!("apps[{i}]")) {
        let app = app(r, routes, &place);
        let name = app.name.clone();
        if apps.insert(name.clone(), Arc::new(app)).is_some() && !name.is_empty() {
            r.mistake(&format!("{place}.name"), "is the name of an app before it");
        }
    }
    apps
}

fn app(r: &mut Reader, routes: &Routes, place: &str) -> App {
    let key = |name: &str| format!("{place}.{name}");
    let name = r.optional_text(&key("name")).unwrap_or_default();
    let topic_prefix = r.optional_text(&key("topic_prefix")).unwrap_or_default();
    let api_version = r.optional_text(&key("api_version"));
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
    let keys = keys(r, &key("secret_keys"));
    let keyring = Keyring::new(keys.iter().map(|(name, secret)| (name.clone(), secret)));
    App { name, keyring, routing: routes.of_app(&topic_prefix, api_version) }
}

/// With fewer bytes a key can be guessed, or might be with patience.
const KEY_BYTES: (usize, usize) = (8, 16);

fn keys(r: &mut Reader, place: &str) -> Vec<(String, SecretString)> {
    const EXAMPLE: &str = "[{ name = \"2026-11\", file = \"/run/secrets/livechat\" }]";
    let count = r.count(place, EXAMPLE, Some(&format!("needs at least one key, such as {EXAMPLE}")));
    let (mut names, mut keys) = (Vec::new(), Vec::<(String, SecretString)>::new());
    for key in (0..count).map(|i| format!("{place}[{i}]")) {
        let name_key = format!("{key}.name");
        let name = r.optional_text(&name_key).unwrap_or_default();
        if !(1..=64).contains(&name.len()) || name.contains(char::is_control) {
            r.mistake(&name_key, "must be a text of 1 to 64 bytes: metrics tell the keys apart by it");
        } else if names.contains(&name) {
            r.mistake(&name_key, "is the name of a key before it");
        }
        names.push(name.clone());
        let Some(secret) = r.secret(&key) else { continue };
        let bytes = secret.expose_secret().len();
        if bytes < KEY_BYTES.0 {
            r.mistake(&key, &format!("has fewer than {} bytes: strangers could guess it", KEY_BYTES.0));
        } else if bytes < KEY_BYTES.1 {
            r.warn(&key, &format!("has fewer than {} bytes; a longer key is harder to guess", KEY_BYTES.1));
        }
        if keys.iter().any(|(_, other)| other.expose_secret() == secret.expose_secret()) {
            r.mistake(&key, "is the same key as one before it");
        }
        keys.push((name, secret));
    }
    keys
}

#[cfg(test)]
mod tests;
