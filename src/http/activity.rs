//! What a connection is doing, and since when: so that one timer a connection, not one a request, finds the late.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Limits;

/// Which limit a connection has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// A request's head was begun and not ended.
    Head,
    /// Nothing was asked for long.
    Idle,
}

/// Idle, within a request's head, or busy with requests. All times are milliseconds since `born`.
pub struct Activity {
    born: Instant,
    busy: AtomicU32,
    idle_since: AtomicU64,
    /// Or [`NO_HEAD`], or [`HEAD_BEGUN`].
    head_since: AtomicU64,
    heads: AtomicBool,
    /// The last answer left nothing behind: its request was read to the end, and another may follow.
    is_clean: AtomicBool,
    /// The client does not take what is written to it.
    is_stuck: AtomicBool,
}

const NO_HEAD: u64 = 0;
/// Just now. Most heads come in one piece and are over before anybody asks since when; those cost no look at the clock.
const HEAD_BEGUN: u64 = 1;

impl Activity {
    pub fn new() -> Self {
        Self {
            born: Instant::now(),
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(NO_HEAD),
            heads: AtomicBool::new(true),
            is_clean: AtomicBool::new(false),
            is_stuck: AtomicBool::new(false),
        }
    }

    /// Whether nothing is under way, in HTTP/1.1: no request, no part of one, no answer.
    pub fn is_quiet(&self) -> bool {
        self.busy.load(Relaxed) == 0
            && self.is_clean.load(Relaxed)
            && self.head_since.load(Relaxed) == NO_HEAD
            && !self.is_stuck.load(Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// In HTTP/2 bytes between requests need not be a request's: only idleness is watched.
    pub fn frames_are_not_heads(&self) {
        self.heads.store(false, Relaxed);
        self.head_since.store(NO_HEAD, Relaxed);
    }

    /// Bytes came.
    pub fn read(&self) {
        if self.heads.load(Relaxed) && self.busy.load(Relaxed) == 0 && self.head_since.load(Relaxed) == NO_HEAD {
            self.head_since.store(HEAD_BEGUN, Relaxed);
        }
    }

    /// Notes the time of a head that has begun and is not over.
    fn stamp(&self) {
        if self.head_since.load(Relaxed) == HEAD_BEGUN {
            self.head_since.store(self.now().max(HEAD_BEGUN + 1), Relaxed);
        }
    }

    /// A request is being answered, until `answered`.
    pub fn busy(&self) {
        self.busy.fetch_add(1, Relaxed);
        self.head_since.store(NO_HEAD, Relaxed);
        self.is_clean.store(false, Relaxed);
    }

    /// Its answer is there, or it was given up; `is_clean` where another request may follow at once.
    pub fn answered(&self, is_clean: bool) {
        self.idle_since.store(self.now(), Relaxed);
        self.is_clean.store(is_clean, Relaxed);
        self.busy.fetch_sub(1, Relaxed);
    }

    /// Waits until the connection is late. To be polled whenever the connection was, after it: its heads begin with that.
    pub async fn late(&self, limits: &Limits) -> Late {
        let mut due = pin!(self.past_due(limits));
        poll_fn(|context| {
            self.stamp();
            due.as_mut().poll(context)
        })
        .await
    }

    async fn past_due(&self, limits: &Limits) -> Late {
        loop {
            let (late, at) = self.due(limits);
            let left = at.saturating_sub(self.now());
            if left == 0 {
                return late;
            }
            // Also looks again after header_timeout: a head may have begun meanwhile, which is due sooner.
            tokio::time::sleep(Duration::from_millis(left).min(limits.header_timeout)).await;
        }
    }

    /// What it will be late with if nothing happens, and when.
    fn due(&self, limits: &Limits) -> (Late, u64) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if self.busy.load(Relaxed) > 0 {
            return (Late::Idle, u64::MAX);
        }
        match self.head_since.load(Relaxed) {
            NO_HEAD => (Late::Idle, self.idle_since.load(Relaxed).saturating_add(millis(limits.keepalive_timeout))),
            since => (Late::Head, since.saturating_add(millis(limits.header_timeout))),
        }
    }

    /// Waits until no request has been answered for `time`.
    pub async fn idle_for(&self, time: Duration) {
        loop {
            tokio::time::sleep(time).await;
            let idle = self.now().saturating_sub(self.idle_since.load(Relaxed));
            if self.busy.load(Relaxed) == 0 && u128::from(idle) >= time.as_millis() {
                return;
            }
        }
    }
}

/// A stream that notes when bytes come, and can take back the first of them.
pub struct Watched<S, A> {
    stream: S,
    unread: Bytes,
    /// Has the [`Activity`], and whatever else the connection needs with every request: what lies together is fetched together.
    of: Arc<A>,
}

impl<S, A: AsRef<Activity>> Watched<S, A> {
    pub const fn new(stream: S, of: Arc<A>) -> Self {
        Self { stream, unread: Bytes::new(), of }
    }

    fn activity(&self) -> &Activity {
        (*self.of).as_ref()
    }

    /// Gives `bytes` to the next reader.
    pub fn unread(&mut self, bytes: Bytes) {
        self.unread = bytes;
    }

    pub const fn stream(&self) -> &S {
        &self.stream
    }

    fn written(&self, written: &Poll<io::Result<usize>>) {
        self.activity().is_stuck.store(written.is_pending(), Relaxed);
    }
}

impl<S: AsyncRead + Unpin, A: AsRef<Activity>> AsyncRead for Watched<S, A> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.unread.has_remaining() {
            let n = self.unread.len().min(into.remaining());
            into.put_slice(&self.unread.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if into.filled().len() > before {
            self.activity().read();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, A: AsRef<Activity>> AsyncWrite for Watched<S, A> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
