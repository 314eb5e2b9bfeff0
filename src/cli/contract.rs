//! `contract`: what consumers may rely on, as files: JSON Schemas of the envelope and of every action's `data`, the
//! topics as AsyncAPI, a table; and a schema of the configuration file. Names, topics, keys and identities come from the catalogue; what only a person can say
//! lies in `contract/*.json` beside this file. The same program always writes the same bytes.

mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::actions::{Derivation, Listed, TOPIC_PREFIX, listed};
use super::{Failure, print};
use crate::config;
use crate::event::actions::Slot;
use crate::event::normalize::{APP_EVENTS, APP_INSTALLED};
use crate::event::route::UNLISTED;
use crate::livechat::backfill;

#[derive(clap::Args)]
pub struct Arguments {
    /// Directory to write to; created if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
const ENVELOPE: &str = "envelope.schema.json";
const DEFS: &str = "defs.schema.json";
const APP_WEBHOOK: &str = "app_webhook.schema.json";
const INSTALLED: &str = "app_installed.schema.json";
const CONFIG: &str = "config.schema.json";

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let files = files();
    for (name, text) in &files {
        let path = arguments.out.join(name);
        let made = std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")));
        made.and_then(|()| std::fs::write(&path, text))
            .map_err(|error| Failure::Failed(format!("{} cannot be written: {error}", path.display())))?;
    }
    print::out(format_args!("{} files written to {}", files.len(), arguments.out.display()))
}

/// Every file of the contract: its path below the directory, and its text.
fn files() -> BTreeMap<String, String> {
    let words = fragment(include_str!("contract/actions.json"));
    let listed: Vec<_> = listed().collect();
    let mut files: BTreeMap<String, String> =
        listed.iter().map(|l| (path_of(l.action), pretty(&schema_of(l, &words[l.action])))).collect();
    files.insert(ENVELOPE.to_owned(), pretty(&envelope()));
    files.insert(DEFS.to_owned(), pretty(&schema(fragment(include_str!("contract/defs.json")))));
    let app_webhook = schema(fragment(include_str!("contract/app_webhook.json")));
    files.insert(APP_WEBHOOK.to_owned(), pretty(&app_webhook));
    let installed = schema(fragment(include_str!("contract/app_installed.json")));
    files.insert(INSTALLED.to_owned(), pretty(&installed));
    files.insert(CONFIG.to_owned(), pretty(&config::schema()));
    files.insert("asyncapi.yaml".to_owned(), yaml::text(&asyncapi(&listed, &words, &app_webhook, &installed)));
    files.insert("actions.md".to_owned(), table(&listed, &words));
    files
}

fn path_of(action: &str) -> String {
    format!("actions/{action}.schema.json")
}

fn fragment(json: &str) -> Value {
    serde_json::from_str(json).expect("the fragments are compiled in, and a unit test reads them all")
}

/// Members come sorted: that is how serde_json keeps them.
fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}

fn schema(mut keywords: Value) -> Value {
    keywords["$schema"] = DRAFT.into();
    keywords
}

/// The envelope, with an attribute for each of the catalogue's slots.
fn envelope() -> Value {
    let mut words = fragment(include_str!("contract/envelope.json"));
    let (attribute, slots) = (words["attribute"].take(), words["slots"].take());
    let mut properties = words["properties"].take();
    for (_, name) in Slot::ATTRIBUTES {
        properties[name] = json!({ "$ref": "#/$defs/attribute", "description": slots[name] });
    }
    schema(json!({
        "title": words["title"],
        "description": words["description"],
        "type": "object",
        "required": words["required"],
        "properties": properties,
        "$defs": { "attribute": attribute },
    }))
}

/// The schema of `data` for one action.
fn schema_of(listed: &Listed, words: &Value) -> Value {
    let names: Vec<_> = listed.older_names.iter().chain([&listed.action]).collect();
    let mut properties = Map::new();
    if listed.action != UNLISTED {
        properties.insert("action".to_owned(), json!({ "type": "string", "examples": names }));
        properties.insert("payload".to_owned(), words["payload"].clone());
    }
    let mut schema = schema(json!({
        "title": words["title"],
        "description": words["description"],
        "allOf": [{ "$ref": format!("../{DEFS}#/$defs/webhook") }],
        "type": "object",
        "required": match listed.action {
            UNLISTED => json!(["payload"]),
            action if backfill::ACTIONS.contains(&action) => json!(["action", "payload"]),
            _ => json!(["webhook_id", "action", "payload"]),
        },
        "properties": properties,
        "x-livechat": {
            "topic": listed.topic,
            "olderNames": listed.older_names,
            "key": listed.key,
            "identity": listed.identity,
            "time": listed.time,
            "attributes": listed.attributes,
        },
    }));
    if let Some(versions) = words.get("versions") {
        schema["x-livechat"]["versions"] = versions.clone();
    }
    schema
}

/// A topic, and what is on it.
struct Channel<'a> {
    name: &'a str,
    title: &'a Value,
    description: &'a Value,
    /// The attributes of which the first that is there is the key, else the tenant.
    key: &'a [&'static str],
    /// Where the schema of `data` is.
    schema: String,
}

/// The topics as a consumer finds them: the document describes the relay, which sends.
fn asyncapi(listed: &[Listed], words: &Value, app_webhook: &Value, installed: &Value) -> Value {
    let actions = listed.iter().map(|l| Channel {
        name: l.action,
        title: &words[l.action]["title"],
        description: &words[l.action]["description"],
        key: &l.key,
        schema: path_of(l.action),
    });
    let of_apps = APP_EVENTS.into_iter().map(|name| (name, app_webhook, APP_WEBHOOK));
    let of_apps = of_apps.chain([(APP_INSTALLED, installed, INSTALLED)]).map(|(name, words, schema)| Channel {
        name,
        title: &words["title"],
        description: &words["description"],
        key: &[],
        schema: schema.to_owned(),
    });
    let mut document = fragment(include_str!("contract/asyncapi.json"));
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    for channel in actions.chain(of_apps) {
        let Channel { name, title, description, .. } = channel;
        let topic = format!("{TOPIC_PREFIX}{name}");
        document["channels"][name] = json!({
            "address": topic,
            "title": title,
            "description": description,
            "messages": { name: { "$ref": format!("#/components/messages/{name}") } },
            "bindings": { "kafka": { "topic": topic, "bindingVersion": "0.5.0" } },
        });
        document["operations"][name] = json!({
            "action": "send",
            "title": title,
            "channel": { "$ref": format!("#/channels/{name}") },
            "messages": [{ "$ref": format!("#/channels/{name}/messages/{name}") }],
        });
        document["components"]["messages"][name] = message(&channel);
    }
    document
}

fn message(Channel { name, title, key, schema, .. }: &Channel<'_>) -> Value {
    let own_type = match *name {
        UNLISTED => json!({ "type": "string" }),
        name => json!({ "const": format!("com.livechat.{name}") }),
    };
    let data = json!({ "$ref": format!("./{schema}") });
    let key = [key, &["the tenant"][..]].concat().join(", else ");
    json!({
        "name": format!("com.livechat.{name}"),
        "title": title,
        "contentType": "application/cloudevents+json",
        "headers": { "$ref": "#/components/schemas/headers" },
        "payload": {
            "allOf": [
                { "$ref": format!("./{ENVELOPE}") },
                { "type": "object", "properties": { "type": own_type, "data": data } },
            ],
        },
        "bindings": { "kafka": { "key": { "type": "string", "description": key }, "bindingVersion": "0.5.0" } },
    })
}

/// The catalogue as `docs/kafka.md` shows it.
fn table(listed: &[Listed], words: &Value) -> String {
    let mut text = format!(
        "# The actions\n\n\
         Written by `make contract`. The topic of an action is `{TOPIC_PREFIX}<action>` by default. Key: the first of these \
         attributes that the event\nhas, else its tenant. Time: where in `data` the attribute `time` comes from. Identity: \
         what the `id` is derived from besides tenant and\naction; without any, each delivery has an id of its own.\n\n\
         | action | what has happened | API | older names | key | time | identity |\n|---|---|---|---|---|---|---|\n"
    );
    for l in listed {
        let words = &words[l.action];
        let version = |end: &str| words["versions"][end].as_str().unwrap_or_default();
        let versions = match (version("first"), version("last")) {
            (first, last) if first == last => first.to_owned(),
            (first, last) => format!("{first}–{last}"),
        };
        let identity: &[&str] = match &l.identity {
            Derivation::Strong(attributes) => attributes,
            Derivation::Weak => &[],
        };
        let code = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let times: Vec<_> = l.time.iter().map(String::as_str).collect();
        let title = words["title"].as_str().unwrap_or_default();
        text += &format!(
            "| [`{action}`]({path}) | {title} | {versions} | {} | {} | {} | {} |\n",
            code(&l.older_names),
            code(&l.key),
            code(&times),
            code(identity),
            action = l.action,
            path = path_of(l.action),
        );
    }
    text
}

#[cfg(test)]
mod tests;
