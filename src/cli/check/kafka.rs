//! What `check` asks of the brokers: whether each can be reached where `serve` will look for it, and whether the topics are there, with
//! settings that keep events.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::Report;
use crate::cli::items;
use crate::cli::reach::reach;
use crate::config::Config;
use crate::topics::{Absent, Broker, Cluster, MIN_IN_SYNC, NAMES_MAX, Present, Reason, Topics, first_names, names};

/// Why a topic accepts no event: it has too few replicas, or too few of them are in sync.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Short {
    OfReplicas { replicas: i64, needed: i64 },
    OfSync,
}

/// Topics by what they are short of.
fn short(present: &[Present], needed: &HashMap<Arc<str>, i64>) -> BTreeMap<Short, Vec<Arc<str>>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for Present { name, replicas, in_sync } in present {
        let short = match needed.get(name) {
            Some(&needed) if *replicas < needed => Short::OfReplicas { replicas: *replicas, needed },
            Some(needed) if in_sync < needed => Short::OfSync,
            _ => continue,
        };
        found.entry(short).or_default().push(Arc::clone(name));
    }
    found
}

/// What is asked of the brokers.
pub struct Kafka<'a> {
    pub config: &'a Config,
    pub report: &'a Report,
}

/// How many brokers are tried at once: each takes a client with threads of its own.
const AT_ONCE: usize = 16;

/// Topics that are there or will be created, with a setting of each.
type Settings = Vec<(Arc<str>, i64)>;

impl Kafka<'_> {
    pub async fn look(&self) {
        let kafka = &self.config.kafka;
        self.report.begin("brokers");
        if !self.brokers().await {
            return;
        }
        self.report.begin("topics");
        let cluster = Topics::new(self.config.policy.topics(), self.config.topics.clone(), kafka)
            .map_err(|unusable| unusable.to_string())
            .and_then(|topics| {
                let cluster = tokio::task::block_in_place(|| topics.look());
                Ok((cluster.map_err(|error| error.to_string())?, topics))
            });
        match cluster {
            Ok((cluster, topics)) => self.topics(&topics, cluster).await,
            Err(error) => self.report.fail("topics", format!("the brokers do not say which there are: {error}")),
        }
    }

    /// Whether some broker can be reached at the address that it advertises, where `serve` will look for it. Each is tried.
    async fn brokers(&self) -> bool {
        let kafka = &self.config.kafka;
        let dead_letter = &self.config.policy.dead_letter;
        let found = match tokio::task::block_in_place(|| reach(kafka, &kafka.brokers, dead_letter)) {
            Ok(found) => found,
            Err(why) => {
                self.report.fail("brokers", format!("no broker answers at {}: {why}", kafka.brokers));
                return false;
            }
        };
        let count = found.len();
        let asked = found.into_iter().map(async |Broker { id, address }| {
            let (kafka, topic, at) = (kafka.clone(), Arc::clone(dead_letter), address.clone());
            let reached = tokio::task::spawn_blocking(move || reach(&kafka, &at, &topic).map(drop)).await;
            let reached = reached.unwrap_or_else(|panic| Err(panic.to_string()));
            reached.err().map(|why| format!("broker {id} at {address}: {why}"))
        });
        let asked = stream::iter(asked).buffered(AT_ONCE).collect::<Vec<_>>();
        let unreachable: Vec<_> = asked.await.into_iter().flatten().collect();
        if unreachable.is_empty() {
            self.report.ok("brokers", format!("{count} at {}", kafka.brokers));
        } else {
            self.report.fail(
                "brokers",
                format!(
                    "{} answers, but {} of {count} cannot be reached at the address that it advertises to clients: set advertised.listeners of the broker to an address that the relay can reach. {}",
                    kafka.brokers,
                    unreachable.len(),
                    unreachable.join("; ")
                ),
            );
        }
        unreachable.len() < count
    }

    async fn topics(&self, topics: &Topics, Cluster { brokers, present, missing }: Cluster) {
        let there: Vec<_> = present.iter().map(|topic| Arc::clone(&topic.name)).collect();
        let new = topics.replicas(&brokers).await;
        let (absent, to_create) = if self.config.topics.create {
            let (_, refused) =
                if missing.is_empty() { Default::default() } else { topics.create(&missing, new, true).await };
            (refused, missing)
        } else if missing.is_empty() {
            Default::default()
        } else {
            (vec![Absent { topics: missing, reason: Reason::CreateIsOff }], Vec::new())
        };
        let absent_count = absent.iter().map(|absent| absent.topics.len()).sum::<usize>();
        let (is_complete, is_none) = (absent_count == 0, absent_count == self.config.policy.topics().len());
        self.absent(absent, to_create.len());

        self.report.begin("settings");
        let described = topics.describe(&there).await;
        let planned = |name: &str| self.config.topics.settings.get(name).and_then(|value| value.parse::<i64>().ok());
        let values = |name: &str| -> Settings {
            let planned = planned(name);
            described
                .numbers(name)
                .chain(to_create.iter().filter_map(|topic| Some((Arc::clone(topic), planned?))))
                .collect()
        };
        let needed: HashMap<_, _> = described.numbers(MIN_IN_SYNC).collect();
        for (short, topics) in short(&present, &needed) {
            let what = match short {
                Short::OfReplicas { replicas, needed } => format!(
                    "{}, fewer than min.insync.replicas = {needed}: {}; Kafka accepts no event for them: lower it, or add replicas",
                    items::count(replicas.unsigned_abs(), "replica"),
                    self.named(&topics)
                ),
                Short::OfSync => format!(
                    "fewer are in sync than min.insync.replicas wants: {}; Kafka accepts no event for them until more brokers are back",
                    self.named(&topics)
                ),
            };
            self.report.fail("replicas", what);
        }
        if brokers.len() > 1 {
            let planned =
                |count: Option<i64>| to_create.iter().filter_map(move |topic| Some((Arc::clone(topic), count?)));
            let replicas: Vec<_> =
                present.into_iter().map(|topic| (topic.name, topic.replicas)).chain(planned(new.count)).collect();
            let in_sync = described.numbers(MIN_IN_SYNC).chain(planned(new.min_in_sync)).collect();
            let is_unknown = described.unread.is_some() || !to_create.is_empty() && new.is_unknown();
            let is_good = self.replicas(brokers.len(), &replicas, in_sync, is_unknown);
            if is_good && !is_none {
                self.report.ok("replicas", "two brokers or more have an event when it is acked");
            }
        }
        self.retention(values("retention.ms"));
        match (topics.check_sizes(values("max.message.bytes")), described.unread) {
            (Err(too_small), _) if self.config.spool.is_some() => {
                let too_small = too_small.text(|topics| self.named(topics));
                self.report.warn("sizes", format!("{too_small}; what is too large becomes a dead letter"));
            }
            (Err(too_small), _) => self.report.fail("sizes", too_small.text(|topics| self.named(topics))),
            // Nothing is known of topics that are not there.
            (Ok(()), _) if is_none => {}
            (Ok(()), Some(why)) => {
                self.report.warn("sizes", format!("unknown: the brokers do not show the topics' settings ({why})"));
            }
            (Ok(()), None) if is_complete => self.report.ok("sizes", "every topic accepts the largest event"),
            (Ok(()), None) => {
                self.report.ok("sizes", "every topic that is not missing accepts the largest event");
            }
        }
    }

    /// Topics that are missing and will stay so, and how many `serve` would create.
    fn absent(&self, absent: Vec<Absent>, to_create: usize) {
        let (dead_letter, all) = (&self.config.policy.dead_letter, self.config.policy.topics().len());
        let mut is_complete = true;
        for Absent { mut topics, reason } in absent {
            // Records that their topic never takes have another place to go to.
            if reason == Reason::CreateIsOff && topics.len() < all && topics.contains(dead_letter) {
                topics.retain(|topic| topic != dead_letter);
                let instead = if self.config.spool.is_some() { "are kept on the disk" } else { "are answered 503" };
                self.report.warn("dead letters", format!("the topic {dead_letter} is missing: they {instead}"));
            }
            if !topics.is_empty() {
                is_complete = false;
                let detail = format!("missing: {}; {reason}: {}", self.named(&topics), reason.remedy());
                self.report.fail("topics", detail);
            }
        }
        if is_complete {
            let detail =
                if to_create > 0 { format!("{to_create} missing; serve creates them") } else { "all there".to_owned() };
            self.report.ok("topics", detail);
        }
    }

    /// On a cluster of several brokers: whether an event survives the loss of one of them.
    fn replicas(&self, brokers: usize, replicas: &[(Arc<str>, i64)], in_sync: Settings, is_unknown: bool) -> bool {
        let single: Vec<_> = replicas.iter().filter(|(_, replicas)| *replicas == 1).map(|(topic, _)| topic).collect();
        let alone: Vec<_> = in_sync.into_iter().filter(|(_, min)| *min < 2).map(|(topic, _)| topic).collect();
        let alone: Vec<_> = alone.iter().filter(|topic| !single.contains(topic)).collect();
        if !single.is_empty() {
            self.report.warn(
                "replicas",
                format!(
                    "one, though there are {brokers} brokers: {}; their events are lost with that broker's disk. Set topics.replication = {}; topics that are there keep what they have",
                    self.named(&single),
                    brokers.min(3)
                ),
            );
        }
        if !alone.is_empty() {
            self.report.warn(
                "replicas",
                format!(
                    "min.insync.replicas is 1: {}; one broker alone may ack an event and be lost. With three replicas set it to 2: topics that are there keep what they have",
                    self.named(&alone)
                ),
            );
        }
        if is_unknown {
            let why = "unknown: the brokers do not show all settings; may the relay DescribeConfigs of the cluster and of the topics?";
            self.report.warn("replicas", why.to_owned());
        }
        single.is_empty() && alone.is_empty() && !is_unknown
    }

    /// Topics by name, but for all of them, and on a screen for many.
    fn named<T: AsRef<str>>(&self, topics: &[T]) -> String {
        let all = self.config.policy.topics().len();
        if self.report.is_json || topics.len() <= NAMES_MAX || topics.len() == all {
            return names(topics, all);
        }
        format!("{}, which `livechat-relay check --json` lists", first_names(topics))
    }

    fn retention(&self, retention_ms: Settings) {
        const SHORT: Duration = Duration::from_secs(3 * 24 * 3600);
        let is_short = |ms: i64| u64::try_from(ms).is_ok_and(|ms| Duration::from_millis(ms) < SHORT);
        let short: Vec<_> = retention_ms.into_iter().filter(|(_, ms)| is_short(*ms)).map(|(topic, _)| topic).collect();
        if !short.is_empty() {
            self.report.warn(
                "retention",
                format!(
                    "less than three days (retention.ms): {}; consumers that are stopped for longer miss events",
                    self.named(&short)
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_with_too_few_replicas_is_told_from_one_whose_brokers_are_down() {
        let topic = |name: &str, replicas, in_sync| Present { name: name.into(), replicas, in_sync };
        let present = [topic("a", 1, 1), topic("b", 3, 1), topic("c", 3, 3), topic("d", 1, 1), topic("e", 1, 1)];
        let needed = [("a", 2), ("b", 2), ("c", 2), ("d", 2), ("e", 1)].map(|(name, min)| (Arc::from(name), min));
        let expected = [
            (Short::OfReplicas { replicas: 1, needed: 2 }, vec![Arc::from("a"), Arc::from("d")]),
            (Short::OfSync, vec![Arc::from("b")]),
        ];
        assert_eq!(short(&present, &needed.into()), expected.into());
    }
}
