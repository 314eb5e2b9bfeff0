//! What LiveChat would send: invented webhooks for `demo`, `send`, benches and tests. Stories of
//! chats run interleaved, with the webhooks of agents and configuration between them. A seed fixes
//! everything but the times.

use std::ops::Range;

use jiff::Timestamp;

use super::scene::{Account, CHAT_ID_LEN, Random, Scene, Story, rfc3339};
use super::{CATALOGUE, Role, Source, TEMPLATES, position};

/// Chats in progress at any time.
const OPEN_CHATS: usize = 30;
/// Webhooks of a chat between its first and its last.
const STORY_LEN: Range<usize> = 6..30;

/// One webhook as LiveChat would POST it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    action: &'static str,
    data: String,
    /// Where in `data` the chat id begins.
    chat_at: Option<usize>,
}

impl Sample {
    /// The action as delivered: the name that its API version uses.
    pub fn action(&self) -> &str {
        self.action
    }

    /// The chat it is about; webhooks of agents, new customers and configuration have none.
    pub fn chat_id(&self) -> Option<&str> {
        self.chat_at.map(|at| &self.data[at..at + CHAT_ID_LEN])
    }

    /// The object that consumers get as `data`: the body without `secret_key`, compact.
    pub fn data(&self) -> &str {
        &self.data
    }

    /// The body to POST: `data` with `secret_key` as the second member, where LiveChat places it.
    pub fn body(&self, secret_key: &str) -> String {
        let secret_key = serde_json::Value::from(secret_key);
        let (webhook_id, rest) = self.data.split_once(',').unwrap_or((&self.data, ""));
        format!(r#"{webhook_id},"secret_key":{secret_key},{rest}"#)
    }
}

/// The names that can be asked for: every action, and the names that older API versions gave it.
pub fn actions() -> impl Iterator<Item = &'static str> {
    CATALOGUE.iter().map(|source| source.name).filter(|name| !name.contains('.'))
}

/// Each of [`actions`] once: those of the newest API version in the order of a chat's story, then
/// the older names, version by version. Each version tells of a chat of its own.
pub fn one_of_each(seed: u64) -> Vec<Sample> {
    let mut traffic = Traffic::new(seed);
    let mut version = "";
    let mut samples = Vec::new();
    for (template, source) in CATALOGUE.iter().enumerate() {
        if source.version != version {
            version = source.version;
            traffic.open(0);
        }
        if source.name == source.action() {
            samples.push(traffic.tell(template, 0));
        }
    }
    samples
}

/// Endless traffic of one LiveChat account. The same seed gives the same webhooks, ids included,
/// except for the times. Seeds that differ in their lower 24 bits share no chat id (each seed has
/// 67 million of them before its first returns).
pub struct Traffic {
    seed: u64,
    /// Chats so far: the serial number of the next.
    chats: u64,
    random: Random,
    clock: Box<dyn FnMut() -> Timestamp + Send>,
    account: Account,
    stories: Vec<Story>,
    /// What can come, by [`Role`].
    decks: [Deck; 4],
}

impl Traffic {
    /// A mix like a busy account's, in the newest API version, on the system's clock.
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let account = Account::new(&mut random);
        let stories = (0..OPEN_CHATS).map(|_| Story::new(seed, 0, Timestamp::UNIX_EPOCH, &mut random)).collect();
        let (clock, decks) = (Box::new(Timestamp::now), deal(|source| source.weight > 0));
        Self { seed, chats: 0, random, clock, account, stories, decks }
    }

    /// Takes the times from `clock` instead.
    #[must_use]
    pub fn clock(mut self, clock: impl FnMut() -> Timestamp + Send + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// Restricts the traffic to these actions; an empty list restricts nothing.
    ///
    /// # Errors
    /// A name that is not one of [`actions`]; the message lists them.
    pub fn only(mut self, wanted: &[impl AsRef<str>]) -> Result<Self, String> {
        let wanted: Vec<&str> = wanted.iter().map(AsRef::as_ref).collect();
        if let Some(name) = wanted.iter().find(|name| !actions().any(|known| known == **name)) {
            return Err((*name).to_owned());
        }
        if !wanted.is_empty() {
            self.decks = deal(|source| wanted.contains(&source.action()));
        }
        Ok(self)
    }

    /// The template that comes next and the story it belongs to; none if the story's next step is
    /// not one to tell.
    fn choose(&mut self) -> Option<(usize, usize)> {
        let slot = self.random.below(OPEN_CHATS);
        let total: usize = self.decks.iter().map(Deck::total).sum();
        let aside = self.random.below(total) < self.decks[Role::Aside as usize].total();
        let role = if aside { Role::Aside } else { self.turn_page(slot) };
        let template = self.decks[role as usize].draw(&mut self.random)?;
        let missing = TEMPLATES[template].after.and_then(|(earlier, _)| {
            let told = self.stories[slot].told & (1 << earlier) != 0;
            let can_come = self.decks[role as usize].holds(earlier);
            (can_come && !told).then_some(earlier)
        });
        Some((missing.unwrap_or(template), slot))
    }

    fn turn_page(&mut self, slot: usize) -> Role {
        match self.stories[slot].left {
            None => {
                self.open(slot);
                return Role::Opens;
            }
            Some(left) => self.stories[slot].left = left.checked_sub(1),
        }
        if self.stories[slot].left.is_some() { Role::During } else { Role::Closes }
    }

    /// Begins a new chat in the place of one that ended.
    fn open(&mut self, slot: usize) {
        let now = (self.clock)();
        // With nothing to tell between them, the last webhook of a chat follows the first.
        let quiet = self.decks[Role::During as usize].total() == 0;
        let pages = STORY_LEN.start + self.random.below(STORY_LEN.len());
        let mut story = Story::new(self.seed, self.chats, now, &mut self.random);
        story.left = Some(if quiet { 0 } else { pages });
        self.stories[slot] = story;
        self.chats += 1;
    }

    fn tell(&mut self, template: usize, slot: usize) -> Sample {
        let time = (self.clock)();
        tell(template, &mut self.stories[slot], &self.account, &mut self.random, time)
    }

    /// Takes the account's names from an organization instead of chance.
    #[must_use]
    pub(crate) fn organization(mut self, organization_id: &str, license_id: u64, client_id: &str) -> Self {
        self.account.rename(organization_id, license_id, client_id);
        self
    }

    /// A chat beside those of the mix, which goes on as [`Self::tell_of`] says.
    pub(crate) fn begin(&mut self, time: Timestamp) -> Story {
        self.chats += 1;
        Story::new(self.seed, self.chats - 1, time, &mut self.random)
    }

    /// What happens next in a chat that was begun: the name of a template. None where there is no such template.
    pub(crate) fn tell_of(&mut self, story: &mut Story, name: &str, time: Timestamp) -> Option<Sample> {
        let template = position(name)?;
        Some(tell(template, story, &self.account, &mut self.random, time))
    }
}

fn tell(template: usize, story: &mut Story, account: &Account, random: &mut Random, time: Timestamp) -> Sample {
    let now = rfc3339(time);
    story.remember(template, &now);
    let source = &CATALOGUE[template];
    let roll = random.below(usize::MAX);
    let data = Scene { template, story, account, now, unix: time.as_second(), roll, random }.play();
    let chat_at = (source.role != Role::Aside).then(|| data.find(&story.chat_id));
    Sample { action: source.action(), data, chat_at: chat_at.flatten() }
}

impl Iterator for Traffic {
    type Item = Sample;

    fn next(&mut self) -> Option<Sample> {
        loop {
            if let Some((template, slot)) = self.choose() {
                return Some(self.tell(template, slot));
            }
        }
    }
}

/// Templates by their share.
#[derive(Default)]
struct Deck(Vec<(usize, usize)>);

impl Deck {
    fn add(&mut self, template: usize, weight: u32) {
        self.0.push((self.total() + weight.max(1) as usize, template));
    }

    fn total(&self) -> usize {
        self.0.last().map_or(0, |(bound, _)| *bound)
    }

    fn holds(&self, template: usize) -> bool {
        self.0.iter().any(|(_, held)| *held == template)
    }

    fn draw(&self, random: &mut Random) -> Option<usize> {
        if self.0.is_empty() {
            return None;
        }
        let throw = random.below(self.total());
        self.0.get(self.0.partition_point(|(bound, _)| *bound <= throw)).map(|(_, held)| *held)
    }
}

fn deal(allowed: impl Fn(&Source) -> bool) -> [Deck; 4] {
    let mut decks = <[Deck; 4]>::default();
    for (template, source) in CATALOGUE.iter().enumerate().filter(|(_, source)| allowed(source)) {
        decks[source.role as usize].add(template, source.weight);
    }
    decks
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::{HashMap, HashSet};

    fn fixed(seed: u64) -> Traffic {
        Traffic::new(seed).clock(|| Timestamp::from_second(1_795_000_000).unwrap())
    }

    fn parse(json: &str) -> Value {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{error} in {json}"))
    }

    #[test]
    fn bodies_are_the_data_with_the_secret_second() {
        let mut traffic = fixed(1);
        traffic.open(0);
        for template in 0..CATALOGUE.len() {
            let sample = traffic.tell(template, 0);
            let body = sample.body("a \"quoted\" \\ ключ");
            let mut parsed = parse(&body);

            assert!(!body.contains("{{") && !body.contains('\n'), "{body}");
            assert!(body.split(',').nth(1).unwrap().starts_with("\"secret_key\":"), "{body}");
            let secret = parsed.as_object_mut().unwrap().remove("secret_key");
            assert_eq!(secret.unwrap(), "a \"quoted\" \\ ключ");
            assert_eq!(parsed, parse(sample.data()));
            assert_eq!(parsed["action"], sample.action());
        }
    }

    #[test]
    fn every_action_comes_once_in_one_of_each() {
        let samples = one_of_each(7);
        let told: Vec<_> = samples.iter().map(Sample::action).collect();

        assert_eq!(told, actions().collect::<Vec<_>>());
        assert_eq!(told.iter().collect::<HashSet<_>>().len(), told.len());
        assert!((4000..7000).contains(&samples[0].data().len()), "{}", samples[0].data().len());
    }

    #[test]
    fn a_seed_fixes_everything_but_the_times() {
        assert!(fixed(3).take(2000).eq(fixed(3).take(2000)));

        let chats = |seed| fixed(seed).take(20_000).filter_map(|sample| sample.chat_id().map(str::to_owned));
        let ours: HashSet<String> = chats(3).collect();
        let plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
        assert!(ours.iter().all(|chat| chat.len() == 10 && chat.chars().all(plain)));
        assert!(chats(4).all(|chat| !ours.contains(&chat)));
    }

    #[test]
    fn a_chat_keeps_its_ids_from_its_first_webhook_to_its_last() {
        let mut open: HashMap<String, (Value, Value, usize)> = HashMap::new();
        let mut closed = HashSet::new();
        for sample in fixed(5).take(20_000) {
            let Some(chat) = sample.chat_id().map(str::to_owned) else { continue };
            let payload = parse(sample.data())["payload"].take();
            assert!(!closed.contains(&chat), "{} after the end of {chat}", sample.action());
            if sample.action() == "incoming_chat" {
                let thread = payload["chat"]["thread"]["id"].clone();
                let customer = payload["chat"]["users"][0]["id"].clone();
                assert!(open.insert(chat, (thread, customer, 3)).is_none());
                continue;
            }
            let (thread, customer, events) = open.get_mut(&chat).expect("incoming_chat comes first");
            if let Some(id) = payload.get("thread_id") {
                assert_eq!(id, thread);
            }
            if sample.action() == "incoming_event" {
                *events += 1;
                assert_eq!(payload["event"]["id"], format!("{}_{events}", thread.as_str().unwrap()));
                assert!(sample.data().contains(customer.as_str().unwrap()));
            }
            if sample.action() == "chat_deactivated" {
                closed.insert(chat);
            }
        }
        assert!(closed.len() > 500, "{}", closed.len());
    }

    #[test]
    fn the_mix_is_mostly_events() {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for sample in fixed(6).take(50_000) {
            *counts.entry(sample.action().to_owned()).or_default() += 1;
        }
        assert!((28_000..32_000).contains(&counts["incoming_event"]), "{counts:?}");
        assert!((2_000..3_000).contains(&counts["incoming_chat"]), "{counts:?}");
        assert_eq!(counts.len(), 38, "all of the newest version, nothing older: {counts:?}");
    }

    #[test]
    fn only_the_wanted_actions_come() {
        for action in actions() {
            let mut traffic = fixed(8).only(&[action]).unwrap();
            assert!(traffic.by_ref().take(50).all(|sample| sample.action() == action));
            let chats: HashSet<_> = traffic.take(200).map(|s| s.chat_id().map(str::to_owned)).collect();
            assert!(chats.len() > 20 || chats.contains(&None), "{action}: {}", chats.len());
        }
        let pair = ["chat_thread_tagged", "chat_thread_untagged"];
        assert!(fixed(9).only(&pair).unwrap().any(|sample| sample.action() == pair[1]));
        assert!(fixed(9).only(&[] as &[&str]).is_ok());
    }

    #[test]
    fn an_unknown_action_is_refused() {
        assert_eq!(fixed(1).only(&["incoming_chat", "incoming_chats"]).err().unwrap(), "incoming_chats");
    }

    #[test]
    fn times_are_written_as_livechat_writes_them() {
        let sample = fixed(1).only(&["events_marked_as_seen"]).unwrap().next().unwrap();
        let seen = parse(sample.data())["payload"]["seen_up_to"].take();

        assert_eq!(seen, "2026-11-18T11:06:40.000000Z");
    }

    #[test]
    fn no_event_comes_twice() {
        use crate::event::{Keyring, Receipt, normalize::normalize, receive::receive, verify::verify};
        let keyring = Keyring::new([("k".to_owned(), &"k".to_owned().into())]);
        let receipt = Receipt { app: "a", time: Timestamp::UNIX_EPOCH, fresh_id: uuid::Uuid::nil };
        let mut seen = std::collections::HashMap::new();
        for sample in Traffic::new(7).take(20_000) {
            let body = sample.body("k");
            let (webhook, _) = verify(receive(body.as_bytes()).expect("well-formed"), &keyring, Timestamp::UNIX_EPOCH)
                .ok()
                .expect("verified");
            let id = normalize(webhook, receipt).id;
            if id.get_version_num() == 8 {
                let twin = seen.insert(id, sample.data().to_owned());
                assert_eq!(twin, None, "is the same event as\n{}", sample.data());
            }
        }
    }
}
