//! One webhook, start to end: [`Relay::accept`] makes records of its bytes, [`Relay::deliver`] makes them durable, and the [`Outcome`]
//! says what has become of it.

mod backend;
mod backfill;
mod dates;
mod detached;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
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
use crate::event::rules::Rule;
use crate::event::verify::{Unverified, confirmed_installation, verify, verify_app_webhook};
use crate::event::{
    self, Key, Keyring, PreparedRecord, Receipt, Record, Rejection, RetryKey, Routing, Rules, Validity, Verified,
};
use crate::metrics::Metrics;
use crate::outcome::{DeadLetterReason, Outcome, Unavailable};
use crate::publish::{Failure, Report};
use crate::shutdown::Shutdown;
use crate::spool::Way;
use crate::telemetry::Throttles;
pub use backend::{Backend, Durable};
pub use dates::Notice;
use detached::Detached;

/// What is configured about events: the apps, where their events go, the rules, and deduplication.
pub struct Policy {
    pub apps: HashMap<String, Arc<App>>,
    /// App Webhooks, where they are switched on: the token of their path, and where their events go.
    pub app_webhooks: Option<Arc<App>>,
    pub retries: dedup::Config,
    /// The topic for records that their own topic will never accept.
    pub dead_letter: Arc<str>,
    /// What goes before the routes.
    pub rules: Rules,
    /// Whether the events inside an `incoming_chat` become records of their own.
    pub initial: bool,
}

/// One app: its name, which is the last part of its webhooks' path, its secret keys, and where its events go.
#[derive(Clone)]
pub struct App {
    pub name: String,
    pub keyring: Keyring,
    pub routing: Arc<Routing>,
}

impl Policy {
    /// What is taken at a path: `/webhooks/{app}`, `/webhooks` where there is one app, and App Webhooks where they are switched on.
    pub fn endpoint(&self, path: &str) -> Option<Endpoint> {
        let path = path.strip_prefix('/').filter(|path| path.len() <= PATH_BYTES_MAX)?;
        let mut parts = path.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("webhooks"), None, _) if self.apps.len() == 1 => {
                Some(Endpoint::Webhook(self.apps.values().next().cloned()))
            }
            (Some("webhooks"), Some(app), None) if !app.is_empty() => {
                Some(Endpoint::Webhook(self.apps.get(app).cloned()))
            }
            (Some(APP_WEBHOOKS), Some(token), None) => {
                Some(Endpoint::AppWebhook(Arc::clone(self.app_webhooks.as_ref()?), token.to_owned()))
            }
            _ => None,
        }
    }

    /// The apps, App Webhooks included.
    pub fn all_apps(&self) -> impl Iterator<Item = &Arc<App>> {
        self.apps.values().chain(&self.app_webhooks)
    }

    /// Whether there are several apps, which must not take each other's room. App Webhooks are few.
    pub fn has_several_apps(&self) -> bool {
        self.apps.len() > 1
    }

    /// The rules that are not over yet.
    fn active_rules(&self) -> impl Iterator<Item = &Rule> {
        let now = Timestamp::now();
        self.rules.iter().filter(move |rule| rule.is_active(now))
    }

    /// The topics that only one of several apps has, each with the app's name: by its routes, and by rules for that app alone.
    pub fn topics_by_app(&self) -> HashMap<Arc<str>, Arc<str>> {
        let mut by_topic: HashMap<Arc<str>, Option<Arc<str>>> = HashMap::new();
        for app in self.all_apps().filter(|_| self.has_several_apps()) {
            let (name, topics): (Arc<str>, BTreeSet<_>) = (Arc::from(&*app.name), app.routing.topics.names().collect());
            for topic in topics {
                let owner = by_topic.entry(Arc::clone(topic));
                owner.and_modify(|owner| *owner = None).or_insert_with(|| Some(Arc::clone(&name)));
            }
        }
        for rule in self.active_rules().filter(|_| self.has_several_apps()) {
            let Some(topic) = rule.topic() else { continue };
            let app = rule.criteria.only_app();
            let owner = by_topic.entry(Arc::clone(topic)).or_insert_with(|| app.map(Arc::from));
            *owner = owner.take().filter(|owner| app == Some(&**owner));
        }
        by_topic.into_iter().filter_map(|(topic, owner)| Some((topic, owner?))).collect()
    }

    /// The secret keys, each with the name of its app.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Key)> {
        self.all_apps().flat_map(|app| app.keyring.keys().map(move |key| (&*app.name, key)))
    }

    /// Whether a text is a secret key of any app, or the token of App Webhooks: then it may not be shown.
    pub fn is_key(&self, text: &str) -> bool {
        self.all_apps().any(|app| app.keyring.has(text))
    }

    /// Goes on with what `former` has counted. To be called before this policy takes the place of that one.
    pub fn inherit(&mut self, former: &Self) {
        for app in self.apps.values_mut().chain(&mut self.app_webhooks) {
            if let Some(same) = former.all_apps().find(|same| same.name == app.name) {
                Arc::make_mut(app).keyring.inherit(&same.keyring);
            }
        }
        self.rules.inherit(&former.rules);
    }

    /// Every topic that events may go to, once, sorted.
    pub fn topics(&self) -> Vec<Arc<str>> {
        let names = self.all_apps().flat_map(|app| app.routing.topics.names()).chain([&self.dead_letter]);
        let names = names.chain(self.active_rules().filter_map(Rule::topic));
        let mut names: Vec<_> = names.cloned().collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The app name of App Webhooks in metrics and attributes, and their path. No app may have it.
pub const APP_WEBHOOKS: &str = "app-webhooks";

/// The shortest token of App Webhooks that can be configured: no one guesses it by trying.
pub const TOKEN_BYTES_MIN: usize = 32;

/// The longest one.
pub const TOKEN_BYTES_MAX: usize = 256;

/// No path that is taken is longer, not counting its first `/`: the name of an app has 64 bytes at most. So what is kept of a path while
/// a body is awaited is bounded.
const PATH_BYTES_MAX: usize = APP_WEBHOOKS.len() + 1 + TOKEN_BYTES_MAX;

/// Where a webhook is posted.
pub enum Endpoint {
    /// An app; none where the path names one that is unknown, which is refused as a wrong key is.
    Webhook(Option<Arc<App>>),
    /// The path of App Webhooks, with the token in it.
    AppWebhook(Arc<App>, String),
}

impl Endpoint {
    /// The app's name; a name in the path that is none of ours is a stranger's word.
    pub fn app(&self) -> &str {
        match self {
            Self::Webhook(Some(app)) | Self::AppWebhook(app, _) => &app.name,
            Self::Webhook(None) => "unknown",
        }
    }
}

/// A verified webhook, as the records that it becomes; none where it is dropped.
pub struct Accepted {
    records: Vec<PreparedRecord>,
    /// The actions, as metrics call them, of the events that are dropped.
    dropped: Vec<&'static str>,
    origin: Option<Origin>,
}

/// Where a webhook has come from, for its line in the log; none where that has no such lines.
#[derive(Clone)]
struct Origin {
    app: String,
    /// The name of the secret key, or `installation`.
    key: String,
    /// Of the body.
    bytes: usize,
    client: Option<IpAddr>,
}

impl Accepted {
    /// Nothing yet, of a body of so many bytes that came with this key.
    fn new(app: &App, key: &str, bytes: usize) -> Self {
        let origin = || Origin { app: app.name.clone(), key: key.to_owned(), bytes, client: None };
        let origin = tracing::enabled!(tracing::Level::DEBUG).then(origin);
        Self { records: Vec::with_capacity(1), dropped: Vec::new(), origin }
    }

    /// Names the client, for the log.
    #[must_use]
    pub fn from_client(mut self, client: IpAddr) -> Self {
        self.origin = self.origin.map(|origin| Origin { client: Some(client), ..origin });
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
        let mut accepted = Accepted::new(app, key.name(), body.len());
        let initial = if policy.initial { Initial::of(&webhook) } else { Initial::default() };
        self.0.metrics.initial_events_left_out.inc_by(initial.left_out);
        // The chat before its events: where they share a topic they stand in this order.
        for webhook in [webhook].into_iter().chain(initial.webhooks()) {
            self.prepare(policy, app, webhook, key.name(), traceparent, &mut accepted);
        }
        Ok(accepted)
    }

    /// As [`Relay::accept`], for an installation that LiveChat has confirmed; the relay has written its body itself.
    ///
    /// # Errors
    /// The body is none: a fault of the relay.
    pub fn accept_installation(&self, policy: &Policy, app: &App, body: &[u8]) -> Result<Accepted, Rejection> {
        const KEY: &str = "installation";
        let mut accepted = Accepted::new(app, KEY, body.len());
        self.prepare(policy, app, confirmed_installation(body)?, KEY, None, &mut accepted);
        Ok(accepted)
    }

    /// Makes the record of a verified webhook, or notes that it is dropped. `key` names the secret key that it came with.
    fn prepare(
        &self,
        policy: &Policy,
        app: &App,
        webhook: Verified<'_>,
        key: &str,
        traceparent: Option<&str>,
        accepted: &mut Accepted,
    ) {
        let now = Timestamp::now();
        let event = normalize(webhook, Receipt { app: &app.name, time: now, fresh_id: Uuid::now_v7 });
        event.faults.iter().for_each(|fault| self.0.metrics.fault(*fault));
        let action = event.action_label();
        if let (Some(webhook_id), event::Origin::Delivered) = (&event.webhook_id, event.origin) {
            let tenant = event.tenant.id();
            self.0.deliveries.count(Delivery { app: &app.name, tenant, webhook_id, action, key, time: now });
        }
        let rule = policy.rules.find(&event, &app.routing.topics);
        rule.inspect(|rule| rule.count_match());
        match route(event, &app.routing, rule, traceparent) {
            Some(record) => accepted.records.push(record),
            None => accepted.dropped.push(action),
        }
    }

    /// Names the key to the operator where a webhook has one that does not fit: its sender is told no more than a stranger.
    fn refused(&self, policy: &Policy, app: Option<&App>, unverified: Unverified<'_>) -> Rejection {
        let app = app.map(|app| &*app.name);
        let (rejection, found) = unverified.diagnose(app, policy.keys());
        let app = app.unwrap_or("unknown");
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
    pub fn deliver(&self, Accepted { records, dropped, origin }: Accepted, held: Held, deadline: Instant) -> Pending {
        for action in dropped {
            self.0.metrics.event(action, Outcome::Dropped, Duration::ZERO);
            if let Some(Origin { app, key, bytes, client }) = &origin {
                let client = client.map(tracing::field::display);
                tracing::debug!(app, key, action, bytes, client, outcome = ?Outcome::Dropped, "webhook handled");
            }
        }
        let held = Arc::new(held);
        let begin = |record| self.clone().deliver_one(record, origin.clone(), Arc::clone(&held), deadline);
        Pending { deliveries: records.into_iter().map(begin).collect(), deadline }
    }

    fn deliver_one(
        self,
        prepared: PreparedRecord,
        origin: Option<Origin>,
        held: Arc<Held>,
        deadline: Instant,
    ) -> Detached<Outcome> {
        let PreparedRecord { action, id, record, retry_key, is_dead_letter } = prepared;
        let began = Instant::now();
        let line = origin.map(|origin| (origin, Arc::clone(&record.topic), record.key.clone()));
        // Not in the future: it is handed over before anything is awaited, and a client that hangs up cancels nothing.
        let start = self.start(record, retry_key, &held);
        Detached::new(async move {
            let mut outcome = self.finish(start, retry_key, &held, deadline).await;
            if is_dead_letter && matches!(outcome, Outcome::Published | Outcome::Spooled) {
                self.0.metrics.dead_letter("topic", DeadLetterReason::Rule);
                outcome = Outcome::DeadLettered;
            }
            self.0.metrics.event(action, outcome, began.elapsed());
            if let Some((Origin { app, key, bytes, client }, topic, record_key)) = line {
                let (client, ms) = (client.map(tracing::field::display), began.elapsed().as_millis() as u64);
                tracing::debug!(%id, app, key, action, %topic, record_key, bytes, client, ?outcome, ms, "webhook handled");
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

    async fn finish(&self, start: Start, key: Option<RetryKey>, held: &Arc<Held>, deadline: Instant) -> Outcome {
        let mut start = start;
        let (outcome, claim) = loop {
            match start {
                Start::Durable => return Outcome::Duplicate,
                Start::Join(first, record) => match first.outcome().await {
                    Some(Ok(())) => return Outcome::Duplicate,
                    Some(Err(reason)) => return Outcome::Unavailable(reason),
                    None => start = self.start(record, key, held),
                },
                Start::Publish(report, claim) => break (self.follow(report, held, deadline).await, claim),
                Start::Spool(record, claim) => break (self.spool_or_publish(record, held, deadline).await, claim),
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
    async fn follow(&self, mut report: Report, held: &Arc<Held>, deadline: Instant) -> Outcome {
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
                report = backend.publish(report.record(), Arc::clone(held));
                continue;
            }
            return self.rescue(report.record(), failure).await;
        }
    }

    /// Spools a record that the brokers have not acked, for this reason or for none yet. Where no spool takes it, it is tried alone if the
    /// brokers have refused it, and else the sender has to try again.
    async fn rescue(&self, record: Record, failure: Option<Failure>) -> Outcome {
        let backend = &self.0.backend;
        let refused = failure.filter(|failure| failure.is_refused()).map(|_| record.clone());
        let reason = if backend.has_spool() {
            match backend.spool(record).await {
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
    async fn spool_or_publish(&self, record: Record, held: &Arc<Held>, deadline: Instant) -> Outcome {
        let backend = &self.0.backend;
        if !backend.skips_kafka() && backend.settled_way(&record.topic).await == Way::Direct {
            return self.follow(backend.publish(record, Arc::clone(held)), held, deadline).await;
        }
        self.rescue(record, None).await
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
    /// Its topic has something in the spool, or Kafka is unreachable.
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
