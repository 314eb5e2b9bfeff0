//! `webhooks list` and `webhooks names`: what is registered, and what can be.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::Common;
use super::show::{action, details, indented, title};
use crate::cli::Failure;
use crate::cli::items::count;
use crate::cli::print::{DIM, WARNING, out, visible, wrapped};
use crate::cli::spool::print_json;
use crate::deliveries::Delivered;
use crate::livechat::{App, Offered, Registration, Version, Wanted, catalogue};

pub async fn list(common: &Common) -> Result<(), Failure> {
    let (app, api) = common.open()?;
    let mut registered = api.list_webhooks().await?;
    registered.sort_by_key(|one| catalogue::position(&one.action));
    let (seen, _) = common.hints(&app).await;
    let delivered = seen.map(|mut seen| {
        seen.registrations.retain(|one| one.app == app.name);
        seen.registrations
    });
    if common.json {
        let shown = |one: &Registration| {
            let mut json = serde_json::to_value(one)?;
            if let Some(last) = last(delivered.as_deref().unwrap_or_default(), &one.id) {
                json["last_delivery"] = serde_json::to_value(last)?;
            }
            Ok(json)
        };
        let shown = registered.iter().map(shown).collect::<Result<Vec<_>, serde_json::Error>>();
        return print_json(&shown.map_err(Failure::failed)?);
    }
    out(format_args!("{}", listing(&app, &registered, delivered.as_deref()).trim_end()))
}

/// When a registration last delivered.
fn last(delivered: &[Delivered], id: &str) -> Option<Timestamp> {
    delivered.iter().find(|one| one.webhook_id == id).map(|one| one.last)
}

/// By URL, then in their order. `delivered`: what the running relay has got for the app; without it there is no such column.
pub fn listing(app: &App, registered: &[Registration], delivered: Option<&[Delivered]>) -> String {
    let now = Timestamp::now();
    let mut text = format!("{}\n{} registered\n", title(app), count(registered.len() as u64, "webhook"));
    if delivered.is_some() {
        text += "delivered: when the last webhook came to the running relay, since its start\n";
    }
    if !registered.is_empty() {
        let column = if delivered.is_some() { "delivered" } else { "" };
        let line = format!("  {} {:<36} {column}", action("action"), "id");
        text += &format!("\n{DIM}{}{DIM:#}", line.trim_end());
    }
    let mut by_url: BTreeMap<&str, Vec<&Registration>> = BTreeMap::new();
    registered.iter().for_each(|one| by_url.entry(&one.url).or_default().push(one));
    for (url, registrations) in by_url {
        let own = if url == app.webhook_url() { "" } else { "  (not as configured)" };
        text += &format!("\n{}{WARNING}{own}{WARNING:#}\n", visible(url));
        for registration in registrations {
            let Registration { id, description, .. } = registration;
            let last = delivered.map(|all| last(all, id).map_or("never".to_owned(), |time| ago(time, now)));
            let line = format!("  {} {:<36} {}", action(&registration.action), visible(id), last.unwrap_or_default());
            text += &format!("{}\n", line.trim_end());
            let Registration { level, filters, unknown_filters, additional_data, .. } = registration;
            let none = BTreeSet::new();
            let mut details = details(*level, filters, additional_data.as_ref().unwrap_or(&none));
            details.extend(unknown_filters.clone().map(|unknown| ("unknown filters", unknown)));
            text += &indented(&details, 6);
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
        60..3600 => format!("{} m ago", seconds / 60), // 80 columns have no place for more
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
    /// As LiveChat names them. Its documentation's samples leave some out, so they are not compared.
    filters: Vec<&'a str>,
    additional_data: Vec<&'a str>,
}

pub async fn names(common: &Common) -> Result<(), Failure> {
    let (app, api) = common.open()?;
    let offered = api.list_webhook_names().await?;
    let named = compared(&offered, app.version);
    if common.json { print_json(&named) } else { out(format_args!("{}", table(&named, app.version).trim_end())) }
}

/// What LiveChat offers, and what only the relay knows.
fn compared(offered: &[Offered], version: Version) -> Vec<Named<'_>> {
    let of_livechat = offered.iter().map(|Offered { action, filters, additional_data }| Named {
        action,
        offered: true,
        known: catalogue::find(action).is_some_and(|action| action.is_in(version)),
        filters: filters.iter().map(String::as_str).collect(),
        additional_data: additional_data.iter().map(String::as_str).collect(),
    });
    let missing = catalogue::actions(version).filter(|action| offered.iter().all(|one| one.action != action.name));
    let of_relay = missing.map(|action| Named {
        action: action.name,
        offered: false,
        known: true,
        filters: Vec::new(),
        additional_data: Vec::new(),
    });
    let mut named: Vec<_> = of_livechat.chain(of_relay).collect();
    named.sort_by_key(|named| catalogue::position(named.action));
    named
}

fn table(named: &[Named<'_>], version: Version) -> String {
    let offered = named.iter().filter(|named| named.offered).count() as u64;
    let mut text = format!("LiveChat's API {version} offers {}\n\n", count(offered, "webhook"));
    for named in named {
        let remark = match (named.offered, named.known) {
            (true, true) => "",
            (true, false) => "unknown to this version of the relay",
            _ => "not offered, though the relay knows it",
        };
        let filters = visible(&named.filters.join(" "));
        let between = if remark.is_empty() || filters.is_empty() { "" } else { "  " };
        let line = format!("{}  {DIM}{filters}{DIM:#}{between}{WARNING}{remark}{WARNING:#}", action(named.action));
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
            ["0 s", "0 s", "59 s", "1 m", "59 m", "1 h", "23 h", "1 d", "12 d"].map(|text| format!("{text} ago"));
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_livechat_and_the_relay_know_is_compared_by_action() {
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
        assert_eq!(line("incoming_event"), Some("author_type chat_presence mood only_my_chats"));
        assert_eq!(line("bot_created"), Some("not offered, though the relay knows it"));
        assert_eq!(line("mood_changed"), Some("mood  unknown to this version of the relay"));
        assert!(table.contains("offers 38 webhooks"));
    }
}
