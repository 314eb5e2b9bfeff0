//! `spool drain`: waits until the spool is empty; where no relay runs, publishes what is in it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{print_json, status};
use crate::cli::access::{Access, Where};
use crate::cli::items::{self, count, progress};
use crate::cli::print::{GOOD, note, out, visible};
use crate::cli::{Failure, Source};
use crate::control::Status;
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
    let Status { events: left, problems, why, .. } = loop {
        let status = access.status().await?;
        let first = *first.get_or_insert(status.events.max(1));
        items::show(&bar, first.saturating_sub(status.events), first.max(status.events));
        let status = Status { why: waits_for(&status), ..status };
        if status.events == 0 || began.elapsed() >= timeout {
            bar.finish_and_clear();
            break status;
        }
        if began.elapsed() >= QUIET && noted != status.why {
            status.why.iter().for_each(|why| bar.suspend(|| note(format_args!("{}", visible(why)))));
            noted = status.why;
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

/// Why events are still in the spool: what all topics have in common, or what one of them has.
fn waits_for(Status { kafka_error, lanes, .. }: &Status) -> Option<String> {
    if let Some(error) = kafka_error {
        return Some(format!("Kafka is unavailable: {}", error.message));
    }
    let mut of_topics = lanes.iter().filter_map(|lane| match &lane.last_error {
        // Without for how long: this is printed each time that it is another.
        Some(error) if !lane.paused => Some((&lane.topic, format!("unavailable: {}", error.message))),
        _ => Some((&lane.topic, status::why(lane, false)?)),
    });
    let (topic, why) = of_topics.next()?;
    let others = match of_topics.count() {
        0 => String::new(),
        some => format!("; and {}: `livechat-relay spool status` shows all", count(some as u64, "other topic")),
    };
    Some(format!("the topic {topic} is {why}{others}"))
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
