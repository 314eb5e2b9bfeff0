//! One webhook, start to end: [`Relay::accept`] makes records of its bytes, [`Relay::deliver`] makes them durable, and the [`Outcome`]
//! says what has become of it.

mod backend;
mod backfill;
mod dates;
mod detached;
mod line;
mod policy;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::budget::Held;
use crate::dedup::{self, Check, Claim, Dedup, FirstOutcome};
use crate::deliveries::{Deliveries, Delivery};
use crate::event::initial::Initial;
use crate::event::normalize::normalize;
use crate::event::receive::receive;
use crate::event::route::route;
use crate::event::verify::{Unverified, confirmed_installation, verify, verify_app_webhook};
use crate::event::{self, Keyring, PreparedRecord, Receipt, Record, Rejection, RetryKey, Validity, Verified};
use crate::metrics::{Counts, Metrics};
use crate::outcome::{DeadLetterReason, Outcome, Unavailable};
use crate::publish::{Failure, Report};
use crate::shutdown::Shutdown;
use crate::spool::Way;
use crate::telemetry::Throttles;
pub use backend::{Backend, Durable};
pub use dates::Notice;
use detached::Detached;
use line::Line;
pub use policy::{APP_WEBHOOKS, App, Endpoint, Policy, TOKEN_BYTES_MAX, TOKEN_BYTES_MIN, UNKNOWN_APP};

/// A verified webhook, as the records that it becomes; none where it is dropped.
pub struct Accepted {
    records: Vec<(PreparedRecord, Option<Box<Line>>)>,
    /// The actions, as metrics call them, of the events that are dropped.
    dropped: Vec<(&'static str, Option<Box<Line>>)>,
    counts: Arc<Counts>,
}

/// Where webhooks come from.
#[derive(Clone, Copy)]
struct Source<'a> {
    app: &'a App,
    /// The name of the secret key, or `installation`.
    key: &'a str,
    /// Of the body.
    bytes: usize,
    traceparent: Option<&'a str>,
}

impl Accepted {
    /// Nothing yet, for an app.
    fn new(app: &App) -> Self {
        Self { records: Vec::with_capacity(1), dropped: Vec::new(), counts: Arc::clone(&app.counts) }
    }

    /// Names the client and the other end of its connection, for the log.
    #[must_use]
    pub fn from_client(mut self, client: IpAddr, peer: SocketAddr) -> Self {
        let lines = self.records.iter_mut().map(|(_, line)| line).chain(self.dropped.iter_mut().map(|(_, line)| line));
        lines.flatten().for_each(|line| line.from = Some((client, peer)));
        self
    }

    /// Whether nothing is published.
    pub fn is_dropped(&self) -> bool {
        self.records.is_empty()
    }

    /// How many events are dropped.
    pub fn dropped(&self) -> usize {
        self.dropped.len()
    }
}

/// The heart of the daemon. Shared by all connections; clones share it.
pub struct Relay<B = Durable>(Arc<Inner<B>>);

struct Inner<B> {
    backend: B,
    dedup: Dedup,
    deliveries: Deliveries,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// Stands for every unknown app, so that it is refused as a wrong key is: the same way, at the same cost. No one has its key.
    unknown: Keyring,
    /// One line in ten seconds for each known key that is used where, or when, it does not verify.
    misplaced: Throttles,
}

impl<B> Clone for Relay<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Backend> Relay<B> {
    pub fn new(retries: dedup::Config, backend: B, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        let key = SecretString::from(Uuid::new_v4().to_string());
        let (unknown, dedup) = (Keyring::new([(String::new(), &key)]), Dedup::new(retries));
        let misplaced = Throttles::new(Duration::from_secs(10));
        let deliveries = Deliveries::default();
        Self(Arc::new(Inner { backend, dedup, deliveries, metrics, shutdown, unknown, misplaced }))
    }

    /// What each registration has delivered.
    pub fn deliveries(&self) -> &Deliveries {
        &self.0.deliveries
    }

    pub fn backend(&self) -> &B {
        &self.0.backend
    }

    /// Changes how retries are told.
    pub fn set_retries(&self, retries: dedup::Config) {
        self.0.dedup.set(retries);
    }

    /// Makes records of a body by the pure steps of [`crate::event`], and counts the use of the key and the payload's faults.
    /// The endpoint is one of the policy's.
    ///
    /// # Errors
    /// A [`Rejection`]: the sender has to send something else.
    pub fn accept(
        &self,
        policy: &Policy,
        endpoint: &Endpoint,
        body: &[u8],
        traceparent: Option<&str>,
    ) -> Result<Accepted, Rejection> {
        let now = Timestamp::now();
        let (webhook, key) = match endpoint {
            Endpoint::Webhook(app) => {
                let keyring = app.as_ref().map_or(&self.0.unknown, |app| &app.keyring);
                let verified = verify(receive(body)?, keyring, now);
                verified.map_err(|unverified| self.refused(policy, app.as_deref(), unverified))?
            }
            Endpoint::AppWebhook(app, token) => {
                verify_app_webhook(token, body, &app.keyring, now).map_err(|unverified| unverified.rejection)?
            }
        };
        let (Endpoint::Webhook(Some(app)) | Endpoint::AppWebhook(app, _)) = endpoint else {
            return Err(Rejection::Unauthorized); // not reached: the key of an unknown app is unknown to all
        };
        key.count_use(now);
        let (source, mut accepted) =
            (Source { app, key: key.name(), bytes: body.len(), traceparent }, Accepted::new(app));
        let initial = if policy.initial { Initial::of(&webhook) } else { Initial::default() };
        self.0.metrics.initial_events_left_out.inc_by(initial.left_out);
        // The chat before its events: where they share a topic they stand in this order.
        for webhook in [webhook].into_iter().chain(initial.webhooks()) {
            self.prepare(policy, webhook, source, &mut accepted);
        }
        Ok(accepted)
    }

    /// As [`Relay::accept`], for an installation that LiveChat has confirmed; the relay has written its body itself.
    ///
    /// # Errors
    /// The body is none: a fault of the relay.
    pub fn accept_installation(&self, policy: &Policy, app: &App, body: &[u8]) -> Result<Accepted, Rejection> {
        let source = Source { app, key: "installation", bytes: body.len(), traceparent: None };
        let mut accepted = Accepted::new(app);
        self.prepare(policy, confirmed_installation(body)?, source, &mut accepted);
        Ok(accepted)
    }

    /// Makes the record of a verified webhook, or notes that it is dropped.
    fn prepare(&self, policy: &Policy, webhook: Verified<'_>, source: Source<'_>, accepted: &mut Accepted) {
        let (now, app) = (Timestamp::now(), source.app);
        let event = normalize(webhook, Receipt { app: &app.name, time: now, fresh_id: Uuid::now_v7 });
        event.faults.iter().for_each(|fault| self.0.metrics.fault(*fault));
        let action = event.action_label();
        if let (Some(webhook_id), event::Origin::Delivered) = (&event.webhook_id, event.origin) {
            let tenant = event.tenant.id();
            self.0.deliveries.count(Delivery {
                app: &app.name,
                tenant,
                webhook_id,
                action,
                key: source.key,
                time: now,
            });
        }
        let rule = policy.rules.find(&event, &app.routing.topics);
        rule.inspect(|rule| rule.count_match());
        let line = Line::new(&event, source);
        match route(event, &app.routing, rule, source.traceparent) {
            Some(record) => accepted.records.push((record, line)),
            None => accepted.dropped.push((action, line)),
        }
    }

    /// Names the key to the operator where a webhook has one that does not fit: its sender is told no more than a stranger.
    fn refused(&self, policy: &Policy, app: Option<&App>, unverified: Unverified<'_>) -> Rejection {
        let app = app.map(|app| &*app.name);
        let (rejection, found) = unverified.diagnose(app, policy.keys());
        let app = app.unwrap_or(UNKNOWN_APP);
        let Some((app_of_key, key)) = found else { return rejection };
        if let Some(suppressed) = self.0.misplaced.pass(&format!("{app} {app_of_key} {}", key.name())) {
            let (key, reason, Validity { not_before, not_after }) = (key.name(), rejection.label(), key.validity());
            let [not_before, not_after] = [not_before, not_after].map(|date| date.map(tracing::field::display));
            let what = match rejection {
                Rejection::UnknownApp => {
                    "a webhook has the secret key of an app, but its path names an unknown app: it is answered 401; correct the URL of its registration"
                }
                Rejection::OtherApp => {
                    "a webhook has the secret key of another app than its path: it is answered 401; correct the URL of its registration, or its key"
                }
                _ => {
                    "a webhook has a secret key that is not valid now: it is answered 401; was it registered with an old one?"
                }
            };
            tracing::warn!(app, app_of_key, key, reason, not_before, not_after, suppressed, "{what}");
        }
        rejection
    }

    /// Begins to make a webhook's records durable; the outcome is known by `deadline`.
    ///
    /// What can go to the brokers at once is handed over before this returns, and what is in flight is followed to its end whether
    /// the caller waits or not: a client that hangs up cancels no publish.
    pub fn deliver(&self, Accepted { records, dropped, counts }: Accepted, held: Held, deadline: Instant) -> Pending {
        for (action, line) in dropped {
            counts.event(action, Outcome::Dropped);
            line.iter().for_each(|line| line.log(None, Outcome::Dropped, Duration::ZERO, deadline));
        }
        let held = Arc::new(held);
        let begin =
            |(record, line)| self.clone().deliver_one(record, line, Arc::clone(&counts), Arc::clone(&held), deadline);
        Pending { deliveries: records.into_iter().map(begin).collect(), deadline }
    }

    fn deliver_one(
        self,
        prepared: PreparedRecord,
        line: Option<Box<Line>>,
        counts: Arc<Counts>,
        held: Arc<Held>,
        deadline: Instant,
    ) -> Detached<Outcome> {
        let PreparedRecord { action, record, retry_key, is_dead_letter } = prepared;
        let began = Instant::now();
        let line = line.map(|line| (line, Arc::clone(&record.topic), record.key.clone()));
        // Not in the future: it is handed over before anything is awaited, and a client that hangs up cancels nothing.
        let start = self.start(record, retry_key, &held);
        Detached::new(async move {
            let mut outcome = self.finish(start, retry_key, held, deadline).await;
            if is_dead_letter && matches!(outcome, Outcome::Published | Outcome::Spooled) {
                self.0.metrics.dead_letter("topic", DeadLetterReason::Rule);
                outcome = Outcome::DeadLettered;
            }
            let took = began.elapsed();
            counts.event(action, outcome);
            self.0.metrics.durable(outcome, took);
            if let Some((line, topic, key)) = line {
                line.log(Some((&topic, &key)), outcome, took, deadline);
            }
            outcome
        })
    }

    /// Looks whether the record is new, and hands it to the brokers where nothing of its topic is in the spool.
    fn start(&self, record: Record, retry_key: Option<RetryKey>, held: &Arc<Held>) -> Start {
        let is_copy = matches!(retry_key, Some(RetryKey::Unnamed { .. })).then_some("copy");
        let claim = match retry_key.map(|key| self.0.dedup.check(key)) {
            Some(Check::Durable) => {
                self.0.metrics.retry(is_copy.unwrap_or("dropped"));
                return Start::Durable;
            }
            Some(Check::InFlight(first)) => {
                self.0.metrics.retry(is_copy.unwrap_or("joined"));
                return Start::Join(first, record);
            }
            Some(Check::New(claim)) => Some(claim),
            Some(Check::Untracked) | None => None,
        };
        let backend = &self.0.backend;
        if backend.skips_kafka() || backend.way(&record.topic) != Some(Way::Direct) {
            return Start::Spool(record, claim);
        }
        Start::Publish(backend.publish(record, Arc::clone(held)), claim)
    }

    async fn finish(&self, start: Start, key: Option<RetryKey>, held: Arc<Held>, deadline: Instant) -> Outcome {
        let mut start = start;
        let (outcome, claim) = loop {
            match start {
                Start::Durable => return Outcome::Duplicate,
                Start::Join(first, record) => match first.outcome().await {
                    Some(Ok(())) => return Outcome::Duplicate,
                    Some(Err(reason)) => return Outcome::Unavailable(reason),
                    None => start = self.start(record, key, &held),
                },
                Start::Publish(report, claim) => {
                    break (self.follow(report, held, claim.as_ref(), deadline).await, claim);
                }
                Start::Spool(record, claim) => {
                    break (self.spool_or_publish(record, held, claim.as_ref(), deadline).await, claim);
                }
            }
        };
        if let Some(claim) = claim {
            claim.settle(match outcome {
                Outcome::Unavailable(reason) => Err(reason),
                _ => Ok(()),
            });
        }
        outcome
    }

    /// Waits for the brokers' ack, and finds another way for a record that has none.
    async fn follow(&self, mut report: Report, held: Arc<Held>, claim: Option<&Claim>, deadline: Instant) -> Outcome {
        let backend = &self.0.backend;
        loop {
            let until = report_wait_until(Instant::now(), deadline, backend.report_timeout(), backend.has_spool());
            let failure = match timeout_at(until, &mut report).await {
                Ok(Ok(())) => return Outcome::Published,
                Ok(Err(failure)) => Some(failure),
                Err(_) => None,
            };
            // An ack without an offset ([`Failure::is_lost`]): it may be in Kafka or not. Without a spool it is handed over once more.
            if !backend.has_spool() && failure.is_some_and(|failure| failure.is_lost()) && Instant::now() < deadline {
                report = backend.publish(report.into_record(), Arc::clone(&held));
                continue;
            }
            return self.rescue(report.into_record(), failure, held, claim, deadline).await;
        }
    }

    /// Spools a record that the brokers have not acked, for this reason or for none yet. Where no spool takes it, it is tried alone if the
    /// brokers have refused it, and else the sender has to try again.
    async fn rescue(
        &self,
        record: Record,
        failure: Option<Failure>,
        held: Arc<Held>,
        claim: Option<&Claim>,
        deadline: Instant,
    ) -> Outcome {
        let backend = &self.0.backend;
        let refused = failure.filter(|failure| failure.is_refused()).map(|_| record.clone());
        let reason = if backend.has_spool() {
            let spooled = backend.spool(record);
            tokio::pin!(spooled);
            let spooled = if let Ok(spooled) = timeout_at(deadline, &mut spooled).await {
                spooled
            } else {
                // The disk hangs. What it has counts for the spool's queue alone, and a retry may find another way: Kafka, by now.
                drop(held);
                claim.inspect(|claim| claim.let_copies_try());
                spooled.await
            };
            match spooled {
                Ok(()) => return Outcome::Spooled, // where it was refused, the replay tries it alone
                Err(reason) => reason,
            }
        } else if self.0.shutdown.giving_up.is_cancelled() {
            Unavailable::ShuttingDown // that is why the report has ended
        } else {
            failure.map_or(Unavailable::Kafka, |failure| failure.reason())
        };
        match refused {
            Some(record) => backend.resolve(record).await,
            None => Outcome::Unavailable(reason),
        }
    }

    /// Spools a record behind what its topic has there; or publishes it, where the last of the topic's spooled records are acked in a moment.
    async fn spool_or_publish(
        &self,
        record: Record,
        held: Arc<Held>,
        claim: Option<&Claim>,
        deadline: Instant,
    ) -> Outcome {
        let backend = &self.0.backend;
        if !backend.skips_kafka() && backend.settled_way(&record.topic).await == Way::Direct {
            return self.follow(backend.publish(record, Arc::clone(&held)), held, claim, deadline).await;
        }
        self.rescue(record, None, held, claim, deadline).await
    }
}

/// How the delivery of a record begins.
enum Start {
    /// The same event is durable.
    Durable,
    /// The same event is in flight: its outcome is this one's, too.
    Join(FirstOutcome, Record),
    /// The record was handed over to the brokers.
    Publish(Report, Option<Claim>),
    /// Its topic has something in the spool, or Kafka is unavailable.
    Spool(Record, Option<Claim>),
}

/// The deliveries of a webhook's records. Dropped, they go on.
pub struct Pending {
    deliveries: Vec<Detached<Outcome>>,
    deadline: Instant,
}

impl Pending {
    /// One outcome for all; a success only when all are durable.
    pub async fn outcome(self) -> Outcome {
        let outcomes = self.outcomes().await;
        let failed = outcomes.iter().find(|outcome| matches!(outcome, Outcome::Unavailable(_)));
        failed.or(outcomes.last()).copied().unwrap_or(Outcome::Dropped)
    }
}

/// What is left of the response deadline for the disk when the brokers have had their time; a quarter of what is left at most.
const SPOOL_RESERVE: Duration = Duration::from_secs(1);

/// Until when a report is awaited before the spool is tried. Without a spool the report may take as long as one can, though the sender
/// has its answer by the deadline.
fn report_wait_until(now: Instant, deadline: Instant, report_timeout: Duration, has_spool: bool) -> Instant {
    if !has_spool {
        return now + report_timeout + LAST_REPORT;
    }
    let left = deadline.saturating_duration_since(now);
    now + report_timeout.min(left.saturating_sub(SPOOL_RESERVE.min(left / 4)))
}

/// A report that is later than its timeout and this will not come any more: its producer was replaced, and has ended without it.
const LAST_REPORT: Duration = Duration::from_secs(10);
