//! The topics that the routes need: created where they are missing, and held against what the relay may send.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::publish;

/// `[topics]`, but for the routes.
#[derive(Clone, Debug)]
pub struct Config {
    pub create: bool,
    pub partitions: i32,
    pub replication: i32,
    pub settings: BTreeMap<String, String>,
}

/// What stands between the topics and the relay.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("no broker answers at {brokers}: {error}; is kafka.brokers right, and Kafka up?")]
    Unreachable { brokers: String, error: KafkaError },
    #[error("topics are missing: {}; create them, or set topics.create = true", .0.join(", "))]
    Missing(Vec<Arc<str>>),
    #[error("topics could not be created: {}", .0.join("; "))]
    NotCreated(Vec<String>),
    #[error(
        "the topic {topic} takes records of {max} bytes, and the relay may send {needed}; raise its max.message.bytes or lower server.body_bytes_max"
    )]
    TooSmall { topic: String, max: u64, needed: u64 },
    #[error("kafka.properties: {0}")]
    Client(#[from] publish::Unusable),
}

impl Trouble {
    /// Whether it passes by itself, as brokers that come back do.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NotCreated(_))
    }
}

/// What [`Topics::prepare`] found and did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    pub existing: usize,
    pub created: Vec<String>,
    /// The brokers did not let us read the topics' settings, for this reason; sizes are unchecked.
    pub unchecked: Option<String>,
}

/// An admin client and the topics it looks after.
pub struct Topics {
    client: AdminClient<DefaultClientContext>,
    brokers: String,
    names: Vec<Arc<str>>,
    config: Config,
    record_bytes_max: u64,
    timeout: Duration,
}

impl Topics {
    /// # Errors
    /// [`Trouble::Client`] when librdkafka does not accept the configuration.
    pub fn new(names: Vec<Arc<str>>, config: Config, kafka: &publish::Config) -> Result<Self, Trouble> {
        let mut client = kafka.client();
        client.set_log_level(rdkafka::config::RDKafkaLogLevel::Critical); // each trouble comes back as an error, too
        Ok(Self {
            client: client.create().map_err(publish::Unusable::from)?,
            brokers: kafka.brokers.clone(),
            names,
            config,
            record_bytes_max: kafka.record_bytes_max,
            timeout: kafka.start_timeout,
        })
    }

    /// How many brokers there are. Blocks.
    ///
    /// # Errors
    /// [`Trouble::Unreachable`] when none answers in time.
    pub fn brokers(&self) -> Result<usize, Trouble> {
        self.metadata().map(|metadata| metadata.brokers().len())
    }

    /// The routed topics that are not there. Blocks.
    ///
    /// # Errors
    /// [`Trouble::Unreachable`] when no broker answers in time.
    pub fn missing(&self) -> Result<Vec<Arc<str>>, Trouble> {
        let metadata = self.metadata()?;
        let there: HashMap<_, _> = metadata.topics().iter().map(|t| (t.name(), t.partitions().len())).collect();
        Ok(self.names.iter().filter(|&name| there.get(&**name).is_none_or(|&n| n == 0)).cloned().collect())
    }

    fn metadata(&self) -> Result<rdkafka::metadata::Metadata, Trouble> {
        self.client.inner().fetch_metadata(None, self.timeout).map_err(|error| self.unreachable(error))
    }

    pub fn unreachable(&self, error: KafkaError) -> Trouble {
        Trouble::Unreachable { brokers: self.brokers.clone(), error }
    }

    /// Creates what is missing, if it may, and checks sizes.
    ///
    /// # Errors
    /// A [`Trouble`], which names the topics and the remedy.
    pub async fn prepare(&self) -> Result<Prepared, Trouble> {
        let missing = tokio::task::block_in_place(|| self.missing())?;
        if !missing.is_empty() && !self.config.create {
            return Err(Trouble::Missing(missing));
        }
        let created = self.create(&missing).await?;
        let unchecked = self.sizes_of(&self.names).await?;
        Ok(Prepared { existing: self.names.len() - missing.len(), created, unchecked })
    }

    async fn create(&self, missing: &[Arc<str>]) -> Result<Vec<String>, Trouble> {
        let new = |name| {
            let replication = TopicReplication::Fixed(self.config.replication);
            let topic = NewTopic::new(name, self.config.partitions, replication);
            self.config.settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
        };
        let topics: Vec<_> = missing.iter().map(|name| new(name)).collect();
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        let options = AdminOptions::new().request_timeout(Some(self.timeout)).operation_timeout(Some(self.timeout));
        let results = self.client.create_topics(&topics, &options).await;
        let results = results.map_err(|error| Trouble::NotCreated(vec![error.to_string()]))?;
        let (mut created, mut failed) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(name) => created.push(name),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {} // another replica was quicker
                Err((name, code)) => failed.push(format!("{name}: {code}")),
            }
        }
        if failed.is_empty() { Ok(created) } else { Err(Trouble::NotCreated(failed)) }
    }

    /// Holds `max.message.bytes` of the topics that are there against the largest record; the reason where it cannot.
    ///
    /// # Errors
    /// [`Trouble::TooSmall`] with the topic's name, or [`Trouble::Unreachable`].
    pub async fn sizes(&self) -> Result<Option<String>, Trouble> {
        let missing = tokio::task::block_in_place(|| self.missing())?;
        let there: Vec<_> = self.names.iter().filter(|name| !missing.contains(name)).cloned().collect();
        self.sizes_of(&there).await
    }

    async fn sizes_of(&self, names: &[Arc<str>]) -> Result<Option<String>, Trouble> {
        if names.is_empty() {
            return Ok(None);
        }
        let topics: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(self.timeout));
        let described = match self.client.describe_configs(&topics, &options).await {
            Ok(described) => described,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let mut unchecked = None;
        for (topic, described) in names.iter().zip(described) {
            let max = match described {
                Ok(config) => config.get("max.message.bytes").and_then(|entry| entry.value.as_ref()?.parse().ok()),
                Err(code) => {
                    unchecked = Some(format!("{topic}: {code}"));
                    None
                }
            };
            if let Some(max) = max.filter(|&max: &u64| max < self.record_bytes_max) {
                return Err(Trouble::TooSmall { topic: topic.to_string(), max, needed: self.record_bytes_max });
            }
        }
        Ok(unchecked)
    }
}
