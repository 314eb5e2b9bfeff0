//! The durable queue: what Kafka could not take yet, on disk, one lane a topic, in the order in which it was accepted.
//!
//! One thread writes; one fsync serves all who wait for it. A lane is *direct* while nothing of it is in the spool or on
//! the way into it; from the first ticket on, until the last ack, everything goes through the spool, so that nothing
//! overtakes. What replay has had acked is deleted with the next fsync: a crash in between costs a duplicate, no event.

pub mod entry;
pub mod store;

mod db;
mod files;
mod lanes;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "the spool uses it in a later step"))]
mod log;
mod sealed;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

pub use entry::{Entry, Parked, Unreadable};
use lanes::News;
pub use lanes::{Health, Lanes, Signals, Way};
pub use store::{Contents, Size, Store};

use crate::event::Record;
use crate::metrics::Metrics;
use crate::outcome::Unavailable;
use writer::Opened;

/// `[spool]`.
#[derive(Clone, Debug)]
pub struct Config {
    pub directory: PathBuf,
    /// Bytes of entries, together; past it nothing more is accepted.
    pub bytes_max: u64,
    /// Bytes of entries in one file, after which another is begun.
    pub segment_bytes: u64,
    /// Bytes that its file system keeps free; with less, nothing more is accepted.
    pub free_min: u64,
    /// Entries that wait for the writer, and their bytes.
    pub queue_records_max: usize,
    pub queue_bytes_max: u64,
    /// How long to wait for another process that has the directory.
    pub lock_timeout: Duration,
    /// How long an event waits for its lane's way back to Kafka, before it goes through the spool itself.
    pub switch_timeout: Duration,
}

impl Config {
    /// How many files it may have: when it is full, and as many again that are nearly empty.
    pub const fn files(&self) -> u64 {
        self.bytes_max / self.segment_bytes * 2 + 8
    }
}

/// Why the spool has not taken an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The byte budget is used up, the disk is nearly full, or too many wait for the writer.
    #[error("the spool is full")]
    Full,
    /// The last write or fsync failed, and the spool was not opened anew yet.
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
            self.spool.lanes(|lanes| lanes.give_back(&self.topic));
        }
    }
}

/// What the writer is asked to do; the answer comes after the fsync.
enum Job {
    Append {
        topic: Arc<str>,
        entry: Vec<u8>,
    },
    /// Out of its lane, where it stands in one, to the parked.
    Park {
        from: Option<(Arc<str>, u64)>,
        entry: Vec<u8>,
    },
    /// Out of the parked, back into its lane.
    Requeue {
        number: u64,
    },
    Drop {
        number: u64,
    },
}

enum Command {
    Do(Job, oneshot::Sender<Result<(), Refused>>),
    /// There is something to delete.
    Wake,
    Stop,
}

/// The spool; clones share it.
#[derive(Clone)]
pub struct Spool(Arc<Shared>);

struct Shared {
    config: Config,
    metrics: Arc<Metrics>,
    lanes: Mutex<Lanes>,
    /// How many lanes are not direct.
    busy: Arc<AtomicUsize>,
    /// `None` while it is being opened anew, or cannot be.
    store: RwLock<Option<Store>>,
    commands: SyncSender<Command>,
    queued_bytes: AtomicU64,
    start: Instant,
    /// When the commit under way began, in milliseconds since `start`; 0: there is none.
    commit_began: AtomicU64,
    /// A lane has something to replay.
    work: Notify,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// Why a spool cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("the spool directory {} is locked by another process; stop it, or give each relay its own directory", .0.display())]
    Locked(PathBuf),
    #[error("the spool in {}: {error}", directory.display())]
    Store { directory: PathBuf, error: store::Error },
}

impl Spool {
    /// Opens the spool and starts its writer; waits up to `lock_timeout` for a process that still has the directory. A disk
    /// that fails is no reason not to start: the spool then accepts nothing until it does. A broken file is put aside.
    ///
    /// # Errors
    /// [`Unusable`]: locked for too long, or written by a newer version.
    pub fn start(config: Config, metrics: Arc<Metrics>) -> Result<Self, Unusable> {
        let opened = open_unlocked(&config)?;
        let (directory, segment_bytes) = (config.directory.clone(), config.segment_bytes);
        let reopen = move |broken: Option<(&str, &str)>| {
            if let Some((file, why)) = broken {
                Store::put_aside(&directory, file, why)?;
            }
            Store::open(&directory, segment_bytes)
        };
        Ok(Self::start_with(config, metrics, opened, reopen))
    }

    /// As `start`, for those who only look: waits for nobody, and leaves a broken file as it is.
    ///
    /// # Errors
    /// [`Unusable`]: locked, newer, broken, or not readable.
    pub fn look(config: Config, metrics: Arc<Metrics>) -> Result<Self, Unusable> {
        let (directory, segment_bytes) = (config.directory.clone(), config.segment_bytes);
        match Store::look(&directory, segment_bytes) {
            Ok(store) => {
                Ok(Self::start_with(config, metrics, Ok(store), move |_| Store::look(&directory, segment_bytes)))
            }
            Err(store::Error::Locked) => Err(Unusable::Locked(directory)),
            Err(error) => Err(Unusable::Store { directory, error }),
        }
    }

    /// Starts the writer of a store that is open, and that `reopen` opens anew after a failure.
    fn start_with(
        config: Config,
        metrics: Arc<Metrics>,
        opened: Opened,
        reopen: impl Fn(Option<(&str, &str)>) -> Opened + Send + 'static,
    ) -> Self {
        let (commands, queue) = sync_channel(config.queue_records_max);
        metrics.spool_bytes_max.set(i64::try_from(config.bytes_max).unwrap_or(i64::MAX));
        let busy = Arc::<AtomicUsize>::default();
        let spool = Self(Arc::new(Shared {
            lanes: Mutex::new(Lanes::new(Arc::clone(&metrics), Arc::clone(&busy))),
            busy,
            config,
            metrics,
            store: RwLock::new(None),
            commands,
            queued_bytes: AtomicU64::new(0),
            start: Instant::now(),
            commit_began: AtomicU64::new(0),
            work: Notify::new(),
            writer: Mutex::new(None),
        }));
        let writer = writer::Writer::new(spool.clone(), queue, opened, Box::new(reopen));
        let thread = std::thread::Builder::new().name("spool".to_owned()).spawn(move || writer.run());
        *spool.0.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread.expect("a thread can be started"));
        spool
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
        let entry = Entry::new(record).encode();
        let topic = Arc::clone(&ticket.topic);
        ticket.is_used = true; // the writer gives it back
        self.ask(Job::Append { topic, entry })
    }

    /// Parks an entry: `from` a lane, where it stands in one.
    pub fn park(&self, entry: &Entry, from: Option<(Arc<str>, u64)>) -> Fsynced {
        self.ask(Job::Park { from, entry: entry.encode() })
    }

    /// Sends a parked entry back to its lane's end.
    pub fn requeue(&self, number: u64) -> Fsynced {
        self.ask(Job::Requeue { number })
    }

    /// Drops a parked entry for ever.
    pub fn drop_parked(&self, number: u64) -> Fsynced {
        self.ask(Job::Drop { number })
    }

    fn ask(&self, job: Job) -> Fsynced {
        let (reply, fsynced) = oneshot::channel();
        let bytes = job.bytes() as u64;
        let queued = self.0.queued_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        let command = Command::Do(job, reply);
        if queued > self.0.config.queue_bytes_max {
            self.refuse(command, Refused::Full);
            return fsynced;
        }
        match self.0.commands.try_send(command) {
            Ok(()) => {}
            Err(TrySendError::Full(command)) => self.refuse(command, Refused::Full),
            Err(TrySendError::Disconnected(command)) => self.refuse(command, Refused::Failed),
        }
        fsynced
    }

    fn refuse(&self, command: Command, why: Refused) {
        let Command::Do(job, reply) = command else { return };
        self.0.queued_bytes.fetch_sub(job.bytes() as u64, Ordering::SeqCst);
        if let Job::Append { topic, .. } = &job {
            self.lanes(|lanes| lanes.give_back(topic));
        }
        let _ = reply.send(Err(why)); // whoever asked may be gone
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Whether it takes entries.
    pub fn is_accepting(&self) -> bool {
        self.lanes(|lanes| *lanes.health() == Health::Accepting)
    }

    /// Whether the disk has taken suspiciously long over the commit that is under way.
    pub fn is_stalled(&self) -> bool {
        const STALLED_MS: u64 = 2000;
        let began = self.0.commit_began.load(Ordering::Relaxed);
        began > 0 && self.millis().saturating_sub(began) > STALLED_MS
    }

    /// A lane's entries from number `from` on, in order, without those that are acked already. Blocks.
    ///
    /// # Errors
    /// When they cannot be read at the moment.
    pub fn page(&self, topic: &str, from: u64, records: usize, bytes: usize) -> Result<Vec<Numbered>, store::Error> {
        let mut from = from;
        // Asked before: what is deleted while the page is read is no longer known as acked afterwards.
        let acked = self.lanes(|lanes| lanes.acked(topic));
        loop {
            let page = self.with_store(|store| store.page(topic, from, records.max(64), bytes.max(PAGE_BYTES_MIN)))?;
            let Some((last, _)) = page.last() else { return Ok(Vec::new()) };
            from = last + 1;
            let unacked = page.into_iter().filter(|(number, _)| !acked.contains(number)).take(records);
            let unacked: Vec<_> = unacked.map(Numbered::new).collect();
            if !unacked.is_empty() {
                return Ok(unacked);
            }
        }
    }

    /// Parked entries from number `from` on. Blocks.
    ///
    /// # Errors
    /// When they cannot be read at the moment.
    pub fn parked(&self, from: u64, records: usize) -> Result<Vec<Numbered>, store::Error> {
        let page = self.with_store(|store| store.parked(from, records, PAGE_BYTES))?;
        Ok(page.into_iter().map(Numbered::new).collect())
    }

    /// The lanes that are not empty, and when the first entry of each was accepted. Blocks.
    pub fn oldest(&self) -> Vec<(Arc<str>, jiff::Timestamp)> {
        let sizes = self.lanes(|lanes| lanes.sizes());
        let first = |topic: &Arc<str>| self.page(topic, 0, 1, 1).ok()?.into_iter().find_map(|found| found.entry.ok());
        sizes.into_keys().filter_map(|topic| first(&topic).map(|entry| (topic, entry.spooled))).collect()
    }

    fn with_store<T>(&self, work: impl FnOnce(&Store) -> Result<T, store::Error>) -> Result<T, store::Error> {
        let store = self.0.store.read().unwrap_or_else(PoisonError::into_inner);
        let closed = || store::Error::Io("it is not open at the moment".to_owned());
        work(store.as_ref().ok_or_else(closed)?)
    }

    /// A broker has acked this entry: it is deleted with the next fsync.
    pub fn acked(&self, topic: &Arc<str>, number: u64) {
        if self.lanes(|lanes| lanes.ack(topic, number)) {
            let _ = self.0.commands.try_send(Command::Wake); // a writer whose queue is full is awake
        }
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

    /// Writes what is queued, and closes the file. Blocks.
    pub fn close(&self) {
        let _ = self.0.commands.send(Command::Stop); // a writer that is gone has closed it
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(_)) = writer.map(std::thread::JoinHandle::join) {
            tracing::error!("the spool's writer has panicked");
        }
    }
}

/// Opens the store when whoever has it has closed it, for which it waits so long as is configured.
fn open_unlocked(config: &Config) -> Result<Opened, Unusable> {
    let since = Instant::now();
    let mut has_said = false;
    loop {
        match Store::open(&config.directory, config.segment_bytes) {
            Err(store::Error::Locked) if since.elapsed() < config.lock_timeout => {
                if !has_said {
                    tracing::warn!(directory = %config.directory.display(), "the spool is locked by another process; waiting for its end");
                    has_said = true;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(store::Error::Locked) => return Err(Unusable::Locked(config.directory.clone())),
            Err(error @ store::Error::Newer(_)) => {
                return Err(Unusable::Store { directory: config.directory.clone(), error });
            }
            opened => return Ok(opened),
        }
    }
}

/// An entry with its place.
#[derive(Debug)]
pub struct Numbered {
    pub number: u64,
    pub entry: Result<Entry, Broken>,
    /// What it takes in the store.
    pub bytes: usize,
}

impl Numbered {
    fn new((number, bytes): (u64, Vec<u8>)) -> Self {
        let (entry, length) = (Entry::decode(&bytes), bytes.len());
        Self { number, entry: entry.map_err(|why| Broken { why, raw: bytes }), bytes: length }
    }
}

/// Bytes that are no entry, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken {
    pub why: Unreadable,
    pub raw: Vec<u8>,
}

/// So much is read at a time at least, for some of it may be acked.
const PAGE_BYTES_MIN: usize = 64 << 10;

/// What a page of entries may hold, for those who only look.
const PAGE_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests;
