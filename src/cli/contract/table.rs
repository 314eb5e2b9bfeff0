//! `actions.md`: the actions as a person looks them up, and where there is a configuration, what it decides about their events.

use serde_json::Value;

use super::setup::Setup;
use super::{APP_WEBHOOK, INSTALLED, app_events, app_names, example_path_of, path_of};
use crate::cli::actions::{Derivation, KEY_OF_ALL, Listed, TOPIC_PREFIX};
use crate::config::Config;
use crate::event::Mode;
use crate::event::actions::Slot;
use crate::event::normalize::APP_INSTALLED;
use crate::event::rules::Effect;
use crate::relay::APP_WEBHOOKS;

pub fn text(setup: &Setup, listed: &[Listed], words: &Value) -> String {
    let mut text = "# LiveChat's actions as events\n\n".to_owned();
    text += &match &setup.config {
        Some(config) => {
            format!(
                "Written by `livechat-relay contract` from an operator's configuration; docs/kafka.md of livechat-relay is \
                 the guide.\n\n## This relay\n\n{}",
                facts(setup, config)
            )
        }
        None => format!(
            "Written by `livechat-relay contract`; docs/kafka.md is the guide. The topic of an action is \
             `{TOPIC_PREFIX}<action>` by default,\nand the attribute `type` is `com.livechat.<action>`. Dead letters, if \
             there are any, are on `{}`.\n",
            setup.dead_letter_topic()
        ),
    };
    text += &format!("\n## Actions\n\n{}\n\n{}", legend(setup.routing().mode), actions(setup, listed, words));
    text += &events_of_apps(setup);
    text += &format!("\n## Older names\n\n{OLDER_NAMES}\n\n{}", older_names(listed));
    text
}

const OLDER_NAMES: &str = "`data.action` is the name that LiveChat has sent. Older API versions, and some of LiveChat's documents, have \
    other names for some\nactions; the topic and `type` always have the current name.";

fn legend(mode: Mode) -> String {
    let example = match mode {
        Mode::Structured => "a whole event",
        Mode::Binary => "the headers and the value of a record",
    };
    format!(
        "- Action: with the JSON Schema of `data`, and {example} as an example.\n\
         - API: the versions of LiveChat's API that have the action.\n\
         - Key: the key of the record is the first of these attributes that the event has, else {}.\n\
         - Attributes: those that the event has besides [those of every event](envelope.schema.json). Without `time`, LiveChat has not \
         said when\n  it happened: use `recordedtime`, when the relay received the webhook.\n\
         - `id` computed from: every delivery of the event has the same `id`, computed from these attributes, the action and the \
         organization\n  (before API 3.4 the license). Where the column is empty, each delivery has an `id` of its own.",
        codes(&KEY_OF_ALL, ", else "),
    )
}

fn actions(setup: &Setup, listed: &[Listed], words: &Value) -> String {
    let topic = if setup.config.is_some() { ["topic | ", "---|"] } else { [""; 2] };
    let mut rows = format!(
        "| action | {}what has happened | API | key | attributes | `id` computed from |\n|---|{}---|---|---|---|---|\n",
        topic[0], topic[1]
    );
    for l in listed {
        let words = &words[l.action];
        let version = |end: &str| words["versions"][end].as_str().unwrap_or_default();
        let versions = match (version("first"), version("last")) {
            (first, last) if first == last => first.to_owned(),
            (first, last) => format!("{first}–{last}"),
        };
        let own = Slot::ATTRIBUTES.iter().map(|(_, name)| *name).filter(|name| l.attributes.contains_key(name));
        let attributes: Vec<_> = own.chain((!l.time.is_empty()).then_some("time")).collect();
        let identity: &[&str] = match &l.identity {
            Derivation::Strong(attributes) => attributes,
            Derivation::Weak => &[],
        };
        let example = setup.example(l.action).map(|_| format!(" ([example]({}))", example_path_of(l.action)));
        let topics = setup.config.as_ref().map(|_| format!("{} | ", topics(setup, l.action)));
        rows += &format!(
            "| [`{}`]({}){} | {}{} | {versions} | {} | {} | {} |\n",
            l.action,
            path_of(l.action),
            example.unwrap_or_default(),
            topics.unwrap_or_default(),
            words["title"].as_str().unwrap_or_default(),
            codes(&l.key, ", "),
            codes(&attributes, ", "),
            codes(identity, ", "),
        );
    }
    rows
}

/// They are no actions: LiveChat's App Webhooks, and installations. Empty where the configuration has neither.
fn events_of_apps(setup: &Setup) -> String {
    let titles = app_events();
    let rows = app_names().filter(|name| !setup.topics(name).is_empty()).map(|name| {
        let schema = if name == APP_INSTALLED { INSTALLED } else { APP_WEBHOOK };
        let title = titles[name]["title"].as_str().unwrap_or_default();
        let example = setup.example(name).map(|_| format!(" ([example]({}))", example_path_of(name)));
        format!("| [`{name}`]({schema}){} | {title} |\n", example.unwrap_or_default())
    });
    let rows: String = rows.collect();
    if rows.is_empty() {
        return rows;
    }
    format!("\n## Events of apps\n\n{EVENTS_OF_APPS}\n\n| event | what has happened |\n|---|---|\n{rows}")
}

const EVENTS_OF_APPS: &str = "LiveChat's App Webhooks, and installations through the relay's page: only where the operator has switched \
    them on. They have `time` and no other\nattributes but those of every event; the key is the organization, and each delivery has an \
    `id` of its own.";

/// Each with the apps that have it, where not all of them have the same.
fn topics(setup: &Setup, name: &str) -> String {
    let topics = setup.topics(name);
    match topics.len() {
        0 => "dropped".to_owned(),
        1 => topics.keys().map(|topic| format!("`{topic}`")).collect(),
        _ => topics
            .iter()
            .map(|(topic, apps)| format!("`{topic}`: {}", codes(apps, ", ")))
            .collect::<Vec<_>>()
            .join("; "),
    }
}

/// What a consumer has to know of a configuration besides the topics.
fn facts(setup: &Setup, Config { policy, topics: new, .. }: &Config) -> String {
    let apps = setup.apps.iter().filter(|app| app.name != APP_WEBHOOKS).map(|app| match &app.routing.api_version {
        Some(version) => format!("`{}` (LiveChat's API {version})", app.name),
        None => format!("`{}` (API version not configured)", app.name),
    });
    let mode = match setup.routing().mode {
        Mode::Structured => "structured. The value of a record is the event, with LiveChat's webhook as its `data`",
        Mode::Binary => {
            "binary. The value of a record is LiveChat's webhook alone, and each attribute is a header with `ce_` before its name"
        }
    };
    let keys = if setup.has_hashed_keys() {
        "hashed. A key is 32 hex digits, the same for the same key of the table"
    } else {
        "plain, as in the table"
    };
    let initial = if policy.initial {
        "inside the `incoming_chat`, and on `incoming_event`, too, with the attribute `initial`"
    } else {
        "inside the `incoming_chat` only"
    };
    let settings: String = new.settings.iter().map(|(name, value)| format!(", `{name} = {value}`")).collect();
    let partitions = new.partitions;
    let mut facts = vec![
        format!("Apps: {}", apps.collect::<Vec<_>>().join(", ")),
        format!("Mode: {mode}"),
        format!("Keys: {keys}"),
        format!("The first events of a chat: {initial}"),
        format!("Dead letters, if there are any: on `{}`", setup.dead_letter_topic()),
    ];
    if new.create {
        facts.push(format!("Topics that the relay has created: {partitions} partitions{settings}"));
    }
    let of_apps = app_names().filter(|name| !setup.topics(name).is_empty());
    facts.extend(of_apps.map(|name| format!("`{name}`: on {}", topics(setup, name))));
    facts.extend(policy.rules.iter().map(|rule| {
        let effect = match &rule.effect {
            Effect::Drop => "some events are dropped".to_owned(),
            Effect::Topic(topic) => format!("some events are on `{topic}`"),
            Effect::DeadLetter(_) => "some events are dead letters".to_owned(),
            Effect::Sample { one_in, .. } => format!("of some events only one in {one_in} is published"),
        };
        let until = rule.until.map(|until| format!(", until {until}")).unwrap_or_default();
        format!("Rule `{}`: {effect}{until}", rule.name)
    }));
    facts.iter().map(|fact| format!("- {fact}\n")).collect()
}

fn older_names(listed: &[Listed]) -> String {
    let rows =
        listed.iter().flat_map(|l| l.older_names.iter().map(|older| format!("| `{older}` | `{}` |\n", l.action)));
    "| sent as | action |\n|---|---|\n".to_owned() + &rows.collect::<String>()
}

fn codes(names: &[&str], between: &str) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(between)
}
