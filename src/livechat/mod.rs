//! LiveChat's side: the webhooks that are registered there, and whom LiveChat lets do what. It knows nothing of Kafka and of the spool.

mod accounts;
mod api;
pub mod apply;
mod archives;
pub mod backfill;
mod call;
pub mod catalogue;
mod failure;
mod http;
pub mod plan;
mod redirect;
mod registration;
pub mod rotate;
mod tokens;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

pub use accounts::{Accounts, Info, Login, code, covers};
pub use api::{Api, Offered};
pub use archives::{ArchivePage, Archives};
pub use call::{Notices, PERSONAL_ACCESS_TOKENS};
pub use failure::{CONSOLE, Failure, Kind};
pub use http::{Server, awaited_until, is_loopback};
pub use redirect::{Reason, Redirect};
pub use registration::{Filters, Level, Registration, Users, Version, Wanted};
pub use tokens::{Session, TokenFile, TokenPair, refreshes_ended};

/// `[livechat]`: how LiveChat is reached, and how often it is asked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Configuration API and the Agent Chat API: `https://api.livechatinc.com`.
    pub api: Server,
    /// `https://accounts.livechat.com`.
    pub accounts: Server,
    /// For one request and its answer.
    pub timeout: Duration,
    /// Tries of one call in all, where another one may help.
    pub attempts_max: u32,
    /// From the first failure to the next try, doubling up to the second; the times are random between half and all of it.
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// A longer `Retry-After` is not waited out, but said.
    pub retry_after_max: Duration,
    /// How long after a change LiveChat may still act as before it: two minutes, and a margin.
    pub propagation: Duration,
    /// From one comparison of what is registered with what is wanted to the next. Absent: there is none, because calls are billed.
    pub watch: Option<Duration>,
    /// The port on loopback where `auth login` awaits the browser. It stands in the app's redirect whitelist.
    pub login_port: u16,
    /// How long `auth login` waits: LiveChat shows most errors on its own pages and sends the browser nowhere.
    pub login_timeout: Duration,
    /// In the order of the configuration.
    pub apps: Vec<App>,
}

#[cfg(test)]
impl Config {
    /// For tests: a LiveChat at this address, which is tried once.
    pub fn of(address: &str) -> Self {
        let server = Server::new(Server::address(address).expect("an address"), None);
        Self {
            api: server.clone(),
            accounts: server,
            timeout: Duration::from_secs(1),
            attempts_max: 1,
            retry_min: Duration::ZERO,
            retry_max: Duration::ZERO,
            retry_after_max: Duration::ZERO,
            propagation: Duration::ZERO,
            watch: None,
            login_port: 0,
            login_timeout: Duration::ZERO,
            apps: Vec::new(),
        }
    }
}

/// `[apps.livechat]`: an app as LiveChat has it.
#[derive(Clone, Debug)]
pub struct App {
    /// The relay's name for it.
    pub name: String,
    /// What LiveChat calls Client ID. It owns the registrations.
    pub client_id: String,
    /// Server-side apps have one.
    pub client_secret: Option<SecretString>,
    /// Where LiveChat's servers and browsers reach the relay: https, perhaps with a path, without a slash at its end.
    pub public_url: String,
    /// That of the Configuration API, which is that of the webhooks' bodies: `apps[i].api_version`.
    pub version: Version,
    /// Absent: nothing can be called, only shown.
    pub credential: Option<Credential>,
    /// One for each action. Absent where the configuration has no `webhooks`: `page` and `install` need none.
    pub wanted: Option<Vec<Wanted>>,
    /// What new registrations get. Absent where it could not be found without reading secrets.
    pub secret_key: Option<SecretKey>,
    /// Where the secret keys stand in a directory.
    pub key_directory: Option<PathBuf>,
    /// The installation page, where it is on.
    pub install: Option<Install>,
    /// Whether `GET /app/{app}` is on.
    pub page: bool,
    /// Organizations whose users may see the app's page, and that may install the app.
    pub organizations: BTreeSet<String>,
}

impl App {
    pub fn wanted(&self) -> &[Wanted] {
        self.wanted.as_deref().unwrap_or_default()
    }

    /// What is registered at LiveChat: where its webhooks go.
    pub fn webhook_url(&self) -> String {
        format!("{}/webhooks/{}", self.public_url, self.name)
    }

    /// What LiveChat's console calls Direct installation URL. It stands in the redirect whitelist, too.
    pub fn install_url(&self) -> String {
        format!("{}/install/{}", self.public_url, self.name)
    }

    /// The source URL of an Agent App Widget.
    pub fn page_url(&self) -> String {
        format!("{}/app/{}", self.public_url, self.name)
    }
}

/// Of the keys that the relay accepts for an app, the last one that is valid.
#[derive(Clone, Debug)]
pub struct SecretKey {
    pub name: String,
    /// For people: `the file /run/secrets/livechat`.
    pub place: String,
    /// Absent where the command does not need it.
    pub secret: Option<SecretString>,
}

/// `[apps.livechat.install]`.
#[derive(Clone, Debug)]
pub struct Install {
    /// Scopes without which an installation is refused.
    pub scopes: BTreeSet<String>,
    /// Whether webhooks that were disabled for the license by hand are enabled.
    pub enable_webhooks: bool,
}

/// What LiveChat knows us by.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A personal access token (PAT) and its account. Its calls are billed.
    Personal { account_id: String, token: SecretString },
    /// The file that `auth login` writes and each refresh replaces.
    Tokens(PathBuf),
}

#[cfg(test)]
mod tests;
