//! Connections: accepted up to a number, each with a time for everything, HTTP/1.1 or HTTP/2 by its first bytes.
//!
//! hyper speaks HTTP. Around it stands what a stranger's connection needs: a watch over how long it may take for a
//! request's head and between requests, an answer to those who are too slow, and an end that loses no answer.

pub mod admin;
pub mod webhook;

mod activity;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::alarm::Alarm;
use crate::shutdown::Shutdown;
use crate::telemetry::Throttle;
use activity::{Activity, Late, Watched};

/// What a listener allows. Every field is a key of `[server]` or `[admin]`.
#[derive(Clone, Debug)]
pub struct Limits {
    pub connections_max: usize,
    pub backlog: u32,
    pub header_bytes_max: usize,
    pub header_timeout: Duration,
    pub keepalive_timeout: Duration,
    pub linger_timeout: Duration,
    pub streams_max: u32,
}

pub type Answer = Response<Full<Bytes>>;

/// Answers requests; one a listener, shared by its connections.
pub trait Handler: Send + Sync + Sized + 'static {
    /// Whether each answer without `connection: close` has read its request's body to the end.
    const READS_BODIES: bool;

    fn answer(
        connection: &Arc<Connection<Self>>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Answer> + Send + use<Self>;

    /// The connections that are open now.
    fn connections(&self, open: usize);
}

/// Binds, and lets up to `backlog` connections wait to be accepted: with 128, as the libraries have it, the kernel drops what a crowd that
/// comes at once has more, and those clients wait for a second and longer.
///
/// # Errors
/// The system's: the port is taken, or not ours to take, or the address is none of this machine's.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?; // else a restart fails while connections of before are in TIME_WAIT
    socket.bind(address)?;
    socket.listen(backlog)
}

/// Accepts until `shutdown.closing`, and serves what was accepted until it has ended. The listener comes from outside,
/// so that whoever starts the daemon learns of a port that is taken before anything else happens.
pub async fn serve<H: Handler>(listener: TcpListener, limits: Limits, handler: Arc<H>, shutdown: Shutdown) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let limits = Arc::new(limits);
    let tasks = TaskTracker::new();
    let complaints = Throttle::new(Duration::from_secs(10));
    while let Some((slot, stream, peer)) = next(&listener, &slots, &shutdown, &complaints).await {
        let (limits, handler, shutdown, open) =
            (Arc::clone(&limits), Arc::clone(&handler), shutdown.clone(), tasks.clone());
        tasks.spawn(async move {
            handler.connections(open.len());
            connection(stream, peer, &limits, &handler, &shutdown, &open).await;
            drop(slot);
            handler.connections(open.len().saturating_sub(1));
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// The next connection with its slot; `None` when it is time to close. Errors, such as too many open files, are the
/// system's and pass: they are waited out.
async fn next(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    shutdown: &Shutdown,
    complaints: &Throttle,
) -> Option<(tokio::sync::OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let accept = async {
        let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => return (slot, stream, peer),
                Err(error) => {
                    if let Some(unlogged) = complaints.pass() {
                        tracing::warn!(%error, unlogged, "connections cannot be accepted for the moment");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.closed() => None,
        accepted = accept => Some(accepted),
    }
}

/// One connection from its first byte to its end.
async fn connection<H: Handler>(
    stream: TcpStream,
    peer: SocketAddr,
    limits: &Limits,
    handler: &Arc<H>,
    shutdown: &Shutdown,
    open: &TaskTracker,
) {
    let _ = stream.set_nodelay(true); // a socket that is gone already ends by itself
    let this = Arc::new(Connection {
        handler: Arc::clone(handler),
        activity: Activity::new(),
        shutdown: shutdown.clone(),
        peer,
        alarm: Alarm::default(),
        open: open.clone(),
    });
    let mut io = Watched::new(stream, Arc::clone(&this));
    let first = tokio::select! {
        biased;
        first = sniff(&mut io) => first,
        late = this.activity.late(limits) => {
            if late == Late::Head {
                apologize(&mut io, limits).await;
            }
            return;
        }
        () = shutdown.closed() => return,
    };
    let http2 = match first {
        Some(Sniffed { http2, bytes }) => {
            io.unread(bytes);
            http2
        }
        None => return,
    };
    if http2 {
        Box::pin(serve_http2(io, &this, limits)).await; // far larger than its neighbour, and rare
    } else {
        serve_http1(io, &this, limits).await;
    }
}

/// With so many connections open, one between requests keeps nothing but its socket: its buffers take twice the memory of all
/// the rest, and most of so many are idle. Fewer keep theirs, which is cheaper than to make them anew.
const CROWD: usize = 512;

async fn serve_http1<H: Handler>(
    mut io: Watched<TcpStream, Connection<H>>,
    this: &Arc<Connection<H>>,
    limits: &Limits,
) {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(limits.header_bytes_max);
    // An answer is one small piece, for which the kernel's send does less than its writev.
    builder.writev(false);
    builder.max_buf_size(limits.header_bytes_max.max(8192));
    // Else hyper drops a request whose client has hung up behind it, perhaps before we have looked at it.
    builder.half_close(true);
    let end = loop {
        let service = service_fn(|request| Taken::new(this).answer(request));
        let mut connection = builder.serve_connection(TokioIo::new(io), service);
        let end = watch(&mut Pin::new(&mut connection), this, limits, |c| c.graceful_shutdown()).await;
        let parts = connection.into_parts();
        io = parts.io.into_inner();
        if end != End::Quiet {
            break end;
        }
        let unread = parts.read_buf;
        if !unread.is_empty() {
            io.unread(unread);
            this.activity.read();
            continue;
        }
        drop(unread); // empty, it holds hyper's whole buffer still
        let late = tokio::select! {
            biased;
            _ = io.stream().readable() => continue, // what it is, the read behind it tells
            late = this.activity.late(limits) => Some(late),
            () = this.shutdown.closed() => None,
        };
        break late.map_or(End::Done, End::Late);
    };
    tracing::trace!(peer = %this.peer, ?end, "connection ended");
    if end == End::Late(Late::Head) {
        apologize(&mut io, limits).await;
    } else {
        linger(&mut io, limits).await;
    }
}

async fn serve_http2<H: Handler>(io: Watched<TcpStream, Connection<H>>, this: &Arc<Connection<H>>, limits: &Limits) {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX));
    let service = service_fn(|request| Taken::new(this).answer(request));
    let connection = builder.serve_connection(TokioIo::new(io), service);
    this.activity.frames_are_not_heads();
    tokio::pin!(connection);
    let end = watch(&mut connection, this, limits, |c| c.graceful_shutdown()).await;
    tracing::trace!(peer = %this.peer, ?end, "connection ended");
}
/// What a connection and its requests share, in one place: where many are open, most of it lies outside the processor's caches when
/// the next request comes.
pub struct Connection<H> {
    handler: Arc<H>,
    activity: Activity,
    shutdown: Shutdown,
    peer: SocketAddr,
    /// For one request after the other.
    alarm: Alarm,
    /// All connections of the listener.
    open: TaskTracker,
}

impl<H> AsRef<Activity> for Connection<H> {
    fn as_ref(&self) -> &Activity {
        &self.activity
    }
}

/// A request, from when hyper has read its head until its answer is there, or it is given up.
struct Taken<H: Handler> {
    of: Arc<Connection<H>>,
    is_clean: bool,
}

impl<H: Handler> Taken<H> {
    fn new(of: &Arc<Connection<H>>) -> Self {
        of.activity.busy();
        Self { of: Arc::clone(of), is_clean: false }
    }

    fn answer(self, request: Request<Incoming>) -> impl Future<Output = Result<Answer, Infallible>> + Send {
        let version = request.version();
        let stays = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"keep-alive");
        let may_stay =
            H::READS_BODIES && version == Version::HTTP_11 && request.headers().get(CONNECTION).is_none_or(stays);
        let answer = H::answer(&self.of, request);
        answer.map(move |answer| Ok(self.answered(answer, version, may_stay)))
    }

    fn answered(mut self, mut answer: Answer, version: Version, may_stay: bool) -> Answer {
        if self.of.shutdown.is_draining() && version != Version::HTTP_2 {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.is_clean = may_stay && !answer.headers().contains_key(CONNECTION);
        answer
    }
}

impl<H: Handler> Drop for Taken<H> {
    fn drop(&mut self) {
        self.of.activity.answered(self.is_clean);
    }
}

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By itself: the client left, or the last answer said so.
    Done,
    Late(Late),
    /// It has not: it is between requests.
    Quiet,
}

/// Drives a connection, in a crowd until it is quiet; closes it when it is late, or when the daemon closes.
async fn watch<C, E, H>(
    connection: &mut Pin<&mut C>,
    this: &Connection<H>,
    limits: &Limits,
    close: impl Fn(Pin<&mut C>),
) -> End
where
    C: Future<Output = Result<(), E>>,
{
    let activity = &this.activity;
    let until_quiet = std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(End::Done),
        Poll::Pending if activity.is_quiet() && this.open.len() > CROWD => Poll::Ready(End::Quiet),
        Poll::Pending => Poll::Pending,
    });
    let late = tokio::select! {
        biased;
        end = until_quiet => return end,
        late = activity.late(limits) => Some(late),
        () = this.shutdown.closed() => None,
    };
    if late == Some(Late::Head) {
        return End::Late(Late::Head);
    }
    // What is under way is answered first. An idle client that does not take its goodbye is left after a while; one
    // that waits for an answer has it by the response deadline, whatever happens.
    close(connection.as_mut());
    tokio::select! {
        _ = connection.as_mut() => End::Done,
        () = activity.idle_for(limits.linger_timeout) => late.map_or(End::Done, End::Late),
    }
}

struct Sniffed {
    http2: bool,
    bytes: Bytes,
}

/// What HTTP/2 clients say first, when they know that the server speaks it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear which HTTP it is; `None` when the client left before.
async fn sniff<H: Handler>(io: &mut Watched<TcpStream, Connection<H>>) -> Option<Sniffed> {
    let mut bytes = Vec::with_capacity(PREFACE.len());
    while bytes.len() < PREFACE.len() && PREFACE.starts_with(&bytes) {
        let left = (PREFACE.len() - bytes.len()) as u64;
        if (&mut *io).take(left).read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Sniffed { http2: bytes == PREFACE, bytes: bytes.into() })
}

/// Tells a client that its request's head took too long: hyper has no answer to that.
async fn apologize<H: Handler>(io: &mut Watched<TcpStream, Connection<H>>, limits: &Limits) {
    const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    if tokio::time::timeout(limits.linger_timeout, io.write_all(LATE)).await.is_ok_and(|written| written.is_ok()) {
        linger(io, limits).await;
    }
}

/// Ends our side and reads on for a while: closing a socket with unread bytes makes the system send a reset, which can
/// destroy the answer on its way.
async fn linger<H: Handler>(io: &mut Watched<TcpStream, Connection<H>>, limits: &Limits) {
    let read_to_the_end = async {
        let mut unread = vec![0; 4096];
        if io.shutdown().await.is_ok() {
            while io.read(&mut unread).await.is_ok_and(|n| n > 0) {}
        }
    };
    let _ = tokio::time::timeout(limits.linger_timeout, read_to_the_end).await; // long enough either way
}
