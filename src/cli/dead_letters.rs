//! `dead-letters`: the records that their topic will never take as they are, and what to do about them.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use futures_util::{Stream, StreamExt as _};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::Offset;

use super::access::{Access, Where, unexpected};
use super::items::{self, count, field, progress};
use super::print::{JsonLines, note, out};
use super::spool::{print_json, unfinished};
use super::{Failure, Source, tail};
use crate::config::{Config, DEAD_LETTER, Need};
use crate::control::{Answer, Fate, Filter, Item, Letter, List, Replayed, Request, Which};
use crate::dead_letter;
use crate::event::Record;
use crate::spool::{self, DeadLetter, Entry};

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
        if self.all { Which::All } else { Which::Numbers(self.numbers.clone()) }
    }
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::List { place, kafka: true, limit, json } => list_on_kafka(&place.source, limit, json).await,
        Command::List { place, kafka: false, limit, json } => list(&place, limit, json).await,
        Command::Show { place, number: Place::OnDisk(number), json } => show(&place, number, json).await,
        Command::Show { place, number: Place::OnKafka(partition, offset), json } => {
            show_on_kafka(&place.source, partition, offset, json).await
        }
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
    if json { print_json(&item) } else { print(&number.to_string(), &item) }
}

fn print(number: &str, item: &Item) -> Result<(), Failure> {
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
        (Some(value), _) => {
            let mut lines = JsonLines::to_stdout();
            lines.write(value).and_then(|()| lines.flush())
        }
        (None, hex) => field("hex", hex.as_deref().unwrap_or_default()),
    }
}

/// A dead letter in the dead-letter topic. Its number is its offset.
#[derive(serde::Serialize)]
struct OnKafka {
    partition: i32,
    #[serde(flatten)]
    item: Item,
}

impl OnKafka {
    fn of(message: &BorrowedMessage<'_>, with_value: bool) -> Self {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let headers: Vec<_> = headers.map(|header| (header.key.to_owned().into(), text(header.value).into())).collect();
        let record = Record {
            topic: Arc::from(""),
            key: text(message.key()),
            headers,
            value: message.payload().unwrap_or_default().to_vec(),
        };
        let header = |name: &str| {
            let found = record.headers.iter().find(|(found, _)| found == name);
            found.map(|(_, value)| value.to_string()).unwrap_or_default()
        };
        let [topic, reason, error] = dead_letter::HEADERS.map(header);
        let since_ms = message.timestamp().to_millis().unwrap_or_default();
        let dead_letter = Some(DeadLetter { reason, error, since_ms });
        let entry = Entry { dead_letter, ..Entry::new(Record { topic: topic.into(), ..record }) };
        let number = u64::try_from(message.offset()).unwrap_or_default();
        let found = spool::Item { number, bytes: message.payload_len(), entry: Ok(entry) };
        // Its time of receipt stands in its value.
        Self { partition: message.partition(), item: Item { received: None, ..Item::new(found, "", with_value) } }
    }

    fn place(&self) -> String {
        format!("{}/{}", self.partition, self.item.number)
    }
}

/// How long the brokers may take to give out more of a topic, or to say that there is no more.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Reads the dead-letter topic from its beginning until `each` wants no more, or to its end.
async fn read_kafka(
    source: &Source,
    with_values: bool,
    mut each: impl FnMut(OnKafka) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let Config { kafka, topic_prefix: prefix, .. } = source.load(Need::Kafka)?;
    let topic = format!("{prefix}{DEAD_LETTER}");
    let mut client = kafka.client();
    client.set("enable.partition.eof", "true");
    let wanted = |name: &str| name == topic;
    let consumer =
        tokio::task::block_in_place(|| tail::consumer(client, wanted, Offset::Beginning, kafka.start_timeout))?;
    let partitions = consumer.assignment().map_err(Failure::failed)?.count();
    read_to_end(consumer.stream(), partitions, &kafka.brokers, |message| each(OnKafka::of(&message, with_values))).await
}

/// Hands over what comes of so many partitions until `each` wants no more, or until the end of each partition was reached. That of a
/// partition that still grows is reported again after each message.
async fn read_to_end<M>(
    mut messages: impl Stream<Item = KafkaResult<M>> + Unpin,
    partitions: usize,
    brokers: &str,
    mut each: impl FnMut(M) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut ended = HashSet::new();
    while ended.len() < partitions {
        let late = |_| Failure::Failed(format!("the brokers at {brokers} do not answer"));
        match tokio::time::timeout(TIMEOUT, messages.next()).await.map_err(late)? {
            Some(Ok(message)) => {
                if !each(message)? {
                    return Ok(());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => _ = ended.insert(partition),
            Some(Err(error)) => return Err(Failure::Failed(format!("Kafka: {error}"))),
            None => return Err(Failure::Failed("the consumer has ended".to_owned())),
        }
    }
    Ok(())
}

async fn list_on_kafka(source: &Source, limit: u64, json: bool) -> Result<(), Failure> {
    let (mut lines, mut shown) = (JsonLines::to_stdout(), 0);
    let each = |letter: OnKafka| {
        if shown == limit {
            note(format_args!("{shown} shown; more with --limit"));
            return Ok(false);
        }
        if json {
            lines.write(&letter)?;
        } else {
            if shown == 0 {
                items::heading(&letter.item)?;
            }
            items::row(&letter.place(), &letter.item)?;
        }
        shown += 1;
        Ok(true)
    };
    read_kafka(source, false, each).await?;
    if shown == 0 && !json {
        note(format_args!("there are no dead letters in the topic"));
    }
    lines.flush()
}

async fn show_on_kafka(source: &Source, partition: i32, offset: u64, json: bool) -> Result<(), Failure> {
    let mut found = None;
    let each = |letter: OnKafka| {
        let is_it = letter.partition == partition && letter.item.number == offset;
        found = Some(letter).filter(|_| is_it);
        Ok(!is_it)
    };
    read_kafka(source, true, each).await?;
    let none = || {
        Failure::Failed(format!("there is no dead letter {partition}/{offset}; `dead-letters list --kafka` shows all"))
    };
    let letter = found.ok_or_else(none)?;
    if json { print_json(&letter) } else { print(&letter.place(), &letter.item) }
}

async fn export(place: &Where, output: Option<PathBuf>) -> Result<(), Failure> {
    let access = place.open().await?;
    items::export(&access, dead_letters(0, None), output.as_ref()).await?;
    access.close().await;
    Ok(())
}

async fn drop(chosen: &Chosen) -> Result<(), Failure> {
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
        Fate::Waiting => out(format_args!(
            "{number}  not published to {topic} in time{error}; it stays dead letter {number}: try again"
        )),
        Fate::Corrupted => out(format_args!(
            "{number}  is what was left of a damaged entry: it can be exported and dropped, not published"
        )),
        Fate::Unknown => out(format_args!("{number}  is not there; `dead-letters list` shows all")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_partition_that_grows_while_it_is_read_ends_no_other_one() {
        let end = |partition| Err(KafkaError::PartitionEOF(partition));
        let messages = [end(0), Ok("0/0"), end(0), Ok("0/1"), end(0), Ok("1/0"), end(1), Ok("too late")];
        let mut found = Vec::new();
        let all = |message| {
            found.push(message);
            Ok(true)
        };
        let read = read_to_end(futures_util::stream::iter(messages), 2, "", all).await;
        assert!(read.is_ok(), "{read:?}");
        assert_eq!(found, ["0/0", "0/1", "1/0"]);
    }
}
