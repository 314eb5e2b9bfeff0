//! `spool status`: how much waits for Kafka, since when, and why.

use std::cmp::Reverse;
use std::path::Path;

use anstyle::Style;
use jiff::Timestamp;

use super::print_json;
use crate::cli::Failure;
use crate::cli::access::Where;
use crate::cli::items::{count, number, size, time_span};
use crate::cli::print::{DIM, ERROR, GOOD, WARNING, columns, out, visible, with_commands, wrapped};
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

/// Topics on a terminal at most: what is said of the spool as a whole stays on the screen.
const SHOWN_MAX: usize = 10;

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
            let why = visible(&format!(" for {}: {message}", elapsed(*since)));
            out(format_args!("Kafka         {}", labelled(WARNING, "unavailable", &why, INDENT)))?;
        }
        None if is_running => out(format_args!("Kafka         {GOOD}available{GOOD:#}"))?,
        None => {}
    }
    for problem in &status.problems {
        out(format_args!("{ERROR}problem{ERROR:#}       {}", reason(problem)))?;
    }
    out(format_args!("events        {}, {}", number(status.events), of(status.bytes, status.bytes_max)))?;
    let dead_letters = of(status.dead_letters_bytes, status.dead_letters_bytes_max);
    if status.dead_letters == 0 {
        out(format_args!("dead letters  0, {dead_letters}"))?;
    } else {
        let rest = format!(", {dead_letters}; see `livechat-relay dead-letters list`");
        let rest = with_commands(config_path, &rest);
        out(format_args!("dead letters  {}", labelled(WARNING, &number(status.dead_letters), &rest, INDENT)))?;
    }
    if status.lanes.is_empty() {
        return Ok(());
    }
    let [topic, events, bytes] = ["topic", "events", "bytes"];
    out(format_args!("\n{DIM}{topic:<40} {events:>9} {bytes:>10}  oldest event{DIM:#}"))?;
    let is_kafka_unavailable = status.kafka_error.is_some();
    let most = if columns().is_some() { SHOWN_MAX } else { usize::MAX };
    foremost(&status.lanes, most, is_kafka_unavailable).into_iter().try_for_each(|lane| {
        let Lane { topic, events, bytes, oldest, .. } = lane;
        let age = oldest.map_or_else(String::new, elapsed);
        out(format_args!("{topic:<40} {:>9} {:>10}  {age}", number(*events), size(*bytes)))?;
        let Some((state, why)) = why(lane, is_kafka_unavailable) else { return Ok(()) };
        out(format_args!("  {}", labelled(WARNING, state, &with_commands(config_path, &visible(&why)), 2)))
    })?;
    match status.lanes.len().saturating_sub(most) {
        0 => Ok(()),
        more => {
            let more =
                format!("and {}: `livechat-relay spool status --json` has all", count(more as u64, "more topic"));
            out(format_args!("{}", wrapped(&with_commands(config_path, &more), 0)))
        }
    }
}

/// Those topics that have a reason of their own to wait, and the largest of the others, in their order.
fn foremost(lanes: &[Lane], most: usize, is_kafka_unavailable: bool) -> Vec<&Lane> {
    let mut lanes: Vec<_> = lanes.iter().enumerate().collect();
    lanes.sort_by_key(|(_, lane)| (why(lane, is_kafka_unavailable).is_none(), Reverse(lane.events)));
    lanes.truncate(most);
    lanes.sort_by_key(|(place, _)| *place);
    lanes.into_iter().map(|(_, lane)| lane).collect()
}

/// A label in a style and what follows it, wrapped. A sentence in a colour could not be read on each background.
fn labelled(style: Style, label: &str, rest: &str, indent: usize) -> String {
    let text = wrapped(&format!("{label}{rest}"), indent);
    let (label, rest) = text.split_at(label.len());
    format!("{style}{label}{style:#}{rest}")
}

/// Why events of a topic wait, where it is not for all of Kafka: its state, and what follows that.
fn why(Lane { topic, paused, last_error, .. }: &Lane, is_kafka_unavailable: bool) -> Option<(&'static str, String)> {
    if *paused {
        return Some(("paused", resume(topic)));
    }
    let error = last_error.as_ref().filter(|_| !is_kafka_unavailable)?;
    Some((state(error), format!(" for {}: {}", elapsed(error.since), error.message)))
}

/// What a topic is that has a last error.
pub fn state(LastError { code, .. }: &LastError) -> &'static str {
    if code == HELD_BACK { "held back" } else { "unavailable" }
}

/// What follows where it is said that the replay of a topic is paused.
pub fn resume(topic: &str) -> String {
    format!("; resume it with `livechat-relay spool resume {topic}`")
}

/// How long ago.
fn elapsed(since: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(since).as_secs();
    time_span(u64::try_from(seconds).unwrap_or_default()) // clocks may differ
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
        let why =
            |lane, is_kafka_unavailable| why(&lane, is_kafka_unavailable).map(|(state, rest)| format!("{state}{rest}"));
        assert_eq!(why(lane(false, None), false), None);
        assert_eq!(why(lane(false, error()), true), None, "that is said once, for all topics");
        let reason = why(lane(false, error()), false).expect("a reason");
        assert!(reason.ends_with(" s: UnknownTopicOrPartition (Broker: Unknown topic or partition)"), "{reason}");
        let held_back = LastError { code: HELD_BACK.to_owned(), ..unknown_topic(Timestamp::now()) };
        assert!(why(lane(false, Some(held_back)), false).is_some_and(|why| why.starts_with("held back for ")));
        let paused = why(lane(true, error()), true).expect("a reason");
        assert!(paused.contains("`livechat-relay spool resume livechat.incoming_event`"), "{paused}");
    }

    #[test]
    fn what_is_ahead_of_this_clock_is_now() {
        assert_eq!(elapsed(Timestamp::now() + jiff::SignedDuration::from_secs(60)), "0 s");
    }

    #[test]
    fn of_many_topics_those_are_shown_that_have_a_reason_of_their_own_and_the_largest() {
        let sized = |topic: &str, events, paused| Lane { topic: topic.to_owned(), events, ..lane(paused, None) };
        let lanes = [sized("a", 5, false), sized("b", 1, true), sized("c", 3, false), sized("d", 9, false)];
        let names = |most| foremost(&lanes, most, true).into_iter().map(|lane| &*lane.topic).collect::<Vec<_>>();
        assert_eq!(names(3), ["a", "b", "d"]);
        assert_eq!(names(usize::MAX), ["a", "b", "c", "d"]);
    }

    #[test]
    fn only_the_label_has_a_colour_on_whichever_line_the_rest_is() {
        let text = labelled(WARNING, "held back", &format!(" for 1 s: {}", "word ".repeat(20)), 14);
        let (label, rest) = text.split_once(&format!("{WARNING:#}")).expect("its end");
        assert_eq!(label, format!("{WARNING}held back"));
        assert!(rest.contains("\n              word") && !rest.contains('\u{1b}'), "{rest:?}");
    }
}
