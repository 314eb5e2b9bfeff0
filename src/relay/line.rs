//! The line of an event in the log, at debug: what an operator looks for who is asked where a chat is.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Source;
use crate::event::Event;
use crate::event::actions::Slot;
use crate::outcome::{Outcome, Unavailable};

/// What is known of an event before its end.
pub struct Line {
    id: Uuid,
    action: &'static str,
    chat: Option<String>,
    webhook_id: Option<String>,
    app: String,
    /// The name of the secret key.
    key: String,
    bytes: usize,
    /// The client of a webhook, and the other end of its connection, which is a proxy perhaps.
    pub from: Option<(IpAddr, SocketAddr)>,
}

impl Line {
    /// None where the log has no such lines. Boxed, because that is most of the time, and records are moved.
    pub fn new(event: &Event<'_>, source: Source<'_>) -> Option<Box<Self>> {
        let line = || Self {
            id: event.id,
            action: event.action_label(),
            chat: event.slot(Slot::Chat).map(str::to_owned),
            webhook_id: event.webhook_id.as_deref().map(str::to_owned),
            app: source.app.name.clone(),
            key: source.key.to_owned(),
            bytes: source.bytes,
            from: None,
        };
        tracing::enabled!(tracing::Level::DEBUG).then(|| Box::new(line()))
    }

    /// What has become of it. `to` is the topic and the record's key, unless it was dropped.
    pub fn log(&self, to: Option<(&str, &str)>, outcome: Outcome, took: Duration, deadline: Instant) {
        let Self { id, action, chat, webhook_id, app, key, bytes, from } = self;
        let (topic, record_key) = to.unzip();
        let (client, peer) = from.map(|(client, peer)| (client, tracing::field::display(peer))).unzip();
        let client = client.map(tracing::field::display);
        let ms = took.as_millis() as u64;
        // After the deadline the webhook was answered already, though its event is stored all the same.
        let answer = if Instant::now() < deadline { outcome } else { Outcome::Unavailable(Unavailable::Deadline) };
        let status = from.map(|_| answer.answer().0);
        tracing::debug!(
            %id, action, chat, webhook_id, app, key, topic, record_key, bytes, client, peer, ?outcome, status, ms,
            "webhook handled"
        );
    }
}
