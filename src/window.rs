//! The deliveries of the last minutes whose payload names its event, so that a retry is told from a new event.
//!
//! A retry of what is durable is not published again, and a copy that comes while the first is under way waits for the
//! first one's outcome: it never gets a 200 for something that then failed. What failed is forgotten at once, so that
//! the next retry is an event again. Bounded in time and number; losing an entry costs a duplicate, never an event.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    entries: Arc<Mutex<Entries>>,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<RetryKey, Entry>,
    /// Durable entries, the oldest first.
    by_age: VecDeque<(Instant, RetryKey)>,
}

enum Entry {
    UnderWay(watch::Receiver<Option<Settled>>),
    Durable,
}

impl Window {
    pub fn new(config: Config) -> Self {
        Self { config, entries: Arc::default() }
    }

    /// Looks a delivery up, and claims it if it is new.
    pub fn look(&self, key: RetryKey, now: Instant) -> Seen {
        if self.config.window.is_zero() || self.config.entries_max == 0 {
            return Seen::Unwatched;
        }
        let mut entries = self.lock();
        entries.forget_before(now.checked_sub(self.config.window));
        match entries.by_key.get(&key) {
            Some(Entry::Durable) => return Seen::Durable,
            Some(Entry::UnderWay(outcome)) => return Seen::UnderWay(Copy(outcome.clone())),
            None => {}
        }
        if !entries.make_room(self.config.entries_max) {
            return Seen::Unwatched;
        }
        let (outcome, copies) = watch::channel(None);
        entries.by_key.insert(key, Entry::UnderWay(copies));
        Seen::New(Claim { window: self.clone(), key, outcome: Some(outcome) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn forget_before(&mut self, then: Option<Instant>) {
        while self.by_age.front().zip(then).is_some_and(|((since, _), then)| *since < then) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        self.by_age.pop_front().is_some_and(|(_, key)| self.by_key.remove(&key).is_some())
    }

    /// Whether there is room for one more; what is under way is never forgotten.
    fn make_room(&mut self, most: usize) -> bool {
        self.by_key.len() < most || self.forget_oldest()
    }
}

/// The duty to tell how the first delivery of an event ended. Dropped untold, it counts as failed.
pub struct Claim {
    window: Window,
    key: RetryKey,
    outcome: Option<watch::Sender<Option<Settled>>>,
}

impl Claim {
    /// Tells the copies, and the deliveries to come.
    pub fn settle(mut self, settled: Settled, now: Instant) {
        let mut entries = self.window.lock();
        if settled.is_ok() {
            entries.by_key.insert(self.key, Entry::Durable);
            entries.by_age.push_back((now, self.key));
        } else {
            entries.by_key.remove(&self.key);
        }
        drop(entries);
        if let Some(outcome) = self.outcome.take() {
            let _ = outcome.send(Some(settled)); // there may be no copies
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.outcome.is_some() {
            self.window.lock().by_key.remove(&self.key);
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
                prop_assert!(window.lock().by_key.len() <= 4);
            }
        }
    }
}
