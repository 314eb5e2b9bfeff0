//! HTTPS to LiveChat: no redirects, a limit for each answer and each wait, pauses between tries, what a refusal means, and a line of the
//! log for each request.

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
use secrecy::SecretString;
use tokio::time::Instant;
use uuid::Uuid;

use super::failure::{Refusal, shown};
use super::{Config, Failure, Kind};

/// A listing of 3 registrations of each action has about 60 kB.
pub const ANSWER_BYTES_MAX: usize = 2 << 20;

/// A page of `list_archives` may have 100 whole threads.
pub const ARCHIVE_BYTES_MAX: usize = 32 << 20;

pub const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Servers close a connection that is idle for a minute or more; a request that meets this has an unclear outcome.
const IDLE_MAX: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// Until when the answer of the calls is awaited.
    static DEADLINE: Instant;
}

/// Calls whose answer is awaited until then. A pause that would end later is not begun: the failure before it is the answer, at once.
pub async fn awaited_until<T>(deadline: Instant, calls: impl Future<Output = T>) -> T {
    DEADLINE.scope(deadline, calls).await
}

/// One of LiveChat's two addresses, and a client for it. Its clones share their connections.
#[derive(Clone, Debug)]
pub struct Server {
    base: Url,
    client: reqwest::Client,
}

impl Server {
    /// An address that tokens may be sent to: https, or plain HTTP on this machine, where a simulated LiveChat is; without a path.
    pub fn address(text: &str) -> Option<Url> {
        let url = Url::parse(text).ok()?;
        let is_bare =
            url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        (is_bare && (url.scheme() == "https" || url.scheme() == "http" && is_loopback(&url))).then_some(url)
    }

    /// For what [`Self::address`] takes. `roots`: instead of those that browsers have.
    pub fn new(base: Url, roots: Option<&Arc<RootCertStore>>) -> Self {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(roots))
            .redirect(redirect::Policy::none())
            .pool_idle_timeout(IDLE_MAX)
            .user_agent(USER_AGENT);
        // A proxy of the environment would get the tokens.
        let client = if base.scheme() == "http" { client.no_proxy() } else { client };
        Self { base, client: client.build().expect("the TLS is rustls, and the user agent is a header") }
    }

    /// `https://api.livechatinc.com`.
    pub fn origin(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Whether LiveChat is simulated on this machine.
    pub fn is_local(&self) -> bool {
        is_loopback(&self.base)
    }
}

/// Calls of one of LiveChat's two addresses, by the limits of the configuration.
#[derive(Clone, Debug)]
pub struct Http {
    server: Server,
    timeout: Duration,
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
    /// Why it is none that was asked for.
    pub refusal: Option<Refusal>,
}

/// A try that did not succeed, and what decides whether there is another one.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct FailedAttempt {
    pub failure: Failure,
    /// Whether LiveChat may have done what it was asked for.
    pub may_be_done: bool,
    /// LiveChat's name for it: `error.type` of the Web APIs, `error` of accounts; in lower case.
    pub error: Option<String>,
    pub retry_after: Option<Duration>,
    pub is_too_large: bool,
}

impl FailedAttempt {
    /// One that LiveChat has refused, or that never reached it.
    pub fn undone(kind: Kind, what: String, remedy: impl Into<String>) -> Self {
        Failure { kind, what, remedy: remedy.into() }.into()
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

/// What has failed here was not sent.
impl From<Failure> for FailedAttempt {
    fn from(failure: Failure) -> Self {
        Self { failure, may_be_done: false, error: None, retry_after: None, is_too_large: false }
    }
}

impl Http {
    pub fn new(config: &Config, server: &Server) -> Self {
        let Config { timeout, attempts_max, retry_min, retry_max, retry_after_max, .. } = *config;
        Self { server: server.clone(), timeout, attempts_max, retry_min, retry_max, retry_after_max }
    }

    pub fn url(&self, path: &str) -> Url {
        let mut url = self.server.base.clone();
        url.set_path(path);
        url
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.server.client.request(method, self.url(path)).timeout(self.timeout)
    }

    /// Sends, and reads at most `bytes_max` of the answer. `name` is what texts call the request; they have none of its `secrets`.
    ///
    /// # Errors
    /// There is no answer that can be read, or it is a redirect.
    pub async fn send(
        &self,
        name: &str,
        request: RequestBuilder,
        bytes_max: usize,
        secrets: &[&SecretString],
    ) -> Result<Answer, FailedAttempt> {
        let request = request.build().map_err(|_| {
            let remedy =
                "a token or an account_id of the configuration has characters that are not allowed in a header";
            FailedAttempt::undone(Kind::Local, format!("{name}: the request cannot be made"), remedy)
        })?;
        let (method, path, began) = (request.method().clone(), request.url().path().to_owned(), Instant::now());
        let answered = self.answer(name, request, bytes_max).await;
        let ms = began.elapsed().as_millis() as u64;
        // What a person may send to others: neither a body, nor a query, nor a header but this one.
        match &answered {
            Ok(Answer { status, headers, refusal, .. }) => {
                let status = status.as_u16();
                let error = refusal.as_ref().map(|refusal| shown(&refusal.name, secrets));
                let request_id =
                    headers.get("x-request-id").and_then(|id| id.to_str().ok()).map(|id| shown(id, secrets));
                tracing::debug!(%method, path, status, error, request_id, ms, "LiveChat has answered");
            }
            Err(failed) => tracing::debug!(%method, path, error = failed.failure.what, ms, "LiveChat has not answered"),
        }
        answered
    }

    async fn answer(&self, name: &str, request: reqwest::Request, bytes_max: usize) -> Result<Answer, FailedAttempt> {
        let response = self.server.client.execute(request).await.map_err(|e| self.unanswered(name, e))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status.is_redirection() {
            let what = format!("{name}: {} answers with a redirect ({})", self.host(), status.as_u16());
            return Err(FailedAttempt::undone(Kind::Unintelligible, what, self.other_server()));
        }
        let body = self.body(name, response, bytes_max).await?;
        Ok(Answer { refusal: Refusal::read(status, &body), status, headers, body })
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

    /// The body of an answer that is no refusal. `remedy` is what helps against those that only the caller understands.
    ///
    /// # Errors
    /// LiveChat refuses, or what answers is not LiveChat.
    pub fn accepted(
        &self,
        name: &str,
        answer: Answer,
        secrets: &[&SecretString],
        remedy: impl Fn(&Refusal) -> Option<String>,
    ) -> Result<Vec<u8>, FailedAttempt> {
        let Some(refusal) = answer.refusal else { return Ok(answer.body) };
        let what = if refusal.name.is_empty() {
            format!("{name}: {} answers {} without LiveChat's JSON", self.host(), answer.status.as_u16())
        } else {
            format!("{name}: LiveChat says \"{}\" ({})", shown(&refusal.said, secrets), shown(&refusal.name, secrets))
        };
        let remedy = remedy(&refusal).or_else(|| refusal.kind.remedy()).unwrap_or_else(|| self.other_server());
        Err(FailedAttempt {
            // What was refused was not carried out; of failures it is not known.
            may_be_done: refusal.kind == Kind::Unavailable || refusal.name == "already_exists",
            error: (!refusal.name.is_empty()).then_some(refusal.name),
            retry_after: retry_after(&answer.headers),
            ..FailedAttempt::undone(refusal.kind, what, remedy)
        })
    }

    /// An answer that is no refusal, and not what was asked for either.
    pub fn unintelligible(&self, name: &str, detail: &str) -> FailedAttempt {
        let what = format!("{name}: the answer of {} has an unexpected form{detail}", self.host());
        FailedAttempt::unclear(Kind::Unintelligible, what, self.other_server())
    }

    /// `api.livechatinc.com`, for texts.
    fn host(&self) -> &str {
        self.server.base.host_str().unwrap_or_default()
    }

    /// The remedy where another program than LiveChat answers.
    fn other_server(&self) -> String {
        format!(
            "what answers is not LiveChat: check the addresses in [livechat], and proxies on the way to {}",
            self.host()
        )
    }

    fn unanswered(&self, name: &str, error: reqwest::Error) -> FailedAttempt {
        let error = error.without_url();
        if let Some(certificate) = certificate_error(&error) {
            let what = format!("{name}: the certificate of {} is not trusted: {certificate}", self.host());
            let remedy =
                "a proxy may intercept TLS: set livechat.ca to the certificate of its CA, or of a simulated LiveChat's";
            return FailedAttempt::undone(Kind::Unintelligible, what, remedy);
        }
        let why = if error.is_timeout() { "does not answer in time" } else { "gives no answer" };
        let what = format!("{name}: {} {why}: {}", self.host(), shown(&causes(&error), &[]));
        if error.is_connect() {
            let remedy = format!("try again; if that goes on, check that this machine reaches {}", self.host());
            return FailedAttempt::undone(Kind::Unavailable, what, remedy);
        }
        let remedy = if error.is_timeout() {
            "try again; if that goes on, raise livechat.timeout".to_owned()
        } else {
            format!("try again; if that goes on, check that this machine reaches {}", self.host())
        };
        FailedAttempt::unclear(Kind::Unavailable, what, remedy)
    }

    /// Tries until one try succeeds. `is_repeatable`: also after one whose outcome is not known.
    ///
    /// # Errors
    /// The last try's: another one would not help, there were enough, LiveChat wants a longer rest, or the next try would be too late for
    /// who waits ([`awaited_until`]).
    pub async fn tried<T, F: Future<Output = Result<T, FailedAttempt>>>(
        &self,
        is_repeatable: bool,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, FailedAttempt> {
        let mut failures = 0;
        loop {
            let mut failed = match attempt().await {
                Err(failed) => failed,
                done => return done,
            };
            failures += 1;
            let may_pass = matches!(failed.failure.kind, Kind::Unavailable | Kind::TooManyRequests);
            if !may_pass || failures >= self.attempts_max || failed.may_be_done && !is_repeatable {
                return Err(failed);
            }
            let wanted = failed.retry_after.unwrap_or_default();
            let pause = self.pause(failures).max(wanted);
            let is_too_late = DEADLINE.try_with(|deadline| Instant::now() + pause >= *deadline).unwrap_or(false);
            if is_too_late || pause > self.retry_after_max.max(self.retry_max) {
                if pause == wanted {
                    let _ = write!(failed.failure.what, ", and asks for a pause of {} s", wanted.as_secs()); // a String takes all
                }
                return Err(failed);
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn pause(&self, failed: u32) -> Duration {
        let longest = self.retry_min.saturating_mul(1 << (failed - 1).min(16)).min(self.retry_max);
        longest.mul_f64(f64::midpoint(1.0, random()))
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
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = text.parse().ok().map(Duration::from_secs);
    let until = || Duration::try_from(rfc2822::parse(text).ok()?.timestamp().duration_since(Timestamp::now())).ok();
    seconds.or_else(until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_random_within_their_half() {
        let [min, max] = [100, 450].map(Duration::from_millis);
        let config = Config { retry_min: min, retry_max: max, ..Config::of("http://localhost:1") };
        let http = Http::new(&config, &config.api);
        for (failed, longest) in [(1, 100), (2, 200), (3, 400), (4, 450), (5, 450), (u32::MAX, 450)] {
            let longest = Duration::from_millis(longest);
            let pauses: Vec<_> = (0..100).map(|_| http.pause(failed)).collect();
            assert!(pauses.iter().all(|pause| (longest / 2..=longest).contains(pause)), "{failed}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{failed}: {pauses:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_ends_too_late_for_who_waits_is_not_begun() {
        let seconds = Duration::from_secs;
        let times = Config { attempts_max: 3, retry_after_max: seconds(60), ..Config::of("http://localhost:1") };
        let config = Config { retry_min: seconds(1), retry_max: seconds(1), ..times };
        let http = Http::new(&config, &config.api);
        for (retry_after, deadline, tries, what) in [
            (Some(30), Some(5), 1, "busy, and asks for a pause of 30 s"),
            (Some(2), Some(5), 3, "busy"),
            (Some(2), Some(3), 2, "busy, and asks for a pause of 2 s"),
            (None, Some(0), 1, "busy"),
            (Some(30), None, 3, "busy"),
        ] {
            let (mut tried, began) = (0, Instant::now());
            let calls = http.tried(true, || {
                tried += 1;
                let failed = FailedAttempt::undone(Kind::TooManyRequests, "busy".to_owned(), "");
                async move { Err::<(), _>(FailedAttempt { retry_after: retry_after.map(seconds), ..failed }) }
            });
            let failed = match deadline {
                Some(deadline) => awaited_until(began + seconds(deadline), calls).await,
                None => calls.await,
            };
            assert_eq!(failed.expect_err("it fails").failure.what, what, "{retry_after:?} {deadline:?}");
            assert_eq!(tried, tries, "{retry_after:?} {deadline:?}");
            assert!(deadline.is_none_or(|deadline| began.elapsed() <= seconds(deadline)));
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
