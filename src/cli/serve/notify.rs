//! Keeps systemd informed while the relay runs: its state in the words of `/readyz`, and that it is alive.

use std::sync::Arc;
use std::time::Duration;

use crate::http::admin::Readiness;
use crate::http::{Handler, Server};
use crate::systemd;

/// How often it is looked whether the state has changed.
const INTERVAL: Duration = Duration::from_secs(1);

/// Says that the listeners accept, and sends the state whenever it has changed. What systemd has not taken is sent again.
pub async fn status(readiness: impl Fn() -> Readiness) {
    let (mut is_ready, mut sent) = (false, None);
    loop {
        is_ready = is_ready || systemd::ready().await;
        let now = readiness();
        if sent.as_ref() != Some(&now) && systemd::status(&now.to_string()).await {
            sent = Some(now);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Says that the relay is alive as long as the runtime gets to this task and the accept loop comes round; the disk and Kafka, which may
/// hang, have no part in it. In time, which systemd has set, that happens at least twice.
pub async fn alive<H: Handler>(server: Arc<Server<H>>, time: Duration) {
    let interval = time / 4;
    loop {
        if tokio::time::timeout(interval, server.come_round()).await.is_ok() {
            systemd::alive().await;
        } else {
            tracing::error!("the accept loop does not answer: systemd is not told that the relay is alive");
        }
        tokio::time::sleep(interval).await;
    }
}
