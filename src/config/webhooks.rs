//! `webhooks` of an app: which actions are wanted at LiveChat, and how. Each action is wanted once, so that each event comes once.

use std::collections::BTreeMap;

use super::flat::nearest;
use super::livechat::texts;
use super::read::Reader;
use crate::event;
use crate::livechat::catalogue::{ADDITIONAL_DATA, AUTHORS, Action, Filter, SOURCES, actions, find, groups};
use crate::livechat::{Filters, Level, Users, Version, Wanted};

/// The most entries of an app: there are fewer actions.
const ENTRIES_MAX: usize = 64;

/// LiveChat states no limit.
const DESCRIPTION_CHARACTERS_MAX: usize = 200;

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
                    let why = format!("has {}, as {place}[{at}] has: each event would come twice", action.name);
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
        return format!("has {name}, which LiveChat's API has in {span} only; the app's api_version is {version}");
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
        let why = format!("{without} cannot have additional_data; give what cannot an entry of its own");
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
    for filter in [Filter::AuthorType, Filter::OnlyMyChats, Filter::ChatPresence, Filter::SourceType, Filter::AgentIds]
    {
        let without = names(own.iter().filter(|action| !action.has_filter(filter, version)));
        if let (true, Some(without)) = (r.has(&key(filter.name())), without) {
            let why = format!(
                "in LiveChat's API {version} {without} cannot be filtered so; give what can an entry of its own"
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
            r.mistake(place, "has values and exclude_values; LiveChat takes one of them");
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
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::config::{Config, Need};

    fn load(version: &str, webhooks: &str) -> Result<Vec<Wanted>, Vec<String>> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let keys = "secret_keys = [{ name = \"k\", file = \"/no\" }]";
        let livechat = "[apps.livechat]\nclient_id = \"c\"\npublic_url = \"https://hooks.example.com\"";
        write!(
            file,
            "[[apps]]\nname = \"a\"\napi_version = \"{version}\"\n{keys}\n{livechat}\nwebhooks = [{webhooks}]\n"
        )
        .expect("written");
        let config = Config::load(Some(file.path()), [], Need::Settings).map_err(|mistakes| mistakes.lines);
        config.map(|mut config| config.livechat.apps.remove(0).wanted)
    }

    fn wanted(version: &str, webhooks: &str) -> Vec<Wanted> {
        load(version, webhooks).unwrap_or_else(|mistakes| panic!("{mistakes:#?}"))
    }

    #[test]
    fn an_entry_is_for_the_actions_and_groups_that_it_names_or_for_all() {
        for (version, count) in [("3.3", 22), ("3.4", 36), ("3.5", 37), ("3.6", 38), ("3.7", 38)] {
            assert_eq!(wanted(version, "{ actions = \"all\" }").len(), count, "{version}");
        }
        let names =
            |webhooks: &str| wanted("3.6", webhooks).into_iter().map(|wanted| wanted.action).collect::<Vec<_>>();
        assert_eq!(
            names("{ actions = [\"bots\", \"incoming_chat\"] }"),
            ["incoming_chat", "bot_created", "bot_updated", "bot_deleted"]
        );
        let one = &wanted("3.6", "{ actions = \"incoming_chat\", type = \"bot\", description = \"d\" }")[0];
        assert_eq!(
            (one.url.as_str(), one.level, one.description.as_str()),
            ("https://hooks.example.com/webhooks/a", Level::Bot, "d")
        );
        assert_eq!(load("3.6", ""), Ok(Vec::new()));
    }

    #[test]
    fn the_entry_that_names_an_action_most_closely_has_it() {
        let entries = "{ actions = \"all\", description = \"all\" }, { actions = \"messages\", description = \"group\" }, { actions = \"incoming_event\", description = \"name\" }";
        let found = wanted("3.6", entries);
        assert_eq!(found.len(), 38);
        let has = |action: &str| {
            found.iter().find(|wanted| wanted.action == action).map(|wanted| wanted.description.as_str())
        };
        assert_eq!(
            [has("incoming_chat"), has("event_updated"), has("incoming_event")],
            [Some("all"), Some("group"), Some("name")]
        );
        let twice = load("3.6", "{ actions = [\"tags\", \"incoming_event\"] }, { actions = \"incoming_event\" }")
            .expect_err("a mistake");
        let expected = "apps[0].livechat.webhooks[1].actions: has incoming_event, as apps[0].livechat.webhooks[0] has: each event would come twice";
        assert_eq!(twice, [expected]);
        assert_eq!(load("3.6", "{ actions = \"bots\" }, { actions = \"bots\" }").expect_err("mistakes").len(), 3);
    }

    #[test]
    fn filters_and_data_are_as_livechat_has_them() {
        let users = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let filters = "{ author_type = \"customer\", only_my_chats = true, source_type = [\"system\", \"my_client\"], chat_presence = { user_ids = { exclude_values = [\"a@b.c\"] }, my_bots = false } }";
        let one = &wanted(
            "3.6",
            &format!("{{ actions = \"incoming_event\", filters = {filters}, additional_data = \"chat_properties\" }}"),
        )[0];
        let expected = Filters {
            author_type: Some("customer".to_owned()),
            only_my_chats: Some(true),
            present_users: Some(Users::ExcludeValues(users(&["a@b.c"]))),
            my_bots: None,
            source_type: Some(users(&["my_client", "system"])),
            agent_ids: None,
        };
        assert_eq!((&one.filters, &one.additional_data), (&expected, &users(&["chat_properties"])));
        let agents = &wanted(
            "3.4",
            "{ actions = \"routing_status_set\", filters = { agent_ids = { values = [\"a\", \"b\"] } } }",
        )[0];
        assert_eq!(agents.filters.agent_ids, Some(Users::Values(users(&["a", "b"]))));
    }

    /// Each mistake is the only one of its entry, and has its key.
    fn are_mistakes(entries: &[(&str, String, &str)]) {
        for (version, entry, mistake) in entries {
            let found = load(version, entry).expect_err(entry);
            let start = format!("apps[0].livechat.webhooks[0].{mistake}");
            let is_it = found.len() == 1 && (found[0].starts_with(&start) || found[0].starts_with(mistake));
            assert!(is_it, "{entry}: {mistake}: {found:#?}");
        }
    }

    fn with(actions: &str, more: &str) -> String {
        format!("{{ actions = \"{actions}\", {more} }}")
    }

    #[test]
    fn an_action_that_livechat_would_refuse_is_a_mistake_with_its_key() {
        are_mistakes(&[
            ("3.6", "{}".to_owned(), "actions: is missing: \"all\", or some of"),
            ("3.6", "{ actions = 1 }".to_owned(), "actions: must be a text in quotes"),
            ("3.6", "{ actions = [] }".to_owned(), "actions: must be a text in quotes"),
            (
                "3.6",
                "{ actions = [\"bots\", \"incoming_evnt\"] }".to_owned(),
                "actions: its entry 2 is neither an action of LiveChat's API 3.6 nor a group; did you mean \"incoming_event\"?",
            ),
            (
                "3.6",
                "{ actions = \"thread_closed\" }".to_owned(),
                "actions: its entry 1 is neither an action of LiveChat's API 3.6 nor a group; did you mean \"chat_deactivated\"?",
            ),
            (
                "3.6",
                "{ actions = \"incoming_customer\" }".to_owned(),
                "actions: has incoming_customer, which LiveChat's API has in 3.3 to 3.5 only; the app's api_version is 3.6",
            ),
            (
                "3.6",
                "{ actions = \"auto_access_added\" }".to_owned(),
                "actions: has auto_access_added, which LiveChat's API has in 3.4 only",
            ),
            (
                "3.3",
                "{ actions = \"event_deleted\" }".to_owned(),
                "actions: has event_deleted, which LiveChat's API has in 3.6 to 3.7 only",
            ),
            ("3.6", with("incoming_chat", "type = \"agent\""), "type: must be \"license\" or \"bot\""),
        ]);
        let description = format!("description = \"{}\"", "x".repeat(200));
        assert!(load("3.6", &with("incoming_chat", &description)).is_ok());
        let entries = |n| vec!["{ actions = \"incoming_chat\" }"; n].join(", ");
        let many = load("3.6", &entries(65)).expect_err("mistakes");
        assert!(many.iter().any(|line| line.ends_with("webhooks: has more than 64 entries")), "{many:#?}");
    }

    #[test]
    fn filters_and_data_that_livechat_would_refuse_are_mistakes_with_their_key() {
        are_mistakes(&[
            (
                "3.6",
                with("incoming_event", "filters = { author_type = \"bot\" }"),
                "filters.author_type: must be one of \"customer\", \"agent\"",
            ),
            (
                "3.6",
                with("incoming_chat", "filters = { author_type = \"agent\" }"),
                "filters.author_type: in LiveChat's API 3.6 incoming_chat cannot be filtered so",
            ),
            (
                "3.3",
                with("incoming_event", "filters = { source_type = \"system\" }"),
                "filters.source_type: in LiveChat's API 3.3 incoming_event cannot",
            ),
            (
                "3.6",
                with("all", "filters = { only_my_chats = true }"),
                "filters.only_my_chats: in LiveChat's API 3.6 tag_created, tag_deleted, tag_updated, customer_session_fields_updated and 14 more cannot",
            ),
            (
                "3.6",
                with("incoming_event", "filters = { source_type = [\"me\"] }"),
                "filters.source_type: must be some of \"my_client\"",
            ),
            (
                "3.6",
                with("incoming_event", "filters = { source_type = [] }"),
                "filters.source_type: must be a text in quotes, or several",
            ),
            (
                "3.6",
                with("incoming_event", "filters = { only_my_chats = \"true\" }"),
                "filters.only_my_chats: must be true or false",
            ),
            (
                "3.6",
                with("incoming_event", "filters = { chat_presence = { user_ids = {} } }"),
                "filters.chat_presence.user_ids: needs values or exclude_values",
            ),
            (
                "3.6",
                with(
                    "incoming_event",
                    "filters = { chat_presence = { user_ids = { values = \"a\", exclude_values = \"b\" } } }",
                ),
                "filters.chat_presence.user_ids: has values and exclude_values",
            ),
            (
                "3.6",
                with("incoming_event", "filters = { chat_presence = true }"),
                "filters.chat_presence: must be a table",
            ),
            (
                "3.6",
                with("agent_created", "filters = { agent_ids = { values = \"a\" } }"),
                "filters.agent_ids: in LiveChat's API 3.6 agent_created cannot",
            ),
            (
                "3.6",
                with("incoming_chat", "additional_data = \"all\""),
                "additional_data: must be some of \"chat_properties\"",
            ),
            (
                "3.6",
                with("agents", "additional_data = \"chat_properties\""),
                "additional_data: routing_status_set, agent_deleted cannot have",
            ),
            (
                "3.6",
                with("incoming_chat", "description = \"a\\nb\""),
                "description: must be a line of 200 characters at most",
            ),
            (
                "3.6",
                with("incoming_chat", &format!("description = \"{}\"", "x".repeat(201))),
                "description: must be a line of 200",
            ),
            ("3.6", with("incoming_chat", "filter = { }"), "unknown key"),
        ]);
    }
}
