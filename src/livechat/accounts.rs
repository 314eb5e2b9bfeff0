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

use super::call::log_in_again;
use super::failure::{CONSOLE, Refusal};
use super::http::{ANSWER_BYTES_MAX, FailedAttempt, Http};
use super::tokens::TokenPair;
use super::{App, Config, Failure, Kind};

/// The longest code that is taken. One of LiveChat's has about 100 bytes.
const CODE_BYTES_MAX: usize = 1024;

/// LiveChat's names for a token that it does not know, or not any longer. By the status alone a proxy would say so, too.
const ENDED: [&str; 4] = ["resource_not_found", "unauthorized", "unauthorized_client", "invalid_grant"];

/// With status 422 and a request that has only a token, this says the same.
const INVALID: &str = "invalid_request";

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

impl Accounts {
    pub fn new(config: &Config) -> Self {
        Self { http: Http::new(config, &config.accounts) }
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
    /// LiveChat does not accept the code, the client or its secret, or cannot be reached.
    pub async fn exchange(
        &self,
        app: &App,
        code: &SecretString,
        redirect_uri: &str,
        verifier: Option<&SecretString>,
    ) -> Result<TokenPair, Failure> {
        let client = self.client(app).set_redirect_uri(redirect(redirect_uri)?);
        let secrets = [code].into_iter().chain(verifier).chain(&app.client_secret).collect();
        let endpoint = Endpoint { http: &self.http, app, request: TokenRequest::Exchange(redirect_uri), secrets };
        // A code that may be used up is not sent again.
        let exchanged = self.http.tried(false, async || {
            let mut request = client.exchange_code(AuthorizationCode::new(code.expose_secret().to_owned()));
            if let Some(verifier) = verifier {
                request = request.set_pkce_verifier(PkceCodeVerifier::new(verifier.expose_secret().to_owned()));
            }
            request.request_async(&endpoint).await.map_err(|error| endpoint.failed(error))
        });
        Ok(pair(app, &exchanged.await?, None))
    }

    /// New tokens for the refresh token of `pair`, by one try. For public clients that is good for once: the new pair has to be stored
    /// before it is used.
    ///
    /// # Errors
    /// LiveChat does not accept it, or cannot be reached.
    pub(super) async fn refreshed(&self, app: &App, pair: &TokenPair) -> Result<TokenPair, FailedAttempt> {
        let Some(refresh_token) = &pair.refresh_token else {
            let what = "the access token has expired, and LiveChat gave no refresh token with it".to_owned();
            return Err(FailedAttempt::undone(Kind::Authentication, what, log_in_again(&app.name)));
        };
        let client = self.client(app);
        let secrets = [refresh_token, &pair.access_token].into_iter().chain(&app.client_secret).collect();
        let endpoint = Endpoint { http: &self.http, app, request: TokenRequest::Refresh, secrets };
        let token = RefreshToken::new(refresh_token.expose_secret().to_owned());
        let response = client.exchange_refresh_token(&token).request_async(&endpoint).await;
        response.map(|response| self::pair(app, &response, Some(pair))).map_err(|error| endpoint.failed(error))
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
        let body = self.with_token(Method::GET, "/v2/info", token).await?;
        let info: Answer = serde_json::from_slice(&body).map_err(|_| self.http.unintelligible("/v2/info", ""))?;
        Ok(Info {
            client_id: info.client_id,
            organization_id: info.organization_id,
            account_id: info.account_id,
            scopes: scopes(&info.scope.unwrap_or_default()),
            expires_in: Duration::from_secs(info.expires_in),
        })
    }

    /// Ends a token, and the other one of its pair. One that LiveChat does not know has ended, where it says so by its own name for that.
    ///
    /// # Errors
    /// LiveChat cannot be reached, or does not do it: the token may still be good.
    pub async fn revoke(&self, token: &SecretString) -> Result<(), Failure> {
        match self.with_token(Method::DELETE, "/v2/token", token).await {
            Err(FailedAttempt { error: Some(name), failure, .. })
                if ENDED.contains(&&*name) || name == INVALID && failure.kind == Kind::Authentication =>
            {
                Ok(())
            }
            revoked => Ok(revoked.map(drop)?),
        }
    }

    /// A request that has nothing but the token.
    async fn with_token(&self, method: Method, path: &str, token: &SecretString) -> Result<Vec<u8>, FailedAttempt> {
        let name = format!("{method} {path}");
        let remedy = |refusal: &Refusal| match refusal.kind {
            _ if refusal.name.is_empty() => None,
            Kind::Authentication => Some("log in again: `livechat-relay auth login`".to_owned()),
            Kind::Authorization | Kind::Validation | Kind::NotFound => {
                Some("try again later; if the error comes again, log in again: `livechat-relay auth login`".to_owned())
            }
            _ => None,
        };
        let sent = self.http.tried(true, async || {
            let request = self.http.request(method.clone(), path).bearer_auth(token.expose_secret());
            let mut answer = self.http.send(&name, request, ANSWER_BYTES_MAX, &[token]).await?;
            // There is nothing else that could be invalid.
            if answer.status == StatusCode::UNPROCESSABLE_ENTITY
                && let Some(refusal) = answer.refusal.as_mut().filter(|refusal| refusal.name == INVALID)
            {
                refusal.kind = Kind::Authentication;
            }
            self.http.accepted(&name, answer, &[token], remedy)
        });
        sent.await
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
}

/// What the crate `oauth2` asks for.
enum TokenRequest<'a> {
    /// Tokens for a code that came to this address.
    Exchange(&'a str),
    Refresh,
}

/// What sends the requests that the crate `oauth2` makes.
struct Endpoint<'a> {
    http: &'a Http,
    app: &'a App,
    request: TokenRequest<'a>,
    secrets: Vec<&'a SecretString>,
}

impl Endpoint<'_> {
    const fn name(&self) -> &'static str {
        match self.request {
            TokenRequest::Exchange(_) => "exchange of the code",
            TokenRequest::Refresh => "refresh of the token",
        }
    }

    fn failed(&self, error: RequestTokenError<FailedAttempt, BasicErrorResponse>) -> FailedAttempt {
        match error {
            RequestTokenError::Request(failed) => failed,
            _ => self.http.unintelligible(self.name(), ""), // what the crate says may have a part of the answer
        }
    }

    fn remedy(&self, refusal: &Refusal) -> Option<String> {
        const CODE: &str = "a code is valid for a few minutes and can be used once: start again";
        let App { client_id, name, .. } = self.app;
        let place = format!("App Authorization of the app in {CONSOLE}");
        let secret = match &self.app.client_secret {
            Some(_) => format!("client_secret of {name} is not that of client_id {client_id}: copy both from {place}"),
            None => format!(
                "LiveChat wants the secret of a server-side app: set client_secret of {name} to that of client_id {client_id}, from {place}"
            ),
        };
        let has = |member: &str| refusal.fields.iter().any(|field| field == member);
        Some(match (&refusal.kind, &self.request) {
            (Kind::Validation, _) if has("client_secret") => secret,
            (Kind::Validation, TokenRequest::Exchange(uri)) if has("redirect_uri") => {
                format!("add {uri} to the Redirect URI whitelist in {place}")
            }
            (kind, _) if *kind == Kind::NotFound || *kind == Kind::Validation && has("client_id") => {
                format!("client_id {client_id} of {name} is not the one in {place}: copy it from there")
            }
            (Kind::Validation, _) => format!(
                "start again; if the error comes again, compare client_id {client_id} of {name}, its secret and the Redirect URI whitelist with {place}"
            ),
            (Kind::Authorization, _) => {
                format!("add the scopes in {place}, and log in with an account that is an administrator")
            }
            // RFC 6749: it is the client that is wrong. The browser was let in with this Client ID, so it is its secret.
            (Kind::Authentication, _) if refusal.name == "invalid_client" => secret,
            (Kind::Authentication, TokenRequest::Refresh) => log_in_again(name),
            // And here it is the code.
            (Kind::Authentication, _) if refusal.name == "invalid_grant" => CODE.to_owned(),
            (Kind::Authentication, _) => format!("{CODE}; if the error comes again, {secret}"),
            _ => return None,
        })
    }
}

impl<'c> AsyncHttpClient<'c> for Endpoint<'_> {
    type Error = FailedAttempt;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FailedAttempt>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        let (parts, body) = request.into_parts();
        let request = self.http.request(parts.method, parts.uri.path()).headers(parts.headers).body(body);
        Box::pin(async {
            let answer = self.http.send(self.name(), request, ANSWER_BYTES_MAX, &self.secrets).await?;
            let body = self.http.accepted(self.name(), answer, &self.secrets, |refusal| self.remedy(refusal))?;
            Ok(HttpResponse::new(body)) // without its headers: the type of the content is known by reading it
        })
    }
}

fn redirect(uri: &str) -> Result<RedirectUrl, Failure> {
    RedirectUrl::new(uri.to_owned()).map_err(|error| Failure {
        kind: Kind::Local,
        what: format!("the redirect URI {uri} is no address: {error}"),
        remedy: "correct public_url of the app".to_owned(),
    })
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
