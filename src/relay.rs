//! One webhook, start to end: decides its [`Outcome`], and counts it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use crate::event::normalize::{normalize, normalize_app_webhook};
use crate::event::receive::receive;
use crate::event::route::{UNLISTED, route};
use crate::event::verify::verify;
use crate::event::{Event, Keyring, Receipt, Record, Rejection, RetryKey, Routing};
use crate::metrics::{APP_WEBHOOK, Fate, Metrics};
use crate::publish::{Publisher, Report};
use crate::shutdown::Shutdown;
use crate::telemetry::Throttle;
use crate::window::{self, Claim, Seen, Settled, Window};

/// What is configured about events: the apps, where their events go, and what of retries.
pub struct Policy {
    pub apps: HashMap<String, App>,
    /// App Webhooks, where they are switched on: the token of their path, and where their events go.
    pub app_webhooks: Option<App>,
    pub retries: window::Config,
}

/// One app: its name, which is the last part of its webhooks' path, its secret keys, and where its events go.
pub struct App {
    pub name: String,
    pub keyring: Keyring,
    pub routing: Arc<Routing>,
}

impl Policy {
    /// The only app, where there is only one: it answers at `/webhooks`, too.
    pub fn only_app(&self) -> Option<&str> {
        let mut apps = self.apps.keys();
        apps.next().filter(|_| apps.next().is_none()).map(String::as_str)
    }

    /// Every topic that events may go to, once, sorted.
    pub fn topics(&self) -> Vec<Arc<str>> {
        let apps = self.apps.values().chain(&self.app_webhooks);
        let mut names: Vec<_> = apps.flat_map(|app| app.routing.topics.names()).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// What was POSTed, and where.
#[derive(Clone, Copy, Debug)]
pub enum Posted<'a> {
    /// A chat webhook, to an app by name.
    Webhook { app: &'a str },
    /// An App Webhook, to the path with this token.
    AppWebhook { token: &'a str },
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

impl From<Settled> for Outcome {
    fn from(settled: Settled) -> Self {
        settled.map_or_else(Self::Unavailable, |()| Self::Published)
    }
}

/// The heart of the daemon. Shared by all connections; clones share it.
#[derive(Clone)]
pub struct Relay(Arc<Inner>);

struct Inner {
    policy: Policy,
    publisher: Publisher,
    window: Window,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    rejections: Throttle,
    /// Stands for every unknown app, so that it is refused as a wrong key is: the same way, at the same cost.
    nobody: Keyring,
}

/// A record, and what the relay has to know of its event beyond it.
struct Made {
    action: &'static str,
    record: Option<Record>,
    retry_key: Option<RetryKey>,
}

impl Relay {
    pub fn new(policy: Policy, publisher: Publisher, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        let (nobody, window) = (Keyring::new([]), Window::new(policy.retries));
        let rejections = Throttle::new(Duration::from_secs(10));
        Self(Arc::new(Inner { policy, publisher, window, metrics, shutdown, rejections, nobody }))
    }

    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    pub fn publisher(&self) -> &Publisher {
        &self.0.publisher
    }

    /// Takes one delivered body to its outcome, by `deadline` at the latest.
    ///
    /// Everything up to the hand-over to Kafka happens before the first wait, and what is under way is followed to its end
    /// without the caller: one who goes away, as one does whose client has hung up, cancels no publish.
    pub async fn take(&self, posted: Posted<'_>, body: &[u8], traceparent: Option<&str>, deadline: Instant) -> Outcome {
        let made = match self.record(posted, body, traceparent) {
            Ok(made) => made,
            Err(rejection) => return self.rejected(posted, rejection),
        };
        let Made { action, record: Some(record), retry_key } = made else {
            self.0.metrics.event(made.action, Fate::Dropped);
            return Outcome::Dropped;
        };
        let outcome = tokio::select! {
            outcome = self.publish_once(action, record, retry_key) => outcome,
            () = tokio::time::sleep_until(deadline) => Outcome::Unavailable("deadline"),
            () = self.0.shutdown.giving_up.cancelled() => Outcome::Unavailable("shutting_down"),
        };
        if let Outcome::Unavailable(reason) = outcome {
            self.0.metrics.unavailable.with_label_values(&[reason]).inc();
        }
        tracing::debug!(action, ?outcome, "webhook taken");
        outcome
    }

    /// The pure steps, with the clock and the chance they need.
    fn record(&self, posted: Posted<'_>, body: &[u8], traceparent: Option<&str>) -> Result<Made, Rejection> {
        let policy = &self.0.policy;
        let receipt = |app| Receipt { app, time: Timestamp::now(), fresh_id: Uuid::now_v7() };
        let (app, key, event): (&App, &str, Event<'_>) = match posted {
            Posted::Webhook { app } => {
                let app = policy.apps.get(app);
                let (webhook, key) = verify(receive(body)?, app.map_or(&self.0.nobody, |app| &app.keyring))?;
                let app = app.ok_or(Rejection::Unauthorized)?;
                (app, key, normalize(webhook, receipt(&app.name)))
            }
            Posted::AppWebhook { token } => {
                let app = policy.app_webhooks.as_ref().ok_or(Rejection::Unauthorized)?;
                if !app.keyring.fits(token) {
                    return Err(Rejection::Unauthorized);
                }
                (app, "path", normalize_app_webhook(body, receipt(&app.name))?)
            }
        };
        self.0.metrics.secret_keys.with_label_values(&[&app.name, key]).inc();
        for fault in &event.faults {
            self.0.metrics.faults.with_label_values(&[fault.reason()]).inc();
        }
        let action = match posted {
            Posted::Webhook { .. } => event.action.map_or(UNLISTED, |action| action.name),
            Posted::AppWebhook { .. } => APP_WEBHOOK,
        };
        let retry_key = event.retry_key;
        Ok(Made { action, record: route(event, &app.routing, traceparent), retry_key })
    }

    /// Publishes what is new; a retry of what is durable, or a copy of what is under way, gets the first one's outcome.
    async fn publish_once(&self, action: &'static str, record: Record, retry_key: Option<RetryKey>) -> Outcome {
        loop {
            let seen = retry_key.map_or(Seen::Unwatched, |key| self.0.window.look(key, std::time::Instant::now()));
            let claim = match seen {
                Seen::New(claim) => Some(claim),
                Seen::Unwatched => None,
                Seen::Durable => {
                    self.0.metrics.retries.with_label_values(&["dropped"]).inc();
                    return Outcome::Published;
                }
                Seen::UnderWay(copy) => {
                    self.0.metrics.retries.with_label_values(&["joined"]).inc();
                    match copy.outcome().await {
                        Some(settled) => return settled.into(),
                        None => continue,
                    }
                }
            };
            let mut under_way = UnderWay { relay: self.clone(), action, claim, report: None };
            return match self.0.publisher.publish(&record) {
                Ok(report) => {
                    drop(record); // the client has its own copy; this one need not wait for the report
                    under_way.settled(report).await.into()
                }
                Err(failure) => under_way.settle(Err(failure.reason())).into(),
            };
        }
    }

    fn rejected(&self, posted: Posted<'_>, rejection: Rejection) -> Outcome {
        self.0.metrics.rejected.with_label_values(&[rejection.reason()]).inc();
        if let Some(unlogged) = self.0.rejections.pass() {
            // The name in the path is a stranger's word until it is one of ours.
            let app = match posted {
                Posted::Webhook { app } => self.0.policy.apps.get(app).map_or("unknown", |app| &app.name),
                Posted::AppWebhook { .. } => "app-webhooks",
            };
            tracing::warn!(app, reason = rejection.reason(), unlogged, "webhook refused");
        }
        Outcome::Rejected(rejection)
    }
}

/// A record that was handed over. Dropped before its report has come, it leaves the rest to a task of its own: the event
/// is counted, and its retries learn of it, though nobody waits any more.
struct UnderWay {
    relay: Relay,
    action: &'static str,
    claim: Option<Claim>,
    report: Option<Report>,
}

impl UnderWay {
    async fn settled(&mut self, report: Report) -> Settled {
        let report = self.report.insert(report);
        let settled = match report.await {
            Ok(reported) => reported.map_err(|failure| failure.reason()),
            Err(_) => Err("kafka"), // the producer went away with the record
        };
        self.report = None;
        self.settle(settled)
    }

    fn settle(&mut self, settled: Settled) -> Settled {
        let fate = if settled.is_ok() { Fate::Published } else { Fate::Unavailable };
        self.relay.0.metrics.event(self.action, fate);
        if let Some(claim) = self.claim.take() {
            claim.settle(settled, std::time::Instant::now());
        }
        settled
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Some(report) = self.report.take() else { return };
        let mut rest = Self { relay: self.relay.clone(), action: self.action, claim: self.claim.take(), report: None };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { rest.settled(report).await });
        }
    }
}
