//! The Configuration API's methods for webhooks: registrations, the names that are offered, and a license's state.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::api::{Call, Handler, Refusal, invalid, missing, nothing, refusal, text};
use super::exchange::Answer;
use super::setup::Client;
use super::state::{Delayed, Installation, Registration, State};
use super::switches::NoFilters;
use super::{catalogue, filters};

/// Registrations of an action that a client may have.
const REGISTRATIONS_MAX: usize = 3;
const URL_CHARACTERS_MAX: usize = 500;

/// A method, and the scopes of which it needs one.
pub fn method(name: &str) -> Option<(Handler, &'static [&'static str])> {
    let register = &["webhooks.configuration:rw"][..];
    Some(match name {
        "register_webhook" => (Handler::Closed(register_webhook), register),
        "list_webhooks" => (Handler::Closed(list_webhooks), register),
        "unregister_webhook" => (Handler::Closed(unregister_webhook), register),
        "list_webhook_names" => (Handler::Open(list_webhook_names), &[]),
        "enable_license_webhooks" => (Handler::Closed(|state, call| enable(state, call, true)), &["webhooks.state:rw"]),
        "disable_license_webhooks" => {
            (Handler::Closed(|state, call| enable(state, call, false)), &["webhooks.state:rw"])
        }
        "get_license_webhooks_state" => (Handler::Closed(get_state), &["webhooks.state:ro"]),
        _ => return None,
    })
}

/// The client that the call is about, which the caller's organization must own.
fn owner<'a>(state: &'a State, call: &Call<'_>) -> Result<&'a Client, Refusal> {
    let id = text(call.body, "owner_client_id")?;
    let client = state.setup.client(id).filter(|client| client.organization_id == call.caller.organization);
    client.ok_or_else(|| refusal("authorization", "`owner_client_id` is not owned by your organization"))
}

fn register_webhook(state: &mut State, call: &Call<'_>) -> Result<Answer, Refusal> {
    let owner = owner(state, call)?.id.clone();
    let body = call.body;
    let action = text(body, "action")?;
    let secret_key = text(body, "secret_key")?;
    let url = text(body, "url")?;
    if url.chars().count() > URL_CHARACTERS_MAX || !(url.starts_with("https://") || url.starts_with("http://")) {
        return Err(invalid("`url` is invalid"));
    }
    let level = text(body, "type")?;
    if !["license", "bot"].contains(&level) {
        return Err(invalid("`type` must be `license` or `bot`"));
    }
    let known = catalogue::actions(call.version).get(action).copied();
    let is_extra = state.switches.extra_actions.contains(action);
    let allowed = known.or(is_extra.then_some(&[][..])).ok_or_else(|| invalid("`action` is invalid"))?;
    let wanted = body.get("filters").cloned().unwrap_or_else(|| json!({}));
    filters::check(&wanted, allowed).map_err(invalid)?;
    let additional_data = additional_data(body, action)?;
    let description = match body.get("description") {
        None => "",
        Some(description) => description.as_str().ok_or_else(|| invalid("`description` must be a string"))?,
    };
    let lag = (state.listing_lag(), state.delivery_lag());
    let mut listed = Delayed::always(false, call.now);
    let mut delivered = listed;
    listed.set(true, call.now, lag.0);
    delivered.set(true, call.now, lag.1);
    let registration = Registration {
        id: Uuid::new_v4().to_string(),
        owner,
        version: call.version,
        action: action.to_owned(),
        url: url.to_owned(),
        secret_key: secret_key.to_owned(),
        level: level.to_owned(),
        filters: wanted,
        additional_data,
        description: description.to_owned(),
        listed,
        delivered,
    };
    let is_same = |other: &&Registration| {
        (&other.url, &other.level, &other.filters) == (&registration.url, &registration.level, &registration.filters)
    };
    let of_action = || {
        let (owner, action) = (&registration.owner, &registration.action);
        state
            .registrations
            .iter()
            .filter(move |other| other.listed.value && (&other.owner, &other.action) == (owner, action))
    };
    if state.switches.already_exists && of_action().any(|other| is_same(&other)) {
        return Err(refusal("already_exists", "Already exists"));
    }
    if of_action().count() >= REGISTRATIONS_MAX {
        return Err(refusal("limit_reached", "Limit reached"));
    }
    let answer = json!({"id": registration.id});
    state.registrations.push(registration);
    Ok(Answer::json(200, &answer))
}

fn additional_data(body: &Map<String, Value>, action: &str) -> Result<BTreeSet<String>, Refusal> {
    let wrong = || invalid("`additional_data` is invalid");
    let Some(wanted) = body.get("additional_data") else { return Ok(BTreeSet::new()) };
    let wanted = wanted.as_array().ok_or_else(wrong)?;
    let allowed = catalogue::additional_data(action);
    let named = wanted.iter().map(|name| name.as_str().filter(|name| allowed.contains(name)).map(str::to_owned));
    named.collect::<Option<_>>().ok_or_else(wrong)
}

fn list_webhooks(state: &mut State, call: &Call<'_>) -> Result<Answer, Refusal> {
    let owner = owner(state, call)?.id.clone();
    let (now, lag) = (call.now, state.listing_lag());
    let listed = state.registrations.iter().filter(|one| one.owner == owner && one.listed.effective(now, lag));
    let items: Vec<_> = listed.map(|registration| item(state, registration)).collect();
    let is_null = state.switches.null_list && items.is_empty();
    Ok(Answer::json(200, &if is_null { Value::Null } else { Value::Array(items) }))
}

fn item(state: &State, registration: &Registration) -> Value {
    let Registration { id, url, description, action, filters, owner, level, .. } = registration;
    let mut item = json!({
        "id": id, "url": url, "description": description, "action": action, "owner_client_id": owner, "type": level,
    });
    let is_empty = filters.as_object().is_none_or(Map::is_empty);
    match state.switches.no_filters {
        NoFilters::Absent if is_empty => {}
        NoFilters::Null if is_empty => item["filters"] = Value::Null,
        _ => item["filters"] = filters.clone(),
    }
    if state.switches.secret_in_listing {
        item["secret_key"] = json!(registration.secret_key);
    }
    if state.switches.additional_data_in_listing {
        item["additional_data"] = json!(registration.additional_data);
    }
    item
}

fn unregister_webhook(state: &mut State, call: &Call<'_>) -> Result<Answer, Refusal> {
    let owner = owner(state, call)?.id.clone();
    let id = text(call.body, "id")?;
    let lag = (state.listing_lag(), state.delivery_lag());
    let registration =
        state.registrations.iter_mut().find(|one| one.id == id && one.owner == owner && one.listed.value);
    let registration = registration.ok_or_else(|| refusal("not_found", "Not found"))?;
    registration.listed.set(false, call.now, lag.0);
    registration.delivered.set(false, call.now, lag.1);
    Ok(nothing(state))
}

fn list_webhook_names(state: &mut State, _: u8, body: &Map<String, Value>) -> Result<Answer, Refusal> {
    let version = match body.get("version") {
        None => "3.6",
        Some(version) => version.as_str().ok_or_else(|| invalid("`version` must be a string"))?,
    };
    let minor = version.strip_prefix("3.").and_then(|minor| minor.parse().ok());
    let minor = minor.filter(|minor| (3..=7).contains(minor) && state.switches.versions.contains(version));
    let minor = minor.ok_or_else(|| invalid("`version` is invalid"))?;
    let mut names: Vec<_> =
        catalogue::actions(minor).into_iter().map(|(action, filters)| offered(action, filters)).collect();
    names.extend(state.switches.extra_actions.iter().map(|action| offered(action, &[])));
    Ok(Answer::json(200, &Value::Array(names)))
}

/// Members that would be empty are absent.
fn offered(action: &str, filters: &[&str]) -> Value {
    let mut offered = json!({"action": action});
    for (name, values) in [("filters", filters), ("additional_data", catalogue::additional_data(action))] {
        if !values.is_empty() {
            offered[name] = json!(values);
        }
    }
    offered
}

/// The client whose state it is: a personal access token needs `owner_client_id`, an access token has a client of its own, which up to
/// 3.4 cannot be replaced.
fn license_client(state: &State, call: &Call<'_>) -> Result<String, Refusal> {
    match (&call.caller.client, call.body.contains_key("owner_client_id")) {
        (Some(_), true) if call.version <= 4 => {
            Err(invalid("`owner_client_id` is allowed only with a personal access token"))
        }
        (Some(client), false) => Ok(client.clone()),
        (None, false) => Err(missing("owner_client_id")),
        (_, true) => Ok(owner(state, call)?.id.clone()),
    }
}

fn installation<'a>(state: &'a mut State, call: &Call<'_>, client: String) -> Option<&'a mut Installation> {
    state.installations.get_mut(&(call.caller.organization.clone(), client))
}

fn enable(state: &mut State, call: &Call<'_>, is_enabled: bool) -> Result<Answer, Refusal> {
    let client = license_client(state, call)?;
    let lag = state.delivery_lag();
    let installation = installation(state, call, client).ok_or_else(|| refusal("not_found", "Not found"))?;
    installation.enabled.set(is_enabled, call.now, lag);
    Ok(nothing(state))
}

fn get_state(state: &mut State, call: &Call<'_>) -> Result<Answer, Refusal> {
    let client = license_client(state, call)?;
    let installation = installation(state, call, client).filter(|installation| installation.installed.value).copied();
    if installation.is_none() && state.switches.not_installed_is_not_found {
        return Err(refusal("not_found", "Not found"));
    }
    let is_enabled = installation.is_some_and(|installation| installation.enabled.value);
    Ok(Answer::json(200, &json!({"license_webhooks_enabled": is_enabled})))
}
