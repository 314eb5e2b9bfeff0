//! What the parts of a relay share, and how each is made of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::listeners::Listeners;
use super::notify;
use super::registrations::Registrations;
use super::replay::Replay;
use super::watch::Watch;
use crate::acme::{self, Acme};
use crate::budget::Budget;
use crate::cli::Failure;
use crate::config::{self, Config};
use crate::control::{self, Control};
use crate::dead_letter::DeadLetters;
use crate::http::admin::{Admin, Readiness};
use crate::http::client;
use crate::http::failures::Failures;
use crate::http::pages::Pages;
use crate::http::webhook::{Live, Webhooks};
use crate::http::{Handler, Refusals, Server};
use crate::metrics::{Counts, Metrics};
use crate::publish::{self, Publisher};
use crate::relay::{Durable, Relay, UNKNOWN_APP};
use crate::replay;
use crate::shutdown::Shutdown;
use crate::spool::{self, Size, Spool};
use crate::systemd;
use crate::topics::Topics;

/// What the parts of a relay share.
#[derive(Clone)]
pub struct Parts {
    pub metrics: Arc<Metrics>,
    pub publisher: Arc<Publisher>,
    pub spool: Option<Spool>,
    pub topics: Arc<Topics>,
    pub tls: Arc<Listeners>,
    pub shutdown: Shutdown,
}

impl Parts {
    pub fn dead_letters(&self, config: &Config) -> DeadLetters {
        DeadLetters {
            topic: Arc::clone(&config.policy.dead_letter),
            publisher: Arc::clone(&self.publisher),
            spool: self.spool.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    pub fn webhooks(&self, config: &Config, dead_letters: DeadLetters) -> Arc<Server<Webhooks>> {
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
            strangers: Counts::of_strangers(),
            is_proxy_noticed: AtomicBool::default(),
        };
        Server::new(handler, server.listener.limits.clone(), server.clients.clone(), self.shutdown.clone())
    }

    /// A server on the inside: before the admin listener there are no proxies.
    pub fn without_proxies<H: Handler>(&self, handler: H, config: &Config) -> Arc<Server<H>> {
        Server::new(handler, config.admin.limits.clone(), client::Config::default(), self.shutdown.clone())
    }

    pub fn admin(&self, webhooks: &Arc<Server<Webhooks>>, running: &Arc<ArcSwap<Config>>) -> Admin {
        let (shutdown, parts, stated) = (self.shutdown.clone(), self.clone(), self.clone());
        let token_of = Arc::clone(running);
        let unauthorized = self.metrics.scrapes_unauthorized.clone();
        let (observing, webhooks, its_running) = (self.clone(), Arc::clone(webhooks), Arc::clone(running));
        Admin {
            metrics: Box::new(move || observing.observed(&webhooks, &its_running.load())),
            dead: Box::new(move || shutdown.failure()),
            readiness: Box::new(move || parts.readiness()),
            states: Box::new(move || stated.states()),
            token: Box::new(move || token_of.load().admin_token.clone()),
            unauthorized: Box::new(move || unauthorized.inc()),
        }
    }

    /// The text that Prometheus scrapes, with what the parts count themselves.
    pub fn observed(&self, webhooks: &Server<Webhooks>, config: &Config) -> Vec<u8> {
        let metrics = &self.metrics;
        metrics.ready.set(self.unready().is_none().into());
        metrics.kafka_up.set(self.is_kafka_up().into());
        metrics.topics(self.topics.states());
        metrics.connections.set(signed(webhooks.open()));
        let certificates = self.tls.certificates();
        metrics.tls_certificates(certificates.iter().map(|c| (c.name().to_owned(), c.not_after)).collect());
        metrics.bytes_in_flight.set(signed(webhooks.handler.budget.held()));
        metrics.records_in_flight.set(signed(self.publisher.records_in_flight()));
        let apps = config.policy.all_apps().map(|app| (&*app.name, &*app.counts));
        metrics.apps(&apps.chain([(UNKNOWN_APP, &webhooks.handler.strangers)]).collect::<Vec<_>>());
        metrics.secret_keys(config.policy.keys());
        metrics.rules(&config.policy.rules);
        metrics.deliveries(&webhooks.handler.relay.deliveries().all());
        metrics.text()
    }

    /// Begins to order and renew the certificate of the webhook listener, which listens here.
    pub async fn order_certificates(&self, mut acme: Acme, webhooks: SocketAddr) {
        if webhooks.port() != acme::PORT {
            tracing::warn!(listens_on = %webhooks, "the ACME authority connects to port 443: forward it to this listener, or no certificate is issued");
        }
        acme.begin().await;
        self.spawn_vital("ACME", acme.run());
    }

    /// Begins to answer what operators ask. Without a socket the relay does its work all the same.
    pub fn control(
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
    pub fn watch_registrations(&self, registrations: Registrations) {
        let closing = self.shutdown.closing.clone();
        tokio::spawn(async move { closing.run_until_cancelled(registrations.watch()).await });
    }

    /// Both listeners accept: systemd hears that, and from then on what has changed.
    pub fn notify_systemd(&self, server: Arc<Server<Webhooks>>) {
        let parts = self.clone();
        tokio::spawn(notify::status(move || parts.readiness()));
        if let Some(time) = systemd::watchdog() {
            tokio::spawn(notify::alive(server, time));
        }
    }

    /// Begins to watch the brokers and the topics. The token is cancelled when the brokers have answered. The future ends when something
    /// was found, or a little later: with a spool that is worth waiting for, as most are there at once, and the first events then need no
    /// detour.
    pub fn watch(&self, kafka: &publish::Config, probed: Arc<str>) -> (CancellationToken, impl Future<Output = ()>) {
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
        let patience = if self.spool.is_some() { PATIENCE } else { Duration::ZERO };
        (brokers_answered, async move {
            let _ = tokio::time::timeout(patience, first).await; // the watch logs what it finds, be it later
        })
    }

    /// Begins to empty the spool, once the brokers have answered.
    pub fn replay(
        &self,
        config: config::Spool,
        to: DeadLetters,
        brokers_answered: CancellationToken,
    ) -> Option<Replay> {
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
    pub fn spawn_vital(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let vital = self.shutdown.vital(name);
        tokio::spawn(async move {
            let _vital = vital;
            work.await;
        })
    }

    /// As [`Parts::spawn_vital`], for what has no end of its own: it is needed until the listeners are closed.
    pub fn spawn_until_closing(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let closing = self.shutdown.closing.clone();
        self.spawn_vital(name, async move { closing.run_until_cancelled(work).await.unwrap_or_default() });
    }

    pub fn is_kafka_up(&self) -> bool {
        self.publisher.unavailable().is_none()
    }

    /// Why no event can be made durable, if so: then the relay is not ready.
    pub fn unready(&self) -> Option<&'static str> {
        match &self.spool {
            _ if self.shutdown.is_draining() => Some("shutting down"),
            Some(spool) if !spool.lanes(|lanes| lanes.is_known() || lanes.is_failing_over()) => {
                Some("the spool is not open yet")
            }
            _ if self.is_kafka_up() => None,
            Some(spool) if spool.is_ready() => None,
            Some(_) => Some("neither Kafka nor the spool accepts events"),
            None => Some("Kafka is unavailable"),
        }
    }

    pub fn readiness(&self) -> Readiness {
        let warning = self.spool.as_ref().and_then(Spool::warning).or_else(|| self.tls.warning());
        match (self.unready(), warning) {
            (Some(why), _) => Readiness::NotReady(why),
            (None, Some(warning)) => Readiness::ReadyBut(warning),
            (None, None) => Readiness::Ready,
        }
    }

    /// The state of all that events need, for `/readyz`.
    fn states(&self) -> String {
        let kafka = if self.is_kafka_up() { "up" } else { "down" };
        let topics = self.topics.states().map(|(state, topics)| format!("{topics} {state}")).join(", ");
        let spool = self.spool.as_ref().map_or_else(
            || "none".to_owned(),
            |spool| {
                let records = spool.lanes(|lanes| lanes.total().records);
                format!("{}, {records} waiting", if spool.is_ready() { "accepting" } else { "not accepting" })
            },
        );
        format!("kafka: {kafka}\nspool: {spool}\ntopics: {topics}\n")
    }

    /// Waits until the spool is open.
    pub async fn opened(&self, opened: oneshot::Receiver<Result<(), spool::Unusable>>) -> Result<(), Failure> {
        let opened = opened.await.map_err(|_| Failure::Failed("the spool's writer has panicked".to_owned()))?;
        opened.map_err(Failure::failed)?;
        let Some(spool) = &self.spool else { return Ok(()) };
        let Size { records, bytes } = spool.lanes(|lanes| lanes.total());
        let directory = spool.config().directory.display();
        if records > 0 {
            tracing::info!(%directory, records, bytes, "the spool has events from an earlier run: they are published when Kafka is available");
        } else if spool.lanes(|lanes| lanes.is_known()) {
            tracing::info!(%directory, "the spool is empty");
        }
        Ok(())
    }

    /// Whether the spool accepts what Kafka, or a topic, does not.
    pub fn is_spooling(&self) -> bool {
        self.spool.as_ref().is_some_and(Spool::is_ready)
    }

    /// What becomes of events while Kafka, or their topic, is unavailable.
    pub fn meanwhile(&self) -> &'static str {
        if self.is_spooling() { "events are spooled" } else { "webhooks are answered 503" }
    }
}

/// What a request is answered by.
pub fn live(config: &Config) -> Live {
    let Config { policy, livechat, server, .. } = config;
    Live { policy: Arc::clone(policy), config: server.webhooks.clone(), livechat: livechat.clone() }
}

fn signed(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
