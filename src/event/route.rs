//! [`Event`] → [`PreparedRecord`]: topic, key, headers, and the value, which is the only copy of the payload.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;
use uuid::Uuid;

use super::actions::{self, Slot};
use super::hash::{first_half, hash};
use super::normalize::{APP_EVENTS, APP_INSTALLED, Event, Origin, Tenant};
use super::rules::{Effect, Rule};

/// How much the envelope may add to `data`, in bytes: sixteen attributes at their longest, with escapes, and their names.
pub const ENVELOPE_BYTES_MAX: usize = 16 * 1024;

/// How attributes travel (CloudEvents' Kafka binding).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the value, around `data`.
    Structured,
    /// As `ce_…` headers; the value is `data` alone.
    Binary,
}

/// What happens to the events of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Topic(Arc<str>),
    /// Answered 200, counted, and not published.
    Drop,
}

/// The route of every action.
#[derive(Clone, Debug)]
pub struct Topics {
    by_name: HashMap<&'static str, Route>,
    unlisted: Route,
}

/// How the record's key is written.
#[derive(Clone)]
pub enum Keys {
    /// As [`Event::key`] says: mostly the chat id.
    Plain,
    /// A keyed hash of that, in hex: agents' ids are e-mail addresses, and keys turn up where values do not. Equal keys have
    /// equal hashes, which keeps the order; without the secret a hash does not tell the key.
    Hashed(Hmac<Sha256>),
}

impl Keys {
    /// Keys hashed with `secret`: the first half of HMAC-SHA-256.
    pub fn hashed(secret: &[u8]) -> Self {
        Self::Hashed(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }

    fn of(&self, key: &str) -> String {
        match self {
            Self::Plain => key.to_owned(),
            Self::Hashed(secret) => hex(first_half(secret.clone().chain_update(key).finalize().into_bytes().into())),
        }
    }
}

/// How an app's events are written to Kafka.
#[derive(Clone)]
pub struct Routing {
    pub topics: Topics,
    pub mode: Mode,
    pub keys: Keys,
    /// The version of LiveChat's API that the app's webhooks were registered with; a body does not say it.
    pub api_version: Option<String>,
}

/// The name for all actions that are not in the catalogue.
pub const UNLISTED: &str = "unlisted";

impl Topics {
    /// Routes every action to `<prefix><action>`, unless `route` has another route for its name.
    pub fn new(prefix: &str, route: impl Fn(&str) -> Option<Route>) -> Self {
        Self::of_names(actions::names(), prefix, route)
    }

    /// As [`Topics::new`], for the events of App Webhooks.
    pub fn of_app_webhooks(prefix: &str, route: impl Fn(&str) -> Option<Route>) -> Self {
        Self::of_names(APP_EVENTS.into_iter(), prefix, route)
    }

    /// Routes installations, too, which only apps with an installation page have.
    #[must_use]
    pub fn with_installations(mut self, prefix: &str, route: impl Fn(&str) -> Option<Route>) -> Self {
        self.by_name.extend(Self::of_names([APP_INSTALLED].into_iter(), prefix, route).by_name);
        self
    }

    fn of_names(
        names: impl Iterator<Item = &'static str>,
        prefix: &str,
        route: impl Fn(&str) -> Option<Route>,
    ) -> Self {
        let to = |name: &str| route(name).unwrap_or_else(|| Route::Topic(format!("{prefix}{name}").into()));
        Self { by_name: names.map(|name| (name, to(name))).collect(), unlisted: to(UNLISTED) }
    }

    /// The name that the event's action has here; [`UNLISTED`] for one that has none.
    pub fn name_of<'e>(&self, event: &'e Event<'_>) -> &'e str {
        if self.by_name.contains_key(&*event.name) { &event.name } else { UNLISTED }
    }

    /// The route of an action by its current name, or by [`UNLISTED`]; none where these topics do not have it.
    pub fn route(&self, name: &str) -> Option<&Route> {
        self.by_name.get(name).or_else(|| (name == UNLISTED).then_some(&self.unlisted))
    }

    fn of(&self, event: &Event<'_>) -> &Route {
        self.by_name.get(&*event.name).unwrap_or(&self.unlisted)
    }

    /// The topics that events may go to; one that several actions share comes as often.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.values().chain([&self.unlisted]).filter_map(|route| match route {
            Route::Topic(name) => Some(name),
            Route::Drop => None,
        })
    }
}

/// What Kafka gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub topic: Arc<str>,
    pub key: String,
    pub headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    pub value: Vec<u8>,
}

/// A record that is ready for Kafka, with what the relay has to know about its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedRecord {
    pub record: Record,
    /// See [`Event::action_label`].
    pub action: &'static str,
    /// `None` if neither the payload names its event nor the body its registration: then all that comes is a new event.
    pub retry_key: Option<RetryKey>,
    /// A rule sends it to the dead letters.
    pub is_dead_letter: bool,
}

/// What two deliveries of one event to one destination have in common: app, topic, key and payload, as a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryKey {
    /// The payload names its event, and the hash is of its id and the additional data, too. Whatever equals it is the same event; the
    /// registration (`webhook_id`) may differ.
    Named([u8; 16]),
    /// It does not. What one registration delivers twice may be two events; what another one delivers, too, is a copy, with whatever
    /// additional data it was registered for.
    Unnamed { content: [u8; 16], registration: [u8; 16] },
}

/// The headers that a dead letter has besides those of its event: its own topic, why it is one, and what Kafka has said, or the name of the
/// rule.
pub const DEAD_LETTER_HEADERS: [&str; 3] = ["dead-letter-topic", "dead-letter-reason", "dead-letter-error"];

/// The reason of dead letters that a rule has made.
pub const RULE: &str = "rule";

/// Decides topic and key, and writes the record. `None` if the action is configured to be dropped, or the rule that was found for the event
/// says so.
pub fn route(
    event: Event<'_>,
    routing: &Routing,
    rule: Option<&Rule>,
    traceparent: Option<&str>,
) -> Option<PreparedRecord> {
    let own_topic = match routing.topics.of(&event) {
        Route::Topic(topic) => Some(topic),
        Route::Drop => None,
    };
    let (topic, dead_letter) = match rule.map(|rule| (&rule.effect, rule)) {
        Some((Effect::Drop, _)) => return None,
        Some((Effect::Sample { one_in, by }, _)) if !by.keeps(&event, *one_in) => return None,
        Some((Effect::Topic(topic), _)) => (topic, None),
        Some((Effect::DeadLetter(topic), rule)) => {
            (topic, Some([own_topic.map(|topic| &**topic), Some(RULE), Some(&*rule.name)]))
        }
        Some((Effect::Sample { .. }, _)) | None => (own_topic?, None),
    };
    let key = routing.keys.of(event.key());
    let retry_key = retry_key(&event, topic, &key);
    let (content_type, mut headers, value) = match routing.mode {
        Mode::Structured => ("application/cloudevents+json", Vec::with_capacity(2), envelope(&event, routing, &key)),
        Mode::Binary => ("application/json", ce_headers(&event, routing, &key), event.data().concat().into_bytes()),
    };
    headers.insert(0, ("content-type".into(), content_type.into()));
    headers.extend(traceparent.map(|parent| ("traceparent".into(), parent.to_owned().into())));
    for (name, text) in DEAD_LETTER_HEADERS.into_iter().zip(dead_letter.into_iter().flatten()) {
        headers.extend(text.map(|text| (name.into(), text.to_owned().into())));
    }
    let record = Record { topic: Arc::clone(topic), key, headers, value };
    Some(PreparedRecord { record, action: event.action_label(), retry_key, is_dead_letter: dead_letter.is_some() })
}

fn retry_key(event: &Event<'_>, topic: &str, key: &str) -> Option<RetryKey> {
    let [app, topic, key] = [event.app, topic, key].map(str::as_bytes);
    if event.is_id_derived {
        let (id, additional_data) = (event.id.as_bytes(), event.additional_data.unwrap_or_default());
        let parts = [app, topic, key, id, &event.content_hash, additional_data.as_bytes()];
        return Some(RetryKey::Named(hash(parts)));
    }
    let registration = hash([event.webhook_id.as_deref()?.as_bytes()]);
    Some(RetryKey::Unnamed { content: hash([app, topic, key, &event.content_hash]), registration })
}

/// The structured mode's value.
fn envelope(event: &Event<'_>, routing: &Routing, key: &str) -> Vec<u8> {
    let [before, after] = event.data();
    let mut json = Vec::with_capacity(before.len() + after.len() + 1024);
    json.push(b'{');
    for (name, text) in attributes(event, routing, key) {
        json.push(b'"');
        json.extend_from_slice(name.as_bytes());
        json.extend_from_slice(b"\":");
        serde_json::to_writer(&mut json, &text).expect("a string is JSON, and a Vec takes what is written");
        json.push(b',');
    }
    json.extend_from_slice(br#""data":"#);
    json.extend_from_slice(before.as_bytes());
    json.extend_from_slice(after.as_bytes());
    json.push(b'}');
    json
}

/// The binary mode's headers; the content type of `data` has a header of its own there.
fn ce_headers(event: &Event<'_>, routing: &Routing, key: &str) -> Vec<(Cow<'static, str>, Cow<'static, str>)> {
    let attributes = attributes(event, routing, key).filter(|(name, _)| *name != "datacontenttype");
    attributes.map(|(name, text)| (format!("ce_{name}").into(), text.into_owned().into())).collect()
}

/// The attributes that the event has, in the order of the envelope.
fn attributes<'e>(
    event: &'e Event<'_>,
    routing: &'e Routing,
    key: &'e str,
) -> impl Iterator<Item = (&'static str, Cow<'e, str>)> {
    let (organization, license) = match &event.tenant {
        Tenant::Organization(id) => (Some(&**id), None),
        Tenant::License(id) => (None, Some(&**id)),
        Tenant::Unnamed => (None, None),
    };
    let before_slots = [
        ("specversion", Some("1.0".into())),
        ("id", Some(event.id.to_string().into())),
        ("source", Some(source(&event.tenant).into())),
        ("type", Some(["com.livechat.", &event.name].concat().into())),
        ("subject", subject(event).map(Cow::from)),
        ("time", event.time.map(|time| time.to_string().into())),
        ("recordedtime", Some(format!("{:.3}", event.recorded).into())),
        ("datacontenttype", Some("application/json".into())),
        ("organizationid", organization.map(Cow::from)),
        ("licenseid", license.map(Cow::from)),
        ("webhookid", event.webhook_id.as_deref().map(Cow::from)),
        ("app", Some(event.app.into())),
        ("apiversion", routing.api_version.as_deref().map(Cow::from)),
    ];
    let slots = Slot::ATTRIBUTES.map(|(slot, name)| (name, event.slot(slot).map(Cow::from)));
    let is_from = |origin| (event.origin == origin).then_some("true".into());
    let after_slots = [
        ("authorkind", event.author.map(|author| author.name().into())),
        ("initial", is_from(Origin::Initial)),
        ("backfill", is_from(Origin::Backfill)),
        ("partitionkey", Some(key.into())),
        ("contenthash", Some(hex(event.content_hash).into())),
    ];
    let all = before_slots.into_iter().chain(slots).chain(after_slots);
    all.filter_map(|(name, text)| Some((name, text?)))
}

/// 32 lower-case digits: what `uuid` calls a simple UUID.
fn hex(bytes: [u8; 16]) -> String {
    Uuid::from_bytes(bytes).simple().to_string()
}

/// Who the events come from.
fn source(tenant: &Tenant<'_>) -> String {
    match tenant {
        Tenant::Organization(id) => ["/livechat/organizations/", &path_segment(id)].concat(),
        Tenant::License(id) => ["/livechat/licenses/", &path_segment(id)].concat(),
        Tenant::Unnamed => "/livechat".to_owned(),
    }
}

/// What the event is about: the chat and its thread, else the agent, customer and so on that the payload names.
fn subject(event: &Event<'_>) -> Option<String> {
    const THINGS: [(Slot, &str); 7] = [
        (Slot::Customer, "customers/"),
        (Slot::Agent, "agents/"),
        (Slot::Bot, "bots/"),
        (Slot::Group, "groups/"),
        (Slot::Tag, "tags/"),
        (Slot::AutoAccess, "auto_accesses/"),
        (Slot::Resource, "resources/"),
    ];
    let id = |slot| event.slot(slot).map(path_segment);
    match (id(Slot::Chat), id(Slot::Thread)) {
        (Some(chat), Some(thread)) => Some(["chats/", &chat, "/threads/", &thread].concat()),
        (Some(chat), None) => Some(["chats/", &chat].concat()),
        (None, _) => THINGS.iter().find_map(|&(slot, things)| Some([things, &id(slot)?].concat())),
    }
}

/// An id as a segment of a URI's path (RFC 3986). Consumers compare `source` and `subject` as texts, so it is part of the contract
/// (docs/kafka.md) which characters are escaped, and that the hex digits are upper case.
fn path_segment(id: &str) -> Cow<'_, str> {
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'@');
    utf8_percent_encode(id, ESCAPED).into()
}

#[cfg(test)]
mod tests {
    use super::super::normalize::normalize;
    use super::super::receive::receive;
    use super::super::verify::{verify, verify_app_webhook};
    use super::super::{Keyring, Receipt};
    use super::*;
    use proptest::prelude::*;
    use secrecy::SecretString;
    use serde_json::Value;

    fn record(body: &str, mode: Mode) -> Option<Record> {
        record_with(body, mode, Keys::Plain)
    }

    fn record_with(body: &str, mode: Mode, keys: Keys) -> Option<Record> {
        prepared(body, "default", "livechat.", mode, keys).map(|prepared| prepared.record)
    }

    fn prepared(body: &str, app: &str, prefix: &str, mode: Mode, keys: Keys) -> Option<PreparedRecord> {
        let topics = Topics::new(prefix, |name| (name == "thread_tagged").then_some(Route::Drop));
        let routing = Routing { topics, mode, keys, api_version: None };
        let keyring = Keyring::new([("only".to_owned(), &SecretString::from("k"))]);
        let receipt = Receipt {
            app,
            time: "2026-11-22T14:27:51.1029Z".parse().expect("a time"),
            fresh_id: || uuid::uuid!("019343c4-0000-7000-8000-000000000000"),
        };
        let (verified, _) = verify(receive(body.as_bytes()).ok()?, &keyring, receipt.time).ok()?;
        route(normalize(verified, receipt), &routing, None, Some("00-a-b-01"))
    }

    const EVENT: &str = r#"{"webhook_id":"w1","secret_key":"k","action":"incoming_event","organization_id":"o-1","payload":{"chat_id":"C1","thread_id":"T1","event":{"id":"T1_2","author_id":"ann@example.com","created_at":"2026-11-22T15:27:50.846200+01:00"}},"additional_data":{}}"#;

    #[test]
    fn the_structured_value_is_the_envelope_around_the_untouched_data() {
        let record = record(EVENT, Mode::Structured).expect("a record");
        let expected = concat!(
            r#"{"specversion":"1.0","id":"15fe9843-2311-83cf-bafd-3711f2b47a19","source":"/livechat/organizations/o-1","#,
            r#""type":"com.livechat.incoming_event","subject":"chats/C1/threads/T1","time":"2026-11-22T14:27:50.8462Z","#,
            r#""recordedtime":"2026-11-22T14:27:51.102Z","datacontenttype":"application/json","organizationid":"o-1","#,
            r#""webhookid":"w1","app":"default","chatid":"C1","threadid":"T1","eventid":"T1_2","authorid":"ann@example.com","#,
            r#""partitionkey":"C1","contenthash":"6d79a3b43ad9db59e654ea2c612e0f35","data":{"webhook_id":"w1","action":"incoming_event","#,
            r#""organization_id":"o-1","payload":{"chat_id":"C1","thread_id":"T1","event":{"id":"T1_2","#,
            r#""author_id":"ann@example.com","created_at":"2026-11-22T15:27:50.846200+01:00"}},"additional_data":{}}}"#
        );
        let value = String::from_utf8(record.value).expect("text");
        assert_eq!(value, expected, "id and hash were computed with another program");
        assert_eq!((&*record.topic, record.key.as_str()), ("livechat.incoming_event", "C1"));
        let headers: Vec<_> = record.headers.iter().map(|(n, v)| (n.as_ref(), v.as_ref())).collect();
        assert_eq!(headers, [("content-type", "application/cloudevents+json"), ("traceparent", "00-a-b-01")]);
    }

    #[test]
    fn an_event_without_a_name_is_told_by_its_content_and_its_registration() {
        let retry_key = |body: &str| {
            prepared(body, "default", "livechat.", Mode::Structured, Keys::Plain).expect("a record").retry_key
        };
        let parts = |body: &str| match retry_key(body) {
            Some(RetryKey::Unnamed { content, registration }) => (content, registration),
            other => panic!("{other:?}"),
        };
        let updated = EVENT.replace("incoming_event", "event_updated");
        let (content, registration) = parts(&updated);
        let other_registration = parts(&updated.replace(r#""w1""#, r#""w2""#));
        assert!(other_registration.0 == content && other_registration.1 != registration);
        let more = parts(&updated.replace(r#""additional_data":{}"#, r#""additional_data":{"a":1}"#));
        assert_eq!(more, (content, registration));
        let other_chat = parts(&updated.replace("C1", "C2"));
        assert!(other_chat.0 != content && other_chat.1 == registration);
        assert_eq!(retry_key(&updated.replace(r#""webhook_id":"w1","#, "")), None);
        assert!(matches!(retry_key(EVENT), Some(RetryKey::Named(_))));
    }

    #[test]
    fn ids_in_source_and_subject_are_percent_encoded_with_upper_case_digits() {
        let written = |action: &str, payload: &str, tenant: &str| {
            let body = format!(r#"{{"secret_key":"k","action":"{action}","payload":{payload},{tenant}}}"#);
            let value: Value = serde_json::from_slice(&record(&body, Mode::Structured)?.value).expect("JSON");
            Some([&value["source"], &value["subject"]].map(|text| text.as_str().unwrap_or("absent").to_owned()))
        };
        for (action, payload, tenant, source, subject) in [
            (
                "tag_deleted",
                r#"{"name":"café / bar"}"#,
                r#""organization_id":"ö 1""#,
                "organizations/%C3%B6%201",
                "tags/caf%C3%A9%20%2F%20bar",
            ),
            (
                "agent_deleted",
                r#"{"id":"ann.o-n_e~@example.com"}"#,
                r#""license_id":17"#,
                "licenses/17",
                "agents/ann.o-n_e~@example.com",
            ),
            (
                "incoming_event",
                r#"{"chat_id":"A?","thread_id":"%41"}"#,
                r#""license_id":"a:b""#,
                "licenses/a%3Ab",
                "chats/A%3F/threads/%2541",
            ),
            (
                "chat_properties_updated",
                r#"{"chat_id":"🚀"}"#,
                r#""organization_id":"o+""#,
                "organizations/o%2B",
                "chats/%F0%9F%9A%80",
            ),
            ("auto_accesses_updated", "[]", r#""organization_id":"o""#, "organizations/o", "absent"),
        ] {
            let expected = [format!("/livechat/{source}"), subject.to_owned()];
            assert_eq!(written(action, payload, tenant), Some(expected), "{action}");
        }
    }

    #[test]
    fn in_binary_mode_the_attributes_are_headers_and_the_value_is_data() {
        let record = record(EVENT, Mode::Binary).expect("a record");
        assert_eq!(record.value, EVENT.replace(r#""secret_key":"k","#, "").as_bytes());
        let header = |name: &str| record.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_ref());
        assert_eq!(header("content-type"), Some("application/json"));
        assert_eq!(header("ce_type"), Some("com.livechat.incoming_event"));
        assert_eq!(header("ce_chatid"), Some("C1"));
        assert_eq!(header("ce_datacontenttype"), None);
    }

    #[test]
    fn the_unknown_goes_to_unlisted_and_the_dropped_nowhere() {
        let body = |action: &str| EVENT.replace("incoming_event", action);
        let unknown = record(&body("chat_cloned"), Mode::Structured).expect("a record");
        assert_eq!((&*unknown.topic, unknown.key.as_str()), ("livechat.unlisted", "o-1"));
        assert!(String::from_utf8_lossy(&unknown.value).contains(r#""type":"com.livechat.chat_cloned""#));
        let path = record(&body("../../etc"), Mode::Structured).expect("a record");
        assert!(String::from_utf8_lossy(&path.value).contains(r#""type":"com.livechat.unlisted""#));
        assert_eq!(record(&body("thread_tagged"), Mode::Structured), None);
    }

    #[test]
    fn the_registrations_of_a_rotation_give_one_id_and_other_events_others() {
        let id = |body: &str| {
            let value: Value =
                serde_json::from_slice(&record(body, Mode::Structured).expect("a record").value).expect("JSON");
            value["id"].as_str().expect("text").to_owned()
        };
        assert_eq!(id(EVENT), id(&EVENT.replace(r#""w1""#, r#""w2""#)));
        assert_ne!(id(EVENT), id(&EVENT.replace("T1_2", "T1_3")));
        assert_ne!(id(EVENT), id(&EVENT.replace("o-1", "o-2")));
        assert_eq!(id(&EVENT.replace("incoming_event", "event_updated")), "019343c4-0000-7000-8000-000000000000");
    }

    #[test]
    fn a_delivery_is_a_retry_only_of_one_with_the_same_destination_and_content() {
        let retry_key = |body: &str, app: &str, prefix: &str, keys: Keys| {
            prepared(body, app, prefix, Mode::Structured, keys).expect("a record").retry_key
        };
        let plain = |body: &str| retry_key(body, "production", "livechat.", Keys::Plain);
        let first = plain(EVENT);
        assert!(first.is_some());
        assert_eq!(plain(&EVENT.replace(r#""w1""#, r#""w2""#)), first, "another registration");
        for (other, what) in [
            (retry_key(EVENT, "staging", "livechat.", Keys::Plain), "another app"),
            (retry_key(EVENT, "production", "staging.livechat.", Keys::Plain), "another topic"),
            (retry_key(EVENT, "production", "livechat.", Keys::hashed(b"pepper")), "another key"),
            // Where parts were hashed without their lengths, these two would be one text.
            (retry_key(EVENT, "productionl", "ivechat.", Keys::Plain), "another app and topic"),
            (plain(&EVENT.replace("o-1", "o-2")), "another tenant"),
            (plain(&EVENT.replace("T1_2", "T1_3")), "another event"),
            (plain(&EVENT.replace("ann@", "bob@")), "another payload"),
            (plain(&EVENT.replace(r#""additional_data":{}"#, r#""additional_data":{"a":1}"#)), "more additional data"),
        ] {
            assert!(other.is_some() && other != first, "{what}");
        }
    }

    #[test]
    fn what_metrics_call_an_action_is_a_name_of_the_catalogue() {
        let label = |action: &str| {
            let body = EVENT.replace("incoming_event", action);
            prepared(&body, "default", "livechat.", Mode::Structured, Keys::Plain).expect("a record").action
        };
        assert_eq!(label("incoming_event"), "incoming_event");
        assert_eq!(label("thread_closed"), "chat_deactivated");
        assert_eq!(label("chat_cloned"), "unlisted");
    }

    #[test]
    fn hashed_keys_keep_apart_and_together_what_plain_keys_do_and_show_nothing() {
        let hashed =
            |body: &str, secret: &[u8]| record_with(body, Mode::Structured, Keys::hashed(secret)).expect("a record");
        let status = r#"{"secret_key":"k","action":"routing_status_set","organization_id":"o","payload":{"agent_id":"ann@example.com","status":"offline"}}"#;
        let record = hashed(status, b"pepper");
        assert_eq!(record.key, "cea0615277db22b071c78ce70a486398");
        assert!(String::from_utf8_lossy(&record.value).contains(&format!(r#""partitionkey":"{}""#, record.key)));
        assert_eq!(hashed(EVENT, b"pepper").key, hashed(&EVENT.replace("T1_2", "T1_3"), b"pepper").key);
        assert_ne!(hashed(EVENT, b"pepper").key, hashed(&EVENT.replace("\"C1\"", "\"C2\""), b"pepper").key);
        assert_ne!(hashed(EVENT, b"pepper").key, hashed(EVENT, b"salt").key);
    }

    #[test]
    fn an_app_webhook_is_an_event_of_its_own_kind() {
        let body = r#" {"applicationID":"a1","date":"2026-09-14T15:29:53+02:00","event":"payment_collected","licenseID":17,"organizationID":"o-1","payload":{"paymentID":"p"}} "#;
        let receipt = Receipt { app: "app-webhooks", time: jiff::Timestamp::UNIX_EPOCH, fresh_id: uuid::Uuid::nil };
        let topics = Topics::of_app_webhooks("livechat.", |_| None);
        assert_eq!(topics.names().count(), 7);
        let routing =
            Routing { topics, mode: Mode::Structured, keys: Keys::Plain, api_version: Some("3.6".to_owned()) };
        let keyring = Keyring::new([("path".to_owned(), &SecretString::from("token"))]);
        let event = |body: &'static str| {
            let (webhook, _) =
                verify_app_webhook("token", body.as_bytes(), &keyring, receipt.time).ok().expect("verified");
            normalize(webhook, receipt)
        };
        let prepared = route(event(body), &routing, None, None).expect("a record");
        assert_eq!((prepared.action, prepared.retry_key), ("app_webhook", None));
        let record = prepared.record;
        assert_eq!((&*record.topic, record.key.as_str()), ("livechat.app.payment_collected", "o-1"));
        let value = String::from_utf8(record.value).expect("text");
        assert!(
            value.contains(r#""type":"com.livechat.app.payment_collected","time":"2026-09-14T13:29:53Z""#),
            "{value}"
        );
        assert!(value.contains(r#""app":"app-webhooks","apiversion":"3.6","#), "{value}");
        assert!(value.ends_with(&format!(r#","data":{}}}"#, body.trim())));
        let unknown = event(r#"{"event":"payment_refunded","payload":{}}"#);
        assert_eq!(&*route(unknown, &routing, None, None).expect("a record").record.topic, "livechat.unlisted");
    }

    #[test]
    fn the_longest_attributes_fit_the_envelope() {
        let id = "\\\"".repeat(super::super::normalize::ATTRIBUTE_BYTES_MAX);
        let body = EVENT
            .replace("\"C1\"", &format!("\"{id}\""))
            .replace("\"T1\"", &format!("\"{id}\""))
            .replace("\"o-1\"", &format!("\"{id}\""));
        let record = record(&body, Mode::Structured).expect("a record");
        assert!(record.value.len() < body.len() + ENVELOPE_BYTES_MAX);
        assert_eq!(record.key.len(), super::super::normalize::ATTRIBUTE_BYTES_MAX);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let name = prop_oneof![
                Just("id".to_owned()),
                Just("chat".into()),
                Just("chat_id".into()),
                Just("thread".into()),
                Just("event".into()),
                Just("created_at".into()),
                ".{0,6}"
            ];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(name, inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_object_with_the_secret_becomes_a_valid_event_around_its_bytes(
            action in prop_oneof![proptest::sample::select(actions::names().collect::<Vec<_>>()).prop_map(str::to_owned), ".{0,80}"],
            payload in json(),
            more in proptest::collection::btree_map("[a-z_]{1,12}", json(), 0..4),
            organization in json(),
        ) {
            let mut data = serde_json::json!({"action": action, "payload": payload, "organization_id": organization});
            data.as_object_mut().expect("an object").extend(more.into_iter().filter(|(n, _)| n != "secret_key"));
            let data = data.to_string();
            let body = data.replacen('{', r#"{"secret_key":"k","#, 1);
            let record = record(&body, Mode::Structured);
            prop_assume!(action != "thread_tagged");
            let record = record.expect("a record");
            let value = std::str::from_utf8(&record.value).expect("text");
            let suffix = format!(r#","data":{data}}}"#);
            prop_assert!(value.ends_with(&suffix));
            let event: Value = serde_json::from_str(value).expect("JSON");
            for required in ["specversion", "id", "source", "type", "recordedtime", "app", "partitionkey", "contenthash"] {
                prop_assert!(event[required].as_str().is_some_and(|text| !text.is_empty()), "{}", required);
            }
            for (name, text) in event.as_object().expect("an object").iter().filter(|(n, _)| *n != "data") {
                prop_assert!(name.len() <= 20 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{}", name);
                prop_assert!(!text.as_str().expect("text").contains(char::is_control));
            }
            prop_assert!(record.topic.starts_with("livechat."));
        }
    }
}
