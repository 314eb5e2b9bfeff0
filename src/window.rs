//! The deliveries of the last minutes whose payload names its event, so that a retry is told from a new event.
//!
//! A retry of what is durable is not published again, and a copy that comes while the first is under way waits for the
//! first one's outcome: it never gets a 200 for something that then failed. What failed is forgotten at once, so that
//! the next retry is an event again. Bounded in time and number; losing an entry costs a duplicate, never an event.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use tokio::sync::watch;

use crate::event::RetryKey;

/// `[retries]`.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a durable event is remembered; zero: not at all, and nothing is joined.
    pub window: Duration,
    /// How many are remembered; the oldest is forgotten first.
    pub entries_max: usize,
}

/// How the first delivery ended: durable, or why not.
pub type Settled = Result<(), &'static str>;

/// What the window knows of a delivery.
pub enum Seen {
    /// Nothing: it is to be published, and its outcome told to the claim.
    New(Claim),
    /// It is durable already.
    Durable,
    /// Another delivery of it is under way.
    UnderWay(Copy),
    /// The window is off, or full of deliveries under way: publish, and tell nobody.
    Unwatched,
}

/// The window; clones share it.
#[derive(Clone)]
pub struct Window {
    config: Config,
    /// Times in the window are milliseconds since this.
    start: Instant,
    entries: Arc<Mutex<Entries>>,
}

struct Entries {
    under_way: HashMap<RetryKey, Option<watch::Sender<Option<Settled>>>, BuildHasherDefault<OfHash>>,
    durable: Durable,
}

impl Window {
    pub fn new(config: Config) -> Self {
        let durable = Durable::with_room_for(if config.window.is_zero() { 0 } else { config.entries_max });
        let entries = Entries { under_way: HashMap::default(), durable };
        Self { config, start: Instant::now(), entries: Arc::new(Mutex::new(entries)) }
    }

    /// Looks a delivery up, and claims it if it is new.
    pub fn look(&self, key: RetryKey, now: Instant) -> Seen {
        let most = self.config.entries_max.min(ENTRIES_MAX);
        if self.config.window.is_zero() || most == 0 {
            return Seen::Unwatched;
        }
        let mut entries = self.lock();
        let Entries { under_way, durable } = &mut *entries;
        durable.forget_before(self.millis(now).saturating_sub(millis(self.config.window)));
        if durable.has(&key) {
            return Seen::Durable;
        }
        if let Some(outcome) = under_way.get_mut(&key) {
            return Seen::UnderWay(Copy(outcome.get_or_insert_with(|| watch::channel(None).0).subscribe()));
        }
        // What is under way is never forgotten.
        if under_way.len() + durable.len() >= most && !durable.forget_oldest() {
            return Seen::Unwatched;
        }
        under_way.insert(key, None);
        Seen::New(Claim { window: self.clone(), key, is_told: false })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis(&self, at: Instant) -> u64 {
        millis(at.saturating_duration_since(self.start))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// So many entries can be numbered.
const ENTRIES_MAX: usize = u32::MAX as usize / 2;

/// Durable events by age, and by key. At a high rate most of it lies outside the processor's caches: the index has nothing but
/// numbers, so that a look at it is one at a small table, and the rest is read and written in order.
struct Durable {
    /// The oldest first, each with the time from which it counts.
    by_age: VecDeque<(u64, RetryKey)>,
    /// Numbers of entries: in the order of age, counted since ever, cut to 32 bits.
    by_key: HashTable<u32>,
    /// The number of the oldest.
    first: u32,
}

impl Durable {
    /// Room that is not used yet takes next to no memory; where it grew by doubling, what it left behind would.
    fn with_room_for(entries: usize) -> Self {
        let entries = entries.min(1 << 20); // more is asked for when it is needed
        Self { by_age: VecDeque::with_capacity(entries), by_key: HashTable::with_capacity(entries), first: 0 }
    }

    fn len(&self) -> usize {
        self.by_age.len()
    }

    fn has(&self, key: &RetryKey) -> bool {
        let Self { by_age, by_key, first } = self;
        by_key.find(hash(key), |number| by_age[number.wrapping_sub(*first) as usize].1 == *key).is_some()
    }

    fn insert(&mut self, key: RetryKey, now: u64) {
        let Self { by_age, by_key, first } = self;
        let number = first.wrapping_add(by_age.len() as u32);
        by_age.push_back((now, key));
        by_key.insert_unique(hash(&key), number, |number| hash(&by_age[number.wrapping_sub(*first) as usize].1));
    }

    fn forget_before(&mut self, then: u64) {
        while self.by_age.front().is_some_and(|(since, _)| *since < then) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((_, key)) = self.by_age.pop_front() else { return false };
        if let Ok(entry) = self.by_key.find_entry(hash(&key), |number| *number == self.first) {
            entry.remove();
        }
        self.first = self.first.wrapping_add(1);
        true
    }
}

/// A key is half a SHA-256 already.
fn hash(key: &RetryKey) -> u64 {
    let mut half = [0; 8];
    half.copy_from_slice(&key[..8]);
    u64::from_ne_bytes(half)
}

/// The hasher for keys that are hashes: takes their first bytes.
#[derive(Default)]
struct OfHash(u64);

impl Hasher for OfHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some((half, _)) = bytes.split_first_chunk() {
            self.0 = u64::from_ne_bytes(*half);
        }
    }

    fn write_usize(&mut self, _: usize) {} // the length, which is always the same
}

/// The duty to tell how the first delivery of an event ended. Dropped untold, it counts as failed.
pub struct Claim {
    window: Window,
    key: RetryKey,
    is_told: bool,
}

impl Claim {
    /// Tells the copies, and the deliveries to come.
    pub fn settle(mut self, settled: Settled, now: Instant) {
        self.is_told = true;
        let now = self.window.millis(now);
        let mut entries = self.window.lock();
        let copies = entries.under_way.remove(&self.key).flatten();
        if settled.is_ok() {
            entries.durable.insert(self.key, now);
        }
        drop(entries);
        if let Some(copies) = copies {
            let _ = copies.send(Some(settled)); // they may have gone
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_told {
            self.window.lock().under_way.remove(&self.key);
        }
    }
}

/// A delivery that waits for the first one's outcome.
pub struct Copy(watch::Receiver<Option<Settled>>);

impl Copy {
    /// The first one's outcome; `None` when its claim was dropped untold, and the copy has to try itself.
    pub async fn outcome(mut self) -> Option<Settled> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|settled| *settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(seconds: u64, entries_max: usize) -> Window {
        Window::new(Config { window: Duration::from_secs(seconds), entries_max })
    }

    fn claim(window: &Window, key: u8, now: Instant) -> Claim {
        match window.look([key; 16], now) {
            Seen::New(claim) => claim,
            _ => panic!("not new"),
        }
    }

    fn is_durable(window: &Window, key: u8, now: Instant) -> bool {
        matches!(window.look([key; 16], now), Seen::Durable)
    }

    #[tokio::test]
    async fn a_copy_gets_the_first_ones_outcome() {
        let (window, now) = (window(60, 10), Instant::now());
        for settled in [Err("kafka"), Ok(())] {
            let first = claim(&window, 1, now);
            let Seen::UnderWay(copy) = window.look([1; 16], now) else { panic!("not under way") };
            first.settle(settled, now);
            assert_eq!(copy.outcome().await, Some(settled));
        }
        assert!(is_durable(&window, 1, now));
    }

    #[tokio::test]
    async fn what_failed_or_was_dropped_is_new_again() {
        let (window, now) = (window(60, 10), Instant::now());
        claim(&window, 1, now).settle(Err("kafka"), now);
        let dropped = claim(&window, 1, now);
        let Seen::UnderWay(copy) = window.look([1; 16], now) else { panic!("not under way") };
        drop(dropped);
        assert_eq!(copy.outcome().await, None);
        claim(&window, 1, now).settle(Ok(()), now);
    }

    #[test]
    fn entries_are_forgotten_by_age_and_by_number() {
        let (window, now) = (window(60, 2), Instant::now());
        claim(&window, 1, now).settle(Ok(()), now);
        assert!(is_durable(&window, 1, now + Duration::from_secs(60)));
        claim(&window, 1, now + Duration::from_secs(61)).settle(Ok(()), now);
        claim(&window, 2, now).settle(Ok(()), now);
        claim(&window, 3, now).settle(Ok(()), now);
        assert!(is_durable(&window, 2, now) && is_durable(&window, 3, now));
        let under_way = [claim(&window, 4, now), claim(&window, 5, now)];
        assert!(matches!(window.look([6; 16], now), Seen::Unwatched), "what is under way is not forgotten");
        drop(under_way);
    }

    #[test]
    fn off_is_off() {
        let now = Instant::now();
        assert!(matches!(window(0, 10).look([1; 16], now), Seen::Unwatched));
        assert!(matches!(window(60, 0).look([1; 16], now), Seen::Unwatched));
    }

    proptest! {
        /// Against a model that is a list: what it calls durable was settled so within the window, and the bound holds.
        #[test]
        fn the_window_never_invents_a_durable_event(steps in proptest::collection::vec((0_u8..6, 0_u8..4, 0_u64..30), 0..80)) {
            let (window, start) = (window(40, 4), Instant::now());
            let (mut now, mut durable, mut claims) = (start, Vec::<(u8, Instant)>::new(), Vec::<(u8, Claim)>::new());
            for (key, step, seconds) in steps {
                now += Duration::from_secs(seconds);
                match (step, claims.iter().position(|(k, _)| *k == key)) {
                    (0, Some(i)) => { claims.remove(i).1.settle(Ok(()), now); durable.push((key, now)); }
                    (1, Some(i)) => claims.remove(i).1.settle(Err("kafka"), now),
                    (2, Some(i)) => drop(claims.remove(i)),
                    (_, under_way) => match window.look([key; 16], now) {
                        Seen::New(claim) => { prop_assert!(under_way.is_none()); claims.push((key, claim)); }
                        Seen::UnderWay(_) => prop_assert!(under_way.is_some()),
                        Seen::Durable => prop_assert!(durable.iter().any(|(k, at)| *k == key && now.duration_since(*at).as_secs() <= 40)),
                        Seen::Unwatched => prop_assert!(claims.len() == 4),
                    },
                }
                {
                    let entries = window.lock();
                    prop_assert!(entries.under_way.len() + entries.durable.len() <= 4);
                    prop_assert_eq!(entries.durable.len(), entries.durable.by_key.len());
                }
            }
        }
    }
}
