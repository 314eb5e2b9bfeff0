//! Records whose order survives every failure. The producers for single records cannot promise that: what has failed there is sent again
//! by its caller, and may come behind another record of its key that was under way with it.

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread;

use rdkafka::config::ClientConfig;

use super::Failure;
use super::config::{Config, Unusable};
use super::producer::{Client, Common};
use super::report::InFlight;

/// One producer and its end. After the first failure it takes nothing more, so that what is handed over behind a record that has failed
/// never reaches the brokers; the callers go on with another run, from the first record that was not acked.
pub struct Run {
    client: Arc<Client>,
    common: Arc<Common>,
    /// Locked to hand over: of what comes after the end, nothing is left for librdkafka to send.
    has_ended: RwLock<bool>,
}

impl Run {
    pub(super) fn send(&self, in_flight: InFlight) {
        let has_ended = self.has_ended.read().unwrap_or_else(PoisonError::into_inner);
        if *has_ended {
            return in_flight.report(Err(Failure::gone()));
        }
        self.client.send(in_flight);
    }

    /// Ends the run: what no broker has acked is given up, and has its report soon.
    pub fn end(&self) {
        let mut has_ended = self.has_ended.write().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *has_ended, true) {
            return;
        }
        self.common.metrics.replay_runs_ended.inc();
        let client = Arc::clone(&self.client);
        if let Err(error) = thread::Builder::new().spawn(move || client.end()) {
            tracing::error!(%error, "no thread can be started: delivery reports of a replay are lost");
        }
    }

    fn has_ended(&self) -> bool {
        *self.has_ended.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The run of now, made when a lane needs one, and dropped by the last lane that has it.
pub(super) struct Runs {
    common: Arc<Common>,
    config: Config,
    properties: ClientConfig,
    current: Mutex<Weak<Run>>,
}

impl Runs {
    pub(super) fn new(common: &Arc<Common>) -> Self {
        let config = common.config.in_order();
        Self { common: Arc::clone(common), properties: config.producer(), config, current: Mutex::default() }
    }

    pub(super) fn current(&self) -> Result<Arc<Run>, Unusable> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = current.upgrade().filter(|run| !run.has_ended()) {
            return Ok(run);
        }
        let client = Arc::new(Client::new(&self.common, &self.config, &self.properties)?);
        let run = Arc::new(Run { client, common: Arc::clone(&self.common), has_ended: RwLock::new(false) });
        *current = Arc::downgrade(&run);
        Ok(run)
    }

    /// Its client, where there is one.
    pub(super) fn client(&self) -> Option<Arc<Client>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.upgrade().map(|run| Arc::clone(&run.client))
    }
}
