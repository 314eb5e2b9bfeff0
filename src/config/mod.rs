//! Defaults < file < environment → a checked [`Config`], or every mistake at once, each with its key.

mod declared;
mod file_system;
mod flat;
mod kafka;
mod keys;
mod livechat;
mod origins;
mod policy;
mod read;
mod reference;
mod reload;
mod rules;
mod schema;
mod server;
mod shape;
mod show;
mod tls;
mod webhooks;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use crate::budget::{REQUEST_BYTES, SMALL_BODY_BYTES_MAX};
use crate::event::Token;
use crate::relay::Policy;
use crate::telemetry::Format;
use crate::{acme, budget, control, http, publish, replay, spool, telemetry, topics};
pub use flat::nearest;
use kafka::{kafka, topics};
use livechat::livechat;
pub use policy::DEAD_LETTER;
use policy::{colliding, policy};
use read::{Reader, Remarks};
use reload::Sources;
pub use reload::{Digests, Kept, Reloaded};
pub use schema::schema;
use server::{admin, admin_token, check_listeners, control, server};
pub use show::Source;

/// `config/default.toml`: every key, its default and its reason.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The whole configuration, each part in the type of the module that uses it.
pub struct Config {
    pub server: Server,
    pub admin: Listener,
    /// What who scrapes `/metrics` has to send as bearer token, if anything.
    pub admin_token: Option<Token>,
    pub control: control::Config,
    pub kafka: publish::Config,
    pub topics: topics::Config,
    /// Absent: events are answered 503 while Kafka is unavailable.
    pub spool: Option<Spool>,
    pub log: telemetry::Config,
    pub reload: Reload,
    pub policy: Arc<Policy>,
    pub livechat: crate::livechat::Config,
    /// Begins the name of every topic that the configuration does not name.
    pub topic_prefix: String,
    /// What is allowed, and probably not meant, a line each.
    pub warnings: Vec<String>,
    pub sources: Sources,
    /// What was found in directories of keys and not read, a line for each directory.
    pub ignored: Vec<String>,
}

/// What a command needs besides the configuration itself. Every command reports every unknown key and every wrong value;
/// secrets, and what files hold, are only looked up for those who use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Settings,
    /// What clients of Kafka need.
    Kafka,
    /// What calls to LiveChat need: credentials.
    LiveChat,
    /// What registering webhooks needs: the secret keys, too.
    Registration,
    /// All, the secret keys of at least one app included.
    Everything,
    /// What a running process takes without a restart.
    Live(Kept),
}

/// `[reload]`.
#[derive(Clone, Copy, Debug)]
pub struct Reload {
    /// From one look at the sources to the next; zero: there are none but those that are asked for.
    pub check_interval: Duration,
    /// How long a look may take.
    pub timeout: Duration,
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
    pub tls: Option<http::tls::Config>,
    /// Where it also listens, without TLS.
    pub plain: Option<SocketAddr>,
}

/// `[server]`.
#[derive(Clone, Debug)]
pub struct Server {
    pub listener: Listener,
    /// How its certificate is ordered and renewed, where no file has it.
    pub acme: Option<acme::Config>,
    pub webhooks: http::webhook::Config,
    pub clients: http::client::Config,
    pub budget: budget::Config,
    pub drain_delay: Duration,
    pub drain_timeout: Duration,
}

/// All that is wrong with a configuration, a line each: where it stands, the key, what is wrong, and what is allowed.
#[derive(Debug, Default, thiserror::Error)]
#[error("{}", .lines.join("\n"))]
pub struct Mistakes {
    pub lines: Vec<String>,
    /// All that is wrong is files that cannot be read now: another try may find them.
    pub may_pass: bool,
    /// Where a relay that runs may be asked, if so much can be read.
    pub socket: Option<PathBuf>,
    /// How they are to be logged, if so much can be read.
    pub log: Option<telemetry::Config>,
}

#[cfg(test)]
impl Mistakes {
    /// What is wrong, without the file, whose path is absolute, and the line.
    pub fn without_places(&self) -> Vec<String> {
        let without = |line: &String| match line.split_once(": ") {
            Some((place, rest)) if place.starts_with('/') => rest.to_owned(),
            _ => line.clone(),
        };
        self.lines.iter().map(without).collect()
    }
}

impl Config {
    /// Reads `file`, where one is given, and the environment over the defaults.
    ///
    /// # Errors
    /// [`Mistakes`]: all of them, so that one look is enough. None of them has a value in it that may be a secret.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        need: Need,
    ) -> Result<Self, Mistakes> {
        let environment: BTreeMap<_, _> = environment.into_iter().collect();
        let without_file = |mistakes| {
            let log = Reader::new(None, environment.clone(), need).ok().map(|mut reader| log(&mut reader));
            Mistakes { log, ..mistakes }
        };
        let mut config = Self::read(Reader::new(file, environment.clone(), need).map_err(without_file)?)?;
        // Not at a reload: a disk that hangs would keep a thread each time.
        if need == Need::Everything
            && let Some(spool) = &config.spool
        {
            let warnings = file_system::warnings(&spool.spool);
            config.warnings.extend(warnings.iter().map(|(key, why)| format!("{key}: {why}")));
        }
        Ok(config)
    }

    fn read(mut reader: Reader) -> Result<Self, Mistakes> {
        let config = build(&mut reader);
        let finished = reader.finish();
        let as_far_as_read =
            |mistakes| Mistakes { socket: config.control.socket.clone(), log: Some(config.log.clone()), ..mistakes };
        let (Remarks { warnings, ignored }, sources) = finished.map_err(as_far_as_read)?;
        Ok(Self { warnings, sources, ignored, ..config })
    }
}

/// Reads every key. A default stands for what is wrong, so that all mistakes are found.
fn build(r: &mut Reader) -> Config {
    let ((server, handshakes), spool, (policy, apps)) = (server(r), spool(r), policy(r));
    let config = Config {
        admin: admin(r, &server, handshakes),
        admin_token: admin_token(r),
        control: control(r, spool.as_ref()),
        server,
        kafka: kafka(r),
        topics: topics(r),
        spool,
        log: log(r),
        reload: Reload {
            check_interval: r.time("reload.check_interval", Duration::ZERO..=3600 * SECOND),
            timeout: r.time("reload.timeout", 100 * MILLISECOND..=20 * SECOND),
        },
        policy,
        livechat: livechat(r, &apps),
        topic_prefix: r.text("topics.prefix"),
        warnings: Vec::new(),
        sources: Sources::default(),
        ignored: Vec::new(),
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
        r.mistake(key, "is less than server.body_bytes_max plus 1 KiB: the largest body would never be accepted");
    }
    if kafka.record_bytes_max > kafka.queue_bytes_max {
        r.mistake("kafka.queue_bytes_max", "is less than the largest record: server.body_bytes_max plus 16 KiB");
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
                "max.message.bytes must be {needed} or more (server.body_bytes_max plus 16 KiB), unless spool.directory is set, which stores dead letters"
            ),
        );
    }
    for [one, other] in colliding(policy.topics()) {
        let why =
            format!("{one} and {other} collide: Kafka's metrics do not distinguish `.` and `_`; rename one of them");
        r.mistake("topics", &why);
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
            r.mistake(key, "is less than the largest event: server.body_bytes_max plus 16 KiB");
        }
    }
    if u64::from(spool.segment_bytes) > spool.bytes_max {
        r.mistake("spool.segment_bytes", "is more than spool.bytes_max: the first file would exceed it");
    }
    if replay.retry_max < replay.retry_min {
        r.mistake("spool.retry_max", "is less than spool.retry_min");
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const LINGER_MAX: Duration = SECOND;

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
    absolute.map_err(|_| r.mistake("spool.directory", "is empty; remove it to run without a spool")).ok()
}

fn log(r: &mut Reader) -> telemetry::Config {
    telemetry::Config {
        format: r.choice("log.format", [("text", Format::Text), ("json", Format::Json)]),
        filter: r.text_that("log.filter", telemetry::Config::FILTERS, telemetry::Config::is_filter),
        temporary_max: r.time("log.temporary_max", SECOND..=7 * 24 * 3600 * SECOND),
    }
}

#[cfg(test)]
mod tests;
