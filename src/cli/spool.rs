//! `spool`: what waits for Kafka, while the relay runs and while it does not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anstream::{eprintln, println};
use clap::Subcommand;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::access::{Access, Where};
use super::items::{self, progress};
use super::{Failure, print};
use crate::config::{Config, DEAD_LETTER, Need};
use crate::dead_letter::DeadLetters;
use crate::desk::{Ask, Page, Status};
use crate::publish::Publisher;
use crate::replay;
use crate::shutdown::Shutdown;

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// How much waits of which topic, and since when
    Status {
        #[command(flatten)]
        place: Where,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The events that wait, a line each, the oldest of each topic first
    List {
        #[command(flatten)]
        place: Where,
        /// Only this topic
        #[arg(long, value_name = "NAME")]
        topic: Option<String>,
        /// So many of each topic at most
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u64,
        /// Print JSON, one event a line
        #[arg(long)]
        json: bool,
    },
    /// Write the events that wait to a file as JSON, one a line, values included; they stay in the spool
    Export {
        #[command(flatten)]
        place: Where,
        /// Only this topic
        #[arg(long, value_name = "NAME")]
        topic: Option<String>,
        /// Where to; else to standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Wait until the spool is empty; where no relay runs, publish what is in it
    Drain {
        #[command(flatten)]
        place: Where,
        /// Give up after this time
        #[arg(long, default_value = "10m", value_parser = super::send::duration, value_name = "TIME")]
        timeout: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Status { place, json } => status(&place, json).await,
        Command::List { place, topic, limit, json } => list(&place, topic, limit, json).await,
        Command::Export { place, topic, output } => export(&place, topic, output).await,
        Command::Drain { place, timeout, json } => drain(&place, timeout, json).await,
    }
}

async fn status(place: &Where, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let status: Status = access.ask(Ask::Status).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status).map_err(Failure::failed)?);
    } else {
        show(&status, matches!(access, Access::Running(_)));
    }
    access.close().await;
    Ok(())
}

fn show(status: &Status, is_running: bool) {
    let used = status.bytes + status.dead_letters_bytes;
    let percent = 100.0 * used as f64 / status.bytes_max as f64;
    let relay = if is_running { "of a running relay" } else { "no relay runs" };
    println!("spool         {} ({relay})", status.directory);
    match &status.why {
        None => println!("accepts       {}yes{:#}", print::GOOD, print::GOOD),
        Some(why) => println!("accepts       {}no{:#}: {why}", print::ERROR, print::ERROR),
    }
    status.problems.iter().for_each(|problem| println!("problem       {}{problem}{:#}", print::ERROR, print::ERROR));
    println!("used          {} of {} ({percent:.1} %)", size(used), size(status.bytes_max));
    println!("events        {}, {}", status.events, size(status.bytes));
    println!("dead letters  {}, {}", status.dead_letters, size(status.dead_letters_bytes));
    if status.lanes.is_empty() {
        return;
    }
    println!("\n{}{:<44} {:>10} {:>12}  waiting for{:#}", print::DIM, "topic", "events", "bytes", print::DIM);
    for lane in &status.lanes {
        let age = lane.oldest.map_or_else(String::new, age);
        println!("{:<44} {:>10} {:>12}  {age}", lane.topic, lane.events, size(lane.bytes));
    }
}

pub fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// How long ago, in the two largest units.
fn age(since: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(since).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// The topics to look at: the one that was named, or all that have something.
async fn topics(access: &Access, topic: Option<String>) -> Result<(Vec<String>, u64), Failure> {
    let status: Status = access.ask(Ask::Status).await?;
    let lanes = status.lanes.into_iter().filter(|lane| topic.as_ref().is_none_or(|wanted| *wanted == lane.topic));
    let (names, events): (Vec<_>, Vec<_>) = lanes.map(|lane| (lane.topic, lane.events)).unzip();
    Ok((names, events.into_iter().sum()))
}

async fn list(place: &Where, topic: Option<String>, limit: u64, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let (names, all) = topics(&access, topic).await?;
    items::list(&access, names.into_iter().map(events), (all, limit), json).await?;
    if !json && all == 0 {
        eprintln!("{}nothing waits{:#}", print::DIM, print::DIM);
    }
    access.close().await;
    Ok(())
}

fn events(topic: String) -> impl Fn(Page) -> Ask {
    move |page| Ask::Events { topic: topic.clone(), page }
}

async fn export(place: &Where, topic: Option<String>, output: Option<PathBuf>) -> Result<(), Failure> {
    let access = place.open().await?;
    let (names, all) = topics(&access, topic).await?;
    items::export(&access, names.into_iter().map(events), all, output).await?;
    access.close().await;
    Ok(())
}

async fn drain(place: &Where, timeout: Duration, json: bool) -> Result<(), Failure> {
    let access = place.open_to_change().await?;
    let publishing = match &access {
        Access::Running(_) => None,
        Access::Stopped { .. } => Some(publish(&access, place)?),
    };
    let (until, mut first) = (Instant::now() + timeout, None);
    let bar = progress(0);
    let left = loop {
        let status: Status = access.ask(Ask::Status).await?;
        let first = *first.get_or_insert(status.events.max(1));
        bar.set_length(first.max(status.events));
        bar.set_position(first.saturating_sub(status.events));
        if status.events == 0 || Instant::now() >= until {
            bar.finish_and_clear();
            break status.events;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    if let Some((task, stop)) = publishing {
        stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(5), task).await; // what is under way is published again, at worst
    }
    access.close().await;
    if json {
        println!("{}", serde_json::json!({ "left": left }));
    } else if left == 0 {
        println!("{}the spool is empty{:#}", print::GOOD, print::GOOD);
    }
    if left > 0 { Err(Failure::Failed(format!("{left} events are still in the spool"))) } else { Ok(()) }
}

type Publishing = (tokio::task::JoinHandle<()>, CancellationToken);

/// Publishes as a relay would, for there is none.
fn publish(access: &Access, place: &Where) -> Result<Publishing, Failure> {
    let Access::Stopped { spool, metrics, config } = access else {
        return Err(Failure::Failed("the relay publishes by itself".to_owned()));
    };
    let Config { kafka, topic_prefix: prefix, .. } = place.source.read(Need::Kafka)?; // its warnings were shown
    let shutdown = Shutdown::default();
    let publisher = Publisher::new(kafka, Arc::clone(metrics), shutdown.clone())?;
    let dead_letters = DeadLetters {
        topic: Arc::from(format!("{prefix}{DEAD_LETTER}")),
        publisher: Arc::new(publisher),
        spool: Some(spool.clone()),
        metrics: Arc::clone(metrics),
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(replay::run(config.replay, spool.clone(), dead_letters, shutdown, stop.clone()));
    Ok((task, stop))
}
