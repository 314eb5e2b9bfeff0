//! The deliveries of the last minutes whose payload names its event, so that a retry is told from a new event.
//!
//! A retry of what is durable is not published again, and a copy that comes while the first is in flight waits for the first one's
//! outcome: it never gets a 200 for something that then failed. What failed is forgotten at once, so that the next retry is an event
//! again. Bounded in time and number; losing an entry costs a duplicate, never an event.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

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
    /// Deduplication is off, or full of deliveries in flight: it is to be published.
    Untracked,
}

/// The deliveries; clones share them.
#[derive(Clone)]
pub struct Dedup {
    state: Arc<Mutex<State>>,
}

struct State {
    config: Config,
    by_key: HashMap<RetryKey, Entry>,
    /// Those that are durable, the oldest first.
    durable: VecDeque<(Instant, RetryKey)>,
}

enum Entry {
    /// The copies that wait for its outcome, if there are any.
    InFlight(Option<watch::Sender<Option<Settled>>>),
    Durable,
}

impl Dedup {
    pub fn new(config: Config) -> Self {
        let state = State { config, by_key: HashMap::new(), durable: VecDeque::new() };
        Self { state: Arc::new(Mutex::new(state)) }
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
        match state.by_key.get_mut(&key) {
            Some(Entry::Durable) => return Check::Durable,
            Some(Entry::InFlight(outcome)) => {
                let outcome = outcome.get_or_insert_with(|| watch::channel(None).0);
                return Check::InFlight(FirstOutcome(outcome.subscribe()));
            }
            None => {}
        }
        if state.by_key.len() >= state.config.entries_max && !state.forget_oldest() {
            return Check::Untracked;
        }
        state.by_key.insert(key, Entry::InFlight(None));
        Check::New(Claim { dedup: self.clone(), key, settled: None })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_outdated(&mut self) {
        let time = Instant::now().checked_sub(self.config.window);
        while self.durable.front().is_some_and(|(since, _)| Some(*since) < time) {
            self.forget_oldest();
        }
    }

    /// Forgets the oldest that is durable, if any is.
    fn forget_oldest(&mut self) -> bool {
        self.durable.pop_front().is_some_and(|(_, key)| self.by_key.remove(&key).is_some())
    }
}

/// The duty to tell how the first delivery of an event ended. Dropped untold, it counts as failed.
pub struct Claim {
    dedup: Dedup,
    key: RetryKey,
    settled: Option<Settled>,
}

impl Claim {
    /// Tells the copies, and the deliveries to come.
    pub fn settle(mut self, settled: Settled) {
        self.settled = Some(settled);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.dedup.state();
        let entry = if self.settled == Some(Ok(())) {
            state.durable.push_back((Instant::now(), self.key));
            state.by_key.insert(self.key, Entry::Durable)
        } else {
            state.by_key.remove(&self.key)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dedup(seconds: u64, entries_max: usize) -> Dedup {
        Dedup::new(Config { window: Duration::from_secs(seconds), entries_max })
    }

    fn claim(dedup: &Dedup, key: u8) -> Claim {
        match dedup.check([key; 16]) {
            Check::New(claim) => claim,
            _ => panic!("not new"),
        }
    }

    fn is_durable(dedup: &Dedup, key: u8) -> bool {
        matches!(dedup.check([key; 16]), Check::Durable)
    }

    #[tokio::test]
    async fn a_copy_gets_the_first_ones_outcome() {
        let dedup = dedup(60, 10);
        for settled in [Err(Unavailable::Kafka), Ok(())] {
            let first = claim(&dedup, 1);
            let Check::InFlight(copy) = dedup.check([1; 16]) else { panic!("not in flight") };
            first.settle(settled);
            assert_eq!(copy.outcome().await, Some(settled));
        }
        assert!(is_durable(&dedup, 1));
    }

    #[tokio::test]
    async fn what_failed_or_was_dropped_is_new_again() {
        let dedup = dedup(60, 10);
        claim(&dedup, 1).settle(Err(Unavailable::Kafka));
        let dropped = claim(&dedup, 1);
        let Check::InFlight(copy) = dedup.check([1; 16]) else { panic!("not in flight") };
        drop(dropped);
        assert_eq!(copy.outcome().await, None);
        claim(&dedup, 1).settle(Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn entries_are_forgotten_by_age_and_by_number_but_not_while_they_are_in_flight() {
        let dedup = dedup(60, 2);
        claim(&dedup, 1).settle(Ok(()));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(is_durable(&dedup, 1));
        tokio::time::advance(Duration::from_millis(1)).await;
        claim(&dedup, 1).settle(Ok(()));
        claim(&dedup, 2).settle(Ok(()));
        claim(&dedup, 3).settle(Ok(()));
        assert!(is_durable(&dedup, 2) && is_durable(&dedup, 3));
        let in_flight = [claim(&dedup, 4), claim(&dedup, 5)];
        assert!(matches!(dedup.check([6; 16]), Check::Untracked));
        assert!(matches!(dedup.check([4; 16]), Check::InFlight(_)));
        drop(in_flight);
        claim(&dedup, 4).settle(Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_limits_keeps_what_they_have_room_for_and_all_that_is_in_flight() {
        let dedup = dedup(60, 4);
        let set = |seconds, entries_max| dedup.set(Config { window: Duration::from_secs(seconds), entries_max });
        (1..=3).for_each(|key| claim(&dedup, key).settle(Ok(())));
        let first = claim(&dedup, 4);
        set(60, 2);
        assert!(is_durable(&dedup, 3) && !dedup.state().by_key.contains_key(&[2; 16]));
        set(0, 2);
        let Check::Untracked = dedup.check([3; 16]) else { panic!("it is off") };
        set(60, 2);
        let Check::InFlight(copy) = dedup.check([4; 16]) else { panic!("it is in flight") };
        first.settle(Ok(()));
        assert_eq!(copy.outcome().await, Some(Ok(())));
        claim(&dedup, 3).settle(Ok(()));
        tokio::time::advance(Duration::from_secs(30)).await;
        set(20, 2);
        claim(&dedup, 3).settle(Ok(()));
        assert!(is_durable(&dedup, 3) && !dedup.state().by_key.contains_key(&[4; 16]));
    }

    #[test]
    fn off_is_off() {
        assert!(matches!(dedup(0, 10).check([1; 16]), Check::Untracked));
        assert!(matches!(dedup(60, 0).check([1; 16]), Check::Untracked));
    }

    proptest! {
        /// Against a model that is a list: what it calls durable was settled so within the window, and the bound holds.
        #[test]
        fn it_never_invents_a_durable_event(steps in proptest::collection::vec((0_u8..6, 0_u8..4, 0_u64..30), 0..80)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
            runtime.block_on(async {
                let dedup = dedup(40, 4);
                let (mut durable, mut claims) = (Vec::<(u8, Instant)>::new(), Vec::<(u8, Claim)>::new());
                for (key, step, seconds) in steps {
                    tokio::time::advance(Duration::from_secs(seconds)).await;
                    match (step, claims.iter().position(|(k, _)| *k == key)) {
                        (0, Some(i)) => { claims.remove(i).1.settle(Ok(())); durable.push((key, Instant::now())); }
                        (1, Some(i)) => claims.remove(i).1.settle(Err(Unavailable::Kafka)),
                        (2, Some(i)) => drop(claims.remove(i)),
                        (_, in_flight) => match dedup.check([key; 16]) {
                            Check::New(claim) => { prop_assert!(in_flight.is_none()); claims.push((key, claim)); }
                            Check::InFlight(_) => prop_assert!(in_flight.is_some()),
                            Check::Durable => prop_assert!(durable.iter().any(|(k, at)| *k == key && at.elapsed().as_secs() <= 40)),
                            Check::Untracked => prop_assert!(claims.len() == 4),
                        },
                    }
                    let state = dedup.state();
                    prop_assert!(state.by_key.len() <= 4);
                    prop_assert_eq!(state.by_key.len(), state.durable.len() + claims.len());
                }
                Ok(())
            })?;
        }
    }
}
