//! The requests that the relay refuses, as the demo shows them. They come from the relay's log, which is the only place that has them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::print::{DIM, ERROR, visible, wrapped};
use crate::telemetry;

/// Refusals that may wait to be shown; of more some are not.
const WAITING_MAX: usize = 1000;

/// A refused request.
#[derive(Debug, Default, PartialEq)]
pub struct Refused {
    status: String,
    reason: String,
    path: String,
    answer: String,
}

impl Refused {
    pub fn lines(&self, now: Timestamp) -> String {
        let Self { status, reason, path, answer } = self;
        // The answer tells a stranger nothing about keys and apps.
        let hint = match (status.as_str(), reason.as_str()) {
            (_, "unknown_app") => "; the demo has one app, default: POST to /webhooks/default",
            (_, "no_secret_key") => "; the body has no secret_key",
            ("401", _) => "; the secret_key is not the demo's",
            _ => "",
        };
        let why = wrapped(&visible(&format!("{path}: {answer}{hint}")), 23);
        format!("{DIM}{}{DIM:#}  {ERROR}refused {status}{ERROR:#}  {why}", now.strftime("%T"))
    }
}

/// Starts the log: errors go to standard error, and refusals to the receiver.
pub fn from_log() -> mpsc::Receiver<Refused> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let errors = tracing_subscriber::fmt::layer().log_internal_errors(false).with_writer(io::stderr);
    let errors = telemetry::text(errors).with_filter(LevelFilter::ERROR);
    let refusals = Refusals(sender).with_filter(Targets::new().with_target("livechat_relay::http", LevelFilter::DEBUG));
    tracing_subscriber::registry().with(errors).with(refusals).init();
    receiver
}

struct Refusals(mpsc::Sender<Refused>);

impl<S: tracing::Subscriber> Layer<S> for Refusals {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut field = |name| fields.0.remove(name).unwrap_or_default();
        if field("message") == "request refused" {
            let [status, reason, path, answer] = ["status", "reason", "path", "answer"].map(field);
            let _ = self.0.try_send(Refused { status, reason, path, answer }); // too many, or the demo has ended
        }
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_answered_on_lines_of_80_columns() {
        let answer = "Content-Type is text/plain; send Content-Type: application/json (in UTF-8)";
        let shown = |refused: [&str; 4]| {
            let [status, reason, path, answer] = refused.map(str::to_owned);
            let lines = Refused { status, reason, path, answer }.lines(Timestamp::UNIX_EPOCH);
            anstream::adapter::strip_str(&lines).to_string()
        };
        let lines = shown(["415", "content_type", "/webhooks", answer]);
        let expected = "00:00:00  refused 415  /webhooks: Content-Type is text/plain; send Content-Type:\n                       application/json (in UTF-8)";
        assert_eq!(lines, expected);
        for (reason, hint) in [
            ("unauthorized", "the secret_key is not the demo's"),
            ("no_secret_key", "the body has no secret_key"),
            ("unknown_app", "POST to /webhooks/default"),
        ] {
            let lines = shown(["401", reason, "/webhooks/other", "unauthorized"]);
            let words = lines.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.ends_with(hint), "{lines}");
        }
    }

    #[test]
    fn refusals_are_found_in_the_log_by_their_fields() {
        let (sender, mut receiver) = mpsc::channel(1);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Refusals(sender)), || {
            tracing::warn!(status = 1, "something else");
            let (status, answer) = (401_u16, String::from("no"));
            tracing::debug!(status, reason = "unauthorized", path = "/webhooks", answer, "request refused");
        });
        let [status, reason, path, answer] = ["401", "unauthorized", "/webhooks", "no"].map(str::to_owned);
        assert_eq!(receiver.try_recv(), Ok(Refused { status, reason, path, answer }));
    }
}
