//! `dead-letters`: the records that their topic will never take as they are, and what to do about them.

use std::path::PathBuf;

use anstream::{eprintln, println};
use clap::Subcommand;

use super::access::{Access, Where};
use super::items::{self, line, progress};
use super::print::JsonLines;
use super::{Failure, print};
use crate::desk::{Ask, Page, Status};

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
    let all = count(&access).await?;
    items::list(&access, [dead_letters], (all, limit), json).await?;
    if !json && all == 0 {
        eprintln!("{}there are no dead letters on the disk{:#}", print::DIM, print::DIM);
    }
    access.close().await;
    Ok(())
}

async fn count(access: &Access) -> Result<u64, Failure> {
    Ok(access.ask::<Status>(Ask::Status).await?.dead_letters)
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
    items::export(&access, [dead_letters], count(&access).await?, output).await?;
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
