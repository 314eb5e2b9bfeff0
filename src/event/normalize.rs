//! [`Verified`] → [`Event`]: the attributes of CloudEvents 1.0, found in one walk over the payload's members.
//!
//! A payload that does not look as the catalogue says loses attributes, never the event: LiveChat changes its payloads
//! without asking us.

use std::borrow::Cow;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Verified;
use super::actions::{self, Action, Identity, POINTERS_MAX, Pointer, Slot};
use super::scan;

/// The longest text that becomes an attribute, in bytes. LiveChat's ids have 10 to 60; what is longer is none of them.
pub const ATTRIBUTE_BYTES_MAX: usize = 256;

/// What the relay knows of a delivery besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Receipt<'a> {
    /// The configured app that it was delivered to.
    pub app: &'a str,
    /// When it was delivered.
    pub time: Timestamp,
    /// A fresh UUIDv7, for an event whose payload does not name it.
    pub fresh_id: Uuid,
}

/// Something in a delivery that is not as LiveChat documents it; counted, and never a reason to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A member that a pointer names has another type.
    WrongType,
    /// An id that is empty, too long, or has characters that CloudEvents forbids.
    UnusableText,
    /// A time that is none.
    NotATime,
    /// None of the members that the catalogue takes for the key is there: the tenant is the key.
    NoKey,
}

impl Fault {
    /// Every variant, for metrics.
    pub const ALL: [Self; 4] = [Self::WrongType, Self::UnusableText, Self::NotATime, Self::NoKey];

    /// The metric label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::WrongType => "wrong_type",
            Self::UnusableText => "unusable_text",
            Self::NotATime => "not_a_time",
            Self::NoKey => "no_key",
        }
    }
}

/// An event with its attributes; `data` is still borrowed from the body.
pub struct Event<'a> {
    /// The current name where the catalogue knows the action.
    pub action: Option<&'static Action>,
    /// What the type ends in: the current name, or the delivered one where it is fit to be a name.
    pub name: Cow<'a, str>,
    /// Derived from the payload (version 8) or fresh (version 7).
    pub id: Uuid,
    pub tenant: Tenant<'a>,
    pub webhook_id: Option<Cow<'a, str>>,
    pub app: &'a str,
    /// When it happened, as far as the payload says so.
    pub time: Option<Timestamp>,
    /// When it was delivered.
    pub recorded: Timestamp,
    /// SHA-256 over tenant, name and payload, the first half of it: equal for the retries of one event.
    pub content_hash: [u8; 16],
    pub faults: Vec<Fault>,
    pub(super) slots: Slots<'a>,
    pub(super) data: [&'a str; 2],
}

/// Whose event it is: LiveChat names an organization (API 3.4 and later), a license (3.2, 3.3) or nobody (3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenant<'a> {
    Organization(Cow<'a, str>),
    License(Cow<'a, str>),
    Unnamed,
}

impl Tenant<'_> {
    /// The bare id; empty where there is none.
    pub fn id(&self) -> &str {
        match self {
            Self::Organization(id) | Self::License(id) => id,
            Self::Unnamed => "",
        }
    }
}

pub(super) type Slots<'a> = [Option<Cow<'a, str>>; Slot::COUNT];

impl<'a> Event<'a> {
    /// The text of a slot, where the payload has it.
    pub fn slot(&self, slot: Slot) -> Option<&str> {
        self.slots[slot as usize].as_deref()
    }

    /// What orders the event among others: the key by the catalogue, else the tenant, else the app.
    pub fn key(&self) -> &str {
        let by_catalogue = self.action.and_then(|action| action.key.iter().find_map(|&slot| self.slot(slot)));
        by_catalogue.or_else(|| Some(self.tenant.id()).filter(|id| !id.is_empty())).unwrap_or(self.app)
    }

    /// The delivered object without its secret key, as the bytes before and after it.
    pub fn data(&self) -> [&'a str; 2] {
        self.data
    }
}

/// Finds the attributes of a verified webhook.
pub fn normalize<'a>(webhook: Verified<'a>, receipt: Receipt<'a>) -> Event<'a> {
    let mut faults = Vec::new();
    let action = actions::find(&webhook.action);
    let tenant = tenant(&webhook, &mut faults);
    let slots = action.map_or_else(Slots::default, |action| slots(action.pointers, webhook.payload, &mut faults));
    let name = name(action, webhook.action);
    let time = time(&slots, &mut faults);
    let id = derived_id(action, &tenant, &slots).unwrap_or(receipt.fresh_id);
    let event = Event {
        content_hash: half(hash([tenant.id(), &name, webhook.payload].into_iter())),
        webhook_id: text(webhook.webhook_id, &mut faults),
        app: receipt.app,
        recorded: receipt.time,
        data: webhook.data,
        action,
        name,
        id,
        tenant,
        time,
        faults,
        slots,
    };
    with_key_checked(event)
}

fn with_key_checked(mut event: Event<'_>) -> Event<'_> {
    let wanted = event.action.map_or(&[][..], |action| action.key);
    if !wanted.is_empty() && wanted.iter().all(|&slot| event.slot(slot).is_none()) {
        event.faults.push(Fault::NoKey);
    }
    event
}

fn tenant<'a>(webhook: &Verified<'a>, faults: &mut Vec<Fault>) -> Tenant<'a> {
    let organization = text(webhook.organization_id, faults).map(Tenant::Organization);
    organization.or_else(|| text(webhook.license_id, faults).map(Tenant::License)).unwrap_or(Tenant::Unnamed)
}

/// An unknown action keeps its name where that is as plain as LiveChat's are; else it must not become part of a type.
fn name<'a>(action: Option<&'static Action>, delivered: Cow<'a, str>) -> Cow<'a, str> {
    let plain = |name: &str| {
        (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    match action {
        Some(action) => Cow::Borrowed(action.name),
        None if plain(&delivered) => delivered,
        None => Cow::Borrowed("unlisted"),
    }
}

/// The text of each slot that the pointers find. A pointer that finds nothing usable leaves its slot to the next one.
fn slots<'a>(pointers: &[Pointer], payload: &'a str, faults: &mut Vec<Fault>) -> Slots<'a> {
    let mut found = [None; POINTERS_MAX];
    walk(pointers, all(pointers), 0, payload, &mut found);
    let mut slots = Slots::default();
    for (&(slot, _), raw) in pointers.iter().zip(found) {
        if slots[slot as usize].is_none() {
            slots[slot as usize] = text(raw, faults);
        }
    }
    slots
}

/// One bit for each pointer.
fn all(pointers: &[Pointer]) -> u16 {
    pointers.iter().enumerate().fold(0, |set, (i, _)| set | 1 << i)
}

/// Looks for the pointers in `set`, all of which lead through `object`, at depth `depth` of their paths.
fn walk<'a>(
    pointers: &[Pointer],
    set: u16,
    depth: usize,
    object: &'a str,
    found: &mut [Option<&'a str>; POINTERS_MAX],
) {
    if set == 0 {
        return;
    }
    for (raw_name, value) in scan::members(object) {
        let Some(name) = scan::string(raw_name) else { continue };
        let mut deeper = 0;
        for (i, (_, path)) in pointers.iter().enumerate().filter(|(i, _)| set & 1 << i != 0) {
            if path.get(depth).is_some_and(|&part| part == name) {
                if depth + 1 == path.len() {
                    found[i] = Some(value); // a name that stands twice: the last counts, as it does for most parsers
                } else {
                    deeper |= 1 << i;
                }
            }
        }
        walk(pointers, deeper, depth + 1, value, found);
    }
}

/// A text or an integer that can be an attribute. Missing and `null` are no faults: many members are optional.
fn text<'a>(raw: Option<&'a str>, faults: &mut Vec<Fault>) -> Option<Cow<'a, str>> {
    let raw = raw.filter(|&raw| raw != "null")?;
    let is_integer = |raw: &str| raw.len() <= 20 && raw.bytes().all(|b| b.is_ascii_digit());
    let text = match raw.as_bytes().first() {
        Some(b'"') => scan::string(raw).filter(|text| is_usable(text)).ok_or(Fault::UnusableText),
        _ if is_integer(raw) => Ok(Cow::Borrowed(raw)),
        _ => Err(Fault::WrongType),
    };
    text.map_err(|fault| faults.push(fault)).ok()
}

/// CloudEvents 1.0 keeps control characters and noncharacters out of attributes.
fn is_usable(text: &str) -> bool {
    let forbidden = |c: char| c.is_control() || matches!(c, '\u{fdd0}'..='\u{fdef}') || c as u32 & 0xfffe == 0xfffe;
    (1..=ATTRIBUTE_BYTES_MAX).contains(&text.len()) && !text.contains(forbidden)
}

fn time(slots: &Slots<'_>, faults: &mut Vec<Fault>) -> Option<Timestamp> {
    let slot = |slot: Slot| slots[slot as usize].as_deref();
    let rfc3339 = |text: &str| text.parse::<Timestamp>().ok();
    let seconds = |text: &str| Timestamp::from_second(text.parse().ok()?).ok();
    let after_year_0 = |time: &Timestamp| time.as_second() >= -62_167_219_200; // RFC 3339 knows no year before
    let time = match (slot(Slot::Time), slot(Slot::UnixTime)) {
        (Some(text), _) => rfc3339(text),
        (None, Some(text)) => seconds(text),
        (None, None) => return None,
    };
    let time = time.filter(after_year_0);
    if time.is_none() {
        faults.push(Fault::NotATime);
    }
    time
}

/// The same for every delivery of one event, on every replica and by every registration: the webhook id is left out.
fn derived_id(action: Option<&'static Action>, tenant: &Tenant<'_>, slots: &Slots<'_>) -> Option<Uuid> {
    let action = action?;
    let Identity::Strong(named_by) = action.identity else { return None };
    if named_by.iter().any(|&slot| slots[slot as usize].is_none()) {
        return None;
    }
    let names = named_by.iter().filter_map(|&slot| slots[slot as usize].as_deref());
    Some(Uuid::new_v8(half(hash([tenant.id(), action.name].into_iter().chain(names)))))
}

/// Each part goes in with its length before it, so that no two lists of parts are one text.
fn hash<'p>(parts: impl Iterator<Item = &'p str>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

fn half(hash: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}
