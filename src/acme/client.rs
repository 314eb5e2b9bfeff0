//! HTTPS to the authority: with its roots, with a limit of what it may answer, and with an ear for how long it wants to be left alone.

use std::error::Error as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use hyper::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use rustls::{ClientConfig, RootCertStore};

/// A directory, an order or a chain of certificates is a few kB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// No authority means more than this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A client for one order. Clones share what was said of retries.
#[derive(Clone)]
pub struct Client {
    http: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl Client {
    /// With these roots, or those that browsers have.
    pub fn new(roots: Option<Arc<RootCertStore>>) -> Self {
        let browsers = || Arc::new(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect::<RootCertStore>());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the versions that it is built with")
            .with_root_certificates(roots.unwrap_or_else(browsers))
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build();
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        Self { http, retry_after: Arc::default() }
    }

    /// How long the authority wants to be left alone, as it said last with a refusal.
    pub fn retry_after(&self) -> Option<Duration> {
        *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (is_directory, host) =
            (request.method() == Method::GET, request.uri().host().unwrap_or_default().to_owned());
        let (answer, retry_after) = (self.http.request(request), Arc::clone(&self.retry_after));
        Box::pin(async move {
            let (parts, body) = answer.await.map_err(|e| other(format!("{host}: {}", causes(&e))))?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| other(format!("{host}: the answer cannot be read: {e}")))?.to_bytes();
            if parts.status.is_client_error() || parts.status.is_server_error() {
                *retry_after.lock().unwrap_or_else(PoisonError::into_inner) = wanted(&parts.headers, Timestamp::now());
                let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let problem = content_type.filter(|kind| kind.contains("json"));
                match problem.and_then(|_| serde_json::from_slice::<Problem>(&body).ok()) {
                    // instant-acme looks at the status of other answers only.
                    Some(problem) if is_directory => return Err(Error::Api(problem)),
                    Some(_) => {}
                    None => return Err(other(format!("{host} answers {}", parts.status))),
                }
            }
            Ok(BytesResponse::from(hyper::Response::from_parts(parts, Full::new(body))))
        })
    }
}

fn other(why: String) -> Error {
    Error::Other(why.into())
}

/// An error of hyper's client says little without its causes.
fn causes(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// `Retry-After`: seconds, or a date.
fn wanted(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = text.parse().ok().map(Duration::from_secs);
    let until = || Duration::try_from(rfc2822::parse(text).ok()?.timestamp().duration_since(now)).ok();
    seconds.or_else(until).map(|wait| wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "2026-11-28T10:00:00Z".parse().expect("a time");
        for (text, expected) in [
            ("120", Some(120)),
            (" 5 ", Some(5)),
            ("Sat, 28 Nov 2026 10:01:00 GMT", Some(60)),
            ("Sat, 28 Nov 2026 09:00:00 GMT", None),
            ("99999999999", Some(7 * 24 * 3600)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("a header"))]);
            assert_eq!(wanted(&headers, now), expected.map(Duration::from_secs), "{text}");
        }
        assert_eq!(wanted(&HeaderMap::new(), now), None);
    }
}
