//! How metrics are made and registered, each with the prefix of all names.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Result,
};

/// Where a metric is registered.
pub type Register<'a> = dyn Fn(Box<dyn Collector>) + 'a;

const SECONDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0];

fn register<M: Collector + Clone + 'static>(to: &Register<'_>, metric: Result<M>) -> M {
    let metric = metric.expect("a valid name");
    to(Box::new(metric.clone()));
    metric
}

pub fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("livechat_relay_{name}"), help)
}

fn histogram_opts(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::from(opts(name, help)).buckets(SECONDS.to_vec())
}

pub fn counters(to: &Register<'_>, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(to, IntCounterVec::new(opts(name, help), labels))
}

pub fn counter(to: &Register<'_>, name: &str, help: &str) -> IntCounter {
    register(to, IntCounter::with_opts(opts(name, help)))
}

pub fn gauges(to: &Register<'_>, name: &str, help: &str, label: &str) -> IntGaugeVec {
    register(to, IntGaugeVec::new(opts(name, help), &[label]))
}

pub fn gauge(to: &Register<'_>, name: &str, help: &str) -> IntGauge {
    register(to, IntGauge::with_opts(opts(name, help)))
}

/// A time, in seconds since 1970.
pub fn timestamp(to: &Register<'_>, name: &str, help: &str) -> Gauge {
    register(to, Gauge::with_opts(opts(name, help)))
}

pub fn histograms(to: &Register<'_>, name: &str, help: &str, label: &str) -> HistogramVec {
    register(to, HistogramVec::new(histogram_opts(name, help), &[label]))
}

pub fn histogram(to: &Register<'_>, name: &str, help: &str) -> Histogram {
    register(to, Histogram::with_opts(histogram_opts(name, help)))
}

/// Metrics whose labels come and go.
pub struct Changing<M, const N: usize> {
    metrics: M,
    shown: Mutex<BTreeSet<[String; N]>>,
}

impl<B: MetricVecBuilder + 'static, const N: usize> Changing<MetricVec<B>, N> {
    pub fn new(to: &Register<'_>, metrics: Result<MetricVec<B>>) -> Self {
        Self { metrics: register(to, metrics), shown: Mutex::default() }
    }

    /// All that there is, and how a value is set. What is gone is removed last, so that a scrape in between lacks none; of several
    /// with the same labels the last counts.
    pub fn set<L: AsRef<str>, V>(&self, all: impl Iterator<Item = ([L; N], V)>, set: impl Fn(&B::M, V)) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = std::mem::take(&mut *shown);
        for (labels, value) in all {
            let labels = labels.map(|label| label.as_ref().to_owned());
            set(&self.metrics.with_label_values(&labels), value);
            gone.remove(&labels);
            shown.insert(labels);
        }
        for labels in gone {
            let _ = self.metrics.remove_label_values(&labels); // it was set before
        }
    }
}

/// Sets a counter to what is counted elsewhere. Where that has begun again, because an app, a key or a rule was removed and is back, so does
/// the counter.
pub fn count(counter: &IntCounter, counted: u64) {
    if counted < counter.get() {
        counter.reset();
    }
    counter.inc_by(counted.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::GaugeVec;

    #[test]
    fn metrics_that_come_and_go_show_what_there_is_at_last() {
        let all = GaugeVec::new(opts("changing", "For a test."), &["a", "b"]).expect("gauges");
        let gauges = Changing::new(&|_| (), Ok(all.clone()));
        let of = |pairs: &[(&str, f64)]| {
            gauges.set(pairs.iter().map(|(a, value)| ([*a, "b"], *value)), Gauge::set);
            let mut metrics: Vec<_> = all.collect().iter().flat_map(|family| family.get_metric().to_vec()).collect();
            metrics.sort_by_key(|one| one.get_label()[0].value().to_owned());
            metrics.iter().map(|one| one.get_gauge().get_value()).collect::<Vec<_>>()
        };
        assert_eq!(of(&[("x", 1.0), ("y", 2.0)]), [1.0, 2.0]);
        assert_eq!(of(&[("y", 3.0), ("z", 4.0), ("y", 5.0)]), [5.0, 4.0]);
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn a_counter_follows_what_is_counted_elsewhere_and_begins_again_with_it() {
        let counter = IntCounter::new("c", "For a test.").expect("a counter");
        for counted in [0, 3, 3, 7, 2] {
            count(&counter, counted);
            assert_eq!(counter.get(), counted);
        }
    }
}
