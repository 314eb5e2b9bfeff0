//! The attacks, in the order in which they run.

mod admin;
mod http1;
mod http2;
mod https;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::target::Target;

pub struct Attack {
    pub name: &'static str,
    pub about: &'static str,
    /// Goes on until it is dropped.
    pub run: fn(Arc<Target>) -> Running,
    /// Part of the short selection.
    pub is_quick: bool,
    /// How long legitimate senders wait at least.
    pub patience: Duration,
    /// Whether the relay is kept from answering probes, too.
    pub is_stopped: bool,
    /// Where the webhooks' listener speaks HTTPS: what else is set.
    pub https: Option<&'static str>,
    /// How long the attack takes to grow to its size.
    pub ramp: Duration,
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Attack {
    const fn new(name: &'static str, about: &'static str, run: fn(Arc<Target>) -> Running) -> Self {
        Self {
            name,
            about,
            run,
            is_quick: false,
            patience: Duration::ZERO,
            is_stopped: false,
            https: None,
            ramp: Duration::ZERO,
        }
    }

    /// Of a relay with TLS on the webhooks' listener, and 10,000 connections at most.
    const fn https(self) -> Self {
        Self { https: Some("server.connections_max = 10000\n"), ..self }
    }

    const fn quick(self) -> Self {
        Self { is_quick: true, ..self }
    }

    const fn stopped(self) -> Self {
        Self { is_stopped: true, patience: Duration::from_secs(30), ..self }
    }
}

/// The number in a name is that of connections.
pub static ATTACKS: [Attack; 71] = [
    Attack::new("heads-32", "heads that declare 2 MiB, and no body", |t| Box::pin(http1::heads(t, 32))),
    Attack::new("heads-500", "heads that declare 2 MiB, on 500 connections", |t| Box::pin(http1::heads(t, 500))),
    Attack::new("heads-h2-1x32", "heads that declare 2 MiB, as 32 streams of one HTTP/2 connection", |t| {
        Box::pin(http2::heads(t))
    }),
    Attack::new("body-chunked-2000", "bodies of one-byte chunks, one a second", |t| {
        Box::pin(http1::chunked_bodies(t, 2000))
    }),
    Attack::new("body-length-2000", "bodies of 1000 bytes, one a second", |t| Box::pin(http1::slow_bodies(t, 2000)))
        .quick(),
    Attack::new("body-60k-1000", "60 KiB of a body of 64 KiB at once, the rest never", |t| {
        Box::pin(http1::cut_bodies(t, 1000, 64 << 10))
    }),
    Attack::new("body-60k-2000", "60 KiB of a body each, together more than server.bytes_in_flight_max", |t| {
        Box::pin(http1::cut_bodies(t, 2000, 64 << 10))
    }),
    Attack::new("body-60k-max", "60 KiB of a body each, on server.connections_max connections", |t| {
        let all = t.connections_max;
        Box::pin(http1::cut_bodies(t, all, 64 << 10))
    }),
    Attack::new("body-1m-1000", "all but 4 KiB of a body of 1 MiB, the rest never", |t| {
        Box::pin(http1::cut_bodies(t, 1000, 1 << 20))
    }),
    Attack::new("body-h2-20x128", "bodies of 128 streams each, a byte a second", |t| {
        Box::pin(http2::slow_bodies(t, 20))
    }),
    Attack::new("body-h2-60k-20x128", "60 KiB of a body of 128 streams each, the rest never", |t| {
        Box::pin(http2::cut_bodies(t, 20))
    }),
    Attack::new("tiny-chunks-32", "bodies of one-byte chunks at full speed", |t| Box::pin(http1::tiny_chunks(t, 32))),
    Attack::new("slow-heads-2000", "heads, a byte a second", |t| Box::pin(http1::slow_heads(t, 2000))).quick(),
    Attack::new("large-heads-max", "15 kB of a head, on server.connections_max connections", |t| {
        let all = t.connections_max;
        Box::pin(http1::large_heads(t, all))
    }),
    Attack::new("silent-3000", "connections that never send a byte", |t| Box::pin(http1::silent(t, 3000))),
    Attack::new("silent-max", "server.connections_max connections that never send a byte", |t| {
        let all = t.connections_max;
        Box::pin(http1::idle(t, all, b""))
    }),
    Attack::new("idle-404-max", "server.connections_max connections, answered 404 and then idle", |t| {
        let all = t.connections_max;
        Box::pin(http1::idle(t, all, http1::GET))
    }),
    Attack::new("partial-refused-400", "a part of a head behind a request without the key, in one write", |t| {
        Box::pin(http1::partial_heads(t, 400, http1::refused))
    }),
    Attack::new("partial-verified-400", "a part of a head behind a webhook with the key, in one write", |t| {
        Box::pin(http1::partial_heads(t, 400, http1::verified))
    }),
    Attack::new("partial-refused-max", "a part of a head behind a GET, on server.connections_max connections", |t| {
        let all = t.connections_max;
        Box::pin(http1::idle(t, all, http1::GET_AND_PARTIAL))
    }),
    Attack::new("after-refusal-2000", "refused, told that it is closed, and a byte a second", |t| {
        Box::pin(http1::after_refusal(t, 2000))
    }),
    Attack::new("crowd-gets", "600 silent connections, and 400 GETs in one write", |t| Box::pin(http1::crowd_gets(t))),
    Attack::new("crowd-webhooks", "600 silent connections, and 71 webhooks with the key in one write", |t| {
        Box::pin(http1::crowd_webhooks(t))
    }),
    Attack::new("pipeline-404-1", "404s, 200 requests a write, at full speed", |t| {
        Box::pin(http1::pipeline(t, 1, http1::refused))
    }),
    Attack::new("pipeline-401-1", "401s, 200 requests a write, at full speed", |t| {
        Box::pin(http1::pipeline(t, 1, http1::forged))
    }),
    Attack::new("pipeline-404-256", "404s, 200 requests a write", |t| {
        Box::pin(http1::pipeline(t, 256, http1::refused))
    }),
    Attack::new("pipeline-401-256", "401s, 200 requests a write", |t| Box::pin(http1::pipeline(t, 256, http1::forged))),
    Attack::new("deaf-1000", "pipelined requests whose answers are never read", |t| Box::pin(http1::deaf(t, 1000))),
    Attack::new("churn", "connect and close at full speed", |t| Box::pin(http1::churn(t))),
    Attack::new("rst", "connect and reset at full speed", |t| Box::pin(http1::rst(t))),
    Attack::new("forged-32", "401s at full speed", |t| Box::pin(http1::forgeries(t, 32, 0))),
    Attack::new("forged-2m-32", "forged bodies of 2 MiB at full speed", |t| {
        Box::pin(http1::forgeries(t, 32, http1::BODY_MAX - 1024))
    }),
    Attack::new("h2-rapid-reset-4", "streams, each reset at once", |t| Box::pin(http2::rapid_reset(t, 4))).quick(),
    Attack::new("h2-reset-log", "connections with 40 resets each, of which the h2 crate logs", |t| {
        Box::pin(http2::reset_connections(t))
    }),
    Attack::new("h2-continuation-4", "a head that never ends, in CONTINUATION frames", |t| {
        Box::pin(http2::continuation(t, 4))
    }),
    Attack::new("h2-hpack-bomb-4", "16,000 references to a header of 3.9 kB in each request", |t| {
        Box::pin(http2::hpack_bomb(t, 4))
    }),
    Attack::new("h2-window-0-4", "refused requests whose answers may not be sent", |t| {
        Box::pin(http2::window_zero(t, 4))
    }),
    Attack::new("h2-streams-over-4", "streams far over streams_max", |t| Box::pin(http2::over_streams_max(t, 4))),
    Attack::new("h2-priority-20", "PRIORITY frames at full speed", |t| Box::pin(http2::frames(t, 20, http2::priority))),
    Attack::new("h2-settings-20", "SETTINGS frames at full speed", |t| Box::pin(http2::frames(t, 20, http2::settings))),
    Attack::new("h2-ping-20", "PING frames at full speed", |t| Box::pin(http2::frames(t, 20, http2::ping))),
    Attack::new("h2-window-update-20", "WINDOW_UPDATE frames at full speed", |t| {
        Box::pin(http2::frames(t, 20, http2::window_update))
    }),
    Attack::new("h2-window-update-1", "WINDOW_UPDATE frames, on one connection", |t| {
        Box::pin(http2::frames(t, 1, http2::window_update))
    }),
    Attack::new("h2-empty-data-20", "DATA frames without data at full speed", |t| Box::pin(http2::empty_data(t, 20))),
    Attack::new("h2-silent-3000", "HTTP/2's preface, then nothing", |t| Box::pin(http2::silent(t, 3000))),
    Attack::new("h2-ping-max", "server.connections_max connections that only PING, every 2 s", |t| {
        Box::pin(http2::kept_alive(t))
    }),
    Attack::new("h2-paths-100x128", "requests with a path of 15 kB, and no body", |t| Box::pin(http2::paths(t, 100))),
    Attack::new("h2-paths-305x128", "requests with a path of 15 kB, on 305 connections", |t| {
        Box::pin(http2::paths(t, 305))
    }),
    Attack::new("h2-partial-heads-305", "15 kB of a head whose end never comes", |t| {
        Box::pin(http2::partial_heads(t, 305))
    }),
    Attack::new("admin-silent-64", "admin listener: as many silent ones as admin.connections_max", |t| {
        Box::pin(admin::silent(t, 64))
    }),
    Attack::new("admin-silent-200", "admin listener: more silent ones", |t| Box::pin(admin::silent(t, 200))),
    Attack::new("admin-slow-heads-64", "admin listener: heads, a byte a second", |t| {
        Box::pin(admin::slow_heads(t, 64))
    }),
    Attack::new("admin-deaf-64", "admin listener: scrapers that do not read", |t| Box::pin(admin::deaf(t, 64))),
    Attack::new("admin-h2-10x100", "admin listener: HTTP/2 scrapers whose window is 0", |t| {
        Box::pin(admin::http2(t, 10))
    }),
    Attack::new("admin-http2-silent-64", "admin listener: HTTP/2's preface, then nothing", |t| {
        Box::pin(admin::http2_silent(t, 64))
    }),
    Attack::new("admin-churn", "admin listener: connect and close at full speed", |t| Box::pin(admin::churn(t))),
    Attack::new("admin-scrapes-8", "admin listener: /metrics at full speed", |t| Box::pin(admin::scrapes(t, 8))),
    Attack::new("sigstop", "no stranger: the relay's process is stopped for 5 s", |t| Box::pin(http1::sigstop(t)))
        .stopped(),
    Attack::new("https-none", "HTTPS, and no attack", |t| Box::pin(https::nothing(t))).https(),
    Attack {
        https: Some("server.connections_max = 10000\nserver.header_timeout = \"60s\"\n"),
        ramp: https::IDLE_RAMP,
        ..Attack::new("https-idle-9000", "9,000 of 10,000 connections, idle after their handshake", |t| {
            Box::pin(https::idle(t, 9000))
        })
    },
    Attack::new("https-half-hello-2000", "a part of a ClientHello, the rest never", |t| {
        Box::pin(https::half_hellos(t, 2000))
    })
    .https(),
    Attack::new("https-silent-2000", "connections without a handshake", |t| Box::pin(https::silent(t, 2000)))
        .https()
        .quick(),
    Attack::new("https-handshakes-4", "handshakes at full speed", |t| Box::pin(https::handshakes(t, 4))).https(),
    Attack::new("https-slow-heads", "slowhttptest -H, 4,000 connections", |t| {
        Box::pin(https::slowhttptest(t, &["-H", "-i", "2"]))
    })
    .https(),
    Attack::new("https-slow-bodies", "slowhttptest -B, 4,000 connections", |t| {
        Box::pin(https::slowhttptest(t, &["-B", "-i", "2", "-s", "8192"]))
    })
    .https(),
    Attack::new("https-slow-reads", "slowhttptest -X, 4,000 connections", |t| {
        Box::pin(https::slowhttptest(t, &["-X", "-w", "1", "-y", "16", "-n", "2", "-z", "1", "-k", "3"]))
    })
    .https(),
    Attack::new("https-heads-2000", "heads, a byte a second, in TLS", |t| Box::pin(http1::slow_heads(t, 2000))).https(),
    Attack::new("https-forged-32", "401s at full speed, in TLS", |t| Box::pin(http1::forgeries(t, 32, 0))).https(),
    Attack::new("https-h2-rapid-reset-4", "streams, each reset at once, in TLS", |t| {
        Box::pin(http2::rapid_reset(t, 4))
    })
    .https(),
    Attack::new("https-h2-continuation-4", "a head that never ends, in CONTINUATION frames in TLS", |t| {
        Box::pin(http2::continuation(t, 4))
    })
    .https(),
    Attack::new("https-h2-ping-20", "PING frames at full speed, in TLS", |t| {
        Box::pin(http2::frames(t, 20, http2::ping))
    })
    .https(),
];
