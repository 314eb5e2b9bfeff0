//! What the delivery reports say of topics and brokers: whether the cluster is unreachable, and whether a producer is stuck.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Remedy;

/// So long may a topic fail, while the brokers answer, before the producer is suspected; doubled each time after that.
const SUSPICION: (Duration, Duration) = (Duration::from_secs(45), Duration::from_secs(3600));

/// Written by the threads that take the reports.
#[derive(Default)]
pub(super) struct Health {
    /// Written under the lock of the rest, and read with each record.
    is_away: AtomicBool,
    topics: Mutex<Topics>,
}

#[derive(Default)]
struct Topics {
    /// When the last ack came, of any.
    acked: Option<Instant>,
    /// Those that had nothing but failures.
    failing: HashMap<String, Failing>,
}

struct Failing {
    suspected_at: Instant,
    patience: Duration,
}

impl Health {
    pub(super) fn acked(&self, topic: &str, now: Instant) {
        let mut topics = self.topics();
        topics.acked = Some(now);
        topics.failing.remove(topic);
        self.presume_away(false);
    }

    /// A record that was handed over at `since` has failed. That a topic fails which has failed before says nothing of the others.
    pub(super) fn failed(&self, topic: &str, remedy: Remedy, since: Instant) {
        if !matches!(remedy, Remedy::Wait | Remedy::Operator | Remedy::Rebuild) {
            return;
        }
        let mut topics = self.topics();
        let is_news = !topics.failing.contains_key(topic);
        if is_news && remedy == Remedy::Wait && topics.acked < Some(since) {
            self.presume_away(true);
        }
        let patience = SUSPICION.0;
        let failing = Failing { suspected_at: Instant::now() + patience, patience };
        topics.failing.entry(topic.to_owned()).or_insert(failing);
    }

    pub(super) fn presume_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    /// A topic that has failed for so long, while the brokers answer, that its producer is suspected. As long as it `is_absent` from the
    /// cluster, that is the reason: to replace the producer would only disturb the other topics.
    pub(super) fn stuck(&self, now: Instant, is_absent: impl Fn(&str) -> bool) -> Option<String> {
        let mut topics = self.topics();
        for (_, failing) in topics.failing.iter_mut().filter(|(topic, _)| is_absent(topic)) {
            failing.suspected_at = now + failing.patience;
        }
        let (topic, failing) = topics.failing.iter_mut().find(|(_, failing)| failing.suspected_at <= now)?;
        failing.patience = (failing.patience * 2).min(SUSPICION.1);
        failing.suspected_at = now + failing.patience;
        Some(topic.clone())
    }

    fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_away_when_nothing_was_acked_since_a_failed_record_was_handed_over() {
        let health = Health::default();
        let earlier = Instant::now();
        health.acked("a", Instant::now());
        health.failed("b", Remedy::Wait, earlier);
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
        let stuck = |now| health.stuck(now, |_| false);
        assert_eq!(stuck(now), None);
        let later = now + SUSPICION.0 + Duration::from_secs(1);
        assert_eq!(stuck(later).as_deref(), Some("a"));
        assert_eq!(stuck(later + SUSPICION.0), None);
        assert_eq!(stuck(later + 2 * SUSPICION.0).as_deref(), Some("a"));
        health.acked("a", Instant::now());
        assert_eq!(stuck(later + SUSPICION.1 * 2), None);
    }

    #[test]
    fn a_topic_that_is_missing_is_no_reason_to_suspect_the_producer_until_it_is_there() {
        let health = Health::default();
        let now = Instant::now();
        health.failed("a", Remedy::Operator, now);
        let much_later = now + 10 * SUSPICION.0;
        assert_eq!(health.stuck(much_later, |topic| topic == "a"), None);
        assert_eq!(health.stuck(much_later + SUSPICION.0 / 2, |_| false), None, "its time begins when it is there");
        assert_eq!(health.stuck(much_later + SUSPICION.0, |_| false).as_deref(), Some("a"));
    }
}
