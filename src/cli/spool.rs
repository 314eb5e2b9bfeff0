//! `spool`: what waits for Kafka, while the relay runs and while it does not.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::access::{Access, Where, unexpected};
use super::items::{self, Filters, count, progress};
use super::print::{DIM, ERROR, GOOD, JsonLines, note, out, visible};
use super::{Failure, Source};
use crate::control::{Answer, Dropped, List, Paused, Request, Status};
use crate::replay;
use crate::shutdown::Shutdown;
use crate::spool::Verified;

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
        /// At most this many of each topic
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

#[derive(clap::Args)]
struct Drop {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    filters: Filters,
    /// List what would be deleted; delete nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Status { place, json } => status(&place, json).await,
        Command::List { place, filters, limit, json } => list(&place, &filters, limit, json).await,
        Command::Export { place, filters, output } => export(&place, &filters, output).await,
        Command::Drop(drop) => drop.run().await,
        Command::Drain { place, timeout, json } => drain(&place, timeout, json).await,
        Command::Verify { place, json } => verify(&place, json).await,
        Command::Pause(topic) => topic.set_paused(true).await,
        Command::Resume(topic) => topic.set_paused(false).await,
    }
}

async fn status(place: &Where, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let status = access.status().await?;
    let shown = if json { print_json(&status) } else { show(&status, access.is_running()) };
    access.close().await;
    shown
}

/// An object on one line.
pub fn print_json(object: &impl serde::Serialize) -> Result<(), Failure> {
    let mut lines = JsonLines::to_stdout();
    lines.write(object).and_then(|()| lines.flush())
}

fn show(status: &Status, is_running: bool) -> Result<(), Failure> {
    let of = |bytes: u64, most: u64| {
        format!("{} of {} ({:.1} %)", size(bytes), size(most), 100.0 * bytes as f64 / most as f64)
    };
    let relay = if is_running { "of a running relay" } else { "no relay runs" };
    out(format_args!("spool         {} ({relay})", status.directory.display()))?;
    match &status.why {
        None => out(format_args!("accepts       {GOOD}yes{GOOD:#}"))?,
        Some(why) => out(format_args!("accepts       {ERROR}no{ERROR:#}: {}", visible(why)))?,
    }
    for problem in &status.problems {
        out(format_args!("problem       {ERROR}{}{ERROR:#}", visible(problem)))?;
    }
    out(format_args!("events        {}, {}", status.events, of(status.bytes, status.bytes_max)))?;
    let dead_letters = of(status.dead_letters_bytes, status.dead_letters_bytes_max);
    out(format_args!("dead letters  {}, {dead_letters}", status.dead_letters))?;
    if status.lanes.is_empty() {
        return Ok(());
    }
    out(format_args!("\n{DIM}{:<40} {:>10} {:>12}  oldest{DIM:#}", "topic", "events", "bytes"))?;
    status.lanes.iter().try_for_each(|lane| {
        let age = lane.oldest.map_or_else(String::new, age);
        let paused = if lane.paused { "  paused" } else { "" };
        out(format_args!("{:<40} {:>10} {:>12}  {age}{paused}", lane.topic, lane.events, size(lane.bytes)))
    })
}

pub fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// How long ago, in the two largest units.
fn age(since: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(since).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min {} s ago", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min ago", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h ago", seconds / 86400, seconds % 86400 / 3600),
    }
}

fn waiting(filters: &Filters, limit: Option<u64>) -> List {
    List { dead_letters: false, filter: filters.filter(), from: 0, limit, values: false }
}

async fn list(place: &Where, filters: &Filters, limit: u64, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let listed = items::list(&access, waiting(filters, Some(limit)), json).await?;
    access.close().await;
    if json {
        return Ok(());
    }
    match listed.listed {
        0 if listed.of == 0 => note(format_args!("nothing waits")),
        0 => note(format_args!("no event matches; {} read", count(listed.read, "event"))),
        some if listed.read < listed.of => {
            note(format_args!("{some} shown, after reading {} of {}; more with --limit", listed.read, listed.of));
        }
        _ => {}
    }
    items::warn_of(&listed);
    Ok(())
}

async fn export(place: &Where, filters: &Filters, output: Option<PathBuf>) -> Result<(), Failure> {
    let access = place.open().await?;
    items::export(&access, waiting(filters, None), output.as_ref()).await?;
    access.close().await;
    Ok(())
}

impl Drop {
    async fn run(self) -> Result<(), Failure> {
        if self.filters.filter().is_empty() {
            let needed = "say what to drop: --topic, --key, --id, --action, --app, --since or --until";
            return Err(Failure::Usage(needed.to_owned()));
        }
        if self.dry_run {
            let access = self.place.open().await?;
            let listed = self.look(&access, true).await;
            access.close().await;
            let (events, dead_letters) = listed?;
            if !self.json {
                note(format_args!(
                    "{} and {} would be dropped; nothing was",
                    count(events, "event"),
                    count(dead_letters, "dead letter")
                ));
            }
            return Ok(());
        }
        if !self.yes && !std::io::stdin().is_terminal() {
            let ask = "this drops events for good, and there is no terminal to ask on: add --yes, or --dry-run to see what it would drop";
            return Err(Failure::Usage(ask.to_owned()));
        }
        if !self.yes && !self.is_confirmed().await? {
            return Ok(());
        }
        // Only now is the directory of a stopped relay locked: a person may take their time.
        let access = self.place.open_to_change().await?;
        let dropped = self.drop(&access).await;
        access.close().await;
        let dropped = dropped?;
        if self.json {
            print_json(&dropped)?
        } else {
            report(&dropped)?
        }
        unfinished(&dropped)
    }

    /// How many events and dead letters match.
    async fn look(&self, access: &Access, shows: bool) -> Result<(u64, u64), Failure> {
        let mut found = [0, 0];
        for (dead_letters, found) in [false, true].into_iter().zip(&mut found) {
            let list = List { dead_letters, ..waiting(&self.filters, None) };
            let listed = if shows {
                items::list(access, list, self.json).await?
            } else {
                let bar = progress(0);
                let listed = access.list(list, |read, of| items::show(&bar, read, of), |_| Ok(())).await?;
                bar.finish_and_clear();
                listed
            };
            *found = listed.listed;
            items::warn_of(&listed);
        }
        Ok(found.into())
    }

    /// Says how much matches, and asks.
    async fn is_confirmed(&self) -> Result<bool, Failure> {
        let access = self.place.open().await?;
        let found = self.look(&access, false).await;
        access.close().await;
        let (events, dead_letters) = found?;
        if events + dead_letters == 0 {
            note(format_args!("nothing matches, and nothing was dropped"));
            return Ok(false);
        }
        let dead_letters = match dead_letters {
            0 => String::new(),
            some => format!(" and {}", count(some, "dead letter")),
        };
        note(format_args!(
            "Drop {}{dead_letters}? They are erased from this spool; copies that are on Kafka remain there. [y/N]",
            count(events, "event")
        ));
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(Failure::failed)?;
        let is_yes = matches!(answer.trim(), "y" | "Y" | "yes");
        if !is_yes {
            note(format_args!("nothing was dropped"));
        }
        Ok(is_yes)
    }

    async fn drop(&self, access: &Access) -> Result<Dropped, Failure> {
        let bar = progress(0);
        let asked = access.ask(Request::Drop { filter: self.filters.filter() }, |answer| {
            if let Answer::Progress { read, of } = answer {
                items::show(&bar, read, of);
            }
            Ok(())
        });
        let answer = asked.await?;
        bar.finish_and_clear();
        match answer {
            Answer::Dropped(dropped) => Ok(dropped),
            other => Err(unexpected(&other)),
        }
    }
}

fn report(dropped: &Dropped) -> Result<(), Failure> {
    let (events, dead_letters) = (count(dropped.events, "event"), count(dropped.dead_letters, "dead letter"));
    out(format_args!("{events} and {dead_letters} dropped"))?;
    if dropped.events + dropped.dead_letters == 0 {
        return Ok(());
    }
    if dropped.erased {
        out(format_args!("no file of the spool has them any more"))?;
    }
    out(format_args!(
        "copies that are on Kafka remain there; one that was on its way there at this moment may still arrive"
    ))
}

/// What a drop has not done, as a failure.
pub fn unfinished(dropped: &Dropped) -> Result<(), Failure> {
    let mut missing = Vec::new();
    if let Some(why) = &dropped.why {
        missing.push(format!(
            "they are not published any more, but their bytes stay on the disk until the rest of their files is on Kafka: {why}"
        ));
    }
    if dropped.not_compared > 0 {
        missing.push(format!("{} damaged entries could not be compared with the filter", dropped.not_compared));
    }
    missing.extend(dropped.problems.iter().map(|problem| format!("not searched: {problem}")));
    missing.extend(dropped.unknown.iter().map(|number| format!("there is no dead letter {number}")));
    if missing.is_empty() { Ok(()) } else { Err(Failure::Failed(missing.join("\n"))) }
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
        problems.iter().try_for_each(|problem| out(format_args!("{ERROR}{problem}{ERROR:#}")))?;
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

async fn drain(place: &Where, timeout: Duration, json: bool) -> Result<(), Failure> {
    let mut access = place.open_to_change().await?;
    let publishing = publish(&mut access, &place.source)?;
    let (until, mut first) = (Instant::now() + timeout, None);
    let bar = progress(0);
    let Status { events: left, problems, .. } = loop {
        let status = access.status().await?;
        let first = *first.get_or_insert(status.events.max(1));
        items::show(&bar, first.saturating_sub(status.events), first.max(status.events));
        if status.events == 0 || Instant::now() >= until {
            bar.finish_and_clear();
            break status;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    if let Some((task, stop)) = publishing {
        stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(5), task).await; // what is under way is published again, at worst
    }
    access.close().await;
    if json {
        print_json(&serde_json::json!({ "left": left, "problems": problems }))?;
    }
    // What cannot be read is not counted.
    let unread = problems.iter().map(|problem| format!("not published: {problem}"));
    let left = (left > 0).then(|| format!("{left} events are still in the spool"));
    let unfinished: Vec<_> = left.into_iter().chain(unread).collect();
    if !unfinished.is_empty() {
        return Err(Failure::Failed(unfinished.join("\n")));
    }
    if json { Ok(()) } else { out(format_args!("{GOOD}the spool is empty{GOOD:#}")) }
}

type Publishing = (tokio::task::JoinHandle<()>, CancellationToken);

/// Where no relay runs, publishes as one would.
fn publish(access: &mut Access, source: &Source) -> Result<Option<Publishing>, Failure> {
    access.publish(source)?;
    let Access::Stopped(stopped) = access else { return Ok(None) };
    let Some(dead_letters) = stopped.dead_letters.clone() else { return Ok(None) };
    let stop = CancellationToken::new();
    let replay =
        replay::run(stopped.config.replay, stopped.spool.clone(), dead_letters, Shutdown::default(), stop.clone());
    Ok(Some((tokio::spawn(replay), stop)))
}
