//! `webhooks list` and `webhooks names`: what is registered, and what can be.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Common;
use super::show::{Shown, action, details, indented, title, wrapped};
use crate::cli::Failure;
use crate::cli::items::count;
use crate::cli::print::{DIM, WARNING, out, visible};
use crate::cli::spool::print_json;
use crate::livechat::{App, Offered, Registration, Version, catalogue};

pub async fn list(common: &Common) -> Result<(), Failure> {
    let (app, api) = common.open()?;
    let registered = api.list_webhooks().await?;
    if common.json {
        return print_json(&registered.iter().map(|one| Shown::registered(one, None)).collect::<Vec<_>>());
    }
    out(format_args!("{}", listing(&app, &registered).trim_end()))
}

/// By URL, in the order of the listing.
pub fn listing(app: &App, registered: &[Registration]) -> String {
    let mut text = format!("{}\n{} registered\n", title(app), count(registered.len() as u64, "webhook"));
    let mut by_url: BTreeMap<&str, Vec<&Registration>> = BTreeMap::new();
    registered.iter().for_each(|one| by_url.entry(&one.url).or_default().push(one));
    for (url, registrations) in by_url {
        let own = if url == app.webhook_url() { "" } else { "  (not as configured)" };
        text += &format!("\n{}{WARNING}{own}{WARNING:#}\n", visible(url));
        for registration in registrations {
            text += &format!("  {}  {}\n", action(&registration.action), visible(&registration.id));
            text += &indented(&details(registration), 6);
            if !registration.description.is_empty() {
                text += &format!("      {DIM}{}{DIM:#}\n", visible(&registration.description));
            }
        }
    }
    text
}

/// An action that LiveChat offers, or that the relay knows.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Named<'a> {
    action: &'a str,
    offered: bool,
    /// Whether the relay has it in its catalogue for this version.
    known: bool,
    filters: Vec<&'a str>,
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
    let is_known = |name: &str| catalogue::find(name).is_some_and(|action| action.is_in(version));
    let of_livechat = offered.iter().map(|Offered { action, filters, additional_data }| Named {
        action,
        offered: true,
        known: is_known(action),
        filters: filters.iter().map(String::as_str).collect(),
        additional_data: additional_data.iter().map(String::as_str).collect(),
    });
    let missing = catalogue::actions(version).filter(|action| offered.iter().all(|one| one.action != action.name));
    let of_relay = missing.map(|action| {
        let (offered, known) = (false, true);
        Named { action: action.name, offered, known, filters: Vec::new(), additional_data: Vec::new() }
    });
    of_livechat.chain(of_relay).collect()
}

fn table(named: &[Named<'_>], version: Version) -> String {
    let offered = named.iter().filter(|named| named.offered).count() as u64;
    let mut text = format!("LiveChat's API {version} offers {}\n\n", count(offered, "webhook"));
    for named in named {
        let remark = match (named.offered, named.known) {
            (true, true) => String::new(),
            (true, false) => "unknown to this version of the relay".to_owned(),
            _ => "not offered, though the relay knows it".to_owned(),
        };
        let filters = visible(&named.filters.join(" "));
        let sep = if remark.is_empty() || filters.is_empty() { "" } else { "  " };
        let line = format!("  {}  {WARNING}{remark}{WARNING:#}{sep}{DIM}{filters}{DIM:#}", action(named.action));
        text += line.trim_end();
        text.push('\n');
    }
    if named.iter().any(|named| named.offered && !named.known) {
        let why = "What is unknown can be registered in Developer Console; its events go to the topic `unlisted`, and the configuration cannot name it before an update of the relay.";
        text += &format!("\n{}\n", wrapped(why, 0));
    }
    text
}
