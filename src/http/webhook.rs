//! The webhook listener: bytes in, an [`Outcome`] from the relay, a status out.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, FORWARDED, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode, Version};
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{self, Networks, Source, X_FORWARDED_FOR};
use super::failures::{self, Failures};
use super::pages::{Page, Pages};
use super::refusals::{Place, Refusals, SEPARATORS, begins_key};
use super::{Answer, Exchange, Handler, answer_with};
use crate::budget::{Budget, Held, SMALL_BODY_BYTES_MAX};
use crate::event::{Archived, Rejection, explain, traceparent};
use crate::livechat;
use crate::metrics::{Counts, Metrics};
use crate::outcome::Unavailable::{AppShare, Overloaded, SlowBody};
use crate::outcome::{Backfilled, ConnectionEnd, Outcome, Refusal};
use crate::relay::{Endpoint, Policy, Relay};

/// `[server]`, but for the limits of its connections.
#[derive(Clone, Debug)]
pub struct Config {
    pub body_bytes_max: usize,
    pub body_timeout: Duration,
    pub response_deadline: Duration,
    pub retry_after: Duration,
    /// How long what is left of a body is awaited that is not needed, so that its sender is not cut off before it has its answer.
    pub linger_timeout: Duration,
    /// Where there are any, requests of others are refused.
    pub client_networks: Networks,
    pub clients: client::Config,
    pub failed_verifications: failures::Config,
}

/// What a request is answered by, from its head to its end, whatever is configured meanwhile.
pub struct Live {
    pub policy: Arc<Policy>,
    pub config: Config,
    /// For the pages.
    pub livechat: livechat::Config,
}

/// Answers `POST /webhooks/{app}`, and the pages of apps that have some.
pub struct Webhooks {
    pub relay: Relay,
    pub budget: Arc<Budget>,
    pub metrics: Arc<Metrics>,
    pub live: ArcSwap<Live>,
    pub failures: Failures,
    pub refusals: Refusals,
    pub pages: Arc<Pages>,
    /// Of requests that lead to no app.
    pub strangers: Counts,
    /// The log has it that webhooks come through a proxy that is not configured.
    pub is_proxy_noticed: AtomicBool,
}

/// Who has sent a request.
pub(super) struct Sender<'a> {
    exchange: &'a Exchange,
    /// By `server.client_address` as it is when the request comes, as all else about it.
    pub(super) client: IpAddr,
    /// `client` may be wrong: since the connection began, `client_address` has changed to or from "proxy-protocol".
    is_outdated: bool,
}

impl<'a> Sender<'a> {
    pub(super) fn new(config: &Config, exchange: &'a Exchange, headers: Option<&HeaderMap>) -> Self {
        let origin = exchange.origin();
        let client = headers.map_or(origin.address, |headers| config.clients.address(origin.address, headers));
        Self { exchange, client, is_outdated: !config.clients.fits(origin) }
    }

    fn check_network(&self, Config { client_networks, .. }: &Config) -> Result<(), Reply> {
        // Such a connection may bring one more webhook, which is not lost: its secret key decides alone.
        if client_networks.is_empty() || self.is_outdated || client_networks.contains(self.client) {
            return Ok(());
        }
        Err(Refusal::ClientNetwork.into())
    }
}

/// What is kept of a request's head while its body comes: of a stranger's text no more than a bounded token.
struct Head<'a> {
    endpoint: &'a Endpoint,
    traceparent: Option<String>,
    /// The header in which a proxy names the client, where the configuration has no proxy.
    proxy_header: Option<&'static str>,
}

/// What has become of a request, and what is said of it.
pub(super) struct Reply {
    outcome: Outcome,
    /// What the sender is told, where that is more than the outcome's own line.
    line: Option<String>,
    retry_after: Option<Duration>,
    is_logged: bool,
}

impl From<Outcome> for Reply {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, line: None, retry_after: None, is_logged: true }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Outcome::Refused(refusal).into()
    }
}

impl Reply {
    pub(super) fn because(refusal: Refusal, line: Option<String>) -> Self {
        Self { line, ..refusal.into() }
    }

    fn too_large(most: usize) -> Self {
        let line = format!("the body is larger than server.body_bytes_max, {most} bytes\n");
        Self::because(Refusal::BodyTooLarge, Some(line))
    }
}

impl Webhooks {
    /// Whether a body is wanted. The path comes before the method and the headers: what is posted nowhere is not found, however it is
    /// posted.
    fn head<'a>(
        &self,
        Live { policy, config, .. }: &Live,
        request: &Request<Incoming>,
        sender: &Sender<'_>,
        endpoint: Option<&'a Endpoint>,
    ) -> Result<Head<'a>, Reply> {
        let Config { body_bytes_max, .. } = config;
        sender.check_network(config)?;
        let endpoint = endpoint.ok_or(Refusal::NotFound)?;
        let (headers, declared) = (request.headers(), request.body().size_hint().lower());
        if request.method() != Method::POST {
            let method = short(policy, request.method().as_str().as_bytes());
            return Err(Reply::because(
                Refusal::MethodNotAllowed,
                method.map(|method| format!("{method} is not allowed here; use POST\n")),
            ));
        }
        let encoding = headers.get(CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            let line = |encoding| format!("Content-Encoding is {encoding}; send the body without one\n");
            return Err(Reply::because(Refusal::ContentEncoding, short(policy, encoding.as_bytes()).map(line)));
        }
        if let Some(content_type) = headers.get(CONTENT_TYPE).filter(|content_type| !is_json(content_type)) {
            let (essence, charset) = media_type(content_type.as_bytes());
            let line = match charset.filter(|_| essence.eq_ignore_ascii_case(JSON)) {
                Some(charset) => short(policy, charset).map(|it| format!("charset is {it}; send the body in UTF-8\n")),
                None => short(policy, essence)
                    .map(|it| format!("Content-Type is {it}; send Content-Type: application/json (in UTF-8)\n")),
            };
            return Err(Reply::because(Refusal::ContentType, line));
        }
        if declared > *body_bytes_max as u64 {
            return Err(Reply::too_large(*body_bytes_max));
        }
        let text = headers.get("traceparent").and_then(|value| value.to_str().ok());
        let is_asked = config.clients.source == Source::Peer && !self.is_proxy_noticed.load(Ordering::Relaxed);
        let names = [("Forwarded", FORWARDED), ("X-Forwarded-For", X_FORWARDED_FOR)];
        let proxy_header = names.into_iter().find(|(_, name)| is_asked && headers.contains_key(name));
        let proxy_header = proxy_header.map(|(name, _)| name);
        Ok(Head { endpoint, traceparent: text.and_then(traceparent), proxy_header })
    }

    /// The whole body, and its part of the budget, of which it has what has come.
    async fn body(&self, mut body: Incoming, received: Instant, config: &Config) -> Result<(BytesMut, Held), Reply> {
        let mut reading = self.budget.begin().map_err(Outcome::Unavailable)?;
        let evicted = reading.evicted();
        let read = async {
            let mut bytes = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| Refusal::BodyIncomplete)?;
                let Ok(data) = frame.into_data() else { continue };
                let length = bytes.len() + data.len();
                if length > config.body_bytes_max {
                    return Err(Reply::too_large(config.body_bytes_max));
                }
                reading.grow_to(length).map_err(Outcome::Unavailable)?;
                bytes.extend_from_slice(&data);
            }
            Ok((bytes, reading.complete().map_err(Outcome::Unavailable)?))
        };
        let most = config.body_timeout;
        tokio::select! {
            biased;
            read = read => read,
            () = evicted => Err(Outcome::Unavailable(SlowBody).into()),
            () = sleep_until(received + most) => {
                let line = format!("the body was not complete within server.body_timeout, {most:?}\n");
                Err(Reply::because(Refusal::BodyTooSlow, Some(line)))
            }
        }
    }

    async fn outcome(
        &self,
        live: &Live,
        head: &Head<'_>,
        body: Incoming,
        sender: &Sender<'_>,
    ) -> Result<Outcome, Reply> {
        let Live { policy, config, .. } = live;
        let received = Instant::now();
        let (body, held) = self.body(body, received, config).await?;
        let accepted = self.relay.accept(policy, head.endpoint, &body, head.traceparent.as_deref());
        let accepted = accepted.map_err(|rejection| self.rejected(rejection, &body, sender, config))?;
        drop(body);
        sender.exchange.verified();
        if let Some(header) = head.proxy_header
            && !self.is_proxy_noticed.swap(true, Ordering::Relaxed)
        {
            let (proxy, remedy) = (sender.exchange.peer(), "set server.client_address and server.trusted_proxies");
            tracing::warn!(%proxy, header, remedy, "webhooks come through a proxy, which counts as their client");
        }
        let shares = policy.has_several_apps() && !accepted.is_dropped();
        let held = if shares { held.of_app(head.endpoint.app()).map_err(Outcome::Unavailable)? } else { held };
        let accepted = accepted.from_client(sender.client, sender.exchange.peer());
        Ok(self.relay.deliver(accepted, held, received + config.response_deadline).outcome().await)
    }

    /// Delivers events of LiveChat's archive as webhooks are, and within the same limits.
    ///
    /// # Errors
    /// As [`Relay::accept_archived`].
    pub async fn backfill(&self, app: &str, events: &[Archived]) -> Result<Backfilled, String> {
        let live = self.live.load_full();
        let accepted = self.relay.accept_archived(&live.policy, app, events)?;
        let bytes = events.iter().map(|event| event.body.len()).sum();
        let hold = || {
            let mut reading = self.budget.begin()?;
            reading.grow_to(bytes)?;
            let held = reading.complete()?;
            if live.policy.has_several_apps() { held.of_app(app) } else { Ok(held) }
        };
        let (mut done, dropped) = (Backfilled::default(), accepted.dropped());
        match hold() {
            Ok(held) => {
                let delivered = self.relay.deliver(accepted, held, Instant::now() + BACKFILL_DEADLINE);
                delivered.outcomes().await.into_iter().for_each(|outcome| done.count(outcome));
                done.dropped += dropped as u64;
            }
            Err(reason) => events.iter().for_each(|_| done.count(Outcome::Unavailable(reason))),
        }
        Ok(done)
    }

    /// A webhook that was read and not accepted. Where its key is wrong, its client's earlier wrong keys count. A key of the app outside of
    /// its dates is no guess: its sender is told 401, and `expired` or `not_yet_valid` counts it, however often it comes. (Who has found such
    /// a key sees by that, after many tries, that it is one. It opens nothing now.) That of another app is as wrong as any: it opens that app.
    fn rejected(&self, rejection: Rejection, body: &[u8], sender: &Sender<'_>, config: &Config) -> Reply {
        let rejected = Reply { line: explain(rejection, body), ..Outcome::Rejected(rejection).into() };
        use Rejection::{NoSecretKey, OtherApp, Unauthorized, UnknownApp};
        if !matches!(rejection, Unauthorized | NoSecretKey | UnknownApp | OtherApp) {
            return rejected;
        }
        let failed = self.failures.count(sender.client, &config.failed_verifications, Instant::now());
        let outcome = match failed.retry_after {
            Some(_) => Outcome::Refused(Refusal::TooManyFailures),
            None => rejected.outcome,
        };
        Reply { outcome, retry_after: failed.retry_after, is_logged: failed.is_logged, ..rejected }
    }

    /// Counts and logs what has become of a request, and makes its answer.
    pub(super) fn conclude(&self, live: &Live, reply: Reply, place: &Place<'_>, sender: &Sender<'_>) -> Answer {
        let Reply { outcome, line, retry_after, is_logged } = reply;
        let line = line.map_or(Cow::Borrowed(outcome.answer().1), Cow::Owned);
        let mut answer = answer_with(outcome, line.clone().into_owned());
        let retry_after = retry_after.or(match outcome {
            Outcome::Unavailable(_) => Some(live.config.retry_after),
            _ => None,
        });
        if let Some(wait) = retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        let app = place.app();
        if answer.status() != StatusCode::OK {
            live.policy.counts(app).unwrap_or(&self.strangers).request(outcome);
        }
        let reason = match outcome {
            Outcome::Rejected(rejection) => rejection.label(),
            Outcome::Refused(refusal) => refusal.label(),
            Outcome::Unavailable(reason) => {
                if reason == AppShare
                    && let Some(suppressed) = self.refusals.pass(reason.label(), place)
                {
                    tracing::warn!(
                        app,
                        suppressed,
                        "the app's webhooks have used up their share of the memory: more are answered 503, so that other apps have room"
                    );
                }
                return answer;
            }
            _ => return answer,
        };
        let Sender { exchange, client, .. } = sender;
        let (peer, line) = (exchange.peer(), line.trim_end());
        let (status, path) = (answer.status().as_u16(), || place.shown(|text| live.policy.is_key(text)));
        match is_logged.then(|| self.refusals.pass(reason, place)).flatten() {
            Some(suppressed) => {
                let path = path();
                tracing::warn!(app, reason, status, path, %client, %peer, answer = line, suppressed, "request refused");
            }
            None => {
                tracing::debug!(app, reason, status, path = path(), %client, %peer, answer = line, "request refused");
            }
        }
        answer
    }
}

impl Handler for Webhooks {
    async fn answer(&self, request: Request<Incoming>, exchange: &Exchange) -> Answer {
        let began = Instant::now();
        let live = self.live.load_full();
        if let Some(page) = Page::find(&live, request.uri().path()) {
            return self.page(&page, request, exchange).await;
        }
        let endpoint = live.policy.endpoint(request.uri().path());
        let place = Place::new(endpoint.as_ref(), request.uri().path());
        let sender = Sender::new(&live.config, exchange, Some(request.headers()));
        let head = self.head(&live, &request, &sender, endpoint.as_ref());
        let is_http2 = request.version() == Version::HTTP_2;
        let body = request.into_body();
        let has_body = !body.is_end_stream();
        let outcome = match head {
            Ok(head) => self.outcome(&live, &head, body, &sender).await,
            Err(reply) => {
                if is_http2 {
                    let _ = timeout(live.config.linger_timeout, discard(body)).await; // then it is answered all the same
                }
                Err(reply)
            }
        };
        let reply = outcome.map_or_else(|reply| reply, Reply::from);
        let outcome = reply.outcome;
        let mut answer = self.conclude(&live, reply, &place, &sender);
        let is_read = !matches!(outcome, Outcome::Refused(_) | Outcome::Unavailable(Overloaded | SlowBody));
        let has_to_connect = sender.is_outdated || outcome == Outcome::Refused(Refusal::TooManyFailures);
        if (has_body && !is_read) || has_to_connect {
            // What is left of the body may still be coming; who guesses has to connect again, and who came by another way.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.metrics.request_seconds.observe(began.elapsed().as_secs_f64());
        answer
    }

    fn refuse(&self, outcome: Outcome, request: Option<&Request<Incoming>>, exchange: &Exchange) -> Answer {
        let live = self.live.load();
        let path = request.map_or("", |request| request.uri().path());
        let endpoint = live.policy.endpoint(path);
        let sender = Sender::new(&live.config, exchange, request.map(Request::headers));
        self.conclude(&live, outcome.into(), &Place::new(endpoint.as_ref(), path), &sender)
    }

    fn answered(&self, status: StatusCode) {
        self.metrics.answered(status.as_str());
    }

    fn secured(&self, is_resumed: bool) {
        self.metrics.tls_handshake(is_resumed);
    }

    fn ended(&self, end: ConnectionEnd) {
        self.metrics.connection_ended(end);
    }
}

/// Reads a short body to its end. Over HTTP/2 an answer that is earlier than that ends with a reset of its stream, and some clients, curl
/// 7.88 among them, then lose the answer. (Over HTTP/1.1 the connection lingers.)
async fn discard(mut body: Incoming) {
    let mut left = SMALL_BODY_BYTES_MAX;
    while body.size_hint().lower() <= left as u64
        && let Some(Ok(frame)) = body.frame().await
    {
        left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len()));
    }
}

/// How long the events of one request of a backfill may take to become durable. No LiveChat waits for them, and a person may.
const BACKFILL_DEADLINE: Duration = Duration::from_secs(30);

const JSON: &[u8] = b"application/json";

/// A media type without its parameters, and the one of these that counts: its charset (RFC 9110, section 8.3.1).
fn media_type(content_type: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut parts = content_type.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let essence = parts.next().unwrap_or_default();
    let charset = parts.find_map(|parameter| {
        let (name, value) = parameter.split_at_checked(b"charset=".len())?;
        name.eq_ignore_ascii_case(b"charset=").then_some(value)
    });
    let unquoted = charset.map(|value| value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value));
    (essence, unquoted)
}

/// A value as its sender may be told it, and the log: short, of visible ASCII, and without a secret key in the wrong place.
fn short<'v>(policy: &Policy, value: &'v [u8]) -> Option<&'v str> {
    const SEPARATORS_MAX: usize = 4; // nothing that is meant has more, and each part is compared with every key
    let is_short = (1..=64).contains(&value.len()) && value.iter().all(|byte| (b' '..=b'~').contains(byte));
    let value = std::str::from_utf8(value).ok().filter(|_| is_short)?;
    let is_plain = value.matches(SEPARATORS).count() <= SEPARATORS_MAX;
    (is_plain && !begins_key(value, value.len(), |text| policy.is_key(text))).then_some(value)
}

/// `application/json`, in UTF-8 where a charset is named.
pub(super) fn is_json(content_type: &HeaderValue) -> bool {
    let (essence, charset) = media_type(content_type.as_bytes());
    let is_utf8 = |charset: &[u8]| charset.eq_ignore_ascii_case(b"utf-8") || charset.eq_ignore_ascii_case(b"utf8");
    essence.eq_ignore_ascii_case(JSON) && charset.is_none_or(is_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_recognized_in_the_ways_that_clients_write_it() {
        for json in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/json ; Charset=utf8 ; q=1;",
            "application/json; v=charset",
        ] {
            assert!(is_json(&HeaderValue::from_static(json)), "{json}");
        }
        for other in [
            "text/json",
            "application/x-www-form-urlencoded",
            "application/json; charset=latin1",
            "application/json ; v=1; charset=\"utf-16\"",
            "application/json; charset=",
            "application/json, text/plain",
            "",
            "json",
        ] {
            assert!(!is_json(&HeaderValue::from_static(other)), "{other}");
        }
    }
}
