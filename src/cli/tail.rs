//! `tail`: events as they arrive on Kafka, for eyes or for programs.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::found::Found;
use super::items::count;
use super::print::{self, JsonLines, note};
use super::reach::reach;
use super::{Failure, Source};
use crate::config::{Config, DEAD_LETTER, Need, nearest};
use crate::event::actions;
use crate::event::normalize::{APP_EVENTS, APP_INSTALLED};
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
    /// Begin with the oldest events that Kafka has, instead of the next new one. Kafka orders the events of a partition; those of
    /// different partitions come in any order, so times may jump back
    #[arg(long)]
    from_beginning: bool,
    /// End after this many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print JSON, one event per line: topic, partition, offset, key, attributes (the id is one), data
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Config { mut kafka, topic_prefix: prefix, .. } = arguments.source.load(Need::Kafka)?;
    if let Some(brokers) = arguments.brokers {
        kafka.brokers = brokers;
    }
    let filter = Filter { actions: arguments.action.iter().map(|name| current(name)).collect(), chat: arguments.chat };
    let brokers = &kafka.brokers;
    note(format_args!("connecting to {brokers}"));
    let topics = if arguments.topic.is_empty() { Topics::Prefix(&prefix) } else { Topics::Named(&arguments.topic) };
    let (from, which) = if arguments.from_beginning {
        (Offset::Beginning, "from the oldest event on")
    } else {
        (Offset::End, "new events only")
    };
    let consumer = tokio::task::block_in_place(|| {
        let reached = reach(&kafka, brokers, &format!("{prefix}{DEAD_LETTER}"));
        reached.map_err(|why| Failure::Failed(format!("no broker answers at {brokers}: {why}")))?;
        consumer(kafka.client(), topics, from, kafka.start_timeout)
    })?;
    let assigned = consumer.assignment().map_err(Failure::failed)?.to_topic_map();
    let names: BTreeSet<_> = assigned.keys().map(|(topic, _)| topic).collect();
    let topics = count(names.len() as u64, "topic");
    let signal = crate::shutdown::on_signal().map_err(Failure::failed)?;
    tokio::pin!(signal);
    note(format_args!("reading {topics} from {brokers}, {which}; Ctrl-C ends"));

    let mut reading = Reading {
        filter,
        prefix,
        json: arguments.json.then(JsonLines::to_stdout),
        tally: Tally::default(),
        progress: None,
    };
    let mut troubles = Vec::new();
    while arguments.count.is_none_or(|count| reading.tally.shown < count) {
        let received = tokio::select! {
            received = consumer.recv() => received,
            _ = &mut signal => break,
        };
        match received {
            Ok(message) => {
                troubles.clear();
                reading.take(&message)?;
            }
            // librdkafka tries again by itself, and reports the same each time.
            Err(KafkaError::MessageConsumption(code)) if troubles.contains(&code) => {}
            Err(KafkaError::MessageConsumption(code)) => {
                reading.warn(&format!("Kafka: {code}; trying again"));
                troubles.push(code);
            }
            Err(error) => return Err(Failure::Failed(format!("Kafka: {error}"))),
        }
    }
    reading.end();
    Ok(())
}

/// The name that events have of an action which may be named by an older one. A name that is not known is right where LiveChat has a new
/// action.
fn current(action: &str) -> String {
    let known = || actions::names().chain(APP_EVENTS).chain([APP_INSTALLED]);
    if let Some(found) = actions::find(action).map(|found| found.name).or_else(|| known().find(|name| *name == action))
    {
        return found.to_owned();
    }
    let hint = nearest(action, known()).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
    print::complaint(
        print::WARNING,
        "warning:",
        &format!("this version knows no action `{}`{hint}", print::visible(action)),
    );
    action.to_owned()
}

/// Which events are shown.
struct Filter {
    /// None: all.
    actions: Vec<String>,
    chat: Option<String>,
}

impl Filter {
    fn lets(&self, event: &Found) -> bool {
        (self.actions.is_empty() || self.actions.iter().any(|action| action == event.action()))
            && self.chat.as_deref().is_none_or(|chat| event.attribute("chatid") == Some(chat))
    }
}

/// Of the records so far.
#[derive(Default)]
struct Tally {
    read: u64,
    /// Those that the relay has not written.
    foreign: u64,
    shown: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [read, foreign, shown] = [self.read, self.foreign, self.shown].map(HumanCount);
        write!(f, "{read} record{} read, {shown} shown", if self.read == 1 { "" } else { "s" })?;
        if self.foreign > 0 {
            write!(f, "; no events of the relay: {foreign}")?;
        }
        Ok(())
    }
}

struct Reading {
    filter: Filter,
    prefix: String,
    json: Option<JsonLines>,
    tally: Tally,
    /// What was read so far, at the bottom of a terminal, once not all of it is shown.
    progress: Option<ProgressBar>,
}

impl Reading {
    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<(), Failure> {
        let event = Found::read(message);
        self.tally.read += 1;
        self.tally.foreign += u64::from(event.is_none());
        if let Some(event) = event.filter(|event| self.filter.lets(event)) {
            self.tally.shown += 1;
            let (json, prefix) = (self.json.as_mut(), &self.prefix);
            aside(self.progress.as_ref(), || match json {
                Some(json) => json.write(&event).and_then(|()| json.flush()),
                None => print::out(format_args!("{}", event.line(prefix, Timestamp::now(), print::columns()))),
            })?;
        } else {
            self.progress.get_or_insert_with(progress);
        }
        if let Some(progress) = &self.progress {
            progress.set_message(self.tally.to_string());
        }
        Ok(())
    }

    fn warn(&self, text: &str) {
        aside(self.progress.as_ref(), || print::complaint(print::WARNING, "warning:", text));
    }

    fn end(&self) {
        if let Some(progress) = &self.progress {
            progress.finish_and_clear();
        }
        note(format_args!("{}", self.tally));
    }
}

/// A line that is drawn again now and then: a change that comes soon after another is not drawn by itself.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:.dim}").expect("a valid template");
    let progress = ProgressBar::no_length().with_style(style);
    progress.enable_steady_tick(Duration::from_millis(250));
    progress
}

/// Prints while the progress is not on the screen.
fn aside<R>(progress: Option<&ProgressBar>, print: impl FnOnce() -> R) -> R {
    match progress {
        Some(progress) => progress.suspend(print),
        None => print(),
    }
}

/// Topics of a cluster.
pub enum Topics<'a> {
    /// All that begin with it.
    Prefix(&'a str),
    Named(&'a [String]),
}

impl Topics<'_> {
    /// Those that are meant of the cluster's.
    ///
    /// # Errors
    /// Which there is not.
    fn of<'c>(&self, cluster: &[&'c str]) -> Result<Vec<&'c str>, String> {
        match self {
            Self::Prefix(prefix) => {
                let found: Vec<_> = cluster.iter().copied().filter(|name| name.starts_with(prefix)).collect();
                let none = || {
                    format!("no topic begins with `{prefix}` (topics.prefix) yet; `serve` creates them at its start")
                };
                if found.is_empty() { Err(none()) } else { Ok(found) }
            }
            Self::Named(names) => {
                let find = |name: &String| {
                    let hint =
                        || nearest(name, cluster.iter().copied()).map(|known| format!("; did you mean `{known}`?"));
                    let found = cluster.iter().copied().find(|known| known == name);
                    found.ok_or_else(|| format!("there is no topic `{name}`{}", hint().unwrap_or_default()))
                };
                names.iter().map(find).collect()
            }
        }
    }
}

/// A consumer of every partition of these topics, in no group: it leaves no trace on the brokers. Blocks.
///
/// It lives as long as the process: librdkafka's way to close a consumer is to wait for the group that it is not in.
pub fn consumer(
    mut client: ClientConfig,
    topics: Topics<'_>,
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
    let names: Vec<_> = metadata.topics().iter().map(|topic| topic.name()).collect();
    let wanted = topics.of(&names).map_err(|why| Failure::Failed(format!("{brokers}: {why}")))?;
    let mut partitions = TopicPartitionList::new();
    for topic in metadata.topics().iter().filter(|topic| wanted.contains(&topic.name())) {
        for partition in topic.partitions() {
            partitions.add_partition_offset(topic.name(), partition.id(), from).map_err(Failure::failed)?;
        }
    }
    if from == Offset::End {
        // As numbers, so that what is written from now on is read: librdkafka would ask for the ends some time after it was assigned
        // them. This is one request per broker; -1, which is how `Offset::End` is written, asks for the end instead of a time.
        let ends = consumer.offsets_for_times(partitions.clone(), timeout).map_err(Failure::failed)?;
        for end in ends.elements().iter().filter(|end| end.error().is_ok() && end.offset().to_raw() >= Some(0)) {
            partitions.set_partition_offset(end.topic(), end.partition(), end.offset()).map_err(Failure::failed)?;
        }
    }
    consumer.assign(&partitions).map_err(Failure::failed)?;
    Ok(Box::leak(Box::new(consumer)))
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Message as _;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{FutureProducer, FutureRecord};

    use super::*;

    #[test]
    fn topics_are_those_with_the_prefix_or_those_that_are_named_and_a_wrong_name_is_told() {
        let cluster = ["livechat.incoming_chat", "livechat.incoming_event", "other"];
        let named = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            Topics::Named(&names).of(&cluster).map(|found| found.join(" "))
        };
        assert_eq!(Topics::Prefix("livechat.").of(&cluster), Ok(cluster[..2].to_vec()));
        assert_eq!(named(&["other", "livechat.incoming_chat"]), Ok("other livechat.incoming_chat".to_owned()));
        let wrong = "there is no topic `livechat.incoming_evnt`; did you mean `livechat.incoming_event`?";
        assert_eq!(named(&["other", "livechat.incoming_evnt"]), Err(wrong.to_owned()));
        assert_eq!(named(&["x"]), Err("there is no topic `x`".to_owned()));
        let none = Topics::Prefix("lc.").of(&cluster).expect_err("no such topic");
        assert!(none.contains("`lc.` (topics.prefix)"), "{none}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn new_events_are_those_since_the_consumer_is_there() {
        let deadline = Duration::from_secs(60);
        let mock = MockCluster::new(1).expect("a mock cluster");
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", mock.bootstrap_servers());
        let producer: FutureProducer = client.create().expect("a producer");
        let names: Vec<_> = (0..48).map(|n| format!("t{n}")).collect();
        for topic in &names {
            producer.send(FutureRecord::<(), _>::to(topic).payload("old"), deadline).await.expect("written");
        }
        let consumer = tokio::task::block_in_place(|| consumer(client, Topics::Prefix("t"), Offset::End, deadline))
            .expect("a consumer");
        for topic in &names {
            producer.send(FutureRecord::<(), _>::to(topic).payload("new"), deadline).await.expect("written");
        }
        let mut read = BTreeSet::new();
        while read.len() < names.len() {
            let message = tokio::time::timeout(deadline, consumer.recv()).await.expect("in time").expect("a record");
            assert_eq!(message.payload(), Some(&b"new"[..]));
            read.insert(message.topic().to_owned());
        }
    }

    #[test]
    fn an_action_may_have_its_older_name_and_may_be_one_that_livechat_has_since() {
        let names = ["incoming_chat", "incoming_chat_thread", "app.installed", "brand_new"].map(current);
        assert_eq!(names, ["incoming_chat", "incoming_chat", "app.installed", "brand_new"]);
    }

    #[test]
    fn the_tally_says_what_was_read_though_nothing_of_it_is_shown() {
        assert_eq!(Tally { read: 1234, foreign: 0, shown: 0 }.to_string(), "1,234 records read, 0 shown");
        assert_eq!(Tally { read: 1, foreign: 0, shown: 1 }.to_string(), "1 record read, 1 shown");
        let foreign = "7 records read, 5 shown; no events of the relay: 2";
        assert_eq!(Tally { read: 7, foreign: 2, shown: 5 }.to_string(), foreign);
    }
}
