//! `check`: everything that `serve` would stumble over, found before it does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anstream::println;
use serde::Serialize;

use super::{Failure, Source, print};
use crate::config::{self, Config};
use crate::event::Key;
use crate::publish::Publisher;
use crate::shutdown::Shutdown;
use crate::spool::{Health, Spool, Unusable};
use crate::topics::{Absent, Cluster, Reason, Topics};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    detail: String,
}

impl Finding {
    fn new(check: &'static str, found: Result<String, String>) -> Self {
        let ok = found.is_ok();
        Self { check, ok, detail: found.unwrap_or_else(|why| why) }
    }
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut findings = Vec::new();
    let usage = match Config::load(arguments.source.config.as_deref(), crate::config::environment()) {
        Ok(config) => {
            look(&config, &mut findings).await;
            false
        }
        Err(mistakes) => {
            findings.extend(mistakes.0.into_iter().map(|mistake| Finding::new("configuration", Err(mistake))));
            true
        }
    };
    if arguments.json {
        let all = serde_json::json!({ "ok": findings.iter().all(|f| f.ok), "findings": findings });
        println!("{all:#}");
    } else {
        for Finding { check, ok, detail } in &findings {
            let (mark, style) = if *ok { ("ok  ", print::GOOD) } else { ("FAIL", print::ERROR) };
            println!("{style}{mark}{style:#}  {check:<14} {detail}");
        }
    }
    match findings.iter().filter(|f| !f.ok).count() {
        0 => Ok(()),
        n if usage => Err(Failure::Usage(format!("mistakes in the configuration: {n}"))),
        n => Err(Failure::Failed(format!("{n} of {} checks failed", findings.len()))),
    }
}

async fn look(config: &Config, findings: &mut Vec<Finding>) {
    let mut apps: Vec<_> = config.policy.apps.values().collect();
    apps.sort_by(|one, other| one.name.cmp(&other.name));
    findings
        .push(Finding::new("configuration", Ok(format!("complete; webhooks on {}", config.server.listener.listen))));
    for app in apps {
        let keys: Vec<_> = app.keyring.keys().map(Key::name).collect();
        findings.push(Finding::new("app", Ok(format!("{}: secret keys {}", app.name, keys.join(", ")))));
    }
    findings.push(Finding::new("spool", spool(config.spool.as_ref()).await));
    let names = config.policy.topics();
    let built = Publisher::new(config.kafka.clone(), Arc::default(), Shutdown::default());
    let topics = match built.and_then(|_| Topics::new(names, config.topics.clone(), &config.kafka)) {
        Ok(topics) => topics,
        Err(unusable) => return findings.push(Finding::new("kafka", Err(format!("kafka.properties: {unusable}")))),
    };
    let brokers = &config.kafka.brokers;
    let Cluster { brokers, present, missing } = match tokio::task::block_in_place(|| topics.look()) {
        Ok(cluster) => cluster,
        Err(error) => {
            let why = format!("no broker answers at {brokers}: {error}; is kafka.brokers right, and Kafka up?");
            return findings.push(Finding::new("brokers", Err(why)));
        }
    };
    findings.push(Finding::new("brokers", Ok(format!("{} at {}", brokers.len(), config.kafka.brokers))));
    findings.push(Finding::new("topics", absent(&topics, missing).await));
    let names: Vec<_> = present.into_iter().map(|topic| topic.name).collect();
    let described = topics.describe(&names).await;
    let sizes = match topics.check_sizes(&described) {
        Err(too_small) if config.spool.is_some() => {
            Ok(format!("{too_small}; until then, what is too large becomes a dead letter"))
        }
        sizes => sizes.map(|()| sized(described.unread)).map_err(|too_small| too_small.to_string()),
    };
    findings.push(Finding::new("sizes", sizes));
}

/// Topics that are missing, and whether `serve` can create them.
async fn absent(topics: &Topics, missing: Vec<Arc<str>>) -> Result<String, String> {
    if missing.is_empty() {
        return Ok("all there".to_owned());
    }
    let count = missing.len();
    let refused = if topics.config().create {
        topics.create(&missing, true).await.1
    } else {
        vec![Absent { topics: missing, reason: Reason::CreateIsOff }]
    };
    let text = |Absent { topics, reason }: &Absent| {
        format!("missing: {} ({reason}); {}", crate::topics::names(topics), reason.remedy())
    };
    match refused.iter().map(text).collect::<Vec<_>>().join("; ") {
        none if none.is_empty() => Ok(format!("{count} missing; serve creates them")),
        refused => Err(refused),
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

fn sized(unchecked: Option<String>) -> String {
    let unknown = |why| format!("unknown: the brokers do not tell the topics' settings ({why})");
    unchecked.map_or_else(|| "every topic takes the largest event".to_owned(), unknown)
}
