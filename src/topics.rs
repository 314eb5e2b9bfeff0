//! The topics that the routes need: which of them exist, why the others do not, and which are too small.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use tokio::sync::{Notify, watch};

use crate::publish;

/// `[topics]`, but for the routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub create: bool,
    pub partitions: i32,
    /// −1: as many as the brokers' `default.replication.factor` says.
    pub replication: i32,
    pub settings: BTreeMap<String, String>,
    /// From one look at which topics there are to the next.
    pub check_interval: Duration,
}

/// What the brokers say of themselves and of the topics that the routes need.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub brokers: Vec<Broker>,
    pub present: Vec<Present>,
    pub missing: Vec<Arc<str>>,
}

/// A broker, under the address that it gives its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    pub id: i32,
    pub address: String,
}

/// A topic that exists.
#[derive(Clone, Debug)]
pub struct Present {
    pub name: Arc<str>,
    /// Replicas of the partition that has the fewest.
    pub replicas: i64,
    /// Likewise, those that are in sync.
    pub in_sync: i64,
}

/// How many replicas a new topic gets, as far as the brokers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replicas {
    pub count: Option<i64>,
    /// How many of them must have an event when it is acked.
    pub min_in_sync: Option<i64>,
    /// `min_in_sync` is neither the operator's nor the brokers' own: the topic is created with it.
    is_raised: bool,
}

/// How many brokers are asked for their settings at most, one after the other.
const BROKERS_ASKED: usize = 3;

/// With three replicas an event is on two disks when it is acked, and one broker may be down. With two it would stop writes.
const REPLICAS_FOR_TWO_IN_SYNC: i64 = 3;

impl Replicas {
    /// What `[topics]` asks for, and else the brokers' own settings; of `min.insync.replicas` at least 2 where one broker may then be down.
    fn of(config: &Config, of_brokers: impl Fn(&str) -> Option<i64>) -> Self {
        let count = match config.replication {
            ..=0 => of_brokers("default.replication.factor"),
            count => Some(count.into()),
        };
        let set = config.settings.get(MIN_IN_SYNC);
        let min_in_sync = set.map_or_else(|| of_brokers(MIN_IN_SYNC), |set| set.parse().ok());
        let is_raised = set.is_none() && count >= Some(REPLICAS_FOR_TWO_IN_SYNC) && min_in_sync < Some(2);
        Self { count, min_in_sync: if is_raised { Some(2) } else { min_in_sync }, is_raised }
    }

    /// Whether the brokers have not said how many a new topic gets.
    pub const fn is_unknown(self) -> bool {
        self.count.is_none()
    }
}

/// Kafka's name of [`Replicas::min_in_sync`].
pub const MIN_IN_SYNC: &str = "min.insync.replicas";

/// Topics that are missing for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    pub topics: Vec<Arc<str>>,
    pub reason: Reason,
}

/// Why topics are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `topics.create` is off.
    CreateIsOff,
    /// The brokers refuse to create them, or do not answer.
    Refused(RDKafkaErrorCode),
    /// librdkafka does not ask them to.
    NotAsked(String),
}

impl From<KafkaError> for Reason {
    fn from(error: KafkaError) -> Self {
        match error {
            KafkaError::AdminOp(code) => Self::Refused(code),
            other => Self::NotAsked(other.to_string()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateIsOff => f.write_str("topics.create is false"),
            Self::Refused(code) => write!(f, "{code}"),
            Self::NotAsked(why) => f.write_str(why),
        }
    }
}

impl Reason {
    /// What an operator has to change.
    pub const fn remedy(&self) -> &'static str {
        use RDKafkaErrorCode as Code;
        match self {
            Self::CreateIsOff => "create them, or set `topics.create = true`",
            Self::Refused(Code::InvalidReplicationFactor) => "set topics.replication to at most the number of brokers",
            Self::Refused(Code::InvalidPartitions) => "change topics.partitions",
            Self::Refused(Code::InvalidConfig) => {
                "change topics.settings; with three replicas or more the relay adds min.insync.replicas = 2 where they do not have it"
            }
            Self::Refused(Code::InvalidTopic) => {
                "the name collides with another topic's, as Kafka's metrics do not distinguish `.` and `_`: change topics.prefix or topics.actions"
            }
            Self::Refused(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
                "grant the relay Create on them, or create them yourself and grant it Write"
            }
            Self::Refused(Code::PolicyViolation) => {
                "the cluster has a policy for new topics: change topics.partitions, topics.replication or topics.settings, or create them yourself"
            }
            Self::Refused(Code::UnsupportedVersion | Code::UnsupportedFeature) => {
                "the brokers cannot create topics for clients, or not with their default replication (before Kafka 2.4): set topics.replication, or create them yourself"
            }
            _ => "it is tried again after topics.check_interval; if that does not help, create them yourself",
        }
    }
}

/// A list of topics, as texts have it, which is short where they are all that the relay needs.
pub fn names<T: AsRef<str>>(topics: &[T], all: usize) -> String {
    if all > 1 && topics.len() == all {
        return format!("all {all} topics");
    }
    topics.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

/// More names than these are not for a screen.
pub const NAMES_MAX: usize = 8;

/// A list of topics for a screen: of many the first ones, and how many there are besides.
pub fn first_names<T: AsRef<str>>(topics: &[T]) -> String {
    const FIRST: usize = 3;
    if topics.len() <= NAMES_MAX {
        return names(topics, 0);
    }
    format!("{} and {} more", names(&topics[..FIRST], 0), topics.len() - FIRST)
}

/// What [`Topics::prepare`] found and did.
#[derive(Debug)]
pub struct Prepared {
    /// Those that were there.
    pub present: Vec<Arc<str>>,
    /// Those of them that are on one broker alone, though there are several.
    pub on_one_broker: Vec<Arc<str>>,
    pub created: Vec<String>,
    /// The brokers decided how many replicas those have, and do not show it.
    pub are_replicas_unknown: bool,
    pub absent: Vec<Absent>,
}

/// The settings of topics by topic, as far as the brokers show them.
#[derive(Debug, Default)]
pub struct Described {
    settings: Vec<(Arc<str>, ConfigResource)>,
    /// Why some, or all, are not shown.
    pub unread: Option<String>,
}

impl Described {
    /// A setting of each topic that has it.
    pub fn numbers(&self, setting: &str) -> impl Iterator<Item = (Arc<str>, i64)> {
        self.settings.iter().filter_map(move |(topic, config)| Some((Arc::clone(topic), number(config, setting)?)))
    }
}

fn number(config: &ConfigResource, setting: &str) -> Option<i64> {
    config.get(setting)?.value.as_ref()?.parse().ok()
}

/// Topics whose `max.message.bytes` does not fit the largest record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text(|topics| names(topics, 0)))]
pub struct TooSmall {
    pub topics: Vec<(Arc<str>, i64)>,
    pub needed: u64,
}

impl TooSmall {
    /// With the topics' names as `named` has them.
    pub fn text(&self, named: impl Fn(&[&str]) -> String) -> String {
        let mut by_max = BTreeMap::<_, Vec<_>>::new();
        self.topics.iter().for_each(|(topic, max)| by_max.entry(max).or_default().push(&**topic));
        let accepts = by_max.iter().map(|(max, topics)| {
            let verb = if topics.len() == 1 { "accepts" } else { "accept" };
            format!("{} {verb} records of {max} bytes at most", named(topics))
        });
        format!(
            "{}; the relay may send records of {} bytes: raise max.message.bytes of these topics, or lower server.body_bytes_max",
            accepts.collect::<Vec<_>>().join("; "),
            self.needed
        )
    }
}

/// An admin client and the topics it looks after.
pub struct Topics {
    client: AdminClient<DefaultClientContext>,
    wanted: ArcSwap<Wanted>,
    /// [`Topics::set`] was called.
    changed: Notify,
    /// What was wanted at the last [`Topics::prepare`].
    prepared: watch::Sender<Option<Arc<Wanted>>>,
    record_bytes_max: u64,
    timeout: Duration,
    /// As of the last [`Topics::prepare`]; none before the first.
    absent: Mutex<Option<Vec<Absent>>>,
}

/// Which topics there are to be, and how they are created.
struct Wanted {
    names: Vec<Arc<str>>,
    config: Config,
}

impl Topics {
    /// # Errors
    /// [`publish::Unusable`] when librdkafka does not accept the configuration.
    pub fn new(names: Vec<Arc<str>>, config: Config, kafka: &publish::Config) -> Result<Self, publish::Unusable> {
        let mut client = kafka.client();
        client.set_log_level(rdkafka::config::RDKafkaLogLevel::Critical); // each trouble comes back as an error, too
        Ok(Self {
            client: client.create()?,
            wanted: ArcSwap::from_pointee(Wanted { names, config }),
            changed: Notify::new(),
            prepared: watch::Sender::default(),
            record_bytes_max: kafka.record_bytes_max,
            timeout: kafka.start_timeout,
            absent: Mutex::default(),
        })
    }

    /// Changes which topics there are to be, as of the next [`Topics::prepare`]; whether some of them are new.
    pub fn set(&self, names: Vec<Arc<str>>, config: Config) -> bool {
        let before = self.wanted.load_full();
        let has_new = names.iter().any(|name| !before.names.contains(name));
        if names != before.names || config != before.config {
            self.wanted.store(Arc::new(Wanted { names, config }));
            self.changed.notify_one();
        }
        has_new
    }

    /// Resolves when other topics are wanted than before.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Resolves when [`Topics::prepare`] has done what it can for the topics that are wanted now.
    pub async fn prepared(&self) {
        let wanted = self.wanted.load_full();
        let is_of_now = |of: &Option<Arc<Wanted>>| of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &wanted));
        let _ = self.prepared.subscribe().wait_for(is_of_now).await; // the sender is ours
    }

    /// From one look at which topics there are to the next.
    pub fn check_interval(&self) -> Duration {
        self.wanted.load().config.check_interval
    }

    /// How many topics are in which state, as of the last [`Topics::prepare`]; zero before the first.
    pub fn states(&self) -> [(&'static str, usize); 3] {
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |is_counted: fn(&Reason) -> bool| {
            let counted = absent.iter().flatten().filter(|absent| is_counted(&absent.reason));
            counted.map(|absent| absent.topics.len()).sum::<usize>()
        };
        let missing = count(|reason| matches!(reason, Reason::CreateIsOff));
        let refused = count(|reason| !matches!(reason, Reason::CreateIsOff));
        let wanted = self.wanted.load().names.len();
        let ready = if absent.is_some() { wanted.saturating_sub(missing + refused) } else { 0 };
        [("ready", ready), ("missing", missing), ("refused", refused)]
    }

    /// Whether the topic was missing at the last [`Topics::prepare`].
    pub fn is_absent(&self, topic: &str) -> bool {
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        absent.iter().flatten().any(|absent| absent.topics.iter().any(|name| **name == *topic))
    }

    /// How many topics the relay needs.
    pub fn count(&self) -> usize {
        self.wanted.load().names.len()
    }

    /// Asks which brokers and topics there are. Blocks.
    ///
    /// # Errors
    /// What librdkafka says when no broker answers in time.
    pub fn look(&self) -> Result<Cluster, KafkaError> {
        self.look_for(&self.wanted.load())
    }

    fn look_for(&self, wanted: &Wanted) -> Result<Cluster, KafkaError> {
        let metadata = self.client.inner().fetch_metadata(None, self.timeout)?;
        let fewest = |topic: &MetadataTopic, of: fn(&MetadataPartition) -> &[i32]| {
            topic.partitions().iter().filter_map(|partition| i64::try_from(of(partition).len()).ok()).min()
        };
        let replicas =
            |topic| Some((fewest(topic, MetadataPartition::replicas)?, fewest(topic, MetadataPartition::isr)?));
        let there: HashMap<_, _> = metadata.topics().iter().map(|topic| (topic.name(), replicas(topic))).collect();
        let mut cluster = Cluster { brokers: brokers(&metadata), present: Vec::new(), missing: Vec::new() };
        for name in &wanted.names {
            match there.get(&**name) {
                Some(Some((replicas, in_sync))) => {
                    let (replicas, in_sync) = (*replicas, *in_sync);
                    cluster.present.push(Present { name: Arc::clone(name), replicas, in_sync });
                }
                _ => cluster.missing.push(Arc::clone(name)),
            }
        }
        Ok(cluster)
    }

    /// Creates what is missing, if it may. A topic that cannot be created keeps no other from it.
    ///
    /// # Errors
    /// What librdkafka says when no broker answers in time.
    pub async fn prepare(&self) -> Result<Prepared, KafkaError> {
        let wanted = self.wanted.load_full();
        let Cluster { present, missing, brokers } = tokio::task::block_in_place(|| self.look_for(&wanted))?;
        let mut are_replicas_unknown = false;
        let (created, absent) = if missing.is_empty() {
            (Vec::new(), Vec::new())
        } else if wanted.config.create {
            let replicas = self.replicas(&brokers).await;
            let (created, absent) = self.create(&missing, replicas, false).await;
            are_replicas_unknown = replicas.is_unknown() && !created.is_empty();
            (created, absent)
        } else {
            (Vec::new(), vec![Absent { topics: missing, reason: Reason::CreateIsOff }])
        };
        *self.absent.lock().unwrap_or_else(PoisonError::into_inner) = Some(absent.clone());
        self.prepared.send_replace(Some(wanted));
        let alone = present.iter().filter(|topic| topic.replicas == 1 && brokers.len() > 1);
        let on_one_broker = alone.map(|topic| Arc::clone(&topic.name)).collect();
        let present = present.into_iter().map(|topic| topic.name).collect();
        Ok(Prepared { present, on_one_broker, created, are_replicas_unknown, absent })
    }

    /// How many replicas a topic gets that is created now.
    pub async fn replicas(&self, brokers: &[Broker]) -> Replicas {
        let wanted = self.wanted.load_full();
        let options = AdminOptions::new().request_timeout(Some(self.timeout));
        // One may be away just now. Where none shows its settings, they decide by themselves, and the log and `check` say so.
        for broker in brokers.iter().take(BROKERS_ASKED) {
            let described = self.client.describe_configs(&[ResourceSpecifier::Broker(broker.id)], &options).await;
            let described = described.ok().and_then(|described| described.into_iter().next()?.ok());
            if let Some(described) = described.filter(|described| !described.entries.is_empty()) {
                return Replicas::of(&wanted.config, |name| number(&described, name));
            }
        }
        Replicas::of(&wanted.config, |_| None)
    }

    /// Asks the brokers to create topics, or, with `only_validate`, whether they would: the names of those that they have created, and
    /// those that they refuse, by reason.
    pub async fn create(
        &self,
        missing: &[Arc<str>],
        replicas: Replicas,
        only_validate: bool,
    ) -> (Vec<String>, Vec<Absent>) {
        let wanted = self.wanted.load_full();
        let min_in_sync = replicas.min_in_sync.filter(|_| replicas.is_raised).map(|min| min.to_string());
        let new = |name| {
            let replication = TopicReplication::Fixed(wanted.config.replication);
            let topic = NewTopic::new(name, wanted.config.partitions, replication);
            let topic = min_in_sync.iter().fold(topic, |topic, min| topic.set(MIN_IN_SYNC, min));
            wanted.config.settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
        };
        let topics: Vec<_> = missing.iter().map(|name| new(name)).collect();
        let options = AdminOptions::new()
            .request_timeout(Some(self.timeout))
            .operation_timeout(Some(self.timeout))
            .validate_only(only_validate);
        let results = match self.client.create_topics(&topics, &options).await {
            Ok(results) => results,
            Err(error) => {
                return (Vec::new(), vec![Absent { topics: missing.to_vec(), reason: error.into() }]);
            }
        };
        let mut created = Vec::new();
        let mut refused: Vec<Absent> = Vec::new();
        for result in results {
            match result {
                Ok(name) => created.push(name),
                // Another replica was quicker; or it exists, and we may not see it.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    let (name, reason) = (Arc::from(name), Reason::Refused(code));
                    match refused.iter_mut().find(|absent| absent.reason == reason) {
                        Some(absent) => absent.topics.push(name),
                        None => refused.push(Absent { topics: vec![name], reason }),
                    }
                }
            }
        }
        (created, refused)
    }

    /// Reads the settings of topics that exist.
    pub async fn describe(&self, topics: &[Arc<str>]) -> Described {
        let mut found = Described::default();
        if topics.is_empty() {
            return found;
        }
        let resources: Vec<_> = topics.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(self.timeout));
        match self.client.describe_configs(&resources, &options).await {
            Ok(described) => {
                for (topic, described) in topics.iter().zip(described) {
                    match described {
                        // A broker that refuses to show them gives none, and rdkafka (0.39) does not say why.
                        Ok(config) if config.entries.is_empty() => {
                            found.unread = Some(format!(
                                "the brokers show none for {topic}; does the relay have DescribeConfigs?"
                            ));
                        }
                        Ok(config) => found.settings.push((Arc::clone(topic), config)),
                        Err(code) => found.unread = Some(format!("{topic}: {code}")),
                    }
                }
            }
            Err(error) => found.unread = Some(Reason::from(error).to_string()),
        }
        found
    }

    /// Holds each topic's `max.message.bytes` against the largest record.
    ///
    /// # Errors
    /// [`TooSmall`], with all topics that are.
    pub fn check_sizes(&self, maxima: impl IntoIterator<Item = (Arc<str>, i64)>) -> Result<(), TooSmall> {
        let needed = self.record_bytes_max;
        let is_too_small = |max: i64| u64::try_from(max).is_ok_and(|max| max < needed);
        let topics: Vec<_> = maxima.into_iter().filter(|(_, max)| is_too_small(*max)).collect();
        if topics.is_empty() { Ok(()) } else { Err(TooSmall { topics, needed }) }
    }

    /// As [`Topics::check_sizes`], of topics that exist; why the brokers do not show them, where they do not.
    ///
    /// # Errors
    /// [`TooSmall`], with all topics that are.
    pub async fn sizes(&self, present: &[Arc<str>]) -> Result<Option<String>, TooSmall> {
        let described = self.describe(present).await;
        self.check_sizes(described.numbers("max.message.bytes"))?;
        Ok(described.unread)
    }
}

/// The brokers of an answer, by number.
pub fn brokers(metadata: &rdkafka::metadata::Metadata) -> Vec<Broker> {
    let broker = |broker: &rdkafka::metadata::MetadataBroker| Broker {
        id: broker.id(),
        address: match broker.host() {
            host if host.contains(':') => format!("[{host}]:{}", broker.port()),
            host => format!("{host}:{}", broker.port()),
        },
    };
    let mut brokers: Vec<_> = metadata.brokers().iter().map(broker).collect();
    brokers.sort_by_key(|broker| broker.id);
    brokers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_topics_a_screen_has_the_first_and_how_many_there_are_besides() {
        let topics: Vec<_> = (0..9).map(|n| format!("t{n}")).collect();
        assert_eq!(first_names(&topics), "t0, t1, t2 and 6 more");
        assert_eq!(first_names(&topics[1..]), "t1, t2, t3, t4, t5, t6, t7, t8");
    }

    #[test]
    fn topics_that_are_too_small_are_named_together_where_they_accept_the_same() {
        let topics = [("a", 7), ("b", 5), ("c", 7)].map(|(topic, max)| (Arc::from(topic), max)).to_vec();
        let text = TooSmall { topics, needed: 9 }.to_string();
        let expected = "b accepts records of 5 bytes at most; a, c accept records of 7 bytes at most; the relay may send records of 9 bytes: ";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn two_disks_have_an_event_where_one_broker_may_then_be_down() {
        type Case = (i32, Option<&'static str>, Option<i64>, Option<i64>, Replicas);
        let replicas = |count, min_in_sync, is_raised| Replicas { count, min_in_sync, is_raised };
        // topics.replication, min.insync.replicas of topics.settings; both of the brokers.
        let cases: [Case; 11] = [
            (-1, None, Some(3), Some(1), replicas(Some(3), Some(2), true)),
            (-1, None, Some(5), Some(1), replicas(Some(5), Some(2), true)),
            (-1, None, Some(3), Some(2), replicas(Some(3), Some(2), false)),
            (-1, None, Some(3), Some(3), replicas(Some(3), Some(3), false)),
            (-1, None, Some(2), Some(1), replicas(Some(2), Some(1), false)),
            (-1, None, Some(1), Some(1), replicas(Some(1), Some(1), false)),
            (-1, None, None, None, replicas(None, None, false)),
            (3, None, Some(1), Some(1), replicas(Some(3), Some(2), true)),
            (3, None, None, None, replicas(Some(3), Some(2), true)),
            (2, None, Some(3), Some(1), replicas(Some(2), Some(1), false)),
            (-1, Some("1"), Some(3), Some(1), replicas(Some(3), Some(1), false)),
        ];
        for (replication, set, factor, min, expected) in cases {
            let config = Config {
                create: true,
                partitions: 3,
                replication,
                settings: set.map(|set| (MIN_IN_SYNC.to_owned(), set.to_owned())).into_iter().collect(),
                check_interval: Duration::from_secs(30),
            };
            let of_brokers = |name: &str| if name == MIN_IN_SYNC { min } else { factor };
            assert_eq!(Replicas::of(&config, of_brokers), expected, "{replication} {set:?} {factor:?} {min:?}");
        }
    }
}
