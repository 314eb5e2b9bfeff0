//! A delivery report: from the thread that polls the producer to the task that waits for one record; and what is held until then.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::oneshot;

use super::Failure;
use crate::event::Record;

/// What a caller holds for a record until its report arrives, such as its part of a budget of memory.
pub type Held = Arc<dyn Any + Send + Sync>;

/// Goes through librdkafka with a record, and ends with librdkafka's copy of that. Until then the record counts as in flight, and what is
/// held for it is kept, whether a task still waits for the report or not.
pub struct InFlight {
    pub(super) record: Arc<Record>,
    pub(super) since: Instant,
    reporter: oneshot::Sender<Result<(), Failure>>,
    /// The record counts as in flight for as long as this exists.
    counted: Arc<()>,
    held: Option<Held>,
}

impl InFlight {
    /// A record that is handed over now, and its report to come.
    pub fn new(record: Record, counted: &Arc<()>, held: Option<Held>) -> (Self, Report) {
        let ((reporter, outcome), record) = (oneshot::channel(), Arc::new(record));
        let report = Report { record: Arc::clone(&record), outcome };
        (Self { record, since: Instant::now(), reporter, counted: Arc::clone(counted), held }, report)
    }

    /// The report has arrived; it reaches the task that waits after all else was released.
    pub fn report(self, outcome: Result<(), Failure>) {
        drop((self.counted, self.held));
        let _ = self.reporter.send(outcome); // the task may wait no longer
    }
}

/// The report of one record: resolves when the broker has acked it, or librdkafka has given it up, which it does by
/// `publish_deadline` and a second; or when its producer has gone away without a report. Dropping it calls nothing back.
pub struct Report {
    record: Arc<Record>,
    outcome: oneshot::Receiver<Result<(), Failure>>,
}

impl Report {
    /// The record that it is of; a copy, as long as librdkafka has it, too.
    pub fn into_record(self) -> Record {
        Arc::unwrap_or_clone(self.record)
    }
}

impl Future for Report {
    type Output = Result<(), Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(context).map(|outcome| outcome.unwrap_or(Err(Failure::gone())))
    }
}
