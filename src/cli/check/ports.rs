//! Whether `serve` can listen where it is configured. Each address is bound for a moment, and nothing listens on it.

use std::io::ErrorKind::{AddrInUse, ConnectionRefused, NotFound, PermissionDenied};
use std::net::SocketAddr;
use std::path::Path;

use tokio::net::UnixStream;

use super::Report;
use crate::cli::serve::bound;
use crate::config::Config;

const CHECK: &str = "ports";

/// A relay of this configuration.
enum Relay {
    Runs,
    Stopped,
    /// Nothing tells: without a control socket, or where another user's cannot be opened.
    Unknown,
}

/// `changed`: keys in which a running relay differs from the configuration; it listens on the other addresses.
pub async fn look(config: &Config, changed: Option<&[String]>, report: &Report) {
    report.begin(CHECK);
    let relay = relay(config.control.socket.as_deref()).await;
    let is_its = |key: &str| changed.is_some_and(|changed| !changed.iter().any(|other| other == key));
    if addresses(config).all(|(key, _)| is_its(key)) {
        return report.ok(CHECK, "the running relay has them");
    }
    let mut free = Vec::new();
    for (key, listen) in addresses(config).filter(|(key, _)| !is_its(key)) {
        let Err(error) = bound(listen) else {
            free.push(listen.to_string());
            continue;
        };
        let why = format!("{key}: cannot listen on {listen}: {error}");
        match (error.kind(), &relay) {
            (AddrInUse, Relay::Runs | Relay::Unknown) => {
                report.warn(
                    CHECK,
                    format!("{why}; is that this relay, or systemd with its sockets? Else choose another port"),
                );
            }
            (AddrInUse, _) => {
                report.fail(CHECK, format!("{why}: another program has it; stop that, or choose another port"))
            }
            // The relay may have more rights than this command.
            (PermissionDenied, _) => report.warn(CHECK, format!("{why}; ports below 1024 need CAP_NET_BIND_SERVICE")),
            _ => report.fail(CHECK, why),
        }
    }
    if !free.is_empty() {
        report.ok(CHECK, format!("free: {}", free.join(", ")));
    }
}

/// Where `serve` listens, each with its key.
fn addresses(Config { server, admin, .. }: &Config) -> impl Iterator<Item = (&'static str, SocketAddr)> {
    let all = [
        ("server.listen", Some(server.listener.listen)),
        ("server.plain_listen", server.listener.plain),
        ("admin.listen", Some(admin.listen)),
        ("admin.probes_listen", admin.plain),
    ];
    all.into_iter().filter_map(|(key, listen)| Some((key, listen?)))
}

async fn relay(socket: Option<&Path>) -> Relay {
    // What systemd starts may get its sockets.
    if std::env::var_os("INVOCATION_ID").is_some() {
        return Relay::Unknown;
    }
    let Some(socket) = socket else { return Relay::Unknown };
    match UnixStream::connect(socket).await {
        Ok(_) => Relay::Runs,
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => Relay::Stopped,
        Err(_) => Relay::Unknown,
    }
}
