//! What systemd hears of the relay, where it has started it with `Type=notify` (`sd_notify(3)`): ready, reloading, stopping, its state in a
//! line, and that it is alive. Elsewhere nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::telemetry::Throttle;

/// So long a message may wait where systemd does not read its socket.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Both listeners accept; or a reload is done. Whether that was sent.
pub async fn ready() -> bool {
    notify("READY=1").await
}

/// A reload begins: [`ready`] ends it, whatever has come of it.
pub async fn reloading() {
    // systemd 253 and later (Type=notify-reload) compares the time with that of its signal.
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic().as_micros())).await;
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32) // it begins at 0
}

/// The stop begins, and takes so long at most: systemd waits at least until then, whatever TimeoutStopSec= says.
pub async fn stopping(at_most: Duration) {
    notify(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", at_most.as_micros())).await;
}

/// The line that `systemctl status` shows. Whether it was sent.
pub async fn status(line: &str) -> bool {
    notify(&format!("STATUS={}", line.trim_end().replace('\n', " "))).await
}

/// The process is alive; to be said more often than once in the time of [`watchdog`].
pub async fn alive() {
    notify("WATCHDOG=1").await;
}

/// How long systemd waits for a sign of life before it ends the process (WatchdogSec=), if it does.
pub fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|micros| is_meant && *micros > 0).map(Duration::from_micros)
}

/// Sends a message, where there is a systemd to take it. One that cannot be sent is logged.
async fn notify(message: &str) -> bool {
    static COMPLAINTS: Throttle = Throttle::new(Duration::from_secs(60));
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return true };
    let sent = tokio::time::timeout(TIMEOUT, send(&socket, message)).await;
    let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if let Err(error) = &sent
        && let Some(suppressed) = COMPLAINTS.pass()
    {
        tracing::warn!(%error, suppressed, "systemd cannot be notified through NOTIFY_SOCKET");
    }
    sent.is_ok()
}

/// On a socket of its own, as `sd_notify(3)` does it: a connected one would not survive that systemd makes its own again.
async fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    tokio::net::UnixDatagram::from_std(socket)?.send(message.as_bytes()).await.map(drop)
}
