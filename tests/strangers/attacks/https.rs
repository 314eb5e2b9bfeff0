//! Attacks on a listener with TLS: before the handshake, with it, and by tools that others have made.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use crate::target::{Crowd, Stream, Target};

/// No one attacks: what the measurement itself costs.
pub async fn nothing(_: Arc<Target>) {
    std::future::pending().await
}

/// Handshakes that are done, and no request.
pub async fn idle(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move { stream.read_to_the_end().await };
    // Each handshake takes the client and the relay half a millisecond of the machine that they share.
    let crowd = Crowd::holding(target.webhooks, connections).within(IDLE_RAMP);
    crowd.run(target, each).await;
}

/// So long it takes until the last one of [`idle`] is there.
pub const IDLE_RAMP: Duration = Duration::from_secs(20);

/// The first bytes of a ClientHello, and nothing more.
pub async fn half_hellos(target: Arc<Target>, connections: usize) {
    let mut hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]; // a record of 512 bytes with a ClientHello of 508 for TLS 1.2 or later
    hello.extend([0x5a; 100]);
    let hello = Bytes::from(hello);
    let each = move |mut stream: Stream| {
        let hello = hello.clone();
        async move {
            stream.send(&hello).await?;
            stream.must_end("a handshake that was begun").await
        }
    };
    Crowd::holding(target.webhooks, connections).raw().run(target, each).await;
}

/// Connected, and not a byte.
pub async fn silent(target: Arc<Target>, connections: usize) {
    let each = |mut stream: Stream| async move { stream.must_end("a connection without a handshake").await };
    Crowd::holding(target.webhooks, connections).raw().run(target, each).await;
}

/// Handshake after handshake at full speed.
pub async fn handshakes(target: Arc<Target>, connections: usize) {
    let each = |stream: Stream| std::future::ready(stream.reset());
    Crowd::flooding(target.webhooks, connections).run(target, each).await;
}

/// slowhttptest, Debian's package: `mode` is one of its slow headers (-H), bodies (-B) or reads (-X).
pub async fn slowhttptest(target: Arc<Target>, mode: &[&str]) {
    let url = format!("https://{}/webhooks/stranger", target.webhooks);
    loop {
        let mut command = Command::new("slowhttptest");
        command.args(["-u", &url, "-c", "4000", "-r", "400", "-l", "600", "-p", "5"]).args(mode);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = match command.spawn() {
            Ok(child) => Running(child),
            Err(error) => {
                return target.fail(format!("slowhttptest: {error}; `scripts/ensure.sh slowhttptest` gets it"));
            }
        };
        // It ends when the relay has closed all of its connections, and begins again here.
        let status = loop {
            sleep(Duration::from_millis(500)).await;
            match running.0.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => break status.to_string(),
                Err(error) => break error.to_string(),
            }
        };
        target.note(format!("all of slowhttptest's connections had ended ({status})"));
    }
}

/// Ends with the attack.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}
