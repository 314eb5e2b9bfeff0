//! What librdkafka logs, in the relay's log.

use std::sync::LazyLock;
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;

use crate::telemetry::Throttles;

/// One line in ten seconds of each facility: it repeats some for every partition. What it calls an error is a
/// warning here: it goes on by itself.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    static BY_FACILITY: LazyLock<Throttles> = LazyLock::new(|| Throttles::new(Duration::from_secs(10)));
    if matches!(level, RDKafkaLogLevel::Debug) || is_detail(facility, message) {
        tracing::debug!(target: "librdkafka", facility, message);
        return;
    }
    let Some(suppressed) = BY_FACILITY.pass(facility) else { return };
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "librdkafka", facility, suppressed, message);
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", facility, suppressed, message)
        }
        _ => tracing::info!(target: "librdkafka", facility, suppressed, message),
    }
}

/// How much is shown of the answer of a token endpoint, which may be a page of HTML.
const ANSWER_CHARS_MAX: usize = 300;

/// That there is no token to log in with, and why, where librdkafka says so: as an error once, and in its log again and again.
pub fn without_token(message: &str) -> Option<String> {
    let why = if let Some((_, why)) = message.split_once("Failed to acquire SASL OAUTHBEARER token: ") {
        why
    } else {
        let (_, why) = message.split_once("Failed to retrieve OIDC token from \"")?.1.split_once("\": ")?;
        why.rsplit_once(" (").map_or(why, |(why, _)| why)
    };
    // An endpoint may repeat the request's credentials.
    let is_scheme = |word: &str| ["basic", "bearer"].iter().any(|scheme| word.to_ascii_lowercase().ends_with(scheme));
    let words = why
        .split_whitespace()
        .scan(false, |is_secret, word| Some(if std::mem::replace(is_secret, is_scheme(word)) { "***" } else { word }));
    let mut why = words.collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = why.char_indices().nth(ANSWER_CHARS_MAX) {
        why.truncate(end);
        why.push('…');
    }
    Some(format!("{WITHOUT_TOKEN}{why}"))
}

/// How [`without_token`] begins.
pub const WITHOUT_TOKEN: &str = "no token: ";

/// What librdkafka calls a warning, or an error, and is none.
fn is_detail(facility: &str, message: &str) -> bool {
    match facility {
        // It comes as an error of the client, too; and a partition has no leader while a broker starts or ends.
        "FAIL" | "METADATAUPDATE" => true,
        // Kafka that has just started has no producer ids yet, and is asked for one until it has.
        "GETPID" => message.ends_with(": retrying"),
        // It calls this experimental. The relay needs it (`Config::in_order`) and has it tested.
        "CONFWARN" => message.contains("enable.gapless.guarantee"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_is_no_token_is_the_same_in_the_log_and_as_an_error() {
        let why = "Failed to connect to 127.0.0.1:1 after 0 ms: Could not connect to server";
        let log = format!("[thrd:background]: Failed to retrieve OIDC token from \"https://id/token\": {why} (-1)");
        let error = format!("Failed to acquire SASL OAUTHBEARER token: {why}");
        let expected = Some(format!("no token: {why}"));
        assert_eq!((without_token(&log), without_token(&error)), (expected.clone(), expected));
        assert_eq!(without_token("kafka:1: SASL authentication error: {\"status\":\"invalid_token\"}"), None);
    }

    #[test]
    fn credentials_that_a_token_endpoint_repeats_are_not_shown() {
        for scheme in ["Basic", "basic", "BEARER"] {
            let message = format!(
                "Failed to acquire SASL OAUTHBEARER token: bad header Authorization:{scheme} c2VjcmV0 of livechat"
            );
            let expected = format!("no token: bad header Authorization:{scheme} *** of livechat");
            assert_eq!(without_token(&message), Some(expected));
        }
    }

    #[test]
    fn of_a_page_of_html_the_beginning_is_shown_on_one_line() {
        let page = format!("<html>\n  <b>Ünavailable</b>{}", "ü".repeat(1000));
        let text = without_token(&format!("Failed to acquire SASL OAUTHBEARER token: {page}")).expect("a reason");
        assert!(text.starts_with("no token: <html> <b>Ünavailable</b>ü") && text.ends_with("ü…"), "{text}");
        assert_eq!(text.chars().count(), "no token: ".len() + ANSWER_CHARS_MAX + 1);
    }

    #[test]
    fn what_librdkafka_says_at_a_healthy_start_is_no_warning() {
        for (facility, message) in [
            (
                "GETPID",
                "[thrd:main]: Failed to acquire idempotence PID from broker k/1: Broker: Coordinator load in progress: retrying",
            ),
            ("CONFWARN", "[thrd:app]: Configuration property enable.gapless.guarantee is experimental: When set"),
        ] {
            assert!(is_detail(facility, message), "{facility}");
        }
        assert!(!is_detail("CONFWARN", "[thrd:app]: Configuration property ssl.key.location is ignored"));
        assert!(!is_detail("GETPID", "[thrd:main]: Acquired invalid PID{-1,-1}: ignoring"));
    }
}
