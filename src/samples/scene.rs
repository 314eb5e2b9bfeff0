//! What the placeholders of a template become: the story of the chat it belongs to, the account it
//! comes from, the people, the hour, and chance.

use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;
use uuid::{Builder, Uuid};

use super::{CATALOGUE, TEMPLATES, position};

/// LiveChat's chat and thread ids are so many upper-case letters and digits.
pub(crate) const CHAT_ID_LEN: usize = 10;

/// Writes one placeholder's value.
pub(crate) type Fill = fn(&mut Scene<'_>, &mut String);

#[rustfmt::skip] // a table
const PLACEHOLDERS: &[(&str, Fill)] = &[
    ("now", |s, out| out.push_str(&s.now)),
    ("unix", |s, out| out.push_str(&s.unix.to_string())),
    ("earlier", |s, out| out.push_str(&s.story.earlier)),
    ("message_at", |s, out| out.push_str(&s.story.message_at)),
    ("chat_id", |s, out| out.push_str(&s.story.chat_id)),
    ("thread_id", |s, out| out.push_str(&s.story.thread_id)),
    ("previous_thread_id", |s, out| out.push_str(&s.story.previous_thread_id)),
    ("event_id", |s, out| s.story.event_id(s.story.events, out)),
    ("message_id", |s, out| s.story.event_id(s.story.message, out)),
    ("rich_event_id", |s, out| s.story.event_id(s.story.rich, out)),
    ("marked_event_id", |s, out| s.story.event_id(s.story.marked, out)),
    ("text", |s, out| out.push_str(TEXTS[s.random.below(TEXTS.len())])),
    ("tag", |s, out| out.push_str(TAGS[s.story.tag % TAGS.len()])),
    ("customer_id", |s, out| out.push_str(&s.story.customer_id)),
    ("customer_name", |s, out| out.push_str(CUSTOMERS[s.story.customer].1)),
    ("customer_email", |s, out| out.push_str(CUSTOMERS[s.story.customer].0)),
    ("author_id", |s, out| out.push_str(s.story.speaker(s.story.message))),
    ("reader_id", |s, out| out.push_str(s.story.speaker(s.story.message + 1))),
    ("agent_id", |s, out| out.push_str(s.story.agent(0).0)),
    ("agent_name", |s, out| out.push_str(s.story.agent(0).1)),
    ("colleague_id", |s, out| out.push_str(s.story.agent(s.story.guest).0)),
    ("colleague_name", |s, out| out.push_str(s.story.agent(s.story.guest).1)),
    ("newcomer_id", |s, out| out.push_str(NEWCOMERS[s.roll % NEWCOMERS.len()].0)),
    ("newcomer_name", |s, out| out.push_str(NEWCOMERS[s.roll % NEWCOMERS.len()].1)),
    ("status", |s, out| out.push_str(STATUSES[s.roll % STATUSES.len()])),
    ("webhook_id", |s, out| out.push_str(&s.account.webhook_ids[s.template])),
    ("organization_id", |s, out| out.push_str(&s.account.organization_id)),
    ("license_id", |s, out| out.push_str(&s.account.license_id)),
    ("account_id", |s, out| out.push_str(&s.account.account_id)),
    ("client_id", |s, out| out.push_str(&s.account.client_id)),
    ("bot_id", |s, out| out.push_str(&s.account.bot_id)),
    ("auto_access_id", |s, out| out.push_str(&s.account.auto_access_id)),
    ("uuid", |s, out| out.push_str(&s.random.uuid().to_string())),
    ("hex", |s, out| out.push_str(&s.random.uuid().simple().to_string())),
    ("ip", |s, out| out.push_str(&format!("203.0.113.{}", s.random.below(256)))),
];

/// The filler of the placeholder of this name.
pub(crate) fn filler(name: &str) -> Option<Fill> {
    PLACEHOLDERS.iter().find(|(known, _)| *known == name).map(|(_, fill)| *fill)
}

/// All that a placeholder can ask for.
pub(crate) struct Scene<'a> {
    pub(crate) template: usize,
    pub(crate) story: &'a Story,
    pub(crate) account: &'a Account,
    pub(crate) now: String,
    pub(crate) unix: i64,
    /// One throw for the whole webhook, so that an id and its name match.
    pub(crate) roll: usize,
    pub(crate) random: &'a mut Random,
}

impl Scene<'_> {
    /// The webhook's body without the secret.
    pub(crate) fn play(&mut self) -> String {
        let template = &TEMPLATES[self.template];
        let mut data = String::with_capacity(template.len_typical);
        for (text, fill) in &template.pieces {
            data.push_str(text);
            fill(self, &mut data);
        }
        data.push_str(&template.tail);
        data
    }
}

/// One chat, and what has happened in it.
pub(crate) struct Story {
    pub(crate) chat_id: String,
    thread_id: String,
    previous_thread_id: String,
    customer_id: String,
    customer: usize,
    agent: usize,
    /// The colleague that joined last.
    guest: usize,
    tag: usize,
    /// The number of its latest event, message, rich message, event with properties.
    events: usize,
    message: usize,
    rich: usize,
    marked: usize,
    earlier: String,
    message_at: String,
    /// A bit for each template that was told and not taken back.
    pub(crate) told: u128,
    /// Webhooks before the last one; none: not begun, or over.
    pub(crate) left: Option<usize>,
}

impl Story {
    pub(crate) fn new(seed: u64, serial: u64, now: Timestamp, random: &mut Random) -> Self {
        Self {
            chat_id: chat_id(seed, serial, 0x9E37_79B9_7F4A_7C15),
            thread_id: chat_id(seed, serial, 0xD6E8_FEB8_6659_FD93),
            previous_thread_id: chat_id(seed, serial | 1 << 26, 0xD6E8_FEB8_6659_FD93),
            customer_id: random.uuid().to_string(),
            customer: random.below(CUSTOMERS.len()),
            agent: random.below(AGENTS.len()),
            guest: 1,
            tag: random.below(TAGS.len()),
            // A chat comes with a form, a question and a greeting.
            events: 3,
            message: 3,
            rich: 3,
            marked: 3,
            earlier: rfc3339(now.checked_sub(SignedDuration::from_mins(7)).unwrap_or(now)),
            message_at: rfc3339(now),
            told: 0,
            left: None,
        }
    }

    /// What the webhook about to be told changes for it and for those after it.
    pub(crate) fn remember(&mut self, template: usize, now: &str) {
        self.told |= 1 << template;
        if let Some((earlier, true)) = TEMPLATES[template].after {
            self.told &= !(1 << earlier);
        }
        let source = &CATALOGUE[template];
        self.events += usize::from(source.action() == "incoming_event");
        match source.name {
            "incoming_event" => {
                self.message = self.events;
                now.clone_into(&mut self.message_at);
            }
            "incoming_event.rich_message" => self.rich = self.events,
            "event_properties_updated" => self.marked = self.message,
            "thread_tagged" | "chat_thread_tagged" => self.tag += 1,
            "user_added_to_chat" | "chat_user_added" => {
                self.guest = self.guest % (AGENTS.len() - 1) + 1;
            }
            _ => {}
        }
    }

    fn event_id(&self, number: usize, out: &mut String) {
        out.push_str(&self.thread_id);
        out.push('_');
        out.push_str(&number.to_string());
    }

    /// Who wrote the event of this number: they take turns.
    fn speaker(&self, number: usize) -> &str {
        if number.is_multiple_of(2) { &self.customer_id } else { self.agent(0).0 }
    }

    fn agent(&self, offset: usize) -> (&'static str, &'static str) {
        AGENTS[(self.agent + offset) % AGENTS.len()]
    }
}

/// What stays the same through all of an account's webhooks.
pub(crate) struct Account {
    /// Registrations: one an action.
    webhook_ids: Vec<String>,
    organization_id: String,
    license_id: String,
    account_id: String,
    client_id: String,
    bot_id: String,
    auto_access_id: String,
}

impl Account {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut webhook_ids: Vec<String> = Vec::new();
        for source in CATALOGUE {
            let same = position(source.action()).and_then(|at| webhook_ids.get(at));
            let id = match same {
                Some(id) => id.clone(),
                None if source.version < "v3.4" => random.uuid().simple().to_string(),
                None => random.uuid().to_string(),
            };
            webhook_ids.push(id);
        }
        Self {
            webhook_ids,
            organization_id: random.uuid().to_string(),
            license_id: (10_000_000 + random.below(90_000_000)).to_string(),
            account_id: random.uuid().to_string(),
            client_id: random.uuid().simple().to_string(),
            bot_id: random.uuid().simple().to_string(),
            auto_access_id: random.uuid().simple().to_string(),
        }
    }

    pub(crate) fn rename(&mut self, organization_id: &str, license_id: u64, client_id: &str) {
        organization_id.clone_into(&mut self.organization_id);
        self.license_id = license_id.to_string();
        client_id.clone_into(&mut self.client_id);
    }
}

/// E-mail address (the agent's id) and name.
const AGENTS: [(&str, &str); 6] = [
    ("paula.wren@helpdesk.example", "Paula Wren"),
    ("tobias.ekholm@helpdesk.example", "Tobias Ekholm"),
    ("ruth.adeyemi@helpdesk.example", "Ruth Adéyẹmí"),
    ("marek.zielonka@helpdesk.example", "Marek Zielonka"),
    ("ilse.vandermeer@helpdesk.example", "Ilse van der Meer"),
    ("yusuf.aydin@helpdesk.example", "Yusuf Aydın"),
];
/// Agents of the configuration webhooks: they come and go, and are in no chat.
const NEWCOMERS: [(&str, &str); 3] = [
    ("greta.lund@helpdesk.example", "Greta Lund"),
    ("omar.benali@helpdesk.example", "Omar Ben Ali"),
    ("fiona.castell@helpdesk.example", "Fiona Castell"),
];
/// E-mail address and name.
const CUSTOMERS: [(&str, &str); 7] = [
    ("odile.ferrante@post.example", "Odile Ferrante"),
    ("jiri@havelka.example", "Jiří Havelka"),
    ("thandeka.m@mail.example", "Thandeka Mbele"),
    ("soren@ostergaard.example", "Søren Østergaard"),
    ("aoi.yamamoto@post.example", "山本 葵"),
    ("lucia.p@correo.example", "Lucía Peñalver"),
    ("dermot@okeane.example", "Dermot O'Keane"),
];
const TAGS: [&str; 5] = ["dented", "delivery", "spare parts", "zurück", "vip"];
const STATUSES: [&str; 3] = ["accepting chats", "not accepting chats", "offline"];

/// Message texts as JSON without the quotes, escaped as their author pleased.
static TEXTS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let texts: Vec<&RawValue> = serde_json::from_str(include_str!("texts.json"))
        .expect("the texts are compiled in, and a unit test parses them");
    texts.iter().map(|text| &text.get()[1..text.get().len() - 1]).collect()
});

/// SplitMix64: small, fast, the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.draw() % limit as u64) as usize
    }

    fn uuid(&mut self) -> Uuid {
        let bits = (u128::from(self.draw()) << 64) | u128::from(self.draw());
        Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }
}

/// Seed and serial number, scattered over 51 bits by steps that can be undone: so no two are alike.
fn chat_id(seed: u64, serial: u64, factor: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const MASK: u64 = (1 << 51) - 1;
    let mut bits = ((seed << 27) & MASK) | (serial & ((1 << 27) - 1));
    bits = bits.wrapping_mul(factor) & MASK;
    bits ^= bits >> 26;
    bits = bits.wrapping_mul(factor) & MASK;
    bits ^= bits >> 25;
    let digit = |place| char::from(DIGITS[(bits / 36_u64.pow(place) % 36) as usize]);
    (0..CHAT_ID_LEN as u32).map(digit).collect()
}

/// As LiveChat writes times: microseconds, and `Z`.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    format!("{time:.6}")
}
