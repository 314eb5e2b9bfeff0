//! `dead-letters`: the records that their topic rejects as they are, and what to do about them.

mod on_kafka;

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::Failure;
use super::access::{Access, Where, unexpected};
use super::items::{self, count, field, progress};
use super::print::{self, ERROR, confirm, note, out, visible, wrapped};
use super::spool::{ERASED, print_json, unfinished};
use crate::control::{Answer, Fate, Filter, Item, Letter, List, Replayed, Request, Which};

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the dead letters on disk; with --kafka, those in the dead-letter topic
    List {
        #[command(flatten)]
        place: Where,
        /// List those in the dead-letter topic in Kafka, the oldest of each partition first
        #[arg(long)]
        kafka: bool,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
        /// Print JSON, one per line
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with its value
    Show {
        #[command(flatten)]
        place: Where,
        /// Its number, as `list` shows it; for one in Kafka PARTITION/OFFSET
        #[arg(value_parser = place)]
        number: Place,
        /// Print JSON on one line
        #[arg(long)]
        json: bool,
    },
    /// Export all as JSON, one per line, values included; they are kept
    Export {
        #[command(flatten)]
        place: Where,
        /// Write to this new file, which only you can read [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Publish again to their own topics, for example after max.message.bytes was raised
    Replay {
        #[command(flatten)]
        chosen: Chosen,
        /// Stop after this time; what Kafka has not accepted by then stays a dead letter
        #[arg(long, default_value = "30s", value_parser = super::send::duration, value_name = "TIME")]
        timeout: Duration,
    },
    /// Delete dead letters permanently
    Drop {
        #[command(flatten)]
        chosen: Chosen,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(clap::Args)]
struct Chosen {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    letters: Letters,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Letters {
    /// Their numbers, as `list` shows them
    numbers: Vec<u64>,
    /// All of them
    #[arg(long)]
    all: bool,
}

/// Where a dead letter is.
#[derive(Clone, Copy)]
enum Place {
    OnDisk(u64),
    /// Partition and offset.
    OnKafka(i32, u64),
}

fn place(text: &str) -> Result<Place, String> {
    let on_disk = || text.parse().ok().map(Place::OnDisk);
    let on_kafka = || {
        let (partition, offset) = text.split_once('/')?;
        Some(Place::OnKafka(partition.parse().ok()?, offset.parse().ok()?))
    };
    on_disk()
        .or_else(on_kafka)
        .ok_or_else(|| "no number; write for example 100000000, or 2/17 for one on Kafka".to_owned())
}

impl Chosen {
    fn which(&self) -> Which {
        let Letters { numbers, all } = &self.letters;
        if *all { Which::All } else { Which::Numbers(numbers.clone()) }
    }
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::List { place, kafka: true, limit, json } => on_kafka::list(&place.source, limit, json).await,
        Command::List { place, kafka: false, limit, json } => list(&place, limit, json).await,
        Command::Show { place, number: Place::OnDisk(number), json } => show(&place, number, json).await,
        Command::Show { place, number: Place::OnKafka(partition, offset), json } => {
            on_kafka::show(&place.source, partition, offset, json).await
        }
        Command::Export { place, output } => export(&place, output).await,
        Command::Replay { chosen, timeout } => replay(&chosen, timeout).await,
        Command::Drop { chosen, yes } => drop(&chosen, yes).await,
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
        0 if json => {}
        0 => note(format_args!("there are no dead letters on the disk")),
        _ => items::note_limit(&listed, limit),
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
    if json { print_json(&item) } else { print_letter(&number.to_string(), &item) }
}

fn print_letter(number: &str, item: &Item) -> Result<(), Failure> {
    let text = |value: Option<&dyn std::fmt::Display>| value.map(ToString::to_string).unwrap_or_default();
    field("number", number)?;
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
        (Some(value), _) => print::json(value),
        (None, hex) => field("hex", hex.as_deref().unwrap_or_default()),
    }
}

async fn export(place: &Where, output: Option<PathBuf>) -> Result<(), Failure> {
    let access = place.open().await?;
    items::export(&access, dead_letters(0, None), output.as_ref()).await?;
    access.close().await;
    Ok(())
}

async fn drop(chosen: &Chosen, yes: bool) -> Result<(), Failure> {
    if !yes && !is_confirmed(chosen).await? {
        return Ok(());
    }
    let access = chosen.place.open_to_change().await?;
    let answer = access.ask(Request::DropDeadLetters { which: chosen.which() }, |_| Ok(())).await;
    access.close().await;
    let Answer::Dropped(dropped) = answer? else { return Err(Failure::Failed("no answer".to_owned())) };
    if chosen.json {
        print_json(&dropped)?;
    } else {
        out(format_args!("{} dropped", count(dropped.dead_letters, "dead letter")))?;
    }
    unfinished(&dropped)
}

/// Says how many are meant, and asks.
async fn is_confirmed(chosen: &Chosen) -> Result<bool, Failure> {
    let found = if chosen.letters.all {
        let access = chosen.place.open().await?;
        let status = access.status().await;
        access.close().await;
        status?.dead_letters
    } else {
        chosen.letters.numbers.len() as u64
    };
    if found == 0 {
        note(format_args!("there are no dead letters on the disk"));
        return Ok(false);
    }
    confirm(&format!("Drop {}? {ERASED}", count(found, "dead letter")))
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
    let of = |number: u64, what: &str| (number > 0).then(|| format!("{} {what}", items::number(number)));
    let outcomes = [
        of(replayed.refused, "rejected again"),
        of(replayed.waiting, "still waiting"),
        of(replayed.corrupted, "damaged"),
        of(replayed.unknown, "not there"),
    ];
    let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    let published = format!("{} published", count(replayed.published, "dead letter"));
    if chosen.json {
        print_json(&Report { replayed, letters })?;
    } else if outcomes.is_empty() {
        out(format_args!("{published}"))?;
    }
    if outcomes.is_empty() { Ok(()) } else { Err(Failure::Failed(format!("{published}, {}", outcomes.join(", ")))) }
}

async fn ask_to_replay(access: &Access, chosen: &Chosen, timeout: Duration) -> Result<Report, Failure> {
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let (bar, mut letters) = (progress(0), Vec::new());
    let answer = access.ask(Request::ReplayDeadLetters { which: chosen.which(), timeout_ms }, |answer| {
        let letter = match answer {
            Answer::Letter(letter) => letter,
            Answer::Progress { read, of } => {
                items::show(&bar, read, of);
                return Ok(());
            }
            other => return Err(unexpected(&other)),
        };
        if chosen.json {
            letters.push(letter);
            return Ok(());
        }
        bar.suspend(|| out(format_args!("{}", told(&letter, print::columns().is_some()))))
    });
    match answer.await? {
        Answer::Replayed(replayed) => Ok(Report { replayed, letters }),
        other => Err(unexpected(&other)),
    }
}

/// What became of a dead letter. For programs it is one line.
fn told(letter: &Letter, is_terminal: bool) -> String {
    let Letter { number, topic, fate, error } = letter;
    let topic = topic.as_deref().unwrap_or("its topic");
    let error = error.as_deref().map(|error| format!(": {}", words(error))).unwrap_or_default();
    let (label, more) = match fate {
        Fate::Published => ("", format!("published to {topic}{error}")),
        Fate::Refused => ("rejected again", format!("by {topic}{error}")),
        Fate::Waiting => ("", format!("still waiting: {topic} has not accepted it in time{error}")),
        Fate::Corrupted => {
            ("", "is what was left of a damaged entry: it can be exported and dropped, not published".to_owned())
        }
        Fate::Unknown => ("", "is not there; `dead-letters list` shows all".to_owned()),
    };
    let text = visible(format!("{label} {more}").trim_start());
    let text = if is_terminal { wrapped(&text, number.to_string().len() + 2) } else { text };
    let rest = text.strip_prefix(label).unwrap_or(&text);
    format!("{number}  {ERROR}{label}{ERROR:#}{rest}")
}

/// What Kafka has said, without librdkafka's name for it: `Message size too large` of `MessageSizeTooLarge (Broker: Message size too large)`.
fn words(error: &str) -> &str {
    let text = error.split_once(" (").and_then(|(_, text)| text.strip_suffix(')')).unwrap_or(error);
    text.strip_prefix("Broker: ").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_dead_letter_fits_a_terminal_and_is_one_line_for_programs() {
        let error = |error: &str| Some(error.to_owned());
        let letter = |fate, error| Letter {
            number: 100_000_013,
            topic: Some("livechat.incoming_event".to_owned()),
            fate,
            error,
        };
        let shown = |letter: &Letter, is_terminal| anstream::adapter::strip_str(&told(letter, is_terminal)).to_string();
        let refused = letter(Fate::Refused, error("MessageSizeTooLarge (Broker: Message size too large)"));
        let line = "100000013  rejected again by livechat.incoming_event: Message size too large";
        assert_eq!([true, false].map(|is_terminal| shown(&refused, is_terminal)), [line, line]);
        assert!(told(&refused, true).starts_with(&format!("100000013  {ERROR}rejected again{ERROR:#} by ")));
        let late = letter(Fate::Waiting, error("MessageTimedOut (Local: Message timed out)"));
        let line =
            "100000013  still waiting: livechat.incoming_event has not accepted it in time: Local: Message timed out";
        assert_eq!(shown(&late, false), line);
        assert_eq!(shown(&late, true), line.replace(" Local:", "\n           Local:"));
        let gone = letter(Fate::Waiting, error("its file cannot be read"));
        assert!(shown(&gone, false).ends_with(": its file cannot be read"));
    }
}
