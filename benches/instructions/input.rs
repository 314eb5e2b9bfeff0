//! What the pure steps are measured with: an `incoming_event` of a given size, its key, and the policy that makes a record of it.

use livechat_relay::event::normalize::normalize;
use livechat_relay::event::receive::receive;
use livechat_relay::event::route::route;
use livechat_relay::event::verify::{Verified, verify};
use livechat_relay::event::{Keyring, Keys, Mode, Receipt, Record, Routing, Topics};

/// Bytes of the bodies.
pub const SIZES: [usize; 3] = [700, 6_000, 200_000];

/// When the webhook is received.
const NOW: jiff::Timestamp = jiff::Timestamp::UNIX_EPOCH;

pub struct Input {
    pub body: String,
    keyring: Keyring,
    routing: Routing,
}

impl Input {
    /// With a body of about this many bytes.
    pub fn new(bytes: usize) -> Self {
        let words = "so it goes with \\\"quotes\\\" and words ";
        let body = body(&words.repeat(bytes.saturating_sub(body("").len()) / words.len()));
        let keyring = Keyring::new([("k".to_owned(), &"k-0123456789".to_owned().into())]);
        let topics = Topics::new("livechat.", |_| None);
        Self {
            body,
            keyring,
            routing: Routing { topics, mode: Mode::Structured, keys: Keys::Plain, api_version: None },
        }
    }

    pub fn verified(&self) -> Verified<'_> {
        verify(receive(self.body.as_bytes()).expect("well-formed"), &self.keyring, NOW).ok().expect("the right key").0
    }

    pub fn record(&self) -> Option<Record> {
        let receipt = Receipt { app: "default", time: NOW, fresh_id: uuid::Uuid::nil };
        route(normalize(self.verified(), receipt), &self.routing, None, None).map(|prepared| prepared.record)
    }
}

fn body(text: &str) -> String {
    format!(
        r#"{{"webhook_id":"7b2f4b1e-2c3d-4e5f-8a9b-0c1d2e3f4a5b","secret_key":"k-0123456789","action":"incoming_event","organization_id":"0f6e2d4c-1b3a-4958-8776-655443322110","payload":{{"chat_id":"QA1ZB2XC3V","thread_id":"QB4NM5KL6J","event":{{"id":"QB4NM5KL6J_7","type":"message","text":"{text}","author_id":"ada@example.com","created_at":"2026-11-22T10:00:00.123456Z","visibility":"all","properties":{{}}}}}},"additional_data":{{}}}}"#
    )
}
