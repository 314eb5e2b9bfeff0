//! [`Verified`] → [`Event`]: the CloudEvents attributes, from what the action's pointers found in the payload.
//!
//! A payload that is not as LiveChat documents it costs attributes, never the event: LiveChat changes payloads without notice.

use std::borrow::Cow;
use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Verified;
use super::actions::{Action, Identity, Pointer, Slot};
use super::hash::hash;
use super::json;
use super::labels;
use super::pointers::Found;
use super::route::UNLISTED;

/// The longest text that becomes an attribute, in bytes. LiveChat's ids have 10 to 60.
pub const ATTRIBUTE_BYTES_MAX: usize = 256;

/// What the relay knows of a delivery besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Receipt<'a> {
    /// The name of the app that it was delivered to.
    pub app: &'a str,
    /// When it was delivered.
    pub time: Timestamp,
    /// Makes a UUID of version 7, for an event whose id cannot be derived from its payload.
    pub fresh_id: fn() -> Uuid,
}

labels! {
    /// Something in a payload that is not as LiveChat documents it. It is counted; the event goes through.
    Fault {
        /// A member is neither a string nor an integer.
        WrongType => "wrong_type",
        /// A string is empty, too long, or has characters that CloudEvents forbids.
        UnusableText => "unusable_text",
        /// A time cannot be read as one.
        NotATime => "not_a_time",
        /// The payload has none of the members that make the record's key: the tenant is the key.
        NoKey => "no_key",
    }
}

/// Where the relay has a webhook from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Delivered,
    /// It was an event inside an `incoming_chat`.
    Initial,
    /// It was made of LiveChat's archive.
    Backfill,
}

/// Who wrote an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    Customer,
    Agent,
    Bot,
    /// LiveChat itself.
    System,
}

impl Author {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Agent => "agent",
            Self::Bot => "bot",
            Self::System => "system",
        }
    }

    /// By a user of the chat. LiveChat documents the types `customer` and `agent`, and a bot is an agent there, too; but a person's id is an
    /// e-mail address, and a bot's is not. An agent without one may be either.
    fn of_user(id: &str, kind: &str) -> Option<Self> {
        match kind {
            "customer" => Some(Self::Customer),
            "agent" if id.contains('@') => Some(Self::Agent),
            "bot" => Some(Self::Bot),
            _ => None,
        }
    }

    /// Each of a chat's users, raw, by id.
    pub fn of_users(users: Option<&RawValue>) -> HashMap<String, Self> {
        let author = |user: &RawValue| {
            let user = json::object(user.get());
            let id = json::text(&user, "id")?;
            let author = Self::of_user(&id, &json::text(&user, "type")?)?;
            Some((id.into_owned(), author))
        };
        json::list(users).into_iter().filter_map(author).collect()
    }

    /// By the type of the event: nothing else in a webhook of one event proves it.
    fn of_type(kind: &str) -> Option<Self> {
        matches!(kind, "system_message" | "system").then_some(Self::System)
    }
}

/// An event with its attributes. `data` is still borrowed from the body.
pub struct Event<'a> {
    /// The catalogue's entry for the action, [`APP_WEBHOOK`](super::actions::APP_WEBHOOK) or
    /// [`APP_INSTALLED`](super::actions::APP_INSTALLED).
    pub action: Option<&'static Action>,
    /// The end of the attribute `type`: the action's current name; for an unknown action the delivered name, if it can be one.
    pub name: Cow<'a, str>,
    /// Derived from the payload (version 8), or fresh (version 7).
    pub id: Uuid,
    pub is_id_derived: bool,
    pub tenant: Tenant<'a>,
    pub webhook_id: Option<Cow<'a, str>>,
    pub app: &'a str,
    /// When it happened, as far as the payload says so.
    pub time: Option<Timestamp>,
    /// When it was delivered.
    pub recorded: Timestamp,
    /// Half of the SHA-256 over tenant, name and payload: equal for the retries of one event.
    pub content_hash: [u8; 16],
    pub faults: Vec<Fault>,
    pub origin: Origin,
    /// Who wrote it, where that is proved.
    pub author: Option<Author>,
    pub(super) slots: Slots<'a>,
    pub(super) data: [&'a str; 2],
    /// Raw, as delivered.
    pub(super) additional_data: Option<&'a str>,
}

/// Whose event it is. LiveChat sends an organization (API 3.4 and later), a license (3.2, 3.3), or neither (3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tenant<'a> {
    Organization(Cow<'a, str>),
    License(Cow<'a, str>),
    Unnamed,
}

impl Tenant<'_> {
    /// The id; empty if there is none.
    pub fn id(&self) -> &str {
        match self {
            Self::Organization(id) | Self::License(id) => id,
            Self::Unnamed => "",
        }
    }
}

pub(super) type Slots<'a> = [Option<Cow<'a, str>>; Slot::COUNT];

impl<'a> Event<'a> {
    /// The text of a slot, if the payload has it.
    pub fn slot(&self, slot: Slot) -> Option<&str> {
        self.slots[slot as usize].as_deref()
    }

    /// What metrics call the action: its current name, or [`UNLISTED`].
    pub fn action_label(&self) -> &'static str {
        self.action.map_or(UNLISTED, |action| action.name)
    }

    /// The key that orders the event among others: what the catalogue says, else the tenant, else the app.
    pub fn key(&self) -> &str {
        let tenant = Some(self.tenant.id()).filter(|id| !id.is_empty());
        self.own_key().or(tenant).unwrap_or(self.app)
    }

    /// The key from the payload.
    fn own_key(&self) -> Option<&str> {
        self.action?.key.iter().find_map(|&slot| self.slot(slot))
    }

    /// The delivered object without its secret key, as the bytes before and after it.
    pub fn data(&self) -> [&'a str; 2] {
        self.data
    }
}

/// Finds the attributes of a verified webhook.
pub fn normalize<'a>(webhook: Verified<'a>, receipt: Receipt<'a>) -> Event<'a> {
    let webhook = webhook.into_webhook();
    let mut faults = Vec::new();
    let action = webhook.action;
    let tenant = tenant(webhook.organization_id, webhook.license_id, &mut faults);
    let slots = action.map_or_else(Slots::default, |action| slots(action.pointers, webhook.found, &mut faults));
    let time = time(&slots, &mut faults);
    let derived_id = derived_id(action, &tenant, &slots);
    let author = slots[Slot::EventType as usize].as_deref().and_then(Author::of_type);
    let mut event = Event {
        id: derived_id.unwrap_or_else(receipt.fresh_id),
        is_id_derived: derived_id.is_some(),
        content_hash: hash([tenant.id(), &webhook.name, webhook.payload].map(str::as_bytes)),
        webhook_id: text(webhook.webhook_id, &mut faults),
        app: receipt.app,
        recorded: receipt.time,
        data: webhook.data,
        additional_data: webhook.additional_data,
        action,
        origin: webhook.origin,
        author: author.or(webhook.author),
        name: webhook.name,
        tenant,
        time,
        faults,
        slots,
    };
    if event.action.is_some_and(|action| !action.key.is_empty()) && event.own_key().is_none() {
        event.faults.push(Fault::NoKey);
    }
    event
}

fn tenant<'a>(organization_id: Option<&'a str>, license_id: Option<&'a str>, faults: &mut Vec<Fault>) -> Tenant<'a> {
    let organization = text(organization_id, faults).map(Tenant::Organization);
    organization.or_else(|| text(license_id, faults).map(Tenant::License)).unwrap_or(Tenant::Unnamed)
}

/// The names of LiveChat's App Webhooks: an app was installed, or paid for.
pub const APP_EVENTS: [&str; 6] = [
    "app.application_installed",
    "app.application_uninstalled",
    "app.payment_trialstarted",
    "app.payment_activated",
    "app.payment_collected",
    "app.payment_cancelled",
];

/// The name of an installation that went through the relay's own page.
pub const APP_INSTALLED: &str = "app.installed";

/// The text of each slot. If a pointer leads to nothing usable, the next pointer of the same slot counts.
fn slots<'a>(pointers: &[Pointer], found: Found<'a>, faults: &mut Vec<Fault>) -> Slots<'a> {
    let mut slots = Slots::default();
    for (&(slot, _), raw) in pointers.iter().zip(found) {
        if slots[slot as usize].is_none() {
            slots[slot as usize] = text(raw, faults);
        }
    }
    slots
}

/// A string or an integer that can be an attribute. A member that is missing or `null` is no fault: many are optional.
fn text<'a>(raw: Option<&'a str>, faults: &mut Vec<Fault>) -> Option<Cow<'a, str>> {
    let raw = raw.filter(|&raw| raw != "null")?;
    let is_integer = |raw: &str| raw.len() <= 20 && raw.bytes().all(|b| b.is_ascii_digit());
    let text = match raw.as_bytes() {
        [b'"', ..] => json::string(raw).filter(|text| is_usable(text)).ok_or(Fault::UnusableText),
        _ if is_integer(raw) => Ok(Cow::Borrowed(raw)),
        _ => Err(Fault::WrongType),
    };
    text.map_err(|fault| faults.push(fault)).ok()
}

/// CloudEvents 1.0 forbids control characters and Unicode's noncharacters in attributes.
fn is_usable(text: &str) -> bool {
    let is_forbidden = |c: char| c.is_control() || matches!(c, '\u{fdd0}'..='\u{fdef}') || c as u32 & 0xfffe == 0xfffe;
    (1..=ATTRIBUTE_BYTES_MAX).contains(&text.len()) && !text.contains(is_forbidden)
}

/// When the event happened.
fn time(slots: &Slots<'_>, faults: &mut Vec<Fault>) -> Option<Timestamp> {
    let slot = |slot: Slot| slots[slot as usize].as_deref();
    let rfc3339 = |text: &str| text.parse::<Timestamp>().ok();
    let seconds = |text: &str| Timestamp::from_second(text.parse().ok()?).ok();
    let is_after_year_0 = |time: &Timestamp| time.as_second() >= -62_167_219_200; // RFC 3339 has no earlier year
    let time = match (slot(Slot::Time), slot(Slot::UnixTime)) {
        (Some(text), _) => rfc3339(text),
        (None, Some(text)) => seconds(text),
        (None, None) => return None,
    };
    let time = time.filter(is_after_year_0);
    if time.is_none() {
        faults.push(Fault::NotATime);
    }
    time
}

/// The id of an event that its payload names. It is the same for every delivery, on every replica; and for every registration,
/// because the webhook's id is left out.
fn derived_id(action: Option<&'static Action>, tenant: &Tenant<'_>, slots: &Slots<'_>) -> Option<Uuid> {
    let action = action?;
    let Identity::Strong(named_by) = action.identity else { return None };
    let mut parts = vec![tenant.id(), action.name];
    for &slot in named_by {
        parts.push(slots[slot as usize].as_deref()?);
    }
    Some(Uuid::new_v8(hash(parts.into_iter().map(str::as_bytes))))
}

#[cfg(test)]
mod tests {
    use super::super::{Keyring, receive::receive, verify::verify};
    use super::*;
    use crate::event::actions::{ACTIONS, find};

    fn receipt() -> Receipt<'static> {
        Receipt { app: "default", time: Timestamp::UNIX_EPOCH, fresh_id: || Uuid::from_u128(7 << 76) }
    }

    /// What `inspect` sees of the event that an action with this payload becomes.
    fn event<T>(action: &str, payload: &str, inspect: impl FnOnce(&Event<'_>) -> T) -> T {
        let keyring = Keyring::new([("k".to_owned(), &"k".to_owned().into())]);
        let body = format!(r#"{{"secret_key":"k","action":{action},"organization_id":"o","payload":{payload}}}"#);
        let (webhook, _) = verify(receive(body.as_bytes()).expect("well-formed"), &keyring, Timestamp::UNIX_EPOCH)
            .ok()
            .expect("verified");
        inspect(&normalize(webhook, receipt()))
    }

    /// A payload with `value` where the path leads.
    fn at(path: &[&str], value: &str) -> String {
        path.iter().rev().fold(value.to_owned(), |inner, name| format!(r#"{{"{name}":{inner}}}"#))
    }

    fn every_pointer() -> impl Iterator<Item = (&'static str, Slot, &'static [&'static str])> {
        let name = |action: &'static Action| action.delivered_as().next().expect("a name");
        ACTIONS.iter().flat_map(move |a| a.pointers.iter().map(move |&(slot, path)| (name(a), slot, path)))
    }

    #[test]
    fn a_wrong_type_at_any_pointer_of_any_action_costs_the_attribute_and_nothing_else() {
        let long = format!("\"{}\"", "x".repeat(10_000));
        for (action, slot, path) in every_pointer() {
            for value in [
                "null",
                "true",
                "1.5",
                "-1",
                "1e999",
                "[]",
                "{}",
                "[\"x\"]",
                "\"\"",
                "\"a\\u0000b\"",
                "\"a\\nb\"",
                "\"\\ud800\"",
                "\"\\uffff\"",
                "123456789012345678901",
                &long,
            ] {
                event(&format!("{action:?}"), &at(path, value), |event| {
                    assert_eq!(event.slot(slot), None, "{action} {path:?} {value}");
                    assert!(event.time.is_none() && event.id.get_version_num() == 7, "{action} {value}");
                    let is_fault = event.faults.iter().any(|f| matches!(f, Fault::WrongType | Fault::UnusableText));
                    assert_eq!(is_fault, value != "null", "{action} {path:?} {value}");
                });
            }
            // A scalar, or a list, where an object was to be gone through.
            for parent in ["1", "\"x\"", "null", "[]", "1e999", "\"\\ud800\""] {
                event(&format!("{action:?}"), &at(&path[..path.len() - 1], parent), |e| assert_eq!(e.slot(slot), None));
            }
        }
    }

    #[test]
    fn texts_and_integers_are_found_at_every_pointer_of_every_action() {
        let longest = "é".repeat(ATTRIBUTE_BYTES_MAX / 2);
        for (action, slot, path) in every_pointer().filter(|(_, slot, _)| !matches!(slot, Slot::Time | Slot::UnixTime))
        {
            for (value, expected) in [
                ("\"PJ0M\"", "PJ0M"),
                ("42", "42"),
                ("\"\\u00e9 \\ud83d\\ude80\"", "é 🚀"),
                (&format!("\"{longest}\""), longest.as_str()),
            ] {
                event(&format!("{action:?}"), &at(path, value), |event| {
                    assert_eq!(event.slot(slot), Some(expected), "{action} {path:?}");
                    let is_key = event.action.is_some_and(|action| action.key.contains(&slot));
                    assert_eq!(event.key(), if is_key { expected } else { "o" }, "{action} {path:?}");
                });
            }
            let too_long = format!("\"{longest}x\"");
            event(&format!("{action:?}"), &at(path, &too_long), |event| assert_eq!(event.slot(slot), None));
        }
    }

    #[test]
    fn the_key_falls_back_to_the_tenant_and_says_so() {
        event("\"incoming_event\"", r#"{"chat_id":""}"#, |event| {
            assert_eq!(event.key(), "o");
            assert_eq!(event.faults, [Fault::UnusableText, Fault::NoKey]);
        });
        event("\"auto_accesses_updated\"", "[]", |event| assert_eq!((event.key(), event.faults.len()), ("o", 0)));
        event("\"customer_session_fields_updated\"", r#"{"id":"c"}"#, |event| assert_eq!(event.key(), "c"));
    }

    #[test]
    fn only_times_are_times() {
        let time = |text: &str| {
            let payload = at(&["event", "created_at"], text);
            event("\"incoming_event\"", &payload, |event| {
                (event.time.map(|t| t.to_string()), event.faults.contains(&Fault::NotATime))
            })
        };
        let is = |text: &str| (Some(text.to_owned()), false);
        assert_eq!(time("\"2017-10-12T15:19:21.010200Z\""), is("2017-10-12T15:19:21.0102Z"));
        assert_eq!(time("\"1970-01-01T01:00:00.000000+01:00\""), is("1970-01-01T00:00:00Z"));
        for wrong in
            ["\"yesterday\"", "\"2017-10-12\"", "\"2017-13-12T15:19:21Z\"", "\"-000001-01-01T00:00:00Z\"", "1507821561"]
        {
            assert_eq!(time(wrong), (None, true), "{wrong}");
        }
        let seconds = at(&["chat", "thread", "timestamp"], "1507821561");
        event("\"incoming_chat_thread\"", &seconds, |e| assert_eq!(e.time.map(|t| t.as_second()), Some(1_507_821_561)));
    }

    #[test]
    fn strange_names_of_actions_never_become_part_of_a_type() {
        let long = format!("\"{}\"", "a".repeat(300));
        for (action, name) in [
            ("\"incoming_event\"", "incoming_event"),
            ("\"thread_closed\"", "chat_deactivated"),
            ("\"chat_reincarnated_2\"", "chat_reincarnated_2"),
            ("\"../../etc/passwd\"", "unlisted"),
            ("\"Incoming_Event\"", "unlisted"),
            ("\"a.b\"", "unlisted"),
            ("\"\"", "unlisted"),
            ("\"a\\u0000\"", "unlisted"),
            (&long, "unlisted"),
        ] {
            event(action, "{}", |event| assert_eq!(event.name, name, "{action}"));
        }
    }

    #[test]
    fn a_pointer_that_finds_nothing_leaves_its_slot_to_the_next() {
        let slot = |payload: &str| event("\"agent_deleted\"", payload, |e| e.slot(Slot::Agent).map(str::to_owned));
        assert_eq!(slot(r#"{"agent_id":"old"}"#).as_deref(), Some("old"));
        assert_eq!(slot(r#"{"id":[],"agent_id":"old"}"#).as_deref(), Some("old"));
        assert_eq!(slot(r#"{"agent_id":"old","id":"new"}"#).as_deref(), Some("new"));
        assert_eq!(slot(r#"{"id":"first","id":"last"}"#).as_deref(), Some("last"));
        assert_eq!(slot(r#"{"\u0069d":"escaped"}"#).as_deref(), Some("escaped"));
    }

    #[test]
    fn a_strong_identity_needs_all_its_parts() {
        let version = |payload: &str| event("\"incoming_event\"", payload, |e| e.id.get_version_num());
        assert_eq!(version(r#"{"chat_id":"C","thread_id":"T","event":{"id":"E"}}"#), 8);
        assert_eq!(version(r#"{"chat_id":"C","thread_id":"T","event":{}}"#), 7);
        assert!(find("incoming_event").is_some_and(|a| matches!(a.identity, Identity::Strong(_))));
    }
}
