//! What the delivery reports say of topics and brokers: whether the cluster is away, and whether a producer is stuck.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Remedy;

/// So long may a topic fail, while the brokers answer, before the producer is suspected; doubled each time after that.
const SUSPICION: (Duration, Duration) = (Duration::from_secs(45), Duration::from_secs(3600));

/// Written by the threads that take the reports, read with each record.
pub(super) struct Health {
    start: Instant,
    /// When the last ack came, in microseconds since `start`.
    acked: AtomicU64,
    is_away: AtomicBool,
    /// How many topics are in `failing`: an ack looks there only when there is something to find.
    failing_topics: AtomicUsize,
    failing: Mutex<HashMap<String, Failing>>,
}

/// A topic that had nothing but failures.
struct Failing {
    suspected_at: Instant,
    patience: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            acked: AtomicU64::new(0),
            is_away: AtomicBool::new(false),
            failing_topics: AtomicUsize::new(0),
            failing: Mutex::default(),
        }
    }
}

impl Health {
    pub(super) fn acked(&self, topic: &str, now: Instant) {
        self.acked.store(self.micros(now), Ordering::Relaxed);
        if self.is_away.load(Ordering::Relaxed) {
            self.is_away.store(false, Ordering::Relaxed);
        }
        if self.failing_topics.load(Ordering::Relaxed) > 0 {
            let mut failing = self.failing();
            failing.remove(topic);
            self.failing_topics.store(failing.len(), Ordering::Relaxed);
        }
    }

    /// A record that was handed over at `since` has failed. That a topic fails which has failed before says nothing of the others.
    pub(super) fn failed(&self, topic: &str, remedy: Remedy, since: Instant) {
        let now = Instant::now();
        if matches!(remedy, Remedy::Wait | Remedy::Operator | Remedy::Rebuild) {
            let mut failing = self.failing();
            let is_news = !failing.contains_key(topic);
            if is_news && remedy == Remedy::Wait && self.acked.load(Ordering::Relaxed) < self.micros(since) {
                self.is_away.store(true, Ordering::Relaxed);
            }
            let patience = SUSPICION.0;
            failing.entry(topic.to_owned()).or_insert(Failing { suspected_at: now + patience, patience });
            self.failing_topics.store(failing.len(), Ordering::Relaxed);
        }
    }

    pub(super) fn presume_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    /// A topic that has failed for so long, while the brokers answer, that its producer is suspected.
    pub(super) fn stuck(&self, now: Instant) -> Option<String> {
        let mut failing = self.failing();
        let (topic, state) = failing.iter_mut().find(|(_, state)| state.suspected_at <= now)?;
        state.patience = (state.patience * 2).min(SUSPICION.1);
        state.suspected_at = now + state.patience;
        Some(topic.clone())
    }

    fn failing(&self) -> std::sync::MutexGuard<'_, HashMap<String, Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_away_when_nothing_was_acked_since_a_failed_record_was_handed_over() {
        let health = Health::default();
        health.acked("a", Instant::now());
        health.failed("b", Remedy::Wait, health.start);
        assert!(!health.is_away(), "another topic was acked meanwhile");
        let later = Instant::now() + Duration::from_millis(1);
        health.failed("a", Remedy::Wait, later);
        assert!(health.is_away());
        health.acked("a", Instant::now());
        assert!(!health.is_away());
        health.failed("c", Remedy::Operator, Instant::now() + Duration::from_millis(1));
        assert!(!health.is_away(), "a topic's own trouble says nothing of the others");
    }

    #[test]
    fn a_topic_that_goes_on_failing_does_not_send_the_others_through_the_spool_again_and_again() {
        let health = Health::default();
        let later = Instant::now() + Duration::from_millis(1);
        health.failed("a", Remedy::Wait, later);
        health.acked("b", Instant::now());
        health.failed("a", Remedy::Wait, later + Duration::from_secs(1));
        assert!(!health.is_away());
        health.failed("b", Remedy::Wait, later + Duration::from_secs(1));
        assert!(health.is_away(), "nothing is acked any more");
    }

    #[test]
    fn a_topic_that_fails_for_long_makes_the_producer_suspect_less_and_less_often() {
        let health = Health::default();
        let now = Instant::now();
        health.failed("a", Remedy::Wait, now);
        assert_eq!(health.stuck(now), None);
        let later = now + SUSPICION.0 + Duration::from_secs(1);
        assert_eq!(health.stuck(later).as_deref(), Some("a"));
        assert_eq!(health.stuck(later + SUSPICION.0), None);
        assert_eq!(health.stuck(later + 2 * SUSPICION.0).as_deref(), Some("a"));
        health.acked("a", Instant::now());
        assert_eq!(health.stuck(later + SUSPICION.1 * 2), None);
    }
}
