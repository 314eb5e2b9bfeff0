//! LiveChat's App Webhooks: only on a path that nobody can guess, and only where they are switched on.

use crate::support::relay::{Relay, SECRET};
use crate::support::{chat_id, http, kafka};

const TOKEN: &str = "an-unguessable-path-of-the-tests-0123456789";

fn installed(organization: &str) -> String {
    format!(
        r#"{{"applicationID":"a7","applicationName":"Tea Timer","clientID":"c1","date":"2026-11-22T15:29:53+02:00","event":"application_installed","licenseID":1234,"organizationID":"{organization}","payload":{{"applicationID":"a7"}},"userID":"u1"}}"#
    )
}

#[test]
fn with_the_token_in_the_path_they_are_published_byte_for_byte() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let token = format!("{TOKEN:?}");
    let mut relay = Relay::start(kafka.bootstrap(), &[("app_webhooks.token", &token), ("log.filter", "\"debug\"")]);
    let organization = chat_id();
    let body = installed(&organization);

    assert_eq!(http::post_to(relay.webhooks, &format!("/app-webhooks/{TOKEN}"), &body).status, 200);
    for wrong in ["guess", &TOKEN[1..], SECRET] {
        assert_eq!(http::post_to(relay.webhooks, &format!("/app-webhooks/{wrong}"), &body).status, 401);
    }
    assert_eq!(http::post_to(relay.webhooks, &format!("/app-webhooks/{TOKEN}"), "{}").status, 400);
    assert_eq!(http::post_to(relay.webhooks, "/app-webhooks", &body).status, 404);

    let published = r#"livechat_relay_events_total{action="app_webhook",outcome="published"}"#;
    assert_eq!(relay.metric(published), 1.0);

    let found = kafka.read_all(&["livechat.app.application_installed"]);
    let ours: Vec<_> = found.iter().filter(|m| m.key.as_deref() == Some(organization.as_bytes())).collect();
    assert_eq!(ours.len(), 1);
    let value = std::str::from_utf8(&ours[0].value).expect("text");
    assert!(value.ends_with(&format!(r#","data":{body}}}"#)), "{value}");
    assert!(
        value.contains(r#""type":"com.livechat.app.application_installed","time":"2026-11-22T13:29:53Z""#),
        "{value}"
    );
    relay.signal(rustix::process::Signal::TERM);
    relay.end();
    assert!(!relay.log().contains(TOKEN));
}

#[test]
fn switched_off_there_is_no_such_path() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]);
    assert_eq!(http::post_to(relay.webhooks, &format!("/app-webhooks/{TOKEN}"), installed("o")).status, 404);
}
