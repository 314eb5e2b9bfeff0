//! What is to be registered and unregistered so that LiveChat has what the configuration wants: a pure comparison, which calls nothing.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use jiff::civil::Date;
use reqwest::Url;
use serde::{Serialize, Serializer};

use super::catalogue::{self, REGISTRATIONS_MAX};
use super::{App, Filters, Notices, Registration, Wanted};

/// What is known besides the listing.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `license_webhooks_enabled`; false where the app is not installed. Absent: not asked.
    pub enabled: Option<bool>,
    pub notices: Notices,
    /// When the relay last got a verified webhook through a registration, by its id.
    pub delivered: BTreeMap<String, Timestamp>,
}

/// Registrations have no update: what differs is registered again, then the old one is unregistered.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    /// In the order of the configuration.
    #[serde(rename = "register")]
    pub add: Vec<Wanted>,
    /// In the order of the listing, as the next two.
    #[serde(rename = "unregister")]
    pub remove: Vec<Removal>,
    pub unchanged: Vec<Registration>,
    /// What the plan leaves alone: other addresses than the relay's, and actions that the configuration cannot name.
    pub foreign: Vec<Registration>,
    pub warnings: Vec<Warning>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removal {
    #[serde(flatten)]
    pub registration: Registration,
    #[serde(rename = "reason")]
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The configuration does not have the action.
    NotWanted,
    /// The action is registered again, with what is wanted.
    Replaced,
    /// Another one is the same, and has delivered later.
    Copy,
}

/// What a person should know before they apply the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The configuration has no `webhooks`, not even an empty list.
    NothingSaid,
    /// The license sends nothing: the webhooks are disabled, or the app is not installed.
    Disabled,
    /// The listing has several registrations of an action at the relay, so that each event comes several times.
    Several { action: String, ids: Vec<String> },
    /// They are the same, and the relay does not know which of them delivers: one may have a wrong secret key. All stay.
    Copies { action: String, ids: Vec<String> },
    /// At the relay, of an action that it does not know. It stays.
    Unknown { action: String, id: String },
    /// The secret key is sent without TLS.
    Http { action: String, id: String },
    /// LiveChat takes no further registration of the action. `first` has to go before, if any of the plan's removals is of that action;
    /// it `is_last` where no other one comes to the relay meanwhile.
    Full { action: String, first: Option<String>, is_last: bool },
    /// LiveChat has a date for the version's end.
    Ends { version: &'static str, notices: Notices },
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// Calls that change something. Applying the plan has a listing before them, and one after.
    pub fn calls(&self) -> usize {
        self.add.len() + self.remove.len()
    }
}

/// Compares. `app.version` is that of new registrations; a listing does not say with which version a webhook was registered.
pub fn plan(app: &App, registered: &[Registration], facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    let (ours, foreign): (Vec<_>, Vec<_>) = registered.iter().partition(|registration| is_ours(app, &registration.url));
    let (known, unknown): (Vec<_>, Vec<_>) = ours.into_iter().partition(|ours| catalogue::find(&ours.action).is_some());
    for wanted in app.wanted() {
        let same: Vec<_> = known.iter().copied().filter(|registration| registration.is_as(wanted)).collect();
        let kept = kept(&same, facts);
        if same.is_empty() {
            plan.add.push(wanted.clone());
        } else if kept.len() > 1 {
            plan.warnings.push(Warning::Copies { action: wanted.action.clone(), ids: ids(&kept) });
        }
        plan.unchanged.extend(kept.into_iter().cloned());
    }
    let is_kept = |id: &str| plan.unchanged.iter().any(|kept| kept.id == id);
    let removed = known.iter().filter(|registration| !is_kept(&registration.id));
    plan.remove = removed.map(|registration| removal(app, registration)).collect();
    plan.unchanged.sort_by_key(|kept| registered.iter().position(|registration| registration.id == kept.id));
    let is_left = |registration: &&Registration| foreign.iter().chain(&unknown).any(|left| left.id == registration.id);
    plan.foreign = registered.iter().filter(is_left).cloned().collect();
    warn(&mut plan, app, registered, &known, &unknown, facts);
    plan
}

fn removal(app: &App, registration: &Registration) -> Removal {
    let why = match app.wanted().iter().find(|wanted| wanted.action == registration.action) {
        None => Why::NotWanted,
        Some(wanted) if registration.is_as(wanted) => Why::Copy,
        Some(_) => Why::Replaced,
    };
    Removal { registration: registration.clone(), why }
}

/// Of registrations that are the same the one that has delivered last; of those that have so at the same time the last id, whatever the order
/// of the listing. Where none has delivered, nothing says which has the right secret key.
fn kept<'a>(same: &[&'a Registration], facts: &Facts) -> Vec<&'a Registration> {
    let last = same
        .iter()
        .filter_map(|one| Some((facts.delivered.get(&one.id)?, *one)))
        .max_by_key(|(time, one)| (*time, &one.id));
    last.map_or_else(|| same.to_vec(), |(_, last)| vec![last])
}

fn ids(registrations: &[&Registration]) -> Vec<String> {
    registrations.iter().map(|registration| registration.id.clone()).collect()
}

fn warn(
    plan: &mut Plan,
    app: &App,
    registered: &[Registration],
    known: &[&Registration],
    unknown: &[&Registration],
    facts: &Facts,
) {
    let mut warnings = Vec::new();
    if app.wanted.is_none() {
        warnings.push(Warning::NothingSaid);
    }
    if facts.enabled == Some(false) {
        warnings.push(Warning::Disabled);
    }
    if facts.notices != Notices::default() {
        warnings.push(Warning::Ends { version: app.version.name(), notices: facts.notices });
    }
    let mut by_action: BTreeMap<&str, Vec<&Registration>> = BTreeMap::new();
    known.iter().for_each(|registration| by_action.entry(&registration.action).or_default().push(registration));
    let is_said = |action: &str| {
        plan.warnings.iter().any(|said| matches!(said, Warning::Copies { action: of, .. } if of == action))
    };
    for (action, several) in by_action.iter().filter(|(action, several)| several.len() > 1 && !is_said(action)) {
        warnings.push(Warning::Several { action: (*action).to_owned(), ids: ids(several) });
    }
    for added in &plan.add {
        let stands = registered.iter().filter(|registration| registration.action == added.action).count();
        if stands >= REGISTRATIONS_MAX {
            let mut removed = plan.remove.iter().map(|removal| &removal.registration.id);
            let is_of_action = |id: &&String| registered.iter().any(|one| one.id == **id && one.action == added.action);
            // The one whose loss costs least: it has delivered nothing, or nothing for the longest time.
            let first = removed.by_ref().filter(is_of_action).min_by_key(|id| facts.delivered.get(*id)).cloned();
            let is_last = known.iter().filter(|known| known.action == added.action).count() == 1;
            warnings.push(Warning::Full { action: added.action.clone(), first, is_last });
        }
    }
    let named = |registration: &Registration| (registration.action.clone(), registration.id.clone());
    warnings.extend(unknown.iter().map(|registration| {
        let (action, id) = named(registration);
        Warning::Unknown { action, id }
    }));
    let is_plain =
        |registration: &&Registration| registration.url.starts_with("http://") && registration.url != app.webhook_url();
    warnings.extend(registered.iter().filter(is_plain).map(|registration| {
        let (action, id) = named(registration);
        Warning::Http { action, id }
    }));
    plan.warnings.splice(0..0, warnings);
}

/// Whether webhooks of this URL come to the relay's webhooks, of whichever app: one that was renamed leaves its old address.
pub fn is_ours(app: &App, url: &str) -> bool {
    let (Some((host, path)), Some((own_host, own_path))) = (place(url), place(&app.public_url)) else { return false };
    let rest = path.strip_prefix(own_path.trim_end_matches('/')).and_then(|rest| rest.strip_prefix("/webhooks"));
    host == own_host && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Host with port, and path, of a URL; of one with http those that it would have with https.
fn place(url: &str) -> Option<(String, String)> {
    let secure = url.strip_prefix("http://").map(|rest| format!("https://{rest}"));
    let url = Url::parse(secure.as_deref().unwrap_or(url)).ok()?;
    Some((format!("{}:{}", url.host_str()?, url.port_or_known_default()?), url.path().to_owned()))
}

/// In what a registration differs from what is wanted of its action, by LiveChat's names.
pub fn differences(registration: &Registration, wanted: &Wanted) -> Vec<&'static str> {
    let is_same_url = match (Url::parse(&registration.url), Url::parse(&wanted.url)) {
        (Ok(one), Ok(other)) => one == other,
        _ => registration.url == wanted.url,
    };
    let is_filtered_alike =
        registration.unknown_filters.is_none() && effective(&registration.filters) == effective(&wanted.filters);
    let has_same_data = registration.additional_data.as_ref().is_none_or(|data| *data == wanted.additional_data);
    let same = [
        ("url", is_same_url),
        ("type", registration.level == wanted.level),
        ("filters", is_filtered_alike),
        ("additional_data", has_same_data),
    ];
    same.into_iter().filter(|(_, is_same)| !is_same).map(|(name, _)| name).collect()
}

/// What is false filters as what is absent.
fn effective(filters: &Filters) -> Filters {
    let on = |flag: Option<bool>| flag.filter(|is_on| *is_on);
    Filters { only_my_chats: on(filters.only_my_chats), my_bots: on(filters.my_bots), ..filters.clone() }
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingSaid => f.write_str(
                "the table [apps.livechat] has no `webhooks`, so `apply` refuses; `livechat-relay webhooks adopt` prints what is registered as configuration",
            ),
            Self::Disabled => f.write_str(
                "LiveChat sends no webhooks of this app: it is not installed (Developer Console, Private installation), or they are disabled (`livechat-relay webhooks enable`)",
            ),
            Self::Several { action, ids } => {
                write!(f, "{action} is registered {} times here, so each event comes as often: {}", ids.len(), ids.join(", "))
            }
            Self::Copies { action, ids } => write!(
                f,
                "{action} is registered {} times alike, and the relay has seen no delivery that tells which has the right secret key; all stay: {}",
                ids.len(),
                ids.join(", ")
            ),
            Self::Unknown { action, id } => write!(
                f,
                "{id} is for {action}, an action that this version of the relay does not know; its events go to the topic `unlisted`, and it stays"
            ),
            Self::Http { action, id } => {
                write!(f, "{id} ({action}) has an http:// URL: LiveChat sends the secret key without encryption")
            }
            Self::Full { action, first: Some(id), is_last } => write!(
                f,
                "{action} has {REGISTRATIONS_MAX} registrations, which is all that LiveChat takes: {id} has to go before the new one comes{}",
                if *is_last { ", and events in between are lost" } else { "" }
            ),
            Self::Full { action, first: None, .. } => write!(
                f,
                "{action} has {REGISTRATIONS_MAX} registrations of others, which is all that LiveChat takes; see `livechat-relay webhooks list`, and unregister one"
            ),
            Self::Ends { version, notices: Notices { legacy, deprecation } } => {
                let date = |header: &str, date: Option<&Date>| date.map(|date| format!("{header}: {date}"));
                let dates: Vec<_> = [date("Legacy", legacy.as_ref()), date("Deprecation", deprecation.as_ref())].into_iter().flatten().collect();
                write!(f, "LiveChat's API {version} comes to its end ({}); a newer api_version changes what bodies look like", dates.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests;
