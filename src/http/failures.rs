//! Failed verifications by source: after too many of them 401 becomes 429, which spares the log and says that it was noticed. A webhook
//! with a right key is never asked about here, so nothing that others do can hold it back.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// `[server.failed_verifications]`.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// So many a minute are answered 401 in the long run,
    pub per_minute: u32,
    /// and so many at once.
    pub burst: u32,
    /// Sources that are remembered.
    pub sources_max: usize,
}

/// A token bucket for each source: an IPv4 address, or an IPv6 network of 64 bits, which is what one customer has. Only failed
/// verifications take the lock.
#[derive(Default)]
pub struct Failures(Mutex<Table>);

#[derive(Default)]
struct Table {
    by_source: HashMap<IpAddr, Bucket>,
    /// The same, from the fullest bucket on.
    by_time: BTreeSet<(Instant, IpAddr)>,
}

#[derive(Clone, Copy)]
struct Bucket {
    /// When it is full again. That is all there is to a bucket that fills steadily.
    full_at: Instant,
    /// It was empty since it was full.
    was_empty: bool,
}

/// What becomes of a failed verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// There was no token left: when there is one.
    pub retry_after: Option<Duration>,
    /// Whether the log has it: up to the first one that found no token, and after that not before the bucket was full again.
    pub is_logged: bool,
}

impl Failures {
    /// Takes a token of the client's source.
    pub fn count(&self, client: IpAddr, config: &Config, now: Instant) -> Failed {
        let interval = config.interval();
        let capacity = interval * config.burst;
        let source = source(client);
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = table.by_source.get(&source).copied().filter(|bucket| bucket.full_at > now);
        let bucket = known.unwrap_or(Bucket { full_at: now, was_empty: false });
        let full_at = bucket.full_at + interval;
        let retry_after = (full_at - now).checked_sub(capacity).filter(|wait| !wait.is_zero());
        let after = match retry_after {
            Some(_) => Bucket { was_empty: true, ..bucket },
            None => Bucket { full_at, ..bucket },
        };
        table.set(source, after, config.sources_max);
        Failed { retry_after, is_logged: !bucket.was_empty }
    }

    /// Whether [`Failures::count`] would find no token.
    pub fn is_spent(&self, client: IpAddr, config: &Config, now: Instant) -> bool {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = config.interval();
        let is_spent = |bucket: &Bucket| bucket.full_at + interval > now + interval * config.burst;
        table.by_source.get(&source(client)).is_some_and(is_spent)
    }
}

impl Config {
    /// From one token to the next.
    fn interval(&self) -> Duration {
        Duration::from_secs(60) / self.per_minute.max(1)
    }
}

impl Table {
    /// Of a full table the fullest bucket is forgotten: it is the one that is nearest to having nothing to remember.
    fn set(&mut self, source: IpAddr, bucket: Bucket, sources_max: usize) {
        if let Some(before) = self.by_source.insert(source, bucket) {
            self.by_time.remove(&(before.full_at, source));
        }
        while self.by_time.len() >= sources_max.max(1) {
            let Some((_, fullest)) = self.by_time.pop_first() else { break };
            self.by_source.remove(&fullest);
        }
        self.by_time.insert((bucket.full_at, source));
    }
}

fn source(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Config = Config { per_minute: 6, burst: 3, sources_max: 4 };

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn past_the_burst_a_source_has_to_wait_and_is_logged_no_more_until_it_was_quiet() {
        let (failures, start) = (Failures::default(), Instant::now());
        let at = |seconds| {
            let failed = failures.count(ip("192.0.2.1"), &CONFIG, start + Duration::from_secs(seconds));
            (failed.retry_after.map(|wait| wait.as_secs()), failed.is_logged)
        };
        for _ in 0..3 {
            assert_eq!(at(0), (None, true));
        }
        let is_spent = |seconds| failures.is_spent(ip("192.0.2.1"), &CONFIG, start + Duration::from_secs(seconds));
        assert_eq!([0, 9, 10].map(is_spent), [true, true, false]);
        assert_eq!(at(0), (Some(10), true), "the first that is refused");
        assert_eq!(at(4), (Some(6), false), "to ask again costs nothing");
        assert_eq!(at(10), (None, false), "one token, ten seconds later");
        assert_eq!(at(10), (Some(10), false));
        assert_eq!(at(39), (None, false), "it was never full");
        assert_eq!(at(100), (None, true), "it is full again");
    }

    #[test]
    fn sources_are_ipv4_addresses_and_ipv6_networks_of_64_bits() {
        let (failures, now) = (Failures::default(), Instant::now());
        let tokens = |address: &str| {
            (0..10).take_while(|_| failures.count(ip(address), &CONFIG, now).retry_after.is_none()).count()
        };
        assert_eq!((tokens("192.0.2.1"), tokens("192.0.2.2"), tokens("::ffff:192.0.2.1")), (3, 3, 0));
        assert_eq!((tokens("2001:db8::1"), tokens("2001:db8::ffff:2"), tokens("2001:db8:0:1::1")), (3, 0, 3));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_those_who_have_failed_least() {
        let (failures, now) = (Failures::default(), Instant::now());
        let is_refused = |address: IpAddr| failures.count(address, &CONFIG, now).retry_after.is_some();
        for _ in 0..4 {
            is_refused(ip("192.0.2.1"));
        }
        for n in 0..10_000_u32 {
            assert!(!is_refused(IpAddr::from((n + 0x0a00_0000).to_be_bytes())));
        }
        assert!(is_refused(ip("192.0.2.1")), "it is remembered");
        let table = failures.0.lock().expect("no panic");
        assert_eq!((table.by_source.len(), table.by_time.len()), (4, 4));
    }
}
