//! `contract`: what consumers may rely on, as files: JSON Schemas, an example of each event, the topics as AsyncAPI, a table. Names, keys and
//! identities come from the catalogue, topics from the configuration; what only a person can say lies in `contract/*.json` beside this file.
//! The same program and configuration always write the same bytes.

mod asyncapi;
mod example;
mod setup;
mod table;
mod yaml;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::actions::{Listed, listed};
use super::{Failure, Source, print};
use crate::config::{self, Need};
use crate::event::actions::{self, Slot};
use crate::event::normalize::{APP_EVENTS, APP_INSTALLED};
use crate::event::route::UNLISTED;
use crate::livechat::backfill;
use setup::Setup;

#[derive(clap::Args)]
#[command(
    after_help = "With --config the files describe that configuration: its topics, apps and mode. Otherwise they describe the defaults. No secret is read."
)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Directory to write to; created if missing. Examples of actions that the configuration drops are deleted there
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
    let config = arguments.source.load(Need::Settings)?;
    let is_given = arguments.source.config.is_some() || !config.policy.apps.is_empty();
    let files = files(&if is_given { Setup::of(config)? } else { Setup::of_defaults() });
    write(&files, &arguments.out)?;
    print::out(format_args!("{} files written to {}", files.len(), arguments.out.display()))
}

/// Deletes the examples of an earlier run that this one has not: else they would seem to be events that consumers can expect.
fn write(files: &BTreeMap<String, String>, out: &Path) -> Result<(), Failure> {
    for (name, text) in files {
        let path = out.join(name);
        let made = std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")));
        made.and_then(|()| std::fs::write(&path, text))
            .map_err(|error| Failure::Failed(format!("{} cannot be written: {error}", path.display())))?;
    }
    for stale in actions::names().chain(app_names()).map(example_path_of).filter(|name| !files.contains_key(name)) {
        let path = out.join(stale);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Failure::Failed(format!("{} cannot be deleted: {error}", path.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The event of an action by default, as JSON for people.
pub fn example(action: &str) -> Option<String> {
    Some(Setup::of_defaults().example(action)?.text())
}

/// Every file of the contract: its path below the directory, and its text.
fn files(setup: &Setup) -> BTreeMap<String, String> {
    let words = fragment(include_str!("contract/actions.json"));
    let listed: Vec<_> = listed().collect();
    let mut files: BTreeMap<String, String> =
        listed.iter().map(|l| (path_of(l.action), pretty(&schema_of(l, &words[l.action], setup)))).collect();
    let names = listed.iter().map(|l| l.action).chain(app_names());
    files.extend(names.filter_map(|name| Some((example_path_of(name), setup.example(name)?.text()))));
    files.insert(ENVELOPE.to_owned(), pretty(&envelope()));
    files.insert(DEFS.to_owned(), pretty(&schema(DEFS, defs())));
    let app_webhook = schema(APP_WEBHOOK, fragment(include_str!("contract/app_webhook.json")));
    files.insert(APP_WEBHOOK.to_owned(), pretty(&app_webhook));
    let installed = schema(INSTALLED, fragment(include_str!("contract/app_installed.json")));
    files.insert(INSTALLED.to_owned(), pretty(&installed));
    files.insert(CONFIG.to_owned(), pretty(&config::schema()));
    let asyncapi = asyncapi::document(setup, &listed, &words, &app_webhook, &installed);
    files.insert("asyncapi.yaml".to_owned(), yaml::text(&asyncapi));
    files.insert("actions.md".to_owned(), table::text(setup, &listed, &words));
    files
}

/// The events of an app: App Webhooks, and installations.
pub fn app_names() -> impl Iterator<Item = &'static str> {
    APP_EVENTS.into_iter().chain([APP_INSTALLED])
}

/// A title and an example of `data` for each of [`app_names`].
fn app_events() -> Value {
    fragment(include_str!("contract/app_events.json"))
}

fn path_of(action: &str) -> String {
    format!("actions/{action}.schema.json")
}

fn example_path_of(action: &str) -> String {
    format!("examples/{action}.json")
}

fn fragment(json: &str) -> Value {
    serde_json::from_str(json).expect("the fragments are compiled in, and a unit test reads them all")
}

/// Members come sorted: that is how serde_json keeps them.
fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}

/// The `$id` is no address: there is no server that has the schemas. All that a schema refers to is in it, so that it can be used as it was
/// found: as a file, in a registry of schemas, or by its `$id`.
fn schema(path: &str, mut keywords: Value) -> Value {
    let name = path.trim_end_matches(".schema.json").replace('/', ":");
    keywords["$id"] = format!("urn:livechat-relay:{name}").into();
    keywords["$schema"] = DRAFT.into();
    keywords
}

/// What the payloads of several actions have in common.
fn defs() -> Value {
    fragment(include_str!("contract/defs.json"))
}

/// What a schema refers to, directly or not.
fn defs_of(schema: &Value) -> Map<String, Value> {
    let (all, mut used) = (defs(), Map::new());
    let mut values = vec![schema];
    while let Some(value) = values.pop() {
        match value {
            Value::Object(members) => values.extend(members.values()),
            Value::Array(items) => values.extend(items),
            Value::String(text) => {
                if let Some(name) = text.strip_prefix("#/$defs/").filter(|name| !used.contains_key(*name)) {
                    used.insert(name.to_owned(), all["$defs"][name].clone());
                    values.push(&all["$defs"][name]);
                }
            }
            _ => {}
        }
    }
    used
}

/// The envelope, with an attribute for each of the catalogue's slots.
fn envelope() -> Value {
    let mut words = fragment(include_str!("contract/envelope.json"));
    let (attribute, slots) = (words["attribute"].take(), words["slots"].take());
    let mut properties = words["properties"].take();
    for (_, name) in Slot::ATTRIBUTES {
        properties[name] = json!({ "$ref": "#/$defs/attribute", "description": slots[name] });
    }
    let keywords = json!({
        "title": words["title"],
        "description": words["description"],
        "type": "object",
        "required": words["required"],
        "properties": properties,
        "$defs": { "attribute": attribute },
    });
    schema(ENVELOPE, keywords)
}

/// The schema of `data` for one action.
fn schema_of(listed: &Listed, words: &Value, setup: &Setup) -> Value {
    let names: Vec<_> = listed.older_names.iter().chain([&listed.action]).collect();
    let mut properties = Map::new();
    if listed.action != UNLISTED {
        properties.insert("action".to_owned(), json!({ "type": "string", "examples": names }));
        properties.insert("payload".to_owned(), words["payload"].clone());
    }
    let mut keywords = json!({
        "title": words["title"],
        "description": words["description"],
        "allOf": [{ "$ref": "#/$defs/webhook" }],
        "type": "object",
        "required": match listed.action {
            UNLISTED => json!(["payload"]),
            action if backfill::ACTIONS.contains(&action) => json!(["action", "payload"]),
            _ => json!(["webhook_id", "action", "payload"]),
        },
        "properties": properties,
        "x-livechat": {
            "topics": setup.topics(listed.action).keys().collect::<Vec<_>>(),
            "olderNames": listed.older_names,
            "key": listed.key,
            "identity": listed.identity,
            "time": listed.time,
            "attributes": listed.attributes,
        },
    });
    if let Some(versions) = words.get("versions") {
        keywords["x-livechat"]["versions"] = versions.clone();
    }
    keywords["$defs"] = defs_of(&keywords).into();
    schema(&path_of(listed.action), keywords)
}

#[cfg(test)]
mod tests;
