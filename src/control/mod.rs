//! What an operator can ask, and the answers. One JSON line asks; JSON lines answer, the last of which ends the answer. What is asked of the
//! spool and of its dead letters is answered from the directory of a stopped relay, too.

mod answer;
mod change;
mod item;
mod request;
mod scan;
mod socket;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

pub use answer::{Answer, Lane, Listed, LogLevel, Paused, Reloaded, Status};
pub use change::{Dropped, Fate, Letter, Replayed};
pub use item::{Filter, Item};
pub use request::{List, Request, Temporary, Which};
pub use socket::serve;

use crate::dead_letter::DeadLetters;
use crate::event::Archived;
use crate::outcome::Backfilled;
use crate::spool::{Lanes, Size, Spool};

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
            (Request::Status, Ok(spool)) => Answer::Status(self.status(spool)),
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

    fn status(&self, spool: &Spool) -> Status {
        let publisher = self.dead_letters.as_ref().map(|dead_letters| &dead_letters.publisher);
        let kafka_error = publisher.and_then(|publisher| publisher.unavailable());
        let mut failing = publisher.map(|publisher| publisher.failing()).unwrap_or_default();
        let oldest = spool.oldest();
        let (Size { records: events, bytes }, dead_letters, sizes, paused) = spool.lanes(|lanes| {
            let paused: Vec<String> = lanes.paused().iter().map(ToString::to_string).collect();
            let mut sizes = lanes.sizes();
            paused.iter().for_each(|topic| _ = sizes.entry(topic.clone()).or_default());
            (lanes.total(), lanes.dead_letters(), sizes, paused)
        });
        let why = spool.warning();
        let lane = |(topic, size): (String, Size)| Lane {
            last_error: failing.remove(&topic),
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
            kafka_error,
            lanes: sizes.into_iter().map(lane).collect(),
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
    let waiting = |lanes: &mut Lanes| lanes.sizes().get(&topic).map_or(0, |size| size.records); // dead letters are no topic's
    let (events, is_paused) = spool.lanes(|lanes| (waiting(lanes), lanes.is_paused(&topic)));
    if paused && events == 0 {
        return Answer::Error(format!("no event of topic {topic} waits; `spool status` shows which do"));
    }
    if !paused && !is_paused {
        return Answer::Error(format!("the replay of topic {topic} is not paused; `spool status` shows what is"));
    }
    spool.lanes(|lanes| lanes.set_paused(&Arc::from(&*topic), paused));
    Answer::Paused(Paused { topic, paused, events })
}
