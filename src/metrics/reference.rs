//! Keeps the reference in docs/metrics.md as the metrics are: each with its type, labels, help and alerts. `UPDATE_SNAPSHOTS=1` writes it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::*;
use crate::outcome::{RegistrationState, Unavailable};

/// What is below it is written by this test.
const MARK: &str = "<!-- From here on written by the test that src/metrics/reference.rs is. -->\n";

const APP: &str = "the name of an app in `[[apps]]`";

/// What stands for the values of a label where they are not a closed set, or where a metric has none before something happens.
fn values(metric: &str, label: &str) -> String {
    let text = match (metric.trim_start_matches("livechat_relay_"), label) {
        ("rejected_total" | "unavailable_total", "app") => {
            return format!(
                "{APP}, `app-webhooks` for `[app_webhooks]`, or `unknown` where the path leads to no app, or the relay has a bug (reason `panic`)"
            );
        }
        (
            "events_total"
            | "secret_key_used_total"
            | "secret_key_last_used_timestamp_seconds"
            | "secret_key_not_after_timestamp_seconds",
            "app",
        ) => {
            return format!("{APP}, or `app-webhooks` for `[app_webhooks]`");
        }
        (_, "app") => APP,
        (_, "action") => {
            "the action's current name as in [contract/actions.md](../contract/actions.md), or `unlisted`; `app_webhook` and \
             `app_installed` for App Webhooks and installations"
        }
        (_, "version") => "such as `0.1.0`",
        (_, "key") => "the name of a secret key",
        (_, "rule") => "the name of a rule in `[[rules]]`",
        (_, "topic") => "a topic that has, or has had, events in the spool",
        (_, "webhook_id") => "the registration's `webhook_id`",
        (_, "name") => "the first DNS name in the certificate",
        ("kafka_errors_total", "code") => {
            "librdkafka's name for the error, as in [operations.md](operations.md#what-kafka-says-and-what-helps)"
        }
        ("requests_total", "code") => "an HTTP status",
        ("topics", "state") => "`ready`, `missing`, `refused`",
        ("spool_faults", "fault") => "`files_aside`, `segments_missing`, `segments_unreadable`",
        ("api_version_end_timestamp_seconds", "stage") => "`legacy`, `deprecation`",
        ("registration_checks_total", "result") => "`compared`, `failed`",
        ("registrations", "state") => {
            return list(RegistrationState::ALL.iter().map(|state| state.label()));
        }
        ("events_total", "outcome") => return list(Outcome::LABELS.into_iter()),
        ("rejected_total", "reason") => return list(Counts::of_strangers().refused().map(|(reason, _)| reason)),
        ("unavailable_total", "reason") => return list(Unavailable::ALL.iter().map(|reason| reason.label())),
        _ => panic!("{metric}: say what the values of `{label}` are"),
    };
    text.to_owned()
}

fn list(values: impl Iterator<Item = impl AsRef<str>>) -> String {
    values.map(|value| format!("`{}`", value.as_ref())).collect::<Vec<_>>().join(", ")
}

/// The labels of a metric, a line each.
fn labels(desc: &Desc, family: &MetricFamily) -> String {
    let line = |label: &String| {
        let of = |metric: &prometheus::proto::Metric| {
            metric.get_label().iter().find(|pair| pair.name() == label).map(|pair| pair.value().to_owned())
        };
        let seen: BTreeSet<_> = family.get_metric().iter().filter_map(of).collect();
        let is_closed = !seen.is_empty() && !["code", "version"].contains(&label.as_str());
        let values = if is_closed { list(seen.iter()) } else { values(&desc.fq_name, label) };
        format!("- `{label}`: {values}\n")
    };
    desc.variable_labels.iter().map(line).collect()
}

/// The type, and the unit where the name has one.
fn kind(family: &MetricFamily) -> String {
    let kind = match family.get_field_type() {
        MetricType::COUNTER => "Counter",
        MetricType::GAUGE => "Gauge",
        MetricType::HISTOGRAM => "Histogram",
        other => panic!("{}: {other:?}", family.name()),
    };
    let unit = match family.name() {
        name if name.ends_with("_timestamp_seconds") => ", seconds since 1970",
        name if name.ends_with("_seconds") => ", seconds",
        name if name.contains("bytes") => ", bytes",
        _ => "",
    };
    kind.to_owned() + unit
}

/// The alerts whose rules name a metric.
fn alerts(metric: &str, rules: &str) -> String {
    let names = rules.split("- alert: ").skip(1).filter_map(|rule| {
        let (name, rest) = rule.split_once('\n')?;
        let expression = rest.split("annotations:").next()?;
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut words = expression.split(|c| !is_word(c)).map(|word| word.trim_end_matches("_bucket"));
        words.any(|word| word == metric).then(|| format!("[{name}](operations.md#{})", name.to_lowercase()))
    });
    names.collect::<Vec<_>>().join(", ")
}

fn section(collector: &dyn Collector, rules: &str) -> (String, String) {
    let (families, descs) = (collector.collect(), collector.desc());
    let ([family], [desc]) = (&*families, &*descs) else { panic!("one metric each") };
    let name = family.name();
    let mut text = format!("\n### `{name}`\n\n{}. {}\n", kind(family), family.help());
    let (labels, alerts) = (labels(desc, family), alerts(name, rules));
    if !labels.is_empty() {
        text += &format!("\n{labels}");
    }
    if !alerts.is_empty() {
        text += &format!("\nAlerts: {alerts}\n");
    }
    (name.to_owned(), text)
}

#[test]
fn docs_metrics_md_has_every_metric() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("docs/metrics.md");
    let rules = std::fs::read_to_string(root.join("deploy/prometheus/alerts.yml")).expect("the alerts");
    let text = std::fs::read_to_string(&file).expect("the document");
    let (before, present) = text.split_once(MARK).expect("the mark");

    let all: RefCell<Vec<Box<dyn Collector>>> = RefCell::default();
    drop(Metrics::registered(Registry::new(), &|metric| all.borrow_mut().push(metric)));
    let mut sections: Vec<_> = all.borrow().iter().map(|collector| section(&**collector, &rules)).collect();
    sections.sort();
    let reference: String = sections.into_iter().map(|(_, text)| text).collect();
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&file, format!("{before}{MARK}{reference}")).expect("written");
        return;
    }
    assert_eq!(
        reference, present,
        "docs/metrics.md differs; UPDATE_SNAPSHOTS=1 writes it, after a look at the difference"
    );
}
