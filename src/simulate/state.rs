//! All that the simulated LiveChat remembers: who has which codes and tokens, what is installed and registered, what was called.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::chats::Chats;
use super::deliveries::Report;
use super::exchange::{Members, Request};
use super::setup::{Organization, Setup};
use super::switches::{Fault, Switches};

/// The log of requests has so many; then the oldest are forgotten.
const REQUESTS_MAX: usize = 10_000;

pub struct State {
    pub setup: Setup,
    pub switches: Switches,
    pub faults: Vec<Fault>,
    pub codes: Vec<Code>,
    pub pairs: Vec<Pair>,
    /// By organization and client.
    pub installations: BTreeMap<(String, String), Installation>,
    pub registrations: Vec<Registration>,
    pub chats: Chats,
    pub report: Report,
    pub requests: Requests,
    /// When calls came, as far back as the rate limit looks.
    pub calls: VecDeque<Instant>,
    /// Calls that LiveChat would bill.
    pub billed: u64,
}

impl State {
    pub fn new(setup: Setup, now: Instant) -> Self {
        let clients = setup.clients.iter();
        let installed =
            clients.flat_map(|client| client.installed.iter().map(|organization| (organization, &client.id)));
        let installation = Installation { installed: Delayed::always(true, now), enabled: Delayed::always(true, now) };
        Self {
            installations: installed.map(|(o, c)| ((o.clone(), c.clone()), installation)).collect(),
            switches: setup.switches.clone(),
            setup,
            faults: Vec::new(),
            codes: Vec::new(),
            pairs: Vec::new(),
            registrations: Vec::new(),
            chats: Chats::default(),
            report: Report::default(),
            requests: Requests::default(),
            calls: VecDeque::new(),
            billed: 0,
        }
    }

    pub fn listing_lag(&self) -> Duration {
        Duration::from_secs_f64(self.switches.listing_lag)
    }

    pub fn delivery_lag(&self) -> Duration {
        Duration::from_secs_f64(self.switches.delivery_lag)
    }

    /// What begins with the region of an organization, or not.
    pub fn with_region(&self, organization: &Organization, token: &str) -> String {
        if self.switches.region_prefix { format!("{}:{token}", organization.region) } else { token.to_owned() }
    }

    /// What has taken effect stays so, whatever the lags will be.
    pub fn settle(&mut self, now: Instant) {
        let (listing, delivery) = (self.listing_lag(), self.delivery_lag());
        for registration in &mut self.registrations {
            registration.listed.settle(now, listing);
            registration.delivered.settle(now, delivery);
        }
        for installation in self.installations.values_mut() {
            installation.installed.settle(now, delivery);
            installation.enabled.settle(now, delivery);
        }
    }

    /// Installs an app for an organization, which enables its webhooks unless they were disabled there; or takes it away.
    pub fn install(&mut self, organization: &str, client: &str, is_installed: bool, now: Instant) {
        let lag = self.delivery_lag();
        let none = Installation { installed: Delayed::always(false, now), enabled: Delayed::always(true, now) };
        let key = (organization.to_owned(), client.to_owned());
        self.installations.entry(key).or_insert(none).installed.set(is_installed, now, lag);
    }
}

/// A value that takes effect a while after it was changed: the lag that was switched then, or the one that is now, if it is shorter.
#[derive(Clone, Copy, Debug)]
pub struct Delayed<T> {
    pub value: T,
    former: T,
    since: Instant,
    lag: Duration,
}

impl<T: Copy> Delayed<T> {
    pub const fn always(value: T, since: Instant) -> Self {
        Self { value, former: value, since, lag: Duration::ZERO }
    }

    pub fn effective(&self, now: Instant, lag: Duration) -> T {
        if now.duration_since(self.since) >= lag.min(self.lag) { self.value } else { self.former }
    }

    pub fn settle(&mut self, now: Instant, lag: Duration) {
        self.former = self.effective(now, lag);
    }

    pub fn set(&mut self, value: T, now: Instant, lag: Duration) {
        *self = Self { value, former: self.effective(now, lag), since: now, lag };
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Installation {
    pub installed: Delayed<bool>,
    /// Survives the installation: what was disabled stays so when the app is installed again.
    pub enabled: Delayed<bool>,
}

#[derive(Clone, Debug)]
pub struct Registration {
    pub id: String,
    pub owner: String,
    /// Of the API: the minor number of the version that registered it.
    pub version: u8,
    pub action: String,
    pub url: String,
    pub secret_key: String,
    pub level: String,
    pub filters: Value,
    pub additional_data: BTreeSet<String>,
    pub description: String,
    /// For the listing and for deliveries: whether it is there.
    pub listed: Delayed<bool>,
    pub delivered: Delayed<bool>,
}

/// An authorization code.
#[derive(Clone, Debug)]
pub struct Code {
    pub code: String,
    pub grant: Grant,
    pub redirect_uri: String,
    /// The method, `S256` or `plain`, and the challenge.
    pub challenge: Option<(String, String)>,
    pub until: Instant,
    pub is_used: bool,
}

/// Who lets which application do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub client: String,
    pub account: String,
    pub organization: String,
    pub scopes: BTreeSet<String>,
}

/// An access token and the refresh token that came with it.
#[derive(Clone, Debug)]
pub struct Pair {
    pub access: String,
    /// None once it was used, where refresh tokens rotate.
    pub refresh: Option<String>,
    pub grant: Grant,
    pub until: Instant,
}

/// One call as it came, and what was answered. It has secrets: it is for assertions.
#[derive(Clone, Debug, Serialize)]
pub struct LoggedRequest {
    pub number: u64,
    pub time: Timestamp,
    /// LiveChat's name of the method: `register_webhook`, `token`, `authorize`, …
    pub method: String,
    pub http: String,
    pub path: String,
    pub query: Members,
    pub headers: Members,
    pub body: String,
    /// Null until it is answered.
    pub status: Option<u16>,
    pub error: Option<String>,
}

#[derive(Default)]
pub struct Requests {
    pub kept: VecDeque<LoggedRequest>,
    pub count: u64,
}

impl Requests {
    /// Its number.
    pub fn begin(&mut self, method: &str, request: &Request) -> u64 {
        self.count += 1;
        let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        self.kept.push_back(LoggedRequest {
            number: self.count,
            time: Timestamp::now(),
            method: method.to_owned(),
            http: request.method.to_string(),
            path: request.path.clone(),
            query: request.query(),
            headers: request.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body: String::from_utf8_lossy(&request.body).into_owned(),
            status: None,
            error: None,
        });
        if self.kept.len() > REQUESTS_MAX {
            self.kept.pop_front();
        }
        self.count
    }

    pub fn end(&mut self, number: u64, status: u16, error: Option<String>) {
        if let Some(called) = self.kept.iter_mut().rev().find(|called| called.number == number) {
            (called.status, called.error) = (Some(status), error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_takes_effect_after_the_lag_and_can_be_taken_back_before() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let lag = Duration::from_secs(60);
        let mut there = Delayed::always(false, start);
        there.set(true, at(10), lag);
        assert_eq!([at(10), at(69), at(70)].map(|now| there.effective(now, lag)), [false, false, true]);
        assert!(there.effective(at(10), Duration::ZERO), "a shorter lag counts at once");
        assert!(there.effective(at(70), 2 * lag), "a longer one for later changes");

        there.set(false, at(20), lag);
        assert_eq!([at(20), at(75), at(90)].map(|now| there.effective(now, lag)), [false; 3]);
    }
}
