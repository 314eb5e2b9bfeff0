//! `serve`: builds the daemon, runs it, and stops it. The only place that wires.

mod listeners;
mod notices;
mod notify;
mod parts;
mod registrations;
mod reload;
mod replay;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use listenfd::ListenFd;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::items::size;
use super::{Failure, Source};
use crate::acme::Acme;
use crate::config::{self, Config, Mistakes, Need};
use crate::control;
use crate::http::admin::Probes;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::shutdown::{Shutdown, on_hangup, on_signal};
use crate::spool::{Size, Spool};
use crate::systemd;
use crate::telemetry::{self, Format};
use crate::topics::Topics;
pub use listeners::bound;
use listeners::{Listeners, Plain, bind, both};
use parts::Parts;
use registrations::Registrations;
use reload::Reload;
use replay::Replay;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// After SIGTERM, publish what is in the spool before ending; at most spool.drain_timeout
    #[arg(long)]
    drain: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut config = arguments.source.read(Need::Everything).map_err(logged)?;
    telemetry::start(&config.log);
    config.warnings.iter().for_each(|warning| tracing::warn!(warning, "the configuration may contain a mistake"));
    let cannot = |e| Failure::Failed(format!("signals cannot be handled: {e}"));
    let (signal, hangup) = (on_signal().map_err(cannot)?, on_hangup().map_err(cannot)?);
    tokio::pin!(signal);
    make_do_with_open_files(&mut config);
    log_settings(&config, &arguments.source);
    keep_secrets_out_of_core_dumps();

    let shutdown = Shutdown::default();
    let start = Daemon::start(config, shutdown.clone(), Some(hangup));
    tokio::pin!(start);
    let daemon = tokio::select! {
        daemon = &mut start => daemon?,
        signal = &mut signal => {
            // The listeners accept already: who waits is answered, unless the spool is not to be had in a moment.
            let Ok(daemon) = tokio::time::timeout(Duration::from_secs(2), start).await else {
                tracing::info!(signal, "stopped before it had started");
                return Ok(());
            };
            tracing::info!(signal, "stopping: requests in flight are finished");
            daemon?.stop(arguments.drain).await;
            return Ok(());
        }
    };
    let failure = tokio::select! {
        signal = signal => {
            tracing::info!(signal, "stopping: requests in flight are finished");
            None
        }
        reason = shutdown.failed() => {
            tracing::error!(reason, "stopping: the relay cannot go on");
            Some(reason)
        }
    };
    daemon.stop(arguments.drain && failure.is_none()).await;
    failure.map_or(Ok(()), |reason| Err(Failure::Failed(reason)))
}

/// What collects a log of JSON can read no other lines, be they the last ones.
fn logged(mistakes: Mistakes) -> Failure {
    mistakes.log.iter().filter(|log| log.format == Format::Json).for_each(telemetry::start);
    mistakes.into()
}

/// What a reader of the log wants to know of the process that wrote it.
fn log_settings(config: &Config, source: &Source) {
    let server = &config.server;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = source.config.as_ref().map(|file| file.display().to_string()),
        brokers = config.kafka.brokers,
        apps = config.policy.apps.len(),
        spool = config.spool.as_ref().map(|spool| spool.spool.directory.display().to_string()),
        spool_bytes_max = config.spool.as_ref().map(|spool| size(spool.spool.bytes_max)),
        connections_max = server.listener.limits.connections_max,
        bytes_in_flight_max = size(server.budget.bytes_in_flight_max as u64),
        "livechat-relay starts"
    );
}

/// Where the limit of open files does not suffice for all, fewer connections are accepted, but not fewer than half of it: else
/// accepting fails when it is reached, or a spool that may become large leaves none.
fn make_do_with_open_files(config: &mut Config) {
    let limit = super::raise_open_files();
    let available = limit.saturating_sub(OTHER_FILES);
    let files_of_the_spool = config.spool.as_ref().map_or(0, |spool| spool.spool.files());
    let connections_max = &mut config.server.listener.limits.connections_max;
    let needed = *connections_max as u64 + files_of_the_spool;
    if available < needed {
        let for_connections = available.saturating_sub(files_of_the_spool).max(available / 2);
        *connections_max = usize::try_from(for_connections).unwrap_or(usize::MAX).clamp(1, *connections_max);
        tracing::warn!(
            limit,
            needed = needed + OTHER_FILES,
            connections_max,
            "too few open files for server.connections_max and the spool's files: only connections_max connections are accepted; raise the hard limit (LimitNOFILE=)"
        );
    }
}

/// Files besides those of connections and of the spool: the brokers' sockets, the admin listener's, the program's own.
const OTHER_FILES: u64 = 256;

/// What is in memory, chats and keys included, would be in a core dump.
fn keep_secrets_out_of_core_dumps() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = Rlimit { current: Some(0), ..getrlimit(Resource::Core) };
    if let Err(error) = setrlimit(Resource::Core, limit) {
        tracing::warn!(%error, "core dumps cannot be switched off");
    }
}

/// A running relay: both listeners serve, the spool is replayed, and the brokers are watched.
pub struct Daemon {
    pub webhooks: SocketAddr,
    pub admin: SocketAddr,
    parts: Parts,
    server: JoinHandle<()>,
    /// What it runs with now.
    running: Arc<ArcSwap<Config>>,
    replay: Option<Replay>,
    /// Gives up what waits for Kafka, when the time for the requests in flight is over.
    giving_up: JoinHandle<()>,
    /// The control socket, and what ends it.
    control: (JoinHandle<()>, CancellationToken),
    /// The admin listener, and what ends it: it ends last.
    admin_server: (JoinHandle<()>, CancellationToken),
}

/// What a stop may take besides the times that are configured: its own timeouts are less together.
const CLOSING: Duration = Duration::from_secs(15);

impl Daemon {
    /// Starts in this order: ports, producer, spool, listeners, brokers and topics, control socket, replay. Webhooks are accepted from the
    /// first moment: with a spool they wait until it is open, without one for the brokers' ack. Unreachable brokers are no reason not
    /// to start: until they are back, events are spooled, or answered 503 where there is no spool. From then on
    /// each `hangup` has the configuration read again.
    ///
    /// # Errors
    /// A [`Failure`] that names the spool, the port or the property, and what to do.
    pub async fn start(config: Config, shutdown: Shutdown, hangup: Option<Signal>) -> Result<Self, Failure> {
        let metrics = Arc::new(Metrics::new());
        let mut passed = ListenFd::from_env();
        let (listener, webhooks) = bind("server.listen", &config.server.listener, passed.take_tcp_listener(0))?;
        let (admin_listener, admin) = bind("admin.listen", &config.admin, passed.take_tcp_listener(1))?;
        let plain = Plain::bind("server.plain_listen", &config.server.listener)?;
        let probes = Plain::bind("admin.probes_listen", &config.admin)?;
        let acme = config.server.acme.clone().map(|acme| Acme::new(acme, Arc::default(), Arc::clone(&metrics)));
        let tls = Arc::new(Listeners::new(&config, acme.as_ref())?);
        let publisher = Arc::new(Publisher::new(config.kafka.clone(), Arc::clone(&metrics), shutdown.clone())?);
        let topics = Topics::new(config.policy.topics(), config.topics.clone(), &config.kafka);
        let topics = Arc::new(topics?);
        let spool =
            config.spool.as_ref().map(|spool| Spool::begin(spool.spool.clone(), Arc::clone(&metrics), &shutdown));
        let (spool, opened) = spool.unzip();
        spool.iter().for_each(|spool| spool.lanes(|lanes| lanes.set_apps(config.policy.topics_by_app())));
        let parts = Parts { metrics, publisher, spool, topics, tls, shutdown };
        if let Some(acme) = acme {
            parts.order_certificates(acme, webhooks).await;
        }

        let config = Arc::new(config);
        let running = Arc::new(ArcSwap::new(Arc::clone(&config)));
        let dead_letters = parts.dead_letters(&config);
        let server = parts.webhooks(&config, dead_letters.clone());
        let ended = CancellationToken::new();
        let handler = Arc::new(parts.admin(&server, &running));
        let probing = parts.without_proxies(Probes(Arc::clone(&handler)), &config);
        let admin_server = parts.without_proxies(handler, &config);
        let inside = (Arc::clone(&admin_server), Arc::clone(&probing));
        let reload = Reload::new(parts.clone(), Arc::clone(&running), Arc::clone(&server), inside);
        let probing = probes.listener.map(|listener| probing.serve(listener, None, ended.clone()));
        let administering = admin_server.serve(admin_listener, parts.tls.admin.clone(), ended.clone());
        let admin_server = parts.spawn_vital("admin listener", both(administering, probing));

        let giving_up = tokio::spawn(give_up(Arc::clone(&parts.publisher), parts.shutdown.giving_up.clone()));
        let closing = &parts.shutdown.closing;
        let without_tls = plain.listener.map(|plain| Arc::clone(&server).serve(plain, None, closing.clone()));
        let serving = Arc::clone(&server).serve(listener, parts.tls.webhooks.clone(), closing.clone());
        let serving = parts.spawn_vital("webhook listener", both(serving, without_tls));
        let (operations, requests) = mpsc::channel(16);
        parts.spawn_until_closing("reload", reload.run(hangup, requests));
        parts.spawn_until_closing("notices", notices::log(Arc::clone(&running)));
        let of_backfill = Arc::clone(&server);
        let backfill: control::Backfill = Arc::new(move |app, events| {
            let server = Arc::clone(&of_backfill);
            Box::pin(async move { server.handler.backfill(&app, &events).await })
        });
        parts.watch_registrations(Registrations {
            running: Arc::clone(&running),
            webhooks: Arc::clone(&server),
            metrics: Arc::clone(&parts.metrics),
        });
        parts.notify_systemd(server);
        // Before the spool is open: its disk may hang.
        let (brokers_answered, found) = parts.watch(&config.kafka, Arc::clone(&dead_letters.topic));
        if let Some(opened) = opened {
            parts.opened(opened).await?;
        }
        let [plain, probes] = [plain.address, probes.address].map(|address| address.map(tracing::field::display));
        tracing::info!(%webhooks, %admin, plain, probes, "accepting webhooks");
        let control = parts.control(config.control.clone(), operations, backfill, dead_letters.clone());
        found.await;
        let replay = config.spool.clone();
        let replay = replay.and_then(|spool| parts.replay(spool, dead_letters, brokers_answered));
        Ok(Self {
            webhooks,
            admin,
            parts,
            server: serving,
            running,
            replay,
            giving_up,
            control,
            admin_server: (admin_server, ended),
        })
    }

    /// Stops as `[server]` says: accepts requests for a little while, finishes those in flight, and ends. What no broker has
    /// acked by then goes to the spool; without one it was answered 503, so that it is no failure of ours. With `drain` the
    /// spool is emptied first. The admin listener stays to the end.
    pub async fn stop(self, drain: bool) {
        let config::Server { drain_delay, drain_timeout, .. } = self.running.load().server;
        let drained = self.replay.as_ref().filter(|_| drain).map_or(Duration::ZERO, |replay| replay.drain_timeout);
        systemd::stopping(drain_delay + drain_timeout + drained + CLOSING).await;
        let server = async {
            let _ = self.server.await; // one that has panicked has said so
        };
        self.parts.shutdown.run(drain_delay, drain_timeout, server).await;
        self.giving_up.abort(); // what is replayed from now on may take its time
        if let Some(replay) = self.replay.as_ref().filter(|_| drain) {
            replay.drain().await;
        }
        let (control, ended) = self.control;
        ended.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), control).await; // its disk may hang
        let left = match self.replay {
            Some(replay) => replay.end(&self.parts.publisher).await,
            None => Size::default(),
        };
        let publisher = self.parts.publisher;
        let flushed = tokio::task::spawn_blocking(move || publisher.flush(Duration::from_millis(100))).await;
        let (admin_server, ended) = self.admin_server;
        ended.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), admin_server).await; // a scraper may be slow
        match flushed {
            _ if left.records > 0 => {
                let Size { records, bytes } = left;
                tracing::warn!(
                    records,
                    bytes,
                    "stopped: events remain in the spool and are published after the next start"
                );
            }
            Ok(Ok(())) => tracing::info!("stopped: no events are left"),
            _ => {
                tracing::warn!("stopped: Kafka did not accept some records; their senders were not answered 200")
            }
        }
    }
}

/// From `giving_up` on, no report of the brokers is awaited any longer: the record is spooled, or, without a spool, its sender is answered 503.
async fn give_up(publisher: Arc<Publisher>, giving_up: CancellationToken) {
    giving_up.cancelled().await;
    loop {
        let publisher = Arc::clone(&publisher);
        let _ = tokio::task::spawn_blocking(move || publisher.give_up()).await; // the runtime ends with us
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
