//! What Prometheus sees. All names, labels and help texts stand here; every label has a closed set of values.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::event::{Fault, Rejection, actions, normalize::APP_WEBHOOK, route::UNLISTED};
use crate::outcome::{DeadLetterReason, Unavailable};
use crate::telemetry;

/// The metrics of one relay, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    /// Requests by HTTP status.
    requests: IntCounterVec,
    /// Those of them that were answered 200.
    answered_200: IntCounter,
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
    /// Producers that were replaced.
    pub producer_rebuilds: IntCounter,
    pub connections: IntGauge,
    pub bytes_in_flight: IntGauge,
    pub records_in_flight: IntGauge,
    /// 1 while an event can be made durable.
    ready: IntGauge,
    /// 1 while the brokers answer.
    pub kafka_up: IntGauge,
    /// From the hand-over to the ack, or to the fsync.
    durable_seconds: [Histogram; 2],
    /// 1 while the spool accepts events.
    pub spool_accepting: IntGauge,
    spool_records: IntGaugeVec,
    spool_bytes: IntGaugeVec,
    /// How long the first event of a lane has waited.
    pub spool_oldest_seconds: GaugeVec,
    /// One group commit with its fsync.
    pub spool_commit_seconds: Histogram,
    pub spool_failures: IntCounter,
    pub replayed: IntCounter,
    pub dead_letters: IntCounterVec,
    pub parked_records: IntGauge,
    pub parked_bytes: IntGauge,
    /// The spool's budget; 0 without a spool.
    pub spool_bytes_max: IntGauge,
    log_lines_dropped: IntCounter,
    panics: IntCounter,
    /// By action; the names are ours, so that their hashes need no protection.
    events: hashbrown::HashMap<&'static str, Events>,
}

/// The counters of one action.
struct Events {
    published: IntCounter,
    spooled: IntCounter,
    parked: IntCounter,
    dropped: IntCounter,
    unavailable: IntCounter,
}

/// What became of a verified webhook, as a label.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    Published,
    Spooled,
    Parked,
    Dropped,
    Unavailable,
}

const SECONDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0];

impl Metrics {
    #[allow(clippy::too_many_lines)] // a list
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let events = counters(
            r,
            "events_total",
            "Verified webhooks by action and outcome. A rise of outcome=unavailable: LiveChat was answered 503, look at Kafka.",
            &["action", "outcome"],
        );
        let requests = counters(
            r,
            "requests_total",
            "Requests to the webhook listener by HTTP status. A rise of 401: somebody sends a wrong secret key; of 503: events may be lost soon.",
            &["code"],
        );
        let durable_seconds = register(
            r,
            HistogramVec::new(
                HistogramOpts::from(opts(
                    "durable_duration_seconds",
                    "From a verified event to the brokers' ack (path=kafka) or the fsync (path=spool, the wait for Kafka before it included). A rise: slow brokers, or a slow disk.",
                ))
                .buckets(SECONDS.to_vec()),
                &["path"],
            )
            .expect("a valid name"),
        );
        let metrics = Self {
            answered_200: requests.with_label_values(&["200"]),
            requests,
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
                "Kafka producers that were replaced: after a fatal error, or because a topic went on failing while the brokers answer. A rise: look at the log.",
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
            kafka_up: gauge(r, "kafka_up", "1 while the brokers answer. 0: events are spooled, or, without a spool, answered 503."),
            ready: gauge(
                r,
                "ready",
                "1 while an event can be made durable, as /readyz says; 0: events are answered 503.",
            ),
            durable_seconds: ["kafka", "spool"].map(|path| durable_seconds.with_label_values(&[path])),
            spool_accepting: gauge(
                r,
                "spool_accepting",
                "1 while the spool takes events. 0: there is none (spool_bytes_max is 0, too), or it is full or has failed, as the log says.",
            ),
            spool_records: gauges(
                r,
                "spool_records",
                "Events in the spool by topic. A rise: the topic, or all of Kafka, takes no events.",
            ),
            spool_bytes: gauges(
                r,
                "spool_bytes",
                "Bytes of the events in the spool by topic. Their sum near spool.bytes_max: 503s soon.",
            ),
            spool_oldest_seconds: register(
                r,
                GaugeVec::new(
                    opts("spool_oldest_seconds", "How long the first event of a topic has waited in the spool, as of the last probe. A rise: the topic takes no events."),
                    &["topic"],
                )
                .expect("a valid name"),
            ),
            spool_commit_seconds: histogram(
                r,
                "spool_commit_duration_seconds",
                "One write to the spool with its fsync, which serves all events that wait. A rise: a slow disk.",
            ),
            spool_failures: counter(
                r,
                "spool_failures_total",
                "Failed writes or fsyncs of the spool, after which it accepts nothing until it was opened anew. A rise: look at the disk.",
            ),
            replayed: counter(r, "replayed_total", "Events published from the spool. A rise: an outage is being made good."),
            dead_letters: counters(
                r,
                "dead_letters_total",
                "Events that their topic will never take, by where they went (the dead-letter topic, or the disk) and why. A rise: raise the topic's max.message.bytes, or look at `dead-letters list`.",
                &["to", "reason"],
            ),
            log_lines_dropped: counter(
                r,
                "log_lines_dropped_total",
                "Log lines that were lost because standard error did not take them in time. Increases when a log collector hangs or its disk is full.",
            ),
            panics: counter(
                r,
                "panics_total",
                "Panics: faults of the relay itself. Increases only if there is a bug; the log has its place.",
            ),
            parked_bytes: gauge(r, "parked_bytes", "Bytes of the dead letters on the disk. They count against spool.bytes_max."),
            spool_bytes_max: gauge(r, "spool_bytes_max", "spool.bytes_max; 0 without a spool."),
            parked_records: gauge(
                r,
                "parked_records",
                "Dead letters on the disk, which wait for somebody: `dead-letters list`.",
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
        for reason in DeadLetterReason::ALL {
            ["topic", "disk"]
                .iter()
                .for_each(|to| self.dead_letters.with_label_values(&[to, reason.label()]).inc_by(0));
        }
        Unavailable::ALL.iter().for_each(|reason| self.unavailable.with_label_values(&[reason.label()]).inc_by(0));
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

    /// Counts an answer by its HTTP status.
    pub fn answered(&self, code: &str) {
        if code == "200" {
            self.answered_200.inc();
        } else {
            self.requests.with_label_values(&[code]).inc();
        }
    }

    /// Counts what became of an event; `action` is a name of the catalogue, [`UNLISTED`] or [`APP_WEBHOOK`].
    pub fn event(&self, action: &'static str, fate: Fate) {
        let events = &self.events[action];
        match fate {
            Fate::Published => events.published.inc(),
            Fate::Spooled => events.spooled.inc(),
            Fate::Parked => events.parked.inc(),
            Fate::Dropped => events.dropped.inc(),
            Fate::Unavailable => events.unavailable.inc(),
        }
    }

    /// How long an event took to become durable, and on which path.
    pub fn durable(&self, fate: Fate, after: Duration) {
        let path = match fate {
            Fate::Published => 0,
            Fate::Spooled => 1,
            Fate::Parked | Fate::Dropped | Fate::Unavailable => return,
        };
        self.durable_seconds[path].observe(after.as_secs_f64());
    }

    /// The gauges of one lane: its records and its bytes.
    pub fn spool_lane(&self, topic: &str) -> [IntGauge; 2] {
        [&self.spool_records, &self.spool_bytes].map(|gauges| gauges.with_label_values(&[topic]))
    }

    /// Whether an event can be made durable: by the brokers, or by the spool.
    pub fn is_ready(&self) -> bool {
        self.kafka_up.get() == 1 || self.spool_accepting.get() == 1
    }

    /// The text format that Prometheus scrapes.
    pub fn text(&self) -> Vec<u8> {
        self.ready.set(i64::from(self.is_ready()));
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

/// Brings a counter up to what is counted elsewhere.
fn observe(counter: &IntCounter, counted: u64) {
    counter.inc_by(counted.saturating_sub(counter.get()));
}

impl Events {
    fn new(events: &IntCounterVec, action: &str) -> Self {
        let counter = |outcome: &str| events.with_label_values(&[action, outcome]);
        Self {
            published: counter("published"),
            spooled: counter("spooled"),
            parked: counter("parked"),
            dropped: counter("dropped"),
            unavailable: counter("unavailable"),
        }
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

/// Gauges a topic.
fn gauges(registry: &Registry, name: &str, help: &str) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(opts(name, help), &["topic"]).expect("a valid name"))
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let opts = HistogramOpts::from(opts(name, help)).buckets(SECONDS.to_vec());
    register(registry, Histogram::with_opts(opts).expect("a valid name"))
}
