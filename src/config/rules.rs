//! `[[rules]]`: what becomes of some events instead of what their route says.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::sync::Arc;

use super::flat::nearest;
use super::policy::bad_topic;
use super::read::Reader;
use crate::event::actions;
use crate::event::normalize::{APP_EVENTS, APP_INSTALLED};
use crate::event::route::UNLISTED;
use crate::event::rules::{Criteria, Effect, Rule, Rules, SampleBy};
use crate::relay::{APP_WEBHOOKS, App};

/// Each event is compared with all of them.
const RULES_MAX: usize = 100;

/// The most values of one criterion.
const VALUES_MAX: usize = 1000;

const RATE_MAX: u64 = 1_000_000;

const EXAMPLE: &str = "[[rules]] with name, chat and do = \"drop\"";

pub fn rules(r: &mut Reader, apps: &HashMap<String, Arc<App>>, dead_letter: &Arc<str>) -> Rules {
    let count = r.count("rules", EXAMPLE, None);
    if count > RULES_MAX {
        r.mistake("rules", &format!("has more than {RULES_MAX} rules"));
    }
    let mut rules: Vec<Rule> = Vec::new();
    for place in (0..count).map(|i| format!("rules[{i}]")) {
        let rule = rule(r, &place, apps, dead_letter);
        if rules.iter().any(|other| other.name == rule.name) && !rule.name.is_empty() {
            r.mistake(&format!("{place}.name"), "is already the name of another rule");
        }
        rules.push(rule);
    }
    Rules::new(rules)
}

fn rule(r: &mut Reader, place: &str, apps: &HashMap<String, Arc<App>>, dead_letter: &Arc<str>) -> Rule {
    let key = |name: &str| format!("{place}.{name}");
    let name = r.optional_text(&key("name")).unwrap_or_default();
    if !(1..=64).contains(&name.len()) || name.contains(char::is_control) {
        r.mistake(&key("name"), "must be a text of 1 to 64 bytes; metrics and the log show it");
    }
    let mut values = |name: &str| values(r, &key(name));
    let criteria = Criteria {
        app: values("app"),
        action: values("action"),
        organization: values("organization"),
        chat: values("chat"),
    };
    let has_criteria = ["app", "action", "organization", "chat"].iter().any(|name| r.has(&key(name)));
    if !has_criteria {
        r.mistake(
            place,
            "needs at least one of app, action, organization and chat; without any it would match every event",
        );
    }
    let known = || apps.keys().map(String::as_str).chain([APP_WEBHOOKS]);
    for app in criteria.app.iter().flatten().filter(|app| !known().any(|name| name == *app)) {
        r.mistake(&key("app"), &format!("no app has this name{}", meant(nearest(app, known()))));
    }
    let known = || actions::names().chain(APP_EVENTS).chain([APP_INSTALLED, UNLISTED]);
    for action in criteria.action.iter().flatten().filter(|action| !known().any(|name| name == *action)) {
        let current = actions::find(action).map(|action| action.name).or_else(|| nearest(action, known()));
        r.mistake(
            &key("action"),
            &format!(
                "is not one of LiveChat's actions; use `unlisted` for those that the relay does not know{}",
                meant(current)
            ),
        );
    }
    let effect = effect(r, place, dead_letter);
    Rule::new(name, criteria, effect, r.optional_instant(&key("until")))
}

fn meant(known: Option<&str>) -> String {
    known.map(|known| format!("; did you mean {known:?}?")).unwrap_or_default()
}

/// The values of a criterion, one or several.
fn values(r: &mut Reader, key: &str) -> Option<BTreeSet<String>> {
    let values = r.optional_texts(key)?;
    if values.len() > VALUES_MAX {
        r.mistake(key, &format!("has more than {VALUES_MAX} values"));
    }
    Some(values.into_iter().collect())
}

/// What `do` may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Do {
    Drop,
    Topic,
    DeadLetter,
    Sample,
}

const DOS: [(&str, Do); 4] =
    [("drop", Do::Drop), ("topic", Do::Topic), ("dead-letter", Do::DeadLetter), ("sample", Do::Sample)];

fn effect(r: &mut Reader, place: &str, dead_letter: &Arc<str>) -> Effect {
    let key = |name: &str| format!("{place}.{name}");
    let chosen = r.optional_choice(&key("do"), DOS);
    if !r.has(&key("do")) {
        r.mistake(&key("do"), "is missing: one of \"drop\", \"topic\", \"dead-letter\", \"sample\"");
    }
    let topic = r.optional_text(&key("topic"));
    let rate = r.optional_number(&key("rate"), 2..=RATE_MAX);
    let by = r.optional_choice(&key("by"), [("chat", SampleBy::Chat), ("event", SampleBy::Event)]);
    for (name, of, value) in
        [("topic", Do::Topic, "topic"), ("rate", Do::Sample, "sample"), ("by", Do::Sample, "sample")]
    {
        if chosen.is_some_and(|chosen| chosen != of) && r.has(&key(name)) {
            r.mistake(&key(name), &format!("is only for rules with do = {value:?}"));
        }
    }
    match chosen {
        Some(Do::Topic) => {
            let topic = topic.unwrap_or_default();
            if let Some(why) = bad_topic(&topic) {
                r.mistake(&key("topic"), why);
            }
            Effect::Topic(Arc::from(topic))
        }
        Some(Do::DeadLetter) => Effect::DeadLetter(Arc::clone(dead_letter)),
        Some(Do::Sample) => {
            if !r.has(&key("rate")) {
                r.mistake(&key("rate"), "is missing; rate = 100 keeps one in 100");
            }
            let one_in = rate.and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MIN);
            Effect::Sample { one_in, by: by.unwrap_or(SampleBy::Chat) }
        }
        // Without a choice it is a mistake, and no rule is in force.
        Some(Do::Drop) | None => Effect::Drop,
    }
}
