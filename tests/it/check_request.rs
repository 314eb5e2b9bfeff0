//! `check --request`: which secret key a kept webhook has, or why none fits.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::support::relay::SECRET;
use crate::support::{data, with_secret};

const WEST: &str = "s3cr3t-of-the-west-app";
const OLD: &str = "s3cr3t-that-has-ended";

#[test]
fn it_names_the_key_that_fits_or_says_why_none_does_and_prints_no_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("relay.toml");
    let text = format!(
        r#"
        [[apps]]
        name = "east"
        secret_keys = [{{ name = "2026-11", value = "{SECRET}" }}, {{ name = "2025", value = "{OLD}", not_after = 2025-01-01T00:00:00Z }}]
        [[apps]]
        name = "west"
        topic_prefix = "west."
        secret_keys = [{{ name = "only", value = "{WEST}" }}]
        [topics.actions]
        thread_tagged = "drop"
        "#
    );
    std::fs::write(&config, text).expect("a file");
    let check = |arguments: &[&str], body: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        command.args(["check", "--json", "--config"]).arg(&config).args(["--request", "-"]).args(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a child");
        child.stdin.take().expect("a pipe").write_all(body.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("its end");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(![SECRET, WEST, OLD].iter().any(|key| said.contains(key)), "{said}");
        (output.status.code(), said)
    };
    let body = |key: &str| with_secret(&data("C1", 1), key);
    let tagged =
        with_secret(r#"{"action":"thread_tagged","payload":{"chat_id":"C","thread_id":"T","tag":"t"}}"#, SECRET);
    for (arguments, body, expected) in [
        (&[][..], body(SECRET), Ok(["2026-11 of app east", "incoming_event", "livechat.incoming_event"])),
        (&[], body(WEST), Ok(["only of app west", "incoming_event", "west.livechat.incoming_event"])),
        (
            &["--path", "/webhooks/east"],
            tagged,
            Ok(["2026-11 of app east", "thread_tagged", "none: such events are dropped"]),
        ),
        (&["--app", "east"], body(WEST), Err("it is only of app west, and the webhook was sent to app east")),
        (&["--app", "east"], body(OLD), Err("2025 (until 2025-01-01T00:00:00Z) of app east fits, and has ended")),
        (&["--path", "/webhooks/esat"], body(SECRET), Err("register /webhooks/east")),
        (&["--path", "/webhook"], body(SECRET), Err("answered 404")),
        (&["--app", "esat"], body(SECRET), Err("there is no app esat")),
        (&["--app", "east"], body("s3cr3t-of-a-stranger"), Err("no key of any app fits")),
        (&["--app", "east"], data("C1", 1), Err("no string \\\"secret_key\\\"")),
        (&[], data("C1", 1), Err("no string \\\"secret_key\\\"")),
        (&["--path", "/webhooks/esat"], data("C1", 1), Err("no string \\\"secret_key\\\"")),
        (
            &[],
            "{".to_owned(),
            Err("the body ends before its JSON is complete: see line 1, column 1: it is answered 400"),
        ),
    ] {
        let (code, said) = check(arguments, &body);
        match expected {
            Ok(parts) => {
                assert_eq!(code, Some(0), "{said}");
                parts
                    .iter()
                    .for_each(|part| assert!(said.contains(&format!("\"detail\": \"{part}\"")), "{part}: {said}"));
            }
            Err(part) => assert!(code == Some(1) && said.contains(part), "{part}: {said}"),
        }
    }
}
