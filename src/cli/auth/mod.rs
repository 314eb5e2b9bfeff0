//! `auth`: lets the relay act for an app at LiveChat (`login`), says what it may do (`status`), and ends that (`logout`).

mod callback;
mod login;
mod status;

use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::Failure;
use super::print::{GOOD, out, wrapped};
use super::spool::print_json;
use super::webhooks::Common;
use crate::config::Need;
use crate::livechat::{self, Accounts, App, Credential, PERSONAL_ACCESS_TOKENS, TokenFile, TokenPair};

#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get tokens for an app: a person grants access on LiveChat's page, in a browser
    Login(login::Arguments),
    /// Show as whom the relay calls LiveChat, what it may do, and what is missing
    Status(Common),
    /// Revoke the tokens of an app at LiveChat, and remove their file
    Logout(Common),
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Login(arguments) => login::run(&arguments).await,
        Command::Status(common) => status::run(&common).await,
        Command::Logout(common) => logout(&common).await,
    }
}

/// The file of the app's tokens.
fn tokens(app: &App) -> Result<&Path, Failure> {
    match &app.credential {
        Some(Credential::Tokens(path)) => Ok(path),
        Some(Credential::Personal { .. }) => Err(Failure::Usage(format!(
            "the app {} has a personal access token, which needs no login, and is revoked where it was created: {PERSONAL_ACCESS_TOKENS}",
            app.name
        ))),
        None => Err(Failure::Usage(format!(
            "the app {} has no file for tokens; set tokens in its [apps.livechat], such as \"/var/lib/livechat-relay/tokens.json\"",
            app.name
        ))),
    }
}

/// Ends both tokens. Each ends the other; but an access token that has ended by itself ends nothing.
async fn revoke(accounts: &Accounts, pair: &TokenPair) -> Result<(), livechat::Failure> {
    for token in pair.refresh_token.iter().chain([&pair.access_token]) {
        accounts.revoke(token).await?;
    }
    Ok(())
}

async fn logout(common: &Common) -> Result<(), Failure> {
    let (livechat, app) = common.load(Need::LiveChat)?;
    let path = tokens(&app)?;
    let file = TokenFile::new(path);
    let was_there = file.read()?.is_some();
    if was_there {
        // Under the lock, so that nothing that is refreshed meanwhile stays good.
        let locked = file.lock().await?;
        let accounts = Accounts::new(&livechat);
        if let Some(pair) = file.read()? {
            revoke(&accounts, &pair).await.map_err(|failure| {
                Failure::Failed(format!("the tokens are not revoked, and {} stays: {failure}", path.display()))
            })?;
        }
        locked.remove()?;
    }
    if common.json {
        return print_json(&json!({ "app": app.name, "revoked": was_there }));
    }
    if was_there {
        let told = format!("the tokens of the app {} are revoked, and {} is removed", app.name, path.display());
        return out(format_args!("{GOOD}logged out:{GOOD:#} {}", wrapped(&told, 12)));
    }
    out(format_args!("{}", wrapped(&file.without_tokens(&app), 0)))
}
