//! What every call of LiveChat's APIs has in common: version, JSON, who calls, region, rate limit, scopes, errors, what is billed.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::Method;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::exchange::{Answer, Request};
use super::setup::Role;
use super::state::State;
use super::switches::Switches;
use super::{archives, configuration};

/// A call after the checks that all methods share.
pub struct Call<'a> {
    /// The minor number of 3.3 to 3.7.
    pub version: u8,
    pub body: &'a Map<String, Value>,
    pub caller: &'a Caller,
    pub now: Instant,
}

/// Who calls, by the token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The application that the access token was issued to; none has a personal access token.
    pub client: Option<String>,
    pub organization: String,
    pub role: Role,
    scopes: BTreeSet<String>,
}

/// LiveChat's error: its type, its message, and its data.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    pub kind: &'static str,
    pub message: String,
    pub data: Option<Value>,
}

pub fn refusal(kind: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { kind, message: message.into(), data: None }
}

pub fn invalid(message: impl Into<String>) -> Refusal {
    refusal("validation", message)
}

pub fn missing(member: &str) -> Refusal {
    invalid(format!("`{member}` is required"))
}

/// Errors: the type, its status, which LiveChat documents nowhere, and the message where a call has no other.
const ERRORS: &[(&str, u16, &str)] = &[
    ("authentication", 401, "Authentication error"),
    ("authorization", 403, "Authorization error"),
    ("license_expired", 403, "License expired"),
    ("missing_access", 403, "Missing access"),
    ("not_allowed", 403, "Not allowed"),
    ("not_found", 404, "Not found"),
    ("license_not_found", 404, "License not found"),
    ("request_timeout", 408, "Request timed out"),
    ("already_exists", 409, "Already exists"),
    ("entity_too_large", 413, "Entity too large"),
    ("misdirected_request", 421, "Wrong region"),
    ("limit_reached", 422, "Limit reached"),
    ("seats_limit_exceeded", 422, "Seats limit exceeded"),
    ("too_many_requests", 429, "Too many requests"),
    ("internal", 500, "Internal server error"),
    ("service_unavailable", 503, "Service unavailable"),
    (UNSUPPORTED, 400, "Cannot call unsupported API versions."),
];
const UNSUPPORTED: &str = "unsupported_version";

/// Of a type that is not known, too.
fn known(kind: &str) -> (u16, &'static str) {
    let found = ERRORS.iter().find(|(known, ..)| *known == kind);
    found.map_or((400, "Wrong format of request"), |(_, status, message)| (*status, message))
}

pub fn error(switches: &Switches, kind: &str, text: Option<&str>, data: Option<&Value>) -> Answer {
    let (status, message) = known(kind);
    let mut error = json!({"type": kind, "message": text.unwrap_or(message)});
    if let Some(data) = data {
        error["data"] = data.clone();
    }
    let status = switches.statuses.get(kind).copied().unwrap_or(status);
    Answer { error: Some(kind.to_owned()), ..Answer::json(status, &json!({"error": error})) }
}

/// The API, `configuration` or `agent`, the version and the method of a path.
pub fn parts(path: &str) -> Option<(&str, &str, &str)> {
    let (version, rest) = path.strip_prefix("/v")?.split_once('/')?;
    let (api, name) = rest.split_once("/action/")?;
    matches!(api, "configuration" | "agent").then_some((version, api, name))
}

pub fn answer(state: &mut State, request: &Request, now: Instant) -> Answer {
    let mut answer = try_answer(state, request, now).unwrap_or_else(|refused| {
        let Refusal { kind, message, data } = refused;
        let mut answer = error(&state.switches, kind, Some(&message), data.as_ref());
        let retry_after = state.switches.rate_limit.and_then(|limit| limit.retry_after);
        if let Some(seconds) = retry_after.filter(|_| kind == "too_many_requests") {
            answer.headers.push(("retry-after".to_owned(), seconds.to_string()));
        }
        answer
    });
    if let Some((version, ..)) = parts(&request.path) {
        let Switches { legacy, deprecation, .. } = &state.switches;
        for (name, dates) in [("legacy", legacy), ("deprecation", deprecation)] {
            answer.headers.extend(dates.get(version).map(|date| (name.to_owned(), date.clone())));
        }
    }
    answer
}

fn try_answer(state: &mut State, request: &Request, now: Instant) -> Result<Answer, Refusal> {
    let (version, api, name) = parts(&request.path).ok_or_else(|| refusal("not_found", "Not found"))?;
    let minor = version.strip_prefix("3.").and_then(|minor| minor.parse::<u8>().ok());
    let minor = minor.filter(|minor| (3..=7).contains(minor) && state.switches.versions.contains(version));
    let version = minor.ok_or_else(|| refusal(UNSUPPORTED, known(UNSUPPORTED).1))?;
    let (method, scopes): (Handler, _) = match api {
        "configuration" => configuration::method(name),
        _ => archives::method(name),
    }
    .ok_or_else(|| refusal("not_found", format!("there is no method `{name}`")))?;
    if request.method != Method::POST {
        return Err(invalid("methods are called by POST"));
    }
    let body: Value = serde_json::from_slice(&request.body).map_err(|_| invalid("Wrong format of request"))?;
    let body = body.as_object().ok_or_else(|| invalid("Wrong format of request"))?;
    let method = match method {
        Handler::Open(method) => return method(state, version, body),
        Handler::Closed(method) => method,
    };
    let caller = authenticate(state, request, now)?;
    let organization = state.setup.organization(&caller.organization);
    let region = organization.map(|organization| organization.region.clone()).unwrap_or_default();
    if state.switches.strict_region && request.header("x-region") != Some(&region) {
        let data = Some(json!({"region": region}));
        return Err(Refusal { data, ..refusal("misdirected_request", "Wrong region") });
    }
    limit_rate(state, now)?;
    let allows = |scope: &str| {
        let has = |scope: &str| caller.scopes.contains(scope);
        // Of the scopes here only this one is also for agents.
        let is_for_caller = caller.role == Role::Administrator || scope == "chats--access:ro";
        is_for_caller && (has(scope) || has(&scope.replace(":ro", ":rw")))
    };
    if !scopes.iter().any(|scope| allows(scope)) {
        let why = format!("needs an administrator and one of the scopes {}", scopes.join(", "));
        return Err(refusal("authorization", why));
    }
    method(state, &Call { version, body, caller: &caller, now })
}

type Open = fn(&mut State, u8, &Map<String, Value>) -> Result<Answer, Refusal>;
type Closed = fn(&mut State, &Call<'_>) -> Result<Answer, Refusal>;

/// A method that anyone may call, or only who has one of its scopes.
pub enum Handler {
    Open(Open),
    Closed(Closed),
}

fn authenticate(state: &State, request: &Request, now: Instant) -> Result<Caller, Refusal> {
    let refuse = || refusal("authentication", "Invalid access token");
    if let Some(token) = request.bearer() {
        let pair = state.pairs.iter().find(|pair| pair.access == token && pair.until > now).ok_or_else(refuse)?;
        let account = state.setup.account(&pair.grant.account).ok_or_else(refuse)?;
        return Ok(Caller {
            client: Some(pair.grant.client.clone()),
            organization: pair.grant.organization.clone(),
            role: account.role,
            scopes: pair.grant.scopes.clone(),
        });
    }
    let basic = request.header("authorization").and_then(|value| value.strip_prefix("Basic "));
    let basic = basic.and_then(decode_base64).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(refuse)?;
    let (account, token) = basic.split_once(':').ok_or_else(refuse)?;
    let mut tokens = state.setup.personal_access_tokens.iter();
    let known = tokens.find(|known| known.token == token && known.account_id == account).ok_or_else(refuse)?;
    let account = state.setup.account(account).ok_or_else(refuse)?;
    let (organization, scopes) = (account.organization_id.clone(), known.scopes.clone());
    Ok(Caller { client: None, organization, role: account.role, scopes })
}

fn limit_rate(state: &mut State, now: Instant) -> Result<(), Refusal> {
    let Some(limit) = state.switches.rate_limit else { return Ok(()) };
    let period = Duration::from_secs_f64(limit.seconds);
    while state.calls.front().is_some_and(|call| now.duration_since(*call) >= period) {
        state.calls.pop_front();
    }
    if state.calls.len() >= limit.calls {
        return Err(refusal("too_many_requests", "Too many requests"));
    }
    state.calls.push_back(now);
    Ok(())
}

/// Only for the header `Authorization`: the standard alphabet, padded or not.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|known| *known == byte)?;
        bits = bits << 6 | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

/// A text that must be there and not be empty.
pub fn text<'a>(body: &'a Map<String, Value>, member: &str) -> Result<&'a str, Refusal> {
    match body.get(member) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        None | Some(Value::String(_)) => Err(missing(member)),
        Some(_) => Err(invalid(format!("`{member}` must be a string"))),
    }
}

/// The answer of a method that has nothing to say.
pub fn nothing(state: &State) -> Answer {
    if state.switches.empty_success { Answer::new(200, "application/json", "") } else { Answer::done() }
}

#[cfg(test)]
mod tests;
