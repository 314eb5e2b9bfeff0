//! Connections: accepted up to a number, HTTP/1.1 or HTTP/2 by hyper, each closed when it is late, and all when the daemon stops.

pub mod admin;
pub mod client;
pub mod failures;
pub mod pages;
pub mod tls;
pub mod webhook;

mod app_page;
mod connection;
mod install;
mod proxy_protocol;
mod refusals;

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING,
    WWW_AUTHENTICATE,
};
use hyper::http::uri::Authority;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::outcome::{ConnectionEnd as End, Outcome, Refusal, Unavailable};
use crate::shutdown::Shutdown;
use crate::telemetry::Throttles;
pub use connection::Exchange;
use connection::{Connection, Watched, head_bytes};
pub use refusals::Refusals;
use tls::{Handshake, Tls};

/// What a listener allows. Every field is a key of `[server]` or `[admin]`.
#[derive(Clone, Debug)]
pub struct Limits {
    pub connections_max: usize,
    pub eviction_grace: Duration,
    pub header_bytes_max: usize,
    pub header_timeout: Duration,
    pub keepalive_timeout: Duration,
    pub write_timeout: Duration,
    pub linger_timeout: Duration,
    /// HTTP/2 streams of a connection, and the bytes that its client may send before they are read.
    pub streams_max: u32,
    pub window_bytes: u32,
    /// How long a connection may last in all, if not as long as it likes. Its requests are then answered whatever others need.
    pub lifetime: Option<Duration>,
}

pub type Answer = Response<Full<Bytes>>;

/// Answers requests; one a listener.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. Dropped before its end when the client has gone.
    fn answer(&self, request: Request<Incoming>, exchange: &Exchange) -> impl Future<Output = Answer> + Send;

    /// Answers a request that does not go to [`Handler::answer`], or, without it, for one whose handler has panicked.
    fn refuse(&self, outcome: Outcome, _: Option<&Request<Incoming>>, _: &Exchange) -> Answer {
        answer(outcome)
    }

    /// An answer was given, perhaps by hyper.
    fn answered(&self, _: StatusCode) {}

    /// A TLS handshake is done.
    fn secured(&self, _is_resumed: bool) {}

    /// A connection has ended.
    fn ended(&self, _: End) {}
}

const COMPLAINTS_INTERVAL: Duration = Duration::from_secs(10);

/// Kinds of failed handshakes that have a log line each in that time.
const FAILED_HANDSHAKES_MAX: usize = 16;

/// Asks an accept loop whether it comes round.
#[derive(Default)]
struct Round {
    asked: Notify,
    come: Notify,
}

impl Round {
    async fn come(&self) {
        self.asked.notify_one();
        self.come.notified().await;
    }
}

impl<H: Handler> Handler for Arc<H> {
    fn answer(&self, request: Request<Incoming>, exchange: &Exchange) -> impl Future<Output = Answer> + Send {
        H::answer(self, request, exchange)
    }

    fn refuse(&self, outcome: Outcome, request: Option<&Request<Incoming>>, exchange: &Exchange) -> Answer {
        H::refuse(self, outcome, request, exchange)
    }

    fn answered(&self, status: StatusCode) {
        H::answered(self, status);
    }

    fn secured(&self, is_resumed: bool) {
        H::secured(self, is_resumed);
    }

    fn ended(&self, end: End) {
        H::ended(self, end);
    }
}

/// A listener's server.
pub struct Server<H> {
    pub handler: H,
    /// A connection keeps those that it has begun with.
    settings: ArcSwap<Settings>,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    /// How many there have been.
    accepted: AtomicU64,
    /// One of them has ended.
    ended: Notify,
    /// One an accept loop.
    rounds: Mutex<Vec<Arc<Round>>>,
    shutdown: Shutdown,
    complaints: Throttles,
    /// By reason and text. Clients have a say in the text: it must not use up the lines about other things.
    failed_handshakes: Throttles,
}

/// Limits and hyper's part of them, and whether a PROXY protocol header comes first.
struct Settings {
    limits: Limits,
    clients: client::Config,
    http: auto::Builder<TokioExecutor>,
}

impl Settings {
    fn new(limits: Limits, clients: client::Config) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        // With half_close a request is answered whose client has ended its side behind it.
        http.http1().header_read_timeout(None).half_close(true).max_buf_size(limits.header_bytes_max);
        http.http2()
            .max_concurrent_streams(limits.streams_max)
            .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
            .initial_connection_window_size(limits.window_bytes)
            .initial_stream_window_size(limits.window_bytes);
        Self { limits, clients, http }
    }
}

impl<H: Handler> Server<H> {
    pub fn new(handler: H, limits: Limits, clients: client::Config, shutdown: Shutdown) -> Arc<Self> {
        let complaints = Throttles::new(COMPLAINTS_INTERVAL);
        let failed_handshakes = Throttles::with_names(COMPLAINTS_INTERVAL, FAILED_HANDSHAKES_MAX);
        let (connections, accepted, ended) = (Mutex::default(), AtomicU64::new(0), Notify::new());
        let (settings, rounds) = (ArcSwap::from_pointee(Settings::new(limits, clients)), Mutex::default());
        Arc::new(Self {
            handler,
            settings,
            connections,
            accepted,
            ended,
            rounds,
            shutdown,
            complaints,
            failed_handshakes,
        })
    }

    /// Changes the limits, of connections to come and of how many there may be, and whose PROXY protocol headers they need.
    pub fn set(&self, limits: Limits, clients: client::Config) {
        self.settings.store(Arc::new(Settings::new(limits, clients)));
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.connections().len()
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts until `closing`, and serves what was accepted until it has ended. The listener is bound before, so that
    /// a port that is taken is an error at the start. One server may have several listeners, with TLS and without: its limits are for
    /// all together.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<Arc<Tls>>, closing: CancellationToken) {
        let round = Arc::new(Round::default());
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&round));
        loop {
            let accepted = closing.run_until_cancelled(self.accept(&listener, &round)).await;
            let Some((stream, peer)) = accepted else { break };
            let connection = Arc::new(Connection::new(peer));
            let number = self.accepted.fetch_add(1, Ordering::Relaxed);
            self.connections().insert(number, Arc::clone(&connection));
            let (server, tls) = (Arc::clone(&self), tls.clone());
            tokio::spawn(async move {
                let end = AssertUnwindSafe(server.drive(stream, tls, &connection)).catch_unwind().await;
                server.handler.ended(end.unwrap_or(End::Panic));
                server.connections().remove(&number);
                server.ended.notify_waiters();
            });
        }
        drop(listener);
        self.connections().values().for_each(|connection| connection.close(End::Shutdown));
        loop {
            let ended = self.ended.notified(); // before it looks: the last one may end meanwhile
            if self.open() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Waits until each accept loop has come round, which they do at once; or are needed no longer.
    pub async fn come_round(&self) {
        let rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let come = join_all(rounds.iter().map(|round| round.come()));
        let _ = self.shutdown.closing.run_until_cancelled(come).await;
    }

    /// The next connection, when there is room for it. Errors, such as too many open files, pass: they are waited out.
    async fn accept(&self, listener: &TcpListener, round: &Round) -> (TcpStream, SocketAddr) {
        let accepted = loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = round.asked.notified() => {
                    round.come.notify_one();
                    continue;
                }
            };
            match accepted {
                Ok(accepted) => break accepted,
                Err(error) => {
                    if let Some(suppressed) = self.complaints.pass("accept") {
                        tracing::warn!(%error, suppressed, "cannot accept connections");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        loop {
            let ended = self.ended.notified();
            let settings = self.settings.load_full();
            if self.open() < settings.limits.connections_max {
                return accepted;
            }
            self.make_room(&settings.limits);
            // Where none may be evicted, one is soon idle or old enough.
            tokio::select! {
                _ = tokio::time::timeout(settings.limits.eviction_grace, ended) => {}
                () = round.asked.notified() => round.come.notify_one(),
            }
        }
    }

    /// Evicts the connections that others need least; some at a time, for to find them takes a look at all.
    fn make_room(&self, limits: &Limits) {
        let connections: Vec<_> = self.connections().values().cloned().collect();
        let order = |connection| Some((Connection::eviction_order(connection, limits)?, connection));
        let mut evicted: Vec<_> = connections.iter().map(Arc::as_ref).filter_map(order).collect();
        evicted.sort_by_key(|(order, _)| *order);
        evicted.truncate(1 + connections.len() / 64);
        evicted.iter().for_each(|(_, connection)| connection.close(End::Evicted));
        let closed = evicted.len();
        if closed > 0
            && let Some(suppressed) = self.complaints.pass("evict")
        {
            tracing::warn!(closed, suppressed, "connections_max is reached: the longest waiting are closed");
        }
    }

    /// One connection from its first byte to its end.
    async fn drive(self: &Arc<Self>, stream: TcpStream, tls: Option<Arc<Tls>>, connection: &Arc<Connection>) -> End {
        let _ = stream.set_nodelay(true); // a socket that is gone already ends by itself
        let settings = &self.settings.load_full();
        self.try_drive(stream, tls, connection, settings).await.unwrap_or_else(|end| end)
    }

    /// The error is an end before HTTP has begun.
    async fn try_drive(
        self: &Arc<Self>,
        stream: TcpStream,
        tls: Option<Arc<Tls>>,
        connection: &Arc<Connection>,
        settings: &Settings,
    ) -> Result<End, End> {
        let is_behind_proxy = settings.clients.source == client::Source::ProxyProtocol;
        let (stream, client) = if tls.is_none() || is_behind_proxy {
            connection.in_time(&settings.limits, self.begin(stream, connection, settings)).await??
        } else {
            (stream, connection.peer().ip().to_canonical()) // its first byte is looked at where the handshake begins
        };
        let Some(tls) = tls else { return Ok(self.speak_http(stream, connection, client, settings, None).await) };
        Ok(match tls.shake_hands(stream, connection, settings.limits.connections_max).await {
            Ok(Handshake::Done(stream)) => {
                connection.secured();
                self.handler.secured(tls::is_resumed(&stream));
                self.speak_http(stream, connection, client, settings, None).await
            }
            Ok(Handshake::PlainHttp(stream)) => {
                let (stream, client) = if is_behind_proxy {
                    (stream, client)
                } else {
                    connection.in_time(&settings.limits, self.begin(stream, connection, settings)).await??
                };
                self.speak_http(stream, connection, client, settings, Some(Refusal::PlainHttp)).await
            }
            Ok(Handshake::Challenge) => {
                if let Some(suppressed) = self.complaints.pass("ACME challenge") {
                    tracing::info!(%client, suppressed, "an ACME challenge was requested: the authority does that, and anyone can");
                }
                End::Client
            }
            Err(failed) => {
                self.complain(&failed, client);
                if let Some(stream) = failed.told {
                    let mut stream = Watched::new(stream, Arc::clone(connection), settings.limits.linger_timeout);
                    tokio::select! {
                        () = connection.closed.notified() => {}
                        _ = stream.shutdown() => {} // the client may have left
                    }
                }
                failed.end
            }
        })
    }

    /// What strangers send is no reason for more than a line in ten seconds for each kind, and a health check that only connects for none.
    fn complain(&self, tls::Failed { end, why, server_name, .. }: &tls::Failed, client: IpAddr) {
        let (reason, server_name) = (end.label(), server_name.as_deref());
        match why {
            None => {
                tracing::debug!(%client, server_name, reason, "the connection ended before the TLS handshake was done")
            }
            Some(why) => {
                if let Some(suppressed) = self.failed_handshakes.pass(&format!("{reason}: {why}")) {
                    tracing::warn!(%client, server_name, reason, why, suppressed, "TLS handshake failed");
                }
            }
        }
    }

    /// HTTP over whatever was accepted, until the connection ends. With `refusal` every request is refused.
    async fn speak_http<S>(
        self: &Arc<Self>,
        stream: S,
        connection: &Arc<Connection>,
        connected: IpAddr,
        settings: &Settings,
        refusal: Option<Refusal>,
    ) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Settings { limits, clients, http } = settings;
        let head_bytes_max = limits.header_bytes_max as u64;
        let has_proxy_header = clients.source == client::Source::ProxyProtocol;
        let origin = client::Origin { address: connected, has_proxy_header };
        let service = service_fn(|request: Request<Incoming>| {
            let (server, exchange) = (Arc::clone(self), Exchange::begin(connection, &request, origin));
            async move { Ok::<_, Infallible>(server.exchange(request, exchange, refusal, head_bytes_max).await) }
        });
        let stream = TokioIo::new(Watched::new(stream, Arc::clone(connection), limits.linger_timeout));
        let mut http = pin!(http.serve_connection(stream, service));
        let mut is_closing = false;
        loop {
            if !is_closing && connection.can_close() {
                is_closing = true;
                http.as_mut().graceful_shutdown(); // what is under way is answered first, and HTTP/2 says goodbye
            }
            tokio::select! {
                biased;
                done = http.as_mut() => return self.done(done, connection),
                end = connection.late(limits) => match end {
                    End::KeepaliveTimeout if !is_closing => connection.close(end),
                    end => return end,
                },
                () = connection.closed.notified() => {}
            }
        }
    }

    /// What comes before HTTP: the stream behind it, and the address that the connection comes from.
    async fn begin(
        &self,
        mut stream: TcpStream,
        connection: &Arc<Connection>,
        Settings { limits, clients, .. }: &Settings,
    ) -> Result<(TcpStream, IpAddr), End> {
        let peer = connection.peer().ip().to_canonical();
        match proxy_protocol::client(&mut stream, peer, clients, &self.complaints).await {
            Ok(connected) => Ok((stream, connected)),
            Err(proxy_protocol::Refused::Ended) => Err(End::Client),
            Err(proxy_protocol::Refused::Closed) => Err(End::ProxyProtocol),
            Err(proxy_protocol::Refused::Unexpected) => {
                self.handler.answered(StatusCode::BAD_REQUEST);
                let mut stream = Watched::new(stream, Arc::clone(connection), limits.linger_timeout);
                let _ = stream.write_all(&proxy_protocol::unexpected()).await; // it may be gone, which ends it, too
                let _ = stream.shutdown().await;
                Err(End::ProxyProtocol)
            }
        }
    }

    /// How a connection has ended by itself. What hyper could not parse it has answered.
    fn done(&self, done: Result<(), Box<dyn Error + Send + Sync>>, connection: &Connection) -> End {
        let status = match done.err().and_then(|error| error.downcast::<hyper::Error>().ok()) {
            Some(error) if error.is_parse_too_large() => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Some(error) if error.is_parse() => StatusCode::BAD_REQUEST,
            _ => return connection.closing().unwrap_or(End::Client),
        };
        tracing::debug!(peer = %connection.peer(), status = status.as_u16(), "what came is no HTTP");
        self.handler.answered(status);
        End::Malformed
    }

    /// One request and its answer.
    async fn exchange(
        &self,
        request: Request<Incoming>,
        exchange: Exchange,
        refusal: Option<Refusal>,
        head_bytes_max: u64,
    ) -> Answer {
        let answer = match refusal.or_else(|| self::refusal(&request, head_bytes_max)) {
            Some(refusal) => Ok(self.handler.refuse(Outcome::Refused(refusal), Some(&request), &exchange)),
            None => AssertUnwindSafe(self.handler.answer(request, &exchange)).catch_unwind().await,
        };
        let panicked = Outcome::Unavailable(Unavailable::Panic);
        let answer = answer.unwrap_or_else(|_| self.handler.refuse(panicked, None, &exchange));
        self.handler.answered(answer.status());
        exchange.finish(answer, self.shutdown.is_draining())
    }
}

/// What hyper lets pass: heads of HTTP/1 that are a little too long, codings besides `chunked`, and no `Host`, two, or one that is none.
fn refusal(request: &Request<Incoming>, head_bytes_max: u64) -> Option<Refusal> {
    let (version, headers) = (request.version(), request.headers());
    if version != Version::HTTP_2 && head_bytes(request) > head_bytes_max {
        return Some(Refusal::HeadTooLarge);
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Some(Refusal::TransferCoding);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let is_host = |host: &HeaderValue| {
        host.is_empty() || host.to_str().is_ok_and(|host| host.parse::<Authority>().is_ok() && !host.contains('@'))
    };
    let is_good = hosts.next().map_or(version != Version::HTTP_11, is_host) && hosts.next().is_none();
    (!is_good).then_some(Refusal::BadHost)
}

fn answer(outcome: Outcome) -> Answer {
    answer_with(outcome, outcome.answer().1)
}

/// An outcome's answer with another line.
fn answer_with(outcome: Outcome, line: impl Into<Bytes>) -> Answer {
    let (status, _) = outcome.answer();
    let mut answer = text(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), line);
    // RFC 9110 wants a 401 to name a scheme. This one says that the key is in the body.
    let header = match status {
        405 => Some((ALLOW, HeaderValue::from_static("POST"))),
        401 => Some((WWW_AUTHENTICATE, HeaderValue::from_static("LiveChat-Secret-Key"))),
        _ => None,
    };
    answer.headers_mut().extend(header);
    answer
}

/// RFC 6750, section 2.1: one `Authorization`, its scheme in any case, one space or more, the token.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut credentials = headers.get_all(AUTHORIZATION).iter();
    let (Some(only), None) = (credentials.next(), credentials.next()) else { return None };
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let text = text.into();
    // Without a length a proxy that speaks HTTP/2 with us writes an empty answer in chunks.
    let (name, value) =
        if text.is_empty() { (CONTENT_LENGTH, "0") } else { (CONTENT_TYPE, "text/plain; charset=utf-8") };
    let mut answer = Response::new(Full::new(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

#[cfg(test)]
mod tests;
