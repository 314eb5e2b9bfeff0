//! Events that were made of LiveChat's archive, on the way of all webhooks: the same routes, rules, lanes and dedup.

use serde::{Deserialize, Serialize};

use super::{Accepted, Backend, Pending, Policy, Relay};
use crate::event::Archived;
use crate::outcome::{Outcome, Unavailable};

/// What has become of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backfilled {
    pub published: u64,
    pub spooled: u64,
    /// The relay has published the same event a moment ago.
    pub duplicate: u64,
    pub dead_lettered: u64,
    pub dropped: u64,
    /// Not durable: they have to be sent again.
    pub unavailable: u64,
    /// Why the first of those is not.
    pub reason: Option<String>,
}

impl Backfilled {
    pub fn count(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Published => &mut self.published,
            Outcome::Spooled => &mut self.spooled,
            Outcome::Duplicate => &mut self.duplicate,
            Outcome::DeadLettered => &mut self.dead_lettered,
            Outcome::Dropped => &mut self.dropped,
            Outcome::Unavailable(_) | Outcome::Rejected(_) | Outcome::Refused(_) => &mut self.unavailable,
        } += 1;
        if let (None, Outcome::Unavailable(reason)) = (&self.reason, outcome) {
            self.reason = Some(reason.label().to_owned());
        }
    }

    /// Adds what has become of others.
    pub fn add(&mut self, other: &Self) {
        self.published += other.published;
        self.spooled += other.spooled;
        self.duplicate += other.duplicate;
        self.dead_lettered += other.dead_lettered;
        self.dropped += other.dropped;
    }
}

/// Stands in the log for the name of a secret key.
const KEY: &str = "backfill";

impl<B: Backend> Relay<B> {
    /// Makes records of archived events, in their order. Whoever may use the control socket is trusted as one who has the secret key.
    ///
    /// # Errors
    /// There is no such app, or one of the bodies is no webhook.
    pub fn accept_archived(&self, policy: &Policy, app: &str, events: &[Archived]) -> Result<Accepted, String> {
        let app = policy.apps.get(app).ok_or_else(|| format!("the running relay has no app {app}"))?;
        let bytes = events.iter().map(|event| event.body.len()).sum();
        let mut accepted = Accepted::new(app, KEY, bytes);
        for event in events {
            let webhook = event.webhook().map_err(|rejection| rejection.answer().1.trim_end().to_owned())?;
            self.prepare(policy, app, webhook, KEY, None, &mut accepted);
        }
        Ok(accepted)
    }
}

impl Pending {
    /// The outcome of each record, in order. Those that are not there by the deadline count as not durable.
    pub async fn outcomes(self) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(self.deliveries.len());
        for delivery in self.deliveries {
            let late = Outcome::Unavailable(Unavailable::Deadline);
            outcomes.push(tokio::time::timeout_at(self.deadline, delivery).await.unwrap_or(late));
        }
        outcomes
    }
}
