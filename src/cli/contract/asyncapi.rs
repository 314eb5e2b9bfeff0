//! The topics as an AsyncAPI document. It describes the relay, which sends; consumers receive what it sends.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::example::Example;
use super::setup::Setup;
use super::{APP_WEBHOOK, ENVELOPE, INSTALLED, app_events, app_names, envelope, fragment, path_of};
use crate::cli::actions::{KEY_OF_ALL, Listed};
use crate::event::Mode;
use crate::event::normalize::APP_INSTALLED;
use crate::event::route::{DEAD_LETTER_HEADERS, UNLISTED};

/// The name of the message.
pub const DEAD_LETTER: &str = "dead_letter";

/// What is on a topic.
struct Message<'a> {
    name: &'a str,
    title: &'a Value,
    description: &'a Value,
    /// The attributes of which the first that is there is the key.
    key: &'a [&'static str],
    has_chat: bool,
    /// Where the schema of `data` is.
    schema: String,
}

pub fn document(setup: &Setup, listed: &[Listed], words: &Value, app_webhook: &Value, installed: &Value) -> Value {
    let actions = listed.iter().map(|l| Message {
        name: l.action,
        title: &words[l.action]["title"],
        description: &words[l.action]["description"],
        key: &l.key,
        has_chat: l.attributes.contains_key("chatid"),
        schema: path_of(l.action),
    });
    let titles = app_events();
    let of_apps = app_names().map(|name| {
        let (words, schema) = if name == APP_INSTALLED { (installed, INSTALLED) } else { (app_webhook, APP_WEBHOOK) };
        Message {
            name,
            title: &titles[name]["title"],
            description: &words["description"],
            key: &[],
            has_chat: false,
            schema: schema.to_owned(),
        }
    });
    let topics_of = |message: &Message<'_>| {
        let mut topics = setup.rule_topics(message.name, message.has_chat);
        topics.extend(setup.topics(message.name).into_keys());
        topics
    };
    let messages: Vec<_> = actions.chain(of_apps).filter(|message| !topics_of(message).is_empty()).collect();
    let mut topics: BTreeMap<&str, Vec<&Message<'_>>> = BTreeMap::new();
    for message in &messages {
        topics_of(message).into_iter().for_each(|topic| topics.entry(topic).or_default().push(message));
    }

    let mode = setup.routing().mode;
    let mut document = fragment(include_str!("asyncapi.json"));
    let descriptions = document["info"]["description"].take();
    document["info"]["description"] = descriptions[if mode == Mode::Binary { "binary" } else { "structured" }].clone();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document["defaultContentType"] = content_type(mode).into();
    document["components"]["schemas"]["headers"] = headers(mode);
    for message in &messages {
        document["components"]["messages"][message.name] = message.written(setup);
    }
    for (topic, messages) in topics {
        let (title, description) = match &messages[..] {
            [one] => (one.title.clone(), one.description.clone()),
            _ => ("Several actions".into(), "Tell the actions apart by `type`.".into()),
        };
        let names: Vec<_> = messages.iter().map(|message| message.name).collect();
        add_channel(&mut document, topic, &title, &description, &names);
    }
    let dead_letter = dead_letter(mode);
    let (title, description) = (&dead_letter["title"], "Events of any action: tell them apart by `type`.".into());
    add_channel(&mut document, &setup.dead_letter_topic(), title, &description, &[DEAD_LETTER]);
    document["components"]["messages"][DEAD_LETTER] = dead_letter;
    document
}

/// With the operation that has the same name.
fn add_channel(document: &mut Value, topic: &str, title: &Value, description: &Value, names: &[&str]) {
    let of_components =
        names.iter().map(|name| ((*name).to_owned(), json!({ "$ref": format!("#/components/messages/{name}") })));
    let of_channel = names.iter().map(|name| json!({ "$ref": format!("#/channels/{topic}/messages/{name}") }));
    document["channels"][topic] = json!({
        "address": topic,
        "title": title,
        "description": description,
        "messages": of_components.collect::<Map<_, _>>(),
        "bindings": { "kafka": { "topic": topic, "bindingVersion": "0.5.0" } },
    });
    document["operations"][topic] = json!({
        "action": "send",
        "title": title,
        "channel": { "$ref": format!("#/channels/{topic}") },
        "messages": of_channel.collect::<Value>(),
    });
}

/// An event of any action, as it would have been on its own topic but for three headers.
fn dead_letter(mode: Mode) -> Value {
    let payload = match mode {
        Mode::Structured => json!({ "$ref": format!("./{ENVELOPE}") }),
        Mode::Binary => json!({ "type": "object" }),
    };
    let [topic, reason, error] = DEAD_LETTER_HEADERS;
    let own = json!({
        "type": "object",
        "required": [reason],
        "properties": {
            topic: { "type": "string", "description": "The topic that it would have gone to." },
            reason: { "type": "string", "examples": ["too_large", "invalid", "rule"] },
            error: { "type": "string", "description": "Kafka's error by librdkafka's name, or the rule's name." },
        },
    });
    json!({
        "name": DEAD_LETTER,
        "title": "An event that its topic has refused, or that a rule has sent here",
        "contentType": content_type(mode),
        "headers": { "allOf": [{ "$ref": "#/components/schemas/headers" }, own] },
        "payload": payload,
        "bindings": {
            "kafka": {
                "key": { "type": "string", "description": "That of the event." },
                "bindingVersion": "0.5.0",
            },
        },
    })
}

/// CloudEvents' Kafka binding has it in a header.
const fn content_type(mode: Mode) -> &'static str {
    match mode {
        Mode::Structured => "application/cloudevents+json",
        Mode::Binary => "application/json",
    }
}

/// The schema of a record's headers.
fn headers(mode: Mode) -> Value {
    let mut properties = json!({
        "content-type": { "type": "string", "const": content_type(mode) },
        "traceparent": { "type": "string", "description": "The trace of the request, where it had one." },
    });
    let mut required = vec!["content-type".to_owned()];
    if mode == Mode::Binary {
        let envelope = envelope();
        let is_header = |name: &&str| !["data", "datacontenttype"].contains(name);
        let names = envelope["properties"].as_object().into_iter().flat_map(Map::keys).map(String::as_str);
        for name in names.filter(is_header) {
            properties[format!("ce_{name}")] = json!({ "$ref": format!("./{ENVELOPE}#/properties/{name}") });
        }
        let of_envelope = envelope["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        required.extend(of_envelope.filter(is_header).map(|name| format!("ce_{name}")));
    }
    json!({ "type": "object", "required": required, "properties": properties })
}

impl Message<'_> {
    fn written(&self, setup: &Setup) -> Value {
        let Self { name, title, key, schema, .. } = self;
        let mode = setup.routing().mode;
        let own_type = match *name {
            UNLISTED => json!({ "type": "string" }),
            name => json!({ "const": format!("com.livechat.{name}") }),
        };
        let data = json!({ "$ref": format!("./{schema}") });
        let (headers, payload) = match mode {
            Mode::Structured => {
                let event = json!({ "type": "object", "properties": { "type": own_type, "data": data } });
                let envelope = json!({ "$ref": format!("./{ENVELOPE}") });
                (json!({ "$ref": "#/components/schemas/headers" }), json!({ "allOf": [envelope, event] }))
            }
            Mode::Binary => {
                let event = json!({ "type": "object", "properties": { "ce_type": own_type } });
                (json!({ "allOf": [{ "$ref": "#/components/schemas/headers" }, event] }), data)
            }
        };
        let key = [key, KEY_OF_ALL.as_slice()].concat().join(", else ");
        let hashed = if setup.has_hashed_keys() { "; a hash of it, of 32 hex digits" } else { "" };
        let mut message = json!({
            "name": format!("com.livechat.{name}"),
            "title": title,
            "contentType": content_type(mode),
            "headers": headers,
            "payload": payload,
            "bindings": {
                "kafka": {
                    "key": { "type": "string", "description": format!("{key}{hashed}") },
                    "bindingVersion": "0.5.0",
                },
            },
        });
        if let Some(Example { headers, value, .. }) = setup.example(name) {
            message["examples"] = json!([{ "headers": headers, "payload": value }]);
        }
        message
    }
}
