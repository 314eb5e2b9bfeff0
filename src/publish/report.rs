//! The way of a delivery report: from whoever polls the producer to whoever waits for one record.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::task::AtomicWaker;

use super::Failure;
use crate::event::Record;

/// Travels through librdkafka with its record.
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

    /// Tells how the record's way has ended; only the first word counts.
    pub(super) fn fill(&self, outcome: Result<(), Failure>, now: Instant) {
        let _ = self.filled.set((outcome, now)); // librdkafka reports a record once
        self.waiter.wake();
    }
}

/// The report of one record: resolves when the broker has acked it, or librdkafka has given it up, which it does by
/// `publish_deadline` and a second. Nothing is called back by dropping it; of clones, the last to wait is told.
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

    /// When it came, once it is here.
    pub fn came(&self) -> Option<Instant> {
        self.0.filled.get().map(|(_, at)| *at)
    }

    /// The record that it is of, for another way.
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
