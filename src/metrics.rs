//! What Prometheus sees: all names, labels and help texts. Every label has a closed set of values. Nothing in the relay reads a metric:
//! what is counted elsewhere is copied here when it is scraped.

mod counts;
mod register;

#[cfg(test)]
mod reference;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use crate::deliveries::Delivered;
use crate::event::{Fault, Key, Rules};
use crate::outcome::{ConnectionEnd, DeadLetterReason, Outcome, PageEnd, Reload};
use crate::telemetry;
pub use counts::Counts;
use register::{Changing, Register, count, counter, counters, gauge, gauges, histogram, histograms, opts, timestamp};

/// What the comparisons have found of an app.
pub struct Registered<'a> {
    pub app: &'a str,
    /// How many comparisons have had which result.
    pub checks: [(&'static str, u64); 2],
    /// How many are in which state.
    pub states: Vec<(&'static str, usize)>,
    pub is_enabled: Option<bool>,
    /// When its API version is discontinued.
    pub ends: [(&'static str, Option<Date>); 2],
}

/// The metrics of one relay, in a registry of their own. Those with a method are counted by it.
pub struct Metrics {
    registry: Registry,
    /// Two scrapes at once would both add what has been counted elsewhere.
    scraping: Mutex<()>,
    requests: IntCounterVec,
    pub request_seconds: Histogram,
    pub publish_seconds: Histogram,
    refused: Changing<IntCounterVec, 2>,
    unavailable: Changing<IntCounterVec, 2>,
    pages: IntCounterVec,
    faults: IntCounterVec,
    pub initial_events_left_out: IntCounter,
    retries: IntCounterVec,
    secret_keys_used: Changing<IntCounterVec, 2>,
    secret_keys_last_used: Changing<GaugeVec, 2>,
    secret_keys_not_after: Changing<GaugeVec, 2>,
    last_deliveries: Changing<GaugeVec, 3>,
    registrations: Changing<GaugeVec, 2>,
    registrations_enabled: Changing<GaugeVec, 1>,
    registration_checks: Changing<IntCounterVec, 2>,
    api_version_end: Changing<GaugeVec, 2>,
    rule_matches: Changing<IntCounterVec, 1>,
    pub kafka_errors: IntCounterVec,
    pub producer_rebuilds: IntCounter,
    pub replay_runs_ended: IntCounter,
    pub connections: IntGauge,
    connections_ended: IntCounterVec,
    tls_handshakes: IntCounterVec,
    tls_not_after: Changing<GaugeVec, 1>,
    pub acme_orders: IntCounterVec,
    pub acme_failures: IntGauge,
    pub bytes_in_flight: IntGauge,
    pub records_in_flight: IntGauge,
    pub ready: IntGauge,
    pub scrapes_unauthorized: IntCounter,
    pub kafka_up: IntGauge,
    topics: IntGaugeVec,
    events: Changing<IntCounterVec, 3>,
    durable_on_kafka_seconds: Histogram,
    durable_in_spool_seconds: Histogram,
    pub spool_accepting: IntGauge,
    spool_records: IntGaugeVec,
    spool_bytes: IntGaugeVec,
    spool_oldest_seconds: Changing<GaugeVec, 1>,
    pub spool_commit_seconds: Histogram,
    pub spool_failures: IntCounter,
    pub spool_failover: IntGauge,
    spool_faults: IntGaugeVec,
    pub replayed: IntCounter,
    pub dead_letters: IntCounterVec,
    pub dead_letters_on_disk: IntGauge,
    pub dead_letters_on_disk_bytes: IntGauge,
    pub spool_bytes_max: IntGauge,
    reloads: IntCounterVec,
    last_reload_successful: IntGauge,
    last_reload_success_seconds: Gauge,
    awaiting_restart: IntGauge,
    log_lines_dropped: IntCounter,
    panics: IntCounter,
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let add = |metric| registry.register(metric).expect("each name is registered once");
        let metrics = Self::registered(registry.clone(), &add);
        add(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
        metrics
    }

    // A metric a line.
    #[rustfmt::skip]
    fn registered(registry: Registry, r: &Register<'_>) -> Self {
        let info = gauges(r, "build_info", "Always 1; the label has the version that runs.", "version");
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let durable = histograms(r, "durable_duration_seconds", "Time from a verified event to the brokers' ack (path=kafka) or the fsync (path=spool, including the wait for Kafka before it). Increases with slow brokers or a slow disk.", "path");
        let metrics = Self {
            registry,
            scraping: Mutex::default(),
            requests: counters(r, "requests_total", "Requests to the webhook listener by HTTP status, including those for pages and those that are no HTTP. Not by app: events_total, rejected_total and unavailable_total are. Alert on those.", &["code"]),
            request_seconds: histogram(r, "request_duration_seconds", "Time from a request's headers to its response. LiveChat gives up after 10 s. Increases with slow brokers, a slow disk, or bodies that arrive slowly."),
            publish_seconds: histogram(r, "publish_duration_seconds", "Time from the hand-over to the Kafka client to the delivery report. Increases when brokers are slow or unreachable."),
            refused: Changing::new(r, IntCounterVec::new(opts("rejected_total", "Requests answered 4xx, by app and reason. Increases with a wrong registration at LiveChat, or with strangers. unauthorized (a secret key of no app), no_secret_key, key_of_another_app, unknown_app, expired and not_yet_valid are answered 401; `check --request` says more. too_many_failures: one source has sent many wrong secret keys."), &["reason", "app"])),
            unavailable: Changing::new(r, IntCounterVec::new(opts("unavailable_total", "Webhooks answered 503 because they could not be stored, by app and reason. Increases when events may soon be lost: LiveChat retries for about a minute."), &["reason", "app"])),
            pages: counters(r, "page_requests_total", "Requests for the installation page and the app's page, by result. unreachable increases when LiveChat fails, misconfigured when LiveChat does not know the app as configured, too_many with strangers; the log has the details.", &["result"]),
            faults: counters(r, "payload_faults_total", "Members of webhooks that were not as documented; the event was published without the attribute. Increases when LiveChat changes its payloads.", &["reason"]),
            initial_events_left_out: counter(r, "initial_events_left_out_total", "Events inside an incoming_chat that did not become records of their own, because the chat has more than 100 of them or more than 1 MiB (events.initial). They are in the incoming_chat."),
            retries: counters(r, "retries_total", "Deliveries that were not published again: dropped because the event was already stored, joined because it was in flight, copy because another registration had delivered an equal event. dropped and joined increase when LiveChat does not get the 200 in time; all three while two registrations of one action deliver.", &["result"]),
            secret_keys_used: Changing::new(r, IntCounterVec::new(opts("secret_key_used_total", "Webhooks verified by each secret key. Once this stops increasing, the key can be removed."), &["app", "key"])),
            secret_keys_last_used: Changing::new(r, GaugeVec::new(opts("secret_key_last_used_timestamp_seconds", "When each secret key last verified a webhook, in seconds since 1970; 0: not since the start. A key that lags behind the others is used by few registrations, or by none."), &["app", "key"])),
            secret_keys_not_after: Changing::new(r, GaugeVec::new(opts("secret_key_not_after_timestamp_seconds", "When each secret key that has a not_after expires, in seconds since 1970. From then on its webhooks are answered 401."), &["app", "key"])),
            last_deliveries: Changing::new(r, GaugeVec::new(opts("webhook_last_delivery_timestamp_seconds", "When each registration at LiveChat last delivered a verified webhook, in seconds since 1970. One that lags behind the others of its action was removed at LiveChat, or gets nothing. A registration that has delivered nothing since the start is absent."), &["app", "webhook_id", "action"])),
            registrations: Changing::new(r, GaugeVec::new(opts("registrations", "Registrations at LiveChat by state, as of the last comparison (livechat.watch). missing: a wanted registration does not exist, so its events are not delivered, or still through one that will be replaced (that one counts as not_wanted); misaddressed: events go to another path of the relay; not_wanted: `webhooks apply` removes it; foreign: it goes to another address, or its action is unknown."), &["app", "state"])),
            registrations_enabled: Changing::new(r, GaugeVec::new(opts("license_webhooks_enabled", "1 while LiveChat sends the app's webhooks, as of the last comparison (livechat.watch). 0: they were disabled, or the app is not installed."), &["app"])),
            registration_checks: Changing::new(r, IntCounterVec::new(opts("registration_checks_total", "Comparisons of what is registered at LiveChat with what is wanted (livechat.watch), by app and result. failed increases when LiveChat cannot be asked; the log has the reason."), &["app", "result"])),
            api_version_end: Changing::new(r, GaugeVec::new(opts("api_version_end_timestamp_seconds", "When LiveChat ends the app's api_version, as its answers say, in seconds since 1970: it becomes legacy, and is later switched off (deprecation). Absent while LiveChat has set no date."), &["app", "stage"])),
            rule_matches: Changing::new(r, IntCounterVec::new(opts("rule_matches_total", "Events that each rule was the first to match, including those that a sample kept. Once this stops increasing, the rule can be removed."), &["rule"])),
            kafka_errors: counters(r, "kafka_errors_total", "Errors of the Kafka client and of deliveries, by librdkafka's code. Increases with anything wrong at the brokers; the log has the details.", &["code"]),
            producer_rebuilds: counter(r, "producer_rebuilds_total", "Kafka producers that were replaced: after a fatal error, or because a topic kept failing while the brokers answered. The log has the details."),
            replay_runs_ended: counter(r, "replay_runs_ended_total", "How often the replay stopped at a record that Kafka did not accept, and continued there with another producer. A few in each outage are normal."),
            connections: gauge(r, "connections", "Open connections of the webhook listener. At server.connections_max, those that have waited longest are closed."),
            connections_ended: counters(r, "connections_ended_total", "Connections of the webhook listener that have ended, by how. evicted increases when all slots are taken, proxy_protocol when a proxy does not match server.client_address.", &["reason"]),
            tls_handshakes: counters(r, "tls_handshakes_total", "Completed TLS handshakes of the webhook listener, by whether the session was new (full, a signature each) or resumed. full increases with clients that do not keep their connections.", &["session"]),
            tls_not_after: Changing::new(r, GaugeVec::new(opts("tls_certificate_not_after_timestamp_seconds", "When each TLS certificate expires, in seconds since 1970. Less than 14 days from now: it was not renewed."), &["name"])),
            acme_orders: counters(r, "acme_orders_total", "Orders of a certificate by result. failed increases when the authority cannot be reached, or refuses; the log has its reason.", &["result"]),
            acme_failures: gauge(r, "acme_consecutive_failures", "Failed orders since the last certificate was issued. Increases while the authority cannot be reached, or refuses."),
            bytes_in_flight: gauge(r, "bytes_in_flight", "Bytes of webhooks that are being received or published, large bodies included. Near server.bytes_in_flight_max, or server.large_bytes_in_flight_max for large ones, webhooks are answered 503."),
            records_in_flight: gauge(r, "records_in_flight", "Records handed to the Kafka client without a delivery report yet. Increases when brokers are slow or unreachable."),
            ready: gauge(r, "ready", "1 while events can be stored, as /readyz reports; 0: webhooks are answered 503."),
            scrapes_unauthorized: counter(r, "scrapes_unauthorized_total", "Requests for /metrics without the bearer token of admin.token, answered 401. Increases when a scraper has no token or an old one, or with strangers."),
            kafka_up: gauge(r, "kafka_up", "1 while the brokers answer. 0: events are spooled, or, without a spool, answered 503."),
            topics: gauges(r, "topics", "Topics that the routes need by state: ready; missing, where topics.create is false; refused, where the brokers refuse to create them. All 0 until the brokers have answered. Events of topics that are not ready are spooled, or, without a spool, answered 503.", "state"),
            events: Changing::new(r, IntCounterVec::new(opts("events_total", "Verified webhooks, the events inside them (events.initial) and events from LiveChat's archives (backfill), by app, action and outcome. published: on Kafka; spooled: in the spool, and in replayed_total once it is on Kafka; duplicate: stored before; dropped: by the configuration or a rule; dead_lettered: see dead_letters_total; unavailable: not stored, so its webhook is answered 503."), &["action", "outcome", "app"])),
            durable_on_kafka_seconds: durable.with_label_values(&["kafka"]),
            durable_in_spool_seconds: durable.with_label_values(&["spool"]),
            spool_accepting: gauge(r, "spool_accepting", "1 while the spool accepts events. 0: it is full or has failed, as the log says, or its disk does not answer; or there is no spool (then spool_bytes_max is 0, too)."),
            spool_records: gauges(r, "spool_records", "Events in the spool by topic. Increases while the topic, or all of Kafka, accepts no events.", "topic"),
            spool_bytes: gauges(r, "spool_bytes", "Bytes of the events in the spool by topic. When their sum reaches spool.bytes_max, webhooks are answered 503.", "topic"),
            spool_oldest_seconds: Changing::new(r, GaugeVec::new(opts("spool_oldest_seconds", "How long the oldest event of a topic has waited in the spool, as of the last probe. Increases while the topic accepts no events."), &["topic"])),
            spool_commit_seconds: histogram(r, "spool_commit_duration_seconds", "Duration of one write to the spool with its fsync, which serves all events that wait. Usually milliseconds. Increases with a slow disk."),
            spool_failures: counter(r, "spool_failures_total", "Failed writes or fsyncs of the spool, after which it accepts nothing until a new file has been created. Increases when the disk fails."),
            spool_failover: gauge(r, "spool_failover", "1 while new events overtake those in the spool, because it has accepted nothing for spool.failover_after."),
            spool_faults: gauges(r, "spool_faults", "Files of the spool that cannot be published, by fault: put aside or missing since the start, or not readable at the moment (which is tried again). `spool status` names them.", "fault"),
            replayed: counter(r, "replayed_total", "Events of the spool that their topic has now, and dead letters on disk that `dead-letters replay` has published. Not the dead letters of rules, which dead_letters_total has."),
            dead_letters: counters(r, "dead_letters_total", "Events that their topic will never accept, or that a rule sends to the dead letters (reason=rule), by where they went (the dead-letter topic, or the disk) and why. One that is replayed and rejected again counts again. Raise the topic's max.message.bytes, or see `dead-letters list`.", &["to", "reason"]),
            dead_letters_on_disk_bytes: gauge(r, "dead_letters_on_disk_bytes", "Bytes of the dead letters on disk. At spool.dead_letters_bytes_max, what a topic refuses is held back in the spool, or answered 503."),
            dead_letters_on_disk: gauge(r, "dead_letters_on_disk", "Dead letters on disk; `dead-letters list` shows them."),
            spool_bytes_max: gauge(r, "spool_bytes_max", "The value of spool.bytes_max; 0 without a spool."),
            reloads: counters(r, "config_reloads_total", "How often the configuration was read again, on request or because it had changed, by result. invalid and unreadable: the former configuration stays in effect, and the log names each mistake.", &["result"]),
            last_reload_successful: gauge(r, "config_last_reload_successful", "1 while the configuration, as last read, is valid; 0: it is invalid or cannot be read, the relay runs with the former one, and may not start with this one."),
            last_reload_success_seconds: timestamp(r, "config_last_reload_success_timestamp_seconds", "When the configuration was last loaded, or checked and found valid, in seconds since 1970."),
            awaiting_restart: gauge(r, "config_keys_awaiting_restart", "Keys of the configuration that have changed and need a restart to take effect, including the content of files that they name. The log, and `livechat-relay reload`, name them."),
            log_lines_dropped: counter(r, "log_lines_dropped_total", "Log lines that were lost because standard error did not accept them in time. Increases when a log collector hangs or its disk is full."),
            panics: counter(r, "panics_total", "Panics: bugs in the relay. The log has their location."),
        };
        metrics.start();
        metrics
    }

    /// Labels that are known beforehand exist from the start, so that a rate over them never begins with a gap.
    fn start(&self) {
        let start = |counters: &IntCounterVec, labels: &[&str]| counters.with_label_values(labels).inc_by(0);
        Fault::ALL.iter().for_each(|fault| start(&self.faults, &[fault.label()]));
        ["dropped", "joined", "copy"].iter().for_each(|result| start(&self.retries, &[result]));
        for (to, reason) in
            ["topic", "disk"].into_iter().flat_map(|to| DeadLetterReason::ALL.iter().map(move |r| (to, r)))
        {
            start(&self.dead_letters, &[to, reason.label()]);
        }
        Reload::ALL.iter().for_each(|result| start(&self.reloads, &[result.label()]));
        ["full", "resumed"].iter().for_each(|session| start(&self.tls_handshakes, &[session]));
        ["issued", "failed"].iter().for_each(|result| start(&self.acme_orders, &[result]));
        PageEnd::ALL.iter().for_each(|end| start(&self.pages, &[end.label()]));
        ConnectionEnd::ALL.iter().for_each(|end| start(&self.connections_ended, &[end.label()]));
        Outcome::statuses().iter().for_each(|status| start(&self.requests, &[&status.to_string()]));
    }

    /// An answer, by its HTTP status.
    pub fn answered(&self, code: &str) {
        self.requests.with_label_values(&[code]).inc();
    }

    pub fn page(&self, end: PageEnd) {
        self.pages.with_label_values(&[end.label()]).inc();
    }

    pub fn connection_ended(&self, end: ConnectionEnd) {
        self.connections_ended.with_label_values(&[end.label()]).inc();
    }

    pub fn tls_handshake(&self, is_resumed: bool) {
        self.tls_handshakes.with_label_values(&[if is_resumed { "resumed" } else { "full" }]).inc();
    }

    /// When each certificate expires: all of them, so that one that is no longer used has no date. Of several with one name the first to
    /// expire counts.
    pub fn tls_certificates(&self, mut certificates: Vec<(String, Timestamp)>) {
        certificates.sort_by_key(|(_, not_after)| std::cmp::Reverse(*not_after));
        let certificates = certificates.into_iter().map(|(name, end)| ([name], end.as_second() as f64));
        self.tls_not_after.set(certificates, Gauge::set);
    }

    pub fn fault(&self, fault: Fault) {
        self.faults.with_label_values(&[fault.label()]).inc();
    }

    /// A delivery that was not published again: `dropped`, `joined` or `copy`.
    pub fn retry(&self, result: &str) {
        self.retries.with_label_values(&[result]).inc();
    }

    /// How long an event took to become durable, if it has.
    pub fn durable(&self, outcome: Outcome, took: Duration) {
        match outcome {
            Outcome::Published => self.durable_on_kafka_seconds.observe(took.as_secs_f64()),
            Outcome::Spooled => self.durable_in_spool_seconds.observe(took.as_secs_f64()),
            _ => {}
        }
    }

    /// What has become of the webhooks of each app: of all apps, so that one that was removed is shown no more.
    pub fn apps(&self, apps: &[(&str, &Counts)]) {
        let events = apps.iter().flat_map(|(app, counts)| {
            counts.events().map(move |([action, outcome], counted)| ([action, outcome, app], counted))
        });
        self.events.set(events, count);
        let of_reason = |app, (reason, counted)| ([reason, app], counted);
        let refused = apps.iter().flat_map(|(app, counts)| counts.refused().map(move |one| of_reason(*app, one)));
        self.refused.set(refused, count);
        let unavailable =
            apps.iter().flat_map(|(app, counts)| counts.unavailable().map(move |one| of_reason(*app, one)));
        self.unavailable.set(unavailable, count);
    }

    /// The secret keys of all apps: all of them, so that one that was removed is shown no more.
    pub fn secret_keys<'k>(&self, keys: impl Iterator<Item = (&'k str, &'k Key)>) {
        let keys: Vec<_> = keys.map(|(app, key)| ([app, key.name()], key)).collect();
        self.secret_keys_used.set(keys.iter().map(|(labels, key)| (*labels, key.uses())), count);
        let last_uses = keys.iter().map(|(labels, key)| (*labels, key.last_use_ms() as f64 / 1000.0));
        self.secret_keys_last_used.set(last_uses, Gauge::set);
        let ends =
            keys.iter().filter_map(|(labels, key)| Some((*labels, key.validity().not_after?.as_second() as f64)));
        self.secret_keys_not_after.set(ends, Gauge::set);
    }

    /// What each registration has delivered: all of them, so that one that is forgotten is shown no more.
    pub fn deliveries(&self, all: &[Delivered]) {
        let all = all.iter().map(|Delivered { app, webhook_id, action, last, .. }| {
            ([app, webhook_id, action], last.as_millisecond() as f64 / 1000.0)
        });
        self.last_deliveries.set(all, Gauge::set);
    }

    /// What is registered at LiveChat for each app: all of them, so that one that is no longer watched is shown no more.
    pub fn registrations(&self, apps: &[Registered<'_>]) {
        let checks = apps.iter().flat_map(|of| of.checks.iter().map(|(result, checks)| ([of.app, result], *checks)));
        self.registration_checks.set(checks, count);
        let states = apps.iter().flat_map(|of| of.states.iter().map(|(state, count)| ([of.app, state], *count as f64)));
        self.registrations.set(states, Gauge::set);
        let enabled = apps.iter().filter_map(|of| Some(([of.app], f64::from(u8::from(of.is_enabled?)))));
        self.registrations_enabled.set(enabled, Gauge::set);
        let end = |date: Option<Date>| Some(date?.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second() as f64);
        let ends = apps.iter().flat_map(|of| of.ends.iter().map(|(stage, date)| ([of.app, stage], *date)));
        self.api_version_end.set(ends.filter_map(|(labels, date)| Some((labels, end(date)?))), Gauge::set);
    }

    /// The configuration was read: at the start, or again, with this result.
    pub fn configured(&self, result: Option<Reload>, awaiting_restart: usize) {
        result.iter().for_each(|result| self.reloads.with_label_values(&[result.label()]).inc());
        let is_right = !matches!(result, Some(Reload::Invalid | Reload::Unreadable));
        self.last_reload_successful.set(is_right.into());
        if is_right {
            self.last_reload_success_seconds.set(Timestamp::now().as_millisecond() as f64 / 1000.0);
            self.awaiting_restart.set(i64::try_from(awaiting_restart).unwrap_or(i64::MAX));
        }
    }

    /// The rules: all of them, so that one that was removed is shown no more.
    pub fn rules(&self, rules: &Rules) {
        self.rule_matches.set(rules.iter().map(|rule| ([&rule.name], rule.matches())), count);
    }

    /// A record that became a dead letter, by where it went.
    pub fn dead_letter(&self, to: &str, reason: DeadLetterReason) {
        self.dead_letters.with_label_values(&[to, reason.label()]).inc();
    }

    /// How many topics are in which state.
    pub fn topics(&self, states: [(&str, usize); 3]) {
        for (state, topics) in states {
            self.topics.with_label_values(&[state]).set(i64::try_from(topics).unwrap_or(i64::MAX));
        }
    }

    /// The gauges of one topic's part of the spool: its records and its bytes.
    pub fn spool_lane(&self, topic: &str) -> [IntGauge; 2] {
        [&self.spool_records, &self.spool_bytes].map(|gauges| gauges.with_label_values(&[topic]))
    }

    /// What of the spool cannot be published: how many files of which fault.
    pub fn spool_faults(&self, fault: &str, files: usize) {
        self.spool_faults.with_label_values(&[fault]).set(i64::try_from(files).unwrap_or(i64::MAX));
    }

    /// Since when the first event of each topic in the spool has waited: all of them, so that a topic that is empty has no age.
    pub fn spool_ages(&self, since: Vec<(Arc<str>, Timestamp)>) {
        let now = Timestamp::now();
        let age = |since: Timestamp| now.duration_since(since).as_secs_f64().max(0.0);
        self.spool_oldest_seconds.set(since.into_iter().map(|(topic, since)| ([topic], age(since))), Gauge::set);
    }

    /// The text format that Prometheus scrapes.
    pub fn text(&self) -> Vec<u8> {
        {
            let _one = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
            count(&self.log_lines_dropped, telemetry::dropped_lines());
            count(&self.panics, telemetry::panics());
        }
        let mut text = Vec::with_capacity(32 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("memory takes what is written");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
