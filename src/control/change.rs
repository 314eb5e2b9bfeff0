//! What changes the spool on request: events and dead letters are dropped, and their bytes with them; dead letters are published again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::scan::{Scan, lanes_of};
use super::{Answer, Filter, Gone, Out, Which};
use crate::dead_letter::DeadLetters;
use crate::event::Record;
use crate::publish::Remedy;
use crate::spool::{Broken, DEAD_LETTERS, Entry, Item, Refused, Spool};

/// What was dropped.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Dropped {
    pub events: u64,
    pub dead_letters: u64,
    /// The topics that they were for. A relay of an earlier version does not say.
    #[serde(default)]
    pub topics: BTreeSet<String>,
    /// Whether no file has their bytes any more.
    pub erased: bool,
    /// Why not.
    pub why: Option<String>,
    /// Numbers of dead letters that are not there.
    pub unknown: Vec<u64>,
    /// Damaged or unreadable entries, of which it is not known whether they match.
    pub not_compared: u64,
    /// Files that were put aside or cannot be read: they were not searched.
    pub problems: Vec<String>,
}

/// What became of a dead letter that was published again.
#[derive(Debug, Serialize, Deserialize)]
pub struct Letter {
    pub number: u64,
    pub topic: Option<String>,
    pub fate: Fate,
    /// What Kafka has said, by librdkafka's name and in its words; or why it could not be read.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It is on Kafka, and no dead letter any more.
    Published,
    /// Its topic has refused it again: it is a dead letter as before.
    Refused,
    /// Kafka has not accepted it in time, or it could not be read: it is a dead letter as before.
    Waiting,
    /// It is what was left of a damaged entry: nothing to be published.
    Corrupted,
    /// There is no such dead letter.
    Unknown,
}

/// How many dead letters became what.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Replayed {
    pub published: u64,
    pub refused: u64,
    pub waiting: u64,
    pub corrupted: u64,
    pub unknown: u64,
    /// The topics that they were for, as far as they are known. A relay of an earlier version does not say.
    #[serde(default)]
    pub topics: BTreeSet<String>,
}

/// Drops all that matches. An event that is on its way to Kafka at that moment may still arrive there, or become a dead letter.
pub(super) fn drop_matching(spool: &Spool, filter: &Filter, out: Out<'_>) -> Dropped {
    // Half of it would be worse than all without a reader.
    let mut out = |answer| {
        let _ = out(answer);
        Ok(())
    };
    let dead_letters = Arc::from(DEAD_LETTERS);
    let lanes = [lanes_of(spool, filter), vec![Arc::clone(&dead_letters)]].concat();
    let (mut dropped, mut segments) = (Dropped::default(), BTreeSet::new());
    let mut scan = Scan::new(spool, filter, &lanes);
    for lane in &lanes {
        let scanned = scan.lane(lane, 0, &mut out, |item, _| {
            if let Some(segment) = spool.drop_entry(lane, item.number) {
                segments.insert(segment);
                dropped.topics.insert(topic_of(item.entry.as_ref(), lane));
                *(if *lane == dead_letters { &mut dropped.dead_letters } else { &mut dropped.events }) += 1;
            }
            Ok(true)
        });
        debug_assert!(scanned.is_ok(), "nothing ends it");
    }
    dropped.not_compared = scan.found.not_compared;
    dropped.problems = spool.problems();
    erase(spool, segments, &mut dropped);
    dropped
}

pub(super) fn drop_dead_letters(spool: &Spool, which: Which) -> Dropped {
    let lane = Arc::from(DEAD_LETTERS);
    let (mut dropped, mut segments) = (Dropped::default(), BTreeSet::new());
    let is_all = which == Which::All;
    for number in which.numbers(spool) {
        let found = dead_letter(spool, number);
        match spool.drop_entry(&lane, number) {
            Some(segment) => {
                segments.insert(segment);
                let topic = found.map(|found| topic_of(found.entry.as_ref(), &lane));
                dropped.topics.extend(topic);
                dropped.dead_letters += 1;
            }
            None => dropped.unknown.push(number),
        }
    }
    if is_all {
        dropped.problems = spool.problems();
    }
    erase(spool, segments, &mut dropped);
    dropped
}

fn dead_letter(spool: &Spool, number: u64) -> Option<Item> {
    spool.dead_letters(number, 1).into_iter().next().filter(|item| item.number == number)
}

/// The topic that an entry is for; of one that cannot be read, the name of its lane.
fn topic_of(entry: Result<&Entry, &Broken>, lane: &str) -> String {
    entry.map_or(lane, |entry| &*entry.record.topic).to_owned()
}

/// Writes the segments again without what was dropped, one by one, so that events are accepted in between.
fn erase(spool: &Spool, segments: BTreeSet<u64>, dropped: &mut Dropped) {
    let erased = segments.into_iter().map(|segment| match spool.erase(segment).blocking_recv() {
        Ok(Ok(())) => None,
        Ok(Err(refused)) => Some(refused.to_string()),
        Err(_) => Some("the spool is closed".to_owned()),
    });
    dropped.why = erased.fold(None, Option::or); // all are tried
    dropped.erased = dropped.why.is_none();
}

impl Which {
    fn numbers(self, spool: &Spool) -> Vec<u64> {
        let (mut numbers, mut from) = match self {
            Self::Numbers(numbers) => return numbers,
            Self::All => (Vec::new(), 0),
        };
        loop {
            let page = spool.dead_letters(from, 1000);
            let Some(last) = page.last() else { return numbers };
            from = last.number + 1;
            numbers.extend(page.iter().map(|item| item.number));
        }
    }
}

/// Publishes dead letters one by one. Those that Kafka does not accept are tried again until the time is over, or the client has left.
pub(super) fn replay_dead_letters(
    spool: &Spool,
    to: &DeadLetters,
    which: Which,
    timeout: Duration,
    out: Out<'_>,
) -> Result<Replayed, Gone> {
    /// Between two rounds.
    const PAUSE: Duration = Duration::from_millis(500);
    let until = Instant::now() + timeout;
    let numbers = which.numbers(spool);
    let of = numbers.len() as u64;
    let mut waiting: Vec<_> = numbers.into_iter().map(|number| Letter::new(number, Fate::Waiting)).collect();
    let mut replayed = Replayed::default();
    loop {
        for letter in std::mem::take(&mut waiting) {
            let letter = if Instant::now() < until { replay(spool, to, letter.number) } else { letter };
            replayed.topics.extend(letter.topic.clone());
            if letter.fate == Fate::Waiting {
                waiting.push(letter);
            } else {
                *replayed.count(letter.fate) += 1;
                out(Answer::Letter(letter))?;
            }
        }
        let is_over = Instant::now() + PAUSE >= until;
        if waiting.is_empty() || is_over {
            break;
        }
        out(Answer::Progress { read: of - waiting.len() as u64, of })?;
        std::thread::sleep(PAUSE);
    }
    replayed.waiting = waiting.len() as u64;
    waiting.into_iter().try_for_each(|letter| out(Answer::Letter(letter)))?;
    Ok(replayed)
}

impl Replayed {
    fn count(&mut self, fate: Fate) -> &mut u64 {
        match fate {
            Fate::Published => &mut self.published,
            Fate::Refused => &mut self.refused,
            Fate::Waiting => &mut self.waiting,
            Fate::Corrupted => &mut self.corrupted,
            Fate::Unknown => &mut self.unknown,
        }
    }
}

impl Letter {
    const fn new(number: u64, fate: Fate) -> Self {
        Self { number, topic: None, fate, error: None }
    }

    fn unread(number: u64, why: String) -> Self {
        Self { error: Some(why), ..Self::new(number, Fate::Waiting) }
    }
}

fn replay(spool: &Spool, to: &DeadLetters, number: u64) -> Letter {
    let record = match dead_letter(spool, number) {
        Some(found) => record_of(found),
        // A file that cannot be read at the moment may have it.
        None if !spool.is_acked(DEAD_LETTERS, number) => {
            Err(Letter::unread(number, "its file cannot be read".to_owned()))
        }
        None => Err(Letter::new(number, Fate::Unknown)),
    };
    let record = match record {
        Ok(record) => record,
        Err(letter) => return letter,
    };
    let topic = record.topic.to_string();
    let published = tokio::runtime::Handle::current().block_on(to.publisher.published_alone(record));
    let (fate, error) = match published {
        Ok(()) => {
            to.count_replayed(&topic);
            let dropped = spool.drop_dead_letter(number).blocking_recv().unwrap_or(Err(Refused::Failed));
            (Fate::Published, dropped.err().map(|why| format!("it is still a dead letter, too: {why}")))
        }
        Err(failure) => {
            let fate = if failure.remedy == Remedy::DeadLetter { Fate::Refused } else { Fate::Waiting };
            (fate, Some(failure.code.to_string()))
        }
    };
    Letter { number, topic: Some(topic), fate, error }
}

/// What is to be published; else what becomes of the dead letter.
fn record_of(found: Item) -> Result<Record, Letter> {
    match found.entry {
        Ok(entry) if !entry.is_corrupted() => Ok(entry.record),
        Ok(_) | Err(Broken::Damaged(_)) => Err(Letter::new(found.number, Fate::Corrupted)),
        Err(Broken::Unread(error)) => Err(Letter::unread(found.number, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{CORRUPTED, DeadLetter, DiskError};

    #[test]
    fn the_answers_of_an_earlier_version_without_topics_are_understood() {
        let dropped =
            r#"{"events":1,"dead_letters":2,"erased":true,"why":null,"unknown":[],"not_compared":0,"problems":[]}"#;
        let dropped: Dropped = serde_json::from_str(dropped).expect("what was dropped");
        assert_eq!((dropped.events, dropped.dead_letters, dropped.topics.len()), (1, 2, 0));
        let replayed = r#"{"published":1,"refused":0,"waiting":0,"corrupted":0,"unknown":0}"#;
        let replayed: Replayed = serde_json::from_str(replayed).expect("what was published again");
        assert_eq!((replayed.published, replayed.topics.len()), (1, 0));
    }

    #[test]
    fn what_cannot_be_read_at_the_moment_is_not_corrupted() {
        let record = Record { topic: "t".into(), key: String::new(), headers: Vec::new(), value: vec![1] };
        let entry = |reason: &str| {
            let dead_letter = DeadLetter { reason: reason.to_owned(), error: String::new(), since_ms: 0 };
            Entry { dead_letter: Some(dead_letter), ..Entry::new(record.clone()) }
        };
        let fate = |entry| record_of(Item { number: 7, bytes: 1, entry }).map_err(|letter| (letter.fate, letter.error));
        assert_eq!(fate(Ok(entry("too_large"))), Ok(record.clone()));
        assert_eq!(fate(Ok(entry(CORRUPTED))), Err((Fate::Corrupted, None)));
        assert_eq!(fate(Err(Broken::Damaged(vec![1]))), Err((Fate::Corrupted, None)));
        let error = DiskError::new("read", "/spool/1.seg", std::io::Error::other("an I/O error"));
        let unread = fate(Err(Broken::Unread(Arc::new(error))));
        let why = "cannot read /spool/1.seg: an I/O error".to_owned();
        assert_eq!(unread, Err((Fate::Waiting, Some(why))));
    }
}
