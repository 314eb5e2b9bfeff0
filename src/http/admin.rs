//! The admin listener: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever runs us.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::{Answer, Handler};
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// `[admin]`'s answers.
pub struct Admin {
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
}

impl Admin {
    pub const fn new(metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        Self { metrics, shutdown }
    }

    fn ready(&self) -> (StatusCode, &'static str) {
        if self.shutdown.draining.is_cancelled() {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: shutting down\n")
        } else if self.metrics.is_ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: neither Kafka nor a spool takes events\n")
        }
    }
}

impl Handler for Admin {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/metrics" => {
                let mut answer = Response::new(Full::new(Bytes::from(self.metrics.text())));
                let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                answer.headers_mut().insert(CONTENT_TYPE, format);
                answer
            }
            "/livez" => text(StatusCode::OK, "alive\n"),
            "/readyz" => {
                let (status, line) = self.ready();
                text(status, line)
            }
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n"),
        }
    }

    fn connections(&self, _: usize) {}
}

fn text(status: StatusCode, line: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(line.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
