//! The admin listener: `/metrics` for Prometheus, perhaps with a bearer token; `/livez` and `/readyz` for who runs us, always open.

use std::fmt;

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, Request, StatusCode};

use super::{Answer, Exchange, Handler, bearer, text};
use crate::event::Token;
use crate::telemetry::Throttle;

/// Answers about the relay.
pub struct Admin {
    /// The text that Prometheus scrapes.
    pub metrics: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    /// What who scrapes has to send as bearer token, if anything.
    pub token: Box<dyn Fn() -> Option<Token> + Send + Sync>,
    /// Counts a scrape without it.
    pub unauthorized: Box<dyn Fn() + Send + Sync>,
    /// Why the process should be restarted, if so.
    pub dead: Box<dyn Fn() -> Option<String> + Send + Sync>,
    pub readiness: Box<dyn Fn() -> Readiness + Send + Sync>,
    /// What that follows from, a line each.
    pub states: Box<dyn Fn() -> String + Send + Sync>,
}

/// Whether events can be made durable, in the words of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// They can, and there is something that an operator should know.
    ReadyBut(String),
    NotReady(&'static str),
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::ReadyBut(warning) => write!(f, "ready, but {warning}"),
            Self::NotReady(why) => write!(f, "not ready: {why}"),
        }
    }
}

impl Admin {
    fn scrape(&self, headers: &HeaderMap, exchange: &Exchange) -> Answer {
        if (self.token)().is_none_or(|token| is_authorized(headers, &token)) {
            return typed(text(StatusCode::OK, (self.metrics)()), "text/plain; version=0.0.4; charset=utf-8");
        }
        static REFUSED: Throttle = Throttle::new(std::time::Duration::from_secs(10));
        (self.unauthorized)();
        if let Some(suppressed) = REFUSED.pass() {
            tracing::warn!(peer = %exchange.peer(), suppressed, "scrape refused: admin.token is missing or wrong");
        }
        let mut answer =
            text(StatusCode::UNAUTHORIZED, "unauthorized; send the token of admin.token as a bearer token\n");
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        answer
    }
}

/// What a listener for probes alone answers.
pub struct Probes(pub Arc<Admin>);

impl Handler for Probes {
    async fn answer(&self, request: Request<Incoming>, exchange: &Exchange) -> Answer {
        match request.uri().path() {
            "/livez" | "/readyz" => self.0.answer(request, exchange).await,
            _ => text(StatusCode::NOT_FOUND, "not found; there are /livez and /readyz\n"),
        }
    }
}

impl Handler for Admin {
    async fn answer(&self, request: Request<Incoming>, exchange: &Exchange) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/metrics" => self.scrape(request.headers(), exchange),
            "/livez" => match (self.dead)() {
                None => text(StatusCode::OK, "alive\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not alive: {why}\n")),
            },
            "/readyz" => {
                let readiness = (self.readiness)();
                let is_ready = !matches!(readiness, Readiness::NotReady(_));
                let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                text(status, format!("{readiness}\n{}", (self.states)()))
            }
            _ => text(StatusCode::NOT_FOUND, "not found; there are /metrics, /livez and /readyz\n"),
        }
    }
}

fn is_authorized(headers: &HeaderMap, token: &Token) -> bool {
    bearer(headers).is_some_and(|delivered| token.equals(delivered))
}

fn typed(mut answer: Answer, content_type: &'static str) -> Answer {
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use hyper::header::AUTHORIZATION;
    use secrecy::SecretString;

    use super::*;

    #[test]
    fn only_one_whole_token_in_one_header_is_authorized() {
        let token = Token::new(&SecretString::from("t0ken-of-the-tests"));
        let is_authorized = |values: &[&str]| {
            let values = values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).expect("a value")));
            super::is_authorized(&values.collect(), &token)
        };
        for right in ["Bearer t0ken-of-the-tests", "bearer t0ken-of-the-tests", "BEARER   t0ken-of-the-tests"] {
            assert!(is_authorized(&[right]), "{right}");
        }
        let right = "Bearer t0ken-of-the-tests";
        for wrong in [
            &[][..],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &["Bearer t0ken-of-the-test"],
            &["Bearer t0ken-of-the-tests2"],
            &["Bearer T0ken-of-the-tests"],
            &["Basic t0ken-of-the-tests"],
            &["t0ken-of-the-tests"],
            &["Bearer\tt0ken-of-the-tests"],
            &["Bearer t0ken-of-the-tests, Bearer t0ken-of-the-tests"],
            &[right, right],
        ] {
            assert!(!is_authorized(wrong), "{wrong:?}");
        }
    }
}
