//! `serve`: builds the daemon, runs it, and stops it. The only place that wires.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Failure, Source};
use crate::budget::Budget;
use crate::config::{Config, Listener};
use crate::dead_letter::DeadLetters;
use crate::desk::Desk;
use crate::http::{Server, admin::Admin, webhook::Webhooks};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::relay::{Durable, Relay};
use crate::replay;
use crate::shutdown::{Shutdown, on_signal};
use crate::spool::{self, Size, Spool};
use crate::telemetry::{self, Throttle, Throttles};
use crate::topics::{Prepared, Topics, Trouble};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
    /// At the end, publish what is in the spool first, for up to spool.drain_timeout
    #[arg(long)]
    drain: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut config = arguments.source.load()?;
    telemetry::start(&config.log);
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

/// Fewer connections are accepted where the limit of open files does not suffice: else accepting fails when it is reached.
fn make_do_with_open_files(config: &mut Config) {
    let files_of_the_spool = config.spool.as_ref().map_or(0, |spool| spool.spool.files());
    let connections_max = &mut config.server.listener.limits.connections_max;
    let missing = super::raise_open_files(*connections_max as u64 + files_of_the_spool);
    if missing > 0 {
        let possible = connections_max.saturating_sub(usize::try_from(missing).unwrap_or(usize::MAX)).max(16);
        tracing::warn!(
            missing,
            connections_max = possible,
            "too few open files for server.connections_max, and spool.bytes_max in files of spool.segment_bytes: fewer connections are accepted; raise the hard limit (LimitNOFILE=)"
        );
        *connections_max = possible;
    }
}

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
    publisher: Arc<Publisher>,
    shutdown: Shutdown,
    server: JoinHandle<()>,
    drain: (Duration, Duration),
    replay: Option<Replay>,
    /// The admin listener, and what ends it: it ends last.
    admin_server: (JoinHandle<()>, CancellationToken),
}

/// The spool and what empties it.
struct Replay {
    spool: Spool,
    task: JoinHandle<()>,
    stop: CancellationToken,
    drain_timeout: Duration,
}

impl Daemon {
    /// Starts in this order: spool, ports, producer, admin listener, topics, replay, webhook listener. Brokers that are away
    /// are no reason not to start: until they are back, events are spooled, or answered 503 where there is no spool.
    ///
    /// # Errors
    /// A [`Failure`] that names the spool, the port, the property or the topic, and what to do.
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Self, Failure> {
        let metrics = Arc::new(Metrics::new());
        let spool = match &config.spool {
            Some(spool) => Some(open_spool(spool.spool.clone(), Arc::clone(&metrics)).await?),
            None => None,
        };
        let (listener, webhooks) = bind("server.listen", &config.server.listener)?;
        let (admin_listener, admin) = bind("admin.listen", &config.admin)?;
        let bad_properties = |e| Failure::Usage(format!("kafka.properties: {e}"));
        let publisher =
            Publisher::new(config.kafka.clone(), Arc::clone(&metrics), shutdown.clone()).map_err(bad_properties)?;
        let publisher = Arc::new(publisher);
        let names = config.policy.topics();
        let probed = names.first().cloned();
        let topics = Topics::new(names, config.topics, &config.kafka).map_err(|e| Failure::Usage(e.to_string()))?;
        let topics = Arc::new(topics);
        let dead_letters = DeadLetters {
            topic: Arc::clone(&config.policy.dead_letter),
            publisher: Arc::clone(&publisher),
            spool: spool.clone(),
            metrics: Arc::clone(&metrics),
        };
        let relay = Relay::new(config.policy, Durable(dead_letters.clone()), Arc::clone(&metrics), shutdown.clone());
        let budget = Budget::new(config.server.budget);
        let handler = Webhooks {
            relay: relay.clone(),
            budget: Arc::clone(&budget),
            metrics: Arc::clone(&metrics),
            config: config.server.webhooks,
            refused: Throttles::new(Duration::from_secs(10)),
        };
        let server = Server::new(handler, config.server.listener.limits, shutdown.clone());

        let state = State { kafka_up: Arc::default(), spool: spool.clone(), shutdown: shutdown.clone() };
        let observed = Observed {
            metrics: Arc::clone(&metrics),
            state: state.clone(),
            server: Arc::clone(&server),
            budget,
            relay,
        };
        let handler = Admin {
            metrics: Box::new(move || observed.text()),
            dead: Box::new({
                let shutdown = shutdown.clone();
                move || shutdown.failure()
            }),
            unready: Box::new({
                let state = state.clone();
                move || state.unready()
            }),
            warning: Box::new({
                let spool = spool.clone();
                move || spool.as_ref().and_then(Spool::warning)
            }),
            desk: spool.clone().map(Desk),
        };
        let ended = CancellationToken::new();
        let admin_server = Server::new(handler, config.admin.limits, shutdown.clone());
        let admin_server = spawn_vital(&shutdown, "admin listener", admin_server.serve(admin_listener, ended.clone()));

        let preparing = prepare_at_start(&topics, spool.is_some()).await?;
        if preparing.is_some() && spool.is_some() {
            publisher.presume_away(true); // nothing is to be produced to topics that are not there yet
        }
        let has_topics = CancellationToken::new();
        let replay = config.spool.zip(spool.clone()).map(|(config, spool)| {
            let (stop, go) = (CancellationToken::new(), has_topics.clone());
            let replaying = replay::run(config.replay, spool.clone(), dead_letters, shutdown.clone(), stop.clone());
            let stopped = stop.clone();
            let task = spawn_vital(&shutdown, "replay", async move {
                if stopped.run_until_cancelled(go.cancelled()).await.is_some() {
                    replaying.await;
                }
            });
            Replay { spool, task, stop, drain_timeout: config.drain_timeout }
        });
        let watch = Watch {
            publisher: Arc::clone(&publisher),
            metrics,
            topics,
            has_topics,
            state,
            spool,
            interval: config.kafka.probe_interval,
        };
        spawn_vital(&shutdown, "watch", watch.run(preparing, probed));
        tokio::spawn(give_up(Arc::clone(&publisher), shutdown.giving_up.clone()));

        let closing = shutdown.closing.clone();
        let server = spawn_vital(&shutdown, "webhook listener", server.serve(listener, closing));
        tracing::info!(%webhooks, %admin, "taking webhooks");
        Ok(Self {
            webhooks,
            admin,
            publisher,
            shutdown,
            server,
            drain: (config.server.drain_delay, config.server.drain_timeout),
            replay,
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
        self.shutdown.run(self.drain.0, self.drain.1, server).await;
        let left = match self.replay {
            Some(replay) => {
                if drain {
                    replay.drain().await;
                }
                replay.end(&self.publisher).await
            }
            None => Size::default(),
        };
        let publisher = self.publisher;
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
        let stopped = async {
            if publisher.is_away() {
                let publisher = Arc::clone(publisher);
                let _ = tokio::task::spawn_blocking(move || publisher.give_up()).await; // the runtime ends with us
            }
            let _ = self.task.await; // one that has panicked has said so
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

/// What decides readiness: whether an event can be made durable.
#[derive(Clone)]
struct State {
    kafka_up: Arc<AtomicBool>,
    spool: Option<Spool>,
    shutdown: Shutdown,
}

impl State {
    fn is_kafka_up(&self) -> bool {
        self.kafka_up.load(Ordering::Relaxed)
    }

    /// Why not.
    fn unready(&self) -> Option<&'static str> {
        match &self.spool {
            _ if self.shutdown.is_draining() => Some("shutting down"),
            _ if self.is_kafka_up() => None,
            Some(spool) if spool.is_accepting() => None,
            Some(_) => Some("neither Kafka nor the spool accepts events"),
            None => Some("Kafka does not accept events"),
        }
    }
}

/// What counts itself, and is shown among the metrics.
struct Observed {
    metrics: Arc<Metrics>,
    state: State,
    server: Arc<Server<Webhooks>>,
    budget: Arc<Budget>,
    relay: Relay,
}

impl Observed {
    fn text(&self) -> Vec<u8> {
        let metrics = &self.metrics;
        metrics.ready.set(self.state.unready().is_none().into());
        metrics.kafka_up.set(self.state.is_kafka_up().into());
        metrics.connections.set(signed(self.server.open()));
        metrics.bytes_in_flight.set(signed(self.budget.held()));
        metrics.records_in_flight.set(signed(self.relay.backend().0.publisher.records_in_flight()));
        let policy = self.relay.policy();
        for app in policy.apps.values().chain(&policy.app_webhooks) {
            app.keyring.keys().for_each(|key| metrics.secret_key_uses(&app.name, key.name(), key.uses()));
        }
        metrics.text()
    }
}

fn signed(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Runs what the daemon cannot do without: if it ends before the stop has begun, the process ends.
fn spawn_vital(
    shutdown: &Shutdown,
    name: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let vital = shutdown.vital(name);
    tokio::spawn(async move {
        let _vital = vital;
        work.await;
    })
}

/// From `giving_up` on, what is still with the brokers is given up: whoever waits for it has another way, or none.
async fn give_up(publisher: Arc<Publisher>, giving_up: CancellationToken) {
    giving_up.cancelled().await;
    loop {
        let publisher = Arc::clone(&publisher);
        let _ = tokio::task::spawn_blocking(move || publisher.give_up()).await; // the runtime ends with us
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Opens the spool; blocks a thread of its own, for it may have to wait for another process.
async fn open_spool(config: spool::Config, metrics: Arc<Metrics>) -> Result<Spool, Failure> {
    let opened = tokio::task::spawn_blocking(move || Spool::start(config, metrics)).await.map_err(Failure::failed)?;
    let spool = opened.map_err(Failure::failed)?;
    let Size { records, bytes } = spool.lanes(|lanes| lanes.total());
    let directory = spool.config().directory.display().to_string();
    if records > 0 {
        tracing::info!(
            directory,
            records,
            bytes,
            "the spool has events from before: they are published when Kafka takes them"
        );
    } else {
        tracing::info!(directory, "the spool is empty");
    }
    Ok(spool)
}

/// The preparation of the topics, on its way.
type Preparing = tokio::task::JoinHandle<Result<(), Trouble>>;

/// Begins to prepare the topics, and waits for it; with a spool not for long, for it takes events until the brokers have
/// answered. What is still on its way then, or nothing when they are prepared.
async fn prepare_at_start(topics: &Arc<Topics>, has_spool: bool) -> Result<Option<Preparing>, Failure> {
    const PATIENCE: Duration = Duration::from_millis(500);
    let topics = Arc::clone(topics);
    let mut preparing = tokio::spawn(async move { prepare(&topics, has_spool).await });
    let prepared = if has_spool {
        let Ok(prepared) = tokio::time::timeout(PATIENCE, &mut preparing).await else {
            tracing::warn!("the brokers have not answered yet: events are spooled meanwhile");
            return Ok(Some(preparing));
        };
        prepared
    } else {
        preparing.await
    };
    match prepared.map_err(Failure::failed)? {
        Ok(()) => Ok(None),
        Err(trouble) if trouble.may_pass() => {
            let meanwhile = if has_spool { "events are spooled" } else { "webhooks are answered 503" };
            tracing::error!(%trouble, "starting without Kafka: {meanwhile} until it is there");
            Ok(Some(tokio::spawn(async { Err(trouble) })))
        }
        Err(trouble) => Err(Failure::failed(trouble)),
    }
}

/// Creates the topics that are missing. One that is too small for the largest event is no trouble where there is a spool.
async fn prepare(topics: &Topics, has_spool: bool) -> Result<(), Trouble> {
    match topics.prepare().await {
        Ok(prepared) => told(&prepared),
        Err(trouble @ Trouble::TooSmall { .. }) if has_spool => {
            tracing::warn!(%trouble, "events that are too large for their topic become dead letters");
        }
        Err(trouble) => return Err(trouble),
    }
    Ok(())
}

fn bind(key: &str, listener: &Listener) -> Result<(TcpListener, SocketAddr), Failure> {
    let bind = || {
        let socket = if listener.listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?; // else a restart fails while connections of before are in TIME_WAIT
        socket.bind(listener.listen)?;
        let bound = socket.listen(listener.backlog)?;
        let address = bound.local_addr()?;
        Ok((bound, address))
    };
    let cannot = |e: std::io::Error| Failure::Failed(format!("{key}: cannot listen on {}: {e}", listener.listen));
    bind().map_err(cannot)
}

/// Looks after the topics until they are there, and from then on whether the brokers are.
struct Watch {
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    topics: Arc<Topics>,
    /// Cancelled when they are prepared: the replay waits for it.
    has_topics: CancellationToken,
    state: State,
    spool: Option<Spool>,
    interval: Duration,
}

impl Watch {
    async fn run(self, preparing: Option<Preparing>, probed: Option<Arc<str>>) {
        let mut found = match preparing {
            None => Ok(()),
            Some(preparing) => {
                preparing.await.map_err(|e| e.to_string()).and_then(|found| found.map_err(|e| e.to_string()))
            }
        };
        loop {
            if found.is_ok() && !self.has_topics.is_cancelled() {
                self.publisher.presume_away(false);
                self.has_topics.cancel();
            }
            self.set(found);
            self.look_into_the_spool().await;
            tokio::time::sleep(self.interval).await;
            found = match &probed {
                Some(topic) if self.has_topics.is_cancelled() => self.probe(Arc::clone(topic)).await,
                _ => prepare(&self.topics, self.spool.is_some()).await.map_err(|trouble| trouble.to_string()),
            };
        }
    }

    async fn probe(&self, topic: Arc<str>) -> Result<(), String> {
        let (publisher, timeout) = (Arc::clone(&self.publisher), self.interval);
        let probed = tokio::task::spawn_blocking(move || publisher.probe(&topic, timeout)).await;
        probed.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }

    fn set(&self, found: Result<(), String>) {
        let meanwhile = if self.spool.is_some() { "events are spooled" } else { "webhooks are answered 503" };
        match (&found, self.state.is_kafka_up()) {
            (Ok(()), false) => tracing::info!("ready: Kafka takes events"),
            (Err(why), true) => tracing::error!(why, "Kafka is away: {meanwhile}"),
            (Err(why), false) => tracing::warn!(why, "Kafka is still away: {meanwhile}"),
            (Ok(()), true) => {}
        }
        self.state.kafka_up.store(found.is_ok(), Ordering::Relaxed);
    }

    /// How old the first event of each topic in the spool is.
    async fn look_into_the_spool(&self) {
        let Some(spool) = self.spool.clone() else { return };
        let metrics = Arc::clone(&self.metrics);
        let looked = tokio::task::spawn_blocking(move || metrics.spool_ages(spool.oldest()));
        let _ = tokio::time::timeout(Duration::from_secs(1), looked).await; // it goes on; the brokers are asked meanwhile
    }
}

fn told(prepared: &Prepared) {
    if let Some(why) = &prepared.unchecked {
        tracing::warn!(why, "the topics' max.message.bytes could not be read; records may be too large for them");
    }
    tracing::info!(existing = prepared.existing, created = prepared.created.len(), "topics are there");
}
