//! What is to be registered and unregistered so that LiveChat has what the configuration wants: a pure comparison, which calls nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::civil::Date;
use reqwest::Url;
use serde::{Serialize, Serializer};

use super::catalogue::{self, REGISTRATIONS_MAX};
use super::{App, Filters, Notices, Registration, Wanted};
use crate::deliveries::Delivered;

/// What is known besides the listing.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `license_webhooks_enabled`; false where the app is not installed. Absent: not asked.
    pub enabled: Option<bool>,
    pub notices: Notices,
    /// By id, the registrations through which the relay got webhooks, the last with a secret key that it still has.
    pub delivered: BTreeMap<String, Delivered>,
    /// For a rotation, the ids of those that have the new secret key. All others are replaced.
    pub with_new_key: Option<BTreeSet<String>>,
    /// A rotation that was begun and has not ended, where the plan is not its own.
    pub rotation: Option<Rotation>,
}

/// From which secret keys to which, by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    pub old: Vec<String>,
    pub new: String,
}

/// Registrations have no update: what differs is registered again, then the old one is unregistered. All is in the order of
/// the catalogue, as people see actions everywhere.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    #[serde(rename = "register")]
    pub add: Vec<Wanted>,
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
    /// Another one is the same, and has delivered.
    Copy,
    /// Another one is the same, and nothing tells which has the right secret key: a new one replaces both.
    Unclear,
}

/// What is done about one action, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub action: String,
    /// Removed before the new one is registered, because LiveChat takes no fourth registration of an action.
    #[serde(rename = "unregister_first")]
    pub first: Option<Registration>,
    /// Whether events are lost between `first` and the new one: of what stays meanwhile nothing is known to deliver all that `first` does.
    pub has_gap: bool,
    pub register: Option<Wanted>,
    /// LiveChat takes no registration, and none is the relay's to remove: nothing can be done.
    pub is_blocked: bool,
    /// The registration that stays, where none is made: what is removed waits for it as for a new one.
    pub stays: Option<String>,
    /// Removed when the new one, or the one that stays, delivers.
    #[serde(rename = "unregister")]
    pub then: Vec<Registration>,
}

impl Change {
    /// What there is to say where LiveChat accepts no further registration of the action.
    pub fn full(&self) -> Option<Warning> {
        let first = self.first.as_ref().map(|first| first.id.clone());
        let is_full = first.is_some() || self.is_blocked;
        is_full.then(|| Warning::Full { action: self.action.clone(), first, has_gap: self.has_gap })
    }

    /// What goes, in this order.
    pub fn removed(&self) -> impl Iterator<Item = &Registration> {
        self.first.iter().chain(&self.then)
    }

    /// Calls of LiveChat that change something.
    pub fn calls(&self) -> usize {
        let is_registered = self.register.is_some() && !self.is_blocked;
        usize::from(is_registered) + self.removed().count()
    }
}

/// What a person should know before they apply the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The configuration has no `webhooks`, not even an empty list.
    NothingSaid,
    /// The license sends nothing: the webhooks are disabled, or the app is not installed.
    Disabled,
    /// Some webhooks may be registered twice, with the one key and with the other.
    Rotation(Rotation),
    /// The listing has several registrations of an action at the relay, so that each event comes several times.
    Several { action: String, ids: Vec<String> },
    /// At the relay, of an action that it does not know. It stays.
    Unknown { action: String, id: String },
    /// The secret key is sent without TLS.
    Http { action: String, id: String },
    /// LiveChat accepts no further registration of the action. `first` must be removed before, if one is the relay's to remove; `has_gap` where
    /// no other one is known to deliver the same meanwhile.
    Full { action: String, first: Option<String>, has_gap: bool },
    /// LiveChat has a date for the version's end.
    Ends { version: &'static str, notices: Notices },
}

impl Plan {
    /// Whether there is nothing to register or unregister.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// Whether there is nothing to do at all, for which other commands are.
    pub fn is_done(&self) -> bool {
        let is_open = |warning: &Warning| matches!(warning, Warning::Disabled | Warning::Rotation(_));
        self.is_empty() && !self.warnings.iter().any(is_open)
    }

    /// Whether LiveChat sends nothing of all this.
    pub fn is_disabled(&self) -> bool {
        self.warnings.contains(&Warning::Disabled)
    }

    /// What cannot be registered, because LiveChat takes no more of the action.
    pub fn blocked(&self) -> usize {
        let is_blocked = |warning: &&Warning| matches!(warning, Warning::Full { first: None, .. });
        self.warnings.iter().filter(is_blocked).count()
    }

    /// Calls that change something. Applying the plan has a listing before them, and one after.
    pub fn calls(&self) -> usize {
        self.add.len() - self.blocked() + self.remove.len()
    }

    /// The way to what is wanted, by action.
    pub fn changes(&self, facts: &Facts) -> Vec<Change> {
        let mut actions: Vec<&String> =
            self.add.iter().map(|w| &w.action).chain(self.remove.iter().map(|r| &r.registration.action)).collect();
        actions.sort_by_key(|action| catalogue::position(action));
        actions.dedup();
        let change = |action: &String| {
            let of = |all: &[Registration]| all.iter().filter(|one| one.action == *action).cloned().collect::<Vec<_>>();
            let register = self.add.iter().find(|wanted| wanted.action == *action).cloned();
            let kept = of(&self.unchanged);
            let mut then: Vec<_> = self.remove.iter().map(|removal| removal.registration.clone()).collect();
            then.retain(|one| one.action == *action);
            let count = then.len() + kept.len() + of(&self.foreign).len();
            let is_full = register.is_some() && count >= REGISTRATIONS_MAX;
            // The one whose loss costs least: another one delivers the same, or it has delivered nothing itself.
            let delivers = |n: usize| facts.delivered.contains_key(&then[n].id);
            let has_gap = |n: usize| !(0..then.len()).any(|m| m != n && delivers(m) && is_alike(&then[n], &then[m]));
            let costs_least = (0..then.len()).min_by_key(|n| (has_gap(*n), delivers(*n))).filter(|_| is_full);
            let has_gap = costs_least.is_some_and(has_gap);
            let first = costs_least.map(|n| then.remove(n));
            let is_blocked = is_full && first.is_none();
            let stays = kept.first().filter(|_| register.is_none()).map(|one| one.id.clone());
            Change { action: action.clone(), first, has_gap, register, is_blocked, stays, then }
        };
        actions.into_iter().map(change).collect()
    }
}

/// Compares. `app.version` is that of new registrations; a listing does not say with which version a webhook was registered.
pub fn plan(app: &App, registered: &[Registration], facts: &Facts) -> Plan {
    let mut registered = registered.to_vec();
    registered.sort_by_key(|one| catalogue::position(&one.action));
    let is_ours = |one: &Registration| is_ours(app, &one.url) && catalogue::find(&one.action).is_some();
    let (ours, foreign): (Vec<_>, Vec<_>) = registered.into_iter().partition(is_ours);
    let (mut add, mut kept) = (Vec::new(), BTreeSet::new());
    for wanted in app.wanted() {
        let has_key = |one: &Registration| facts.with_new_key.as_ref().is_none_or(|ids| ids.contains(&one.id));
        let same: Vec<_> = ours.iter().filter(|one| one.is_as(wanted) && has_key(one)).map(|one| &one.id).collect();
        // Of several that are alike one stays: one with the key that new ones get, or else with the key that was in use last. Of those
        // with one key it is the last id, whatever the order of the listing, so that two runs at once keep the same one. Where none has
        // delivered, nothing says which has the right secret key, and a new one takes the place of all. An unfinished rotation removes
        // what has the old key, and nothing else does.
        let own_key = app.secret_key.as_ref().map(|key| key.name.as_str());
        let delivered = |id: &String| facts.delivered.get(id);
        let last_of = |key: &str| {
            let with_key = same.iter().filter_map(|id| delivered(id)).filter(|one| one.key == key);
            with_key.map(|one| one.last).max()
        };
        let rank = |one: &Delivered| (own_key == Some(one.key.as_str()), last_of(&one.key), one.key.clone());
        let is_known = |id: &&&String| delivered(id).is_some() || facts.with_new_key.is_some();
        let stays = same.iter().filter(is_known).max_by_key(|id| (delivered(id).map(rank), **id));
        // Where LiveChat takes no further one, one would have to go first, at the price of a gap: all stay.
        let of_action = |one: &&Registration| one.action == wanted.action;
        let is_full = ours.iter().chain(&foreign).filter(of_action).count() >= REGISTRATIONS_MAX;
        match (&same[..], stays) {
            ([_, ..], None) if is_full => kept.extend(same.into_iter().cloned()),
            ([_, ..], _) if facts.rotation.is_some() => kept.extend(same.into_iter().cloned()),
            ([one], _) | (_, Some(one)) => _ = kept.insert((*one).clone()),
            ([] | [_, ..], None) => add.push(wanted.clone()),
        }
    }
    let (unchanged, removed): (Vec<_>, Vec<_>) = ours.into_iter().partition(|one| kept.contains(&one.id));
    let is_added = |action: &str| add.iter().any(|wanted| wanted.action == action);
    let why = |one: &Registration| match app.wanted().iter().find(|wanted| wanted.action == one.action) {
        None => Why::NotWanted,
        Some(wanted) if !one.is_as(wanted) => Why::Replaced,
        Some(_) if !is_added(&one.action) => Why::Copy,
        Some(_) if facts.with_new_key.is_some() => Why::Replaced,
        Some(_) => Why::Unclear,
    };
    let remove = removed.into_iter().map(|one| Removal { why: why(&one), registration: one });
    let mut plan = Plan { remove: remove.collect(), add, unchanged, foreign, warnings: Vec::new() };
    plan.warnings = warnings(&plan, app, facts);
    plan
}

fn warnings(plan: &Plan, app: &App, facts: &Facts) -> Vec<Warning> {
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
    match &facts.rotation {
        // What is registered twice is so with the one key and with the other.
        Some(rotation) => warnings.push(Warning::Rotation(rotation.clone())),
        None => warnings.extend(several(plan)),
    }
    warnings.extend(plan.changes(facts).iter().filter_map(Change::full));
    for Registration { id, action, .. } in plan.foreign.iter().filter(|one| is_ours(app, &one.url)) {
        warnings.push(Warning::Unknown { action: action.clone(), id: id.clone() });
    }
    let is_plain = |one: &&Registration| one.url.starts_with("http://") && one.url != app.webhook_url();
    for Registration { id, action, .. } in ours(plan).chain(&plan.foreign).filter(is_plain) {
        warnings.push(Warning::Http { action: action.clone(), id: id.clone() });
    }
    warnings
}

fn ours(plan: &Plan) -> impl Iterator<Item = &Registration> {
    plan.unchanged.iter().chain(plan.remove.iter().map(|removal| &removal.registration))
}

/// Actions that are registered several times at the relay.
fn several(plan: &Plan) -> Vec<Warning> {
    let mut actions: Vec<_> = ours(plan).map(|one| &one.action).collect();
    actions.sort_by_key(|action| catalogue::position(action));
    actions.dedup();
    let warning = |action: &String| {
        let all: Vec<_> = ours(plan).filter(|one| one.action == *action).map(|one| one.id.clone()).collect();
        (all.len() > 1).then(|| Warning::Several { action: action.clone(), ids: all })
    };
    actions.into_iter().filter_map(warning).collect()
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

/// Whether two registrations of an action deliver the same events, to the same place.
fn is_alike(one: &Registration, other: &Registration) -> bool {
    let Registration { url, level, filters, unknown_filters, .. } = one;
    *url == other.url
        && *level == other.level
        && effective(filters) == effective(&other.filters)
        && *unknown_filters == other.unknown_filters
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
            Self::Rotation(Rotation { old, new }) => write!(
                f,
                "a rotation from {} to {new} is unfinished: run `livechat-relay webhooks rotate` again",
                old.join(", ")
            ),
            Self::Several { action, ids } => {
                write!(f, "{action} is registered {} times here, so each event comes as often: {}", ids.len(), ids.join(", "))
            }
            Self::Unknown { action, id } => write!(
                f,
                "{id} is for {action}, an action that this version of the relay does not know; its events go to the topic `unlisted`, and it stays"
            ),
            Self::Http { action, id } => {
                write!(f, "{id} ({action}) has an http:// URL: LiveChat sends the secret key without encryption")
            }
            Self::Full { action, first: None, .. } => write!(
                f,
                "{action} cannot be registered: LiveChat allows {REGISTRATIONS_MAX} of an action, and the existing ones are not this relay's to remove: see `livechat-relay webhooks list`, and unregister one"
            ),
            Self::Full { action, first: Some(id), has_gap } => write!(
                f,
                "{action} has {REGISTRATIONS_MAX} registrations, which is all that LiveChat allows: {id} must be removed before the new one is registered{}",
                if *has_gap { ", and events in between are lost" } else { "" }
            ),
            Self::Ends { version, notices: Notices { legacy, deprecation } } => {
                let date = |header: &str, date: Option<&Date>| date.map(|date| format!("{header}: {date}"));
                let dates: Vec<_> = [date("Legacy", legacy.as_ref()), date("Deprecation", deprecation.as_ref())].into_iter().flatten().collect();
                write!(f, "LiveChat's API {version} ends soon ({}); a newer api_version changes the bodies of webhooks", dates.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests;
