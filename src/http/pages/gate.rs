//! How often, and by how many at once, LiveChat is called for strangers. Installations have a gate of their own, so that nothing that is done to
//! the app's page closes them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

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

/// What a request has paid.
pub struct Paid {
    gate: Arc<Gate>,
    client: IpAddr,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        Arc::new(Self { by_source: Failures::default(), together: Failures::default(), calls })
    }

    /// Takes what a request costs that has LiveChat called.
    ///
    /// # Errors
    /// [`PageEnd::TooMany`]: it has paid too often.
    pub fn pay(self: &Arc<Self>, client: IpAddr) -> Result<Paid, PageEnd> {
        let now = Instant::now();
        let wait = self.by_source.count(client, &OF_SOURCE, now).retry_after;
        match wait.or_else(|| self.together.count(ALL, &OF_ALL, now).retry_after) {
            Some(_) => Err(PageEnd::TooMany),
            None => Ok(Paid { gate: Arc::clone(self), client }),
        }
    }

    /// The right to call LiveChat.
    ///
    /// # Errors
    /// [`PageEnd::Busy`]: others had it for too long.
    pub async fn turn(&self) -> Result<OwnedSemaphorePermit, PageEnd> {
        let turn = timeout(PATIENCE, Arc::clone(&self.calls).acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or(PageEnd::Busy)
    }
}

impl Paid {
    /// LiveChat has confirmed who has asked: that costs nothing. So many users behind one address do not shut each other out.
    pub fn give_back(self) {
        let now = Instant::now();
        self.gate.by_source.give_back(self.client, &OF_SOURCE, now);
        self.gate.together.give_back(ALL, &OF_ALL, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn all_sources_together_have_fewer_calls_than_codes_are_remembered() {
        let gate = Gate::new();
        let paid = |n: std::ops::Range<u32>| n.filter(|n| gate.pay(client(*n)).is_ok()).count();
        assert_eq!(paid(0..1000), 120);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(paid(1000..2000), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_livechat_confirms_costs_nothing_and_guesses_of_a_few_sources_leave_others_theirs() {
        let gate = Gate::new();
        for _ in 0..500 {
            gate.pay(client(0)).expect("it costs nothing").give_back();
        }
        for guesser in 1..4 {
            let guessed = (0..100).filter(|_| gate.pay(client(guesser)).is_ok()).count();
            assert_eq!(guessed, 20);
        }
        for n in 4..24 {
            assert!(gate.pay(client(n)).is_ok());
        }
        assert!((0..20).all(|_| gate.pay(client(0)).is_ok()) && gate.pay(client(0)).is_err());
    }
}
