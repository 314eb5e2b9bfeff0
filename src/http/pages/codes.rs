//! Authorization codes that were seen: each is exchanged once, however often it comes. Only digests are kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// How long a code is remembered: longer than LiveChat takes it, which is a few minutes.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// So many codes are remembered. Each new one costs a token of the buckets in `pages`, which have fewer in that time.
const CODES_MAX: usize = 2048;

pub type Digest = [u8; 32];

/// The digest of a secret that belongs to an app.
pub fn digest(app: &str, secret: &SecretString) -> Digest {
    Sha256::new().chain_update(app).chain_update([0]).chain_update(secret.expose_secret()).finalize().into()
}

/// `T` is what is left to do for a code that was exchanged.
pub struct Codes<T>(Mutex<HashMap<Digest, (Instant, State<T>)>>);

enum State<T> {
    /// A request is about it.
    Busy,
    /// It was exchanged, or LiveChat has refused it.
    Used,
    Unfinished(T),
}

/// What is known of a code.
pub enum Seen<T> {
    /// Nothing: it may be exchanged.
    New(Claim<T>),
    /// It was exchanged, and this is left to do.
    Unfinished(Claim<T>, T),
    /// Another request is about it, or there are too many codes.
    Busy,
    Used,
}

/// The right to be the one who deals with a code. Dropped, it forgets the code, and the next request begins from the start.
pub struct Claim<T> {
    codes: Arc<Codes<T>>,
    digest: Digest,
    after: Option<State<T>>,
}

impl<T: Clone> Codes<T> {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    pub fn see(self: &Arc<Self>, digest: Digest, now: Instant) -> Seen<T> {
        let mut codes = self.lock();
        codes.retain(|_, (until, state)| *until > now || matches!(state, State::Busy));
        let claim = || Claim { codes: Arc::clone(self), digest, after: None };
        let seen = match codes.get(&digest) {
            Some((_, State::Busy)) => return Seen::Busy,
            Some((_, State::Used)) => return Seen::Used,
            Some((_, State::Unfinished(rest))) => Seen::Unfinished(claim(), rest.clone()),
            None if codes.len() >= CODES_MAX => return Seen::Busy,
            None => Seen::New(claim()),
        };
        codes.insert(digest, (now + REMEMBERED, State::Busy));
        seen
    }
}

impl<T> Codes<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, (Instant, State<T>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Claim<T> {
    /// The code can do nothing more.
    pub fn used(mut self) {
        self.after = Some(State::Used);
    }

    /// The code was exchanged; the next request with it does the rest.
    pub fn unfinished(mut self, rest: T) {
        self.after = Some(State::Unfinished(rest));
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        let mut codes = self.codes.lock();
        match self.after.take() {
            Some(state) => drop(codes.insert(self.digest, (Instant::now() + REMEMBERED, state))),
            None => drop(codes.remove(&self.digest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str) -> Digest {
        digest("app", &SecretString::from(code))
    }

    #[tokio::test(start_paused = true)]
    async fn a_code_has_one_request_at_a_time_and_is_used_once_for_as_long_as_livechat_takes_it() {
        let codes = Codes::<u8>::new();
        let Seen::New(claim) = codes.see(of("a"), Instant::now()) else { panic!("it is new") };
        assert!(matches!(codes.see(of("a"), Instant::now()), Seen::Busy));
        assert!(matches!(codes.see(digest("other", &SecretString::from("a")), Instant::now()), Seen::New(_)));
        drop(claim); // LiveChat could not be reached
        let Seen::New(claim) = codes.see(of("a"), Instant::now()) else { panic!("it is forgotten") };
        claim.unfinished(7);
        let Seen::Unfinished(claim, 7) = codes.see(of("a"), Instant::now()) else { panic!("something is left to do") };
        assert!(matches!(codes.see(of("a"), Instant::now()), Seen::Busy));
        claim.used();
        tokio::time::advance(Duration::from_secs(899)).await;
        assert!(matches!(codes.see(of("a"), Instant::now()), Seen::Used));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(matches!(codes.see(of("a"), Instant::now()), Seen::New(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_forgets_no_used_code_for_a_new_one() {
        let codes = Codes::<u8>::new();
        for n in 0..CODES_MAX {
            let Seen::New(claim) = codes.see(of(&n.to_string()), Instant::now()) else { panic!("{n} is new") };
            claim.used();
        }
        assert!(matches!(codes.see(of("one more"), Instant::now()), Seen::Busy));
        assert!(matches!(codes.see(of("0"), Instant::now()), Seen::Used));
        assert_eq!(codes.lock().len(), CODES_MAX);
        tokio::time::advance(REMEMBERED).await;
        assert!(matches!(codes.see(of("one more"), Instant::now()), Seen::New(_)));
        assert_eq!(codes.lock().len(), 0, "that claim was dropped");
    }
}
