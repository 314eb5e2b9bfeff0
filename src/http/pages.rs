//! Pages for people, on the webhook listener: which request is for which page of which app, how often LiveChat is called for strangers, and
//! the headers that every answer has.
//!
//! A page holds no room of webhooks and no place of theirs: its connection is the first to be evicted, it ends with the answer, and what waits
//! for LiveChat is bounded here.

mod cache;
mod codes;
mod gate;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use secrecy::SecretString;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::app_page;
use super::refusals::Place;
use super::webhook::{Live, Reply, Sender, Webhooks, is_json};
use super::{Answer, Exchange, bearer, install};
use crate::budget::Budget;
use crate::livechat::{self, Accounts, App, Failure, Kind};
use crate::metrics::Metrics;
use crate::outcome::{PageEnd, Refusal};
use crate::relay::Relay;
use crate::telemetry::Throttles;
pub(super) use cache::Cache;
pub(super) use codes::{Claim, Codes, Digest, Seen, digest};
pub(super) use gate::{Gate, Paid};

/// When it is worth to come back, where LiveChat, Kafka or too many others are the reason.
const RETRY_AFTER_SECONDS: u64 = 10;

/// A person waits for the answer: so a try of a call of LiveChat takes no longer, and there are no more of them, than this, whatever is
/// configured for commands. All calls of one request together have an end by `server.response_deadline` ([`Deadlines`]).
const TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPTS_MAX: u32 = 2;
const RETRY_MAX: Duration = Duration::from_secs(1);

/// `[livechat]` as the pages use it.
pub fn for_people(config: &livechat::Config) -> livechat::Config {
    livechat::Config {
        timeout: config.timeout.min(TIMEOUT),
        attempts_max: config.attempts_max.min(ATTEMPTS_MAX),
        retry_min: config.retry_min.min(RETRY_MAX),
        retry_max: config.retry_max.min(RETRY_MAX),
        retry_after_max: config.retry_after_max.min(2 * RETRY_MAX),
        ..config.clone()
    }
}

/// The longest body that a page sends: a code and its verifier.
const BODY_BYTES_MAX: usize = 4096;

const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What the pages of all apps share, over reloads, too.
pub struct Pages {
    pub(super) relay: Relay,
    pub(super) budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    /// Codes of installations; what is left to do is to publish the event with this body.
    pub(super) installations: Arc<Codes<Bytes>>,
    /// Codes of logins.
    pub(super) logins: Arc<Codes<()>>,
    /// Whose a token is, by its digest.
    pub(super) viewers: Cache<Digest, Result<app_page::Viewer, PageEnd>>,
    /// Whether LiveChat sends webhooks, by app and organization.
    pub(super) states: Cache<(String, String), Result<app_page::State, PageEnd>>,
    pub(super) of_install: Arc<Gate>,
    pub(super) of_app: Arc<Gate>,
    /// From then on, no answer of LiveChat's is awaited any longer.
    giving_up: CancellationToken,
    throttles: Throttles,
}

/// Until when a request waits for what, so that its answer leaves within `server.response_deadline`. What one leaves is the next one's.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    /// The exchange of a code: half of the time.
    pub exchange: Instant,
    /// All calls of LiveChat that the answer needs: three quarters.
    pub calls: Instant,
    pub answer: Instant,
}

impl Deadlines {
    fn new(all: Duration) -> Self {
        let now = Instant::now();
        Self { exchange: now + all / 2, calls: now + all * 3 / 4, answer: now + all }
    }
}

/// A page of an app, as it is configured when the request comes.
#[derive(Clone)]
pub struct Page {
    what: What,
    pub(super) live: Arc<Live>,
    app: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// Where LiveChat sends a browser to install the app.
    Install,
    /// The app's page in LiveChat.
    App,
    /// It wants a token for a code,
    Token,
    /// facts for a token,
    Facts,
    /// and then that it ends.
    SignOut,
}

impl Page {
    /// `/install/{app}`, `/app/{app}`, `/app/{app}/token`, `/app/{app}/facts`, `/app/{app}/sign-out`, where they are switched on.
    pub fn find(live: &Arc<Live>, path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let (first, name, rest) = (parts.next()?, parts.next()?, (parts.next(), parts.next()));
        let what = match (first, rest) {
            ("install", (None, None)) => What::Install,
            ("app", (None, None)) => What::App,
            ("app", (Some("token"), None)) => What::Token,
            ("app", (Some("facts"), None)) => What::Facts,
            ("app", (Some("sign-out"), None)) => What::SignOut,
            _ => return None,
        };
        let app = live.livechat.apps.iter().position(|app| app.name == name)?;
        let page = Self { what, live: Arc::clone(live), app };
        let is_on = if what == What::Install { page.app().install.is_some() } else { page.app().page };
        is_on.then_some(page)
    }

    pub fn app(&self) -> &App {
        &self.live.livechat.apps[self.app]
    }

    fn method(&self) -> Method {
        if matches!(self.what, What::Token | What::SignOut) { Method::POST } else { Method::GET }
    }

    fn place(&self) -> Place<'_> {
        Place::Page(if self.what == What::Install { "install" } else { "app" }, &self.app().name)
    }
}

/// What a page is answered, before it has its headers.
pub(super) struct Shown {
    pub end: PageEnd,
    pub body: Body,
}

pub(super) enum Body {
    /// With the policy that its scripts need.
    Html(String, &'static HeaderValue),
    Json(Value),
}

impl Shown {
    pub fn html(end: PageEnd, text: String, policy: &'static HeaderValue) -> Self {
        Self { end, body: Body::Html(text, policy) }
    }

    /// For the script of the app's page: what is wrong, by its label.
    pub fn error(end: PageEnd) -> Self {
        Self { end, body: Body::Json(serde_json::json!({ "error": end.label() })) }
    }

    fn into_answer(self) -> Answer {
        static NOTHING: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
        let (text, content_type, policy) = match self.body {
            Body::Html(text, policy) => (text, "text/html; charset=utf-8", policy),
            Body::Json(value) => (value.to_string(), "application/json", &NOTHING),
        };
        let status = StatusCode::from_u16(self.end.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = Response::new(Full::new(Bytes::from(text)));
        *answer.status_mut() = status;
        let retry_after = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Some((RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS)))
            }
            StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            _ => None,
        };
        let of_all: [(HeaderName, HeaderValue); 5] = [
            (CONTENT_TYPE, HeaderValue::from_static(content_type)),
            (CONTENT_SECURITY_POLICY, policy.clone()),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        answer.headers_mut().extend(of_all.into_iter().chain(retry_after));
        answer
    }
}

impl Pages {
    pub fn new(relay: Relay, budget: Arc<Budget>, metrics: Arc<Metrics>, giving_up: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            relay,
            budget,
            metrics,
            installations: Codes::new(),
            logins: Codes::new(),
            viewers: Cache::new(app_page::VIEWERS_MAX),
            states: Cache::new(app_page::STATES_MAX),
            of_install: Gate::new(),
            of_app: Gate::new(),
            giving_up,
            throttles: Throttles::new(LOG_INTERVAL),
        })
    }

    /// What `calls` of LiveChat come to, if they do so in time.
    ///
    /// # Errors
    /// [`PageEnd::Unreachable`]: they do not, or the relay ends.
    pub(super) async fn until<T>(&self, deadline: Instant, calls: impl Future<Output = T>) -> Result<T, PageEnd> {
        let calls = self.giving_up.run_until_cancelled(timeout_at(deadline, calls)).await;
        calls.and_then(Result::ok).ok_or_else(|| {
            if let Some(suppressed) = self.throttles.pass("late") {
                tracing::warn!(
                    suppressed,
                    "LiveChat has not answered in time for a page, whose answer leaves within server.response_deadline"
                );
            }
            PageEnd::Unreachable
        })
    }

    /// Logs why a call of LiveChat has failed; what became of the request.
    pub(super) fn failed(&self, app: &str, end: PageEnd, failure: &Failure) -> PageEnd {
        if let Some(suppressed) = self.throttles.pass(&format!("{app} {}", end.label())) {
            tracing::warn!(app, reason = end.label(), error = %failure, suppressed, "a page's call of LiveChat has failed");
        }
        end
    }

    /// Logs an organization that was turned away: an operator may have forgotten to list it.
    pub(super) fn denied(&self, app: &str, end: PageEnd, organization: &str) -> PageEnd {
        if let Some(suppressed) = self.throttles.pass(&format!("{app} {} {organization}", end.label())) {
            let reason = end.label();
            tracing::warn!(app, reason, organization, suppressed, "an organization was turned away from an app's page");
        }
        end
    }

    fn conclude(&self, shown: Shown) -> Answer {
        self.metrics.page(shown.end);
        shown.into_answer()
    }
}

/// Ends a token that is not needed, in a task of its own, for that is done however long it takes.
pub(super) fn revoke(accounts: Accounts, token: SecretString, app: &str) -> JoinHandle<()> {
    let app = app.to_owned();
    tokio::spawn(async move {
        if let Err(failure) = accounts.revoke(&token).await {
            tracing::warn!(app, error = %failure, "a token that is not needed could not be revoked; it ends by itself");
        }
    })
}

/// What becomes of a request whose code LiveChat does not exchange.
pub(super) fn of_exchange(failure: &Failure) -> PageEnd {
    match failure.kind {
        Kind::Authentication => PageEnd::CodeRefused,
        Kind::Unavailable | Kind::TooManyRequests | Kind::Unintelligible => PageEnd::Unreachable,
        _ => PageEnd::Misconfigured,
    }
}

impl Webhooks {
    /// Answers a request of a page.
    pub(super) async fn page(&self, page: &Page, request: Request<Incoming>, exchange: &Exchange) -> Answer {
        let live = &page.live;
        let sender = Sender::new(&live.config, exchange, Some(request.headers()));
        let has_body = !request.body().is_end_stream();
        let mut answer = match self.shown(page, request, &sender).await {
            Ok(shown) => self.pages.conclude(shown),
            Err(reply) => {
                let mut answer = self.conclude(live, reply, &page.place(), &sender);
                if answer.status() == StatusCode::METHOD_NOT_ALLOWED {
                    let allowed = if page.method() == Method::POST { "POST" } else { "GET" };
                    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
                }
                answer
            }
        };
        if has_body {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close")); // it may not be read
        }
        answer
    }

    async fn shown(&self, page: &Page, request: Request<Incoming>, sender: &Sender<'_>) -> Result<Shown, Reply> {
        if request.method() != page.method() {
            let line = format!("method not allowed; use {}\n", page.method());
            return Err(Reply::because(Refusal::MethodNotAllowed, Some(line)));
        }
        let (pages, client, config) = (&self.pages, sender.client, &page.live.config);
        let deadlines = Deadlines::new(config.response_deadline);
        Ok(match page.what {
            What::Install => install::shown(pages, page, request.uri().query(), client, deadlines).await,
            What::App => app_page::shell(page.app(), &page.live.livechat),
            What::Facts => app_page::facts(pages, page, bearer(request.headers()), client, deadlines).await,
            What::SignOut => app_page::sign_out(pages, page, bearer(request.headers()), client, deadlines).await,
            What::Token => {
                // A page of another origin cannot send this type without being asked for leave, which it does not get.
                if !request.headers().get(CONTENT_TYPE).is_some_and(is_json) {
                    return Err(Refusal::ContentType.into());
                }
                let body = body(request.into_body(), config.body_timeout).await?;
                app_page::token(pages, page, &body, client, Deadlines::new(config.response_deadline)).await
            }
        })
    }
}

/// A short body, which holds no room of webhooks.
async fn body(body: Incoming, most: Duration) -> Result<Bytes, Reply> {
    match timeout(most, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let line = format!("the body is larger than {BODY_BYTES_MAX} bytes\n");
            Err(Reply::because(Refusal::BodyTooLarge, Some(line)))
        }
        Ok(Err(_)) => Err(Refusal::BodyIncomplete.into()),
        Err(_) => Err(Refusal::BodyTooSlow.into()),
    }
}

/// The policy of a page: its own style and script, each by its digest, and what `more` allows.
pub(super) fn policy(page: &str, more: &str) -> HeaderValue {
    let digest = |tag: &str| {
        let (_, rest) = page.split_once(&format!("<{tag}>")).expect("the page has one");
        let (text, _) = rest.split_once(&format!("</{tag}>")).expect("and it ends");
        format!("'sha256-{}'", base64(&Sha256::digest(text)))
    };
    let (script, style) = (digest("script"), digest("style"));
    let policy = format!(
        "default-src 'none'; script-src {script}; style-src {style}; base-uri 'none'; form-action 'none'; {more}"
    );
    HeaderValue::from_str(&policy).expect("visible ASCII")
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = (0..3).fold(0_u32, |bits, n| bits << 8 | u32::from(group.get(n).copied().unwrap_or(0)));
        let digit = |n: usize| char::from(DIGITS[(bits >> (18 - 6 * n)) as usize & 63]);
        (0..4).map(|n| if n > group.len() { '=' } else { digit(n) }).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// A text as HTML has it, within elements and within attributes.
pub(super) fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\'' => "&#39;".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// A page whose policy is computed once.
pub(super) struct Template {
    pub text: &'static str,
    pub policy: LazyLock<HeaderValue>,
}

impl Template {
    /// The page with texts for its `{{names}}`, which are escaped.
    pub fn with(&self, texts: &[(&str, &str)]) -> String {
        texts.iter().fold(self.text.to_owned(), |page, (name, text)| page.replace(&format!("{{{{{name}}}}}"), text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_written_as_rfc_4648_has_it() {
        let written = |text: &str| base64(text.as_bytes());
        for (text, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(written(text), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn the_policy_names_the_one_script_and_the_one_style_of_a_page() {
        let policy = policy("<style>b</style><script>a</script>", "frame-ancestors 'none'");
        let expected = "default-src 'none'; script-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='; \
                        style-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='; base-uri 'none'; form-action 'none'; \
                        frame-ancestors 'none'";
        assert_eq!(policy.to_str().ok(), Some(expected));
        for page in [include_str!("pages/install.html"), include_str!("pages/app.html")] {
            assert_eq!((page.matches("<script").count(), page.matches("<style").count()), (1, 1));
            let markup =
                page.split_once("</style>").and_then(|(_, rest)| rest.split_once("<script>")).expect("a body").0;
            for blocked in ["src=", "style=", " on", "href=", "<form"] {
                assert!(!markup.contains(blocked), "{blocked} in {markup}");
            }
        }
    }

    #[test]
    fn texts_cannot_become_markup() {
        let escaped = escaped("<a href=\"x\" title='y'>&amp;</a>");
        assert_eq!(escaped, "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;amp;&lt;/a&gt;");
    }
}
