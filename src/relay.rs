//! One webhook, start to end: decides its [`Outcome`], and counts it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::alarm::Alarm;
use crate::dead_letter::{DeadLetters, Resolved};
use crate::event::normalize::{normalize, normalize_app_webhook};
use crate::event::receive::receive;
use crate::event::route::route;
use crate::event::verify::{verify, verify_app_webhook};
use crate::event::{Event, Key, Keyring, Receipt, Record, Rejection, RetryKey, Routing};
use crate::metrics::{Fate, Metrics};
use crate::publish::{Failure, Publisher, Report};
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

/// When a request was received, until when it is to be answered, and the timer of its waits.
#[derive(Clone, Copy)]
pub struct Times<'a> {
    pub received: Instant,
    pub deadline: Instant,
    pub alarm: &'a Alarm,
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
    /// It could not be made durable, for this reason (the label of an [`Unavailable`](crate::outcome::Unavailable)); the sender should try again.
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
        for app in policy.apps.values().chain(&policy.app_webhooks) {
            app.keyring
                .keys()
                .for_each(|key| metrics.secret_keys.with_label_values(&[&*app.name, key.name()]).inc_by(0));
        }
        let (publisher, spool) = (Arc::clone(&dead_letters.publisher), dead_letters.spool.clone());
        Self(Arc::new(Inner { policy, publisher, spool, dead_letters, window, metrics, shutdown, rejections, nobody }))
    }

    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    pub fn publisher(&self) -> &Publisher {
        &self.0.publisher
    }

    /// Takes one delivered body to its outcome, by its deadline at the latest.
    ///
    /// Everything up to the hand-over to Kafka happens before the first wait, and what is under way is followed to its end
    /// without the caller: one who goes away, as one does whose client has hung up, cancels no publish.
    pub async fn take(&self, posted: Posted<'_>, body: &[u8], traceparent: Option<&str>, times: Times<'_>) -> Outcome {
        let made = match self.record(posted, body, traceparent) {
            Ok(made) => made,
            Err(rejection) => return self.rejected(posted, rejection),
        };
        let action = made.action;
        let outcome = self.publish_once(made, times).await;
        if let Outcome::Unavailable(reason) = outcome {
            self.0.metrics.unavailable.with_label_values(&[reason]).inc();
        }
        tracing::debug!(action, ?outcome, "webhook taken");
        outcome
    }

    /// The pure steps, with the clock and the chance they need.
    fn record(&self, posted: Posted<'_>, body: &[u8], traceparent: Option<&str>) -> Result<Made, Rejection> {
        let policy = &self.0.policy;
        let receipt = |app| Receipt { app, time: Timestamp::now(), fresh_id: Uuid::now_v7 };
        let (app, key, event): (&App, &Key, Event<'_>) = match posted {
            Posted::Webhook { app } => {
                let app = policy.apps.get(app);
                let (webhook, key) = verify(receive(body)?, app.map_or(&self.0.nobody, |app| &app.keyring))?;
                let app = app.ok_or(Rejection::Unauthorized)?;
                (app, key, normalize(webhook, receipt(&app.name)))
            }
            Posted::AppWebhook { token } => {
                let app = policy.app_webhooks.as_ref().ok_or(Rejection::Unauthorized)?;
                let (webhook, key) = verify_app_webhook(token, body, &app.keyring)?;
                (app, key, normalize_app_webhook(webhook, receipt(&app.name)))
            }
        };
        key.count_use();
        self.0.metrics.secret_keys.with_label_values(&[&*app.name, key.name()]).inc();
        for fault in &event.faults {
            self.0.metrics.faults.with_label_values(&[fault.reason()]).inc();
        }
        let action = event.action_label;
        let prepared = route(event, &app.routing, traceparent);
        let retry_key = prepared.as_ref().and_then(|prepared| prepared.retry_key);
        Ok(Made { action, record: prepared.map(|prepared| prepared.record), retry_key })
    }

    /// Publishes what is new; a retry of what is durable, or a copy of what is under way, gets the first one's outcome. Nearly
    /// always that is the brokers' ack, and no task or memory is spent on the rest before it is needed.
    async fn publish_once(&self, made: Made, times: Times<'_>) -> Outcome {
        let Times { received, deadline, alarm } = times;
        let Made { action, record: Some(record), retry_key } = made else {
            self.0.metrics.event(made.action, Fate::Dropped);
            return Outcome::Dropped;
        };
        let claim = match self.claim(retry_key, received, deadline).await {
            Ok(claim) => claim,
            Err(outcome) => return outcome,
        };
        if !self.is_direct(&record) {
            let account = Account { action, claim, began: std::time::Instant::now() };
            return self.detour(record, account, Tried::Not, deadline).await;
        }
        let report = self.0.publisher.publish(record, None);
        let began = report.since();
        let account = Some(Account { action, claim, began });
        let until = self.patience(began.into(), deadline);
        let mut flight = Flight { relay: self, account, report, deadline };
        let tried = reported(&mut flight.report, alarm.at(until)).await;
        if tried == Tried::Late && self.0.spool.is_none() {
            return Outcome::Unavailable("deadline"); // the flight goes on
        }
        let Some(account) = flight.account.take() else { unreachable!("it is there until here") };
        if tried == Tried::Acked {
            return self.settled(account, Outcome::Published, flight.report.came());
        }
        self.detour(flight.report.record(), account, tried, deadline).await
    }

    /// A claim on the event, where it can be told from others; else the outcome that the first of its deliveries has had.
    async fn claim(
        &self,
        retry_key: Option<RetryKey>,
        received: Instant,
        deadline: Instant,
    ) -> Result<Option<Claim>, Outcome> {
        let Some(key) = retry_key else { return Ok(None) };
        loop {
            match self.0.window.look(key, received.into_std()) {
                Seen::New(claim) => return Ok(Some(claim)),
                Seen::Unwatched => return Ok(None),
                Seen::Durable => {
                    self.0.metrics.retries.with_label_values(&["dropped"]).inc();
                    return Err(Outcome::Published);
                }
                Seen::UnderWay(copy) => {
                    self.0.metrics.retries.with_label_values(&["joined"]).inc();
                    match Box::pin(tokio::time::timeout_at(deadline, copy.outcome())).await {
                        Ok(Some(settled)) => return Err(settled.into()),
                        Ok(None) => {}
                        Err(_) => return Err(Outcome::Unavailable("deadline")),
                    }
                }
            }
        }
    }

    /// Whether a record goes to the brokers, not through the spool, and need not wait for its lane.
    fn is_direct(&self, record: &Record) -> bool {
        self.0
            .spool
            .as_ref()
            .is_none_or(|spool| !self.is_hopeless(spool) && spool.way_now(&record.topic) == Some(Way::Direct))
    }

    /// While nothing reaches the brokers, nobody has to find it out for himself.
    fn is_hopeless(&self, spool: &Spool) -> bool {
        self.0.publisher.is_away() && self.0.metrics.spool_accepting.get() == 1 && !spool.is_stalled()
    }

    /// Until when a report is waited for, before another way is looked for.
    fn patience(&self, now: Instant, deadline: Instant) -> Instant {
        if self.0.spool.is_none() {
            return deadline;
        }
        let left = deadline.saturating_duration_since(now);
        now + self.0.publisher.report_deadline().min(left.saturating_sub(FSYNC_RESERVE.min(left / 4)))
    }

    /// The rest of the way, where the brokers' ack is not all. It goes on without the caller.
    fn detour(
        &self,
        record: Record,
        account: Account,
        tried: Tried,
        deadline: Instant,
    ) -> impl Future<Output = Outcome> {
        let followed = Followed::new(self.clone().settle(record, account, tried, deadline));
        Box::pin(async move {
            tokio::time::timeout_at(deadline, followed).await.unwrap_or(Outcome::Unavailable("deadline"))
        })
    }

    async fn settle(self, record: Record, account: Account, tried: Tried, deadline: Instant) -> Outcome {
        let outcome = match &self.0.spool {
            Some(spool) => self.through_the_spool(spool, record, tried, deadline).await,
            None => self.without_the_spool(record, tried, deadline).await,
        };
        self.settled(account, outcome, None)
    }

    /// Counts what became of the event, and tells its retries.
    fn settled(&self, account: Account, outcome: Outcome, at: Option<std::time::Instant>) -> Outcome {
        let now = at.unwrap_or_else(std::time::Instant::now);
        let (fate, settled) = match &outcome {
            Outcome::Spooled => (Fate::Spooled, Ok(())),
            Outcome::Parked => (Fate::Parked, Ok(())),
            Outcome::Unavailable(reason) => (Fate::Unavailable, Err(*reason)),
            Outcome::Published | Outcome::Dropped | Outcome::Rejected(_) => (Fate::Published, Ok(())),
        };
        self.0.metrics.event(account.action, fate);
        self.0.metrics.durable(fate, now.saturating_duration_since(account.began));
        if let Some(claim) = account.claim {
            claim.settle(settled, now);
        }
        outcome
    }

    /// There is no other way than the brokers: what got lost between them and the client is handed over again.
    async fn without_the_spool(&self, record: Record, mut tried: Tried, deadline: Instant) -> Outcome {
        while let Tried::Failed(failure) = tried
            && failure.is_lost()
            && Instant::now() < deadline
        {
            let until = Instant::now() + self.0.publisher.report_deadline_max();
            tried = reported(&mut self.0.publisher.publish(record.clone(), None), sleep_until(until)).await;
        }
        match tried {
            Tried::Acked => Outcome::Published,
            Tried::Failed(failure) if failure.is_refused() => self.resolve(record).await,
            Tried::Failed(_) if self.0.shutdown.giving_up.is_cancelled() => Outcome::Unavailable("shutting_down"),
            Tried::Failed(failure) => Outcome::Unavailable(failure.reason().label()),
            Tried::Not | Tried::Late => Outcome::Unavailable(Failure::gone().reason().label()),
        }
    }

    /// An fsync; or still the brokers' ack, where the record's lane turns direct meanwhile.
    async fn through_the_spool(&self, spool: &Spool, record: Record, tried: Tried, deadline: Instant) -> Outcome {
        let tried = match tried {
            Tried::Not if !self.is_hopeless(spool) && spool.way(&record.topic).await == Way::Direct => {
                let mut report = self.0.publisher.publish(record.clone(), None);
                reported(&mut report, sleep_until(self.patience(Instant::now(), deadline))).await
            }
            tried => tried,
        };
        let refused = match tried {
            Tried::Acked => return Outcome::Published,
            // The replay sends it alone.
            Tried::Failed(failure) if failure.is_refused() => Some(record.clone()),
            Tried::Failed(_) | Tried::Not | Tried::Late => None,
        };
        let ticket = spool.ticket(&record.topic);
        let unspooled = match spool.append(ticket, record).await {
            Ok(Ok(())) => return Outcome::Spooled,
            Ok(Err(refused)) => refused.reason().label(),
            Err(_) => "spool_failed",
        };
        match refused {
            Some(record) => self.resolve(record).await,
            None => Outcome::Unavailable(unspooled),
        }
    }

    /// What is still with the brokers is given up: whoever waits for it has another way, or none. Goes on until it is dropped.
    pub async fn give_up(self) {
        loop {
            let relay = self.clone();
            let _ = tokio::task::spawn_blocking(move || relay.publisher().give_up()).await; // the runtime ends with us
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn resolve(&self, record: Record) -> Outcome {
        match self.0.dead_letters.resolve(Entry::new(record), None).await {
            Ok(Resolved::Published) => Outcome::Published,
            Ok(Resolved::DeadLetter) => Outcome::Parked,
            Err(unresolved) => Outcome::Unavailable(unresolved.reason().label()),
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

/// What has to be said of an event when its way has ended, and to whom.
struct Account {
    action: &'static str,
    claim: Option<Claim>,
    /// When it was verified.
    began: std::time::Instant,
}

/// What has come of the direct way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    /// It was not open.
    Not,
    Acked,
    Failed(Failure),
    /// No report came in time.
    Late,
}

async fn reported(report: &mut Report, late: impl Future<Output = ()>) -> Tried {
    tokio::select! {
        biased;
        reported = report => reported.map_or_else(Tried::Failed, |()| Tried::Acked),
        () = late => Tried::Late,
    }
}

/// An event that was handed over to the brokers. Dropped with its account, it is followed to its end by a task of its own.
struct Flight<'r> {
    relay: &'r Relay,
    account: Option<Account>,
    report: Report,
    deadline: Instant,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let (Some(account), Ok(runtime)) = (self.account.take(), tokio::runtime::Handle::try_current()) {
            let (relay, mut report, deadline) = (self.relay.clone(), self.report.clone(), self.deadline);
            // Nobody waits for it any more: its report may take as long as one can.
            let until = Instant::now() + relay.publisher().report_deadline_max();
            runtime.spawn(async move {
                let tried = reported(&mut report, sleep_until(until)).await;
                relay.settle(report.record(), account, tried, deadline).await
            });
        }
    }
}

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
