//! TLS and SASL to a real broker, with the OpenSSL and librdkafka that are linked in.

use std::path::Path;
use std::process::Command;

use crate::support::kafka::{self, Kafka};
use crate::support::relay::{Relay, await_that};
use crate::support::{chat_id, http, incoming_event};

pub const PASSWORD: &str = "s3cr3t-Xq9-password-of-kafka";

/// A key with a certificate for 127.0.0.1 that is its own CA: `server.pem` has both, `ca.pem` the certificate.
pub fn certificate(directory: &Path) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "ca.pem"])
        .current_dir(directory)
        .output()
        .expect("openssl; `scripts/ensure.sh openssl` gets it");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).expect("made");
    std::fs::write(directory.join("server.pem"), read("key.pem") + &read("ca.pem")).expect("written");
}

/// One node that also listens with SASL over TLS; where that is.
pub fn secured(directory: &Path) -> Option<(Kafka, String)> {
    let port = kafka::free_port();
    let keystore = directory.join("server.pem").display().to_string();
    let plain = format!(r#"org.apache.kafka.common.security.plain.PlainLoginModule required user_relay="{PASSWORD}";"#);
    let listeners =
        format!("PLAINTEXT://127.0.0.1:BROKER_PORT,CONTROLLER://127.0.0.1:CONTROLLER_PORT,SASL_SSL://127.0.0.1:{port}");
    let kafka = Kafka::start_or_skip(
        1,
        &[
            ("listeners", &listeners),
            ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL"),
            ("ssl.keystore.type", "PEM"),
            ("ssl.keystore.location", &keystore),
            ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-512,OAUTHBEARER"),
            ("listener.name.sasl_ssl.plain.sasl.jaas.config", &plain),
            (
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config",
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            ),
            (
                "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config",
                r#"org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";"#,
            ),
        ],
    )?;
    let user = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh"))
        .args(["tool", "configs", "--bootstrap-server", kafka.bootstrap(), "--alter"])
        .args(["--entity-type", "users", "--entity-name", "relay"])
        .args(["--add-config", &format!("SCRAM-SHA-512=[iterations=4096,password={PASSWORD}]")])
        .output()
        .expect("Kafka's tool");
    assert!(user.status.success(), "{}", String::from_utf8_lossy(&user.stderr));
    Some((kafka, format!("127.0.0.1:{port}")))
}

#[test]
fn events_reach_kafka_through_tls_and_each_sasl_mechanism() {
    let directory = tempfile::tempdir().expect("a directory");
    certificate(directory.path());
    let Some((kafka, address)) = secured(directory.path()) else { return };
    let password = directory.path().join("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).expect("written");
    let ca = directory.path().join("ca.pem");
    let with = |mechanism: &str, more: &str| {
        format!(
            r#"{{ "security.protocol" = "sasl_ssl", "ssl.ca.location" = {ca:?}, "sasl.mechanism" = "{mechanism}", {more} }}"#
        )
    };
    let user = format!(r#""sasl.username" = "relay", "sasl.password" = {{ file = {password:?} }}"#);
    let token = r#""enable.sasl.oauthbearer.unsecure.jwt" = "true", "sasl.oauthbearer.config" = "principal=relay""#;
    let ways = [("PLAIN", user.as_str()), ("SCRAM-SHA-512", &user), ("OAUTHBEARER", token)];

    for (mechanism, more) in ways {
        let relay = Relay::start(&address, &[("kafka.properties", &with(mechanism, more))]).ready();
        let chat = chat_id();
        assert_eq!(http::post(relay.webhooks, incoming_event(&chat, 1)).status, 200, "{mechanism}: {}", relay.log());
        let found = kafka.read_all(&["livechat.incoming_event"]);
        assert!(found.iter().any(|m| m.key.as_deref() == Some(chat.as_bytes())), "{mechanism}");
        assert!(!relay.log().contains("s3cr3t"), "{mechanism}");
    }
}

#[test]
fn a_wrong_password_or_certificate_is_told_and_shows_no_secret() {
    let directory = tempfile::tempdir().expect("a directory");
    certificate(directory.path());
    let Some((_kafka, address)) = secured(directory.path()) else { return };
    let stranger = tempfile::tempdir().expect("a directory");
    certificate(stranger.path());
    for (ca, said) in [(directory.path(), "Authentication failed"), (stranger.path(), "certificate verify failed")] {
        let properties = format!(
            r#"{{ "security.protocol" = "sasl_ssl", "ssl.ca.location" = {:?}, "sasl.mechanism" = "PLAIN", "sasl.username" = "relay", "sasl.password" = "s3cr3t-Xq9-wrong" }}"#,
            ca.join("ca.pem")
        );
        let relay = Relay::start(
            &address,
            &[
                ("kafka.properties", &properties),
                ("kafka.start_timeout", "\"500ms\""),
                ("kafka.publish_deadline", "\"1s\""),
                ("log.filter", "\"trace\""),
            ],
        );
        await_that("the log tells the reason", || relay.log().contains(said));
        assert_eq!(http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 503);
        assert_eq!(http::get(relay.admin, "/readyz").status, 503);
        assert!(!relay.log().contains("s3cr3t"));
    }
}
