//! Events that were made of LiveChat's archive, on the way of all webhooks: the same routes, rules, lanes and dedup.

use super::{Accepted, Backend, Pending, Policy, Relay, Source};
use crate::event::Archived;
use crate::outcome::{Outcome, Unavailable};

/// Stands in the log for the name of a secret key.
const KEY: &str = "backfill";

impl<B: Backend> Relay<B> {
    /// Makes records of archived events, in their order. Those who may use the control socket are trusted as senders with a secret key are.
    ///
    /// # Errors
    /// There is no such app, or one of the bodies is no webhook.
    pub fn accept_archived(&self, policy: &Policy, app: &str, events: &[Archived]) -> Result<Accepted, String> {
        let app = policy.apps.get(app).ok_or_else(|| format!("the running relay has no app {app}"))?;
        let mut accepted = Accepted::new(app);
        for event in events {
            let webhook = event.webhook().map_err(|rejection| rejection.answer().1.trim_end().to_owned())?;
            let source = Source { app, key: KEY, bytes: event.body.len(), traceparent: None };
            self.prepare(policy, webhook, source, &mut accepted);
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
