//! One call of LiveChat's Configuration API or Agent Chat API: who calls, in which region, what a refusal means, and whether there is
//! another try.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::civil::Date;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::http::{ANSWER_BYTES_MAX, Answer, FailedAttempt, Http, retry_after, shown, text};
use super::tokens::Session;
use super::{App, Config, Credential, Failure, Kind, Version};

pub const CONSOLE: &str = "https://platform.text.com/console/";

const PERSONAL_ACCESS_TOKENS: &str = "https://www.text.com/app/settings/integrations/api-access/personal-access-tokens";

/// What calls of one app and one of the two APIs have in common.
pub struct Caller {
    http: Http,
    /// `configuration` or `agent`.
    api: &'static str,
    version: Version,
    app: String,
    access: Access,
    /// Where the last call was sent to by `misdirected_request`.
    region: Mutex<Option<String>>,
    notices: Mutex<Notices>,
    calls: AtomicU64,
}

/// Who calls.
enum Access {
    None,
    Personal {
        account_id: String,
        token: SecretString,
    },
    /// A token that is at hand, and cannot be refreshed.
    Token(SecretString),
    Session(Box<Session>),
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
    pub bytes_max: usize,
}

impl Call<'_> {
    pub fn new(action: &'static str, body: impl Serialize) -> Self {
        let body = serde_json::to_value(body).expect("names and texts are JSON");
        Self { action, body, secret: None, needs_access: true, bytes_max: ANSWER_BYTES_MAX }
    }
}

impl Caller {
    /// With the app's own credential.
    ///
    /// # Errors
    /// As [`Http::new`].
    pub fn new(config: &Config, app: &App, api: &'static str) -> Result<Self, Failure> {
        let access = match &app.credential {
            None => Access::None,
            Some(Credential::Personal { account_id, token }) => {
                Access::Personal { account_id: account_id.clone(), token: token.clone() }
            }
            Some(Credential::Tokens(path)) => Access::Session(Box::new(Session::new(config, app, path)?)),
        };
        Self::with(config, app, api, access)
    }

    /// With another token than the app's own.
    ///
    /// # Errors
    /// As [`Http::new`].
    pub fn with_token(config: &Config, app: &App, api: &'static str, token: SecretString) -> Result<Self, Failure> {
        Self::with(config, app, api, Access::Token(token))
    }

    fn with(config: &Config, app: &App, api: &'static str, access: Access) -> Result<Self, Failure> {
        let (region, notices) = (Mutex::default(), Mutex::default());
        let (http, app_name) = (Http::new(config, "api", &config.api)?, app.name.clone());
        Ok(Self { http, api, version: app.version, app: app_name, access, region, notices, calls: AtomicU64::new(0) })
    }

    pub fn version(&self) -> Version {
        self.version
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

    /// A call that may be repeated, as often as the configuration lets it.
    ///
    /// # Errors
    /// The last try's.
    pub async fn repeated<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, FailedAttempt> {
        let mut retries = self.http.retries();
        loop {
            match self.once(call).await {
                Ok(answer) => return self.parsed(call, &answer),
                Err(failed) => retries.after(failed).await?,
            }
        }
    }

    /// A call that is repeated only while it is sure that nothing was done.
    ///
    /// # Errors
    /// `may_be_done` says whether it has to be found out what became of it.
    pub async fn unrepeated<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, FailedAttempt> {
        let mut retries = self.http.retries();
        loop {
            match self.once(call).await {
                Ok(answer) => return self.parsed(call, &answer),
                Err(failed) if failed.may_be_done => return Err(failed),
                Err(failed) => retries.after(failed).await?,
            }
        }
    }

    /// As [`Self::repeated`], for a method whose answer has no members.
    ///
    /// # Errors
    /// As there.
    pub async fn done(&self, call: &Call<'_>) -> Result<(), FailedAttempt> {
        self.repeated::<Option<serde_json::Map<String, Value>>>(call).await.map(drop)
    }

    fn parsed<T: DeserializeOwned>(&self, call: &Call<'_>, body: &[u8]) -> Result<T, FailedAttempt> {
        let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
        serde_json::from_slice(body).map_err(|error| {
            // Its position, not its text: that may have a part of the body.
            let place = format!("line {}, column {}", error.line(), error.column());
            let what =
                format!("{}: the answer of {} is not what it should be ({place})", call.action, self.http.host());
            FailedAttempt::unclear(Kind::Unintelligible, what, self.http.other_server())
        })
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
                    session.renew(&token).await.map_err(unsent)?;
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
                let what = format!("{action}: the configuration has no credential for the app {}", self.app);
                let remedy = "set personal_access_token and account_id, or tokens, in its [apps.livechat]";
                Err(FailedAttempt::undone(Kind::Authentication, what, remedy))
            }
            Access::Personal { token, .. } | Access::Token(token) => Ok(Some(token.clone())),
            Access::Session(session) => session.token().await.map(Some).map_err(unsent),
        }
    }

    async fn sent(&self, call: &Call<'_>, token: Option<&SecretString>) -> Result<Vec<u8>, FailedAttempt> {
        let path = format!("/v{}/{}/action/{}", self.version, self.api, call.action);
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
        let sent = self.http.send(call.action, request, call.bytes_max).await;
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
        let secrets: Vec<_> = token.into_iter().chain(call.secret).collect();
        self.refusal(call.action, &answer, &secrets).map_or(Ok(answer.body), Err)
    }

    fn note(&self, headers: &HeaderMap) {
        let date = |name| headers.get(name)?.to_str().ok()?.get(..10)?.parse::<Date>().ok();
        let mut notices = lock(&self.notices);
        notices.legacy = date("legacy").or(notices.legacy);
        notices.deprecation = date("deprecation").or(notices.deprecation);
    }

    /// Why the answer is none that was asked for. `error.type` decides; the status only where there is none.
    fn refusal(&self, action: &str, answer: &Answer, secrets: &[&SecretString]) -> Option<FailedAttempt> {
        // A long answer is not an error, and need not be read twice.
        let is_success = answer.status.is_success();
        let body = if is_success && answer.body.len() > 1 << 16 { &[] } else { &answer.body[..] };
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = body.get("error").filter(|error| text(error, "type").is_some());
        let Some(error) = error else { return (!is_success).then(|| self.no_api(action, answer)) };
        let error_type = text(error, "type").unwrap_or_default().to_ascii_lowercase();
        let kind = kind(&error_type, text(&error["data"], "region"), answer.status);
        let message = shown(text(error, "message").unwrap_or_default(), secrets);
        let what = format!("{action}: LiveChat says \"{message}\" ({})", shown(&error_type, secrets));
        let remedy = self.remedy(&kind, &error_type);
        // `too_many_requests` and refusals were not carried out; of failures it is not known.
        let may_be_done = kind == Kind::Unavailable || error_type == "already_exists";
        let failed = FailedAttempt::undone(kind, what, remedy);
        Some(FailedAttempt {
            may_be_done,
            error: Some(error_type),
            retry_after: retry_after(&answer.headers),
            ..failed
        })
    }

    /// An answer without LiveChat's JSON: its status says whether time may help.
    fn no_api(&self, action: &str, answer: &Answer) -> FailedAttempt {
        let status = answer.status;
        let what = format!("{action}: {} answers {} without LiveChat's JSON", self.http.host(), status.as_u16());
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => Kind::TooManyRequests,
            StatusCode::UNAUTHORIZED => Kind::Authentication,
            StatusCode::REQUEST_TIMEOUT => Kind::Unavailable,
            _ if status.is_server_error() => Kind::Unavailable,
            _ => Kind::Unintelligible,
        };
        let remedy = self.remedy(&kind, "");
        let may_be_done = kind == Kind::Unavailable;
        let failed = FailedAttempt::undone(kind, what, remedy);
        FailedAttempt { may_be_done, retry_after: retry_after(&answer.headers), ..failed }
    }

    /// How another credential is had.
    fn new_credential(&self) -> String {
        let app = &self.app;
        match self.access {
            Access::Session(_) => format!("log in again: livechat-relay auth login --app {app}"),
            Access::Token(_) => format!("install the app again in {CONSOLE} (Private installation)"),
            Access::None | Access::Personal { .. } => format!(
                "make a personal access token ({PERSONAL_ACCESS_TOKENS}), and set it with its account_id in [apps.livechat] of {app}"
            ),
        }
    }

    fn remedy(&self, kind: &Kind, error_type: &str) -> String {
        let host = self.http.host();
        match kind {
            Kind::Authentication => self.new_credential(),
            Kind::Authorization => format!(
                "the token needs the scope of this method ({}), its account the role of an administrator, and client_id has to be an app of its organization: see App Authorization in {CONSOLE}",
                if self.api == "agent" { "chats--all:ro" } else { "webhooks.configuration:rw, webhooks.state:rw" }
            ),
            Kind::Validation if error_type == "already_exists" => "see `livechat-relay webhooks list`".to_owned(),
            Kind::Validation => format!(
                "correct the member that it names in [apps.livechat]; `livechat-relay webhooks names` says what version {} takes",
                self.version
            ),
            Kind::Version => {
                format!("LiveChat does not offer version {}: set api_version of the app to \"3.6\"", self.version)
            }
            Kind::NotFound => format!("look at what is there: `livechat-relay webhooks list`, or the app in {CONSOLE}"),
            Kind::LimitReached => format!(
                "LiveChat takes 3 webhooks for one action: remove one, by `livechat-relay webhooks unregister` or in Chat Webhooks of the app in {CONSOLE}"
            ),
            Kind::LicenseExpired => "renew the subscription of LiveChat's account: see Billing in LiveChat".to_owned(),
            Kind::Region(_) => "LiveChat sends the call from one region to another: try again later".to_owned(),
            Kind::TooManyRequests => "wait some minutes: LiveChat unblocks by itself".to_owned(),
            Kind::Unavailable => "LiveChat has trouble: try again later".to_owned(),
            Kind::Unintelligible => self.http.other_server(),
            Kind::Local => format!("check [livechat], and the way to {host}"),
        }
    }
}

/// LiveChat's own types; what it does not document is sorted by the status.
fn kind(error_type: &str, region: Option<&str>, status: StatusCode) -> Kind {
    match error_type {
        "authentication" => Kind::Authentication,
        "authorization" | "missing_access" | "not_allowed" | "requester_suspended" | "requester_awaiting_approval" => {
            Kind::Authorization
        }
        "unsupported_version" => Kind::Version,
        "not_found" | "license_not_found" | "group_not_found" => Kind::NotFound,
        "limit_reached" => Kind::LimitReached,
        "license_expired" | "seats_limit_exceeded" | "wrong_product_version" => Kind::LicenseExpired,
        "too_many_requests" => Kind::TooManyRequests,
        "internal" | "request_timeout" | "service_unavailable" => Kind::Unavailable,
        // Another name could end the header, or be a host's.
        "misdirected_request" => match region.filter(|name| is_region(name)) {
            Some(region) => Kind::Region(region.to_owned()),
            None => Kind::Unintelligible,
        },
        "validation" | "already_exists" => Kind::Validation,
        _ if status == StatusCode::TOO_MANY_REQUESTS => Kind::TooManyRequests,
        _ if status.is_server_error() => Kind::Unavailable,
        _ => Kind::Validation,
    }
}

fn is_region(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=32).contains(&name.len()) && name.bytes().all(legal)
}

/// The refresh of a token failed: the call itself was not sent.
fn unsent(failed: FailedAttempt) -> FailedAttempt {
    FailedAttempt { may_be_done: false, ..failed }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
