//! Attacks on the admin listener, by those who can reach it.

use std::iter::repeat;
use std::sync::Arc;

use crate::held::Held;
use crate::http2::{get, greeting};
use crate::target::{Crowd, Stream, Target};

const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: relay\r\n\r\n";

pub async fn silent(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move { stream.read_to_the_end().await };
    Crowd::holding(target.admin, connections).run(target, each).await;
}

pub async fn slow_heads(target: Arc<Target>, connections: usize) {
    let each =
        |mut stream: Stream| async move { stream.dribble(SCRAPE[..16].chunks(1).chain(repeat(&b"y"[..]))).await };
    Crowd::holding(target.admin, connections).run(target, each).await;
}

pub async fn deaf(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move { stream.flood_deaf(&SCRAPE.repeat(50)).await };
    Crowd::holding(target.admin, connections).run(target, each).await;
}

pub async fn http2(target: Arc<Target>, connections: usize) {
    let block = get("/metrics");
    let held = Held { streams: 100, block, body_bytes: 0, dribbles: false, ends: true, window: Some(0) };
    let each = move |stream: Stream| held.clone().hold(stream);
    Crowd::holding(target.admin, connections).run(target, each).await;
}

pub async fn http2_silent(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move {
        stream.send(&greeting(None)).await?;
        stream.read_to_the_end().await
    };
    Crowd::holding(target.admin, connections).run(target, each).await;
}

pub async fn churn(target: Arc<Target>) {
    let each = |_: Stream| std::future::ready(Ok(()));
    Crowd::flooding(target.admin, 8).run(target, each).await;
}

/// One after the other on each connection, as long as the relay keeps it.
pub async fn scrapes(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move {
        loop {
            stream.ask(SCRAPE).await?;
        }
    };
    Crowd::flooding(target.admin, connections).run(target, each).await;
}
