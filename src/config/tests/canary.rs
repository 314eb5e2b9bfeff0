//! No mistake shows a value that may be a secret: a canary in every place where one may be.

use super::*;

/// Stands where a secret might stand by mistake.
const CANARY: &str = "CANARY7canary";

/// A value of each kind, and the places where a secret may stand.
fn canaries() -> [String; 7] {
    [
        format!("\"{CANARY}\""),
        format!("[\"{CANARY}\"]"),
        format!("{{ x = \"{CANARY}\" }}"),
        format!("{{ file = \"{CANARY}\" }}"),
        format!("{{ env = \"{CANARY}\" }}"),
        format!("{{ file = \"{CANARY}\", value = \"{CANARY}\" }}"),
        format!("{{ value = [\"{CANARY}\"] }}"),
    ]
}

/// Fails where a mistake has the canary in it; whether there was a mistake.
fn is_refused_without_the_canary(file: &str, env: &[(&str, &[u8])]) -> bool {
    let Err(mistakes) = read(file, env, Need::Everything) else { return false };
    assert!(!mistakes.to_string().contains(CANARY), "{file}\n{mistakes}");
    true
}

#[test]
fn no_mistake_has_a_value_in_it_that_may_be_a_secret() {
    let mut keys = Vec::new();
    for (section, table) in DEFAULTS.parse::<toml::Table>().expect("TOML") {
        let names = table.as_table().expect("a section").keys();
        keys.extend(names.map(|name| format!("{section}.{name}")));
        keys.push(section);
    }
    keys.extend(
        ["spool.directory", "topics.key_secret", "app_webhooks.token", "admin.token", "servr.listen"]
            .map(str::to_owned),
    );
    for key in &keys {
        let variable = format!("LIVECHAT_RELAY__{}", key.to_uppercase().replace('.', "__"));
        for canary in canaries() {
            is_refused_without_the_canary(&format!("{key} = {canary}\n{APP}"), &[]);
            is_refused_without_the_canary(APP, &[(&variable, canary.as_bytes())]);
        }
        let twice: [(&str, &[u8]); 2] = [(&variable, CANARY.as_bytes()), (&variable.to_lowercase(), CANARY.as_bytes())];
        is_refused_without_the_canary(APP, &twice);
        assert!(
            is_refused_without_the_canary(APP, &[(&variable, &[CANARY.as_bytes(), b"\xff"].concat())]),
            "{variable}"
        );
    }
    assert!(keys.len() > 60, "{keys:?}");
}

#[test]
fn no_mistake_has_the_value_of_a_property_in_it() {
    for name in [
        "acks",
        "bootstrap.servers",
        "client.rack",
        "compression.codec",
        "debug",
        "error_cb",
        "sasl.jaas.config",
        "sasl.mechanism",
        "sasl.password",
        "sasl.pasword",
        "security.protocol",
        "socket.keepalive.enable",
        "socket.timeout.ms",
        "ssl.ca.location",
        "ssl.cipher.suites",
        "ssl.keystore.location",
        "ssl.truststore.location",
        "topic.blacklist",
    ] {
        for canary in canaries() {
            is_refused_without_the_canary(&with_app(&format!("[kafka.properties]\n\"{name}\" = {canary}")), &[]);
            is_refused_without_the_canary(&with_app(&format!("[kafka.properties]\n{name} = {canary}")), &[]);
        }
        for value in
            [CANARY.to_owned(), format!("all,{CANARY}"), format!("^({CANARY}"), format!("{CANARY} not supported")]
        {
            let file = with_app(&format!("[kafka.properties]\n\"{name}\" = {{ env = \"PW\" }}"));
            is_refused_without_the_canary(&file, &[("PW", value.as_bytes())]);
        }
    }
    assert!(is_refused_without_the_canary(
        &with_app(&format!("[kafka.properties]\n\"sasl.pasword\" = \"{CANARY}\"")),
        &[]
    ));
}

#[test]
fn no_mistake_has_the_value_of_an_app_in_it() {
    for canary in canaries() {
        let wrong = [
            format!("apps = {canary}"),
            format!("[[apps]]\nname = {canary}"),
            format!("[[apps]]\nsecret_key = {canary}"),
            format!("[[apps]]\nsecret_keys = {canary}"),
            format!("[[apps]]\nname = \"a\"\nsecret_keys = {{ directory = {canary} }}"),
            format!("[[apps]]\nname = \"a\"\nsecret_keys = {{ directory = \"/no\", not_after = {canary} }}"),
            with_key(&format!("value = \"hunter2hunter2hunter2\", not_after = {canary}")),
            format!("[[apps]]\nsecret_keys = [{canary}, {canary}]"),
            format!("[[apps]]\nname = \"a\"\nsecret_keys = [{{ name = {canary} }}, {{ name = {canary} }}]"),
            format!("[[apps]]\nname = \"a b\"\ntopic_prefix = {canary}\napi_version = {canary}"),
            with_key(&format!("valu = {canary}")),
            with_app(&format!("rules = {canary}")),
            with_app(&format!(
                "[[rules]]\nname = \"r\"\napp = {canary}\naction = {canary}\ndo = {canary}\nrate = {canary}\nuntil = {canary}"
            )),
            with_key(&format!("value = [{canary}]")),
            with_key(&format!("file = {canary}, env = {canary}")),
            format!("[[apps]]\nname = \"{CANARY}\"\n[[apps]]\nname = \"{CANARY}\"\n"),
        ];
        for file in wrong {
            assert!(is_refused_without_the_canary(&file, &[]), "{file}");
        }
    }
}

#[test]
fn no_syntax_error_has_a_value_in_it() {
    let whole = format!("[a]\n\"b\" = \"{CANARY}\"\nc = '''{CANARY}'''\nd = {CANARY}\n");
    let mut wrong = 0;
    for end in 0..whole.len() {
        let (before, after) = whole.split_at(end);
        for more in ["", "\"", "\n", "\0", "]", "\\x", " = ", "\u{7f}"] {
            for file in [format!("{before}{more}"), format!("{before}{more}{after}")] {
                wrong += usize::from(is_refused_without_the_canary(&file, &[]));
            }
        }
    }
    assert!(wrong > 1000, "{wrong} mistakes");
}
