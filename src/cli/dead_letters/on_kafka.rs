//! The dead letters in the dead-letter topic, read from Kafka.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::Offset;

use super::print_letter;
use crate::cli::items::{Table, number};
use crate::cli::print::{JsonLines, note};
use crate::cli::reach::reach;
use crate::cli::spool::print_json;
use crate::cli::tail::{self, Topics};
use crate::cli::{Failure, Source};
use crate::config::{Config, DEAD_LETTER, Need};
use crate::control::Item;
use crate::dead_letter;
use crate::event::Record;
use crate::spool::{self, DeadLetter, Entry};

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
    let brokers = &kafka.brokers;
    let consumer = tokio::task::block_in_place(|| {
        let reached = reach(&kafka, brokers, &topic);
        reached.map_err(|why| Failure::Failed(format!("no broker answers at {brokers}: {why}")))?;
        tail::consumer(client, Topics::Named(&[topic]), Offset::Beginning, kafka.start_timeout)
    })?;
    let partitions = consumer.assignment().map_err(Failure::failed)?.count();
    read_to_end(consumer.stream(), partitions, brokers, |message| each(OnKafka::of(&message, with_values))).await
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

pub async fn list(source: &Source, limit: u64, json: bool) -> Result<(), Failure> {
    let (mut lines, mut table, mut shown) = (JsonLines::to_stdout(), Table::default(), 0);
    let each = |letter: OnKafka| {
        if shown == limit {
            note(format_args!("{} shown; more were not looked at: raise --limit", number(shown)));
            return Ok(false);
        }
        if json {
            lines.write(&letter)?;
        } else {
            table.row(&letter.place(), &letter.item)?;
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

pub async fn show(source: &Source, partition: i32, offset: u64, json: bool) -> Result<(), Failure> {
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
    if json { print_json(&letter) } else { print_letter(&letter.place(), &letter.item) }
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
