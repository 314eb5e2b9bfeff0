//! Legitimate traffic: webhooks with the right secret key, and the probes of an orchestrator, with what became of each.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use tokio_rustls::TlsConnector;

use crate::relay::Relay;
use crate::tls::Connection;

pub const SECRET_KEY: &str = "key-of-the-legitimate-sender";

/// Webhooks a second, on fresh connections and as many on each one that is kept.
const PER_SECOND: u64 = 50;

/// Connections that are kept: with HTTPS it is 500 webhooks a second in all.
const KEPT: usize = 1;
const KEPT_HTTPS: usize = 9;

/// Webhooks of [`LARGE_BYTES`] a second, which are few with LiveChat.
const LARGE_PER_SECOND: u64 = 5;

/// More than the 64 KiB that no body has to share with others.
const LARGE_BYTES: usize = 200_000;

const PROBES_PER_SECOND: u64 = 5;

/// How long traffic is sent, and how long a sender waits.
#[derive(Clone)]
pub struct Plan {
    pub before: Duration,
    pub during: Duration,
    /// LiveChat waits for about 10 s.
    pub patience: Duration,
    /// Kubernetes waits for 1 s by default.
    pub probe_timeout: Duration,
}

/// What became of one kind of request.
#[derive(Default)]
pub struct Outcomes {
    pub sent: u64,
    pub failed: BTreeMap<String, u64>,
    took: Vec<Duration>,
}

/// What became of all of it.
pub struct Traffic {
    /// A connection each.
    pub fresh: Outcomes,
    /// All on a few connections, as long as the relay keeps them.
    pub kept: Outcomes,
    /// Large bodies, a connection each.
    pub large: Outcomes,
    pub livez: Outcomes,
    pub readyz: Outcomes,
}

impl Traffic {
    /// Sends for so long, and waits for the last answers.
    pub fn send(relay: &Relay, lasting: Duration, plan: &Plan) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let webhooks = Address { to: relay.webhooks, tls: relay.tls() };
        let probe = |path: &'static str| {
            let request = move || format!("GET {path} HTTP/1.1\r\nhost: relay\r\n\r\n").into_bytes();
            let admin = Address { to: relay.admin, tls: None };
            fresh(admin, PROBES_PER_SECOND, lasting, plan.probe_timeout, request)
        };
        let connections = if relay.tls().is_some() { KEPT_HTTPS } else { KEPT };
        let kept = join_all((0..connections).map(|_| kept(webhooks, lasting, plan.patience)));
        runtime.block_on(async {
            let (fresh, kept, large, livez, readyz) = tokio::join!(
                fresh(webhooks, PER_SECOND, lasting, plan.patience, || webhook(0)),
                kept,
                fresh(webhooks, LARGE_PER_SECOND, lasting, plan.patience, || webhook(LARGE_BYTES)),
                probe("/livez"),
                probe("/readyz"),
            );
            let kept = kept.into_iter().fold(Outcomes::default(), Outcomes::and);
            Self { fresh, kept, large, livez, readyz }
        })
    }
}

impl Outcomes {
    pub fn answered(&self) -> u64 {
        self.took.len() as u64
    }

    /// The time that so many percent of the answers took at most.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let last = self.took.len().checked_sub(1)?;
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        Some(sorted[last * percent / 100])
    }

    /// Whether no more than so many have failed, all of them with 503.
    pub fn only_503s_up_to(&self, most: u64) -> bool {
        self.failed.iter().all(|(why, &times)| why == "503" && times <= most)
    }

    fn and(mut self, other: Self) -> Self {
        self.sent += other.sent;
        self.took.extend(other.took);
        other.failed.into_iter().for_each(|(why, times)| *self.failed.entry(why).or_default() += times);
        self
    }

    fn count(&mut self, outcome: Result<Duration, String>) {
        match outcome {
            Ok(took) => self.took.push(took),
            Err(why) => *self.failed.entry(why).or_default() += 1,
        }
    }
}

/// Whether a new relay is ready, and answers a webhook with 200.
pub fn takes_webhooks(relay: &Relay) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let most = Duration::from_secs(5);
    runtime.block_on(async {
        let ready = b"GET /readyz HTTP/1.1\r\nhost: relay\r\n\r\n";
        let (admin, webhooks) =
            (Address { to: relay.admin, tls: None }, Address { to: relay.webhooks, tls: relay.tls() });
        ask(admin, ready, most).await.is_ok() && ask(webhooks, &webhook(0), most).await.is_ok()
    })
}

/// A webhook as LiveChat sends it, a new event each time, with a text of so many bytes.
pub fn webhook(text_bytes: usize) -> Vec<u8> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let n = COUNT.fetch_add(1, Relaxed);
    let text = "x".repeat(text_bytes);
    let body = format!(
        r#"{{"secret_key":"{SECRET_KEY}","webhook_id":"7b2f","action":"incoming_event","organization_id":"390e44e6","payload":{{"chat_id":"C{}","thread_id":"T{n}","event":{{"id":"T{n}_1","type":"message","text":"Good morning! {text}","author_id":"ada@example.com","created_at":"2026-11-22T10:00:00.{:06}Z"}}}},"additional_data":{{}}}}"#,
        n % 100,
        n % 1_000_000,
    );
    post("/webhooks", body.len(), &body)
}

/// A POST with so much of its body.
pub fn post(path: &str, length: usize, body: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: relay\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    (head + body).into_bytes()
}

/// Where to, and how.
#[derive(Clone, Copy)]
struct Address<'a> {
    to: SocketAddr,
    tls: Option<&'a TlsConnector>,
}

impl Address<'_> {
    async fn connect(self) -> io::Result<Connection> {
        Connection::open(self.to, self.tls).await
    }
}

/// Requests on a connection each, sent when they are due, whatever became of those before.
async fn fresh(
    Address { to, tls }: Address<'_>,
    per_second: u64,
    lasting: Duration,
    patience: Duration,
    request: impl Fn() -> Vec<u8>,
) -> Outcomes {
    let mut due = interval(Duration::from_secs(1) / per_second as u32);
    let (mut requests, tls) = (JoinSet::new(), tls.cloned());
    let (mut outcomes, began) = (Outcomes::default(), Instant::now());
    while began.elapsed() < lasting {
        due.tick().await;
        let request = request();
        outcomes.sent += 1;
        let tls = tls.clone();
        requests.spawn(async move { ask(Address { to, tls: tls.as_ref() }, &request, patience).await });
    }
    requests.join_all().await.into_iter().for_each(|outcome| outcomes.count(outcome));
    outcomes
}

/// One request after the other on one connection; a new one where the relay has closed it.
async fn kept(to: Address<'_>, lasting: Duration, patience: Duration) -> Outcomes {
    let mut due = interval(Duration::from_secs(1) / PER_SECOND as u32);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay); // who waits for an answer sends less
    let mut kept = None;
    let (mut outcomes, began) = (Outcomes::default(), Instant::now());
    while began.elapsed() < lasting {
        due.tick().await;
        outcomes.sent += 1;
        let sent = Instant::now();
        let exchange = async {
            let mut stream = match kept.take().and_then(open) {
                Some(stream) => stream,
                None => to.connect().await?,
            };
            let answer = exchange(&mut stream, &webhook(0)).await?;
            io::Result::Ok((stream, answer))
        };
        let outcome = timeout(patience, exchange).await;
        outcomes.count(match outcome {
            Err(_) => Err("no answer in time".to_owned()),
            Ok(Err(error)) => Err(error.kind().to_string()),
            Ok(Ok((_, answer))) if answer.status != 200 => Err(answer.status.to_string()),
            Ok(Ok((stream, answer))) => {
                kept = (!answer.closes).then_some(stream);
                Ok(sent.elapsed())
            }
        });
    }
    outcomes
}

/// One request on a connection of its own: how long its 200 took, or why there was none.
async fn ask(to: Address<'_>, request: &[u8], patience: Duration) -> Result<Duration, String> {
    let began = Instant::now();
    let exchange = async { exchange(&mut to.connect().await?, request).await };
    match timeout(patience, exchange).await {
        Err(_) => Err("no answer in time".to_owned()),
        Ok(Err(error)) => Err(error.kind().to_string()),
        Ok(Ok(answer)) if answer.status != 200 => Err(answer.status.to_string()),
        Ok(Ok(_)) => Ok(began.elapsed()),
    }
}

/// None where the relay has closed it while it was idle, which is no failure.
fn open(mut connection: Connection) -> Option<Connection> {
    let has_ended = connection.read(&mut [0]).now_or_never().is_some();
    (!has_ended).then_some(connection)
}

/// Sends while it reads: an answer may come before all is sent.
async fn exchange(stream: &mut Connection, request: &[u8]) -> io::Result<Answer> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        let _ = writer.write_all(request).await; // the relay may refuse the rest; the answer says why
        let _ = writer.flush().await;
        std::future::pending().await
    };
    tokio::select! { answer = answer(&mut reader) => answer, never = send => never }
}

/// Of an answer, what a sender acts upon.
pub struct Answer {
    pub status: u16,
    /// `connection: close`.
    pub closes: bool,
}

/// Reads one HTTP/1 answer to its end; what follows may be lost.
///
/// # Errors
/// The connection's, its end among them.
pub async fn answer(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Answer> {
    let mut from = BufReader::new(from);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = head.to_lowercase();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no answer of HTTP: {head}")))?;
    let length: u64 = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    tokio::io::copy(&mut (&mut from).take(length), &mut tokio::io::sink()).await?;
    Ok(Answer { status, closes: header("connection") == Some("close") })
}
