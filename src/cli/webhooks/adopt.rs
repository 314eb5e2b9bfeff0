//! `webhooks adopt`: what is registered for the relay, as configuration. Nothing changes at LiveChat.

use std::collections::BTreeSet;
use std::path::Path;

use super::show::filters_text;
use super::{Common, survey};
use crate::cli::Failure;
use crate::cli::print::{out, visible, with_commands, wrapped};
use crate::cli::spool::print_json;
use crate::livechat::catalogue::DESCRIPTION_CHARACTERS_MAX;
use crate::livechat::plan::{Facts, Warning, plan};
use crate::livechat::{App, Level, Registration, catalogue};

pub async fn run(common: &Common) -> Result<(), Failure> {
    let (app, api) = common.open()?;
    let (seen, rotation) = common.hints(&app).await;
    let (registered, facts) = survey(common, &app, &api, &seen.unwrap_or_default(), rotation).await?;
    let adopted = Adopted::new(&app, &registered, &facts);
    if common.json {
        return print_json(&adopted.json());
    }
    out(format_args!("{}", adopted.toml(common.config(), &app).trim_end()))
}

/// Entries of the configuration, and what they cannot say.
#[derive(Default)]
pub struct Adopted<'a> {
    entries: Vec<Entry<'a>>,
    remarks: Vec<String>,
}

/// Whether a description is a line that the configuration takes, and that acts on no terminal.
fn is_sayable(description: &str) -> bool {
    description.chars().count() <= DESCRIPTION_CHARACTERS_MAX && visible(description) == description
}

/// Registrations that differ in their action only.
struct Entry<'a> {
    like: &'a Registration,
    actions: Vec<&'a str>,
}

impl<'a> Adopted<'a> {
    pub fn new(app: &App, registered: &'a [Registration], facts: &Facts) -> Self {
        let plan = plan(app, registered, facts);
        let mut adopted = Self::default();
        let is_foreign = |id: &str| plan.foreign.iter().any(|foreign| foreign.id == id);
        let mut seen = BTreeSet::new();
        for registration in registered.iter().filter(|registration| !is_foreign(&registration.id)) {
            let Registration { id, action, .. } = registration;
            let found = catalogue::find(action).filter(|found| found.is_in(app.version));
            if !seen.insert(action) {
                if facts.rotation.is_none() {
                    let why = "is there already; each event comes twice until one of the two is unregistered";
                    adopted.remarks.push(format!("{id}: {action} {why}"));
                }
                continue;
            }
            if found.is_none() {
                let why =
                    format!("LiveChat's API {} does not have {action}; the app needs another api_version", app.version);
                adopted.remarks.push(format!("{id}: {why}"));
                continue;
            }
            adopted.add(registration);
            if let Some(unknown) = &registration.unknown_filters {
                let why = "these filters cannot be configured, and are left out";
                adopted.remarks.push(format!("{id}: {why}: {unknown}"));
            }
            if !is_sayable(&registration.description) {
                adopted.remarks.push(format!("{id}: its description cannot be configured, and is left out"));
            }
            if registration.url != app.webhook_url() {
                adopted.remarks.push(format!(
                    "{id}: its URL is {}, and becomes {}",
                    registration.url,
                    app.webhook_url()
                ));
            }
        }
        if adopted.entries.iter().any(|entry| entry.like.additional_data.is_none()) {
            adopted.remarks.push(
                "LiveChat's listing does not show additional_data: add what the webhooks were registered with"
                    .to_owned(),
            );
        }
        let is_remark = |warning: &&Warning| matches!(warning, Warning::Unknown { .. } | Warning::Rotation(_));
        adopted.remarks.extend(plan.warnings.iter().filter(is_remark).map(ToString::to_string));
        let others = plan.foreign.len();
        if others > 0 {
            adopted.remarks.push(format!("{others} of the same Client ID are left out; `webhooks list` shows them"));
        }
        adopted
    }

    fn add(&mut self, registration: &'a Registration) {
        fn data(of: &Registration) -> Option<&BTreeSet<String>> {
            of.additional_data.as_ref().filter(|data| !data.is_empty())
        }
        let is_like = |entry: &&mut Entry<'a>| {
            let Registration { level, filters, description, .. } = entry.like;
            *level == registration.level
                && *filters == registration.filters
                && *description == registration.description
                && data(entry.like) == data(registration)
        };
        match self.entries.iter_mut().find(is_like) {
            Some(entry) => entry.actions.push(&registration.action),
            None => self.entries.push(Entry { like: registration, actions: vec![&registration.action] }),
        }
    }

    /// For `[apps.livechat]`. `config_path`: what the user gave.
    pub fn toml(&self, config_path: Option<&Path>, app: &App) -> String {
        let about = format!(
            "What is registered for the app {}, for its table [apps.livechat]. The relay needs the secret key of these webhooks, too: compare it in Developer Console, or let `livechat-relay webhooks rotate` set a new one.",
            app.name
        );
        let comment = |start: &str, text: &str| {
            let lines = wrapped(&with_commands(config_path, &visible(text)), start.len());
            format!("{start}{}\n", lines.replace('\n', "\n#").replace("\n# ", "\n#"))
        };
        let mut text = comment("# ", &about);
        self.remarks.iter().for_each(|remark| text += &comment("# - ", remark));
        // Where each action has an entry, the longest one needs no names: the others name theirs more closely.
        let is_all = self.entries.iter().map(|entry| entry.actions.len()).sum::<usize>()
            == catalogue::actions(app.version).count();
        let longest = self.entries.iter().max_by_key(|entry| entry.actions.len()).filter(|_| is_all);
        text += "webhooks = [\n";
        for entry in &self.entries {
            text += &entry.toml(longest.is_some_and(|longest| std::ptr::eq(longest, entry)));
        }
        text + "]\n"
    }

    fn json(&self) -> serde_json::Value {
        let entry = |entry: &Entry<'_>| {
            serde_json::json!({
                "actions": entry.actions,
                "type": entry.like.level.name(),
                "filters": entry.like.filters,
                "additional_data": entry.like.additional_data.iter().flatten().collect::<Vec<_>>(),
                "description": entry.description(),
            })
        };
        serde_json::json!({ "webhooks": self.entries.iter().map(entry).collect::<Vec<_>>(), "remarks": self.remarks })
    }
}

impl Entry<'_> {
    fn description(&self) -> Option<&str> {
        Some(self.like.description.as_str()).filter(|text| !text.is_empty() && is_sayable(text))
    }

    fn toml(&self, is_all: bool) -> String {
        let Registration { level, filters, additional_data, .. } = self.like;
        let actions = if is_all { "\"all\"".to_owned() } else { self.names() };
        let texts = |data: &BTreeSet<String>| format!("{:?}", data.iter().collect::<Vec<_>>());
        let members = [
            Some(("actions", actions)),
            (*level == Level::Bot).then(|| ("type", format!("{:?}", level.name()))),
            Some(("filters", visible(&filters_text(filters)))).filter(|(_, text)| !text.is_empty()),
            additional_data.as_ref().filter(|data| !data.is_empty()).map(|data| ("additional_data", texts(data))),
            self.description().map(|text| ("description", toml::Value::from(text).to_string())),
        ];
        let members: Vec<_> = members.into_iter().flatten().map(|(name, text)| format!("{name} = {text}")).collect();
        format!("  {{ {} }},\n", members.join(", "))
    }

    /// One, or an array, whose lines a TOML table on one line may have.
    fn names(&self) -> String {
        let names: Vec<_> = self.actions.iter().map(|action| format!("{action:?}")).collect();
        match names.as_slice() {
            [name] => name.clone(),
            names if names.len() <= 2 => format!("[{}]", names.join(", ")),
            names => format!("[\n    {},\n  ]", names.join(",\n    ")),
        }
    }
}
