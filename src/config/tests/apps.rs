//! What an app, its topics and its clients are in a configuration.

use super::*;

#[test]
fn apps_need_names_and_keys() {
    let only = |text: &str| load(text, &[]).err().expect("mistakes").join("\n");
    assert!(only("").contains("apps: is empty: add [[apps]]"));
    assert!(only("[[apps]]\nname = \"a/b\"\nsecret_keys = []").contains("apps[0].name: must be 1 to 64 characters of"));
    assert!(only("[[apps]]\nname = \"a\"").contains("apps[0].secret_keys: needs at least one key"));
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\" }]").contains("needs one of file, env or value")
    );
    assert_eq!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", env = \"K\", file = \"k\" }]"),
        "apps[0].secret_keys[0]: has more than one of file, env and value; keep one"
    );
    let misspelt = only("[[apps]]\nname = \"a\"\nsecret_key = \"hunter2hunter2\"");
    assert!(misspelt.contains("unknown key `apps[0].secret_key`; did you mean `apps[0].secret_keys`?"), "{misspelt}");
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", file = \"/no/such/file\" }]")
            .contains("apps[0].secret_keys[0].file: the file cannot be read: No such file")
    );
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", env = \"NO_SUCH_VARIABLE\" }]")
            .contains("apps[0].secret_keys[0].env: the environment variable NO_SUCH_VARIABLE is not set")
    );
    assert!(
        only("[[apps]]\nname = \"a\"\nsecret_key = 1\nsecret_keys = [{ name = \"k\", value = \"v\" }]")
            .contains("unknown key `apps[0].secret_key`; did you mean `apps[0].secret_keys`?")
    );
    let a_table = "[apps]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"hunter2hunter2\" }]";
    assert_eq!(only(a_table), "apps: must be an array of tables, such as [[apps]] with a name and secret_keys");
    let a_key = "[[apps]]\nname = \"a\"\nsecret_keys = { name = \"k\", value = \"hunter2hunter2\" }";
    assert!(only(a_key).starts_with("apps[0].secret_keys: must be an array of tables, such as [{ name"));
    assert_eq!(only(a_key).lines().count(), 1, "{}", only(a_key));
    let twice = format!("{APP}{APP}");
    assert!(only(&twice).contains("apps[1].name: is already the name of another app"));
    let same = "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"the same\" }, { name = \"k\", value = \"the same\" }]";
    assert!(
        only(same).contains("is already the name of another key")
            && only(same).contains("is the same key as an earlier one")
    );
}

#[test]
fn an_app_may_have_its_own_topics() {
    let sales = APP.replace("name = \"default\"", "name = \"sales\"\ntopic_prefix = \"sales.\"");
    let sales = sales.replace("name = \"sales\"", "name = \"sales\"\napi_version = \"3.6\"");
    let config = load(&format!("{APP}{sales}"), &[]).expect("a configuration");
    assert_eq!(config.policy.apps["sales"].routing.api_version.as_deref(), Some("3.6"));
    let unversioned = load(&sales.replace("3.6", "latest"), &[]).err().expect("mistakes");
    assert!(unversioned[0].starts_with("apps[0].api_version: must be a version"), "{unversioned:?}");
    let topics = config.policy.topics();
    assert_eq!(topics.len(), 95);
    assert!(topics.iter().any(|topic| &**topic == "sales.livechat.incoming_event"));
    let wrong = APP.replace("name = \"default\"", "topic_prefix = \"é\"\nname = \"default\"");
    assert!(load(&wrong, &[]).err().expect("mistakes")[0].starts_with("apps[0].topic_prefix: has characters"));
}

#[test]
fn of_several_apps_each_owns_the_topics_that_no_other_has() {
    let app = |name: &str, prefix: &str| {
        format!(
            "[[apps]]\nname = \"{name}\"\ntopic_prefix = \"{prefix}\"\nsecret_keys = [{{ name = \"k\", value = \"hunter2hunter2\" }}]\n"
        )
    };
    let owners = |file: &str| load(file, &[]).expect("a configuration").policy.topics_by_app();
    assert!(owners(&app("a", "a.")).is_empty(), "one alone shares with no other");
    let actions = "[topics.actions]\nincoming_chat = \"chats\"\nincoming_event = \"chats\"\n";
    let owners = owners(&[actions, &app("a", "a."), &app("b", ""), &app("c", "")].concat());
    let owner = |topic: &str| owners.get(topic).map(|app| &**app);
    assert_eq!(owner("a.livechat.agent_created"), Some("a"));
    assert_eq!([owner("chats"), owner("livechat.agent_created"), owner("livechat.dead-letter")], [None; 3]);
    assert_eq!(owners.len(), 45);
}

#[test]
fn a_topic_that_a_rule_names_is_an_apps_only_where_its_rules_name_that_app_alone() {
    let app = |name: &str| {
        format!(
            "[[apps]]\nname = \"{name}\"\ntopic_prefix = \"{name}.\"\nsecret_keys = [{{ name = \"k\", value = \"hunter2hunter2\" }}]\n"
        )
    };
    let rules = [
        ("app = \"b\"", "a.livechat.incoming_event"),
        ("app = \"a\"", "a.livechat.incoming_chat"),
        ("app = \"b\"", "of-b"),
        ("app = [\"b\"]\nchat = \"C\"", "of-b"),
        ("app = \"b\"", "of-both"),
        ("app = \"a\"", "of-both"),
        ("app = \"b\"", "of-both"),
        ("app = [\"a\", \"b\"]", "of-several"),
        ("chat = \"C\"", "of-a-chat"),
        ("chat = \"C\"\nuntil = 2020-01-01T00:00:00Z", "a.livechat.agent_created"),
        ("app = \"a\"\nuntil = 2020-01-01T00:00:00Z", "past"),
    ];
    let rule = |(i, (criteria, topic)): (usize, (&str, &str))| {
        format!("[[rules]]\nname = \"{i}\"\n{criteria}\ndo = \"topic\"\ntopic = \"{topic}\"\n")
    };
    let rules: String = rules.into_iter().enumerate().map(rule).collect();
    let policy = load(&[app("a"), app("b"), rules].concat(), &[]).expect("a configuration").policy;
    let owners = policy.topics_by_app();
    let owner = |topic: &str| owners.get(topic).map(|app| &**app);
    assert_eq!(["a.livechat.incoming_chat", "a.livechat.agent_created"].map(owner), [Some("a"); 2]);
    assert_eq!(owner("of-b"), Some("b"));
    assert_eq!(["a.livechat.incoming_event", "of-both", "of-several", "of-a-chat"].map(owner), [None; 4]);
    let topics = policy.topics();
    let has = |name: &str| topics.iter().any(|topic| &**topic == name);
    assert!(has("of-b") && !has("past"), "a rule that is over needs no topic");
}

#[test]
fn only_an_app_with_an_installation_page_has_a_topic_for_installations() {
    let livechat = "[apps.livechat]\nclient_id = \"c\"\nclient_secret = { value = \"s\" }\npublic_url = \"https://hooks.example.com\"\norganizations = [\"o\"]";
    let topic = |more: &str| {
        let config = load(&format!("{APP}\n{livechat}\n{more}"), &[]).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        config.policy.topics().iter().find(|topic| topic.contains("installed")).map(ToString::to_string)
    };
    assert_eq!(topic("page = true"), None);
    assert_eq!(topic("install = { enable_webhooks = false }").as_deref(), Some("livechat.app.installed"));
    let own = "topics.actions = { \"app.installed\" = \"who.has.installed\" }\n";
    let config = load(&format!("{own}{APP}\n{livechat}\ninstall.enable_webhooks = true"), &[]);
    assert!(config.expect("a configuration").policy.topics().contains(&"who.has.installed".into()));
}

#[test]
fn names_that_kafka_takes_for_one_are_refused() {
    let collision = mistakes("[topics.actions]\nincoming_event = \"a.b\"\nincoming_chat = \"a_b\"");
    assert!(collision.iter().any(|m| m.contains("a.b and a_b collide")), "{collision:?}");
    let long = |n: usize| mistakes(&format!("[topics.actions]\nincoming_event = {:?}", "x".repeat(n)));
    assert_eq!(long(249), Vec::<String>::new());
    assert!(long(250)[0].contains("249 bytes at most"));
}

#[test]
fn who_says_who_the_client_is_must_be_named() {
    let server = |text: &str| mistakes(&format!("[server]\n{text}"));
    for right in [
        "client_address = \"peer\"",
        "client_address = \"proxy-protocol\"\ntrusted_proxies = [\"10.0.0.0/8\", \"2001:db8::7\"]",
        "client_networks = [\"203.0.113.0/24\", \"::1\"]",
        "proxy_header_bytes_max = \"232B\"",
        "proxy_header_bytes_max = \"65551B\"",
    ] {
        assert_eq!(server(right), Vec::<String>::new(), "{right}");
    }
    for (wrong, expected) in [
        (
            "client_address = \"forwarded\"",
            "server.trusted_proxies: is empty, but server.client_address is not \"peer\"",
        ),
        ("client_address = \"header\"", "server.client_address: must be one of \"peer\", \"proxy-protocol\""),
        ("trusted_proxies = [\"10.0.0.0/8\", \"example.com\"]", "server.trusted_proxies: its entry 2 is not a network"),
        (
            "trusted_proxies = \"10.0.0.0/8\"",
            "server.trusted_proxies: must be a list of networks, such as [\"10.0.0.0/8\"",
        ),
        ("client_networks = [8]", "server.client_networks: its entry 1 is not a network"),
        ("proxy_header_bytes_max = \"231B\"", "server.proxy_header_bytes_max: must be a size"),
        ("proxy_header_bytes_max = \"65552B\"", "server.proxy_header_bytes_max: must be a size"),
        (
            "client_address = \"forwarded\"\ntrusted_proxies = [\"10.0.0.0/33\"]",
            "server.trusted_proxies: its entry 1 is not a network",
        ),
    ] {
        let found = server(wrong);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{wrong}: {found:?}");
    }
    let set = [("SERVER__CLIENT_ADDRESS", "forwarded"), ("SERVER__TRUSTED_PROXIES", "10.0.0.0/8, ::1")];
    let config = load(APP, &set).expect("a configuration");
    assert!(config.server.clients.trusted_proxies.contains(std::net::Ipv6Addr::LOCALHOST.into()));
    for (file, warned) in [
        ("trusted_proxies = [\"10.0.0.0/8\"]", "server.trusted_proxies: is not used"),
        (
            "client_address = \"forwarded\"\ntrusted_proxies = [\"::/0\"]",
            "server.trusted_proxies: contains all addresses",
        ),
    ] {
        let warnings = load(&format!("[server]\n{file}\n{APP}"), &[]).expect("a configuration").warnings;
        assert!(warnings.len() == 1 && warnings[0].starts_with(warned), "{warnings:?}");
    }
}
