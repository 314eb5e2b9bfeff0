//! A producer with the thread that takes its delivery reports.
//!
//! While little is under way, the thread waits for each report, and tells it at once. Under load whoever hands a record over
//! takes the reports that have come meanwhile: they wake nobody who is not awake already. The thread then looks after what is left.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::Context;
use super::report::Slot;

/// With so many records under way it is load.
const MANY: usize = 8;
/// How often the thread looks after what is left under load.
const INTERVAL: Duration = Duration::from_micros(200);
/// How long a report is waited for before the thread looks whether it should do otherwise, or end.
const PATIENCE: Duration = Duration::from_millis(20);
/// The same while nothing is under way.
const IDLE: Duration = Duration::from_millis(100);

/// How many records were handed over and not reported.
#[derive(Default)]
pub(super) struct UnderWay(AtomicUsize);

impl UnderWay {
    pub(super) fn remove(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A producer whose reports are taken until it is dropped; what it still has then is reported as failed.
pub(super) struct Polled {
    producer: Arc<BaseProducer<Context>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Polled {
    pub(super) fn new(config: &ClientConfig, context: Context) -> Result<Self, KafkaError> {
        let producer: Arc<BaseProducer<Context>> = Arc::new(config.create_with_context(context)?);
        let stop = Arc::<AtomicBool>::default();
        let (polled, stopped) = (Arc::clone(&producer), Arc::clone(&stop));
        let poll = move || {
            while !stopped.load(Ordering::Relaxed) {
                take_reports(&polled);
            }
        };
        let thread = std::thread::Builder::new().name("reports".to_owned()).spawn(poll);
        Ok(Self { producer, stop, thread: Some(thread.expect("a thread can be started")) })
    }

    /// Hands a record over, and under load takes a report.
    pub(super) fn send(&self, record: BaseRecord<'_, str, Vec<u8>, Arc<Slot>>) -> Result<(), KafkaError> {
        let under_way = &self.producer.context().under_way.0;
        let before = under_way.fetch_add(1, Ordering::Relaxed);
        let sent = self.producer.send(record).map_err(|(error, _)| error);
        if sent.is_err() {
            under_way.fetch_sub(1, Ordering::Relaxed);
        }
        if before >= MANY {
            self.producer.poll(Duration::ZERO);
        }
        sent
    }
}

fn take_reports(producer: &BaseProducer<Context>) {
    match producer.context().under_way.0.load(Ordering::Relaxed) {
        0 => producer.poll(IDLE),
        1..MANY => producer.poll(PATIENCE),
        _ => {
            std::thread::sleep(INTERVAL);
            let left = || producer.context().under_way.0.load(Ordering::Relaxed);
            let mut before = usize::MAX;
            while left() < before {
                before = left();
                producer.poll(Duration::ZERO); // what one response has acked
            }
        }
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
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that takes Kafka's reports has panicked");
        }
    }
}
