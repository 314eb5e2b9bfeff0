//! [`Record`] → broker ack. Knows librdkafka; of a failure the rest learns what helps.
//!
//! A record is handed over before the first wait, so that a caller who stops waiting for its report does not call it
//! back. Producers are idempotent and ask for the acks of all in-sync replicas; neither can be configured away.

mod config;
mod health;
mod log;
mod producer;
mod remedy;
mod report;
mod run;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;

use crate::event::Record;
use crate::metrics::Metrics;
use crate::outcome::{DeadLetterReason, Unavailable};
use crate::shutdown::Shutdown;
use crate::telemetry::Throttles;
pub use config::{Config, Unusable, canonical};
use health::Health;
pub use health::{HELD_BACK, LastError};
pub use log::{WITHOUT_TOKEN, without_token};
use producer::{Client, Common, Producer, REPEAT};
pub use remedy::{REMEDIES, Remedy};
pub use report::{Held, InFlight, Report};
pub use run::Run;
use run::Runs;

/// Why a record is not on the brokers, and what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Kafka did not accept the record: {code:?}")]
pub struct Failure {
    pub remedy: Remedy,
    /// librdkafka's name for it.
    pub code: RDKafkaErrorCode,
}

impl Failure {
    /// Why the event is answered 503, where nothing else helps.
    pub fn reason(&self) -> Unavailable {
        match (self.remedy, self.code) {
            (_, RDKafkaErrorCode::QueueFull) => Unavailable::QueueFull,
            (Remedy::DeadLetter, _) => self.dead_letter_reason().into(),
            _ => Unavailable::Kafka,
        }
    }

    /// Why the record is a dead letter, where it is one.
    pub const fn dead_letter_reason(&self) -> DeadLetterReason {
        match self.code {
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::MessageBatchTooLarge => DeadLetterReason::TooLarge,
            _ => DeadLetterReason::Invalid,
        }
    }

    /// Whether it is to be sent again in a batch of its own ([`Publisher::published_alone`]).
    pub const fn is_refused(&self) -> bool {
        matches!(self.remedy, Remedy::Alone | Remedy::DeadLetter)
    }

    /// Its request failed once, and librdkafka took a later one's ack for its own: the brokers answer, and may not have it.
    pub fn is_lost(&self) -> bool {
        self.code == RDKafkaErrorCode::NoOffset
    }

    /// We have given it up ourselves: that says nothing of the brokers.
    pub const fn is_given_up(&self) -> bool {
        matches!(self.code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
    }

    fn of(error: &KafkaError) -> Self {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        Self { remedy: Remedy::of(code), code }
    }

    /// The producer has gone away with the record.
    pub const fn gone() -> Self {
        Self { remedy: Remedy::Wait, code: RDKafkaErrorCode::PurgeQueue }
    }
}

/// Hands records to idempotent producers, each of which is replaced when its state is fatal.
pub struct Publisher {
    common: Arc<Common>,
    batched: Producer,
    /// For records that were refused with their batch.
    alone: Producer,
    in_order: Runs,
    /// Each record in flight has a clone of it.
    in_flight: Arc<()>,
}

impl Publisher {
    /// Starts a producer; it looks for its brokers in the background.
    ///
    /// # Errors
    /// [`Unusable`]: a property in `kafka.properties` is wrong.
    pub fn new(config: Config, metrics: Arc<Metrics>, shutdown: Shutdown) -> Result<Self, Unusable> {
        let (health, heard) = (Health::default(), Throttles::new(REPEAT));
        let common = Arc::new(Common { config, metrics, health, shutdown, heard });
        let batched = Producer::new(&common, common.config.producer());
        batched.client()?;
        let alone = Producer::new(&common, common.config.producer_alone());
        let in_order = Runs::new(&common);
        Ok(Self { common, batched, alone, in_order, in_flight: Arc::default() })
    }

    /// Hands `record` over; the report says what becomes of it. `held` is kept until the report arrives, whether a task waits for it
    /// or not.
    pub fn publish(&self, record: Record, held: Option<Held>) -> Report {
        self.hand_over(&self.batched, record, held)
    }

    /// As `publish`, and waits for the report; past the time that one may take, the record counts as not taken.
    ///
    /// # Errors
    /// A [`Failure`]; unless it came from the brokers, the record may be there all the same.
    pub async fn published(&self, record: Record) -> Result<(), Failure> {
        self.reported(self.publish(record, None)).await
    }

    /// As `published`, in a batch of its own: a broker refuses a batch whole for one record in it, or because it is too large
    /// altogether. What is refused here is refused for its own sake, and the failure is its own.
    ///
    /// # Errors
    /// As `published`.
    pub async fn published_alone(&self, record: Record) -> Result<(), Failure> {
        self.reported(self.hand_over(&self.alone, record, None)).await
    }

    /// A producer for records of which none may overtake another of its key, whatever fails. All callers share one, until it is ended.
    ///
    /// # Errors
    /// [`Unusable`]: the system is out of threads.
    pub fn run(&self) -> Result<Arc<Run>, Unusable> {
        self.in_order.current()
    }

    /// As `publish`, in a run. There is no deadline: a record has its report when the brokers have it, or when its run has ended.
    pub fn publish_in(&self, run: &Run, record: Record) -> Report {
        let (in_flight, report) = InFlight::new(record, &self.in_flight, None);
        run.send(in_flight);
        report
    }

    fn hand_over(&self, producer: &Producer, record: Record, held: Option<Held>) -> Report {
        let (in_flight, report) = InFlight::new(record, &self.in_flight, held);
        producer.send(in_flight);
        report
    }

    async fn reported(&self, report: Report) -> Result<(), Failure> {
        tokio::time::timeout(self.report_deadline_max(), report).await.unwrap_or(Err(Failure::gone()))
    }

    /// How many records have no report yet.
    pub fn records_in_flight(&self) -> usize {
        Arc::strong_count(&self.in_flight) - 1
    }

    /// Asks the brokers for their metadata, which tells whether they are reachable. Blocks up to `timeout`. Of a topic that `is_absent` from
    /// the cluster it is no wonder that it takes nothing.
    ///
    /// # Errors
    /// What librdkafka says when no broker answers in time.
    pub fn probe(&self, topic: &str, timeout: Duration, is_absent: impl Fn(&str) -> bool) -> Result<(), KafkaError> {
        for producer in [&self.batched, &self.alone] {
            if let Some((_, why)) = producer.existing().and_then(|client| client.client().fatal_error()) {
                producer.replace(&why);
            }
        }
        if let Some(client) = self.batched.existing() {
            let answered = client.client().fetch_metadata(Some(topic), timeout).map(drop);
            self.common.health.probed(&answered, Instant::now());
            answered?;
        }
        if let Some(topic) = self.common.health.stuck(is_absent) {
            let why = format!("the brokers answer, but nothing has reached the topic {topic} for a long time");
            [&self.batched, &self.alone].iter().for_each(|producer| producer.replace(&why));
        }
        Ok(())
    }

    /// Why Kafka is unavailable, as the last probe has found; as long as there was none, that it is not known.
    pub fn unavailable(&self) -> Option<LastError> {
        self.common.health.unavailable(Instant::now())
    }

    /// A record that its topic refuses cannot be stored as a dead letter, and why; or, with none, it was stored.
    pub fn held_back(&self, topic: &str, why: Option<String>) {
        self.common.health.held_back(topic, why);
    }

    /// Why topics are unavailable: those of which records have failed since the last one that was acked. Or why they are held back.
    pub fn failing(&self) -> HashMap<String, LastError> {
        self.common.health.failing()
    }

    /// Whether records of a topic fail though the brokers answer.
    pub fn is_failing(&self, topic: &str) -> bool {
        self.unavailable().is_none() && self.common.health.is_failing(topic)
    }

    /// Whether nothing has been acked since records began to fail: another one would likely fail, too.
    pub fn is_away(&self) -> bool {
        self.common.health.is_away()
    }

    /// Sets what [`Publisher::is_away`] says until the next report.
    pub fn presume_away(&self, is_away: bool) {
        self.common.health.presume_away(is_away);
    }

    /// For how long a report may be late: librdkafka looks for records that have timed out once a second.
    pub fn report_deadline(&self) -> Duration {
        self.common.config.publish_deadline + Duration::from_millis(1200)
    }

    /// A report that is later than this comes from a producer that was replaced, or from one that waits for the system, as for a
    /// name to be resolved.
    pub fn report_deadline_max(&self) -> Duration {
        const MORE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
        self.report_deadline() + MORE
    }

    /// Waits until every record handed over has its report; blocks up to `timeout` for each producer.
    ///
    /// # Errors
    /// When records are left without one.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.clients().try_for_each(|client| client.flush(timeout))
    }

    /// Gives up what the brokers have not acked: its reports come soon. Blocks until it is given up.
    pub fn give_up(&self) {
        self.clients().for_each(|client| client.give_up());
    }

    fn clients(&self) -> impl Iterator<Item = Arc<Client>> {
        [&self.batched, &self.alone].into_iter().filter_map(Producer::existing).chain(self.in_order.client())
    }
}

#[cfg(test)]
pub(crate) use config::tests::config as test_config;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::config::tests::config;
    use super::*;

    /// Nothing takes so long.
    const DEADLINE: Duration = Duration::from_secs(60);

    /// A mock cluster with the topic `t`, and a publisher that reaches it.
    fn stage(properties: &[(&str, &str)]) -> (MockCluster<'static, DefaultProducerContext>, Publisher, Shutdown) {
        let mock = MockCluster::new(1).expect("a mock cluster");
        mock.create_topic("t", 1, 1).expect("a topic");
        let (config, shutdown) =
            (Config { brokers: mock.bootstrap_servers(), ..config(properties) }, Shutdown::default());
        let publisher = Publisher::new(config, Arc::new(Metrics::new()), shutdown.clone()).expect("a producer");
        (mock, publisher, shutdown)
    }

    fn record(value: &[u8]) -> Record {
        Record { topic: "t".into(), key: "k".to_owned(), headers: Vec::new(), value: value.to_vec() }
    }

    async fn until(condition: impl Fn() -> bool) {
        let all = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, all).await.expect("in time");
    }

    #[tokio::test]
    async fn a_record_that_is_too_large_or_one_too_many_is_refused_at_once() {
        let publisher = Publisher::new(config(&[]), Arc::new(Metrics::new()), Shutdown::default());
        let publisher = publisher.expect("a producer");
        let reason = |bytes| {
            let report = publisher.publish(record(&vec![b'x'; bytes]), None);
            report.now_or_never().and_then(Result::err).map(|failure| failure.reason())
        };
        assert_eq!(reason((1 << 20) + 1024 + 1), Some(Unavailable::TooLarge));
        let taken = (0..20).map(|_| reason(1)).collect::<Vec<_>>();
        assert_eq!(taken[9], None);
        assert_eq!(taken[10], Some(Unavailable::QueueFull));
        assert_eq!(publisher.records_in_flight(), 10, "what was refused is not in flight");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_record_is_in_flight_and_what_is_held_for_it_is_kept_until_its_report_is_there() {
        let (mock, publisher, _) = stage(&[]);
        let publish = || {
            let held: Held = Arc::new(());
            let released = Arc::downgrade(&held);
            (publisher.publish(record(b"x"), Some(held)), move || released.upgrade().is_none())
        };
        let (report, is_released) = publish();
        assert_eq!(report.await, Ok(()));
        assert!(is_released() && publisher.records_in_flight() == 0, "it was acked");

        mock.broker_round_trip_time(1, Duration::from_secs(3600)).expect("it is slow");
        let (report, is_released) = publish();
        drop(report);
        assert!(!is_released() && publisher.records_in_flight() == 1, "librdkafka has it, though no task waits");
        publisher.give_up();
        until(|| is_released() && publisher.records_in_flight() == 0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_producer_that_is_replaced_reports_all_that_it_had_and_the_next_one_publishes() {
        let (mock, publisher, shutdown) = stage(&[]);
        mock.broker_round_trip_time(1, Duration::from_secs(3600)).expect("it is slow");
        let reports: Vec<_> = (0..5).map(|_| publisher.publish(record(b"x"), None)).collect();
        publisher.batched.replace("a test wants it");
        for report in reports {
            assert!(tokio::time::timeout(DEADLINE, report).await.expect("a report").is_err());
        }
        until(|| publisher.records_in_flight() == 0).await;
        mock.broker_round_trip_time(1, Duration::ZERO).expect("it is fast");
        let mut published = publisher.published(record(b"y")).await;
        let since = Instant::now();
        while published.is_err() && since.elapsed() < DEADLINE {
            published = publisher.published(record(b"y")).await; // its first connection was to a slow broker
        }
        assert_eq!(published, Ok(()));
        drop(publisher);
        assert_eq!(shutdown.failed().now_or_never(), None, "threads that are needed no longer may end");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_replaced_producer_has_in_flight_is_published_all_the_same() {
        let (mock, publisher, _) = stage(&[]);
        assert_eq!(publisher.published(record(b"x")).await, Ok(()), "it knows its broker");
        mock.broker_round_trip_time(1, Duration::from_millis(500)).expect("it is slow");
        let report = publisher.publish(record(b"y"), None);
        publisher.batched.replace("another topic is stuck");
        assert_eq!(tokio::time::timeout(DEADLINE, report).await.expect("a report"), Ok(()));
    }

    /// The thread runs what is done when a record's report arrives.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_of_the_thread_that_takes_the_reports_is_a_reason_to_end() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("as a test wants it");
            }
        }
        let (_mock, publisher, shutdown) = stage(&[]);
        drop(publisher.publish(record(b"x"), Some(Arc::new(Bomb))));
        let reason = tokio::time::timeout(DEADLINE, shutdown.failed()).await.expect("it is noticed");
        assert_eq!(reason, "the reports thread has ended");
    }

    /// A broker that refuses batches of several records, and takes each record by itself.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_refused_with_its_batch_is_taken_alone() {
        let (mock, publisher, _) = stage(&[("linger.ms", "1000")]);
        mock.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
        let reports: Vec<_> = (0..5).map(|_| publisher.publish(record(b"x"), None)).collect();
        for report in reports {
            let failure = report.await.expect_err("the batch is refused whole");
            assert!(failure.is_refused() && failure.remedy == Remedy::DeadLetter);
            assert_eq!(publisher.published_alone(record(b"x")).await, Ok(()));
        }
    }

    /// The first request is refused, the second, under way at the same time, is taken: librdkafka reports success for both.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_ack_that_no_broker_gave_is_none() {
        let (mock, publisher, _) = stage(&[("batch.num.messages", "1")]); // a record a request
        mock.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION]);
        let reports = [b"one", b"two"].map(|value| publisher.publish(record(value), None));
        let [one, two] = reports.map(async |report| report.await);
        assert_eq!(one.await.map_err(|failure| failure.code), Err(RDKafkaErrorCode::NoOffset));
        assert_eq!(two.await, Ok(()));
    }
}
