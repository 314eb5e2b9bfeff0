//! How a webhook looks: to a person in words of the configuration, to programs as JSON. A secret key is in neither.

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::print::{DIM, WIDTH, visible};
use crate::livechat::{App, Filters, Level, Registration, Wanted};

/// A registration as JSON, with what the relay knows of it.
#[derive(Serialize)]
pub struct Shown<'a> {
    #[serde(flatten)]
    registration: &'a Registration,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_delivery: Option<Timestamp>,
}

impl<'a> Shown<'a> {
    pub fn registered(registration: &'a Registration, last_delivery: Option<Timestamp>) -> Self {
        Self { registration, last_delivery }
    }
}

/// The app and its Client ID, as all texts begin.
pub fn title(app: &App) -> String {
    format!("App {} (Client ID {}), LiveChat's API {}", app.name, visible(&app.client_id), app.version)
}

/// Filters as the configuration has them: `{ author_type = "customer" }`; empty where there are none.
pub fn filters_text(of: &Filters) -> String {
    if *of == Filters::default() {
        return String::new();
    }
    toml::Value::try_from(of).map(|value| value.to_string()).unwrap_or_default()
}

/// What of a registration is not as it is by default, a name and a text each.
pub fn details(registration: &Registration) -> Vec<(&'static str, String)> {
    let data = registration.additional_data.iter().flatten().cloned().collect::<Vec<_>>().join(", ");
    let unknown = registration.unknown_filters.clone().unwrap_or_default();
    let details = [
        ("type", if registration.level == Level::Bot { Level::Bot.name().to_owned() } else { String::new() }),
        ("filters", filters_text(&registration.filters)),
        ("unknown filters", unknown),
        ("additional_data", data),
    ];
    details.into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

/// As [`details`], of what is wanted.
pub fn wanted_details(wanted: &Wanted) -> Vec<(&'static str, String)> {
    details(&Registration {
        id: String::new(),
        action: String::new(),
        url: String::new(),
        level: wanted.level,
        filters: wanted.filters.clone(),
        unknown_filters: None,
        additional_data: Some(wanted.additional_data.clone()),
        description: String::new(),
    })
}

/// Lines below the one of a webhook. A change that does not fit on one has what it becomes on the next.
pub fn indented(details: &[(&'static str, String)], indent: usize) -> String {
    let line = |(name, text): &(&str, String)| {
        let fits = indent + name.len() + 2 + text.chars().count() <= WIDTH;
        let text = visible(text);
        let text = if fits { text } else { text.replace(" → ", &format!("\n{:1$}→ ", "", indent + 2)) };
        format!("{:indent$}{DIM}{name}:{DIM:#} {text}\n", "")
    };
    details.iter().map(line).collect()
}

/// The start of a line: an action, padded so that what follows stands in a column.
pub fn action(name: &str) -> String {
    format!("{:<31}", visible(name))
}
