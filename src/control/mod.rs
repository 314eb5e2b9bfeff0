//! What an operator can ask, and the answers. One JSON line asks; JSON lines answer, the last of which ends the answer. What is asked of the
//! spool and of its dead letters is answered from the directory of a stopped relay, too.

mod change;
mod item;
mod socket;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

pub use change::{Dropped, Fate, Letter, Replayed};
pub use item::{Filter, Item};
pub use socket::serve;

use crate::dead_letter::DeadLetters;
use crate::deliveries::Seen;
use crate::event::Archived;
use crate::outcome::Backfilled;
use crate::spool::{self, DAMAGED, DEAD_LETTERS, Size, Spool, Verified};

/// `[control]`.
#[derive(Clone, Debug)]
pub struct Config {
    /// `None`: there is no place for one.
    pub socket: Option<PathBuf>,
    pub connections_max: usize,
    pub request_bytes_max: u64,
    /// For the line that asks.
    pub request_timeout: Duration,
    /// For each line of the answer.
    pub write_timeout: Duration,
}

/// The name of the socket in the spool's directory, or in `$RUNTIME_DIRECTORY`.
pub const SOCKET: &str = "control.sock";

/// Bytes of a socket's path at most, as the system has it.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    /// Answered with an [`Answer::Item`] each, then [`Answer::Listed`].
    List(List),
    /// Drops events that wait and dead letters, to the end, whether the client stays or not. The filter is not empty.
    Drop {
        filter: Filter,
    },
    DropDeadLetters {
        which: Which,
    },
    /// Publishes dead letters. Answered with an [`Answer::Letter`] each, then [`Answer::Replayed`].
    ReplayDeadLetters {
        which: Which,
        /// How long it may take.
        timeout_ms: u64,
    },
    /// Reads all that waits. Answered with an [`Answer::Segment`] each, then [`Answer::Verified`].
    Verify,
    /// Pauses the replay of a topic until it is resumed, or the relay ends.
    Pause {
        topic: String,
    },
    Resume {
        topic: String,
    },
    /// Reads the configuration again and applies it, or, as a dry run, only says what would be.
    Reload {
        #[serde(default)]
        dry_run: bool,
    },
    /// Which registrations have delivered, and which secret keys have verified, and when last.
    Deliveries,
    /// Publishes events that were made of LiveChat's archive, in this order. The answer comes when they are durable.
    Backfill {
        app: String,
        events: Vec<Archived>,
    },
    /// Replaces the log's filter for a time; without one the configured filter is back at once.
    LogLevel {
        #[serde(default)]
        temporary: Option<Temporary>,
    },
}

/// A filter of the log, and how long it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Temporary {
    pub filter: String,
    pub for_ms: u64,
}

impl Request {
    /// What a request that changes something is called in the log.
    pub const fn change(&self) -> Option<&'static str> {
        match self {
            Self::Status | Self::List(_) | Self::Verify | Self::Deliveries | Self::Reload { dry_run: true } => None,
            Self::Drop { .. } => Some("spool drop"),
            Self::DropDeadLetters { .. } => Some("dead-letters drop"),
            Self::ReplayDeadLetters { .. } => Some("dead-letters replay"),
            Self::Pause { .. } => Some("spool pause"),
            Self::Resume { .. } => Some("spool resume"),
            Self::Reload { .. } => Some("reload"),
            Self::Backfill { .. } => Some("backfill"),
            Self::LogLevel { .. } => Some("log-level"),
        }
    }

    /// How long it is waited for besides the spool's disk.
    pub const fn timeout(&self) -> Duration {
        match self {
            Self::ReplayDeadLetters { timeout_ms, .. } => Duration::from_millis(*timeout_ms),
            _ => Duration::ZERO,
        }
    }
}

/// Which dead letters. All of them are never meant by leaving something out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    All,
    Numbers(Vec<u64>),
}

/// Which entries to list, lane by lane, the oldest of each first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Dead letters instead of events that wait.
    #[serde(default)]
    pub dead_letters: bool,
    #[serde(default)]
    pub filter: Filter,
    /// From this number on.
    #[serde(default)]
    pub from: u64,
    /// So many of each lane at most.
    #[serde(default)]
    pub limit: Option<u64>,
    /// With the records' values.
    #[serde(default)]
    pub values: bool,
}

/// A line of the answer. The first ones are followed by others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Item(Item),
    /// How many entries were read until now, of about how many.
    Progress {
        read: u64,
        of: u64,
    },
    Letter(Letter),
    Segment(Verified),
    Status(Status),
    Listed(Listed),
    Dropped(Dropped),
    Replayed(Replayed),
    Verified {
        /// Files that are put aside or missing, or cannot be read.
        problems: Vec<String>,
    },
    Paused(Paused),
    Reloaded(Reloaded),
    LogLevel(LogLevel),
    Deliveries(Seen),
    Backfilled(Backfilled),
    Error(String),
}

impl Answer {
    /// Whether no other line follows.
    pub const fn is_last(&self) -> bool {
        !matches!(self, Self::Item(_) | Self::Progress { .. } | Self::Letter(_) | Self::Segment(_))
    }
}

/// The answer to [`Request::Status`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    pub directory: PathBuf,
    pub accepting: bool,
    /// Why not.
    pub why: Option<String>,
    /// Files that are put aside or missing, or cannot be read.
    pub problems: Vec<String>,
    pub bytes_max: u64,
    pub events: u64,
    pub bytes: u64,
    pub dead_letters: u64,
    pub dead_letters_bytes: u64,
    pub dead_letters_bytes_max: u64,
    pub lanes: Vec<Lane>,
}

/// What waits of a topic.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lane {
    pub topic: String,
    pub events: u64,
    pub bytes: u64,
    /// When the first of them was received.
    pub oldest: Option<Timestamp>,
    /// Its replay is paused.
    pub paused: bool,
}

/// The answer to [`Request::Pause`] and [`Request::Resume`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Paused {
    pub topic: String,
    pub paused: bool,
    /// How many events wait.
    pub events: u64,
}

/// The answer to [`Request::Reload`]. Mistakes have no value in them that may be a secret.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// The relay's configuration file.
    pub file: Option<PathBuf>,
    /// What has changed and is in force; of a dry run, would be.
    pub changed: Vec<String>,
    /// What has changed and takes effect with the next start.
    pub needs_restart: Vec<String>,
    /// What may not be as it was meant, and was not so before.
    pub warnings: Vec<String>,
    /// Where there are any, nothing is applied.
    pub mistakes: Vec<String>,
    /// All mistakes are files that cannot be read now: another try may find them.
    pub may_pass: bool,
}

/// The answer to [`Request::LogLevel`].
#[derive(Debug, Serialize, Deserialize)]
pub struct LogLevel {
    /// What is in force.
    pub filter: String,
    /// Until when, if it is not the configured one.
    pub until: Option<Timestamp>,
    pub configured: String,
}

/// The end of a list.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Listed {
    pub listed: u64,
    /// How many were read, and how many there were in these lanes.
    pub read: u64,
    pub of: u64,
    /// Damaged or unreadable ones, of which it is not known whether they match.
    pub not_compared: u64,
}

/// The client has left: the answer needs not go on.
#[derive(Debug)]
pub struct Gone;

/// Takes the lines of an answer.
pub type Out<'a> = &'a mut dyn FnMut(Answer) -> Result<(), Gone>;

/// Hands what is asked of the process itself to the task that answers it.
pub type Operations = mpsc::Sender<(Request, oneshot::Sender<Answer>)>;

/// Delivers archived events to an app; an error says what is wrong with them.
pub type Backfill = Arc<dyn Fn(String, Vec<Archived>) -> BoxFuture<'static, Result<Backfilled, String>> + Send + Sync>;

/// Answers.
#[derive(Clone)]
pub struct Control {
    /// Of a running relay.
    pub backfill: Option<Backfill>,
    /// Of a running relay.
    pub operations: Option<Operations>,
    /// Where there is one.
    pub spool: Option<Spool>,
    /// Publishes them again. `None`: the spool is only looked at.
    pub dead_letters: Option<DeadLetters>,
}

impl Control {
    /// In the directory of a spool whose log is closed there is to be no socket.
    fn may_have_socket(&self, path: &Path) -> bool {
        let closed = self.spool.as_ref().filter(|spool| !spool.is_open());
        closed.is_none_or(|spool| !path.starts_with(&spool.config().directory))
    }

    /// Sends the answer, line by line. Blocks.
    ///
    /// # Errors
    /// [`Gone`]: a line was not taken.
    pub fn answer(&self, request: Request, out: Out<'_>) -> Result<(), Gone> {
        let spool = match &self.spool {
            None => Err("this relay has no spool: spool.directory is not configured".to_owned()),
            Some(spool) => spool.why_closed().filter(|_| request != Request::Status).map_or(Ok(spool), Err),
        };
        let last = match (request, spool) {
            (request @ (Request::Reload { .. } | Request::LogLevel { .. } | Request::Deliveries), _) => {
                self.of_process(request)
            }
            (Request::Backfill { app, events }, _) => self.backfilled(app, events),
            (_, Err(why)) => Answer::Error(why),
            (Request::Status, Ok(spool)) => Answer::Status(status(spool)),
            (Request::List(list), Ok(spool)) => Answer::Listed(list.answer(spool, out)?),
            (Request::Drop { filter }, Ok(_)) if filter.is_empty() => Answer::Error("a drop needs a filter".to_owned()),
            (Request::Drop { filter }, Ok(spool)) => Answer::Dropped(change::drop_matching(spool, &filter, out)),
            (Request::DropDeadLetters { which }, Ok(spool)) => Answer::Dropped(change::drop_dead_letters(spool, which)),
            (Request::ReplayDeadLetters { which, timeout_ms }, Ok(spool)) => match &self.dead_letters {
                Some(dead_letters) => {
                    let timeout = Duration::from_millis(timeout_ms);
                    Answer::Replayed(change::replay_dead_letters(spool, dead_letters, which, timeout, out)?)
                }
                None => Answer::Error("there is no Kafka to publish to".to_owned()),
            },
            (Request::Verify, Ok(spool)) => {
                spool.verify(|segment| out(Answer::Segment(segment)))?;
                Answer::Verified { problems: spool.problems() }
            }
            (Request::Pause { topic }, Ok(spool)) => pause(spool, topic, true),
            (Request::Resume { topic }, Ok(spool)) => pause(spool, topic, false),
        };
        out(last)
    }

    fn backfilled(&self, app: String, events: Vec<Archived>) -> Answer {
        let Some(backfill) = &self.backfill else { return Answer::Error("no relay runs".to_owned()) };
        match tokio::runtime::Handle::current().block_on(backfill(app, events)) {
            Ok(done) => Answer::Backfilled(done),
            Err(why) => Answer::Error(why),
        }
    }

    fn of_process(&self, request: Request) -> Answer {
        let ask = |operations: &Operations| {
            let (answer, answered) = oneshot::channel();
            operations.blocking_send((request, answer)).ok()?;
            answered.blocking_recv().ok()
        };
        let answer = self.operations.as_ref().and_then(ask);
        answer.unwrap_or_else(|| Answer::Error("the relay is stopping, or does not run".to_owned()))
    }
}

/// A topic whose replay is paused is one that something waits of, so that a mistyped name is noticed.
fn pause(spool: &Spool, topic: String, paused: bool) -> Answer {
    let (events, is_paused) = spool.lanes(|lanes| (lanes.waiting(&topic), lanes.is_paused(&topic)));
    if paused && events == 0 {
        return Answer::Error(format!("no event of topic {topic} waits; `spool status` shows which do"));
    }
    if !paused && !is_paused {
        return Answer::Error(format!("the replay of topic {topic} is not paused; `spool status` shows what is"));
    }
    spool.lanes(|lanes| lanes.set_paused(&Arc::from(&*topic), paused));
    Answer::Paused(Paused { topic, paused, events })
}

fn status(spool: &Spool) -> Status {
    let oldest = spool.oldest();
    let (Size { records: events, bytes }, dead_letters, sizes, paused) = spool.lanes(|lanes| {
        let paused: Vec<String> = lanes.paused().iter().map(ToString::to_string).collect();
        let mut sizes = lanes.sizes();
        paused.iter().for_each(|topic| _ = sizes.entry(topic.clone()).or_default());
        (lanes.total(), lanes.dead_letters(), sizes, paused)
    });
    let why = spool.warning();
    let lane = |(topic, size): (String, Size)| Lane {
        oldest: oldest.iter().find(|(of, _)| **of == *topic).map(|(_, since)| *since),
        paused: paused.contains(&topic),
        topic,
        events: size.records,
        bytes: size.bytes,
    };
    Status {
        directory: spool.config().directory.clone(),
        accepting: why.is_none(),
        why,
        problems: spool.problems(),
        bytes_max: spool.config().bytes_max,
        events,
        bytes,
        dead_letters: dead_letters.records,
        dead_letters_bytes: dead_letters.bytes,
        dead_letters_bytes_max: spool.config().dead_letters_bytes_max,
        lanes: sizes.into_iter().map(lane).collect(),
    }
}

impl List {
    fn answer(&self, spool: &Spool, out: Out<'_>) -> Result<Listed, Gone> {
        let lanes = if self.dead_letters { vec![Arc::from(DEAD_LETTERS)] } else { lanes_of(spool, &self.filter) };
        let mut scan = Scan::new(spool, &self.filter, &lanes);
        for lane in &lanes {
            let mut left = self.limit.unwrap_or(u64::MAX);
            if left == 0 {
                break;
            }
            scan.lane(lane, self.from, out, |found, out| {
                out(Answer::Item(Item::new(found, lane, self.values)))?;
                left -= 1;
                Ok(left > 0)
            })?;
        }
        Ok(scan.found)
    }
}

/// Reads lanes, and finds what matches.
struct Scan<'a> {
    spool: &'a Spool,
    filter: &'a Filter,
    found: Listed,
}

/// The lanes of events that may match.
fn lanes_of(spool: &Spool, filter: &Filter) -> Vec<Arc<str>> {
    let names = spool.lanes(|lanes| lanes.sizes()).into_keys();
    names.filter(|lane| filter.is_of_topic(lane) || lane == DAMAGED).map(Arc::from).collect()
}

impl<'a> Scan<'a> {
    fn new(spool: &'a Spool, filter: &'a Filter, lanes: &[Arc<str>]) -> Self {
        let of = lanes.iter().map(|lane| spool.lanes(|lanes| lanes.waiting(lane))).sum();
        Self { spool, filter, found: Listed { of, ..Listed::default() } }
    }

    /// Hands over what matches of a lane, until `take` wants no more. After each page a line says how far it is, so that it is noticed
    /// when the client has left.
    fn lane(
        &mut self,
        lane: &str,
        mut from: u64,
        out: Out<'_>,
        mut take: impl FnMut(spool::Item, Out<'_>) -> Result<bool, Gone>,
    ) -> Result<(), Gone> {
        const PAGE: (usize, usize) = (1000, 4 << 20);
        loop {
            let page = self.spool.page(lane, from, PAGE.0, PAGE.1);
            let Some(last) = page.last() else { return Ok(()) };
            from = last.number + 1;
            for item in page {
                self.found.read += 1;
                let Some(is_wanted) = self.filter.matches(lane, &item.entry) else {
                    self.found.not_compared += 1;
                    continue;
                };
                if is_wanted {
                    self.found.listed += 1;
                    if !take(item, out)? {
                        return Ok(());
                    }
                }
            }
            out(Answer::Progress { read: self.found.read, of: self.found.of })?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_line_that_a_person_can_write() {
        let read = |line: &str| serde_json::from_str::<Request>(line);
        assert_eq!(read(r#"{"command":"status"}"#).expect("a request"), Request::Status);
        let filter = Filter { topic: Some("livechat.incoming_event".to_owned()), ..Filter::default() };
        let list = List { dead_letters: false, filter, from: 0, limit: Some(3), values: false };
        let line = r#"{"command":"list","filter":{"topic":"livechat.incoming_event"},"limit":3}"#;
        assert_eq!(read(line).expect("a request"), Request::List(list));
        assert!(
            read(r#"{"command":"list","filter":{"tropic":"x"}}"#).is_err(),
            "a filter that is not known drops nothing"
        );
        assert!(read(r#"{"command":"dance"}"#).is_err());
    }

    #[test]
    fn all_dead_letters_are_named_as_such_and_a_mistyped_member_is_refused() {
        let read = |line: &str| serde_json::from_str::<Request>(line);
        let all = Request::DropDeadLetters { which: Which::All };
        assert_eq!(read(r#"{"command":"drop_dead_letters","which":"all"}"#).expect("a request"), all);
        let some = Request::ReplayDeadLetters { which: Which::Numbers(vec![7, 8]), timeout_ms: 9 };
        let line = r#"{"command":"replay_dead_letters","which":{"numbers":[7,8]},"timeout_ms":9}"#;
        assert_eq!(read(line).expect("a request"), some);
        for line in [
            r#"{"command":"drop_dead_letters"}"#,
            r#"{"command":"drop_dead_letters","which":null}"#,
            r#"{"command":"drop_dead_letters","numbers":[7]}"#,
            r#"{"command":"drop_dead_letters","which":"all","but":[7]}"#,
            r#"{"command":"replay_dead_letters","timeout_ms":9}"#,
            r#"{"command":"list","filters":{"topic":"x"}}"#,
            r#"{"command":"drop","filter":{"topic":"x"},"dry_run":true}"#,
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
