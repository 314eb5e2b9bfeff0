//! What has become of one app's webhooks. The app holds its counts, so that counting needs no look-up by labels and a reload keeps
//! them; [`Metrics`](super::Metrics) shows them when it is scraped.

use std::array::from_fn;
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::event::{Rejection, actions, route::UNLISTED};
use crate::outcome::{Outcome, Refusal, Unavailable};

/// How often each thing has happened since the start.
pub struct Counts {
    /// By action, as metrics call it; each array is in the order of [`Outcome::LABELS`].
    events: HashMap<&'static str, [AtomicU64; Outcome::LABELS.len()]>,
    refused: [AtomicU64; Refusal::ALL.len()],
    rejected: [AtomicU64; Rejection::ALL.len()],
    unavailable: [AtomicU64; Unavailable::ALL.len()],
}

impl Counts {
    /// Of an app of `[[apps]]`.
    pub fn of_app() -> Self {
        Self::new(actions::names().chain([UNLISTED, actions::APP_INSTALLED.name]))
    }

    /// Of App Webhooks.
    pub fn of_app_webhooks() -> Self {
        Self::new([actions::APP_WEBHOOK.name].into_iter())
    }

    /// Of requests that lead to no app: they never become events.
    pub fn of_strangers() -> Self {
        Self::new(std::iter::empty())
    }

    fn new(actions: impl Iterator<Item = &'static str>) -> Self {
        Self {
            events: actions.map(|action| (action, from_fn(|_| AtomicU64::default()))).collect(),
            refused: from_fn(|_| AtomicU64::default()),
            rejected: from_fn(|_| AtomicU64::default()),
            unavailable: from_fn(|_| AtomicU64::default()),
        }
    }

    /// What has become of an event. `action` is one that the app can have: see [`Event::action_label`](crate::event::Event::action_label).
    pub fn event(&self, action: &str, outcome: Outcome) {
        if let Some(outcomes) = self.events.get(action) {
            outcomes[outcome.number()].fetch_add(1, Relaxed);
        }
    }

    /// What has become of a request. Those that were answered 200 are counted as events alone.
    pub fn request(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Refused(refusal) => &self.refused[refusal as usize],
            Outcome::Rejected(rejection) => &self.rejected[rejection as usize],
            Outcome::Unavailable(reason) => &self.unavailable[reason as usize],
            _ => return,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// The events, by action and outcome.
    pub fn events(&self) -> impl Iterator<Item = ([&'static str; 2], u64)> {
        self.events.iter().flat_map(|(action, outcomes)| {
            Outcome::LABELS.iter().zip(outcomes).map(|(outcome, count)| ([*action, outcome], count.load(Relaxed)))
        })
    }

    /// The requests that were answered 4xx, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let refused = Refusal::ALL.iter().map(|refusal| refusal.label()).zip(&self.refused);
        let rejected = Rejection::ALL.iter().map(|rejection| rejection.label()).zip(&self.rejected);
        refused.chain(rejected).map(|(reason, count)| (reason, count.load(Relaxed)))
    }

    /// The requests that were answered 503, by reason.
    pub fn unavailable(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let reasons = Unavailable::ALL.iter().map(|reason| reason.label());
        reasons.zip(&self.unavailable).map(|(reason, count)| (reason, count.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_is_counted_under_its_own_label() {
        let counts = Counts::of_app();
        for (times, refusal) in (1..).zip(Refusal::ALL) {
            (0..times).for_each(|_| counts.request(Outcome::Refused(*refusal)));
        }
        for (times, rejection) in (100..).zip(Rejection::ALL) {
            (0..times).for_each(|_| counts.request(Outcome::Rejected(*rejection)));
        }
        for (times, reason) in (1..).zip(Unavailable::ALL) {
            (0..times).for_each(|_| counts.request(Outcome::Unavailable(*reason)));
        }
        counts.request(Outcome::Published);
        let of_refusals = (1..).zip(Refusal::ALL).map(|(times, refusal)| (refusal.label(), times));
        let of_rejections = (100..).zip(Rejection::ALL).map(|(times, rejection)| (rejection.label(), times));
        assert!(counts.refused().eq(of_refusals.chain(of_rejections)));
        assert!(counts.unavailable().eq((1..).zip(Unavailable::ALL).map(|(times, reason)| (reason.label(), times))));

        counts.event("thread_tagged", Outcome::Spooled);
        counts.event("thread_tagged", Outcome::Unavailable(Unavailable::Kafka));
        let counted: Vec<_> = counts.events().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(["thread_tagged", "spooled"], 1), (["thread_tagged", "unavailable"], 1)]);
    }

    #[test]
    fn strangers_and_app_webhooks_have_no_actions_of_apps() {
        assert_eq!(Counts::of_strangers().events().count(), 0);
        let of_app_webhooks = Counts::of_app_webhooks();
        assert!(of_app_webhooks.events().all(|([action, _], _)| action == "app_webhook"));
        assert!(Counts::of_app().events().all(|([action, _], _)| action != "app_webhook"));
    }
}
