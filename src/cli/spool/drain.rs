//! `spool drain`: waits until the spool is empty; where no relay runs, publishes what is in it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{print_json, status};
use crate::cli::access::{Access, Where};
use crate::cli::items::{self, count, progress};
use crate::cli::print::{GOOD, note, out, visible, with_commands, wrapped};
use crate::cli::{Failure, Source};
use crate::control::{Lane, Status};
use crate::publish::Publisher;
use crate::replay;
use crate::shutdown::Shutdown;

/// How long nothing is said of what is waited for: the brokers answer within moments, if they are there.
const QUIET: Duration = Duration::from_secs(1);

pub async fn run(place: &Where, timeout: Duration, json: bool) -> Result<(), Failure> {
    let mut access = place.open_to_change().await?;
    let publishing = Publishing::start(&mut access, &place.source)?;
    let (began, mut first, mut noted) = (Instant::now(), None, None);
    let bar = progress(0);
    let config_path = place.source.config.as_deref();
    let (Status { events: left, problems, .. }, why) = loop {
        let status = access.status().await?;
        let first = *first.get_or_insert(status.events.max(1));
        items::show(&bar, first.saturating_sub(status.events), first.max(status.events));
        let why = waits_for(&status);
        if status.events == 0 || began.elapsed() >= timeout {
            bar.finish_and_clear();
            break (status, why);
        }
        if began.elapsed() >= QUIET && noted != why {
            let told = why.iter().map(|why| wrapped(&with_commands(config_path, &visible(why)), 0));
            told.for_each(|told| bar.suspend(|| note(format_args!("{told}"))));
            noted = why;
        }
        sleep(Duration::from_millis(200).min(timeout.saturating_sub(began.elapsed()))).await;
    };
    if let Some(publishing) = publishing {
        publishing.stop().await;
    }
    access.close().await;
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

/// Why events are still in the spool: what all topics have in common, or what one of them has. Without times, so that it stays the same
/// for as long as the reason does.
fn waits_for(Status { kafka_error, lanes, .. }: &Status) -> Option<String> {
    if let Some(error) = kafka_error {
        return Some(format!("Kafka is unavailable: {}", error.message));
    }
    let of_topic = |Lane { topic, events, paused, last_error, .. }: &Lane| match last_error {
        _ if *events == 0 => None,
        _ if *paused => Some(format!("the topic {topic} is {}", status::paused(topic))),
        error => {
            error.as_ref().map(|error| format!("the topic {topic} is {}: {}", status::state(error), error.message))
        }
    };
    let mut of_topics = lanes.iter().filter_map(of_topic);
    let why = of_topics.next()?;
    let others = of_topics.next().map_or("", |_| "; `livechat-relay spool status` shows the other topics");
    Some(why + others)
}

/// What publishes where no relay runs: the replay, as a relay has it, and what asks whether the brokers are there.
struct Publishing {
    tasks: [JoinHandle<()>; 2],
    publisher: Arc<Publisher>,
    stop: CancellationToken,
}

impl Publishing {
    fn start(access: &mut Access, source: &Source) -> Result<Option<Self>, Failure> {
        access.publish(source)?;
        let Access::Stopped(stopped) = access else { return Ok(None) };
        let Some(dead_letters) = stopped.dead_letters.clone() else { return Ok(None) };
        let stop = CancellationToken::new();
        let publisher = Arc::clone(&dead_letters.publisher);
        let probing = probe(Arc::clone(&publisher), Arc::clone(&dead_letters.topic), stop.clone());
        let replay =
            replay::run(stopped.config.replay, stopped.spool.clone(), dead_letters, Shutdown::default(), stop.clone());
        Ok(Some(Self { tasks: [tokio::spawn(replay), tokio::spawn(probing)], publisher, stop }))
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

async fn probe(publisher: Arc<Publisher>, topic: Arc<str>, stop: CancellationToken) {
    const TIMEOUT: Duration = Duration::from_secs(3);
    while !stop.is_cancelled() {
        let (publisher, topic) = (Arc::clone(&publisher), Arc::clone(&topic));
        let probe = tokio::task::spawn_blocking(move || publisher.probe(&topic, TIMEOUT, |_| false));
        stop.run_until_cancelled(probe).await; // the publisher has what it has found
        stop.run_until_cancelled(sleep(Duration::from_secs(1))).await;
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::publish::LastError;

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
        let why = |lanes| waits_for(&Status { lanes, ..Status::default() });
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
