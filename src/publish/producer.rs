//! A librdkafka producer with the thread that takes its delivery reports; made at first need, and replaced when its state is fatal.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig};

use super::config::{Config, Unusable};
use super::health::Health;
use super::log::{log, without_token};
use super::report::InFlight;
use super::{Failure, Remedy};
use crate::metrics::Metrics;
use crate::shutdown::{Shutdown, Vital};
use crate::telemetry::{Throttle, Throttles};

/// What the producers of one publisher have in common.
pub(super) struct Common {
    pub(super) config: Config,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Health,
    pub(super) shutdown: Shutdown,
    /// By what the clients have said.
    pub(super) heard: Throttles,
}

/// How often the same error of the clients is logged: it comes with each attempt to connect.
pub(super) const REPEAT: Duration = Duration::from_secs(300);

/// A producer, made at first need. The idempotent producer's fatal state never ends by itself: then another one takes its place.
pub(super) struct Producer {
    common: Arc<Common>,
    config: ClientConfig,
    current: RwLock<Option<Arc<Client>>>,
    replaced: Throttle,
}

impl Producer {
    pub(super) fn new(common: &Arc<Common>, config: ClientConfig) -> Self {
        let replaced = Throttle::new(Duration::from_secs(1));
        Self { common: Arc::clone(common), config, current: RwLock::new(None), replaced }
    }

    /// The client, where there is one already.
    pub(super) fn existing(&self) -> Option<Arc<Client>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client; made, where there is none yet.
    ///
    /// # Errors
    /// [`Unusable`], as of the configuration's fault; or the system is out of threads.
    pub(super) fn client(&self) -> Result<Arc<Client>, Unusable> {
        if let Some(client) = self.existing() {
            return Ok(client);
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*current {
            return Ok(Arc::clone(client)); // made meanwhile
        }
        let client = Arc::new(Client::new(&self.common, &self.common.config, &self.config)?);
        Ok(Arc::clone(current.insert(client)))
    }

    /// Hands a record over; its report says what becomes of it.
    pub(super) fn send(&self, in_flight: InFlight) {
        match self.client() {
            Ok(client) => {
                client.send(in_flight);
                if client.context().is_fatal.load(Relaxed) {
                    self.replace("the producer is in a fatal state");
                }
            }
            Err(error) => {
                tracing::error!(%error, "a Kafka producer cannot be created");
                in_flight.report(Err(Failure::gone()));
            }
        }
    }

    /// Replaces the client, where there is one, at most once a second. What the old one still has it goes on publishing, unless its state is
    /// fatal: then it is reported as failed.
    pub(super) fn replace(&self, reason: &str) {
        if self.existing().is_none() || self.replaced.pass().is_none() {
            return;
        }
        tracing::warn!(reason, "the Kafka producer is replaced");
        match Client::new(&self.common, &self.common.config, &self.config) {
            Ok(new) => {
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                let old = current.replace(Arc::new(new));
                drop(current);
                self.common.metrics.producer_rebuilds.inc();
                let finish = |old: Arc<Client>| {
                    if old.client().fatal_error().is_some() {
                        old.give_up();
                    }
                    old.take_all_reports();
                };
                if let Some(Err(error)) = old.map(|old| thread::Builder::new().spawn(move || finish(old))) {
                    tracing::error!(%error, "no thread can be started: delivery reports of the old Kafka producer are lost");
                }
            }
            Err(error) => tracing::error!(%error, "the Kafka producer cannot be replaced"),
        }
    }
}

/// A librdkafka client whose reports are taken until it is dropped.
///
/// rdkafka's `ThreadedProducer` is the same, but nothing notices when its thread ends by a panic: records would be handed over,
/// and no report would ever come.
pub(super) struct Client {
    producer: Arc<BaseProducer<Context>>,
    stop: Arc<AtomicBool>,
}

impl Client {
    pub(super) fn new(common: &Arc<Common>, config: &Config, properties: &ClientConfig) -> Result<Self, Unusable> {
        let [logged, clocks_logged] = [(); 2].map(|()| Throttle::new(Duration::from_secs(10)));
        let is_fatal = AtomicBool::new(false);
        let context = Context { common: Arc::clone(common), is_fatal, logged, clocks_logged };
        let producer: Arc<BaseProducer<Context>> = Arc::new(properties.create_with_context(context)?);
        config.read_back(properties)?;
        let stop = Arc::<AtomicBool>::default();
        let (polled, stopped, vital) = (Arc::clone(&producer), Arc::clone(&stop), common.shutdown.vital("reports"));
        let thread = thread::Builder::new().name("reports".to_owned());
        thread.spawn(move || take_reports(&polled, &stopped, vital)).map_err(Unusable::Thread)?;
        Ok(Self { producer, stop })
    }

    pub(super) fn send(&self, in_flight: InFlight) {
        let record = Arc::clone(&in_flight.record);
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        let headers =
            record.headers.iter().fold(headers, |all, (key, value)| all.insert(Header { key, value: Some(&**value) }));
        // Without a timestamp, librdkafka takes the time of this call: that of the attempt, not of the event.
        let message = BaseRecord::with_opaque_to(&record.topic, Box::new(in_flight))
            .key(record.key.as_str())
            .payload(&record.value)
            .headers(headers);
        if let Err((error, message)) = self.producer.send(message) {
            self.producer.context().refused(&error, *message.delivery_opaque);
        }
    }

    /// Gives up what no broker has acked; its reports come soon.
    pub(super) fn give_up(&self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
    }

    /// Gives all up, and waits for the last report.
    pub(super) fn end(&self) {
        self.give_up();
        self.take_all_reports();
    }

    /// Waits for the last report, which comes when its record or its request has timed out at the latest: reports that a destroyed client
    /// still has never come, and what is held for their records would be kept for the life of the process.
    fn take_all_reports(&self) {
        while self.producer.flush(Duration::from_secs(1)).is_err() {}
    }
}

fn take_reports(producer: &BaseProducer<Context>, stop: &AtomicBool, vital: Vital) {
    /// How long reports are taken before the thread looks whether it should end. Each is delivered as it comes all the while.
    const POLL: Duration = Duration::from_millis(100);
    while !stop.load(Relaxed) {
        producer.poll(POLL);
    }
    vital.done();
}

impl Deref for Client {
    type Target = BaseProducer<Context>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for Client {
    /// Its thread destroys it, for that may take a while.
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// Receives what librdkafka has to say, on whichever thread polls it.
pub(super) struct Context {
    common: Arc<Common>,
    /// It takes nothing any more.
    is_fatal: AtomicBool,
    logged: Throttle,
    clocks_logged: Throttle,
}

impl Context {
    fn failed(&self, error: &KafkaError, message: &BorrowedMessage<'_>, since: Instant) -> Failure {
        self.count(error);
        let (failure, topic) = (Failure::of(error), message.topic());
        let is_clocks = failure.remedy == Remedy::Clocks;
        let throttle = if is_clocks { &self.clocks_logged } else { &self.logged };
        match throttle.pass() {
            None => {}
            // That is logged where it is found.
            Some(_) if !is_clocks && self.common.health.unavailable(Instant::now()).is_some() => {}
            Some(suppressed) if is_clocks => tracing::error!(
                topic,
                code = ?failure.code,
                suppressed,
                "the clocks of the relay and of the brokers differ by more than the topic allows: correct the clock, or its message.timestamp.before.max.ms and message.timestamp.after.max.ms"
            ),
            Some(suppressed) => {
                tracing::warn!(
                    topic,
                    code = failure.code.to_string(),
                    suppressed,
                    "an attempt to publish a record failed"
                );
            }
        }
        if !failure.is_given_up() {
            self.common.health.failed(topic, failure, since);
        }
        failure
    }

    /// The producer did not accept a record: nothing was or will be sent.
    fn refused(&self, error: &KafkaError, in_flight: InFlight) {
        self.count(error);
        let failure = Failure::of(error);
        if failure.remedy == Remedy::Rebuild {
            self.is_fatal.store(true, Relaxed);
        }
        in_flight.report(Err(failure));
    }

    fn count(&self, error: &KafkaError) {
        let code = error.rdkafka_error_code().map_or_else(|| "unknown".to_owned(), |code| format!("{code:?}"));
        self.common.metrics.kafka_errors.with_label_values(&[&code]).inc();
    }
}

/// What a client says of a connection, without how long it took, and how often, and without the broker's id: a broker is known by its
/// address alone, and then with its id, and fails for one reason.
fn plain(reason: &str) -> String {
    let reason = reason.split(" (after ").next().unwrap_or_default();
    let (broker, why) = reason.split_once(": ").unwrap_or((reason, ""));
    match broker.rsplit_once('/') {
        Some((address, id)) if id == "bootstrap" || id.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{address}: {why}")
        }
        _ => reason.to_owned(),
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Box<InFlight>) {
        let now = Instant::now();
        let since = in_flight.since;
        let took = now.saturating_duration_since(since);
        self.common.metrics.publish_seconds.observe(took.as_secs_f64());
        let outcome = match result {
            Ok(message) if message.offset() >= 0 => {
                self.common.health.acked(message.topic(), now);
                Ok(())
            }
            // librdkafka takes a later batch's ack for this record's, too, where its own request has failed and may have
            // reached the broker. Where the broker has no sequence of this producer yet, as on a new topic or with a new
            // producer, that is not so, and the record is nowhere. Only the broker itself gives offsets.
            Ok(message) => Err(self.failed(&KafkaError::MessageProduction(RDKafkaErrorCode::NoOffset), message, since)),
            Err((error, message)) => Err(self.failed(error, message, since)),
        };
        in_flight.report(outcome);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let without_token = without_token(message);
        log(level, facility, without_token.as_deref().unwrap_or(message));
        if let Some(why) = without_token {
            self.common.health.without_token(why, Instant::now());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.count(&error);
        // Behind these words stands what librdkafka does not understand of "sasl.oauthbearer.config".
        let reason = reason.split(" beginning at:").next().unwrap_or_default();
        // That says no more than that there were others.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        let reason = if let Some(why) = without_token(reason) {
            self.common.health.without_token(why.clone(), Instant::now());
            why
        } else {
            let reason = plain(reason);
            self.common.health.heard(&reason);
            reason
        };
        if let Some(suppressed) = self.common.heard.pass(&reason) {
            let code = error.rdkafka_error_code().map(tracing::field::debug);
            tracing::warn!(code, reason, suppressed, "the Kafka client reports an error");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_is_known_by_its_address_and_then_with_its_id_fails_for_one_reason() {
        let why = "Connect to ipv4#127.0.0.1:9092 failed: Connection refused";
        for (broker, address) in [
            ("kafka:9092/bootstrap", "kafka:9092"),
            ("kafka:9092/1", "kafka:9092"),
            ("sasl_ssl://[::1]:9092/17", "sasl_ssl://[::1]:9092"),
            ("sasl_ssl://kafka:9092", "sasl_ssl://kafka:9092"),
        ] {
            let said = format!("{broker}: {why} (after 0ms in state CONNECT, 30 identical error(s) suppressed)");
            assert_eq!(plain(&said), format!("{address}: {why}"));
        }
        assert_eq!(plain("1/1 brokers are down"), "1/1 brokers are down");
    }
}
