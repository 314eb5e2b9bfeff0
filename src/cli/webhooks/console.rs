//! `webhooks plan --console`: the same by hand, step by step, for those who prefer Developer Console.

use std::path::Path;

use super::show::{action, joined, title};
use crate::cli::items::count;
use crate::cli::print::{DIM, command, visible, wrapped};
use crate::livechat::plan::Plan;
use crate::livechat::{App, CONSOLE, Filters, Users, Wanted};

/// What to click and to type. It says where the secret key stands, not what it is. `config_path`: what the user gave.
pub fn text(config_path: Option<&Path>, app: &App, plan: &Plan) -> String {
    let mut text = format!("{}\n\n", title(app));
    let mut number = 0;
    let mut step = |what: &str| {
        number += 1;
        format!("{number:>2}. {}\n", wrapped(what, 4))
    };
    text += &step(&format!(
        "In {CONSOLE} open Apps, the app with this Client ID, and its building block Chat Webhooks (add it if it is missing)."
    ));
    if !plan.remove.is_empty() {
        text += &step(
            "Delete these webhooks. If one is listed below, too, add the new one first, and delete the old one when the new one has delivered.",
        );
        for removal in &plan.remove {
            let registration = &removal.registration;
            text += &format!("      {}  {DIM}{}{DIM:#}\n", action(&registration.action), visible(&registration.id));
            if registration.url != app.webhook_url() {
                text += &format!("          {}\n", visible(&registration.url));
            }
        }
    }
    if plan.add.is_empty() {
        return text + &step("There is nothing to add.");
    }
    text += &step(&format!("Webhook URL: {}", app.webhook_url()));
    text += &step(&secret_key(app));
    let webhooks = count(plan.add.len() as u64, "webhook");
    text += &step(&format!(
        "Add {webhooks}, each with its trigger, type and filters. The console cannot edit one: delete it and add it again."
    ));
    for wanted in &plan.add {
        text += &format!("      {}  {}\n", action(&wanted.action), wanted.level.name());
        for line in filter_lines(&wanted.filters).into_iter().chain(data_lines(wanted)) {
            text += &format!("          {}\n", visible(&line));
        }
    }
    text += &step("Private installation: install the app, if it is not installed.");
    text + &step(&format!("Cause an event, such as a message in a chat: `{}` shows it.", command(config_path, "tail")))
}

fn secret_key(app: &App) -> String {
    let place = match (&app.secret_key, &app.key_directory) {
        (Some(key), _) => format!("the one that the relay has under the name {}, in {}", key.name, key.place),
        (None, Some(directory)) => format!("that of the last file, by name, in {}", directory.display()),
        (None, None) => "that of the relay's configuration".to_owned(),
    };
    format!("Secret key: {place}. It replaces the one that the console has made.")
}

fn filter_lines(filters: &Filters) -> Vec<String> {
    let users = |name: &str, users: &Users| match users {
        Users::Values(ids) => format!("{name}: {}", joined(ids)),
        Users::ExcludeValues(ids) => format!("{name}, excluding: {}", joined(ids)),
    };
    let lines = [
        filters.author_type.as_ref().map(|author| format!("author type: {author}")),
        filters.only_my_chats.filter(|is_on| *is_on).map(|_| "only my chats".to_owned()),
        filters.present_users.as_ref().map(|ids| users("chat presence, user ids", ids)),
        filters.my_bots.filter(|is_on| *is_on).map(|_| "chat presence, my bots".to_owned()),
        filters.source_type.as_ref().map(|sources| format!("source type: {}", joined(sources))),
        filters.agent_ids.as_ref().map(|ids| users("agent ids", ids)),
    ];
    lines.into_iter().flatten().collect()
}

fn data_lines(wanted: &Wanted) -> Option<String> {
    (!wanted.additional_data.is_empty()).then(|| format!("additional data: {}", joined(&wanted.additional_data)))
}
