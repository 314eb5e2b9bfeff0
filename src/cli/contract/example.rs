//! An event as it is on Kafka: the relay's own steps make it of the webhook that `send` would send, or of an App Webhook, at a time that is
//! always the same.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::{Builder, Uuid};

use super::{app_events, pretty};
use crate::event::normalize::{APP_INSTALLED, normalize};
use crate::event::receive::receive;
use crate::event::route::route;
use crate::event::verify::{Verified, confirmed_installation, verify, verify_app_webhook};
use crate::event::{Keyring, Mode, Receipt};
use crate::relay::App;
use crate::samples::traffic::Traffic;

/// 2026-11-28T14:43:02.073801Z.
const TIME: Timestamp = Timestamp::constant(1_795_876_982, 73_801_000);

/// How long the chat has lasted.
const CHAT: SignedDuration = SignedDuration::from_mins(3);

/// From what happens to its receipt.
const DELAY: SignedDuration = SignedDuration::from_millis(84);

const SEED: u64 = 13;

/// Of webhooks, and the token of App Webhooks.
const SECRET_KEY: &str = "secret";

fn keyring() -> Keyring {
    Keyring::new([("only".to_owned(), &SecretString::from(SECRET_KEY))])
}

/// A record, its key and topic aside.
pub struct Example {
    mode: Mode,
    pub headers: BTreeMap<String, String>,
    pub value: Value,
}

impl Example {
    /// The event of an action, delivered to an app. None where there is no sample, or where the app drops it.
    pub fn of(action: &str, app: &App) -> Option<Self> {
        let mut traffic = Traffic::new(SEED);
        let mut chat = traffic.begin(TIME - CHAT);
        let body = traffic.tell_of(&mut chat, action, TIME)?.body(SECRET_KEY);
        let keyring = keyring();
        let verified = receive(body.as_bytes()).ok().and_then(|delivery| verify(delivery, &keyring, TIME).ok());
        let (webhook, _) = verified.expect("the samples are compiled in, and a unit test takes each this way");
        Self::published(webhook, app)
    }

    /// The event of an App Webhook or of an installation. None where that is no such event, or where it is dropped.
    pub fn of_app(name: &str, app: &App) -> Option<Self> {
        let body = app_events()[name].get("data")?.to_string();
        let keyring = keyring();
        let verified = if name == APP_INSTALLED {
            confirmed_installation(body.as_bytes()).ok()
        } else {
            verify_app_webhook(SECRET_KEY, body.as_bytes(), &keyring, TIME).ok().map(|(webhook, _)| webhook)
        };
        Self::published(verified.expect("it is compiled in, and a unit test takes each this way"), app)
    }

    fn published(webhook: Verified<'_>, app: &App) -> Option<Self> {
        let mut event = normalize(webhook, Receipt { app: &app.name, time: TIME + DELAY, fresh_id: Uuid::now_v7 });
        if !event.is_id_derived {
            // Made as a fresh one is, of what does not change instead of chance. Each example has another: a consumer that drops repeats
            // takes them all.
            let random = event.content_hash.first_chunk().expect("10 of 16 bytes");
            let milliseconds = event.recorded.as_millisecond().unsigned_abs();
            event.id = Builder::from_unix_timestamp_millis(milliseconds, random).into_uuid();
        }
        let record = route(event, &app.routing, None, None)?.record;
        let headers = record.headers.into_iter().map(|(name, text)| (name.into_owned(), text.into_owned()));
        let value = serde_json::from_slice(&record.value).expect("the relay writes JSON");
        Some(Self { mode: app.routing.mode, headers: headers.collect(), value })
    }

    /// For people: the event, with `data` as its last member. In binary mode headers and value make the event, so it is both.
    pub fn text(self) -> String {
        if self.mode == Mode::Binary {
            return pretty(&json!({ "headers": self.headers, "value": self.value }));
        }
        #[derive(Serialize)]
        struct Event {
            #[serde(flatten)]
            attributes: Map<String, Value>,
            #[serde(skip_serializing_if = "Option::is_none")]
            data: Option<Value>,
        }
        let Value::Object(mut attributes) = self.value else { unreachable!("LiveChat's webhooks are objects") };
        let data = attributes.remove("data");
        let text = serde_json::to_string_pretty(&Event { attributes, data }).expect("texts as names");
        text + "\n"
    }
}
