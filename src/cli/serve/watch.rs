//! Watches the brokers and the topics while the relay runs, and says in the log what has changed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::parts::Parts;
use crate::telemetry::rounded;
use crate::topics::{self, Absent, Prepared, TooSmall};

/// Asks again and again whether the brokers answer, and, less often, whether the topics exist.
pub struct Watch {
    pub parts: Parts,
    /// Cancelled when they have for the first time: the replay waits for it.
    pub brokers_answered: CancellationToken,
    /// The topic that the brokers are asked for: one, not all of the cluster's.
    pub probed: Arc<str>,
    pub brokers: String,
    /// How long the brokers may take at first, and from then on.
    pub start_timeout: Duration,
    pub interval: Duration,
}

/// What was found until now.
#[derive(Default)]
struct Known {
    /// Since when the brokers have not answered.
    unavailable_since: Option<Instant>,
    /// Topics that were missing the last time; `None` before the first time.
    absent: Option<Vec<Absent>>,
    /// Topics that are large enough, or were reported.
    sizes: HashSet<Arc<str>>,
    /// Topics that were reported as being on one broker alone.
    on_one_broker: HashSet<Arc<str>>,
}

impl Watch {
    /// Never ends. When it has found out for the first time whether the brokers answer, and has created the topics if so, it tells who
    /// starts the relay. Topics that are too small are then a reason to end, where no spool could take dead letters.
    pub async fn run(self, first: oneshot::Sender<()>) {
        let (mut first, mut topics_due, mut looking) = (Some(first), Instant::now(), None);
        let mut known = Known::default();
        loop {
            let timeout = if first.is_some() { self.start_timeout } else { self.interval };
            let was_up = self.parts.is_kafka_up();
            let answered = tokio::task::block_in_place(|| self.probe(timeout));
            self.set(&answered, was_up, first.is_some(), &mut known);
            let mut found = Ok(());
            if answered.is_ok() && topics_due <= Instant::now() {
                match self.parts.topics.prepare().await {
                    Ok(prepared) => {
                        topics_due = Instant::now() + self.parts.topics.check_interval();
                        found = self.report(prepared, &mut known).await;
                    }
                    Err(error) => tracing::debug!(%error, "the brokers do not say which topics there are"),
                }
            }
            match found {
                Ok(()) => {}
                Err(too_small) if first.is_some() => self.parts.shutdown.fail(too_small.to_string()),
                Err(too_small) => {
                    tracing::error!(
                        why = too_small.to_string(),
                        "events that are too large for their topic are answered 503"
                    );
                }
            }
            if let Some(first) = first.take() {
                let _ = first.send(()); // it may wait no longer
            }
            self.look_into_the_spool(&mut looking).await;
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = self.parts.topics.changed() => topics_due = Instant::now(),
            }
        }
    }

    fn probe(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.parts.publisher.probe(&self.probed, timeout, |topic| self.parts.topics.is_absent(topic))
    }

    /// Notes whether the brokers answer, and logs it where that has changed.
    fn set(&self, answered: &Result<(), KafkaError>, was_up: bool, is_first: bool, known: &mut Known) {
        let (brokers, meanwhile) = (&self.brokers, self.parts.meanwhile());
        match answered {
            Ok(()) if !was_up => {
                if let Some(since) = known.unavailable_since.take() {
                    let waiting = self.parts.spool.as_ref().map(|spool| spool.lanes(|lanes| lanes.total().records));
                    tracing::info!(after = ?rounded(since.elapsed()), waiting, "Kafka is available again");
                } else {
                    tracing::info!("Kafka is available");
                }
            }
            Err(_) if was_up || is_first => {
                known.unavailable_since = Some(Instant::now());
                let why = self.parts.publisher.unavailable().map(|error| error.message);
                if self.parts.is_spooling() {
                    tracing::warn!(brokers, why, "Kafka is unavailable: {meanwhile}");
                } else {
                    tracing::error!(brokers, why, "Kafka is unavailable: {meanwhile}");
                }
            }
            Ok(()) | Err(_) => {}
        }
        if answered.is_ok() && !self.brokers_answered.is_cancelled() {
            self.parts.publisher.presume_away(false);
            self.brokers_answered.cancel();
        }
    }

    /// Logs what has changed of the topics, and looks at the sizes of those that are new to it: a reload may want others.
    ///
    /// # Errors
    /// Where no spool could take dead letters: topics that are too small for the largest event.
    async fn report(&self, now: Prepared, known: &mut Known) -> Result<(), TooSmall> {
        let (is_first, all) = (known.absent.is_none(), self.parts.topics.count());
        let before = known.absent.replace(now.absent.clone()).unwrap_or_default();
        for missing in now.absent.iter().filter(|missing| !before.contains(missing)) {
            tracing::error!(
                topics = topics::names(&missing.topics, all),
                reason = missing.reason.to_string(),
                remedy = missing.reason.remedy(),
                "topics are missing: their {}; other topics are not affected",
                self.parts.meanwhile()
            );
        }
        let is_complete = now.absent.is_empty();
        if !now.created.is_empty() || is_complete && (is_first || before != now.absent) {
            tracing::info!(existing = now.present.len(), created = now.created.len(), "topics are ready");
        }
        if now.are_replicas_unknown {
            tracing::warn!(
                topics = topics::names(&now.created, all),
                "topics are created with the brokers' settings, which the relay may not read (DescribeConfigs of the cluster): make sure that they have three replicas, and min.insync.replicas = 2"
            );
        }
        let mut alone = now.on_one_broker;
        alone.retain(|topic| known.on_one_broker.insert(Arc::clone(topic)));
        if !alone.is_empty() {
            tracing::warn!(
                topics = topics::names(&alone, all),
                "topics have one replica on a cluster of several brokers: their events are lost with that broker's disk; give them three"
            );
        }
        // Those that the relay has just created are as `[topics]` says, and brokers may not know them yet.
        known.sizes.extend(now.created.into_iter().map(Arc::from));
        let unknown: Vec<_> = now.present.into_iter().filter(|topic| known.sizes.insert(Arc::clone(topic))).collect();
        if unknown.is_empty() { Ok(()) } else { self.check_sizes(&unknown).await }
    }

    /// Of topics that others have made.
    async fn check_sizes(&self, present: &[Arc<str>]) -> Result<(), TooSmall> {
        match self.parts.topics.sizes(present).await {
            Ok(None) => {}
            Ok(Some(why)) => tracing::warn!(
                why,
                "the topics' max.message.bytes could not be read; records may be too large for them"
            ),
            Err(too_small) if self.parts.spool.is_some() => {
                tracing::warn!(
                    why = too_small.to_string(),
                    "events that are too large for their topic become dead letters"
                );
            }
            Err(too_small) => return Err(too_small),
        }
        Ok(())
    }

    /// How old the first event of each topic in the spool is. A disk that hangs is asked once.
    async fn look_into_the_spool(&self, looking: &mut Option<JoinHandle<()>>) {
        let Some(spool) = self.parts.spool.clone() else { return };
        let metrics = Arc::clone(&self.parts.metrics);
        let look = || tokio::task::spawn_blocking(move || metrics.spool_ages(spool.oldest()));
        let looked = looking.get_or_insert_with(look);
        if tokio::time::timeout(Duration::from_secs(1), looked).await.is_ok() {
            *looking = None; // else it goes on; the brokers are asked meanwhile
        }
    }
}
