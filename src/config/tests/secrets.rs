//! Secrets: where they are read from, and which are refused.

use secrecy::ExposeSecret as _;

use super::*;

/// The three places, each with this text.
fn places(text: &str, file: &tempfile::NamedTempFile) -> [String; 3] {
    let value = format!("value = {}", toml::Value::from(text));
    [format!("file = {:?}", file.path()), "env = \"KEY\"".to_owned(), value]
}

#[test]
fn what_surrounds_a_secret_is_no_part_of_it_wherever_it_stands() {
    for around in ["two words", "two words\n", "two words\r\n\n", "\u{feff}two words", " \ttwo words\t "] {
        let file = holding(around);
        for place in places(around, &file) {
            let config = read(&with_key(&place), &[("KEY", around.as_bytes())], Need::Everything);
            assert!(accepts(&config.expect("a configuration"), "two words"), "{place}: {around:?}");
        }
    }
}

#[test]
fn a_secret_that_cannot_be_right_is_reported_at_the_start_wherever_it_stands() {
    for (wrong, why) in [
        ("", "is empty"),
        ("\u{feff} \r\n", "is empty"),
        ("two\nlines", "has a control character in it"),
        ("h\0u\0n\0t\0e\0r\0", "has a control character in it"),
        ("hunter2", "has fewer than 8 bytes"),
    ] {
        let file = holding(wrong);
        for place in places(wrong, &file) {
            // A variable cannot have a NUL.
            let variable = wrong.replace('\0', "\u{1}");
            let found = refused(&with_key(&place), &[("KEY", variable.as_bytes())]);
            assert!(found.lines.len() == 1 && found.lines[0].contains(why), "{place}: {wrong:?}: {found:?}");
            assert!(!found.may_pass);
        }
    }
}

#[test]
fn what_is_wrong_with_a_secret_is_said_of_what_holds_it() {
    let file = holding("");
    let env = "env = \"LIVECHAT_KEY\"";
    let short = |text: &str| refused(&with_key(env), &[("LIVECHAT_KEY", text.as_bytes())]).without_places();
    let place = "apps[0].secret_keys[0]";
    assert_eq!(short(""), [format!("{place}.env: the environment variable LIVECHAT_KEY is empty")]);
    let why = "has fewer than 8 bytes and could be guessed";
    assert_eq!(short("hunter2"), [format!("{place}: the environment variable LIVECHAT_KEY {why}")]);
    let found = refused(&with_key(&format!("file = {:?}", file.path())), &[]).without_places();
    assert_eq!(found, [format!("{place}.file: the file is empty")]);
    let found = refused(&with_key("env = \"hunter2\""), &[("hunter2", b"")]).without_places();
    assert_eq!(found, [format!("{place}.env: the environment variable of this name is empty")]);
}

#[test]
fn a_certificate_may_have_lines_and_a_password_may_not() {
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let of = |name: &str| {
        let file = with_app(&format!("[kafka.properties]\n\"{name}\" = {{ env = \"PEM\" }}"));
        read(&file, &[("PEM", pem.as_bytes())], Need::Everything)
    };
    let certificate = of("ssl.certificate.pem").expect("a configuration");
    assert_eq!(certificate.kafka.properties[0].1.expose_secret(), pem.trim_end());
    assert!(of("sasl.password").err().expect("a mistake").lines[0].contains("has a control character in it"));
}

#[test]
fn secret_keys_that_are_short_are_warned_of() {
    let warnings = |bytes: usize| load(&with_key(&format!("value = \"{}\"", "x".repeat(bytes))), &[]);
    assert!(warnings(7).is_err());
    for short in [8, 15] {
        let expected = "apps[0].secret_keys[0]: has fewer than 16 bytes; a longer key is harder to guess";
        assert_eq!(warnings(short).expect("a configuration").warnings, [expected]);
    }
    assert_eq!(warnings(16).expect("a configuration").warnings, Vec::<String>::new());
}

#[test]
fn a_token_of_the_admin_listener_fits_into_a_header_and_has_a_length() {
    let with = |token: &str| with_app(&format!("[admin]\ntoken = {{ value = \"{token}\" }}"));
    for wrong in ["short-7", "two words long", "fünf und zwanzig", &"x".repeat(1025)] {
        let lines = refused(&with(wrong), &[]).without_places();
        assert!(lines.len() == 1 && lines[0].starts_with("admin.token: must be 8 to 1024 characters of"), "{lines:?}");
    }
    for (bytes, warnings) in [(8, 1), (15, 1), (16, 0), (1024, 0)] {
        let config = load(&with(&"x".repeat(bytes)), &[]).expect("a configuration");
        assert_eq!(config.warnings.len(), warnings, "{:?}", config.warnings);
        assert!(config.admin_token.is_some_and(|token| token.equals(&"x".repeat(bytes))));
    }
    assert!(load(&with_app(""), &[]).expect("a configuration").admin_token.is_none());
}

#[test]
fn hashed_keys_and_app_webhooks_need_secrets_that_cannot_be_guessed() {
    let hashed = |secret: &str| mistakes(&format!("[topics]\nkey = \"hashed\"\n{secret}"));
    assert_eq!(hashed("key_secret = \"0123456789abcdef\""), Vec::<String>::new());
    assert!(hashed("key_secret = \"0123456789abcde\"")[0].starts_with("topics.key_secret: is required"));
    assert!(hashed("")[0].starts_with("topics.key_secret: is required"));
    assert!(mistakes("[topics]\nkey = \"secret\"")[0].contains("must be one of \"plain\", \"hashed\""));

    let token = |token: &str| load(&format!("[app_webhooks]\ntoken = \"{token}\"\n{APP}"), &[]);
    let config = token(&"t".repeat(32)).expect("a configuration");
    assert_eq!(config.policy.topics().len(), 54);
    assert!(token(&"t".repeat(256)).is_ok());
    for wrong in ["t".repeat(31), "t".repeat(257), format!("{}/", "t".repeat(32))] {
        assert!(
            token(&wrong).err().expect("mistakes")[0].starts_with("app_webhooks.token: must be 32 to 256 characters")
        );
    }
    for reserved in ["app-webhooks", "unknown"] {
        let twin = format!(
            "[[apps]]\nname = \"{reserved}\"\nsecret_keys = [{{ name = \"a\", value = \"hunter2hunter2hunter2\" }}]"
        );
        let mistake = format!("must not be {reserved}: metrics use that name");
        assert!(load(&twin, &[]).err().expect("a mistake")[0].contains(&mistake));
    }
    assert!(load(APP, &[]).expect("a configuration").policy.app_webhooks.is_none());
}
