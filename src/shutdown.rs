//! The way to the end: a signal, a time in which requests are still taken, a time for those under way, and then the end.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Three moments, in this order. Everybody who must stop holds a clone and waits for the one that concerns him.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Readiness is off, and each connection closes with its next answer.
    pub draining: CancellationToken,
    /// No new connections and no new requests.
    pub closing: CancellationToken,
    /// Who still waits for Kafka gives up and answers.
    pub giving_up: CancellationToken,
    passed: Arc<Passed>,
    failure: Arc<Failure>,
}

/// Why the process has to end though nobody has asked for it.
#[derive(Debug, Default)]
struct Failure {
    reason: OnceLock<String>,
    is_known: CancellationToken,
}

/// Held by a thread or a task that the daemon cannot do without. Where it is dropped before the stop has begun, as it is by a
/// panic, [`Shutdown::failed`] reports it.
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
            let failure = &self.shutdown.failure;
            let _ = failure.reason.set(format!("the {} thread has ended", self.name)); // the first reason stays
            failure.is_known.cancel();
        }
    }
}

/// The moments that have come, for those who ask with every request: the tokens take a lock to answer.
#[derive(Debug, Default)]
struct Passed {
    draining: AtomicBool,
    closing: AtomicBool,
}

impl Shutdown {
    /// A guard for the thread of this name, without which the daemon cannot go on.
    pub fn vital(&self, name: &'static str) -> Vital {
        Vital { name, shutdown: self.clone(), is_done: false }
    }

    /// Waits until a vital thread has ended before the stop began; the reason to end the process.
    pub async fn failed(&self) -> String {
        self.failure.is_known.cancelled().await;
        self.failure.reason.get().cloned().unwrap_or_default()
    }

    /// Whether `draining` has come.
    pub fn is_draining(&self) -> bool {
        self.passed.draining.load(Ordering::Relaxed)
    }

    /// Waits for `closing`. Polled again by the task that polled it first, and by no other, it takes no lock, as the token's own
    /// future does: a connection's task polls it with everything that happens to the connection.
    pub async fn closed(&self) {
        let mut cancelled = pin!(self.closing.cancelled());
        let mut is_registered = false;
        let wait = poll_fn(|context| {
            if self.passed.closing.load(Ordering::Relaxed) {
                Poll::Ready(())
            } else if is_registered {
                Poll::Pending
            } else {
                is_registered = true;
                cancelled.as_mut().poll(context)
            }
        });
        wait.await;
    }

    /// Passes through the moments; `idle` says that nothing is under way any more. Returns when all is over.
    pub async fn run(&self, delay: Duration, timeout: Duration, idle: impl Future<Output = ()>) {
        self.passed.draining.store(true, Ordering::Relaxed);
        self.draining.cancel();
        tokio::time::sleep(delay).await;
        self.passed.closing.store(true, Ordering::Relaxed);
        self.closing.cancel();
        tokio::pin!(idle);
        if tokio::time::timeout(timeout, &mut idle).await.is_err() {
            tracing::warn!(after = ?timeout, "requests under way at the end of drain_timeout are answered 503");
            self.giving_up.cancel();
            // Those who give up have nothing left to wait for but their sockets.
            let _ = tokio::time::timeout(Duration::from_secs(1), idle).await;
        }
    }
}

/// Waits for SIGTERM or SIGINT and answers its name. A second one of either ends the process at once, with 128 plus its
/// number, as a shell would report it.
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
            let (second, number) = next().await;
            tracing::error!(signal = second, "a second signal: ending at once, without waiting for requests under way");
            crate::telemetry::flush();
            std::process::exit(128 + number);
        });
        first
    })
}

#[cfg(test)]
mod tests {
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
            assert_eq!(shutdown.failed().await, "the reports thread has ended", "the first reason stays");
        }
    }

    #[tokio::test]
    async fn a_vital_thread_that_is_done_or_ends_after_the_stop_began_is_no_failure() {
        use futures_util::FutureExt as _;
        let shutdown = Shutdown::default();
        shutdown.vital("reports").done();
        assert_eq!(shutdown.failed().now_or_never(), None);
        let last = shutdown.vital("spool");
        shutdown.run(Duration::ZERO, Duration::ZERO, async {}).await;
        drop(last);
        assert_eq!(shutdown.failed().now_or_never(), None);
    }

    #[tokio::test]
    async fn whoever_waits_for_the_closing_is_woken_by_it() {
        let shutdown = Shutdown::default();
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.closed().await }
        });
        let idle = async { waiting.await.expect("woken") };
        shutdown.run(Duration::ZERO, Duration::from_secs(10), idle).await;
        assert!(!shutdown.giving_up.is_cancelled(), "the one who waited was under way until then");
        shutdown.closed().await; // and who comes later
    }
}
