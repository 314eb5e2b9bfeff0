//! `webhooks` of an app, right and wrong.

use std::io::Write as _;

use super::*;
use crate::config::{Config, Need};

fn load(version: &str, webhooks: &str) -> Result<Vec<Wanted>, Vec<String>> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let keys = "secret_keys = [{ name = \"k\", file = \"/no\" }]";
    let livechat = "[apps.livechat]\nclient_id = \"c\"\npublic_url = \"https://hooks.example.com\"";
    write!(file, "[[apps]]\nname = \"a\"\napi_version = \"{version}\"\n{keys}\n{livechat}\nwebhooks = [{webhooks}]\n")
        .expect("written");
    let config = Config::load(Some(file.path()), [], Need::Settings).map_err(|mistakes| mistakes.without_places());
    config.map(|mut config| config.livechat.apps.remove(0).wanted.unwrap_or_default())
}

#[test]
fn the_example_of_the_reference_is_right() {
    let (_, example) = crate::config::DEFAULTS.split_once("#   webhooks = [\n").expect("the example");
    let (example, _) = example.split_once("#   ]").expect("its end");
    let found = wanted("3.6", &example.replace("#  ", ""));
    let event = found.iter().find(|wanted| wanted.action == "incoming_event").expect("the action");
    assert_eq!((found.len(), event.filters.author_type.as_deref()), (38, Some("customer")));
}

fn wanted(version: &str, webhooks: &str) -> Vec<Wanted> {
    load(version, webhooks).unwrap_or_else(|mistakes| panic!("{mistakes:#?}"))
}

#[test]
fn an_entry_is_for_the_actions_and_groups_that_it_names_or_for_all() {
    for (version, count) in [("3.3", 22), ("3.4", 36), ("3.5", 37), ("3.6", 38), ("3.7", 38)] {
        assert_eq!(wanted(version, "{ actions = \"all\" }").len(), count, "{version}");
    }
    let names = |webhooks: &str| wanted("3.6", webhooks).into_iter().map(|wanted| wanted.action).collect::<Vec<_>>();
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
    let has =
        |action: &str| found.iter().find(|wanted| wanted.action == action).map(|wanted| wanted.description.as_str());
    assert_eq!(
        [has("incoming_chat"), has("event_updated"), has("incoming_event")],
        [Some("all"), Some("group"), Some("name")]
    );
    let twice = load("3.6", "{ actions = [\"tags\", \"incoming_event\"] }, { actions = \"incoming_event\" }")
        .expect_err("a mistake");
    let expected = "apps[0].livechat.webhooks[1].actions: has incoming_event, which apps[0].livechat.webhooks[0] has, too: each event would come twice";
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
    let agents =
        &wanted("3.4", "{ actions = \"routing_status_set\", filters = { agent_ids = { values = [\"a\", \"b\"] } } }")
            [0];
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
            "actions: has incoming_customer, which only LiveChat's API 3.3 to 3.5 has; the app's api_version is 3.6",
        ),
        (
            "3.6",
            "{ actions = \"auto_access_added\" }".to_owned(),
            "actions: has auto_access_added, which only LiveChat's API 3.4 has",
        ),
        (
            "3.3",
            "{ actions = \"event_deleted\" }".to_owned(),
            "actions: has event_deleted, which only LiveChat's API 3.6 to 3.7 has",
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
            "filters.author_type: incoming_chat cannot have this filter in LiveChat's API 3.6",
        ),
        (
            "3.3",
            with("incoming_event", "filters = { source_type = \"system\" }"),
            "filters.source_type: incoming_event cannot have this filter in LiveChat's API 3.3",
        ),
        (
            "3.6",
            with("all", "filters = { only_my_chats = true }"),
            "filters.only_my_chats: tag_created, tag_deleted, tag_updated, customer_session_fields_updated and 14 more cannot",
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
        ("3.6", with("incoming_event", "filters = { chat_presence = true }"), "filters.chat_presence: must be a table"),
        (
            "3.6",
            with("agent_created", "filters = { agent_ids = { values = \"a\" } }"),
            "filters.agent_ids: agent_created cannot",
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
