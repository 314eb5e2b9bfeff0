//! The one thread that writes: collects what is asked for, commits it with one fsync, and answers everybody at once.
//!
//! After a failed commit nothing is accepted until the file was opened anew, which repairs and checks it: what the system
//! has dropped of the file after a failed fsync cannot be known. A file that was removed under us is read on until all of
//! it is on the brokers, for there is no other copy.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::store::Store;
use super::store::{self, Batch, Contents};
use super::{Command, Entry, Health, Job, Refused, Spool};

/// Bytes of one commit, and its jobs: while it lasts, the next one collects.
const COMMIT_BYTES: usize = 8 << 20;
const COMMIT_JOBS: usize = 4096;

/// What one commit deletes at most.
const DELETES_MAX: usize = 50_000;

/// What is only to be deleted waits so long for company.
const DELETE_INTERVAL: Duration = millis(100);

/// A file in which so much is free, and in which nothing has changed for so long, is made small; one in so long a time.
const SPARE_BYTES: u64 = if cfg!(test) { 2 << 20 } else { 16 << 20 };
const TIDY_AFTER: Duration = millis(20_000);
const TIDY_INTERVAL: Duration = millis(1000);

/// How often an idle writer looks whether the disk has room again.
const IDLE_INTERVAL: Duration = millis(500);

/// From a failure to the next try to open the file: doubled each time.
const REOPEN: (Duration, Duration) = (millis(500), millis(15_000));

/// The unit tests' clock goes faster.
const fn millis(millis: u64) -> Duration {
    Duration::from_millis(if cfg!(test) { millis / 50 } else { millis })
}

/// A store, or why there is none yet.
pub(super) type Opened = Result<Store, store::Error>;

/// Opens the store; told which and why, it puts a file that is of no use aside first.
pub(super) type Opener = Box<dyn Fn(Option<(&str, &str)>) -> Opened + Send>;

pub(super) struct Writer {
    spool: Spool,
    queue: Receiver<Command>,
    open: Opener,
    next: u64,
    /// What an entry wanted that was refused for it: the spool is full until there is so much room, for smaller ones, too.
    wanted: u64,
    /// After a failure: when to open the file anew.
    reopen: Option<Instant>,
    /// How long to wait before that, doubled until something was written again.
    patience: Duration,
    /// The file that is of no use though it can be opened, and why.
    broken: Option<(String, String)>,
    /// When something was last written, deleted, and made small.
    written: Instant,
    deleted: Instant,
    tidied: Instant,
    /// The file is gone, and what is in it is not on the brokers yet.
    is_rescuing: bool,
}

type Reply = oneshot::Sender<Result<(), Refused>>;

/// What one commit is about.
#[derive(Default)]
struct Round {
    jobs: Vec<(Job, Reply)>,
    bytes: usize,
    is_last: bool,
}

impl Writer {
    pub(super) fn new(spool: Spool, queue: Receiver<Command>, opened: Opened, open: Opener) -> Self {
        let mut writer = Self {
            spool,
            queue,
            open,
            next: 1,
            wanted: 0,
            reopen: None,
            patience: REOPEN.0,
            broken: None,
            written: Instant::now(),
            deleted: Instant::now(),
            tidied: Instant::now(),
            is_rescuing: false,
        };
        writer.take_in(opened);
        writer
    }

    pub(super) fn run(mut self) {
        loop {
            let round = self.collect();
            self.look_after_the_file();
            let is_last = round.is_last;
            self.write(round);
            if is_last {
                break;
            }
        }
        self.spool.0.store.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits for work, and takes what has come together meanwhile.
    fn collect(&self) -> Round {
        let mut round = Round::default();
        let mut wait = if self.spool.lanes(|lanes| lanes.has_acked()) { DELETE_INTERVAL } else { IDLE_INTERVAL };
        loop {
            match self.queue.recv_timeout(wait) {
                Ok(Command::Do(job, reply)) => {
                    self.spool.0.queued_bytes.fetch_sub(job.bytes() as u64, Ordering::SeqCst);
                    round.bytes += job.bytes();
                    round.jobs.push((job, reply));
                    wait = Duration::ZERO;
                }
                Ok(Command::Wake) => wait = wait.min(DELETE_INTERVAL),
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => round.is_last = true,
                Err(RecvTimeoutError::Timeout) => return round,
            }
            if round.is_last || round.bytes >= COMMIT_BYTES || round.jobs.len() >= COMMIT_JOBS {
                return round;
            }
        }
    }

    fn write(&mut self, round: Round) {
        // Whoever waits for an append does not wait for deletes each time.
        let may_delete = round.jobs.is_empty() || round.is_last || self.deleted.elapsed() >= DELETE_INTERVAL;
        let deleted = if may_delete && self.is_open() {
            self.spool.lanes(|lanes| lanes.to_delete(DELETES_MAX))
        } else {
            Vec::new()
        };
        if !deleted.is_empty() {
            self.deleted = Instant::now();
        }
        if round.jobs.is_empty() && deleted.is_empty() {
            self.look_for_room();
            return;
        }
        let mut batch = Batch::default();
        deleted.into_iter().for_each(|(topic, number)| batch.lane(&topic).deleted.push(number));
        let mut replies = Vec::with_capacity(round.jobs.len());
        let mut room = self.room();
        for (job, reply) in round.jobs {
            if let Job::Append { topic, .. } = &job {
                batch.lane(topic).tickets += 1;
            }
            let bytes = job.bytes() as u64;
            let planned = self.plan(job, &mut batch, &mut room);
            if planned == Err(Refused::Full) && room.is_ok() {
                (self.wanted, room) = (bytes, Err(Refused::Full));
            }
            replies.push((reply, planned));
        }
        batch.next = self.next;
        let committed = if self.is_open() { self.commit(&batch) } else { Err(()) };
        match &committed {
            // Also where the file has gone meanwhile: those who asked are refused, and what they gave is there to be read.
            Ok((contents, _)) => self.spool.lanes(|lanes| lanes.committed(contents, &batch.lanes)),
            Err(()) => batch.lanes.iter().for_each(|(topic, change)| {
                (0..change.tickets).for_each(|_| self.spool.lanes(|lanes| lanes.give_back(topic)));
            }),
        }
        let _ = self.room(); // it tells the lanes before the answers do
        let is_durable = committed.is_ok_and(|(_, is_in_place)| is_in_place);
        for (reply, planned) in replies {
            let _ = reply.send(planned.and(if is_durable { Ok(()) } else { Err(Refused::Failed) })); // the sender may have left
        }
        self.spool.0.work.notify_one();
        self.give_space_back();
    }

    /// Puts a job into the batch, or refuses it.
    fn plan(&mut self, job: Job, batch: &mut Batch, room: &mut Result<u64, Refused>) -> Result<(), Refused> {
        match job {
            Job::Append { topic, entry } => {
                take(room, entry.len())?;
                batch.lane(&topic).appended.push((self.number(), entry));
            }
            Job::Park { from: Some((topic, number)), entry } => {
                batch.lane(&topic).deleted.push(number);
                batch.parked.push((self.number(), entry));
            }
            Job::Park { from: None, entry } => {
                take(room, entry.len())?;
                batch.parked.push((self.number(), entry));
            }
            Job::Requeue { number } => {
                let parked = self.spool.with_store(|store| store.parked(number, 1, 1)).map_err(|_| Refused::Failed)?;
                let parked = parked.into_iter().find(|(found, _)| *found == number);
                let entry =
                    parked.and_then(|(_, bytes)| Entry::decode(&bytes).ok()).filter(|entry| !entry.is_corrupted());
                if let Some(entry) = entry {
                    let topic = Arc::clone(&entry.record.topic);
                    let entry = Entry { parked: None, ..entry }.encode();
                    batch.lane(&topic).appended.push((self.number(), entry));
                    batch.unparked.push(number);
                }
            }
            Job::Drop { number } => batch.unparked.push(number),
        }
        Ok(())
    }

    const fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn is_open(&self) -> bool {
        self.spool.0.store.read().unwrap_or_else(PoisonError::into_inner).is_some() && self.reopen.is_none()
    }

    /// Bytes that may still be accepted; says so when there are none.
    fn room(&mut self) -> Result<u64, Refused> {
        if !self.is_open() || self.is_rescuing {
            return Err(Refused::Failed);
        }
        let config = self.spool.config();
        let free =
            rustix::fs::statvfs(&config.directory).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        let used = self.spool.lanes(|lanes| lanes.bytes());
        // What was deleted is free in its file: some of it can be written whatever the file system has left.
        let inside = || self.spool.with_store(|store| Ok(store.inside())).unwrap_or(0);
        let available = if free < config.free_min { inside() } else { free };
        let needed = self.wanted.clamp(1, config.bytes_max);
        let size = |bytes| bytesize::ByteSize::b(bytes).display().iec().to_string();
        let full = if config.bytes_max.saturating_sub(used) < needed {
            Some(format!("{} of spool.bytes_max ({}) are used", size(used), size(config.bytes_max)))
        } else if available < needed {
            let (free, least) = (size(free), size(config.free_min));
            Some(format!("its file system has {free} left, less than spool.free_min ({least})"))
        } else {
            None
        };
        let room = if full.is_some() { Err(Refused::Full) } else { Ok((config.bytes_max - used).min(available)) };
        if full.is_none() {
            self.wanted = 0;
        }
        self.spool.lanes(|lanes| lanes.set_health(full.map_or(Health::Accepting, Health::Full)));
        room
    }

    /// Looks, and tells the lanes, though nothing is to be written.
    fn look_for_room(&mut self) {
        if self.is_open()
            && let Err(error) = self.spool.with_store(store::Store::check_place)
        {
            self.failed(&error);
        }
        let _ = self.room(); // it tells the lanes
        self.give_space_back();
    }

    /// Files do not shrink by themselves.
    fn give_space_back(&mut self) {
        if self.tidied.elapsed() < TIDY_INTERVAL || !self.is_open() {
            return;
        }
        self.tidied = Instant::now();
        let is_quiet = self.written.elapsed() >= TIDY_AFTER;
        match self.spool.with_store(|store| store.tidy(TIDY_AFTER, is_quiet, SPARE_BYTES)) {
            Ok(Some(store::Tidied { file, before, after })) => {
                tracing::info!(file, before, after, "a file of the spool was made small");
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a file of the spool could not be made small"),
        }
    }

    /// What is in the file after it, and whether the file is where it belongs.
    fn commit(&mut self, batch: &Batch) -> Result<(Contents, bool), ()> {
        let began = Instant::now();
        self.written = began;
        self.spool.0.commit_began.store(self.spool.millis(), Ordering::Relaxed);
        let committed = self.spool.with_store(|store| Ok((store.commit(batch)?, store.check_place())));
        self.spool.0.commit_began.store(0, Ordering::Relaxed);
        let (contents, place) = match committed {
            Ok((contents, place)) => (Ok(contents), place),
            Err(error) => (Err(()), Err(error)),
        };
        match &place {
            Ok(()) if batch.lanes.values().any(|change| !change.appended.is_empty()) => self.patience = REOPEN.0,
            Ok(()) => {}
            Err(error) => self.failed(error),
        }
        self.spool.0.metrics.spool_commit_seconds.observe(began.elapsed().as_secs_f64());
        Ok((contents?, place.is_ok()))
    }

    fn failed(&mut self, error: &store::Error) {
        self.spool.0.metrics.spool_failures.inc();
        self.spool.lanes(|lanes| lanes.set_health(Health::Failed(error.to_string())));
        self.is_rescuing = matches!(error, store::Error::Vanished(_));
        self.reopen = Some(Instant::now() + self.patience);
        self.patience = (self.patience * 2).min(REOPEN.1);
    }

    /// Opens the file anew when it is time for it.
    fn look_after_the_file(&mut self) {
        let Some(at) = self.reopen else { return };
        if Instant::now() < at {
            return;
        }
        if self.is_rescuing {
            let left = self.spool.lanes(|lanes| lanes.total()).records;
            if left > 0 {
                self.reopen = Some(Instant::now() + REOPEN.0); // still read from the file that nobody else has
                return;
            }
        }
        self.spool.0.store.write().unwrap_or_else(PoisonError::into_inner).take();
        let broken = self.broken.take();
        let opened = (self.open)(broken.as_ref().map(|(file, why)| (file.as_str(), why.as_str())));
        self.take_in(opened);
    }

    /// Takes in a store that was opened: what is in it, less what is acked already.
    fn take_in(&mut self, opened: Opened) {
        let store = match opened {
            Ok(store) => store,
            Err(error) => return self.failed(&error),
        };
        let mut batch = Batch::default();
        for topic in self.spool.lanes(|lanes| lanes.topics()) {
            batch.lane(&topic);
        }
        for (topic, number) in self.spool.lanes(|lanes| lanes.to_delete(usize::MAX)) {
            batch.lane(&topic).deleted.push(number);
        }
        let contents = store.contents();
        let before = contents.next;
        contents.lanes.keys().for_each(|name| {
            batch.lane(&Arc::from(name.as_str()));
        });
        batch.next = contents.next.max(self.next);
        let contents = match store.commit(&batch) {
            Ok(contents) => contents,
            Err(error) => {
                // It can be opened, and not be used: that does not pass by itself.
                if let store::Error::Broken { file, why } = &error {
                    self.broken = Some((file.clone(), why.clone()));
                }
                return self.failed(&error);
            }
        };
        self.spool.lanes(|lanes| lanes.opened(before..self.next));
        self.next = contents.next.max(self.next);
        *self.spool.0.store.write().unwrap_or_else(PoisonError::into_inner) = Some(store);
        (self.reopen, self.is_rescuing) = (None, false);
        self.spool.lanes(|lanes| lanes.committed(&contents, &batch.lanes));
        self.look_for_room();
        self.spool.0.work.notify_one();
    }
}

impl Job {
    pub(super) const fn bytes(&self) -> usize {
        match self {
            Self::Append { entry, .. } | Self::Park { entry, .. } => entry.len(),
            Self::Requeue { .. } | Self::Drop { .. } => 0,
        }
    }
}

fn take(room: &mut Result<u64, Refused>, bytes: usize) -> Result<(), Refused> {
    let left = room.as_mut().map_err(|refused| *refused)?;
    *left = left.checked_sub(bytes as u64).ok_or(Refused::Full)?;
    Ok(())
}
