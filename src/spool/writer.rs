//! The one thread that writes: collects what is asked for, appends it with one fsync, and answers all who wait for it.
//!
//! After a failed append nothing is accepted until another segment has been begun and synced; what was appended before is read
//! meanwhile. A directory that was removed is read on until all of it is on the brokers, because there is no other copy.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::lanes::Share;
use super::log::{self, DiskError, Entry, Kind, Log};
use super::{DEAD_LETTERS, Health, Job, Lanes, NoRoom, Refused, Reply, Spool, room};

/// Bytes of one commit, and its jobs: while it lasts, the next one collects.
const COMMIT_BYTES: u64 = 8 << 20;
const COMMIT_JOBS: usize = 4096;

/// How often an idle writer looks whether its file is where it belongs, and whether the disk has room again.
const IDLE_INTERVAL: Duration = millis(500);

/// How often acks are saved, and segments removed.
const TIDY_INTERVAL: Duration = millis(1000);

/// How often segments that cannot be read are tried again.
const RETRY_INTERVAL: Duration = millis(10_000);

/// From a failure to the next try: doubled each time.
const RETRY: (Duration, Duration) = (millis(500), millis(15_000));

/// The unit tests' clock goes faster.
const fn millis(millis: u64) -> Duration {
    Duration::from_millis(if cfg!(test) { millis / 50 } else { millis })
}

/// A log, or why there is none yet.
pub(super) type Opened = log::Result<(Log, log::Opened)>;
pub(super) type Opener = Box<dyn Fn() -> Opened + Send>;

pub(super) struct Writer {
    spool: Spool,
    queue: Receiver<Option<(Job, Reply)>>,
    open: Opener,
    /// `None` until it could be opened. After a failure it is still read.
    log: Option<Log>,
    failure: Option<Failure>,
    /// How long to wait after the next failure, doubled until something was appended.
    delay: Duration,
    /// What was refused for its size: the spool is full until there is so much room, for smaller entries, too.
    wanted: u64,
    /// It is full because its budget is used up, and accepts again when a part of that is free.
    is_used_up: bool,
    tidied: Instant,
    retried: Instant,
    /// The last error of `tidy`, so that it is logged once.
    untidy: Option<Kind>,
}

/// Why nothing is appended, and when to find out whether it can be again.
struct Failure {
    kind: Kind,
    retry_at: Instant,
}

impl Writer {
    pub(super) fn new(spool: Spool, queue: Receiver<Option<(Job, Reply)>>, opened: Opened, open: Opener) -> Self {
        let (tidied, retried) = (Instant::now(), Instant::now());
        let (log, failure, delay, wanted, is_used_up, untidy) = (None, None, RETRY.0, 0, false, None);
        let mut writer = Self { spool, queue, open, log, failure, delay, wanted, is_used_up, tidied, retried, untidy };
        writer.take_in(opened);
        writer
    }

    pub(super) fn run(mut self) {
        loop {
            let (jobs, is_last) = self.collect();
            let is_idle = jobs.is_empty();
            self.spool.lanes(|lanes| lanes.set_busy(true));
            if self.failure.as_ref().map_or(is_idle, |failure| failure.retry_at <= Instant::now()) {
                self.look();
            }
            if !is_idle {
                self.write(jobs);
            }
            self.tidy();
            self.spool.lanes(|lanes| lanes.set_busy(false));
            if is_last {
                break;
            }
        }
        if let Some(Err(error)) = self.log.take().map(Log::close) {
            tracing::warn!(%error, "the spool could not be closed: the next start may publish some events again");
        }
    }

    /// Waits for work, and takes what has come together meanwhile.
    fn collect(&self) -> (Vec<(Job, Reply)>, bool) {
        let (mut jobs, mut bytes, mut wait) = (Vec::new(), 0, IDLE_INTERVAL);
        while bytes < COMMIT_BYTES && jobs.len() < COMMIT_JOBS {
            match self.queue.recv_timeout(wait) {
                Ok(Some((job, reply))) => {
                    self.spool.0.queued_bytes.fetch_sub(job.bytes, Ordering::SeqCst);
                    bytes += job.bytes;
                    jobs.push((job, reply));
                    wait = Duration::ZERO;
                }
                Ok(None) | Err(RecvTimeoutError::Disconnected) => return (jobs, true),
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        (jobs, false)
    }

    fn write(&mut self, jobs: Vec<(Job, Reply)>) {
        let mut room = self.room();
        let mut by_share = self.spool.lanes(|lanes| lanes.bytes_by_share());
        let mut results: Vec<_> = jobs.iter().map(|(job, _)| self.admit(job, &mut room, &mut by_share)).collect();
        let admitted = jobs.iter().zip(&results).filter(|(_, result)| result.is_ok());
        let entries = admitted.filter_map(|((job, _), _)| job.entry.as_ref());
        let entries: Vec<_> = entries.map(|(lane, entry)| (&**lane, entry)).collect();
        let appended = self.append(&entries);
        for ((job, _), result) in jobs.iter().zip(&mut results) {
            *result = result.and(if job.entry.is_some() { appended } else { Ok(()) });
        }
        self.spool.lanes(|lanes| {
            for ((job, _), result) in jobs.iter().zip(&results) {
                match &job.entry {
                    Some((lane, _)) if job.has_ticket => lanes.take_back(lane),
                    Some((lane, _)) => lanes.appended(lane),
                    None => {}
                }
                job.ack.iter().filter(|_| result.is_ok()).for_each(|(lane, number)| _ = lanes.ack(lane, *number));
            }
        });
        let has_acks = jobs.iter().any(|(job, _)| job.ack.is_some());
        let is_saved = !has_acks || self.log.as_mut().is_some_and(|log| log.tidy().is_ok());
        for ((job, _), result) in jobs.iter().zip(&mut results) {
            *result = result.and_then(|()| job.erase.map_or(Ok(()), |segment| self.erase(segment)));
        }
        let _ = self.room(); // it tells the lanes before the answers do
        for ((job, reply), result) in jobs.into_iter().zip(results) {
            let is_durable = job.entry.is_some() || is_saved;
            let _ = reply.send(result.and(if is_durable { Ok(()) } else { Err(Refused::Failed) })); // the sender may have left
        }
        self.spool.0.work.notify_one();
    }

    /// Whether there is room for an entry, and its app may have more than it has.
    fn admit(
        &mut self,
        job: &Job,
        room: &mut Result<u64, Refused>,
        by_share: &mut HashMap<Share, u64>,
    ) -> Result<(), Refused> {
        let Some((lane, _)) = &job.entry else { return Ok(()) };
        let dead_letters_bytes_max = self.spool.config().dead_letters_bytes_max;
        match room {
            Err(Refused::Failed) => Err(Refused::Failed),
            _ if **lane == *DEAD_LETTERS => {
                let has_room = self.spool.lanes(|lanes| lanes.takes_dead_letter(job.bytes, dead_letters_bytes_max));
                if has_room { Ok(()) } else { Err(Refused::Full) }
            }
            Err(why) => Err(*why),
            Ok(left) if *left < job.bytes => {
                (self.wanted, *room) = (job.bytes, Err(Refused::Full));
                Err(Refused::Full)
            }
            Ok(left) => {
                let may_grow = |lanes: &mut Lanes| {
                    lanes.may_grow(lane, *left) && lanes.add_to_share(lane, job.bytes, *left, by_share)
                };
                if !self.spool.lanes(may_grow) {
                    return Err(Refused::Full);
                }
                *left -= job.bytes;
                Ok(())
            }
        }
    }

    fn append(&mut self, entries: &[(&str, &Entry)]) -> Result<(), Refused> {
        if entries.is_empty() {
            return Ok(());
        }
        let Some(log) = &mut self.log else { return Err(Refused::Failed) };
        let began = Instant::now();
        let appended = log.append(entries);
        self.spool.0.metrics.spool_commit_seconds.observe(began.elapsed().as_secs_f64());
        match appended {
            Ok(_) => {
                self.spool.lanes(Lanes::committed);
                self.delay = RETRY.0;
                Ok(())
            }
            Err(error) => {
                // What was refused decides when it can be taken: a segment that cannot be followed by another may have room for less.
                let largest = entries.iter().map(|(lane, entry)| entry.frame_bytes_max(lane) as u64).max();
                self.wanted = largest.unwrap_or(0);
                self.failed(&error);
                Err(self.refused())
            }
        }
    }

    fn erase(&mut self, segment: u64) -> Result<(), Refused> {
        let Some(log) = &mut self.log else { return Err(Refused::Failed) };
        log.erase(segment).map_err(|error| {
            tracing::warn!(%error, segment, "dropped events cannot be erased from a segment of the spool at the moment");
            if error.kind() == Kind::Full { Refused::Full } else { Refused::Failed }
        })
    }

    /// Nothing is appended until it is time to look again.
    fn failed(&mut self, error: &DiskError) {
        let kind = error.kind();
        let hint = if kind == Kind::Gone && self.log.is_some() {
            "; its directory was removed or replaced: its events are published first, then a new spool is created"
        } else {
            ""
        };
        let why = format!("{error}{hint}");
        self.failure = Some(Failure { kind, retry_at: Instant::now() + self.delay });
        if kind == Kind::Full {
            return self.spool.lanes(|lanes| lanes.set_health(Health::Full(why)));
        }
        self.delay = (self.delay * 2).min(RETRY.1);
        self.spool.0.metrics.spool_failures.inc();
        self.spool.lanes(|lanes| lanes.set_health(Health::Failed(why)));
    }

    fn refused(&self) -> Refused {
        let is_full = self.failure.as_ref().is_some_and(|failure| failure.kind == Kind::Full);
        if is_full { Refused::Full } else { Refused::Failed }
    }

    /// Bytes that may still be accepted; tells the lanes when there are none.
    fn room(&mut self) -> Result<u64, Refused> {
        let Some(log) = self.log.as_ref().filter(|_| self.failure.is_none()) else { return Err(self.refused()) };
        let used = self.spool.lanes(|lanes| lanes.total()).bytes;
        let room = room(self.spool.config(), used, log.room_left(), self.wanted, self.is_used_up);
        self.is_used_up = room.as_ref().is_err_and(|no_room| no_room.is_used_up);
        match room {
            Ok(room) => {
                self.wanted = 0;
                self.spool.lanes(|lanes| lanes.set_health(Health::Accepting));
                Ok(room)
            }
            Err(NoRoom { why, .. }) => {
                self.spool.lanes(|lanes| lanes.set_health(Health::Full(why)));
                Err(Refused::Full)
            }
        }
    }

    /// Finds out whether entries can be appended.
    fn look(&mut self) {
        let Some(log) = &mut self.log else {
            let opened = (self.open)();
            return self.take_in(opened);
        };
        match check(&self.spool, log, self.wanted, self.is_used_up) {
            Err(error) if error.kind() != Kind::Full => self.open_again(&error),
            checked => self.checked(checked),
        }
    }

    /// The log that is open takes nothing. Its directory may be another one by now: it was removed, or its disk was mounted again.
    fn open_again(&mut self, error: &DiskError) {
        let is_drained = self.spool.lanes(|lanes| lanes.total()).records == 0;
        match self.log.as_ref().map(|log| log.is_replaced()) {
            // Its files are closed, so that its disk can be unmounted.
            Some(false) if is_drained => {
                self.log = None;
                self.spool.lanes(Lanes::closed);
                self.failed(error);
            }
            Some(true) => match (self.open)() {
                Ok((log, _)) if !is_drained && !self.log.as_ref().is_some_and(|former| log.has_all_of(former)) => {
                    self.failed(error); // what is open is the only copy of what waits
                }
                opened => self.take_in(opened),
            },
            _ => self.failed(error),
        }
    }

    fn checked(&mut self, checked: log::Result<()>) {
        self.failure = None;
        match checked {
            Ok(()) => drop(self.room()), // it tells the lanes
            Err(error) => self.failed(&error),
        }
    }

    /// Takes in a log that was opened, with the dead letters of the former one.
    fn take_in(&mut self, opened: Opened) {
        let (mut log, found) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.failed(&error),
        };
        if let Some(former) = &self.log {
            log.continue_after(former);
            if !log.has_all_of(former)
                && let Err(error) = copy_dead_letters(former, &mut log)
            {
                return self.failed(&error);
            }
        }
        self.report(&log, &found);
        let reader = log::Reader::clone(&log);
        self.spool.lanes(|lanes| lanes.opened(reader));
        let checked = check(&self.spool, &mut log, self.wanted, self.is_used_up);
        self.log = Some(log);
        self.checked(checked);
        self.spool.0.work.notify_one();
    }

    fn report(&self, log: &Log, found: &log::Opened) {
        let log::Opened { torn, missing, aside, has_lost_state, errors, .. } = found;
        let (damaged, absent) = log.damaged();
        if !torn.is_empty() {
            tracing::info!(segments = ?torn, "the last commit of these segments of the spool is torn, as after a crash; its events were not answered 200");
        }
        if !missing.is_empty() {
            tracing::error!(segments = ?missing, "segments of the spool are missing: events in them were answered 200 and are not published");
        }
        if !aside.is_empty() {
            tracing::error!(files = ?aside, "files of the spool are broken, and were moved to its directory aside; events in them were answered 200 and are not published");
        }
        if damaged + absent > 0 {
            tracing::error!(
                damaged,
                absent,
                "events of the spool are damaged, and become dead letters, or are missing"
            );
        }
        if *has_lost_state {
            tracing::warn!("the spool's state is lost: events that were published before may be published again");
        }
        errors.iter().for_each(|error| tracing::error!(%error, "a file of the spool cannot be used at the moment"));
        let metrics = &self.spool.0.metrics;
        metrics.spool_faults("segments_missing", missing.len());
        metrics.spool_faults("files_aside", aside.len());
        metrics.spool_faults("segments_unreadable", log.unreadable().len());
    }

    /// Saves what is acked, gives room back, and tries again to read what could not be read.
    fn tidy(&mut self) {
        if self.tidied.elapsed() < TIDY_INTERVAL {
            return;
        }
        self.tidied = Instant::now();
        let Some(log) = &mut self.log else { return };
        let tidied = log.tidy().and_then(|()| rewrite(log, self.failure.as_ref()));
        let kind = tidied.as_ref().err().map(DiskError::kind);
        if let Err(error) = tidied.as_ref()
            && self.untidy != kind
        {
            tracing::warn!(%error, "the spool cannot save its state or free disk space at the moment");
        }
        self.untidy = kind;
        if self.retried.elapsed() >= RETRY_INTERVAL {
            self.retried = Instant::now();
            let readable = log.retry_unreadable();
            self.spool.0.metrics.spool_faults("segments_unreadable", log.unreadable().len());
            if !readable.is_empty() {
                tracing::info!(segments = ?readable, "segments of the spool can be read again");
                let reader = log::Reader::clone(log);
                self.spool.lanes(|lanes| lanes.opened(reader));
                self.spool.0.work.notify_one();
            }
        }
    }
}

/// Whether entries can be appended, but for what they are refused for by `room`: a full spool begins no segment.
fn check(spool: &Spool, log: &mut Log, wanted: u64, was_used_up: bool) -> log::Result<()> {
    let used = spool.lanes(|lanes| lanes.total()).bytes;
    match room(spool.config(), used, log.room_left(), wanted, was_used_up) {
        Ok(_) => log.ready(usize::try_from(wanted).unwrap_or(usize::MAX)),
        Err(_) => log.check(),
    }
}

/// Writes a nearly empty segment to a smaller file when the disk is full, or more than half of what the files take is not needed.
fn rewrite(log: &mut Log, failure: Option<&Failure>) -> log::Result<()> {
    const SPARE_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };
    let needed: u64 = log.lanes().values().map(|size| size.bytes).sum();
    let is_full = failure.is_some_and(|failure| failure.kind == Kind::Full);
    if (is_full || log.file_bytes() > 2 * needed + SPARE_BYTES)
        && let Some(bytes) = log.rewrite_sparse()?
    {
        tracing::info!(bytes, "a nearly empty segment of the spool was made smaller");
    }
    Ok(())
}

fn copy_dead_letters(former: &Log, log: &mut Log) -> log::Result<()> {
    const PAGE: (usize, usize) = (1000, 4 << 20);
    let mut from = 0;
    loop {
        let items = former.read(DEAD_LETTERS, from, PAGE.0, PAGE.1);
        let Some(last) = items.last() else { return Ok(()) };
        from = last.number + 1;
        let entries: Vec<_> = items.iter().filter_map(|item| Some((DEAD_LETTERS, item.entry.as_ref().ok()?))).collect();
        if !entries.is_empty() {
            log.append(&entries)?;
        }
    }
}
