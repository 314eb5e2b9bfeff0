//! Which way each topic's records go, and how much of it waits. Plain state; whoever holds the lock changes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::Notify;

use super::Ticket;
use super::store::{Change, Contents, Size};
use crate::metrics::Metrics;

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

/// How a lane's people are woken.
#[derive(Default)]
pub struct Signals {
    /// There is more to replay.
    pub more: Notify,
    /// The lane has turned direct, or spools on.
    pub opened: Notify,
}

struct Lane {
    /// In the file, by the last commit.
    stored: Size,
    /// Acked, and not yet deleted by a commit.
    acked: BTreeSet<u64>,
    /// Tickets that were given and not used up.
    tickets: u64,
    /// Those who come wait, for the rest is on its way to the brokers.
    is_closing: bool,
    /// Not before this, for those who waited last have waited in vain.
    closable_at: Option<Instant>,
    /// Somebody replays it.
    is_replayed: bool,
    signals: Arc<Signals>,
    gauges: [IntGauge; 2],
}

impl Lane {
    fn new(gauges: [IntGauge; 2]) -> Self {
        Self {
            stored: Size::default(),
            acked: BTreeSet::new(),
            tickets: 0,
            is_closing: false,
            closable_at: None,
            is_replayed: false,
            signals: Arc::default(),
            gauges,
        }
    }

    fn waiting(&self) -> u64 {
        self.stored.records.saturating_sub(self.acked.len() as u64)
    }

    fn is_direct(&self) -> bool {
        self.waiting() == 0 && self.tickets == 0
    }
}

/// All lanes.
pub struct Lanes {
    by_topic: HashMap<Arc<str>, Lane>,
    /// How many are not direct.
    busy: Arc<AtomicUsize>,
    parked: Size,
    /// Numbers that were given and are not in the file that is open: their acks say nothing of it.
    absent: Range<u64>,
    health: Health,
    metrics: Arc<Metrics>,
    news: Vec<News>,
}

/// A change that belongs into the log. Logged by whoever made it, after the lock has been released.
pub(super) enum News {
    Spooling(Arc<str>),
    Empty,
    Health { now: Health, was_full: bool },
}

impl News {
    pub(super) fn log(&self) {
        match self {
            Self::Spooling(topic) => tracing::warn!(topic = &**topic, "events go through the spool"),
            Self::Empty => tracing::info!("the spool is empty: events go to Kafka directly"),
            Self::Health { now: Health::Failed(why), .. } => {
                tracing::error!(why, "the spool has failed: it accepts nothing until it is reopened");
            }
            Self::Health { now: Health::Full(why), was_full: true } => tracing::debug!(why, "the spool is still full"),
            Self::Health { now: Health::Full(why), .. } => {
                tracing::error!(why, "the spool is full: events that Kafka does not take are answered 503");
            }
            Self::Health { now: Health::Accepting, .. } => tracing::info!("the spool accepts events"),
        }
    }
}

impl Lanes {
    pub(super) fn new(metrics: Arc<Metrics>, busy: Arc<AtomicUsize>) -> Self {
        let health = Health::Failed("it is not open yet".to_owned());
        Self {
            by_topic: HashMap::new(),
            busy,
            parked: Size::default(),
            absent: 0..0,
            health,
            metrics,
            news: Vec::new(),
        }
    }

    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    fn lane(&mut self, topic: &Arc<str>) -> &mut Lane {
        let new = || Lane::new(self.metrics.spool_lane(topic));
        self.by_topic.entry(Arc::clone(topic)).or_insert_with(new)
    }

    /// Changes a lane, and whatever follows from it.
    fn change<T>(&mut self, topic: &Arc<str>, change: impl FnOnce(&mut Lane) -> T) -> T {
        let lane = self.lane(topic);
        let was_direct = lane.is_direct();
        let result = change(lane);
        let is_direct = lane.is_direct();
        if is_direct {
            lane.is_closing = false;
        }
        if is_direct && !was_direct {
            lane.signals.opened.notify_waiters();
            lane.signals.more.notify_one(); // its replay may end
        }
        let waiting = lane.waiting();
        lane.gauges[0].set(i64::try_from(waiting).unwrap_or(i64::MAX));
        lane.gauges[1].set(if waiting == 0 { 0 } else { i64::try_from(lane.stored.bytes).unwrap_or(i64::MAX) });
        if was_direct && !is_direct && self.busy.fetch_add(1, Ordering::SeqCst) == 0 {
            self.news.push(News::Spooling(Arc::clone(topic)));
        }
        if is_direct && !was_direct && self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.news.push(News::Empty);
        }
        result
    }

    /// The way of the next record, or whom to wait for.
    pub(super) fn look(&self, topic: &Arc<str>) -> Result<Way, Arc<Signals>> {
        match self.by_topic.get(topic) {
            Some(lane) if lane.is_closing => Err(Arc::clone(&lane.signals)),
            Some(lane) if !lane.is_direct() => Ok(Way::Spool),
            _ => Ok(Way::Direct),
        }
    }

    pub(super) fn is_closing(&self, topic: &Arc<str>) -> bool {
        self.by_topic.get(topic).is_some_and(|lane| lane.is_closing)
    }

    pub(super) fn give(&mut self, topic: &Arc<str>) {
        self.change(topic, |lane| lane.tickets += 1);
    }

    pub(super) fn give_back(&mut self, topic: &Arc<str>) {
        self.change(topic, |lane| lane.tickets = lane.tickets.saturating_sub(1));
    }

    pub(super) fn acked(&self, topic: &str) -> BTreeSet<u64> {
        self.by_topic.get(topic).map_or_else(BTreeSet::new, |lane| lane.acked.clone())
    }

    /// Whether this is the first ack for the writer to hear of.
    pub(super) fn ack(&mut self, topic: &Arc<str>, number: u64) -> bool {
        if self.absent.contains(&number) {
            return false;
        }
        let is_first = !self.has_acked();
        self.change(topic, |lane| lane.acked.insert(number));
        is_first
    }

    /// Whether a commit has something to delete.
    pub(super) fn has_acked(&self) -> bool {
        self.by_topic.values().any(|lane| !lane.acked.is_empty())
    }

    /// What a commit has to delete.
    pub(super) fn to_delete(&self, most: usize) -> Vec<(Arc<str>, u64)> {
        let lanes = self.by_topic.iter();
        lanes
            .flat_map(|(topic, lane)| lane.acked.iter().map(|&number| (Arc::clone(topic), number)))
            .take(most)
            .collect()
    }

    pub(super) fn topics(&self) -> Vec<Arc<str>> {
        self.by_topic.keys().cloned().collect()
    }

    /// A commit has gone through: what is in the file now, and what it has done to which lanes.
    pub(super) fn committed(&mut self, contents: &Contents, changes: &HashMap<Arc<str>, Change>) {
        for (topic, Change { tickets, deleted, .. }) in changes {
            let stored = contents.lanes.get(&**topic).copied().unwrap_or_default();
            self.change(topic, |lane| {
                lane.tickets = lane.tickets.saturating_sub(*tickets);
                lane.stored = stored;
                for number in deleted {
                    lane.acked.remove(number);
                }
            });
            let lane = self.lane(topic);
            if lane.waiting() > 0 {
                lane.signals.more.notify_one();
            }
        }
        self.parked = contents.parked;
        self.metrics.dead_letters_on_disk.set(i64::try_from(contents.parked.records).unwrap_or(i64::MAX));
        self.metrics.dead_letters_on_disk_bytes.set(i64::try_from(contents.parked.bytes).unwrap_or(i64::MAX));
    }

    /// A file was opened; `absent` are the numbers that were given and are not in it.
    pub(super) fn opened(&mut self, absent: Range<u64>) {
        self.absent = absent;
    }

    /// New records wait until the rest of the lane is acked; `false` when there is nothing to wait for.
    pub fn close(&mut self, topic: &Arc<str>) -> bool {
        let lane = self.lane(topic);
        let may_close = lane.closable_at.is_none_or(|at| at <= Instant::now());
        lane.is_closing = may_close && !lane.is_direct();
        lane.is_closing
    }

    /// Those who wait have waited for `too_long`: nobody is to wait for a while.
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

    /// The lanes that have something to replay and nobody who does; they are the caller's now.
    pub fn take_idle(&mut self) -> Vec<(Arc<str>, Arc<Signals>)> {
        let idle = self.by_topic.iter_mut().filter(|(_, lane)| lane.waiting() > 0 && !lane.is_replayed);
        idle.map(|(topic, lane)| {
            lane.is_replayed = true;
            (Arc::clone(topic), Arc::clone(&lane.signals))
        })
        .collect()
    }

    /// Gives a lane back, if it is direct again.
    pub fn leave(&mut self, topic: &Arc<str>) -> bool {
        let lane = self.lane(topic);
        lane.is_replayed = !lane.is_direct();
        !lane.is_replayed
    }

    /// Entries of a lane that wait for their ack.
    pub fn waiting(&self, topic: &str) -> u64 {
        self.by_topic.get(topic).map_or(0, Lane::waiting)
    }

    /// The lanes that are not empty, by name.
    pub fn sizes(&self) -> BTreeMap<Arc<str>, Size> {
        let lanes = self.by_topic.iter().filter(|(_, lane)| lane.waiting() > 0);
        lanes.map(|(topic, lane)| (Arc::clone(topic), Size { records: lane.waiting(), ..lane.stored })).collect()
    }

    /// Everything in the lanes.
    pub fn total(&self) -> Size {
        let add = |sum: Size, lane: &Lane| Size {
            records: sum.records + lane.waiting(),
            bytes: sum.bytes + if lane.waiting() == 0 { 0 } else { lane.stored.bytes },
        };
        self.by_topic.values().fold(Size::default(), add)
    }

    pub const fn parked(&self) -> Size {
        self.parked
    }

    /// Bytes that count against the budget.
    pub(super) fn bytes(&self) -> u64 {
        self.by_topic.values().map(|lane| lane.stored.bytes).sum::<u64>() + self.parked.bytes
    }

    pub const fn health(&self) -> &Health {
        &self.health
    }

    pub(super) fn set_health(&mut self, health: Health) {
        if self.health == health {
            return;
        }
        let was_full = matches!(self.health, Health::Full(_));
        self.news.push(News::Health { now: health.clone(), was_full });
        self.metrics.spool_accepting.set(i64::from(health == Health::Accepting));
        self.health = health;
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ticket").field(&self.topic).finish()
    }
}
