//! The way to the end: a signal, or a thread that has ended; a time in which requests are still accepted; a time for those in flight.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::telemetry;

/// Three moments, in this order; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Readiness is off, and each connection closes with its next answer.
    pub draining: CancellationToken,
    /// No new connections and no new requests.
    pub closing: CancellationToken,
    /// What still waits for Kafka gives up and answers.
    pub giving_up: CancellationToken,
    /// Why the process has to end though it was not asked to.
    failure: Arc<watch::Sender<Option<String>>>,
}

impl Shutdown {
    /// A guard for the thread or task of this name, without which the daemon cannot go on.
    pub fn vital(&self, name: &'static str) -> Vital {
        Vital { name, shutdown: self.clone(), is_done: false }
    }

    /// Has the process end for this reason; the first one stays.
    pub fn fail(&self, why: String) {
        self.failure.send_modify(|reason| {
            reason.get_or_insert(why);
        });
    }

    /// Waits until the process has to end though it was not asked to; the reason.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let reason = failure.wait_for(Option::is_some).await.ok();
        reason.and_then(|reason| reason.clone()).unwrap_or_default() // there is one: the sender is ours
    }

    /// The reason to end the process, if there is one.
    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Passes through the moments; `idle` resolves when no request is in flight any more.
    pub async fn run(&self, delay: Duration, timeout: Duration, idle: impl Future<Output = ()>) {
        self.draining.cancel();
        tokio::time::sleep(delay).await;
        self.closing.cancel();
        tokio::pin!(idle);
        if tokio::time::timeout(timeout, &mut idle).await.is_err() {
            tracing::warn!(after = ?timeout, "requests in flight at the end of drain_timeout are answered 503");
            self.giving_up.cancel();
            // Those who give up have nothing left to wait for but their sockets.
            let _ = tokio::time::timeout(Duration::from_secs(1), idle).await;
        }
    }
}

/// Held by a thread or a task that the daemon cannot do without. Where it is dropped before the stop has begun, as it is by a panic,
/// [`Shutdown::failed`] reports it.
#[must_use = "dropped, it reports that its thread has ended"]
#[derive(Debug)]
pub struct Vital {
    name: &'static str,
    shutdown: Shutdown,
    is_done: bool,
}

impl Vital {
    /// The thread ends as it should: it is needed no longer.
    pub fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.is_done && !self.shutdown.is_draining() {
            self.shutdown.fail(format!("the {} thread has ended", self.name));
        }
    }
}

/// Signals within this time are one: some supervisors signal the process and then its group.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// Waits for SIGTERM or SIGINT and answers its name. A second one of either ends the process at once, with 128 plus its number, as a
/// shell would report it.
///
/// # Errors
/// When the handlers cannot be installed: the system is out of resources.
pub fn on_signal() -> std::io::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => ("SIGTERM", 15),
            _ = interrupt.recv() => ("SIGINT", 2),
        }
    };
    Ok(async move {
        let (first, _) = next().await;
        tokio::spawn(async move {
            let since = Instant::now();
            let (second, number) = loop {
                let signal = next().await;
                if since.elapsed() >= ONE_SIGNAL {
                    break signal;
                }
            };
            tracing::warn!(signal = second, "a second signal: ending at once, without waiting for requests in flight");
            telemetry::flush();
            std::process::exit(128 + number);
        });
        first
    })
}

/// SIGHUPs from now on, which end the process no more; several that are not received yet are one.
///
/// # Errors
/// As [`on_signal`].
pub fn on_hangup() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_vital_thread_that_panics_or_returns_is_reported_by_its_name() {
        for work in [(|| panic!("as a test wants it")) as fn(), || ()] {
            let shutdown = Shutdown::default();
            let [first, second] = ["reports", "spool"].map(|name| shutdown.vital(name));
            let thread = std::thread::spawn(move || {
                let _vital = first;
                work();
            });
            assert_eq!(shutdown.failed().await, "the reports thread has ended");
            let _ = thread.join(); // it may have panicked
            drop(second);
            assert_eq!(shutdown.failure().as_deref(), Some("the reports thread has ended"), "the first reason stays");
        }
    }

    #[tokio::test]
    async fn a_vital_thread_that_is_done_or_ends_after_the_stop_began_is_no_failure() {
        let shutdown = Shutdown::default();
        shutdown.vital("reports").done();
        assert_eq!(shutdown.failed().now_or_never(), None);
        let last = shutdown.vital("spool");
        shutdown.run(Duration::ZERO, Duration::ZERO, async {}).await;
        drop(last);
        assert_eq!(shutdown.failed().now_or_never(), None);
    }
}
