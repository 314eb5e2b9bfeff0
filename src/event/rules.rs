//! `[[rules]]`: what becomes of some events instead of what their route says, until a date: for the bot that floods, or the account whose
//! events no consumer can read.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;

use super::actions::Slot;
use super::hash::hash;
use super::{Event, Topics};

/// The rules, in their order.
#[derive(Clone, Default)]
pub struct Rules(Vec<Rule>);

/// One rule.
#[derive(Clone)]
pub struct Rule {
    pub name: String,
    pub criteria: Criteria,
    pub effect: Effect,
    /// From then on it is as if it were not there.
    pub until: Option<Timestamp>,
    /// Outlives the rules: see [`Rules::inherit`].
    matches: Arc<AtomicU64>,
}

/// What an event must have: of each criterion that is set, one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Criteria {
    pub app: Option<BTreeSet<String>>,
    /// By the names of the routes: see [`Topics::name_of`].
    pub action: Option<BTreeSet<String>>,
    /// The organization's id; of events that have a license instead, the license's.
    pub organization: Option<BTreeSet<String>>,
    pub chat: Option<BTreeSet<String>>,
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answered 200, counted, and not published.
    Drop,
    /// Published to this topic, with the key that it has otherwise.
    Topic(Arc<str>),
    /// Published to this topic as a dead letter.
    DeadLetter(Arc<str>),
    /// One in so many takes its usual route, the others are dropped.
    Sample { one_in: NonZeroU64, by: SampleBy },
}

/// What is kept together in a sample. Both are equal on every replica and for every retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleBy {
    /// The events of a chat; those that have none are sampled by themselves.
    Chat,
    /// Each event by itself.
    Event,
}

impl Rules {
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// The first rule that matches an event, at the time of its receipt.
    pub fn find(&self, event: &Event<'_>, topics: &Topics) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.is_active(event.recorded) && rule.criteria.hold(event, topics))
    }

    /// Goes on with what `former` has counted of the rules that both have, by their names.
    pub fn inherit(&mut self, former: &Self) {
        for rule in &mut self.0 {
            if let Some(same) = former.0.iter().find(|same| same.name == rule.name) {
                rule.matches = Arc::clone(&same.matches);
            }
        }
    }
}

impl Rule {
    pub fn new(name: String, criteria: Criteria, effect: Effect, until: Option<Timestamp>) -> Self {
        Self { name, criteria, effect, until, matches: Arc::default() }
    }

    pub fn is_active(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// The topic that it sends events to.
    pub fn topic(&self) -> Option<&Arc<str>> {
        match &self.effect {
            Effect::Topic(topic) | Effect::DeadLetter(topic) => Some(topic),
            Effect::Drop | Effect::Sample { .. } => None,
        }
    }

    pub fn count_match(&self) {
        self.matches.fetch_add(1, Ordering::Relaxed);
    }

    /// How many events it was there for.
    pub fn matches(&self) -> u64 {
        self.matches.load(Ordering::Relaxed)
    }
}

impl Criteria {
    /// By name.
    fn by_name(&self) -> [(&'static str, &Option<BTreeSet<String>>); 4] {
        [("app", &self.app), ("action", &self.action), ("organization", &self.organization), ("chat", &self.chat)]
    }

    /// The app, where events of one app only are meant.
    pub fn only_app(&self) -> Option<&str> {
        let apps = self.app.as_ref().filter(|apps| apps.len() == 1)?;
        apps.first().map(String::as_str)
    }

    /// Whether there can be events of this app and action that meet these criteria.
    pub fn may_hold(&self, app: &str, action: &str, has_chat: bool) -> bool {
        self.app.as_ref().is_none_or(|apps| apps.contains(app))
            && self.action.as_ref().is_none_or(|actions| actions.contains(action))
            && (has_chat || self.chat.is_none())
    }

    fn hold(&self, event: &Event<'_>, topics: &Topics) -> bool {
        let is_one = |values: &Option<BTreeSet<String>>, value: Option<&str>| {
            values.as_ref().is_none_or(|values| value.is_some_and(|value| values.contains(value)))
        };
        is_one(&self.app, Some(event.app))
            && is_one(&self.action, Some(topics.name_of(event)))
            && is_one(&self.organization, Some(event.tenant.id()))
            && is_one(&self.chat, event.slot(Slot::Chat))
    }
}

impl SampleBy {
    /// Whether the event is the one of so many.
    pub(super) fn keeps(self, event: &Event<'_>, one_in: NonZeroU64) -> bool {
        let chat = event.slot(Slot::Chat).filter(|_| self == Self::Chat);
        let hash = chat.map_or(event.content_hash, |chat| hash([chat.as_bytes()]));
        u128::from_be_bytes(hash).is_multiple_of(one_in.get().into())
    }
}

impl fmt::Display for Rule {
    /// As an operator reads it: `events of app default and chat PJ0MRSHTDG are dropped until 2026-12-31T00:00:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        write!(f, "events")?;
        let there = self.criteria.by_name().into_iter().filter_map(|(name, values)| Some((name, values.as_ref()?)));
        for (i, (name, values)) in there.enumerate() {
            let shown = values.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            write!(f, " {} {name} {shown}", if i == 0 { "of" } else { "and" })?;
            if values.len() > SHOWN {
                write!(f, " and {} more", values.len() - SHOWN)?;
            }
        }
        match &self.effect {
            Effect::Drop => write!(f, " are dropped")?,
            Effect::Topic(topic) => write!(f, " go to the topic {topic}")?,
            Effect::DeadLetter(_) => write!(f, " go to the dead letters")?,
            Effect::Sample { one_in, by: SampleBy::Chat } => write!(f, " are kept for one chat in {one_in}")?,
            Effect::Sample { one_in, by: SampleBy::Event } => write!(f, " are sampled: one in {one_in} is kept")?,
        }
        self.until.map_or(Ok(()), |until| write!(f, " until {until}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::normalize::{Receipt, normalize};
    use super::super::receive::receive;
    use super::super::verify::verify;
    use super::super::{Keyring, Keys, Mode, Routing, route::route};
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// What `inspect` sees of an event of the app `default` and the organization `o`.
    fn event<T>(action: &str, payload: &str, inspect: impl FnOnce(Event<'_>) -> T) -> T {
        let keyring = Keyring::new([("k".to_owned(), &"k".to_owned().into())]);
        let body = format!(r#"{{"secret_key":"k","action":"{action}","organization_id":"o","payload":{payload}}}"#);
        let receipt = Receipt { app: "default", time: NOW, fresh_id: uuid::Uuid::now_v7 };
        let (webhook, _) = verify(receive(body.as_bytes()).expect("well-formed"), &keyring, NOW).ok().expect("its key");
        inspect(normalize(webhook, receipt))
    }

    fn topics() -> Topics {
        Topics::new("livechat.", |name| (name == "thread_tagged").then_some(super::super::route::Route::Drop))
    }

    fn set(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(ToString::to_string).collect()
    }

    fn rule(name: &str, criteria: Criteria, effect: Effect) -> Rule {
        Rule::new(name.to_owned(), criteria, effect, None)
    }

    #[test]
    fn a_rule_is_there_for_events_that_have_one_of_each_of_its_criteria() {
        let none = Criteria::default;
        let chat = r#"{"chat_id":"C","thread_id":"T","event":{"id":"E"}}"#;
        for (criteria, action, payload, holds) in [
            (Criteria { app: Some(set(&["default"])), ..none() }, "incoming_event", chat, true),
            (Criteria { app: Some(set(&["sales"])), ..none() }, "incoming_event", chat, false),
            (
                Criteria { action: Some(set(&["incoming_event", "incoming_chat"])), ..none() },
                "incoming_event",
                chat,
                true,
            ),
            (Criteria { action: Some(set(&["incoming_chat"])), ..none() }, "incoming_event", chat, false),
            (Criteria { action: Some(set(&["chat_deactivated"])), ..none() }, "thread_closed", chat, true),
            (Criteria { action: Some(set(&["unlisted"])), ..none() }, "chat_cloned", chat, true),
            (Criteria { action: Some(set(&["unlisted"])), ..none() }, "incoming_event", chat, false),
            (Criteria { organization: Some(set(&["o"])), ..none() }, "incoming_event", chat, true),
            (Criteria { organization: Some(set(&["O", "o "])), ..none() }, "incoming_event", chat, false),
            (Criteria { chat: Some(set(&["B", "C"])), ..none() }, "incoming_event", chat, true),
            (Criteria { chat: Some(set(&["B"])), ..none() }, "incoming_event", chat, false),
            (Criteria { chat: Some(set(&["C"])), ..none() }, "agent_created", r#"{"id":"C"}"#, false),
            (
                Criteria { chat: Some(set(&["C"])), organization: Some(set(&["o"])), ..none() },
                "incoming_event",
                chat,
                true,
            ),
            (
                Criteria { chat: Some(set(&["C"])), organization: Some(set(&["p"])), ..none() },
                "incoming_event",
                chat,
                false,
            ),
        ] {
            let rules = Rules::new(vec![rule("r", criteria.clone(), Effect::Drop)]);
            let is_found = event(action, payload, |event| rules.find(&event, &topics()).is_some());
            assert_eq!(is_found, holds, "{criteria:?} and {action} {payload}");
        }
    }

    #[test]
    fn the_first_rule_that_is_there_counts_and_one_past_its_end_is_not_there() {
        let all = || Criteria { app: Some(set(&["default"])), ..Criteria::default() };
        let mut rules = ["first", "second", "third"].map(|name| rule(name, all(), Effect::Drop));
        rules[0].until = Some(NOW);
        rules[1].until = Some(NOW + std::time::Duration::from_nanos(1));
        let rules = Rules::new(rules.to_vec());
        event("incoming_chat", "{}", |mut event| {
            assert_eq!(rules.find(&event, &topics()).map(|rule| &*rule.name), Some("second"));
            event.recorded = NOW + std::time::Duration::from_nanos(1);
            assert_eq!(rules.find(&event, &topics()).map(|rule| &*rule.name), Some("third"));
        });
    }

    #[test]
    fn an_effect_goes_before_the_route() {
        let routing = Routing { topics: topics(), mode: Mode::Structured, keys: Keys::Plain, api_version: None };
        let record = |action: &str, effect: Effect| {
            let rule = rule("flood", Criteria::default(), effect);
            event(action, r#"{"chat_id":"C"}"#, |event| route(event, &routing, Some(&rule), Some("00-a")))
        };
        assert_eq!(record("incoming_event", Effect::Drop), None);
        let quarantined = record("thread_tagged", Effect::Topic("quarantine".into())).expect("a record");
        assert_eq!((&*quarantined.record.topic, &*quarantined.record.key), ("quarantine", "C"));
        assert!(!quarantined.is_dead_letter && quarantined.record.headers.len() == 2);

        let letter =
            |action: &str| record(action, Effect::DeadLetter("livechat.dead-letter".into())).expect("a record");
        let headers = |action: &str| {
            let letter = letter(action);
            assert!(letter.is_dead_letter && &*letter.record.topic == "livechat.dead-letter");
            letter.record.headers.into_iter().skip(2).map(|(name, text)| format!("{name}: {text}")).collect::<Vec<_>>()
        };
        let (reason, name) = ("dead-letter-reason: rule", "dead-letter-error: flood");
        assert_eq!(headers("incoming_event"), ["dead-letter-topic: livechat.incoming_event", reason, name]);
        assert_eq!(headers("thread_tagged"), [reason, name], "it has no topic of its own");
        let plain = event("incoming_event", r#"{"chat_id":"C"}"#, |event| route(event, &routing, None, None));
        assert_eq!(plain.expect("a record").record.topic.as_ref(), "livechat.incoming_event");
    }

    #[test]
    fn a_sample_keeps_about_one_in_so_many_whole_chats_and_the_same_ones_each_time() {
        let routing = Routing { topics: topics(), mode: Mode::Structured, keys: Keys::Plain, api_version: None };
        let is_kept = |by: SampleBy, one_in: u64, action: &str, payload: &str| {
            let effect = Effect::Sample { one_in: NonZeroU64::new(one_in).expect("a number"), by };
            let rule = rule("sample", Criteria::default(), effect);
            event(action, payload, |event| route(event, &routing, Some(&rule), None).is_some())
        };
        let payload = |chat: usize, n: usize| format!(r#"{{"chat_id":"C{chat}","user":{{"id":"u{n}"}}}}"#);
        let kept = |by| {
            let all = (0..200).flat_map(|chat| (0..3).map(move |n| (chat, n)));
            let kept = all.filter(|(chat, n)| is_kept(by, 10, "user_added_to_chat", &payload(*chat, *n)));
            kept.map(|(chat, _)| chat).collect::<Vec<_>>()
        };
        let chats = kept(SampleBy::Chat);
        assert!((8..=35).contains(&(chats.len() / 3)) && chats.chunks(3).all(|chat| chat[0] == chat[2]), "{chats:?}");
        assert_eq!(
            kept(SampleBy::Chat),
            chats,
            "an action that is no retry of the first gets another id, and is sampled alike"
        );
        let events = kept(SampleBy::Event);
        assert!((30..=100).contains(&events.len()) && events != chats, "{}", events.len());
        assert_eq!(kept(SampleBy::Event), events);
        let without_chat =
            (0..300).filter(|n| is_kept(SampleBy::Chat, 10, "agent_created", &format!(r#"{{"id":"a{n}"}}"#)));
        assert!((12..=60).contains(&without_chat.count()));
    }

    #[test]
    fn a_rule_is_written_as_an_operator_reads_it() {
        let criteria = Criteria {
            app: Some(set(&["default"])),
            chat: Some(set(&["A", "B", "C", "D", "E"])),
            ..Criteria::default()
        };
        let mut rule = rule("r", criteria, Effect::Drop);
        rule.until = Some(NOW);
        let expected = "events of app default and chat A, B, C and 2 more are dropped until 1970-01-01T00:00:00Z";
        assert_eq!(rule.to_string(), expected);
        rule.effect = Effect::Sample { one_in: NonZeroU64::new(100).expect("a number"), by: SampleBy::Event };
        assert!(rule.to_string().ends_with(" and 2 more are sampled: one in 100 is kept until 1970-01-01T00:00:00Z"));
    }

    #[test]
    fn what_was_counted_of_a_rule_is_counted_on_by_the_next_one_of_its_name() {
        let of = |names: &[&str]| {
            Rules::new(names.iter().map(|name| rule(name, Criteria::default(), Effect::Drop)).collect())
        };
        let former = of(&["old", "kept"]);
        former.iter().for_each(Rule::count_match);
        let mut next = of(&["kept", "new"]);
        next.inherit(&former);
        assert_eq!(next.iter().map(Rule::matches).collect::<Vec<_>>(), [1, 0]);
    }
}
