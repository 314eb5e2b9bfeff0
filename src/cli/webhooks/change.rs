//! `webhooks state`, `enable`, `disable` and `unregister`: single changes at LiveChat, each said before it is made.

use serde_json::json;

use super::Common;
use super::show::action as column;
use crate::cli::Failure;
use crate::cli::items::count;
use crate::cli::print::confirm;
use crate::cli::print::{ERROR, GOOD, WARNING, out, visible, wrapped};
use crate::cli::spool::print_json;
use crate::livechat::plan::{Facts, plan};
use crate::livechat::{Api, App, Registration, catalogue};

#[derive(clap::Args)]
pub struct Disable {
    #[command(flatten)]
    common: Common,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(clap::Args)]
pub struct Unregister {
    #[command(flatten)]
    common: Common,
    /// Their ids, as `webhooks list` shows them
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Remove all that deliver to this relay; others of the same Client ID only by their ids
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub async fn state(common: &Common) -> Result<(), Failure> {
    let (app, api) = common.open()?;
    show(common, &app, api.license_webhooks_enabled().await?)
}

pub async fn enable(common: &Common) -> Result<(), Failure> {
    let (app, api) = common.open()?;
    let is_enabled = api.license_webhooks_enabled().await?;
    if !is_enabled {
        api.enable_license_webhooks().await?;
    }
    show(common, &app, true)?;
    common.remark(if is_enabled { "They were enabled before." } else { LAG })
}

/// How LiveChat acts after a change.
const LAG: &str = "For up to two minutes LiveChat may send, and list, as before.";

impl Common {
    /// A line for people only.
    fn remark(&self, what: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { out(format_args!("{}", wrapped(what, 0))) }
    }
}

fn show(common: &Common, app: &App, is_enabled: bool) -> Result<(), Failure> {
    if common.json {
        return print_json(&json!({ "app": app.name, "license_webhooks_enabled": is_enabled }));
    }
    if is_enabled {
        return out(format_args!("{GOOD}enabled{GOOD:#}: LiveChat sends the webhooks of the app {}", app.name));
    }
    let what = format!(
        "LiveChat sends no webhooks of the app {}: they were disabled (`{}`), or it is not installed",
        app.name,
        common.command("webhooks enable")
    );
    out(format_args!("{WARNING}disabled{WARNING:#}: {}", wrapped(&what, 10)))
}

impl Disable {
    pub async fn run(&self) -> Result<(), Failure> {
        let (app, api) = self.common.open()?;
        let is_enabled = api.license_webhooks_enabled().await?;
        let what = format!(
            "Disable the webhooks of the app {}? LiveChat then sends none for this license, and what happens meanwhile is lost.",
            app.name
        );
        if is_enabled {
            if !self.yes && !confirm(&what)? {
                return Ok(());
            }
            api.disable_license_webhooks().await?;
        }
        show(&self.common, &app, false)?;
        self.common.remark(if is_enabled { LAG } else { "They were disabled before." })
    }
}

impl Unregister {
    pub async fn run(&self) -> Result<(), Failure> {
        if self.ids.is_empty() && !self.all {
            let (list, all) = ("webhooks list", "webhooks unregister --all");
            return Err(Failure::Usage(format!(
                "which ones? Name their ids, as `{}` shows them, or all that come to this relay: `{}`",
                self.common.command(list),
                self.common.command(all)
            )));
        }
        let (app, api) = self.common.open()?;
        let mut registered = api.list_webhooks().await?;
        registered.sort_by_key(|one| catalogue::position(&one.action));
        let chosen = self.chosen(&app, &registered)?;
        if chosen.is_empty() && !self.common.json {
            return out(format_args!("nothing that comes to this relay is registered"));
        }
        for registration in chosen.iter().filter(|_| !self.common.json) {
            let Registration { id, action, url, .. } = registration;
            out(format_args!("  {ERROR}-{ERROR:#}   {}  {}", column(action), visible(id)))?;
            if *url != app.webhook_url() {
                out(format_args!("{:10}{}", "", visible(url)))?;
            }
        }
        let what = format!(
            "Unregister {}? Their events are no longer sent, and are lost.",
            count(chosen.len() as u64, "webhook")
        );
        if !chosen.is_empty() && !self.yes && !confirm(&what)? {
            return Ok(());
        }
        let removed = remove(&api, &chosen).await?;
        if self.common.json {
            return print_json(&json!({ "unregistered": removed }));
        }
        let removed = count(removed.len() as u64, "webhook");
        out(format_args!("{removed} unregistered"))?;
        self.common.remark(LAG)
    }

    /// What is to be removed, of what is registered.
    fn chosen<'a>(&self, app: &App, registered: &'a [Registration]) -> Result<Vec<&'a Registration>, Failure> {
        if self.all {
            let foreign = plan(app, registered, &Facts::default()).foreign;
            return Ok(registered.iter().filter(|one| foreign.iter().all(|foreign| foreign.id != one.id)).collect());
        }
        let find = |id: &String| {
            let found = registered.iter().find(|registration| registration.id == *id);
            let unknown = || {
                format!(
                    "{id} is not registered for the Client ID of the app {}; see `livechat-relay webhooks list`",
                    app.name
                )
            };
            found.ok_or_else(|| Failure::Failed(unknown()))
        };
        self.ids.iter().map(find).collect()
    }
}

/// Removes them one after the other; their ids.
///
/// # Errors
/// What LiveChat says, and how many were removed before.
async fn remove<'a>(api: &Api, registrations: &[&'a Registration]) -> Result<Vec<&'a str>, Failure> {
    let mut removed = Vec::new();
    for registration in registrations {
        let done = api.unregister_webhook(&registration.id).await;
        done.map_err(|failure| {
            let (of, left) = (registrations.len(), registrations.len() - removed.len());
            Failure::Failed(format!("{failure}; {} of {of} are unregistered, {left} are not", removed.len()))
        })?;
        removed.push(registration.id.as_str());
    }
    Ok(removed)
}
