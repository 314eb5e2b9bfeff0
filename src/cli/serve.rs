//! `serve`: builds the daemon, runs it, and stops it. The only place that wires.

mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::OptionFuture;
use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Failure, Source};
use crate::acme::{self, Acme};
use crate::budget::Budget;
use crate::config::{self, Config, Listener, Need};
use crate::control::{self, Control};
use crate::dead_letter::DeadLetters;
use crate::http::admin::{Admin, Probes};
use crate::http::tls::{self, Certificate, Tls};
use crate::http::{Server, webhook::Webhooks};
use crate::metrics::Metrics;
use crate::publish::{self, Publisher};
use crate::relay::{Durable, Policy, Relay};
use crate::replay;
use crate::shutdown::{Shutdown, on_signal};
use crate::spool::{self, Size, Spool};
use crate::telemetry::{self, Throttle, Throttles};
use crate::topics::Topics;
use watch::Watch;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// At the end, publish what is in the spool first, for up to spool.drain_timeout
    #[arg(long)]
    drain: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut config = arguments.source.read(Need::Everything)?;
    telemetry::start(&config.log);
    config.warnings.iter().for_each(|warning| tracing::warn!(warning, "the configuration may not be as it was meant"));
    let signal = on_signal().map_err(|e| Failure::Failed(format!("signals cannot be handled: {e}")))?;
    tokio::pin!(signal);
    make_do_with_open_files(&mut config);
    keep_secrets_out_of_core_dumps();

    let shutdown = Shutdown::default();
    let start = Daemon::start(config, shutdown.clone());
    let daemon = tokio::select! {
        daemon = start => daemon?,
        signal = &mut signal => {
            tracing::info!(signal, "stopped before it had started");
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
            "too few open files for server.connections_max and the spool's files: so many connections are accepted; raise the hard limit (LimitNOFILE=)"
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
    drain: (Duration, Duration),
    replay: Option<Replay>,
    /// Gives up what waits for Kafka, when the time for the requests in flight is over.
    giving_up: JoinHandle<()>,
    /// The control socket, and what ends it.
    control: (JoinHandle<()>, CancellationToken),
    /// The admin listener, and what ends it: it ends last.
    admin_server: (JoinHandle<()>, CancellationToken),
}

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

/// The TLS of the listeners that have it.
#[derive(Default)]
struct Listeners {
    webhooks: Option<Arc<Tls>>,
    admin: Option<Arc<Tls>>,
}

impl Listeners {
    fn new(config: &Config, acme: Option<&Acme>) -> Result<Self, Failure> {
        let tls = |key: &str, tls: Option<&tls::Config>, issued| {
            let tls = tls.map(|tls| Tls::new(tls, issued)).transpose();
            tls.map(|tls| tls.map(Arc::new)).map_err(|e| Failure::Failed(format!("{key}: TLS cannot be used: {e}")))
        };
        let issued = acme.map(Acme::issued);
        let listeners = Self {
            webhooks: tls("server.tls", config.server.listener.tls.as_ref(), issued)?,
            admin: tls("admin.tls", config.admin.tls.as_ref(), None)?,
        };
        for certificate in listeners.certificates() {
            let Certificate { names, not_after, source, .. } = &*certificate;
            tracing::info!(names = names.join(", "), %not_after, source, "TLS certificate loaded");
        }
        Ok(listeners)
    }

    fn certificates(&self) -> impl Iterator<Item = Arc<Certificate>> {
        [&self.webhooks, &self.admin].into_iter().flatten().flat_map(|tls| tls.certificates())
    }

    /// Webhooks cannot come in by TLS yet. That is no reason not to be ready: a balancer would keep the authority's challenge away.
    fn warning(&self) -> Option<String> {
        let is_without = self.webhooks.as_ref().is_some_and(|tls| tls.certificates().is_empty());
        is_without
            .then(|| "there is no TLS certificate yet: it is ordered; the log says why it takes so long".to_owned())
    }
}

/// A second listener without TLS, if it is configured.
#[derive(Default)]
struct Plain {
    listener: Option<TcpListener>,
    address: Option<SocketAddr>,
}

impl Plain {
    fn bind(key: &str, listener: &Listener) -> Result<Self, Failure> {
        let Some(listen) = listener.plain else { return Ok(Self::default()) };
        let (listener, address) = bind(key, &Listener { listen, ..listener.clone() }, Ok(None))?;
        Ok(Self { listener: Some(listener), address: Some(address) })
    }
}

/// Runs until both have ended.
async fn both(one: impl Future<Output = ()>, other: Option<impl Future<Output = ()>>) {
    tokio::join!(one, OptionFuture::from(other));
}

/// The spool and what empties it.
struct Replay {
    spool: Spool,
    task: JoinHandle<()>,
    stop: CancellationToken,
    drain_timeout: Duration,
}

impl Daemon {
    /// Starts in this order: ports, producer, admin listener, spool, brokers and topics, replay, control socket. With a spool webhooks are
    /// taken from the first moment, and wait until it is open; without one, when the brokers were asked. Brokers that are away are no
    /// reason not to start: until they are back, events are spooled, or answered 503 where there is no spool.
    ///
    /// # Errors
    /// A [`Failure`] that names the spool, the port, the property or the topic, and what to do.
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Self, Failure> {
        let metrics = Arc::new(Metrics::new());
        let mut passed = ListenFd::from_env();
        let (listener, webhooks) = bind("server.listen", &config.server.listener, passed.take_tcp_listener(0))?;
        let (admin_listener, admin) = bind("admin.listen", &config.admin, passed.take_tcp_listener(1))?;
        let plain = Plain::bind("server.plain_listen", &config.server.listener)?;
        let probes = Plain::bind("admin.probes_listen", &config.admin)?;
        let acme = config.server.acme.clone().map(|acme| Acme::new(acme, Arc::default(), Arc::clone(&metrics)));
        let tls = Arc::new(Listeners::new(&config, acme.as_ref())?);
        let publisher = Arc::new(Publisher::new(config.kafka.clone(), Arc::clone(&metrics), shutdown.clone())?);
        let topics = Topics::new(config.policy.topics(), config.topics, &config.kafka);
        let topics = Arc::new(topics?);
        let spool =
            config.spool.as_ref().map(|spool| Spool::begin(spool.spool.clone(), Arc::clone(&metrics), &shutdown));
        let (spool, opened) = spool.unzip();
        let parts = Parts { metrics, publisher, spool, topics, tls, shutdown, is_kafka_up: Arc::default() };
        if let Some(acme) = acme {
            parts.order_certificates(acme, webhooks).await;
        }

        let dead_letters = parts.dead_letters(&config.policy);
        let drain = (config.server.drain_delay, config.server.drain_timeout);
        let (server, observed) = parts.webhooks(config.server, config.policy, dead_letters.clone());
        let ended = CancellationToken::new();
        let handler = Arc::new(parts.admin(observed));
        let probing = probes.listener.map(|listener| {
            let server = Server::new(Probes(Arc::clone(&handler)), config.admin.limits.clone(), parts.shutdown.clone());
            server.serve(listener, None, ended.clone())
        });
        let admin_server = Server::new(handler, config.admin.limits, parts.shutdown.clone());
        let administering = admin_server.serve(admin_listener, parts.tls.admin.clone(), ended.clone());
        let admin_server = parts.spawn_vital("admin listener", both(administering, probing));

        let giving_up = tokio::spawn(give_up(Arc::clone(&parts.publisher), parts.shutdown.giving_up.clone()));
        let closing = &parts.shutdown.closing;
        let without_tls = plain.listener.map(|plain| Arc::clone(&server).serve(plain, None, closing.clone()));
        let serving = both(server.serve(listener, parts.tls.webhooks.clone(), closing.clone()), without_tls);
        let serve = || parts.spawn_vital("webhook listener", serving);
        let probed = Arc::clone(&dead_letters.topic);
        let watch = parts.watch(&config.kafka, probed);
        let (server, replay) = if let (Some(config), Some(opened)) = (config.spool, opened) {
            let server = serve();
            parts.opened(opened).await?;
            let brokers_answered = watch.await?;
            (server, parts.replay(config, dead_letters.clone(), brokers_answered))
        } else {
            watch.await?;
            (serve(), None)
        };
        let control = parts.control(config.control, dead_letters);
        let [plain, probes] = [plain.address, probes.address].map(|address| address.map(tracing::field::display));
        tracing::info!(%webhooks, %admin, plain, probes, "taking webhooks");
        Ok(Self {
            webhooks,
            admin,
            parts,
            server,
            drain,
            replay,
            giving_up,
            control,
            admin_server: (admin_server, ended),
        })
    }

    /// Stops as `[server]` says: accepts requests for a little while, finishes those in flight, and ends. What no broker has
    /// acked by then goes to the spool; without one it was answered 503, so that it is no failure of ours. With `drain` the
    /// spool is emptied first. The admin listener is there to the end.
    pub async fn stop(self, drain: bool) {
        let server = async {
            let _ = self.server.await; // one that has panicked has said so
        };
        self.parts.shutdown.run(self.drain.0, self.drain.1, server).await;
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
                    "stopped: the spool has events, which are published after the next start"
                );
            }
            Ok(Ok(())) => tracing::info!("stopped: nothing is left"),
            _ => {
                tracing::warn!("stopped: records are left that Kafka did not take; their senders were not answered 200")
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
        // What is in flight has its report soon, or is published again after the next start. While Kafka is away none will come.
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
    fn dead_letters(&self, policy: &Policy) -> DeadLetters {
        DeadLetters {
            topic: Arc::clone(&policy.dead_letter),
            publisher: Arc::clone(&self.publisher),
            spool: self.spool.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// The webhook listener; and the text that Prometheus scrapes, with what its parts count themselves.
    fn webhooks(
        &self,
        config: config::Server,
        policy: Policy,
        dead_letters: DeadLetters,
    ) -> (Arc<Server<Webhooks>>, impl Fn() -> Vec<u8> + use<>) {
        let relay = Relay::new(policy, Durable(dead_letters), Arc::clone(&self.metrics), self.shutdown.clone());
        let budget = Budget::new(config.budget);
        let handler = Webhooks {
            relay: relay.clone(),
            budget: Arc::clone(&budget),
            metrics: Arc::clone(&self.metrics),
            config: config.webhooks,
            refused: Throttles::new(Duration::from_secs(10)),
        };
        let server = Server::new(handler, config.listener.limits, self.shutdown.clone());
        let (parts, observed) = (self.clone(), Arc::clone(&server));
        let text = move || {
            let metrics = &parts.metrics;
            metrics.ready.set(parts.unready().is_none().into());
            metrics.kafka_up.set(parts.is_kafka_up().into());
            metrics.topics(parts.topics.states());
            metrics.connections.set(signed(observed.open()));
            metrics.tls_certificates(parts.tls.certificates().map(|c| (c.name().to_owned(), c.not_after)).collect());
            metrics.bytes_in_flight.set(signed(budget.held()));
            metrics.records_in_flight.set(signed(parts.publisher.records_in_flight()));
            for app in relay.policy().apps.values().chain(&relay.policy().app_webhooks) {
                app.keyring.keys().for_each(|key| metrics.secret_key_uses(&app.name, key.name(), key.uses()));
            }
            metrics.text()
        };
        (server, text)
    }

    fn admin(&self, metrics: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Admin {
        let (shutdown, parts, spool) = (self.shutdown.clone(), self.clone(), self.spool.clone());
        let tls = Arc::clone(&self.tls);
        Admin {
            metrics: Box::new(metrics),
            dead: Box::new(move || shutdown.failure()),
            unready: Box::new(move || parts.unready()),
            warning: Box::new(move || spool.as_ref().and_then(Spool::warning).or_else(|| tls.warning())),
        }
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
    fn control(&self, config: control::Config, dead_letters: DeadLetters) -> (JoinHandle<()>, CancellationToken) {
        let stop = CancellationToken::new();
        let control = Control { spool: self.spool.clone(), dead_letters: Some(dead_letters) };
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let Some(path) = config.socket.clone() else { return };
            control::serve(path, control, config, stopped).await;
        });
        (task, stop)
    }

    /// Begins to watch the brokers and the topics, and waits for what is found first; with a spool not for long, for it takes events until
    /// the brokers have answered. The token is cancelled when they have.
    async fn watch(&self, kafka: &publish::Config, probed: Arc<str>) -> Result<CancellationToken, Failure> {
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
        let patience = if self.spool.is_some() { PATIENCE } else { Duration::MAX };
        match tokio::time::timeout(patience, first).await {
            Ok(Ok(Err(too_small))) => return Err(Failure::failed(too_small)),
            Err(_) if !brokers_answered.is_cancelled() => {
                tracing::warn!("the brokers have not answered yet: events are spooled meanwhile");
            }
            _ => {} // what was found is logged; or topics are still created; or the watch has panicked, which ends the process
        }
        Ok(brokers_answered)
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

    /// Waits until the spool is open.
    async fn opened(&self, opened: oneshot::Receiver<Result<(), spool::Unusable>>) -> Result<(), Failure> {
        let opened = opened.await.map_err(|_| Failure::Failed("the spool's writer has panicked".to_owned()))?;
        opened.map_err(Failure::failed)?;
        let Some(spool) = &self.spool else { return Ok(()) };
        let Size { records, bytes } = spool.lanes(|lanes| lanes.total());
        let directory = spool.config().directory.display();
        if records > 0 {
            tracing::info!(%directory, records, bytes, "the spool has events from before: they are published when Kafka takes them");
        } else if spool.lanes(|lanes| lanes.is_known()) {
            tracing::info!(%directory, "the spool is empty");
        }
        Ok(())
    }

    /// What becomes of events while Kafka, or their topic, is away.
    fn meanwhile(&self) -> &'static str {
        if self.spool.is_some() { "events are spooled" } else { "webhooks are answered 503" }
    }
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

/// The socket of `[server]` or `[admin]`: made here, or passed on by systemd, which keeps it open over a restart.
fn bind(
    key: &str,
    listener: &Listener,
    passed: std::io::Result<Option<std::net::TcpListener>>,
) -> Result<(TcpListener, SocketAddr), Failure> {
    let bind = || {
        let bound = if let Some(passed) = passed? {
            passed.set_nonblocking(true)?;
            TcpListener::from_std(passed)?
        } else {
            let socket = if listener.listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?; // else a restart fails while connections of before are in TIME_WAIT
            socket.bind(listener.listen)?;
            socket.listen(listener.backlog)?
        };
        let address = bound.local_addr()?;
        Ok((bound, address))
    };
    let cannot = |e: std::io::Error| Failure::Failed(format!("{key}: cannot listen on {}: {e}", listener.listen));
    bind().map_err(cannot)
}
