//! `serve`: builds the daemon, runs it, and stops it. The only place that wires.

mod listeners;
mod notices;
mod notify;
mod registrations;
mod reload;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use listenfd::ListenFd;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Failure, Source};
use crate::acme::{self, Acme};
use crate::budget::Budget;
use crate::config::{self, Config, Need};
use crate::control::{self, Control};
use crate::dead_letter::DeadLetters;
use crate::http::admin::{Admin, Probes, Readiness};
use crate::http::client;
use crate::http::failures::Failures;
use crate::http::pages::Pages;
use crate::http::webhook::{Live, Webhooks};
use crate::http::{Handler, Refusals, Server};
use crate::metrics::Metrics;
use crate::publish::{self, Publisher};
use crate::relay::{Durable, Relay};
use crate::replay;
use crate::shutdown::{Shutdown, on_hangup, on_signal};
use crate::spool::{self, Size, Spool};
use crate::systemd;
use crate::telemetry::{self, Throttle};
use crate::topics::Topics;
use listeners::{Listeners, Plain, bind, both};
use registrations::Registrations;
use reload::Reload;
use watch::Watch;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// After SIGTERM, publish what is in the spool before ending; at most spool.drain_timeout
    #[arg(long)]
    drain: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut config = arguments.source.read(Need::Everything)?;
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

/// What a reader of the log wants to know of the process that wrote it.
fn log_settings(config: &Config, source: &Source) {
    let server = &config.server;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = source.config.as_ref().map(|file| tracing::field::display(file.display())),
        brokers = config.kafka.brokers,
        apps = config.policy.apps.len(),
        spool = config.spool.as_ref().map(|spool| tracing::field::display(spool.spool.directory.display())),
        spool_bytes_max = config.spool.as_ref().map(|spool| spool.spool.bytes_max),
        connections_max = server.listener.limits.connections_max,
        bytes_in_flight_max = server.budget.bytes_in_flight_max,
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

/// What the parts of a relay share.
#[derive(Clone)]
struct Parts {
    metrics: Arc<Metrics>,
    publisher: Arc<Publisher>,
    spool: Option<Spool>,
    topics: Arc<Topics>,
    tls: Arc<Listeners>,
    shutdown: Shutdown,
    is_kafka_up: Arc<AtomicBool>,
}

/// The spool and what empties it.
struct Replay {
    spool: Spool,
    task: JoinHandle<()>,
    stop: CancellationToken,
    drain_timeout: Duration,
}

impl Daemon {
    /// Starts in this order: ports, producer, spool, listeners, control socket, brokers and topics, replay. Webhooks are taken from the
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
        let parts = Parts { metrics, publisher, spool, topics, tls, shutdown, is_kafka_up: Arc::default() };
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
        if let Some(opened) = opened {
            parts.opened(opened).await?;
        }
        let control = parts.control(config.control.clone(), operations, backfill, dead_letters.clone());
        let brokers_answered = parts.watch(&config.kafka, Arc::clone(&dead_letters.topic)).await;
        let replay = config.spool.clone();
        let replay = replay.and_then(|spool| parts.replay(spool, dead_letters, brokers_answered));
        let [plain, probes] = [plain.address, probes.address].map(|address| address.map(tracing::field::display));
        tracing::info!(%webhooks, %admin, plain, probes, "accepting webhooks");
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

impl Replay {
    /// Waits until the spool is empty.
    async fn drain(&self) {
        let until = tokio::time::Instant::now() + self.drain_timeout;
        let progress = Throttle::new(Duration::from_secs(5));
        loop {
            let Size { records, bytes } = self.spool.lanes(|lanes| lanes.total());
            if records == 0 || tokio::time::Instant::now() >= until {
                return;
            }
            if progress.pass().is_some() {
                tracing::info!(records, bytes, "stopping: the spool is emptied first; a second signal ends at once");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the replay and closes the spool; what is left in it.
    async fn end(self, publisher: &Arc<Publisher>) -> Size {
        self.stop.cancel();
        // What is in flight has its report soon, or is published again after the next start. While Kafka is unreachable none will come.
        let patience = if publisher.is_away() { Duration::ZERO } else { Duration::from_secs(1) };
        let mut task = self.task;
        let stopped = async {
            if tokio::time::timeout(patience, &mut task).await.is_err() {
                let publisher = Arc::clone(publisher);
                let _ = tokio::task::spawn_blocking(move || publisher.give_up()).await; // the runtime ends with us
                let _ = task.await; // one that has panicked has said so
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), stopped).await.is_err() {
            tracing::warn!(
                "the replay has not ended in time: what is in flight is published again after the next start"
            );
        }
        let spool = self.spool.clone();
        let closing = tokio::task::spawn_blocking(move || spool.close());
        if tokio::time::timeout(Duration::from_secs(5), closing).await.is_err() {
            tracing::error!("the spool's disk does not answer: ending without closing the file");
        }
        self.spool.lanes(|lanes| lanes.total())
    }
}

impl Parts {
    fn dead_letters(&self, config: &Config) -> DeadLetters {
        DeadLetters {
            topic: Arc::clone(&config.policy.dead_letter),
            publisher: Arc::clone(&self.publisher),
            spool: self.spool.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    fn webhooks(&self, config: &Config, dead_letters: DeadLetters) -> Arc<Server<Webhooks>> {
        let Config { server, policy, .. } = config;
        let durable = Durable(dead_letters);
        let relay = Relay::new(policy.retries, durable, Arc::clone(&self.metrics), self.shutdown.clone());
        let budget = Budget::new(server.budget);
        let giving_up = self.shutdown.giving_up.clone();
        let pages = Pages::new(relay.clone(), Arc::clone(&budget), Arc::clone(&self.metrics), giving_up);
        let handler = Webhooks {
            relay,
            budget,
            pages,
            metrics: Arc::clone(&self.metrics),
            live: ArcSwap::from_pointee(live(config)),
            failures: Failures::default(),
            refusals: Refusals::default(),
            is_proxy_noticed: AtomicBool::default(),
        };
        Server::new(handler, server.listener.limits.clone(), server.clients.clone(), self.shutdown.clone())
    }

    /// A server on the inside: before the admin listener there are no proxies.
    fn without_proxies<H: Handler>(&self, handler: H, config: &Config) -> Arc<Server<H>> {
        Server::new(handler, config.admin.limits.clone(), client::Config::default(), self.shutdown.clone())
    }

    fn admin(&self, webhooks: &Arc<Server<Webhooks>>, running: &Arc<ArcSwap<Config>>) -> Admin {
        let (shutdown, parts) = (self.shutdown.clone(), self.clone());
        let token_of = Arc::clone(running);
        let unauthorized = self.metrics.scrapes_unauthorized.clone();
        let (observing, webhooks, its_running) = (self.clone(), Arc::clone(webhooks), Arc::clone(running));
        Admin {
            metrics: Box::new(move || observing.observed(&webhooks, &its_running.load())),
            dead: Box::new(move || shutdown.failure()),
            readiness: Box::new(move || parts.readiness()),
            token: Box::new(move || token_of.load().admin_token.clone()),
            unauthorized: Box::new(move || unauthorized.inc()),
        }
    }

    /// The text that Prometheus scrapes, with what the parts count themselves.
    fn observed(&self, webhooks: &Server<Webhooks>, config: &Config) -> Vec<u8> {
        let metrics = &self.metrics;
        metrics.ready.set(self.unready().is_none().into());
        metrics.kafka_up.set(self.is_kafka_up().into());
        metrics.topics(self.topics.states());
        metrics.connections.set(signed(webhooks.open()));
        let certificates = self.tls.certificates();
        metrics.tls_certificates(certificates.iter().map(|c| (c.name().to_owned(), c.not_after)).collect());
        metrics.bytes_in_flight.set(signed(webhooks.handler.budget.held()));
        metrics.records_in_flight.set(signed(self.publisher.records_in_flight()));
        metrics.secret_keys(config.policy.keys());
        metrics.rules(&config.policy.rules);
        metrics.deliveries(&webhooks.handler.relay.deliveries().all());
        metrics.text()
    }

    /// Begins to order and renew the certificate of the webhook listener, which listens here.
    async fn order_certificates(&self, mut acme: Acme, webhooks: SocketAddr) {
        if webhooks.port() != acme::PORT {
            tracing::warn!(listens_on = %webhooks, "the ACME authority connects to port 443: forward it to this listener, or no certificate is issued");
        }
        acme.begin().await;
        self.spawn_vital("ACME", acme.run());
    }

    /// Begins to answer what operators ask. Without a socket the relay does its work all the same.
    fn control(
        &self,
        config: control::Config,
        operations: control::Operations,
        backfill: control::Backfill,
        dead_letters: DeadLetters,
    ) -> (JoinHandle<()>, CancellationToken) {
        let stop = CancellationToken::new();
        let control = Control {
            backfill: Some(backfill),
            operations: Some(operations),
            spool: self.spool.clone(),
            dead_letters: Some(dead_letters),
        };
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let Some(path) = config.socket.clone() else { return };
            control::serve(path, control, config, stopped).await;
        });
        (task, stop)
    }

    /// Begins to compare what is registered at LiveChat with what is wanted. It is not vital: a fault of it ends nothing else.
    fn watch_registrations(&self, registrations: Registrations) {
        let closing = self.shutdown.closing.clone();
        tokio::spawn(async move { closing.run_until_cancelled(registrations.watch()).await });
    }

    /// Both listeners accept: systemd hears that, and from then on what has changed.
    fn notify_systemd(&self, server: Arc<Server<Webhooks>>) {
        let parts = self.clone();
        tokio::spawn(notify::status(move || parts.readiness()));
        if let Some(time) = systemd::watchdog() {
            tokio::spawn(notify::alive(server, time));
        }
    }

    /// Begins to watch the brokers and the topics; with a spool, waits a little for what is found first: most are there at once, and the
    /// first events then need no detour. The token is cancelled when the brokers have answered.
    async fn watch(&self, kafka: &publish::Config, probed: Arc<str>) -> CancellationToken {
        const PATIENCE: Duration = Duration::from_millis(500);
        let (found, first) = oneshot::channel();
        let brokers_answered = CancellationToken::new();
        self.publisher.presume_away(true);
        let watch = Watch {
            parts: self.clone(),
            brokers_answered: brokers_answered.clone(),
            probed,
            brokers: kafka.brokers.clone(),
            start_timeout: kafka.start_timeout,
            interval: kafka.probe_interval,
        };
        self.spawn_vital("watch", watch.run(found));
        // An error is a watch that has panicked, which ends the process.
        if self.spool.is_some()
            && tokio::time::timeout(PATIENCE, first).await.is_err()
            && !brokers_answered.is_cancelled()
        {
            tracing::warn!("the brokers have not answered yet: events are spooled meanwhile");
        }
        brokers_answered
    }

    /// Begins to empty the spool, once the brokers have answered.
    fn replay(&self, config: config::Spool, to: DeadLetters, brokers_answered: CancellationToken) -> Option<Replay> {
        let (spool, stop) = (self.spool.clone()?, CancellationToken::new());
        let replaying = replay::run(config.replay, spool.clone(), to, self.shutdown.clone(), stop.clone());
        let stopped = stop.clone();
        let task = self.spawn_vital("replay", async move {
            if stopped.run_until_cancelled(brokers_answered.cancelled()).await.is_some() {
                replaying.await;
            }
        });
        Some(Replay { spool, task, stop, drain_timeout: config.drain_timeout })
    }

    /// Runs what the daemon cannot do without: if it ends before the stop has begun, the process ends.
    fn spawn_vital(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let vital = self.shutdown.vital(name);
        tokio::spawn(async move {
            let _vital = vital;
            work.await;
        })
    }

    /// As [`Parts::spawn_vital`], for what has no end of its own: it is needed until the listeners are closed.
    fn spawn_until_closing(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let closing = self.shutdown.closing.clone();
        self.spawn_vital(name, async move { closing.run_until_cancelled(work).await.unwrap_or_default() });
    }

    fn is_kafka_up(&self) -> bool {
        self.is_kafka_up.load(Ordering::Relaxed)
    }

    /// Why no event can be made durable, if so: then the relay is not ready.
    fn unready(&self) -> Option<&'static str> {
        match &self.spool {
            _ if self.shutdown.is_draining() => Some("shutting down"),
            Some(spool) if !spool.lanes(|lanes| lanes.is_known() || lanes.is_failing_over()) => {
                Some("the spool is not open yet")
            }
            _ if self.is_kafka_up() => None,
            Some(spool) if spool.is_accepting() => None,
            Some(_) => Some("neither Kafka nor the spool accepts events"),
            None => Some("Kafka does not accept events"),
        }
    }

    fn readiness(&self) -> Readiness {
        let warning = self.spool.as_ref().and_then(Spool::warning).or_else(|| self.tls.warning());
        match (self.unready(), warning) {
            (Some(why), _) => Readiness::NotReady(why),
            (None, Some(warning)) => Readiness::ReadyBut(warning),
            (None, None) => Readiness::Ready,
        }
    }

    /// Waits until the spool is open.
    async fn opened(&self, opened: oneshot::Receiver<Result<(), spool::Unusable>>) -> Result<(), Failure> {
        let opened = opened.await.map_err(|_| Failure::Failed("the spool's writer has panicked".to_owned()))?;
        opened.map_err(Failure::failed)?;
        let Some(spool) = &self.spool else { return Ok(()) };
        let Size { records, bytes } = spool.lanes(|lanes| lanes.total());
        let directory = spool.config().directory.display();
        if records > 0 {
            tracing::info!(%directory, records, bytes, "the spool has events from an earlier run: they are published when Kafka accepts them");
        } else if spool.lanes(|lanes| lanes.is_known()) {
            tracing::info!(%directory, "the spool is empty");
        }
        Ok(())
    }

    /// What happens to events while Kafka, or their topic, is unavailable.
    fn meanwhile(&self) -> &'static str {
        if self.spool.is_some() { "events are spooled" } else { "webhooks are answered 503" }
    }
}

/// What a request is answered by.
fn live(config: &Config) -> Live {
    let Config { policy, livechat, server, .. } = config;
    Live { policy: Arc::clone(policy), config: server.webhooks.clone(), livechat: livechat.clone() }
}

fn signed(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
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
