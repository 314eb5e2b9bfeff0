//! The admin listener: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever runs us, and the spool's desk for
//! whoever is logged in on this machine.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};

use super::{Answer, Connection, Handler};

use crate::desk::{Ask, Desk, Trouble};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::shutdown::Shutdown;

/// `[admin]`'s answers.
pub struct Admin {
    metrics: Arc<Metrics>,
    publisher: Arc<Publisher>,
    shutdown: Shutdown,
    /// Where there is a spool.
    desk: Option<Desk>,
}

impl Admin {
    pub const fn new(metrics: Arc<Metrics>, publisher: Arc<Publisher>, shutdown: Shutdown, desk: Option<Desk>) -> Self {
        Self { metrics, publisher, shutdown, desk }
    }

    fn ready(&self) -> (StatusCode, &'static str) {
        if self.shutdown.draining.is_cancelled() {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: shutting down\n")
        } else if self.metrics.is_ready() {
            (StatusCode::OK, "ready\n")
        } else if self.desk.is_some() {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: neither Kafka nor the spool takes events\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: Kafka cannot take events\n")
        }
    }

    /// Events are the business of those who are on this machine, and not of a web page in their browser.
    async fn desk(&self, ask: Ask, request: &Request<Incoming>, peer: SocketAddr) -> Answer {
        if !peer.ip().to_canonical().is_loopback() || request.headers().contains_key(ORIGIN) {
            return text(StatusCode::FORBIDDEN, "the spool is shown on the relay's own machine only\n");
        }
        let Some(desk) = &self.desk else {
            return text(StatusCode::NOT_FOUND, "there is no spool: spool.directory is not configured\n");
        };
        let (status, body) = match desk.answer(ask).await {
            Ok(json) => (StatusCode::OK, json),
            Err(trouble @ Trouble::NoSuch(_)) => (StatusCode::NOT_FOUND, format!("{trouble}\n")),
            Err(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")),
        };
        let format = if status == StatusCode::OK { "application/json" } else { TEXT };
        answer(status, format, Bytes::from(body))
    }

    async fn find(&self, request: Request<Incoming>, peer: SocketAddr) -> Answer {
        let uri = request.uri();
        if let Some(ask) = Ask::read(request.method().as_str(), uri.path(), uri.query().unwrap_or_default()) {
            return self.desk(ask, &request, peer).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match uri.path() {
            "/metrics" => {
                let in_flight = self.publisher.records_in_flight();
                self.metrics.records_in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
                answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Bytes::from(self.metrics.text()))
            }
            "/livez" => text(StatusCode::OK, "alive\n"),
            "/readyz" => {
                let (status, line) = self.ready();
                text(status, line)
            }
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /livez, /readyz, /spool and /dead-letters\n"),
        }
    }
}

impl Handler for Admin {
    const READS_BODIES: bool = false;

    fn answer(
        connection: &Arc<Connection<Self>>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let connection = Arc::clone(connection);
        async move { connection.handler.find(request, connection.peer).await }
    }

    fn connections(&self, _: usize) {}
}

const TEXT: &str = "text/plain; charset=utf-8";

fn text(status: StatusCode, line: &'static str) -> Answer {
    answer(status, TEXT, Bytes::from_static(line.as_bytes()))
}

fn answer(status: StatusCode, format: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format));
    answer
}
