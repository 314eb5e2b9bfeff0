//! `[kafka]` as librdkafka's properties. Those that carry a guarantee are the relay's own, and are read back; the rest is the
//! operator's, each under one name, whatever librdkafka calls it besides.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use secrecy::{ExposeSecret, SecretString};

/// `[kafka]`: how to reach the brokers and what to ask of them.
#[derive(Clone, Debug)]
pub struct Config {
    pub brokers: String,
    pub client_id: String,
    pub publish_deadline: Duration,
    pub linger: Duration,
    pub compression: String,
    pub queue_bytes_max: u64,
    pub queue_records_max: u64,
    pub start_timeout: Duration,
    pub probe_interval: Duration,
    /// The largest record that the relay can make: the largest body and its envelope.
    pub record_bytes_max: u64,
    /// librdkafka's own, as given, no property twice. Values may be passwords.
    pub properties: Vec<(String, SecretString)>,
}

/// Why there can be no Kafka client.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// librdkafka does not accept a property. Its value is not repeated: it may be a password.
    #[error("\"{name}\": {why}")]
    Property { name: String, why: String },
    /// What carries a guarantee is not what the relay has set.
    #[error("\"{name}\" is {found}, and must be {wanted}: events could be lost, duplicated or reordered")]
    NotOurs { name: &'static str, found: String, wanted: String },
    #[error(transparent)]
    Client(KafkaError),
    #[error("a thread for delivery reports cannot be started: {0}")]
    Thread(std::io::Error),
}

impl From<KafkaError> for Unusable {
    fn from(error: KafkaError) -> Self {
        match error {
            KafkaError::ClientConfig(_, why, name, value) => {
                // Only these texts never have the value, or a part of it, in them.
                let is_fixed = why.starts_with("No such") || why.contains(" not supported");
                let why = match why.trim() {
                    why if why.contains("depend") && why.contains(" on libcurl") => WITHOUT_CURL,
                    why if is_fixed && !why.contains(&value) => why,
                    _ => "its value is not valid",
                };
                Self::Property { name, why: why.to_owned() }
            }
            other => Self::Client(other),
        }
    }
}

/// librdkafka's words for it do not say what to do.
const WITHOUT_CURL: &str = "not supported in this build, which lacks libcurl: use the image, or install libcurl's headers (Debian: libcurl4-openssl-dev) and build again";

/// What the headers of a dead letter may add to its record.
const DEAD_LETTER_BYTES_MAX: u64 = 1024;

/// The most that librdkafka takes for `queue.buffering.max.kbytes`.
const QUEUE_BYTES_LIMIT: u64 = i32::MAX as u64 * 1024;

/// librdkafka's aliases, each with the name that the relay has for the property: Kafka's own where there is one. They are those of
/// librdkafka 2.12, in its table of properties (`rdkafka_conf.c`, `_RK_C_ALIAS`); for one that a later version adds, the guarantees are
/// read back.
const ALIASES: [(&str, &str); 11] = [
    ("request.required.acks", "acks"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("max.in.flight.requests.per.connection", "max.in.flight"),
    ("metadata.broker.list", "bootstrap.servers"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("message.send.max.retries", "retries"),
    ("compression.codec", "compression.type"),
    ("sasl.mechanisms", "sasl.mechanism"),
    ("sasl.oauthbearer.client.credentials.client.id", "sasl.oauthbearer.client.id"),
    ("sasl.oauthbearer.client.credentials.client.secret", "sasl.oauthbearer.client.secret"),
    ("fetch.message.max.bytes", "max.partition.fetch.bytes"),
];

/// Properties that would break a guarantee, and why each is refused.
const REFUSED: [(&str, &str); 12] = [
    ("acks", "it is always `all`: 200 is only sent when all in-sync replicas have the event"),
    ("enable.idempotence", "it is always on: without it a retry could duplicate or reorder events"),
    ("partitioner", "it is always `murmur2_random`, so that Java consumers and producers agree on partitions"),
    ("transactional.id", "the relay does not use transactions"),
    ("bootstrap.servers", "set kafka.brokers instead"),
    ("client.id", "set kafka.client_id instead"),
    ("message.timeout.ms", "the answer to LiveChat depends on it; set kafka.publish_deadline instead"),
    ("message.max.bytes", "it is derived from server.body_bytes_max"),
    ("test.mock.num.brokers", "it would replace your brokers by a mock; `livechat-relay demo` has one"),
    ("delivery.report.only.error", "the relay needs the delivery report of every record"),
    ("allow.auto.create.topics", "topics are created only as [topics] says; set topics.create instead"),
    ("plugin.library.paths", "a plugin can change every other property"),
];

/// The one name that the relay has for a property of librdkafka.
pub fn canonical(name: &str) -> &str {
    // librdkafka looks up a name without this prefix where it knows none with it. It knows these:
    const WITH_PREFIX: [&str; 3] = ["topic.metadata.refresh.", "topic.metadata.propagation.", "topic.blacklist"];
    let is_known = WITH_PREFIX.iter().any(|known| name.starts_with(known));
    let bare = if is_known { name } else { name.strip_prefix("topic.").unwrap_or(name) };
    ALIASES.iter().find(|(alias, _)| *alias == bare).map_or(bare, |(_, name)| *name)
}

impl Config {
    /// Why a property cannot be set, if so.
    pub fn refusal(property: &str) -> Option<&'static str> {
        REFUSED.iter().find(|(name, _)| *name == canonical(property)).map(|(_, why)| *why)
    }

    /// Whether librdkafka accepts a property.
    ///
    /// # Errors
    /// Why not, without the value.
    pub fn check_property(name: &str, value: &SecretString) -> Result<(), String> {
        const MECHANISMS: [&str; 4] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"];
        let value = value.expose_secret();
        if canonical(name) == "sasl.mechanism" && !MECHANISMS.contains(&value) {
            return Err(format!("must be one of {}; others are not built in", MECHANISMS.join(", ")));
        }
        let set = ClientConfig::new().set(canonical(name), value).create_native_config();
        set.map(drop).map_err(|error| match Unusable::from(error) {
            Unusable::Property { why, .. } => why,
            other => other.to_string(),
        })
    }

    /// Whether librdkafka gets tokens from a token endpoint.
    pub fn asks_for_tokens(&self) -> bool {
        let method = self.properties.iter().find(|(name, _)| canonical(name) == "sasl.oauthbearer.method");
        method.is_some_and(|(_, value)| value.expose_secret() == "oidc")
    }

    /// What every client of the cluster needs: addresses, security, and whatever else the operator has set.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", &self.client_id)
            .set("socket.keepalive.enable", "true")
            // Brokers with auto.create.topics.enable make each topic that a request for metadata names, with settings of their own: the
            // probe's and librdkafka's own refreshes would bring a deleted topic back. A producer lets them, unless it is told.
            .set("allow.auto.create.topics", "false")
            .set("reconnect.backoff.max.ms", "1000") // a broker that is back is found within a second or so
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("ssl.ca.location", "probe") // OpenSSL is linked in, and would look where no system has its CA certificates
            .set_log_level(RDKafkaLogLevel::Info);
        for (name, value) in &self.properties {
            config.set(canonical(name), value.expose_secret());
        }
        // As for the brokers; a build without libcurl refuses it.
        let is_set = |name: &str| config.get(name).is_some();
        if self.asks_for_tokens() && !is_set("https.ca.location") && !is_set("https.ca.pem") {
            config.set("https.ca.location", "probe");
        }
        config
    }

    /// What the producer needs besides: the guarantees, and how records are collected.
    pub fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        let mut default = |name: &str, value: String| {
            if config.get(name).is_none() {
                config.set(name, value);
            }
        };
        default("linger.ms", (self.linger.as_secs_f64() * 1000.0).to_string());
        default("compression.type", self.compression.clone());
        default("queue.buffering.max.kbytes", (self.queue_bytes_max / 1024).to_string());
        default("queue.buffering.max.messages", self.queue_records_max.to_string());
        default("topic.metadata.propagation.max.ms", self.topic_propagation());
        config.set("message.max.bytes", (self.record_bytes_max + DEAD_LETTER_BYTES_MAX).to_string());
        for (name, value) in self.guarantees() {
            config.set(name, value);
        }
        config
    }

    /// As [`Config::producer`], for batches of one record each.
    pub(super) fn producer_alone(&self) -> ClientConfig {
        let mut config = self.producer();
        config.set("batch.num.messages", "1").set("linger.ms", "0");
        config
    }

    /// A topic that the brokers do not know may be a new one of which they have not heard. librdkafka waits for that, 30 s by default: a
    /// record for a missing topic would time out first, as all do while Kafka is unavailable.
    fn topic_propagation(&self) -> String {
        (self.publish_deadline.as_millis() / 2).to_string()
    }

    /// For records whose order must survive every failure. librdkafka gives none up in time: of 1 2 3 it could give up 2, and go on with 3.
    /// It ends in a fatal state where a broker refuses one, instead of going on with the next. Who hands records over bounds their number
    /// and their bytes.
    pub(super) fn in_order(&self) -> Self {
        let propagation = self.topic_propagation();
        let ours = [
            ("enable.gapless.guarantee", "true"),
            ("retries", "2147483647"),
            ("topic.metadata.propagation.max.ms", &propagation),
        ];
        let mut properties = self.properties.clone();
        properties.retain(|(name, _)| {
            let name = canonical(name);
            !name.starts_with("queue.buffering.max.") && ours.iter().all(|(ours, _)| name != *ours)
        });
        properties.extend(ours.map(|(name, value)| (name.to_owned(), SecretString::from(value))));
        let (publish_deadline, queue_records_max, queue_bytes_max) = (Duration::ZERO, 0, QUEUE_BYTES_LIMIT);
        Self { publish_deadline, queue_bytes_max, queue_records_max, properties, ..self.clone() }
    }

    /// The properties that carry a guarantee, as librdkafka shows them.
    fn guarantees(&self) -> [(&'static str, String); 5] {
        // The operator may want fewer requests in flight; of more than five, the idempotent producer could not keep the order.
        let in_flight = self.properties.iter().find(|(name, _)| canonical(name) == "max.in.flight");
        [
            ("acks", "-1".to_owned()), // all
            ("enable.idempotence", "true".to_owned()),
            ("partitioner", "murmur2_random".to_owned()),
            ("message.timeout.ms", self.publish_deadline.as_millis().to_string()),
            ("max.in.flight", in_flight.map_or_else(|| "5".to_owned(), |(_, value)| value.expose_secret().to_owned())),
        ]
    }

    /// Reads the guarantees back from librdkafka, which has been given `client`. A client that exists does not show its
    /// configuration to safe code, so it is made from the same values in the same order once more. librdkafka changes
    /// values when it makes a client, but none that is set, and these are.
    ///
    /// # Errors
    /// [`Unusable::NotOurs`], with the first one that differs.
    pub(super) fn read_back(&self, client: &ClientConfig) -> Result<(), Unusable> {
        let effective = client.create_native_config()?;
        for (name, wanted) in self.guarantees() {
            let found = effective.get(name)?;
            if found != wanted {
                return Err(Unusable::NotOurs { name, found, wanted });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn config(properties: &[(&str, &str)]) -> Config {
        Config {
            brokers: "127.0.0.1:1".to_owned(),
            client_id: "test".to_owned(),
            publish_deadline: Duration::from_secs(4),
            linger: Duration::from_micros(500),
            compression: "zstd".to_owned(),
            queue_bytes_max: 1 << 20,
            queue_records_max: 10,
            start_timeout: Duration::from_secs(1),
            probe_interval: Duration::from_secs(1),
            record_bytes_max: 1 << 20,
            properties: properties.iter().map(|(n, v)| ((*n).to_owned(), SecretString::from(*v))).collect(),
        }
    }

    /// What librdkafka has of a property, under whatever name.
    fn effective(client: &ClientConfig, name: &str) -> String {
        client.create_native_config().and_then(|config| config.get(name)).expect("a property")
    }

    #[test]
    fn the_guarantees_are_set_whatever_else_is() {
        let set = config(&[("linger.ms", "7"), ("security.protocol", "sasl_ssl")]).producer();
        for (name, value) in [
            ("acks", "-1"),
            ("enable.idempotence", "true"),
            ("partitioner", "murmur2_random"),
            ("message.timeout.ms", "4000"),
            ("max.in.flight", "5"),
            ("message.max.bytes", "1049600"),
            ("linger.ms", "7"),
            ("security.protocol", "sasl_ssl"),
        ] {
            assert_eq!(effective(&set, name), value, "{name}");
        }
        assert_eq!(effective(&config(&[]).producer(), "linger.ms"), "0.5");
        let aliased = config(&[("queue.buffering.max.ms", "7"), ("topic.compression.codec", "gzip")]).producer();
        assert_eq!(
            (effective(&aliased, "linger.ms"), effective(&aliased, "compression.type")),
            ("7".into(), "gzip".into())
        );
    }

    /// Both names of a pair are librdkafka's, for one and the same property.
    #[test]
    fn an_alias_and_its_name_are_one_property_to_librdkafka() {
        for (alias, name) in ALIASES {
            let value = match alias {
                "compression.codec" => "gzip",
                "sasl.mechanisms" => "PLAIN",
                "request.required.acks" => "3",
                _ => "1017",
            };
            let shown = |set: &str, read: &str| {
                let mut client = ClientConfig::new();
                client.set(set, value);
                client.create_native_config().and_then(|config| config.get(read)).map_err(|error| match error {
                    KafkaError::ClientConfig(_, why, ..) => why,
                    other => other.to_string(),
                })
            };
            let found = shown(alias, name);
            assert_eq!(found, shown(name, alias), "{alias}");
            // Built without libcurl, it says so of the property that the alias leads to.
            let is_missing = |why: &String| why.contains(name) && why.contains("not supported in this build");
            assert!(found.as_deref() == Ok(value) || found.as_ref().is_err_and(is_missing), "{alias}: {found:?}");
            assert_eq!((canonical(alias), canonical(name)), (name, name));
        }
    }

    #[test]
    fn what_is_refused_is_refused_under_every_name_and_prefix() {
        for (name, why) in REFUSED {
            let aliases = ALIASES.iter().filter(|(_, known)| *known == name).map(|(alias, _)| *alias);
            for spelling in aliases.chain([name]) {
                for spelling in [spelling.to_owned(), format!("topic.{spelling}")] {
                    assert_eq!(Config::refusal(&spelling), Some(why), "{spelling}");
                }
            }
        }
        for free in ["linger.ms", "topic.metadata.refresh.interval.ms", "topic.blacklist", "max.in.flight"] {
            assert_eq!(Config::refusal(free), None, "{free}");
        }
    }

    /// The order of a hash map differs from one to the next.
    #[test]
    fn twenty_clients_in_a_row_have_the_same_guarantees() {
        let spellings = ["acks", "request.required.acks", "partitioner", "enable.idempotence", "message.timeout.ms"];
        let spellings = spellings.into_iter().chain(["delivery.timeout.ms", "max.in.flight.requests.per.connection"]);
        // As if the refusal had let them through: two names of each, and what would break it.
        let properties: Vec<_> = spellings.flat_map(|name| [name.to_owned(), format!("topic.{name}")]).collect();
        let properties: Vec<_> = properties.iter().map(|name| (name.as_str(), "1")).collect();
        let config = config(&properties);
        for _ in 0..20 {
            let client = config.producer();
            config.read_back(&client).expect("ours");
            assert_eq!(effective(&client, "max.in.flight"), "1");
            assert_eq!(effective(&client, "acks"), "-1");
        }
    }

    #[test]
    fn in_order_nothing_is_given_up_or_overtaken_and_no_gap_is_left() {
        let config = config(&[("message.send.max.retries", "1"), ("queue.buffering.max.messages", "5")]).in_order();
        let client = config.producer();
        config.read_back(&client).expect("ours");
        for (name, value) in [
            ("message.timeout.ms", "0"),
            ("enable.gapless.guarantee", "true"),
            ("retries", "2147483647"),
            ("topic.metadata.propagation.max.ms", "2000"),
            ("queue.buffering.max.messages", "0"),
            ("queue.buffering.max.kbytes", "2147483647"),
        ] {
            assert_eq!(effective(&client, name), value, "{name}");
        }
    }

    #[test]
    fn a_guarantee_that_is_not_ours_is_named_with_what_was_found_and_what_was_wanted() {
        let config = config(&[]);
        for (name, broken) in [
            ("acks", "1"),
            ("enable.idempotence", "false"),
            ("partitioner", "consistent"),
            ("message.timeout.ms", "300000"),
            ("max.in.flight", "100"),
        ] {
            let mut client = config.producer();
            client.set(name, broken);
            let error = config.read_back(&client).expect_err(name).to_string();
            assert!(error.starts_with(&format!("\"{name}\" is {broken}, and must be ")), "{error}");
        }
    }

    #[test]
    fn the_value_of_a_wrong_property_is_not_repeated() {
        for (name, value) in [("sasl.pasword", "hunter2hunter2"), ("security.protocol", "hunter2hunter2")] {
            let error = config(&[(name, value)]).producer().create_native_config().map(drop).map_err(Unusable::from);
            let error = error.expect_err("librdkafka does not take it").to_string();
            assert!(error.contains(name) && !error.contains(value), "{error}");
        }
    }

    #[test]
    fn a_token_endpoint_is_verified_as_the_brokers_are() {
        let location = |more: &[(&str, &str)]| config(more).client().get("https.ca.location").map(str::to_owned);
        let method = ("sasl.oauthbearer.method", "oidc");
        assert_eq!(location(&[method]).as_deref(), Some("probe"));
        assert_eq!(location(&[method, ("https.ca.location", "ca.pem")]).as_deref(), Some("ca.pem"));
        assert_eq!(location(&[method, ("https.ca.pem", "-----BEGIN")]), None, "librdkafka refuses both");
        assert_eq!(location(&[]), None, "a build without libcurl refuses it");
    }

    #[test]
    fn librdkafka_has_what_clusters_ask_for() {
        let built_in =
            ClientConfig::new().create_native_config().and_then(|c| c.get("builtin.features")).expect("a property");
        for feature in ["ssl", "sasl_plain", "sasl_scram", "sasl_oauthbearer", "gzip", "snappy", "lz4", "zstd"] {
            assert!(built_in.split(',').any(|f| f.trim_matches('\0') == feature), "{feature} is not in {built_in}");
        }
    }
}
