//! What the demo shows besides its lines: a whole record, and what to try next.

use std::fmt::Write as _;
use std::net::SocketAddr;

use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

use super::SECRET_KEY;
use crate::cli::Failure;
use crate::cli::print::{BOLD, indented, out, quoted};

/// A record as it is in Kafka, with its place. The value is JSON.
pub fn record(message: &BorrowedMessage<'_>) -> String {
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let mut shown = format!(
        "topic {}, partition {}, offset {}\nkey {}\n",
        message.topic(),
        message.partition(),
        message.offset(),
        text(message.key())
    );
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        let _ = writeln!(shown, "header {}: {}", header.key, text(header.value)); // a String takes it
    }
    shown + &indented(&text(message.payload()))
}

/// Says where things are and what a user can do. All fits on a screen of 24 lines, after the summary.
pub fn what_next(webhooks: SocketAddr, metrics: SocketAddr, brokers: &str) -> Result<(), Failure> {
    let tail = format!("{} tail --brokers {brokers} --from-beginning", program());
    out(format_args!(
        "
Webhooks  http://{webhooks}/webhooks
Metrics   http://{metrics}/metrics
Kafka     {brokers}

{BOLD}Send a webhook of your own{BOLD:#} (or a wrong one, to see it refused):

{curl}

{BOLD}Read the topics{BOLD:#} as any consumer can; with --json, whole events:

  {tail}

What arrives or is refused appears below. Ctrl-C stops the demo.",
        curl = curl(webhooks)
    ))
}

fn curl(webhooks: SocketAddr) -> String {
    format!(
        r#"  curl -i {webhooks}/webhooks -H 'content-type: application/json' -d '
    {{"action": "incoming_event", "secret_key": "{SECRET_KEY}",
     "payload": {{"chat_id": "CHAT1", "event": {{"text": "Hello, Kafka"}}}}}}'"#
    )
}

/// What the user called: a name that the shell finds, or a path.
fn program() -> String {
    let called = std::env::args_os().next().filter(|name| !name.is_empty());
    called.map_or_else(|| "livechat-relay".to_owned(), |name| quoted(&name.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_typed_fits_80_columns_and_is_json() {
        let curl = curl("127.0.0.1:65535".parse().expect("an address"));
        assert!(curl.lines().all(|line| line.len() <= 80), "{curl}");
        let body = curl.split_once("-d '").and_then(|(_, body)| body.strip_suffix('\''));
        let body: serde_json::Value = serde_json::from_str(body.expect("a body")).expect("JSON");
        assert_eq!(body["secret_key"], SECRET_KEY);
    }
}
