//! `serve`: builds the daemon, runs it, and stops it. The only place that wires.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Failure, Source};
use crate::config::{Config, Listener};
use crate::dead_letter::DeadLetters;
use crate::desk::Desk;
use crate::http::{self, admin::Admin, webhook::Webhooks};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::relay::Relay;
use crate::replay;
use crate::shutdown::{Shutdown, on_signal};
use crate::spool::{self, Size, Spool};
use crate::telemetry::{self, Throttle};
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
    let config = arguments.source.load()?;
    telemetry::start(&config.log);
    let signal = on_signal().map_err(|e| Failure::Failed(format!("signals cannot be handled: {e}")))?;
    tokio::pin!(signal);
    let files_of_the_spool = config.spool.as_ref().map_or(0, |spool| spool.spool.files());
    super::raise_open_files(config.server.listener.limits.connections_max as u64 + files_of_the_spool);

    let start = Daemon::start(config, Shutdown::default());
    let daemon = tokio::select! {
        daemon = start => daemon?,
        signal = &mut signal => {
            tracing::info!(signal, "stopped before it had started");
            return Ok(());
        }
    };
    let signal = signal.await;
    tracing::info!(signal, "stopping: requests under way are finished");
    daemon.stop(arguments.drain).await;
    Ok(())
}

/// A running relay: both listeners serve, the spool is replayed, and someone watches the brokers.
pub struct Daemon {
    pub webhooks: SocketAddr,
    pub admin: SocketAddr,
    relay: Relay,
    shutdown: Shutdown,
    servers: Vec<tokio::task::JoinHandle<()>>,
    drain: (Duration, Duration),
    replay: Option<Replay>,
}

/// The spool and who empties it.
struct Replay {
    spool: Spool,
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
    drain_timeout: Duration,
}

/// glibc gives free memory back to the kernel from twice the size of the largest block on that was ever mapped by itself and
/// freed, and takes it again a moment later: a page fault an event. From here on that is from 2 MB on; an allocator without
/// such a rule does nothing.
fn keep_some_free_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
}

impl Daemon {
    /// Starts in this order: spool, ports, producer, admin listener, topics, replay, webhook listener. Brokers that are away
    /// are no reason not to start: until they are back, events are spooled, or answered 503 where there is no spool.
    ///
    /// # Errors
    /// A [`Failure`] that names the spool, the port, the property or the topic, and what to do.
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Self, Failure> {
        keep_some_free_memory();
        let metrics = Arc::new(Metrics::new());
        let spool = match &config.spool {
            Some(spool) => Some(open_spool(spool.spool.clone(), Arc::clone(&metrics)).await?),
            None => None,
        };
        let listener = bind("server.listen", &config.server.listener)?;
        let admin_listener = bind("admin.listen", &config.admin)?;
        let bad_properties = |e| Failure::Usage(format!("kafka.properties: {e}"));
        let publisher = Publisher::new(config.kafka.clone(), Arc::clone(&metrics), shutdown.clone());
        let publisher = Arc::new(publisher.map_err(bad_properties)?);
        let topics = Topics::new(config.policy.topics(), config.topics, &config.kafka);
        let topics = Arc::new(topics.map_err(|e| Failure::Usage(e.to_string()))?);
        let webhooks = listener.local_addr().map_err(Failure::failed)?;
        let admin_address = admin_listener.local_addr().map_err(Failure::failed)?;

        let admin = Arc::new(Admin::new(
            Arc::clone(&metrics),
            Arc::clone(&publisher),
            shutdown.clone(),
            spool.clone().map(Desk),
        ));
        let admin = tokio::spawn(http::serve(admin_listener, config.admin.limits, admin, shutdown.clone()));

        let preparing = prepare_at_start(&topics, spool.is_some()).await?;
        if preparing.is_some() && spool.is_some() {
            publisher.presume_away(true); // nothing is to be produced to topics that are not there yet
        }
        let dead_letters = DeadLetters {
            topic: Arc::clone(&config.policy.dead_letter),
            publisher: Arc::clone(&publisher),
            spool: spool.clone(),
            metrics: Arc::clone(&metrics),
        };
        let has_topics = CancellationToken::new();
        let replay = config.spool.zip(spool.clone()).map(|(config, spool)| {
            let (stop, go) = (CancellationToken::new(), has_topics.clone());
            let replaying = replay::run(config.replay, spool.clone(), dead_letters.clone(), stop.clone());
            let task = async move {
                go.cancelled_owned().await;
                replaying.await;
            };
            Replay { spool, task: tokio::spawn(task), stop, drain_timeout: config.drain_timeout }
        });
        let relay = Relay::new(config.policy, dead_letters, Arc::clone(&metrics), shutdown.clone());
        let watch =
            Watch { relay: relay.clone(), metrics: Arc::clone(&metrics), topics, has_topics, spool, was_up: false };
        tokio::spawn(watch.run(preparing, config.kafka.probe_interval));
        let (giving_up, waiting) = (shutdown.giving_up.clone(), relay.clone());
        tokio::spawn(async move {
            giving_up.cancelled_owned().await;
            waiting.give_up().await;
        });

        let handler = Arc::new(Webhooks::new(relay.clone(), metrics, config.server.webhooks));
        let limits = config.server.listener.limits;
        let server = tokio::spawn(http::serve(listener, limits, handler, shutdown.clone()));
        tracing::info!(%webhooks, admin = %admin_address, "taking webhooks");
        Ok(Self {
            webhooks,
            admin: admin_address,
            relay,
            shutdown,
            servers: vec![server, admin],
            drain: (config.server.drain_delay, config.server.drain_timeout),
            replay,
        })
    }

    /// Stops as `[server]` says: takes requests for a little while, finishes those under way, and ends. What no broker has
    /// acked by then goes to the spool; without one it was answered 503, so that it is no failure of ours. With `drain` the
    /// spool is emptied first.
    pub async fn stop(self, drain: bool) {
        let servers = async {
            for server in self.servers {
                let _ = server.await; // a server that has panicked has said so, and has stopped
            }
        };
        self.shutdown.run(self.drain.0, self.drain.1, servers).await;
        if let Some(replay) = &self.replay
            && drain
        {
            replay.drain().await;
        }
        let left = match self.replay {
            Some(replay) => replay.end().await,
            None => Size::default(),
        };
        let relay = self.relay.clone();
        let flushed = tokio::task::spawn_blocking(move || relay.publisher().flush(Duration::from_millis(100))).await;
        match flushed {
            _ if left.records > 0 => {
                let Size { records, bytes } = left;
                tracing::warn!(
                    records,
                    bytes,
                    "stopped: events are left in the spool, and published after the next start"
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
    async fn end(self) -> Size {
        self.stop.cancel();
        // What is under way has its report soon, or else is published once more after the next start.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.task).await;
        let spool = self.spool.clone();
        let closing = tokio::task::spawn_blocking(move || spool.close());
        if tokio::time::timeout(Duration::from_secs(5), closing).await.is_err() {
            tracing::error!("the spool's disk does not answer: ending without closing the file");
        }
        self.spool.lanes(|lanes| lanes.total())
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

fn bind(key: &str, listener: &Listener) -> Result<TcpListener, Failure> {
    let bound = http::listen(listener.listen, listener.limits.backlog);
    bound.map_err(|e| Failure::Failed(format!("{key}: {} cannot be listened on: {e}", listener.listen)))
}

/// Looks after the topics until they are there, and from then on whether the brokers are. With the spool, that is readiness.
struct Watch {
    relay: Relay,
    metrics: Arc<Metrics>,
    topics: Arc<Topics>,
    /// Cancelled when they are prepared: the replay waits for it.
    has_topics: CancellationToken,
    spool: Option<Spool>,
    was_up: bool,
}

impl Watch {
    async fn run(mut self, preparing: Option<Preparing>, interval: Duration) {
        let names = self.relay.policy().topics();
        let Some(one) = names.first().cloned() else { return };
        let mut found = match preparing {
            None => Ok(()),
            Some(preparing) => {
                preparing.await.map_err(|e| e.to_string()).and_then(|found| found.map_err(|e| e.to_string()))
            }
        };
        let mut is_prepared = false;
        loop {
            if found.is_ok() && !is_prepared {
                is_prepared = true;
                self.relay.publisher().presume_away(false);
                self.has_topics.cancel();
            }
            self.set(found);
            self.look_into_the_spool().await;
            tokio::time::sleep(interval).await;
            found = if is_prepared { self.probe(Arc::clone(&one), interval).await } else { self.prepare().await };
        }
    }

    async fn prepare(&self) -> Result<(), String> {
        prepare(&self.topics, self.spool.is_some()).await.map_err(|trouble| trouble.to_string())
    }

    async fn probe(&self, topic: Arc<str>, timeout: Duration) -> Result<(), String> {
        let relay = self.relay.clone();
        let probed = tokio::task::spawn_blocking(move || relay.publisher().probe(&topic, timeout)).await;
        probed.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }

    fn set(&mut self, found: Result<(), String>) {
        let meanwhile = if self.spool.is_some() { "events are spooled" } else { "webhooks are answered 503" };
        match (&found, self.was_up) {
            (Ok(()), false) => tracing::info!("ready: Kafka takes events"),
            (Err(why), true) => tracing::error!(why, "Kafka is away: {meanwhile}"),
            (Err(why), false) => tracing::warn!(why, "Kafka is still away: {meanwhile}"),
            (Ok(()), true) => {}
        }
        self.was_up = found.is_ok();
        self.metrics.kafka_up.set(i64::from(self.was_up));
    }

    /// How old the first event of each lane is.
    async fn look_into_the_spool(&self) {
        let Some(spool) = self.spool.clone() else { return };
        let metrics = Arc::clone(&self.metrics);
        let looked = tokio::task::spawn_blocking(move || {
            let ages = spool.oldest();
            metrics.spool_oldest_seconds.reset();
            for (topic, since) in ages {
                let age = jiff::Timestamp::now().duration_since(since).as_secs_f64().max(0.0);
                metrics.spool_oldest_seconds.with_label_values(&[&*topic]).set(age);
            }
        });
        let _ = tokio::time::timeout(Duration::from_secs(1), looked).await; // it goes on; the brokers are asked meanwhile
    }
}

fn told(prepared: &Prepared) {
    if let Some(why) = &prepared.unchecked {
        tracing::warn!(why, "the topics' max.message.bytes could not be read; records may be too large for them");
    }
    tracing::info!(existing = prepared.existing, created = prepared.created.len(), "topics are there");
}
