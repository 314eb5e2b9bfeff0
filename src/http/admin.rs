//! The admin listener: `/metrics` for Prometheus, `/livez` and `/readyz` for who runs us.

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};

use super::{Answer, Exchange, Handler, text};

/// Answers about the relay.
pub struct Admin {
    /// The text that Prometheus scrapes.
    pub metrics: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    /// Why the process should be restarted, if so.
    pub dead: Box<dyn Fn() -> Option<String> + Send + Sync>,
    /// Why events cannot be made durable, if so.
    pub unready: Box<dyn Fn() -> Option<&'static str> + Send + Sync>,
    /// What an operator should know though events can be made durable, if anything.
    pub warning: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

impl Handler for Admin {
    async fn answer(&self, request: Request<Incoming>, _: &Exchange) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let state = |why: Option<String>, well: &'static str| match why {
            None => text(StatusCode::OK, well),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not {well}: {why}\n").replace("\n:", ":")),
        };
        match request.uri().path() {
            "/metrics" => typed(text(StatusCode::OK, (self.metrics)()), "text/plain; version=0.0.4; charset=utf-8"),
            "/livez" => state((self.dead)(), "alive\n"),
            "/readyz" => match ((self.unready)(), (self.warning)()) {
                (None, Some(warning)) => text(StatusCode::OK, format!("ready, but {warning}\n")),
                (unready, _) => state(unready.map(str::to_owned), "ready\n"),
            },
            _ => text(StatusCode::NOT_FOUND, "not found; there are /metrics, /livez and /readyz\n"),
        }
    }
}

fn typed(mut answer: Answer, content_type: &'static str) -> Answer {
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
