//! The secret keys of an app: a directory of them, and their dates.

use super::*;
use crate::event::Key;

/// An app whose keys stand in `directory`, with more keys of the table where wanted.
fn with_directory(directory: &Path, more: &str) -> String {
    format!("[[apps]]\nname = \"a\"\nsecret_keys = {{ directory = {directory:?}{more} }}\n")
}

fn key_names(config: &Config) -> Vec<&str> {
    config.policy.apps["a"].keyring.keys().map(Key::name).collect()
}

#[test]
fn a_directory_has_a_key_a_file_and_what_else_is_in_it_is_left_out_and_remarked() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
    let load = |more: &str| load(&with_directory(directory.path(), more), &[]);
    assert!(load("").err().expect("a mistake")[0].starts_with("apps[0].secret_keys.directory: contains no keys"));
    // As Kubernetes mounts a secret.
    std::fs::create_dir(directory.path().join("..2026_11")).expect("a directory");
    std::os::unix::fs::symlink("..2026_11", directory.path().join("..data")).expect("a link");
    write("..2026_11/2026-10", "the key of october\n");
    std::os::unix::fs::symlink("..data/2026-10", directory.path().join("2026-10")).expect("a link");
    write("2026-11", "the key of november");
    std::fs::create_dir(directory.path().join("old")).expect("a directory");
    for left_out in [".hidden", "2026-11~", "2026-11.swp"] {
        write(left_out, "no key");
    }
    let config = load("").expect("a configuration");
    assert_eq!(key_names(&config), ["2026-10", "2026-11"]);
    assert!(accepts(&config, "the key of october") && accepts(&config, "the key of november"));
    assert!(!accepts(&config, "no key"));
    let expected =
        "apps[0].secret_keys.directory: these are ignored: ..2026_11, ..data, .hidden, 2026-11.swp, 2026-11~, old";
    assert_eq!((config.ignored, config.warnings), (vec![expected.to_owned()], vec![]));

    for (name, text, expected) in [
        ("empty", "\n", "apps[0].secret_keys.directory: empty is empty"),
        ("short", "1234567", "apps[0].secret_keys.directory: short has fewer than 8 bytes"),
        ("twin", "the key of november", "apps[0].secret_keys.directory: twin is the same key as 2026-11"),
        ("lines", "the key\nof november", "apps[0].secret_keys.directory: lines has a control character"),
        (&"n".repeat(65), "a key with a long name", "apps[0].secret_keys.directory: a file's name must be"),
    ] {
        write(name, text);
        let found = load("").err().expect("a mistake");
        assert!(found.len() == 1 && found[0].starts_with(expected), "{name}: {found:?}");
        std::fs::remove_file(directory.path().join(name)).expect("removed");
    }
    std::os::unix::fs::symlink("nowhere", directory.path().join("broken")).expect("a link");
    assert!(load("").err().expect("a mistake")[0].contains("directory: broken: the file cannot be read: No such file"));
    std::fs::remove_file(directory.path().join("broken")).expect("removed");
    std::os::unix::fs::symlink("/dev/zero", directory.path().join("device")).expect("a link");
    assert!(load("").err().expect("a mistake")[0].contains("directory: device is not a regular file"));
    std::fs::remove_file(directory.path().join("device")).expect("removed");
    assert!(load(", value = \"x\"").err().expect("a mistake")[0].contains("unknown key `apps[0].secret_keys.value`"));
}

#[test]
fn a_directory_of_keys_has_its_limits_and_may_be_late() {
    let directory = tempfile::tempdir().expect("a directory");
    let load = || load(&with_directory(directory.path(), ""), &[]);
    for n in 0..64 {
        std::fs::write(directory.path().join(n.to_string()), format!("the key number {n}")).expect("written");
    }
    assert_eq!(load().map(|config| key_names(&config).len()), Ok(64));
    std::fs::write(directory.path().join("more"), "one key more than there may be").expect("written");
    assert_eq!(load().err().expect("a mistake"), ["apps[0].secret_keys.directory: has more than 64 files"]);
    let listed = |n: usize| {
        let keys: String = (0..n).map(|n| format!("{{ name = \"{n}\", value = \"the key number {n}\" }},")).collect();
        self::load(&format!("[[apps]]\nname = \"a\"\nsecret_keys = [{keys}]"), &[]).is_ok()
    };
    assert!(listed(64) && !listed(65));

    let empty = tempfile::tempdir().expect("a directory");
    assert!(refused(&with_directory(empty.path(), ""), &[]).may_pass, "its volume may not be mounted yet");
    let missing = refused(&with_directory(Path::new("/no/such/directory"), ""), &[]);
    assert!(missing.may_pass && missing.lines[0].contains("directory: the directory cannot be read: No such"));
    let file = refused(&with_directory(Path::new("/dev/null"), ""), &[]);
    assert!(file.lines[0].contains("the directory cannot be read: Not a directory"), "{file}");
    let unread = read(&with_directory(Path::new("/no/such/directory"), ""), &[], Need::Kafka);
    assert!(unread.is_ok(), "a command that needs no keys reads none");
}

#[test]
fn keys_have_dates_in_their_table_or_beside_their_directory() {
    let validity = |config: &Config| -> Vec<_> {
        let text = |date: Option<jiff::Timestamp>| date.map_or("-".to_owned(), |date| date.to_string());
        let keys = config.policy.apps["a"].keyring.keys().map(Key::validity);
        keys.map(|dates| format!("{} {}", text(dates.not_before), text(dates.not_after))).collect()
    };
    let in_table = |dates: &str| load(&with_key(&format!("value = \"0123456789abcdef\"{dates}")), &[]);
    let both = ", not_before = 2026-11-01T00:00:00+01:00, not_after = \"2026-12-31T00:00:00Z\"";
    assert_eq!(validity(&in_table(both).expect("a configuration")), ["2026-10-31T23:00:00Z 2026-12-31T00:00:00Z"]);
    for (wrong, expected) in [
        ("not_after = 2026-12-31", "apps[0].secret_keys[0].not_after: must be a date with a time and its offset"),
        ("not_after = 2026-12-31T00:00:00", "apps[0].secret_keys[0].not_after: must be a date with a time"),
        ("not_before = 5", "apps[0].secret_keys[0].not_before: must be a date with a time"),
        ("not_befor = 5", "unknown key `apps[0].secret_keys[0].not_befor`; did you mean"),
        (
            "not_before = 2026-12-31T00:00:00Z, not_after = 2026-12-31T00:00:00Z",
            "apps[0].secret_keys[0].not_after: is not later than not_before",
        ),
    ] {
        let found = in_table(&format!(", {wrong}")).err().expect("a mistake");
        assert!(found.len() == 1 && found[0].starts_with(expected), "{wrong}: {found:?}");
    }

    let directory = tempfile::tempdir().expect("a directory");
    for name in ["2026-11", "2026.12"] {
        std::fs::write(directory.path().join(name), format!("the key of {name}")).expect("written");
    }
    let beside = |dates: &str| load(&with_directory(directory.path(), &format!(", {dates}")), &[]);
    let config = beside(
        "not_after = { \"2026-11\" = 2026-12-31T00:00:00Z }, not_before = { \"2026.12\" = 2026-12-01T00:00:00Z }",
    );
    assert_eq!(validity(&config.expect("a configuration")), ["- 2026-12-31T00:00:00Z", "2026-12-01T00:00:00Z -"]);
    // A key that was removed leaves its date behind.
    let left = beside("not_after = { \"2026-10\" = 2026-12-31T00:00:00Z }").expect("a configuration");
    let expected = "apps[0].secret_keys.not_after.2026-10: the directory has no such key; did you mean \"2026-11\"?";
    assert_eq!(left.warnings, [expected]);
    let both = "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"0123456789abcdef\" }]";
    let mixed = [("APPS__0__SECRET_KEYS__DIRECTORY", directory.path().to_str().expect("text"))];
    assert!(load(both, &mixed).err().expect("a mistake")[0].contains("has both keys and a directory; keep one"));
}

#[test]
fn what_the_dates_bring_is_noticed() {
    let now: jiff::Timestamp = "2026-12-01T00:00:00Z".parse().expect("a time");
    let notices = |keys: &[&str]| {
        let keys: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(n, dates)| format!("{{ name = \"k{n}\", value = \"the key number {n}\"{dates} }}"))
            .collect();
        let file = format!("[[apps]]\nname = \"a\"\nsecret_keys = [{}]\n", keys.join(", "));
        let notices = load(&file, &[]).expect("a configuration").policy.notices(now);
        notices
            .into_iter()
            .map(|notice| format!("{} {}", if notice.is_failure { "FAIL" } else { "warn" }, notice.text))
            .collect::<Vec<_>>()
    };
    let after = |date: &str| format!(", not_after = {date}");
    let (ended, soon, late) =
        (after("2026-11-30T00:00:00Z"), after("2026-12-14T00:00:00Z"), after("2026-12-15T00:00:01Z"));
    assert_eq!(notices(&[&late]), [""; 0]);
    assert_eq!(notices(&[&ended, ""]), ["warn app a: the secret key k0 expired on 2026-11-30T00:00:00Z; remove it"]);
    let expires = "warn app a: the secret key k0 expires on 2026-12-14T00:00:00Z; replace the registrations at LiveChat that use it";
    assert_eq!(notices(&[&soon, &late]), [expires]);
    let gap = "FAIL app a: no secret key will be valid from 2026-12-14T00:00:00Z on; add one before then";
    assert_eq!(notices(&[&soon]), [expires, gap]);
    assert!(
        notices(&[&ended])[1]
            .starts_with("FAIL app a: no secret key is valid now, so all its webhooks are answered 401")
    );
    assert_eq!(notices(&[", not_before = 2026-12-02T00:00:00Z"]).len(), 1);
}
