//! `check`: checks everything that `serve` needs, step by step.

mod kafka;
mod livechat;
mod ports;
mod request;

use std::path::{Path, PathBuf, absolute};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use super::access::{running, unexpected};
use super::items::count;
use super::print::{self, out};
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
use kafka::Kafka;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Check only the configuration, the secrets and the spool, without Kafka
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    request: request::Request,
    /// Time limit for all checks together
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
    /// What the commands in details name.
    config_path: Option<PathBuf>,
    steps: Mutex<Steps>,
    /// On a terminal, what is looked at: brokers may take their time.
    spinner: ProgressBar,
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
    fn new(arguments: &Arguments) -> Self {
        let (is_json, config_path) = (arguments.json, arguments.source.config.clone());
        let spinner = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self { is_json, config_path, steps: Mutex::default(), spinner }
    }

    fn steps<T>(&self, act: impl FnOnce(&mut Steps) -> T) -> T {
        act(&mut self.steps.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, check: &'static str) {
        self.spinner.set_message(format!("checking: {check}"));
        self.steps(|steps| steps.current = check);
    }

    fn add(&self, check: &'static str, status: Status, detail: String) {
        self.steps(|steps| {
            if steps.is_closed {
                return; // it was too late
            }
            let detail = print::with_commands(self.config_path.as_deref(), &detail);
            let finding = Finding { check, status, detail };
            if !self.is_json && steps.unprinted.is_none() {
                let is_another = steps.findings.last().is_some_and(Finding::is_mistake);
                steps.unprinted = self.spinner.suspend(|| finding.print(is_another)).err();
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
    /// Whether it is one of the mistakes in the configuration, of which there may be many.
    fn is_mistake(&self) -> bool {
        self.check == CONFIGURATION && self.status == Status::Fail
    }

    /// `is_another`: a mistake that follows another one, which has the heading.
    fn print(&self, is_another: bool) -> Result<(), Failure> {
        let (mark, style) = match self.status {
            Status::Ok => ("ok  ", print::GOOD),
            Status::Warn => ("warn", print::WARNING),
            Status::Fail => ("FAIL", print::ERROR),
        };
        let detail = print::visible(&self.detail);
        if !self.is_mistake() {
            let detail = print::wrapped(&detail, INDENT);
            return out(format_args!("{style}{mark}{style:#}  {:<14} {detail}", self.check));
        }
        if !is_another {
            out(format_args!("{style}{mark}{style:#}  {}", self.check))?;
        }
        out(format_args!("  {}", print::wrapped(&detail, 4)))
    }
}

/// What follows from findings none of which is a failure.
fn verdict(findings: &[Finding], is_offline: bool) -> String {
    let (style, warnings) = match findings.iter().filter(|finding| finding.status == Status::Warn).count() {
        0 => (print::GOOD, "no warnings".to_owned()),
        some => (print::WARNING, count(some as u64, "warning")),
    };
    let checks = count(findings.len() as u64, "check");
    let without = if is_offline { ", Kafka not asked" } else { "" };
    format!("{style}ready{style:#}: {checks}, {warnings}{without}")
}

/// Where details begin.
const INDENT: usize = 21;

/// The step without which there is no other.
const CONFIGURATION: &str = "configuration";

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (report, timeout) = (Arc::new(Report::new(&arguments)), arguments.timeout);
    let (is_offline, is_of_request) = (arguments.offline, arguments.request.is_given());
    let checked = shown(arguments.source.config.as_deref());
    // In a task of its own, which may block: the time limit holds all the same.
    let looked = tokio::time::timeout(timeout, tokio::spawn(look(arguments, Arc::clone(&report)))).await;
    let is_usage = if let Ok(looked) = looked {
        looked.map_err(Failure::failed)?
    } else {
        let current = report.steps(|steps| steps.current);
        report.fail("time", format!("not done within {timeout:?}, while checking: {current}; see --timeout"));
        false
    };
    report.spinner.finish_and_clear();
    let Steps { findings, unprinted, .. } = report.steps(|steps| {
        let closed = Steps { is_closed: true, ..Steps::default() };
        std::mem::replace(steps, closed)
    });
    let fails = |finding: &&Finding| finding.status == Status::Fail;
    let failed = findings.iter().filter(fails).count();
    let is_configuration = findings.iter().filter(fails).all(|finding| finding.check == CONFIGURATION);
    let unprinted = match unprinted {
        None if report.is_json => {
            out(format_args!("{:#}", serde_json::json!({ "ok": failed == 0, "findings": findings }))).err()
        }
        None if failed == 0 && !is_of_request => out(format_args!("{}", verdict(&findings, is_offline))).err(),
        unprinted => unprinted,
    };
    // A reader that has seen enough still gets the exit code.
    if let Some(failure @ Failure::Failed(_)) = unprinted {
        return Err(failure);
    }
    if failed == 0 {
        return Ok(());
    }
    let why = if is_configuration {
        format!("{} in {checked}", count(failed as u64, "problem"))
    } else {
        format!("{failed} of {} failed", count(findings.len() as u64, "check"))
    };
    Err(if is_usage { Failure::Usage(why) } else { Failure::Failed(why) })
}

/// Whether the configuration is wrong, which is why nothing else was looked at.
async fn look(arguments: Arguments, report: Arc<Report>) -> bool {
    let file = arguments.source.config.as_deref();
    report.begin(CONFIGURATION);
    let config = match tokio::task::block_in_place(|| arguments.source.read(Need::Everything)) {
        Ok(config) => config,
        Err(Mistakes { lines, may_pass, socket, .. }) => {
            lines.into_iter().for_each(|mistake| report.fail(CONFIGURATION, mistake));
            running_relay(file, socket.as_deref(), &report).await;
            return !may_pass;
        }
    };
    report.ok(CONFIGURATION, format!("{} is complete; webhooks on {}", shown(file), config.server.listener.listen));
    if arguments.request.is_given() {
        tokio::task::block_in_place(|| arguments.request.look(&config, &report));
        return false;
    }
    config.warnings.iter().for_each(|warning| report.warn(CONFIGURATION, warning));
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
    tokio::task::block_in_place(|| livechat::look(&config, &arguments.source, &report));
    certificates(&config, &report);
    report.begin("running relay");
    let changed = running_relay(file, config.control.socket.as_deref(), &report).await;
    if !arguments.offline {
        ports::look(&config, changed.as_deref(), &report).await;
    }
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

/// Where a relay runs: whether it does so with the file that was checked, and as that is now. Its environment need not be that of this
/// command. Returns the keys in which they differ until a restart, if it runs with that file.
async fn running_relay(checked: Option<&Path>, socket: Option<&Path>, report: &Report) -> Option<Vec<String>> {
    const CHECK: &str = "running relay";
    let access = running(socket?).await.ok()?;
    let unknown = |why: String| {
        report.warn(CHECK, why);
        None
    };
    let Reloaded { file, changed, needs_restart, warnings, mistakes, .. } =
        match access.ask(Request::Reload { dry_run: true }, |_| Ok(())).await {
            Ok(Answer::Reloaded(reloaded)) => reloaded,
            Ok(other) => return unknown(unexpected(&other).to_string()),
            Err(failure) => return unknown(failure.to_string()),
        };
    let checked = checked.map(|file| absolute(file).unwrap_or_else(|_| file.to_owned()));
    let is_other = resolved(file.clone()) != resolved(checked.clone());
    if is_other {
        report.warn(
            CHECK,
            format!(
                "it runs with {}, and not with what was checked, {}",
                shown(file.as_deref()),
                shown(checked.as_deref())
            ),
        );
    }
    let file = shown(file.as_deref());
    if !mistakes.is_empty() {
        let mistakes = mistakes.join("; ");
        report.fail(CHECK, format!("it cannot load {file}, and keeps its former configuration: {mistakes}"));
        return None;
    }
    warnings.into_iter().for_each(|warning| report.warn(CHECK, warning));
    if !changed.is_empty() {
        let changed = changed.join(", ");
        report.warn(CHECK, format!("it has not loaded the changes in {file}; `livechat-relay reload` does: {changed}"));
    }
    if !needs_restart.is_empty() {
        report.warn(CHECK, format!("changes in {file} need a restart: {}", needs_restart.join(", ")));
    }
    if changed.is_empty() && needs_restart.is_empty() && !is_other {
        report.ok(CHECK, format!("runs with {file} as it is"));
    }
    (!is_other).then_some(needs_restart)
}

/// What the configuration comes from.
fn shown(file: Option<&Path>) -> String {
    file.map_or("the environment".to_owned(), |file| file.display().to_string())
}

/// The file that a path leads to, by whatever name.
fn resolved(file: Option<PathBuf>) -> Option<PathBuf> {
    file.map(|file| file.canonicalize().unwrap_or(file))
}

/// For whom each TLS certificate is, and until when.
fn certificates(config: &Config, report: &Report) {
    report.begin("certificates");
    let now = Timestamp::now();
    let of = |certificate: &Certificate| {
        let Certificate { names, not_after, source, .. } = certificate;
        let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
        format!("{names}: {} left, until {not_after} ({source})", certificate.time_left(now))
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
        return Ok("none: while Kafka is unavailable, webhooks are answered 503 (spool.directory)".to_owned());
    };
    let config = config.spool.clone();
    let directory = config.directory.clone();
    if !directory.is_dir() {
        return can_be_made(&directory);
    }
    let looked = tokio::task::spawn_blocking(move || look_at_spool(config));
    let late = |_| format!("{} did not answer within {SPOOL_TIMEOUT:?}: is its disk well?", directory.display());
    tokio::time::timeout(SPOOL_TIMEOUT, looked).await.map_err(late)?.map_err(|e| e.to_string())?
}

fn can_be_made(directory: &Path) -> Result<String, String> {
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    if !existing.is_dir() {
        return Err(format!("{} is not a directory; see spool.directory", existing.display()));
    }
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
