//! accounts.livechat.com: a login with a code and PKCE, the tokens that come of it, what they may do, and their end.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    AsyncHttpClient, AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken, EndpointNotSet,
    EndpointSet, ExtraTokenFields, HttpRequest, HttpResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl,
    RefreshToken, RequestTokenError, StandardRevocableToken, StandardTokenResponse, TokenResponse as _, TokenUrl,
};
use percent_encoding::percent_decode_str;
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::call::CONSOLE;
use super::http::{ANSWER_BYTES_MAX, Answer, FailedAttempt, Http, retry_after, shown, text};
use super::tokens::TokenPair;
use super::{App, Config, Failure, Kind};

/// The longest code that is taken. One of LiveChat's has about 100 bytes.
const CODE_BYTES_MAX: usize = 1024;

/// LiveChat's accounts.
#[derive(Clone, Debug)]
pub struct Accounts {
    http: Http,
}

/// A login that a browser is to be sent to.
#[derive(Debug)]
pub struct Login {
    pub url: Url,
    /// Comes back with the code. Another one is another's login.
    pub state: SecretString,
    /// For [`Accounts::exchange`].
    pub verifier: SecretString,
}

/// What LiveChat says of an access token.
#[derive(Clone, Debug)]
pub struct Info {
    pub client_id: String,
    pub organization_id: String,
    pub account_id: String,
    pub scopes: BTreeSet<String>,
    pub expires_in: Duration,
}

/// What LiveChat adds to the members of RFC 6749.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Extra {
    account_id: Option<String>,
    organization_id: Option<String>,
}

impl ExtraTokenFields for Extra {}

type Response = StandardTokenResponse<Extra, BasicTokenType>;

type Client = oauth2::Client<
    BasicErrorResponse,
    Response,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// What a request is for: the same refusal has several remedies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Exchange,
    Refresh,
    Info,
    Revoke,
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Exchange => "exchange of the code",
            Self::Refresh => "refresh of the token",
            Self::Info => "token info",
            Self::Revoke => "revocation",
        }
    }

    const fn is_token_alone(self) -> bool {
        matches!(self, Self::Info | Self::Revoke)
    }
}

impl Accounts {
    /// # Errors
    /// `livechat.accounts` is no address that may be used.
    pub fn new(config: &Config) -> Result<Self, Failure> {
        Ok(Self { http: Http::new(config, "accounts", &config.accounts)? })
    }

    /// A login whose code comes to `redirect_uri`, with a state and a PKCE verifier of its own.
    ///
    /// # Errors
    /// `redirect_uri` is no address.
    pub fn login(&self, app: &App, redirect_uri: &str) -> Result<Login, Failure> {
        let client = self.client(app).set_redirect_uri(redirect(redirect_uri)?);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (url, state) = client.authorize_url(CsrfToken::new_random).set_pkce_challenge(challenge).url();
        Ok(Login { url, state: state.into_secret().into(), verifier: verifier.into_secret().into() })
    }

    /// Tokens for a [`code`], which is good for once. `redirect_uri` is that of the login; a direct installation has no verifier.
    ///
    /// # Errors
    /// LiveChat does not take the code, the client or its secret, or cannot be reached.
    pub async fn exchange(
        &self,
        app: &App,
        code: &SecretString,
        redirect_uri: &str,
        verifier: Option<&SecretString>,
    ) -> Result<TokenPair, Failure> {
        let client = self.client(app).set_redirect_uri(redirect(redirect_uri)?);
        let mut retries = self.http.retries();
        loop {
            let mut request = client.exchange_code(AuthorizationCode::new(code.expose_secret().to_owned()));
            if let Some(verifier) = verifier {
                request = request.set_pkce_verifier(PkceCodeVerifier::new(verifier.expose_secret().to_owned()));
            }
            let secrets = [code].into_iter().chain(verifier).chain(&app.client_secret).collect();
            let endpoint = Endpoint { accounts: self, purpose: Purpose::Exchange, secrets };
            match request.request_async(&endpoint).await {
                Ok(response) => return Ok(pair(app, &response, None)),
                Err(error) => match self.failed(Purpose::Exchange, error) {
                    failed if failed.may_be_done => return Err(failed.into()), // the code may be used up
                    failed => retries.after(failed).await?,
                },
            }
        }
    }

    /// New tokens for the refresh token of `pair`, by one try. For public clients that is good for once: the new pair has to be stored
    /// before it is used.
    ///
    /// # Errors
    /// LiveChat does not take it, or cannot be reached.
    pub(super) async fn refreshed(&self, app: &App, pair: &TokenPair) -> Result<TokenPair, FailedAttempt> {
        let Some(refresh_token) = &pair.refresh_token else {
            let what = "the access token has ended, and LiveChat gave no refresh token with it".to_owned();
            return Err(FailedAttempt::undone(Kind::Authentication, what, log_in(app)));
        };
        let client = self.client(app);
        let secrets = [refresh_token, &pair.access_token].into_iter().chain(&app.client_secret).collect();
        let endpoint = Endpoint { accounts: self, purpose: Purpose::Refresh, secrets };
        let token = RefreshToken::new(refresh_token.expose_secret().to_owned());
        let response = client.exchange_refresh_token(&token).request_async(&endpoint).await;
        match response {
            Ok(response) => Ok(self::pair(app, &response, Some(pair))),
            Err(error) => {
                let mut failed = self.failed(Purpose::Refresh, error);
                if failed.failure.kind == Kind::Authentication {
                    failed.failure.remedy = log_in(app);
                }
                Err(failed)
            }
        }
    }

    /// What an access token may do, and for whom. Not billed.
    ///
    /// # Errors
    /// [`Kind::Authentication`]: LiveChat does not know it, or not any longer.
    pub async fn info(&self, token: &SecretString) -> Result<Info, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            client_id: String,
            organization_id: String,
            account_id: String,
            #[serde(default)]
            scope: Option<String>,
            expires_in: u64,
        }
        let mut retries = self.http.retries();
        loop {
            match self.bearer(Method::GET, "/v2/info", Purpose::Info, token).await {
                Ok(answer) => {
                    let info: Answer =
                        serde_json::from_slice(&answer.body).map_err(|_| self.unintelligible(Purpose::Info))?;
                    return Ok(Info {
                        client_id: info.client_id,
                        organization_id: info.organization_id,
                        account_id: info.account_id,
                        scopes: scopes(&info.scope.unwrap_or_default()),
                        expires_in: Duration::from_secs(info.expires_in),
                    });
                }
                Err(failed) => retries.after(failed).await?,
            }
        }
    }

    /// Ends a token, and the other one of its pair. One that LiveChat does not know has ended.
    ///
    /// # Errors
    /// LiveChat cannot be reached: the token may still be good.
    pub async fn revoke(&self, token: &SecretString) -> Result<(), Failure> {
        let mut retries = self.http.retries();
        loop {
            match self.bearer(Method::DELETE, "/v2/token", Purpose::Revoke, token).await {
                Ok(_) => return Ok(()),
                Err(failed) if matches!(failed.failure.kind, Kind::NotFound | Kind::Authentication) => return Ok(()),
                Err(failed) => retries.after(failed).await?,
            }
        }
    }

    fn client(&self, app: &App) -> Client {
        let client = oauth2::Client::new(ClientId::new(app.client_id.clone()))
            .set_auth_uri(AuthUrl::from_url(self.http.url("/")))
            .set_token_uri(TokenUrl::from_url(self.http.url("/v2/token")))
            .set_auth_type(AuthType::RequestBody);
        match &app.client_secret {
            Some(secret) => client.set_client_secret(ClientSecret::new(secret.expose_secret().to_owned())),
            None => client,
        }
    }

    async fn bearer(
        &self,
        method: Method,
        path: &str,
        purpose: Purpose,
        token: &SecretString,
    ) -> Result<Answer, FailedAttempt> {
        let request = self.http.request(method, path).bearer_auth(token.expose_secret());
        self.answer(request, purpose, &[token]).await
    }

    async fn answer(
        &self,
        request: reqwest::RequestBuilder,
        purpose: Purpose,
        secrets: &[&SecretString],
    ) -> Result<Answer, FailedAttempt> {
        let answer = self.http.send(purpose.name(), request, ANSWER_BYTES_MAX).await?;
        self.refusal(purpose, &answer, secrets).map_or(Ok(answer), Err)
    }

    fn failed(&self, purpose: Purpose, error: RequestTokenError<FailedAttempt, BasicErrorResponse>) -> FailedAttempt {
        match error {
            RequestTokenError::Request(failed) => failed,
            _ => self.unintelligible(purpose), // what the crate says may have a part of the answer
        }
    }

    fn unintelligible(&self, purpose: Purpose) -> FailedAttempt {
        let what = format!("{}: the answer of {} is not what it should be", purpose.name(), self.http.host());
        FailedAttempt::unclear(Kind::Unintelligible, what, self.http.other_server())
    }

    /// Why the answer is none that was asked for, in either of LiveChat's shapes.
    fn refusal(&self, purpose: Purpose, answer: &Answer, secrets: &[&SecretString]) -> Option<FailedAttempt> {
        let (status, name) = (answer.status, purpose.name());
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let error = text(&body, "error").or_else(|| text(&body, "oauth_exception"));
        if error.is_none() && status.is_success() {
            return None;
        }
        let error = error.map(str::to_ascii_lowercase);
        let kind = match kind(error.as_deref(), status) {
            // These requests have no members: nothing but the token can be wrong.
            Kind::Validation if purpose.is_token_alone() && status == StatusCode::UNPROCESSABLE_ENTITY => {
                Kind::Authentication
            }
            kind => kind,
        };
        let what = match &error {
            None => format!("{name}: {} answers {} without LiveChat's JSON", self.http.host(), status.as_u16()),
            Some(error) => {
                let said = text(&body, "error_description").or_else(|| text(&body, "exception_description"));
                let fields = body.get("invalid_fields").and_then(Value::as_object);
                let fields: Vec<_> = fields.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                let said = format!("{} {}", said.unwrap_or_default(), fields.join(", "));
                format!("{name}: LiveChat says \"{}\" ({})", shown(said.trim(), secrets), shown(error, secrets))
            }
        };
        let may_be_done = kind == Kind::Unavailable;
        let failed = FailedAttempt::undone(kind, what, String::new());
        let remedy = self.remedy(purpose, &failed.failure.kind);
        let failure = Failure { remedy, ..failed.failure };
        Some(FailedAttempt { failure, may_be_done, error, retry_after: retry_after(&answer.headers), ..failed })
    }

    fn remedy(&self, purpose: Purpose, kind: &Kind) -> String {
        let authorization = format!("App Authorization of the app in {CONSOLE}");
        match (kind, purpose) {
            (Kind::Authentication, Purpose::Exchange) => format!(
                "a code is good for some minutes and for once: begin again; if that goes on, compare client_id and client_secret with {authorization}, and look whether the redirect URI is in its whitelist"
            ),
            (Kind::Authentication, _) => "log in again: livechat-relay auth login".to_owned(),
            (Kind::Authorization, _) => {
                format!("add the scopes in {authorization}, and log in with an account that is an administrator")
            }
            (Kind::Validation, _) => format!("compare client_id and client_secret with {authorization}"),
            (Kind::TooManyRequests, _) => "wait some minutes: LiveChat unblocks by itself".to_owned(),
            (Kind::Unavailable, _) => "LiveChat has trouble: try again later".to_owned(),
            (Kind::NotFound, _) => format!("compare client_id with {authorization}"),
            _ => self.http.other_server(),
        }
    }
}

/// What sends the requests that the `oauth2` crate makes.
struct Endpoint<'a> {
    accounts: &'a Accounts,
    purpose: Purpose,
    secrets: Vec<&'a SecretString>,
}

impl<'c> AsyncHttpClient<'c> for Endpoint<'_> {
    type Error = FailedAttempt;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FailedAttempt>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        let (parts, body) = request.into_parts();
        let request = self.accounts.http.request(parts.method, parts.uri.path()).headers(parts.headers).body(body);
        Box::pin(async {
            let answer = self.accounts.answer(request, self.purpose, &self.secrets).await?;
            Ok(HttpResponse::new(answer.body)) // without its headers: the type of the content is known by reading it
        })
    }
}

/// By `error`; by the status only where there is none, or one that is not documented.
fn kind(error: Option<&str>, status: StatusCode) -> Kind {
    match error {
        Some("access_denied" | "invalid_scope") => Kind::Authorization,
        Some("unauthorized" | "unauthorized_client" | "invalid_client" | "invalid_grant" | "missing_grant") => {
            Kind::Authentication
        }
        Some("temporarily_unavailable" | "traffic_blocked") => Kind::TooManyRequests,
        Some("server_error") => Kind::Unavailable,
        Some("resource_not_found" | "client_id_not_found") => Kind::NotFound,
        Some(
            "bad_request" | "invalid_request" | "unsupported_grant_type" | "unsupported_response_type" | "conflict",
        ) => Kind::Validation,
        _ if status == StatusCode::UNAUTHORIZED => Kind::Authentication,
        _ if status == StatusCode::TOO_MANY_REQUESTS => Kind::TooManyRequests,
        _ if status == StatusCode::REQUEST_TIMEOUT || status.is_server_error() => Kind::Unavailable,
        Some(_) => Kind::Validation,
        None => Kind::Unintelligible,
    }
}

fn redirect(uri: &str) -> Result<RedirectUrl, Failure> {
    RedirectUrl::new(uri.to_owned()).map_err(|error| Failure {
        kind: Kind::Local,
        what: format!("the redirect URI {uri} is no address: {error}"),
        remedy: "correct public_url of the app".to_owned(),
    })
}

fn log_in(app: &App) -> String {
    format!("log in again: livechat-relay auth login --app {}", app.name)
}

/// A code as LiveChat's token endpoint wants it: visible ASCII. Some of LiveChat's own programs meet codes that are encoded twice; as no
/// code has a `%` in it, it is decoded once more where there is one.
pub fn code(text: &str) -> Option<SecretString> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    let is_code = |byte: u8| byte.is_ascii_graphic() && byte != b'%';
    let is_code = (1..=CODE_BYTES_MAX).contains(&decoded.len()) && decoded.bytes().all(is_code);
    is_code.then(|| decoded.into_owned().into())
}

/// LiveChat separates scopes by commas; RFC 6749 by blanks.
fn scopes(text: &str) -> BTreeSet<String> {
    text.split([',', ' ']).filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
}

/// Whether who has the scope `have` has `needed`, too: writing is reading, `all` is `access`, and that is `my`. A scope without a level has
/// none of them.
pub fn covers(have: &str, needed: &str) -> bool {
    fn parts(scope: &str) -> Option<(&str, Option<usize>, usize)> {
        let (names, right) = scope.rsplit_once(':')?;
        let place = |known: &[&str], name| known.iter().position(|known| *known == name);
        let right = place(&["ro", "rw"], right)?;
        Some(match names.split_once("--") {
            Some((resource, level)) => (resource, Some(place(&["my", "access", "all"], level)?), right),
            None => (names, None, right),
        })
    }
    match (parts(have), parts(needed)) {
        (Some(have), Some(needed)) => {
            have.0 == needed.0 && have.1.is_some() == needed.1.is_some() && have.1 >= needed.1 && have.2 >= needed.2
        }
        _ => have == needed,
    }
}

/// What LiveChat leaves out of a refresh stays as it was.
fn pair(app: &App, response: &Response, old: Option<&TokenPair>) -> TokenPair {
    let extra = response.extra_fields();
    let or_old = |new: &Option<String>, old: Option<&String>| new.as_ref().or(old).cloned().unwrap_or_default();
    let given = response.scopes().map(|given| given.iter().flat_map(|scope| scopes(scope)).collect());
    let lasts = response.expires_in().and_then(|lasts| SignedDuration::try_from(lasts).ok());
    let refresh_token = response.refresh_token().map(|token| token.secret().clone().into());
    TokenPair {
        client_id: app.client_id.clone(),
        access_token: response.access_token().secret().clone().into(),
        refresh_token: refresh_token.or_else(|| old?.refresh_token.clone()),
        account_id: or_old(&extra.account_id, old.map(|old| &old.account_id)),
        organization_id: or_old(&extra.organization_id, old.map(|old| &old.organization_id)),
        scopes: given.or_else(|| Some(old?.scopes.clone())).unwrap_or_default(),
        expires_at: lasts.and_then(|lasts| Timestamp::now().checked_add(lasts).ok()),
    }
}
