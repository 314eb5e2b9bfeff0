//! `[livechat] watch`: compares now and then what is registered at LiveChat with what is wanted. A call that fails costs a comparison and
//! nothing else.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::civil::Date;
use tokio::time::Instant;

use super::reload::seen;
use crate::cli::webhooks::unfinished;
use crate::config::Config;
use crate::http::Server;
use crate::http::webhook::Webhooks;
use crate::livechat::apply::delivered;
use crate::livechat::plan::{Facts, Plan, Rotation, Why, plan};
use crate::livechat::{Api, App, Failure, Kind, Notices};
use crate::metrics::{Metrics, Registered};
use crate::outcome::RegistrationState;
use crate::telemetry::Throttles;

/// How often it is looked whether a comparison is due: a reload may change that.
const TICK: Duration = Duration::from_secs(5);

/// How often the same failure is said.
const REPEAT: Duration = Duration::from_secs(24 * 3600);

/// What was found of an app.
#[derive(Clone, PartialEq, Eq)]
struct Found {
    /// Actions, by state.
    actions: BTreeMap<&'static str, Vec<String>>,
    /// Absent where the credentials may not ask.
    is_enabled: Option<bool>,
    notices: Notices,
    /// A rotation of the secret key that was begun and has not ended: each webhook may be registered twice.
    rotation: Option<Rotation>,
}

/// What the comparisons of an app have come to.
#[derive(Default)]
struct Watched {
    compared: u64,
    failed: u64,
    /// By the last that did not fail.
    found: Option<Found>,
}

pub struct Registrations {
    pub running: Arc<ArcSwap<Config>>,
    pub webhooks: Arc<Server<Webhooks>>,
    pub metrics: Arc<Metrics>,
}

impl Registrations {
    /// Never ends. The first comparison is at once, and so is the one after a change of the configuration's apps or of its `[livechat]`.
    pub async fn watch(self) {
        let (mut watched, failures) = (HashMap::new(), Throttles::new(REPEAT));
        let mut last: Option<(Instant, Arc<Config>)> = None;
        loop {
            let config = self.running.load_full();
            let is_due =
                |interval| last.as_ref().is_none_or(|(last, of)| last.elapsed() >= interval || is_other(of, &config));
            match config.livechat.watch {
                Some(interval) if is_due(interval) => {
                    self.compare_all(&config, &mut watched, &failures).await;
                    last = Some((Instant::now(), config));
                }
                Some(_) => {}
                None => {
                    last = None;
                    watched.clear();
                    self.show(&watched);
                }
            }
            tokio::time::sleep(TICK).await;
        }
    }

    async fn compare_all(&self, config: &Config, watched: &mut HashMap<String, Watched>, failures: &Throttles) {
        let apps = || config.livechat.apps.iter().filter(|app| app.credential.is_some());
        watched.retain(|name, _| apps().any(|app| app.name == *name));
        for app in apps() {
            watched.entry(app.name.clone()).or_default();
        }
        self.show(watched);
        for app in apps() {
            let result = self.compare(config, app).await;
            let of_app = watched.entry(app.name.clone()).or_default();
            match result {
                Ok(now) => {
                    of_app.compared += 1;
                    if of_app.found.as_ref() != Some(&now) {
                        now.log(&app.name, of_app.found.is_some());
                        of_app.found = Some(now);
                    }
                }
                Err(failure) => {
                    of_app.failed += 1;
                    if let Some(suppressed) = failures.pass(&format!("{} {:?}", app.name, failure.kind)) {
                        tracing::warn!(app = app.name, %failure, suppressed, "the registrations at LiveChat could not be compared with the configuration");
                    }
                }
            }
            self.show(watched);
        }
    }

    fn show(&self, watched: &HashMap<String, Watched>) {
        let all: Vec<_> = watched.iter().map(|(app, of_app)| of_app.metric(app)).collect();
        self.metrics.registrations(&all);
    }

    async fn compare(&self, config: &Config, app: &App) -> Result<Found, Failure> {
        let api = Api::new(&config.livechat, app);
        let listed = api.list_webhooks().await?;
        let is_enabled = match api.license_webhooks_enabled().await {
            Ok(is_enabled) => Some(is_enabled),
            Err(failure) if failure.kind == Kind::NotFound => Some(false),
            Err(failure) if failure.kind == Kind::Authorization => None, // the state has a scope of its own
            Err(failure) => return Err(failure),
        };
        let facts = Facts {
            enabled: is_enabled,
            notices: api.notices(),
            delivered: delivered(app, &seen(&self.webhooks, config)),
            rotation: unfinished(config, app),
            ..Facts::default()
        };
        Ok(Found::new(app, plan(app, &listed, &facts), facts))
    }
}

/// Whether another configuration may come to another comparison: each is billed.
fn is_other(former: &Arc<Config>, now: &Arc<Config>) -> bool {
    let is_of = |key: &String| key.starts_with("livechat.") || key.starts_with("apps");
    let differences = || now.sources.digests.differences(&former.sources.digests);
    !Arc::ptr_eq(former, now) && differences().iter().any(is_of)
}

impl Watched {
    fn metric<'a>(&self, app: &'a str) -> Registered<'a> {
        let states = |found: &Found| {
            RegistrationState::ALL.iter().map(|state| (state.label(), found.of(*state).len())).collect::<Vec<_>>()
        };
        let notice = |of: fn(&Notices) -> Option<Date>| self.found.as_ref().and_then(|found| of(&found.notices));
        Registered {
            app,
            checks: [("compared", self.compared), ("failed", self.failed)],
            states: self.found.as_ref().map(states).unwrap_or_default(),
            is_enabled: self.found.as_ref().and_then(|found| found.is_enabled),
            ends: [("legacy", notice(|of| of.legacy)), ("deprecation", notice(|of| of.deprecation))],
        }
    }
}

impl Found {
    fn new(
        app: &App,
        Plan { add, remove, unchanged, foreign, .. }: Plan,
        Facts { enabled: is_enabled, notices, rotation, .. }: Facts,
    ) -> Self {
        let mut actions = BTreeMap::<_, Vec<String>>::new();
        let mut add_to = |state: RegistrationState, action| actions.entry(state.label()).or_default().push(action);
        // What is registered several times alike is there: it is what is too much that is reported.
        let is_there = |action: &str| {
            remove.iter().any(|removal| removal.why == Why::Unclear && removal.registration.action == action)
        };
        let missing = add.into_iter().filter(|wanted| !is_there(&wanted.action));
        missing.for_each(|wanted| add_to(RegistrationState::Missing, wanted.action));
        unchanged.into_iter().for_each(|one| add_to(RegistrationState::AsWanted, one.action));
        foreign.into_iter().for_each(|one| add_to(RegistrationState::Foreign, one.action));
        for removal in remove {
            let is_addressed = removal.registration.url == app.webhook_url();
            let state = if is_addressed { RegistrationState::NotWanted } else { RegistrationState::Misaddressed };
            add_to(state, removal.registration.action);
        }
        actions.values_mut().for_each(|of| of.sort());
        Self { actions, is_enabled, notices, rotation }
    }

    fn of(&self, state: RegistrationState) -> &[String] {
        self.actions.get(state.label()).map_or(&[], Vec::as_slice)
    }

    /// Says what has changed: once.
    fn log(&self, app: &str, was_found_before: bool) {
        use RegistrationState::{AsWanted, Foreign, Misaddressed, Missing, NotWanted};
        let is_right = [Missing, Misaddressed, NotWanted, Foreign].iter().all(|state| self.of(*state).is_empty());
        let Notices { legacy, deprecation } = self.notices;
        let is_right = is_right && self.rotation.is_none();
        if is_right && self.is_enabled != Some(false) && legacy.is_none() && deprecation.is_none() {
            let webhooks = self.of(AsWanted).len();
            if was_found_before {
                tracing::info!(app, webhooks, "the registrations at LiveChat match the configuration again");
            } else {
                tracing::info!(app, webhooks, "the registrations at LiveChat match the configuration");
            }
            return;
        }
        let list = |state: RegistrationState| self.of(state).join(", ");
        tracing::warn!(
            app,
            missing = list(Missing),
            misaddressed = list(Misaddressed),
            not_wanted = list(NotWanted),
            foreign = list(Foreign),
            enabled = self.is_enabled,
            rotation_unfinished = self.rotation.is_some().then_some(true),
            legacy = legacy.map(tracing::field::display),
            deprecation = deprecation.map(tracing::field::display),
            "the registrations at LiveChat differ from the configuration, or an API version ends soon: see `livechat-relay webhooks plan`"
        );
    }
}
