//! How often, and by how many at once, LiveChat is called for strangers. Installations have a gate of their own, so that nothing that is done to
//! the app's page closes them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::http::failures::{self, Failures};
use crate::outcome::PageEnd;

/// What a source may have asked of LiveChat in vain: so much a minute in the long run, and so much at once.
const OF_SOURCE: failures::Config = failures::Config { per_minute: 10, burst: 20, sources_max: 4096 };

/// What all may, together: six sources that do nothing else.
const OF_ALL: failures::Config = failures::Config { per_minute: 120, burst: 120, sources_max: 1 };

/// The one source of [`OF_ALL`].
const ALL: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Requests that call LiveChat at once, and how long another one waits to be one of them.
const CALLS_MAX: usize = 4;
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Gate {
    by_source: Failures,
    together: Failures,
    calls: Arc<Semaphore>,
}

/// The right to call LiveChat for a client. It costs one of the client's tries, unless LiveChat confirms who has asked: that costs nothing,
/// so many users behind one address do not shut each other out, however many come at once.
pub struct Turn {
    gate: Arc<Gate>,
    client: IpAddr,
    is_confirmed: bool,
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        Arc::new(Self { by_source: Failures::default(), together: Failures::default(), calls })
    }

    /// The right to call LiveChat for who is not known.
    ///
    /// # Errors
    /// [`PageEnd::TooMany`]: its tries, or those of all, are used up. [`PageEnd::Busy`], as of [`Gate::permit`].
    pub async fn turn(self: &Arc<Self>, client: IpAddr, deadline: Instant) -> Result<Turn, PageEnd> {
        self.check(client)?; // who has no try left does not join those that wait
        let permit = self.permit(deadline).await?;
        self.check(client)?; // those before it have been counted since, but for the few that are under way
        Ok(Turn { gate: Arc::clone(self), client, is_confirmed: false, _permit: permit })
    }

    fn check(&self, client: IpAddr) -> Result<(), PageEnd> {
        let now = Instant::now();
        let is_spent = self.by_source.is_spent(client, &OF_SOURCE, now) || self.together.is_spent(ALL, &OF_ALL, now);
        if is_spent { Err(PageEnd::TooMany) } else { Ok(()) }
    }

    /// The right to call LiveChat for who is known.
    ///
    /// # Errors
    /// [`PageEnd::Busy`]: others had it for too long.
    pub async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, PageEnd> {
        let deadline = deadline.min(Instant::now() + PATIENCE);
        let permit = timeout_at(deadline, Arc::clone(&self.calls).acquire_owned()).await;
        permit.ok().and_then(Result::ok).ok_or(PageEnd::Busy)
    }
}

impl Turn {
    /// LiveChat has confirmed who has asked.
    pub fn confirmed(&mut self) {
        self.is_confirmed = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_confirmed {
            let now = Instant::now();
            self.gate.by_source.count(self.client, &OF_SOURCE, now);
            self.gate.together.count(ALL, &OF_ALL, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    fn client(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    async fn turn(gate: &Arc<Gate>, n: u32) -> Result<Turn, PageEnd> {
        gate.turn(client(n), Instant::now() + 2 * PATIENCE).await
    }

    /// How many of these clients may try, each once.
    async fn tries(gate: &Arc<Gate>, clients: impl IntoIterator<Item = u32>) -> usize {
        let mut tries = 0;
        for n in clients {
            tries += usize::from(turn(gate, n).await.is_ok());
        }
        tries
    }

    #[tokio::test(start_paused = true)]
    async fn all_sources_together_have_fewer_tries_than_codes_are_remembered() {
        let gate = Gate::new();
        assert_eq!(tries(&gate, 0..1000).await, 120);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(tries(&gate, 1000..2000).await, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_livechat_confirms_costs_nothing_and_guesses_of_a_few_sources_leave_others_theirs() {
        let gate = Gate::new();
        for _ in 0..500 {
            turn(&gate, 0).await.expect("it costs nothing").confirmed();
        }
        for guesser in 1..4 {
            assert_eq!(tries(&gate, [guesser; 100]).await, 20);
        }
        assert_eq!(tries(&gate, 4..24).await, 20);
        assert_eq!(tries(&gate, [0; 100]).await, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn users_behind_one_address_who_come_at_once_wait_for_each_other_and_none_is_refused() {
        let gate = Gate::new();
        let confirmed = (0..100).map(|_| async {
            let mut turn = turn(&gate, 0).await?;
            tokio::time::sleep(Duration::from_millis(100)).await; // LiveChat's answer
            turn.confirmed();
            Ok::<_, PageEnd>(())
        });
        assert!(join_all(confirmed).await.iter().all(Result::is_ok));
        let _calls = join_all((0..4).map(|_| turn(&gate, 0))).await;
        assert_eq!(turn(&gate, 0).await.err(), Some(PageEnd::Busy), "four call already");
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_that_come_at_once_are_only_a_few_more_than_those_that_come_in_turn() {
        let gate = Gate::new();
        let guesses = (0..200).map(|_| async {
            let turn = turn(&gate, 0).await;
            tokio::time::sleep(Duration::from_millis(100)).await; // LiveChat's answer
            turn.is_ok()
        });
        let called = join_all(guesses).await.into_iter().filter(|called| *called).count();
        assert!((20..20 + CALLS_MAX).contains(&called), "{called}");
    }
}
