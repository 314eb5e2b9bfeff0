//! What a person reads of plans and listings, as snapshots: `UPDATE_SNAPSHOTS=1` writes them, to be read before they are committed.

use std::io::Write as _;
use std::path::Path;

use jiff::civil::Date;

use super::*;
use crate::livechat::plan::plan;
use crate::livechat::{Filters, Level, Notices, Users, Wanted};

/// An app of a configuration, with these webhooks.
fn app(webhooks: &str) -> App {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let livechat =
        "[apps.livechat]\nclient_id = \"0805e283233042b37f460ed8fbf22160\"\npublic_url = \"https://hooks.example.com\"";
    let key = "secret_keys = [{ name = \"2026-11\", file = \"/run/secrets/livechat\" }]";
    write!(file, "[[apps]]\nname = \"default\"\n{key}\n{livechat}\n{webhooks}\n").expect("written");
    let config = crate::config::Config::load(Some(file.path()), [], Need::Settings);
    config.unwrap_or_else(|mistakes| panic!("{mistakes}")).livechat.apps.remove(0)
}

fn registered(id: &str, wanted: &Wanted) -> Registration {
    let Wanted { action, url, level, filters, additional_data, description } = wanted.clone();
    Registration {
        id: id.to_owned(),
        action,
        url,
        level,
        filters,
        unknown_filters: None,
        additional_data: Some(additional_data),
        description,
        secret_key: None,
    }
}

const OWN: &str = "https://hooks.example.com/webhooks/default";

fn by_hand(id: &str, action: &str, url: &str) -> Registration {
    let wanted = Wanted {
        action: action.to_owned(),
        url: url.to_owned(),
        level: Level::License,
        filters: Filters::default(),
        additional_data: std::collections::BTreeSet::new(),
        description: String::new(),
    };
    registered(id, &wanted)
}

/// What people make in a console over the years.
fn messy() -> Vec<Registration> {
    let event = by_hand("k2j8f0p3m1n5b7v9c4x6z0q1w", "incoming_event", OWN);
    let of = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let filtered =
        Filters { present_users: Some(Users::ExcludeValues(of(&["bot@example.com"]))), ..Filters::default() };
    vec![
        by_hand("a1s2d3f4g5h6j7k8l9q0w1e2r", "incoming_chat", OWN),
        Registration { filters: filtered, description: "since 2024".to_owned(), ..event },
        by_hand("b1s2d3f4g5h6j7k8l9q0w1e2r", "chat_deactivated", "http://hooks.example.com/webhooks/default"),
        by_hand("c1s2d3f4g5h6j7k8l9q0w1e2r", "chat_deactivated", "https://hooks.example.com/webhooks/old"),
        by_hand("d1s2d3f4g5h6j7k8l9q0w1e2r", "chat_deactivated", "https://crm.example.com/livechat"),
        Registration { level: Level::Bot, ..by_hand("e1s2d3f4g5h6j7k8l9q0w1e2r", "thread_tagged", OWN) },
        Registration {
            unknown_filters: Some("{\"mood\":\"good\"}".to_owned()),
            ..by_hand("f1s2d3f4g5h6j7k8l9q0w1e2r", "thread_untagged", OWN)
        },
        by_hand("g1s2d3f4g5h6j7k8l9q0w1e2r", "agent_deleted", OWN),
        by_hand("h1s2d3f4g5h6j7k8l9q0w1e2r", "mood_changed", OWN),
        by_hand("i1s2d3f4g5h6j7k8l9q0w1e2r", "incoming_customer", OWN),
    ]
}

fn facts() -> Facts {
    let date = |text: &str| text.parse::<Date>().ok();
    Facts {
        enabled: Some(false),
        notices: Notices { legacy: date("2026-05-01"), deprecation: date("2027-03-31") },
        ..Facts::default()
    }
}

const WANTED: &str = "webhooks = [
  { actions = [\"chats\", \"tags\"] },
  { actions = \"incoming_event\", filters = { author_type = \"customer\" }, additional_data = \"chat_properties\" },
]";

fn assert_snapshot(name: &str, text: &str) {
    let text = anstream::adapter::strip_str(text).to_string();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/webhooks/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name} differs; UPDATE_SNAPSHOTS=1 writes it, after a look at the difference");
    let is_long = |line: &&str| line.chars().count() > 80 && !line.contains("https://") && !line.contains("{ ");
    assert_eq!(text.lines().find(is_long), None, "wider than 80 columns");
}

#[test]
fn a_plan_reads_like_a_plan() {
    let wanted = app(WANTED);
    let all = plan(&wanted, &[], &Facts::default());
    assert_snapshot("plan_new.txt", &plan::text(None, &wanted, &all));
    let asked = anstream::adapter::strip_str(&plan::text_of_apply(None, &wanted, &all)).to_string();
    assert!(
        asked.contains("\nThis takes 13 calls and a few that list.") && !asked.contains("webhooks apply"),
        "{asked}"
    );
    assert_snapshot("plan_messy.txt", &plan::text(None, &wanted, &plan(&wanted, &messy(), &facts())));
    let right: Vec<_> = wanted.wanted().iter().enumerate().map(|(n, one)| registered(&n.to_string(), one)).collect();
    assert_snapshot("plan_nothing.txt", &plan::text(None, &wanted, &plan(&wanted, &right, &Facts::default())));
}

#[test]
fn what_a_person_agrees_to_is_in_the_question() {
    let question = |webhooks: &str, all: &[Registration]| {
        apply::question(&plan(&app(webhooks), all, &Facts::default()).changes(&Facts::default()))
    };
    let one = "webhooks = [{ actions = \"incoming_chat\" }]";
    assert_eq!(question(one, &[]), "Register 1 webhook at LiveChat (1 call)?");
    assert_eq!(question(WANTED, &messy()), "Register 12 webhooks, and unregister 7, at LiveChat (19 calls)?");
    let two = ["1", "2"].map(|id| by_hand(id, "incoming_event", OWN));
    assert_eq!(question("webhooks = []", &two), "Unregister 2 webhooks at LiveChat (2 calls)?");
    assert_eq!(question(one, &[by_hand("1", "incoming_chat", OWN)]), "Do this?", "a rotation may have only keys left");
}

#[test]
fn the_console_needs_one_step_after_the_other() {
    let wanted = app(WANTED);
    assert_snapshot("console_new.txt", &console::text(None, &wanted, &plan(&wanted, &[], &Facts::default())));
    assert_snapshot("console_messy.txt", &console::text(None, &wanted, &plan(&wanted, &messy(), &facts())));
}

#[test]
fn a_listing_shows_what_is_not_as_usual() {
    assert_snapshot("list.txt", &list::listing(&app(WANTED), &messy(), None));
    let two = ["incoming_chat", "customer_session_fields_updated"].map(|action| {
        let id = if action == "incoming_chat" {
            "1882db21-62d2-428a-a81b-b735a40ee9b0"
        } else {
            "d1s2d3f4g5h6j7k8l9q0w1e2r"
        };
        by_hand(id, action, OWN)
    });
    let last = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(3);
    let delivered = crate::deliveries::Delivered {
        app: "default".to_owned(),
        webhook_id: two[0].id.clone(),
        action: "incoming_chat".to_owned(),
        key: "2026-11".to_owned(),
        deliveries: 1,
        first: last,
        last,
    };
    assert_snapshot("list_delivered.txt", &list::listing(&app(WANTED), &two, Some(&[delivered])));
    let none = list::listing(&app(WANTED), &[], None);
    assert!(none.ends_with("\n0 webhooks registered\n"), "{none}");
}

#[test]
fn what_is_adopted_is_configuration_that_leaves_only_what_it_cannot_say_to_a_plan() {
    let plain = app("");
    let adopted = adopt::Adopted::new(&plain, &messy(), &facts()).toml(None, &plain);
    assert_snapshot("adopted.toml", &adopted);
    let after = plan(&app(&adopted), &messy(), &Facts::default());
    let words: Vec<_> = after.add.iter().map(|wanted| wanted.action.as_str()).collect();
    assert_eq!(words, ["chat_deactivated", "thread_untagged"], "its URL, and its unknown filter");
    let removed: Vec<_> = after.remove.iter().map(|removal| removal.registration.action.as_str()).collect();
    assert_eq!(removed, ["chat_deactivated", "chat_deactivated", "thread_untagged", "incoming_customer"]);
}

#[test]
fn what_the_relay_registered_is_adopted_as_it_was_configured() {
    for webhooks in [
        "webhooks = [{ actions = \"all\" }]",
        WANTED,
        "webhooks = [{ actions = \"all\" }, { actions = \"agents\", type = \"bot\", description = \"a \\\"quoted\\\" text\" }]",
        "webhooks = [{ actions = [\"routing_status_set\"], filters = { agent_ids = { values = [\"a@example.com\", \"\\\"\\\\\"] }, source_type = [\"system\"] } }]",
    ] {
        let configured = app(webhooks);
        let all: Vec<_> =
            configured.wanted().iter().enumerate().map(|(n, one)| registered(&n.to_string(), one)).collect();
        let toml = adopt::Adopted::new(&app(""), &all, &Facts::default()).toml(None, &configured);
        let adopted = app(&toml);
        assert!(plan(&adopted, &all, &Facts::default()).is_empty(), "{toml}");
        assert_eq!(adopted.wanted, configured.wanted, "{toml}");
        assert!(webhooks.matches("\"all\"").count() == toml.matches("\"all\"").count(), "{toml}");
    }
}

#[test]
fn what_a_listing_has_acts_on_no_terminal() {
    let hostile = "a\u{1b}[2J\u{202e}\n\"";
    let mut one = by_hand(hostile, "incoming_chat", &format!("{OWN}?{hostile}"));
    one.description = hostile.to_owned();
    one.filters.author_type = Some(hostile.to_owned());
    one.unknown_filters = Some(hostile.to_owned());
    let all = [
        one.clone(),
        Registration { action: hostile.to_owned(), ..one.clone() },
        Registration { url: hostile.to_owned(), ..one },
    ];
    let wanted = app("webhooks = [{ actions = \"incoming_chat\" }]");
    let plan = plan(&wanted, &all, &facts());
    let texts = [
        plan::text(None, &wanted, &plan),
        console::text(None, &wanted, &plan),
        list::listing(&wanted, &all, None),
        adopt::Adopted::new(&wanted, &all, &facts()).toml(None, &wanted),
    ];
    for text in texts {
        let text = text.replace("\u{1b}[0m", ""); // the styles, which are ours
        let active: Vec<_> = text.match_indices("[2J").map(|(at, _)| &text[at.saturating_sub(4)..at]).collect();
        assert!(!active.is_empty() && active.iter().all(|before| !before.ends_with('\u{1b}')), "{text:?}");
        assert!(!text.contains('\u{202e}'), "{text:?}");
    }
}

#[test]
fn an_app_is_chosen_by_name_where_there_are_several() {
    let one = app("");
    let two = [one.clone(), App { name: "other".to_owned(), ..one.clone() }];
    assert_eq!(chosen(std::slice::from_ref(&one), None).expect("the only one").name, "default");
    assert_eq!(chosen(&two, Some("other")).expect("the other").name, "other");
    for (apps, name, why) in [
        (&two[..0], None, "no app of the configuration has a table [apps.livechat]"),
        (&two[..], None, "choose one with --app: default, other"),
        (&two[..], Some("third"), "these have: default, other"),
    ] {
        let failure = chosen(apps, name).expect_err("a mistake");
        assert!(matches!(failure, Failure::Usage(_)) && failure.to_string().contains(why), "{failure}");
    }
}
