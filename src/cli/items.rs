//! What `spool` and `dead-letters` print, or write to a file, of the entries on the disk.

use std::fmt::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use indicatif::{HumanCount, HumanFloatCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use jiff::Timestamp;

use super::Failure;
use super::access::Access;
use super::print::{self, DIM, JsonLines, note, out, visible, wrapped};
use crate::config::nearest;
use crate::control::{Filter, Item, List, Listed};
use crate::topics::first_names;

/// Which events.
#[derive(clap::Args)]
pub struct Filters {
    /// Only this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Only this record key, usually the chat's id
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only the event with this id
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Only this action
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only this app
    #[arg(long, value_name = "APP")]
    app: Option<String>,
    /// Received at or after this time: 2026-11-22T14:00:00Z, 2026-11-22, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Received before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
}

impl Filters {
    pub fn filter(&self) -> Filter {
        let Self { topic, key, id, action, app, since, until } = self;
        let [topic, key, id, action, app] = [topic, key, id, action, app].map(Clone::clone);
        Filter { topic, key, id, action, app, since: *since, until: *until }
    }
}

/// A time, a day's beginning in UTC, or how long ago it was, to the second before.
pub fn time(text: &str) -> Result<Timestamp, String> {
    let ago =
        |text: &str| Some(second(Timestamp::now().checked_sub(text.parse::<jiff::SignedDuration>().ok()?.abs()).ok()?));
    let day = |text: &str| format!("{text}T00:00:00Z").parse().ok();
    let wrong =
        "no time; write for example 2026-11-22T14:00:00Z, 2026-11-22 for its beginning in UTC, or 2h for two hours ago";
    text.parse().ok().or_else(|| day(text)).or_else(|| ago(text)).ok_or_else(|| wrong.to_owned())
}

/// The second in which a time is: what a person may have to type again.
pub fn second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Prints the entries of a list, a line each.
pub async fn list(access: &Access, list: List, json: bool) -> Result<Listed, Failure> {
    // Without a filter each page has lines to show.
    let has_filter = !list.filter.is_empty();
    let (bar, mut lines, mut table) = (progress(0), JsonLines::to_stdout(), Table::default());
    let each =
        |item: Item| bar.suspend(|| if json { lines.write(&item) } else { table.row(&item.number.to_string(), &item) });
    let read = |read, of| {
        if has_filter {
            show(&bar, read, of);
        }
    };
    let listed = access.list(list, read, each).await?;
    bar.finish_and_clear();
    lines.flush()?;
    Ok(listed)
}

/// Entries under the names of their topics. But for long keys, lines fit on 80 columns.
#[derive(Default)]
pub struct Table {
    /// Of the last line.
    topic: Option<String>,
}

impl Table {
    pub fn row(&mut self, number: &str, item: &Item) -> Result<(), Failure> {
        let reason = |text: &str| item.reason.as_ref().map_or_else(String::new, |_| format!("{text:<11}"));
        if self.topic.is_none() {
            let [number, received, bytes, reason] = ["number", "received", "bytes", &reason("reason")];
            out(format_args!("{DIM}{number:>12}  {received:<20} {bytes:>9}  {reason}key{DIM:#}"))?;
        }
        if self.topic.as_ref() != Some(&item.topic) {
            out(format_args!("{}", visible(&item.topic)))?;
            self.topic = Some(item.topic.clone());
        }
        let received = item.received.map_or_else(String::new, |received| format!("{received:.0}"));
        let (bytes, key) = (self::number(item.bytes as u64), visible(&item.key));
        let reason = reason(item.reason.as_deref().unwrap_or_default());
        out(format_args!("{}", format!("{number:>12}  {received:<20} {bytes:>9}  {reason}{key}").trim_end()))
    }
}

/// Writes the entries of a list to a file, or to standard output, as JSON, a line each.
pub async fn export(access: &Access, list: List, output: Option<&PathBuf>) -> Result<Listed, Failure> {
    let (bar, mut lines) = (progress(0), writer(output)?);
    let listed = access.list(List { values: true, ..list }, |read, of| show(&bar, read, of), |item| lines.write(&item));
    let listed = listed.await?;
    lines.flush()?;
    bar.finish_and_clear();
    if let Some(path) = output {
        note(format_args!("{} written to {}", count(listed.listed, "event"), path.display()));
    }
    warn_of(&listed);
    Ok(listed)
}

/// Says which topic may be meant, where no event waits of the one that is asked for; whether that is so.
///
/// # Errors
/// As [`Access::status`].
pub async fn note_other_topic(access: &Access, filters: &Filters) -> Result<bool, Failure> {
    let Some(topic) = &filters.topic else { return Ok(false) };
    let lanes = access.status().await?.lanes;
    let waiting: Vec<_> = lanes.iter().filter(|lane| lane.events > 0).map(|lane| &*lane.topic).collect();
    let meant = meant(topic, &waiting);
    meant.iter().for_each(|meant| print::err(format_args!("{}", wrapped(&visible(meant), 0))));
    Ok(meant.is_some())
}

fn meant(topic: &str, waiting: &[&str]) -> Option<String> {
    if waiting.is_empty() || waiting.contains(&topic) {
        return None;
    }
    // The prefix is easily left out.
    let other = waiting.iter().copied().find(|known| known.ends_with(topic));
    let hint = match other.or_else(|| nearest(topic, waiting.iter().copied())) {
        Some(other) => format!("did you mean {other}?"),
        None => format!("events of these topics do: {}", first_names(waiting)),
    };
    Some(format!("no event of topic {topic} waits; {hint}"))
}

/// Says that there are entries of which it is not known whether they match.
pub fn warn_of(listed: &Listed) {
    if listed.not_compared > 0 {
        note(format_args!(
            "{} damaged entries are left out: it is not known whether they match; without a filter they are shown",
            listed.not_compared
        ));
    }
}

/// A file that must not be there yet, and that is its owner's alone, as the spool is; or standard output.
fn writer(path: Option<&PathBuf>) -> Result<JsonLines, Failure> {
    path.map_or_else(
        || Ok(JsonLines::to_stdout()),
        |path| private_file(path).map(|file| JsonLines::to_file(file, path)),
    )
}

/// Makes a file that only its owner can read. There must be none yet.
///
/// # Errors
/// With its path.
pub fn private_file(path: &Path) -> Result<std::fs::File, Failure> {
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    let path = path.display();
    file.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::Failed(format!("{path} exists; choose another file")),
        _ => Failure::Failed(format!("{path}: {error}")),
    })
}

pub fn progress(all: u64) -> ProgressBar {
    bar(all, "{bar:20} {human_pos} of {human_len}  {rate}  {wide_msg}")
}

/// For what may stand still: it has no estimate, which would only grow.
pub fn progress_without_estimate() -> ProgressBar {
    bar(0, "{bar:20} {human_pos} of {human_len}")
}

fn bar(all: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    let rate = |state: &ProgressState, text: &mut dyn Write| {
        let rate = state.per_sec();
        if rate >= 0.5 {
            let _ = write!(text, "{:.0} a second, {} left", HumanFloatCount(rate), time_span(state.eta().as_secs())); // as indicatif does with its own
        }
    };
    let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::hidden());
    let bar = bar.with_style(style.expect("a valid template").with_key("rate", rate));
    show(&bar, 0, all);
    bar
}

/// Shows how far it is; the bar appears when it is known how much there is.
pub fn show(bar: &ProgressBar, read: u64, of: u64) {
    if of > 0 && bar.is_hidden() {
        bar.set_draw_target(ProgressDrawTarget::stderr()); // which stays hidden where it is no terminal
    }
    bar.set_length(of.max(read));
    bar.set_position(read);
}

/// `1 event`, `2,000 events`.
pub fn count(number: u64, what: &str) -> String {
    format!("{} {what}{}", self::number(number), if number == 1 { "" } else { "s" })
}

/// Events, and dead letters where there are any.
pub fn both(events: u64, dead_letters: u64) -> String {
    let dead_letters = match dead_letters {
        0 => String::new(),
        some => format!(" and {}", count(some, "dead letter")),
    };
    count(events, "event") + &dead_letters
}

/// `2,000`
pub fn number(number: u64) -> String {
    HumanCount(number).to_string()
}

/// Seconds, in the two largest units: `3 s`, `2 min 5 s`.
pub fn time_span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// `1.2 MiB`
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// Says that a list has ended at its limit, and how to see more.
pub fn note_limit(listed: &Listed, limit: u64) {
    if let Some(more) = beyond(listed, limit) {
        let (shown, more) = (number(listed.listed), number(more));
        note(format_args!("{shown} shown; {more} more were not looked at: raise --limit"));
    }
}

/// How many were not looked at because of the limit. Others may have been published before they were read.
fn beyond(listed: &Listed, limit: u64) -> Option<u64> {
    listed.of.checked_sub(listed.read).filter(|more| *more > 0 && listed.listed >= limit)
}

/// A name and what it has, of one entry.
pub fn field(name: &str, text: &str) -> Result<(), Failure> {
    print::out(format_args!("{name:<10} {}", visible(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_two_largest_units() {
        assert_eq!([3, 125, 3700, 90_000].map(time_span), ["3 s", "2 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn a_topic_of_which_nothing_waits_is_compared_with_those_that_have_events() {
        let waiting = ["livechat.incoming_chat", "livechat.incoming_event"];
        let meant = |topic: &str| super::meant(topic, &waiting);
        assert_eq!(meant("livechat.incoming_chat"), None);
        assert_eq!(super::meant("livechat.incoming_chat", &[]), None, "nothing waits");
        for topic in ["incoming_event", "livechat.incoming_evnt"] {
            let expected = format!("no event of topic {topic} waits; did you mean livechat.incoming_event?");
            assert_eq!(meant(topic), Some(expected));
        }
        let none = meant("other").expect("a hint");
        assert!(none.ends_with("topics do: livechat.incoming_chat, livechat.incoming_event"), "{none}");
    }

    #[test]
    fn a_day_is_its_beginning_in_utc() {
        assert_eq!(time("2026-11-28"), time("2026-11-28T00:00:00Z"));
        for wrong in ["2026-11-31", "2026-11", "today", "2026-11-28T14:00"] {
            assert!(time(wrong).expect_err(wrong).contains("2026-11-22 for"), "{wrong}");
        }
    }

    #[test]
    fn a_list_is_cut_only_where_it_has_reached_its_limit() {
        let beyond = |listed, read| super::beyond(&Listed { listed, read, of: 5, ..Listed::default() }, 3);
        assert_eq!(beyond(3, 3), Some(2));
        assert_eq!(beyond(2, 2), None, "three were published meanwhile");
        assert_eq!(beyond(3, 5), None, "there are no more");
        assert_eq!(beyond(3, 6), None, "some came meanwhile");
    }
}
