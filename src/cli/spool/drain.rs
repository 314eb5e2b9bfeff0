//! `spool drain`: waits until the spool is empty; where no relay runs, publishes what is in it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{print_json, status};
use crate::cli::access::{Access, Where};
use crate::cli::items::{self, count};
use crate::cli::print::{GOOD, WARNING, complaint, out, visible, with_commands};
use crate::cli::{Failure, Source};
use crate::config::{Config, Need};
use crate::control::{Lane, Status};
use crate::publish::{self, Publisher};
use crate::replay;
use crate::shutdown::Shutdown;
use crate::spool::DAMAGED;
use crate::topics::{Topics, first_names};

/// How long nothing is said of what may have passed already: the brokers answer within moments, if they are there, and a topic that was
/// unavailable is tried again within `spool.retry_max`.
const QUIET: Duration = Duration::from_secs(3);

pub async fn run(place: &Where, timeout: Duration, json: bool) -> Result<(), Failure> {
    let mut access = place.open_to_change().await?;
    let publishing = Publishing::start(&mut access, &place.source)?;
    let (began, mut first, mut heard) = (Instant::now(), None, None);
    let bar = items::progress_without_estimate();
    let config_path = place.source.config.as_deref();
    let (Status { events: left, problems, .. }, why) = loop {
        let status = access.status().await?;
        let first = *first.get_or_insert(status.events);
        items::show(&bar, first.saturating_sub(status.events), first.max(status.events));
        let why = waits_for(&status, publishing.as_ref().and_then(Publishing::missing));
        if status.events == 0 || began.elapsed() >= timeout {
            bar.finish_and_clear();
            break (status, why);
        }
        heard = why.map(|why| Heard::next(heard, why, Instant::now()));
        if let Some(Heard { why, is_due: true, .. }) = &heard {
            let text = with_commands(config_path, &visible(&why.text()));
            bar.suspend(|| complaint(WARNING, "waiting:", &text));
        }
        sleep(Duration::from_millis(200).min(timeout.saturating_sub(began.elapsed()))).await;
    };
    if let Some(publishing) = publishing {
        publishing.stop().await;
    }
    access.close().await;
    let why = why.map(|why| why.text());
    if json {
        print_json(&serde_json::json!({ "left": left, "why": why, "problems": problems }))?;
    }
    // What cannot be read is not counted.
    let unread = problems.iter().map(|problem| format!("not published: {problem}"));
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    let left = (left > 0).then(|| format!("{} left in the spool{why}", count(left, "event")));
    let unfinished: Vec<_> = left.into_iter().chain(unread).collect();
    if !unfinished.is_empty() {
        return Err(Failure::Failed(unfinished.join("\n")));
    }
    if json { Ok(()) } else { out(format_args!("{GOOD}the spool is empty{GOOD:#}")) }
}

/// Why events are still in the spool.
struct Why {
    /// Stays the same for as long as the reason does.
    what: String,
    more: String,
    /// It is so now, and not only as of the last attempt.
    is_certain: bool,
}

impl Why {
    fn text(&self) -> String {
        format!("{}{}", self.what, self.more)
    }
}

/// What all topics have in common, that some are `missing`, or what one of them has.
fn waits_for(Status { kafka_error, lanes, events, .. }: &Status, missing: Option<Why>) -> Option<Why> {
    if let Some(error) = kafka_error {
        let (what, more) = ("Kafka is unavailable".to_owned(), format!(": {}", error.message));
        return Some(Why { what, more, is_certain: false });
    }
    if *events > 0 && missing.is_some() {
        return missing;
    }
    let of_topic = |Lane { topic, events, paused, last_error, .. }: &Lane| {
        let (state, more) = match last_error {
            _ if *events == 0 => return None,
            _ if *paused => ("paused", status::resume(topic)),
            Some(error) => (status::state(error), format!(": {}", error.message)),
            None => return None,
        };
        Some(Why { what: format!("the topic {topic} is {state}"), more, is_certain: *paused })
    };
    let mut of_topics = lanes.iter().filter_map(of_topic);
    let mut why = of_topics.next()?;
    if of_topics.next().is_some() {
        why.more += "; `livechat-relay spool status` shows the other topics";
    }
    Some(why)
}

/// The reason that was found last.
struct Heard {
    why: Why,
    since: Instant,
    /// It is to be told now. That is so once, and not before it has lasted, unless it is certain.
    is_due: bool,
    is_told: bool,
}

impl Heard {
    fn next(last: Option<Self>, why: Why, now: Instant) -> Self {
        let known = last.filter(|last| last.why.what == why.what);
        let (since, is_told) = known.map_or((now, false), |known| (known.since, known.is_told || known.is_due));
        let is_due = !is_told && (why.is_certain || now.duration_since(since) >= QUIET);
        Self { why, since, is_due, is_told }
    }
}

/// What publishes where no relay runs: the replay, as a relay has it, and what asks whether the brokers are there.
struct Publishing {
    tasks: [JoinHandle<()>; 2],
    publisher: Arc<Publisher>,
    missing: Missing,
    /// Whether a relay would create those of the configuration, which are these.
    creates: bool,
    configured: Vec<Arc<str>>,
    stop: CancellationToken,
}

/// Topics that have events and do not exist.
type Missing = Arc<Mutex<Vec<Arc<str>>>>;

impl Publishing {
    fn start(access: &mut Access, source: &Source) -> Result<Option<Self>, Failure> {
        access.publish(source)?;
        let Access::Stopped(stopped) = access else { return Ok(None) };
        let Some(dead_letters) = stopped.dead_letters.clone() else { return Ok(None) };
        let stop = CancellationToken::new();
        let publisher = Arc::clone(&dead_letters.publisher);
        let Config { kafka, topics, policy, .. } = source.read(Need::Kafka)?; // as `publish` has
        let (creates, configured) = (topics.create, policy.topics());
        let with_events = stopped.spool.lanes(|lanes| lanes.sizes()).into_keys().filter(|lane| lane != DAMAGED);
        let kafka = publish::Config { start_timeout: PROBE_TIMEOUT, ..kafka };
        let topics = Topics::new(with_events.map(Arc::from).collect(), topics, &kafka)?;
        let missing = Missing::default();
        let probing = probe(
            (Arc::clone(&publisher), Arc::clone(&dead_letters.topic)),
            (Arc::new(topics), Arc::clone(&missing)),
            stop.clone(),
        );
        let replay =
            replay::run(stopped.config.replay, stopped.spool.clone(), dead_letters, Shutdown::default(), stop.clone());
        let tasks = [tokio::spawn(replay), tokio::spawn(probing)];
        Ok(Some(Self { tasks, publisher, missing, creates, configured, stop }))
    }

    /// That some topics do not exist, and what to do.
    fn missing(&self) -> Option<Why> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let remedy = match missing.iter().all(|topic| self.configured.contains(topic)) {
            _ if missing.is_empty() => return None,
            true if self.creates => "`livechat-relay serve` creates them (topics.create)",
            true => "create them: topics.create is false, so `livechat-relay serve` would not",
            false => "create them: `livechat-relay serve` would not, as the configuration has other topics",
        };
        let what = format!("topics are missing: {}", first_names(&missing));
        Some(Why { what, more: format!("; {remedy}"), is_certain: true })
    }

    /// What is under way is given up, and published again at worst: its report may take as long as a publish may.
    async fn stop(self) {
        self.stop.cancel();
        let until = Instant::now() + Duration::from_secs(1);
        let publisher = self.publisher;
        let _ = timeout_at(until, tokio::task::spawn_blocking(move || publisher.give_up())).await; // the process ends
        for task in self.tasks {
            let _ = timeout_at(until, task).await;
        }
    }
}

const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

async fn probe(
    (publisher, topic): (Arc<Publisher>, Arc<str>),
    (topics, missing): (Arc<Topics>, Missing),
    stop: CancellationToken,
) {
    let mut are_all_there = false;
    while !stop.is_cancelled() {
        let (publisher, topic, topics) = (Arc::clone(&publisher), Arc::clone(&topic), Arc::clone(&topics));
        let probe = tokio::task::spawn_blocking(move || {
            publisher.probe(&topic, PROBE_TIMEOUT, |_| false).ok()?; // the publisher has what it has found
            if are_all_there { None } else { topics.look().ok() }
        });
        if let Some(Ok(Some(cluster))) = stop.run_until_cancelled(probe).await {
            are_all_there = cluster.missing.is_empty();
            *missing.lock().unwrap_or_else(PoisonError::into_inner) = cluster.missing;
        }
        stop.run_until_cancelled(sleep(Duration::from_secs(1))).await;
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::publish::LastError;

    #[test]
    fn a_reason_is_told_once_and_what_may_have_passed_only_if_it_lasts() {
        let began = Instant::now();
        let mut heard = None;
        let mut is_told = |what: &str, more: &str, is_certain, seconds| {
            let why = Why { what: what.to_owned(), more: more.to_owned(), is_certain };
            let next = Heard::next(heard.take(), why, began + Duration::from_secs(seconds));
            heard.insert(next).is_due
        };
        assert!(!is_told("a is unavailable", "", false, 0));
        assert!(!is_told("b is unavailable", "", false, 2), "a was there again");
        assert!(!is_told("b is unavailable", ": timed out", false, 4));
        assert!(is_told("b is unavailable", ": refused", false, 5));
        assert!(!is_told("b is unavailable", ": timed out", false, 9));
        assert!(is_told("c is paused", "; others, too", true, 9));
        assert!(!is_told("c is paused", "", true, 10));
    }

    #[test]
    fn the_reason_stays_the_same_as_time_passes_and_is_that_of_a_topic_that_has_events() {
        let lane = |topic: &str, events, paused, ago: Option<i64>| Lane {
            topic: topic.to_owned(),
            events,
            bytes: 0,
            oldest: None,
            paused,
            last_error: ago.map(|seconds| LastError {
                code: "UnknownTopic".to_owned(),
                message: "no such topic".to_owned(),
                since: Timestamp::now() - SignedDuration::from_secs(seconds),
            }),
        };
        let why = |lanes| waits_for(&Status { lanes, ..Status::default() }, None).map(|why| why.text());
        let empty = || lane("a", 0, true, None);
        assert_eq!(why(vec![empty()]), None);
        let [now, later] = [1, 90].map(|ago| why(vec![empty(), lane("b", 1, false, Some(ago))]));
        assert_eq!(now.as_deref(), Some("the topic b is unavailable: no such topic"));
        assert_eq!(now, later);
        let both = why(vec![lane("b", 1, false, Some(1)), lane("c", 1, true, None)]).expect("a reason");
        assert!(both.contains("topic b is") && both.ends_with(" shows the other topics"), "{both}");
        let paused = why(vec![lane("c", 1, true, None)]).expect("a reason");
        assert!(paused.starts_with("the topic c is paused") && paused.contains("`livechat-relay spool resume c`"));
    }
}
