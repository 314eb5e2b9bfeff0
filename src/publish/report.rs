//! A delivery report: from the thread that polls the producer to the task that waits for one record; and what is held until then.

use std::any::Any;
use std::pin::Pin;
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
    pub(super) slot: Arc<Slot>,
    /// The record counts as in flight for as long as this exists.
    _counted: Arc<()>,
    _held: Option<Held>,
}

/// A record that is handed over now, and its report to come.
pub(super) fn begin(record: Record, counted: &Arc<()>, held: Option<Held>) -> (InFlight, Report) {
    let slot = Slot { record, since: Instant::now(), filled: OnceLock::new(), waiter: AtomicWaker::new() };
    let slot = Arc::new(slot);
    (InFlight { slot: Arc::clone(&slot), _counted: Arc::clone(counted), _held: held }, Report(slot))
}

impl InFlight {
    /// The report is there; it reaches the task that waits after all else was released.
    pub(super) fn report(self, outcome: Result<(), Failure>) {
        let slot = Arc::clone(&self.slot);
        drop(self);
        let _ = slot.filled.set((outcome, Instant::now())); // librdkafka reports a record once
        slot.waiter.wake();
    }
}

/// Reports in the place of a producer.
#[cfg(test)]
pub struct Reporter(InFlight);

#[cfg(test)]
impl Reporter {
    pub fn of(record: Record, held: Option<Held>) -> (Self, Report) {
        let (in_flight, report) = begin(record, &Arc::default(), held);
        (Self(in_flight), report)
    }

    pub fn report(self, outcome: Result<(), Failure>) {
        self.0.report(outcome);
    }
}

/// A record, and its report once that is there.
pub(super) struct Slot {
    pub(super) record: Record,
    pub(super) since: Instant,
    filled: OnceLock<(Result<(), Failure>, Instant)>,
    waiter: AtomicWaker,
}

/// The report of one record: resolves when the broker has acked it, or librdkafka has given it up, which it does by
/// `publish_deadline` and a second. Dropping it calls nothing back. Of clones, the last one that was polled is woken.
#[derive(Clone)]
pub struct Report(Arc<Slot>);

impl Report {
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
