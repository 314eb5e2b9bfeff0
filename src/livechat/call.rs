//! One call to LiveChat's Configuration API or Agent Chat API: who calls, in which region, what a refusal means, and whether there is
//! another try.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::civil::Date;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::accounts::covers;
use super::failure::{CONSOLE, Refusal};
use super::http::{ANSWER_BYTES_MAX, FailedAttempt, Http};
use super::tokens::Session;
use super::{App, Config, Credential, Kind};

pub const PERSONAL_ACCESS_TOKENS: &str =
    "https://www.text.com/app/settings/integrations/api-access/personal-access-tokens";

/// What calls of one app and one of the two APIs have in common.
pub struct Caller {
    http: Http,
    /// `configuration` or `agent`.
    api: &'static str,
    pub app: App,
    access: Access,
    /// Where the last call was sent to by `misdirected_request`.
    region: Mutex<Option<String>>,
    notices: Mutex<Notices>,
    calls: AtomicU64,
}

/// Who calls.
pub enum Access {
    None,
    Personal {
        account_id: String,
        token: SecretString,
    },
    /// A token that is at hand, and cannot be refreshed.
    Token(SecretString),
    Session(Box<Session>),
}

impl Access {
    /// By the app's own credential.
    pub fn of(config: &Config, app: &App) -> Self {
        match app.credential.clone() {
            None => Self::None,
            Some(Credential::Personal { account_id, token }) => Self::Personal { account_id, token },
            Some(Credential::Tokens(path)) => Self::Session(Box::new(Session::new(config, app, &path))),
        }
    }
}

/// What LiveChat says of the version's end, in the headers of its answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// When the version became, or becomes, legacy.
    pub legacy: Option<Date>,
    /// When it is taken out of service.
    pub deprecation: Option<Date>,
}

/// What is asked for.
pub struct Call<'a> {
    pub action: &'static str,
    pub body: Value,
    /// A part of the body that no text may have.
    pub secret: Option<&'a SecretString>,
    pub needs_access: bool,
    /// Whether it may be done twice.
    pub is_repeatable: bool,
    pub bytes_max: usize,
}

impl Call<'_> {
    pub fn new(action: &'static str, body: Value) -> Self {
        Self { action, body, secret: None, needs_access: true, is_repeatable: true, bytes_max: ANSWER_BYTES_MAX }
    }
}

impl Caller {
    pub fn new(config: &Config, app: &App, api: &'static str, access: Access) -> Self {
        Self {
            http: Http::new(config, &config.api),
            api,
            app: app.clone(),
            access,
            region: Mutex::default(),
            notices: Mutex::default(),
            calls: AtomicU64::new(0),
        }
    }

    /// Whether an OAuth access token is sent, not a personal one.
    pub fn is_bearer(&self) -> bool {
        matches!(self.access, Access::Token(_) | Access::Session(_))
    }

    pub fn notices(&self) -> Notices {
        *lock(&self.notices)
    }

    /// How many calls LiveChat may have billed until now.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// What LiveChat answers, after as many tries as the configuration lets it have.
    ///
    /// # Errors
    /// The last try's. Of a call that may not be done twice, `may_be_done` says whether it has to be found out what became of it.
    pub async fn call<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, FailedAttempt> {
        let body = self.http.tried(call.is_repeatable, || self.once(call)).await?;
        let body = if body.trim_ascii().is_empty() { b"{}" } else { &body[..] };
        serde_json::from_slice(body).map_err(|error| {
            // Its position, not its text: that may have a part of the body.
            let place = format!(" (line {}, column {})", error.line(), error.column());
            self.http.unintelligible(call.action, &place)
        })
    }

    /// As [`Self::call`], for a method whose answer has no members.
    ///
    /// # Errors
    /// As there.
    pub async fn done(&self, call: &Call<'_>) -> Result<(), FailedAttempt> {
        self.call::<Option<Map<String, Value>>>(call).await.map(drop)
    }

    /// One try; with a second one where the token has to be refreshed, or the region is another.
    async fn once(&self, call: &Call<'_>) -> Result<Vec<u8>, FailedAttempt> {
        let (mut is_refreshed, mut is_moved) = (false, false);
        loop {
            let token = if call.needs_access { self.token(call.action).await? } else { None };
            let failed = match self.sent(call, token.as_ref()).await {
                Err(failed) => failed,
                sent => return sent,
            };
            match (&failed.failure.kind, &self.access, token) {
                (Kind::Region(region), ..) if !is_moved => {
                    *lock(&self.region) = Some(region.clone());
                    is_moved = true;
                }
                (Kind::Authentication, Access::Session(session), Some(token)) if !is_refreshed => {
                    session.renewed(&token).await?;
                    is_refreshed = true;
                }
                _ => return Err(failed),
            }
        }
    }

    /// What stands in `Authorization`, alone or with the account.
    async fn token(&self, action: &str) -> Result<Option<SecretString>, FailedAttempt> {
        match &self.access {
            Access::None => {
                let what = format!("{action}: the configuration has no credential for the app {}", self.app.name);
                Err(FailedAttempt::undone(Kind::Authentication, what, self.new_credential()))
            }
            Access::Personal { token, .. } | Access::Token(token) => Ok(Some(token.clone())),
            Access::Session(session) => session.token().await.map(Some),
        }
    }

    async fn sent(&self, call: &Call<'_>, token: Option<&SecretString>) -> Result<Vec<u8>, FailedAttempt> {
        let path = format!("/v{}/{}/action/{}", self.app.version, self.api, call.action);
        let mut request = self.http.request(Method::POST, &path).header(CONTENT_TYPE, "application/json");
        if let Some(secret) = token.map(ExposeSecret::expose_secret) {
            request = match &self.access {
                Access::Personal { account_id, .. } => request.basic_auth(account_id, Some(secret)),
                _ => request.bearer_auth(secret),
            };
        }
        // What stands before the first colon of a token is its data centre.
        let own = || Some(token?.expose_secret().split_once(':')?.0.to_owned());
        if let Some(region) = lock(&self.region).clone().or_else(own) {
            request = request.header("X-Region", region);
        }
        let request = request.body(serde_json::to_vec(&call.body).expect("a value is JSON"));
        let secrets: Vec<_> = token.into_iter().chain(call.secret).collect();
        let sent = self.http.send(call.action, request, call.bytes_max, &secrets).await;
        // Answers but 500 are billed; whether one that never came is, is not documented.
        let is_billed = match &sent {
            Ok(answer) => answer.status != StatusCode::INTERNAL_SERVER_ERROR,
            Err(failed) => failed.may_be_done,
        };
        if is_billed && call.needs_access {
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
        let answer = sent?;
        self.note(&answer.headers);
        self.http.accepted(call.action, answer, &secrets, |refusal| self.remedy(call.action, refusal))
    }

    fn note(&self, headers: &HeaderMap) {
        let date = |name| headers.get(name)?.to_str().ok()?.get(..10)?.parse::<Date>().ok();
        let mut notices = lock(&self.notices);
        notices.legacy = date("legacy").or(notices.legacy);
        notices.deprecation = date("deprecation").or(notices.deprecation);
    }

    fn remedy(&self, action: &str, refusal: &Refusal) -> Option<String> {
        Some(match &refusal.kind {
            Kind::Authentication => self.new_credential(),
            Kind::Authorization => self.more_rights(action, refusal),
            Kind::Validation if refusal.name == "already_exists" => "see `livechat-relay webhooks list`".to_owned(),
            Kind::Validation => format!(
                "correct the member that it names in [apps.livechat]; `livechat-relay webhooks names` shows what version {} has",
                self.app.version
            ),
            Kind::NotFound => format!("see what exists: `livechat-relay webhooks list`, or the app in {CONSOLE}"),
            _ => return None,
        })
    }

    /// LiveChat says one thing of a wrong token, an ended one, and a wrong account.
    fn new_credential(&self) -> String {
        let app = &self.app.name;
        match &self.access {
            Access::Session(_) => log_in_again(app),
            Access::Token(_) => format!("install the app again in {CONSOLE} (Private installation)"),
            Access::None => format!(
                "set personal_access_token and account_id, or tokens, in [apps.livechat] of {app}: {PERSONAL_ACCESS_TOKENS} makes such a token"
            ),
            Access::Personal { account_id, .. } => format!(
                "most likely the personal access token of {app} (personal_access_token) was deleted, or copied in part: make another in {PERSONAL_ACCESS_TOKENS}; \
                 else account_id {account_id} is not the one that is shown there beside the token"
            ),
        }
    }

    /// Under the name `authorization` LiveChat need not say whether the scope, the role or the app is wrong. Of a login the scopes are known.
    fn more_rights(&self, action: &str, refusal: &Refusal) -> String {
        match &*refusal.name {
            "authorization" => {}
            "requester_suspended" => {
                return "the account of the credential is suspended: have an administrator of LiveChat reactivate it, or use another account's"
                    .to_owned();
            }
            "requester_awaiting_approval" => {
                return "the account of the credential awaits approval: have an administrator of LiveChat approve it"
                    .to_owned();
            }
            _ => {
                return "LiveChat does not allow this to the account of the credential: use that of an administrator, or ask LiveChat's support"
                    .to_owned();
            }
        }
        let (client_id, scope) = (&self.app.client_id, scope(action));
        let foreign = format!(
            "client_id {client_id} is not an app of the account's organization: compare it with App Authorization of the app in {CONSOLE}"
        );
        if refusal.said.contains("client_id") {
            return foreign;
        }
        let Access::Session(session) = &self.access else {
            return format!(
                "most likely the token was made without the scope {scope}, or by an account that is no administrator; else {foreign}"
            );
        };
        if session.scopes().iter().any(|granted| covers(granted, scope)) {
            return format!(
                "the login has the scope {scope}, so its account is no administrator (log in with one that is: `livechat-relay auth login --app {}`), \
                 or {foreign}",
                self.app.name
            );
        }
        format!(
            "the login does not have the scope {scope}: add it in App Authorization of the app in {CONSOLE}, and {}",
            log_in_again(&self.app.name)
        )
    }
}

/// What a method needs.
fn scope(action: &str) -> &'static str {
    match action {
        "get_license_webhooks_state" => "webhooks.state:ro",
        "enable_license_webhooks" | "disable_license_webhooks" => "webhooks.state:rw",
        "list_archives" | "list_chats" | "get_chat" => "chats--all:ro",
        _ => "webhooks.configuration:rw",
    }
}

pub fn log_in_again(app: &str) -> String {
    format!("log in again: `livechat-relay auth login --app {app}`")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
