//! `check`: everything that `serve` would stumble over, found before it does.

use std::time::Duration;

use anstream::println;
use serde::Serialize;

use super::{Failure, Source, print};
use crate::config::{self, Config};
use crate::event::Key;
use crate::publish::Publisher;
use crate::shutdown::Shutdown;
use crate::spool::{Health, Spool, Unusable};
use crate::topics::{Topics, Trouble};

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
    let usage = match Config::load(arguments.source.config.as_deref(), std::env::vars()) {
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
        n if usage => Err(Failure::Usage(format!("{n} of the configuration's keys have to change"))),
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
    let metrics = std::sync::Arc::new(crate::metrics::Metrics::new());
    let names = config.policy.topics();
    let built = Publisher::new(config.kafka.clone(), metrics, Shutdown::default()).map(drop).map_err(Trouble::from);
    let topics = built.and_then(|()| Topics::new(names, config.topics.clone(), &config.kafka));
    let topics = match topics {
        Ok(topics) => topics,
        Err(trouble) => return findings.push(Finding::new("kafka", Err(trouble.to_string()))),
    };
    match tokio::task::block_in_place(|| topics.brokers()) {
        Ok(n) => findings.push(Finding::new("brokers", Ok(format!("{n} at {}", config.kafka.brokers)))),
        Err(trouble) => return findings.push(Finding::new("brokers", Err(trouble.to_string()))),
    }
    findings.push(Finding::new("topics", present(&topics, config.topics.create)));
    let sizes = match topics.sizes().await {
        Err(trouble @ Trouble::TooSmall { .. }) if config.spool.is_some() => {
            Ok(format!("{trouble}; until then, what is too large becomes a dead letter"))
        }
        sizes => sizes.map(sized).map_err(|trouble| trouble.to_string()),
    };
    findings.push(Finding::new("sizes", sizes));
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
        let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(&directory);
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        let writable = rustix::fs::access(existing, access);
        let cannot = |e| format!("{} cannot be written to: {e}; see spool.directory", existing.display());
        return writable.map(|()| format!("{} is made by the first start", directory.display())).map_err(cannot);
    }
    let metrics = std::sync::Arc::new(crate::metrics::Metrics::new());
    let place = directory.clone();
    let looked = tokio::task::spawn_blocking(move || match Spool::look(config, metrics) {
        Err(Unusable::Locked { .. }) => Ok(format!("{} is in use by a relay", directory.display())),
        Err(unusable) => Err(unusable.to_string()),
        Ok(spool) => {
            let (health, events) = spool.lanes(|lanes| (lanes.health().clone(), lanes.total().records));
            match health {
                Health::Accepting => Ok(format!("{} accepts; {events} events wait in it", directory.display())),
                Health::Full(why) | Health::Failed(why) => {
                    Err(format!("{} accepts nothing: {why}", directory.display()))
                }
            }
        }
    });
    match tokio::time::timeout(SPOOL_TIMEOUT, looked).await {
        Ok(looked) => looked.map_err(|e| e.to_string())?,
        Err(_) => Err(format!(
            "{directory} did not answer within {SPOOL_TIMEOUT:?}: is its disk well?",
            directory = place.display()
        )),
    }
}

fn present(topics: &Topics, create: bool) -> Result<String, String> {
    let missing = tokio::task::block_in_place(|| topics.missing()).map_err(|t| t.to_string())?;
    match missing.len() {
        0 => Ok("all there".to_owned()),
        n if create => Ok(format!("{n} missing; serve creates them")),
        _ => Err(Trouble::Missing(missing.iter().map(ToString::to_string).collect()).to_string()),
    }
}

fn sized(unchecked: Option<String>) -> String {
    let unknown = |why| format!("unknown: the brokers do not tell the topics' settings ({why})");
    unchecked.map_or_else(|| "every topic takes the largest event".to_owned(), unknown)
}
