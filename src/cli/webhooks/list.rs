//! `webhooks list` and `webhooks names`: what is registered, and what can be.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::show::{Shown, action, details, indented, title};
use super::{Common, relay};
use crate::cli::Failure;
use crate::cli::items::count;
use crate::cli::print::{DIM, WARNING, out, visible, wrapped};
use crate::cli::spool::print_json;
use crate::deliveries::{Delivered, Seen};
use crate::livechat::catalogue::{self, Filter};
use crate::livechat::{App, Offered, Registration, Version, Wanted};

pub async fn list(common: &Common) -> Result<(), Failure> {
    let (app, api) = common.open()?;
    let registered = api.list_webhooks().await?;
    let seen = relay::seen(&common.source).await;
    let of_app = |seen: Seen| {
        let of_app = seen.registrations.into_iter().filter(|one| one.app == app.name);
        of_app.map(|one| (one.webhook_id.clone(), one)).collect::<BTreeMap<_, _>>()
    };
    let delivered = seen.map(of_app);
    if common.json {
        let last = |one: &Registration| Some(delivered.as_ref()?.get(&one.id)?.last);
        return print_json(&registered.iter().map(|one| Shown::registered(one, last(one))).collect::<Vec<_>>());
    }
    out(format_args!("{}", listing(&app, &registered, delivered.as_ref()).trim_end()))
}

/// By URL, in the order of the listing. `delivered`: what the running relay has seen.
pub fn listing(app: &App, registered: &[Registration], delivered: Option<&BTreeMap<String, Delivered>>) -> String {
    let now = Timestamp::now();
    let mut text = format!("{}\n{} registered\n", title(app), count(registered.len() as u64, "webhook"));
    let mut by_url: BTreeMap<&str, Vec<&Registration>> = BTreeMap::new();
    registered.iter().for_each(|one| by_url.entry(&one.url).or_default().push(one));
    for (url, registrations) in by_url {
        let own = if url == app.webhook_url() { "" } else { "  (not as configured)" };
        text += &format!("\n{}{WARNING}{own}{WARNING:#}\n", visible(url));
        for registration in registrations {
            let Registration { id, description, .. } = registration;
            let last = delivered.map(|delivered| delivered.get(id).map_or("-".to_owned(), |one| ago(one.last, now)));
            let line = format!("  {}  {:<25}  {}", action(&registration.action), visible(id), last.unwrap_or_default());
            text += &format!("{}\n", line.trim_end());
            text += &indented(&details(registration), 6);
            let is_configured =
                |wanted: &Wanted| wanted.action == registration.action && wanted.description == *description;
            if !description.is_empty() && !app.wanted().iter().any(is_configured) {
                text += &format!("      {DIM}{}{DIM:#}\n", visible(description));
            }
        }
    }
    text
}

/// How long before `now`, in the largest unit.
fn ago(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(time).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86400),
    }
}

/// An action that LiveChat offers, or that the relay knows.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Named<'a> {
    action: &'a str,
    offered: bool,
    /// Whether the relay has it in its catalogue for this version.
    known: bool,
    filters: Vec<&'a str>,
    /// Filters that only one of the two has. Nothing is said where LiveChat names none.
    filters_unknown: Vec<&'a str>,
    filters_not_offered: Vec<&'a str>,
    additional_data: Vec<&'a str>,
}

pub async fn names(common: &Common) -> Result<(), Failure> {
    let (app, api) = common.open()?;
    let offered = api.list_webhook_names().await?;
    let named = compared(&offered, app.version);
    if common.json { print_json(&named) } else { out(format_args!("{}", table(&named, app.version).trim_end())) }
}

/// What LiveChat offers, in its order; then what only the relay knows.
fn compared(offered: &[Offered], version: Version) -> Vec<Named<'_>> {
    let of_livechat = offered.iter().map(|Offered { action, filters, additional_data }| {
        let known = catalogue::find(action).filter(|action| action.is_in(version));
        let own: Vec<_> =
            Filter::ALL.into_iter().filter(|filter| known.is_some_and(|a| a.has_filter(*filter, version))).collect();
        let is_compared = known.is_some() && !filters.is_empty();
        let unknown = filters.iter().filter(|name| is_compared && own.iter().all(|filter| filter.name() != *name));
        let not_offered = own.iter().filter(|filter| is_compared && !filters.contains(filter.name()));
        Named {
            action,
            offered: true,
            known: known.is_some(),
            filters: filters.iter().map(String::as_str).collect(),
            filters_unknown: unknown.map(String::as_str).collect(),
            filters_not_offered: not_offered.map(|filter| filter.name()).collect(),
            additional_data: additional_data.iter().map(String::as_str).collect(),
        }
    });
    let missing = catalogue::actions(version).filter(|action| offered.iter().all(|one| one.action != action.name));
    let of_relay = missing.map(|action| Named {
        action: action.name,
        offered: false,
        known: true,
        filters: Vec::new(),
        filters_unknown: Vec::new(),
        filters_not_offered: Vec::new(),
        additional_data: Vec::new(),
    });
    of_livechat.chain(of_relay).collect()
}

fn table(named: &[Named<'_>], version: Version) -> String {
    let offered = named.iter().filter(|named| named.offered).count() as u64;
    let mut text = format!("LiveChat's API {version} offers {}\n\n", count(offered, "webhook"));
    for named in named {
        let of =
            |what: &str, names: &[&str]| (!names.is_empty()).then(|| format!("{what}: {}", visible(&names.join(" "))));
        let remark = match (named.offered, named.known) {
            (true, true) => None,
            (true, false) => Some("unknown to this version of the relay".to_owned()),
            _ => Some("not offered, though the relay knows it".to_owned()),
        };
        let more = [of("unknown", &named.filters_unknown), of("not offered", &named.filters_not_offered)];
        let remarks: Vec<_> = remark.into_iter().chain(more.into_iter().flatten()).collect();
        let (filters, remarks) = (visible(&named.filters.join(" ")), remarks.join("; "));
        let between = if remarks.is_empty() || filters.is_empty() { "" } else { "  " };
        let line = format!("{}  {DIM}{filters}{DIM:#}{between}{WARNING}{remarks}{WARNING:#}", action(named.action));
        text += &format!("  {}\n", line.trim_end());
    }
    if named.iter().any(|named| named.offered && !named.known) {
        let why = "What is unknown can be registered in Developer Console; its events go to the topic `unlisted`, and the configuration cannot name it before an update of the relay.";
        text += &format!("\n{}\n", wrapped(why, 0));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_its_largest_unit() {
        let ago = |seconds: i64| ago(Timestamp::UNIX_EPOCH, Timestamp::from_second(seconds).expect("a time"));
        let (minute, hour, day) = (60, 3600, 86400);
        let shown = [-1, 0, minute - 1, minute, hour - 1, hour, day - 1, day, 12 * day].map(ago);
        let expected =
            ["0 s", "0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "1 d", "12 d"].map(|text| format!("{text} ago"));
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_livechat_and_the_relay_know_is_compared_by_action_and_by_filter() {
        let offered = |action: &str, filters: &[&str]| Offered {
            action: action.to_owned(),
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            additional_data: std::collections::BTreeSet::new(),
        };
        let mut all: Vec<_> = catalogue::actions(Version::V3_6).map(|action| offered(action.name, &[])).collect();
        all.retain(|one| !["incoming_event", "bot_created"].contains(&one.action.as_str()));
        all.push(offered("incoming_event", &["author_type", "chat_presence", "only_my_chats", "mood"]));
        all.push(offered("mood_changed", &["mood"]));
        let named = compared(&all, Version::V3_6);
        let table = anstream::adapter::strip_str(&table(&named, Version::V3_6)).to_string();
        let line = |action: &str| table.lines().find_map(|line| line.trim().strip_prefix(action)).map(str::trim);
        assert_eq!(line("incoming_chat"), Some(""), "LiveChat has named no filters");
        let expected = "author_type chat_presence mood only_my_chats  unknown: mood; not offered: source_type";
        assert_eq!(line("incoming_event"), Some(expected));
        assert_eq!(line("bot_created"), Some("not offered, though the relay knows it"));
        assert_eq!(line("mood_changed"), Some("mood  unknown to this version of the relay"));
        assert!(table.contains("offers 38 webhooks"));
    }
}
