//! Plans, as tables: what is wanted, what is registered, and what becomes of it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::livechat::{Level, SecretKey, Users, Version};

const URL: &str = "https://hooks.example.com/relay/webhooks/a";

fn app(wanted: &[Wanted]) -> App {
    App {
        name: "a".to_owned(),
        client_id: "c".to_owned(),
        client_secret: None,
        public_url: "https://hooks.example.com/relay".to_owned(),
        version: Version::V3_5,
        credential: None,
        wanted: Some(wanted.to_vec()),
        secret_key: None,
        key_directory: None,
        install: None,
        page: false,
        organizations: BTreeSet::new(),
    }
}

fn wanted(action: &str) -> Wanted {
    Wanted {
        action: action.to_owned(),
        url: URL.to_owned(),
        level: Level::License,
        filters: Filters::default(),
        additional_data: BTreeSet::new(),
        description: "of the relay".to_owned(),
    }
}

/// What is registered as `wanted`, with its id.
fn registered(id: &str, wanted: Wanted) -> Registration {
    Registration {
        id: id.to_owned(),
        action: wanted.action,
        url: wanted.url,
        level: wanted.level,
        filters: wanted.filters,
        unknown_filters: None,
        additional_data: Some(wanted.additional_data),
        description: wanted.description,
        secret_key: None,
    }
}

fn at(url: &str, id: &str, action: &str) -> Registration {
    registered(id, Wanted { url: url.to_owned(), ..wanted(action) })
}

fn one(id: &str, action: &str) -> Registration {
    at(URL, id, action)
}

/// A plan in words: `+action`, `-id why`, `=id`, `?id` (foreign).
fn words(plan: &Plan) -> Vec<String> {
    let why = |why| match why {
        Why::NotWanted => "not wanted",
        Why::Replaced => "replaced",
        Why::Copy => "copy",
        Why::Unclear => "unclear",
    };
    let add = plan.add.iter().map(|wanted| format!("+{}", wanted.action));
    let remove = plan.remove.iter().map(|removal| format!("-{} {}", removal.registration.id, why(removal.why)));
    let unchanged = plan.unchanged.iter().map(|kept| format!("={}", kept.id));
    let foreign = plan.foreign.iter().map(|foreign| format!("?{}", foreign.id));
    add.chain(remove).chain(unchanged).chain(foreign).collect()
}

/// These registrations have delivered with the key `k`.
fn delivered(ids: &[&str]) -> Facts {
    let with_k: Vec<_> = ids.iter().map(|id| (*id, "k", 1)).collect();
    delivered_with(&with_k)
}

/// Each with a key, last at a second.
fn delivered_with(all: &[(&str, &str, i64)]) -> Facts {
    let one = |(id, key, last): &(&str, &str, i64)| {
        let last = Timestamp::from_second(*last).expect("a time");
        let [app, webhook_id, action, key] = ["a", id, "incoming_event", key].map(str::to_owned);
        (webhook_id.clone(), Delivered { app, webhook_id, action, key, deliveries: 1, first: last, last })
    };
    Facts { delivered: all.iter().map(one).collect(), ..Facts::default() }
}

#[test]
fn what_is_missing_is_added_what_is_not_wanted_removed_and_the_rest_stays() {
    let (chat, event) = (wanted("incoming_chat"), wanted("incoming_event"));
    let others = "https://crm.example.com/webhooks/a";
    for (wanted, registered, expected) in [
        (vec![], vec![], vec![]),
        (vec![&chat, &event], vec![], vec!["+incoming_chat", "+incoming_event"]),
        (vec![&chat, &event], vec![one("1", "incoming_event")], vec!["+incoming_chat", "=1"]),
        (vec![&event], vec![one("2", "thread_tagged"), one("1", "incoming_event")], vec!["-2 not wanted", "=1"]),
        (vec![], vec![one("1", "incoming_event")], vec!["-1 not wanted"]),
        (vec![&event], vec![at(others, "9", "incoming_event")], vec!["+incoming_event", "?9"]),
        (vec![], vec![at(others, "9", "incoming_event"), one("8", "of_tomorrow")], vec!["?9", "?8"]),
        // Of the catalogue, but not of this version.
        (vec![], vec![one("1", "chat_access_granted")], vec!["-1 not wanted"]),
    ] {
        let wanted: Vec<_> = wanted.into_iter().cloned().collect();
        assert_eq!(words(&plan(&app(&wanted), &registered, &Facts::default())), expected, "{wanted:?} {registered:?}");
    }
}

#[test]
fn ours_is_what_comes_to_the_relays_webhooks_whatever_app_or_scheme() {
    for (url, is_ours) in [
        (URL, true),
        ("https://hooks.example.com/relay/webhooks", true),
        ("https://hooks.example.com/relay/webhooks/of-before", true),
        ("https://HOOKS.example.com:443/relay/webhooks/a", true),
        ("http://hooks.example.com/relay/webhooks/a", true),
        ("https://hooks.example.com/relay/webhooks/a?x=1", true),
        ("https://hooks.example.com/relay/webhooksx", false),
        ("https://hooks.example.com/relay/install/a", false),
        ("https://hooks.example.com/webhooks/a", false),
        ("https://hooks.example.com:8443/relay/webhooks/a", false),
        ("https://hooks.example.com.evil.example/relay/webhooks/a", false),
        ("https://other.example.com/relay/webhooks/a", false),
        ("no URL", false),
    ] {
        let plan = plan(&app(&[]), &[at(url, "1", "incoming_chat")], &Facts::default());
        assert_eq!((plan.remove.len(), plan.foreign.len()), if is_ours { (1, 0) } else { (0, 1) }, "{url}");
    }
}

#[test]
fn a_difference_that_matters_is_a_replacement() {
    let set = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<BTreeSet<_>>();
    let filters = Filters {
        author_type: Some("customer".to_owned()),
        present_users: Some(Users::Values(set(&["a", "b"]))),
        source_type: Some(set(&["system"])),
        ..Filters::default()
    };
    let event =
        Wanted { filters: filters.clone(), additional_data: set(&["chat_properties"]), ..wanted("incoming_event") };
    let same = registered("1", event.clone());
    let with = |filters: Filters| Registration { filters, ..same.clone() };
    for (registration, differs) in [
        (same.clone(), vec![]),
        (Registration { description: String::new(), ..same.clone() }, vec![]),
        (Registration { additional_data: None, ..same.clone() }, vec![]),
        (Registration { url: "https://hooks.EXAMPLE.com:443/relay/webhooks/a".to_owned(), ..same.clone() }, vec![]),
        (with(Filters { only_my_chats: Some(false), my_bots: Some(false), ..filters.clone() }), vec![]),
        (with(Filters { only_my_chats: Some(true), ..filters.clone() }), vec!["filters"]),
        (with(Filters { my_bots: Some(true), ..filters.clone() }), vec!["filters"]),
        (with(Filters { author_type: None, ..filters.clone() }), vec!["filters"]),
        (
            with(Filters { present_users: Some(Users::ExcludeValues(set(&["a", "b"]))), ..filters.clone() }),
            vec!["filters"],
        ),
        (with(Filters { source_type: None, ..filters.clone() }), vec!["filters"]),
        (Registration { unknown_filters: Some("{\"new\":1}".to_owned()), ..same.clone() }, vec!["filters"]),
        (Registration { additional_data: Some(BTreeSet::new()), ..same.clone() }, vec!["additional_data"]),
        (Registration { level: Level::Bot, ..same.clone() }, vec!["type"]),
        (Registration { url: "https://hooks.example.com/relay/webhooks/b".to_owned(), ..same.clone() }, vec!["url"]),
        (Registration { url: "http://hooks.example.com/relay/webhooks/a".to_owned(), ..same.clone() }, vec!["url"]),
    ] {
        assert_eq!(differences(&registration, &event), differs, "{registration:?}");
        let found = words(&plan(&app(std::slice::from_ref(&event)), &[registration], &Facts::default()));
        assert_eq!(found, if differs.is_empty() { vec!["=1"] } else { vec!["+incoming_event", "-1 replaced"] });
    }
}

#[test]
fn of_copies_only_what_is_known_to_deliver_makes_another_one_superfluous() {
    let copies = [one("1", "incoming_event"), one("2", "incoming_event"), one("3", "thread_tagged")];
    let event = [wanted("incoming_event")];
    let of = |facts: &Facts| plan(&app(&event), &copies, facts);
    let blind = of(&Facts::default());
    assert_eq!(words(&blind), ["+incoming_event", "-1 unclear", "-2 unclear", "-3 not wanted"]);
    // Where LiveChat takes no further one, one would have to go first: all stay.
    let crm = at("https://crm.example.com/", "4", "incoming_event");
    let full = plan(&app(&event), &[&copies[..], &[crm]].concat(), &Facts::default());
    assert_eq!(words(&full), ["-3 not wanted", "=1", "=2", "?4"]);
    assert!(matches!(&full.warnings[..], [Warning::Several { ids, .. }] if ids.len() == 2), "{:?}", full.warnings);
    for (ids, expected) in [
        (vec!["2"], ["-1 copy", "-3 not wanted", "=2"]),
        (vec!["1"], ["-2 copy", "-3 not wanted", "=1"]),
        (vec!["1", "2"], ["-1 copy", "-3 not wanted", "=2"]),
    ] {
        let plan = of(&delivered(&ids));
        assert_eq!(words(&plan), expected, "{ids:?}");
        assert!(matches!(&plan.warnings[..], [Warning::Several { action, .. }] if action == "incoming_event"));
    }
}

/// Two keys are valid, as while keys that a file lists are changed by hand.
#[test]
fn of_copies_with_two_keys_the_one_with_the_key_of_new_registrations_stays() {
    let copies = [one("1", "incoming_event"), one("2", "incoming_event")];
    let key = SecretKey { name: "new".to_owned(), place: "a file".to_owned(), secret: None };
    let app = App { secret_key: Some(key), ..app(&[wanted("incoming_event")]) };
    for (delivered, stays) in [
        ([("1", "new", 1), ("2", "old", 2)], "1"),
        ([("1", "old", 2), ("2", "new", 1)], "2"),
        ([("1", "older", 2), ("2", "old", 1)], "1"),
        ([("1", "old", 1), ("2", "older", 2)], "2"),
        ([("1", "new", 2), ("2", "new", 1)], "2"), // of one key: either is right
    ] {
        let plan = plan(&app, &copies, &delivered_with(&delivered));
        assert_eq!(words(&plan).last(), Some(&format!("={stays}")), "{delivered:?}");
        assert_eq!(plan.remove.len(), 1, "{delivered:?}");
    }
}

#[test]
fn where_three_stand_one_has_to_go_first() {
    let event = [wanted("incoming_event")];
    let old = |id: &str| at("https://hooks.example.com/relay/webhooks/old", id, "incoming_event");
    let others = |id: &str| at("https://crm.example.com/", id, "incoming_event");
    let full = |registered: [Registration; 3], ids: &[&str]| {
        let warnings = plan(&app(&event), &registered, &delivered(ids)).warnings;
        warnings.into_iter().find_map(|warning| match warning {
            Warning::Full { has_gap, .. } => Some((warning.to_string(), has_gap)),
            _ => None,
        })
    };
    for (registered, delivered, expected) in [
        ([old("1"), old("2"), old("3")], &["1", "3"][..], "2 must be removed before the new one is registered"),
        ([old("1"), old("2"), old("3")], &["1", "2", "3"], "1 must be removed before the new one is registered"),
        (
            [others("1"), old("2"), others("3")],
            &["2"],
            "2 must be removed before the new one is registered, and events in between are lost",
        ),
        ([others("1"), others("2"), others("3")], &[], "not this relay's to remove"),
    ] {
        let (text, has_gap) = full(registered.clone(), delivered).expect("a warning");
        assert!(text.contains(expected) && text.contains("lost") == has_gap, "{text}");
        let all_of = plan(&app(&event), &registered, &Facts::default());
        let all = all_of.changes(&Facts::default());
        let ours = registered.iter().filter(|one| !one.url.contains("crm")).count();
        assert_eq!(all_of.calls(), if ours == 0 { 0 } else { 1 + ours }, "what cannot be registered is no call");
        assert_eq!((all.len(), all[0].is_blocked), (1, expected.starts_with("not this relay's")));
    }
    // What stays has to deliver what the first one does.
    let lost = |registered: [Registration; 3], ids: &[&str]| full(registered, ids).expect("a warning");
    let filtered = |id: &str, author: &str| {
        let filters = Filters { author_type: Some(author.to_owned()), ..Filters::default() };
        registered(id, Wanted { filters, ..wanted("incoming_event") })
    };
    let differ = || [filtered("1", "customer"), filtered("2", "agent"), others("3")];
    assert!(lost(differ(), &["1", "2"]).1, "the events of the other author");
    assert!(lost([old("1"), old("2"), others("3")], &[]).1, "the other one may have a wrong secret key");
    assert!(!lost([old("1"), old("2"), others("3")], &["2"]).1);
    let (text, has_gap) = lost([filtered("1", "agent"), old("2"), old("3")], &["2", "3"]);
    assert!(
        text.contains("2 must be removed before") && !has_gap,
        "1 has delivered nothing yet, and may do what none else does: {text}"
    );
    assert_eq!(full([old("1"), old("2"), one("3", "thread_tagged")], &[]), None);
    assert_eq!(full([old("1"), old("2"), one("3", "incoming_event")], &[]), None, "nothing is added");
}

/// Each webhook stands twice, with the one key and with the other: 38 warnings would say that.
#[test]
fn an_unfinished_rotation_is_one_warning_and_keeps_what_has_the_new_key() {
    let both = [wanted("incoming_event"), wanted("thread_tagged")];
    let registered = ["incoming_event", "thread_tagged"]
        .map(|action| [one(&format!("old {action}"), action), one(&format!("new {action}"), action)])
        .concat();
    let rotation = Rotation { old: vec!["k1".to_owned()], new: "k2".to_owned() };
    let begun = Facts { rotation: Some(rotation.clone()), ..delivered(&["old incoming_event", "new incoming_event"]) };
    let plan_of_others = plan(&app(&both), &registered, &begun);
    assert!(plan_of_others.is_empty() && !plan_of_others.is_done(), "only the rotation removes: {plan_of_others:?}");
    let found = plan_of_others.warnings;
    assert_eq!(found, [Warning::Rotation(rotation)]);
    assert_eq!(
        found[0].to_string(),
        "a rotation from k1 to k2 is unfinished: run `livechat-relay webhooks rotate` again"
    );

    let with_new_key = |ids: &[&str]| Facts {
        with_new_key: Some(ids.iter().map(|id| (*id).to_owned()).collect()),
        ..delivered(&["old incoming_event"])
    };
    let of = |ids: &[&str]| words(&plan(&app(&both), &registered, &with_new_key(ids)));
    assert_eq!(
        of(&["new incoming_event", "new thread_tagged"]),
        ["-old incoming_event copy", "-old thread_tagged copy", "=new incoming_event", "=new thread_tagged"]
    );
    assert_eq!(of(&["new thread_tagged"])[..2], ["+incoming_event", "-old incoming_event replaced"]);
}

#[test]
fn what_a_person_should_know_is_a_warning() {
    let event = [wanted("incoming_event")];
    let notices = Notices { legacy: None, deprecation: Some("2027-01-31".parse().expect("a date")) };
    let disabled = Facts { enabled: Some(false), notices, ..Facts::default() };
    let plain = "http://hooks.example.com/relay/webhooks/a";
    let registered = [
        at(plain, "1", "incoming_event"),
        one("2", "of_tomorrow"),
        at("http://crm.example.com/", "3", "incoming_chat"),
    ];
    let expected = [
        Warning::Disabled,
        Warning::Ends { version: "3.5", notices },
        Warning::Unknown { action: "of_tomorrow".to_owned(), id: "2".to_owned() },
        Warning::Http { action: "incoming_event".to_owned(), id: "1".to_owned() },
        Warning::Http { action: "incoming_chat".to_owned(), id: "3".to_owned() },
    ];
    assert_eq!(plan(&app(&event), &registered, &disabled).warnings, expected);
    let right = Facts { enabled: Some(true), ..Facts::default() };
    assert_eq!(plan(&app(&event), &[one("1", "incoming_event")], &right).warnings, []);
    assert_eq!(plan(&app(&[]), &[], &right).warnings, [], "an empty list means it");
    let silent = App { wanted: None, ..app(&[]) };
    assert_eq!(plan(&silent, &[], &right).warnings, [Warning::NothingSaid]);
    // A simulated LiveChat on this machine is reached without TLS.
    let mut local = app(&[]);
    local.public_url = "http://127.0.0.1:8080".to_owned();
    local.wanted = Some(vec![Wanted { url: local.webhook_url(), ..wanted("incoming_event") }]);
    let own = plan(&local, &[at(&local.webhook_url(), "1", "incoming_event")], &right);
    assert_eq!((words(&own), own.warnings), (vec!["=1".to_owned()], vec![]));
}

proptest! {
    /// Whatever is registered: who applies a plan has nothing left to do, and nothing of others, and nothing twice, was touched.
    #[test]
    fn an_applied_plan_leaves_nothing_to_do(
        picks in prop::collection::vec((0..4_usize, 0..5_usize, 0..3_usize), 0..12),
        configured in prop::collection::btree_set(0..4_usize, 0..4),
        delivering in prop::collection::btree_set(0..12_usize, 0..6),
    ) {
        const ACTIONS: [&str; 4] = ["incoming_chat", "incoming_event", "thread_tagged", "of_tomorrow"];
        const URLS: [&str; 5] = [
            URL,
            "http://hooks.example.com/relay/webhooks/a",
            "https://hooks.example.com/relay/webhooks/b",
            "https://crm.example.com/",
            "no URL",
        ];
        let pick = |(n, (action, url, author)): (usize, (usize, usize, usize))| {
            let author_type = [None, Some("customer".to_owned()), Some("agent".to_owned())][author].clone();
            let filters = Filters { author_type, ..Filters::default() };
            registered(&n.to_string(), Wanted { url: URLS[url].to_owned(), filters, ..wanted(ACTIONS[action]) })
        };
        let before: Vec<_> = picks.into_iter().enumerate().map(pick).collect();
        let app = app(&configured.into_iter().filter(|n| *n < 3).map(|n| wanted(ACTIONS[n])).collect::<Vec<_>>());
        let ids: Vec<_> = delivering.iter().map(ToString::to_string).collect();
        let facts = delivered(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        let first = plan(&app, &before, &facts);
        prop_assert_eq!(first.remove.len() + first.unchanged.len() + first.foreign.len(), before.len());
        let of_others = |one: &Registration| one.url == URLS[3] || one.url == URLS[4] || one.action == ACTIONS[3];
        prop_assert!(before.iter().all(|one| of_others(one) == first.foreign.contains(one)));
        let applied = |before: &[Registration], plan: &Plan, new: &str| -> Vec<_> {
            let is_removed = |one: &Registration| plan.remove.iter().any(|removal| removal.registration.id == one.id);
            let added = plan.add.iter().enumerate().map(|(n, wanted)| registered(&format!("{new} {n}"), wanted.clone()));
            before.iter().filter(|one| !is_removed(one)).cloned().chain(added).collect()
        };
        // A second pass replaces what is alike, where LiveChat took no further one in the first.
        let once = applied(&before, &first, "first");
        let after = applied(&once, &plan(&app, &once, &facts), "second");
        let third = plan(&app, &after, &facts);
        prop_assert!(third.is_empty(), "{third:?}");
        for wanted in app.wanted() {
            prop_assert!(after.iter().any(|one| one.is_as(wanted)));
        }
    }
}
