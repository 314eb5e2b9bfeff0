//! `[kafka]` and `[topics]`, but for the routes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::{ExposeSecret as _, SecretString};

use super::flat::{PROPERTIES, SETTINGS};
use super::read::Reader;
use super::server::body_bytes_max;
use super::{LINGER_MAX, MILLISECOND, SECOND};
use crate::event::route::ENVELOPE_BYTES_MAX;
use crate::{publish, topics};

pub fn kafka(r: &mut Reader) -> publish::Config {
    let brokers = "a text of host:port, several separated by commas (\"a:9092,b:9092\"), without kafka://";
    publish::Config {
        brokers: r.text_that("kafka.brokers", brokers, |text| text.split(',').all(is_broker)),
        client_id: r.text("kafka.client_id"),
        publish_deadline: r.time("kafka.publish_deadline", 100 * MILLISECOND..=60 * SECOND),
        linger: r.time("kafka.linger", Duration::ZERO..=LINGER_MAX),
        compression: r.choice("kafka.compression", COMPRESSIONS.map(|name| (name, name.to_owned()))),
        queue_bytes_max: r.size("kafka.queue_bytes_max", ByteSize::mib(1)..=ByteSize::gib(2)),
        queue_records_max: r.number("kafka.queue_records_max", 1..=10_000_000),
        start_timeout: r.time("kafka.start_timeout", 100 * MILLISECOND..=300 * SECOND),
        probe_interval: r.time("kafka.probe_interval", 100 * MILLISECOND..=300 * SECOND),
        record_bytes_max: (body_bytes_max(r) + ENVELOPE_BYTES_MAX) as u64,
        properties: properties(r),
    }
}

const COMPRESSIONS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

fn is_broker(text: &str) -> bool {
    let text = text.trim();
    let is_port = |port: &str| port.ends_with(']') || port.parse::<u16>().is_ok();
    let is_plain = !text.is_empty() && !text.contains("://") && !text.contains(char::is_whitespace);
    is_plain && text.rsplit_once(':').is_none_or(|(host, port)| !host.is_empty() && is_port(port))
}

fn properties(r: &mut Reader) -> Vec<(String, SecretString)> {
    let mut properties: Vec<(String, SecretString)> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut oauthbearer = None;
    for (name, key) in r.names(PROPERTIES) {
        let is_same = |other: &&String| publish::canonical(other) == publish::canonical(&name);
        if let Some(other) = names.iter().find(is_same) {
            r.mistake(&key, &format!("is another name of \"{other}\"; keep one of them"));
        } else if let Some(why) = publish::Config::refusal(&name) {
            r.mistake(&key, &format!("cannot be set: {why}"));
        } else if let Some(value) = r.secret(&key) {
            check_property(r, &key, &name, &value);
            if publish::canonical(&name) == "sasl.mechanism" && value.expose_secret() == "OAUTHBEARER" {
                oauthbearer = Some(key);
            }
            properties.push((name.clone(), value));
        }
        names.push(name);
    }
    let has = |wanted: &str, value: Option<&str>| {
        let mut found = properties.iter().filter(|(name, _)| publish::canonical(name) == wanted);
        found.any(|(_, found)| value.is_none_or(|value| found.expose_secret() == value))
    };
    if let Some(key) = oauthbearer
        && !has("sasl.oauthbearer.method", Some("oidc"))
        && !has("enable.sasl.oauthbearer.unsecure.jwt", None)
    {
        let why = "OAUTHBEARER needs \"sasl.oauthbearer.method\" = \"oidc\": the relay makes no tokens of its own";
        r.mistake(&key, why);
    }
    properties
}

/// What librdkafka itself says of a property, and whether the file that it names can be read.
fn check_property(r: &mut Reader, key: &str, name: &str, value: &SecretString) {
    let names_file = matches!(name.rsplit('.').next(), Some("location" | "file")) && name != "ssl.engine.location";
    if let Err(why) = publish::Config::check_property(name, value) {
        r.mistake(key, &why);
    } else if names_file && value.expose_secret() != "probe" {
        r.readable(key, value);
    }
}

pub fn topics(r: &mut Reader) -> topics::Config {
    let mut settings = BTreeMap::new();
    for (name, key) in r.names(SETTINGS) {
        if let Some(value) = r.scalar(&key) {
            settings.insert(name, value);
        }
    }
    topics::Config {
        create: r.flag("topics.create"),
        partitions: r.number("topics.partitions", 1..=10_000),
        replication: r.number_or("topics.replication", -1, "as many as the brokers' default", 1..=100),
        check_interval: r.time("topics.check_interval", 100 * MILLISECOND..=3600 * SECOND),
        settings,
    }
}
