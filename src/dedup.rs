//! The deliveries of the last minutes, so that a retry is told from a new event where the payload names it, and the copies that two
//! registrations of one action deliver where it does not.
//!
//! A retry of what is durable is not published again, and a copy that comes while the first is in flight waits for the first one's
//! outcome: it never gets a 200 for something that then failed. What failed is forgotten at once, so that the next retry is an event
//! again. Bounded in time and number; losing an entry costs a duplicate, never an event.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::deliveries::COPY_WITHIN;
use crate::event::RetryKey;
use crate::outcome::Unavailable;

/// `[retries]`.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a durable event is remembered; zero switches deduplication off.
    pub window: Duration,
    /// How many events are remembered; the oldest is forgotten first.
    pub entries_max: usize,
}

/// How the first delivery ended: durable, or why not.
pub type Settled = Result<(), Unavailable>;

/// What is known of a delivery.
pub enum Check {
    /// Nothing: it is to be published, and its outcome told to the claim.
    New(Claim),
    /// It is durable already.
    Durable,
    /// Another delivery of it is in flight.
    InFlight(FirstOutcome),
    /// Deduplication is off, or full of deliveries in flight, or the other delivery hangs: it is to be published.
    Untracked,
}

/// The deliveries; clones share them.
#[derive(Clone)]
pub struct Dedup {
    state: Arc<Mutex<State>>,
}

struct State {
    config: Config,
    by_key: HashMap<Key, Entry>,
    /// Those that are durable, the oldest first: of events that their payload names, and of the others.
    durable: [VecDeque<(Instant, Key)>; 2],
    /// Events that their payload does not name, by their content, the oldest first. Each has an entry in `by_key`.
    unnamed: HashMap<[u8; 16], VecDeque<Unnamed>>,
    /// How many of them there have been.
    unnamed_total: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Named([u8; 16]),
    /// A content, and the number of this event among all that have no name.
    Unnamed([u8; 16], u64),
}

struct Unnamed {
    number: u64,
    since: Instant,
    /// Which registrations have delivered it.
    delivered_by: Vec<[u8; 16]>,
}

/// Equal events that are compared with a delivery, so that a flood of them costs no more than this. An older one is published twice where
/// two registrations deliver it.
const EQUAL_MAX: usize = 64;

enum Entry {
    /// The copies that wait for its outcome, if there are any.
    InFlight(Option<watch::Sender<Option<Settled>>>),
    /// In flight for so long that its copies try themselves.
    Late,
    Durable,
}

impl Dedup {
    pub fn new(config: Config) -> Self {
        let (by_key, durable, unnamed, unnamed_total) = Default::default();
        Self { state: Arc::new(Mutex::new(State { config, by_key, durable, unnamed, unnamed_total })) }
    }

    /// Changes the limits. What they have no room for is forgotten; what is in flight is not.
    pub fn set(&self, config: Config) {
        let mut state = self.state();
        state.config = config;
        let entries_max = if config.window.is_zero() { 0 } else { config.entries_max };
        while state.by_key.len() > entries_max && state.forget_oldest() {}
    }

    /// Looks a delivery up, and claims it if it is new.
    pub fn check(&self, key: RetryKey) -> Check {
        let mut state = self.state();
        if state.config.window.is_zero() {
            return Check::Untracked;
        }
        state.forget_outdated();
        let known = state.known(key);
        match known.and_then(|key| state.by_key.get_mut(&key)) {
            Some(Entry::Durable) => return Check::Durable,
            Some(Entry::Late) => return Check::Untracked,
            Some(Entry::InFlight(outcome)) => {
                let outcome = outcome.get_or_insert_with(|| watch::channel(None).0);
                return Check::InFlight(FirstOutcome(outcome.subscribe()));
            }
            None => {}
        }
        if state.by_key.len() >= state.config.entries_max && !state.forget_oldest() {
            return Check::Untracked;
        }
        let key = state.new_key(key);
        state.by_key.insert(key, Entry::InFlight(None));
        Check::New(Claim { dedup: self.clone(), key, settled: None })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The event that this is another delivery of. Of equal events without a name it is the latest that the registration has not delivered:
    /// each copy is of one event, and what a registration has not delivered because it was not in force yet is left behind. Were it the
    /// oldest, a registration would go on through those when the other one has ended, and events would be lost.
    fn known(&mut self, key: RetryKey) -> Option<Key> {
        let (content, registration) = match key {
            RetryKey::Named(key) => return Some(Key::Named(key)),
            RetryKey::Unnamed { content, registration } => (content, registration),
        };
        let is_copy =
            |event: &&mut Unnamed| event.since.elapsed() <= COPY_WITHIN && !event.delivered_by.contains(&registration);
        let event = self.unnamed.get_mut(&content)?.iter_mut().rfind(is_copy)?;
        event.delivered_by.push(registration);
        Some(Key::Unnamed(content, event.number))
    }

    fn new_key(&mut self, key: RetryKey) -> Key {
        let (content, registration) = match key {
            RetryKey::Named(key) => return Key::Named(key),
            RetryKey::Unnamed { content, registration } => (content, registration),
        };
        self.unnamed_total += 1;
        let number = self.unnamed_total;
        let equal = self.unnamed.entry(content).or_default();
        if equal.len() == EQUAL_MAX {
            equal.pop_front(); // its entry in `by_key` ends by itself
        }
        equal.push_back(Unnamed { number, since: Instant::now(), delivered_by: vec![registration] });
        Key::Unnamed(content, number)
    }

    fn forget_outdated(&mut self) {
        let now = Instant::now();
        for (queue, most) in [self.config.window, COPY_WITHIN.min(self.config.window)].into_iter().enumerate() {
            let time = now.checked_sub(most);
            while self.durable[queue].front().is_some_and(|(since, _)| Some(*since) < time) {
                self.forget_first(queue);
            }
        }
    }

    /// Forgets the oldest that is durable, if any is.
    fn forget_oldest(&mut self) -> bool {
        let oldest =
            (0..2).filter(|queue| !self.durable[*queue].is_empty()).min_by_key(|queue| self.durable[*queue][0].0);
        oldest.is_some_and(|queue| self.forget_first(queue))
    }

    fn forget_first(&mut self, queue: usize) -> bool {
        self.durable[queue].pop_front().is_some_and(|(_, key)| self.forget(key).is_some())
    }

    fn forget(&mut self, key: Key) -> Option<Entry> {
        if let Key::Unnamed(content, number) = key
            && let Some(equal) = self.unnamed.get_mut(&content)
        {
            equal.retain(|event| event.number != number);
            if equal.is_empty() {
                self.unnamed.remove(&content);
            }
        }
        self.by_key.remove(&key)
    }
}

/// The duty to tell how the first delivery of an event ended. Dropped untold, it counts as failed.
pub struct Claim {
    dedup: Dedup,
    key: Key,
    settled: Option<Settled>,
}

impl Claim {
    /// Tells the copies, and the deliveries to come.
    pub fn settle(mut self, settled: Settled) {
        self.settled = Some(settled);
    }

    /// It takes too long: copies do not wait for its outcome any longer, and try themselves. What it is in the end counts all the same.
    pub fn let_copies_try(&self) {
        // Those that wait are told nothing, as of a claim that is dropped untold.
        self.dedup.state().by_key.insert(self.key, Entry::Late);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.dedup.state();
        let entry = if self.settled == Some(Ok(())) {
            state.durable[usize::from(matches!(self.key, Key::Unnamed(..)))].push_back((Instant::now(), self.key));
            state.by_key.insert(self.key, Entry::Durable)
        } else {
            state.forget(self.key)
        };
        if let Some(Entry::InFlight(Some(copies))) = entry {
            let _ = copies.send(self.settled); // they may have gone
        }
    }
}

/// How the first delivery ends, for a copy of it.
pub struct FirstOutcome(watch::Receiver<Option<Settled>>);

impl FirstOutcome {
    /// Waits for it; `None` when the first one's claim was dropped untold: the copy has to try itself.
    pub async fn outcome(mut self) -> Option<Settled> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|settled| *settled)
    }
}
