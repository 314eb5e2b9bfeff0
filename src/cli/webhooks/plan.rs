//! `webhooks plan`: what is to be done so that LiveChat has what the configuration wants.

use std::path::Path;

use super::show::{action as column, details, filters_text, indented, joined, title};
use super::{Common, console, survey};
use crate::cli::Failure;
use crate::cli::items::count;
use crate::cli::print::{DIM, ERROR, GOOD, WARNING, command, out, visible, with_commands, wrapped};
use crate::cli::spool::print_json;
use crate::config::Need;
use crate::livechat::plan::{Facts, Plan, Removal, Why, differences, plan};
use crate::livechat::{Api, App, Registration, Wanted};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Print the steps for Developer Console instead
    #[arg(long, conflicts_with = "json")]
    console: bool,
    /// Exit with code 2 if something is to be changed, by `apply` or another command
    #[arg(long)]
    exit_code: bool,
}

pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (livechat, app) = arguments.common.load(Need::LiveChat)?;
    let plan = if arguments.console && app.credential.is_none() {
        plan(&app, &[], &Facts::default())
    } else {
        let (seen, rotation) = arguments.common.hints(&app).await;
        let (registered, facts) =
            survey(&arguments.common, &app, &Api::new(&livechat, &app), &seen.unwrap_or_default(), rotation).await?;
        plan(&app, &registered, &facts)
    };
    if arguments.console {
        out(format_args!("{}", console::text(arguments.common.config(), &app, &plan).trim_end()))?;
    } else if arguments.common.json {
        let mut json = serde_json::to_value(&plan).map_err(Failure::failed)?;
        json["app"] = app.name.as_str().into();
        json["client_id"] = app.client_id.as_str().into();
        json["api_version"] = app.version.name().into();
        print_json(&json)?;
    } else {
        out(format_args!("{}", text(arguments.common.config(), &app, &plan).trim_end()))?;
    }
    if arguments.exit_code && !plan.is_done() { Err(Failure::Pending) } else { Ok(()) }
}

/// A plan for people, within 80 columns but for URLs, and how it is carried out. `config_path`: what the user gave.
pub fn text(config_path: Option<&Path>, app: &App, plan: &Plan) -> String {
    let apply = format!("`{}` does it with", command(config_path, "webhooks apply"));
    body(config_path, app, plan) + &cost(plan, &apply)
}

/// The same, for the command that carries it out.
pub fn text_of_apply(config_path: Option<&Path>, app: &App, plan: &Plan) -> String {
    body(config_path, app, plan) + &cost(plan, "This takes")
}

fn body(config_path: Option<&Path>, app: &App, plan: &Plan) -> String {
    let mut text = format!("{}\nWebhooks go to {}\n", title(app), app.webhook_url());
    if !plan.add.is_empty() {
        text.push('\n');
    }
    let is_replaced = |why| matches!(why, Why::Replaced | Why::Unclear);
    let replaced = |wanted: &Wanted| {
        let is_of = |removal: &&Removal| is_replaced(removal.why) && removal.registration.action == wanted.action;
        plan.remove.iter().filter(is_of).collect::<Vec<_>>()
    };
    for wanted in &plan.add {
        let replaced = replaced(wanted);
        if replaced.is_empty() {
            text += &format!("  {GOOD}+{GOOD:#}   {}\n", visible(&wanted.action));
            text += &indented(&details(wanted.level, &wanted.filters, &wanted.additional_data), 10);
            continue;
        }
        text += &format!("  {WARNING}+/-{WARNING:#} {}\n", visible(&wanted.action));
        for removal in &replaced {
            text += &indented(&[("replaces", removal.registration.id.clone())], 10);
            text += &indented(&changes(removal, wanted), 10);
        }
        if replaced.iter().any(|removal| removal.why == Why::Unclear) {
            text += &format!("{:10}{DIM}equal, and no delivery shows which has the right secret key{DIM:#}\n", "");
        }
    }
    let is_added = |removal: &&Removal| plan.add.iter().any(|wanted| wanted.action == removal.registration.action);
    let removed: Vec<_> =
        plan.remove.iter().filter(|removal| !is_replaced(removal.why) || !is_added(removal)).collect();
    for (heading, reasons) in [
        ("Not in the configuration", &[Why::NotWanted][..]),
        ("Another one is as wanted", &[Why::Replaced, Why::Unclear]),
        ("A copy: another one is the same, and delivers", &[Why::Copy]),
    ] {
        let of_reason = removed.iter().filter(|removal| reasons.contains(&removal.why));
        let lines: String = of_reason
            .map(|Removal { registration: Registration { action, id, .. }, .. }| {
                format!("  {ERROR}-{ERROR:#}   {}  {DIM}{}{DIM:#}\n", column(action), visible(id))
            })
            .collect();
        if !lines.is_empty() {
            text += &format!("\n{heading}:\n{lines}");
        }
    }
    if !plan.foreign.is_empty() {
        text += "\nLeft alone, of the same Client ID:\n";
        for foreign in &plan.foreign {
            text += &format!("      {}  {DIM}{}{DIM:#}\n", column(&foreign.action), visible(&foreign.id));
            text += &format!("{:10}{DIM}{}{DIM:#}\n", "", visible(&foreign.url));
        }
    }
    text.push('\n');
    for warning in &plan.warnings {
        let warning = with_commands(config_path, &visible(&warning.to_string()));
        text += &format!("{WARNING}Warning:{WARNING:#} {}\n", wrapped(&warning, 9));
    }
    if !plan.warnings.is_empty() {
        text.push('\n');
    }
    text + &summary(config_path, plan)
}

/// What differs between a registration and what replaces it.
fn changes(removal: &Removal, wanted: &Wanted) -> Vec<(&'static str, String)> {
    let Removal { registration: old, .. } = removal;
    let change = |name| {
        let (from, to) = match name {
            "url" => (old.url.clone(), "as above".to_owned()),
            "type" => (old.level.name().to_owned(), wanted.level.name().to_owned()),
            "filters" => {
                let unknown =
                    old.unknown_filters.as_ref().map(|unknown| format!("{unknown}, which the relay does not know"));
                let known = Some(filters_text(&old.filters)).filter(|text| !text.is_empty());
                let all: Vec<_> = known.into_iter().chain(unknown).collect();
                (all.join(" and "), filters_text(&wanted.filters))
            }
            _ => (old.additional_data.as_ref().map(joined).unwrap_or_default(), joined(&wanted.additional_data)),
        };
        let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
        (name, format!("{} → {}", or_none(from), or_none(to)))
    };
    differences(old, wanted).into_iter().map(change).collect()
}

fn summary(config_path: Option<&Path>, plan: &Plan) -> String {
    let (unchanged, foreign) = (plan.unchanged.len(), plan.foreign.len());
    let left = if foreign > 0 { format!(", {foreign} left alone") } else { String::new() };
    let but = if plan.is_disabled() {
        let enable = command(config_path, "webhooks enable");
        format!(" But LiveChat sends none of them: `{enable}` changes that, once the app is installed.")
    } else {
        String::new()
    };
    if plan.is_empty() {
        let what = if plan.is_done() { "Nothing to do" } else { "Nothing to register or unregister" };
        return format!("{}\n", wrapped(&format!("{what}: {unchanged} as wanted{left}.{but}"), 0));
    }
    let (blocked, remove) = (plan.blocked(), plan.remove.len());
    let add = plan.add.len() - blocked;
    let left = if blocked > 0 { format!(", {blocked} that cannot be registered{left}") } else { left };
    let what = format!("Plan: {add} to register, {remove} to unregister, {unchanged} as wanted{left}.{but}");
    format!("{}\n", wrapped(&what, 0))
}

/// Nothing where no call changes something. `what_takes` them, as the start of a sentence.
fn cost(plan: &Plan, what_takes: &str) -> String {
    if plan.calls() == 0 {
        return String::new();
    }
    let calls = count(plan.calls() as u64, "call");
    let cost = format!(
        "{what_takes} {calls} and a few that list. LiveChat bills calls of private apps and of personal access tokens."
    );
    format!("{DIM}{}{DIM:#}\n", wrapped(&cost, 0))
}
