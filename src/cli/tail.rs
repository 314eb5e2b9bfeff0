//! `tail`: events as they arrive on Kafka, for eyes or for programs.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::print::{Found, JsonLines};
use super::{Failure, Source, print};
use crate::config::{Config, Need};
use crate::publish::Unusable;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Brokers [default: kafka.brokers of the configuration]
    #[arg(long, value_name = "HOST:PORT,…")]
    brokers: Option<String>,
    /// Only this topic (can be repeated) [default: all that start with topics.prefix]
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
    /// Only this action (can be repeated)
    #[arg(long, value_name = "ACTION")]
    action: Vec<String>,
    /// Only this chat
    #[arg(long, value_name = "CHAT_ID")]
    chat: Option<String>,
    /// Begin with the oldest events that Kafka has, instead of the next new one
    #[arg(long)]
    from_beginning: bool,
    /// End after this many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print JSON, one event per line: topic, partition, offset, key, attributes, data
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Config { kafka, topic_prefix: prefix, .. } = arguments.source.load(Need::Kafka)?;
    let mut client = kafka.client();
    if let Some(brokers) = &arguments.brokers {
        client.set("bootstrap.servers", brokers);
    }
    let wanted = |topic: &str| match &arguments.topic[..] {
        [] => topic.starts_with(&prefix),
        topics => topics.iter().any(|wanted| wanted == topic),
    };
    let offset = if arguments.from_beginning { Offset::Beginning } else { Offset::End };
    let consumer = tokio::task::block_in_place(|| consumer(client, wanted, offset, kafka.start_timeout))?;
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        anstream::eprintln!("{}waiting for events; Ctrl-C ends{:#}", print::DIM, print::DIM);
    }
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut json = arguments.json.then(JsonLines::to_stdout);
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = tokio::select! {
            message = consumer.recv() => message.map_err(|e| Failure::Failed(format!("Kafka: {e}")))?,
            _ = &mut interrupted => return Ok(()),
        };
        let Some(event) = Found::read(&message) else { continue };
        let is_wanted = (arguments.action.is_empty() || arguments.action.iter().any(|action| action == event.action()))
            && arguments.chat.as_deref().is_none_or(|chat| event.attribute("chatid") == Some(chat));
        if is_wanted {
            show(&event, json.as_mut())?;
            left -= 1;
        }
    }
    Ok(())
}

fn show(event: &Found, json: Option<&mut JsonLines>) -> Result<(), Failure> {
    match json {
        Some(json) => json.write(event).and_then(|()| json.flush()),
        None => print::out(format_args!("{}", event.line())),
    }
}

/// A consumer of every partition of the wanted topics, in no group: it leaves no trace on the brokers. Blocks.
///
/// It lives as long as the process: librdkafka's way to close a consumer is to wait for the group that it is not in.
pub fn consumer(
    mut client: ClientConfig,
    wanted: impl Fn(&str) -> bool,
    from: Offset,
    timeout: Duration,
) -> Result<&'static StreamConsumer, Failure> {
    // librdkafka wants a group's name of every consumer, even of those that never join one.
    client.set("group.id", "livechat-relay-tail").set("enable.auto.commit", "false");
    client.set("auto.offset.reset", "earliest").set_log_level(RDKafkaLogLevel::Critical);
    let brokers = client.get("bootstrap.servers").unwrap_or_default().to_owned();
    let consumer: StreamConsumer = client.create().map_err(Unusable::from)?;
    let metadata = consumer
        .fetch_metadata(None, timeout)
        .map_err(|e| Failure::Failed(format!("no broker answers at {brokers}: {e}; is Kafka up?")))?;
    let mut partitions = TopicPartitionList::new();
    for topic in metadata.topics().iter().filter(|topic| wanted(topic.name())) {
        for partition in topic.partitions() {
            partitions.add_partition_offset(topic.name(), partition.id(), from).map_err(Failure::failed)?;
        }
    }
    if partitions.count() == 0 {
        return Err(Failure::Failed(format!("no such topic at {brokers} yet; `serve` creates them at its start")));
    }
    consumer.assign(&partitions).map_err(Failure::failed)?;
    Ok(Box::leak(Box::new(consumer)))
}
