//! A producer with a thread that takes its delivery reports.
//!
//! rdkafka's `ThreadedProducer` is the same, but the end of its thread, by a panic, is noticed by nothing: records would be handed over,
//! and no report would ever come.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::report::InFlight;
use super::{Config, Context, Unusable};
use crate::shutdown::Vital;

/// How long reports are taken before the thread looks whether it should end. Each is delivered as it comes all the while.
const POLL: Duration = Duration::from_millis(100);

/// A producer whose reports are taken until it is dropped; what it still has then is reported as failed.
pub(super) struct Polled {
    producer: Arc<BaseProducer<Context>>,
    stop: Arc<AtomicBool>,
    reports_thread: Option<JoinHandle<()>>,
}

impl Polled {
    pub(super) fn new(config: &Config, context: Context, vital: Vital) -> Result<Self, Unusable> {
        let client = config.producer();
        let producer: Arc<BaseProducer<Context>> = Arc::new(client.create_with_context(context)?);
        config.read_back(&client)?;
        let stop = Arc::<AtomicBool>::default();
        let (polled, stopped) = (Arc::clone(&producer), Arc::clone(&stop));
        let take_reports = move || {
            while !stopped.load(Ordering::Relaxed) {
                polled.poll(POLL);
            }
            vital.done();
        };
        let thread = std::thread::Builder::new().name("reports".to_owned()).spawn(take_reports);
        let reports_thread = Some(thread.expect("a thread can be started"));
        Ok(Self { producer, stop, reports_thread })
    }

    /// Hands a record over; its report says what becomes of it.
    pub(super) fn send(&self, in_flight: InFlight) {
        let slot = Arc::clone(in_flight.slot());
        let record = &slot.record;
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        let headers =
            record.headers.iter().fold(headers, |all, (key, value)| all.insert(Header { key, value: Some(&**value) }));
        let message = BaseRecord::with_opaque_to(&record.topic, Box::new(in_flight))
            .key(record.key.as_str())
            .payload(&record.value)
            .headers(headers);
        if let Err((error, message)) = self.producer.send(message) {
            self.producer.context().refused(&error, *message.delivery_opaque);
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
        if let Some(Err(_)) = self.reports_thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that takes delivery reports has panicked");
        }
    }
}
