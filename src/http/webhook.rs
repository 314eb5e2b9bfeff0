//! The webhook listener: bytes in, an [`Outcome`] from the relay, a status out. One table, in `status`.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::time::Instant;

use super::{Answer, Connection, Handler};
use crate::alarm::Alarm;
use crate::event::Rejection;
use crate::metrics::Metrics;
use crate::relay::{Outcome, Posted, Relay, Times};

/// `[server]`, but for the limits of its connections.
#[derive(Clone, Debug)]
pub struct Config {
    pub body_bytes_max: usize,
    pub body_timeout: Duration,
    pub bytes_in_flight_max: usize,
    pub response_deadline: Duration,
    pub retry_after: Duration,
}

/// Answers `POST /webhooks/{app}`.
pub struct Webhooks {
    relay: Relay,
    metrics: Arc<Metrics>,
    config: Config,
}

/// Why a request did not become an outcome of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NoSuchPath,
    WrongMethod,
    WrongType,
    TooLarge,
    TooSlow,
    /// The client left before its body was here; the answer goes nowhere.
    Gone,
    /// Too many bytes in flight.
    Overloaded,
}

impl Webhooks {
    pub fn new(relay: Relay, metrics: Arc<Metrics>, config: Config) -> Self {
        Self { relay, metrics, config }
    }

    async fn outcome(
        &self,
        asked: &Asked,
        mut body: Incoming,
        received: Instant,
        alarm: &Alarm,
    ) -> Result<Outcome, Refusal> {
        let posted = self.posted(asked.uri.path())?;
        if let Some(refusal) = asked.refusal {
            return Err(refusal);
        }
        let traceparent = asked.traceparent.as_ref().and_then(traceparent);
        let (body, _budget) = self.body(&mut body, received, alarm).await?;
        let deadline = received + self.config.response_deadline;
        Ok(self.relay.take(posted, &body, traceparent, Times { received, deadline, alarm }).await)
    }

    /// What a path takes. App Webhooks have a path only where they are switched on.
    fn posted<'p>(&'p self, path: &'p str) -> Result<Posted<'p>, Refusal> {
        let policy = self.relay.policy();
        let mut parts = path.strip_prefix('/').ok_or(Refusal::NoSuchPath)?.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("webhooks"), None, _) => {
                policy.only_app().map(|app| Posted::Webhook { app }).ok_or(Refusal::NoSuchPath)
            }
            (Some("webhooks"), Some(app), None) if !app.is_empty() => Ok(Posted::Webhook { app }),
            (Some("app-webhooks"), Some(token), None) if policy.app_webhooks.is_some() => {
                Ok(Posted::AppWebhook { token })
            }
            _ => Err(Refusal::NoSuchPath),
        }
    }

    /// The whole body, and its part of the budget. What is declared too long is refused before it is read.
    async fn body(
        &self,
        body: &mut Incoming,
        received: Instant,
        alarm: &Alarm,
    ) -> Result<(Bytes, Budget<'_>), Refusal> {
        let max = self.config.body_bytes_max;
        let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if declared > max {
            return Err(Refusal::TooLarge);
        }
        let mut budget = Budget { of: self, held: 0 };
        budget.grow_to(declared)?;
        let read = async {
            let mut first = Bytes::new();
            let mut rest = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(|_| Refusal::Gone)?.into_data() else { continue };
                let length = first.len() + rest.len() + data.len();
                if length > max {
                    return Err(Refusal::TooLarge);
                }
                budget.grow_to(length)?;
                if first.is_empty() && rest.is_empty() {
                    first = data; // nearly always the only one: nothing is copied
                } else {
                    if rest.is_empty() {
                        rest.reserve(declared.max(length));
                        rest.extend_from_slice(&std::mem::take(&mut first));
                    }
                    rest.extend_from_slice(&data);
                }
            }
            Ok(if rest.is_empty() { first } else { rest.freeze() })
        };
        let read = tokio::select! {
            biased;
            read = read => read?,
            () = alarm.at(received + self.config.body_timeout) => return Err(Refusal::TooSlow),
        };
        Ok((read, budget))
    }
}

/// Bytes of one request out of `bytes_in_flight_max`. The gauge is the account.
struct Budget<'w> {
    of: &'w Webhooks,
    held: usize,
}

impl Budget<'_> {
    fn grow_to(&mut self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.held {
            self.of.metrics.bytes_in_flight.add(signed(bytes - self.held));
            self.held = bytes;
            // Of two that come at once and do not fit together, both may be refused.
            if self.of.metrics.bytes_in_flight.get() > signed(self.of.config.bytes_in_flight_max) {
                return Err(Refusal::Overloaded);
            }
        }
        Ok(())
    }
}

impl Drop for Budget<'_> {
    fn drop(&mut self) {
        self.of.metrics.bytes_in_flight.sub(signed(self.held));
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What is needed of a request's head once it is read.
struct Asked {
    uri: Uri,
    /// The path comes first: what is posted nowhere is not found, however it is posted.
    refusal: Option<Refusal>,
    traceparent: Option<HeaderValue>,
}

impl Asked {
    fn of(mut head: Parts) -> Self {
        let refusal = if head.method == Method::POST {
            (!is_json(&head.headers)).then_some(Refusal::WrongType)
        } else {
            Some(Refusal::WrongMethod)
        };
        Self { refusal, traceparent: head.headers.remove("traceparent"), uri: head.uri }
    }
}

impl Handler for Webhooks {
    const READS_BODIES: bool = true;

    fn answer(
        connection: &Arc<Connection<Self>>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let received = Instant::now();
        let may_leave_body = request.version() != Version::HTTP_2 && !request.body().is_end_stream();
        let (head, body) = request.into_parts();
        // Streams wait at the same time.
        let own_alarm = (head.version == Version::HTTP_2).then(Alarm::default);
        let (connection, asked) = (Arc::clone(connection), Asked::of(head));
        async move {
            let (webhooks, alarm) = (&*connection.handler, own_alarm.as_ref().unwrap_or(&connection.alarm));
            let outcome = webhooks.outcome(&asked, body, received, alarm).await;
            webhooks.answer_to(&outcome, may_leave_body, received)
        }
    }

    fn connections(&self, open: usize) {
        self.metrics.connections.set(signed(open));
    }
}

impl Webhooks {
    fn answer_to(&self, outcome: &Result<Outcome, Refusal>, may_leave_body: bool, received: Instant) -> Answer {
        if *outcome == Err(Refusal::Overloaded) {
            self.metrics.unavailable.with_label_values(&["overloaded"]).inc();
        }
        let (status, text) = status(outcome);
        let mut answer = answer(status, text, self.config.retry_after);
        if may_leave_body && outcome.is_err() {
            // What is left of the body may still be coming. Nobody will read it, nor find the next request behind it.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.metrics.answered(answer.status().as_str());
        self.metrics.request_seconds.observe(received.elapsed().as_secs_f64());
        answer
    }
}

/// The whole of what LiveChat is told. 200 has an empty body; the others say in a line what is wrong, and no more than
/// the sender may know.
fn status(outcome: &Result<Outcome, Refusal>) -> (StatusCode, &'static str) {
    match outcome {
        Ok(Outcome::Published | Outcome::Spooled | Outcome::Parked | Outcome::Dropped) => (StatusCode::OK, ""),
        Ok(Outcome::Rejected(Rejection::Unauthorized)) => (StatusCode::UNAUTHORIZED, "unauthorized\n"),
        Ok(Outcome::Rejected(rejection)) => (StatusCode::BAD_REQUEST, malformed(*rejection)),
        Ok(Outcome::Unavailable(_)) | Err(Refusal::Overloaded) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the event could not be made durable; try again later\n")
        }
        Err(Refusal::NoSuchPath) => (StatusCode::NOT_FOUND, "webhooks are taken at /webhooks/{app}\n"),
        Err(Refusal::WrongMethod) => (StatusCode::METHOD_NOT_ALLOWED, "webhooks are POSTed\n"),
        Err(Refusal::WrongType) => {
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be application/json in UTF-8, not encoded\n")
        }
        Err(Refusal::TooLarge) => (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n"),
        Err(Refusal::TooSlow) => (StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
        Err(Refusal::Gone) => (StatusCode::BAD_REQUEST, "the body ended early\n"),
    }
}

const fn malformed(rejection: Rejection) -> &'static str {
    match rejection {
        Rejection::NotUtf8 => "the body is not UTF-8\n",
        Rejection::NotJson => "the body is not JSON\n",
        Rejection::NotAnObject => "the body is not a JSON object\n",
        Rejection::MemberTwice => "the body has a member twice\n",
        Rejection::TooManyMembers => "the body has too many members\n",
        Rejection::NoAction => "the body has no action\n",
        Rejection::NoPayload => "the body has no payload\n",
        Rejection::Unauthorized => "unauthorized\n",
    }
}

fn answer(status: StatusCode, text: &'static str, retry_after: Duration) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    if !text.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)));
        }
        _ => {}
    }
    answer
}

/// JSON, or not said; in UTF-8 where a charset is said; not compressed.
fn is_json(headers: &HeaderMap) -> bool {
    if headers.get(CONTENT_TYPE).is_some_and(|value| value == "application/json")
        && !headers.contains_key(CONTENT_ENCODING)
    {
        return true; // as LiveChat writes it
    }
    let text = |value: &HeaderValue| value.to_str().unwrap_or("\u{0}").to_ascii_lowercase();
    let plain = headers.get(CONTENT_ENCODING).is_none_or(|encoding| text(encoding) == "identity");
    let json = headers.get(CONTENT_TYPE).is_none_or(|content_type| {
        let content_type = text(content_type);
        let mut parts = content_type.split(';').map(str::trim);
        let is_json = parts.next() == Some("application/json");
        is_json && parts.all(|p| p.strip_prefix("charset=").is_none_or(|charset| charset.trim_matches('"') == "utf-8"))
    });
    plain && json
}

/// A W3C trace context of version 00, such as 00-<32 hex>-<16 hex>-<2 hex>; anything else is not passed on.
fn traceparent(value: &HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?;
    let lengths = text.split('-').map(str::len);
    let hex = text.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (hex && text.starts_with("00-") && lengths.eq([2, 32, 16, 2])).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: hyper::header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("a header"))])
    }

    #[test]
    fn json_is_recognized_in_the_ways_that_clients_write_it() {
        for json in ["application/json", "Application/JSON; charset=UTF-8", "application/json;charset=\"utf-8\""] {
            assert!(is_json(&with(CONTENT_TYPE, json)), "{json}");
        }
        assert!(is_json(&HeaderMap::new()));
        for other in ["text/json", "application/x-www-form-urlencoded", "application/json; charset=latin1", ""] {
            assert!(!is_json(&with(CONTENT_TYPE, other)), "{other}");
        }
        assert!(!is_json(&with(CONTENT_ENCODING, "gzip")));
    }

    #[test]
    fn only_a_trace_context_is_passed_on() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&HeaderValue::from_static(good)), Some(good));
        for bad in
            ["00-4bf9-00f0-01", "zz", "", &good.to_uppercase(), &format!("{good}-x"), &good.replace("00-4", "01-4")]
        {
            assert_eq!(traceparent(&HeaderValue::from_str(bad).expect("a header")), None, "{bad}");
        }
    }
}
