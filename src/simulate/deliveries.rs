//! Webhooks on their way: for each registration that something fits one delivery, tried by LiveChat's rules, and what became of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use super::Simulator;
use super::chats::Happening;
use super::filters;
use super::state::{Registration, State};

/// Deliveries that are tried at once.
const CONCURRENT_MAX: usize = 64;
/// Deliveries that are not over; what comes beyond is dropped at once.
const PENDING_MAX: u64 = 10_000;
/// Deliveries that the report has one by one; then the oldest are forgotten.
const KEPT_MAX: usize = 10_000;

/// What became of everything so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What happened, whether something is registered for it or not.
    pub happened: u64,
    /// Deliveries begun.
    pub sent: u64,
    /// Deliveries that were answered 200.
    pub answered: u64,
    /// Attempts that were not.
    pub failed: u64,
    /// Deliveries that were given up.
    pub dropped: u64,
    /// Deliveries that are not over.
    pub pending: u64,
    pub deliveries: VecDeque<Delivery>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Delivery {
    pub number: u64,
    pub webhook_id: String,
    pub action: String,
    pub url: String,
    pub chat_id: Option<String>,
    pub event_id: Option<String>,
    pub attempts: Vec<Attempt>,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Pending,
    Answered,
    Dropped,
}

#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    pub status: Option<u16>,
    /// Why there is no status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub seconds: f64,
}

/// A delivery that is to be made.
pub struct Job {
    number: u64,
    url: String,
    body: Bytes,
}

/// What sends.
pub struct Sender {
    reusing: reqwest::Client,
    /// A connection for each attempt.
    fresh: reqwest::Client,
    permits: Semaphore,
}

impl Sender {
    /// # Errors
    /// Why there can be no HTTP client.
    pub fn new(tls: &rustls::ClientConfig) -> Result<Self, String> {
        let client = |idle| {
            let builder = reqwest::Client::builder().tls_backend_preconfigured(tls.clone()).no_proxy();
            let builder = builder.redirect(reqwest::redirect::Policy::none()).user_agent("simulated LiveChat");
            builder.pool_max_idle_per_host(idle).build().map_err(|error| error.to_string())
        };
        Ok(Self { reusing: client(CONCURRENT_MAX)?, fresh: client(0)?, permits: Semaphore::new(CONCURRENT_MAX) })
    }
}

/// Notes what happened, and what is to be sent for it.
pub fn due(state: &mut State, happening: &Happening, is_delivered: bool, now: Instant) -> Vec<Job> {
    state.report.happened += 1;
    let fitting = state.registrations.iter().filter(|one| is_delivered && fits(state, one, happening, now));
    let bodies = fitting.map(|one| (one.id.clone(), state.setup.routed(&one.url), body(state, one, happening)));
    let bodies: Vec<_> = bodies.collect();
    let report = &mut state.report;
    bodies.into_iter().filter_map(|(webhook_id, url, body)| report.begin(happening, webhook_id, url, body)).collect()
}

fn fits(state: &State, registration: &Registration, happening: &Happening, now: Instant) -> bool {
    let lag = state.delivery_lag();
    let Some(owner) = state.setup.client(&registration.owner) else { return false };
    let is_own_bot = |id: &str| owner.bots.contains(id);
    let installation = state.installations.get(&(happening.organization.clone(), owner.id.clone()));
    registration.action == happening.action
        && registration.delivered.effective(now, lag)
        && installation.is_some_and(|one| one.installed.effective(now, lag) && one.enabled.effective(now, lag))
        && (registration.level == "license" || happening.facts.present.iter().any(|id| is_own_bot(id)))
        && filters::pass(&registration.filters, &happening.facts, &owner.id, is_own_bot)
}

/// The envelope of the version that registered the webhook.
fn body(state: &State, registration: &Registration, happening: &Happening) -> Bytes {
    let license_id = state.setup.organization(&happening.organization).map(|organization| organization.license_id);
    let tenant = if registration.version <= 3 {
        format!(r#""license_id":{}"#, license_id.unwrap_or_default())
    } else {
        format!(r#""organization_id":{}"#, json!(happening.organization))
    };
    let requester = happening.requester.as_ref().filter(|_| registration.version >= 6);
    let requester = requester.map_or_else(String::new, |requester| format!(r#","requester":{requester}"#));
    let wanted =
        |name: &str, value: Value| registration.additional_data.contains(name).then(|| (name.to_owned(), value));
    let properties = wanted("chat_properties", happening.chat_properties.clone());
    let present = wanted("chat_presence_user_ids", json!(happening.facts.present));
    let additional_data: Map<String, Value> = properties.into_iter().chain(present).collect();
    format!(
        r#"{{"webhook_id":{},"secret_key":{},"action":{},{tenant},"payload":{}{requester},"additional_data":{}}}"#,
        json!(registration.id),
        json!(registration.secret_key),
        json!(registration.action),
        happening.payload,
        Value::Object(additional_data),
    )
    .into()
}

/// Makes each delivery in a task of its own.
pub fn begin(simulator: &Arc<Simulator>, jobs: Vec<Job>) {
    for job in jobs {
        tokio::spawn(deliver(Arc::clone(simulator), job));
    }
}

async fn deliver(simulator: Arc<Simulator>, job: Job) {
    let (attempts, scale, jitter) = {
        let switches = &simulator.state().switches;
        (switches.delivery_attempts.clone(), switches.time_scale, switches.delivery_jitter)
    };
    let chance = f64::from(Uuid::new_v4().as_fields().0) / f64::from(u32::MAX);
    let start = Instant::now() + Duration::from_secs_f64(jitter * chance);
    for at in attempts {
        tokio::time::sleep_until(start + Duration::from_secs_f64(at * scale)).await;
        let attempt = attempt(&simulator, &job).await;
        let is_answered = attempt.status == Some(200);
        simulator.state().report.note(job.number, attempt);
        if is_answered {
            return simulator.state().report.end(job.number, Outcome::Answered);
        }
    }
    simulator.state().report.end(job.number, Outcome::Dropped);
}

async fn attempt(simulator: &Simulator, job: &Job) -> Attempt {
    let _permit = simulator.sender.permits.acquire().await; // it is never closed
    let (timeout, keep_alive) = {
        let switches = &simulator.state().switches;
        (Duration::from_secs_f64(switches.delivery_timeout), switches.keep_alive)
    };
    let client = if keep_alive { &simulator.sender.reusing } else { &simulator.sender.fresh };
    let begun = Instant::now();
    let request =
        client.post(&job.url).header("content-type", "application/json").body(job.body.clone()).timeout(timeout);
    let answered = async {
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        answer.bytes().await?; // read to its end, so that the connection can be used again
        Ok::<_, reqwest::Error>(status)
    };
    let (status, error) = match answered.await {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(cause(&error))),
    };
    Attempt { status, error, seconds: begun.elapsed().as_secs_f64() }
}

/// The innermost reason: the outer ones say only that there is one.
fn cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

impl Report {
    /// None where too much is pending.
    fn begin(&mut self, happening: &Happening, webhook_id: String, url: String, body: Bytes) -> Option<Job> {
        self.sent += 1;
        self.pending += 1;
        let number = self.sent;
        self.deliveries.push_back(Delivery {
            number,
            webhook_id,
            action: happening.action.clone(),
            url: url.clone(),
            chat_id: happening.chat_id.clone(),
            event_id: happening.event_id.clone(),
            attempts: Vec::new(),
            outcome: Outcome::Pending,
        });
        if self.deliveries.len() > KEPT_MAX {
            self.deliveries.pop_front();
        }
        if self.pending > PENDING_MAX {
            self.end(number, Outcome::Dropped);
            return None;
        }
        Some(Job { number, url, body })
    }

    fn find(&mut self, number: u64) -> Option<&mut Delivery> {
        self.deliveries.iter_mut().rev().find(|delivery| delivery.number == number)
    }

    fn note(&mut self, number: u64, attempt: Attempt) {
        self.failed += u64::from(attempt.status != Some(200));
        if let Some(delivery) = self.find(number) {
            delivery.attempts.push(attempt);
        }
    }

    fn end(&mut self, number: u64, outcome: Outcome) {
        self.pending -= 1;
        *(if outcome == Outcome::Answered { &mut self.answered } else { &mut self.dropped }) += 1;
        if let Some(delivery) = self.find(number) {
            delivery.outcome = outcome;
        }
    }
}

#[cfg(test)]
mod tests;
