//! `[[rules]]`, right and wrong.

use super::*;

#[test]
fn a_rule_says_which_events_and_what_becomes_of_them() {
    let file = r#"
        [[rules]]
        name = "the bot that floods"
        app = "default"
        action = ["incoming_event", "app.payment_collected"]
        do = "sample"
        rate = 100
        by = "event"
        until = 2026-12-01T00:00:00Z
        [[rules]]
        name = "quarantine"
        organization = "o-1"
        do = "topic"
        topic = "quarantine"
        [[rules]]
        name = "poison"
        chat = "PJ0MRSHTDG"
        do = "dead-letter"
    "#;
    let config = load(&format!("{file}{APP}"), &[]).expect("a configuration");
    let rules: Vec<_> = config.policy.rules.iter().map(|rule| format!("{}: {rule}", rule.name)).collect();
    let expected = [
        "the bot that floods: events of app default and action app.payment_collected, incoming_event are sampled: one in 100 is kept until 2026-12-01T00:00:00Z",
        "quarantine: events of organization o-1 go to the topic quarantine",
        "poison: events of chat PJ0MRSHTDG go to the dead letters",
    ];
    assert_eq!(rules, expected);
    assert!(config.policy.topics().iter().any(|topic| &**topic == "quarantine"), "it is created as the routes' are");
    let ended = config.policy.notices("2026-12-01T00:00:00Z".parse().expect("a time"));
    assert!(
        ended.len() == 1
            && ended[0].text.starts_with("rule the bot that floods: its `until` has passed, so it can be removed")
    );
    assert_eq!(config.policy.notices("2026-11-30T00:00:00Z".parse().expect("a time")), []);
}

#[test]
fn what_is_wrong_with_a_rule_is_said_with_its_key() {
    let with = |rule: &str| mistakes(&format!("[[rules]]\nname = \"r\"\n{rule}"));
    for (rule, expected) in [
        ("do = \"drop\"", "rules[0]: needs at least one of app, action, organization and chat"),
        ("chat = \"C\"", "rules[0].do: is missing: one of \"drop\", \"topic\", \"dead-letter\", \"sample\""),
        ("chat = \"C\"\ndo = \"dorp\"", "rules[0].do: must be one of"),
        ("chat = []\ndo = \"drop\"", "rules[0].chat: must be a text in quotes, or several in an array"),
        ("chat = [\"C\", \"\"]\ndo = \"drop\"", "rules[0].chat: must be a text"),
        ("chat = 5\ndo = \"drop\"", "rules[0].chat: must be a text"),
        ("app = \"defualt\"\ndo = \"drop\"", "rules[0].app: no app has this name; did you mean \"default\"?"),
        (
            "action = \"incoming_evnt\"\ndo = \"drop\"",
            "rules[0].action: is not one of LiveChat's actions; use `unlisted` for those that the relay does not know; did you mean \"incoming_event\"?",
        ),
        (
            "action = \"thread_closed\"\ndo = \"drop\"",
            "rules[0].action: is not one of LiveChat's actions; use `unlisted` for those that the relay does not know; did you mean \"chat_deactivated\"?",
        ),
        ("chat = \"C\"\ndo = \"topic\"", "rules[0].topic: is not a topic name"),
        ("chat = \"C\"\ndo = \"topic\"\ntopic = \"a b\"", "rules[0].topic: has characters that Kafka does not allow"),
        (
            "chat = \"C\"\ndo = \"topic\"\ntopic = \"livechat_incoming_event\"",
            "topics: livechat.incoming_event and livechat_incoming_event collide",
        ),
        ("chat = \"C\"\ndo = \"drop\"\ntopic = \"a\"", "rules[0].topic: is only for rules with do = \"topic\""),
        ("chat = \"C\"\ndo = \"drop\"\nrate = 5", "rules[0].rate: is only for rules with do = \"sample\""),
        ("chat = \"C\"\ndo = \"sample\"", "rules[0].rate: is missing"),
        (
            "chat = \"C\"\ndo = \"sample\"\nrate = 5\nby = \"agent\"",
            "rules[0].by: must be one of \"chat\", \"event\", not \"agent\"",
        ),
        ("chat = \"C\"\ndo = \"drop\"\nuntil = \"soon\"", "rules[0].until: must be a date with a time and its offset"),
        ("chat = \"C\"\ndo = \"drop\"\nuntl = 5", "unknown key `rules[0].untl`; did you mean `rules[0].until`?"),
        (
            "chat = \"C\"\ndo = \"drop\"\n[[rules]]\nname = \"r\"\nchat = \"D\"\ndo = \"drop\"",
            "rules[1].name: is already the name of another rule",
        ),
    ] {
        let found = with(rule);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{rule}: {found:#?}");
    }
}

#[test]
fn rules_have_their_limits() {
    let rules = |n: usize| -> String {
        (0..n).map(|n| format!("[[rules]]\nname = \"{n}\"\nchat = \"C\"\ndo = \"drop\"\n")).collect()
    };
    assert_eq!(mistakes(&rules(100)), [""; 0]);
    assert_eq!(mistakes(&rules(101)), ["rules: has more than 100 rules"]);
    let one = |name: usize, values: usize, rate: u64| {
        let (name, chats) = ("n".repeat(name), (0..values).map(|n| format!("\"C{n}\",")).collect::<String>());
        mistakes(&format!("[[rules]]\nname = \"{name}\"\nchat = [{chats}]\ndo = \"sample\"\nrate = {rate}"))
    };
    for (right, wrong) in [
        (one(64, 1, 2), one(65, 1, 2)),
        (one(1, 1, 2), one(0, 1, 2)),
        (one(1, 1000, 2), one(1, 1001, 2)),
        (one(1, 1, 2), one(1, 1, 1)),
        (one(1, 1, 1_000_000), one(1, 1, 1_000_001)),
    ] {
        assert_eq!((right, wrong.len()), (vec![], 1), "{wrong:?}");
    }
}
