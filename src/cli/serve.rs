//! `serve`: builds the daemon, runs it, and stops it. The only place that wires.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::{Failure, Source};
use crate::config::{Config, Listener};
use crate::http::{self, admin::Admin, webhook::Webhooks};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::relay::Relay;
use crate::shutdown::{Shutdown, on_signal};
use crate::telemetry;
use crate::topics::{Prepared, Topics, Trouble};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = arguments.source.load()?;
    telemetry::start(&config.log);
    let signal = on_signal().map_err(|e| Failure::Failed(format!("signals cannot be handled: {e}")))?;
    tokio::pin!(signal);
    raise_open_files(config.server.listener.limits.connections_max);

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
    daemon.stop().await;
    Ok(())
}

/// A running relay: both listeners serve, and someone watches the brokers.
pub struct Daemon {
    pub webhooks: SocketAddr,
    pub admin: SocketAddr,
    relay: Relay,
    shutdown: Shutdown,
    servers: Vec<tokio::task::JoinHandle<()>>,
    drain: (Duration, Duration),
}

impl Daemon {
    /// Starts in this order: ports, producer, admin listener, topics, webhook listener. Brokers that are away are no
    /// reason not to start: until they are back, webhooks are answered 503.
    ///
    /// # Errors
    /// A [`Failure`] that names the port, the property or the topic, and what to do.
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Self, Failure> {
        let listener = bind("server.listen", &config.server.listener).await?;
        let admin_listener = bind("admin.listen", &config.admin).await?;
        let metrics = Arc::new(Metrics::new());
        let bad_properties = |e| Failure::Usage(format!("kafka.properties: {e}"));
        let publisher = Publisher::new(config.kafka.clone(), Arc::clone(&metrics)).map_err(bad_properties)?;
        let topics = Topics::new(config.policy.topics(), config.topics, &config.kafka);
        let topics = topics.map_err(|e| Failure::Usage(e.to_string()))?;
        let webhooks = listener.local_addr().map_err(Failure::failed)?;
        let admin_address = admin_listener.local_addr().map_err(Failure::failed)?;

        let admin = Arc::new(Admin::new(Arc::clone(&metrics), shutdown.clone()));
        let admin = tokio::spawn(http::serve(admin_listener, config.admin.limits, admin, shutdown.clone()));

        let prepared = match topics.prepare().await {
            Ok(prepared) => Some(prepared),
            Err(trouble) if trouble.may_pass() => {
                tracing::error!(%trouble, "starting without Kafka: webhooks are answered 503 until it is there");
                None
            }
            Err(trouble) => return Err(Failure::failed(trouble)),
        };
        let relay = Relay::new(config.policy, publisher, Arc::clone(&metrics), shutdown.clone());
        let watch = Watch { relay: relay.clone(), metrics: Arc::clone(&metrics), topics, ready: false };
        tokio::spawn(watch.run(prepared, config.kafka.probe_interval));

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
        })
    }

    /// Stops as `[server]` says: takes requests for a little while, finishes those under way, and ends. What no broker has
    /// acked by then was answered 503, so that it is no failure of ours.
    pub async fn stop(self) {
        let servers = async {
            for server in self.servers {
                let _ = server.await; // a server that has panicked has said so, and has stopped
            }
        };
        self.shutdown.run(self.drain.0, self.drain.1, servers).await;
        let relay = self.relay.clone();
        let flushed = tokio::task::spawn_blocking(move || relay.publisher().flush(Duration::from_millis(100))).await;
        match flushed {
            Ok(Ok(())) => tracing::info!("stopped: nothing is left"),
            _ => {
                tracing::warn!("stopped: records are left that Kafka did not take; their senders were not answered 200")
            }
        }
    }
}

async fn bind(key: &str, listener: &Listener) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(listener.listen).await;
    bound.map_err(|e| Failure::Failed(format!("{key}: {} cannot be listened on: {e}", listener.listen)))
}

/// Looks after the topics until they are there, and from then on whether the brokers are: that is readiness.
struct Watch {
    relay: Relay,
    metrics: Arc<Metrics>,
    topics: Topics,
    ready: bool,
}

impl Watch {
    async fn run(mut self, prepared: Option<Prepared>, interval: Duration) {
        let names = self.relay.policy().topics();
        let Some(one) = names.first().cloned() else { return self.set(Ok(())) };
        let mut is_prepared = prepared.is_some();
        if let Some(prepared) = prepared {
            told(&prepared);
            self.set(Ok(()));
        }
        loop {
            tokio::time::sleep(interval).await;
            let found = if is_prepared { self.probe(Arc::clone(&one), interval).await } else { self.prepare().await };
            is_prepared |= found.is_ok();
            self.set(found);
        }
    }

    async fn prepare(&self) -> Result<(), String> {
        self.topics.prepare().await.map(|prepared| told(&prepared)).map_err(|trouble: Trouble| trouble.to_string())
    }

    async fn probe(&self, topic: Arc<str>, timeout: Duration) -> Result<(), String> {
        let relay = self.relay.clone();
        let probed = tokio::task::spawn_blocking(move || relay.publisher().probe(&topic, timeout)).await;
        probed.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }

    fn set(&mut self, found: Result<(), String>) {
        match (&found, self.ready) {
            (Ok(()), false) => tracing::info!("ready: Kafka takes events"),
            (Err(why), true) => tracing::error!(why, "not ready: Kafka is away, and webhooks are answered 503"),
            (Err(why), false) => tracing::warn!(why, "still not ready"),
            (Ok(()), true) => {}
        }
        self.ready = found.is_ok();
        self.metrics.ready.set(i64::from(self.ready));
    }
}

fn told(prepared: &Prepared) {
    if let Some(why) = &prepared.unchecked {
        tracing::warn!(why, "the topics' max.message.bytes could not be read; records may be too large for them");
    }
    tracing::info!(existing = prepared.existing, created = prepared.created.len(), "topics are there");
}

/// Each connection is an open file, and the usual limit is 1,024: the soft limit goes up to what is needed, as far as
/// the hard one lets it.
fn raise_open_files(connections_max: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = connections_max as u64 + 256;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let raised = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    let set = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum });
    if set.is_err() || raised < needed {
        tracing::warn!(
            limit = raised,
            needed,
            "too few open files for server.connections_max; raise the hard limit (LimitNOFILE=)"
        );
    }
}
