//! `/_simulate/…`: how a test, or a person with curl, sets switches and faults, makes things happen, and sees what was called and
//! delivered. It has secrets in its answers: they are the simulator's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use super::Simulator;
use super::accounts::{in_redirect, issue_code};
use super::chats::Details;
use super::deliveries::{self, due};
use super::exchange::{Answer, Request};
use super::setup::Setup;
use super::state::{Grant, State};
use super::switches::{Fault, SWITCHES};
use crate::samples::scene::rfc3339;

const HELP: &str = include_str!("control.txt");
/// `/_simulate/traffic` makes so many things happen a second at most, for so long.
const RATE_MAX: f64 = 5_000.0;
const SECONDS_MAX: f64 = 86_400.0;

/// Answers what is asked below `/_simulate/`. A mistake is answered 400 with its reason.
pub fn answer(simulator: &Arc<Simulator>, request: &Request, path: &str, now: Instant) -> Answer {
    if path.is_empty() {
        return Answer::new(200, "text/plain; charset=utf-8", HELP.replace("{url}", &simulator.url) + SWITCHES);
    }
    // Browsers send it with what a page of another site posts: a stranger's page is not to make the simulator send anything.
    if request.headers.contains_key("origin") {
        return Answer::json(403, &json!({"error": "web pages may not drive the simulator"}));
    }
    let answered = try_answer(simulator, request, path, now);
    answered.map_or_else(|why| Answer::json(400, &json!({"error": why})), |answer| Answer::json(200, &answer))
}

fn try_answer(simulator: &Arc<Simulator>, request: &Request, path: &str, now: Instant) -> Result<Value, String> {
    let parts: Vec<_> = path.split('/').collect();
    let mut state = simulator.state();
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["state"]) => Ok(seen(&state, now)),
        ("GET", ["requests"]) => Ok(requests(&state, request)),
        ("DELETE", ["requests"]) => {
            state.requests.kept.clear();
            Ok(json!({}))
        }
        ("GET", ["switches"]) => Ok(json!(state.switches)),
        ("POST", ["switches"]) => {
            state.switches.set(&body::<Value>(request)?)?;
            state.settle(now);
            Ok(json!(state.switches))
        }
        ("DELETE", ["switches"]) => {
            state.switches = state.setup.switches.clone();
            state.settle(now);
            Ok(json!(state.switches))
        }
        ("GET", ["faults"]) => Ok(json!(state.faults)),
        ("POST", ["faults"]) => {
            let fault: Fault = body(request)?;
            fault.check()?;
            state.faults.push(fault);
            Ok(json!(state.faults))
        }
        ("DELETE", ["faults"]) => {
            state.faults.clear();
            Ok(json!([]))
        }
        ("POST", ["routes"]) => {
            state.setup.routes.extend(body::<BTreeMap<String, String>>(request)?);
            Ok(json!(state.setup.routes))
        }
        ("POST", ["install"]) => install(&mut state, &body(request)?, now),
        ("POST", ["uninstall"]) => {
            let (organization, client) = body::<Who>(request)?.of(&state.setup)?;
            state.install(&organization, &client, false, now);
            Ok(json!({}))
        }
        ("POST", ["chats"] | ["chats", _, _] | ["happen", _]) => {
            happen(simulator, &mut state, &parts, &body(request)?, now)
        }
        ("POST", ["traffic"]) => traffic(simulator, &state, body(request)?),
        ("GET", ["deliveries"]) => Ok(json!(state.report)),
        ("DELETE", ["deliveries"]) => {
            state.report.deliveries.clear();
            Ok(json!({}))
        }
        _ => Err(format!("there is no {} /_simulate/{path}; GET /_simulate/ says what there is", request.method)),
    }
}

/// JSON; an empty body is an empty object.
fn body<T: DeserializeOwned>(request: &Request) -> Result<T, String> {
    let text = if request.body.is_empty() { b"{}" } else { &request.body[..] };
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

/// What there is now. Of a change that has not taken effect yet the new value.
fn seen(state: &State, now: Instant) -> Value {
    let installations = state.installations.iter().map(|((organization, client), one)| {
        json!({
            "organization_id": organization, "client_id": client, "installed": one.installed.value, "enabled": one.enabled.value,
        })
    });
    let registered = state.registrations.iter().filter(|registration| registration.listed.value);
    let registrations = registered.map(|one| {
        json!({
            "id": one.id, "owner_client_id": one.owner, "version": format!("3.{}", one.version), "action": one.action,
            "url": one.url, "secret_key": one.secret_key, "type": one.level, "filters": one.filters,
            "additional_data": one.additional_data, "description": one.description,
            "listed": one.listed.effective(now, state.listing_lag()),
            "delivered": one.delivered.effective(now, state.delivery_lag()),
        })
    });
    let tokens = state.pairs.iter().map(|pair| {
        json!({
            "access_token": pair.access, "refresh_token": pair.refresh, "client_id": pair.grant.client,
            "account_id": pair.grant.account, "organization_id": pair.grant.organization, "scopes": pair.grant.scopes,
            "expires_in": pair.until.saturating_duration_since(now).as_secs(),
        })
    });
    json!({
        "setup": state.setup,
        "installations": installations.collect::<Vec<_>>(),
        "registrations": registrations.collect::<Vec<_>>(),
        "tokens": tokens.collect::<Vec<_>>(),
        "chats": state.chats.kept.len(),
        "requests": state.requests.count,
        "billed": state.billed,
    })
}

fn requests(state: &State, request: &Request) -> Value {
    let method = request.query().remove("method");
    let is_asked =
        |called: &&super::state::LoggedRequest| method.as_ref().is_none_or(|method| called.method == *method);
    json!(state.requests.kept.iter().filter(is_asked).collect::<Vec<_>>())
}

/// Whom an installation is about: the first of each kind, where nothing else is said.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Who {
    client_id: Option<String>,
    organization_id: Option<String>,
    /// Who presses the button.
    account_id: Option<String>,
    /// What is granted instead of all scopes of the app.
    scopes: Option<BTreeSet<String>>,
}

impl Who {
    fn of(&self, setup: &Setup) -> Result<(String, String), String> {
        let organization = setup.named_organization(self.organization_id.as_deref())?.id.clone();
        let client = match &self.client_id {
            Some(id) => setup.client(id).ok_or_else(|| format!("there is no client `{id}`"))?.id.clone(),
            None => setup.clients.first().ok_or("there is no client")?.id.clone(),
        };
        Ok((organization, client))
    }
}

/// The user presses Install. Where the app has a direct installation URL, the answer has the address that the browser goes to.
fn install(state: &mut State, who: &Who, now: Instant) -> Result<Value, String> {
    let (organization, client) = who.of(&state.setup)?;
    let mut accounts = state.setup.accounts.iter().filter(|account| account.organization_id == organization);
    let account = match &who.account_id {
        Some(id) => accounts.find(|account| account.id == *id),
        None => accounts.next(),
    };
    let account = account.ok_or("the organization has no such account")?.id.clone();
    let found = state.setup.client(&client).cloned().ok_or("there is no such client")?;
    state.install(&organization, &client, true, now);
    let Some(url) = found.direct_installation_url else { return Ok(json!({})) };
    let scopes = who.scopes.clone().unwrap_or(found.scopes);
    let code = issue_code(state, Grant { client, account, organization, scopes }, &url, None, now);
    let address = format!("{url}?code={}", in_redirect(state, &code));
    Ok(json!({"url": address, "routed": state.setup.routed(&address), "code": code}))
}

/// Something happens, and webhooks are sent for it.
fn happen(
    simulator: &Arc<Simulator>,
    state: &mut State,
    parts: &[&str],
    details: &Details,
    now: Instant,
) -> Result<Value, String> {
    let State { chats, setup, .. } = &mut *state;
    let happening = match parts {
        [_, chat, "message"] => chats.go_on(chat, "incoming_event", details, setup),
        [_, chat, "tag"] => chats.go_on(chat, "thread_tagged", details, setup),
        [_, chat, "end"] => chats.go_on(chat, "chat_deactivated", details, setup),
        [_, chat, action] => chats.go_on(chat, action, details, setup),
        [_, action] => chats.aside(action, details, setup),
        _ => chats.start(details, setup),
    }?;
    let jobs = due(state, &happening, details.deliver.unwrap_or(true), now);
    let sent = jobs.len();
    deliveries::begin(simulator, jobs);
    let chat = happening.chat_id.as_deref().and_then(|id| state.chats.find(id));
    let (thread_id, created_at) = chat.map(|chat| (chat.thread_id(), rfc3339(chat.created_at))).unzip();
    Ok(json!({
        "action": happening.action, "chat_id": happening.chat_id, "thread_id": thread_id, "created_at": created_at,
        "event_id": happening.event_id, "deliveries": sent,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Traffic {
    /// Happenings a second.
    rate: f64,
    seconds: f64,
    #[serde(default)]
    organization_id: Option<String>,
}

/// The mix of a busy account, for a while. Answers at once.
fn traffic(simulator: &Arc<Simulator>, state: &State, traffic: Traffic) -> Result<Value, String> {
    let Traffic { rate, seconds, organization_id } = traffic;
    let is_right = (f64::MIN_POSITIVE..=RATE_MAX).contains(&rate) && (0.0..=SECONDS_MAX).contains(&seconds);
    if !is_right {
        return Err(format!("`rate` is more than 0 and at most {RATE_MAX}, `seconds` at most {SECONDS_MAX}"));
    }
    let organization = state.setup.named_organization(organization_id.as_deref())?.id.clone();
    let (count, simulator) = ((rate * seconds).round() as i64, Arc::clone(simulator));
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for _ in 0..count {
            ticks.tick().await;
            let mut state = simulator.state();
            let State { chats, setup, .. } = &mut *state;
            let Ok(happening) = chats.next_of_traffic(&organization, setup) else { return };
            let jobs = due(&mut state, &happening, true, Instant::now());
            drop(state);
            deliveries::begin(&simulator, jobs);
        }
    });
    Ok(json!({"happenings": count}))
}

/// What comes after `/_simulate/`, where a request is one for the control endpoints.
pub fn path(request: &Request) -> Option<&str> {
    let rest = request.path.strip_prefix("/_simulate")?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_matches('/'))
}
