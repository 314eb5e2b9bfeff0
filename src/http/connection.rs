//! What a connection is doing, and until when it may: one deadline a connection finds those who are late, and its end loses no answer.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep, sleep};

use super::client::Origin;
use super::{Answer, Limits};
use crate::outcome::ConnectionEnd as End;

/// A connection, shared by its stream, its requests and the server that may close it.
pub struct Connection {
    peer: SocketAddr,
    state: Mutex<State>,
    /// [`Connection::close`] was called.
    pub closed: Notify,
}

#[derive(Clone, Copy, Debug)]
struct State {
    opened: Instant,
    /// Requests under way: one at a time, but for HTTP/2. Their handlers have deadlines of their own.
    requests: u32,
    /// No request is under way, and no byte of the next one's head has come.
    is_idle: bool,
    /// Since when the connection is idle, awaits a head, or has requests.
    since: Instant,
    /// A webhook was verified.
    is_trusted: bool,
    is_http2: bool,
    /// Bytes that were read in HTTP/1, and how many of them the requests had; unknown after a chunked body.
    read: u64,
    requested: Option<u64>,
    /// Since when the client takes nothing of what is written.
    blocked: Option<Instant>,
    /// Why it is to be closed.
    closing: Option<End>,
}

impl State {
    fn new(opened: Instant) -> Self {
        Self {
            opened,
            requests: 0,
            is_idle: false,
            since: opened,
            is_trusted: false,
            is_http2: false,
            read: 0,
            requested: Some(0),
            blocked: None,
            closing: None,
        }
    }

    /// A request is under way that is answered whatever others need: from who has a key, or where connections are short anyway.
    fn is_protected(&self, limits: &Limits) -> bool {
        self.requests > 0 && (self.is_trusted || limits.lifetime.is_some())
    }

    /// When the connection ends if nothing happens, and how.
    fn deadline(&self, limits: &Limits) -> Option<(Instant, End)> {
        let of_phase = match self.closing {
            Some(End::Evicted) if !self.is_protected(limits) => Some((self.since, End::Evicted)),
            _ if self.requests > 0 => None,
            Some(end) => Some((self.since + limits.linger_timeout, end)),
            None if self.is_idle => Some((self.since + limits.keepalive_timeout, End::KeepaliveTimeout)),
            None => Some((self.since + limits.header_timeout, End::HeaderTimeout)),
        };
        let of_write = self.blocked.map(|since| (since + limits.write_timeout, End::WriteTimeout));
        let of_life = limits.lifetime.map(|lifetime| (self.opened + lifetime, End::Lifetime));
        [of_phase, of_write, of_life].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn has_read(&mut self, bytes: usize) {
        self.read += bytes as u64;
        // In HTTP/2 bytes between requests need not be a request's.
        if self.is_idle && !self.is_http2 {
            (self.is_idle, self.since) = (false, Instant::now());
        }
    }

    fn is_blocked(&mut self, is_blocked: bool) {
        self.blocked = is_blocked.then(|| self.blocked.unwrap_or_else(Instant::now));
    }

    fn begin(&mut self, request: &Request<Incoming>) {
        let body = request.body().size_hint().exact();
        self.requested = self.requested.zip(body).map(|(before, body)| before + head_bytes(request) + body);
        self.is_http2 = request.version() == Version::HTTP_2;
        if self.requests == 0 {
            (self.is_idle, self.since) = (false, Instant::now());
        }
        self.requests += 1;
    }

    fn end(&mut self) {
        self.requests -= 1;
        if self.requests == 0 {
            // Bytes that belong to no request yet are the next one's head. Where a chunked body has made that unknown, a client with a key
            // is idle: a proxy reuses such a connection later than `header_timeout`, and must not find it closed.
            let has_more = self.requested.map_or(!self.is_trusted, |requested| self.read > requested);
            (self.is_idle, self.since) = (self.is_http2 || !has_more, Instant::now());
        }
    }
}

impl Connection {
    pub fn new(peer: SocketAddr) -> Self {
        Self { peer, state: Mutex::new(State::new(Instant::now())), closed: Notify::new() }
    }

    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TLS handshake is done: the time for the first head begins.
    pub fn secured(&self) {
        self.state().since = Instant::now();
    }

    /// Asks the connection to end: at once where it is evicted, else when nothing is under way.
    pub fn close(&self, end: End) {
        let mut state = self.state();
        state.closing = Some(end);
        if state.requests == 0 {
            state.since = Instant::now();
        }
        drop(state);
        self.closed.notify_one();
    }

    pub fn closing(&self) -> Option<End> {
        self.state().closing
    }

    /// It is to be closed, and hyper may be told so. Before the first request hyper would not read what has come already: the system
    /// would answer it with a reset, and a client does not try again on a connection that was new. So a first request that comes in time
    /// is answered, and its answer ends the connection.
    pub fn can_close(&self) -> bool {
        let state = self.state();
        state.closing.is_some() && state.requested != Some(0)
    }

    /// The order in which connections are evicted, if this one may be: strangers first, then by how long each has waited. What a new
    /// one waits for may be on its way.
    pub fn eviction_order(&self, limits: &Limits) -> Option<(bool, Instant)> {
        let state = self.state();
        let may_be = state.since.elapsed() >= limits.eviction_grace && !state.is_protected(limits);
        may_be.then_some((state.is_trusted, state.since))
    }

    /// Does what comes before HTTP, unless the connection has to end first.
    ///
    /// # Errors
    /// How it has to end.
    pub async fn in_time<T>(&self, limits: &Limits, work: impl Future<Output = T>) -> Result<T, End> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = work.as_mut() => return Ok(done),
                end = self.late(limits) => return Err(end),
                () = self.closed.notified() => {} // it has another deadline now
            }
        }
    }

    /// Resolves when the connection is late. To be polled whenever the connection was, after it: a head may have begun.
    pub async fn late(&self, limits: &Limits) -> End {
        let mut sleep = pin!(sleep(limits.header_timeout));
        let late = |cx: &mut Context<'_>| loop {
            let Some((at, end)) = self.state().deadline(limits) else { return Poll::Pending };
            if at <= Instant::now() {
                return Poll::Ready(end);
            }
            // A timer that is set too early is left: it only looks once more.
            if sleep.is_elapsed() || at < sleep.deadline() {
                sleep.as_mut().reset(at);
            }
            ready!(sleep.as_mut().poll(cx));
        };
        std::future::poll_fn(late).await
    }
}

/// A request under way, from when hyper has read its head until it is answered or given up.
pub struct Exchange {
    connection: Arc<Connection>,
    origin: Origin,
}

impl Exchange {
    pub(super) fn begin(connection: &Arc<Connection>, request: &Request<Incoming>, origin: Origin) -> Self {
        connection.state().begin(request);
        Self { connection: Arc::clone(connection), origin }
    }

    /// The connection's other end, which may be a proxy.
    pub fn peer(&self) -> SocketAddr {
        self.connection.peer
    }

    /// Where its connection comes from, as it was when that began.
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// The request's webhook is verified: its connection has earned keep-alive, and is not closed before it is answered.
    pub fn verified(&self) {
        self.connection.state().is_trusted = true;
    }

    /// Until a webhook was verified on it, a connection ends with its first answer.
    pub(super) fn finish(self, mut answer: Answer, is_draining: bool) -> Answer {
        let State { is_trusted, closing, .. } = *self.connection.state();
        if is_draining || !is_trusted || closing.is_some() || answer.headers().contains_key(CONNECTION) {
            self.connection.close(closing.unwrap_or(if is_draining { End::Shutdown } else { End::Refused }));
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close")); // which hyper omits in HTTP/2
        }
        answer
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.state().end();
    }
}

/// The bytes of a head as clients write it. One that is written otherwise, with more white space, costs its client no more than the
/// longer of two timeouts.
pub fn head_bytes<B>(request: &Request<B>) -> u64 {
    let uri = request.uri();
    let origin =
        uri.scheme_str().map_or(0, |scheme| scheme.len() + 3) + uri.authority().map_or(0, |a| a.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (request.method().as_str().len() + 1 + origin + path + " HTTP/1.1\r\n".len() + headers + "\r\n".len()) as u64
}

/// Reading 32 KiB takes the 128 units of a task's turn. By itself Tokio counts reads, of any size: with the 2 MB that they can have, a
/// flood keeps a worker for 10 ms, and hundreds of floods let a body come too late.
const BYTES_A_UNIT: usize = 256;

/// A connection's stream, which notes what comes and goes, and ends without a reset. With TLS it is what is inside: plain bytes.
pub struct Watched<S> {
    stream: S,
    connection: Arc<Connection>,
    linger_timeout: Duration,
    /// From the end of our side on.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    pub const fn new(stream: S, connection: Arc<Connection>, linger_timeout: Duration) -> Self {
        Self { stream, connection, linger_timeout, linger: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        let bytes = into.filled().len() - before;
        if bytes > 0 {
            self.connection.state().has_read(bytes);
        }
        for _ in 0..bytes / BYTES_A_UNIT {
            if let Poll::Ready(unit) = poll_proceed(cx) {
                unit.made_progress();
            }
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.connection.state().is_blocked(written.is_pending());
        written
    }

    /// TLS takes what is written into its own memory: that its client takes nothing is seen here.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.connection.state().is_blocked(flushed.is_pending());
        flushed
    }

    /// Ends our side and reads on for a while: closing a socket with unread bytes makes the system send a reset, which can destroy
    /// the last answer on its way.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, linger, linger_timeout, .. } = self.get_mut();
        if linger.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        let linger = linger.get_or_insert_with(|| Box::pin(sleep(*linger_timeout)));
        let mut unread = [0; 4096];
        while linger.as_mut().poll(cx).is_pending() {
            let mut unread = ReadBuf::new(&mut unread);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut unread));
            if read.is_err() || unread.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let seconds = Duration::from_secs;
        Limits {
            connections_max: 1,
            eviction_grace: Duration::ZERO,
            header_bytes_max: 8192,
            header_timeout: seconds(5),
            keepalive_timeout: seconds(75),
            write_timeout: seconds(4),
            linger_timeout: seconds(1),
            streams_max: 1,
            window_bytes: 65_536,
            lifetime: None,
        }
    }

    #[test]
    fn a_connection_has_one_deadline_whatever_it_does() {
        #[derive(Debug)]
        enum Phase {
            Head,
            Idle,
            Request,
            Trusted,
        }
        use Phase::{Head, Idle, Request, Trusted};
        let now = Instant::now();
        let ago = |seconds| Some(now - Duration::from_secs(seconds));
        for (phase, blocked, closing, lifetime, expected) in [
            // phase; client takes nothing since; closing; lifetime: deadline in seconds from the phase's beginning
            (Head, None, None, None, Some((5, End::HeaderTimeout))),
            (Idle, None, None, None, Some((75, End::KeepaliveTimeout))),
            (Request, None, None, None, None),
            (Request, None, Some(End::Shutdown), None, None),
            (Idle, None, Some(End::Shutdown), None, Some((1, End::Shutdown))),
            (Head, None, Some(End::Refused), None, Some((1, End::Refused))),
            (Head, None, Some(End::Evicted), None, Some((0, End::Evicted))),
            (Request, None, Some(End::Evicted), None, Some((0, End::Evicted))),
            (Trusted, None, Some(End::Evicted), None, None),
            (Request, None, Some(End::Evicted), Some(9), Some((9, End::Lifetime))),
            (Request, ago(0), None, None, Some((4, End::WriteTimeout))),
            (Idle, ago(3), None, None, Some((1, End::WriteTimeout))),
            (Request, None, None, Some(9), Some((9, End::Lifetime))),
            (Head, None, None, Some(9), Some((5, End::HeaderTimeout))),
            (Idle, None, None, Some(9), Some((9, End::Lifetime))),
        ] {
            let (is_idle, is_trusted) = (matches!(phase, Idle), matches!(phase, Trusted));
            let requests = matches!(phase, Request | Trusted).into();
            let state = State { requests, is_idle, is_trusted, blocked, closing, ..State::new(now) };
            let limits = Limits { lifetime: lifetime.map(Duration::from_secs), ..limits() };
            let found = state.deadline(&limits).map(|(at, end)| ((at - now).as_secs(), end));
            assert_eq!(found, expected, "{phase:?} {state:?}");
        }
    }

    #[test]
    fn after_a_request_a_connection_is_idle_unless_a_head_has_begun_or_may_have() {
        for (read, requested, is_trusted, is_idle) in [
            (100, Some(100), false, true),
            (101, Some(100), true, false),
            (100, None, false, false), // after a chunked body
            (100, None, true, true),
        ] {
            let mut state = State { requests: 1, read, requested, is_trusted, ..State::new(Instant::now()) };
            state.end();
            assert_eq!(state.is_idle, is_idle, "{state:?}");
        }
    }

    #[test]
    fn strangers_are_evicted_before_those_with_a_key_but_none_that_is_new_or_is_to_be_answered() {
        let connection = Connection::new(([127, 0, 0, 1], 1).into());
        let opened = connection.state().opened;
        let order = |is_trusted, requests, limits: Limits| {
            let mut state = connection.state();
            (state.is_trusted, state.requests) = (is_trusted, requests);
            drop(state);
            connection.eviction_order(&limits)
        };
        assert_eq!(order(false, 0, limits()), Some((false, opened)));
        assert_eq!(order(false, 1, limits()), Some((false, opened)));
        assert_eq!(order(true, 0, limits()), Some((true, opened)));
        assert!(order(false, 0, limits()) < order(true, 0, limits()));
        let hour = Duration::from_secs(3600);
        assert_eq!(order(false, 0, Limits { eviction_grace: hour, ..limits() }), None, "its head may be on its way");
        assert_eq!(order(true, 1, limits()), None);
        assert_eq!(order(false, 1, Limits { lifetime: Some(hour), ..limits() }), None);
    }

    #[test]
    fn an_answer_does_not_change_why_its_connection_is_closed() {
        for (closing, is_draining, expected) in
            [(Some(End::Evicted), true, End::Evicted), (None, true, End::Shutdown), (None, false, End::Refused)]
        {
            let connection = Arc::new(Connection::new(([127, 0, 0, 1], 1).into()));
            connection.state().requests = 1;
            connection.state().closing = closing;
            let origin = Origin { address: connection.peer.ip(), has_proxy_header: false };
            let exchange = Exchange { connection: Arc::clone(&connection), origin };
            let answer = exchange.finish(Answer::default(), is_draining);
            assert!(answer.headers().contains_key(CONNECTION));
            assert_eq!(connection.closing(), Some(expected));
        }
    }

    #[test]
    fn a_heads_length_is_told_from_its_parts() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "POST /webhooks/a?b=c HTTP/1.1\r\nhost: relay\r\nx: \r\n\r\n",
            "POST http://relay:8080/webhooks HTTP/1.1\r\nhost: relay:8080\r\ncontent-length: 7\r\n\r\n",
        ] {
            let mut lines = head.trim_end().split("\r\n");
            let mut first = lines.next().expect("a line").split(' ');
            let mut request =
                Request::builder().method(first.next().expect("a method")).uri(first.next().expect("a URI"));
            for (name, value) in lines.map(|line| line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""))) {
                request = request.header(name, value);
            }
            assert_eq!(head_bytes(&request.body(()).expect("a request")), head.len() as u64, "{head}");
        }
    }
}
