//! The spool of a running relay and what empties it, and how both end.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::publish::Publisher;
use crate::spool::{Size, Spool};
use crate::telemetry::Throttle;

/// The spool and what empties it.
pub struct Replay {
    pub spool: Spool,
    pub task: JoinHandle<()>,
    pub stop: CancellationToken,
    pub drain_timeout: Duration,
}

impl Replay {
    /// Waits until the spool is empty.
    pub async fn drain(&self) {
        let until = tokio::time::Instant::now() + self.drain_timeout;
        let progress = Throttle::new(Duration::from_secs(5));
        loop {
            let Size { records, bytes } = self.spool.lanes(|lanes| lanes.total());
            if records == 0 || tokio::time::Instant::now() >= until {
                return;
            }
            if progress.pass().is_some() {
                tracing::info!(records, bytes, "stopping: the spool is emptied first; a second signal ends at once");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the replay and closes the spool; what is left in it.
    pub async fn end(self, publisher: &Arc<Publisher>) -> Size {
        self.stop.cancel();
        // What is in flight has its report soon, or is published again after the next start. While Kafka is unavailable none will come.
        let patience = if publisher.is_away() { Duration::ZERO } else { Duration::from_secs(1) };
        let mut task = self.task;
        let stopped = async {
            if tokio::time::timeout(patience, &mut task).await.is_err() {
                let publisher = Arc::clone(publisher);
                let _ = tokio::task::spawn_blocking(move || publisher.give_up()).await; // the runtime ends with us
                let _ = task.await; // one that has panicked has said so
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), stopped).await.is_err() {
            tracing::warn!(
                "the replay has not ended in time: what is in flight is published again after the next start"
            );
        }
        let spool = self.spool.clone();
        let closing = tokio::task::spawn_blocking(move || spool.close());
        if tokio::time::timeout(Duration::from_secs(5), closing).await.is_err() {
            tracing::error!("the spool's disk does not answer: ending without closing the file");
        }
        self.spool.lanes(|lanes| lanes.total())
    }
}
