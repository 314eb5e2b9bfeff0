//! What a connection is doing, and until when it may: one deadline a connection finds those who are late, and its end loses no answer.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Answer, Limits};
use crate::outcome::ConnectionEnd as End;

/// A connection, shared by its stream, its requests and the server that may close it.
pub struct Connection {
    peer: SocketAddr,
    state: Mutex<State>,
    closed: Notify,
}

#[derive(Clone, Copy, Debug)]
struct State {
    opened: Instant,
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// Requests under way: one at a time, but for HTTP/2.
    requests: u32,
    /// Those of them whose webhook is verified.
    verified: u32,
    /// A webhook was accepted: the connection is kept alive, and spared when room has to be made.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A request's head is awaited, or has begun.
    Head,
    /// A request is under way: its handler has a deadline of its own.
    Request,
    /// Between requests.
    Idle,
}

impl State {
    /// When the connection ends if nothing happens, and how.
    fn deadline(&self, limits: &Limits) -> Option<(Instant, End)> {
        let of_phase = match (self.phase, self.closing) {
            (Phase::Request, _) => None,
            (_, Some(end)) => Some((self.since + limits.linger_timeout, end)),
            (Phase::Head, None) => Some((self.since + limits.header_timeout, End::HeaderTimeout)),
            (Phase::Idle, None) => Some((self.since + limits.keepalive_timeout, End::KeepaliveTimeout)),
        };
        let of_write = self.blocked.map(|since| (since + limits.write_timeout, End::WriteTimeout));
        let of_life = limits.lifetime.map(|lifetime| (self.opened + lifetime, End::Lifetime));
        [of_phase, of_write, of_life].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn enter(&mut self, phase: Phase) {
        (self.phase, self.since) = (phase, Instant::now());
    }

    fn has_read(&mut self, bytes: usize) {
        self.read += bytes as u64;
        // In HTTP/2 bytes between requests need not be a request's.
        if self.phase == Phase::Idle && !self.is_http2 {
            self.enter(Phase::Head);
        }
    }

    fn has_written<T>(&mut self, written: &Poll<T>) {
        self.blocked = if written.is_pending() { self.blocked.or_else(|| Some(Instant::now())) } else { None };
    }

    fn begin(&mut self, request: &Request<Incoming>) {
        self.is_http2 = request.version() == Version::HTTP_2;
        self.requests += 1;
        let body = request.body().size_hint().exact();
        self.requested = self.requested.zip(body).map(|(before, body)| before + head_bytes(request) + body);
        self.enter(Phase::Request);
    }

    fn end(&mut self, was_verified: bool) {
        self.requests -= 1;
        self.verified -= u32::from(was_verified);
        if self.requests == 0 {
            // Bytes that belong to no request yet are the next one's head.
            let has_more = self.requested.is_none_or(|requested| self.read > requested);
            self.enter(if has_more && !self.is_http2 { Phase::Head } else { Phase::Idle });
        }
    }
}

impl Connection {
    pub fn new(peer: SocketAddr) -> Self {
        let opened = Instant::now();
        let state = State {
            opened,
            phase: Phase::Head,
            since: opened,
            requests: 0,
            verified: 0,
            is_trusted: false,
            is_http2: false,
            read: 0,
            requested: Some(0),
            blocked: None,
            closing: None,
        };
        Self { peer, state: Mutex::new(state), closed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the connection to end: at once where it has to make room, else when nothing is under way.
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

    /// Resolves when the connection is to end for another reason than the one that is known already.
    pub async fn closed(&self, known: Option<End>) -> End {
        loop {
            let closing = self.closing();
            match closing {
                Some(end) if closing != known => return end,
                _ => self.closed.notified().await,
            }
        }
    }

    /// Since when the connection could be spared to make room, if it can; strangers come before all others.
    pub fn spared_since(&self) -> Option<(bool, Instant)> {
        let state = self.state();
        (state.verified == 0).then_some((state.is_trusted, state.since))
    }

    /// Resolves when the connection is late. To be polled whenever the connection was, after it: a head may have begun.
    pub async fn late(&self, limits: &Limits) -> End {
        let mut sleep = pin!(sleep_until(Instant::now() + limits.header_timeout));
        std::future::poll_fn(|cx| self.poll_late(cx, limits, sleep.as_mut())).await
    }

    fn poll_late(&self, cx: &mut Context<'_>, limits: &Limits, mut sleep: Pin<&mut Sleep>) -> Poll<End> {
        loop {
            let Some((at, end)) = self.state().deadline(limits) else { return Poll::Pending };
            if at <= Instant::now() {
                return Poll::Ready(end);
            }
            // A timer that is set too early is left: it only looks once more.
            if sleep.is_elapsed() || at < sleep.deadline() {
                sleep.as_mut().reset(at);
            }
            ready!(sleep.as_mut().poll(cx));
        }
    }
}

/// A request under way, from when hyper has read its head until it is answered or given up.
pub struct Exchange {
    connection: Arc<Connection>,
    is_http2: bool,
    is_verified: bool,
}

impl Exchange {
    pub(super) fn begin(connection: &Arc<Connection>, request: &Request<Incoming>) -> Self {
        connection.state().begin(request);
        let is_http2 = request.version() == Version::HTTP_2;
        Self { connection: Arc::clone(connection), is_http2, is_verified: false }
    }

    pub fn peer(&self) -> SocketAddr {
        self.connection.peer
    }

    /// The request's webhook is here and verified: its connection is not closed to make room.
    pub fn verified(&mut self) {
        self.is_verified = true;
        self.connection.state().verified += 1;
    }

    pub const fn is_verified(&self) -> bool {
        self.is_verified
    }

    /// Keep-alive is earned: until a webhook was accepted on it, a connection ends with its first answer.
    pub(super) fn finish(self, mut answer: Answer, is_draining: bool) -> Answer {
        let mut state = self.connection.state();
        state.is_trusted |= self.is_verified && answer.status() == StatusCode::OK;
        let stays = state.is_trusted && !is_draining && !answer.headers().contains_key(CONNECTION);
        drop(state);
        if !stays {
            self.connection.close(if is_draining { End::Shutdown } else { End::Refused });
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.is_http2 {
            answer.headers_mut().remove(CONNECTION); // it has a frame for that
        }
        answer
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.state().end(self.is_verified);
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

/// A connection's stream, which notes what comes and goes, and ends without a reset.
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
        if into.filled().len() > before {
            self.connection.state().has_read(into.filled().len() - before);
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.connection.state().has_written(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends our side and reads on for a while: closing a socket with unread bytes makes the system send a reset, which can destroy
    /// the last answer on its way.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, linger, linger_timeout, .. } = self.get_mut();
        if linger.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        let linger = linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(*linger_timeout)));
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
        use Phase::{Head, Idle, Request};
        let now = std::time::Instant::now().into();
        let fresh = Connection::new(([127, 0, 0, 1], 1).into()).closing_state(now);
        let ago = |seconds| Some(now - Duration::from_secs(seconds));
        for (phase, blocked, closing, lifetime, expected) in [
            // phase; client takes nothing since; closing; lifetime: deadline in seconds from the phase's beginning
            (Head, None, None, None, Some((5, End::HeaderTimeout))),
            (Idle, None, None, None, Some((75, End::KeepaliveTimeout))),
            (Request, None, None, None, None),
            (Request, None, Some(End::Shutdown), None, None),
            (Idle, None, Some(End::Shutdown), None, Some((1, End::Shutdown))),
            (Head, None, Some(End::Refused), None, Some((1, End::Refused))),
            (Request, ago(0), None, None, Some((4, End::WriteTimeout))),
            (Idle, ago(3), None, None, Some((1, End::WriteTimeout))),
            (Request, None, None, Some(9), Some((9, End::Lifetime))),
            (Head, None, None, Some(9), Some((5, End::HeaderTimeout))),
            (Idle, None, None, Some(9), Some((9, End::Lifetime))),
        ] {
            let state = State { phase, blocked, closing, ..fresh };
            let limits = Limits { lifetime: lifetime.map(Duration::from_secs), ..limits() };
            let found = state.deadline(&limits).map(|(at, end)| ((at - now).as_secs(), end));
            assert_eq!(found, expected, "{state:?}");
        }
    }

    impl Connection {
        /// The state as of a connection that was opened at this time.
        fn closing_state(&self, at: Instant) -> State {
            State { opened: at, since: at, ..*self.state() }
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
