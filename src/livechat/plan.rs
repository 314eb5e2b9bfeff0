//! What is to be registered and unregistered so that LiveChat has what the configuration wants: a pure comparison, which calls nothing.

use std::collections::{BTreeMap, BTreeSet};
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
    let is_ours = |one: &Registration| is_ours(app, &one.url);
    let (ours, foreign): (Vec<_>, Vec<_>) =
        registered.iter().partition(|one| is_ours(one) && catalogue::find(&one.action).is_some());
    let (mut add, mut kept) = (Vec::new(), BTreeSet::new());
    for wanted in app.wanted() {
        let same: Vec<_> = ours.iter().copied().filter(|one| one.is_as(wanted)).collect();
        if same.is_empty() {
            add.push(wanted.clone());
        }
        // Of several that are alike the one that has delivered last, of those at the same time the last id, whatever the order of the
        // listing. Where none has delivered, nothing says which has the right secret key.
        let delivered = same.iter().filter_map(|one| Some((facts.delivered.get(&one.id)?, *one)));
        let last = delivered.max_by_key(|(time, one)| (*time, &one.id));
        kept.extend(last.map_or(same, |(_, last)| vec![last]).into_iter().map(|one| &one.id));
    }
    let (unchanged, removed): (Vec<_>, Vec<_>) = ours.into_iter().cloned().partition(|one| kept.contains(&one.id));
    let remove = removed.into_iter().map(|one| Removal { why: why(app, &one), registration: one }).collect();
    let foreign = foreign.into_iter().cloned().collect();
    let mut plan = Plan { add, remove, unchanged, foreign, warnings: Vec::new() };
    plan.warnings = warnings(&plan, app, registered, facts);
    plan
}

fn why(app: &App, removed: &Registration) -> Why {
    match app.wanted().iter().find(|wanted| wanted.action == removed.action) {
        None => Why::NotWanted,
        Some(wanted) if removed.is_as(wanted) => Why::Copy,
        Some(_) => Why::Replaced,
    }
}

fn warnings(plan: &Plan, app: &App, registered: &[Registration], facts: &Facts) -> Vec<Warning> {
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
    let removed = || plan.remove.iter().map(|removal| &removal.registration);
    let mut by_action: BTreeMap<&str, Vec<&Registration>> = BTreeMap::new();
    plan.unchanged.iter().chain(removed()).for_each(|one| by_action.entry(&one.action).or_default().push(one));
    for (action, several) in by_action.iter().filter(|(_, several)| several.len() > 1) {
        let ids = |of: &[&Registration]| of.iter().map(|one| one.id.clone()).collect();
        let alike: Vec<_> = plan.unchanged.iter().filter(|one| one.action == *action).collect();
        let action = (*action).to_owned();
        warnings.push(if alike.len() > 1 {
            Warning::Copies { action, ids: ids(&alike) }
        } else {
            Warning::Several { action, ids: ids(several) }
        });
    }
    for Wanted { action, .. } in &plan.add {
        let of_action = |one: &&Registration| one.action == *action;
        if registered.iter().filter(of_action).count() >= REGISTRATIONS_MAX {
            // The one whose loss costs least: it has delivered nothing, or nothing for the longest time.
            let first = removed().filter(of_action).min_by_key(|one| facts.delivered.get(&one.id));
            let is_last = by_action.get(action.as_str()).is_some_and(|ours| ours.len() == 1);
            warnings.push(Warning::Full { action: action.clone(), first: first.map(|one| one.id.clone()), is_last });
        }
    }
    for Registration { id, action, .. } in plan.foreign.iter().filter(|one| is_ours(app, &one.url)) {
        warnings.push(Warning::Unknown { action: action.clone(), id: id.clone() });
    }
    let is_plain = |one: &&Registration| one.url.starts_with("http://") && one.url != app.webhook_url();
    for Registration { id, action, .. } in registered.iter().filter(is_plain) {
        warnings.push(Warning::Http { action: action.clone(), id: id.clone() });
    }
    warnings
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
