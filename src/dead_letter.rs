//! A record that its topic will never take: to the dead-letter topic, or, where that fails, parked on the disk.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;

use crate::event::Record;
use crate::metrics::Metrics;
use crate::outcome::Unavailable;
use crate::publish::{Failure, Publisher};
use crate::spool::{Entry, Parked, Spool};

/// The headers that a dead letter has besides its own. Value and key are as they were.
pub const HEADERS: [&str; 3] = ["dead-letter-topic", "dead-letter-reason", "dead-letter-error"];

/// Lays dead letters down; clones share it.
#[derive(Clone)]
pub struct DeadLetters {
    pub topic: Arc<str>,
    pub publisher: Arc<Publisher>,
    /// Where it is switched on.
    pub spool: Option<Spool>,
    pub metrics: Arc<Metrics>,
}

impl DeadLetters {
    /// Lays `entry` down, which failed with `failure`; `from` its lane's place, where it stands in the spool: then it is there no more.
    ///
    /// # Errors
    /// Where neither the brokers nor the disk took it: why not.
    pub async fn lay_down(
        &self,
        mut entry: Entry,
        failure: Failure,
        from: Option<(Arc<str>, u64)>,
    ) -> Result<(), Unavailable> {
        let reason = failure.dead_letter_reason().label();
        tracing::warn!(topic = &*entry.record.topic, reason, error = ?failure.code, "a record became a dead letter");
        if self.publish(&entry.record, failure).await.is_ok() {
            self.metrics.dead_letters.with_label_values(&["topic", reason]).inc();
            if let (Some(spool), Some((topic, number))) = (&self.spool, from) {
                spool.acked(&topic, number);
            }
            return Ok(());
        }
        let Some(spool) = &self.spool else { return Err(failure.reason()) };
        let at_ms = Timestamp::now().as_millisecond();
        entry.parked = Some(Parked { reason: reason.to_owned(), error: format!("{:?}", failure.code), at_ms });
        match spool.park(&entry, from).await {
            Ok(Ok(())) => {
                self.metrics.dead_letters.with_label_values(&["disk", reason]).inc();
                Ok(())
            }
            Ok(Err(refused)) => Err(refused.reason()),
            Err(_) => Err(Unavailable::SpoolFailed),
        }
    }

    async fn publish(&self, record: &Record, failure: Failure) -> Result<(), Failure> {
        let told =
            [record.topic.to_string(), failure.dead_letter_reason().label().to_owned(), format!("{:?}", failure.code)];
        let mut letter = Record { topic: Arc::clone(&self.topic), ..record.clone() };
        letter.headers.extend(HEADERS.into_iter().map(Cow::Borrowed).zip(told.map(Cow::Owned)));
        self.publisher.published(letter).await
    }
}
