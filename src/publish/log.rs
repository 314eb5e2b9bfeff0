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
