//! `webhooks`: what is registered at LiveChat, what the configuration wants there, and the way from the one to the other.

mod adopt;
mod apply;
mod change;
mod console;
mod list;
mod plan;
mod relay;
mod rotate;
mod show;
#[cfg(test)]
mod tests;

use std::path::Path;

use clap::Subcommand;

use self::relay::Relay;
pub use self::rotate::unfinished;
use super::print::{self, WARNING};
use super::{Failure, Source, until_interrupted};
use crate::config::{Config as Whole, Need};
use crate::deliveries::Seen;
use crate::livechat::apply::{Relay as _, delivered};
use crate::livechat::plan::{Facts, Rotation, Warning};
use crate::livechat::{Api, App, Config, Kind, Registration};

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List what is registered under the app's Client ID
    List(Common),
    /// Compare the actions that LiveChat offers with those that this version of the relay knows
    Names(Common),
    /// Compare the registrations with the configuration; changes nothing
    Plan(plan::Arguments),
    /// Carry out the plan: register what is missing; unregister what it replaces once the new one delivers
    Apply(apply::Arguments),
    /// Replace the secret key of all webhooks, and delete the old one once nothing uses it
    #[command(
        after_help = "Run it on the relay's machine: it writes the new key into the directory of secret_keys, and waits until the relay has \
        read it. Several relays must share that directory. If it is stopped, run it again: it continues if the directory has two keys."
    )]
    Rotate(apply::Arguments),
    /// Print the registrations as configuration, for example those made in Developer Console
    Adopt(Common),
    /// Show whether LiveChat sends the app's webhooks for the license of the credentials
    State(Common),
    /// Enable the app's webhooks at LiveChat
    Enable(Common),
    /// Disable the app's webhooks at LiveChat; registrations are kept
    Disable(change::Disable),
    /// Remove registrations
    Unregister(change::Unregister),
}

/// What every command takes.
#[derive(clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub source: Source,
    /// App; required if several apps have [apps.livechat]
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::List(common) => until_interrupted(list::list(&common)).await,
        Command::Names(common) => list::names(&common).await,
        Command::Plan(arguments) => until_interrupted(plan::run(&arguments)).await,
        Command::Apply(arguments) => apply::run(&arguments).await,
        Command::Rotate(arguments) => rotate::run(&arguments).await,
        Command::Adopt(common) => until_interrupted(adopt::run(&common)).await,
        Command::State(common) => until_interrupted(change::state(&common)).await,
        Command::Enable(common) => until_interrupted(change::enable(&common)).await,
        Command::Disable(arguments) => arguments.run().await,
        Command::Unregister(arguments) => arguments.run().await,
    }
}

impl Common {
    /// How LiveChat is reached, and the app that is meant.
    pub fn load(&self, need: Need) -> Result<(Config, App), Failure> {
        let livechat = self.source.load(need)?.livechat;
        let app = self.source.app(&livechat.apps, self.app.as_deref())?.clone();
        Ok((livechat, app))
    }

    /// The app that is meant, and its API.
    pub fn open(&self) -> Result<(App, Api), Failure> {
        let (livechat, app) = self.load(Need::LiveChat)?;
        let api = Api::new(&livechat, &app);
        Ok((app, api))
    }

    /// The configuration that the user gave.
    pub fn config(&self) -> Option<&Path> {
        self.source.config.as_deref()
    }

    /// How the user calls another command with the same configuration and app.
    pub fn command(&self, name: &str) -> String {
        let app = self.app.as_ref().map(|app| format!(" --app {app}")).unwrap_or_default();
        print::command(self.config(), &format!("{name}{app}"))
    }

    /// What the running relay has seen, and whether a rotation is unfinished: hints, where a relay answers, and where the keys can be read.
    async fn hints(&self, app: &App) -> (Option<Seen>, Option<Rotation>) {
        let read = |need| self.source.read(need).ok(); // what is wrong with it was said when the app was found
        let Some(config) = read(Need::Registration).or_else(|| read(Need::Settings)) else { return (None, None) };
        let found = config.livechat.apps.iter().find(|of| of.name == app.name);
        let rotation = found.and_then(|app| rotate::unfinished(&config, app));
        let seen = match Relay::open(None, config.control.socket.as_deref()).await {
            Ok(relay) => relay.seen().await,
            Err(_) => None,
        };
        (seen, rotation)
    }
}

/// What a person should know of the secret keys of a configuration. `config_path`: what the user gave.
pub fn unfinished_rotations(config: &Whole, config_path: Option<&Path>) -> impl Iterator<Item = String> {
    let of = |app: &App| Some((app.name.clone(), rotate::unfinished(config, app)?));
    let unfinished = config.livechat.apps.iter().filter_map(of);
    unfinished.map(move |(app, rotation)| {
        print::with_commands(config_path, &format!("{app}: {}", Warning::Rotation(rotation)))
    })
}

impl Source {
    /// As [`chosen`], of the configuration that the user gave, if they did.
    pub fn app<'a>(&self, apps: &'a [App], name: Option<&str>) -> Result<&'a App, Failure> {
        chosen(apps, name).map_err(|failure| if apps.is_empty() { self.lacking(failure) } else { failure })
    }
}

/// The app of this name, or the only one.
fn chosen<'a>(apps: &'a [App], name: Option<&str>) -> Result<&'a App, Failure> {
    let names = || apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
    match (apps, name) {
        ([], _) => Err(Failure::Usage(
            "no app of the configuration has a table [apps.livechat]: add one with client_id and public_url; `livechat-relay config default` explains it"
                .to_owned(),
        )),
        ([app], None) => Ok(app),
        (_, None) => Err(Failure::Usage(format!("several apps have a table [apps.livechat]; choose one with --app: {}", names()))),
        (_, Some(name)) => {
            let found = apps.iter().find(|app| app.name == name);
            let known = || format!("no app {name:?} has a table [apps.livechat]; these have: {}", names());
            found.ok_or_else(|| Failure::Usage(known()))
        }
    }
}

/// What is registered, and what else a plan takes into account.
///
/// # Errors
/// Without a listing.
async fn survey(
    common: &Common,
    app: &App,
    api: &Api,
    seen: &Seen,
    rotation: Option<Rotation>,
) -> Result<(Vec<Registration>, Facts), Failure> {
    let registered = api.list_webhooks().await?;
    let enabled = match api.license_webhooks_enabled().await {
        Ok(enabled) => Some(enabled),
        Err(failure) if failure.kind == Kind::NotFound => Some(false),
        // The state has scopes of its own, which who only registers need not have.
        Err(failure) => {
            let what = format!("whether LiveChat sends webhooks is not known: {failure}");
            let what = print::with_commands(common.config(), &what);
            print::complaint(WARNING, "warning:", &what);
            None
        }
    };
    let (notices, delivered) = (api.notices(), delivered(app, seen));
    Ok((registered, Facts { enabled, notices, delivered, rotation, ..Facts::default() }))
}
