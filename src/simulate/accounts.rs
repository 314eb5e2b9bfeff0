//! Accounts: the page on which a user lets an application in, and the codes and tokens that come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyper::Method;
use oauth2::{PkceCodeChallenge, PkceCodeVerifier};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::exchange::{Answer, Members, Request, encoded, escaped};
use super::setup::{Account, Client, Role};
use super::state::{Code, Grant, Pair, State};
use super::switches::{StateEcho, Switches};

/// Tokens of one client and account; then the oldest ends silently.
const PAIRS_MAX: usize = 25;
/// Codes that are remembered, so that a used one is known as such.
const CODES_MAX: usize = 1_000;
const CONSENT_PAGE: &str = include_str!("consent.html");
const ERROR_PAGE: &str = include_str!("ooops.html");

/// The name of a request for logs and faults.
pub fn method(request: &Request) -> Option<&'static str> {
    Some(match (request.path.as_str(), &request.method) {
        ("/v2/token", &Method::DELETE) => "revoke",
        ("/v2/token", _) => "token",
        ("/v2/info", _) => "info",
        ("/" | "/signin" | "/signup", _) => "authorize",
        ("/ooops", _) => "ooops",
        _ => return None,
    })
}

pub fn answer(state: &mut State, request: &Request, method: &str, now: Instant) -> Answer {
    let answered = match (method, &request.method) {
        ("authorize", &Method::GET) => Ok(authorize(state, &request.query(), now)),
        ("authorize", &Method::POST) => Ok(decide(state, &request.members(), now)),
        ("ooops", _) => Ok(ooops(&request.query())),
        ("token", &Method::POST) => token(state, &request.members(), now),
        ("revoke", _) => revoke(state, request),
        ("info", &Method::GET) => info(state, request, now),
        _ => Err(Refusal::new("invalid_request", "the method is not allowed")),
    };
    answered.unwrap_or_else(|Refusal { name, description, extra }| error(&state.switches, name, &description, &extra))
}

/// An error of accounts: its name, its description, and further members.
struct Refusal {
    name: &'static str,
    description: String,
    extra: BTreeMap<&'static str, Value>,
}

impl Refusal {
    fn new(name: &'static str, description: &str) -> Self {
        Self { name, description: description.to_owned(), extra: BTreeMap::new() }
    }

    fn missing(member: &str) -> Self {
        let extra = BTreeMap::from([("invalid_fields", json!({ member: "cannot be empty" }))]);
        Self { extra, ..Self::new("invalid_request", "The request is missing a required parameter") }
    }

    /// Whatever is wrong with a code.
    fn code() -> Self {
        Self::new("unauthorized_client", "The client is not authorized to request a token using this method")
    }
}

/// What an error's status is, where nothing else is switched.
fn status(name: &str) -> u16 {
    match name {
        "unauthorized" | "unauthorized_client" | "invalid_client" | "invalid_grant" => 401,
        "access_denied" => 403,
        "resource_not_found" => 404,
        "conflict" => 409,
        "invalid_request" => 422,
        "temporarily_unavailable" | "traffic_blocked" => 429,
        "server_error" => 500,
        "not_implemented" => 501,
        _ => 400,
    }
}

pub fn error(switches: &Switches, name: &str, description: &str, extra: &BTreeMap<&str, Value>) -> Answer {
    let mut body = if switches.v1_errors {
        json!({"oauth_exception": name, "exception_description": description})
    } else {
        json!({"error": name, "error_description": description, "request_id": Uuid::new_v4().to_string()})
    };
    extra.iter().for_each(|(member, value)| body[*member] = value.clone());
    let status = switches.statuses.get(name).copied().unwrap_or_else(|| status(name));
    Answer { error: Some(name.to_owned()), ..Answer::json(status, &body) }
}

/// Errors of the authorization, which the browser sees: the app hears of none.
pub fn refuse(exception: &str, details: &str) -> Answer {
    let to = format!("/ooops?oauth_exception={}&exception_details={}", encoded(exception), encoded(details));
    Answer { error: Some(exception.to_owned()), ..Answer::redirect(to) }
}

fn ooops(query: &Members) -> Answer {
    let text = |name: &str| escaped(query.get(name).map_or("", String::as_str));
    let page = ERROR_PAGE.replace("{exception}", &text("oauth_exception"));
    Answer::html(200, page.replace("{details}", &text("exception_details")))
}

/// What an app asks for, after the checks of its request.
struct Wanted<'a> {
    client: &'a Client,
    redirect_uri: &'a str,
    scopes: BTreeSet<String>,
    challenge: Option<(String, String)>,
}

fn wanted<'a>(state: &'a State, asked: &'a Members) -> Result<Wanted<'a>, Answer> {
    let get = |name: &str| asked.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let client = get("client_id").and_then(|id| state.setup.client(id));
    let client = client.ok_or_else(|| refuse("invalid_request", "client_id_not_found"))?;
    let redirect_uri = get("redirect_uri").ok_or_else(|| refuse("invalid_request", "redirect_uri_not_set"))?;
    if !client.redirect_uris.iter().any(|whitelisted| is_whitelisted(redirect_uri, whitelisted)) {
        return Err(refuse("invalid_request", "invalid_redirect_uri"));
    }
    if get("response_type") != Some("code") {
        return Err(refuse("unsupported_response_type", "response_type is not code"));
    }
    let scopes = get("scope").map_or_else(|| client.scopes.clone(), scopes);
    // `rw` has `ro` in it.
    let has = |scope: &String| client.scopes.contains(scope) || client.scopes.contains(&scope.replace(":ro", ":rw"));
    if !scopes.iter().all(has) {
        return Err(refuse("invalid_scope", "the app does not have the scope"));
    }
    let challenge = get("code_challenge").map(str::to_owned);
    if challenge.is_none() && client.secret.is_none() {
        return Err(refuse("invalid_request", "code_challenge is missing"));
    }
    let method = get("code_challenge_method").unwrap_or("plain").to_ascii_uppercase();
    if !["S256", "PLAIN"].contains(&method.as_str()) {
        return Err(refuse("invalid_request", "code_challenge_method is neither S256 nor plain"));
    }
    Ok(Wanted { client, redirect_uri, scopes, challenge: challenge.map(|challenge| (method, challenge)) })
}

fn scopes(text: &str) -> BTreeSet<String> {
    text.split([',', ' ']).filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
}

/// Scheme, host and port are equal, and the path begins with the whitelisted one.
fn is_whitelisted(asked: &str, whitelisted: &str) -> bool {
    let split = |uri: &str| {
        let (scheme, rest) = uri.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Some((scheme.to_owned(), authority.to_owned(), path.to_owned()))
    };
    let (Some((scheme, authority, path)), Some(known)) = (split(asked), split(whitelisted)) else { return false };
    !asked.contains(['?', '#'])
        && !asked.contains("..")
        && (scheme, authority) == (known.0, known.1)
        && path.starts_with(&known.2)
}

fn authorize(state: &mut State, asked: &Members, now: Instant) -> Answer {
    let wanted = match wanted(state, asked) {
        Ok(wanted) => wanted,
        Err(refused) => return refused,
    };
    if state.switches.skip_consent {
        return decide(state, asked, now);
    }
    let hidden = asked
        .iter()
        .map(|(name, value)| format!(r#"<input type="hidden" name="{}" value="{}">"#, escaped(name), escaped(value)));
    let accounts = state
        .setup
        .accounts
        .iter()
        .map(|Account { id, email, .. }| format!(r#"<option value="{}">{}</option>"#, escaped(id), escaped(email)));
    let listed = wanted.scopes.iter().map(|scope| format!("<li><code>{}</code></li>", escaped(scope)));
    let page = CONSENT_PAGE
        .replace("{client}", &escaped(&wanted.client.id))
        .replace("{scopes}", &listed.collect::<String>())
        .replace("{accounts}", &accounts.collect::<String>())
        .replace("{hidden}", &hidden.collect::<String>());
    Answer::html(200, page)
}

/// The user has pressed a button of the consent page.
fn decide(state: &mut State, form: &Members, now: Instant) -> Answer {
    let Wanted { client, redirect_uri, scopes, challenge } = match wanted(state, form) {
        Ok(wanted) => wanted,
        Err(refused) => return refused,
    };
    let redirect_uri = redirect_uri.to_owned();
    if form.get("decision").is_some_and(|decision| decision != "accept") {
        return if state.switches.redirect_refusal {
            Answer::redirect(format!("{redirect_uri}?error=access_denied{}", echo(state, form)))
        } else {
            refuse("access_denied", "the user has refused")
        };
    }
    let account = match form.get("account_id") {
        Some(id) => state.setup.account(id),
        None => state.setup.accounts.first(),
    };
    let Some(account) = account else { return refuse("unauthorized", "the account is not known") };
    if account.role != Role::Administrator && scopes.iter().any(|scope| scope != "chats--access:ro") {
        return refuse("invalid_scope", "the scopes are for administrators");
    }
    let grant = Grant {
        client: client.id.clone(),
        account: account.id.clone(),
        organization: account.organization_id.clone(),
        scopes,
    };
    // With this address the user installs the app.
    if client.direct_installation_url.as_ref() == Some(&redirect_uri) {
        state.install(&grant.organization, &grant.client, true, now);
    }
    let code = issue_code(state, grant, &redirect_uri, challenge, now);
    Answer::redirect(format!("{redirect_uri}?code={}{}", in_redirect(state, &code), echo(state, form)))
}

fn echo(state: &State, form: &Members) -> String {
    match (state.switches.state, form.get("state")) {
        (StateEcho::Verbatim, Some(state)) => format!("&state={}", encoded(state)),
        (StateEcho::Absent, _) | (_, None) => String::new(),
        (StateEcho::Empty, Some(_)) => "&state=".to_owned(),
    }
}

/// A code as it stands in a redirect's query.
pub fn in_redirect(state: &State, code: &str) -> String {
    let once = encoded(code);
    if state.switches.code_encoded_twice { encoded(&once) } else { once }
}

pub fn issue_code(
    state: &mut State,
    grant: Grant,
    redirect_uri: &str,
    challenge: Option<(String, String)>,
    now: Instant,
) -> String {
    let organization = state.setup.organization(&grant.organization).expect("an account's organization was checked");
    let code = state.with_region(organization, &Uuid::new_v4().simple().to_string());
    let until = now + Duration::from_secs_f64(state.switches.code_lifetime);
    if state.codes.len() >= CODES_MAX {
        state.codes.remove(0);
    }
    state.codes.push(Code {
        code: code.clone(),
        grant,
        redirect_uri: redirect_uri.to_owned(),
        challenge,
        until,
        is_used: false,
    });
    code
}

fn token(state: &mut State, form: &Members, now: Instant) -> Result<Answer, Refusal> {
    let need = |name: &str| form.get(name).filter(|value| !value.is_empty()).ok_or_else(|| Refusal::missing(name));
    let grant_type = need("grant_type")?;
    let client =
        state.setup.client(need("client_id")?).ok_or_else(|| Refusal::new("invalid_client", "unknown client"))?;
    if let Some(secret) = &client.secret
        && need("client_secret")? != secret
    {
        return Err(Refusal::new("invalid_client", "wrong client credentials"));
    }
    let (id, is_public) = (client.id.clone(), client.secret.is_none());
    match grant_type.as_str() {
        "authorization_code" | "code" => {
            let (code, redirect_uri) = (need("code")?, need("redirect_uri")?);
            let found = state.codes.iter_mut().find(|known| known.code == *code).ok_or_else(Refusal::code)?;
            let verified =
                found.challenge.as_ref().is_none_or(|challenge| is_verified(challenge, form.get("code_verifier")));
            let is_right = found.grant.client == id && found.redirect_uri == *redirect_uri && verified;
            // A code is used up by a wrong request, too.
            if std::mem::replace(&mut found.is_used, true) || found.until <= now || !is_right {
                return Err(Refusal::code());
            }
            let grant = found.grant.clone();
            Ok(issue(state, grant, Uuid::new_v4().simple().to_string(), now))
        }
        "refresh_token" => {
            let token = need("refresh_token")?;
            let pair =
                state.pairs.iter_mut().find(|pair| pair.refresh.as_ref() == Some(token) && pair.grant.client == id);
            let pair = pair.ok_or_else(|| Refusal::new("invalid_grant", "the refresh token is not valid"))?;
            let grant = pair.grant.clone();
            let refresh = if is_public {
                pair.refresh = None;
                Uuid::new_v4().simple().to_string()
            } else {
                token.clone()
            };
            Ok(issue(state, grant, refresh, now))
        }
        _ => Err(Refusal::new("unsupported_grant_type", "the grant type is not supported")),
    }
}

fn is_verified((method, challenge): &(String, String), verifier: Option<&String>) -> bool {
    let Some(verifier) = verifier else { return false };
    let is_unreserved = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    if !(43..=128).contains(&verifier.len()) || !verifier.chars().all(is_unreserved) {
        return false;
    }
    if method == "PLAIN" {
        return verifier == challenge;
    }
    let of_verifier = PkceCodeChallenge::from_code_verifier_sha256(&PkceCodeVerifier::new(verifier.clone()));
    of_verifier.as_str() == challenge
}

fn issue(state: &mut State, grant: Grant, refresh: String, now: Instant) -> Answer {
    let organization = state.setup.organization(&grant.organization).expect("an account's organization was checked");
    let access = state.with_region(organization, &Uuid::new_v4().simple().to_string());
    let until = now + Duration::from_secs_f64(state.switches.token_lifetime);
    let pair = Pair { access, refresh: Some(refresh), grant, until };
    let is_same =
        |other: &Pair| (&other.grant.client, &other.grant.account) == (&pair.grant.client, &pair.grant.account);
    if state.pairs.iter().filter(|other| is_same(other)).count() >= PAIRS_MAX {
        let oldest = state.pairs.iter().position(is_same).expect("there are some");
        state.pairs.remove(oldest);
    }
    let mut body = described(&pair, now);
    body["refresh_token"] = if state.switches.no_refresh_token { Value::Null } else { json!(pair.refresh) };
    state.pairs.push(pair);
    Answer::json(200, &body)
}

fn described(Pair { access, grant, until, .. }: &Pair, now: Instant) -> Value {
    let scopes: Vec<_> = grant.scopes.iter().map(String::as_str).collect();
    json!({
        "access_token": access, "account_id": grant.account, "expires_in": until.duration_since(now).as_secs(),
        "organization_id": grant.organization, "scope": scopes.join(","), "token_type": "Bearer",
    })
}

/// The token that a call is about: a Bearer token, or in the query.
fn named(request: &Request) -> Option<String> {
    request.bearer().map(str::to_owned).or_else(|| request.query().remove("code"))
}

fn revoke(state: &mut State, request: &Request) -> Result<Answer, Refusal> {
    let token = named(request).ok_or_else(|| Refusal::missing("code"))?;
    let is_named = |pair: &Pair| pair.access == token || pair.refresh.as_ref() == Some(&token);
    let pair = state.pairs.iter().find(|pair| is_named(pair)).cloned();
    let pair = pair.ok_or_else(|| Refusal::new("resource_not_found", "the token is not known"))?;
    // Access tokens that share a refresh token end with it.
    state
        .pairs
        .retain(|other| other.access != pair.access && (pair.refresh.is_none() || other.refresh != pair.refresh));
    Ok(super::api::nothing(state))
}

fn info(state: &mut State, request: &Request, now: Instant) -> Result<Answer, Refusal> {
    let refuse = || Refusal::new("unauthorized", "the access token is not valid");
    let token = named(request).ok_or_else(refuse)?;
    let pair = state.pairs.iter().find(|pair| pair.access == token && pair.until > now).ok_or_else(refuse)?;
    let mut body = described(pair, now);
    body["client_id"] = json!(pair.grant.client);
    if let Some(refresh) = &pair.refresh {
        body["refresh_token"] = json!(refresh);
    }
    Ok(Answer::json(200, &body))
}

#[cfg(test)]
mod tests;
