//! Which way each topic's records go. Plain state; who holds the lock changes it. How much waits, the log counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::Notify;

use super::log::{Reader, Size};
use super::{DEAD_LETTERS, Ticket};
use crate::metrics::Metrics;
use crate::telemetry::{Throttle, rounded};

/// So often it is logged that events begin to go through the spool: each event that its topic rejects is in it for a moment.
const REPEAT: Duration = Duration::from_secs(10);

/// Whether the spool takes entries, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Accepting,
    /// No more until something is drained, or the disk has room.
    Full(String),
    /// The last write or fsync failed.
    Failed(String),
}

/// Which way a record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To Kafka.
    Direct,
    /// Behind those of its lane that wait in the spool.
    Spool,
}

/// How those who wait for a lane are woken.
#[derive(Default)]
pub struct Signals {
    /// There is more to replay.
    pub more: Notify,
    /// The lane is direct again, or goes on spooling.
    pub opened: Notify,
}

struct Lane {
    /// Nothing of it is in the log, or on its way there.
    is_direct: bool,
    /// Tickets that were given and not used up.
    tickets: u64,
    /// New records wait, because the rest is on its way to the brokers.
    is_closing: bool,
    /// Not before this, because the last wait was in vain.
    closable_at: Option<Instant>,
    is_replayed: bool,
    signals: Arc<Signals>,
    gauges: [IntGauge; 2],
}

/// An app, and whether it is the share of its topics that wait for more than their turn.
pub(super) type Share = (Arc<str>, bool);

/// All lanes.
pub struct Lanes {
    by_topic: HashMap<Arc<str>, Lane>,
    /// Topics whose replay an operator has paused.
    paused: BTreeSet<Arc<str>>,
    /// How many are not direct.
    busy: Arc<AtomicUsize>,
    /// Those of which something is in the log, or whose replay is paused. An event that the disk refuses makes its lane busy for a moment,
    /// and is never held.
    holding: BTreeSet<Arc<str>>,
    /// Since when one does, and whether that was logged.
    held: Option<(Instant, bool)>,
    spooling_logged: Throttle,
    /// Whether the log was open once. Until then it is not known which lanes have something.
    is_known: bool,
    reader: Option<Reader>,
    health: Health,
    /// How long entries are refused before their lanes go direct.
    failover_after: Duration,
    /// Since when entries are refused, or would be. Only a commit ends that: a disk may let a segment begin, and fail each write to it.
    refusing_since: Option<Instant>,
    accepting_since: Instant,
    /// Since when the writer is at work.
    busy_since: Option<Instant>,
    was_failing_over: bool,
    /// Topics that take nothing while others do, and whether an event was refused for the lane's share.
    troubled: BTreeMap<Arc<str>, bool>,
    /// The topics that only one of several apps has, each with the app.
    apps: HashMap<Arc<str>, Arc<str>>,
    /// Topics that took nothing while others did, and have taken nothing since, be it because all of Kafka went away.
    stuck: BTreeSet<Arc<str>>,
    /// Those of which an event was refused.
    refused_shares: BTreeSet<Share>,
    are_dead_letters_full: bool,
    metrics: Arc<Metrics>,
    news: Vec<News>,
    /// Since the spool was empty: how many events have left it, and since when they do.
    events_out: u64,
    out_since: Option<Instant>,
}

/// A change that is to be logged. That is done after the lock has been released.
pub(super) enum News {
    /// The first topic of an outage.
    Spooling(Arc<str>),
    /// How many events have left it since it was empty before, and since when they did.
    Empty(u64, Option<Instant>),
    Health {
        now: Health,
        was_full: bool,
    },
    Failover(bool),
    /// The first event that was refused for its lane's share of the budget.
    Share(Arc<str>),
    /// The same, for an app's.
    AppShare(Arc<str>),
    DeadLettersFull,
}

impl News {
    pub(super) fn log(&self) {
        match self {
            // The reason is logged where it is found. Other topics may follow.
            Self::Spooling(topic) => tracing::info!(first_topic = &**topic, "events go through the spool"),
            Self::Empty(events, Some(since)) => {
                let within = rounded(since.elapsed());
                tracing::info!(events, ?within, "the spool is empty again: new events go to Kafka directly");
            }
            Self::Empty(_, None) => tracing::info!("the spool is empty: events go to Kafka directly"),
            Self::Health { now: Health::Failed(why), .. } => {
                tracing::error!(why, "the spool has failed: it accepts nothing until its disk can be written");
            }
            Self::Health { now: Health::Full(why), was_full: true } => tracing::debug!(why, "the spool is still full"),
            Self::Health { now: Health::Full(why), .. } => {
                tracing::error!(why, "the spool is full: events that Kafka does not accept are answered 503");
            }
            Self::Health { now: Health::Accepting, .. } => tracing::info!("the spool accepts events"),
            Self::Failover(true) => tracing::error!(
                "the spool has accepted nothing for spool.failover_after: new events go to Kafka directly and may overtake those that wait in the spool, or are answered 503 while Kafka is unavailable"
            ),
            Self::Share(topic) => tracing::error!(
                topic = &**topic,
                "the topic is unavailable, and its events have used up their share of the spool: more are answered 503, so that other topics have room"
            ),
            Self::AppShare(app) => tracing::error!(
                app = &**app,
                "the app's waiting events have used up their share of the spool: more are answered 503, so that other apps have room"
            ),
            Self::DeadLettersFull => tracing::error!(
                "the dead letters on disk use up spool.dead_letters_bytes_max: events that their topic rejects stay in the spool, or are answered 503"
            ),
            Self::Failover(false) => tracing::info!("the failover has ended: new events wait for those in the spool"),
        }
    }
}

impl Lanes {
    pub(super) fn new(failover_after: Duration, metrics: Arc<Metrics>, busy: Arc<AtomicUsize>) -> Self {
        busy.store(1, Ordering::SeqCst); // every lane is, until it is known which are
        Self {
            by_topic: HashMap::new(),
            paused: BTreeSet::new(),
            busy,
            holding: BTreeSet::new(),
            held: None,
            spooling_logged: Throttle::new(REPEAT),
            is_known: false,
            reader: None,
            health: Health::Failed("it is not open yet".to_owned()),
            failover_after,
            refusing_since: None,
            accepting_since: Instant::now(),
            busy_since: None,
            was_failing_over: false,
            troubled: BTreeMap::new(),
            apps: HashMap::new(),
            stuck: BTreeSet::new(),
            refused_shares: BTreeSet::new(),
            are_dead_letters_full: false,
            metrics,
            news: Vec::new(),
            events_out: 0,
            out_since: None,
        }
    }

    /// What is to be logged, failover included: that begins by itself.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        // What hangs on its way to the disk is overtaken, too.
        let is_hung = self.is_hung() && self.busy.load(Ordering::SeqCst) > 0;
        let is_failing_over = self.is_failing_over() && (!self.is_known || !self.holding.is_empty() || is_hung);
        if std::mem::replace(&mut self.was_failing_over, is_failing_over) != is_failing_over {
            self.metrics.spool_failover.set(is_failing_over.into());
            self.news.push(News::Failover(is_failing_over));
        }
        self.metrics.spool_accepting.set(self.is_accepting().into());
        std::mem::take(&mut self.news)
    }

    pub(super) const fn reader(&self) -> Option<&Reader> {
        self.reader.as_ref()
    }

    fn size(&self, lane: &str) -> Size {
        self.reader.as_ref().map(|reader| reader.size(lane)).unwrap_or_default()
    }

    fn lane(&mut self, topic: &Arc<str>) -> &mut Lane {
        let new = || Lane {
            is_direct: true,
            tickets: 0,
            is_closing: false,
            closable_at: None,
            is_replayed: false,
            signals: Arc::default(),
            gauges: self.metrics.spool_lane(topic),
        };
        self.by_topic.entry(Arc::clone(topic)).or_insert_with(new)
    }

    /// Does what follows from a change of a lane.
    fn changed(&mut self, topic: &Arc<str>) {
        let Size { records, bytes } = self.size(topic);
        let [records, bytes] = [records, bytes].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
        if **topic == *DEAD_LETTERS {
            self.metrics.dead_letters_on_disk.set(records);
            self.metrics.dead_letters_on_disk_bytes.set(bytes);
            return;
        }
        let is_paused = self.is_paused(topic);
        let lane = self.lane(topic);
        lane.gauges[0].set(records);
        lane.gauges[1].set(bytes);
        let is_direct = records == 0 && lane.tickets == 0 && !is_paused;
        if std::mem::replace(&mut lane.is_direct, is_direct) != is_direct {
            if is_direct {
                lane.is_closing = false;
                lane.signals.opened.notify_waiters();
                lane.signals.more.notify_one(); // its replay may end
                self.busy.fetch_sub(1, Ordering::SeqCst);
            } else {
                self.busy.fetch_add(1, Ordering::SeqCst);
            }
        }
        if records > 0 || is_paused {
            self.begin_to_hold(topic);
        } else if self.holding.remove(topic) && self.holding.is_empty() {
            self.end_to_hold();
        }
    }

    fn begin_to_hold(&mut self, topic: &Arc<str>) {
        if self.holding.insert(Arc::clone(topic)) && self.held.is_none() {
            let is_logged = self.spooling_logged.pass().is_some();
            self.held = Some((Instant::now(), is_logged));
            if is_logged {
                self.news.push(News::Spooling(Arc::clone(topic)));
            }
        }
    }

    /// What began without a line in the log, soon after another time, ends without one, unless it took long.
    fn end_to_hold(&mut self) {
        let (events, since) = (std::mem::take(&mut self.events_out), self.out_since.take());
        if self.held.take().is_some_and(|(began, is_logged)| is_logged || began.elapsed() >= REPEAT) {
            self.news.push(News::Empty(events, since));
        }
    }

    /// The way of the next record, or what to wait for. What goes through a spool that is not open yet is stored behind what is in it.
    pub(super) fn look(&self, topic: &Arc<str>) -> Result<Way, Arc<Signals>> {
        match self.by_topic.get(topic) {
            _ if !self.is_known => Ok(if self.is_failing_over() { Way::Direct } else { Way::Spool }),
            Some(lane) if lane.is_direct || self.is_failing_over() => Ok(Way::Direct),
            Some(lane) if lane.is_closing => Err(Arc::clone(&lane.signals)),
            Some(_) => Ok(Way::Spool),
            None => Ok(Way::Direct),
        }
    }

    /// Whether entries were refused, or the disk has hung, for so long that losing events is the greater danger than their order.
    pub fn is_failing_over(&self) -> bool {
        let refusing_since = self.refusing_since.filter(|_| self.health != Health::Accepting);
        refusing_since.is_some_and(|since| since.elapsed() >= self.failover_after) || self.is_hung()
    }

    fn is_hung(&self) -> bool {
        self.busy_since.is_some_and(|since| since.elapsed() >= self.failover_after)
    }

    pub(super) fn is_closing(&self, topic: &Arc<str>) -> bool {
        self.by_topic.get(topic).is_some_and(|lane| lane.is_closing)
    }

    pub(super) fn give(&mut self, topic: &Arc<str>) {
        self.lane(topic).tickets += 1;
        self.changed(topic);
    }

    /// A ticket is used up, or given back; what is in the log of its lane can be replayed.
    pub(super) fn take_back(&mut self, topic: &Arc<str>) {
        let lane = self.lane(topic);
        lane.tickets = lane.tickets.saturating_sub(1);
        self.appended(topic);
    }

    /// There is more to replay.
    pub(super) fn appended(&mut self, topic: &Arc<str>) {
        self.changed(topic);
        if let Some(lane) = self.by_topic.get(topic).filter(|lane| !lane.is_direct) {
            lane.signals.more.notify_one();
        }
    }

    /// `false`: it was acked before, or is not there.
    pub(super) fn ack(&mut self, topic: &Arc<str>, number: u64) -> bool {
        let is_new = self.reader.as_ref().is_some_and(|reader| reader.ack(topic, number));
        if is_new {
            self.stuck.remove(topic);
            if **topic != *DEAD_LETTERS {
                self.events_out += 1;
                self.out_since.get_or_insert_with(Instant::now);
            }
            self.changed(topic);
        }
        is_new
    }

    /// A log was opened, or more of it can be read.
    pub(super) fn opened(&mut self, reader: Reader) {
        let lanes = reader.lanes().into_keys().chain([DEAD_LETTERS.to_owned()]).map(Arc::from);
        let lanes: Vec<_> = lanes.chain(self.by_topic.keys().cloned()).collect();
        self.reader = Some(reader);
        if !std::mem::replace(&mut self.is_known, true) {
            self.busy.fetch_sub(1, Ordering::SeqCst);
        }
        lanes.iter().for_each(|lane| self.appended(lane));
    }

    /// The log was closed, and nothing is read of it.
    pub(super) fn closed(&mut self) {
        self.reader = None;
        let lanes: Vec<_> = self.by_topic.keys().cloned().chain([Arc::from(DEAD_LETTERS)]).collect();
        lanes.iter().for_each(|lane| self.changed(lane));
    }

    /// The writer begins a turn, or has ended it. A disk may hang in each of its operations.
    pub(super) fn set_busy(&mut self, is_busy: bool) {
        self.busy_since = is_busy.then(Instant::now);
    }

    pub(super) const fn committed(&mut self) {
        self.refusing_since = None;
    }

    /// Whether entries are accepted, and soon.
    pub fn is_accepting(&self) -> bool {
        self.health == Health::Accepting && !self.is_stalled()
    }

    /// Whether the disk has taken suspiciously long over what is under way.
    pub fn is_stalled(&self) -> bool {
        const STALLED: Duration = Duration::from_secs(2);
        self.busy_since.is_some_and(|began| began.elapsed() > STALLED)
    }

    /// New records wait until the rest of the lane is acked; `false` when there is nothing to wait for.
    pub fn close(&mut self, topic: &Arc<str>) -> bool {
        let is_paused = self.is_paused(topic);
        let lane = self.lane(topic);
        let may_close = !is_paused && lane.closable_at.is_none_or(|at| at <= Instant::now());
        lane.is_closing = may_close && !lane.is_direct;
        lane.is_closing
    }

    /// A record has waited for `too_long`: for a while none is to wait.
    pub(super) fn waited_in_vain(&mut self, topic: &Arc<str>, too_long: Duration) {
        self.lane(topic).closable_at = Some(Instant::now() + too_long * 10);
        self.keep_spooling(topic);
    }

    /// New records go through the spool again, those that wait included.
    pub fn keep_spooling(&mut self, topic: &Arc<str>) {
        let lane = self.lane(topic);
        lane.is_closing = false;
        lane.signals.opened.notify_waiters();
    }

    /// A topic takes nothing, while others do; or that is over.
    pub fn set_troubled(&mut self, topic: &Arc<str>, is_troubled: bool) {
        if is_troubled {
            self.troubled.entry(Arc::clone(topic)).or_default();
            self.stuck.insert(Arc::clone(topic));
        } else {
            self.troubled.remove(topic);
        }
    }

    /// Whether a lane may grow while so many bytes of the budget are free. One in trouble leaves as much to the others as it has.
    pub(super) fn may_grow(&mut self, topic: &Arc<str>, free: u64) -> bool {
        let bytes = self.size(topic).bytes;
        let Some(was_refused) = self.troubled.get_mut(topic).filter(|_| bytes >= free) else { return true };
        if !std::mem::replace(was_refused, true) {
            self.news.push(News::Share(Arc::clone(topic)));
        }
        false
    }

    /// Sets which topics only one of several apps has, and that app. What waits for them is the app's.
    pub fn set_apps(&mut self, apps: HashMap<Arc<str>, Arc<str>>) {
        self.apps = apps;
    }

    /// Whose share of the budget a topic's events use, where they are one app's alone. What Kafka does not accept, or an operator has paused,
    /// has a share of its own, so that it takes no room from the app's other topics.
    fn share(&self, topic: &str) -> Option<Share> {
        let app = self.apps.get(topic)?;
        Some((Arc::clone(app), self.stuck.contains(topic) || self.is_paused(topic)))
    }

    /// Bytes that wait, by share.
    pub(super) fn bytes_by_share(&self) -> HashMap<Share, u64> {
        let mut bytes = HashMap::new();
        if self.apps.is_empty() {
            return bytes;
        }
        for (topic, size) in self.sizes() {
            if let Some(share) = self.share(&topic) {
                *bytes.entry(share).or_default() += size.bytes;
            }
        }
        bytes
    }

    /// Adds an entry of a topic to its app's share, if that may grow while so many bytes of the budget are free: it leaves as much to the
    /// others as it has, whether Kafka accepts events or not.
    pub(super) fn add_to_share(
        &mut self,
        topic: &str,
        entry: u64,
        free: u64,
        by_share: &mut HashMap<Share, u64>,
    ) -> bool {
        let Some(share) = self.share(topic) else { return true };
        let bytes = by_share.entry(share.clone()).or_default();
        if *bytes >= free {
            if self.refused_shares.insert(share.clone()) {
                self.news.push(News::AppShare(share.0));
            }
            return false;
        }
        if *bytes < free / 2 {
            self.refused_shares.remove(&share); // said again only after this, or it would be said all the time
        }
        *bytes += entry;
        true
    }

    /// Whether there is room for a dead letter of so many bytes.
    pub(super) fn takes_dead_letter(&mut self, bytes: u64, bytes_max: u64) -> bool {
        let is_full = self.dead_letters().bytes.saturating_add(bytes) > bytes_max;
        if is_full && !self.are_dead_letters_full {
            self.news.push(News::DeadLettersFull);
        }
        self.are_dead_letters_full = is_full;
        !is_full
    }

    /// Pauses the replay of a topic, or goes on with it.
    pub fn set_paused(&mut self, topic: &Arc<str>, is_paused: bool) {
        if is_paused {
            self.paused.insert(Arc::clone(topic));
        } else {
            self.paused.remove(topic);
        }
        self.keep_spooling(topic);
        self.appended(topic);
        self.lane(topic).signals.more.notify_one();
    }

    pub fn is_paused(&self, topic: &str) -> bool {
        self.paused.contains(topic)
    }

    /// The topics whose replay is paused.
    pub const fn paused(&self) -> &BTreeSet<Arc<str>> {
        &self.paused
    }

    /// The lanes that have something to replay and are not replayed; they are the caller's now.
    pub fn take_idle(&mut self) -> Vec<(Arc<str>, Arc<Signals>)> {
        let sizes = self.sizes();
        let idle = self.by_topic.iter_mut().filter(|(topic, lane)| sizes.contains_key(&***topic) && !lane.is_replayed);
        idle.map(|(topic, lane)| {
            lane.is_replayed = true;
            (Arc::clone(topic), Arc::clone(&lane.signals))
        })
        .collect()
    }

    /// Gives a lane back, if it is direct again.
    pub fn leave(&mut self, topic: &Arc<str>) -> bool {
        let lane = self.lane(topic);
        lane.is_replayed = !lane.is_direct;
        !lane.is_replayed
    }

    /// Entries of a lane that wait for their ack.
    pub fn waiting(&self, topic: &str) -> u64 {
        self.size(topic).records
    }

    /// The lanes that are not empty, by name.
    pub fn sizes(&self) -> BTreeMap<String, Size> {
        let mut sizes = self.reader.as_ref().map(Reader::lanes).unwrap_or_default();
        sizes.remove(DEAD_LETTERS);
        sizes
    }

    /// Everything in the lanes.
    pub fn total(&self) -> Size {
        let add = |sum: Size, size: &Size| Size { records: sum.records + size.records, bytes: sum.bytes + size.bytes };
        self.sizes().values().fold(Size::default(), add)
    }

    pub fn dead_letters(&self) -> Size {
        self.size(DEAD_LETTERS)
    }

    /// Whether it is known which lanes have something.
    pub const fn is_known(&self) -> bool {
        self.is_known
    }

    pub const fn health(&self) -> &Health {
        &self.health
    }

    pub(super) fn set_health(&mut self, health: Health) {
        let now = Instant::now();
        match (&self.health, &health) {
            (former, health) if former == health => return,
            (Health::Accepting, _) if self.refusing_since.is_none() || self.was_accepting_for_long() => {
                self.refusing_since = Some(now);
            }
            (_, Health::Accepting) => self.accepting_since = now,
            _ => self.refusing_since = self.refusing_since.or(Some(now)),
        }
        let was_full = matches!(self.health, Health::Full(_));
        self.news.push(News::Health { now: health.clone(), was_full });
        self.health = health;
    }

    fn was_accepting_for_long(&self) -> bool {
        self.accepting_since.elapsed() >= self.failover_after
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ticket").field(&self.topic).finish()
    }
}
