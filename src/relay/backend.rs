//! What the relay needs of Kafka and the spool, as a trait: its timing is tested without either.

use std::sync::Arc;
use std::time::Duration;

use crate::budget::Held;
use crate::dead_letter::{DeadLetters, Resolved};
use crate::event::Record;
use crate::outcome::{Outcome, Unavailable};
use crate::publish::Report;
use crate::spool::{self, Entry, Way};

pub trait Backend: Send + Sync + 'static {
    /// Hands a record to the brokers; `held` lives as long as the producer holds the record.
    fn publish(&self, record: Record, held: Arc<Held>) -> Report;

    /// How long a report may take.
    fn report_timeout(&self) -> Duration;

    fn has_spool(&self) -> bool;

    /// Whether Kafka accepts nothing at the moment while the spool does: then no record needs to find that out for itself.
    fn skips_kafka(&self) -> bool;

    /// Which way the next record of a topic goes; `None` while that is about to change.
    fn way(&self, topic: &Arc<str>) -> Option<Way>;

    /// As `way`; waits for a change, but not for long.
    fn settled_way(&self, topic: &Arc<str>) -> impl Future<Output = Way> + Send;

    /// Stores a record behind what its topic has in the spool.
    fn spool(&self, record: Record) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Tries a record that was refused by itself, for another of its batch may be to blame; then it is a dead letter.
    fn resolve(&self, refused: Record) -> impl Future<Output = Outcome> + Send;
}

/// The brokers, and the spool where there is one.
pub struct Durable(pub DeadLetters);

impl Backend for Durable {
    fn publish(&self, record: Record, held: Arc<Held>) -> Report {
        self.0.publisher.publish(record, Some(held))
    }

    fn report_timeout(&self) -> Duration {
        self.0.publisher.report_deadline()
    }

    fn has_spool(&self) -> bool {
        self.0.spool.is_some()
    }

    fn skips_kafka(&self) -> bool {
        self.0.spool.as_ref().is_some_and(|spool| self.0.publisher.is_away() && spool.is_ready())
    }

    fn way(&self, topic: &Arc<str>) -> Option<Way> {
        self.0.spool.as_ref().map_or(Some(Way::Direct), |spool| spool.way_now(topic))
    }

    async fn settled_way(&self, topic: &Arc<str>) -> Way {
        match &self.0.spool {
            Some(spool) => spool.way(topic).await,
            None => Way::Direct,
        }
    }

    async fn spool(&self, record: Record) -> Result<(), Unavailable> {
        let Some(spool) = &self.0.spool else { return Err(Unavailable::Kafka) };
        let appended = spool.append(spool.ticket(&record.topic), record).await;
        appended.unwrap_or(Err(spool::Refused::Failed)).map_err(spool::Refused::reason)
    }

    async fn resolve(&self, refused: Record) -> Outcome {
        match self.0.resolve(Entry::new(refused), None).await {
            Ok(Resolved::Published) => Outcome::Published,
            Ok(Resolved::DeadLetter) => Outcome::DeadLettered,
            Err(unresolved) => Outcome::Unavailable(unresolved.reason()),
        }
    }
}
