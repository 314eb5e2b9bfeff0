//! `auth status`: for whom the relay acts at LiveChat, until when, what it may do, and which scopes are missing for what. Never a token.

use std::collections::BTreeSet;

use anstyle::Style;
use jiff::civil::Date;
use jiff::{Timestamp, Unit};
use serde::Serialize;

use crate::cli::Failure;
use crate::cli::print::{GOOD, WARNING, out, visible, wrapped};
use crate::cli::spool::print_json;
use crate::cli::webhooks::Common;
use crate::config::Need;
use crate::livechat::{self, Api, App, CONSOLE, Config, Credential, Kind, Session, TokenFile, covers};

/// What a scope is good for.
const PURPOSES: [(&str, &str); 3] = [
    ("webhooks.configuration:rw", "webhooks list, plan, apply, rotate, unregister"),
    ("webhooks.state:rw", "webhooks state, enable, disable, and the installation page"),
    ("chats--all:ro", "backfill"),
];

/// All that is known without a token.
#[derive(Serialize)]
struct Status<'a> {
    app: &'a str,
    client_id: &'a str,
    credential: &'static str,
    account_id: String,
    /// LiveChat does not tell it of personal access tokens.
    organization_id: Option<String>,
    /// As that.
    scopes: Option<BTreeSet<String>>,
    missing: Vec<Missing>,
    /// Of the access token, which is refreshed then.
    expires_at: Option<Timestamp>,
    api_version: &'static str,
    legacy: Option<Date>,
    deprecation: Option<Date>,
    /// What could not be found out, and what had to be tried for it.
    notes: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Missing {
    scope: &'static str,
    r#for: &'static str,
}

pub async fn run(common: &Common) -> Result<(), Failure> {
    let (livechat, app) = common.load(Need::LiveChat)?;
    let mut status = match &app.credential {
        Some(Credential::Tokens(path)) => {
            let mut status = of_login(&app, &Session::new(&livechat, &app, path)).await?;
            if TokenFile::new(path).is_exposed()? {
                let path = path.display();
                status.notes.push(format!("others can read {path}: `chmod 600 {path}`, and log in again"));
            }
            status
        }
        Some(Credential::Personal { account_id, .. }) => of_personal(&livechat, &app, account_id).await?,
        None => {
            return Err(Failure::Usage(format!(
                "the app {} has no credential: set personal_access_token and account_id, or tokens, in its [apps.livechat]",
                app.name
            )));
        }
    };
    add_notices(&mut status, &Api::new(&livechat, &app)).await;
    if common.json { print_json(&status) } else { status.print() }
}

async fn of_login<'a>(app: &'a App, session: &Session) -> Result<Status<'a>, Failure> {
    let info = session.info().await?;
    let mut notes = Vec::new();
    if !app.organizations.is_empty() && !app.organizations.contains(&info.organization_id) {
        notes.push("this organization is not among apps.livechat.organizations".to_owned());
    }
    Ok(Status {
        missing: missing(|needed| info.scopes.iter().any(|scope| covers(scope, needed))),
        organization_id: Some(info.organization_id),
        account_id: info.account_id,
        scopes: Some(info.scopes),
        expires_at: Timestamp::now().checked_add(info.expires_in).ok(),
        ..Status::new(app, "oauth", notes)
    })
}

/// LiveChat does not say what a personal access token may do, so it is tried.
async fn of_personal<'a>(livechat: &Config, app: &'a App, account_id: &str) -> Result<Status<'a>, Failure> {
    let api = Api::new(livechat, app);
    let listed = may(api.list_webhooks().await)?;
    let state = may(api.license_webhooks_enabled().await)?;
    let mut notes = vec![format!(
        "LiveChat does not tell the scopes of a personal access token: {} billed calls tried it; whether it may change the state, and \
         chats--all:ro, were not tried",
        api.calls()
    )];
    if !listed && !state {
        notes.push(format!(
            "LiveChat refuses both calls: if the token has these scopes, client_id {} is not an app of the account's organization; compare it \
             with App Authorization of the app in {CONSOLE}",
            app.client_id
        ));
    }
    let tried = [("webhooks.configuration:rw", listed), ("webhooks.state:rw", state)];
    Ok(Status {
        missing: missing(|needed| tried.iter().all(|(scope, may)| *scope != needed || *may)),
        account_id: account_id.to_owned(),
        ..Status::new(app, "personal_access_token", notes)
    })
}

/// Whether a call was let through.
fn may<T>(called: Result<T, livechat::Failure>) -> Result<bool, Failure> {
    match called {
        Ok(_) => Ok(true),
        Err(failure) if failure.kind == Kind::NotFound => Ok(true), // an app that is not installed
        // No scope helps against another organization's app, or where the account is suspended.
        Err(failure)
            if failure.kind == Kind::Authorization
                && failure.what.ends_with("(authorization)")
                && !failure.what.contains("client_id") =>
        {
            Ok(false)
        }
        Err(failure) => Err(failure.into()),
    }
}

fn missing(is_there: impl Fn(&str) -> bool) -> Vec<Missing> {
    let missing = PURPOSES.into_iter().filter(|(scope, _)| !is_there(scope));
    missing.map(|(scope, r#for)| Missing { scope, r#for }).collect()
}

/// When the version ends: any answer says it, and this call needs no token and costs nothing.
async fn add_notices(status: &mut Status<'_>, api: &Api) {
    if let Err(failure) = api.list_webhook_names().await {
        status.notes.push(format!("when version {} ends is not known: {failure}", status.api_version));
    }
    (status.legacy, status.deprecation) = (api.notices().legacy, api.notices().deprecation);
}

impl<'a> Status<'a> {
    fn new(app: &'a App, credential: &'static str, notes: Vec<String>) -> Self {
        Self {
            app: &app.name,
            client_id: &app.client_id,
            credential,
            account_id: String::new(),
            organization_id: None,
            scopes: None,
            missing: Vec::new(),
            expires_at: None,
            api_version: app.version.name(),
            legacy: None,
            deprecation: None,
            notes,
        }
    }

    fn print(&self) -> Result<(), Failure> {
        let styled = |style: Style, name: &str, text: &str| {
            out(format_args!("{style}{name:<13}{style:#} {}", wrapped(&visible(text), 14)))
        };
        let line = |name: &str, text: &str| styled(Style::new(), name, text);
        line("app", &format!("{} (Client ID {})", self.app, self.client_id))?;
        line(
            "credential",
            if self.credential == "oauth" { "OAuth tokens of `auth login`" } else { "personal access token" },
        )?;
        line("account", &self.account_id)?;
        if let Some(organization) = &self.organization_id {
            line("organization", organization)?;
        }
        if let Some(scopes) = &self.scopes {
            line("scopes", &scopes.iter().map(String::as_str).collect::<Vec<_>>().join(", "))?;
        }
        if let Some(end) = self.expires_at {
            let end = end.round(Unit::Second).unwrap_or(end);
            line("expires", &format!("{end}; it is refreshed then"))?;
        }
        line("API version", &self.version())?;
        for missing in &self.missing {
            styled(WARNING, "missing", &format!("{}, for {}", missing.scope, missing.r#for))?;
        }
        if !self.missing.is_empty() {
            let how = if self.credential == "oauth" {
                format!("add them in {CONSOLE} (App Authorization), and log in again")
            } else {
                "make another personal access token, with an account that is an administrator".to_owned()
            };
            line("", &how)?;
        }
        self.notes.iter().try_for_each(|note| styled(WARNING, "note", note))?;
        if self.missing.is_empty() && self.scopes.is_some() {
            return out(format_args!("{GOOD}nothing is missing{GOOD:#}"));
        }
        Ok(())
    }

    fn version(&self) -> String {
        let told = |what, date: Option<Date>| date.map(|date| format!("; {what} {date}")).unwrap_or_default();
        format!(
            "{}{}{}",
            self.api_version,
            told("legacy since", self.legacy),
            told("LiveChat ends it on", self.deprecation)
        )
    }
}
