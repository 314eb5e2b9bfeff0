//! Spool → Kafka until it is empty, a task a lane. While a topic takes events, its records go in a [`Run`]: many at once, and none after
//! the first that fails. Then, as in the beginning, single records ask whether the topic takes events, and the run begins again with the
//! first record that was not acked. So whatever fails, no record overtakes another of its key.
//!
//! When nothing is left but what is in flight, the lane's gate is closed for a moment: new events wait until the last ack, and then go
//! direct again.

use std::collections::{BTreeMap, HashMap, VecDeque, hash_map};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rdkafka::error::RDKafkaErrorCode;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dead_letter::{DeadLetters, Resolved, Unresolved};
use crate::event::Record;
use crate::publish::{Failure, Remedy, Run};
use crate::shutdown::Shutdown;
use crate::spool::{Broken, CORRUPTED, DeadLetter, Entry, Item, Signals, Spool};
use crate::telemetry::{Throttle, rounded};

/// The part of `[spool]` that is about replay.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Records of a lane in memory at once.
    pub records_max: usize,
    /// Their bytes, of all lanes together.
    pub bytes_max: usize,
    /// Records of all lanes that are sent in a second; 0: as many as Kafka accepts.
    pub rate: u32,
    /// Between two records that ask whether a topic takes events; it doubles from the first to the second.
    pub retry_min: Duration,
    pub retry_max: Duration,
}

/// What is read at once to find a record that can be read, and may be sent.
const ASKING_RECORDS: usize = 16;

/// So few records must be left before a lane's gate is closed: they are acked within moments.
const CLOSE_AT: u64 = 512;

/// What the lanes share.
struct Common {
    config: Config,
    spool: Spool,
    dead_letters: DeadLetters,
    rate: Rate,
    lanes: TaskTracker,
}

/// Replays every lane that has something, until `stop`; what is in flight then is waited for. A lane's task that panics ends the
/// process: else its events would wait and never be published.
pub async fn run(config: Config, spool: Spool, dead_letters: DeadLetters, shutdown: Shutdown, stop: CancellationToken) {
    let (rate, lanes) = (Rate::new(config.rate), TaskTracker::new());
    let common = Arc::new(Common { config, spool, dead_letters, rate, lanes });
    while !stop.is_cancelled() {
        let idle = common.spool.lanes(|lanes| lanes.take_idle());
        for (topic, signals) in idle {
            let lane = Lane::new(Arc::clone(&common), topic, signals);
            let (vital, stop) = (shutdown.vital("replay"), stop.clone());
            common.lanes.spawn(async move {
                lane.run(stop).await;
                vital.done();
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = common.spool.work() => {}
        }
    }
    common.lanes.close();
    common.lanes.wait().await;
}

/// What became of an attempt; or why Kafka has not accepted it, where Kafka is to blame.
type Attempt = Result<Resolved, Option<Failure>>;

/// One lane's replay.
struct Lane {
    common: Arc<Common>,
    topic: Arc<str>,
    signals: Arc<Signals>,
    mode: Mode,
    /// What was read and not handed over yet, in order.
    ready: VecDeque<(u64, Entry)>,
    /// The keys and the bytes of what was read and is not settled, by number, and the sum of the bytes.
    held: BTreeMap<u64, (String, usize)>,
    held_bytes: usize,
    /// Keys that have something in flight.
    keys: HashMap<String, Key>,
    in_flight: FuturesUnordered<BoxFuture<'static, (u64, Attempt)>>,
    /// The first number that was not read.
    next: u64,
    is_at_end: bool,
    /// When to read from the beginning, because something in front of `next` could not be read.
    read_again_at: Option<Instant>,
    /// What is in front of this goes one by one: a batch was refused, and it is not known for which of its records.
    alone_until: u64,
    /// Records of the last run that were refused, as long as none of them is known to be the reason.
    refused: usize,
    at_once: AtOnce,
    trouble: Option<Trouble>,
    /// So seldom it is logged that something cannot be read.
    unread: Throttle,
}

/// How the lane's records go.
enum Mode {
    /// One at a time, not before `at`: it is not known whether the topic takes events.
    Asking { at: Instant, delay: Duration },
    /// Many. The run is ended when nothing has come of it for too long.
    Running { run: Arc<Run>, too_long_at: Instant },
    /// None until the rest of a failed run has its reports.
    Ending { ask_at: Instant },
}

/// A key's records in a run. The first goes alone: after it, the broker has the producer's sequence in that partition, and refuses what
/// comes behind something that it has refused. Without one it takes any.
#[derive(Default)]
struct Key {
    in_flight: usize,
    has_sequence: bool,
    /// What has to wait for the first one's ack.
    waiting: VecDeque<(u64, Entry)>,
}

/// Why the topic is unavailable.
struct Trouble {
    since: Instant,
    /// The codes that were logged: Kafka may give one, then another, for the same reason.
    logged: Vec<RDKafkaErrorCode>,
}

impl Lane {
    fn new(common: Arc<Common>, topic: Arc<str>, signals: Arc<Signals>) -> Self {
        let mode = Mode::Asking { at: Instant::now(), delay: common.config.retry_min };
        let at_once = AtOnce::new(common.config.records_max);
        Self {
            common,
            topic,
            signals,
            mode,
            ready: VecDeque::new(),
            held: BTreeMap::new(),
            held_bytes: 0,
            keys: HashMap::new(),
            in_flight: FuturesUnordered::new(),
            next: 0,
            is_at_end: false,
            read_again_at: None,
            alone_until: 0,
            refused: 0,
            at_once,
            trouble: None,
            unread: Throttle::new(Duration::from_secs(10)),
        }
    }

    /// Runs until the lane is direct again, or `stop`.
    async fn run(mut self, stop: CancellationToken) {
        let began = Instant::now();
        tracing::debug!(topic = &*self.topic, records = self.waiting(), "replaying from the spool");
        loop {
            if self.held.is_empty() && self.common.spool.lanes(|lanes| lanes.leave(&self.topic)) {
                tracing::debug!(topic = &*self.topic, after = ?began.elapsed(), "the topic's lane is empty: its events go to Kafka directly");
                return;
            }
            if stop.is_cancelled() {
                while self.in_flight.next().await.is_some() {}
                return;
            }
            let is_paused = self.common.spool.lanes(|lanes| lanes.is_paused(&self.topic));
            if is_paused && self.in_flight.is_empty() {
                self.ask_again(Instant::now(), self.common.config.retry_min); // so nothing is held that is dropped meanwhile
                tokio::select! {
                    () = self.signals.more.notified() => {}
                    () = stop.cancelled() => {}
                }
                continue;
            }
            if let Mode::Ending { ask_at } = self.mode
                && self.in_flight.is_empty()
            {
                self.ask_again(ask_at, self.common.config.retry_min);
            }
            self.read().await;
            self.plan_to_read_again();
            let wake_at = if is_paused { self.too_long_at() } else { self.send() };
            self.close_the_gate();
            if self.in_flight.is_empty() && wake_at.is_none() && !self.is_at_end {
                continue; // nothing of the page could be sent
            }
            tokio::select! {
                Some((number, attempt)) = self.in_flight.next(), if !self.in_flight.is_empty() => self.settled(number, attempt),
                () = self.signals.more.notified() => self.is_at_end = false,
                () = stop.cancelled() => {}
                () = tokio::time::sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => self.end_what_takes_too_long(),
                () = tokio::time::sleep_until(self.read_again_at.unwrap_or_else(Instant::now)), if self.read_again_at.is_some() => self.read_again(),
            }
        }
    }

    fn waiting(&self) -> u64 {
        self.common.spool.lanes(|lanes| lanes.waiting(&self.topic))
    }

    /// Something of the lane is not read though its end is reached: it could not be read, or not be moved, or can be read only now.
    fn plan_to_read_again(&mut self) {
        let is_all_read = self.waiting() <= self.held.len() as u64;
        let again_at = self.read_again_at.unwrap_or_else(|| Instant::now() + self.common.config.retry_max * 5);
        self.read_again_at = (self.is_at_end && !is_all_read).then_some(again_at);
    }

    fn read_again(&mut self) {
        (self.next, self.is_at_end, self.read_again_at) = (0, false, None);
    }

    /// How many records may be held, and their bytes; none where it is not the time to read.
    fn limits(&self) -> (usize, usize) {
        let Config { records_max, bytes_max, .. } = self.common.config;
        let bytes_max = bytes_max / self.common.lanes.len().max(1);
        match self.mode {
            Mode::Asking { at, .. } if at <= Instant::now() => (records_max.min(ASKING_RECORDS), bytes_max),
            Mode::Running { .. } => (self.at_once.records, bytes_max),
            _ => (0, 0),
        }
    }

    async fn read(&mut self) {
        let (records_max, bytes_max) = self.limits();
        let records = records_max.saturating_sub(self.held.len());
        // A page at a time, not a record at a time.
        let is_low = self.held.len() <= records_max / 2 && self.held_bytes <= bytes_max / 2;
        if self.is_at_end || !is_low || records == 0 {
            return;
        }
        let bytes = bytes_max - self.held_bytes;
        let (spool, topic, from) = (self.common.spool.clone(), Arc::clone(&self.topic), self.next);
        let page = tokio::task::spawn_blocking(move || spool.page(&topic, from, records, bytes.max(1))).await;
        let Ok(page) = page else { return }; // the runtime is going away
        self.is_at_end = page.is_empty();
        let mut unread = None;
        for Item { number, entry, bytes } in page {
            self.next = number + 1;
            match entry {
                Ok(_) if self.held.contains_key(&number) => {}
                Ok(entry) => {
                    self.held.insert(number, (entry.record.key.clone(), bytes));
                    self.ready.push_back((number, entry));
                    self.held_bytes += bytes;
                }
                Err(Broken::Damaged(raw)) => self.set_aside(number, raw).await,
                Err(Broken::Unread(error)) => unread = Some(error),
            }
        }
        if let Some(error) = unread
            && self.unread.pass().is_some()
        {
            tracing::warn!(topic = &*self.topic, %error, "part of the spool cannot be read at the moment: it is tried again, and the rest continues");
        }
    }

    /// A damaged entry becomes a dead letter on the disk. Where the disk does not take it, that is tried again later.
    async fn set_aside(&mut self, number: u64, value: Vec<u8>) {
        let record = Record { topic: Arc::clone(&self.topic), key: String::new(), headers: Vec::new(), value };
        let error = "its checksum does not match: the disk has altered it".to_owned();
        let since_ms = jiff::Timestamp::now().as_millisecond();
        let dead_letter = Some(DeadLetter { reason: CORRUPTED.to_owned(), error, since_ms });
        let entry = Entry { dead_letter, ..Entry::new(record) };
        let stored = self.common.spool.store_dead_letter(entry, Some((Arc::clone(&self.topic), number))).await;
        if stored == Ok(Ok(())) {
            let topic = &*self.topic;
            tracing::error!(topic, number, "an entry of the spool is damaged: its bytes are kept as a dead letter");
            self.common.dead_letters.metrics.dead_letters.with_label_values(&["disk", CORRUPTED]).inc();
        }
    }

    /// Hands over what may go. When to wake, where nothing else wakes the lane.
    fn send(&mut self) -> Option<Instant> {
        match &self.mode {
            Mode::Asking { at, .. } if *at > Instant::now() => return Some(*at),
            Mode::Asking { .. } if !self.in_flight.is_empty() => return None,
            Mode::Ending { .. } => return None,
            _ => {}
        }
        if let Mode::Running { too_long_at, .. } = &mut self.mode
            && self.in_flight.is_empty()
        {
            *too_long_at = self.common.too_long_at(); // it was idle
        }
        let mut wake_at = None;
        while !self.ready.is_empty() {
            if let Err(at) = self.common.rate.take() {
                wake_at = Some(at);
                break;
            }
            let Some((number, entry)) = self.ready.pop_front() else { break };
            if self.common.spool.is_acked(&self.topic, number) {
                self.settle(number); // an operator has dropped it
                continue;
            }
            let (common, topic) = (Arc::clone(&self.common), Arc::clone(&self.topic));
            let Mode::Running { run, .. } = &self.mode else {
                self.in_flight.push(Box::pin(async move { (number, common.ask(topic, number, entry).await) }));
                return None;
            };
            let key = self.keys.entry(entry.record.key.clone()).or_default();
            if key.in_flight > 0 && !key.has_sequence {
                key.waiting.push_back((number, entry));
                continue;
            }
            key.in_flight += 1;
            let report = common.dead_letters.publisher.publish_in(run, entry.record);
            self.in_flight.push(Box::pin(async move { (number, common.acked(&topic, number, report.await)) }));
        }
        wake_at.or_else(|| self.too_long_at())
    }

    /// When the run is to be ended, if nothing comes of it.
    fn too_long_at(&self) -> Option<Instant> {
        match &self.mode {
            Mode::Running { too_long_at, .. } if !self.in_flight.is_empty() => Some(*too_long_at),
            _ => None,
        }
    }

    /// Holds a record no longer; its key.
    fn settle(&mut self, number: u64) -> String {
        let (key, bytes) = self.held.remove(&number).unwrap_or_default();
        self.held_bytes -= bytes;
        key
    }

    fn settled(&mut self, number: u64, attempt: Attempt) {
        let key = self.settle(number);
        match attempt {
            Ok(resolved) => {
                self.release(key);
                self.taken(number, resolved);
            }
            Err(failure) => self.failed(number, failure),
        }
    }

    /// Of this key, the others may go.
    fn release(&mut self, name: String) {
        let hash_map::Entry::Occupied(mut of) = self.keys.entry(name) else { return };
        let key = of.get_mut();
        (key.in_flight, key.has_sequence) = (key.in_flight - 1, true);
        let waiting = std::mem::take(&mut key.waiting);
        if key.in_flight == 0 && waiting.is_empty() {
            of.remove();
        }
        waiting.into_iter().rev().for_each(|item| self.ready.push_front(item));
    }

    fn taken(&mut self, number: u64, resolved: Resolved) {
        match &mut self.mode {
            Mode::Ending { .. } => return,
            Mode::Running { too_long_at, .. } => *too_long_at = self.common.too_long_at(),
            Mode::Asking { at, .. } => {
                *at = Instant::now();
                self.common.spool.lanes(|lanes| lanes.set_troubled(&self.topic, false));
            }
        }
        if let Some(trouble) = self.trouble.take().filter(|trouble| !trouble.logged.is_empty()) {
            tracing::info!(topic = &*self.topic, after = ?rounded(trouble.since.elapsed()), "the topic is available again");
        }
        if resolved == Resolved::DeadLetter {
            self.refused = 0; // its batch was refused for this one
            return;
        }
        if matches!(self.mode, Mode::Running { .. }) {
            return self.at_once.acked();
        }
        if number < self.alone_until {
            return;
        }
        self.at_once.refused(std::mem::take(&mut self.refused));
        match self.common.dead_letters.publisher.run() {
            Ok(run) => self.mode = Mode::Running { run, too_long_at: self.common.too_long_at() },
            Err(error) => tracing::warn!(topic = &*self.topic, %error, "records of the spool are published one by one"),
        }
    }

    fn failed(&mut self, number: u64, failure: Option<Failure>) {
        let now = Instant::now();
        let Config { retry_min, retry_max, .. } = self.common.config;
        if let Some(failure) = failure.filter(|failure| !failure.is_given_up()) {
            // A batch that is refused says nothing of its topic: its records are sent alone.
            if failure.is_refused() && !matches!(self.mode, Mode::Asking { .. }) {
                self.alone_until = self.alone_until.max(number + 1);
                self.refused += 1;
            } else {
                self.note(failure);
            }
        }
        match &self.mode {
            Mode::Asking { delay, .. } => {
                let is_troubled = !self.common.dead_letters.publisher.is_away();
                self.common.spool.lanes(|lanes| lanes.set_troubled(&self.topic, is_troubled));
                self.ask_again(now + *delay, (*delay * 2).min(retry_max));
            }
            // What another lane has ended goes on at once.
            Mode::Running { run, .. } => {
                run.end();
                let is_given_up = failure.is_none_or(|failure| failure.is_given_up());
                self.mode = Mode::Ending { ask_at: if is_given_up { now } else { now + retry_min } };
            }
            Mode::Ending { .. } => {}
        }
        self.common.spool.lanes(|lanes| lanes.keep_spooling(&self.topic));
    }

    /// Gives the memory back: what is not settled is read again from the beginning.
    fn ask_again(&mut self, at: Instant, delay: Duration) {
        self.mode = Mode::Asking { at, delay };
        self.held.clear();
        self.keys.clear();
        self.ready.clear();
        (self.held_bytes, self.next, self.is_at_end) = (0, 0, false);
    }

    fn end_what_takes_too_long(&mut self) {
        if let Mode::Running { run, too_long_at } = &self.mode
            && *too_long_at <= Instant::now()
            && !self.in_flight.is_empty()
        {
            run.end();
            self.mode = Mode::Ending { ask_at: Instant::now() };
            self.common.spool.lanes(|lanes| lanes.keep_spooling(&self.topic));
        }
    }

    /// Logs why a topic is unavailable, once, where that is its own matter: what all have in common is logged once, by others.
    fn note(&mut self, failure: Failure) {
        use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicId, UnknownTopicOrPartition};
        // What librdkafka does not know any more, and what the broker has never known, is one.
        let is_missing =
            matches!(failure.code, UnknownTopic | UnknownTopicId | UnknownTopicOrPartition | UnknownPartition);
        let code = if is_missing { UnknownTopicOrPartition } else { failure.code };
        let former = self.trouble.take();
        let (since, mut logged) = former.map_or((Instant::now(), Vec::new()), |former| (former.since, former.logged));
        if !logged.contains(&code) && self.log(Failure { code, ..failure }, is_missing) {
            logged.push(code);
        }
        self.trouble = Some(Trouble { since, logged });
    }

    fn log(&self, failure: Failure, is_missing: bool) -> bool {
        let (topic, code) = (&*self.topic, failure.code);
        // The watch creates it, or says what to do.
        if !is_missing && matches!(failure.remedy, Remedy::Operator | Remedy::Clocks) {
            tracing::error!(
                topic,
                ?code,
                "the topic is unavailable until someone fixes it: its events wait in the spool"
            );
            return true;
        }
        let publisher = &self.common.dead_letters.publisher;
        let is_own = is_missing || (!publisher.is_away() && publisher.is_failing(topic));
        if is_own {
            tracing::warn!(topic, ?code, "the topic is unavailable: its events wait in the spool");
        }
        is_own
    }

    /// When all is read and in flight, and the brokers take it, new events wait for the last ack.
    fn close_the_gate(&self) {
        let is_running = matches!(self.mode, Mode::Running { .. });
        let held = self.held.len() as u64;
        if is_running && self.is_at_end && self.ready.is_empty() && held <= CLOSE_AT && self.waiting() <= held {
            self.common.spool.lanes(|lanes| lanes.close(&self.topic));
        }
    }
}

impl Common {
    /// When a run has made no progress for longer than a single record may take.
    fn too_long_at(&self) -> Instant {
        Instant::now() + self.dead_letters.publisher.report_deadline_max()
    }

    fn acked(&self, topic: &Arc<str>, number: u64, report: Result<(), Failure>) -> Attempt {
        report.map_err(Some)?;
        self.spool.acked(topic, number);
        self.dead_letters.count_replayed(topic);
        Ok(Resolved::Published)
    }

    /// Publishes a single record; one that is refused is resolved.
    async fn ask(&self, topic: Arc<str>, number: u64, entry: Entry) -> Attempt {
        match self.dead_letters.publisher.published(entry.record.clone()).await {
            Err(failure) if failure.is_refused() => {
                let resolved = self.dead_letters.resolve(entry, Some((topic, number))).await;
                resolved.map_err(|unresolved| match unresolved {
                    Unresolved::Kafka(failure) => Some(failure),
                    Unresolved::Spool(_) => None, // the spool has logged why
                })
            }
            report => self.acked(&topic, number, report),
        }
    }
}

/// Records of a run at once: as many as configured, and fewer after a batch that was too large for the topic, while each of its records
/// was not. After a thousand times as many acks it is twice as many again: the limit may be another one, or was that of one batch.
struct AtOnce {
    records: usize,
    most: usize,
    acked: usize,
}

impl AtOnce {
    const fn new(most: usize) -> Self {
        Self { records: most, most, acked: 0 }
    }

    /// A batch of at least so many records was refused, and none of them is to blame.
    fn refused(&mut self, records: usize) {
        if records > 0 {
            (self.records, self.acked) = ((records / 2).clamp(1, self.records), 0);
        }
    }

    fn acked(&mut self) {
        self.acked += 1;
        if self.acked >= self.records * 1000 {
            (self.records, self.acked) = ((self.records * 2).min(self.most), 0);
        }
    }
}

/// Records a second, with a tenth of a second's records at once at most.
struct Rate {
    /// Between two records; zero: there is no limit.
    interval: Duration,
    /// When the next record may go.
    next: Mutex<Instant>,
}

impl Rate {
    const BURST: Duration = Duration::from_millis(100);

    fn new(a_second: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(a_second).unwrap_or_default();
        Self { interval, next: Mutex::new(Instant::now()) }
    }

    /// Takes the right to send a record; or when there will be one.
    fn take(&self) -> Result<(), Instant> {
        if self.interval.is_zero() {
            return Ok(());
        }
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if *next > now {
            return Err(*next);
        }
        *next = (*next).max(now.checked_sub(Self::BURST).unwrap_or(now)) + self.interval;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
