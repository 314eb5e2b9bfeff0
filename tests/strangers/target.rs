//! What an attacker has: the relay's addresses, and sockets whose bytes are counted.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use crate::legit;
use crate::relay::{self, Relay};
use crate::tls::Connection;

/// The name of the attacker's threads, by which their CPU time is known from that of the rest of this process.
const THREADS: &str = "attacker";

/// `server.header_timeout` is 5 s; the rest is for a busy machine.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(8);

/// The relay as an attacker sees it, and what the attacker has done.
pub struct Target {
    pub webhooks: SocketAddr,
    pub admin: SocketAddr,
    /// `server.connections_max` as it is by default.
    pub connections_max: usize,
    /// Where the webhooks' listener speaks HTTPS.
    tls: Option<TlsConnector>,
    pid: Pid,
    sent: AtomicU64,
    opened: AtomicU64,
    ended: AtomicU64,
    notes: Mutex<BTreeMap<String, u64>>,
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Target {
    pub fn of(relay: &Relay) -> Self {
        Self {
            // Another address of this machine than that of the legitimate sender: a port that an attacker has just used is not
            // one that the sender has to wait for.
            webhooks: SocketAddr::from(([127, 0, 0, 2], relay.webhooks.port())),
            admin: relay.admin,
            connections_max: connections_max(),
            tls: relay.tls().cloned(),
            pid: relay.pid(),
            sent: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            notes: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Bytes that the kernel has taken.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    /// Connections that the relay has ended.
    pub fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// Something worth a line below the table.
    pub fn note(&self, what: String) {
        count(&self.notes, what);
    }

    /// Something that must not happen.
    pub fn fail(&self, what: String) {
        count(&self.failures, what);
    }

    pub fn notes(&self) -> Vec<String> {
        counted(&self.notes)
    }

    pub fn failures(&self) -> Vec<String> {
        counted(&self.failures)
    }

    /// Signals the relay; a relay that has ended is found elsewhere.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }
}

fn count(counts: &Mutex<BTreeMap<String, u64>>, what: String) {
    *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
}

fn counted(counts: &Mutex<BTreeMap<String, u64>>) -> Vec<String> {
    let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    counts.iter().map(|(what, times)| format!("{what} ({times} times)")).collect()
}

/// An attacker's connection.
pub struct Stream {
    connection: Connection,
    target: Arc<Target>,
}

impl Stream {
    /// After the handshake, where it is the webhooks' listener and speaks HTTPS.
    pub async fn open(target: &Arc<Target>, to: SocketAddr) -> io::Result<Self> {
        let tls = target.tls.as_ref().filter(|_| to == target.webhooks);
        Self::connect(target, to, tls).await
    }

    async fn connect(target: &Arc<Target>, to: SocketAddr, tls: Option<&TlsConnector>) -> io::Result<Self> {
        let connection = timeout(Duration::from_secs(5), Connection::open(to, tls)).await??;
        target.opened.fetch_add(1, Relaxed);
        Ok(Self { connection, target: Arc::clone(target) })
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        send(&mut self.connection, &self.target, bytes).await
    }

    /// Reads some bytes; the end is an error.
    pub async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.connection.read(into).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    /// Reads what has come, without waiting; the end is an error.
    pub fn read_what_is_there(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        let mut bytes = [0; 4096];
        loop {
            match self.connection.read(&mut bytes).now_or_never() {
                Some(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(read) => into.extend_from_slice(&bytes[..read?]),
                None => return Ok(()),
            }
        }
    }

    /// Reads and forgets until the relay ends the connection, which is the error.
    pub async fn read_to_the_end(&mut self) -> io::Result<()> {
        let mut bytes = vec![0; 4096];
        loop {
            self.read(&mut bytes).await?;
        }
    }

    /// As `read_to_the_end`, and a failure where the relay waits for longer than it should: `what` is this connection.
    pub async fn must_end(&mut self, what: &str) -> io::Result<()> {
        if let Ok(ended) = timeout(HEAD_WAIT_MAX, self.read_to_the_end()).await {
            return ended;
        }
        self.target.fail(format!("{what} is still open after {} s", HEAD_WAIT_MAX.as_secs()));
        self.read_to_the_end().await
    }

    /// Waits for an answer of any kind, or the end.
    pub async fn answer(&mut self) -> io::Result<()> {
        self.read(&mut [0; 512]).await?;
        Err(io::ErrorKind::ConnectionAborted.into()) // the answer refuses us: this connection has done its work
    }

    /// Sends this, and waits for an answer, which may come before all is sent; or for the end.
    pub async fn hold(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.connection);
        let mut answer = [0; 512];
        let hold = async {
            send(&mut writer, &self.target, bytes).await?;
            std::future::pending().await
        };
        tokio::select! {
            _ = reader.read(&mut answer) => Err(io::ErrorKind::ConnectionAborted.into()),
            ended = hold => ended,
        }
    }

    /// Sends a piece each second until the relay answers or ends the connection.
    pub async fn dribble(&mut self, pieces: impl Iterator<Item = &[u8]> + Send) -> io::Result<()> {
        for piece in pieces {
            self.send(piece).await?;
            if let Ok(answered) = timeout(Duration::from_secs(1), self.answer()).await {
                return answered;
            }
        }
        Ok(())
    }

    /// Sends what `next` makes, again and again, as fast as the relay takes it, and drops the answers.
    pub async fn flood(&mut self, mut next: impl FnMut() -> Bytes) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.connection);
        let read = async {
            let mut bytes = vec![0; 65536];
            while reader.read(&mut bytes).await? > 0 {}
            Err(io::ErrorKind::UnexpectedEof.into())
        };
        let write = async {
            loop {
                send(&mut writer, &self.target, &next()).await?;
            }
        };
        tokio::select! { ended = read => ended, ended = write => ended }
    }

    /// Sends the same again and again and never reads.
    pub async fn flood_deaf(&mut self, bytes: &[u8]) -> io::Result<()> {
        loop {
            self.send(bytes).await?;
        }
    }

    /// One request and its answer; an answer that closes the connection is an error, as its end is.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.send(request).await?;
        let answer = legit::answer(&mut self.connection).await?;
        if answer.closes { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// Closes with a reset.
    pub fn reset(self) -> io::Result<()> {
        self.connection.tcp().set_zero_linger()
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), target: &Target, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = to.write(bytes).await?;
        target.sent.fetch_add(written as u64, Relaxed);
        bytes = &bytes[written..];
    }
    to.flush().await // TLS keeps what the socket has no room for
}

/// Connections to be kept going: one that has ended is opened again.
#[derive(Clone, Copy)]
pub struct Crowd {
    to: SocketAddr,
    size: usize,
    /// The first ones are opened within this time.
    spread: Duration,
    /// Each is opened again this time after it was opened, or when it has ended, if that is later.
    interval: Duration,
    /// Whether they are without TLS, whatever the listener speaks.
    is_raw: bool,
}

impl Crowd {
    /// One that holds: it opens 2,000 connections a second at most, also where the relay ends each at once.
    pub fn holding(to: SocketAddr, size: usize) -> Self {
        let spread = Duration::from_secs(1).min(Duration::from_millis(size as u64));
        Self { to, size, spread, interval: spread.max(Duration::from_secs(1) * size as u32 / 2000), is_raw: false }
    }

    /// As long at least is what comes between the first and the last one, and between one and its next.
    pub fn within(self, spread: Duration) -> Self {
        Self { spread, interval: spread, ..self }
    }

    /// Without TLS, whatever the listener speaks.
    pub fn raw(self) -> Self {
        Self { is_raw: true, ..self }
    }

    /// One that floods, as fast as it can.
    pub fn flooding(to: SocketAddr, size: usize) -> Self {
        Self { to, size, spread: Duration::ZERO, interval: Duration::ZERO, is_raw: false }
    }

    /// Goes on until it is dropped. `attack` is what each connection does; its error is the relay's ending of it.
    pub async fn run<F, R>(self, target: Arc<Target>, attack: F)
    where
        F: Fn(Stream) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<()>> + Send + 'static,
    {
        let attack = Arc::new(attack);
        let mut tasks = JoinSet::new();
        for n in 0..self.size {
            let (target, attack) = (Arc::clone(&target), Arc::clone(&attack));
            tasks.spawn(async move {
                sleep(self.spread.mul_f64(n as f64 / self.size as f64)).await;
                loop {
                    let again = Instant::now() + self.interval;
                    let tls = target.tls.as_ref().filter(|_| self.to == target.webhooks && !self.is_raw);
                    let Ok(stream) = Stream::connect(&target, self.to, tls).await else {
                        sleep(Duration::from_millis(10)).await; // the relay's queue is full
                        continue;
                    };
                    if attack(stream).await.is_err() {
                        target.ended.fetch_add(1, Relaxed);
                    }
                    sleep_until(again).await;
                }
            });
        }
        tasks.join_all().await;
    }
}

/// Two threads, apart from those that send and measure legitimate traffic.
pub fn attackers() -> Result<Runtime, String> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).thread_name(THREADS).enable_all().build().map_err(|error| error.to_string())
}

/// The CPU time of the attacker's threads, as long as they run.
pub fn cpu_of_attackers() -> Duration {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    let stats = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(THREADS)).map(|stat| relay::cpu(&stat)).sum()
}

/// So that this process can hold all connections of a relay, or those of the short selection.
pub fn raise_open_files(is_quick: bool) -> Result<(), String> {
    let needed = if is_quick { 4000 } else { 12_000 }; // 9,000 idle ones, and some that are on their way
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })
        .map_err(|error| format!("{needed} open files are needed (ulimit -n): {error}"))
}

/// `server.connections_max` as it is by default.
fn connections_max() -> usize {
    let defaults: toml::Table = include_str!("../../config/default.toml").parse().expect("the defaults are TOML");
    let maximum = defaults["server"]["connections_max"].as_integer().expect("a number");
    usize::try_from(maximum).expect("a maximum is positive")
}
