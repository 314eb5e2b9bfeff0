//! How a webhook looks: to a person in words of the configuration, to programs as JSON. A secret key is in neither.

use std::collections::BTreeSet;

use crate::cli::print::{DIM, WIDTH, visible, wrapped};
use crate::livechat::{App, Filters, Level};

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

/// What is not as it is by default, a name and a text each.
pub fn details(level: Level, filters: &Filters, data: &BTreeSet<String>) -> Vec<(&'static str, String)> {
    let details = [
        ("type", if level == Level::Bot { Level::Bot.name().to_owned() } else { String::new() }),
        ("filters", filters_text(filters)),
        ("additional_data", joined(data)),
    ];
    details.into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

pub fn joined(values: &BTreeSet<String>) -> String {
    values.iter().cloned().collect::<Vec<_>>().join(", ")
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

/// Steps, each with its number.
pub fn numbered(steps: &[String]) -> String {
    (1..).zip(steps).map(|(number, step)| format!("{number:>2}. {}\n", wrapped(step, 4))).collect()
}

/// The start of a line: an action, padded so that what follows stands in a column.
pub fn action(name: &str) -> String {
    format!("{:<31}", visible(name))
}
