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

impl Window {
    pub fn new(config: Config) -> Self {
        let entries = Entries::with_room_for(if config.window.is_zero() { 0 } else { config.entries_max });
        Self { config, start: Instant::now(), entries: Arc::new(Mutex::new(entries)) }
    }

    /// Looks a delivery up, and claims it if it is new.
    pub fn look(&self, key: RetryKey, now: Instant) -> Seen {
        let most = self.config.entries_max.min(ENTRIES_MAX);
        if self.config.window.is_zero() || most == 0 {
            return Seen::Unwatched;
        }
        let then = self.millis(now).saturating_sub(millis(self.config.window));
        let mut entries = self.lock();
        entries.forget_before(then);
        if let Some(number) = entries.find(&key) {
            match entries.state(number) {
                State::UnderWay => {
                    let outcome = entries.copies.entry(key).or_insert_with(|| watch::channel(None).0);
                    return Seen::UnderWay(Copy(outcome.subscribe()));
                }
                State::Durable(since) if since >= then => return Seen::Durable,
                _ => entries.forget(number),
            }
        }
        if entries.by_age.len() >= most && !entries.make_room() {
            return Seen::Unwatched;
        }
        let number = entries.insert(key);
        Seen::New(Claim { window: self.clone(), key, number, is_told: false })
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

/// Deliveries by age, and by key. At a high rate most of it lies outside the processor's caches: the index has nothing but
/// numbers, so that a look at it is one at a small table; an entry is written there when it is first looked for, and all else is
/// read and written in order.
struct Entries {
    /// The one that was looked for first comes first.
    by_age: VecDeque<(Packed, RetryKey)>,
    /// Numbers of entries: in the order of `by_age`, counted since ever, cut to 32 bits. Without those that are gone.
    by_key: HashTable<u32>,
    /// The number of the first.
    first: u32,
    under_way: usize,
    /// Where others wait for the outcome of what is under way.
    copies: HashMap<RetryKey, watch::Sender<Option<Settled>>, BuildHasherDefault<OfHash>>,
}

/// What has become of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    UnderWay,
    /// Since when, in the window's milliseconds.
    Durable(u64),
    /// It failed, or was forgotten out of turn.
    Gone,
}

/// A state in eight bytes, for there are many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed(u64);

impl Packed {
    const UNDER_WAY: Self = Self(u64::MAX);
    const GONE: Self = Self(u64::MAX - 1);

    const fn unpack(self) -> State {
        match self {
            Self::UNDER_WAY => State::UnderWay,
            Self::GONE => State::Gone,
            Self(since) => State::Durable(since),
        }
    }
}

impl Entries {
    /// Room that is not used yet takes next to no memory; where it grew by doubling, what it left behind would.
    fn with_room_for(entries: usize) -> Self {
        let entries = entries.min(1 << 20); // more is asked for when it is needed
        Self {
            by_age: VecDeque::with_capacity(entries),
            by_key: HashTable::with_capacity(entries),
            first: 0,
            under_way: 0,
            copies: HashMap::default(),
        }
    }

    const fn place(&self, number: u32) -> usize {
        number.wrapping_sub(self.first) as usize
    }

    fn state(&self, number: u32) -> State {
        self.by_age[self.place(number)].0.unpack()
    }

    fn find(&self, key: &RetryKey) -> Option<u32> {
        self.by_key.find(hash(key), |number| self.by_age[self.place(*number)].1 == *key).copied()
    }

    /// A delivery that is under way from now on; its number.
    fn insert(&mut self, key: RetryKey) -> u32 {
        let number = self.first.wrapping_add(self.by_age.len() as u32);
        self.by_age.push_back((Packed::UNDER_WAY, key));
        self.under_way += 1;
        let Self { by_age, by_key, first, .. } = self;
        by_key.insert_unique(hash(&key), number, |number| hash(&by_age[number.wrapping_sub(*first) as usize].1));
        number
    }

    /// What was under way, by the number that it was given, has ended: durable since then, or failed.
    fn end(&mut self, number: u32, key: &RetryKey, durable: Option<u64>) {
        let is_there = |number: &u32| self.by_age.get(self.place(*number)).is_some_and(|(_, of)| of == key);
        let moved = || self.find(key); // to make room
        let Some(number) = Some(number).filter(is_there).or_else(moved) else { return };
        if self.state(number) != State::UnderWay {
            return;
        }
        self.under_way -= 1;
        match durable {
            Some(since) => {
                let place = self.place(number);
                self.by_age[place].0 = Packed(since.min(Packed::GONE.0 - 1));
            }
            None => self.forget(number),
        }
    }

    /// It may be looked for again, and is new then.
    fn forget(&mut self, number: u32) {
        let place = self.place(number);
        let (state, key) = &mut self.by_age[place];
        *state = Packed::GONE;
        if let Ok(entry) = self.by_key.find_entry(hash(key), |found| *found == number) {
            entry.remove();
        }
    }

    /// Forgets what stands first.
    fn forget_first(&mut self) {
        if self.by_age.front().is_some_and(|(state, _)| *state != Packed::GONE) {
            self.forget(self.first);
        }
        self.by_age.pop_front();
        self.first = self.first.wrapping_add(1);
    }

    fn forget_before(&mut self, then: u64) {
        while self.by_age.front().is_some_and(|(state, _)| match state.unpack() {
            State::UnderWay => false,
            State::Durable(since) => since < then,
            State::Gone => true,
        }) {
            self.forget_first();
        }
    }

    /// Forgets the oldest; but what is under way is never forgotten, and goes to the end.
    fn make_room(&mut self) -> bool {
        if self.under_way == self.by_age.len() {
            return false;
        }
        while let Some(&(Packed::UNDER_WAY, key)) = self.by_age.front() {
            self.forget_first();
            self.under_way -= 1; // and again one more
            self.insert(key);
        }
        self.forget_first();
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
    number: u32,
    is_told: bool,
}

impl Claim {
    /// Tells the copies, and the deliveries to come.
    pub fn settle(mut self, settled: Settled, now: Instant) {
        let now = self.window.millis(now);
        let copies = self.end(settled.is_ok().then_some(now));
        if let Some(copies) = copies {
            let _ = copies.send(Some(settled)); // they may have gone
        }
    }

    /// Those who wait for it.
    fn end(&mut self, durable: Option<u64>) -> Option<watch::Sender<Option<Settled>>> {
        self.is_told = true;
        let mut entries = self.window.lock();
        entries.end(self.number, &self.key, durable);
        if entries.copies.is_empty() { None } else { entries.copies.remove(&self.key) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_told {
            drop(self.end(None));
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
    fn what_is_under_way_is_kept_when_others_have_to_go() {
        let (window, now) = (window(60, 3), Instant::now());
        let first = claim(&window, 1, now);
        claim(&window, 2, now).settle(Ok(()), now);
        claim(&window, 3, now).settle(Ok(()), now);
        let fourth = claim(&window, 4, now); // instead of the second
        assert!(matches!(window.look([1; 16], now), Seen::UnderWay(_)) && is_durable(&window, 3, now));
        first.settle(Ok(()), now);
        fourth.settle(Err("kafka"), now);
        assert!(is_durable(&window, 1, now) && is_durable(&window, 3, now));
        claim(&window, 4, now).settle(Ok(()), now);
        assert!(is_durable(&window, 1, now) && is_durable(&window, 4, now));
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
                    prop_assert!(entries.by_age.len() <= 4);
                    let is = |state| entries.by_age.iter().filter(|(found, _)| found.unpack() == state).count();
                    prop_assert_eq!(entries.by_key.len(), entries.by_age.len() - is(State::Gone));
                    prop_assert_eq!((entries.under_way, is(State::UnderWay)), (claims.len(), claims.len()));
                }
            }
        }
    }
}
