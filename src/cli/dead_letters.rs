//! `dead-letters`: the records that their topic will never take as they are, and what to do about them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::Failure;
use super::access::{Access, Where, unexpected};
use super::items::{self, count, field, progress};
use super::print::{JsonLines, note, out};
use super::spool::{print_json, unfinished};
use crate::control::{Answer, Fate, Filter, Item, Letter, List, Replayed, Request};

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the dead letters on the disk; most are in the topic dead-letter instead, where `tail` shows them
    List {
        #[command(flatten)]
        place: Where,
        /// So many at most
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u64,
        /// Print JSON, one a line
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with its value
    Show {
        #[command(flatten)]
        place: Where,
        /// Its number, as `list` shows it
        number: u64,
        /// Print JSON on one line
        #[arg(long)]
        json: bool,
    },
    /// Write all as JSON, one a line, values included; they stay where they are
    Export {
        #[command(flatten)]
        place: Where,
        /// A new file, which only you can read; else standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Publish to their own topics again, as when a topic's max.message.bytes was raised
    Replay {
        #[command(flatten)]
        chosen: Chosen,
        /// Give up after this time: what Kafka has not taken by then stays a dead letter
        #[arg(long, default_value = "30s", value_parser = super::send::duration, value_name = "TIME")]
        timeout: Duration,
    },
    /// Delete dead letters permanently
    Drop(Chosen),
}

#[derive(clap::Args)]
struct Chosen {
    #[command(flatten)]
    place: Where,
    /// Their numbers, as `list` shows them
    #[arg(required_unless_present = "all")]
    numbers: Vec<u64>,
    /// All of them
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Chosen {
    fn numbers(&self) -> Option<Vec<u64>> {
        (!self.all).then(|| self.numbers.clone())
    }
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::List { place, limit, json } => list(&place, limit, json).await,
        Command::Show { place, number, json } => show(&place, number, json).await,
        Command::Export { place, output } => export(&place, output).await,
        Command::Replay { chosen, timeout } => replay(&chosen, timeout).await,
        Command::Drop(chosen) => drop(&chosen).await,
    }
}

fn dead_letters(from: u64, limit: Option<u64>) -> List {
    List { dead_letters: true, filter: Filter::default(), from, limit, values: false }
}

async fn list(place: &Where, limit: u64, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let listed = items::list(&access, dead_letters(0, Some(limit)), json).await?;
    access.close().await;
    match listed.listed {
        _ if json => {}
        0 => note(format_args!("there are no dead letters on the disk")),
        some if some < listed.of => note(format_args!("{some} shown of {}; more with --limit", listed.of)),
        _ => {}
    }
    Ok(())
}

async fn show(place: &Where, number: u64, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let mut found = None;
    let list = List { values: true, ..dead_letters(number, Some(1)) };
    let keep = |item: Item| {
        found = Some(item).filter(|item| item.number == number);
        Ok(())
    };
    access.list(list, |_, _| (), keep).await?;
    access.close().await;
    let item = found
        .ok_or_else(|| Failure::Failed(format!("there is no dead letter {number}; `dead-letters list` shows all")))?;
    if json { print_json(&item) } else { print(&item) }
}

fn print(item: &Item) -> Result<(), Failure> {
    let text = |value: Option<&dyn std::fmt::Display>| value.map(ToString::to_string).unwrap_or_default();
    field("number", &item.number.to_string())?;
    field("topic", &item.topic)?;
    field("key", &item.key)?;
    field("id", item.id.as_deref().unwrap_or_default())?;
    field("received", &text(item.received.as_ref().map(|at| at as _)))?;
    field("since", &text(item.since.as_ref().map(|at| at as _)))?;
    field("reason", item.reason.as_deref().unwrap_or_default())?;
    field("error", item.error.as_deref().unwrap_or_default())?;
    field("bytes", &item.bytes.to_string())?;
    item.headers.iter().try_for_each(|(name, value)| field("header", &format!("{name}: {value}")))?;
    match (&item.value, &item.value_hex) {
        (Some(value), _) => {
            let mut lines = JsonLines::to_stdout();
            lines.write(value).and_then(|()| lines.flush())
        }
        (None, hex) => field("hex", hex.as_deref().unwrap_or_default()),
    }
}

async fn export(place: &Where, output: Option<PathBuf>) -> Result<(), Failure> {
    let access = place.open().await?;
    items::export(&access, dead_letters(0, None), output.as_ref()).await?;
    access.close().await;
    Ok(())
}

async fn drop(chosen: &Chosen) -> Result<(), Failure> {
    let access = chosen.place.open_to_change().await?;
    let answer = access.ask(Request::DropDeadLetters { numbers: chosen.numbers() }, |_| Ok(())).await;
    access.close().await;
    let Answer::Dropped(dropped) = answer? else { return Err(Failure::Failed("no answer".to_owned())) };
    if chosen.json {
        print_json(&dropped)?;
    } else {
        out(format_args!("{} dropped", count(dropped.dead_letters, "dead letter")))?;
    }
    unfinished(&dropped)
}

/// What was asked for, and what became of each.
#[derive(serde::Serialize)]
struct Report {
    #[serde(flatten)]
    replayed: Replayed,
    letters: Vec<Letter>,
}

async fn replay(chosen: &Chosen, timeout: Duration) -> Result<(), Failure> {
    let mut access = chosen.place.open_to_change().await?;
    access.publish(&chosen.place.source)?;
    let report = ask_to_replay(&access, chosen, timeout).await;
    access.close().await;
    let Report { replayed, letters } = report?;
    let failed = replayed.refused + replayed.waiting + replayed.corrupted + replayed.unknown;
    let published = replayed.published;
    if chosen.json {
        print_json(&Report { replayed, letters })?;
    } else {
        out(format_args!("{} published", count(published, "dead letter")))?;
    }
    match failed {
        0 => Ok(()),
        some => Err(Failure::Failed(format!("{} not published", count(some, "dead letter")))),
    }
}

async fn ask_to_replay(access: &Access, chosen: &Chosen, timeout: Duration) -> Result<Report, Failure> {
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let (bar, mut letters) = (progress(0), Vec::new());
    let answer = access.ask(Request::ReplayDeadLetters { numbers: chosen.numbers(), timeout_ms }, |answer| {
        let Answer::Letter(letter) = answer else { return Err(unexpected(&answer)) };
        bar.inc(1);
        if chosen.json {
            letters.push(letter);
            return Ok(());
        }
        bar.suspend(|| tell(&letter))
    });
    match answer.await? {
        Answer::Replayed(replayed) => Ok(Report { replayed, letters }),
        other => Err(unexpected(&other)),
    }
}

fn tell(Letter { number, topic, fate, error }: &Letter) -> Result<(), Failure> {
    let topic = topic.as_deref().unwrap_or("its topic");
    let error = error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    match fate {
        Fate::Published => out(format_args!("{number}  on Kafka, in {topic}{error}")),
        Fate::Refused => out(format_args!("{number}  refused again by {topic}{error}; it stays dead letter {number}")),
        Fate::Waiting => {
            out(format_args!("{number}  not taken by {topic} in time{error}; it stays dead letter {number}"))
        }
        Fate::Corrupted => out(format_args!(
            "{number}  is what was left of a damaged entry: it can be exported and dropped, not published"
        )),
        Fate::Unknown => out(format_args!("{number}  is not there; `dead-letters list` shows all")),
    }
}
