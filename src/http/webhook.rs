//! The webhook listener: bytes in, an [`Outcome`] from the relay, a status out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use tokio::time::{Instant, sleep_until};

use super::{Answer, Exchange, Handler, answer};
use crate::budget::{Budget, Held};
use crate::event::traceparent;
use crate::metrics::Metrics;
use crate::outcome::Unavailable::{AppShare, Overloaded, SlowBody};
use crate::outcome::{ConnectionEnd, Outcome, Refusal};
use crate::relay::{Endpoint, Relay};
use crate::telemetry::Throttles;

/// `[server]`, but for the limits of its connections.
#[derive(Clone, Debug)]
pub struct Config {
    pub body_bytes_max: usize,
    pub body_timeout: Duration,
    pub response_deadline: Duration,
    pub retry_after: Duration,
}

/// Answers `POST /webhooks/{app}`.
pub struct Webhooks {
    pub relay: Relay,
    pub budget: Arc<Budget>,
    pub metrics: Arc<Metrics>,
    pub config: Config,
    /// One line in ten seconds for each reason: a stranger must not fill the log.
    pub refused: Throttles,
}

/// What is kept of a request's head while its body comes: of a stranger's text no more than a bounded token.
struct Head {
    endpoint: Endpoint,
    traceparent: Option<String>,
}

impl Webhooks {
    /// The path comes first: what is posted nowhere is not found, however it is posted.
    fn head(&self, request: &Request<Incoming>) -> Result<Head, Refusal> {
        let endpoint = self.relay.endpoint(request.uri().path()).ok_or(Refusal::NotFound)?;
        let (headers, declared) = (request.headers(), request.body().size_hint().lower());
        if request.method() != Method::POST {
            return Err(Refusal::MethodNotAllowed);
        }
        if headers.get(CONTENT_ENCODING).is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
        {
            return Err(Refusal::ContentEncoding);
        }
        if !headers.get(CONTENT_TYPE).is_none_or(is_json) {
            return Err(Refusal::ContentType);
        }
        if declared > self.config.body_bytes_max as u64 {
            return Err(Refusal::BodyTooLarge);
        }
        let text = headers.get("traceparent").and_then(|value| value.to_str().ok());
        Ok(Head { endpoint, traceparent: text.and_then(traceparent) })
    }

    /// The whole body, and its part of the budget, of which it has what has come.
    async fn body(&self, mut body: Incoming, received: Instant) -> Result<(BytesMut, Held), Outcome> {
        let mut reading = self.budget.begin().map_err(Outcome::Unavailable)?;
        let evicted = reading.evicted();
        let read = async {
            let mut bytes = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| Outcome::Refused(Refusal::BodyIncomplete))?;
                let Ok(data) = frame.into_data() else { continue };
                let length = bytes.len() + data.len();
                if length > self.config.body_bytes_max {
                    return Err(Outcome::Refused(Refusal::BodyTooLarge));
                }
                reading.grow_to(length).map_err(Outcome::Unavailable)?;
                bytes.extend_from_slice(&data);
            }
            Ok((bytes, reading.complete().map_err(Outcome::Unavailable)?))
        };
        tokio::select! {
            biased;
            read = read => read,
            () = evicted => Err(Outcome::Unavailable(SlowBody)),
            () = sleep_until(received + self.config.body_timeout) => Err(Outcome::Refused(Refusal::BodyTooSlow)),
        }
    }

    async fn outcome(&self, head: &Head, body: Incoming, exchange: &Exchange) -> Result<Outcome, Outcome> {
        let received = Instant::now();
        let (body, held) = self.body(body, received).await?;
        let accepted =
            self.relay.accept(&head.endpoint, &body, head.traceparent.as_deref()).map_err(Outcome::Rejected)?;
        drop(body);
        exchange.verified();
        let shares = self.relay.policy().has_several_apps() && !accepted.is_dropped();
        let held = if shares { held.of_app(head.endpoint.app()).map_err(Outcome::Unavailable)? } else { held };
        Ok(self.relay.deliver(accepted, held, received + self.config.response_deadline).outcome().await)
    }

    /// Counts and logs what has become of a request, and makes its answer.
    fn conclude(&self, outcome: Outcome, app: &str, peer: SocketAddr) -> Answer {
        let mut answer = answer(outcome);
        let reason = match outcome {
            Outcome::Rejected(rejection) => rejection.label(),
            Outcome::Refused(refusal) => refusal.label(),
            Outcome::Unavailable(reason) => {
                self.metrics.unavailable(reason);
                if reason == AppShare
                    && let Some(suppressed) = self.refused.pass(&format!("{} {app}", reason.label()))
                {
                    tracing::warn!(
                        app,
                        suppressed,
                        "the app holds as many bytes of webhooks as are free: more of them are answered 503, so that other apps have room"
                    );
                }
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(self.config.retry_after.as_secs()));
                return answer;
            }
            _ => return answer,
        };
        self.metrics.refused(reason);
        if let Some(suppressed) = self.refused.pass(reason) {
            tracing::warn!(app, reason, %peer, suppressed, "request refused");
        }
        answer
    }
}

impl Handler for Webhooks {
    async fn answer(&self, request: Request<Incoming>, exchange: &Exchange) -> Answer {
        let began = Instant::now();
        let (head, body) = (self.head(&request), request.into_body());
        let has_body = !body.is_end_stream();
        let (outcome, app) = match &head {
            Ok(head) => (self.outcome(head, body, exchange).await, head.endpoint.app()),
            Err(refusal) => (Err(Outcome::Refused(*refusal)), "unknown"),
        };
        let outcome = outcome.unwrap_or_else(|refused| refused);
        let mut answer = self.conclude(outcome, app, exchange.peer());
        let is_read = !matches!(outcome, Outcome::Refused(_) | Outcome::Unavailable(Overloaded | SlowBody));
        if has_body && !is_read {
            // What is left of the body may still be coming.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.metrics.request_seconds.observe(began.elapsed().as_secs_f64());
        answer
    }

    fn refuse(&self, outcome: Outcome, peer: SocketAddr) -> Answer {
        self.conclude(outcome, "unknown", peer)
    }

    fn answered(&self, status: StatusCode) {
        self.metrics.answered(status.as_str());
    }

    fn ended(&self, end: ConnectionEnd) {
        self.metrics.connection_ended(end);
    }
}

/// `application/json`, in UTF-8 where a charset is named.
fn is_json(content_type: &HeaderValue) -> bool {
    let Some(content_type) = content_type.to_str().ok().and_then(|text| text.parse::<mime::Mime>().ok()) else {
        return false;
    };
    content_type.essence_str() == "application/json"
        && content_type.get_param(mime::CHARSET).is_none_or(|charset| charset == mime::UTF_8 || charset == "utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_recognized_in_the_ways_that_clients_write_it() {
        for json in ["application/json", "Application/JSON; charset=UTF-8", "application/json;charset=\"utf-8\""] {
            assert!(is_json(&HeaderValue::from_static(json)), "{json}");
        }
        for other in ["text/json", "application/x-www-form-urlencoded", "application/json; charset=latin1", "", "json"]
        {
            assert!(!is_json(&HeaderValue::from_static(other)), "{other}");
        }
    }
}
