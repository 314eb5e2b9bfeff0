//! Changes a running relay: its configuration on SIGHUP, on request and when what it was read from has changed, and the log's filter for a
//! time. What is wrong changes nothing.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::make_do_with_open_files;
use super::parts::{self, Parts};
use crate::config::{Config, Digests, Mistakes, Reloaded};
use crate::control::{self, Answer, Request, Temporary};
use crate::deliveries::{KeyUse, Seen};
use crate::event::Key;
use crate::http::{Server, admin::Admin, admin::Probes, client, webhook::Webhooks};
use crate::outcome;
use crate::systemd;
use crate::telemetry;

/// From a look that has found a change to the next one, which has to find the same.
const CONFIRMATION: Duration = Duration::from_secs(1);

/// How long new routes wait for Kafka to have their topics. Without a spool an event for a topic that is still missing is answered 503.
const TOPICS_PATIENCE: Duration = Duration::from_secs(5);

/// The one task that changes what is configured. What needs `running` loads it when it needs it.
pub struct Reload {
    parts: Parts,
    running: Arc<ArcSwap<Config>>,
    webhooks: Arc<Server<Webhooks>>,
    /// The admin listener, and the one for probes alone.
    inside: (Arc<Server<Arc<Admin>>>, Arc<Server<Probes>>),
    /// What was found last, applied or not.
    found: Found,
    /// What a look has found that differs from that, and is not confirmed yet.
    unconfirmed: Option<Found>,
    next_look: Option<Instant>,
    /// A look that has not ended in time. No other begins before it has.
    late: Option<JoinHandle<Look>>,
    /// Until when the log has another filter than the configured one.
    temporary: Option<Instant>,
}

type Look = Result<Reloaded, Mistakes>;

/// What tells one look from another.
#[derive(Clone, PartialEq, Eq)]
enum Found {
    Right(Digests),
    Wrong(Vec<String>),
}

impl Found {
    fn of(look: &Look) -> Self {
        match look {
            Ok(reloaded) => Self::Right(reloaded.found.clone()),
            Err(mistakes) => Self::Wrong(mistakes.lines.clone()),
        }
    }
}

impl Reload {
    pub fn new(
        parts: Parts,
        running: Arc<ArcSwap<Config>>,
        webhooks: Arc<Server<Webhooks>>,
        inside: (Arc<Server<Arc<Admin>>>, Arc<Server<Probes>>),
    ) -> Self {
        parts.metrics.configured(None, 0);
        let found = Found::Right(running.load().sources.digests.clone());
        let (unconfirmed, late, temporary) = (None, None, None);
        let mut reload =
            Self { parts, running, webhooks, inside, found, unconfirmed, next_look: None, late, temporary };
        reload.next_look = reload.after(Duration::MAX);
        reload
    }

    /// Runs until it is aborted.
    pub async fn run(
        mut self,
        mut hangup: Option<Signal>,
        mut requests: mpsc::Receiver<(Request, oneshot::Sender<Answer>)>,
    ) {
        loop {
            tokio::select! {
                () = next(&mut hangup) => {
                    systemd::reloading().await;
                    self.load(false).await;
                    systemd::ready().await;
                }
                Some((request, answer)) = requests.recv() => {
                    let _ = answer.send(self.answer(request).await); // the command may have been ended
                }
                () = at(self.next_look) => self.look().await,
                () = at(self.temporary) => drop(self.set_filter(None)),
            }
        }
    }

    async fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Reload { dry_run } => Answer::Reloaded(self.load(dry_run).await),
            Request::LogLevel { temporary } => self.log_level(temporary),
            Request::Deliveries => Answer::Deliveries(seen(&self.webhooks, &self.running.load())),
            _ => Answer::Error("the relay itself is not asked this".to_owned()),
        }
    }

    /// Reads and applies the configuration because someone wants it to be.
    async fn load(&mut self, dry_run: bool) -> control::Reloaded {
        let look = self.read().await;
        if dry_run { answer(&self.running.load(), &look) } else { self.take(look, true).await }
    }

    /// Looks whether the configuration has changed. It is applied, or refused, when the next look finds the same.
    async fn look(&mut self) {
        let look = self.read().await;
        let found = Some(Found::of(&look));
        if found == Some(self.found.clone()) {
            self.unconfirmed = None;
            self.next_look = self.after(Duration::MAX);
        } else if found == self.unconfirmed {
            self.take(look, false).await;
        } else {
            self.unconfirmed = found;
            self.next_look = self.after(CONFIRMATION);
        }
    }

    /// When the next look is due: after `most`, or earlier.
    fn after(&self, most: Duration) -> Option<Instant> {
        let interval = self.running.load().reload.check_interval;
        (!interval.is_zero()).then(|| Instant::now() + interval.min(most))
    }

    /// Reads the configuration on a thread of its own, which a file system may hold up without end.
    async fn read(&mut self) -> Look {
        let running = self.running.load_full();
        let most = running.reload.timeout;
        let cannot = |why: String| Err(Mistakes { lines: vec![why], may_pass: true, ..Mistakes::default() });
        let too_late = || {
            cannot(format!("the files were not read within {most:?} (reload.timeout): does their file system answer?"))
        };
        if let Some(late) = &mut self.late {
            if timeout(most, late).await.is_err() {
                return too_late();
            }
            self.late = None; // what it has found may be old
        }
        let mut look = tokio::task::spawn_blocking(move || running.reload());
        if let Ok(look) = timeout(most, &mut look).await {
            // The log has the panic; its text would differ each time.
            return look.unwrap_or_else(|_| {
                cannot("reading the configuration has failed: this is a bug of the relay".to_owned())
            });
        }
        self.late = Some(look);
        too_late()
    }

    /// Applies what was read, where it is right and has changed, and says what has become of it: once, unless it `is_asked` for.
    async fn take(&mut self, look: Look, is_asked: bool) -> control::Reloaded {
        // TLS comes first: it is the one part that the system can refuse, and nothing is changed then.
        let look = look.and_then(|reloaded| match self.parts.tls.set(&reloaded.config) {
            Ok(()) => Ok(reloaded),
            Err(failure) => Err(Mistakes { lines: vec![failure.to_string()], may_pass: true, ..Mistakes::default() }),
        });
        let found = Found::of(&look);
        let is_news = found != self.found;
        let was_wrong = matches!(self.found, Found::Wrong(_));
        let answer = answer(&self.running.load(), &look);
        let result = match look {
            Ok(Reloaded { config, changed, needs_restart, .. }) => {
                let result = if changed.is_empty() {
                    outcome::Reload::Unchanged
                } else {
                    self.apply(config, &changed).await;
                    outcome::Reload::Applied
                };
                if result == outcome::Reload::Applied {
                    tracing::info!(changed = changed.join(", "), "configuration reloaded");
                } else if was_wrong {
                    tracing::info!("the configuration is valid again, and is the running one");
                } else if is_asked {
                    tracing::info!("the configuration has not changed");
                }
                if !needs_restart.is_empty() && (is_news || is_asked) {
                    let needs_restart = needs_restart.join(", ");
                    tracing::warn!(needs_restart, "some changes of the configuration need a restart");
                }
                result
            }
            Err(mistakes) if mistakes.may_pass => {
                if is_news || is_asked {
                    let mistakes = mistakes.lines.join("; ");
                    tracing::warn!(mistakes, "the configuration cannot be read; the former one stays");
                }
                outcome::Reload::Unreadable
            }
            Err(mistakes) => {
                if is_news || is_asked {
                    let mistakes = mistakes.lines.join("; ");
                    tracing::error!(mistakes, "the configuration is invalid; the former one stays");
                }
                outcome::Reload::Invalid
            }
        };
        self.parts.metrics.configured(Some(result), answer.needs_restart.len());
        self.found = found;
        self.unconfirmed = None;
        self.next_look = self.after(Duration::MAX);
        answer
    }

    /// Puts a configuration in force. Requests that are under way end with the former one.
    async fn apply(&mut self, mut config: Config, changed: &[String]) {
        const CONNECTIONS_MAX: &str = "server.connections_max";
        let before = self.running.load_full();
        config
            .new_warnings(&before)
            .iter()
            .for_each(|warning| tracing::warn!(warning, "the configuration may contain a mistake"));
        if changed.iter().any(|key| key == CONNECTIONS_MAX) {
            make_do_with_open_files(&mut config);
        } else {
            config.server.listener.limits.connections_max = before.server.listener.limits.connections_max;
        }
        if let Some(policy) = Arc::get_mut(&mut config.policy) {
            policy.inherit(&before.policy);
        }
        let has_new_topics = self.parts.topics.set(config.policy.topics(), config.topics.clone());
        if has_new_topics && self.parts.is_kafka_up() {
            let _ = timeout(TOPICS_PATIENCE, self.parts.topics.prepared()).await; // else their events wait in the spool
        }
        let Config { server, policy, .. } = &config;
        self.parts.spool.iter().for_each(|spool| spool.lanes(|lanes| lanes.set_apps(policy.topics_by_app())));
        let Webhooks { relay, budget, live, .. } = &self.webhooks.handler;
        relay.set_retries(policy.retries);
        relay.deliveries().retain(|app| policy.all_apps().any(|configured| configured.name == app));
        budget.set(server.budget);
        live.store(Arc::new(parts::live(&config)));
        self.webhooks.set(server.listener.limits.clone(), server.clients.clone());
        let (admin, probes) = &self.inside;
        admin.set(config.admin.limits.clone(), client::Config::default());
        probes.set(config.admin.limits.clone(), client::Config::default());
        if self.temporary.is_none() {
            telemetry::set_filter(&config.log.filter);
        }
        self.running.store(Arc::new(config));
    }

    fn log_level(&mut self, temporary: Option<Temporary>) -> Answer {
        let most = self.running.load().log.temporary_max;
        let temporary = match temporary {
            Some(Temporary { filter, .. }) if !telemetry::Config::is_filter(&filter) => {
                return Answer::Error(format!("the filter must be {}", telemetry::Config::FILTERS));
            }
            Some(Temporary { for_ms, .. }) if Duration::from_millis(for_ms) > most => {
                return Answer::Error(format!("{most:?} is the longest time (log.temporary_max)"));
            }
            temporary => temporary.map(|Temporary { filter, for_ms }| (filter, Duration::from_millis(for_ms))),
        };
        let configured = self.running.load().log.filter.clone();
        let until = temporary.as_ref().and_then(|(_, time)| Timestamp::now().checked_add(*time).ok());
        let filter = self.set_filter(temporary);
        Answer::LogLevel(control::LogLevel { filter, until, configured })
    }

    /// Puts a filter in force for a time, or the configured one; which.
    fn set_filter(&mut self, temporary: Option<(String, Duration)>) -> String {
        let configured = self.running.load().log.filter.clone();
        let Some((filter, time)) = temporary else {
            telemetry::set_filter(&configured);
            if self.temporary.take().is_some() {
                tracing::info!(filter = configured, "the log filter is the configured one again");
            }
            return configured;
        };
        tracing::info!(filter, configured, for_time = ?time, "the log filter is changed for a limited time");
        telemetry::set_filter(&filter);
        self.temporary = Some(Instant::now() + time);
        filter
    }
}

/// What registrations have delivered, and the secret keys that are valid now have verified.
pub fn seen(webhooks: &Server<Webhooks>, running: &Config) -> Seen {
    let deliveries = webhooks.handler.relay.deliveries();
    let keys = valid(running.policy.keys(), Timestamp::now());
    Seen { registrations: deliveries.all(), keys, tenants: deliveries.tenants() }
}

/// Of an app's keys those that verify a webhook now.
fn valid<'k>(keys: impl Iterator<Item = (&'k str, &'k Key)>, now: Timestamp) -> Vec<KeyUse> {
    let of_key = |(app, key): (&str, &Key)| KeyUse {
        app: app.to_owned(),
        key: key.name().to_owned(),
        uses: key.uses(),
        last: Timestamp::from_millisecond(key.last_use_ms()).ok().filter(|_| key.uses() > 0),
    };
    keys.filter(|(_, key)| key.validity().covers(now)).map(of_key).collect()
}

/// What the command is told.
fn answer(running: &Config, look: &Look) -> control::Reloaded {
    let file = running.sources.file.as_ref();
    let file = file.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.clone()));
    match look {
        Ok(Reloaded { config, changed, needs_restart, .. }) => control::Reloaded {
            file,
            warnings: config.new_warnings(running),
            changed: changed.clone(),
            needs_restart: needs_restart.clone(),
            ..control::Reloaded::default()
        },
        Err(Mistakes { lines, may_pass, .. }) => {
            control::Reloaded { file, mistakes: lines.clone(), may_pass: *may_pass, ..control::Reloaded::default() }
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The next signal, where it is listened to.
async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::event::{Keyring, Validity};

    #[test]
    fn a_key_past_its_end_or_before_its_start_is_not_reported() {
        let (secret, second) = (SecretString::from("k"), |second| Timestamp::from_second(second).ok());
        let dates =
            [("past", None, Some(5)), ("now", Some(5), Some(9)), ("later", Some(9), None), ("always", None, None)];
        let ring = Keyring::dated(dates.map(|(name, from, until)| {
            let validity = Validity { not_before: from.and_then(second), not_after: until.and_then(second) };
            (name.to_owned(), &secret, validity)
        }));
        let keys = valid(ring.keys().map(|key| ("a", key)), second(7).expect("a time"));
        assert_eq!(keys.iter().map(|key| key.key.as_str()).collect::<Vec<_>>(), ["now", "always"]);
    }
}
