//! The file, the environment and the defaults: which one sets a key, and variables that set none.

use secrecy::ExposeSecret as _;

use super::*;

#[test]
fn the_environment_goes_over_the_file_and_the_file_over_the_defaults() {
    let file = format!(
        "[kafka]\nbrokers = \"file:1\"\nclient_id = \"file\"\n[kafka.properties]\n\"security.protocol\" = \"ssl\"\n{APP}"
    );
    let config = load(
        &file,
        &[
            ("KAFKA__BROKERS", "env:1,env:2"),
            ("KAFKA__PROPERTIES__SASL_PASSWORD", "p"),
            ("TOPICS__SETTINGS__RETENTION_MS", "60000"),
            ("APPS__1__NAME", "second"),
            ("APPS__1__SECRET_KEYS__0__NAME", "k"),
            ("APPS__1__SECRET_KEYS__0__VALUE", "a key of the second"),
            ("SERVER__CONNECTIONS_MAX", "5"),
        ],
    );
    let config = config.expect("a configuration");
    assert_eq!((config.kafka.brokers.as_str(), config.kafka.client_id.as_str()), ("env:1,env:2", "file"));
    let properties: Vec<_> =
        config.kafka.properties.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
    assert_eq!(properties, [("sasl.password", "p"), ("security.protocol", "ssl")]);
    assert_eq!(config.topics.settings["retention.ms"], "60000");
    assert_eq!(config.topics.settings["max.message.bytes"], "3145728");
    assert_eq!(config.policy.apps.len(), 2);
    assert!(config.policy.endpoint("/webhooks").is_none(), "which of the two?");
    assert_eq!(config.server.listener.limits.connections_max, 5);
}

#[test]
fn every_property_and_setting_of_the_environment_counts_beside_those_of_the_file() {
    let properties = "[kafka.properties]\n\"sasl.mechanisms\" = \"PLAIN\"\n\"retries\" = 7\n";
    let file = with_app(&format!("{properties}[topics.settings]\n\"retention.ms\" = 1"));
    let set = [
        ("KAFKA__PROPERTIES__SECURITY_PROTOCOL", "sasl_ssl"),
        ("KAFKA__PROPERTIES__SASL_MECHANISM", "SCRAM-SHA-256"),
        ("KAFKA__PROPERTIES__SASL_USERNAME", "relay"),
        ("TOPICS__SETTINGS__RETENTION_MS", "2"),
        ("TOPICS__SETTINGS__SEGMENT_MS", "3"),
    ];
    let config = load(&file, &set).expect("a configuration");
    let mut properties: Vec<_> = config.kafka.properties.iter().map(|(n, v)| (n.as_str(), v.expose_secret())).collect();
    properties.sort_unstable();
    let expected = [("sasl.mechanism", "SCRAM-SHA-256"), ("sasl.username", "relay"), ("security.protocol", "sasl_ssl")];
    assert_eq!(properties, [&[("retries", "7")], &expected[..]].concat());
    let settings: Vec<_> = config.topics.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(settings, [("max.message.bytes", "3145728"), ("retention.ms", "2"), ("segment.ms", "3")]);

    let refused = load(APP, &[("KAFKA__PROPERTIES__ACKS", "1"), ("KAFKA__PROPERTIES__RETRIES", "7")]);
    let refused = refused.err().expect("a mistake");
    assert!(refused[0].contains("\"acks\" (LIVECHAT_RELAY__KAFKA__PROPERTIES__ACKS): cannot be set"), "{refused:?}");
}

#[test]
fn what_the_environment_sets_twice_is_a_mistake_that_names_both_variables() {
    for [one, other] in [
        ["KAFKA__PROPERTIES__SASL_MECHANISM", "KAFKA__PROPERTIES__SASL_MECHANISMS"],
        ["KAFKA__PROPERTIES__RETRIES", "KAFKA__PROPERTIES__TOPIC_RETRIES"],
        ["KAFKA__PROPERTIES__SASL_PASSWORD", "KAFKA__PROPERTIES__SASL_PASSWORD__FILE"],
        ["APPS__0__SECRET_KEYS__0__ENV", "APPS__0__SECRET_KEYS__0__FILE"],
        ["SERVER__LISTEN", "SERVER__listen"],
    ] {
        let found = load(APP, &[(one, "1"), (other, "1")]).err().expect("mistakes").join("\n");
        let both = format!("LIVECHAT_RELAY__{other}: sets the same key as LIVECHAT_RELAY__{one}");
        assert!(found.contains(&both), "{found}");
    }
}

#[test]
fn the_environment_sets_every_secret_or_where_it_stands_and_the_file_says_nothing_then() {
    let secret = holding("0123456789abcdef0123456789abcdef");
    let path = secret.path().to_str().expect("a path").as_bytes();
    let file = [
        "[topics]\nkey = \"hashed\"\nkey_secret = { file = \"/no/such/file\" }",
        "[app_webhooks]\ntoken = \"short\"",
        "[kafka.properties]\n\"sasl.password\" = { env = \"NO\" }",
        &with_key("env = \"NO\""),
    ];
    let set: [(&str, &[u8]); 5] = [
        ("LIVECHAT_RELAY__TOPICS__KEY_SECRET__FILE", path),
        ("LIVECHAT_RELAY__APP_WEBHOOKS__TOKEN__ENV", b"TOKEN"),
        ("LIVECHAT_RELAY__KAFKA__PROPERTIES__SASL_PASSWORD__FILE", path),
        ("LIVECHAT_RELAY__APPS__0__SECRET_KEYS__0__FILE", path),
        ("TOKEN", b"abcdef0123456789abcdef0123456789"),
    ];
    let config = read(&file.join("\n"), &set, Need::Everything).expect("a configuration");
    let [(name, password)] = &config.kafka.properties[..] else { panic!("one property") };
    assert_eq!((name.as_str(), password.expose_secret()), ("sasl.password", "0123456789abcdef0123456789abcdef"));
    assert!(config.policy.app_webhooks.is_some() && accepts(&config, "0123456789abcdef0123456789abcdef"));
}

#[test]
fn a_variable_that_is_no_text_is_a_mistake_only_where_it_is_ours() {
    let config = read(APP, &[("OF_OTHERS", b"\xff"), ("LANG", b"C")], Need::Everything).expect("a configuration");
    assert_eq!(config.warnings, Vec::<String>::new());
    let ours = refused(APP, &[("LIVECHAT_RELAY__KAFKA__BROKERS", b"hunter2\xff")]);
    assert_eq!(ours.without_places(), ["LIVECHAT_RELAY__KAFKA__BROKERS: is not UTF-8"]);
    let named = refused(&with_key("env = \"KEY\""), &[("KEY", b"hunter2\xff")]);
    assert_eq!(
        named.without_places(),
        ["apps[0].secret_keys[0].env: the environment variable of this name is not UTF-8"]
    );
}

#[test]
fn variables_that_set_nothing_are_warned_of_with_what_was_meant() {
    let of = |name: &str| read(APP, &[(name, b"x")], Need::Everything).expect("a configuration").warnings.join("\n");
    for (name, meant) in [
        ("LIVECHAT_RELAY_KAFKA_BROKERS", "did you mean LIVECHAT_RELAY__KAFKA__BROKERS?"),
        ("LIVECHAT_RELAY_SPOOL__DIRECTORY", "did you mean LIVECHAT_RELAY__SPOOL__DIRECTORY?"),
        ("LIVECHAT_RELAY_CONFG", "did you mean LIVECHAT_RELAY_CONFIG?"),
        ("LIVECHAT_RELAY_NOTHING_OF_OURS", "the relay does not read this variable"),
        ("RUST_LOG", "set log.filter"),
    ] {
        assert!(of(name).contains(name) && of(name).contains(meant), "{name}: {}", of(name));
    }
    for name in [
        "LIVECHAT_RELAY_CONFIG",
        "LIVECHAT_RELAY_SERVICE_HOST",
        "LIVECHAT_RELAY_PORT_8080_TCP_ADDR",
        "LIVECHAT_RELAY_ADMIN_PORT",
        "LIVECHAT_SECRET_KEY",
    ] {
        assert_eq!(of(name), "", "{name}");
    }
    let unknown = load(APP, &[("KAFKA__BROKER", "a:1")]).err().expect("a mistake");
    assert_eq!(unknown, ["LIVECHAT_RELAY__KAFKA__BROKER: unknown key `kafka.broker`; did you mean `kafka.brokers`?"]);
}

#[test]
fn text_from_the_environment_is_read_as_the_keys_type() {
    let config = load(APP, &[("SERVER__CONNECTIONS_MAX", "5"), ("TOPICS__CREATE", "false")]).expect("a configuration");
    assert_eq!((config.server.listener.limits.connections_max, config.topics.create), (5, false));
    let livechat = [
        ("APPS__0__LIVECHAT__CLIENT_ID", "c"),
        ("APPS__0__LIVECHAT__PUBLIC_URL", "https://hooks.example.com"),
        ("APPS__0__LIVECHAT__WEBHOOKS__0__ACTIONS", "bots,incoming_chat"),
        ("APPS__0__LIVECHAT__PAGE", "true"),
        ("APPS__0__LIVECHAT__ORGANIZATIONS", "o, p"),
    ];
    let app = load(APP, &livechat).expect("a configuration").livechat.apps.remove(0);
    assert_eq!((app.wanted().len(), app.page, app.organizations.len()), (4, true, 2));
    let wrong = [("APPS__0__LIVECHAT__PAGE", "yes"), ("APPS__0__LIVECHAT__ORGANIZATIONS", "")];
    for (name, text) in wrong {
        let set: Vec<_> = livechat.iter().filter(|(other, _)| *other != name).copied().chain([(name, text)]).collect();
        assert_eq!(load(APP, &set).err().map(|found| found.len()), Some(1), "{name}={text}");
    }
    let wrong = [("SERVER__CONNECTIONS_MAX", "true"), ("SERVER__CONNECTIONS_MAX", "1.5"), ("TOPICS__CREATE", "yes")];
    for (name, text) in wrong {
        assert_eq!(load(APP, &[(name, text)]).err().map(|found| found.len()), Some(1), "{name}={text}");
    }
}

#[test]
fn without_a_file_and_without_apps_a_command_says_that_there_is_no_file() {
    let none = Config::load(None, [], Need::Everything).err().expect("a mistake").lines;
    assert!(none.len() == 1 && none[0].contains("no configuration file is given: add -c FILE, or"), "{none:?}");
    assert!(!load("", &[]).err().expect("a mistake")[0].contains("no configuration file"));
}
