//! The durable queue: what Kafka could not take yet, on disk, one lane a topic, in the order in which it was accepted.
//!
//! One thread writes; one fsync serves all who wait for it. A lane is *direct* while nothing of it is in the spool or on
//! the way into it. From the first ticket on until the last ack its events go through the spool, so that none overtakes another; only
//! when the spool has taken nothing for `spool.failover_after`, they go direct all the same.

mod lanes;
mod log;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

pub use lanes::{Health, Lanes, Signals, Way};
pub use log::{Broken, CORRUPTED, DAMAGED, DeadLetter, DiskError, Entry, Item, Size, Verified};

use crate::event::Record;
use crate::metrics::Metrics;
use crate::outcome::Unavailable;
use crate::shutdown::Shutdown;
use lanes::News;
use log::{Cause, Directory, Kind, Log, Reader};
use writer::{Opened, Opener, Writer};

/// The lane of the dead letters. No topic can have this name.
pub const DEAD_LETTERS: &str = "(dead letters)";

/// `[spool]`.
#[derive(Clone, Debug)]
pub struct Config {
    pub directory: PathBuf,
    /// Bytes of events, together; past it nothing more is accepted.
    pub bytes_max: u64,
    /// Bytes of dead letters, which count by themselves.
    pub dead_letters_bytes_max: u64,
    /// Bytes of a file, after which another is begun.
    pub segment_bytes: u32,
    /// Bytes that its file system keeps free; with less, nothing more is accepted.
    pub free_min: u64,
    /// Entries that wait for the writer, and their bytes.
    pub queue_records_max: usize,
    pub queue_bytes_max: u64,
    /// How long to wait for another process that has the directory.
    pub lock_timeout: Duration,
    /// How long an event waits for its lane's way back to Kafka, before it goes through the spool itself.
    pub switch_timeout: Duration,
    /// How long the spool accepts nothing before its lanes' new events go direct.
    pub failover_after: Duration,
}

impl Config {
    /// How many files it may have: when it is full, and as many again that are nearly empty.
    pub fn files(&self) -> u64 {
        (self.bytes_max + self.dead_letters_bytes_max) / u64::from(self.segment_bytes) * 2 + 8
    }
}

/// Why the spool has not accepted an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The byte budget is used up, the disk is nearly full, or too many wait for the writer.
    #[error("the spool is full")]
    Full,
    /// The last write or fsync failed, and it was not found yet that the disk can be written again.
    #[error("the spool has failed")]
    Failed,
}

impl Refused {
    pub const fn reason(self) -> Unavailable {
        match self {
            Self::Full => Unavailable::SpoolFull,
            Self::Failed => Unavailable::SpoolFailed,
        }
    }
}

/// Resolves after the fsync that made an entry durable, or with the reason why there was none.
pub type Fsynced = oneshot::Receiver<Result<(), Refused>>;

/// The right of one record to go through the spool. While there is one, its lane is not direct. Dropped unused, it is given back.
pub struct Ticket {
    spool: Spool,
    topic: Arc<str>,
    is_used: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_used {
            self.spool.lanes(|lanes| lanes.take_back(&self.topic));
        }
    }
}

/// What the writer is asked to do. The answer comes when it is durable.
struct Job {
    /// To be appended to a lane.
    entry: Option<(Arc<str>, Entry)>,
    /// To be acked then: a lane and a number.
    ack: Option<(Arc<str>, u64)>,
    /// A segment whose acked entries are to be erased.
    erase: Option<u64>,
    has_ticket: bool,
    bytes: u64,
}

/// Who waits for a job.
type Reply = oneshot::Sender<Result<(), Refused>>;

/// The spool; clones share it.
#[derive(Clone)]
pub struct Spool(Arc<Shared>);

struct Shared {
    config: Config,
    metrics: Arc<Metrics>,
    lanes: Mutex<Lanes>,
    /// How many lanes are not direct.
    busy: Arc<AtomicUsize>,
    /// The writer's queue; `None` ends it.
    jobs: SyncSender<Option<(Job, Reply)>>,
    queued_bytes: AtomicU64,
    /// A lane has something to replay.
    work: Notify,
    /// `None` where the spool is only looked at.
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// Why a spool cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("the spool directory {} is locked by another process{holder}; stop it, or give each relay its own directory", directory.display())]
    Locked { directory: PathBuf, holder: String },
    #[error("the spool: {0}")]
    Disk(DiskError),
}

impl Unusable {
    fn new(directory: &Path, error: DiskError) -> Self {
        match error.source.get_ref().and_then(|cause| cause.downcast_ref()) {
            Some(Cause::Locked(holder)) => Self::Locked { directory: directory.to_owned(), holder: holder.clone() },
            _ => Self::Disk(error),
        }
    }
}

impl Spool {
    /// Opens the spool and starts its writer; waits up to `lock_timeout` for a process that still has the directory. Files that cannot be
    /// used are put aside.
    ///
    /// # Errors
    /// [`Unusable`]: locked for too long, written by a newer version, a directory that others own or may write to, or a disk that fails.
    pub fn start(config: Config, metrics: Arc<Metrics>) -> Result<Self, Unusable> {
        let open = opener(&config);
        let opened = open_unlocked(&config, &open)?.map_err(Unusable::Disk)?;
        Ok(Self::start_with(config, metrics, Ok(opened), Box::new(open)))
    }

    /// As `start`, in the background and for a relay: until it is open, what is appended waits in its queue. A disk that fails is no
    /// reason not to start: the spool accepts nothing until it can be opened. The receiver gets the other errors of `start`. A writer that
    /// panics ends the process.
    pub fn begin(
        config: Config,
        metrics: Arc<Metrics>,
        shutdown: &Shutdown,
    ) -> (Self, oneshot::Receiver<Result<(), Unusable>>) {
        let (spool, queue) = Self::new(config, metrics);
        let (told, opened) = oneshot::channel();
        let (open, opening, vital) = (opener(spool.config()), spool.clone(), shutdown.vital("spool"));
        spool.spawn(move || {
            let tried = || {
                opening.lanes(|lanes| lanes.set_busy(true));
                let opened = open();
                opening.lanes(|lanes| lanes.set_busy(false));
                opened
            };
            match open_unlocked(opening.config(), &tried) {
                Ok(log) => {
                    let writer = Writer::new(opening, queue, log, Box::new(open));
                    let _ = told.send(Ok(())); // the process may be ending
                    writer.run();
                }
                Err(unusable) => drop(told.send(Err(unusable))),
            }
            vital.done();
        });
        (spool, opened)
    }

    /// As `start`, for those who only look at a spool that no process has: nothing is locked and nothing changed.
    ///
    /// # Errors
    /// [`Unusable`]: locked, newer, not readable, or a directory that others own or may write to.
    pub fn look(config: Config, metrics: Arc<Metrics>) -> Result<Self, Unusable> {
        let unusable = |error| Unusable::new(&config.directory, error);
        let directory = Directory::open(&config.directory).map_err(unusable)?;
        directory.check_owner().and_then(|()| directory.check_unlocked()).map_err(unusable)?;
        let (reader, _) = Reader::open(Arc::new(directory)).map_err(unusable)?;
        let (spool, _) = Self::new(config, metrics);
        let health = room(spool.config(), reader.lanes().values().map(|size| size.bytes).sum(), 0, 1, false);
        spool.lanes(|lanes| {
            lanes.opened(reader);
            lanes.set_health(health.map_or_else(|no_room| Health::Full(no_room.why), |_| Health::Accepting));
        });
        Ok(spool)
    }

    fn new(config: Config, metrics: Arc<Metrics>) -> (Self, Receiver<Option<(Job, Reply)>>) {
        let (jobs, queue) = sync_channel(config.queue_records_max);
        metrics.spool_bytes_max.set(i64::try_from(config.bytes_max).unwrap_or(i64::MAX));
        let busy = Arc::<AtomicUsize>::default();
        let lanes = Lanes::new(config.failover_after, Arc::clone(&metrics), Arc::clone(&busy));
        let spool = Self(Arc::new(Shared {
            config,
            metrics,
            lanes: Mutex::new(lanes),
            busy,
            jobs,
            queued_bytes: AtomicU64::new(0),
            work: Notify::new(),
            writer: Mutex::new(None),
        }));
        (spool, queue)
    }

    /// Starts the writer of a log that is open, and that `open` opens again after a failure.
    fn start_with(config: Config, metrics: Arc<Metrics>, opened: Opened, open: Opener) -> Self {
        let (spool, queue) = Self::new(config, metrics);
        let writer = Writer::new(spool.clone(), queue, opened, open);
        spool.spawn(move || writer.run());
        spool
    }

    /// Starts the writer's thread.
    fn spawn(&self, run: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new().name("spool".to_owned()).spawn(run);
        let thread = thread.expect("a thread can be started");
        *self.0.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Which way the next record of `topic` goes; `None` where it has to be waited for.
    pub fn way_now(&self, topic: &Arc<str>) -> Option<Way> {
        if self.0.busy.load(Ordering::SeqCst) == 0 {
            return Some(Way::Direct); // the usual case takes no lock
        }
        self.lanes(|lanes| lanes.look(topic)).ok()
    }

    /// Which way the next record of `topic` goes. Waits only while its lane is about to turn direct again, and not for long.
    pub async fn way(&self, topic: &Arc<str>) -> Way {
        let deadline = tokio::time::Instant::now() + self.0.config.switch_timeout;
        loop {
            let signals = match self.lanes(|lanes| lanes.look(topic)) {
                Ok(way) => return way,
                Err(signals) => signals,
            };
            let opened = signals.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            if !self.lanes(|lanes| lanes.is_closing(topic)) {
                continue;
            }
            if tokio::time::timeout_at(deadline, opened).await.is_err() {
                self.lanes(|lanes| lanes.waited_in_vain(topic, self.0.config.switch_timeout));
                return Way::Spool;
            }
        }
    }

    /// Announces a record of `topic`. From now on its lane is not direct.
    pub fn ticket(&self, topic: &Arc<str>) -> Ticket {
        self.lanes(|lanes| lanes.give(topic));
        Ticket { spool: self.clone(), topic: Arc::clone(topic), is_used: false }
    }

    /// Hands an entry to the writer.
    pub fn append(&self, mut ticket: Ticket, record: Record) -> Fsynced {
        ticket.is_used = true; // the writer gives it back
        self.ask(Some((Arc::clone(&ticket.topic), Entry::new(record))), None, true)
    }

    /// Stores a dead letter: `from` a lane, where it is in one.
    pub fn store_dead_letter(&self, entry: Entry, from: Option<(Arc<str>, u64)>) -> Fsynced {
        self.ask(Some((Arc::from(DEAD_LETTERS), entry)), from, false)
    }

    /// Drops a dead letter.
    pub fn drop_dead_letter(&self, number: u64) -> Fsynced {
        self.ask(None, Some((Arc::from(DEAD_LETTERS), number)), false)
    }

    /// Drops an entry: it is not published, unless it is on its way. Returns the segment that still has its bytes; `None`: it is not
    /// there.
    pub fn drop_entry(&self, lane: &Arc<str>, number: u64) -> Option<u64> {
        self.lanes(|lanes| lanes.ack(lane, number)).then_some(number / log::SPAN)
    }

    /// Whether an entry is known to be acked or dropped.
    pub fn is_acked(&self, lane: &str, number: u64) -> bool {
        self.lanes(|lanes| lanes.reader().is_some_and(|reader| reader.is_acked(lane, number)))
    }

    /// Takes the bytes of all that is acked of a segment off the disk.
    pub fn erase(&self, segment: u64) -> Fsynced {
        self.order(Job { entry: None, ack: None, erase: Some(segment), has_ticket: false, bytes: 0 })
    }

    fn ask(&self, entry: Option<(Arc<str>, Entry)>, ack: Option<(Arc<str>, u64)>, has_ticket: bool) -> Fsynced {
        let bytes = entry.as_ref().map_or(0, |(lane, entry)| entry.frame_bytes_max(lane) as u64);
        self.order(Job { entry, ack, erase: None, has_ticket, bytes })
    }

    fn order(&self, job: Job) -> Fsynced {
        let (bytes, has_ticket) = (job.bytes, job.has_ticket);
        let (reply, fsynced) = oneshot::channel();
        let queued = self.0.queued_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        let job = Some((job, reply));
        let (job, why) = if queued > self.0.config.queue_bytes_max {
            (job, Refused::Full)
        } else {
            match self.0.jobs.try_send(job) {
                Ok(()) => return fsynced,
                Err(TrySendError::Full(job)) => (job, Refused::Full),
                Err(TrySendError::Disconnected(job)) => (job, Refused::Failed),
            }
        };
        if let Some((job, reply)) = job {
            self.0.queued_bytes.fetch_sub(bytes, Ordering::SeqCst);
            job.entry.iter().filter(|_| has_ticket).for_each(|(lane, _)| self.lanes(|lanes| lanes.take_back(lane)));
            let _ = reply.send(Err(why)); // the caller has the receiver
        }
        fsynced
    }

    /// Whether its log is open, so that what is in it can be read.
    pub fn is_open(&self) -> bool {
        self.lanes(|lanes| lanes.reader().is_some())
    }

    /// Whether it takes entries, and soon.
    pub fn is_ready(&self) -> bool {
        self.lanes(|lanes| lanes.is_accepting())
    }

    /// Why it takes no entries, if so, and what that means.
    pub fn warning(&self) -> Option<String> {
        let (health, is_stalled, is_failing_over) =
            self.lanes(|lanes| (lanes.health().clone(), lanes.is_stalled(), lanes.is_failing_over()));
        let why = match health {
            Health::Accepting if is_stalled => "the spool's disk does not answer".to_owned(),
            Health::Accepting => return None,
            Health::Full(why) => format!("the spool is full: {why}"),
            Health::Failed(why) => format!("the spool has failed: {why}"),
        };
        let failover =
            if is_failing_over { "; new events go to Kafka directly, and may overtake those in it" } else { "" };
        Some(why + failover)
    }

    /// Why nothing in it can be read or changed, where its log is not open. It is not empty then: what is in it is not known.
    pub fn why_closed(&self) -> Option<String> {
        let why = || self.warning().unwrap_or_default();
        (!self.is_open()).then(|| format!("nothing in the spool can be read or changed: {}", why()))
    }

    /// Files that are put aside or missing, or cannot be read, as none can where the log is not open. Blocks.
    pub fn problems(&self) -> Vec<String> {
        let Some(reader) = self.lanes(|lanes| lanes.reader().cloned()) else {
            return self.why_closed().into_iter().collect();
        };
        let unreadable = reader.unreadable().into_values().map(|error| error.to_string());
        let aside = reader.aside().into_iter().map(|path| format!("{} was put aside: it is broken", path.display()));
        let missing = reader.missing().into_iter().map(|path| format!("{} is missing", path.display()));
        unreadable.chain(aside).chain(missing).collect()
    }

    /// Reads all that waits, and hands over what was found in each file until `each` wants no more. Blocks.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn verify<E>(&self, mut each: impl FnMut(Verified) -> Result<(), E>) -> Result<(), E> {
        let Some(reader) = self.lanes(|lanes| lanes.reader().cloned()) else { return Ok(()) };
        reader.numbers().into_iter().filter_map(|number| reader.verify(number)).try_for_each(&mut each)
    }

    /// Entries of a lane from number `from` on that are not acked, in order. Blocks.
    pub fn page(&self, topic: &str, from: u64, records: usize, bytes: usize) -> Vec<Item> {
        let reader = self.lanes(|lanes| lanes.reader().cloned());
        reader.map_or_else(Vec::new, |reader| reader.read(topic, from, records, bytes))
    }

    /// Dead letters from number `from` on. Blocks.
    pub fn dead_letters(&self, from: u64, records: usize) -> Vec<Item> {
        const PAGE_BYTES: usize = 4 << 20;
        self.page(DEAD_LETTERS, from, records, PAGE_BYTES)
    }

    /// The lanes that are not empty, and when the first entry of each was accepted. Blocks.
    pub fn oldest(&self) -> Vec<(Arc<str>, jiff::Timestamp)> {
        let (sizes, reader) = self.lanes(|lanes| (lanes.sizes(), lanes.reader().cloned()));
        let first = |topic: String| Some((Arc::from(&*topic), reader.as_ref()?.oldest(&topic)?));
        sizes.into_keys().filter_map(first).collect()
    }

    /// A broker has acked this entry: it will be deleted.
    pub fn acked(&self, topic: &Arc<str>, number: u64) {
        self.lanes(|lanes| _ = lanes.ack(topic, number));
    }

    /// Looks at the lanes' state, or changes it. What is to be logged of a change is logged after the lock has been released.
    pub fn lanes<T>(&self, act: impl FnOnce(&mut Lanes) -> T) -> T {
        let mut lanes = self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut lanes);
        let news = lanes.take_news();
        drop(lanes);
        news.iter().for_each(News::log);
        result
    }

    /// Resolves when some lane may have got something to replay.
    pub async fn work(&self) {
        self.0.work.notified().await;
    }

    /// Writes what is queued, and closes the log. Blocks.
    pub fn close(&self) {
        let Some(writer) = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let _ = self.0.jobs.send(None); // a writer that is gone has closed it
        if writer.join().is_err() {
            tracing::error!("the spool's writer has panicked");
        }
    }
}

/// Opens the log of a relay, as often as it is asked to.
fn opener(config: &Config) -> impl Fn() -> Opened + Send + 'static {
    let (directory, log) = (config.directory.clone(), log::Config { segment_bytes: config.segment_bytes });
    move || {
        let directory = Directory::create(&directory)?;
        directory.check_owner()?;
        Log::open(Arc::new(directory), log)
    }
}

/// Opens the log when the process that has it has ended, for which it waits as long as is configured.
fn open_unlocked(config: &Config, open: &impl Fn() -> Opened) -> Result<Opened, Unusable> {
    let since = Instant::now();
    let mut has_said = false;
    loop {
        let error = match open() {
            Err(error) if matches!(error.kind(), Kind::Locked | Kind::Newer | Kind::Foreign) => error,
            opened => return Ok(opened),
        };
        if error.kind() != Kind::Locked || since.elapsed() >= config.lock_timeout {
            return Err(Unusable::new(&config.directory, error));
        }
        if !has_said {
            tracing::warn!(%error, "the spool is locked by another process; waiting for its end");
            has_said = true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Of its budget, a spool that was full must have this part free before it accepts entries again: else each ack would let one in.
const FREE_AGAIN: u64 = 16;

/// Why nothing is accepted.
struct NoRoom {
    why: String,
    /// The budget has none left, whether its disk has or not.
    is_used_up: bool,
}

/// Bytes that may still be accepted, or why there are none: `used` by entries, `inside` the segment that takes them, `wanted` at least, and
/// more where the budget `was_used_up`.
fn room(config: &Config, used: u64, inside: u64, wanted: u64, was_used_up: bool) -> Result<u64, NoRoom> {
    let file_system = rustix::fs::statvfs(&config.directory);
    let free = file_system.map_or(u64::MAX, |found| found.f_bavail.saturating_mul(found.f_frsize)); // then a write says why not
    // A segment takes its whole room at once.
    let has_room = free >= config.free_min.saturating_add(u64::from(config.segment_bytes));
    let available = if has_room { u64::MAX } else { inside };
    let needed = wanted.clamp(1, config.bytes_max);
    let size = |bytes| bytesize::ByteSize::b(bytes).display().iec().to_string();
    let left = config.bytes_max.saturating_sub(used);
    let least = if was_used_up { needed.max(config.bytes_max / FREE_AGAIN) } else { needed };
    if left < least {
        let why = format!("{} of spool.bytes_max ({}) are used", size(used), size(config.bytes_max));
        Err(NoRoom { why, is_used_up: true })
    } else if available < needed {
        let (free, least, segment) = (size(free), size(config.free_min), size(config.segment_bytes.into()));
        let why = format!(
            "its file system has {free} left, less than spool.free_min ({least}) and spool.segment_bytes ({segment})"
        );
        Err(NoRoom { why, is_used_up: false })
    } else {
        Ok(left.min(available))
    }
}

#[cfg(test)]
pub mod tests;
