//! The relay's timing, with brokers and a spool that do as they are told, on a clock that goes as fast as the tests like.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use futures_util::FutureExt as _;
use rdkafka::types::RDKafkaErrorCode;
use secrecy::SecretString;

use super::*;
use crate::budget::{self, Budget};
use crate::event::rules::{Criteria, Effect, Rule};
use crate::event::{Keys, Mode, Routing, Rules, Topics};
use crate::publish::{InFlight as Reporter, Remedy};

const REPORT_TIMEOUT: Duration = Duration::from_millis(5200);
const RESPONSE_DEADLINE: Duration = Duration::from_secs(8);

/// What the brokers and the spool do, and what they were given.
#[derive(Default)]
struct Fake {
    has_spool: bool,
    skips_kafka: Mutex<bool>,
    way: Mutex<Option<Way>>,
    /// Reports that are still owed, the oldest first.
    published: Mutex<VecDeque<(Record, Reporter)>>,
    /// What the spool says; without a word it says nothing, ever.
    spool: Mutex<Option<Result<(), Unavailable>>>,
    spooled: Mutex<Vec<Record>>,
    alone: Mutex<Option<Outcome>>,
}

impl Fake {
    fn without_spool() -> Self {
        Self { way: Mutex::new(Some(Way::Direct)), ..Self::default() }
    }

    fn with_spool(says: Option<Result<(), Unavailable>>) -> Self {
        Self { has_spool: true, spool: Mutex::new(says), ..Self::without_spool() }
    }

    /// Reports the oldest record that has no report yet; its topic.
    fn report(&self, outcome: Result<(), Failure>) -> String {
        let (record, reporter) = self.published.lock().expect("no panic").pop_front().expect("a record in flight");
        reporter.report(outcome);
        record.topic.to_string()
    }

    fn in_flight(&self) -> usize {
        self.published.lock().expect("no panic").len()
    }
}

impl Backend for Fake {
    fn publish(&self, record: Record, held: Arc<Held>) -> Report {
        let (reporter, report) = Reporter::new(record.clone(), &Arc::default(), Some(held));
        self.published.lock().expect("no panic").push_back((record, reporter));
        report
    }

    fn report_timeout(&self) -> Duration {
        REPORT_TIMEOUT
    }

    fn has_spool(&self) -> bool {
        self.has_spool
    }

    fn skips_kafka(&self) -> bool {
        *self.skips_kafka.lock().expect("no panic")
    }

    fn way(&self, _: &Arc<str>) -> Option<Way> {
        *self.way.lock().expect("no panic")
    }

    async fn settled_way(&self, _: &Arc<str>) -> Way {
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.way.lock().expect("no panic").unwrap_or(Way::Spool)
    }

    async fn spool(&self, record: Record) -> Result<(), Unavailable> {
        loop {
            let says = *self.spool.lock().expect("no panic");
            if let Some(says) = says {
                self.spooled.lock().expect("no panic").push(record);
                return says;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn resolve(&self, _: Record) -> Outcome {
        self.alone.lock().expect("no panic").expect("nothing is refused here")
    }
}

const TOO_LARGE: Failure = Failure { remedy: Remedy::DeadLetter, code: RDKafkaErrorCode::MessageSizeTooLarge };
const TIMED_OUT: Failure = Failure { remedy: Remedy::Wait, code: RDKafkaErrorCode::MessageTimedOut };
const LOST: Failure = Failure { remedy: Remedy::Wait, code: RDKafkaErrorCode::NoOffset };

/// Two apps, `staging` with a prefix of its own; the key of each is its name.
fn policy() -> Policy {
    let app = |name: &str, prefix: &str| {
        let key = SecretString::from(name);
        let routing = Routing {
            topics: Topics::new(prefix, |_| None),
            mode: Mode::Structured,
            keys: Keys::Plain,
            api_version: None,
        };
        let keyring = Keyring::new([("k".to_owned(), &key)]);
        let counts = Arc::new(Counts::of_app());
        (name.to_owned(), Arc::new(App { name: name.to_owned(), keyring, routing: Arc::new(routing), counts }))
    };
    Policy {
        apps: HashMap::from([app("staging", "staging.livechat."), app("production", "livechat.")]),
        app_webhooks: None,
        retries: dedup::Config { window: Duration::from_secs(120), entries_max: 100 },
        dead_letter: "livechat.dead-letter".into(),
        rules: Rules::default(),
        initial: true,
    }
}

struct Stage {
    relay: Relay<Fake>,
    policy: Policy,
    budget: Arc<Budget>,
}

impl Stage {
    fn new(fake: Fake) -> Self {
        Self::with(policy(), fake)
    }

    fn with(policy: Policy, fake: Fake) -> Self {
        let config = budget::Config { bytes_in_flight_max: 1 << 20, large_bytes_in_flight_max: 1 << 20 };
        let relay = Relay::new(policy.retries, fake, Arc::new(Metrics::new()), Shutdown::default());
        Self { relay, policy, budget: Budget::new(config) }
    }

    fn fake(&self) -> &Fake {
        self.relay.backend()
    }

    /// Begins the delivery of event `n` to an app.
    fn post_to(&self, app: &str, n: u64) -> Pending {
        self.post_body(
            app,
            &format!(
                r#"{{"secret_key":"{app}","action":"incoming_event","organization_id":"o","payload":{{"chat_id":"C","thread_id":"T","event":{{"id":"T_{n}"}}}}}}"#
            ),
        )
    }

    fn post_body(&self, app: &str, body: &str) -> Pending {
        let endpoint = self.policy.endpoint(&format!("/webhooks/{app}")).expect("a path");
        let accepted = self.relay.accept(&self.policy, &endpoint, body.as_bytes(), None).expect("verified");
        let held = self.budget.begin().and_then(budget::Reading::complete).expect("room");
        self.relay.deliver(accepted, held, Instant::now() + RESPONSE_DEADLINE)
    }

    fn post(&self, n: u64) -> Pending {
        self.post_to("production", n)
    }

    /// Begins a delivery that is awaited by a task.
    fn posting(&self, n: u64) -> tokio::task::JoinHandle<Outcome> {
        tokio::spawn(self.post(n).outcome())
    }
}

/// Lets every task do what it can.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[test]
fn a_report_is_awaited_until_the_disk_needs_what_is_left_of_the_deadline() {
    let now = std::time::Instant::now().into();
    let seconds = |seconds: f64| Duration::from_secs_f64(seconds);
    for (left, has_spool, awaited) in [
        // response deadline left; spool; how long
        (8.0, true, 5.2),
        (6.2, true, 5.2),
        (6.0, true, 5.0),
        (4.0, true, 3.0),
        (2.0, true, 1.5),
        (0.4, true, 0.3),
        (0.0, true, 0.0),
        (8.0, false, 15.2),
        (0.0, false, 15.2),
    ] {
        let until = report_wait_until(now, now + seconds(left), REPORT_TIMEOUT, has_spool);
        assert_eq!(until.duration_since(now).as_millis(), seconds(awaited).as_millis(), "{left} {has_spool}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_be_handed_over_is_before_the_first_wait() {
    let stage = Stage::new(Fake::without_spool());
    let in_flight = stage.post(1);
    assert_eq!(stage.fake().in_flight(), 1);
    stage.fake().report(Ok(()));
    assert_eq!(in_flight.outcome().now_or_never(), Some(Outcome::Published));
}

#[tokio::test(start_paused = true)]
async fn without_a_spool_the_answer_comes_by_the_deadline_and_a_late_ack_still_counts() {
    let stage = Stage::new(Fake::without_spool());
    let began = Instant::now();
    assert_eq!(stage.post(1).outcome().await, Outcome::Unavailable(Unavailable::Deadline));
    assert_eq!(began.elapsed(), RESPONSE_DEADLINE);
    let retry = stage.posting(1);
    settle().await;
    assert_eq!(stage.fake().in_flight(), 1, "the retry waits for the first");
    stage.fake().report(Ok(()));
    assert_eq!(retry.await.expect("no panic"), Outcome::Duplicate);
    assert_eq!(stage.post(1).outcome().await, Outcome::Duplicate);
    assert_eq!(stage.budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_spool_what_never_has_a_report_is_given_up_and_is_new_again() {
    let stage = Stage::new(Fake::without_spool());
    assert_eq!(stage.post(1).outcome().await, Outcome::Unavailable(Unavailable::Deadline));
    tokio::time::sleep(LAST_REPORT).await;
    let again = stage.posting(1);
    settle().await;
    assert_eq!(stage.fake().in_flight(), 2, "it is published again");
    stage.fake().report(Ok(()));
    stage.fake().report(Ok(()));
    assert_eq!(again.await.expect("no panic"), Outcome::Published);
}

#[tokio::test(start_paused = true)]
async fn with_a_spool_what_is_not_acked_in_time_is_spooled_in_time() {
    let stage = Stage::new(Fake::with_spool(Some(Ok(()))));
    let began = Instant::now();
    assert_eq!(stage.post(1).outcome().await, Outcome::Spooled);
    assert_eq!(began.elapsed().as_millis(), REPORT_TIMEOUT.as_millis());
    let failed = stage.posting(2);
    settle().await;
    stage.fake().report(Err(TIMED_OUT)); // of the first, which does not matter any more
    stage.fake().report(Err(TIMED_OUT));
    assert_eq!(failed.await.expect("no panic"), Outcome::Spooled);
    assert_eq!(stage.fake().spooled.lock().expect("no panic").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_answered_by_the_deadline_and_what_it_has_written_counts() {
    let stage = Stage::new(Fake::with_spool(None));
    let began = Instant::now();
    assert_eq!(stage.post(1).outcome().await, Outcome::Unavailable(Unavailable::Deadline));
    assert_eq!(began.elapsed(), RESPONSE_DEADLINE);
    *stage.fake().spool.lock().expect("no panic") = Some(Ok(()));
    settle().await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(stage.post(1).outcome().await, Outcome::Duplicate, "it is durable");
}

#[tokio::test(start_paused = true)]
async fn a_retry_of_what_hangs_in_the_disk_goes_to_kafka_and_a_hung_disk_holds_no_memory_of_others() {
    let stage = Stage::new(Fake::with_spool(None));
    let first = stage.posting(1);
    tokio::time::sleep(RESPONSE_DEADLINE / 2).await;
    let copy = stage.posting(1); // waits for the first one's outcome, and no longer than it does
    assert_eq!(first.await.expect("no panic"), Outcome::Unavailable(Unavailable::Deadline));
    settle().await;
    stage.fake().report(Err(TIMED_OUT)); // what is still with the brokers is held, too
    stage.fake().report(Ok(()));
    assert_eq!(copy.await.expect("no panic"), Outcome::Published, "Kafka accepts it");
    assert_eq!(stage.budget.held(), 0, "what waits for the disk counts for the spool's queue alone");

    let retried = stage.post(1);
    stage.fake().report(Ok(()));
    assert_eq!(retried.outcome().await, Outcome::Published, "Kafka accepts it");
    *stage.fake().spool.lock().expect("no panic") = Some(Ok(()));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(stage.post(1).outcome().await, Outcome::Duplicate, "the disk has the first one, too");
}

#[tokio::test(start_paused = true)]
async fn while_kafka_is_away_events_go_to_the_spool_at_once() {
    let stage = Stage::new(Fake::with_spool(Some(Ok(()))));
    *stage.fake().skips_kafka.lock().expect("no panic") = true;
    assert_eq!(stage.post(1).outcome().now_or_never(), Some(Outcome::Spooled));
    *stage.fake().spool.lock().expect("no panic") = Some(Err(Unavailable::SpoolFull));
    assert_eq!(stage.post(2).outcome().await, Outcome::Unavailable(Unavailable::SpoolFull));
    assert_eq!(stage.fake().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_event_waits_for_its_topic_to_leave_the_spool_and_then_goes_to_kafka() {
    let stage = Stage::new(Fake::with_spool(Some(Ok(()))));
    *stage.fake().way.lock().expect("no panic") = None;
    let waiting = stage.posting(1);
    settle().await;
    *stage.fake().way.lock().expect("no panic") = Some(Way::Direct);
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.fake().report(Ok(()));
    assert_eq!(waiting.await.expect("no panic"), Outcome::Published);
    *stage.fake().way.lock().expect("no panic") = Some(Way::Spool);
    assert_eq!(stage.post(2).outcome().await, Outcome::Spooled);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_cancels_nothing() {
    for (fake, is_spooled) in [(Fake::without_spool(), false), (Fake::with_spool(Some(Ok(()))), true)] {
        let stage = Stage::new(fake);
        let in_flight = stage.post(1);
        drop(in_flight.outcome());
        assert_eq!(stage.budget.held(), budget::REQUEST_BYTES, "it is held for as long as it is in flight");
        if is_spooled {
            tokio::time::sleep(REPORT_TIMEOUT).await;
            settle().await;
        } else {
            stage.fake().report(Ok(()));
            settle().await;
        }
        assert_eq!(stage.post(1).outcome().await, Outcome::Duplicate);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_rule_sends_to_the_dead_letters_is_durable_before_it_counts_as_one() {
    let with_rule = |fake: Fake| {
        let mut policy = policy();
        let criteria = Criteria { chat: Some(["C".to_owned()].into()), ..Criteria::default() };
        let effect = Effect::DeadLetter(Arc::clone(&policy.dead_letter));
        policy.rules = Rules::new(vec![Rule::new("poison".to_owned(), criteria, effect, None)]);
        Stage::with(policy, fake)
    };
    let stage = with_rule(Fake::without_spool());
    let in_flight = stage.post(1);
    assert_eq!(stage.fake().report(Ok(())), "livechat.dead-letter");
    assert_eq!(in_flight.outcome().await, Outcome::DeadLettered);
    assert_eq!(stage.post(1).outcome().await, Outcome::Duplicate);
    let in_flight = stage.post(2);
    stage.fake().report(Err(TIMED_OUT));
    assert_eq!(in_flight.outcome().await, Outcome::Unavailable(Unavailable::Kafka));

    let stage = with_rule(Fake::with_spool(Some(Ok(()))));
    *stage.fake().skips_kafka.lock().expect("no panic") = true;
    assert_eq!(stage.post(1).outcome().await, Outcome::DeadLettered);
    let spooled: Vec<_> = stage.fake().spooled.lock().expect("no panic").iter().map(|r| r.topic.to_string()).collect();
    assert_eq!(spooled, ["livechat.dead-letter"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_tried_alone_where_no_spool_does_it_later() {
    for (fake, outcome) in [
        (Fake::without_spool(), Outcome::Published),
        (Fake::without_spool(), Outcome::DeadLettered),
        (Fake::without_spool(), Outcome::Unavailable(Unavailable::TooLarge)),
        (Fake::with_spool(Some(Err(Unavailable::SpoolFull))), Outcome::Published),
        (Fake::with_spool(Some(Err(Unavailable::SpoolFailed))), Outcome::DeadLettered),
    ] {
        let stage = Stage::new(fake);
        *stage.fake().alone.lock().expect("no panic") = Some(outcome);
        let in_flight = stage.post(1);
        stage.fake().report(Err(TOO_LARGE));
        assert_eq!(in_flight.outcome().await, outcome);
    }
    let stage = Stage::new(Fake::with_spool(Some(Ok(()))));
    let in_flight = stage.post(1);
    stage.fake().report(Err(TOO_LARGE));
    assert_eq!(in_flight.outcome().await, Outcome::Spooled, "the replay tries it alone");
}

#[tokio::test(start_paused = true)]
async fn without_a_spool_what_got_lost_on_the_way_is_handed_over_again_until_the_deadline() {
    let stage = Stage::new(Fake::without_spool());
    let in_flight = stage.posting(1);
    for _ in 0..3 {
        settle().await;
        stage.fake().report(Err(LOST));
    }
    settle().await;
    stage.fake().report(Ok(()));
    assert_eq!(in_flight.await.expect("no panic"), Outcome::Published);
    let in_flight = stage.posting(2);
    tokio::time::sleep(RESPONSE_DEADLINE + Duration::from_millis(1)).await;
    stage.fake().report(Err(LOST));
    settle().await;
    assert_eq!(stage.fake().in_flight(), 0);
    assert_eq!(in_flight.await.expect("no panic"), Outcome::Unavailable(Unavailable::Deadline));
}

#[tokio::test(start_paused = true)]
async fn copies_share_one_outcome_and_a_copy_of_what_ended_untold_tries_itself() {
    let stage = Stage::new(Fake::without_spool());
    let copies: Vec<_> = (0..3).map(|_| stage.posting(1)).collect();
    settle().await;
    assert_eq!(stage.fake().in_flight(), 1);
    stage.fake().report(Err(TIMED_OUT));
    for copy in copies {
        assert_eq!(
            copy.await.expect("no panic"),
            Outcome::Unavailable(Unavailable::Kafka),
            "never a 200 for a failure"
        );
    }
    let again = stage.posting(1);
    settle().await;
    stage.fake().report(Ok(()));
    assert_eq!(again.await.expect("no panic"), Outcome::Published);
}

#[tokio::test(start_paused = true)]
async fn two_apps_with_topics_of_their_own_both_have_an_event_in_either_order_at_once_and_later() {
    for apps in [["staging", "production"], ["production", "staging"]] {
        for at_once in [true, false] {
            for fake in [Fake::without_spool(), Fake::with_spool(Some(Ok(())))] {
                let stage = Stage::new(fake);
                let mut topics = Vec::new();
                let first = stage.post_to(apps[0], 1);
                if !at_once {
                    topics.push(stage.fake().report(Ok(())));
                    settle().await;
                }
                let second = stage.post_to(apps[1], 1);
                while stage.fake().in_flight() > 0 {
                    topics.push(stage.fake().report(Ok(())));
                }
                assert_eq!((first.outcome().await, second.outcome().await), (Outcome::Published, Outcome::Published));
                topics.sort();
                assert_eq!(topics, ["livechat.incoming_event", "staging.livechat.incoming_event"]);
                for app in apps {
                    assert_eq!(stage.post_to(app, 1).outcome().await, Outcome::Duplicate, "a retry is one still");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_policy_goes_on_counting_what_it_has_in_common_with_the_former() {
    let with_rule = |mut policy: Policy| {
        let criteria = Criteria { app: Some(["staging".to_owned()].into()), ..Criteria::default() };
        policy.rules = Rules::new(vec![Rule::new("rule".to_owned(), criteria, Effect::Drop, None)]);
        policy
    };
    let stage = Stage::with(with_rule(policy()), Fake::without_spool());
    for n in 0..3 {
        assert_eq!(stage.post_to("staging", n).outcome().await, Outcome::Dropped);
    }
    let mut next = with_rule(policy());
    next.app_webhooks = next.apps.remove("production");
    next.inherit(&stage.policy);
    let mut uses: Vec<_> = next.keys().map(|(app, key)| (app, key.name(), key.uses())).collect();
    uses.sort_unstable();
    assert_eq!(uses, [("production", "k", 0), ("staging", "k", 3)]);
    assert_eq!(next.rules.iter().map(Rule::matches).collect::<Vec<_>>(), [3]);
    // A request that is still under way with the former policy is counted, too.
    assert_eq!(stage.post_to("staging", 4).outcome().await, Outcome::Dropped);
    assert_eq!(next.rules.iter().map(Rule::matches).collect::<Vec<_>>(), [4]);
    let dropped =
        |counts: &Counts| counts.events().map(|([_, outcome], n)| if outcome == "dropped" { n } else { 0 }).sum();
    let counted: Vec<Option<u64>> =
        ["staging", "production", "unknown"].map(|app| next.counts(app).map(dropped)).to_vec();
    assert_eq!(counted, [Some(4), Some(0), None]);
    drop(stage);
    assert_eq!(next.keys().map(|(_, key)| key.uses()).sum::<u64>(), 4);
}

#[test]
fn a_path_that_is_longer_than_any_that_is_taken_is_not_found() {
    let mut policy = policy();
    policy.app_webhooks = policy.apps.remove("staging");
    let is_taken = |path: &str| policy.endpoint(path).is_some();
    let longest = format!("/app-webhooks/{}", "t".repeat(TOKEN_BYTES_MAX));
    assert!(is_taken(&longest) && !is_taken(&format!("{longest}t")));
    let longest = format!("/webhooks/{}", "a".repeat(longest.len() - "/webhooks/".len()));
    assert!(is_taken(&longest) && !is_taken(&format!("{longest}ü")), "an unknown app is refused by its key");
}

/// A chat with two initial events.
const CHAT: &str = r#"{"secret_key":"production","action":"incoming_chat","organization_id":"o","payload":{"chat":{"id":"C","thread":{"id":"T","events":[{"id":"T_1"},{"id":"T_2"}]}}}}"#;

#[tokio::test(start_paused = true)]
async fn a_chat_is_answered_when_all_its_initial_events_are_durable_in_their_order() {
    let stage = Stage::new(Fake::without_spool());
    let mut answer = std::pin::pin!(stage.post_body("production", CHAT).outcome());
    let values: Vec<_> = {
        let published = stage.fake().published.lock().expect("no panic");
        published.iter().map(|(record, _)| String::from_utf8_lossy(&record.value).into_owned()).collect()
    };
    assert!(values[1].contains("\"eventid\":\"T_1\"") && values[2].contains("\"eventid\":\"T_2\""), "{values:?}");
    assert!(
        !values[0].contains("\"initial\"") && values[1..].iter().all(|value| value.contains("\"initial\":\"true\""))
    );
    for topic in ["livechat.incoming_chat", "livechat.incoming_event", "livechat.incoming_event"] {
        assert_eq!(answer.as_mut().now_or_never(), None);
        assert_eq!(stage.fake().report(Ok(())), topic);
    }
    assert_eq!(answer.await, Outcome::Published);
    // The same event as `incoming_event`, should LiveChat send it after all, is a retry; so is the chat, in whole.
    assert_eq!(stage.post(1).outcome().await, Outcome::Duplicate);
    assert_eq!(stage.post_body("production", CHAT).outcome().await, Outcome::Duplicate);
}

#[tokio::test(start_paused = true)]
async fn where_one_initial_event_is_not_durable_the_sender_tries_again_and_the_others_are_not_published_twice() {
    let stage = Stage::new(Fake::without_spool());
    let answer = stage.post_body("production", CHAT).outcome();
    for outcome in [Ok(()), Err(TIMED_OUT), Ok(())] {
        stage.fake().report(outcome);
    }
    assert_eq!(answer.await, Outcome::Unavailable(Unavailable::Kafka));
    let retry = stage.post_body("production", CHAT).outcome();
    assert_eq!((stage.fake().in_flight(), stage.fake().report(Ok(()))), (1, "livechat.incoming_event".to_owned()));
    assert_eq!(retry.await, Outcome::Duplicate);
}
