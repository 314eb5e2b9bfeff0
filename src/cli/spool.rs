//! `spool`: what waits for Kafka, while the relay runs and while it does not.

mod drain;
mod erase;
mod status;

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::Failure;
use super::access::{Where, unexpected};
use super::items::{self, Filters, count};
use super::print::{DIM, ERROR, JsonLines, note, out};
use crate::control::{Answer, List, Paused, Request};
use crate::spool::Verified;
use erase::Drop;
pub use erase::{ERASED, unfinished};

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show how many events of each topic wait, since when, and why
    Status {
        #[command(flatten)]
        place: Where,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the waiting events, the oldest of each topic first
    List {
        #[command(flatten)]
        place: Where,
        #[command(flatten)]
        filters: Filters,
        /// At most this many in all
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
        /// Print JSON, one event per line
        #[arg(long)]
        json: bool,
    },
    /// Export the waiting events as JSON, one per line, values included; they stay in the spool
    Export {
        #[command(flatten)]
        place: Where,
        #[command(flatten)]
        filters: Filters,
        /// Write to this new file, which only you can read [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Delete waiting events and dead letters, for example all of one chat
    #[command(after_help = "Needs at least one of --topic, --key, --id, --action, --app, --since and --until; \
        events that match all of them are deleted. Copies in Kafka remain.")]
    Drop(Drop),
    /// Wait until the spool is empty; if no relay runs, publish what is in it
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
    /// Read all waiting events, and report how many of each file are good, damaged and unreadable
    Verify {
        #[command(flatten)]
        place: Where,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Pause publishing a topic's waiting events; its new events wait, too
    #[command(after_help = "Needs a running relay. The pause lasts until `spool resume`, or until the relay restarts.")]
    Pause(Topic),
    /// Resume publishing a topic's waiting events
    Resume(Topic),
}

#[derive(clap::Args)]
struct Topic {
    #[command(flatten)]
    place: Where,
    /// The topic, as `status` shows it
    topic: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Status { place, json } => status::run(&place, json).await,
        Command::List { place, filters, limit, json } => list(&place, &filters, limit, json).await,
        Command::Export { place, filters, output } => export(&place, &filters, output).await,
        Command::Drop(drop) => drop.run().await,
        Command::Drain { place, timeout, json } => drain::run(&place, timeout, json).await,
        Command::Verify { place, json } => verify(&place, json).await,
        Command::Pause(topic) => topic.set_paused(true).await,
        Command::Resume(topic) => topic.set_paused(false).await,
    }
}

/// An object on one line.
pub fn print_json(object: &impl serde::Serialize) -> Result<(), Failure> {
    let mut lines = JsonLines::to_stdout();
    lines.write(object).and_then(|()| lines.flush())
}

fn waiting(filters: &Filters, limit: Option<u64>) -> List {
    List { dead_letters: false, filter: filters.filter(), from: 0, limit, values: false }
}

async fn list(place: &Where, filters: &Filters, limit: u64, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let listed = items::list(&access, waiting(filters, Some(limit)), json).await?;
    let is_other = listed.listed == 0 && !json && items::note_other_topic(&access, filters).await?;
    access.close().await;
    match listed.listed {
        0 if json || is_other => {}
        0 if listed.of == 0 => note(format_args!("nothing waits")),
        0 => note(format_args!("no event matches; {} read", count(listed.read, "event"))),
        _ => items::note_limit(&listed, limit),
    }
    items::warn_of(&listed);
    Ok(())
}

async fn export(place: &Where, filters: &Filters, output: Option<PathBuf>) -> Result<(), Failure> {
    let access = place.open().await?;
    let exported = items::export(&access, waiting(filters, None), output.as_ref()).await?;
    if exported.listed == 0 {
        items::note_other_topic(&access, filters).await?;
    }
    access.close().await;
    Ok(())
}

/// What was found in all files.
#[derive(serde::Serialize)]
struct Found {
    ok: bool,
    segments: Vec<Verified>,
    problems: Vec<String>,
}

async fn verify(place: &Where, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    if !json {
        let [file, events, damaged, unreadable] = ["file", "events", "damaged", "unreadable"];
        out(format_args!("{DIM}{file:<20} {events:>10} {damaged:>10} {unreadable:>10} {:>10}{DIM:#}", "missing"))?;
    }
    let mut segments = Vec::new();
    let answer = access.ask(Request::Verify, |answer| {
        let Answer::Segment(segment) = answer else { return Err(unexpected(&answer)) };
        if !json {
            let Verified { file, events, damaged, unreadable, missing, error } = &segment;
            let error = error.as_deref().unwrap_or_default();
            let line = format!("{file:<20} {events:>10} {damaged:>10} {unreadable:>10} {missing:>10}  {error}");
            out(format_args!("{}", line.trim_end()))?;
        }
        segments.push(segment);
        Ok(())
    });
    let answer = answer.await?;
    let Answer::Verified { problems } = answer else { return Err(unexpected(&answer)) };
    access.close().await;
    let ok = problems.is_empty() && segments.iter().all(Verified::is_good);
    let events: u64 = segments.iter().map(|segment| segment.events).sum();
    if json {
        print_json(&Found { ok, segments, problems })?;
    } else {
        problems.iter().try_for_each(|problem| out(format_args!("{ERROR}problem:{ERROR:#} {problem}")))?;
        out(format_args!("{} can be read", count(events, "event")))?;
    }
    if ok { Ok(()) } else { Err(Failure::Failed("not everything in the spool can be read".to_owned())) }
}

impl Topic {
    async fn set_paused(self, paused: bool) -> Result<(), Failure> {
        let access = self.place.open_running().await?;
        let topic = self.topic;
        let request = if paused { Request::Pause { topic } } else { Request::Resume { topic } };
        let answer = access.ask(request, |_| Ok(())).await?;
        let Answer::Paused(paused) = answer else { return Err(unexpected(&answer)) };
        if self.json {
            return print_json(&paused);
        }
        let Paused { topic, paused, events } = paused;
        let events = count(events, "event");
        if paused {
            out(format_args!(
                "replay of {topic} is paused until `spool resume`, or until the relay restarts; {events} wait"
            ))
        } else {
            out(format_args!("replay of {topic} goes on; {events} wait"))
        }
    }
}
