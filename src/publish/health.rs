//! What the brokers and the delivery reports say: whether Kafka is unavailable, which topics are, and whether a producer is stuck.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::{Deserialize, Serialize};

use super::{Failure, Remedy};

/// So long may a topic fail, while the brokers answer, before the producer is suspected; doubled each time after that.
const SUSPICION: (Duration, Duration) = (Duration::from_secs(45), Duration::from_secs(3600));

/// librdkafka repeats that there is no token within about a minute: after 10 s, and where the endpoint answers 503, 50 s later than that.
const TOKEN_REPEAT: Duration = Duration::from_secs(120);

/// The code of a topic that is available, but has a record that it refuses, and that cannot be stored as a dead letter.
pub const HELD_BACK: &str = "DeadLetterNotStored";

/// Why Kafka, or a topic, is unavailable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// librdkafka's name for it, `NotAnswered`, or [`HELD_BACK`].
    pub code: String,
    /// In its words, or in those that the client has heard of a connection.
    pub message: String,
    /// Since when nothing has succeeded.
    pub since: Timestamp,
}

/// Written by the threads that take the reports, and by who asks the brokers.
pub(super) struct Health {
    /// Written under the lock of the topics, and read with each record.
    is_away: AtomicBool,
    topics: Mutex<Topics>,
    brokers: Mutex<Brokers>,
}

#[derive(Default)]
struct Topics {
    /// When the last ack came, of any.
    acked: Option<Instant>,
    /// Those that had nothing but failures.
    failing: HashMap<String, Failing>,
    /// Those that are held back by a record which they refuse, and which cannot be stored as a dead letter.
    held_back: HashMap<String, LastError>,
}

struct Failing {
    last: Failure,
    since: Timestamp,
    suspected_at: Instant,
    patience: Duration,
}

struct Brokers {
    /// As long as they do not answer, or have not yet.
    unavailable: Option<LastError>,
    /// What the clients have said of their connections since the brokers answered.
    heard: Option<String>,
    /// That there is no token to log in with, why, and when it was last said. Connections may last for a while without, and what is said
    /// of them when they end is only the consequence.
    without_token: Option<(String, Instant)>,
}

impl Default for Health {
    fn default() -> Self {
        let message = "the brokers have not answered yet".to_owned();
        let unavailable = Some(LastError { code: "NotAnswered".to_owned(), message, since: Timestamp::now() });
        let brokers = Mutex::new(Brokers { unavailable, heard: None, without_token: None });
        Self { is_away: AtomicBool::default(), topics: Mutex::default(), brokers }
    }
}

impl Health {
    pub(super) fn acked(&self, topic: &str, now: Instant) {
        let mut topics = self.topics();
        topics.acked = Some(now);
        topics.failing.remove(topic);
        topics.held_back.remove(topic);
        self.presume_away(false);
    }

    /// A record that was handed over at `since` has failed. That a topic fails which has failed before says nothing of the others.
    pub(super) fn failed(&self, topic: &str, failure: Failure, since: Instant) {
        if failure.is_refused() {
            return;
        }
        let mut topics = self.topics();
        topics.held_back.remove(topic);
        let acked = topics.acked;
        let patience = SUSPICION.0;
        let new = Failing { last: failure, since: Timestamp::now(), suspected_at: Instant::now() + patience, patience };
        let is_news = match topics.failing.entry(topic.to_owned()) {
            Entry::Occupied(mut known) if known.get().last.remedy != Remedy::Clocks => {
                known.get_mut().last = failure;
                false
            }
            // Clocks that differ are no reason to suspect the producer.
            Entry::Occupied(mut known) => {
                known.insert(Failing { since: known.get().since, ..new });
                true
            }
            Entry::Vacant(unknown) => {
                unknown.insert(new);
                true
            }
        };
        if is_news && failure.remedy == Remedy::Wait && acked < Some(since) {
            self.presume_away(true);
        }
    }

    /// A record that the topic refuses cannot be stored as a dead letter; or it was.
    pub(super) fn held_back(&self, topic: &str, why: Option<String>) {
        let held_back = &mut self.topics().held_back;
        let Some(message) = why else {
            held_back.remove(topic);
            return;
        };
        let since = held_back.get(topic).map_or_else(Timestamp::now, |known| known.since);
        held_back.insert(topic.to_owned(), LastError { code: HELD_BACK.to_owned(), message, since });
    }

    /// Why each topic that had nothing but failures is unavailable, or held back.
    pub(super) fn failing(&self) -> HashMap<String, LastError> {
        let last_error = |(topic, Failing { last: Failure { code, .. }, since, .. }): (&String, &Failing)| {
            (topic.clone(), LastError { code: format!("{code:?}"), message: code.to_string(), since: *since })
        };
        let topics = self.topics();
        let held_back = topics.held_back.iter().map(|(topic, why)| (topic.clone(), why.clone()));
        topics.failing.iter().map(last_error).chain(held_back).collect() // the last one counts
    }

    /// The brokers were asked whether they are there.
    pub(super) fn probed(&self, answered: &Result<(), KafkaError>, now: Instant) {
        let mut brokers = self.brokers();
        let Brokers { unavailable, heard, without_token } = &mut *brokers;
        let Err(error) = answered else {
            (*unavailable, *heard) = (None, None);
            without_token.take_if(|(_, said)| now.saturating_duration_since(*said) > TOKEN_REPEAT);
            return;
        };
        let since = unavailable.as_ref().map_or_else(Timestamp::now, |known| known.since);
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        *unavailable = Some(LastError { code: format!("{code:?}"), message: code.to_string(), since });
    }

    /// A client says what is wrong with a connection: more than the answer to a request does, or its absence.
    pub(super) fn heard(&self, reason: &str) {
        self.brokers().heard = Some(reason.to_owned());
    }

    /// A client says that there is no token to log in with.
    pub(super) fn without_token(&self, why: String, now: Instant) {
        self.brokers().without_token = Some((why, now));
    }

    pub(super) fn unavailable(&self, now: Instant) -> Option<LastError> {
        let Brokers { unavailable, heard, without_token } = &*self.brokers();
        let unavailable = unavailable.clone()?;
        let is_current = |said: Instant| heard.is_none() || now.saturating_duration_since(said) <= TOKEN_REPEAT;
        let without_token = without_token.iter().filter(|(_, said)| is_current(*said)).map(|(why, _)| why);
        let reasons = without_token.chain(heard).cloned().collect::<Vec<_>>();
        let message = if reasons.is_empty() { unavailable.message } else { reasons.join("; ") };
        Some(LastError { message, ..unavailable })
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
        let is_due = |failing: &Failing| failing.suspected_at <= now && failing.last.remedy != Remedy::Clocks;
        let (topic, failing) = topics.failing.iter_mut().find(|(_, failing)| is_due(failing))?;
        failing.patience = (failing.patience * 2).min(SUSPICION.1);
        failing.suspected_at = now + failing.patience;
        Some(topic.clone())
    }

    fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn brokers(&self) -> MutexGuard<'_, Brokers> {
        self.brokers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use RDKafkaErrorCode as Code;

    use super::*;

    const TIMED_OUT: Failure = Failure { remedy: Remedy::Wait, code: Code::MessageTimedOut };
    const UNKNOWN_TOPIC: Failure = Failure { remedy: Remedy::Operator, code: Code::UnknownTopic };
    const CLOCKS: Failure = Failure { remedy: Remedy::Clocks, code: Code::InvalidTimestamp };

    #[test]
    fn the_cluster_is_away_when_nothing_was_acked_since_a_failed_record_was_handed_over() {
        let health = Health::default();
        let earlier = Instant::now();
        health.acked("a", Instant::now());
        health.failed("b", TIMED_OUT, earlier);
        assert!(!health.is_away(), "another topic was acked meanwhile");
        let later = Instant::now() + Duration::from_millis(1);
        health.failed("a", TIMED_OUT, later);
        assert!(health.is_away());
        health.acked("a", Instant::now());
        assert!(!health.is_away());
        health.failed("c", UNKNOWN_TOPIC, Instant::now() + Duration::from_millis(1));
        assert!(!health.is_away(), "a topic's own trouble says nothing of the others");
    }

    #[test]
    fn a_topic_that_goes_on_failing_does_not_send_the_others_through_the_spool_again_and_again() {
        let health = Health::default();
        let later = Instant::now() + Duration::from_millis(1);
        health.failed("a", TIMED_OUT, later);
        health.acked("b", Instant::now());
        health.failed("a", TIMED_OUT, later + Duration::from_secs(1));
        assert!(!health.is_away());
        health.failed("b", TIMED_OUT, later + Duration::from_secs(1));
        assert!(health.is_away(), "nothing is acked any more");
    }

    #[test]
    fn a_topic_that_fails_for_long_makes_the_producer_suspect_less_and_less_often() {
        let health = Health::default();
        let now = Instant::now();
        health.failed("a", TIMED_OUT, now);
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
        health.failed("a", UNKNOWN_TOPIC, now);
        let much_later = now + 10 * SUSPICION.0;
        assert_eq!(health.stuck(much_later, |topic| topic == "a"), None);
        assert_eq!(health.stuck(much_later + SUSPICION.0 / 2, |_| false), None, "its time begins when it is there");
        assert_eq!(health.stuck(much_later + SUSPICION.0, |_| false).as_deref(), Some("a"));
    }

    #[test]
    fn of_a_topic_the_last_error_is_known_since_the_first_one_until_an_ack() {
        let health = Health::default();
        let now = Instant::now();
        health.failed("a", CLOCKS, now);
        let first = health.failing()["a"].clone();
        assert_eq!(
            (&*first.code, &*first.message),
            ("InvalidTimestamp", "InvalidTimestamp (Broker: Invalid timestamp)")
        );
        let much_later = now + 10 * SUSPICION.0;
        assert_eq!(health.stuck(much_later, |_| false), None, "another producer would have the same clock");
        health.failed("a", TIMED_OUT, now);
        health.failed("a", UNKNOWN_TOPIC, now);
        let last = health.failing()["a"].clone();
        assert_eq!((&*last.code, last.since), ("UnknownTopic", first.since));
        assert_eq!(health.stuck(much_later, |_| false).as_deref(), Some("a"));
        let refused = Failure { remedy: Remedy::DeadLetter, code: Code::MessageSizeTooLarge };
        health.failed("b", refused, now);
        health.acked("a", now);
        assert!(health.failing().is_empty(), "what is wrong with a record says nothing of its topic");
    }

    #[test]
    fn a_topic_is_held_back_until_its_record_is_stored_or_it_has_another_reason() {
        let health = Health::default();
        let code = || health.failing().get("a").map(|error| error.code.clone());
        let hold_back = || health.held_back("a", Some("too large, and the disk is full".to_owned()));
        health.failed("a", UNKNOWN_TOPIC, Instant::now());
        hold_back();
        assert_eq!(code().as_deref(), Some(HELD_BACK), "the topic is there again, and refuses a record");
        let since = health.failing()["a"].since;
        hold_back();
        assert_eq!(health.failing()["a"].since, since);
        health.failed("a", UNKNOWN_TOPIC, Instant::now());
        assert_eq!(code().as_deref(), Some("UnknownTopic"));
        health.acked("a", Instant::now());
        hold_back();
        health.held_back("a", None);
        assert_eq!(code(), None);
        hold_back();
        health.acked("a", Instant::now());
        assert_eq!(code(), None);
    }

    #[test]
    fn kafka_is_unavailable_until_the_brokers_answer_for_the_reason_that_a_client_has_heard() {
        let health = Health::default();
        let error = || health.unavailable(Instant::now()).map(|LastError { code, message, .. }| (code, message));
        let text = |code: &str, message: &str| Some((code.to_owned(), message.to_owned()));
        assert_eq!(error(), text("NotAnswered", "the brokers have not answered yet"));
        let since = health.unavailable(Instant::now()).map(|error| error.since);
        let failed = Err(KafkaError::MetadataFetch(Code::BrokerTransportFailure));
        health.probed(&failed, Instant::now());
        assert!(error().is_some_and(|(code, message)| {
            code == "BrokerTransportFailure" && message.contains("Broker transport failure")
        }));
        health.heard("kafka:9092: Connect failed: Connection refused");
        assert_eq!(error(), text("BrokerTransportFailure", "kafka:9092: Connect failed: Connection refused"));
        assert_eq!(health.unavailable(Instant::now()).map(|error| error.since), since);
        health.probed(&Ok(()), Instant::now());
        health.heard("one of the brokers is down");
        assert_eq!(error(), None, "another one answers");
    }
    #[test]
    fn that_there_is_no_token_is_known_as_the_reason_when_the_connections_end() {
        let health = Health::default();
        let start = Instant::now();
        let at = |times: f64| start + TOKEN_REPEAT.mul_f64(times);
        let (answered, failed) = (Ok(()), Err(KafkaError::MetadataFetch(Code::Authentication)));
        let message = |now| health.unavailable(now).map(|error| error.message);
        health.without_token("no token: refused".to_owned(), start);
        health.probed(&answered, at(0.5));
        assert_eq!(message(at(0.5)), None, "the last token is still valid");
        health.probed(&failed, at(0.6));
        assert_eq!(message(at(9.0)).as_deref(), Some("no token: refused"), "not all of them are repeated");
        health.heard("kafka:1: Disconnected");
        assert_eq!(message(at(0.7)).as_deref(), Some("no token: refused; kafka:1: Disconnected"));
        assert_eq!(message(at(1.1)).as_deref(), Some("kafka:1: Disconnected"), "it would have been repeated");
        health.probed(&answered, at(1.2));
        health.probed(&failed, at(1.3));
        let text = message(at(1.3)).expect("a reason");
        assert!(!text.contains("token"), "there was one meanwhile: {text}");
    }
}
