//! Spool → Kafka until it is empty, a task a lane. Order is kept by key: of one key, one record is in flight at a time, so
//! that whatever fails, nothing of its key has overtaken it; different keys go side by side.
//!
//! While a lane backs off, a single record asks now and then whether its topic takes events again. When nothing is left but what is in
//! flight, the lane's gate is closed for a moment: new events wait until the last ack, and then go direct again.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dead_letter::{DeadLetters, Unresolved};
use crate::event::Record;
use crate::publish::{Failure, Remedy};
use crate::shutdown::Shutdown;
use crate::spool::{Broken, CORRUPTED, DeadLetter, Entry, Item, Signals, Spool};

/// The part of `[spool]` that is about replay.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Records of a lane in flight at once, and their bytes.
    pub records_max: usize,
    pub bytes_max: usize,
    /// Between two tries of a lane that backs off; it doubles from the first to the second.
    pub retry_min: Duration,
    pub retry_max: Duration,
}

/// So few records must be left before a lane's gate is closed: they are acked within moments.
const CLOSE_AT: u64 = 512;

/// Replays every lane that has something, until `stop`; what is in flight then is waited for. A lane's task that panics ends the
/// process: else its events would wait and never be published.
pub async fn run(config: Config, spool: Spool, dead_letters: DeadLetters, shutdown: Shutdown, stop: CancellationToken) {
    let lanes = TaskTracker::new();
    while !stop.is_cancelled() {
        let idle = spool.lanes(|lanes| lanes.take_idle());
        for (topic, signals) in idle {
            let lane = Lane::new(config, topic, signals, spool.clone(), dead_letters.clone());
            let (vital, stop) = (shutdown.vital("replay"), stop.clone());
            lanes.spawn(async move {
                lane.run(stop).await;
                vital.done();
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = spool.work() => {}
        }
    }
    lanes.close();
    lanes.wait().await;
}

/// What became of an attempt: the brokers, or the dead letters, have the record; or why not, where Kafka is to blame.
type Attempt = Result<(), Option<Failure>>;

/// One lane's replay.
struct Lane {
    config: Config,
    topic: Arc<str>,
    signals: Arc<Signals>,
    spool: Spool,
    dead_letters: DeadLetters,
    /// What was read and is not settled, by number.
    held: BTreeMap<u64, (Arc<Entry>, usize)>,
    held_bytes: usize,
    /// The numbers of each key, the oldest first: only that one is ready or in flight.
    of_key: HashMap<String, VecDeque<u64>>,
    ready: BTreeSet<u64>,
    in_flight: FuturesUnordered<BoxFuture<'static, (u64, Attempt)>>,
    /// The first number that was not read.
    next: u64,
    is_at_end: bool,
    /// When to read from the beginning, because something in front of `next` could not be read.
    read_again_at: Option<Instant>,
    /// From the beginning until a first ack, and after each failure.
    backoff: Option<Backoff>,
}

/// The pause of a lane of which it is not known that its topic takes events.
struct Backoff {
    again_at: Instant,
    delay: Duration,
    since: Instant,
    failure: Option<Failure>,
    is_logged: bool,
}

impl Lane {
    fn new(config: Config, topic: Arc<str>, signals: Arc<Signals>, spool: Spool, dead_letters: DeadLetters) -> Self {
        Self {
            config,
            topic,
            signals,
            spool,
            dead_letters,
            held: BTreeMap::new(),
            held_bytes: 0,
            of_key: HashMap::new(),
            ready: BTreeSet::new(),
            in_flight: FuturesUnordered::new(),
            next: 0,
            is_at_end: false,
            read_again_at: None,
            backoff: Some(Backoff {
                again_at: Instant::now(),
                delay: config.retry_min,
                since: Instant::now(),
                failure: None,
                is_logged: false,
            }),
        }
    }

    /// Runs until the lane is direct again, or `stop`.
    async fn run(mut self, stop: CancellationToken) {
        let began = Instant::now();
        tracing::debug!(
            topic = &*self.topic,
            records = self.spool.lanes(|lanes| lanes.waiting(&self.topic)),
            "replaying from the spool"
        );
        loop {
            if self.held.is_empty() && self.spool.lanes(|lanes| lanes.leave(&self.topic)) {
                tracing::debug!(topic = &*self.topic, after = ?began.elapsed(), "the topic's lane is empty: its events go to Kafka directly");
                return;
            }
            if stop.is_cancelled() {
                while self.in_flight.next().await.is_some() {}
                return;
            }
            let is_paused = self.spool.lanes(|lanes| lanes.is_paused(&self.topic));
            if is_paused && self.in_flight.is_empty() {
                self.forget(); // what is dropped meanwhile is not read again
                tokio::select! {
                    () = self.signals.more.notified() => {}
                    () = stop.cancelled() => {}
                }
                continue;
            }
            self.read().await;
            self.plan_to_read_again();
            if !is_paused {
                self.send();
            }
            self.close_the_gate();
            let again_at = self.backoff.as_ref().map(|backoff| backoff.again_at);
            let is_waiting = again_at.is_some_and(|at| at > Instant::now()) && self.in_flight.is_empty();
            if self.in_flight.is_empty() && !is_waiting && !self.is_at_end {
                continue; // nothing of the page could be sent
            }
            tokio::select! {
                Some((number, attempt)) = self.in_flight.next(), if !self.in_flight.is_empty() => self.settled(number, attempt),
                () = self.signals.more.notified() => self.is_at_end = false,
                () = stop.cancelled() => {}
                () = tokio::time::sleep_until(again_at.unwrap_or_else(Instant::now)), if is_waiting => {}
                () = tokio::time::sleep_until(self.read_again_at.unwrap_or_else(Instant::now)), if self.read_again_at.is_some() => self.read_again(),
            }
        }
    }

    /// How many records may be held: one while the lane backs off.
    const fn records_max(&self) -> usize {
        if self.backoff.is_some() { 1 } else { self.config.records_max }
    }

    /// Something of the lane is not read though its end is reached: it could not be read, or not be moved, or can be read only now.
    fn plan_to_read_again(&mut self) {
        let is_all_read = self.spool.lanes(|lanes| lanes.waiting(&self.topic)) <= self.held.len() as u64;
        let again_at = self.read_again_at.unwrap_or_else(|| Instant::now() + self.config.retry_max);
        self.read_again_at = (self.is_at_end && !is_all_read).then_some(again_at);
    }

    fn read_again(&mut self) {
        (self.next, self.is_at_end, self.read_again_at) = (0, false, None);
    }

    async fn read(&mut self) {
        let is_time = self.backoff.as_ref().is_none_or(|backoff| backoff.again_at <= Instant::now());
        let free = self.records_max().saturating_sub(self.held.len());
        // A page at a time, not a record at a time.
        let is_low = self.held.len() <= self.records_max() / 2 && self.held_bytes <= self.config.bytes_max / 2;
        if self.is_at_end || !is_time || !is_low || free == 0 {
            return;
        }
        let bytes = self.config.bytes_max - self.held_bytes;
        let (spool, topic, from) = (self.spool.clone(), Arc::clone(&self.topic), self.next);
        let page = tokio::task::spawn_blocking(move || spool.page(&topic, from, free, bytes)).await;
        let Ok(page) = page else { return self.back_off(None) }; // the runtime is going away
        self.is_at_end = page.is_empty();
        let mut unread = None;
        for Item { number, entry, bytes } in page {
            self.next = number + 1;
            match entry {
                Ok(_) if self.held.contains_key(&number) => {}
                Ok(entry) => self.hold(number, entry, bytes),
                Err(Broken::Damaged(raw)) => self.set_aside(number, raw).await,
                Err(Broken::Unread(error)) => unread = Some(error),
            }
        }
        if let Some(error) = unread {
            tracing::warn!(topic = &*self.topic, %error, "some of the spool cannot be read at the moment: it is tried again, and the rest goes on");
        }
    }

    fn hold(&mut self, number: u64, entry: Entry, bytes: usize) {
        let of_key = self.of_key.entry(entry.record.key.clone()).or_default();
        of_key.push_back(number);
        if of_key.len() == 1 {
            self.ready.insert(number);
        }
        self.held.insert(number, (Arc::new(entry), bytes));
        self.held_bytes += bytes;
    }

    /// A damaged entry becomes a dead letter on the disk. Where the disk does not take it, that is tried again later.
    async fn set_aside(&mut self, number: u64, value: Vec<u8>) {
        let record = Record { topic: Arc::clone(&self.topic), key: String::new(), headers: Vec::new(), value };
        let error = "its checksum does not fit: the disk has changed it".to_owned();
        let since_ms = jiff::Timestamp::now().as_millisecond();
        let dead_letter = Some(DeadLetter { reason: CORRUPTED.to_owned(), error, since_ms });
        let entry = Entry { dead_letter, ..Entry::new(record) };
        let stored = self.spool.store_dead_letter(entry, Some((Arc::clone(&self.topic), number))).await;
        if stored == Ok(Ok(())) {
            let topic = &*self.topic;
            tracing::error!(topic, number, "an entry of the spool is damaged: its bytes are kept as a dead letter");
            self.dead_letters.metrics.dead_letters.with_label_values(&["disk", CORRUPTED]).inc();
        }
    }

    /// Sends what is ready; while the lane backs off one record, when it is time for it.
    fn send(&mut self) {
        if self.backoff.as_ref().is_some_and(|backoff| backoff.again_at > Instant::now() || !self.in_flight.is_empty())
        {
            return;
        }
        let mut most = if self.backoff.is_some() { 1 } else { usize::MAX };
        while most > 0
            && let Some(number) = self.ready.pop_first()
        {
            let Some((entry, _)) = self.held.get(&number) else { continue };
            if self.spool.is_acked(&self.topic, number) {
                self.release(number); // an operator has dropped it
                continue;
            }
            most -= 1;
            let (entry, topic, dead_letters) = (Arc::clone(entry), Arc::clone(&self.topic), self.dead_letters.clone());
            let spool = self.spool.clone();
            self.in_flight
                .push(Box::pin(async move { (number, attempt(&spool, &dead_letters, topic, number, entry).await) }));
        }
    }

    fn settled(&mut self, number: u64, attempt: Attempt) {
        match attempt {
            Ok(()) => {
                if let Some(backoff) = self.backoff.take() {
                    if backoff.is_logged {
                        tracing::info!(topic = &*self.topic, after = ?backoff.since.elapsed(), "the topic takes events again");
                    }
                    self.is_at_end = false;
                }
                self.release(number);
            }
            Err(failure) => {
                self.ready.insert(number);
                self.back_off(failure);
            }
        }
    }

    /// The record is done with; the next of its key may go.
    fn release(&mut self, number: u64) {
        let Some((entry, bytes)) = self.held.remove(&number) else { return };
        self.held_bytes -= bytes;
        let Some(of_key) = self.of_key.get_mut(&entry.record.key) else { return };
        of_key.pop_front();
        match of_key.front() {
            Some(&next) => drop(self.ready.insert(next)),
            None => drop(self.of_key.remove(&entry.record.key)),
        }
    }

    fn back_off(&mut self, failure: Option<Failure>) {
        let now = Instant::now();
        let former = self.backoff.take();
        // Of those that were in flight together, the last one counts.
        let delay = match &former {
            Some(former) if self.in_flight.is_empty() => (former.delay * 2).min(self.config.retry_max),
            Some(former) => former.delay,
            None => self.config.retry_min,
        };
        let known = former.as_ref().and_then(|former| former.failure).map(|failure| failure.code);
        let news = failure.filter(|failure| known != Some(failure.code));
        let is_logged = news.is_some_and(|failure| self.log(failure));
        let (since, was_logged) = former.map_or((now, false), |former| (former.since, former.is_logged));
        self.backoff =
            Some(Backoff { again_at: now + delay, delay, since, failure, is_logged: is_logged || was_logged });
        self.spool.lanes(|lanes| lanes.keep_spooling(&self.topic));
        if self.in_flight.is_empty() {
            self.forget();
        }
    }

    /// Logs why a topic takes no events, where that is its own matter: what all have in common is logged once, by others.
    fn log(&self, failure: Failure) -> bool {
        let (topic, code) = (&*self.topic, failure.code);
        if matches!(failure.remedy, Remedy::Operator | Remedy::Clocks) {
            tracing::error!(topic, ?code, "the topic takes no events until someone fixes it: they wait in the spool");
            return true;
        }
        let is_own = !self.dead_letters.publisher.is_away();
        if is_own {
            tracing::warn!(topic, ?code, "the topic takes no events: they wait in the spool");
        }
        is_own
    }

    /// Gives the memory back: what is not settled is read again from the beginning.
    fn forget(&mut self) {
        self.held.clear();
        self.of_key.clear();
        self.ready.clear();
        (self.held_bytes, self.next, self.is_at_end) = (0, 0, false);
    }

    /// When all is read and in flight, and the brokers take it, new events wait for the last ack.
    fn close_the_gate(&self) {
        if self.backoff.is_none() && self.is_at_end && self.held.len() as u64 <= CLOSE_AT {
            self.spool.lanes(|lanes| lanes.close(&self.topic));
        }
    }
}

/// Publishes a record; one that is refused is resolved.
async fn attempt(
    spool: &Spool,
    dead_letters: &DeadLetters,
    topic: Arc<str>,
    number: u64,
    entry: Arc<Entry>,
) -> Attempt {
    match dead_letters.publisher.published(entry.record.clone()).await {
        Ok(()) => {
            spool.acked(&topic, number);
            dead_letters.metrics.replayed.inc();
            Ok(())
        }
        Err(failure) if failure.is_refused() => {
            match dead_letters.resolve(Arc::unwrap_or_clone(entry), Some((topic, number))).await {
                Ok(_) => Ok(()),
                Err(Unresolved::Kafka(failure)) => Err(Some(failure)),
                Err(Unresolved::Spool(_)) => Err(None), // the spool has logged why
            }
        }
        Err(failure) => Err(Some(failure)),
    }
}

#[cfg(test)]
mod tests;
