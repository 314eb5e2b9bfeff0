//! What Prometheus sees: all names, labels and help texts. Every label has a closed set of values. Nothing in the relay reads a metric:
//! what is counted elsewhere is copied here when it is scraped.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::deliveries::Delivered;
use crate::event::{Fault, Key, Rejection, Rules, actions, route::UNLISTED};
use crate::outcome::{ConnectionEnd, DeadLetterReason, Outcome, PageEnd, Refusal, Reload, Unavailable};
use crate::telemetry;

/// What a comparison has found of an app.
pub struct Registered<'a> {
    pub app: &'a str,
    /// How many are in which state.
    pub states: Vec<(&'static str, usize)>,
    pub is_enabled: Option<bool>,
    /// When its API version is discontinued.
    pub ends: [(&'static str, Option<Date>); 2],
}

/// The metrics of one relay, in a registry of their own. Those with a method are counted by it.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    pub request_seconds: Histogram,
    pub publish_seconds: Histogram,
    refused: IntCounterVec,
    unavailable: IntCounterVec,
    pages: IntCounterVec,
    faults: IntCounterVec,
    pub initial_events_left_out: IntCounter,
    retries: IntCounterVec,
    secret_keys_used: IntCounterVec,
    secret_keys_last_used: GaugeVec,
    secret_keys_not_after: GaugeVec,
    /// The secret keys that are shown, each with its app.
    secret_keys: Mutex<BTreeSet<[String; 2]>>,
    last_deliveries: Changing<3>,
    registrations: Changing<2>,
    registrations_enabled: Changing<1>,
    registrations_compared: IntCounterVec,
    api_version_end: Changing<2>,
    rule_matches: IntCounterVec,
    /// The rules that are shown.
    rules: Mutex<BTreeSet<String>>,
    pub kafka_errors: IntCounterVec,
    pub producer_rebuilds: IntCounter,
    pub replay_runs_ended: IntCounter,
    pub connections: IntGauge,
    connections_ended: IntCounterVec,
    tls_handshakes: IntCounterVec,
    tls_not_after: Changing<1>,
    pub acme_orders: IntCounterVec,
    pub acme_failures: IntGauge,
    pub bytes_in_flight: IntGauge,
    pub records_in_flight: IntGauge,
    pub ready: IntGauge,
    pub scrapes_unauthorized: IntCounter,
    pub kafka_up: IntGauge,
    topics: IntGaugeVec,
    events: IntCounterVec,
    durable_seconds: HistogramVec,
    pub spool_accepting: IntGauge,
    spool_records: IntGaugeVec,
    spool_bytes: IntGaugeVec,
    spool_oldest_seconds: GaugeVec,
    /// The topics that have one.
    spool_aged: Mutex<Vec<Arc<str>>>,
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

const SECONDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0];

impl Metrics {
    pub fn new() -> Self {
        let r = &Registry::new();
        let metrics = Self {
            requests: counters(r, "requests_total", "Requests to the webhook listener by HTTP status. 401 increases when a sender has a wrong secret key, 503 when events cannot be stored and may soon be lost. Requests for pages are included (page_requests_total counts them alone), so alert on rejected_total and unavailable_total.", &["code"]),
            request_seconds: histogram(r, "request_duration_seconds", "Time from a request's headers to its answer. LiveChat gives up after 10 s."),
            publish_seconds: histogram(r, "publish_duration_seconds", "Time from hand-over to the Kafka client to the delivery report. Increases when brokers are slow or unreachable."),
            refused: counters(r, "rejected_total", "Requests answered 4xx, by reason. Increases with a wrong registration at LiveChat, or with unauthenticated requests from strangers. Answered 401: unauthorized (a secret key of no app), no_secret_key, key_of_another_app, unknown_app, expired, not_yet_valid; `check --request` says more. too_many_failures: one source has sent many wrong secret keys.", &["reason"]),
            unavailable: counters(r, "unavailable_total", "Webhooks answered 503 because they could not be stored, by reason. Increases when events may soon be lost.", &["reason"]),
            pages: counters(r, "page_requests_total", "Requests for the installation page and the app's page, by result. unreachable increases when LiveChat fails, misconfigured when LiveChat does not know the app as configured, too_many with strangers; the log has the details.", &["result"]),
            faults: counters(r, "payload_faults_total", "Members of webhooks that were not as documented; the event was published without an attribute. Increases when LiveChat changes its payloads.", &["reason"]),
            initial_events_left_out: counter(r, "initial_events_left_out_total", "Events inside an incoming_chat that did not become records of their own, because the chat has more than 100 of them or more than 1 MiB (events.initial). They are in the incoming_chat."),
            retries: counters(r, "retries_total", "Deliveries that were not published again: dropped because the event was already durable, joined because it was in flight, copy because another registration had delivered an equal event. dropped and joined increase when LiveChat does not get our 200 in time; all three while two registrations of one action deliver.", &["result"]),
            secret_keys_used: counters(r, "secret_key_used_total", "Webhooks verified by each secret key, by its name. Once this stops increasing, the key can be removed.", &["app", "key"]),
            secret_keys_last_used: register(r, GaugeVec::new(opts("secret_key_last_used_timestamp_seconds", "When each secret key last verified a webhook, in seconds since 1970; 0: not since the start. A key that lags behind the others is used by few registrations, or by none."), &["app", "key"])),
            secret_keys_not_after: register(r, GaugeVec::new(opts("secret_key_not_after_timestamp_seconds", "When each secret key that has a not_after expires, in seconds since 1970. From then on its webhooks are answered 401."), &["app", "key"])),
            secret_keys: Mutex::default(),
            last_deliveries: Changing::new(r, opts("webhook_last_delivery_timestamp_seconds", "When each registration at LiveChat last delivered a verified webhook, in seconds since 1970, by its webhook_id. One that lags behind the others of its action was removed at LiveChat, or gets nothing. A registration that has delivered nothing since the start is absent."), ["app", "webhook_id", "action"]),
            registrations: Changing::new(r, opts("registrations", "Registrations at LiveChat by state, as of the last comparison (livechat.watch). missing: a wanted registration does not exist, so its events are not delivered, or still through one that will be replaced (that one counts as not_wanted); misaddressed: events go to another path of the relay; not_wanted: `webhooks apply` removes it; foreign: it goes to another address, or its action is unknown."), ["app", "state"]),
            registrations_enabled: Changing::new(r, opts("license_webhooks_enabled", "1 while LiveChat sends the app's webhooks, as of the last comparison (livechat.watch). 0: they were disabled, or the app is not installed."), ["app"]),
            registrations_compared: counters(r, "registration_checks_total", "Comparisons of what is registered at LiveChat with what is wanted (livechat.watch), by result. failed increases when LiveChat cannot be asked; the log has the reason.", &["result"]),
            api_version_end: Changing::new(r, opts("api_version_end_timestamp_seconds", "When LiveChat ends the app's api_version, as its answers say, in seconds since 1970: it becomes legacy, and is later switched off (deprecation). Absent while LiveChat has set no date."), ["app", "stage"]),
            rule_matches: counters(r, "rule_matches_total", "Events that each rule was the first to match, including those that a sample kept. Once this stops increasing, the rule can be removed.", &["rule"]),
            rules: Mutex::default(),
            kafka_errors: counters(r, "kafka_errors_total", "Errors of the Kafka client and of deliveries, by librdkafka's code. The log has the details.", &["code"]),
            producer_rebuilds: counter(r, "producer_rebuilds_total", "Kafka producers that were replaced: after a fatal error, or because a topic kept failing while the brokers answered. The log has the details."),
            replay_runs_ended: counter(r, "replay_runs_ended_total", "How often the replay stopped at a record that Kafka did not accept, and continued there with another producer. A few in each outage are normal."),
            connections: gauge(r, "connections", "Open connections of the webhook listener. At server.connections_max, those that have waited longest are closed."),
            connections_ended: counters(r, "connections_ended_total", "Connections of the webhook listener that have ended, by how. evicted increases when all slots are taken, proxy_protocol when a proxy does not match server.client_address.", &["reason"]),
            tls_handshakes: counters(r, "tls_handshakes_total", "Completed TLS handshakes of the webhook listener, by whether the session was new (full, a signature each) or resumed. full increases with clients that do not keep their connections.", &["session"]),
            tls_not_after: Changing::new(r, opts("tls_certificate_not_after_timestamp_seconds", "When each TLS certificate expires, by its first DNS name. Less than 14 days from now: it was not renewed."), ["name"]),
            acme_orders: counters(r, "acme_orders_total", "Orders of a certificate by result. failed increases when the authority cannot be reached, or refuses; the log has its reason.", &["result"]),
            acme_failures: gauge(r, "acme_consecutive_failures", "Failed orders since the last certificate was issued. Increases while the authority cannot be reached, or refuses."),
            bytes_in_flight: gauge(r, "bytes_in_flight", "Bytes of webhooks that are being received or published, large bodies included. Near server.bytes_in_flight_max, or server.large_bytes_in_flight_max for large ones, webhooks are answered 503."),
            records_in_flight: gauge(r, "records_in_flight", "Records handed to the Kafka client without a delivery report yet. Increases when brokers are slow or unreachable."),
            ready: gauge(r, "ready", "1 while events can be stored, as /readyz reports; 0: webhooks are answered 503."),
            scrapes_unauthorized: counter(r, "scrapes_unauthorized_total", "Requests for /metrics without the bearer token of admin.token, answered 401. Increases when a scraper has no token or an old one, or with strangers."),
            kafka_up: gauge(r, "kafka_up", "1 while the brokers answer. 0: events are spooled, or, without a spool, answered 503."),
            topics: register(r, IntGaugeVec::new(opts("topics", "Topics that the routes need by state: ready; missing, where topics.create is false; refused, where the brokers refuse to create them. All 0 until the brokers have answered. Events of topics that are not ready are spooled, or, without a spool, answered 503."), &["state"])),
            events: counters(r, "events_total", "Verified webhooks, and events made from them (events.initial) or from LiveChat's archives (backfill), by action and outcome. outcome=unavailable increases when a verified webhook is answered 503.", &["action", "outcome"]),
            durable_seconds: register(r, HistogramVec::new(
                HistogramOpts::from(opts("durable_duration_seconds", "Time from a verified event to the brokers' ack (path=kafka) or the fsync (path=spool, including the wait for Kafka before it). Increases with slow brokers or a slow disk.")).buckets(SECONDS.to_vec()),
                &["path"],
            )),
            spool_accepting: gauge(r, "spool_accepting", "1 while the spool accepts events. 0: it is full or has failed, as the log says; or there is no spool (then spool_bytes_max is 0, too)."),
            spool_records: gauges(r, "spool_records", "Events in the spool by topic. Increases while the topic, or all of Kafka, accepts no events."),
            spool_bytes: gauges(r, "spool_bytes", "Bytes of the events in the spool by topic. When their sum reaches spool.bytes_max, webhooks are answered 503."),
            spool_oldest_seconds: register(r, GaugeVec::new(opts("spool_oldest_seconds", "How long the oldest event of a topic has waited in the spool, as of the last probe. Increases while the topic accepts no events."), &["topic"])),
            spool_aged: Mutex::default(),
            spool_commit_seconds: histogram(r, "spool_commit_duration_seconds", "Duration of one write to the spool with its fsync, which serves all events that wait. Increases with a slow disk."),
            spool_failures: counter(r, "spool_failures_total", "Failed writes or fsyncs of the spool, after which it accepts nothing until another file was begun. Increases when the disk fails."),
            spool_failover: gauge(r, "spool_failover", "1 while new events overtake those in the spool, because it has accepted nothing for spool.failover_after."),
            spool_faults: register(r, IntGaugeVec::new(opts("spool_faults", "Files of the spool that cannot be published, by fault: put aside or missing since the start, or not readable at the moment (which is tried again)."), &["fault"])),
            replayed: counter(r, "replayed_total", "Events published from the spool."),
            dead_letters: counters(r, "dead_letters_total", "Events that their topic will never accept, or that a rule sends to the dead letters (reason=rule), by where they went (the dead-letter topic, or the disk) and why. Raise the topic's max.message.bytes, or see `dead-letters list`.", &["to", "reason"]),
            dead_letters_on_disk_bytes: gauge(r, "dead_letters_on_disk_bytes", "Bytes of the dead letters on disk. At spool.dead_letters_bytes_max, what a topic refuses is held back in the spool, or answered 503."),
            dead_letters_on_disk: gauge(r, "dead_letters_on_disk", "Dead letters on disk; `dead-letters list` shows them."),
            spool_bytes_max: gauge(r, "spool_bytes_max", "The value of spool.bytes_max; 0 without a spool."),
            reloads: counters(r, "config_reloads_total", "How often the configuration was read again, on request or because it had changed, by result. invalid and unreadable: the former configuration stays in effect, and the log names each mistake.", &["result"]),
            last_reload_successful: gauge(r, "config_last_reload_successful", "1 while the configuration, as last read, is valid; 0: it is invalid or cannot be read, the relay runs with the former one, and may not start with this one."),
            last_reload_success_seconds: register(r, Gauge::with_opts(opts("config_last_reload_success_timestamp_seconds", "When the configuration was last loaded, or checked and found valid, in seconds since 1970."))),
            awaiting_restart: gauge(r, "config_keys_awaiting_restart", "Keys of the configuration that have changed and need a restart to take effect, including the content of files that they name. The log, and `livechat-relay reload`, name them."),
            log_lines_dropped: counter(r, "log_lines_dropped_total", "Log lines that were lost because standard error did not accept them in time. Increases when a log collector hangs or its disk is full."),
            panics: counter(r, "panics_total", "Panics: bugs in the relay. The log has their location."),
            registry: r.clone(),
        };
        metrics.start();
        metrics
    }

    /// Labels that are known beforehand exist from the start, so that a rate over them never begins with a gap.
    fn start(&self) {
        let start = |counters: &IntCounterVec, labels: &[&str]| counters.with_label_values(labels).inc_by(0);
        let refusals = Refusal::ALL.iter().map(|refusal| refusal.label());
        let rejections = Rejection::ALL.iter().map(|rejection| rejection.label());
        refusals.chain(rejections).for_each(|reason| start(&self.refused, &[reason]));
        Fault::ALL.iter().for_each(|fault| start(&self.faults, &[fault.label()]));
        ["dropped", "joined", "copy"].iter().for_each(|result| start(&self.retries, &[result]));
        for (to, reason) in
            ["topic", "disk"].into_iter().flat_map(|to| DeadLetterReason::ALL.iter().map(move |r| (to, r)))
        {
            start(&self.dead_letters, &[to, reason.label()]);
        }
        ["compared", "failed"].iter().for_each(|result| start(&self.registrations_compared, &[result]));
        Reload::ALL.iter().for_each(|result| start(&self.reloads, &[result.label()]));
        ["full", "resumed"].iter().for_each(|session| start(&self.tls_handshakes, &[session]));
        ["issued", "failed"].iter().for_each(|result| start(&self.acme_orders, &[result]));
        Unavailable::ALL.iter().for_each(|reason| start(&self.unavailable, &[reason.label()]));
        PageEnd::ALL.iter().for_each(|end| start(&self.pages, &[end.label()]));
        ConnectionEnd::ALL.iter().for_each(|end| start(&self.connections_ended, &[end.label()]));
        Outcome::statuses().iter().for_each(|status| start(&self.requests, &[&status.to_string()]));
        let not_listed = [UNLISTED, actions::APP_WEBHOOK.name, actions::APP_INSTALLED.name];
        for action in actions::names().chain(not_listed) {
            Outcome::LABELS.iter().for_each(|outcome| start(&self.events, &[action, outcome]));
        }
        let info = Opts::new("livechat_relay_build_info", "Always 1; the label has the version.");
        let info = register(&self.registry, IntGaugeVec::new(info, &["version"]));
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        self.registry.register(Box::new(process)).expect("registered once");
    }

    /// An answer, by its HTTP status.
    pub fn answered(&self, code: &str) {
        self.requests.with_label_values(&[code]).inc();
    }

    /// A request that was answered 4xx, by the label of a [`Refusal`] or a [`Rejection`].
    pub fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    pub fn unavailable(&self, reason: Unavailable) {
        self.unavailable.with_label_values(&[reason.label()]).inc();
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
        self.tls_not_after.set(certificates.into_iter().map(|(name, end)| ([name], end.as_second() as f64)));
    }

    pub fn fault(&self, fault: Fault) {
        self.faults.with_label_values(&[fault.label()]).inc();
    }

    /// A delivery that was not published again: `dropped`, `joined` or `copy`.
    pub fn retry(&self, result: &str) {
        self.retries.with_label_values(&[result]).inc();
    }

    /// What has become of an event and how long it took; `action` is a name of the catalogue, [`UNLISTED`], or that of App Webhooks
    /// or of installations.
    pub fn event(&self, action: &str, outcome: Outcome, took: Duration) {
        self.events.with_label_values(&[action, outcome.label()]).inc();
        let path = match outcome {
            Outcome::Published => "kafka",
            Outcome::Spooled => "spool",
            _ => return,
        };
        self.durable_seconds.with_label_values(&[path]).observe(took.as_secs_f64());
    }

    /// The secret keys of all apps: all of them, so that one that was removed is shown no more.
    pub fn secret_keys<'k>(&self, keys: impl Iterator<Item = (&'k str, &'k Key)>) {
        let mut shown = self.secret_keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = std::mem::take(&mut *shown);
        for (app, key) in keys {
            let labels = [app.to_owned(), key.name().to_owned()];
            gone.remove(&labels);
            self.secret_keys_last_used.with_label_values(&labels).set(key.last_use_ms() as f64 / 1000.0);
            match key.validity().not_after {
                Some(end) => self.secret_keys_not_after.with_label_values(&labels).set(end.as_second() as f64),
                None => drop(self.secret_keys_not_after.remove_label_values(&labels)), // mostly there is none
            }
            set(&self.secret_keys_used.with_label_values(&labels), key.uses());
            shown.insert(labels);
        }
        for labels in gone {
            let _ = self.secret_keys_used.remove_label_values(&labels); // it was set above
            let _ = self.secret_keys_last_used.remove_label_values(&labels);
            let _ = self.secret_keys_not_after.remove_label_values(&labels); // mostly there is none
        }
    }

    /// What each registration has delivered: all of them, so that one that is forgotten is shown no more.
    pub fn deliveries(&self, all: &[Delivered]) {
        self.last_deliveries.set(all.iter().map(|Delivered { app, webhook_id, action, last, .. }| {
            ([app, webhook_id, action].map(String::clone), last.as_millisecond() as f64 / 1000.0)
        }));
    }

    /// What is registered at LiveChat for each app: all of them, so that one that is no longer watched is shown no more.
    pub fn registrations(&self, apps: &[Registered<'_>]) {
        let states = apps.iter().flat_map(|of| of.states.iter().map(|(state, count)| ([of.app, state], *count as f64)));
        self.registrations.set(states.map(|(labels, count)| (labels.map(str::to_owned), count)));
        let enabled = apps.iter().filter_map(|of| Some(([of.app.to_owned()], of.is_enabled?.into())));
        self.registrations_enabled.set(enabled.map(|(labels, is): (_, u8)| (labels, is.into())));
        let end = |date: Option<Date>| Some(date?.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second() as f64);
        let ends = apps.iter().flat_map(|of| of.ends.iter().map(|(stage, date)| ([of.app, stage], *date)));
        let ends = ends.filter_map(|(labels, date)| Some((labels.map(str::to_owned), end(date)?)));
        self.api_version_end.set(ends);
    }

    /// A comparison was made, or could not be.
    pub fn registrations_compared(&self, is_compared: bool) {
        let result = if is_compared { "compared" } else { "failed" };
        self.registrations_compared.with_label_values(&[result]).inc();
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
        let mut shown = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = std::mem::take(&mut *shown);
        for rule in rules.iter() {
            set(&self.rule_matches.with_label_values(&[&rule.name]), rule.matches());
            shown.insert(rule.name.clone());
        }
        for name in gone.difference(&shown) {
            let _ = self.rule_matches.remove_label_values(&[name]); // it was set above
        }
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
        let mut shown = self.spool_aged.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in shown.iter().filter(|topic| !since.iter().any(|(waiting, _)| waiting == *topic)) {
            let _ = self.spool_oldest_seconds.remove_label_values(&[topic]); // it was set below
        }
        *shown = since.iter().map(|(topic, _)| Arc::clone(topic)).collect();
        for (topic, since) in since {
            let age = now.duration_since(since).as_secs_f64().max(0.0);
            self.spool_oldest_seconds.with_label_values(&[&*topic]).set(age);
        }
    }

    /// The text format that Prometheus scrapes.
    pub fn text(&self) -> Vec<u8> {
        observe(&self.log_lines_dropped, telemetry::dropped_lines());
        observe(&self.panics, telemetry::panics());
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

/// Gauges whose labels come and go.
struct Changing<const N: usize> {
    gauges: GaugeVec,
    shown: Mutex<BTreeSet<[String; N]>>,
}

impl<const N: usize> Changing<N> {
    fn new(registry: &Registry, opts: Opts, labels: [&str; N]) -> Self {
        Self { gauges: register(registry, GaugeVec::new(opts, &labels)), shown: Mutex::default() }
    }

    /// All that there is. What is gone is removed last, so that a scrape in between lacks none; of several with the same labels the last counts.
    fn set(&self, all: impl Iterator<Item = ([String; N], f64)>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = std::mem::take(&mut *shown);
        for (labels, value) in all {
            self.gauges.with_label_values(&labels).set(value);
            gone.remove(&labels);
            shown.insert(labels);
        }
        for labels in gone {
            let _ = self.gauges.remove_label_values(&labels); // it was set before
        }
    }
}

/// Sets a counter to what is counted elsewhere. Where that has begun again, because a key or a rule was removed and is back, so does the counter.
fn set(counter: &IntCounter, counted: u64) {
    if counted < counter.get() {
        counter.reset();
    }
    observe(counter, counted);
}

/// Brings a counter up to what is counted elsewhere.
fn observe(counter: &IntCounter, counted: u64) {
    counter.inc_by(counted.saturating_sub(counter.get()));
}

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("a valid name");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("livechat_relay_{name}"), help)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(name, help), labels))
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::with_opts(opts(name, help)))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::with_opts(opts(name, help)))
}

/// Gauges by topic.
fn gauges(registry: &Registry, name: &str, help: &str) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(opts(name, help), &["topic"]))
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    register(registry, Histogram::with_opts(HistogramOpts::from(opts(name, help)).buckets(SECONDS.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_that_come_and_go_show_what_there_is_at_last() {
        let registry = Registry::new();
        let gauges = Changing::new(&registry, opts("changing", "For a test."), ["a", "b"]);
        let of = |pairs: &[(&str, f64)]| {
            gauges.set(pairs.iter().map(|(a, value)| ([(*a).to_owned(), "b".to_owned()], *value)));
            let families = registry.gather();
            let metrics = families.first().map(prometheus::proto::MetricFamily::get_metric).unwrap_or_default();
            metrics.iter().map(|one| one.get_gauge().get_value()).collect::<Vec<_>>()
        };
        assert_eq!(of(&[("x", 1.0), ("y", 2.0)]), [1.0, 2.0]);
        assert_eq!(of(&[("y", 3.0), ("z", 4.0), ("y", 5.0)]), [5.0, 4.0]);
        assert!(of(&[]).is_empty());
    }
}
