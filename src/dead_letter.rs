//! A record that the brokers have refused: sent once more in a batch of its own, and what is refused then is stored as a dead letter,
//! in the dead-letter topic, or, where that fails, on the disk.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;

use crate::event::{Attributes, Record};
use crate::metrics::Metrics;
use crate::outcome::Unavailable;
use crate::publish::{Failure, Publisher, Remedy};
use crate::spool::{DeadLetter, Entry, Refused, Spool};
use crate::telemetry::Throttles;

/// The headers that a dead letter has besides its own. Value and key are as they were.
pub use crate::event::route::DEAD_LETTER_HEADERS as HEADERS;

/// Resolves refused records; clones share it.
#[derive(Clone)]
pub struct DeadLetters {
    pub topic: Arc<str>,
    pub publisher: Arc<Publisher>,
    /// Where it is switched on.
    pub spool: Option<Spool>,
    pub metrics: Arc<Metrics>,
}

/// What has become of a record that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Another record of its batch was to blame, or the batch was too large: its topic has it.
    Published,
    /// Its topic will never accept it: it is a dead letter.
    DeadLetter,
}

/// Why a record that was refused is nowhere yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// It was not its own fault that the brokers did not accept it; or it was, and there is no disk to keep it on.
    Kafka(Failure),
    /// Neither the dead-letter topic nor the disk takes it.
    Spool(Unavailable),
}

impl Unresolved {
    /// Why the event is answered 503.
    pub fn reason(&self) -> Unavailable {
        match self {
            Self::Kafka(failure) => failure.reason(),
            Self::Spool(reason) => *reason,
        }
    }
}

impl DeadLetters {
    /// Resolves a record that was refused; `from` is its place in the spool, where it has one: when it is resolved, it is there no
    /// more.
    ///
    /// # Errors
    /// [`Unresolved`]: the record is still to be published, or to become a dead letter.
    pub async fn resolve(&self, entry: Entry, from: Option<(Arc<str>, u64)>) -> Result<Resolved, Unresolved> {
        match self.publisher.published_alone(entry.record.clone()).await {
            Ok(()) => {
                if let Some((topic, _)) = &from {
                    self.count_replayed(topic);
                }
                self.acked(from);
                Ok(Resolved::Published)
            }
            Err(failure) if failure.remedy == Remedy::DeadLetter => self.store(entry, failure, from).await,
            Err(failure) => Err(Unresolved::Kafka(failure)),
        }
    }

    async fn store(
        &self,
        mut entry: Entry,
        failure: Failure,
        from: Option<(Arc<str>, u64)>,
    ) -> Result<Resolved, Unresolved> {
        // Alone, too: among dead letters it is likely that a batch is refused for another one.
        let not_published = match self.publisher.published_alone(self.letter(&entry.record, failure)).await {
            Ok(()) => {
                self.stored(&entry.record, failure, "topic", None);
                self.acked(from);
                return Ok(Resolved::DeadLetter);
            }
            Err(failure) => failure,
        };
        let record = entry.record.clone();
        let Some(spool) = &self.spool else {
            self.not_stored(&record, failure, not_published, "is not used");
            return Err(Unresolved::Kafka(failure));
        };
        let since_ms = Timestamp::now().as_millisecond();
        let (reason, error) = (failure.dead_letter_reason().label().to_owned(), format!("{:?}", failure.code));
        entry.dead_letter = Some(DeadLetter { reason, error, since_ms });
        // If nothing answers, its writer has ended.
        let Err(refused) = spool.store_dead_letter(entry, from).await.unwrap_or(Err(Refused::Failed)) else {
            self.stored(&record, failure, "disk", Some(not_published));
            return Ok(Resolved::DeadLetter);
        };
        let disk = match refused {
            Refused::Full => "has no room for it",
            Refused::Failed => "cannot be written",
        };
        self.not_stored(&record, failure, not_published, disk);
        Err(Unresolved::Spool(refused.reason()))
    }

    /// Says why a record is held back: its topic refuses it, and so do the dead-letter topic and the disk.
    fn not_stored(&self, record: &Record, failure: Failure, not_published: Failure, disk: &str) {
        static LINES: LazyLock<Throttles> = LazyLock::new(|| Throttles::new(Duration::from_secs(10)));
        let (topic, key, code) = (&*record.topic, &*record.key, not_published.code);
        if let Some(suppressed) = LINES.pass(topic) {
            tracing::error!(
                topic,
                key,
                event_id = Attributes::of(record).id.as_deref(),
                reason = failure.dead_letter_reason().label(),
                code = ?failure.code,
                dead_letter_topic_code = ?code,
                disk,
                suppressed,
                "a record cannot be stored as a dead letter"
            );
        }
        let why = format!(
            "a record cannot be stored as a dead letter. Its topic answers {}, the dead-letter topic {code}, and the disk {disk}",
            failure.code
        );
        self.publisher.held_back(topic, Some(why));
    }

    /// Counts a dead letter, and says which event it is and where it is stored; if not in the dead-letter topic, why not there.
    fn stored(&self, record: &Record, failure: Failure, stored_in: &str, not_published: Option<Failure>) {
        let reason = failure.dead_letter_reason();
        self.metrics.dead_letter(stored_in, reason);
        self.publisher.held_back(&record.topic, None);
        let (topic, key, id) = (&*record.topic, &*record.key, Attributes::of(record).id);
        tracing::error!(
            topic,
            key,
            event_id = id.as_deref(),
            reason = reason.label(),
            code = ?failure.code,
            stored_in,
            dead_letter_topic_code = not_published.map(|failure| tracing::field::debug(failure.code)),
            "a record became a dead letter"
        );
    }

    /// Counts an event of the spool that its topic has now. A rule's dead letters are counted as dead letters alone.
    pub fn count_replayed(&self, topic: &str) {
        if topic != &*self.topic {
            self.metrics.replayed.inc();
        }
    }

    /// The brokers have what stood at this place of the spool.
    fn acked(&self, from: Option<(Arc<str>, u64)>) {
        if let (Some(spool), Some((topic, number))) = (&self.spool, from) {
            spool.acked(&topic, number);
        }
    }

    fn letter(&self, record: &Record, failure: Failure) -> Record {
        let reason = failure.dead_letter_reason().label().to_owned();
        let values = [record.topic.to_string(), reason, format!("{:?}", failure.code)];
        let mut letter = Record { topic: Arc::clone(&self.topic), ..record.clone() };
        letter.headers.extend(HEADERS.into_iter().map(Cow::Borrowed).zip(values.map(Cow::Owned)));
        letter
    }
}
