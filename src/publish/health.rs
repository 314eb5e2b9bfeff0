//! What the brokers and the delivery reports say: whether Kafka is unavailable, which topics are, and whether a producer is stuck.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::{Deserialize, Serialize};

use super::{Failure, Remedy};

/// Between the first and the last record of a topic that fail, while the brokers answer, before the producer is suspected; doubled each
/// time after that.
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
    /// Since when the brokers answer.
    answering: Option<Instant>,
    /// Those that had nothing but failures.
    failing: HashMap<String, Failing>,
    /// Those that are held back by a record which they refuse, and which cannot be stored as a dead letter.
    held_back: HashMap<String, LastError>,
}

struct Failing {
    last: Failure,
    since: Timestamp,
    /// When the first and the last were handed over of the records that have failed since the brokers answer. A topic that is quiet after
    /// an outage has none, and says nothing of the producer.
    tried: Option<(Instant, Instant)>,
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

impl Topics {
    /// The brokers answer, or do not. What has failed because they did not says nothing of its topic once they do.
    fn answered(&mut self, is_answered: bool, now: Instant) {
        if !is_answered {
            self.answering = None;
            self.failing.values_mut().for_each(|failing| failing.tried = None);
        } else if self.answering.is_none() {
            self.answering = Some(now);
            self.failing.retain(|_, failing| failing.last.remedy != Remedy::Wait);
        }
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
        let Topics { acked, answering, failing, held_back } = &mut *topics;
        held_back.remove(topic);
        let is_of_an_outage = answering.is_some_and(|answering| since < answering);
        if is_of_an_outage && failure.remedy == Remedy::Wait {
            return; // the outage is over
        }
        let is_known = failing.get(topic).is_some_and(|known| known.last.remedy != Remedy::Clocks);
        let new = || Failing { last: failure, since: Timestamp::now(), tried: None, patience: SUSPICION.0 };
        let known = failing.entry(topic.to_owned()).or_insert_with(new);
        known.last = failure;
        known.tried = match known.tried {
            _ if failure.remedy == Remedy::Clocks => None, // they are no reason to suspect the producer
            _ if answering.is_none() || is_of_an_outage => None,
            tried => Some((tried.map_or(since, |(first, _)| first), since)),
        };
        if !is_known && failure.remedy == Remedy::Wait && *acked < Some(since) {
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

    pub(super) fn is_failing(&self, topic: &str) -> bool {
        self.topics().failing.contains_key(topic)
    }

    /// The brokers were asked whether they are there.
    pub(super) fn probed(&self, answered: &Result<(), KafkaError>, now: Instant) {
        self.topics().answered(answered.is_ok(), now);
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

    /// A topic whose records have failed for so long, while the brokers answer, that its producer is suspected. As long as it `is_absent`
    /// from the cluster, that is the reason: to replace the producer would only disturb the other topics.
    pub(super) fn stuck(&self, is_absent: impl Fn(&str) -> bool) -> Option<String> {
        let mut topics = self.topics();
        for (_, failing) in topics.failing.iter_mut().filter(|(topic, _)| is_absent(topic)) {
            failing.tried = None;
        }
        let is_due =
            |Failing { tried, patience, .. }: &Failing| tried.is_some_and(|(first, last)| last - first >= *patience);
        let (topic, failing) = topics.failing.iter_mut().find(|(_, failing)| is_due(failing))?;
        (failing.tried, failing.patience) = (None, (failing.patience * 2).min(SUSPICION.1));
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

    /// Health of brokers that answer from now on.
    fn answering() -> (Health, Instant) {
        let (health, now) = (Health::default(), Instant::now());
        health.probed(&Ok(()), now);
        (health, now)
    }

    fn no_answer() -> Result<(), KafkaError> {
        Err(KafkaError::MetadataFetch(Code::BrokerTransportFailure))
    }

    #[test]
    fn a_topic_that_fails_for_long_makes_the_producer_suspect_less_and_less_often() {
        let (health, now) = answering();
        let stuck_at = |seconds| {
            health.failed("a", TIMED_OUT, now + Duration::from_secs(seconds));
            health.stuck(|_| false).is_some()
        };
        assert_eq!([0, 44, 45].map(stuck_at), [false, false, true]);
        assert_eq!([46, 46 + 89, 46 + 90].map(stuck_at), [false, false, true], "after twice the time");
        health.acked("a", Instant::now());
        assert_eq!([300, 344, 345].map(stuck_at), [false, false, true], "an ack ends the suspicion");
    }

    #[test]
    fn a_topic_that_is_quiet_after_an_outage_never_makes_the_producer_suspect() {
        let (health, now) = answering();
        let at = |seconds| now + Duration::from_secs(seconds);
        health.failed("a", TIMED_OUT, at(0)); // the outage has begun
        health.probed(&no_answer(), at(1));
        health.failed("a", TIMED_OUT, at(100));
        assert_eq!(health.failing()["a"].code, "MessageTimedOut");
        health.probed(&Ok(()), at(110)); // and has ended
        assert!(!health.is_failing("a"), "that said nothing of the topic");
        health.failed("a", TIMED_OUT, at(109)); // reported only now
        assert!(!health.is_failing("a"), "it was handed over while no broker answered");
        assert_eq!(health.stuck(|_| false), None);
        health.failed("a", TIMED_OUT, at(10_000));
        assert_eq!(health.stuck(|_| false), None, "its time begins with the first that fails after the outage");
        health.failed("a", TIMED_OUT, at(10_000 + 45));
        assert_eq!(health.stuck(|_| false).as_deref(), Some("a"));
    }

    #[test]
    fn a_topic_that_is_missing_is_no_reason_to_suspect_the_producer_until_it_is_there() {
        let (health, now) = answering();
        let stuck_at = |seconds, is_absent| {
            health.failed("a", UNKNOWN_TOPIC, now + Duration::from_secs(seconds));
            health.stuck(|_| is_absent).is_some()
        };
        assert_eq!([0, 450].map(|at| stuck_at(at, true)), [false; 2]);
        assert_eq!(
            [460, 504, 505].map(|at| stuck_at(at, false)),
            [false, false, true],
            "its time begins when it is there"
        );
    }

    #[test]
    fn of_a_topic_the_last_error_is_known_since_the_first_one_until_an_ack() {
        let (health, now) = answering();
        let much_later = now + 10 * SUSPICION.0;
        [now, much_later].iter().for_each(|at| health.failed("a", CLOCKS, *at));
        let first = health.failing()["a"].clone();
        assert_eq!(
            (&*first.code, &*first.message),
            ("InvalidTimestamp", "InvalidTimestamp (Broker: Invalid timestamp)")
        );
        assert_eq!(health.stuck(|_| false), None, "another producer would have the same clock");
        health.failed("a", TIMED_OUT, now);
        health.failed("a", UNKNOWN_TOPIC, now);
        assert_eq!(health.stuck(|_| false), None, "the time begins with what the clocks are not to blame for");
        let last = health.failing()["a"].clone();
        assert_eq!((&*last.code, last.since), ("UnknownTopic", first.since));
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
        health.probed(&no_answer(), Instant::now());
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
