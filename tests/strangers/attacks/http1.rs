//! Attacks over HTTP/1.1, or over no HTTP at all.

use std::iter::{once, repeat};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use crate::legit::{post, webhook};
use crate::target::{Crowd, Stream, Target};

/// `server.body_bytes_max`.
pub const BODY_MAX: usize = 2 << 20;

/// A path that is answered as a wrong key is.
const PATH: &str = "/webhooks/stranger";

pub const GET: &[u8] = b"GET /nowhere HTTP/1.1\r\nhost: relay\r\n\r\n";

/// A part of a head.
const PARTIAL: &[u8] = b"POST /webhooks HTTP/1.1\r\nhost: re";

pub const GET_AND_PARTIAL: &[u8] = b"GET /nowhere HTTP/1.1\r\nhost: relay\r\n\r\nPOST /webhooks HTTP/1.1\r\nhost: re";

/// A request that is answered 404.
pub fn refused() -> Vec<u8> {
    GET.to_vec()
}

/// A webhook that is answered 200.
pub fn verified() -> Vec<u8> {
    webhook(0)
}

/// A webhook that is answered 401.
pub fn forged() -> Vec<u8> {
    forgery(0)
}

fn forgery(text_bytes: usize) -> Vec<u8> {
    let text = "x".repeat(text_bytes);
    let body = format!(
        r#"{{"secret_key":"a guess","action":"incoming_event","organization_id":"1","payload":{{"text":"{text}"}}}}"#
    );
    post(PATH, body.len(), &body)
}

pub async fn heads(target: Arc<Target>, connections: usize) {
    hold(target, connections, post(PATH, BODY_MAX, "")).await;
}

/// Bodies of `length` bytes, without the last 4 KiB.
pub async fn cut_bodies(target: Arc<Target>, connections: usize, length: usize) {
    hold(target, connections, post(PATH, length, &"x".repeat(length - (4 << 10)))).await;
}

/// All of a head that a relay may take, but for its end.
pub async fn large_heads(target: Arc<Target>, connections: usize) {
    let head = format!("GET /nowhere HTTP/1.1\r\nhost: relay\r\n{}", format!("x: {}\r\n", "a".repeat(95)).repeat(155));
    hold(target, connections, head.into_bytes()).await;
}

/// Sends so much, and waits for the answer.
async fn hold(target: Arc<Target>, connections: usize, bytes: Vec<u8>) {
    let bytes = Bytes::from(bytes);
    let each = move |mut stream: Stream| {
        let bytes = bytes.clone();
        async move { stream.hold(&bytes).await }
    };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

pub async fn slow_bodies(target: Arc<Target>, connections: usize) {
    dribble(target, connections, post(PATH, 1000, ""), b"x").await;
}

pub async fn chunked_bodies(target: Arc<Target>, connections: usize) {
    dribble(target, connections, chunked_head(), b"1\r\nx\r\n").await;
}

fn chunked_head() -> Vec<u8> {
    let headers = "host: relay\r\ncontent-type: application/json\r\ntransfer-encoding: chunked";
    format!("POST {PATH} HTTP/1.1\r\n{headers}\r\n\r\n").into_bytes()
}

/// After this head, a piece each second.
async fn dribble(target: Arc<Target>, connections: usize, head: Vec<u8>, piece: &'static [u8]) {
    let head = Bytes::from(head);
    let each = move |mut stream: Stream| {
        let head = head.clone();
        async move { stream.dribble(once(&head[..]).chain(repeat(piece))).await }
    };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

pub async fn slow_heads(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move { stream.dribble(PARTIAL.chunks(1).chain(repeat(&b"y"[..]))).await };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

/// A refused request after which the relay closes, and bytes that it has no use for.
pub async fn after_refusal(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move {
        stream.send(b"GET /nowhere HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").await?;
        loop {
            stream.send(b"x").await?;
            sleep(Duration::from_secs(1)).await;
        }
    };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

pub async fn tiny_chunks(target: Arc<Target>, connections: usize) {
    let (head, chunks) = (Bytes::from(chunked_head()), Bytes::from(b"1\r\nx\r\n".repeat(3000)));
    let each = move |mut stream: Stream| {
        let (head, chunks) = (head.clone(), chunks.clone());
        async move {
            stream.send(&head).await?;
            stream.flood(|| chunks.clone()).await
        }
    };
    Crowd::flooding(target.webhooks, connections).run(target, each).await;
}

pub async fn silent(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move { stream.must_end("a connection that has never sent a byte").await };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

/// So much on each connection and nothing more, on so many that some have to wait until the relay accepts them.
pub async fn idle(target: Arc<Target>, connections: usize, first: &'static [u8]) {
    let each = move |mut stream: Stream| async move {
        stream.send(first).await?;
        stream.read_to_the_end().await
    };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

/// Behind a whole request, in the same write, a part of the next one's head.
pub async fn partial_heads(target: Arc<Target>, connections: usize, first: fn() -> Vec<u8>) {
    let each = move |mut stream: Stream| async move {
        stream.send(&[&first()[..], PARTIAL].concat()).await?;
        stream.must_end("a connection with a part of a head").await
    };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

/// The relay may close after a refusal, but must not fall silent.
pub async fn crowd_gets(target: Arc<Target>) {
    let beside = idle(Arc::clone(&target), 600, b"");
    let ask = async {
        loop {
            sleep(Duration::from_secs(1)).await;
            let (answers, end) = pipelined(&target, &GET.repeat(400), 400).await;
            let what = format!("{} of 400 pipelined GETs were answered, then {end}", count(&answers, "404"));
            if end == End::Silence { target.fail(what) } else { target.note(what) }
        }
    };
    tokio::join!(beside, ask);
}

/// A sender with the key has all its webhooks answered, also behind requests that are answered at once.
pub async fn crowd_webhooks(target: Arc<Target>) {
    let beside = idle(Arc::clone(&target), 600, b"");
    let ask = async {
        loop {
            sleep(Duration::from_secs(1)).await;
            let webhooks = (0..70).flat_map(|_| verified());
            let requests: Vec<u8> = verified().into_iter().chain(GET.repeat(40)).chain(webhooks).collect();
            let (answers, end) = pipelined(&target, &requests, 111).await;
            let answered = count(&answers, "200");
            let what = format!("{answered} of 71 pipelined webhooks with the key were answered 200, then {end}");
            if answered < 71 { target.fail(what) } else { target.note(what) }
        }
    };
    tokio::join!(beside, ask);
}

#[derive(PartialEq, Eq)]
enum End {
    All,
    Closed,
    Silence,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::All => "nothing was due",
            Self::Closed => "the relay closed",
            Self::Silence => "nothing came for 5 s",
        })
    }
}

/// Sends it all in one write; what was answered, and how that ended.
async fn pipelined(target: &Arc<Target>, requests: &[u8], due: usize) -> (String, End) {
    let mut answers = Vec::new();
    let exchange = async {
        let mut stream = Stream::open(target, target.webhooks).await?;
        sleep(Duration::from_millis(100)).await; // the relay has accepted it, and waits for its first byte
        stream.send(requests).await?;
        let mut bytes = vec![0; 65536];
        while count(&String::from_utf8_lossy(&answers), "") < due {
            let read = stream.read(&mut bytes).await?;
            answers.extend_from_slice(&bytes[..read]);
        }
        std::io::Result::Ok(())
    };
    let end = match timeout(Duration::from_secs(5), exchange).await {
        Ok(Ok(())) => End::All,
        Ok(Err(_)) => End::Closed,
        Err(_) => End::Silence,
    };
    (String::from_utf8_lossy(&answers).into_owned(), end)
}

fn count(answers: &str, status: &str) -> usize {
    answers.matches(&format!("HTTP/1.1 {status}")).count()
}

pub async fn pipeline(target: Arc<Target>, connections: usize, request: fn() -> Vec<u8>) {
    let requests = Bytes::from(request().repeat(200));
    let each = move |mut stream: Stream| {
        let requests = requests.clone();
        async move { stream.flood(|| requests.clone()).await }
    };
    Crowd::flooding(target.webhooks, connections).run(target, each).await;
}

pub async fn deaf(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move { stream.flood_deaf(&GET.repeat(200)).await };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

pub async fn churn(target: Arc<Target>) {
    let each = |_: Stream| std::future::ready(Ok(()));
    Crowd::flooding(target.webhooks, 8).run(target, each).await;
}

pub async fn rst(target: Arc<Target>) {
    let each = |stream: Stream| std::future::ready(stream.reset());
    Crowd::flooding(target.webhooks, 8).run(target, each).await;
}

/// One after the other on each connection, as long as the relay keeps it.
pub async fn forgeries(target: Arc<Target>, connections: usize, text_bytes: usize) {
    let request = Bytes::from(forgery(text_bytes));
    let each = move |mut stream: Stream| {
        let request = request.clone();
        async move {
            loop {
                stream.ask(&request).await?;
            }
        }
    };
    Crowd::flooding(target.webhooks, connections).run(target, each).await;
}

/// What a machine that swaps, or a hypervisor, does to a process.
pub async fn sigstop(target: Arc<Target>) {
    sleep(Duration::from_secs(1)).await;
    target.signal(Signal::STOP);
    sleep(Duration::from_secs(5)).await;
    target.signal(Signal::CONT);
}
