//! Why brokers cannot be reached: librdkafka's own reason, and what to change.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};

use crate::publish;
use crate::topics::{Broker, brokers};

/// How long attempts go on after all brokers have failed. A name may have several addresses, which are tried in turn, so that the first
/// failure says little.
const GRACE: Duration = Duration::from_millis(1500);

/// So long the first request may take before it is looked what librdkafka has said meanwhile. An answer that comes later is lost:
/// each further request may take twice as long.
const ATTEMPT: Duration = Duration::from_millis(200);

/// Between two attempts; what librdkafka says meanwhile ends it.
const PAUSE: Duration = Duration::from_millis(20);

/// Connects to `address`, in the way that `kafka` has for its own, and asks for the brokers of the cluster. Blocks up to
/// `kafka.start_timeout`.
///
/// # Errors
/// What librdkafka said of each connection, and what to change.
pub fn reach(kafka: &publish::Config, address: &str, topic: &str) -> Result<Vec<Broker>, String> {
    let mut client = kafka.client();
    client.set("bootstrap.servers", address);
    let client: BaseProducer<Heard> = client.create_with_context(Heard::default()).map_err(|e| e.to_string())?;
    let heard = client.context();
    let began = Instant::now();
    let mut deadline = began + kafka.start_timeout;
    let mut attempt = ATTEMPT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Ok(metadata) = client.client().fetch_metadata(Some(topic), left.min(attempt)) {
            return Ok(brokers(&metadata));
        }
        attempt = (attempt * 2).min(kafka.start_timeout);
        client.poll(PAUSE); // an attempt may fail at once
        if let Some(since) = heard.said().all_failed_at {
            deadline = deadline.min(since + GRACE);
        }
        if Instant::now() >= deadline {
            let unknown = if kafka.asks_for_tokens() { WITHOUT_ANSWER } else { UNKNOWN };
            let none = || format!("no answer within {:.0?}; {unknown}", began.elapsed());
            return Err(explained(address, &heard.said().reasons).unwrap_or_else(none));
        }
    }
}

/// What librdkafka says of its connections.
#[derive(Default)]
struct Heard(Mutex<Said>);

#[derive(Default)]
struct Said {
    /// Each once, in order.
    reasons: Vec<String>,
    /// When each broker had failed at least once.
    all_failed_at: Option<Instant>,
}

impl Said {
    fn add(&mut self, reason: String) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

impl Heard {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Heard {
    /// Not all that it logs of a connection is reported as an error, too.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        if matches!(facility, "FAIL" | "BROKER") {
            self.said().add(plain(message));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let why = publish::without_token(reason);
        // Without a token librdkafka asks no broker, and tries again after 10 s only.
        if why.is_some() || error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            let mut said = self.said();
            said.all_failed_at.get_or_insert_with(Instant::now);
            why.into_iter().for_each(|why| said.add(why));
        }
    }
}

impl ProducerContext for Heard {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// The state of a connection says something of the reason, but to those who know librdkafka.
const IN_STATE: &str = " (in state ";

/// librdkafka's reason without the name of its thread, how long it took, and how often.
fn plain(message: &str) -> String {
    let message = message.strip_prefix("[thrd:").and_then(|rest| Some(rest.split_once("]: ")?.1)).unwrap_or(message);
    let message = message.replacen("/bootstrap", "", 1).replacen(": increase receive.message.max.bytes", "", 1);
    match message.split_once(" (after ") {
        None => message,
        Some((why, more)) => {
            let state = more.split_once("in state ").map_or("", |(_, state)| state);
            let state = state.split([',', ')']).next().unwrap_or_default();
            format!("{why}{IN_STATE}{state})")
        }
    }
}

/// A reason without the address that was asked for: it stands before it. What a name was resolved to goes after it.
fn without(address: &str, reason: &str) -> String {
    let own =
        reason.split_once(&format!("{address}: ")).filter(|(scheme, _)| scheme.is_empty() || scheme.ends_with("://"));
    let why = own.map_or(reason, |(_, why)| why).replacen(&format!(" '{address}'"), "", 1);
    let parts = why.split_once("Connect to ipv").and_then(|(before, rest)| {
        let (to, error) = rest.split_once('#')?.1.split_once(" failed: ")?;
        Some((before, to, error))
    });
    match parts {
        Some((before, to, error)) if before.contains(to) || to == address => format!("{before}{error}"),
        Some((before, to, error)) => format!("{before}{error} ({to})"),
        None => why,
    }
}

/// The reasons why `address` cannot be reached, and after those of one kind what to change. What is no more than a consequence is left out.
fn explained(address: &str, reasons: &[String]) -> Option<String> {
    let mut kinds: Vec<(&str, Vec<String>)> = Vec::new();
    for reason in reasons {
        let remedy = remedy(reason);
        let shown = without(address, reason.split_once(IN_STATE).map_or(reason, |(shown, _)| shown));
        match kinds.iter_mut().find(|(known, _)| *known == remedy) {
            Some((_, reasons)) => reasons.push(shown),
            None => kinds.push((remedy, vec![shown])),
        }
    }
    if kinds.len() > 1 {
        kinds.retain(|(remedy, _)| *remedy != UNKNOWN);
    }
    let texts: Vec<_> =
        kinds.into_iter().map(|(remedy, reasons)| format!("{}; {remedy}", reasons.join(", "))).collect();
    (!texts.is_empty()).then(|| texts.join(". "))
}

const UNKNOWN: &str = "is the address right, Kafka up, and no firewall between?";

/// librdkafka waits 20 s for a token endpoint, and where that answers 503 it tries again for 50 s, and says nothing meanwhile.
const WITHOUT_ANSWER: &str = "the token endpoint is asked first: is \"sasl.oauthbearer.token.endpoint.url\" in kafka.properties right, and the identity provider up?";

/// What the token endpoint, libcurl and librdkafka say, in part, of a token that is not there, and what to change.
const TOKEN_REMEDIES: [(&str, &str); 6] = [
    (
        "certificate",
        "the token endpoint's certificate is not trusted: set \"https.ca.location\" in kafka.properties to the certificate of its CA, and use a name of the endpoint that is in its certificate",
    ),
    (
        "invalid_client",
        "the client id or the client secret is wrong: \"sasl.oauthbearer.client.id\" and \"sasl.oauthbearer.client.secret\" in kafka.properties",
    ),
    ("invalid_scope", "set \"sasl.oauthbearer.scope\" in kafka.properties to one that the identity provider knows"),
    ("JWT", NO_JWT),
    ("The token is invalid", NO_JWT),
    ("", "is \"sasl.oauthbearer.token.endpoint.url\" in kafka.properties right, and the identity provider up?"),
];

const NO_JWT: &str = "the identity provider has to give tokens that are JWTs, with `sub` and `exp`";

/// What librdkafka 2.12 says, in part, and what to change.
const REMEDIES: [(&str, &str); 13] = [
    ("Failed to resolve", "this machine does not know the name: correct the name, or the DNS"),
    ("Connection refused", "nothing listens there: is the port right, and Kafka up?"),
    (
        "connecting to a PLAINTEXT broker listener?",
        "that port speaks no TLS: take the broker's port for TLS, or change \"security.protocol\" in kafka.properties to plaintext or sasl_plaintext",
    ),
    (
        "certificate verify failed",
        "the broker's certificate is not trusted: set \"ssl.ca.location\" in kafka.properties to the certificate of its CA, and use a name of the broker that is in its certificate",
    ),
    (
        "Request not valid in current SASL state",
        "that port wants no login: take the broker's port for SASL, or change \"security.protocol\" in kafka.properties to plaintext or ssl",
    ),
    ("Unsupported SASL mechanism", "set \"sasl.mechanism\" in kafka.properties to one that the broker supports"),
    (
        "{\"status\":",
        "the brokers do not accept the token: its issuer, audience, scope and key have to be those that they expect",
    ),
    ("uthentication", "the user or the password is wrong: \"sasl.username\" and \"sasl.password\" in kafka.properties"),
    // The first bytes of its answer, "HTTP", are taken for a length.
    ("Invalid response size 1213486160", "an HTTP server answers there, not Kafka: take the broker's port"),
    (
        "Connection setup timed out",
        "the connection is accepted, and then nothing is answered: does the broker hang, or is that port none of Kafka's?",
    ),
    (
        "(in state APIVERSION_QUERY)",
        "the broker does not understand the first request: that port wants TLS, or is none of Kafka's; change \"security.protocol\" in kafka.properties to ssl or sasl_ssl",
    ),
    (
        "(in state UP)",
        "the broker ends the connection at the first request: that port wants a login; change \"security.protocol\" in kafka.properties to sasl_ssl or sasl_plaintext",
    ),
    ("imed out", UNKNOWN),
];

fn remedy(reason: &str) -> &'static str {
    let remedies = if reason.starts_with(publish::WITHOUT_TOKEN) { &TOKEN_REMEDIES[..] } else { &REMEDIES };
    remedies.iter().find(|(part, _)| reason.contains(part)).map_or(UNKNOWN, |(_, remedy)| remedy)
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;

    use super::*;

    #[test]
    fn a_broker_that_is_far_away_answers() {
        let mock: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).expect("a mock cluster");
        mock.broker_round_trip_time(1, 3 * ATTEMPT).expect("it is slow");
        let kafka = publish::Config { start_timeout: Duration::from_secs(60), ..publish::test_config(&[]) };
        assert_eq!(reach(&kafka, &mock.bootstrap_servers(), "t").map(|brokers| brokers.len()), Ok(1));
    }

    #[test]
    fn a_reason_is_told_once_without_what_only_librdkafka_needs() {
        let log = "[thrd:ssl://kafka:1/bootstrap]: ssl://kafka:1/bootstrap: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener? (after 7ms in state SSL_HANDSHAKE, 1 identical error(s) suppressed)";
        let heard = Heard::default();
        for message in
            [log, &log.replace("7ms", "8ms"), "[thrd:app]: kafka:2: Disconnected (after 1ms in state CONNECT)"]
        {
            heard.log(RDKafkaLogLevel::Error, "FAIL", message);
        }
        heard.log(RDKafkaLogLevel::Warning, "CONFWARN", "[thrd:app]: Configuration property");
        let said = heard.said();
        assert_eq!(
            said.reasons,
            [
                "ssl://kafka:1: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener? (in state SSL_HANDSHAKE)",
                "kafka:2: Disconnected (in state CONNECT)"
            ]
        );
        let text = explained("ssl://kafka:1,kafka:2", &said.reasons).expect("reasons");
        assert!(
            text.contains("kafka:1") && text.contains("\"security.protocol\"") && !text.contains("kafka:2"),
            "{text}"
        );
    }

    #[test]
    fn brokers_that_fail_for_one_reason_have_one_remedy() {
        let reasons = ["a:1: Connect to ipv4#10.0.0.1:1 failed: Connection refused", "b:1: Connection refused"];
        let reasons = reasons.map(str::to_owned);
        let text = explained("a:1,b:1", &reasons).expect("reasons");
        assert_eq!(text.matches("nothing listens there").count(), 1, "{text}");
        let silent = "a:1: Connection setup timed out in state APIVERSION_QUERY (in state APIVERSION_QUERY)".to_owned();
        let text = explained("b:1", &[silent]).expect("a reason");
        assert!(text.contains("does the broker hang") && !text.contains("security.protocol"), "{text}");
        assert_eq!(explained("a:1", &[]), None);
        assert_eq!(explained("b:1", &["a:1: odd".to_owned()]), Some(format!("a:1: odd; {UNKNOWN}")));
    }

    #[test]
    fn the_address_that_was_asked_for_is_not_repeated() {
        let refused = |name: &str, ip: &str| format!("{name}: Connect to ipv4#{ip} failed: Connection refused");
        let shown = |address, reason: &str| without(address, reason);
        assert_eq!(shown("10.0.0.1:1", &refused("10.0.0.1:1", "10.0.0.1:1")), "Connection refused");
        assert_eq!(shown("a:1", &refused("ssl://a:1", "10.0.0.1:1")), "Connection refused (10.0.0.1:1)");
        assert_eq!(shown("a:1,b:1", &refused("b:1", "10.0.0.1:1")), "b:1: Connection refused (10.0.0.1:1)");
        assert_eq!(shown("a:1,10.0.0.1:1", &refused("10.0.0.1:1", "10.0.0.1:1")), "10.0.0.1:1: Connection refused");
        let unknown = "a:1: Failed to resolve 'a:1': Name or service not known";
        assert_eq!(shown("a:1", unknown), "Failed to resolve: Name or service not known");
    }

    #[test]
    fn a_token_that_is_not_there_is_the_reason_and_has_a_remedy_of_its_own() {
        let heard = Heard::default();
        let remedy_of = |why: &str| {
            let reason = format!("Failed to acquire SASL OAUTHBEARER token: {why}");
            for _ in 0..2 {
                heard.error(KafkaError::Global(RDKafkaErrorCode::Authentication), &reason);
            }
            let said = std::mem::take(&mut *heard.said());
            assert!(said.all_failed_at.is_some(), "no broker is asked meanwhile");
            explained("k:1", &said.reasons).expect("a reason")
        };
        for (why, remedy) in [
            ("Failed to connect to id:1 after 0 ms: Could not connect to server", "token.endpoint.url"),
            ("SSL certificate OpenSSL verify result: self-signed certificate (18)", "\"https.ca.location\""),
            (r#"{"error": "invalid_client"}"#, "\"sasl.oauthbearer.client.secret\""),
            ("Failed to decode JWT payload: The token is invalid with less than 2 delimiters", "JWTs"),
        ] {
            let text = remedy_of(why);
            assert!(text.starts_with(&format!("no token: {why}; ")) && text.contains(remedy), "{text}");
        }
        let refused = r#"sasl_ssl://k:1: SASL authentication error: {"status":"invalid_token"} (in state AUTH_REQ)"#;
        let text = explained("k:1", &[refused.to_owned()]).expect("a reason");
        assert!(text.contains("audience") && !text.contains("password"), "{text}");
    }

    #[test]
    fn an_http_server_is_no_broker() {
        let http = "[thrd:a:1/bootstrap]: a:1/bootstrap: Receive failed: Invalid response size 1213486160 (0..100000000): increase receive.message.max.bytes (after 1ms in state APIVERSION_QUERY)";
        let text = explained("b:1", &[plain(http)]).expect("a reason");
        let expected = "a:1: Receive failed: Invalid response size 1213486160 (0..100000000); an HTTP server answers there, not Kafka: take the broker's port";
        assert_eq!(text, expected);
    }
}
