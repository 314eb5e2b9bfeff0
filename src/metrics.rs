//! What Prometheus sees. All names, labels and help texts stand here; every label has a closed set of values.

use std::collections::HashMap;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::event::{Fault, Rejection, actions, route::UNLISTED};

/// The label for App Webhooks, whose events are no actions.
pub const APP_WEBHOOK: &str = "app_webhook";

/// The metrics of one relay, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    /// Requests by HTTP status.
    pub requests: IntCounterVec,
    /// From the headers' arrival to the answer.
    pub request_seconds: Histogram,
    /// From the hand-over to the producer to the delivery report.
    pub publish_seconds: Histogram,
    /// Webhooks that were the sender's fault, by reason.
    pub rejected: IntCounterVec,
    /// Webhooks that could not be made durable, by reason.
    pub unavailable: IntCounterVec,
    /// What was not as LiveChat documents it, by reason.
    pub faults: IntCounterVec,
    /// Deliveries that were not published because the same event was: dropped afterwards, or joined while it was under way.
    pub retries: IntCounterVec,
    /// Which key verified, by app and the key's name.
    pub secret_keys: IntCounterVec,
    /// Delivery reports and errors of the client, by librdkafka's name for them.
    pub kafka_errors: IntCounterVec,
    /// Producers that were given up and built anew.
    pub producer_rebuilds: IntCounter,
    pub connections: IntGauge,
    pub bytes_in_flight: IntGauge,
    pub records_in_flight: IntGauge,
    /// 1 while an event can be made durable.
    pub ready: IntGauge,
    events: HashMap<&'static str, Events>,
}

/// The counters of one action.
struct Events {
    published: IntCounter,
    dropped: IntCounter,
    unavailable: IntCounter,
}

/// What became of a verified webhook, as a label.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    Published,
    Dropped,
    Unavailable,
}

/// Why an event could not be made durable, as labels.
pub const UNAVAILABLE: [&str; 6] = ["kafka", "deadline", "queue_full", "too_large", "overloaded", "shutting_down"];

const SECONDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0];

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let events = counters(
            r,
            "events_total",
            "Verified webhooks by action and outcome. A rise of outcome=unavailable: LiveChat was answered 503, look at Kafka.",
            &["action", "outcome"],
        );
        let metrics = Self {
            requests: counters(
                r,
                "requests_total",
                "Requests to the webhook listener by HTTP status. A rise of 401: somebody sends a wrong secret key; of 503: events may be lost soon.",
                &["code"],
            ),
            request_seconds: histogram(
                r,
                "request_duration_seconds",
                "From a request's headers to its answer. Past 10 s LiveChat gives up.",
            ),
            publish_seconds: histogram(
                r,
                "publish_duration_seconds",
                "From hand-over to the Kafka client to the delivery report. A rise: slow or missing brokers.",
            ),
            rejected: counters(
                r,
                "rejected_total",
                "Webhooks refused with a 4xx, by reason. A rise: a wrong registration, or a stranger.",
                &["reason"],
            ),
            unavailable: counters(
                r,
                "unavailable_total",
                "Webhooks answered 503 because they could not be made durable, by reason. A rise: events may be lost soon.",
                &["reason"],
            ),
            faults: counters(
                r,
                "payload_faults_total",
                "Members that were not as documented; the event went through without an attribute. A rise: LiveChat changed something.",
                &["reason"],
            ),
            retries: counters(
                r,
                "retries_total",
                "Deliveries that were not published again: dropped because the event was durable, joined because it was under way. A rise: LiveChat does not get our 200 in time.",
                &["result"],
            ),
            secret_keys: counters(
                r,
                "secret_key_used_total",
                "Webhooks verified by each secret key, by its name. No rise any more: the key can be retired.",
                &["app", "key"],
            ),
            kafka_errors: counters(
                r,
                "kafka_errors_total",
                "Errors of the Kafka client and of deliveries, by librdkafka's code. A rise: look at the log.",
                &["code"],
            ),
            producer_rebuilds: counter(
                r,
                "producer_rebuilds_total",
                "Kafka producers given up after a fatal error and built anew. A rise: look at the brokers' log.",
            ),
            connections: gauge(
                r,
                "connections",
                "Open connections of the webhook listener. Near server.connections_max: new ones wait.",
            ),
            bytes_in_flight: gauge(
                r,
                "bytes_in_flight",
                "Bytes of webhooks being read or published. Near server.bytes_in_flight_max: 503s.",
            ),
            records_in_flight: gauge(
                r,
                "records_in_flight",
                "Records handed to the Kafka client and not yet reported. A rise: slow or missing brokers.",
            ),
            ready: gauge(
                r,
                "ready",
                "1 while an event can be made durable, as /readyz says; 0: events are answered 503.",
            ),
            events: actions::names()
                .chain([UNLISTED, APP_WEBHOOK])
                .map(|name| (name, Events::new(&events, name)))
                .collect(),
            registry: registry.clone(),
        };
        metrics.start();
        metrics
    }

    /// Labels that are known beforehand exist from the start, so that a rate over them never begins with a gap.
    fn start(&self) {
        Rejection::ALL.iter().for_each(|r| self.rejected.with_label_values(&[r.reason()]).inc_by(0));
        Fault::ALL.iter().for_each(|f| self.faults.with_label_values(&[f.reason()]).inc_by(0));
        ["dropped", "joined"].iter().for_each(|result| self.retries.with_label_values(&[result]).inc_by(0));
        UNAVAILABLE.iter().for_each(|reason| self.unavailable.with_label_values(&[reason]).inc_by(0));
        for code in ["200", "400", "401", "404", "405", "408", "413", "415", "503"] {
            self.requests.with_label_values(&[code]).inc_by(0);
        }
        let info = Opts::new("livechat_relay_build_info", "Always 1; the label tells the version.");
        let info = register(&self.registry, IntGaugeVec::new(info, &["version"]).expect("a valid name"));
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        self.registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("registered once");
    }

    /// Counts what became of an event; `action` is a name of the catalogue, [`UNLISTED`] or [`APP_WEBHOOK`].
    pub fn event(&self, action: &'static str, fate: Fate) {
        let events = &self.events[action];
        match fate {
            Fate::Published => events.published.inc(),
            Fate::Dropped => events.dropped.inc(),
            Fate::Unavailable => events.unavailable.inc(),
        }
    }

    /// The text format that Prometheus scrapes.
    pub fn text(&self) -> Vec<u8> {
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

impl Events {
    fn new(events: &IntCounterVec, action: &str) -> Self {
        let counter = |outcome: &str| events.with_label_values(&[action, outcome]);
        Self { published: counter("published"), dropped: counter("dropped"), unavailable: counter("unavailable") }
    }
}

fn register<M: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: M) -> M {
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("livechat_relay_{name}"), help)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(name, help), labels).expect("a valid name"))
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::with_opts(opts(name, help)).expect("a valid name"))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::with_opts(opts(name, help)).expect("a valid name"))
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let opts = HistogramOpts::from(opts(name, help)).buckets(SECONDS.to_vec());
    register(registry, Histogram::with_opts(opts).expect("a valid name"))
}
