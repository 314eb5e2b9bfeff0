//! One webhook, start to end: decides its [`Outcome`], and counts it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use crate::dead_letter::DeadLetters;
use crate::event::normalize::{normalize, normalize_app_webhook};
use crate::event::receive::receive;
use crate::event::route::{UNLISTED, route};
use crate::event::verify::verify;
use crate::event::{Event, Keyring, Receipt, Record, Rejection, RetryKey, Routing};
use crate::metrics::{APP_WEBHOOK, Fate, Metrics};
use crate::publish::{Failure, Publisher, Remedy, Report};
use crate::shutdown::Shutdown;
use crate::spool::{Entry, Spool, Way};
use crate::telemetry::Throttle;
use crate::window::{self, Claim, Seen, Settled, Window};

/// What is configured about events: the apps, where their events go, and what of retries.
pub struct Policy {
    pub apps: HashMap<String, App>,
    /// App Webhooks, where they are switched on: the token of their path, and where their events go.
    pub app_webhooks: Option<App>,
    pub retries: window::Config,
    /// The topic for records that their own topic will never take.
    pub dead_letter: Arc<str>,
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
        names.push(Arc::clone(&self.dead_letter));
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
    /// The disk has it, and the brokers get it when they can.
    Spooled,
    /// Its topic will never take it: it is among the dead letters.
    Parked,
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
    publisher: Arc<Publisher>,
    spool: Option<Spool>,
    dead_letters: DeadLetters,
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
    pub fn new(policy: Policy, dead_letters: DeadLetters, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        let (nobody, window) = (Keyring::new([]), Window::new(policy.retries));
        let rejections = Throttle::new(Duration::from_secs(10));
        let (publisher, spool) = (Arc::clone(&dead_letters.publisher), dead_letters.spool.clone());
        Self(Arc::new(Inner { policy, publisher, spool, dead_letters, window, metrics, shutdown, rejections, nobody }))
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
            outcome = self.publish_once(action, record, retry_key, deadline) => outcome,
            () = tokio::time::sleep_until(deadline) => Outcome::Unavailable("deadline"),
            // With a spool, what is under way goes there.
            () = self.0.shutdown.giving_up.cancelled(), if self.0.spool.is_none() => Outcome::Unavailable("shutting_down"),
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
    async fn publish_once(
        &self,
        action: &'static str,
        record: Record,
        retry_key: Option<RetryKey>,
        deadline: Instant,
    ) -> Outcome {
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
            return Followed::new(self.clone().settle(action, record, claim, deadline)).await;
        }
    }

    /// Makes the event durable, counts it, and tells its retries.
    async fn settle(self, action: &'static str, record: Record, claim: Option<Claim>, deadline: Instant) -> Outcome {
        let began = std::time::Instant::now();
        let outcome = self.make_durable(record, deadline).await;
        let (fate, settled) = match &outcome {
            Outcome::Spooled => (Fate::Spooled, Ok(())),
            Outcome::Parked => (Fate::Parked, Ok(())),
            Outcome::Unavailable(reason) => (Fate::Unavailable, Err(*reason)),
            Outcome::Published | Outcome::Dropped | Outcome::Rejected(_) => (Fate::Published, Ok(())),
        };
        self.0.metrics.event(action, fate);
        self.0.metrics.durable(fate, began.elapsed());
        if let Some(claim) = claim {
            claim.settle(settled, std::time::Instant::now());
        }
        outcome
    }

    /// The brokers' ack, or an fsync. Handed over before the first wait, unless the lane is about to turn direct again.
    async fn make_durable(&self, record: Record, deadline: Instant) -> Outcome {
        let Some(spool) = &self.0.spool else {
            return match self.0.publisher.published(&record).await {
                Ok(()) => Outcome::Published,
                Err(failure) if failure.remedy == Remedy::Park => self.lay_down(record, failure).await,
                Err(failure) => Outcome::Unavailable(failure.reason()),
            };
        };
        let mut refused = None;
        // While nothing reaches the brokers, nobody has to find it out for himself.
        let is_hopeless =
            self.0.publisher.is_away() && self.0.metrics.spool_accepting.get() == 1 && !spool.is_stalled();
        if !is_hopeless && spool.way(&record.topic).await == Way::Direct {
            match self.published_in_time(&record, deadline).await {
                Some(Ok(())) => return Outcome::Published,
                // Perhaps another record of its batch is to blame: the replay sends it by itself.
                Some(Err(failure)) if failure.remedy == Remedy::Park => refused = Some((failure, record.clone())),
                Some(Err(_)) | None => {}
            }
        }
        let ticket = spool.ticket(&record.topic);
        let unspooled = match spool.append(ticket, record).await {
            Ok(Ok(())) => return Outcome::Spooled,
            Ok(Err(refused)) => refused.reason(),
            Err(_) => "spool_failed",
        };
        match refused {
            Some((failure, record)) => self.lay_down(record, failure).await,
            None => Outcome::Unavailable(unspooled),
        }
    }

    /// As [`Publisher::published`]; `None` when it is time to look for another way.
    async fn published_in_time(&self, record: &Record, deadline: Instant) -> Option<Result<(), Failure>> {
        let report: Report = match self.0.publisher.publish(record) {
            Ok(report) => report,
            Err(failure) => return Some(Err(failure)),
        };
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let late = now + self.0.publisher.report_deadline().min(left.saturating_sub(FSYNC_RESERVE.min(left / 4)));
        tokio::select! {
            biased;
            reported = report => Some(reported.unwrap_or(Err(Failure::gone()))),
            () = tokio::time::sleep_until(late) => None,
            () = self.0.shutdown.giving_up.cancelled() => None,
        }
    }

    async fn lay_down(&self, record: Record, failure: Failure) -> Outcome {
        match self.0.dead_letters.lay_down(Entry::new(record), failure, None).await {
            Ok(()) => Outcome::Parked,
            Err(reason) => Outcome::Unavailable(reason),
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

/// What is left of the response deadline for the disk, when the brokers have had their time; a quarter of it at most.
const FSYNC_RESERVE: Duration = Duration::from_secs(1);

/// A future that goes on without its caller: dropped before its end, as a client's is who has hung up, it becomes a task of
/// its own. The event is made durable and counted, and its retries learn of it, though nobody waits any more.
struct Followed<F: Future<Output = Outcome> + Send + 'static>(Option<Pin<Box<F>>>);

impl<F: Future<Output = Outcome> + Send + 'static> Followed<F> {
    fn new(future: F) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<F: Future<Output = Outcome> + Send + 'static> Future for Followed<F> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let Some(future) = &mut self.0 else { return Poll::Pending }; // it has ended
        let outcome = std::task::ready!(future.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(outcome)
    }
}

impl<F: Future<Output = Outcome> + Send + 'static> Drop for Followed<F> {
    fn drop(&mut self) {
        if let (Some(future), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(future);
        }
    }
}
