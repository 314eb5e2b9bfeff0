//! A delivery report: from the thread that polls the producer to the task that waits for one record; and what is held until then.

use std::any::Any;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::task::AtomicWaker;

use super::Failure;
use crate::event::Record;

/// What a caller holds for a record until its report is there, such as its part of a budget of memory.
pub type Held = Arc<dyn Any + Send + Sync>;

/// Goes through librdkafka with a record, and ends with librdkafka's copy of that. Until then the record counts as in flight, and what is
/// held for it is kept, whether a task still waits for the report or not.
pub(super) struct InFlight {
    slot: Arc<Slot>,
    records: Arc<AtomicUsize>,
    _held: Option<Held>,
}

impl InFlight {
    pub(super) fn new(slot: Arc<Slot>, records: &Arc<AtomicUsize>, held: Option<Held>) -> Self {
        records.fetch_add(1, Ordering::Relaxed);
        Self { slot, records: Arc::clone(records), _held: held }
    }

    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// The report is there; it reaches the task that waits after all else was released.
    pub(super) fn report(self, outcome: Result<(), Failure>, now: Instant) {
        let slot = Arc::clone(&self.slot);
        drop(self);
        slot.fill(outcome, now);
    }
}

/// Reports in the place of a producer.
#[cfg(test)]
pub struct Reporter(InFlight);

#[cfg(test)]
impl Reporter {
    pub fn of(record: Record, held: Option<Held>) -> (Self, Report) {
        let slot = Arc::new(Slot::new(record, Instant::now()));
        (Self(InFlight::new(Arc::clone(&slot), &Arc::default(), held)), Report::new(slot))
    }

    pub fn report(self, outcome: Result<(), Failure>) {
        self.0.report(outcome, Instant::now());
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.records.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A record, and its report once that is there.
pub(super) struct Slot {
    pub(super) record: Record,
    pub(super) since: Instant,
    filled: OnceLock<(Result<(), Failure>, Instant)>,
    waiter: AtomicWaker,
}

impl Slot {
    pub(super) const fn new(record: Record, since: Instant) -> Self {
        Self { record, since, filled: OnceLock::new(), waiter: AtomicWaker::new() }
    }

    fn fill(&self, outcome: Result<(), Failure>, now: Instant) {
        let _ = self.filled.set((outcome, now)); // librdkafka reports a record once
        self.waiter.wake();
    }
}

/// The report of one record: resolves when the broker has acked it, or librdkafka has given it up, which it does by
/// `publish_deadline` and a second. Dropping it calls nothing back. Of clones, the last one that was polled is woken.
#[derive(Clone)]
pub struct Report(Arc<Slot>);

impl Report {
    pub(super) const fn new(slot: Arc<Slot>) -> Self {
        Self(slot)
    }

    /// When the record was handed over.
    pub fn since(&self) -> Instant {
        self.0.since
    }

    /// When the report came, once it is there.
    pub fn came(&self) -> Option<Instant> {
        self.0.filled.get().map(|(_, at)| *at)
    }

    /// The record that it is of.
    pub fn record(&self) -> Record {
        self.0.record.clone()
    }
}

impl Future for Report {
    type Output = Result<(), Failure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some((outcome, _)) = self.0.filled.get() {
            return Poll::Ready(*outcome);
        }
        self.0.waiter.register(context.waker());
        // It may have come while the waiter was not registered yet.
        self.0.filled.get().map_or(Poll::Pending, |(outcome, _)| Poll::Ready(*outcome))
    }
}
