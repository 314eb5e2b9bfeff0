//! A simulated LiveChat: accounts, Configuration API, archives, and the webhooks that come of what is registered. What LiveChat's
//! documents say is so here; what they leave open is a switch. It knows nothing of the relay.

mod accounts;
mod api;
mod archives;
mod catalogue;
mod chats;
mod configuration;
mod control;
mod deliveries;
mod exchange;
mod filters;
mod setup;
mod state;
mod switches;

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use exchange::{Answer, Request};
pub use setup::{Client, PersonalAccessToken, Setup};
use state::State;
use switches::{Broken, Fault, When, next_fault};

/// A request may have so many bytes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// So long is an answer that is too large for anyone.
const LARGE: usize = 10 << 20;

/// A simulated LiveChat that can be served.
pub struct Simulator {
    state: Mutex<State>,
    /// Where it is reached.
    url: String,
    sender: deliveries::Sender,
}

impl Simulator {
    /// `tls` is for webhooks to https URLs.
    ///
    /// # Errors
    /// Why there can be no HTTP client for the webhooks.
    pub fn new(setup: Setup, url: &str, tls: &rustls::ClientConfig) -> Result<Arc<Self>, String> {
        let state = Mutex::new(State::new(setup, Instant::now()));
        Ok(Arc::new(Self { state, url: url.to_owned(), sender: deliveries::Sender::new(tls)? }))
    }

    /// Serves what connects, until it is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>) -> Infallible {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await; // such as too many open files: it passes
                continue;
            };
            let (simulator, tls) = (Arc::clone(&self), tls.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true); // a socket that is gone already ends by itself
                match tls {
                    None => simulator.speak(stream).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            simulator.speak(stream).await;
                        }
                    }
                }
            });
        }
    }

    async fn speak(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let simulator = Arc::clone(&self);
            async move { simulator.exchange(request).await }
        });
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new());
        let _ = http.serve_connection(TokioIo::new(stream), service).await; // what ends a connection concerns its client
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error ends the connection without an answer.
    async fn exchange(self: Arc<Self>, request: hyper::Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
            return response(Answer::json(413, &json!({"error": "the body is too large, or did not come"})));
        };
        let request = Request::new(parts, body.to_bytes());
        if let Some(path) = control::path(&request) {
            return response(control::answer(&self, &request, path, Instant::now()));
        }
        let method = match api::parts(&request.path) {
            Some((_, _, name)) => Some(name),
            None => accounts::method(&request),
        };
        let Some(method) = method else {
            return response(Answer::json(404, &json!({"error": "the simulated LiveChat has nothing at this path"})));
        };
        let (number, fault) = {
            let mut state = self.state();
            let number = state.requests.begin(method, &request);
            (number, next_fault(&mut state.faults, method))
        };
        let answer = self.answer(&request, method, fault).await?;
        {
            let mut state = self.state();
            state.requests.end(number, answer.status, answer.error.clone());
            // Every call of the API is paid, but for status 500; one without a token has no one to pay.
            let is_billed = api::parts(&request.path).is_some()
                && answer.status != 500
                && request.headers.contains_key("authorization");
            state.billed += u64::from(is_billed);
        }
        response(answer)
    }

    /// The answer with its fault.
    async fn answer(&self, request: &Request, method: &str, fault: Option<Fault>) -> io::Result<Answer> {
        let Some(fault) = fault else { return Ok(self.act(request, method)) };
        let delay = tokio::time::sleep(Duration::from_secs_f64(fault.delay));
        let mut answer = match fault.when {
            When::Before => {
                delay.await;
                (!fault.replaces()).then(|| self.act(request, method))
            }
            When::After => {
                let answer = self.act(request, method);
                delay.await;
                Some(answer)
            }
        };
        if let Some(kind) = &fault.error {
            let (message, switches) = (fault.message.as_deref(), &self.state().switches);
            answer = Some(if api::parts(&request.path).is_some() {
                api::error(switches, kind, message, fault.data.as_ref())
            } else if method == "authorize" {
                accounts::refuse(kind, message.unwrap_or_default())
            } else {
                let extra = fault.data.iter().filter_map(|data| data.as_object()).flatten();
                let extra = extra.map(|(name, value)| (name.as_str(), value.clone())).collect();
                accounts::error(switches, kind, message.unwrap_or_default(), &extra)
            });
        }
        let mut answer = match fault.answer {
            None => answer.expect("what has no other answer has acted, or is an error"),
            Some(broken) => self::broken(broken, answer).await?,
        };
        answer.status = fault.status.unwrap_or(answer.status);
        answer.headers.retain(|(name, _)| !fault.headers.contains_key(name));
        answer.headers.extend(fault.headers);
        Ok(answer)
    }

    fn act(&self, request: &Request, method: &str) -> Answer {
        let (mut state, now) = (self.state(), Instant::now());
        let state = &mut *state;
        let mut answer = match api::parts(&request.path) {
            Some(_) => api::answer(state, request, now),
            None => accounts::answer(state, request, method, now),
        };
        if state.switches.unknown_members {
            add_unknown_members(&mut answer);
        }
        answer
    }
}

async fn broken(broken: Broken, answer: Option<Answer>) -> io::Result<Answer> {
    Ok(match broken {
        Broken::Html => Answer::html(502, "<!doctype html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1>"),
        Broken::Redirect => Answer::redirect("https://elsewhere.invalid/".to_owned()),
        Broken::Large => Answer::new(200, "application/json", format!(r#"{{"id":"{}"}}"#, "x".repeat(LARGE))),
        Broken::Empty => Answer::new(200, "application/json", ""),
        Broken::Hang => std::future::pending().await,
        Broken::Close => return Err(io::Error::other("a fault that was asked for")),
        Broken::Truncated => {
            let answer = answer.unwrap_or_else(Answer::done);
            Answer { body: answer.body.slice(..answer.body.len() / 2), ..answer }
        }
    })
}

/// Members that nothing documents, in objects and in the objects of a list.
fn add_unknown_members(answer: &mut Answer) {
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(&answer.body) else { return };
    let add = |value: &mut serde_json::Value| {
        if let Some(object) = value.as_object_mut() {
            object.insert("undocumented".to_owned(), json!({"since": [1, null]}));
        }
    };
    value.as_array_mut().into_iter().flatten().for_each(add);
    add(&mut value);
    answer.body = value.to_string().into();
}

fn response(answer: Answer) -> io::Result<Response<Full<Bytes>>> {
    let status = StatusCode::from_u16(answer.status).map_err(io::Error::other)?;
    let mut response = Response::builder().status(status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Full::new(answer.body)).map_err(io::Error::other)
}
