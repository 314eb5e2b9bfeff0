//! Pages for people, on the webhook listener: which request is for which page of which app, how often LiveChat is called for strangers, and
//! the headers that every answer has.
//!
//! A page holds no room of webhooks and no place of theirs: its connection is the first to be evicted, it ends with the answer, and what waits
//! for LiveChat is bounded here.

mod cache;
mod gate;
mod html;
mod visit;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::app_page;
use super::refusals::Place;
use super::webhook::{Live, Reply, Sender, Webhooks, is_json};
use super::{Answer, Exchange, bearer, install};
use crate::budget::Budget;
use crate::livechat::App;
use crate::metrics::Metrics;
use crate::outcome::{PageEnd, Refusal};
use crate::relay::Relay;
use crate::telemetry::Throttles;
pub(super) use cache::Cache;
pub(super) use gate::Gate;
pub(super) use html::{Template, escaped, policy};
use visit::{Deadlines, Digest};
pub(super) use visit::{Visit, remembered};

/// When it is worth to come back, where LiveChat, Kafka or too many others are the reason.
const RETRY_AFTER_SECONDS: u64 = 10;

/// The longest body that a page sends: a code and its verifier.
const BODY_BYTES_MAX: usize = 4096;

/// Codes that are remembered. In that time the gate lets through 1,920 that LiveChat does not confirm; the rest is for those that it does.
const CODES_MAX: usize = 8192;

const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What the pages of all apps share, over reloads, too.
pub struct Pages {
    pub(super) relay: Relay,
    pub(super) budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    /// What came of the codes of installations, so that each is exchanged once, however often it comes.
    pub(super) installations: Cache<Digest, Result<Arc<install::Installation>, install::End>>,
    /// And of the codes of logins.
    pub(super) logins: Cache<Digest, Result<(), PageEnd>>,
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

/// A page of an app, as it is configured when the request comes.
#[derive(Clone)]
pub struct Page {
    what: What,
    live: Arc<Live>,
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
    end: PageEnd,
    body: Body,
}

enum Body {
    /// With the policy that its scripts need.
    Html(String, &'static HeaderValue),
    Json(Value),
}

impl Shown {
    pub fn html(end: PageEnd, text: String, policy: &'static HeaderValue) -> Self {
        Self { end, body: Body::Html(text, policy) }
    }

    /// For the script of the app's page.
    pub fn json(end: PageEnd, value: Value) -> Self {
        Self { end, body: Body::Json(value) }
    }

    /// What is wrong, by its label.
    fn error(end: PageEnd) -> Self {
        Self::json(end, serde_json::json!({ "error": end.label() }))
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
            installations: Cache::new(CODES_MAX),
            logins: Cache::new(CODES_MAX),
            viewers: Cache::new(app_page::VIEWERS_MAX),
            states: Cache::new(app_page::STATES_MAX),
            of_install: Gate::new(),
            of_app: Gate::new(),
            giving_up,
            throttles: Throttles::new(LOG_INTERVAL),
        })
    }

    fn conclude(&self, shown: Shown) -> Answer {
        self.metrics.page(shown.end);
        shown.into_answer()
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
        let config = &page.live.config;
        let visit = || Visit {
            pages: Arc::clone(&self.pages),
            page: page.clone(),
            client: sender.client,
            deadlines: Deadlines::new(config.response_deadline),
        };
        Ok(match page.what {
            What::Install => install::shown(visit(), request.uri().query()).await,
            What::App => app_page::shell(page.app(), &page.live.livechat),
            What::Facts => app_page::facts(&visit(), bearer(request.headers())).await.unwrap_or_else(Shown::error),
            What::SignOut => app_page::sign_out(&visit(), bearer(request.headers())).await.unwrap_or_else(Shown::error),
            What::Token => {
                // A page of another origin cannot send this type without being asked for leave, which it does not get.
                if !request.headers().get(CONTENT_TYPE).is_some_and(is_json) {
                    return Err(Refusal::ContentType.into());
                }
                let body = body(request.into_body(), config.body_timeout).await?;
                app_page::token(visit(), &body).await.unwrap_or_else(Shown::error)
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
