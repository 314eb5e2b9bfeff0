//! What `check` says of `[apps.livechat]`: as whom the commands call LiveChat, and what is wanted there. It makes no call.

use super::Report;
use crate::cli::Source;
use crate::config::{Config, Need};
use crate::livechat::{App, Credential, TokenFile, TokenPair};

const CHECK: &str = "livechat";

pub fn look(config: &Config, source: &Source, report: &Report) {
    if config.livechat.apps.is_empty() {
        return;
    }
    report.begin(CHECK);
    // `serve` does not read the credentials: what is wrong with them concerns the commands that call LiveChat.
    match source.read(Need::LiveChat) {
        Ok(config) => config.livechat.apps.iter().for_each(|app| of_app(app, &config, report)),
        Err(mistakes) => {
            for mistake in mistakes.lines {
                report.warn(CHECK, format!("LiveChat cannot be called: {mistake}"));
            }
        }
    }
}

fn of_app(app: &App, config: &Config, report: &Report) {
    let credential = match &app.credential {
        Some(Credential::Personal { account_id, .. }) => {
            let key = format!("apps[{}].livechat.personal_access_token", app.name);
            let place = config.sources.place(&key).unwrap_or(key);
            Ok(format!("personal access token of the account {account_id} ({place})"))
        }
        Some(Credential::Tokens(path)) => match TokenFile::new(path).read() {
            // Each command refuses them.
            Ok(Some(TokenPair { client_id, .. })) if client_id != app.client_id => Err(format!(
                "{} has tokens of another Client ID, {client_id}: `livechat-relay auth login --app {}` replaces them",
                path.display(),
                app.name
            )),
            Ok(Some(TokenPair { organization_id, .. })) => {
                let of = match organization_id.trim() {
                    "" => "an organization that they do not name".to_owned(),
                    id => format!("the organization {id}"),
                };
                Ok(format!("tokens of {of} ({})", path.display()))
            }
            Ok(None) => Err(format!("no tokens yet: `livechat-relay auth login` writes {}", path.display())),
            Err(failure) => Err(failure.to_string()),
        },
        None => Ok("no credentials, so LiveChat cannot be called".to_owned()),
    };
    let wanted = match &app.wanted {
        Some(wanted) => format!("{} webhooks wanted", wanted.len()),
        None => "webhooks not in the configuration".to_owned(),
    };
    let on = |is_on| if is_on { "on" } else { "off" };
    let (install, page) = (on(app.install.is_some()), on(app.page));
    let of_app = |credential: &str| {
        let App { name, client_id, version, .. } = app;
        format!(
            "{name}: Client ID {client_id}, API {version}; {credential}; {wanted}; installation page {install}, app's page {page}"
        )
    };
    match credential {
        Ok(credential) => report.ok(CHECK, of_app(&credential)),
        Err(why) => report.warn(CHECK, of_app(&why)),
    }
}
