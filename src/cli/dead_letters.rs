//! `dead-letters`: the records that their topic will never take as they are, and what to do about them.

use std::path::PathBuf;

use anstream::{eprintln, println};
use clap::Subcommand;

use super::access::{Access, Where};
use super::print::JsonLines;
use super::spool::{progress, writer};
use super::{Failure, print};
use crate::desk::{Ask, Item, Page, Status};

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The dead letters on the disk, a line each; most are in the topic dead-letter instead, where `tail` shows them
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
    /// One dead letter with its value
    Show {
        #[command(flatten)]
        place: Where,
        /// Its number, as `list` shows it
        number: u64,
        /// Print JSON on one line
        #[arg(long)]
        json: bool,
    },
    /// Write all to a file as JSON, one a line, values included; they stay where they are
    Export {
        #[command(flatten)]
        place: Where,
        /// Where to; else to standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Publish again to their own topics, as when a topic's max.message.bytes was raised; the relay does it when it runs
    Replay(Chosen),
    /// Drop for ever
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

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::List { place, limit, json } => list(&place, limit, json).await,
        Command::Show { place, number, json } => show(&place, number, json).await,
        Command::Export { place, output } => export(&place, output).await,
        Command::Replay(chosen) => each(&chosen, "replayed", |number| Ask::Replay { number }).await,
        Command::Drop(chosen) => each(&chosen, "dropped", |number| Ask::Drop { number }).await,
    }
}

const fn dead_letters(page: Page) -> Ask {
    Ask::DeadLetters { page }
}

async fn list(place: &Where, limit: u64, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let all = access.ask::<Status>(Ask::Status).await?.dead_letters;
    if all == 0 && !json {
        eprintln!("{}there are no dead letters on the disk{:#}", print::DIM, print::DIM);
    } else if !json {
        println!(
            "{}{:>10}  {:<24} {:<40} {:<24} {:>8}  reason{:#}",
            print::DIM,
            "number",
            "accepted",
            "topic",
            "key",
            "bytes",
            print::DIM
        );
    }
    let seen = access.each(limit, false, dead_letters, |item| line(&item, json)).await?;
    if !json && seen < all {
        eprintln!("{}{seen} of {all}; more with --limit{:#}", print::DIM, print::DIM);
    }
    access.close().await;
    Ok(())
}

fn line(item: &Item, json: bool) -> Result<(), Failure> {
    if json {
        let mut out = JsonLines::to_stdout();
        return out.write(item).and_then(|()| out.flush()).map_err(Failure::failed);
    }
    let Item { number, accepted, bytes, .. } = item;
    let (topic, key) = (print::visible(&item.topic), print::visible(&item.key));
    let (reason, error) = (item.reason.as_deref().unwrap_or_default(), item.error.as_deref().unwrap_or_default());
    println!("{number:>10}  {:<24} {topic:<40} {key:<24} {bytes:>8}  {reason} ({error})", format!("{accepted:.3}"));
    Ok(())
}

async fn show(place: &Where, number: u64, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let mut found = None;
    let page = |_| Ask::DeadLetters { page: Page { from: number, limit: 1, values: true } };
    access
        .each(1, true, page, |item| {
            found = Some(item).filter(|item| item.number == number);
            Ok(())
        })
        .await?;
    access.close().await;
    let item = found
        .ok_or_else(|| Failure::Failed(format!("there is no dead letter {number}; `dead-letters list` shows all")))?;
    if json {
        return line(&item, true);
    }
    let row = |name: &str, text: &str| println!("{}{name:<10}{:#} {text}", print::DIM, print::DIM);
    row("number", &item.number.to_string());
    row("topic", &item.topic);
    row("key", &print::visible(&item.key));
    row("accepted", &item.accepted.to_string());
    row("parked", &item.parked.map(|at| at.to_string()).unwrap_or_default());
    row("reason", item.reason.as_deref().unwrap_or_default());
    row("error", item.error.as_deref().unwrap_or_default());
    row("bytes", &item.bytes.to_string());
    item.headers.iter().for_each(|(name, value)| row("header", &print::visible(&format!("{name}: {value}"))));
    match (&item.value, &item.value_hex) {
        (Some(value), _) => JsonLines::to_stdout().write(value).map_err(Failure::failed)?,
        (None, hex) => row("hex", hex.as_deref().unwrap_or_default()),
    }
    Ok(())
}

async fn export(place: &Where, output: Option<PathBuf>) -> Result<(), Failure> {
    let access = place.open().await?;
    let all = access.ask::<Status>(Ask::Status).await?.dead_letters;
    let mut file = writer(output.as_ref())?;
    let bar = progress(all);
    let written = access
        .each(u64::MAX, true, dead_letters, |item| {
            bar.inc(1);
            file.write(&item).map_err(Failure::failed)
        })
        .await?;
    file.flush().map_err(Failure::failed)?;
    bar.finish_and_clear();
    if let Some(path) = &output {
        eprintln!("{written} dead letters written to {}", path.display());
    }
    access.close().await;
    Ok(())
}

/// Does it to all that were chosen; those that are not there are told at the end.
async fn each(chosen: &Chosen, done: &str, ask: impl Fn(u64) -> Ask) -> Result<(), Failure> {
    let access = chosen.place.open_to_change().await?;
    let numbers = if chosen.all { all(&access).await? } else { chosen.numbers.clone() };
    let bar = progress(numbers.len() as u64);
    let (mut count, mut failures) = (0_u64, Vec::new());
    for number in numbers {
        match access.ask::<serde_json::Value>(ask(number)).await {
            Ok(_) => count += 1,
            Err(failure) => failures.push(failure.to_string()),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let is_running = matches!(access, Access::Running(_));
    access.close().await;
    if chosen.json {
        println!("{}", serde_json::json!({ done: count, "failures": failures }));
    } else {
        let later =
            if done == "replayed" && !is_running { "; the next relay, or `spool drain`, publishes them" } else { "" };
        println!("{count} {done}{later}");
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::Failed(failures.join("\n"))) }
}

async fn all(access: &Access) -> Result<Vec<u64>, Failure> {
    let mut numbers = Vec::new();
    access
        .each(u64::MAX, false, dead_letters, |item| {
            numbers.push(item.number);
            Ok(())
        })
        .await?;
    Ok(numbers)
}
