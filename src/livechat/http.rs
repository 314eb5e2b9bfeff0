//! HTTPS to LiveChat: one address, the roots of the configuration, no redirects, a limit for each answer and each wait, and pauses
//! between tries.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use uuid::Uuid;

use super::{Config, Failure, Kind};

/// A listing of 3 registrations of each action has about 60 kB.
pub const ANSWER_BYTES_MAX: usize = 2 << 20;

/// A page of `list_archives` may have 100 whole threads.
pub const ARCHIVE_BYTES_MAX: usize = 32 << 20;

/// Of LiveChat's texts so much is shown.
const SHOWN_CHARS_MAX: usize = 300;

pub const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// A client for one of LiveChat's two addresses.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    base: Url,
    attempts_max: u32,
    retry_min: Duration,
    retry_max: Duration,
    retry_after_max: Duration,
}

/// The whole of it, whatever its status.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// A try that did not succeed, and what decides whether there is another one.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct FailedAttempt {
    pub failure: Failure,
    /// Whether LiveChat may have done what it was asked for.
    pub may_be_done: bool,
    /// `error.type` of the Web APIs, `error` of accounts; in lower case.
    pub error: Option<String>,
    pub retry_after: Option<Duration>,
    pub is_too_large: bool,
}

impl FailedAttempt {
    /// One that LiveChat has refused, or that never reached it.
    pub fn undone(kind: Kind, what: String, remedy: impl Into<String>) -> Self {
        let failure = Failure { kind, what, remedy: remedy.into() };
        Self { failure, may_be_done: false, error: None, retry_after: None, is_too_large: false }
    }

    /// One of which it is not known.
    pub fn unclear(kind: Kind, what: String, remedy: impl Into<String>) -> Self {
        Self { may_be_done: true, ..Self::undone(kind, what, remedy) }
    }
}

impl From<FailedAttempt> for Failure {
    fn from(failed: FailedAttempt) -> Self {
        failed.failure
    }
}

impl Http {
    /// For `base`, which is the value of `livechat.<key>`.
    ///
    /// # Errors
    /// [`Kind::Local`]: it is no address, or one to which tokens would travel readable.
    pub fn new(config: &Config, key: &str, base: &str) -> Result<Self, Failure> {
        let wrong = |why: String| {
            let remedy = format!("set livechat.{key} to an https:// address without a path");
            Failure { kind: Kind::Local, what: format!("livechat.{key} = \"{base}\": {why}"), remedy }
        };
        let base = Url::parse(base).map_err(|e| wrong(format!("is no address: {e}")))?;
        let mut client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(config.roots.as_ref()))
            .redirect(redirect::Policy::none())
            .timeout(config.timeout)
            .user_agent(USER_AGENT);
        match base.scheme() {
            "https" => {}
            // A proxy of the environment would get the tokens.
            "http" if is_loopback(&base) => client = client.no_proxy(),
            "http" => return Err(wrong("http:// shows the tokens to everyone on the way".to_owned())),
            other => return Err(wrong(format!("{other}: is not https:"))),
        }
        let client = client.build().map_err(|e| wrong(causes(&e)))?;
        let Config { attempts_max, retry_min, retry_max, retry_after_max, .. } = *config;
        Ok(Self { client, base, attempts_max, retry_min, retry_max, retry_after_max })
    }

    pub fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// Sends, and reads at most `bytes_max` of the answer. `name` is what texts call the request.
    ///
    /// # Errors
    /// There is no answer that can be read, or it is a redirect.
    pub async fn send(&self, name: &str, request: RequestBuilder, bytes_max: usize) -> Result<Answer, FailedAttempt> {
        let response = request.send().await.map_err(|e| self.unanswered(name, e))?;
        if response.status().is_redirection() {
            let what = format!("{name}: {} answers with a redirect ({})", self.host(), response.status().as_u16());
            return Err(FailedAttempt::undone(Kind::Unintelligible, what, self.other_server()));
        }
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.body(name, response, bytes_max).await?;
        Ok(Answer { status, headers, body })
    }

    async fn body(&self, name: &str, mut response: Response, bytes_max: usize) -> Result<Vec<u8>, FailedAttempt> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unanswered(name, e))? {
            if body.len() + chunk.len() > bytes_max {
                let what = format!("{name}: {} answers with more than {} MiB", self.host(), bytes_max >> 20);
                let failed = FailedAttempt::unclear(Kind::Unintelligible, what, self.other_server());
                return Err(FailedAttempt { is_too_large: true, ..failed });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// `api.livechatinc.com`, for texts.
    pub fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    /// The remedy where another program than LiveChat answers.
    pub fn other_server(&self) -> String {
        format!(
            "something else than LiveChat answers: check the [livechat] addresses, and proxies on the way to {}",
            self.host()
        )
    }

    fn unanswered(&self, name: &str, error: reqwest::Error) -> FailedAttempt {
        let error = error.without_url();
        let what = format!(
            "{name}: {} {}",
            self.host(),
            if error.is_timeout() { "does not answer in time" } else { "gives no answer" }
        );
        let what = format!("{what}: {}", shown(&causes(&error), &[]));
        if let Some(certificate) = certificate_error(&error) {
            let what = format!("{name}: the certificate of {} is not trusted: {certificate}", self.host());
            let remedy = "a proxy that opens TLS may stand between: set livechat.ca to the certificate of its CA, or of a simulated LiveChat's";
            return FailedAttempt::undone(Kind::Unintelligible, what, remedy);
        }
        if error.is_builder() {
            let remedy = "a token or an account_id of the configuration has characters that no header takes";
            return FailedAttempt::undone(Kind::Local, format!("{name}: the request cannot be made"), remedy);
        }
        let remedy = if error.is_timeout() && !error.is_connect() {
            "try again; if that goes on, raise livechat.timeout".to_owned()
        } else {
            format!("try again; if that goes on, check that this machine reaches {}", self.host())
        };
        if error.is_connect() {
            return FailedAttempt::undone(Kind::Unavailable, what, remedy);
        }
        FailedAttempt::unclear(Kind::Unavailable, what, remedy)
    }

    /// For one call.
    pub fn retries(&self) -> Retries<'_> {
        Retries { http: self, failed: 0 }
    }

    fn pause(&self, failed: u32) -> Duration {
        let longest = self.retry_min.saturating_mul(1 << (failed - 1).min(16)).min(self.retry_max);
        longest.mul_f64(f64::midpoint(1.0, random()))
    }
}

/// How often one call was tried.
pub struct Retries<'a> {
    http: &'a Http,
    failed: u32,
}

impl Retries<'_> {
    /// Waits until the next try.
    ///
    /// # Errors
    /// There is none: it would not help, there were enough, or LiveChat wants a longer rest.
    pub async fn after(&mut self, failed: FailedAttempt) -> Result<(), FailedAttempt> {
        self.failed += 1;
        let may_pass = matches!(failed.failure.kind, Kind::Unavailable | Kind::TooManyRequests);
        if !may_pass || self.failed >= self.http.attempts_max {
            return Err(failed);
        }
        let pause = self.http.pause(self.failed).max(failed.retry_after.unwrap_or_default());
        if pause > self.http.retry_after_max.max(self.http.retry_max) {
            let mut failed = failed;
            let _ = write!(failed.failure.what, ", and wants no call for {} s", pause.as_secs()); // a String takes all
            return Err(failed);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Between 0 and 1.
fn random() -> f64 {
    f64::from(Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX)
}

fn tls(roots: Option<&Arc<RootCertStore>>) -> ClientConfig {
    let browsers = || Arc::new(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect::<RootCertStore>());
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the versions that it is built with")
        .with_root_certificates(roots.map_or_else(browsers, Arc::clone))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()]; // one call at a time needs no HTTP/2
    config
}

/// Whether it is this machine's own, where a simulated LiveChat is.
pub fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// An error of reqwest says little without its causes.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}"); // a String takes all
        }
        cause = error.source();
    }
    text
}

/// Why rustls does not trust the other side: time does not change that.
fn certificate_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(tls @ rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return Some(tls);
        }
        // What an I/O error wraps is not its source.
        let wrapped = error.downcast_ref().and_then(io::Error::get_ref);
        cause = wrapped.map_or_else(|| error.source(), |wrapped| Some(wrapped));
    }
    None
}

/// `Retry-After`: seconds, or a date.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = text.parse().ok().map(Duration::from_secs);
    let until = || Duration::try_from(rfc2822::parse(text).ok()?.timestamp().duration_since(Timestamp::now())).ok();
    seconds.or_else(until)
}

/// What LiveChat says, for people: clipped, without what a terminal acts on, and without the secrets of the request, should it repeat them.
pub fn shown(text: &str, secrets: &[&SecretString]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().map(|secret| secret.expose_secret()).filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "…");
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS_MAX).collect()
}

/// A member that is a text, and not empty.
pub fn text<'a>(object: &'a Value, member: &str) -> Option<&'a str> {
    object.get(member)?.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_random_within_their_half() {
        let [min, max] = [100, 450].map(Duration::from_millis);
        let config = Config {
            api: "https://api.livechatinc.com".to_owned(),
            accounts: String::new(),
            roots: None,
            timeout: max,
            attempts_max: 9,
            retry_min: min,
            retry_max: max,
            retry_after_max: max,
            propagation: max,
            watch: None,
            login_port: 0,
            login_timeout: max,
            apps: Vec::new(),
        };
        let http = Http::new(&config, "api", &config.api).expect("a client");
        for (failed, longest) in [(1, 100), (2, 200), (3, 400), (4, 450), (5, 450), (u32::MAX, 450)] {
            let longest = Duration::from_millis(longest);
            let pauses: Vec<_> = (0..100).map(|_| http.pause(failed)).collect();
            assert!(pauses.iter().all(|pause| (longest / 2..=longest).contains(pause)), "{failed}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{failed}: {pauses:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let of = |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("a header"))]));
        assert_eq!(of(" 5 "), Some(Duration::from_secs(5)));
        assert!(of("Sat, 28 Nov 2099 10:01:00 GMT").is_some_and(|wait| wait > Duration::from_secs(3600)));
        assert_eq!([of("Sat, 28 Nov 2020 10:01:00 GMT"), of("soon"), of("-1")], [None; 3]);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
