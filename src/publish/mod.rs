//! [`Record`] → broker ack. Knows librdkafka; tells the rest only what to do about a failure.
//!
//! A record is handed over before the first wait, so that whoever waits for its report may go away without calling it
//! back. The producer is idempotent and asks for the acks of all in-sync replicas; neither can be configured away.

mod config;
mod health;
mod producer;
mod remedy;
mod report;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext, PurgeConfig};

use crate::event::Record;
use crate::metrics::Metrics;
use crate::outcome::{DeadLetterReason, Unavailable};
use crate::shutdown::Shutdown;
use crate::telemetry::{Throttle, Throttles};
pub use config::{Config, Unusable, canonical};
use health::Health;
use producer::Polled;
pub use remedy::{REMEDIES, Remedy};
pub use report::{Held, Report};
use report::{InFlight, Slot};

/// Why a record is not on the brokers, and what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Kafka did not take the record: {code:?}")]
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
            (Remedy::Park, _) => self.dead_letter_reason().into(),
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

    /// Its request failed once, and librdkafka took a later one's ack for its own: the brokers are there, and may not have it.
    pub fn is_lost(&self) -> bool {
        self.code == RDKafkaErrorCode::NoOffset
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

/// Hands records to an idempotent producer, which is replaced when it is beyond help.
pub struct Publisher {
    config: Config,
    producer: RwLock<Arc<Polled>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    shutdown: Shutdown,
    rebuilt: Throttle,
    in_flight: Arc<AtomicUsize>,
}

impl Publisher {
    /// Starts a producer; it looks for its brokers in the background.
    ///
    /// # Errors
    /// [`Unusable`]: a property in `kafka.properties` is wrong.
    pub fn new(config: Config, metrics: Arc<Metrics>, shutdown: Shutdown) -> Result<Self, Unusable> {
        let health = Arc::<Health>::default();
        let producer = RwLock::new(Arc::new(producer(&config, &metrics, &health, &shutdown)?));
        let rebuilt = Throttle::new(Duration::from_secs(1));
        Ok(Self { config, producer, metrics, health, shutdown, rebuilt, in_flight: Arc::default() })
    }

    /// Hands `record` over. The report that is returned says what becomes of it, whether someone waits for it or not; `held` is
    /// released when it is there.
    pub fn publish(&self, record: Record, held: Option<Held>) -> Report {
        let slot = Arc::new(Slot::new(record, Instant::now()));
        let current = self.current();
        current.send(InFlight::new(Arc::clone(&slot), &self.in_flight, held));
        let is_beyond_help = current.client().context().is_beyond_help.load(Relaxed);
        drop(current);
        if is_beyond_help {
            self.rebuild("the producer is in a fatal state");
        }
        Report::new(slot)
    }

    /// As `publish`, and waits for the report; past the time that one may take, the record counts as not taken. (A producer
    /// that is replaced may end without having reported all.)
    ///
    /// # Errors
    /// A [`Failure`]; unless it came from the brokers, the record may be there all the same.
    pub async fn published(&self, record: Record) -> Result<(), Failure> {
        let report = self.publish(record, None);
        tokio::time::timeout(self.report_deadline_max(), report).await.unwrap_or(Err(Failure::gone()))
    }

    /// How many records have no report yet.
    pub fn records_in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Asks the brokers for their metadata, which tells whether they are there. Blocks up to `timeout`.
    ///
    /// # Errors
    /// What librdkafka says when no broker answers in time.
    pub fn probe(&self, topic: &str, timeout: Duration) -> Result<(), KafkaError> {
        if let Some((_, why)) = self.shared().client().fatal_error() {
            self.rebuild(&why);
        }
        self.shared().client().fetch_metadata(Some(topic), timeout).map(drop)?;
        if let Some(topic) = self.health.stuck(Instant::now()) {
            self.rebuild(&format!("the brokers answer, and yet nothing has reached the topic {topic} for long"));
        }
        Ok(())
    }

    /// Whether nothing has been acked since records began to fail: another one would likely fail, too.
    pub fn is_away(&self) -> bool {
        self.health.is_away()
    }

    /// Sets what [`Publisher::is_away`] says until the next report.
    pub fn presume_away(&self, is_away: bool) {
        self.health.presume_away(is_away);
    }

    /// For how long a report may be late: librdkafka looks for records that have timed out once a second.
    pub fn report_deadline(&self) -> Duration {
        self.config.publish_deadline + Duration::from_millis(1200)
    }

    /// A report that is later than this will not come any more: its producer was replaced, and has ended without it.
    pub fn report_deadline_max(&self) -> Duration {
        self.report_deadline() + Duration::from_secs(10)
    }

    /// Waits until every record handed over has its report; blocks up to `timeout`.
    ///
    /// # Errors
    /// When records are left without one.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.shared().flush(timeout)
    }

    /// Whoever still waits for a report has one soon: what the brokers have not acked is given up. Blocks until it is.
    pub fn give_up(&self) {
        self.shared().purge(PurgeConfig::default().queue().inflight());
    }

    /// For a moment: while it is borrowed, it cannot be replaced, nor can others borrow it whom that makes wait.
    fn current(&self) -> RwLockReadGuard<'_, Arc<Polled>> {
        self.producer.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For what may block.
    fn shared(&self) -> Arc<Polled> {
        Arc::clone(&self.current())
    }

    /// A fatal state of the idempotent producer never ends by itself; a new producer has none. At most one a second.
    fn rebuild(&self, reason: &str) {
        if self.rebuilt.pass().is_none() {
            return;
        }
        tracing::warn!(reason, "the Kafka producer is built anew");
        match producer(&self.config, &self.metrics, &self.health, &self.shutdown) {
            Ok(new) => {
                let mut current = self.producer.write().unwrap_or_else(PoisonError::into_inner);
                let old = std::mem::replace(&mut *current, Arc::new(new));
                drop(current);
                self.metrics.producer_rebuilds.inc();
                // Its end reports what it still had as failed, and may block on that for half a second.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => tracing::error!(%error, "the Kafka producer cannot be built anew"),
        }
    }
}

fn producer(
    config: &Config,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
    shutdown: &Shutdown,
) -> Result<Polled, Unusable> {
    let (metrics, health) = (Arc::clone(metrics), Arc::clone(health));
    let context = Context {
        metrics,
        health,
        is_beyond_help: AtomicBool::new(false),
        logged: Throttle::new(Duration::from_secs(10)),
    };
    Polled::new(config, context, shutdown.vital("reports"))
}

/// Receives what librdkafka has to say, on whichever thread asks for it.
struct Context {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// It is in a fatal state, and takes nothing any more.
    is_beyond_help: AtomicBool,
    logged: Throttle,
}

impl Context {
    fn failed(&self, error: &KafkaError, message: &BorrowedMessage<'_>, since: Instant) -> Failure {
        self.count(error);
        if let Some(unlogged) = self.logged.pass() {
            tracing::warn!(topic = message.topic(), %error, unlogged, "Kafka did not take a record");
        }
        let failure = Failure::of(error);
        self.health.failed(message.topic(), failure.remedy, since);
        failure
    }

    /// The producer did not take a record: nothing was or will be sent.
    fn refused(&self, error: &KafkaError, in_flight: InFlight) {
        self.count(error);
        let failure = Failure::of(error);
        if failure.remedy == Remedy::Rebuild {
            self.is_beyond_help.store(true, Relaxed);
        }
        in_flight.report(Err(failure), Instant::now());
    }

    fn count(&self, error: &KafkaError) {
        let code = error.rdkafka_error_code().map_or_else(|| "unknown".to_owned(), |code| format!("{code:?}"));
        self.metrics.kafka_errors.with_label_values(&[&code]).inc();
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Box<InFlight>) {
        let now = Instant::now();
        let since = in_flight.slot().since;
        let took = now.saturating_duration_since(since);
        self.metrics.publish_seconds.observe(took.as_secs_f64());
        let outcome = match result {
            Ok(message) if message.offset() >= 0 => {
                self.health.acked(message.topic(), now);
                Ok(())
            }
            // librdkafka takes a later batch's ack for this record's, too, when its own request has failed and may have
            // reached the broker. Where the broker has no sequence of this producer yet, as on a new topic or with a new
            // producer, that is not so, and the record is nowhere. Only the broker itself gives offsets.
            Ok(message) => Err(self.failed(&KafkaError::MessageProduction(RDKafkaErrorCode::NoOffset), message, since)),
            Err((error, message)) => Err(self.failed(error, message, since)),
        };
        in_flight.report(outcome, now);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.count(&error);
        if let Some(unlogged) = self.logged.pass() {
            tracing::warn!(%error, reason, unlogged, "the Kafka client reports trouble");
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Err("the relay makes no tokens of its own; set \"sasl.oauthbearer.method\" = \"oidc\" in kafka.properties"
            .into())
    }
}

/// librdkafka's log lines in ours, one in ten seconds of each facility: it repeats some for every partition. What it calls an error is a
/// warning here: it goes on by itself.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    static BY_FACILITY: LazyLock<Throttles> = LazyLock::new(|| Throttles::new(Duration::from_secs(10)));
    if matches!(level, RDKafkaLogLevel::Debug) {
        tracing::debug!(target: "librdkafka", facility, message);
        return;
    }
    let Some(suppressed) = BY_FACILITY.pass(facility) else { return };
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "librdkafka", facility, suppressed, message);
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", facility, suppressed, message)
        }
        _ => tracing::info!(target: "librdkafka", facility, suppressed, message),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::config::tests::config;
    use super::*;

    #[tokio::test]
    async fn a_record_that_is_too_large_or_one_too_many_is_told_at_once() {
        let publisher = Publisher::new(config(&[]), Arc::new(Metrics::new()), Shutdown::default()).expect("a producer");
        let record = |bytes: usize| Record {
            topic: "t".into(),
            key: "k".to_owned(),
            headers: Vec::new(),
            value: vec![b'x'; bytes],
        };
        let reason = |bytes| {
            publisher.publish(record(bytes), None).now_or_never().and_then(Result::err).map(|failure| failure.reason())
        };
        assert_eq!(reason((1 << 20) + 1024 + 1), Some(Unavailable::TooLarge));
        let taken = (0..20).map(|_| reason(1)).collect::<Vec<_>>();
        assert_eq!(taken[9], None);
        assert_eq!(taken[10], Some(Unavailable::QueueFull));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_record_is_in_flight_and_what_is_held_for_it_is_kept_until_its_report_is_there() {
        use rdkafka::mocking::MockCluster;
        let mock = MockCluster::new(1).expect("a mock cluster");
        mock.create_topic("t", 1, 1).expect("a topic");
        let config = Config { brokers: mock.bootstrap_servers(), ..config(&[]) };
        let publisher = Publisher::new(config, Arc::new(Metrics::new()), Shutdown::default()).expect("a producer");
        let record = Record { topic: "t".into(), key: "k".to_owned(), headers: Vec::new(), value: Vec::new() };
        let publish = || {
            let held: Held = Arc::new(());
            let released = Arc::downgrade(&held);
            (publisher.publish(record.clone(), Some(held)), move || released.upgrade().is_none())
        };
        let (report, is_released) = publish();
        assert_eq!(report.await, Ok(()));
        assert!(is_released() && publisher.records_in_flight() == 0, "it was acked");

        mock.broker_round_trip_time(1, Duration::from_secs(3600)).expect("it is slow");
        let (report, is_released) = publish();
        drop(report);
        assert!(!is_released() && publisher.records_in_flight() == 1, "librdkafka has it, though no task waits");
        let (report, is_released_too) = publish();
        publisher.give_up();
        assert!(report.await.is_err());
        let all = async {
            while !(is_released() && is_released_too() && publisher.records_in_flight() == 0) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("both were given up");

        mock.broker_round_trip_time(1, Duration::ZERO).expect("it is fast");
        let too_large = Record { value: vec![b'x'; 2 << 20], ..record.clone() };
        assert!(publisher.publish(too_large, None).await.is_err());
        assert_eq!(publisher.records_in_flight(), 0, "it was never taken");
    }

    /// The first request is refused, the second, under way at the same time, is taken: librdkafka reports success for both.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_ack_that_no_broker_gave_is_none() {
        use rdkafka::mocking::MockCluster;
        use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
        let mock = MockCluster::new(1).expect("a mock cluster");
        mock.create_topic("t", 1, 1).expect("a topic");
        mock.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION]);
        // A record a request.
        let config = Config { brokers: mock.bootstrap_servers(), ..config(&[("batch.num.messages", "1")]) };
        let publisher = Publisher::new(config, Arc::new(Metrics::new()), Shutdown::default()).expect("a producer");
        let record = |value: &str| Record {
            topic: "t".into(),
            key: "k".to_owned(),
            headers: Vec::new(),
            value: value.as_bytes().to_vec(),
        };
        let reports = ["one", "two"].map(|value| publisher.publish(record(value), None));
        let [one, two] = reports.map(async |report| report.await);
        assert_eq!(one.await.map_err(|failure| failure.code), Err(RDKafkaErrorCode::NoOffset));
        assert_eq!(two.await, Ok(()));
    }
}
