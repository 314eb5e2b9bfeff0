//! A producer with its two threads: one takes its delivery reports, the other hands records over in company.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::Context;
use super::company::Company;
use super::report::Slot;

/// How long reports are taken before the thread looks whether it should end. They are told as they come all the while.
const PATIENCE: Duration = Duration::from_millis(100);

/// A producer whose reports are taken until it is dropped; what it still has then is reported as failed.
pub(super) struct Polled {
    producer: Arc<BaseProducer<Context>>,
    company: Arc<Company>,
    stop: Arc<AtomicBool>,
    company_thread: Option<JoinHandle<()>>,
    reports_thread: Option<JoinHandle<()>>,
}

impl Polled {
    pub(super) fn new(config: &ClientConfig, context: Context) -> Result<Self, KafkaError> {
        let company = Arc::clone(&context.company);
        let producer: Arc<BaseProducer<Context>> = Arc::new(config.create_with_context(context)?);
        let stop = Arc::<AtomicBool>::default();
        let (polled, stopped) = (Arc::clone(&producer), Arc::clone(&stop));
        let take_reports = move || {
            while !stopped.load(Ordering::Relaxed) {
                polled.poll(PATIENCE);
            }
        };
        let (producing, kept) = (Arc::clone(&producer), Arc::clone(&company));
        let keep_company = move || {
            kept.keep(|slot| produce(&producing, slot), || producing.context().metrics.records_in_flight.get());
        };
        let company_thread = Some(thread("company", keep_company));
        let reports_thread = Some(thread("reports", take_reports));
        Ok(Self { producer, company, stop, company_thread, reports_thread })
    }

    /// Hands a record over, at once or in a moment with others; what becomes of it is told to its slot.
    pub(super) fn send(&self, slot: &Arc<Slot>, in_flight: i64) {
        if !self.company.takes(slot, in_flight) {
            produce(&self.producer, slot);
        }
    }

    /// Hands over what waits for company.
    pub(super) fn hurry(&self) {
        self.company.hand_over(|slot| produce(&self.producer, slot));
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.expect("a thread can be started")
}

fn join(thread: Option<JoinHandle<()>>) {
    if let Some(Err(_)) = thread.map(JoinHandle::join) {
        tracing::error!("a thread of the Kafka producer has panicked");
    }
}

fn produce(producer: &BaseProducer<Context>, slot: &Arc<Slot>) {
    let record = &slot.record;
    let headers = OwnedHeaders::new_with_capacity(record.headers.len());
    let headers =
        record.headers.iter().fold(headers, |all, (key, value)| all.insert(Header { key, value: Some(&**value) }));
    let message = BaseRecord::with_opaque_to(&record.topic, Arc::clone(slot))
        .key(record.key.as_str())
        .payload(&record.value)
        .headers(headers);
    if let Err((error, _)) = producer.send(message) {
        producer.context().refused(&error, slot);
    }
}

impl Deref for Polled {
    type Target = BaseProducer<Context>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.company.end();
        join(self.company_thread.take());
        self.stop.store(true, Ordering::Relaxed);
        join(self.reports_thread.take());
    }
}
