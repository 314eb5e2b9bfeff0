//! `spool status`: how much waits for Kafka, since when, and why.

use std::path::Path;

use jiff::Timestamp;

use super::print_json;
use crate::cli::Failure;
use crate::cli::access::Where;
use crate::cli::items::{number, size};
use crate::cli::print::{DIM, ERROR, GOOD, WARNING, out, visible, with_commands, wrapped};
use crate::control::{Lane, Status};
use crate::publish::{HELD_BACK, LastError};

pub async fn run(place: &Where, json: bool) -> Result<(), Failure> {
    let access = place.open().await?;
    let status = access.status().await?;
    let shown =
        if json { print_json(&status) } else { show(&status, access.is_running(), place.source.config.as_deref()) };
    access.close().await;
    shown
}

/// Where values begin.
const INDENT: usize = 14;

fn show(status: &Status, is_running: bool, config_path: Option<&Path>) -> Result<(), Failure> {
    let of = |bytes: u64, most: u64| {
        format!("{} of {} ({:.1} %)", size(bytes), size(most), 100.0 * bytes as f64 / most as f64)
    };
    let relay = if is_running { "of a running relay" } else { "no relay runs" };
    let reason = |text: &str| wrapped(&visible(text), INDENT);
    out(format_args!("spool         {} ({relay})", status.directory.display()))?;
    match &status.why {
        None => out(format_args!("accepts       {GOOD}yes{GOOD:#}"))?,
        Some(why) => out(format_args!("accepts       {ERROR}no{ERROR:#}: {}", reason(why).trim_start()))?,
    }
    match &status.kafka_error {
        Some(LastError { message, since, .. }) => {
            let why = format!("unavailable for {}: {message}", elapsed(*since));
            out(format_args!("Kafka         {WARNING}{}{WARNING:#}", reason(&why)))?;
        }
        None if is_running => out(format_args!("Kafka         {GOOD}available{GOOD:#}"))?,
        None => {}
    }
    for problem in &status.problems {
        out(format_args!("problem       {ERROR}{}{ERROR:#}", reason(problem)))?;
    }
    out(format_args!("events        {}, {}", number(status.events), of(status.bytes, status.bytes_max)))?;
    let dead_letters = of(status.dead_letters_bytes, status.dead_letters_bytes_max);
    out(format_args!("dead letters  {}, {dead_letters}", number(status.dead_letters)))?;
    if status.lanes.is_empty() {
        return Ok(());
    }
    let [topic, events, bytes] = ["topic", "events", "bytes"];
    out(format_args!("\n{DIM}{topic:<40} {events:>9} {bytes:>10}  oldest event{DIM:#}"))?;
    status.lanes.iter().try_for_each(|lane| {
        let Lane { topic, events, bytes, oldest, .. } = lane;
        let age = oldest.map_or_else(String::new, elapsed);
        out(format_args!("{topic:<40} {:>9} {:>10}  {age}", number(*events), size(*bytes)))?;
        match why(lane, status.kafka_error.is_some()) {
            Some(why) => {
                out(format_args!("  {WARNING}{}{WARNING:#}", wrapped(&with_commands(config_path, &visible(&why)), 2)))
            }
            None => Ok(()),
        }
    })
}

/// Why events of a topic wait, where it is not for all of Kafka.
fn why(Lane { topic, paused, last_error, .. }: &Lane, is_kafka_unavailable: bool) -> Option<String> {
    if *paused {
        return Some(self::paused(topic));
    }
    let error = last_error.as_ref().filter(|_| !is_kafka_unavailable)?;
    Some(format!("{} for {}: {}", state(error), elapsed(error.since), error.message))
}

/// What a topic is that has a last error.
pub fn state(LastError { code, .. }: &LastError) -> &'static str {
    if code == HELD_BACK { "held back" } else { "unavailable" }
}

/// How to go on with a topic whose replay is paused.
pub fn paused(topic: &str) -> String {
    format!("paused; `livechat-relay spool resume {topic}` goes on")
}

/// How long ago, in the two largest units.
fn elapsed(since: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(since).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(paused: bool, last_error: Option<LastError>) -> Lane {
        let topic = "livechat.incoming_event".to_owned();
        Lane { topic, events: 1, bytes: 1, oldest: None, paused, last_error }
    }

    fn unknown_topic(since: Timestamp) -> LastError {
        let message = "UnknownTopicOrPartition (Broker: Unknown topic or partition)".to_owned();
        LastError { code: "UnknownTopicOrPartition".to_owned(), message, since }
    }

    #[test]
    fn a_topic_waits_because_it_is_paused_or_for_its_last_error_unless_all_of_kafka_is_unavailable() {
        let error = || Some(unknown_topic(Timestamp::now()));
        assert_eq!(why(&lane(false, None), false), None);
        assert_eq!(why(&lane(false, error()), true), None, "that is said once, for all topics");
        let reason = why(&lane(false, error()), false).expect("a reason");
        assert!(reason.ends_with(" s: UnknownTopicOrPartition (Broker: Unknown topic or partition)"), "{reason}");
        let held_back = LastError { code: HELD_BACK.to_owned(), ..unknown_topic(Timestamp::now()) };
        assert!(why(&lane(false, Some(held_back)), false).is_some_and(|why| why.starts_with("held back for ")));
        let paused = why(&lane(true, error()), true).expect("a reason");
        assert!(paused.contains("`livechat-relay spool resume livechat.incoming_event`"), "{paused}");
    }

    #[test]
    fn a_time_has_its_two_largest_units() {
        let now = Timestamp::now();
        let ago = |seconds| elapsed(now - jiff::SignedDuration::from_secs(seconds));
        assert_eq!([ago(3700), ago(90_000)], ["1 h 1 min", "1 d 1 h"]);
        assert_eq!(elapsed(now + jiff::SignedDuration::from_secs(60)), "0 s", "clocks may differ");
    }
}
