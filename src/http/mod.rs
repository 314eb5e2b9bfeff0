//! Connections: accepted up to a number, HTTP/1.1 or HTTP/2 by hyper, each closed when it is late, and all when the daemon stops.

pub mod admin;
pub mod webhook;

mod connection;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue, TRANSFER_ENCODING, WWW_AUTHENTICATE};
use hyper::http::uri::Authority;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::outcome::{ConnectionEnd as End, Outcome, Refusal, Unavailable};
use crate::shutdown::Shutdown;
use crate::telemetry::Throttle;
pub use connection::Exchange;
use connection::{Connection, Watched, head_bytes};

/// What a listener allows. Every field is a key of `[server]` or `[admin]`.
#[derive(Clone, Debug)]
pub struct Limits {
    pub connections_max: usize,
    pub header_bytes_max: usize,
    pub header_timeout: Duration,
    pub keepalive_timeout: Duration,
    pub write_timeout: Duration,
    pub linger_timeout: Duration,
    /// HTTP/2 streams of a connection, and the bytes that its client may send before they are read.
    pub streams_max: u32,
    pub window_bytes: u32,
    /// How long a connection may last in all, if not as long as it likes.
    pub lifetime: Option<Duration>,
}

pub type Answer = Response<Full<Bytes>>;

/// Answers requests; one a listener.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. Dropped before its end when the client has gone.
    fn answer(&self, request: Request<Incoming>, exchange: &mut Exchange) -> impl Future<Output = Answer> + Send;

    /// Answers for a request that did not come through [`Handler::answer`].
    fn refuse(&self, outcome: Outcome, peer: SocketAddr) -> Answer;

    /// An answer was given, perhaps by hyper.
    fn answered(&self, _: StatusCode) {}

    /// A connection has ended.
    fn ended(&self, _: End) {}
}

/// A listener's server.
pub struct Server<H> {
    handler: H,
    limits: Limits,
    http: auto::Builder<TokioExecutor>,
    slots: Arc<Semaphore>,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    shutdown: Shutdown,
    complaints: Throttle,
}

impl<H: Handler> Server<H> {
    pub fn new(handler: H, limits: Limits, shutdown: Shutdown) -> Arc<Self> {
        let mut http = auto::Builder::new(TokioExecutor::new());
        // With half_close a request is answered whose client has ended its side behind it.
        http.http1().header_read_timeout(None).half_close(true).max_buf_size(limits.header_bytes_max.max(8192));
        http.http2()
            .max_concurrent_streams(limits.streams_max)
            .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
            .initial_connection_window_size(limits.window_bytes)
            .initial_stream_window_size(limits.window_bytes);
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        let complaints = Throttle::new(Duration::from_secs(10));
        Arc::new(Self { handler, limits, http, slots, connections: Mutex::default(), shutdown, complaints })
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.limits.connections_max - self.slots.available_permits()
    }

    /// Accepts until `closing`, and serves what was accepted until it has ended. The listener comes from outside, so that whoever
    /// starts the daemon learns of a port that is taken before anything else happens.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, closing: CancellationToken) {
        let (tasks, mut number) = (TaskTracker::new(), 0);
        while let Some(accepted) = closing.run_until_cancelled(self.accept(&listener)).await {
            let (stream, peer, slot) = accepted;
            let connection = Arc::new(Connection::new(peer));
            number += 1;
            self.connections().insert(number, Arc::clone(&connection));
            tasks.spawn(Arc::clone(&self).connection(number, stream, connection, slot));
        }
        drop(listener);
        self.connections().values().for_each(|connection| connection.close(End::Shutdown));
        tasks.close();
        tasks.wait().await;
    }

    /// The next connection with its slot. Errors, such as too many open files, pass: they are waited out.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        let pause = Duration::from_millis(50);
        let (stream, peer) = loop {
            match listener.accept().await {
                Ok(accepted) => break accepted,
                Err(error) => {
                    self.complain(|suppressed| tracing::warn!(%error, suppressed, "cannot accept connections"))
                }
            }
            tokio::time::sleep(pause).await;
        };
        loop {
            if self.slots.available_permits() == 0 {
                self.make_room();
            }
            // Where all are busy with webhooks, one of them is soon idle.
            if let Ok(slot) = tokio::time::timeout(pause, Arc::clone(&self.slots).acquire_owned()).await {
                return (stream, peer, slot.expect("the semaphore is never closed"));
            }
        }
    }

    fn complain(&self, log: impl FnOnce(u64)) {
        if let Some(suppressed) = self.complaints.pass() {
            log(suppressed);
        }
    }

    /// Closes the connections that can be spared most; some at a time, for to find them takes a look at all.
    fn make_room(&self) {
        let connections: Vec<_> = self.connections().values().cloned().collect();
        let mut spare: Vec<_> = connections.iter().filter_map(|c| Some((c.spared_since()?, c))).collect();
        spare.sort_by_key(|(since, _)| *since);
        spare.truncate(1 + connections.len() / 64);
        spare.iter().for_each(|(_, connection)| connection.close(End::Evicted));
        let closed = spare.len();
        self.complain(|suppressed| {
            tracing::warn!(closed, suppressed, "connections_max is reached: those that have waited longest are closed")
        });
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection from its first byte to its end.
    async fn connection(
        self: Arc<Self>,
        number: u64,
        stream: TcpStream,
        connection: Arc<Connection>,
        slot: OwnedSemaphorePermit,
    ) {
        let _ = stream.set_nodelay(true); // a socket that is gone already ends by itself
        let end = AssertUnwindSafe(self.drive(stream, &connection)).catch_unwind().await;
        self.connections().remove(&number);
        drop(slot);
        self.handler.ended(end.unwrap_or(End::Panic));
    }

    async fn drive(self: &Arc<Self>, stream: TcpStream, connection: &Arc<Connection>) -> End {
        let service = service_fn(|request| {
            let (server, exchange) = (Arc::clone(self), Exchange::begin(connection, &request));
            async move { Ok::<_, std::convert::Infallible>(server.exchange(request, exchange).await) }
        });
        let stream = TokioIo::new(Watched::new(stream, Arc::clone(connection), self.limits.linger_timeout));
        let mut http = pin!(self.http.serve_connection(stream, service));
        let mut closing = None;
        loop {
            let was_closing = closing.is_some();
            tokio::select! {
                biased;
                done = http.as_mut() => return self.done(done, connection),
                end = connection.closed(closing) => closing = Some(end),
                end = connection.late(&self.limits) => {
                    if was_closing || end != End::KeepaliveTimeout {
                        return end;
                    }
                    closing = Some(end);
                    connection.close(end);
                }
            }
            if closing == Some(End::Evicted) {
                return End::Evicted;
            }
            if !was_closing {
                http.as_mut().graceful_shutdown(); // what is under way is answered first, and HTTP/2 says goodbye
            }
        }
    }

    /// How a connection has ended by itself. What hyper could not parse it has answered.
    fn done(&self, done: Result<(), Box<dyn std::error::Error + Send + Sync>>, connection: &Connection) -> End {
        let status = match done.err().and_then(|error| error.downcast::<hyper::Error>().ok()) {
            Some(error) if error.is_parse_too_large() => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Some(error) if error.is_parse() => StatusCode::BAD_REQUEST,
            _ => return connection.closing().unwrap_or(End::Client),
        };
        self.handler.answered(status);
        End::Malformed
    }

    /// One request and its answer.
    async fn exchange(&self, request: Request<Incoming>, mut exchange: Exchange) -> Answer {
        let peer = exchange.peer();
        let answer = if let Some(refusal) = self.refusal(&request) {
            self.handler.refuse(Outcome::Refused(refusal), peer)
        } else {
            let answer = AssertUnwindSafe(self.handler.answer(request, &mut exchange)).catch_unwind();
            answer.await.unwrap_or_else(|_| self.handler.refuse(Outcome::Unavailable(Unavailable::Panic), peer))
        };
        self.handler.answered(answer.status());
        exchange.finish(answer, self.shutdown.is_draining())
    }

    /// What hyper lets pass: heads of HTTP/1 that are a little too long, codings besides `chunked`, and no `Host`, two, or one that is none.
    fn refusal(&self, request: &Request<Incoming>) -> Option<Refusal> {
        let version = request.version();
        if version != Version::HTTP_2 && head_bytes(request) > self.limits.header_bytes_max as u64 {
            return Some(Refusal::HeadTooLarge);
        }
        if request
            .headers()
            .get_all(TRANSFER_ENCODING)
            .iter()
            .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        {
            return Some(Refusal::BadCoding);
        }
        let mut hosts = request.headers().get_all(HOST).iter();
        let is_host = |host: &HeaderValue| {
            host.is_empty() || host.to_str().is_ok_and(|host| host.parse::<Authority>().is_ok() && !host.contains('@'))
        };
        let is_good = hosts.next().map_or(version != Version::HTTP_11, is_host) && hosts.next().is_none();
        (!is_good).then_some(Refusal::BadHost)
    }
}

fn answer(outcome: Outcome) -> Answer {
    let (status, line) = outcome.answer();
    let mut answer = text(StatusCode::from_u16(status).unwrap_or_default(), line);
    // RFC 9110 wants a 401 to name a scheme. This one says that the key is in the body.
    let header = match status {
        405 => Some((ALLOW, HeaderValue::from_static("POST"))),
        401 => Some((WWW_AUTHENTICATE, HeaderValue::from_static("LiveChat-Secret-Key"))),
        _ => None,
    };
    answer.headers_mut().extend(header);
    answer
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let text = text.into();
    let content_type = (!text.is_empty()).then_some(HeaderValue::from_static("text/plain; charset=utf-8"));
    let mut answer = Response::new(Full::new(text));
    *answer.status_mut() = status;
    answer.headers_mut().extend(content_type.map(|value| (CONTENT_TYPE, value)));
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Panics where it is asked to.
    struct Faulty;

    impl Handler for Faulty {
        async fn answer(&self, request: Request<Incoming>, exchange: &mut Exchange) -> Answer {
            exchange.verified();
            tokio::task::yield_now().await;
            assert_ne!(request.uri().path(), "/panic");
            answer(Outcome::Published)
        }

        fn refuse(&self, outcome: Outcome, _: SocketAddr) -> Answer {
            answer(outcome)
        }
    }

    #[tokio::test]
    async fn a_request_whose_handler_panics_is_answered_503_and_changes_nothing_for_others() {
        let limits = Limits {
            connections_max: 2,
            header_bytes_max: 8192,
            header_timeout: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            linger_timeout: Duration::from_millis(10),
            streams_max: 1,
            window_bytes: 65_536,
            lifetime: None,
        };
        let (shutdown, closing) = (Shutdown::default(), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = Server::new(Faulty, limits, shutdown);
        let serving = tokio::spawn(Arc::clone(&server).serve(listener, closing.clone()));
        let mut stream = TcpStream::connect(address).await.expect("a listener");
        for (path, status) in [("/", "200"), ("/panic", "503"), ("/", "200")] {
            let request = format!("POST {path} HTTP/1.1\r\nhost: relay\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("written");
            let mut answer = Vec::new();
            while !String::from_utf8_lossy(&answer).contains("\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut answer).await.expect("read"), 0, "the connection goes on");
            }
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            if status == "503" {
                let body = "the event could not be stored; try again later\n";
                let mut rest = vec![0; body.len() - answer.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len())];
                stream.read_exact(&mut rest).await.expect("its body");
            }
        }
        closing.cancel();
        serving.await.expect("it ends, though a connection is open");
        assert_eq!(server.open(), 0);
    }
}
