//! How many bytes of webhooks are held at once. What is verified is held to its end; of the bodies that are still being read, the
//! oldest is evicted when there is no room: a sender who means it sends a body in a moment, and strangers hold theirs back. Where there are
//! several apps, each leaves as much room to the others as it holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::outcome::Unavailable::{self, AppShare, Overloaded, SlowBody};

/// Larger bodies have a pool of their own, so that a few of them do not take the room of many.
pub const SMALL_BODY_BYTES_MAX: usize = 64 << 10;

/// What a request counts for besides its body: the memory of its state.
pub const REQUEST_BYTES: usize = 1 << 10;

/// The part of `[server]` that is about memory.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of webhooks whose bodies have [`SMALL_BODY_BYTES_MAX`] or less.
    pub bytes_in_flight_max: usize,
    /// Bytes of the others.
    pub large_bytes_in_flight_max: usize,
}

/// The pools of small and of large bodies. Every field is changed under the lock.
pub struct Budget(Mutex<State>);

struct State {
    pools: [Pool; 2],
    next: u64,
}

struct Pool {
    max: usize,
    held: usize,
    /// By age.
    reading: BTreeMap<u64, Entry>,
    /// Bytes of the bodies that are still being read. They can be evicted, so they are free to what is verified.
    reading_bytes: usize,
    /// Bytes of verified webhooks by app, where there are several. Only they count: a path names an app, and anyone can write a path.
    by_app: HashMap<Arc<str>, usize>,
}

struct Entry {
    bytes: usize,
    evicted: Arc<Notify>,
}

impl Budget {
    pub fn new(config: Config) -> Arc<Self> {
        let pool = |max| Pool { max, held: 0, reading: BTreeMap::new(), reading_bytes: 0, by_app: HashMap::new() };
        let pools = [pool(config.bytes_in_flight_max), pool(config.large_bytes_in_flight_max)];
        Arc::new(Self(Mutex::new(State { pools, next: 0 })))
    }

    /// Changes the limits. What is held over them stays, and nothing more is begun until it has been given back.
    pub fn set(&self, config: Config) {
        let maxima = [config.bytes_in_flight_max, config.large_bytes_in_flight_max];
        self.lock().pools.iter_mut().zip(maxima).for_each(|(pool, max)| pool.max = max);
    }

    /// Begins a request whose body is to be read.
    ///
    /// # Errors
    /// [`Overloaded`]: all that is held is verified, or was begun later.
    pub fn begin(self: &Arc<Self>) -> Result<Reading, Unavailable> {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        let evicted = Arc::<Notify>::default();
        state.pools[0].make_room(REQUEST_BYTES, id)?;
        state.pools[0].insert(id, Entry { bytes: REQUEST_BYTES, evicted: Arc::clone(&evicted) });
        drop(state);
        Ok(Reading { budget: Arc::clone(self), id, pool: 0, evicted })
    }

    /// Bytes that are held now, small and large bodies together.
    pub fn held(&self) -> usize {
        self.lock().pools.iter().map(|pool| pool.held).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn insert(&mut self, id: u64, entry: Entry) {
        self.held += entry.bytes;
        self.reading_bytes += entry.bytes;
        self.reading.insert(id, entry);
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.reading.remove(&id)?;
        self.held -= entry.bytes;
        self.reading_bytes -= entry.bytes;
        Some(entry)
    }

    /// Evicts the oldest until `bytes` more fit; `id`, who wants them, is not older than itself.
    fn make_room(&mut self, bytes: usize, id: u64) -> Result<(), Unavailable> {
        while self.held + bytes > self.max {
            match self.reading.first_key_value() {
                Some((&oldest, _)) if oldest < id => {
                    if let Some(entry) = self.remove(oldest) {
                        entry.evicted.notify_one();
                    }
                }
                _ => return Err(Overloaded),
            }
        }
        Ok(())
    }
}

/// A body that is being read. Dropped, it gives back what it holds.
pub struct Reading {
    budget: Arc<Budget>,
    id: u64,
    pool: usize,
    evicted: Arc<Notify>,
}

impl Reading {
    /// Counts the bytes of the body that have come.
    ///
    /// # Errors
    /// [`Overloaded`]: there is no room for them. [`SlowBody`]: the body was evicted meanwhile.
    pub fn grow_to(&mut self, body_bytes: usize) -> Result<(), Unavailable> {
        let mut state = self.budget.lock();
        let entry = state.pools[self.pool].remove(self.id).ok_or(SlowBody)?;
        self.pool = usize::from(body_bytes > SMALL_BODY_BYTES_MAX);
        let pool = &mut state.pools[self.pool];
        let bytes = REQUEST_BYTES + body_bytes;
        pool.make_room(bytes, self.id)?;
        pool.insert(self.id, Entry { bytes, ..entry });
        Ok(())
    }

    /// Resolves when the body has to make room.
    pub fn evicted(&self) -> impl Future<Output = ()> + use<> {
        let evicted = Arc::clone(&self.evicted);
        async move { evicted.notified().await }
    }

    /// The body is here: it is not evicted any more.
    ///
    /// # Errors
    /// [`SlowBody`]: it was before.
    pub fn complete(self) -> Result<Held, Unavailable> {
        let (budget, pool) = (Arc::clone(&self.budget), self.pool);
        let mut state = budget.lock();
        let bytes = state.pools[pool].remove(self.id).ok_or(SlowBody)?.bytes;
        state.pools[pool].held += bytes;
        drop(state);
        Ok(Held { budget, pool, bytes, app: None })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.budget.lock().pools[self.pool].remove(self.id);
    }
}

/// What a webhook holds, until it is dropped.
pub struct Held {
    budget: Arc<Budget>,
    pool: usize,
    bytes: usize,
    /// Whose share it counts for.
    app: Option<Arc<str>>,
}

impl Held {
    /// Counts it for an app, one of several, that has verified it. An app may hold more only while it holds less than is free: so there is
    /// room for the others, however fast its webhooks come and however slowly Kafka accepts them.
    ///
    /// # Errors
    /// [`AppShare`]: the app holds as much as is free.
    pub fn of_app(mut self, app: &str) -> Result<Self, Unavailable> {
        let mut state = self.budget.lock();
        let pool = &mut state.pools[self.pool];
        let free = pool.max.saturating_sub(pool.held - pool.reading_bytes - self.bytes);
        let app = pool.by_app.get_key_value(app).map_or_else(|| Arc::from(app), |(app, _)| Arc::clone(app));
        let held = pool.by_app.entry(Arc::clone(&app)).or_default();
        if *held >= free {
            drop(state); // it is locked once more when this is dropped
            return Err(AppShare);
        }
        *held += self.bytes;
        drop(state);
        self.app = Some(app);
        Ok(self)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        let pool = &mut state.pools[self.pool];
        pool.held -= self.bytes;
        if let Some(held) = self.app.as_ref().and_then(|app| pool.by_app.get_mut(app)) {
            *held -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn budget(small: usize, large: usize) -> Arc<Budget> {
        Budget::new(Config { bytes_in_flight_max: small, large_bytes_in_flight_max: large })
    }

    fn reading(budget: &Arc<Budget>, body_bytes: usize) -> Result<Reading, Unavailable> {
        let mut reading = budget.begin()?;
        reading.grow_to(body_bytes)?;
        Ok(reading)
    }

    #[test]
    fn the_oldest_body_that_is_still_being_read_makes_room() {
        let budget = budget(3 * REQUEST_BYTES + 30, 0);
        let mut bodies: Vec<_> = (0..3).map(|_| reading(&budget, 10).expect("room")).collect();
        assert!(bodies[0].evicted().now_or_never().is_none());
        let fourth = reading(&budget, 10).expect("the first makes room");
        assert!(bodies[0].evicted().now_or_never().is_some());
        assert_eq!(bodies[0].grow_to(11), Err(SlowBody));
        assert!(bodies[1].evicted().now_or_never().is_none() && fourth.evicted().now_or_never().is_none());
        assert_eq!(bodies.swap_remove(0).complete().err(), Some(SlowBody));
        assert_eq!(budget.held(), 3 * REQUEST_BYTES + 30);
        drop((bodies, fourth));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn what_is_complete_is_not_evicted_and_counts_until_it_is_dropped() {
        let budget = budget(2 * REQUEST_BYTES + 20, 0);
        let held: Vec<_> = (0..2).map(|_| reading(&budget, 10).expect("room").complete().expect("held")).collect();
        assert_eq!(budget.begin().err(), Some(Overloaded));
        drop(held);
        assert!(reading(&budget, REQUEST_BYTES + 20).is_ok());
        assert_eq!(reading(&budget, REQUEST_BYTES + 21).err(), Some(Overloaded), "more than there is for all");
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_lower_limit_holds_for_what_comes_and_takes_nothing_from_what_is_held() {
        let budget = budget(3 * REQUEST_BYTES, 0);
        let held: Vec<_> = (0..3).map(|_| reading(&budget, 0).expect("room").complete().expect("held")).collect();
        budget.set(Config { bytes_in_flight_max: REQUEST_BYTES, large_bytes_in_flight_max: 0 });
        assert_eq!((budget.held(), budget.begin().err()), (3 * REQUEST_BYTES, Some(Overloaded)));
        drop(held);
        let one = budget.begin().expect("room for one");
        budget.set(Config { bytes_in_flight_max: 2 * REQUEST_BYTES, large_bytes_in_flight_max: 0 });
        let two = budget.begin().expect("room for two");
        assert!(one.evicted().now_or_never().is_none() && two.evicted().now_or_never().is_none());
    }

    #[test]
    fn large_bodies_have_a_pool_of_their_own() {
        let large = SMALL_BODY_BYTES_MAX + 1;
        let budget = budget(2 * REQUEST_BYTES, REQUEST_BYTES + large);
        let one = reading(&budget, large).expect("room");
        let small = [budget.begin().expect("room"), budget.begin().expect("room")];
        assert!(one.evicted().now_or_never().is_none() && small[0].evicted().now_or_never().is_none());
        let two = reading(&budget, large).expect("the first large one makes room");
        assert!(one.evicted().now_or_never().is_some() && two.evicted().now_or_never().is_none());
    }

    /// Webhooks of an app that are held, until no more are.
    fn fill(budget: &Arc<Budget>, app: &str, bytes: usize) -> Vec<Held> {
        let one = || reading(budget, bytes)?.complete()?.of_app(app);
        std::iter::repeat_with(one).map_while(Result::ok).collect()
    }

    #[test]
    fn an_app_holds_no_more_than_it_leaves_to_the_others() {
        let budget = budget(100 * (REQUEST_BYTES + 10), 0);
        let flood = fill(&budget, "flood", 10);
        assert_eq!(flood.len(), 50);
        let refused = reading(&budget, 10).expect("room").complete().expect("room").of_app("flood");
        assert_eq!(refused.err(), Some(AppShare));
        assert_eq!(budget.held(), 50 * (REQUEST_BYTES + 10), "what was refused is held no more");
        // The more apps there are, the less is each one's, and there is always room for one more.
        let second = fill(&budget, "second", 10);
        assert_eq!(second.len(), 25);
        assert_eq!(fill(&budget, "third", 10).len(), 13);
        drop(flood);
        assert_eq!(fill(&budget, "third", 10).len(), 38);
        drop(second);
        assert_eq!(fill(&budget, "flood", 10).len(), 50, "what it gave back is counted");
    }

    #[test]
    fn bodies_that_are_not_verified_take_nothing_of_the_share_of_the_app_that_they_name() {
        let budget = budget(10 * (REQUEST_BYTES + 10), 0);
        let strangers: Vec<_> = (0..10).map(|_| reading(&budget, 10).expect("room")).collect();
        assert_eq!(fill(&budget, "app", 10).len(), 5);
        drop(strangers);
        let alone = || reading(&budget, 10)?.complete();
        let held: Vec<_> = std::iter::repeat_with(alone).map_while(Result::ok).collect();
        assert_eq!(held.len(), 10, "one app alone may hold all");
    }

    proptest! {
        /// Whatever is begun, grows, ends and is dropped: no pool holds more than it may, and nothing is left at the end.
        #[test]
        fn the_pools_keep_their_limits(steps in proptest::collection::vec((0_usize..8, 0_usize..5, 0_usize..200_000), 0..200)) {
            let budget = budget(100_000, 300_000);
            let mut bodies: Vec<Option<Reading>> = (0..8).map(|_| None).collect();
            let mut held = Vec::new();
            for (which, step, bytes) in steps {
                match (step, &mut bodies[which]) {
                    (0, body) => *body = budget.begin().ok(),
                    (1 | 2, Some(body)) => drop(body.grow_to(bytes)),
                    (3, body @ Some(_)) => {
                        let complete = body.take().and_then(|body| body.complete().ok());
                        let of_app = |held: Held| if bytes % 2 == 0 { Ok(held) } else { held.of_app(["a", "b"][which % 2]) };
                        held.extend(complete.and_then(|held| of_app(held).ok()));
                    }
                    (4, body) => { *body = None; held.pop(); }
                    _ => {}
                }
                let state = budget.lock();
                for pool in &state.pools {
                    prop_assert!(pool.held <= pool.max && pool.reading_bytes <= pool.held);
                    prop_assert_eq!(pool.reading_bytes, pool.reading.values().map(|entry| entry.bytes).sum::<usize>());
                    prop_assert!(pool.by_app.values().sum::<usize>() <= pool.held - pool.reading_bytes);
                }
            }
            drop((bodies, held));
            prop_assert_eq!(budget.held(), 0);
            prop_assert!(budget.lock().pools.iter().all(|pool| pool.by_app.values().all(|held| *held == 0)));
        }
    }
}
