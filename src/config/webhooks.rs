//! `webhooks` of an app: which actions are wanted at LiveChat, and how. Each action is wanted once, so that each event comes once.

use std::collections::BTreeMap;

use super::flat::nearest;
use super::livechat::texts;
use super::read::Reader;
use crate::event;
use crate::livechat::catalogue::{
    ADDITIONAL_DATA, AUTHORS, Action, DESCRIPTION_CHARACTERS_MAX, Filter, SOURCES, actions, find, groups, position,
};
use crate::livechat::{Filters, Level, Users, Version, Wanted};

/// The most entries of an app: there are fewer actions.
const ENTRIES_MAX: usize = 64;

const DESCRIPTION: &str = "livechat-relay";

const EXAMPLE: &str = "[{ actions = \"all\" }]";

/// How closely an entry names an action. The closest entry has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    All,
    Group,
    Name,
}

pub fn webhooks(r: &mut Reader, place: &str, version: Version, url: &str) -> Vec<Wanted> {
    let count = r.count(place, EXAMPLE, None);
    if count > ENTRIES_MAX {
        r.mistake(place, &format!("has more than {ENTRIES_MAX} entries"));
    }
    let mut owners: BTreeMap<&str, (Closeness, usize)> = BTreeMap::new();
    for n in 0..count {
        for (action, closeness) in chosen(r, &format!("{place}[{n}].actions"), version) {
            match owners.get(action.name) {
                Some((other, _)) if *other > closeness => {}
                Some((other, at)) if *other == closeness && *at != n => {
                    let why = format!("has {}, which {place}[{at}] has, too: each event would come twice", action.name);
                    r.mistake(&format!("{place}[{n}].actions"), &why);
                }
                _ => drop(owners.insert(action.name, (closeness, n))),
            }
        }
    }
    let mut wanted = Vec::new();
    for n in 0..count {
        let own: Vec<_> =
            actions(version).filter(|action| owners.get(action.name).is_some_and(|(_, at)| *at == n)).collect();
        let entry = entry(r, &format!("{place}[{n}]"), version, &own);
        wanted.extend(own.iter().map(|action| Wanted {
            action: action.name.to_owned(),
            url: url.to_owned(),
            ..entry.clone()
        }));
    }
    wanted.sort_by_key(|one| position(&one.action));
    wanted
}

/// The actions that an entry names.
fn chosen(r: &mut Reader, key: &str, version: Version) -> Vec<(&'static Action, Closeness)> {
    let Some(words) = r.optional_texts(key) else {
        if !r.has(key) {
            let names = groups().collect::<Vec<_>>().join(", ");
            r.mistake(key, &format!("is missing: \"all\", or some of LiveChat's actions and of {names}"));
        }
        return Vec::new();
    };
    let mut chosen = Vec::new();
    for (n, word) in words.iter().enumerate() {
        if word == "all" {
            chosen.extend(actions(version).map(|action| (action, Closeness::All)));
        } else if groups().any(|group| group == word) {
            chosen.extend(
                actions(version).filter(|action| action.group == word).map(|action| (action, Closeness::Group)),
            );
        } else if let Some(action) = find(word).filter(|action| action.is_in(version)) {
            chosen.push((action, Closeness::Name));
        } else {
            r.mistake(key, &unknown(n, word, version));
        }
    }
    chosen
}

/// Why a word names no action of the version. It is shown only where it is a name of the catalogue.
fn unknown(n: usize, word: &str, version: Version) -> String {
    if let Some(action) = find(word) {
        let (name, span) = (action.name, action.span());
        return format!("has {name}, which only LiveChat's API {span} has; the app's api_version is {version}");
    }
    let current = event::actions::find(word)
        .map(|action| action.name)
        .filter(|name| find(name).is_some_and(|a| a.is_in(version)));
    let known = actions(version).map(|action| action.name).chain(groups()).chain(["all"]);
    let meant =
        current.or_else(|| nearest(word, known)).map(|name| format!("; did you mean {name:?}?")).unwrap_or_default();
    format!("its entry {} is neither an action of LiveChat's API {version} nor a group{meant}", n + 1)
}

/// What an entry wants of each of its actions.
fn entry(r: &mut Reader, place: &str, version: Version, own: &[&Action]) -> Wanted {
    let key = |name: &str| format!("{place}.{name}");
    let level = match r.optional_text(&key("type")).as_deref() {
        None | Some("license") => Level::License,
        Some("bot") => Level::Bot,
        Some(_) => {
            r.mistake(&key("type"), "must be \"license\" or \"bot\"");
            Level::License
        }
    };
    let filters = filters(r, &key("filters"), version, own);
    let additional_data = texts(r, &key("additional_data"));
    if additional_data.iter().any(|value| !ADDITIONAL_DATA.contains(&value.as_str())) {
        r.mistake(&key("additional_data"), &format!("must be some of {}", quoted(&ADDITIONAL_DATA)));
    }
    let without = names(own.iter().filter(|action| !additional_data.is_empty() && !action.has_additional_data()));
    if let Some(without) = without {
        let why = format!("{without} cannot have additional_data; move these actions to an entry of their own");
        r.mistake(&key("additional_data"), &why);
    }
    let description = r.optional_text(&key("description")).unwrap_or_else(|| DESCRIPTION.to_owned());
    if description.chars().count() > DESCRIPTION_CHARACTERS_MAX || description.contains(char::is_control) {
        r.mistake(&key("description"), &format!("must be a line of {DESCRIPTION_CHARACTERS_MAX} characters at most"));
    }
    Wanted { action: String::new(), url: String::new(), level, filters, additional_data, description }
}

fn filters(r: &mut Reader, place: &str, version: Version, own: &[&Action]) -> Filters {
    let key = |name: &str| format!("{place}.{name}");
    for filter in Filter::ALL {
        let without = names(own.iter().filter(|action| !action.has_filter(filter, version)));
        if let (true, Some(without)) = (r.has(&key(filter.name())), without) {
            let why = format!(
                "{without} cannot have this filter in LiveChat's API {version}; move the actions that can to an entry of their own"
            );
            r.mistake(&key(filter.name()), &why);
        }
    }
    let author_type = r.optional_text(&key("author_type"));
    if author_type.as_deref().is_some_and(|author| !AUTHORS.contains(&author)) {
        r.mistake(&key("author_type"), &format!("must be one of {}", quoted(&AUTHORS)));
    }
    let source_type = r.has(&key("source_type")).then(|| texts(r, &key("source_type")));
    if source_type.iter().flatten().any(|source| !SOURCES.contains(&source.as_str())) {
        r.mistake(&key("source_type"), &format!("must be some of {}", quoted(&SOURCES)));
    }
    Filters {
        author_type,
        // What is false filters as what is absent.
        only_my_chats: r.optional_flag(&key("only_my_chats")).filter(|is_on| *is_on),
        present_users: users(r, &key("chat_presence.user_ids")),
        my_bots: r.optional_flag(&key("chat_presence.my_bots")).filter(|is_on| *is_on),
        source_type,
        agent_ids: users(r, &key("agent_ids")),
    }
}

/// LiveChat's `{ values = […] }` or `{ exclude_values = […] }`.
fn users(r: &mut Reader, place: &str) -> Option<Users> {
    let [values, excluded] = ["values", "exclude_values"].map(|name| format!("{place}.{name}"));
    let users = [texts(r, &values), texts(r, &excluded)];
    match (r.has(&values), r.has(&excluded)) {
        (false, false) if r.has(place) => {
            r.mistake(
                place,
                "needs values or exclude_values: ids of users, such as { values = [\"ada@example.com\"] }",
            );
            None
        }
        (false, false) => None,
        (true, true) => {
            r.mistake(place, "has values and exclude_values; LiveChat accepts only one of them");
            None
        }
        (true, false) => Some(Users::Values(users[0].clone())),
        (false, true) => Some(Users::ExcludeValues(users[1].clone())),
    }
}

/// The most names that one mistake has.
const NAMES_SHOWN: usize = 4;

/// `a, b and 3 more`. `None` where there are none.
fn names<'a, 'b: 'a>(actions: impl Iterator<Item = &'a &'b Action>) -> Option<String> {
    let names: Vec<_> = actions.map(|action| action.name).collect();
    let shown = names.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(NAMES_SHOWN);
    (!names.is_empty()).then(|| if more > 0 { format!("{shown} and {more} more") } else { shown })
}

fn quoted(values: &[&str]) -> String {
    values.iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
