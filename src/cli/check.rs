//! `check`: everything that `serve` would stumble over, found before it does, step by step.

mod request;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;

use super::access::{running, unexpected};
use super::print::{self, out};
use super::reach::reach;
use super::{Failure, Source, webhooks};
use crate::acme;
use crate::config::{self, Config, Mistakes, Need};
use crate::control::{Answer, Reloaded, Request};
use crate::event::{Key, Validity};
use crate::http::tls::Certificate;
use crate::publish::{self, Publisher};
use crate::relay::Notice;
use crate::shutdown::Shutdown;
use crate::spool::{Health, Spool, Unusable};
use crate::topics::{Absent, Broker, Cluster, MIN_IN_SYNC, Reason, Topics, names};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Check the configuration, the secrets and the spool only, without Kafka
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    request: request::Request,
    /// How long all of it may take
    #[arg(long, default_value = "30s", value_parser = super::send::duration, value_name = "TIME")]
    timeout: Duration,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// It works, and may be not what is wanted.
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    detail: String,
}

/// What was found until now. Text is printed as it is found, JSON at the end.
struct Report {
    is_json: bool,
    steps: Mutex<Steps>,
}

#[derive(Default)]
struct Steps {
    /// What is looked at.
    current: &'static str,
    findings: Vec<Finding>,
    /// Why text was not printed.
    unprinted: Option<Failure>,
    is_closed: bool,
}

impl Report {
    fn new(is_json: bool) -> Self {
        Self { is_json, steps: Mutex::default() }
    }

    fn steps<T>(&self, act: impl FnOnce(&mut Steps) -> T) -> T {
        act(&mut self.steps.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, check: &'static str) {
        self.steps(|steps| steps.current = check);
    }

    fn add(&self, check: &'static str, status: Status, detail: String) {
        self.steps(|steps| {
            if steps.is_closed {
                return; // it was too late
            }
            let finding = Finding { check, status, detail };
            if !self.is_json && steps.unprinted.is_none() {
                steps.unprinted = finding.print().err();
            }
            steps.findings.push(finding);
        });
    }

    fn ok(&self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Status::Ok, detail.into());
    }

    fn warn(&self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Status::Warn, detail.into());
    }

    fn fail(&self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Status::Fail, detail.into());
    }
}

impl Finding {
    fn print(&self) -> Result<(), Failure> {
        let (mark, style) = match self.status {
            Status::Ok => ("ok  ", print::GOOD),
            Status::Warn => ("warn", print::WARNING),
            Status::Fail => ("FAIL", print::ERROR),
        };
        let detail = hanging(&print::visible(&self.detail));
        out(format_args!("{style}{mark}{style:#}  {:<14} {detail}", self.check))
    }
}

/// Where details begin, and where lines end.
const INDENT: usize = 21;
const WIDTH: usize = 80;

/// Lines of words, all but the first indented.
fn hanging(text: &str) -> String {
    let (mut lines, mut column) = (String::new(), INDENT);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > INDENT && column + 1 + length > WIDTH {
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', INDENT));
            column = INDENT;
        } else if column > INDENT {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (report, timeout) = (Arc::new(Report::new(arguments.json)), arguments.timeout);
    // In a task of its own, which may block: the time limit holds all the same.
    let looked = tokio::time::timeout(timeout, tokio::spawn(look(arguments, Arc::clone(&report)))).await;
    let is_usage = if let Ok(looked) = looked {
        looked.map_err(Failure::failed)?
    } else {
        let current = report.steps(|steps| steps.current);
        report.fail("time", format!("not done within {timeout:?}, while checking: {current}; see --timeout"));
        false
    };
    let Steps { findings, unprinted, .. } = report.steps(|steps| {
        let closed = Steps { is_closed: true, ..Steps::default() };
        std::mem::replace(steps, closed)
    });
    let failed = findings.iter().filter(|finding| finding.status == Status::Fail).count();
    let unprinted = match unprinted {
        None if report.is_json => {
            out(format_args!("{:#}", serde_json::json!({ "ok": failed == 0, "findings": findings }))).err()
        }
        unprinted => unprinted,
    };
    // A reader that has seen enough still gets the exit code.
    if let Some(failure @ Failure::Failed(_)) = unprinted {
        return Err(failure);
    }
    match failed {
        0 => Ok(()),
        n if is_usage => Err(Failure::Usage(format!("mistakes in the configuration: {n}"))),
        n => Err(Failure::Failed(format!("{n} of {} checks failed", findings.len()))),
    }
}

/// Whether the configuration is wrong, which is why nothing else was looked at.
async fn look(arguments: Arguments, report: Arc<Report>) -> bool {
    report.begin("configuration");
    let config = match tokio::task::block_in_place(|| arguments.source.read(Need::Everything)) {
        Ok(config) => config,
        Err(Mistakes { lines, may_pass, socket }) => {
            lines.into_iter().for_each(|mistake| report.fail("configuration", mistake));
            running_relay(socket.as_deref(), &report).await;
            return !may_pass;
        }
    };
    report.ok("configuration", format!("complete; webhooks on {}", config.server.listener.listen));
    if arguments.request.is_given() {
        tokio::task::block_in_place(|| arguments.request.look(&config, &report));
        return false;
    }
    config.warnings.iter().for_each(|warning| report.warn("configuration", warning));
    webhooks::unfinished_rotations(&config, arguments.source.config.as_deref())
        .for_each(|rotation| report.warn("livechat", rotation));
    let mut apps: Vec<_> = config.policy.apps.values().collect();
    apps.sort_by(|one, other| one.name.cmp(&other.name));
    for app in apps {
        let keys: Vec<_> = app.keyring.keys().map(described).collect();
        report.ok("app", format!("{}: secret keys {}", app.name, keys.join(", ")));
    }
    let now = Timestamp::now();
    for rule in config.policy.rules.iter().filter(|rule| rule.is_active(now)) {
        report.ok("rule", format!("{}: {rule}", rule.name));
    }
    config.ignored.iter().for_each(|ignored| report.ok("app", ignored));
    for Notice { text, is_failure } in config.policy.notices(now) {
        report.add("dates", if is_failure { Status::Fail } else { Status::Warn }, text);
    }
    certificates(&config, &report);
    report.begin("running relay");
    running_relay(config.control.socket.as_deref(), &report).await;
    report.begin("spool");
    match spool(config.spool.as_ref()).await {
        Ok(detail) => report.ok("spool", detail),
        Err(why) => report.fail("spool", why),
    }
    let usable = if arguments.offline {
        config.kafka.producer().create_native_config().map(drop).map_err(publish::Unusable::from)
    } else {
        let new = || Publisher::new(config.kafka.clone(), Arc::default(), Shutdown::default());
        tokio::task::block_in_place(|| new().map(drop))
    };
    match usable.map_err(Failure::from) {
        Err(failure) => {
            report.fail("kafka", failure.to_string());
            return matches!(failure, Failure::Usage(_)); // no client can be made of it, whether Kafka is there or not
        }
        Ok(()) if arguments.offline => {}
        Ok(()) => Kafka { config: &config, report: &report }.look().await,
    }
    false
}

/// A secret key's name and dates.
fn described(key: &Key) -> String {
    let Validity { not_before, not_after } = key.validity();
    let dates = [("from", not_before), ("until", not_after)];
    let dates: Vec<_> = dates.iter().filter_map(|(word, date)| Some(format!("{word} {}", (*date)?))).collect();
    if dates.is_empty() { key.name().to_owned() } else { format!("{} ({})", key.name(), dates.join(", ")) }
}

/// Where a relay runs: whether it does so with the configuration as it is now. Its file and its environment need not be those of this
/// command.
async fn running_relay(socket: Option<&Path>, report: &Report) {
    const CHECK: &str = "running relay";
    let Some(socket) = socket else { return };
    let Ok(access) = running(socket).await else { return };
    let Reloaded { file, changed, needs_restart, warnings, mistakes, .. } =
        match access.ask(Request::Reload { dry_run: true }, |_| Ok(())).await {
            Ok(Answer::Reloaded(reloaded)) => reloaded,
            Ok(other) => return report.warn(CHECK, unexpected(&other).to_string()),
            Err(failure) => return report.warn(CHECK, failure.to_string()),
        };
    let file = file.map_or("the environment".to_owned(), |file| file.display().to_string());
    if !mistakes.is_empty() {
        let mistakes = mistakes.join("; ");
        return report.fail(CHECK, format!("it cannot load {file}, and keeps its former configuration: {mistakes}"));
    }
    warnings.into_iter().for_each(|warning| report.warn(CHECK, warning));
    if !changed.is_empty() {
        let changed = changed.join(", ");
        report.warn(CHECK, format!("it has not loaded the changes in {file}; `livechat-relay reload` does: {changed}"));
    }
    if !needs_restart.is_empty() {
        let needs_restart = needs_restart.join(", ");
        report.warn(CHECK, format!("changes in {file} need a restart: {needs_restart}"));
    }
    if changed.is_empty() && needs_restart.is_empty() {
        report.ok(CHECK, format!("runs with {file} as it is"));
    }
}

/// For whom each TLS certificate is, and until when.
fn certificates(config: &Config, report: &Report) {
    report.begin("certificates");
    let now = Timestamp::now();
    let of = |certificate: &Certificate| {
        let Certificate { names, not_after, source, .. } = certificate;
        let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
        format!("{names}: {} days left, until {not_after} ({source})", certificate.days_left(now))
    };
    let listeners = [&config.server.listener.tls, &config.admin.tls];
    for certificate in listeners.into_iter().flatten().flat_map(|tls| &tls.certificates) {
        match certificate.warning(now) {
            Some(warning) if certificate.is_invalid(now) => {
                report.fail("certificate", format!("{}; it {warning}", of(certificate)));
            }
            // Warned of with the configuration.
            _ => report.ok("certificate", of(certificate)),
        }
    }
    let Some(acme) = &config.server.acme else { return };
    if config.server.listener.listen.port() != acme::PORT {
        report.warn("acme", "the authority connects to port 443 of each domain, and server.listen has another: forward 443 to it, or let systemd pass on a socket that listens there");
    }
    let domains = acme.domains.join(", ");
    match acme::cached(acme) {
        Ok(None) => report.ok("acme", format!("{domains}: no certificate yet; the first start orders one")),
        Ok(Some(certificate)) if now < certificate.renewal_due() => {
            let due = certificate.renewal_due();
            report.ok("acme", format!("{}; renewed from {due} on", of(&certificate)));
        }
        Ok(Some(certificate)) if certificate.is_invalid(now) => {
            report.fail(
                "acme",
                format!(
                    "{}; it is not valid now, and a relay that runs has not renewed it: its log says why",
                    of(&certificate)
                ),
            );
        }
        Ok(Some(certificate)) => {
            report.warn(
                "acme",
                format!(
                    "{}; its renewal is due: a relay that runs renews it, or says in its log why not",
                    of(&certificate)
                ),
            );
        }
        Err(why) => report.fail("acme", why),
    }
}

/// How long a disk may take to show the spool.
const SPOOL_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether the spool can be opened, without making one that is not there.
async fn spool(config: Option<&config::Spool>) -> Result<String, String> {
    let Some(config) = config else {
        return Ok("none: while Kafka is away, webhooks are answered 503 (spool.directory)".to_owned());
    };
    let config = config.spool.clone();
    let directory = config.directory.clone();
    if !directory.exists() {
        return can_be_made(&directory);
    }
    let looked = tokio::task::spawn_blocking(move || look_at_spool(config));
    let late = |_| format!("{} did not answer within {SPOOL_TIMEOUT:?}: is its disk well?", directory.display());
    tokio::time::timeout(SPOOL_TIMEOUT, looked).await.map_err(late)?.map_err(|e| e.to_string())?
}

fn can_be_made(directory: &Path) -> Result<String, String> {
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let writable = rustix::fs::access(existing, access);
    let cannot = |e| format!("{} cannot be written to: {e}; see spool.directory", existing.display());
    writable.map(|()| format!("{} is made by the first start", directory.display())).map_err(cannot)
}

fn look_at_spool(config: crate::spool::Config) -> Result<String, String> {
    let directory = config.directory.display().to_string();
    let spool = match Spool::look(config, Arc::default()) {
        Err(Unusable::Locked { .. }) => return Ok(format!("{directory} is in use by a relay")),
        spool => spool.map_err(|unusable| unusable.to_string())?,
    };
    let (health, events) = spool.lanes(|lanes| (lanes.health().clone(), lanes.total().records));
    spool.close();
    match health {
        Health::Accepting => Ok(format!("{directory} accepts; {events} events wait in it")),
        Health::Full(why) | Health::Failed(why) => Err(format!("{directory} accepts nothing: {why}")),
    }
}

/// What is asked of the brokers.
struct Kafka<'a> {
    config: &'a Config,
    report: &'a Report,
}

/// How many brokers are tried at once: each takes a client with threads of its own.
const AT_ONCE: usize = 16;

/// Topics that are there or will be created, with a setting of each.
type Settings = Vec<(Arc<str>, i64)>;

impl Kafka<'_> {
    async fn look(&self) {
        let kafka = &self.config.kafka;
        self.report.begin("brokers");
        if !self.brokers().await {
            return;
        }
        self.report.begin("topics");
        let cluster = Topics::new(self.config.policy.topics(), self.config.topics.clone(), kafka)
            .map_err(|unusable| unusable.to_string())
            .and_then(|topics| {
                let cluster = tokio::task::block_in_place(|| topics.look());
                Ok((cluster.map_err(|error| error.to_string())?, topics))
            });
        match cluster {
            Ok((cluster, topics)) => self.topics(&topics, cluster).await,
            Err(error) => self.report.fail("topics", format!("the brokers do not say which there are: {error}")),
        }
    }

    /// Whether some broker can be reached at the address that it advertises, where `serve` will look for it. Each is tried.
    async fn brokers(&self) -> bool {
        let kafka = &self.config.kafka;
        let dead_letter = &self.config.policy.dead_letter;
        let found = match tokio::task::block_in_place(|| reach(kafka, &kafka.brokers, dead_letter)) {
            Ok(found) => found,
            Err(why) => {
                self.report.fail("brokers", format!("no broker answers at {}: {why}", kafka.brokers));
                return false;
            }
        };
        let count = found.len();
        let asked = found.into_iter().map(async |Broker { id, address }| {
            let (kafka, topic, at) = (kafka.clone(), Arc::clone(dead_letter), address.clone());
            let reached = tokio::task::spawn_blocking(move || reach(&kafka, &at, &topic).map(drop)).await;
            let reached = reached.unwrap_or_else(|panic| Err(panic.to_string()));
            reached.err().map(|why| format!("broker {id} at {address}: {why}"))
        });
        let asked = stream::iter(asked).buffered(AT_ONCE).collect::<Vec<_>>();
        let unreachable: Vec<_> = asked.await.into_iter().flatten().collect();
        if unreachable.is_empty() {
            self.report.ok("brokers", format!("{count} at {}", kafka.brokers));
        } else {
            self.report.fail(
                "brokers",
                format!(
                    "{} answers, but {} of {count} cannot be reached at the address that it advertises to clients: {}. Set advertised.listeners of the broker to an address that the relay can reach",
                    kafka.brokers,
                    unreachable.len(),
                    unreachable.join("; ")
                ),
            );
        }
        unreachable.len() < count
    }

    async fn topics(&self, topics: &Topics, Cluster { brokers, present, missing }: Cluster) {
        let there: Vec<_> = present.iter().map(|topic| Arc::clone(&topic.name)).collect();
        let new = topics.replicas(&brokers).await;
        let (absent, to_create) = if self.config.topics.create {
            let (_, refused) =
                if missing.is_empty() { Default::default() } else { topics.create(&missing, new, true).await };
            (refused, missing)
        } else if missing.is_empty() {
            Default::default()
        } else {
            (vec![Absent { topics: missing, reason: Reason::CreateIsOff }], Vec::new())
        };
        self.absent(absent, to_create.len());

        self.report.begin("settings");
        let described = topics.describe(&there).await;
        let planned = |name: &str| self.config.topics.settings.get(name).and_then(|value| value.parse::<i64>().ok());
        let values = |name: &str| -> Settings {
            let planned = planned(name);
            described
                .numbers(name)
                .chain(to_create.iter().filter_map(|topic| Some((Arc::clone(topic), planned?))))
                .collect()
        };
        if brokers.len() > 1 {
            let planned =
                |count: Option<i64>| to_create.iter().filter_map(move |topic| Some((Arc::clone(topic), count?)));
            let replicas: Vec<_> =
                present.into_iter().map(|topic| (topic.name, topic.replicas)).chain(planned(new.count)).collect();
            let in_sync = described.numbers(MIN_IN_SYNC).chain(planned(new.min_in_sync)).collect();
            let is_unknown = !to_create.is_empty() && (new.count.is_none() || new.min_in_sync.is_none());
            self.replicas(brokers.len(), &replicas, in_sync, is_unknown);
        }
        self.retention(values("retention.ms"));
        match (topics.check_sizes(values("max.message.bytes")), described.unread) {
            (Err(too_small), _) if self.config.spool.is_some() => {
                self.report.warn("sizes", format!("{too_small}; what is too large becomes a dead letter"));
            }
            (Err(too_small), _) => self.report.fail("sizes", too_small.to_string()),
            (Ok(()), Some(why)) => {
                self.report.warn("sizes", format!("unknown: the brokers do not show the topics' settings ({why})"));
            }
            (Ok(()), None) => self.report.ok("sizes", "every topic takes the largest event"),
        }
    }

    /// Topics that are missing and will stay so, and how many `serve` would create.
    fn absent(&self, absent: Vec<Absent>, to_create: usize) {
        let dead_letter = &self.config.policy.dead_letter;
        let mut is_complete = true;
        for Absent { mut topics, reason } in absent {
            // Records that their topic never takes have another place to go to.
            if reason == Reason::CreateIsOff && topics.contains(dead_letter) {
                topics.retain(|topic| topic != dead_letter);
                let instead = if self.config.spool.is_some() { "are kept on the disk" } else { "are answered 503" };
                self.report.warn("dead letters", format!("the topic {dead_letter} is missing: they {instead}"));
            }
            if !topics.is_empty() {
                is_complete = false;
                self.report.fail("topics", format!("missing: {} ({reason}); {}", names(&topics), reason.remedy()));
            }
        }
        if is_complete {
            let detail =
                if to_create > 0 { format!("{to_create} missing; serve creates them") } else { "all there".to_owned() };
            self.report.ok("topics", detail);
        }
    }

    /// On a cluster of several brokers: whether an event survives the loss of one of them.
    fn replicas(&self, brokers: usize, replicas: &[(Arc<str>, i64)], in_sync: Settings, is_unknown: bool) {
        let single: Vec<_> = replicas.iter().filter(|(_, replicas)| *replicas == 1).map(|(topic, _)| topic).collect();
        let alone: Vec<_> = in_sync.into_iter().filter(|(_, min)| *min < 2).map(|(topic, _)| topic).collect();
        let alone: Vec<_> = alone.iter().filter(|topic| !single.contains(topic)).collect();
        if !single.is_empty() {
            self.report.warn(
                "replicas",
                format!(
                    "one, though there are {brokers} brokers: {}; their events are lost with that broker's disk. Set topics.replication = {}; topics that are there keep what they have",
                    names(&single),
                    brokers.min(3)
                ),
            );
        }
        if !alone.is_empty() {
            self.report.warn(
                "replicas",
                format!(
                    "min.insync.replicas is 1: {}; one broker alone may ack an event and be lost. With three replicas set it to 2: topics that are there keep what they have",
                    names(&alone)
                ),
            );
        }
        if is_unknown {
            let why =
                "of new topics the brokers decide, and do not show how; may the relay DescribeConfigs of the cluster?";
            self.report.warn("replicas", why.to_owned());
        }
        if single.is_empty() && alone.is_empty() && !is_unknown {
            self.report.ok("replicas", "two brokers or more have an event when it is acked");
        }
    }

    fn retention(&self, retention_ms: Settings) {
        const SHORT: Duration = Duration::from_secs(3 * 24 * 3600);
        let is_short = |ms: i64| u64::try_from(ms).is_ok_and(|ms| Duration::from_millis(ms) < SHORT);
        let short: Vec<_> = retention_ms.into_iter().filter(|(_, ms)| is_short(*ms)).map(|(topic, _)| topic).collect();
        if !short.is_empty() {
            self.report.warn(
                "retention",
                format!(
                    "less than three days (retention.ms): {}; consumers that are away for longer miss events",
                    names(&short)
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_end_at_the_edge_and_hang_below_their_beginning() {
        let text = hanging("a name of a host that is long enough: kafka-1.example.com:9092, and words");
        assert_eq!(
            text,
            "a name of a host that is long enough:\n                     kafka-1.example.com:9092, and words"
        );
        let lines = hanging(&"word ".repeat(100));
        assert!(lines.lines().skip(1).all(|line| line.starts_with(&" ".repeat(INDENT)) && line.len() <= WIDTH));
        let long = "x".repeat(200);
        assert_eq!(hanging(&long), long, "a word is not broken: it may be copied");
    }
}
