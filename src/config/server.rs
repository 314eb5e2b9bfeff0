//! `[server]`, `[admin]` and `[control]`: the listeners and their limits.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::ExposeSecret as _;

use super::keys::KEY_BYTES;
use super::read::Reader;
use super::{Config, Listener, MILLISECOND, SECOND, Server, Spool, tls};
use crate::event::Token;
use crate::http::client::{self, Source};
use crate::http::failures;
use crate::{budget, control, http};

/// An address that is bound twice. One without an IP address stands for all.
pub fn check_listeners(r: &mut Reader, Config { server, admin, .. }: &Config) {
    let listeners = [
        ("server.listen", Some(server.listener.listen)),
        ("server.plain_listen", server.listener.plain),
        ("admin.listen", Some(admin.listen)),
        ("admin.probes_listen", admin.plain),
    ];
    let listeners: Vec<_> = listeners.into_iter().filter_map(|(key, listen)| Some((key, listen?))).collect();
    for (n, (key, listen)) in listeners.iter().enumerate() {
        let is_same = |other: &SocketAddr| {
            let is_same_ip = listen.ip() == other.ip() || listen.ip().is_unspecified() || other.ip().is_unspecified();
            listen.port() != 0 && listen.port() == other.port() && is_same_ip
        };
        if let Some((other, _)) = listeners[..n].iter().find(|(_, other)| is_same(other)) {
            r.mistake(key, &format!("uses the same port as {other}; choose another one"));
        }
    }
    if server.listener.plain.is_some() && server.listener.tls.is_none() {
        r.mistake(
            "server.plain_listen",
            "is only for a relay with [server.tls]; without it, server.listen has no TLS either: remove this key",
        );
    }
    if admin.tls.as_ref().is_some_and(|tls| tls.client_roots.is_some()) && admin.plain.is_none() {
        let why = "is not set, so probes of /livez and /readyz need a client certificate, too (admin.tls.client_ca)";
        r.warn("admin.probes_listen", why);
    }
}

/// `[server]`, and the limits of handshakes, which the admin listener has, too.
pub fn server(r: &mut Reader) -> (Server, http::tls::Limits) {
    let limits = http::Limits {
        connections_max: r.number("server.connections_max", 1..=1_000_000),
        eviction_grace: r.time("server.eviction_grace", MILLISECOND..=10 * SECOND),
        header_bytes_max: r.size("server.header_bytes_max", ByteSize::kib(8)..=ByteSize::mib(1)),
        header_timeout: r.time("server.header_timeout", 10 * MILLISECOND..=60 * SECOND),
        keepalive_timeout: r.time("server.keepalive_timeout", 10 * MILLISECOND..=3600 * SECOND),
        write_timeout: r.time("server.write_timeout", 10 * MILLISECOND..=3600 * SECOND),
        linger_timeout: r.time("server.linger_timeout", MILLISECOND..=60 * SECOND),
        streams_max: r.number("server.streams_max", 1..=10_000),
        window_bytes: r.size("server.window_bytes", ByteSize::kib(16)..=ByteSize::mib(64)),
        lifetime: None,
    };
    let (tls, acme, handshakes) = tls::server(r);
    let (clients, linger_timeout) = (clients(r), limits.linger_timeout);
    let server = Server {
        listener: Listener {
            listen: r.address("server.listen"),
            backlog: r.number("server.backlog", 1..=1_000_000),
            limits,
            tls,
            plain: r.optional_address("server.plain_listen"),
        },
        acme,
        webhooks: http::webhook::Config {
            body_bytes_max: body_bytes_max(r),
            body_timeout: r.time("server.body_timeout", 10 * MILLISECOND..=60 * SECOND),
            response_deadline: r.time("server.response_deadline", 100 * MILLISECOND..=60 * SECOND),
            retry_after: r.time("server.retry_after", SECOND..=3600 * SECOND),
            linger_timeout,
            client_networks: r.networks("server.client_networks"),
            clients: clients.clone(),
            failed_verifications: failures::Config {
                per_minute: r.number("server.failed_verifications.per_minute", 1..=60_000),
                burst: r.number("server.failed_verifications.burst", 1..=60_000),
                sources_max: r.number("server.failed_verifications.sources_max", 1..=10_000_000),
            },
        },
        budget: budget::Config {
            bytes_in_flight_max: r.size("server.bytes_in_flight_max", ByteSize::kib(64)..=ByteSize::gib(4)),
            large_bytes_in_flight_max: r.size("server.large_bytes_in_flight_max", ByteSize::kib(64)..=ByteSize::gib(4)),
        },
        clients,
        drain_delay: r.time("server.drain_delay", Duration::ZERO..=300 * SECOND),
        drain_timeout: r.time("server.drain_timeout", Duration::ZERO..=300 * SECOND),
    };
    (server, handshakes)
}

/// Who the client is. Where a proxy says it, the proxies must be named: else anyone could write what they like.
fn clients(r: &mut Reader) -> client::Config {
    let choices = [
        ("peer", Source::Peer),
        ("proxy-protocol", Source::ProxyProtocol),
        ("forwarded", Source::Forwarded),
        ("x-forwarded-for", Source::XForwardedFor),
    ];
    let key = "server.trusted_proxies";
    let clients = client::Config {
        source: r.choice("server.client_address", choices),
        trusted_proxies: r.networks(key),
        proxy_header_bytes_max: r.size("server.proxy_header_bytes_max", ByteSize::b(232)..=ByteSize::b(65_551)),
    };
    let proxies = &clients.trusted_proxies;
    match clients.source {
        Source::Peer if !proxies.is_empty() => {
            r.warn(key, "is not used: server.client_address is \"peer\", so the proxies are taken for the clients");
        }
        Source::Peer => {}
        _ if proxies.is_empty() && !r.is_mistaken(key) => {
            r.mistake(
                key,
                "is empty, but server.client_address is not \"peer\": list the networks of the proxies, such as [\"10.0.0.0/8\"]",
            );
        }
        _ if proxies.has_everyone() => r.warn(key, "contains all addresses: anyone can forge the client's address"),
        _ => {}
    }
    clients
}

pub fn body_bytes_max(r: &mut Reader) -> usize {
    r.size("server.body_bytes_max", ByteSize::b(1)..=ByteSize::mib(64))
}

/// The admin listener has the server's limits, but for the numbers of connections and streams, and how long one may last.
pub fn admin(r: &mut Reader, server: &Server, handshakes: http::tls::Limits) -> Listener {
    let limits = http::Limits {
        connections_max: r.number("admin.connections_max", 1..=10_000),
        streams_max: r.number("admin.streams_max", 1..=10_000),
        lifetime: Some(r.time("admin.connection_timeout", 10 * MILLISECOND..=3600 * SECOND)),
        ..server.listener.limits.clone()
    };
    let tls = tls::admin(r, handshakes);
    let plain = r.optional_address("admin.probes_listen");
    Listener { listen: r.address("admin.listen"), limits, tls, plain, ..server.listener }
}

/// What who scrapes `/metrics` has to send, if anything.
pub fn admin_token(r: &mut Reader) -> Option<Token> {
    const KEY: &str = "admin.token";
    const BYTES_MAX: usize = 1024;
    let token = r.optional_secret(KEY)?;
    let text = token.expose_secret();
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b); // RFC 6750, section 2.1
    if !(KEY_BYTES.0..=BYTES_MAX).contains(&text.len()) || !text.bytes().all(legal) {
        r.mistake(KEY, "must be 8 to 1024 characters of a-z A-Z 0-9 - . _ ~ + / =: it is sent in an HTTP header");
    } else if text.len() < KEY_BYTES.1 {
        r.warn(KEY, &format!("has fewer than {} bytes; a longer token is harder to guess", KEY_BYTES.1));
    }
    Some(Token::new(&token))
}

/// The socket is where it is configured, else in the spool's directory, else where systemd has made a directory for it.
pub fn control(r: &mut Reader, spool: Option<&Spool>) -> control::Config {
    let configured = r.optional_text("control.socket").map(PathBuf::from);
    let in_spool = || spool.map(|spool| spool.spool.directory.join(control::SOCKET));
    let runtime = || {
        let directories = std::env::var("RUNTIME_DIRECTORY").ok()?;
        directories.split(':').next().filter(|path| !path.is_empty()).map(|path| Path::new(path).join(control::SOCKET))
    };
    let socket = configured.or_else(in_spool).or_else(runtime);
    let length = socket.as_ref().map_or(0, |socket| socket.as_os_str().len());
    if length > control::SOCKET_PATH_BYTES_MAX {
        let most = control::SOCKET_PATH_BYTES_MAX;
        r.mistake(
            "control.socket",
            &format!("has {length} bytes, and the operating system allows {most}: set a shorter path, such as \"/run/livechat-relay/control.sock\""),
        );
    }
    control::Config {
        socket,
        connections_max: r.number("control.connections_max", 1..=100),
        request_bytes_max: r.size("control.request_bytes_max", ByteSize::kib(1)..=ByteSize::mib(16)),
        request_timeout: r.time("control.request_timeout", 100 * MILLISECOND..=600 * SECOND),
        write_timeout: r.time("control.write_timeout", 100 * MILLISECOND..=24 * 3600 * SECOND),
    }
}
