//! One webhook, start to end: decides its [`Outcome`], and counts it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use crate::event::receive::receive;
use crate::event::verify::verify;
use crate::event::{Keyring, Mode, Receipt, Record, Rejection, Topics, normalize::normalize, route::route};
use crate::metrics::{Fate, Metrics};
use crate::publish::Publisher;
use crate::shutdown::Shutdown;
use crate::telemetry::Throttle;

/// What is configured about events: the apps and where their events go.
pub struct Policy {
    pub apps: HashMap<String, App>,
    pub topics: Topics,
    pub mode: Mode,
}

/// One app: its name, which is the last part of its webhooks' path, and its secret keys.
pub struct App {
    pub name: String,
    pub keyring: Keyring,
}

impl Policy {
    /// The only app, where there is only one: it answers at `/webhooks`, too.
    pub fn only_app(&self) -> Option<&str> {
        let mut apps = self.apps.keys();
        apps.next().filter(|_| apps.next().is_none()).map(String::as_str)
    }
}

/// All that can become of a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The brokers have it.
    Published,
    /// Its action is configured to be dropped.
    Dropped,
    /// It is the sender's fault.
    Rejected(Rejection),
    /// It could not be made durable, for this reason (one of [`crate::metrics::UNAVAILABLE`]); the sender should try again.
    Unavailable(&'static str),
}

/// The heart of the daemon. Shared by all connections.
pub struct Relay {
    policy: Policy,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    rejections: Throttle,
    /// Stands for every unknown app, so that it is refused as a wrong key is: the same way, at the same cost.
    nobody: App,
}

impl Relay {
    pub fn new(policy: Policy, publisher: Publisher, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        let nobody = App { name: "unknown".to_owned(), keyring: Keyring::new([]) };
        Self { policy, publisher, metrics, shutdown, rejections: Throttle::new(Duration::from_secs(10)), nobody }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Takes one delivered body to its outcome, by `deadline` at the latest.
    ///
    /// Everything up to the hand-over to Kafka happens before the first wait: a caller who goes away later, as one does
    /// whose client has hung up, cancels no publish.
    pub async fn take(&self, app: &str, body: &[u8], traceparent: Option<&str>, deadline: Instant) -> Outcome {
        let app = self.policy.apps.get(app).unwrap_or(&self.nobody);
        let (action, record) = match self.record(app, body, traceparent) {
            Ok(made) => made,
            Err(rejection) => return self.rejected(app, rejection),
        };
        let Some(record) = record else {
            self.metrics.event(Some(action), Fate::Dropped);
            return Outcome::Dropped;
        };
        let topic = Arc::clone(&record.topic);
        let outcome = self.publish(record, deadline).await;
        let fate = if outcome == Outcome::Published { Fate::Published } else { Fate::Unavailable };
        self.metrics.event(Some(action), fate);
        if let Outcome::Unavailable(reason) = outcome {
            self.metrics.unavailable.with_label_values(&[reason]).inc();
        }
        tracing::debug!(app = app.name, action, topic = &*topic, ?outcome, "webhook taken");
        outcome
    }

    /// The pure steps, with the clock and the chance they need: the action's name, and the record unless it is dropped.
    fn record(
        &self,
        app: &App,
        body: &[u8],
        traceparent: Option<&str>,
    ) -> Result<(&'static str, Option<Record>), Rejection> {
        let (webhook, key) = verify(receive(body)?, &app.keyring)?;
        self.metrics.secret_keys.with_label_values(&[&app.name, key]).inc();
        let receipt = Receipt { app: &app.name, time: Timestamp::now(), fresh_id: Uuid::now_v7() };
        let event = normalize(webhook, receipt);
        for fault in &event.faults {
            self.metrics.faults.with_label_values(&[fault.reason()]).inc();
        }
        let action = event.action.map_or(crate::event::route::UNLISTED, |action| action.name);
        Ok((action, route(event, &self.policy.topics, self.policy.mode, traceparent)))
    }

    async fn publish(&self, record: Record, deadline: Instant) -> Outcome {
        let report = match self.publisher.publish(&record) {
            Ok(report) => report,
            Err(failure) => return Outcome::Unavailable(failure.reason()),
        };
        drop(record); // the client has its own copy; this one need not wait for the report
        tokio::select! {
            report = report => match report {
                Ok(Ok(())) => Outcome::Published,
                Ok(Err(failure)) => Outcome::Unavailable(failure.reason()),
                Err(_) => Outcome::Unavailable("kafka"), // the producer went away with the record
            },
            () = tokio::time::sleep_until(deadline) => Outcome::Unavailable("deadline"),
            () = self.shutdown.giving_up.cancelled() => Outcome::Unavailable("shutting_down"),
        }
    }

    fn rejected(&self, app: &App, rejection: Rejection) -> Outcome {
        self.metrics.rejected.with_label_values(&[rejection.reason()]).inc();
        if let Some(unlogged) = self.rejections.pass() {
            tracing::warn!(app = app.name, reason = rejection.reason(), unlogged, "webhook refused");
        }
        Outcome::Rejected(rejection)
    }
}
