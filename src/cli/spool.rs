//! `spool`: what waits for Kafka, while the relay runs and while it does not.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anstream::{eprintln, println};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::access::{Access, Where};
use super::print::JsonLines;
use super::{Failure, print};
use crate::config::{Config, DEAD_LETTER};
use crate::dead_letter::DeadLetters;
use crate::desk::{Ask, Item, Status};
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
    if !json && all > 0 {
        println!(
            "{}{:>10}  {:<24} {:<40} {:<24} {:>8}{:#}",
            print::DIM,
            "number",
            "accepted",
            "topic",
            "key",
            "bytes",
            print::DIM
        );
    }
    let mut seen = 0;
    for topic in names {
        let ask = |page| Ask::Events { topic: topic.clone(), page };
        seen += access.each(limit, false, ask, |item| line(&item, json)).await?;
    }
    if !json && seen < all {
        eprintln!("{}{seen} of {all}; more with --limit{:#}", print::DIM, print::DIM);
    }
    if !json && all == 0 {
        eprintln!("{}nothing waits{:#}", print::DIM, print::DIM);
    }
    access.close().await;
    Ok(())
}

fn line(item: &Item, json: bool) -> Result<(), Failure> {
    if json {
        let mut out = JsonLines::to_stdout();
        out.write(item).and_then(|()| out.flush()).map_err(Failure::failed)?;
    } else {
        println!(
            "{:>10}  {:<24} {:<40} {:<24} {:>8}",
            item.number,
            format!("{:.3}", item.accepted),
            print::visible(&item.topic),
            print::visible(&item.key),
            item.bytes
        );
    }
    Ok(())
}

async fn export(place: &Where, topic: Option<String>, output: Option<PathBuf>) -> Result<(), Failure> {
    let access = place.open().await?;
    let (names, all) = topics(&access, topic).await?;
    let mut file = writer(output.as_ref())?;
    let progress = progress(all);
    for topic in names {
        let ask = |page| Ask::Events { topic: topic.clone(), page };
        access
            .each(u64::MAX, true, ask, |item| {
                progress.inc(1);
                file.write(&item).map_err(Failure::failed)
            })
            .await?;
    }
    file.flush().map_err(Failure::failed)?;
    progress.finish_and_clear();
    if let Some(path) = &output {
        eprintln!("{} events written to {}", progress.position(), path.display());
    }
    access.close().await;
    Ok(())
}

/// A file that must not be there yet, and that is its owner's alone, as the spool is; or standard output.
pub fn writer(path: Option<&PathBuf>) -> Result<JsonLines, Failure> {
    let Some(path) = path else { return Ok(JsonLines::to_stdout()) };
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    file.map(JsonLines::to_file).map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))
}

pub fn progress(all: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {per_sec:.dim} {msg}");
    ProgressBar::new(all).with_style(style.expect("a valid template"))
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
    let (kafka, prefix) = Config::load_kafka(place.source.config.as_deref(), std::env::vars())?;
    let shutdown = Shutdown::default();
    let publisher = Publisher::new(kafka, Arc::clone(metrics), shutdown.clone())
        .map_err(|e| Failure::Usage(format!("kafka.properties: {e}")))?;
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
